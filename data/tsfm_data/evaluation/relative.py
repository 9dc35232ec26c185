"""Errors relative to seasonal naive: per set, and as a geometric mean over sets."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tsfm_data.evaluation.report import BASELINE

HEADLINE = ("MASE", "WQL")
Cell = tuple[str, str, str, str]  # profile, set, model, metric


def cells(rows: Iterable[Mapping[str, Any]]) -> dict[Cell, float | None]:
    """Scores of whole sets, by profile, set, model and metric."""
    return {
        (row["profile"], row["dataset"], row["model"], row["metric"]): row["value"]
        for row in rows
        if row.get("item_id") is None
    }


def ratio(values: Mapping[Cell, float | None], profile: str, name: str, model: str, metric: str) -> float | None:
    """A model's error divided by that of seasonal naive on one set; None if it is undefined."""
    error, naive_error = values.get((profile, name, model, metric)), values.get((profile, name, BASELINE, metric))
    return error / naive_error if error is not None and naive_error is not None and naive_error > 0 else None


def geometric_mean(values: Sequence[float | None]) -> float | None:
    """Geometric mean of the values that are neither None nor zero; None if there are none."""
    known = [value for value in values if value is not None and value > 0]
    return math.exp(sum(map(math.log, known)) / len(known)) if known else None


def compare_models(
    values: Mapping[Cell, float | None], profile: str, model: str, other: str
) -> dict[str, float | int | None]:
    """Geometric mean per metric of a model's errors divided by another's, over the sets with both; their number."""
    comparison: dict[str, float | int | None] = {}
    for metric in HEADLINE:
        names = [n for p, n, m, k in values if (p, m, k) == (profile, other, metric)]
        pairs = [(values.get((profile, n, model, metric)), values[profile, n, other, metric]) for n in names]
        ratios = [a / b for a, b in pairs if a and b]
        comparison |= {metric: geometric_mean(ratios), "datasets": len(ratios)}
    return comparison


def mean_calibration(values: Mapping[Cell, float | None], profile: str, model: str) -> dict[str, float | None]:
    """Means over sets: the coverage of the 80 % interval, and the coverage error of the quantile levels."""
    means: dict[str, float | None] = {}
    for metric in ("coverage80", "coverage_error"):
        known = [v for (p, _, m, k), v in values.items() if (p, m, k) == (profile, model, metric) and v is not None]
        means[metric] = sum(known) / len(known) if known else None
    return means


def sets_without_ratio(values: Mapping[Cell, float | None], profile: str, model: str) -> dict[str, list[str]]:
    """Metric -> the sets without a ratio, because a value is undefined or an error is zero."""
    names = dict.fromkeys(name for p, name, m, _ in values if (p, m) == (profile, model))
    lacking = {metric: [n for n in names if not ratio(values, profile, n, model, metric)] for metric in HEADLINE}
    return {metric: sets for metric, sets in lacking.items() if sets}
