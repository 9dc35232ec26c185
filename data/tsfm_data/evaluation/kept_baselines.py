"""Stored scores of baselines on the suites, because fitting AutoETS to thousands of series takes long.

The file has a cell for each set, profile and baseline, with a digest of everything that changes the forecasts: the
content of the data, windows, horizon, season, levels, and statsforecast's version. A cell with another digest is
ignored. Values are stored by the definition of their metric, so a profile may gain, lose or rename metrics.
"""

import functools
import json
import math
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tsfm_data.evaluation.baselines import BASELINES, Predictor, Statistical
from tsfm_data.evaluation.profiles import Profile
from tsfm_data.evaluation.report import make_row
from tsfm_data.evaluation.suite_sets import SuiteSet, suite_profile
from tsfm_data.io import atomic_file

FILE = Path(__file__).with_name("baselines.json")
Rows = list[dict[str, Any]]


def load_rows(predictor: Predictor, suite_set: SuiteSet, profile: Profile, file: Path = FILE) -> Rows | None:
    """The stored rows of a baseline, or None if there are none for this digest.

    Metrics added to the profile later are missing from the rows.

    Args:
        predictor: the baseline; None is returned for any other predictor.
        suite_set: the set.
        profile: the protocol.
        file: the file of scores.
    """
    if predictor.name not in BASELINES:
        return None
    cell = cells(file).get(_key(predictor.name, suite_set, profile))
    if cell is None:
        return None
    place, values = cell["place"], cell["values"]
    if cell["digest"] != digest(predictor, suite_set, profile, place["freq"], cell["statsforecast"]):
        return None
    return [
        make_row(
            place,
            metric,
            math.nan if values[definition] is None else values[definition],
            place["points"],
            cell["undefined"].get(definition, 0),
        )
        for metric, definition in profile.metrics.items()
        if definition in values
    ]


def digest(
    predictor: Predictor, suite_set: SuiteSet, profile: Profile, freq: str, stored_version: str | None = None
) -> str:
    """The digest of the forecasts. If statsforecast is not installed, the version of the stored scores is used."""
    needs = isinstance(predictor, Statistical)
    return suite_set.digest(profile, freq, [repr(predictor), (_version() or stored_version or "") if needs else ""])


def save_rows(predictor: Predictor, suite_set: SuiteSet, scored: Rows, file: Path = FILE) -> None:
    """Add the rows of a baseline on one set to the file; they replace older ones."""
    stored = cells(file)
    for name in suite_set.profiles:
        profile = suite_profile(name)
        profile_rows = {profile.metrics[row["metric"]]: row for row in scored if row["profile"] == name}
        place = {
            k: v for k, v in next(iter(profile_rows.values())).items() if k not in ("metric", "value", "undefined")
        }
        stored[_key(predictor.name, suite_set, profile)] = {
            "digest": digest(predictor, suite_set, profile, place["freq"]),
            "statsforecast": _version() if isinstance(predictor, Statistical) else None,
            "place": place,
            "values": {
                key: None if row["value"] is None else _short(row["value"]) for key, row in profile_rows.items()
            },
            "undefined": {key: row["undefined"] for key, row in profile_rows.items() if row["undefined"]},
        }
    _write(sorted(stored.items()), file)


def _short(value: float) -> float:
    """Round to ten significant digits, so that other processors write the same file."""
    return float(f"{value:.10g}")


def cells(file: Path = FILE) -> dict[str, Any]:
    """All stored cells, by set, profile and baseline."""
    return dict(_load(file, file.stat().st_mtime_ns)) if file.is_file() else {}


def _write(cells: Iterable[tuple[str, Any]], file: Path) -> None:
    """Write one cell per line, so that a diff shows which cells changed."""
    lines = [f"{json.dumps(key)}: {json.dumps(cell, allow_nan=False)}" for key, cell in cells]
    with atomic_file(file) as temporary:
        temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    _load.cache_clear()


def _key(model: str, suite_set: SuiteSet, profile: Profile) -> str:
    return f"{suite_set.name} {profile.name} {model}"


@functools.lru_cache(maxsize=2)
def _load(file: Path, _changed: int) -> dict[str, Any]:
    cells: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return cells


@functools.cache
def _version() -> str | None:
    try:
        return version("statsforecast")
    except PackageNotFoundError:
        return None
