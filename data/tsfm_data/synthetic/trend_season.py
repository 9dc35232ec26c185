"""Trend, seasons and noise: the family closest to most real series."""

import numpy as np
from jaxtyping import Float, Float32

from tsfm_data.synthetic.sampling import (
    chance,
    choose,
    cycles,
    last_mark,
    log_uniform,
    noise,
    normal,
    season,
    slow_curve,
    standardise,
    to_float32,
    uniform,
)

WEIGHT = 0.26
ABOUT = "trend, seasons, noise"
TRENDS = ("none", "linear", "exponential", "logistic", "changepoints", "random walk", "curve")
TREND_WEIGHTS = (22, 16, 8, 8, 16, 18, 12)


def trend_season(count: int, length: int, rng: np.random.Generator) -> Float[np.ndarray, "count length"]:
    """Trend and up to three seasons, additive or multiplicative, plus noise, level shifts and outliers.

    Args:
        count: series.
        length: steps of each.
        rng: source of randomness.
    """
    trend = trends(count, length, rng)
    seasons = seasonal(count, length, rng)
    error = noise(rng, count, length)
    uneven = np.flatnonzero(rng.random(count) < 0.2)
    error[uneven] *= np.exp(0.7 * slow_curve(rng, len(uneven), length))
    smooth = np.flatnonzero(rng.random(count) < 0.2)  # autocorrelated errors
    error[smooth, 1:] += uniform(rng, 0.3, 0.95, len(smooth)) * error[smooth, :-1]
    error *= log_uniform(rng, 0.01, 1.0, count)
    trend *= log_uniform(rng, 0.1, 3.0, count)
    seasons *= log_uniform(rng, 0.3, 3.0, count)
    x = trend + seasons + error
    # Multiplicative: the exponential of the same sum, in a realistic range.
    product = np.flatnonzero(rng.random(count) < 0.35)
    shrink = uniform(rng, 0.1, 1.0, len(product)) / np.maximum(np.abs(x[product]).max(1, keepdims=True) / 3, 1)
    x[product] = np.exp(x[product] * shrink)
    _add_shifts_and_outliers(x, rng)
    return to_float32(x)


def trends(count: int, length: int, rng: np.random.Generator) -> Float32[np.ndarray, "count length"]:
    """Trends of unit standard deviation over the length; zeros for no trend."""
    kind = choose(rng, TREND_WEIGHTS, count)
    time = np.linspace(0, 1, length, dtype=np.float32)
    out = np.zeros((count, length), np.float32)
    linear, growing, saturating, pieces, walk, curve = (np.flatnonzero(kind == k) for k in range(1, 7))
    out[linear] = time
    out[growing] = np.exp(uniform(rng, 0.5, 4, len(growing)) * time)
    middle, width = uniform(rng, -0.2, 1.2, len(saturating)), log_uniform(rng, 0.02, 0.5, len(saturating))
    out[saturating] = 1 / (1 + np.exp(-np.clip((time - middle) / width, -30, 30)))
    # Constant slopes between a few changepoints.
    rate = rng.integers(1, 9, (len(pieces), 1)) / length
    marks = rng.random((len(pieces), length), dtype=np.float32) < rate
    slope = np.take_along_axis(normal(rng, len(pieces), length), last_mark(marks), 1)
    out[pieces] = np.cumsum(slope, 1)
    out[walk] = np.cumsum(normal(rng, len(walk), length) + 0.1 * normal(rng, len(walk), 1), 1)
    out[curve] = slow_curve(rng, len(curve), length)
    return standardise(out) * np.where(chance(rng, 0.5, count), np.float32(1), np.float32(-1))


def seasonal(count: int, length: int, rng: np.random.Generator) -> Float32[np.ndarray, "count length"]:
    """Sums and products of periodic series with common periods, some with a varying amplitude."""
    periods = cycles(rng, count)
    parts = np.maximum(periods.round(), 2).astype(np.int64)
    parts[:, 1] = np.where(periods[:, 0] > 0, (periods[:, 1] / np.maximum(periods[:, 0], 1)).round(), parts[:, 1])
    present = (periods > 0) & (rng.random((count, 3)) < (0.85, 0.6, 0.35))
    # Cycles far longer than the series are left out.
    present &= periods < 3 * length
    out = np.zeros((count, length), np.float32)
    weights = (log_uniform(rng, 0.5, 2, count), log_uniform(rng, 0.15, 1.5, count), log_uniform(rng, 0.2, 1, count))
    for k, weight in enumerate(weights):
        rows = np.flatnonzero(present[:, k])
        wave = weight[rows] * season(rng, periods[rows, k : k + 1], parts[rows, k], length)
        # In some series the longer cycle scales the shorter one, such as a daily profile that depends on the weekday.
        scales = chance(rng, 0.4, len(rows)) & (k == 1)
        out[rows] = np.where(scales, out[rows] * (1 + 0.5 * wave), out[rows]) + np.where(scales, 0.3 * wave, wave)
    swell = np.flatnonzero(rng.random(count) < 0.3)
    out[swell] *= np.exp(0.5 * slow_curve(rng, len(swell), length))
    return out


def _add_shifts_and_outliers(x: Float32[np.ndarray, "count length"], rng: np.random.Generator) -> None:
    """Level shifts in some rows and outliers in others, in place."""
    count, length = x.shape
    scale = x.std(1, keepdims=True)
    rows = np.flatnonzero(rng.random(count) < 0.12)
    marks = rng.random((len(rows), length), dtype=np.float32) < rng.integers(1, 4, (len(rows), 1)) / length
    x[rows] += np.cumsum(marks * normal(rng, len(rows), length), 1) * scale[rows] * 1.5
    rows = np.flatnonzero(rng.random(count) < 0.15)
    marks = rng.random((len(rows), length), dtype=np.float32) < log_uniform(rng, 0.001, 0.02, len(rows))
    x[rows] += marks * normal(rng, len(rows), length) * scale[rows] * 4
