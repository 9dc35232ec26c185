"""Seasonal ARIMA processes, some with GARCH volatility."""

import numpy as np
from jaxtyping import Complex64, Float, Float32
from scipy import fft

from tsfm_data.synthetic.sampling import chance, choose, log_uniform, noise, normal, recurrence, to_float32, uniform

WEIGHT = 0.08
ABOUT = "seasonal ARIMA, GARCH"
CIRCLE = 1344  # a multiple of the usual seasons
SEASONS = np.array([4, 7, 12, 24, 48, 52, 96, 144, 168, 288, 336, 672])
SEASON_WEIGHTS = (12, 18, 23, 23, 5, 3, 6, 3, 6, 3, 1, 1)


def arma(count: int, length: int, rng: np.random.Generator) -> Float[np.ndarray, "count length"]:
    """Seasonal ARIMA: stable random roots, half of the series integrated once, some driven by GARCH noise.

    Args:
        count: series.
        length: steps of each.
        rng: source of randomness.
    """
    circle = CIRCLE * -(-2 * length // CIRCLE)
    drive = noise(rng, count, circle)
    volatile = np.flatnonzero(rng.random(count) < 0.2)
    drive[volatile] = garch(drive[volatile], uniform(rng, 0.05, 0.3, len(volatile)), rng)
    angle = np.pi * uniform(rng, 0, 1, count) ** 2  # slow cycles are more common than fast ones
    pair = np.where(chance(rng, 0.5, count), uniform(rng, 0.3, 0.99, count), 0) * np.exp(1j * angle)
    real = np.where(chance(rng, 0.8, count), 1 - log_uniform(rng, 0.005, 1.5, count), 0)
    moving = np.where(chance(rng, 0.4, count), uniform(rng, -0.8, 0.8, count), 0)
    roots = np.concatenate([pair, np.conj(pair), real], 1).astype(np.complex64)
    period = SEASONS[choose(rng, SEASON_WEIGHTS, count)]
    seasonal = np.where(chance(rng, 0.4, count), 1 - log_uniform(rng, 0.005, 0.6, count), 0).astype(np.float32)
    x = filtered(drive, roots, moving.astype(np.float32), period, seasonal)[:, :length]
    x /= np.maximum(x.std(1, keepdims=True), 1e-6)
    integrated = np.flatnonzero(rng.random(count) < 0.5)
    drift = np.where(chance(rng, 0.5, len(integrated)), 0.2 * normal(rng, len(integrated), 1), 0)
    x[integrated] = np.cumsum(x[integrated] + drift, 1)
    exponential = np.flatnonzero(rng.random(count) < 0.15)  # random walks of the logarithm, like prices
    x[exponential] = np.exp(
        x[exponential]
        / np.maximum(np.abs(x[exponential]).max(1, keepdims=True), 1)
        * uniform(rng, 0.2, 2, len(exponential))
    )
    return to_float32(x)


def filtered(
    drive: Float32[np.ndarray, "count circle"],
    roots: Complex64[np.ndarray, "count order"],
    moving: Float32[np.ndarray, "count 1"],
    period: np.ndarray,
    seasonal: Float32[np.ndarray, "count 1"],
) -> Float32[np.ndarray, "count circle"]:
    """``prod(1 - roots z) (1 - seasonal z^period) x = (1 + moving z) drive``, z the backshift on a circle.

    Args:
        drive: innovations; the circle should be long compared with the memory of the process.
        roots: inverse roots of the autoregressive polynomial, inside the unit circle, in conjugate pairs.
        moving: coefficient of the moving average.
        period: steps of the season of each row.
        seasonal: coefficient of the seasonal autoregression.
    """
    circle = drive.shape[1]
    back = np.exp(-2j * np.pi * np.arange(circle) / circle).astype(np.complex64)  # z at every frequency
    half = np.arange(circle // 2 + 1)
    z = back[half]
    response = (1 - seasonal * back[half * period[:, None] % circle]).astype(np.complex64)
    for k in range(roots.shape[1]):
        response *= 1 - roots[:, k : k + 1] * z
    spectrum = fft.rfft(drive, axis=1)
    spectrum *= (1 + moving * z) / response
    return fft.irfft(spectrum, circle, axis=1)


def garch(
    drive: Float32[np.ndarray, "count length"], arch: Float32[np.ndarray, "count 1"], rng: np.random.Generator
) -> Float32[np.ndarray, "count length"]:
    """Give white noise the volatility of a GARCH(1, 1) process with mean variance 1 (Bollerslev 1986).

    ``v[t] = (1 - a - b) + (a drive[t-1]^2 + b) v[t-1]`` is linear in v, so no loop over time is needed.

    Args:
        drive: white noise of unit variance.
        arch: weight a of the last square.
        rng: source of randomness for the weight b of the last variance, with a + b below 1.
    """
    total = 1 - log_uniform(rng, 0.01, 0.2, len(drive))
    keep = np.ones_like(drive)
    keep[:, 1:] = arch * drive[:, :-1] ** 2 + np.maximum(total - arch, 0)
    source = np.broadcast_to(1 - np.maximum(total, arch), drive.shape).astype(np.float32)
    source[:, 0] = 1  # starts at its mean
    return drive * np.sqrt(np.clip(recurrence(keep, source), 0, 1e4))
