"""Forecasts with true values, the input of metrics: quantiles at any level, sample quantiles, the seasonal error.

Axes: B windows, T history steps, H horizon steps, V variates, Q quantile levels, S sample paths, C cuts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from tsfm_data.errors import InputError

TAIL_GUARD = 1e-8  # inside the logarithms of extrapolated quantiles, as in GluonTS


@dataclass(frozen=True)
class Elements:
    """Forecasts and true values, all in the same units.

    Attributes:
        label: true values, NaN where not observed.
        quantiles: forecast quantiles along the last axis.
        levels: quantile levels, ascending.
        mean: mean forecast; None means the median.
        scale: in-sample seasonal error of each window, for scaled metrics.
    """

    label: Float64[np.ndarray, "B H V"]
    quantiles: Float64[np.ndarray, "B H V Q"]
    levels: tuple[float, ...]
    mean: Float64[np.ndarray, "B H V"] | None = None
    scale: Float64[np.ndarray, "B 1 V"] | None = None

    def forecast(self, kind: float | str) -> Float64[np.ndarray, "B H V"]:
        """The forecast of one quantile level, or ``"mean"``."""
        if kind == "mean":
            return self.forecast(0.5) if self.mean is None else self.mean
        return quantile_at(self.quantiles, self.levels, float(kind))


def quantile_at(
    quantiles: Float64[np.ndarray, "*axes Q"], levels: Sequence[float], level: float
) -> Float64[np.ndarray, "*axes"]:
    """The quantile at any level: linear interpolation between known levels, exponential tails beyond them.

    The same rule as ``tsfm.nn.quantiles.interpolate_quantiles``, by which models forecast levels on which they were not
    trained. GluonTS has the same tails, with ``TAIL_GUARD``, but starts them at 0.1 and 0.9 even if known levels lie
    further out, so its quantiles may cross there.

    Raises:
        InputError: ``level`` is not known and fewer than two levels are.
    """
    known = np.asarray(levels)
    match = np.flatnonzero(np.abs(known - level) < 1e-9)
    if match.size:
        return quantiles[..., match[0]]
    if len(known) < 2:
        raise InputError(
            f"expected at least 2 quantile levels to compute level {level}, found {list(levels)}: forecast more levels"
        )
    if level < known[0]:
        inner, outer = known[1], known[0]
        slope = (quantiles[..., 1] - quantiles[..., 0]) / _log_ratio(inner, outer)
        return quantiles[..., 1] + slope * _log_ratio(level, inner)
    if level > known[-1]:
        inner, outer = known[-2], known[-1]
        slope = (quantiles[..., -1] - quantiles[..., -2]) / _log_ratio(1 - inner, 1 - outer)
        return quantiles[..., -2] + slope * _log_ratio(1 - inner, 1 - level)
    right = int(np.searchsorted(known, level))
    weight = (level - known[right - 1]) / (known[right] - known[right - 1])
    return quantiles[..., right - 1] + weight * (quantiles[..., right] - quantiles[..., right - 1])


def _log_ratio(above: float, below: float) -> float:
    return float(np.log((above + TAIL_GUARD) / (below + TAIL_GUARD) + TAIL_GUARD))


def sample_quantiles(
    samples: Float64[np.ndarray, "*axes S"], levels: Sequence[float]
) -> Float64[np.ndarray, "*axes Q"]:
    """Quantiles of sample paths: the sorted sample of index ``round((S - 1) level)``, as in GluonTS."""
    rank = np.round((samples.shape[-1] - 1) * np.asarray(levels)).astype(int)
    return np.sort(samples, axis=-1)[..., rank]


def seasonal_error(
    values: Float64[np.ndarray, "T V"], season: int, cuts: Int64[np.ndarray, " C"], skip_missing: bool = True
) -> Float64[np.ndarray, "C V"]:
    """Mean absolute seasonal difference of the history before each cut: the denominator of MASE.

    If the history is shorter than one season, the season is 1 (as in GluonTS). NaN if there is no difference.

    Args:
        values: one series, NaN where missing.
        season: steps in a season.
        cuts: history lengths.
        skip_missing: ignore differences with a missing value; otherwise they make the result NaN.
    """
    result = np.empty((len(cuts), values.shape[1]))
    short = season > cuts
    for lag, rows in ((season, ~short), (1, short)):
        if not rows.any():
            continue
        error = np.abs(values[lag:] - values[:-lag])
        present = np.isfinite(error) if skip_missing else np.ones_like(error, dtype=bool)
        total = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(np.where(present, error, 0.0), axis=0)])
        count = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(present, axis=0)])
        ends = np.maximum(cuts[rows] - lag, 0)
        with np.errstate(invalid="ignore"):
            result[rows] = total[ends] / count[ends]
    return result
