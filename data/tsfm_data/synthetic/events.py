"""Series driven by events: fading bursts, promotions, saturating growth, web traffic, stocks that are refilled."""

from typing import cast

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
    slow_curve,
    to_float32,
    uniform,
)

WEIGHT = 0.05
ABOUT = "bursts, promotions, visits"
SEASONS = np.array([7, 12, 24, 48, 96, 144, 168, 288, 336, 672])
SEASON_WEIGHTS = (18, 14, 20, 10, 12, 6, 10, 6, 2, 2)


def events(count: int, length: int, rng: np.random.Generator) -> Float[np.ndarray, "count length"]:
    """Series of five kinds.

    Args:
        count: series.
        length: steps of each.
        rng: source of randomness.
    """
    out = np.empty((count, length), np.float32)
    kind = choose(rng, (20, 25, 15, 25, 15), count)
    for k, family in enumerate((bursts, promotions, adoption, traffic, stock)):
        rows = np.flatnonzero(kind == k)
        if len(rows):
            out[rows] = family(len(rows), length, rng)
    return to_float32(out)


def random_events(
    count: int, length: int, rate: Float[np.ndarray, "count 1"], rng: np.random.Generator
) -> Float32[np.ndarray, "count length"]:
    """Positive sizes at random steps, ``rate`` events per step; 0 elsewhere."""
    occurs = rng.random((count, length), dtype=np.float32) < rate
    return occurs * np.exp(uniform(rng, 0.2, 1.2, count) * normal(rng, count, length))


def seasonal_wave(count: int, length: int, rng: np.random.Generator) -> Float32[np.ndarray, "count length"]:
    """A seasonal pattern with a common period and a random strength."""
    period = SEASONS[choose(rng, SEASON_WEIGHTS, count)]
    wave = season(rng, period[:, None].astype(np.float32), period, length)
    return wave * log_uniform(rng, 0.05, 1, count)


def bursts(count: int, length: int, rng: np.random.Generator) -> Float32[np.ndarray, "count length"]:
    """Shot noise: every event is a jump that decays geometrically."""
    keep = 1 - log_uniform(rng, 0.01, 0.6, count)
    x = recurrence(keep, random_events(count, length, log_uniform(rng, 0.003, 0.08, count), rng))
    x += np.where(chance(rng, 0.4, count), 1, 0) * seasonal_wave(count, length, rng)
    return x + log_uniform(rng, 0.01, 0.3, count) * noise(rng, count, length)


def promotions(count: int, length: int, rng: np.random.Generator) -> Float32[np.ndarray, "count length"]:
    """Seasonal sales: promotions of some steps raise them by a factor, and a dip follows."""
    duration = rng.integers(1, 15, (count, 1))
    periodic = chance(rng, 0.4, count)
    period = rng.integers(20, 120, (count, 1))
    steps = np.arange(length)
    marks = rng.random((count, length), dtype=np.float32) < log_uniform(rng, 0.005, 0.04, count)
    marks = np.where(periodic, (steps + rng.integers(0, 120, (count, 1))) % period == 0, marks)
    marks[:, :1] = False
    latest = last_mark(marks)
    since = np.where(latest > 0, steps - latest, 10_000)  # before the first one
    lift = uniform(rng, 0.3, 1.5, count) * (since < duration)
    dip = uniform(rng, 0, 0.4, count) * ((since >= duration) & (since < 2 * duration))
    log_sales = lift - dip + seasonal_wave(count, length, rng) + 0.3 * slow_curve(rng, count, length)
    log_sales += log_uniform(rng, 0.03, 0.3, count) * noise(rng, count, length)
    return np.exp(np.clip(log_sales, -8, 8)).astype(np.float32)


def adoption(count: int, length: int, rng: np.random.Generator) -> Float32[np.ndarray, "count length"]:
    """Waves of logistic growth (or of its rate, as in an epidemic), with noise proportional to the level."""
    time = np.linspace(0, 1, length, dtype=np.float32)
    x = np.zeros((count, length), np.float32)
    shows_rate = chance(rng, 0.5, count)
    for wave in range(3):
        centre, width = uniform(rng, -0.1, 1.1, count), log_uniform(rng, 0.01, 0.15, count)
        level = 1 / (1 + np.exp(-np.clip((time - centre) / width, -30, 30)))
        present = chance(rng, 1 if wave == 0 else 0.4, count) * log_uniform(rng, 0.3, 3, count)
        x += present * np.where(shows_rate, 4 * level * (1 - level), level)
    x *= np.exp(0.3 * seasonal_wave(count, length, rng))
    x += log_uniform(rng, 0.01, 0.2, count) * x * noise(rng, count, length)
    return x + log_uniform(rng, 0.001, 0.05, count) * noise(rng, count, length)


def traffic(count: int, length: int, rng: np.random.Generator) -> Float32[np.ndarray, "count length"]:
    """Counts of visits: a random-walk level, a season, fading bursts of attention, Poisson noise."""
    keep = 1 - log_uniform(rng, 0.05, 0.7, count)
    attention = recurrence(keep, random_events(count, length, log_uniform(rng, 0.001, 0.03, count), rng))
    walk = np.cumsum(normal(rng, count, length) * log_uniform(rng, 0.002, 0.03, count), 1)
    logarithm = np.clip(seasonal_wave(count, length, rng) + walk, -4, 4)
    level = log_uniform(rng, 2, 3000, count) * np.exp(logarithm) * (1 + uniform(rng, 0, 2, count) * attention)
    level *= np.exp(log_uniform(rng, 0.02, 0.3, count) * noise(rng, count, length))
    # Rounded normal approximation of a Poisson count; counts of visits are seldom small.
    counts = np.round(level + np.sqrt(level) * normal(rng, count, length))
    return cast("np.ndarray", np.maximum(counts, 0)).astype(np.float32)


def stock(count: int, length: int, rng: np.random.Generator) -> Float32[np.ndarray, "count length"]:
    """Sawtooth and step functions: a quantity that falls or rises until it is reset, periodically or at random."""
    period = np.round(log_uniform(rng, 5, max(length / 6, 20.0), count))
    steps = np.arange(length, dtype=np.float32)
    phase = np.mod(steps + np.floor(rng.random((count, 1)) * period), period)
    marks = rng.random((count, length), dtype=np.float32) < 1 / period
    random = chance(rng, 0.4, count)
    since = np.where(random, steps - last_mark(marks), phase).astype(np.float32)
    heights = normal(rng, count, length)
    resets = np.where(random, marks, phase < 1)
    held = np.take_along_axis(heights, last_mark(resets), 1)  # a new height at every reset
    ramps = np.where(chance(rng, 0.6, count), np.where(chance(rng, 0.5, count), np.float32(1), np.float32(-1)), 0)
    stairs = np.where(ramps == 0, 1, np.where(chance(rng, 0.3, count), 0.3, 0))
    x = ramps * since / period + stairs * held
    return (x + log_uniform(rng, 0.005, 0.2, count) * noise(rng, count, length)).astype(np.float32)
