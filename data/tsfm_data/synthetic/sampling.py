"""Building blocks of the generators: random numbers, linear recurrences without a loop over time, seasonal profiles.

All functions work on arrays with one series per row, in float32 unless rounding errors would accumulate.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float32, Inexact, Int

TABLE = 2048  # points in the table of one seasonal cycle
HARMONICS = 24
# Seasonal cycles that occur together, in steps, from short to long (0: none), and the weight of each row. The last
# row is replaced by random cycles that follow no calendar.
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
    """A column of log-uniform random numbers."""
    return np.exp(rng.uniform(np.log(low), np.log(high), (count, 1))).astype(np.float32)


def uniform(
    rng: np.random.Generator, low: int | float, high: int | float, count: int
) -> Float32[np.ndarray, "count 1"]:
    """A column of uniform random numbers."""
    return rng.uniform(low, high, (count, 1)).astype(np.float32)


def chance(rng: np.random.Generator, probability: int | float, count: int) -> Bool[np.ndarray, "count 1"]:
    """A column of random booleans, true with this probability."""
    return rng.random((count, 1)) < probability


def choose(rng: np.random.Generator, weights: Sequence[int | float], count: int) -> Int[np.ndarray, " count"]:
    """Random indices 0, 1, ... with these weights."""
    edges = np.cumsum(weights)
    return np.searchsorted(edges, rng.random(count) * edges[-1], side="right").clip(max=len(edges) - 1)


def choose_blocks(
    rng: np.random.Generator, weights: Sequence[int | float], count: int, block: int = 8
) -> Int[np.ndarray, " count"]:
    """As ``choose``, but each index is repeated for ``block`` neighbours, so that fewer kinds occur in a batch."""
    return np.repeat(choose(rng, weights, -(-count // block)), block)[:count]


def normal(rng: np.random.Generator, count: int, length: int) -> Float32[np.ndarray, "count length"]:
    """Standard normal numbers."""
    return rng.standard_normal((count, length), dtype=np.float32)


def noise(rng: np.random.Generator, count: int, length: int) -> Float32[np.ndarray, "count length"]:
    """White noise of unit variance: normal in most rows, Laplace or Student (4 degrees of freedom) in the others.

    Laplace and Student noise are normal numbers times a random scale: the root of an exponential variable, or the
    inverse root of the sum of two.
    """
    out = normal(rng, count, length)
    kind = choose(rng, (6, 2, 2), count)
    laplace, student = np.flatnonzero(kind == 1), np.flatnonzero(kind == 2)
    out[laplace] *= np.sqrt(rng.standard_exponential((len(laplace), length), dtype=np.float32))
    halves = rng.standard_exponential((2, len(student), length), dtype=np.float32).sum(0)
    out[student] /= np.sqrt(halves + np.float32(1e-6))
    return out


def standardise(x: Float[np.ndarray, "count length"]) -> Float32[np.ndarray, "count length"]:
    """Scale every row to mean 0 and standard deviation 1; a constant row becomes zeros."""
    centred = x - x.mean(1, keepdims=True)
    spread = centred.std(1, keepdims=True)
    return (centred / np.maximum(spread, 1e-9)).astype(np.float32)


def recurrence(
    keep: Inexact[np.ndarray, "count width"], drive: Inexact[np.ndarray, "count length"]
) -> Inexact[np.ndarray, "count length"]:
    """``x[t] = keep[t] * x[t-1] + drive[t]`` from ``x[-1] = 0``, by doubling: log2(length) passes over the array.

    Args:
        keep: one number per row (width 1) or per step (width = length), of magnitude about 1 at most.
        drive: input at every step.
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
    """For every step, the last marked step up to it; 0 before the first one."""
    steps = np.arange(marks.shape[1], dtype=np.int32)
    return np.maximum.accumulate(np.where(marks, steps, np.int32(0)), axis=1)


def cycles(rng: np.random.Generator, count: int) -> Float32[np.ndarray, "count 3"]:
    """Random sets of seasonal periods that occur together, in steps, from short to long; 0 for none."""
    row = choose(rng, CYCLE_WEIGHTS.tolist(), count)
    out = CYCLES[row]
    random = np.flatnonzero(row == len(CYCLES) - 1)
    out[random, :1] = log_uniform(rng, 3, 200, len(random))
    whole = chance(rng, 0.7, len(random))  # most cycles are whole numbers of steps
    out[random, :1] = np.where(whole, out[random, :1].round(), out[random, :1])
    ratio = np.where(chance(rng, 0.5, len(random)), rng.integers(2, 13, (len(random), 1)), 0)
    out[random, 1:2] = out[random, :1] * ratio
    return out


def profiles(rng: np.random.Generator, steps: Int[np.ndarray, " count"]) -> Float32[np.ndarray, "count table"]:
    """Tables of random seasonal cycles, one per row, with mean 0 and standard deviation 1.

    A cycle is a sum of harmonics with random decay, possibly turned into peaks, flat bottoms (such as solar power at
    night) or plateaus; or it has an independent value for each of ``steps`` equal parts (such as the days of a week).
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
    peaked, flat, plateau, stepwise = (np.flatnonzero(kind == k) for k in range(1, 5))
    table[peaked] = np.exp(strength[peaked] * table[peaked])
    table[flat] = np.maximum(table[flat] - (strength[flat] - 1.0), 0)
    table[plateau] = np.tanh(4 * strength[plateau] * table[plateau])
    values = normal(rng, len(stepwise), 64)
    part = np.arange(TABLE) * np.clip(steps[stepwise], 2, 64)[:, None] // TABLE
    table[stepwise] = np.take_along_axis(values, part, 1)
    return standardise(table)


def season(
    rng: np.random.Generator,
    period: Float32[np.ndarray, "count 1"],
    steps: Int[np.ndarray, " count"],
    length: int,
) -> Float32[np.ndarray, "count length"]:
    """Strictly periodic series, one per row, of about unit variance and with a random phase.

    Args:
        rng: source of randomness.
        period: length of the cycle in steps, whole or not.
        steps: number of equal parts of the cycle, for profiles with an independent value per part.
        length: of the series, in steps.
    """
    start = np.floor(rng.random((len(steps), 1)) * period)
    # The middle of each step is looked up, so that whole periods hit every part of the table once.
    phase = (np.arange(0.5, length, dtype=np.float32) + start.astype(np.float32)) / period
    phase -= np.floor(phase)
    index = (phase * np.float32(TABLE)).astype(np.intp)
    np.minimum(index, TABLE - 1, out=index)
    return np.take_along_axis(profiles(rng, steps), index, 1)


def slow_curve(rng: np.random.Generator, count: int, length: int) -> Float32[np.ndarray, "count length"]:
    """Piecewise linear curves through two to eight random, evenly spaced knots."""
    knots = rng.integers(2, 9, (count, 1))
    heights = normal(rng, count, 9)
    position = np.arange(length, dtype=np.float32) / np.float32(max(length - 1, 1)) * (knots - 1).astype(np.float32)
    left = np.minimum(position.astype(np.intp), knots - 2)
    low, high = np.take_along_axis(heights, left, 1), np.take_along_axis(heights, left + 1, 1)
    return low + (high - low) * (position - left.astype(np.float32))


def to_float32(x: Float[np.ndarray, "count length"]) -> Float32[np.ndarray, "count length"]:
    """Convert to finite float32; the rare values beyond a million are clipped."""
    return np.nan_to_num(np.clip(x, -1e6, 1e6), copy=False).astype(np.float32, copy=False)
