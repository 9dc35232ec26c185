"""The door through which every table enters.

``read_series`` takes CSV, Parquet, Arrow and Feather files, pandas and pyarrow tables and GluonTS data sets. All checks
of user input happen here and in what it calls; everything behind works on a ``SeriesSet`` that is regular in time.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from jaxtyping import Float, Float64, Int64

from tsfm_data.errors import InputError
from tsfm_data.io.columns import Roles, Table, find_roles, item_codes, numbers
from tsfm_data.io.gluonts import read_gluonts
from tsfm_data.io.grid import BadTime, Grid, regular_grid
from tsfm_data.io.readers import read_table
from tsfm_data.io.series import SeriesSet, item_offsets
from tsfm_data.io.timestamps import nanoseconds


def read_series(
    source: str | Path | pd.DataFrame | pa.Table | Iterable[dict[str, Any]],
    *,
    time_column: str | None = None,
    item_column: str | None = None,
    target: str | Sequence[str] | None = None,
    past_covariates: Sequence[str] = (),
    known_covariates: Sequence[str] = (),
    freq: str | None = None,
    order: Literal["time", "rows"] = "time",
    name: str | None = None,
) -> SeriesSet:
    """Series of a table.

    A long table (a column such as ``item_id`` or ``unique_id``) gives one item an id, with ``target`` (or ``y``,
    ``value``) as its variate. A wide table (a date column and one numeric column a variate) gives one item. Gaps in
    time become missing rows.

    Args:
        source: CSV, Parquet, Arrow or Feather file, pandas or pyarrow table, or GluonTS data set.
        time_column: name of the time column; None finds it.
        item_column: name of the column that tells series apart; None finds it.
        target: name or names of the value columns; None finds them.
        past_covariates: columns known up to the present only.
        known_covariates: columns known in the future too; trailing rows without any target are then the future.
        freq: pandas alias of all series; None reads each series' most common step.
        order: "rows" takes the rows as equally spaced from the first timestamp on, whatever the later timestamps say,
            as the long-horizon literature does; "time" checks them.
        name: name of the set; None takes the stem of the file.

    Raises:
        InputError: anything about the table that is not as it should be, in one line with its place.
    """
    if isinstance(source, str | Path):
        table = read_table(Path(source), item_column)
    elif isinstance(source, pd.DataFrame | pa.Table):
        table = Table(_plain(source), "the table", "table")
    else:
        return read_gluonts(source, freq=freq, name=name or "dataset")
    if len(table.frame) == 0:
        raise InputError(f"{table.source}: expected rows of values, found a header alone")
    roles = find_roles(
        table,
        time_column=time_column,
        item_column=item_column,
        target=target,
        past=past_covariates,
        known=known_covariates,
    )
    return _assemble(table, roles, freq, order, name or table.name)


def _plain(source: pd.DataFrame | pa.Table) -> pd.DataFrame:
    """A table whose index holds nothing of use: dates and item ids in an index become columns."""
    frame = source.to_pandas(date_as_object=False) if isinstance(source, pa.Table) else source
    index = frame.index
    if isinstance(index, pd.DatetimeIndex | pd.PeriodIndex):
        frame = frame.rename_axis(index=str(index.name or "timestamp")).reset_index()
    else:
        frame = frame.reset_index(drop=not isinstance(index, pd.MultiIndex))
    frame = frame.set_axis([str(name) for name in frame.columns], axis="columns")
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise InputError(f"the table: expected different column names, found {twice[0]!r} more than once")
    return frame


def _assemble(table: Table, roles: Roles, freq: str | None, order: str, name: str) -> SeriesSet:
    """One contiguous set out of columns: rows sorted by item, put on the regular grid."""
    values = numbers(table, roles.target)
    past, known = numbers(table, roles.past), numbers(table, roles.known)
    ns = nanoseconds(table, roles.time)
    if roles.item is None:
        codes = np.zeros(len(ns), dtype=np.int64)
        ids: tuple[str, ...] = roles.target if len(roles.target) == 1 else (name,)
    else:
        codes, ids = item_codes(table, roles.item)
    rows = np.argsort(codes, kind="stable")
    bounds = item_offsets(np.bincount(codes, minlength=len(ids)))
    try:
        grid = _sequence(ns[rows], bounds, freq) if order == "rows" else regular_grid(ns[rows], bounds, freq)
    except BadTime as error:
        row = int(rows[error.row])
        series = "" if roles.item is None else f", series {ids[codes[row]]!r}"
        raise InputError(f"{table.where(row, roles.time)}{series}: {error.text}") from error
    offsets = item_offsets(grid.length)
    place = offsets[codes[rows]] + grid.position
    columns = [_spread(block, rows, place, int(offsets[-1])) for block in (values, past, known)]
    future = np.zeros(len(ids), dtype=np.int64)
    if roles.known:
        seen = np.isfinite(columns[0]).any(axis=1)
        last = np.maximum.reduceat(np.where(seen, np.arange(len(seen)) + 1, 0), offsets[:-1])
        future = np.where(last > 0, offsets[1:] - last, 0)  # an item without any value has no visible end
    return SeriesSet(
        name=name,
        source=table.source,
        values=columns[0],
        offsets=offsets,
        item_ids=ids,
        variates=roles.target,
        starts=grid.starts,
        freqs=grid.freqs,
        past=columns[1],
        past_names=roles.past,
        known=columns[2],
        known_names=roles.known,
        future_rows=future,
    )


def _spread(
    block: Float[np.ndarray, "rows C"], rows: Int64[np.ndarray, " rows"], place: Int64[np.ndarray, " rows"], total: int
) -> Float64[np.ndarray, "total C"]:
    if total == len(rows) and (rows[:-1] < rows[1:]).all():
        return block  # nothing to move: no gap, and the rows are in order
    result = np.full((total, block.shape[1]), np.nan)
    result[place] = block[rows]
    return result


def _sequence(ns: Int64[np.ndarray, " rows"], bounds: Int64[np.ndarray, " borders"], freq: str | None) -> Grid:
    """Rows as steps, one after the other, whatever their timestamps after the first say."""
    if freq is None:
        raise InputError("expected a frequency with order='rows', found none; give freq")
    first = regular_grid(ns[bounds[:-1]], np.arange(len(bounds)), freq)
    length = np.diff(bounds)
    return Grid(np.arange(len(ns)) - np.repeat(bounds[:-1], length), length, first.starts, first.freqs)
