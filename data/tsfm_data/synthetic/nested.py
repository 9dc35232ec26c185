"""Nested seasons, as of electric load, traffic, visits and sunshine: days within weeks, and what disturbs them."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32

from tsfm_data.synthetic.sampling import (
    TABLE,
    chance,
    choose,
    log_uniform,
    noise,
    normal,
    profiles,
    recurrence,
    season,
    slow_curve,
    to_float32,
    uniform,
)

WEIGHT = 0.12
ABOUT = "days within weeks"
LONGEST = 2048
DAYS = np.array([24, 48, 96, 144, 288, 720, 1440])  # in steps of an hour to one minute
DAY_WEIGHTS = (30, 12, 18, 10, 15, 6, 9)
WEEKS = np.array([7, 5, 1])  # cycles in the longer season; 1: there is none
WEEK_WEIGHTS = (70, 15, 15)
PARTS = np.array([2, 3, 4, 24])  # how often a shorter season fits into a cycle
COMBINATIONS = (45, 30, 25)  # sums, exponentials, closed at night


class Cycles(NamedTuple):
    """What changes from cycle to cycle; ``turns``: number of cycles."""

    level: Float32[np.ndarray, "count turns"]
    size: Float32[np.ndarray, "count turns"]  # factor of the profile
    drift: Float32[np.ndarray, "count turns"]  # level at the beginning; it changes linearly to that of the next cycle
    shift: Float32[np.ndarray, "count turns"]  # of the profile, as a share of the cycle
    rests: Bool[np.ndarray, "count turns"]  # follows the profile of free days


def nested(count: int, length: int, rng: np.random.Generator) -> Float[np.ndarray, "count length"]:
    """A profile of 24 to 2,048 steps that repeats with changes by weekday; some are closed at night, some are counts.

    Args:
        count: series.
        length: steps of each.
        rng: source of randomness.
    """
    period = base_periods(count, length, rng)
    time = (np.arange(0.5, length, dtype=np.float32) + np.floor(rng.random((count, 1)) * period)) / period
    turn = time.astype(np.intp)
    time -= turn
    cycles = sample_cycles(count, int(turn.max(initial=0)) + 2, rng)
    drift = np.take_along_axis(cycles.drift, turn, 1)
    level = drift + time * (np.take_along_axis(cycles.drift, turn + 1, 1) - drift)
    level += np.take_along_axis(cycles.level, turn, 1)
    level += np.where(chance(rng, 0.5, count), log_uniform(rng, 0.1, 1.5, count), 0) * slow_curve(rng, count, length)

    combination = choose(rng, COMBINATIONS, count)
    closed = combination == 2
    tables = day_tables(closed, rng)
    phase = time + np.take_along_axis(cycles.shift, turn, 1)
    index = ((phase - np.floor(phase)) * TABLE).astype(np.intp)
    np.minimum(index, TABLE - 1, out=index)
    index += TABLE * np.take_along_axis(cycles.rests, turn, 1)
    wave = np.take_along_axis(tables, index, 1) * np.take_along_axis(cycles.size, turn, 1)
    rows = np.flatnonzero(chance(rng, 0.3, count)[:, 0] & ~closed)
    wave[rows] += log_uniform(rng, 0.1, 0.6, len(rows)) * shorter_season(period[rows], length, rng)

    error = correlated_noise(count, length, rng) * log_uniform(rng, 0.01, 1.2, count)
    shaded = closed & (rng.random(count) < 0.4)  # clouds only lower what a clear day gives
    error[shaded] = -np.abs(error[shaded])
    x = wave + level + error
    product, positive = combination == 1, combination > 0
    reach = np.maximum(np.abs(x[product]).max(1, keepdims=True) / 3, 1)
    x[product] = np.exp(x[product] / reach * uniform(rng, 0.3, 1, len(reach)))
    x[closed] = wave[closed] * np.exp(0.5 * np.clip(level[closed] + error[closed], -5, 5))
    counted = np.flatnonzero(positive & (rng.random(count) < 0.2))
    rate = x[counted] / np.maximum(x[counted].mean(1, keepdims=True), 1e-6)
    x[counted] = rng.poisson(rate * log_uniform(rng, 0.5, 100, len(counted)))
    return to_float32(x)


def base_periods(count: int, length: int, rng: np.random.Generator) -> Float32[np.ndarray, "count 1"]:
    """Periods of 24 to 2,048 steps, most of them a day of a common frequency; two fit into a length of 50 or more."""
    longest = min(max(length / 2, 25.0), LONGEST)
    other = log_uniform(rng, 24, longest, count)
    other = np.where(chance(rng, 0.8, count), other.round(), other)
    day = DAYS[choose(rng, DAY_WEIGHTS, count)][:, None]
    return np.where(chance(rng, 0.65, count) & (day <= longest), day, other).astype(np.float32)


def sample_cycles(count: int, turns: int, rng: np.random.Generator) -> Cycles:
    """Levels of weekdays, holidays, steps of the level, and sizes, levels and phases that wander."""
    week = WEEKS[choose(rng, WEEK_WEIGHTS, count)][:, None]
    weekday = (np.arange(turns) + rng.integers(0, 7, (count, 1))) % week
    free = np.where(chance(rng, 0.7, count) & (week > 1), np.where(chance(rng, 0.75, count), week // 3, 1), 0)
    rests = weekday >= week - free
    holiday = rng.random((count, turns)) < np.where(chance(rng, 0.5, count), log_uniform(rng, 0.005, 0.05, count), 0)
    rests |= holiday & (free > 0)
    of_weekday = normal(rng, count, 7) * log_uniform(rng, 0.02, 0.4, count) * (week > 1)
    level = np.take_along_axis(of_weekday, weekday, 1) + rests * uniform(rng, -1, 0.2, count)
    marks = rng.random((count, turns)) < np.where(chance(rng, 0.2, count), log_uniform(rng, 0.003, 0.03, count), 0)
    level += np.cumsum(marks * normal(rng, count, turns), 1)
    log_size = wandering(count, turns, rng) * np.where(chance(rng, 0.7, count), log_uniform(rng, 0.02, 0.6, count), 0)
    size = np.exp(np.clip(log_size, -3, 1.5)) * np.where(rests, uniform(rng, 0.2, 1.1, count), 1)
    drift = wandering(count, turns, rng) * np.where(chance(rng, 0.7, count), log_uniform(rng, 0.05, 1.5, count), 0)
    shift = normal(rng, count, turns) * np.where(chance(rng, 0.3, count), log_uniform(rng, 0.003, 0.03, count), 0)
    level, size, drift, shift = (part.astype(np.float32) for part in (level, size, drift, shift))
    return Cycles(level, size, drift, shift, rests)


def wandering(count: int, turns: int, rng: np.random.Generator) -> Float32[np.ndarray, "count turns"]:
    """First-order autoregressions of unit variance, from white noise to slow walks."""
    keep = 1 - log_uniform(rng, 0.02, 1, count)
    return recurrence(keep, normal(rng, count, turns) * np.sqrt(1 - keep**2))


def day_tables(closed: Bool[np.ndarray, " count"], rng: np.random.Generator) -> Float32[np.ndarray, "count twice"]:
    """Profiles of working and of free days, side by side, of unit variance; if closed, 0 at night and never negative.

    Args:
        closed: whether 25 to 65 % of the cycle are night.
        rng: source of randomness.
    """
    count = len(closed)
    work, other = (profiles(rng, rng.integers(4, 25, count)) for _ in range(2))
    share = uniform(rng, 0, 1, count)
    free = share * work + (1 - share) * other
    night = (TABLE * uniform(rng, 0.25, 0.65, int(closed.sum()))).astype(np.intp)
    dark = np.take_along_axis(np.sort(work[closed], 1), night, 1)
    free[closed] = np.where(work[closed] > dark, np.maximum(free[closed] - dark, 0), 0)
    work[closed] = np.maximum(work[closed] - dark, 0)
    return np.concatenate([work, free], 1)


def shorter_season(
    period: Float32[np.ndarray, "count 1"], length: int, rng: np.random.Generator
) -> Float32[np.ndarray, "count length"]:
    """A season of a half to a 24th of the period, at least four steps."""
    parts = PARTS[choose(rng, (4, 3, 2, 3), len(period))][:, None]
    short = np.where(parts * 4 <= period, period / parts, period / 2).astype(np.float32)
    return season(rng, short, np.maximum(short[:, 0].astype(np.int64), 2), length)


def correlated_noise(count: int, length: int, rng: np.random.Generator) -> Float32[np.ndarray, "count length"]:
    """Noise of unit variance, in most rows autocorrelated over up to a hundred steps."""
    out = noise(rng, count, length)
    rows = np.flatnonzero(rng.random(count) < 0.6)
    keep = 1 - log_uniform(rng, 0.01, 0.7, len(rows))
    out[rows] = recurrence(keep, out[rows] * np.sqrt(1 - keep**2))
    return out
