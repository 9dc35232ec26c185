"""Measurements of machines: load, switching, commanded levels, counters, drifts; bounded, rounded, held or off."""

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from tsfm_data.synthetic.events import random_events
from tsfm_data.synthetic.regime import switching
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
    standardise,
    to_float32,
    uniform,
)

WEIGHT = 0.04
ABOUT = "machines and sensors"
KINDS = (30, 25, 15, 15, 15)  # load, switched, commanded, counter, drifting


def telemetry(count: int, length: int, rng: np.random.Generator) -> Float[np.ndarray, "count length"]:
    """Signals of five kinds, as a sensor reports them.

    Args:
        count: series.
        length: steps of each.
        rng: source of randomness.
    """
    out = np.empty((count, length), np.float32)
    kind = choose(rng, KINDS, count)
    for k, signal in enumerate((load, switched, commanded, counter, drifting)):
        rows = np.flatnonzero(kind == k)
        if len(rows):
            out[rows] = standardise(signal(len(rows), length, rng))
    out += np.where(chance(rng, 0.7, count), log_uniform(rng, 0.003, 0.3, count), 0) * noise(rng, count, length)
    report(out, rng)
    return to_float32(out)


def daily_wave(count: int, length: int, rng: np.random.Generator) -> Float32[np.ndarray, "count length"]:
    """A season of 256 to 4,096 steps, shorter in short series."""
    longest = min(max(length, 16), 4096)
    period = np.round(log_uniform(rng, min(256, longest / 4), longest, count))
    return season(rng, period, rng.integers(4, 25, count), length)


def load(count: int, length: int, rng: np.random.Generator) -> Float32[np.ndarray, "count length"]:
    """Utilisation: a daily load and bursts that fade, with autocorrelated noise."""
    keep = 1 - log_uniform(rng, 0.01, 1, count)
    bursts = random_events(count, length, log_uniform(rng, 0.001, 0.05, count), rng)
    x = recurrence(keep, bursts * uniform(rng, 0, 3, count) + np.sqrt(1 - keep**2) * normal(rng, count, length) * 0.3)
    return x + log_uniform(rng, 0.1, 3, count) * daily_wave(count, length, rng)


def switched(count: int, length: int, rng: np.random.Generator) -> Float32[np.ndarray, "count length"]:
    """Two states with random or, in some rows, fixed durations; the power of one varies."""
    dwell = log_uniform(rng, 2, max(length / 12, 4.0), count), log_uniform(rng, 2, max(length / 12, 4.0), count)
    on = switching(1 - 1 / np.concatenate(dwell, 1), length, rng)
    phase = np.mod(np.arange(length) + np.floor(rng.random((count, 1)) * 1000), np.ceil(dwell[0] + dwell[1]))
    on = np.where(chance(rng, 0.3, count), phase < dwell[0], on)
    power = np.where(chance(rng, 0.5, count), log_uniform(rng, 0.03, 0.5, count), 0)
    x = on * (1 + power * daily_wave(count, length, rng) + 0.5 * power * noise(rng, count, length))
    lag = np.where(chance(rng, 0.4, count), 1 - log_uniform(rng, 0.02, 0.7, count), 0)  # warms up and cools down
    return recurrence(lag.astype(np.float32), ((1 - lag) * x).astype(np.float32))


def commanded(count: int, length: int, rng: np.random.Generator) -> Float32[np.ndarray, "count length"]:
    """A few levels, each held for random times, some reached by ramps."""
    levels = normal(rng, count, 8)
    pick = rng.integers(0, rng.integers(2, 9, (count, 1)), (count, length))
    changes = rng.random((count, length), dtype=np.float32) < 1 / log_uniform(rng, 4, max(length / 12, 8.0), count)
    held = np.take_along_axis(levels, np.take_along_axis(pick, last_mark(changes), 1), 1)
    width = np.where(chance(rng, 0.5, count), np.round(log_uniform(rng, 2, max(length / 50, 4.0), count)), 1)
    return moving_average(held, width.astype(np.intp))


