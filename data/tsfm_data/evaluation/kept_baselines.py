"""Scores of baselines on the suites, computed once and kept: fitting AutoETS to thousands of series takes long.

The file holds a cell for each set, profile and baseline, with a digest of everything the scores depend on: the content
of the data, the protocol, and statsforecast's version. A cell whose digest does not fit is as good as absent.
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
    """The kept rows of a baseline, or None where there are none for this work.

    Args:
        predictor: only baselines are kept.
        one: the set.
        profile: the protocol.
        file: where scores are kept.
    """
    if predictor.name not in BASELINES:
        return None
    cell = cells(file).get(_key(predictor.name, one, profile))
    if cell is None or cell["digest"] != digest(predictor, one, profile, cell["statsforecast"]):
        return None
    place = cell["place"]
    return [
        make_row(place, metric, math.nan if value is None else value, place["points"], cell["undefined"].get(metric, 0))
        for metric, value in cell["values"].items()
    ]


def digest(predictor: Predictor, one: SuiteSet, profile: Profile, kept: str | None = None) -> str:
    """What identifies the work. Where statsforecast is not installed the version of the kept scores will do."""
    needs = isinstance(predictor, Statistical)
    return one.digest(profile, [repr(predictor), (_version() or kept or "") if needs else ""])


def keep(predictor: Predictor, one: SuiteSet, found: Rows, file: Path = FILE) -> None:
    """Add the rows of a baseline on one set to the file, in place of older ones."""
    kept = cells(file)
    for name in one.profiles:
        profile = suite_profile(name)
        mine = [row for row in found if row["profile"] == name]
        kept[_key(predictor.name, one, profile)] = {
            "digest": digest(predictor, one, profile),
            "statsforecast": _version() if isinstance(predictor, Statistical) else None,
            "place": {key: value for key, value in mine[0].items() if key not in ("metric", "value", "undefined")},
            "values": {row["metric"]: None if row["value"] is None else _short(row["value"]) for row in mine},
            "undefined": {row["metric"]: row["undefined"] for row in mine if row["undefined"]},
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
