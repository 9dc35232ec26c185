"""Exponential smoothing in innovations form (Hyndman et al. 2008): level, damped trend, season."""

import numpy as np
from jaxtyping import Float, Float32

from tsfm_data.synthetic.sampling import (
    chance,
    choose,
    log_uniform,
    noise,
    normal,
    recurrence,
    season,
    to_float32,
    uniform,
)

WEIGHT = 0.08
ABOUT = "exponential smoothing"
SEASONS = np.array([1, 4, 7, 12, 24, 48, 52, 96, 144, 168, 288])
SEASON_WEIGHTS = (25, 14, 14, 23, 10, 2, 5, 2, 1, 3, 1)


def ets(count: int, length: int, rng: np.random.Generator) -> Float[np.ndarray, "count length"]:
    """ETS(A, Ad, A), and for a third of the series its exponential.

    Args:
        count: series.
        length: steps of each.
        rng: source of randomness.
    """
    error = noise(rng, count, length)
    alpha = np.where(chance(rng, 0.15, count), np.float32(1), log_uniform(rng, 0.02, 0.95, count))
    beta = np.where(chance(rng, 0.5, count), alpha * log_uniform(rng, 0.005, 0.3, count), 0)
    phi = np.where(chance(rng, 0.7, count), uniform(rng, 0.8, 0.995, count), np.float32(1))
    slope = np.where(beta > 0, normal(rng, count, 1) * log_uniform(rng, 0.01, 0.5, count), 0)
    gamma = log_uniform(rng, 0.003, 0.3, count)
    x = smoothed(error, alpha, beta, phi, slope)
    period = SEASONS[choose(rng, SEASON_WEIGHTS, count)]
    rows = np.flatnonzero(period > 1)
    wave = season(rng, period[rows, None].astype(np.float32), period[rows], length)
    x[rows] += log_uniform(rng, 0.5, 10, len(rows)) * wave
    for steps in np.unique(period[rows]).tolist():
        rows = np.flatnonzero(period == steps)
        x[rows] += seasonal_walk(error[rows] * gamma[rows], steps)
    product = np.flatnonzero(rng.random(count) < 0.35)
    reach = np.maximum(np.abs(x[product] - x[product, :1]).max(1, keepdims=True), 1e-6)
    x[product] = np.exp((x[product] - x[product, :1]) / reach * uniform(rng, 0.1, 2.5, len(product)))
    return to_float32(x)


def smoothed(
    error: Float32[np.ndarray, "count length"],
    alpha: Float32[np.ndarray, "count 1"],
    beta: Float32[np.ndarray, "count 1"],
    phi: Float32[np.ndarray, "count 1"],
    slope: Float32[np.ndarray, "count 1"],
) -> Float32[np.ndarray, "count length"]:
    """``y[t] = l[t-1] + phi b[t-1] + e[t]`` with level and trend that follow the innovations e.

    ``l[t] = l[t-1] + phi b[t-1] + alpha e[t]``, ``b[t] = phi b[t-1] + beta e[t]``.

    Args:
        error: innovations e.
        alpha: weight of an innovation in the level.
        beta: weight of an innovation in the trend.
        phi: damping of the trend; 1 for none.
        slope: initial trend; the initial level is 0.
    """
    drive = beta * error
    drive[:, :1] += phi * slope
    trend = recurrence(phi, drive)
    before = np.concatenate([slope, trend[:, :-1]], 1) * phi
    level = np.cumsum(before + alpha * error, 1)
    return level + (1 - alpha) * error


def seasonal_walk(shocks: Float32[np.ndarray, "count length"], period: int) -> Float32[np.ndarray, "count length"]:
    """``s[t] = s[t - period] + shocks[t - period]``: a seasonal random walk from zero.

    Args:
        shocks: innovations of the season.
        period: steps of the season.
    """
    count, length = shocks.shape
    whole = -(-length // period) * period
    padded = np.zeros((count, whole + period), np.float32)
    padded[:, period : period + length] = shocks
    cycles = padded.reshape(count, whole // period + 1, period)
    return cycles.cumsum(1, dtype=np.float32).reshape(padded.shape)[:, :length]
