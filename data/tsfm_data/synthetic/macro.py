"""Yearly to weekly series as in the M competitions: strong, slowly turning trends and few points."""

import numpy as np
from jaxtyping import Float, Float32

from tsfm_data.synthetic.sampling import (
    chance,
    choose,
    last_mark,
    log_uniform,
    noise,
    normal,
    recurrence,
    season,
    to_float32,
    uniform,
)

WEIGHT = 0.1
ABOUT = "years to weeks"
SEASONS = (1, 4, 12, 52)
SEASON_WEIGHTS = (36, 23, 32, 9)


def macro(count: int, length: int, rng: np.random.Generator) -> Float[np.ndarray, "count length"]:
    """Growth at a mean-reverting rate, a business cycle, a slowly changing season, and small noise.

    Args:
        count: series.
        length: steps of each; the statistics resemble those of real series of 20 to 300 steps.
        rng: source of randomness.
    """
    kind = choose(rng, SEASON_WEIGHTS, count)
    per_year = np.array(SEASONS, np.float32)[kind][:, None]
    growth = _growth(count, length, per_year, rng)
    years = uniform(rng, 3, 11, count)  # of a business cycle
    x = growth + _cycle(count, length, years * per_year, rng)
    for period in SEASONS[1:]:
        rows = np.flatnonzero((per_year[:, 0] == period) & (rng.random(count) < 0.85))
        cycle = np.full((len(rows), 1), period, np.float32)
        first, second = (season(rng, cycle, np.full(len(rows), period), length) for _ in range(2))
        # The season changes into another one and back over some tens of years.
        turn = 0.4 * chance(rng, 0.5, len(rows)) * np.sin(np.arange(length) / (period * uniform(rng, 5, 20, len(rows))))
        x[rows] += log_uniform(rng, 0.01, 0.3, len(rows)) * (first + turn.astype(np.float32) * second)
    x += log_uniform(rng, 0.002, 0.1, count) * noise(rng, count, length)
    rows = np.flatnonzero(rng.random(count) < 0.08)  # level shifts: a war, a new definition
    marks = rng.random((len(rows), length), dtype=np.float32) < 1 / 80
    x[rows] += np.cumsum(marks * normal(rng, len(rows), length) * 0.3, 1)
    plain = chance(rng, 0.4, count)
    reach = np.maximum(np.abs(x - x[:, :1]).max(1, keepdims=True) / 6, 1)
    return to_float32(np.where(plain, x, np.exp((x - x[:, :1]) / reach)))


def _growth(
    count: int, length: int, per_year: Float32[np.ndarray, "count 1"], rng: np.random.Generator
) -> Float32[np.ndarray, "count length"]:
    """Sum of growth rates: a mean that changes by era, a part that reverts to it within years, independent noise.

    In some series growth dies away or saturates.
    """
    begins = rng.random((count, length), dtype=np.float32) < 1 / (per_year * log_uniform(rng, 10, 200, count))
    mean = np.take_along_axis(normal(rng, count, length) * 0.03 + 0.02, last_mark(begins), 1)
    mean *= chance(rng, 0.75, count)
    keep = np.exp(-1 / (per_year * log_uniform(rng, 1, 12, count)))
    scale = np.where(chance(rng, 0.8, count), log_uniform(rng, 0.003, 0.08, count), 0)
    reverting = recurrence(keep, normal(rng, count, length)) * np.sqrt(1 - keep**2) * scale
    walk = normal(rng, count, length) * np.where(chance(rng, 0.6, count), log_uniform(rng, 0.005, 0.12, count), 0)
    rate = (mean + reverting) / per_year + walk / np.sqrt(per_year)
    # Changes are as likely in the last few steps as in the first many, for histories that are cut to any length.
    step = np.arange(length, dtype=np.float32)
    damped = np.flatnonzero(rng.random(count) < 0.2)  # growth that dies away
    since = step - length + log_uniform(rng, 8, max(2 * length, 9), len(damped))
    rate[damped] *= np.exp(-np.maximum(since, 0) / (per_year[damped] * log_uniform(rng, 1, 40, len(damped))))
    risen = np.flatnonzero(rng.random(count) < 0.15)  # growth that saturates: a logistic rise or fall
    width = per_year[risen] * log_uniform(rng, 0.5, 8, len(risen))
    since = step - length + log_uniform(rng, 4, max(2 * length, 5), len(risen))
    rise = np.cosh(np.clip(since / width, -30, 30)) ** -2 / width
    rate[risen] += (rise * normal(rng, len(risen), 1)).astype(np.float32)
    # A sum that forgets over centuries, so that thousands of steps look like as many decades as a real series has.
    return recurrence(np.exp(-1 / (per_year * log_uniform(rng, 40, 400, count))), rate.astype(np.float32))


def _cycle(
    count: int, length: int, period: Float32[np.ndarray, "count 1"], rng: np.random.Generator
) -> Float32[np.ndarray, "count length"]:
    """A damped rotation driven by noise: a cycle whose phase drifts, the real part of a complex recurrence."""
    radius = np.exp(-1 / (period * uniform(rng, 0.5, 3, count)))
    keep = radius * np.exp(2j * np.pi / period)
    drive = (normal(rng, count, length) * np.sqrt(1 - radius**2)).astype(np.complex64)
    drive[:, :1] += normal(rng, count, 1)
    return recurrence(keep.astype(np.complex64), drive).real * log_uniform(rng, 0.005, 0.15, count)
