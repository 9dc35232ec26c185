"""Anomalies planted in series, and simple detectors to compare with: for ``detect.py``."""

from collections.abc import Callable

import numpy as np
from scipy.ndimage import median_filter
from sklearn.ensemble import IsolationForest
from statsmodels.tsa.seasonal import STL


def spikes(x: np.ndarray, begin: int, size: int, scale: float, season: int, rng: np.random.Generator) -> None:
    """One to three values off by six to twelve typical errors of seasonal naive, up or down."""
    x[begin : begin + 1 + size % 3] += rng.choice([-1, 1]) * rng.uniform(6, 12) * scale


def shift(x: np.ndarray, begin: int, size: int, scale: float, season: int, rng: np.random.Generator) -> None:
    """A level that is off by three to six typical errors, and comes back."""
    x[begin : begin + size] += rng.choice([-1, 1]) * rng.uniform(3, 6) * scale


def lost_season(x: np.ndarray, begin: int, size: int, scale: float, season: int, rng: np.random.Generator) -> None:
    """The mean of the season before, with its noise, instead of the season."""
    x[begin : begin + size] = x[begin - season : begin].mean() + rng.normal(
        0, 0.5 * scale, len(x[begin : begin + size])
    )


def frozen(x: np.ndarray, begin: int, size: int, scale: float, season: int, rng: np.random.Generator) -> None:
    """A sensor that repeats its last value."""
    x[begin : begin + size] = x[begin - 1]


KINDS: dict[str, Callable[..., None]] = {"spikes": spikes, "level shift": shift, "lost season": lost_season,
                                         "frozen sensor": frozen}  # fmt: skip


def plant(
    values: np.ndarray, kind: str, season: int, first: int, rng: np.random.Generator, count: int = 4
) -> tuple[np.ndarray, np.ndarray]:
    """A copy of a series with anomalies of one kind, and their labels.

    Args:
        values: the series, [T], without missing values.
        kind: one of ``KINDS``.
        season: its season in steps.
        first: earliest step of an anomaly.
        rng: source of randomness.
        count: number of anomalies; one in each of as many equal parts of the steps from ``first``.
    """
    x, labels = values.copy(), np.zeros(len(values), bool)
    scale = float(np.abs(values[season:] - values[:-season]).mean())
    part = (len(values) - first) // count
    for k in range(count):
        size = int(rng.integers(season, 2 * season + 1)) if season > 1 else int(rng.integers(12, 25))
        size = min(size, part // 3)
        begin = first + k * part + int(rng.integers(0, part - size))
        KINDS[kind](x, begin, size, scale, season, rng)
        labels[begin : begin + (1 + size % 3 if kind == "spikes" else size)] = True
    return x, labels


def seasonal_z(values: np.ndarray, season: int) -> np.ndarray:
    """Distance from the mean of the same phase in the last four seasons, in deviations of the last 200 distances."""
    error = np.full(len(values), np.nan)
    for t in range(4 * season, len(values)):
        error[t] = values[t] - values[t - 4 * season : t : season].mean()
    score = np.full(len(values), np.nan)
    for t in range(4 * season + 20, len(values)):
        past = error[max(0, t - 200) : t]
        score[t] = abs(error[t]) / (np.nanstd(past) + 1e-9 * np.abs(values[:t]).max() + 1e-300)
    return score


def stl_residuals(values: np.ndarray, season: int) -> np.ndarray:
    """Distance of the robust STL residual from its median, or without a season from a running median of 13 values."""
    if season > 1:
        rest = np.asarray(STL(values, period=season, robust=True).fit(outer_iter=2).resid)
    else:
        rest = values - median_filter(values, 13)
    return np.abs(rest - np.median(rest))


def isolation_forest(values: np.ndarray, season: int) -> np.ndarray:
    """Isolation Forest on sliding windows of a season, 8 to 64 steps; a step has the mean score of its windows."""
    width = min(max(season, 8), 64)
    windows = np.lib.stride_tricks.sliding_window_view(values, width)
    score = -IsolationForest(random_state=0).fit(windows).score_samples(windows)
    weight = np.ones(width)
    return np.convolve(score, weight) / np.convolve(np.ones(len(score)), weight)


DETECTORS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "seasonal z-score": seasonal_z,
    "STL residuals": stl_residuals,
    "Isolation Forest": isolation_forest,
}
