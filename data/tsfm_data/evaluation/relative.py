"""Errors relative to seasonal naive's: per set, and as a geometric mean over sets."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tsfm_data.evaluation.report import BASELINE

HEADLINE = ("MASE", "WQL")
Cell = tuple[str, str, str, str]  # profile, set, model, metric


def cells(rows: Iterable[Mapping[str, Any]]) -> dict[Cell, float | None]:
    """The values of whole sets by profile, set, model and metric."""
    return {
        (row["profile"], row["dataset"], row["model"], row["metric"]): row["value"]
        for row in rows
        if row.get("item_id") is None
    }


def ratio(values: Mapping[Cell, float | None], profile: str, name: str, model: str, metric: str) -> float | None:
    """A model's error over seasonal naive's on one set; None where either is undefined or the latter is zero."""
    above, below = values.get((profile, name, model, metric)), values.get((profile, name, BASELINE, metric))
    return above / below if above is not None and below is not None and below > 0 else None


def geometric_mean(values: Sequence[float | None]) -> float | None:
    """Of the known values that are not zero; None where there is none."""
    known = [value for value in values if value is not None and value > 0]
    return math.exp(sum(map(math.log, known)) / len(known)) if known else None


def between(values: Mapping[Cell, float | None], profile: str, model: str, other: str) -> dict[str, float | int | None]:
    """A model's errors over another's: per metric the geometric mean over the sets that have both, and how many do."""
    found: dict[str, float | int | None] = {}
    for metric in HEADLINE:
        names = [n for p, n, m, k in values if (p, m, k) == (profile, other, metric)]
        pairs = [(values.get((profile, n, model, metric)), values[profile, n, other, metric]) for n in names]
        ratios = [a / b for a, b in pairs if a and b]
        found |= {metric: geometric_mean(ratios), "datasets": len(ratios)}
    return found


def calibration(values: Mapping[Cell, float | None], profile: str, model: str) -> dict[str, float | None]:
    """Means over sets of the share inside the 80 % interval and of the error of the quantile levels' coverage."""
    found: dict[str, float | None] = {}
    for metric in ("coverage80", "coverage_error"):
        known = [v for (p, _, m, k), v in values.items() if (p, m, k) == (profile, model, metric) and v is not None]
        found[metric] = sum(known) / len(known) if known else None
    return found


def undefined(values: Mapping[Cell, float | None], profile: str, model: str) -> dict[str, list[str]]:
    """Metric -> the sets on which no ratio exists: an undefined value, or an error of zero."""
    names = dict.fromkeys(name for p, name, m, _ in values if (p, m) == (profile, model))
    lost = {metric: [n for n in names if not ratio(values, profile, n, model, metric)] for metric in HEADLINE}
    return {metric: found for metric, found in lost.items() if found}
