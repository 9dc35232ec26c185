"""What the generators share: random numbers, recurrences without a loop over time, seasonal profiles.

Everything works on whole blocks, one series a row. float32 where nothing accumulates.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float32, Inexact, Int

TABLE = 512  # points in the table of one seasonal cycle
HARMONICS = 24
# Seasonal cycles that occur together, in steps, from short to long (0: none), and how often each row is drawn. The
# last row stands for cycles that no calendar explains.
CYCLES = np.array(
    [
        (24, 168, 8766),  # hourly
        (48, 336, 0),  # half-hourly
        (96, 672, 0),  # 15 minutes
        (144, 1008, 0),  # 10 minutes
        (288, 2016, 0),  # 5 minutes
        (60, 1440, 0),  # minutes
        (7, 365.25, 0),  # daily
        (7, 30.44, 365.25),  # daily, with a month
        (5, 21.0, 261),  # business days
        (52.18, 0, 0),  # weekly
        (4.35, 52.18, 0),  # weekly, with a month
        (12, 0, 0),  # monthly
        (12, 132, 0),  # monthly, with a cycle of years
        (4, 0, 0),  # quarterly
        (0, 0, 0),
    ],
    np.float32,
)
CYCLE_WEIGHTS = np.array([20, 5, 6, 5, 3, 2, 9, 4, 3, 5, 2, 11, 1, 6, 18], float)


def log_uniform(
    rng: np.random.Generator, low: int | float, high: int | float, count: int
) -> Float32[np.ndarray, "count 1"]:
    """A column of numbers whose logarithm is uniform."""
    return np.exp(rng.uniform(np.log(low), np.log(high), (count, 1))).astype(np.float32)


def uniform(
    rng: np.random.Generator, low: int | float, high: int | float, count: int
) -> Float32[np.ndarray, "count 1"]:
    """A column of uniform numbers."""
    return rng.uniform(low, high, (count, 1)).astype(np.float32)


def chance(rng: np.random.Generator, probability: int | float, count: int) -> Bool[np.ndarray, "count 1"]:
    """A column that is true with a probability."""
    return rng.random((count, 1)) < probability


def choose(rng: np.random.Generator, weights: Sequence[int | float], count: int) -> Int[np.ndarray, "count"]:
    """Numbers 0, 1, ... drawn by weight."""
    edges = np.cumsum(weights)
    return np.searchsorted(edges, rng.random(count) * edges[-1], side="right").clip(max=len(edges) - 1)


def choose_blocks(
    rng: np.random.Generator, weights: Sequence[int | float], count: int, block: int = 8
) -> Int[np.ndarray, "count"]:
    """As ``choose``, but the same number for each ``block`` neighbours: for kinds whose every call costs time."""
    return np.repeat(choose(rng, weights, -(-count // block)), block)[:count]


def normal(rng: np.random.Generator, count: int, length: int) -> Float32[np.ndarray, "count length"]:
    """Standard normal numbers."""
    return rng.standard_normal((count, length), dtype=np.float32)


def noise(rng: np.random.Generator, count: int, length: int) -> Float32[np.ndarray, "count length"]:
    """White noise of unit variance: normal in most rows, Laplace or Student (4 degrees of freedom) in the others.

    Both are normal numbers with a random scale: the root of an exponential gives Laplace, that of the inverse of a
    mean of two exponentials gives Student.
    """
    out = normal(rng, count, length)
    kind = choose(rng, (6, 2, 2), count)
    laplace, student = np.flatnonzero(kind == 1), np.flatnonzero(kind == 2)
    out[laplace] *= np.sqrt(rng.standard_exponential((len(laplace), length), dtype=np.float32))
    halves = rng.standard_exponential((2, len(student), length), dtype=np.float32).sum(0)
    out[student] /= np.sqrt(halves + np.float32(1e-6))
    return out


def standardise(x: Float[np.ndarray, "count length"]) -> Float32[np.ndarray, "count length"]:
    """Every row with mean 0 and standard deviation 1; a constant row becomes zeros."""
    centred = x - x.mean(1, keepdims=True)
    spread = centred.std(1, keepdims=True)
    return (centred / np.maximum(spread, 1e-9)).astype(np.float32)


def recurrence(
    keep: Inexact[np.ndarray, "count width"], drive: Inexact[np.ndarray, "count length"]
) -> Inexact[np.ndarray, "count length"]:
    """``x[t] = keep[t] * x[t-1] + drive[t]`` from ``x[-1] = 0``, by doubling: log2(length) passes over the block.

    Args:
        keep: one number a row (width 1) or one a step (width = length), of magnitude about 1 at most.
        drive: what enters at every step.
    """
    x, factor = drive.copy(), np.array(keep, drive.dtype)
    steps, step = drive.shape[1], 1
    while step < steps and np.abs(factor).max(initial=0.0) > 1e-9:
        if factor.shape[1] == 1:
            x[:, step:] += factor * x[:, :-step]
            factor = factor * factor
        else:
            x[:, step:] += factor[:, step:] * x[:, :-step]
            factor[:, step:] *= factor[:, :-step]
        step *= 2
    return x


def last_mark(marks: Bool[np.ndarray, "count length"]) -> Int[np.ndarray, "count length"]:
    """The step of the latest mark up to every step; 0 before the first one."""
    steps = np.arange(marks.shape[1], dtype=np.int32)
    return np.maximum.accumulate(np.where(marks, steps, np.int32(0)), axis=1)


def cycles(rng: np.random.Generator, count: int) -> Float32[np.ndarray, "count 3"]:
    """Periods that occur together, in steps, from short to long; 0 where there is none."""
    row = choose(rng, CYCLE_WEIGHTS.tolist(), count)
    out = CYCLES[row]
    free = np.flatnonzero(row == len(CYCLES) - 1)
    out[free, :1] = log_uniform(rng, 3, 200, len(free))
    whole = chance(rng, 0.7, len(free))  # most cycles are whole numbers of steps
    out[free, :1] = np.where(whole, out[free, :1].round(), out[free, :1])
    ratio = np.where(chance(rng, 0.5, len(free)), rng.integers(2, 13, (len(free), 1)), 0)
    out[free, 1:2] = out[free, :1] * ratio
    return out


def profiles(rng: np.random.Generator, steps: Int[np.ndarray, "count"]) -> Float32[np.ndarray, "count table"]:
    """One random seasonal cycle a row, as a table: mean 0, standard deviation 1.

    Harmonics with random decay; peaks, flat bottoms (the sun at night) or plateaus made of them; or a free value for
    each of ``steps`` equal parts of the cycle (the days of a week, the hours of a day).
    """
    count = len(steps)
    orders = np.arange(1, HARMONICS + 1, dtype=np.float32)
    decay = uniform(rng, 0.6, 4.0, count)
    spectrum = np.zeros((count, HARMONICS + 1), np.complex64)
    parts = rng.standard_normal((2, count, HARMONICS), dtype=np.float32)
    spectrum[:, 1:] = (parts[0] + 1j * parts[1]) * orders**-decay
    table = standardise(np.fft.irfft(spectrum, TABLE, axis=1))
    kind = choose(rng, (35, 15, 15, 10, 25), count)
    strength = uniform(rng, 0.5, 2.0, count)
    peaked, flat, plateau, free = (np.flatnonzero(kind == k) for k in range(1, 5))
    table[peaked] = np.exp(strength[peaked] * table[peaked])
    table[flat] = np.maximum(table[flat] - (strength[flat] - 1.0), 0)
    table[plateau] = np.tanh(4 * strength[plateau] * table[plateau])
    values = normal(rng, len(free), 64)
    part = np.arange(TABLE) * np.clip(steps[free], 2, 64)[:, None] // TABLE
    table[free] = np.take_along_axis(values, part, 1)
    return standardise(table)


def season(
    rng: np.random.Generator,
    period: Float32[np.ndarray, "count 1"],
    steps: Int[np.ndarray, "count"],
    length: int,
) -> Float32[np.ndarray, "count length"]:
    """A strictly periodic series a row, of about unit variance, with a random start.

    Args:
        rng: source of randomness.
        period: length of the cycle in steps, whole or not.
        steps: equal parts of the cycle for profiles with a free value a part.
        length: steps to make.
    """
    start = np.floor(rng.random((len(steps), 1)) * period)
    # The middle of a step is asked for, so that whole periods hit every part of the table once.
    phase = (np.arange(0.5, length, dtype=np.float32) + start.astype(np.float32)) / period
    phase -= np.floor(phase)
    index = (phase * np.float32(TABLE)).astype(np.intp)
    np.minimum(index, TABLE - 1, out=index)
    return np.take_along_axis(profiles(rng, steps), index, 1)


def wander(rng: np.random.Generator, count: int, length: int) -> Float32[np.ndarray, "count length"]:
    """Slow curves: straight lines between two to eight random heights at even distances."""
    knots = rng.integers(2, 9, (count, 1))
    heights = normal(rng, count, 9)
    place = np.arange(length, dtype=np.float32) / np.float32(max(length - 1, 1)) * (knots - 1).astype(np.float32)
    left = np.minimum(place.astype(np.intp), knots - 2)
    low, high = np.take_along_axis(heights, left, 1), np.take_along_axis(heights, left + 1, 1)
    return low + (high - low) * (place - left.astype(np.float32))


def finish(x: Float[np.ndarray, "count length"]) -> Float32[np.ndarray, "count length"]:
    """float32 without infinities: what a rare path of a growing process could leave is held at a million."""
    return np.nan_to_num(np.clip(x, -1e6, 1e6), copy=False).astype(np.float32, copy=False)
