"""Scores of baselines on the suites, computed once and kept: fitting AutoETS to thousands of series takes long.

The file holds a cell for each set, profile and baseline, with a digest of everything that changes the forecasts: the
content of the data, windows, horizon, season, levels, and statsforecast's version. A cell whose digest does not fit is
as good as absent. Values are kept by the definition of their metric, so that a profile may gain, lose or rename one.
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


def rows(predictor: Predictor, one: SuiteSet, profile: Profile, file: Path = FILE) -> Rows | None:
    """The kept rows of a baseline, or None if there are none for this work.

    Metrics that the profile has gained since are not among them.

    Args:
        predictor: only baselines are kept.
        one: the set.
        profile: the protocol.
        file: the file of scores.
    """
    if predictor.name not in BASELINES:
        return None
    cell = cells(file).get(_key(predictor.name, one, profile))
    if cell is None:
        return None
    place, values = cell["place"], cell["values"]
    if cell["digest"] != digest(predictor, one, profile, place["freq"], cell["statsforecast"]):
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


def digest(predictor: Predictor, one: SuiteSet, profile: Profile, freq: str, kept: str | None = None) -> str:
    """What identifies the work. If statsforecast is not installed the version of the kept scores will do."""
    needs = isinstance(predictor, Statistical)
    return one.digest(profile, freq, [repr(predictor), (_version() or kept or "") if needs else ""])


def keep(predictor: Predictor, one: SuiteSet, scored: Rows, file: Path = FILE) -> None:
    """Add the rows of a baseline on one set to the file, in place of older ones."""
    kept = cells(file)
    for name in one.profiles:
        profile = suite_profile(name)
        mine = {profile.metrics[row["metric"]]: row for row in scored if row["profile"] == name}
        place = {k: v for k, v in next(iter(mine.values())).items() if k not in ("metric", "value", "undefined")}
        kept[_key(predictor.name, one, profile)] = {
            "digest": digest(predictor, one, profile, place["freq"]),
            "statsforecast": _version() if isinstance(predictor, Statistical) else None,
            "place": place,
            "values": {key: None if row["value"] is None else _short(row["value"]) for key, row in mine.items()},
            "undefined": {key: row["undefined"] for key, row in mine.items() if row["undefined"]},
        }
    _write(sorted(kept.items()), file)


def _short(value: float) -> float:
    """Ten digits: more than any comparison needs, and the same file on another processor."""
    return float(f"{value:.10g}")


def cells(file: Path = FILE) -> dict[str, Any]:
    """Everything that is kept, by set, profile and baseline."""
    return dict(_load(file, file.stat().st_mtime_ns)) if file.is_file() else {}


def _write(cells: Iterable[tuple[str, Any]], file: Path) -> None:
    """One cell a line, so that a change shows as the lines that changed."""
    lines = [f"{json.dumps(key)}: {json.dumps(cell, allow_nan=False)}" for key, cell in cells]
    with atomic_file(file) as temporary:
        temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    _load.cache_clear()


def _key(model: str, one: SuiteSet, profile: Profile) -> str:
    return f"{one.name} {profile.name} {model}"


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
