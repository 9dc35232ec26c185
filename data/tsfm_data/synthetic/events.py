"""Series made by events: bursts that fade, promotions, saturating growth, web traffic, stocks that are refilled."""

from typing import cast

import numpy as np
from jaxtyping import Float, Float32

from tsfm_data.synthetic.sampling import (
    chance,
    choose,
    finish,
    last_mark,
    log_uniform,
    noise,
    normal,
    recurrence,
    season,
    uniform,
    wander,
)

WEIGHT = 0.05
ABOUT = "bursts, promotions, visits"
SEASONS = np.array([7, 12, 24, 48, 96, 168])


def events(count: int, length: int, rng: np.random.Generator) -> Float[np.ndarray, "count length"]:
    """One of five kinds a row.

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
    return finish(out)


def happenings(
    count: int, length: int, rate: Float[np.ndarray, "count 1"], rng: np.random.Generator
) -> Float32[np.ndarray, "count length"]:
    """Positive sizes at random steps, ``rate`` of them a step, 0 elsewhere."""
    happens = rng.random((count, length), dtype=np.float32) < rate
    return happens * np.exp(uniform(rng, 0.2, 1.2, count) * normal(rng, count, length))


def weekly(count: int, length: int, rng: np.random.Generator) -> Float32[np.ndarray, "count length"]:
    """A season of one of the usual periods, with a random strength."""
    period = SEASONS[rng.integers(0, len(SEASONS), count)]
    wave = season(rng, period[:, None].astype(np.float32), period, length)
    return wave * log_uniform(rng, 0.05, 1, count)


def bursts(count: int, length: int, rng: np.random.Generator) -> Float32[np.ndarray, "count length"]:
    """Shot noise: every event jumps up and fades geometrically, on a quiet level."""
    keep = 1 - log_uniform(rng, 0.01, 0.6, count)
    x = recurrence(keep, happenings(count, length, log_uniform(rng, 0.003, 0.08, count), rng))
    x += np.where(chance(rng, 0.4, count), 1, 0) * weekly(count, length, rng)
    return x + log_uniform(rng, 0.01, 0.3, count) * noise(rng, count, length)


def promotions(count: int, length: int, rng: np.random.Generator) -> Float32[np.ndarray, "count length"]:
    """Sales with a season: promotions of some steps lift them by a factor, and a dip follows."""
    lasts = rng.integers(1, 15, (count, 1))
    regular = chance(rng, 0.4, count)
    every = rng.integers(20, 120, (count, 1))
    steps = np.arange(length)
    marks = rng.random((count, length), dtype=np.float32) < log_uniform(rng, 0.005, 0.04, count)
    marks = np.where(regular, (steps + rng.integers(0, 120, (count, 1))) % every == 0, marks)
    marks[:, :1] = False
    at = last_mark(marks)
    since = np.where(at > 0, steps - at, 10_000)  # before the first one: long ago
    lift = uniform(rng, 0.3, 1.5, count) * (since < lasts)
    dip = uniform(rng, 0, 0.4, count) * ((since >= lasts) & (since < 2 * lasts))
    log_sales = lift - dip + weekly(count, length, rng) + 0.3 * wander(rng, count, length)
    log_sales += log_uniform(rng, 0.03, 0.3, count) * noise(rng, count, length)
    return np.exp(np.clip(log_sales, -8, 8)).astype(np.float32)


def adoption(count: int, length: int, rng: np.random.Generator) -> Float32[np.ndarray, "count length"]:
    """Waves of logistic growth (or of its rate, as of an epidemic), with noise that grows with the level."""
    time = np.linspace(0, 1, length, dtype=np.float32)
    x = np.zeros((count, length), np.float32)
    rates = chance(rng, 0.5, count)
    for wave in range(3):
        centre, width = uniform(rng, -0.1, 1.1, count), log_uniform(rng, 0.01, 0.15, count)
        level = 1 / (1 + np.exp(-np.clip((time - centre) / width, -30, 30)))
        present = chance(rng, 1 if wave == 0 else 0.4, count) * log_uniform(rng, 0.3, 3, count)
        x += present * np.where(rates, 4 * level * (1 - level), level)
    x *= np.exp(0.3 * weekly(count, length, rng))
    x += log_uniform(rng, 0.01, 0.2, count) * x * noise(rng, count, length)
    return x + log_uniform(rng, 0.001, 0.05, count) * noise(rng, count, length)


def traffic(count: int, length: int, rng: np.random.Generator) -> Float32[np.ndarray, "count length"]:
    """Counts of visits: a level that wanders, a season, bursts of attention that fade, Poisson noise."""
    keep = 1 - log_uniform(rng, 0.05, 0.7, count)
    attention = recurrence(keep, happenings(count, length, log_uniform(rng, 0.001, 0.03, count), rng))
    walk = np.cumsum(normal(rng, count, length) * log_uniform(rng, 0.002, 0.03, count), 1)
    logarithm = np.clip(weekly(count, length, rng) + walk, -4, 4)
    level = log_uniform(rng, 2, 3000, count) * np.exp(logarithm) * (1 + uniform(rng, 0, 2, count) * attention)
    level *= np.exp(log_uniform(rng, 0.02, 0.3, count) * noise(rng, count, length))
    # The normal approximation of a Poisson count, rounded: a count of visits is seldom small.
    counts = np.round(level + np.sqrt(level) * normal(rng, count, length))
    return cast("np.ndarray", np.maximum(counts, 0)).astype(np.float32)


def stock(count: int, length: int, rng: np.random.Generator) -> Float32[np.ndarray, "count length"]:
    """Saw teeth and stairs: a quantity that runs down (or fills up) until it is reset, at even or random times."""
    every = np.round(log_uniform(rng, 5, max(length / 6, 20.0), count))
    steps = np.arange(length, dtype=np.float32)
    phase = np.mod(steps + np.floor(rng.random((count, 1)) * every), every)
    marks = rng.random((count, length), dtype=np.float32) < 1 / every
    random = chance(rng, 0.4, count)
    since = np.where(random, steps - last_mark(marks), phase).astype(np.float32)
    heights = normal(rng, count, length)
    resets = np.where(random, marks, phase < 1)
    held = np.take_along_axis(heights, last_mark(resets), 1)  # a new height at every reset
    ramps = np.where(chance(rng, 0.6, count), np.where(chance(rng, 0.5, count), np.float32(1), np.float32(-1)), 0)
    stairs = np.where(ramps == 0, 1, np.where(chance(rng, 0.3, count), 0.3, 0))
    x = ramps * since / every + stairs * held
    return (x + log_uniform(rng, 0.005, 0.2, count) * noise(rng, count, length)).astype(np.float32)
