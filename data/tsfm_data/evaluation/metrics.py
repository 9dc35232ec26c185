"""Forecast metrics: statistics per forecast value, aggregated over batches in constant memory.

A metric such as ``MASE`` consists of statistics (``absolute error / seasonal error``), whose sums and counts are
accumulated in float64, and of a formula over these totals. Definitions and names follow ``gluonts.ev`` (GluonTS 0.17),
with which tests compare every value; quantile losses have the factor 2, ND, NRMSE and WQL are ratios of totals, and
sMAPE is 2|e| / (|y| + |f|).

Axes: B windows, H horizon steps, V variates, Q quantile levels, G groups that are reported separately.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int64

from tsfm_data.errors import InputError, unknown_name
from tsfm_data.evaluation.elements import Elements

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

# Treatment of values that are not finite: "mask" skips them (zero denominators), counts them as undefined, and skips
# unobserved labels; "nan" skips NaN only; "keep" propagates NaN into means.
Invalid = Literal["mask", "nan", "keep"]


def _error(e: Elements, kind: float | str) -> np.ndarray:
    return e.label - e.forecast(kind)


def _quantile_loss(e: Elements, level: float | str) -> np.ndarray:
    forecast = e.forecast(level)
    return 2 * np.abs((e.label - forecast) * ((forecast >= e.label) - float(level)))


def _scale(e: Elements) -> np.ndarray:
    if e.scale is None:
        raise InputError("expected the seasonal errors of the windows, found none: scaled metrics need Elements.scale")
    return e.scale


def _interval_score(e: Elements, alpha: float | str) -> np.ndarray:
    alpha = float(alpha)
    lower, upper = e.forecast(alpha / 2), e.forecast(1 - alpha / 2)
    below, above = e.label < lower, e.label > upper
    outside = (lower - e.label) * below + (e.label - upper) * above
    return upper - lower + 2 / alpha * outside


def _inside(e: Elements, share: float | str) -> np.ndarray:
    lower, upper = e.forecast((1 - float(share)) / 2), e.forecast((1 + float(share)) / 2)
    return ((lower <= e.label) & (e.label <= upper)).astype(np.float64)


# One statistic per forecast value. The second argument is a quantile level, "mean", or the size of an interval.
STATISTICS: dict[str, Callable[[Elements, float | str], np.ndarray]] = {
    "missing": lambda e, _: np.isnan(e.label).astype(np.float64),
    "absolute_label": lambda e, _: np.abs(e.label),
    "error": _error,
    "absolute_error": lambda e, kind: np.abs(_error(e, kind)),
    "squared_error": lambda e, kind: np.square(_error(e, kind)),
    "absolute_scaled_error": lambda e, kind: np.abs(_error(e, kind)) / _scale(e),
    "absolute_percentage_error": lambda e, kind: np.abs(_error(e, kind)) / np.abs(e.label),
    "symmetric_percentage_error": lambda e, kind: (
        2 * np.abs(_error(e, kind)) / (np.abs(e.label) + np.abs(e.forecast(kind)))
    ),
    "quantile_loss": _quantile_loss,
    "scaled_quantile_loss": lambda e, level: _quantile_loss(e, level) / _scale(e),
    "scaled_interval_score": lambda e, alpha: _interval_score(e, alpha) / _scale(e),
    "below": lambda e, level: (e.label <= e.forecast(level)).astype(np.float64),
    "inside": _inside,
}

Key = tuple[str, float | str]  # a statistic and its argument


@dataclass
class Total:
    """Running sums of one statistic, one per group.

    Attributes:
        sum: sum over the counted values.
        count: number of counted values.
        undefined: number of observed values without a finite statistic (zero denominators).
        nan: number of NaN values.
    """

    sum: Float64[np.ndarray, " G"]
    count: Int64[np.ndarray, " G"]
    undefined: Int64[np.ndarray, " G"]
    nan: Int64[np.ndarray, " G"]

    def mean(self, invalid: Invalid) -> Float64[np.ndarray, " G"]:
        """Sum divided by count; NaN if the count is 0."""
        with np.errstate(invalid="ignore"):
            mean = self.sum / self.count
        return np.where(self.nan > 0, np.nan, mean) if invalid == "keep" else mean


@dataclass(frozen=True)
class Metric:
    """A named formula over totals.

    Attributes:
        name: in requests and reports, for instance ``"MASE"`` or ``"coverage[0.9]"``.
        keys: the statistics it needs.
        formula: from the totals' sums and means, in the order of ``keys``, to the value of each group.
        levels: the quantile levels it needs.
    """

    name: str
    keys: tuple[Key, ...]
    formula: Callable[[list[np.ndarray], list[np.ndarray]], np.ndarray]
    levels: tuple[float, ...] = ()


def _levels(kind: float | str) -> tuple[float, ...]:
    return () if kind == "mean" else (float(kind),)


def _mean(statistic: str) -> Callable[[str, float | str], Metric]:
    return lambda name, kind: Metric(name, ((statistic, kind),), lambda _, means: means[0], _levels(kind))


def _sum(statistic: str) -> Callable[[str, float | str], Metric]:
    return lambda name, kind: Metric(name, ((statistic, kind),), lambda sums, _: sums[0], _levels(kind))


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return a / b


def _interval(statistic: str, outer: Callable[[float], float]) -> Callable[[str, float | str], Metric]:
    """The mean of a statistic of a central interval with lower level ``outer(size)``."""

    def build(name: str, size: float | str) -> Metric:
        low = outer(float(size))
        return Metric(name, ((statistic, float(size)),), lambda _, means: means[0], (low, 1 - low))

    return build


LABEL: Key = ("absolute_label", "mean")

# Name -> (default argument, builder). The argument is a level, "mean", or the size of an interval.
POINT_METRICS: dict[str, tuple[float | str | None, Callable[[str, float | str], Metric]]] = {
    "MSE": ("mean", _mean("squared_error")),
    "MAE": (0.5, _mean("absolute_error")),
    "MASE": (0.5, _mean("absolute_scaled_error")),
    "MAPE": (0.5, _mean("absolute_percentage_error")),
    "sMAPE": (0.5, _mean("symmetric_percentage_error")),
    "RMSE": (
        "mean",
        lambda name, kind: Metric(name, (("squared_error", kind),), lambda _, m: np.sqrt(m[0]), _levels(kind)),
    ),
    "NRMSE": (
        "mean",
        lambda name, kind: Metric(
            name, (("squared_error", kind), LABEL), lambda _, m: _ratio(np.sqrt(m[0]), m[1]), _levels(kind)
        ),
    ),
    "ND": (
        0.5,
        lambda name, kind: Metric(
            name, (("absolute_error", kind), LABEL), lambda s, _: _ratio(s[0], s[1]), _levels(kind)
        ),
    ),
    "MSIS": (0.05, _interval("scaled_interval_score", lambda alpha: alpha / 2)),
    "interval_coverage": (0.8, _interval("inside", lambda share: (1 - share) / 2)),
    "coverage": (None, _mean("below")),
    "sum_error": (0.5, _sum("error")),
    "sum_absolute_error": (0.5, _sum("absolute_error")),
    "sum_absolute_label": ("mean", _sum("absolute_label")),
    "mean_absolute_label": ("mean", _mean("absolute_label")),
    "missing": ("mean", _sum("missing")),
}


def _average(
    statistic: str, value: Callable[[np.ndarray, np.ndarray, np.ndarray, float], np.ndarray]
) -> Callable[[str, tuple[float, ...]], Metric]:
    """The mean over quantile levels of ``value(sum, mean, sum of |label|, level)``."""

    def build(name: str, levels: tuple[float, ...]) -> Metric:
        def formula(sums: list[np.ndarray], means: list[np.ndarray]) -> np.ndarray:
            losses = [value(s, m, sums[-1], q) for s, m, q in zip(sums[:-1], means[:-1], levels, strict=True)]
            return np.mean(losses, axis=0)

        return Metric(name, (*((statistic, q) for q in levels), LABEL), formula, levels)

    return build


# Without an argument: the mean over all levels. With one, for instance WQL[0.9]: that level alone.
LEVEL_METRICS: dict[str, Callable[[str, tuple[float, ...]], Metric]] = {
    "WQL": _average("quantile_loss", lambda total, _mean, label, _q: _ratio(total, label)),
    "SQL": _average("scaled_quantile_loss", lambda _total, mean, _label, _q: mean),
    "pinball": _average("quantile_loss", lambda _total, mean, _label, _q: mean),
    "sum_quantile_loss": _average("quantile_loss", lambda total, _mean, _label, _q: total),
    "coverage_error": _average("below", lambda _total, mean, _label, q: np.abs(mean - q)),
}

# Other names of the same metrics, in gluonts.ev and on leaderboards.
ALIASES = {
    "CRPS": "WQL",
    "mean_weighted_sum_quantile_loss": "WQL",
    "weighted_sum_quantile_loss": "WQL",
    "average_mean_scaled_quantile_loss": "SQL",
    "mean_scaled_quantile_loss": "SQL",
    "mean_sum_quantile_loss": "sum_quantile_loss",
    "MAE_coverage": "coverage_error",
    "sum_num_masked_target_values": "missing",
}


def get_metric(name: str, levels: Sequence[float] = LEVELS) -> Metric:
    """The metric with a name such as ``MASE``, ``MSE[0.5]``, ``WQL``, ``coverage[0.9]`` or ``MSIS[alpha=0.2]``.

    Args:
        name: as in ``METRICS`` or ``gluonts.ev``, with an argument in brackets unless the default is meant.
        levels: the quantile levels over which metrics without an argument are averaged.

    Raises:
        InputError: the name or its argument is unknown.
    """
    match = re.fullmatch(r"(\w+)(?:\[(?:alpha=)?([\w.]+)\])?", name)
    base = ALIASES.get(match[1], match[1]) if match else name
    if match is None or base not in METRICS:
        raise unknown_name("metric", name, METRICS)
    argument = _argument(name, match[2])
    if base in LEVEL_METRICS:
        if argument == "mean":
            raise InputError(f"metric {name!r}: expected a quantile level in the brackets, found 'mean'")
        return LEVEL_METRICS[base](name, tuple(levels) if argument is None else (float(argument),))
    default, build = POINT_METRICS[base]
    argument = default if argument is None else argument
    if argument is None:
        raise InputError(f"metric {name!r}: expected a quantile level in brackets, for instance {name}[0.9]")
    return build(name, argument)


METRICS = (*POINT_METRICS, *LEVEL_METRICS)


def _argument(name: str, text: str | None) -> float | str | None:
    if text is None or text == "mean":
        return text
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise InputError(
            f"metric {name!r}: expected 'mean' or a number between 0 and 1 in the brackets, found {text!r}"
        )
    return value


@dataclass
class Accumulator:
    """Computes metrics over a stream of batches.

    Attributes:
        metrics: to compute; statistics used by several metrics are computed once.
        groups: number of groups that are reported separately.
        invalid: treatment of values that are not finite.
    """

    metrics: Sequence[Metric]
    groups: int = 1
    invalid: Invalid = "mask"
    totals: dict[Key, Total] = field(init=False)

    def __post_init__(self) -> None:
        keys = dict.fromkeys(key for metric in self.metrics for key in metric.keys)
        self.totals = {key: Total(np.zeros(self.groups), *np.zeros((3, self.groups), dtype=np.int64)) for key in keys}

    def update(self, elements: Elements, group: np.ndarray | None = None) -> None:
        """Add one batch.

        Args:
            elements: forecasts and true values.
            group: the group of each value, broadcastable to ``[B, H, V]``; None for one group.
        """
        shape = elements.label.shape
        cells = None if group is None else np.broadcast_to(group, shape).ravel()
        observed = np.isfinite(elements.label)
        for (name, argument), total in self.totals.items():
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                value = np.broadcast_to(STATISTICS[name](elements, argument), shape)
            nan = np.isnan(value)
            if name == "missing":
                counted, undefined = np.full(shape, self.invalid == "mask"), np.zeros(shape, dtype=bool)
            elif self.invalid == "mask":
                finite = np.isfinite(value)
                counted, undefined = observed & finite, observed & ~finite
            else:
                counted, undefined = ~nan, observed & ~np.isfinite(value)
            total.sum += self._add(np.where(counted, value, 0.0), cells)
            total.count += self._add(counted, cells).astype(np.int64)
            total.undefined += self._add(undefined, cells).astype(np.int64)
            total.nan += self._add(nan, cells).astype(np.int64)

    def _add(self, values: np.ndarray, cells: np.ndarray | None) -> np.ndarray:
        if cells is None:
            return np.array([values.sum()])
        return np.bincount(cells, weights=values.ravel(), minlength=self.groups)

    def values(self) -> dict[str, Float64[np.ndarray, " G"]]:
        """The value of each metric in every group; NaN if nothing could be scored."""
        return {metric.name: self._value(metric) for metric in self.metrics}

    def _value(self, metric: Metric) -> Float64[np.ndarray, " G"]:
        totals = [self.totals[key] for key in metric.keys]
        value = metric.formula([t.sum for t in totals], [t.mean(self.invalid) for t in totals])
        return np.where(np.isfinite(value), value, np.nan) if self.invalid == "mask" else value

    def undefined(self) -> dict[str, Int64[np.ndarray, " G"]]:
        """Number of observed points that each metric could not score, in every group; all if it has no value."""
        counts = {}
        for metric in self.metrics:
            totals = [self.totals[key] for key in metric.keys]
            unscored = np.max([t.undefined for t in totals], axis=0)
            observed = np.max([t.undefined + t.count for t in totals], axis=0)
            counts[metric.name] = np.where(np.isfinite(self._value(metric)), unscored, observed)
        return counts


def needed_levels(metrics: Iterable[Metric], levels: Sequence[float] = ()) -> tuple[float, ...]:
    """All quantile levels that the metrics need, and ``levels``; ascending and distinct."""
    return tuple(
        sorted({round(float(q), 9) for metric in metrics for q in metric.levels} | {round(q, 9) for q in levels})
    )