def moving_average(
    x: Float32[np.ndarray, "count length"], width: Int[np.ndarray, "count 1"]
) -> Float32[np.ndarray, "count length"]:
    """Means of the last ``width`` steps, or of all so far; steps become ramps."""
    total = np.cumsum(x, 1, dtype=np.float64)
    step = np.arange(x.shape[1])
    before = np.where(step < width, 0, np.take_along_axis(total, np.maximum(step - width, 0), 1))
    return ((total - before) / np.minimum(step + 1, width)).astype(np.float32)


def counter(count: int, length: int, rng: np.random.Generator) -> Float32[np.ndarray, "count length"]:
    """What grows at a varying rate, at times not at all, until it is reset: at a limit or, in some rows, at random."""
    strength = np.where(chance(rng, 0.7, count), log_uniform(rng, 0.05, 1, count), 0)
    rate = np.exp(
        strength * daily_wave(count, length, rng) + log_uniform(rng, 0.01, 1, count) * noise(rng, count, length)
    )
    pauses = switching(rng.uniform(0.9, 0.999, (count, 2)).astype(np.float32), length, rng)
    rate = np.where(chance(rng, 0.3, count), rate * pauses, rate)
    total = np.cumsum(rate, 1, dtype=np.float64)
    total /= np.maximum(total[:, -1:], 1e-9)
    turns = log_uniform(rng, 1.5, max(length / 20, 2.0), count)
    resets = rng.random((count, length), dtype=np.float32) < turns / length
    at_limit = np.mod(total + rng.random((count, 1)), 1 / turns)
    at_random = total - np.take_along_axis(total, last_mark(resets), 1)
    sign = np.where(chance(rng, 0.7, count), 1, -1)  # counts down: a battery, a tank
    return (sign * np.where(chance(rng, 0.6, count), at_limit, at_random) * turns).astype(np.float32)


def drifting(count: int, length: int, rng: np.random.Generator) -> Float32[np.ndarray, "count length"]:
    """A temperature or pressure: a random walk that reverts slowly, a slow curve and at times a daily wave."""
    keep = 1 - log_uniform(rng, 0.0005, 0.1, count)
    x = recurrence(keep, normal(rng, count, length) * np.sqrt(1 - keep**2))
    x += uniform(rng, 0, 2, count) * slow_curve(rng, count, length)
    return x + np.where(chance(rng, 0.5, count), log_uniform(rng, 0.1, 2, count), 0) * daily_wave(count, length, rng)


def report(x: Float32[np.ndarray, "count length"], rng: np.random.Generator) -> None:
    """Spikes, limits, few levels, off periods and values that stay for a while, each in some rows, in place.

    Args:
        x: signals of unit variance.
        rng: source of randomness.
    """
    count, length = x.shape
    rows = np.flatnonzero(rng.random(count) < 0.2)
    x[rows] += random_events(len(rows), length, log_uniform(rng, 0.0005, 0.01, len(rows)), rng) * 3
    rows = np.flatnonzero(rng.random(count) < 0.2)
    x[rows] = np.minimum(x[rows], uniform(rng, 0.2, 1.5, len(rows)))
    rows = np.flatnonzero(rng.random(count) < 0.2)
    x[rows] = np.maximum(x[rows], uniform(rng, -1.2, 0.1, len(rows)))
    rows = np.flatnonzero(rng.random(count) < 0.35)
    width = log_uniform(rng, 0.03, 1, len(rows))
    x[rows] = np.round(x[rows] / width) * width
    rows = np.flatnonzero(rng.random(count) < 0.2)
    held = runs(len(rows), length, rng)
    x[rows] = np.take_along_axis(x[rows], last_mark(~held), 1)
    rows = np.flatnonzero(rng.random(count) < 0.2)
    above = x[rows] - x[rows].min(1, keepdims=True, initial=0) + uniform(rng, 0, 2, len(rows))
    level = np.where(chance(rng, 0.8, len(rows)), 0, uniform(rng, 0, 4, len(rows)))
    x[rows] = np.where(runs(len(rows), length, rng), level, above)


def runs(count: int, length: int, rng: np.random.Generator) -> Bool[np.ndarray, "count length"]:
    """True in runs that last 3 to length / 8 steps on average and cover a twentieth to a half of the steps."""
    inside = log_uniform(rng, 3, max(length / 8, 4.0), count)
    outside = inside * log_uniform(rng, 1, 20, count)
    return switching(1 - 1 / np.concatenate([outside, inside], 1), length, rng)
