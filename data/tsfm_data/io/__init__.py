"""Data sets and tables: download, files, readers, and every check of user input."""

from typing import TYPE_CHECKING

from tsfm_data.lazy import lazy_exports

if TYPE_CHECKING:
    from tsfm_data.io.append import append_rows
    from tsfm_data.io.catalog import Borders, DatasetSpec, open_source
    from tsfm_data.io.columns import Table, numbers
    from tsfm_data.io.download import cache_folder, check, data_folder, disk_errors, fetch, find
    from tsfm_data.io.files import (
        PICTURES,
        REPORTS,
        atomic_file,
        atomic_folder,
        check_new,
        check_suffix,
        lock_folder,
    )
    from tsfm_data.io.foreign import guarded, read_columns
    from tsfm_data.io.frequency import (
        calendar_features,
        natural_season,
        normalise,
        period_alias,
        season_length,
        step_of,
    )
    from tsfm_data.io.gluonts import read_gluonts
    from tsfm_data.io.objects import like
    from tsfm_data.io.parts import PART_SERIES, Parts, open_parts
    from tsfm_data.io.readers import read_table
    from tsfm_data.io.records import check_record, check_version, is_plain_name, read_record, read_yaml
    from tsfm_data.io.series import Labels, SeriesSet
    from tsfm_data.io.tables import prepare, read_series

__all__ = [
    "PART_SERIES",
    "PICTURES",
    "REPORTS",
    "Borders",
    "DatasetSpec",
    "Labels",
    "Parts",
    "SeriesSet",
    "Table",
    "append_rows",
    "atomic_file",
    "atomic_folder",
    "cache_folder",
    "calendar_features",
    "check",
    "check_new",
    "check_record",
    "check_suffix",
    "check_version",
    "data_folder",
    "disk_errors",
    "fetch",
    "find",
    "guarded",
    "is_plain_name",
    "like",
    "lock_folder",
    "natural_season",
    "normalise",
    "numbers",
    "open_parts",
    "open_source",
    "period_alias",
    "prepare",
    "read_columns",
    "read_gluonts",
    "read_record",
    "read_series",
    "read_table",
    "read_yaml",
    "season_length",
    "step_of",
]
__getattr__ = lazy_exports(__name__, __file__)
