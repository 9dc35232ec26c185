"""Intermittent demand, as of spare parts: small counts between many zeros, with a varying intensity."""

import numpy as np
from jaxtyping import Float, Float32

from tsfm_data.synthetic.sampling import chance, choose, log_uniform, season, slow_curve, to_float32, uniform

WEIGHT = 0.03
ABOUT = "intermittent demand"
SEASONS = np.array([4, 7, 12, 24, 52, 168, 365])
SEASON_WEIGHTS = (5, 30, 25, 14, 10, 10, 6)


def intermittent(count: int, length: int, rng: np.random.Generator) -> Float[np.ndarray, "count length"]:
    """Poisson or negative binomial counts with a varying intensity, or demand of random size at random times.

    Args:
        count: series.
        length: steps of each.
        rng: source of randomness.
    """
    pattern = intensity(count, length, rng)
    out = np.empty((count, length), np.float32)
    kind = choose(rng, (35, 35, 30), count)
    poisson, negative, rare = (np.flatnonzero(kind == k) for k in range(3))
    out[poisson] = rng.poisson(pattern[poisson] * log_uniform(rng, 0.03, 4, len(poisson)))
    out[negative] = negative_binomial(
        pattern[negative] * log_uniform(rng, 0.03, 8, len(negative)), log_uniform(rng, 0.1, 3, len(negative)), rng
    )
    # Croston's model: occurrence and size of demand are independent, but both follow the pattern in half of the rows.
    probability = np.minimum(pattern[rare] * log_uniform(rng, 0.03, 0.5, len(rare)), 0.95)
    occurs = rng.random((len(rare), length), dtype=np.float32) < probability
    log_size = uniform(rng, 0.05, 1.2, len(rare)) * rng.standard_normal((len(rare), length), dtype=np.float32)
    size = np.exp(log_size) * log_uniform(rng, 1, 30, len(rare))
    size *= np.where(chance(rng, 0.5, len(rare)), pattern[rare], 1)
    out[rare] = occurs * np.maximum(np.round(size), 1)
    return to_float32(out)


def intensity(count: int, length: int, rng: np.random.Generator) -> Float32[np.ndarray, "count length"]:
    """Positive factors around 1: a season in some rows, slow rises and falls in others, obsolescence in a few."""
    period = SEASONS[choose(rng, SEASON_WEIGHTS, count)]
    logarithm = np.zeros((count, length), np.float32)
    rows = np.flatnonzero(rng.random(count) < 0.5)
    wave = season(rng, period[rows, None].astype(np.float32), period[rows], length)
    logarithm[rows] = uniform(rng, 0.2, 1.0, len(rows)) * wave
    logarithm += np.where(chance(rng, 0.5, count), uniform(rng, 0.1, 1, count), 0) * slow_curve(rng, count, length)
    ends = np.where(chance(rng, 0.06, count), uniform(rng, 1, 5, count), 0)
    logarithm -= ends * np.linspace(0, 1, length, dtype=np.float32)
    return np.exp(np.clip(logarithm, -8, 3)).astype(np.float32)


def negative_binomial(
    mean: Float32[np.ndarray, "count length"], shape: Float32[np.ndarray, "count 1"], rng: np.random.Generator
) -> Float32[np.ndarray, "count length"]:
    """Poisson counts whose rate is a gamma variable: variance ``mean + mean^2 / shape``."""
    rate = mean * rng.standard_gamma(np.broadcast_to(shape, mean.shape), dtype=np.float32) / shape
    return rng.poisson(np.minimum(rate, 1e6)).astype(np.float32)
