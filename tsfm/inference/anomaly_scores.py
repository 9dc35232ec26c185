"""Scores of the values of a block, one for each kind of anomaly, on one scale; and the size of a calibration.

Axes: A steps of a block, V variates, T rows of history.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

LEAST_HISTORY = 16  # observed values before the first forecast
FLAT, EXACT = 0.01, 1e-9  # least half-width of an interval: of the standard deviation, and of the largest value
DULL = 1e-3  # scores below it are 0: they are differences in rounding
# Drift: WEIGHT times the mean error of about the latest STEPS steps, each error at most MOST_ERROR. These three and the
# unit of frozen values were chosen on training sets with planted anomalies (``benchmarks/detect.py --role train``).
STEPS, MOST_ERROR, WEIGHT = 8, 8.0, 2.0
UNIT = 2.0  # frozen: minus the logarithm of the probability of as many equal values, divided by this
LEAST_FROZEN = 1.0  # frozen scores below it are 0: that many equal values are nothing unusual
KINDS = ("value", "drift", "frozen")
MOST_ABOVE = 10  # calibration scores above the limit; with more, limits would be slower to follow a change


@dataclass(frozen=True)
class Memory:
    """What the scores of a block need of those before it, for each variate.

    Attributes:
        level: the mean error of the latest steps.
        run: how often the last value has been repeated.
        repeats: how many values were equal to the one before.
        pairs: how many could be.
    """

    level: Float64[np.ndarray, " V"]
    run: Float64[np.ndarray, " V"]
    repeats: Float64[np.ndarray, " V"]
    pairs: Float64[np.ndarray, " V"]

    @classmethod
    def empty(cls, variates: int) -> "Memory":
        """Before the first block."""
        return cls(*np.zeros((4, variates)))


def score_kinds(
    values: Float64[np.ndarray, "A V"],
    previous: Float64[np.ndarray, " V"],
    middle: Float64[np.ndarray, "A V"],
    below: Float64[np.ndarray, "A V"],
    above: Float64[np.ndarray, "A V"],
    memory: Memory,
) -> tuple[Float64[np.ndarray, "3 A V"], Memory]:
    """Scores of a block by kind, and the memory after it; NaN if a value is missing.

    A value far from the median is an anomaly of its own. If errors are large for some time but not extreme, the series
    drifts. If a value is repeated more often than repeated values so far would make likely, it is frozen.

    Args:
        values: the values.
        previous: the values before the first step.
        middle: the median forecast.
        below, above: half-widths of the intervals.
        memory: that after the block before.
    """
    missing = np.isnan(values)
    with np.errstate(over="ignore"):
        errors = np.abs(values - middle) / np.where(values >= middle, above, below)
    errors[errors < DULL] = 0
    level = smooth(np.where(missing, memory.level, np.minimum(errors, MOST_ERROR)), memory.level)
    equal = np.diff(values, axis=0, prepend=previous[None]) == 0
    step = np.arange(len(values))[:, None]
    changed = np.maximum.accumulate(np.where(equal, -1, step), axis=0)
    runs = np.where(changed >= 0, step - changed, memory.run + step + 1)
    repeats = np.cumsum(equal, axis=0) - equal + memory.repeats  # before each step
    pairs = step + memory.pairs
    frozen = -runs * np.log((repeats + 0.5) / (pairs + 1)) / UNIT
    frozen[frozen < LEAST_FROZEN] = 0
    drift = np.where(level > MOST_ERROR / STEPS, WEIGHT * level, 0.0)  # one error alone is no drift
    scores = np.stack([errors, drift, frozen])
    scores[:, missing] = np.nan
    after = Memory(level[-1], runs[-1].astype(np.float64), repeats[-1] + equal[-1], pairs[-1] + 1)
    return scores, after


def smooth(errors: Float64[np.ndarray, "A V"], level: Float64[np.ndarray, " V"]) -> Float64[np.ndarray, "A V"]:
    """Exponentially weighted means of the errors up to each step, which continue from ``level``."""
    step, keep = np.arange(len(errors)), 1 - 1 / STEPS
    lag = step[:, None] - step
    weights = np.where(lag >= 0, keep ** np.maximum(lag, 0) / STEPS, 0.0)
    return weights @ errors + keep ** (step[:, None] + 1) * level


def least_width(
    history: Float64[np.ndarray, "T V"],
) -> tuple[Float64[np.ndarray, " V"], Bool[np.ndarray, " V"]]:
    """Least half-width of the intervals after a history, so that constants have one; and whether it is long enough."""
    seen = np.isfinite(history)
    known = np.where(seen, history, 0.0)
    count = seen.sum(axis=0)
    size = np.abs(known).max(axis=0)
    unit = np.where(size > 0, size, 1.0)  # so that squares neither overflow nor vanish
    mean = (known / unit).sum(axis=0) / np.maximum(count, 1)
    square = np.where(seen, known / unit - mean, 0.0) ** 2
    deviation = np.sqrt(square.sum(axis=0) / np.maximum(count, 1)) * unit
    return FLAT * deviation + EXACT * size + np.finfo(np.float64).tiny, count >= LEAST_HISTORY


def calibration_size(count: int, rate: float) -> tuple[int, int]:
    """Number of the latest scores in a calibration, and of those above its limit.

    The second is the rate times one more than the first, so that a p-value of at most the rate has exactly this
    probability. With too few scores it is 0, and no value can be flagged.

    Args:
        count: scores that are there.
        rate: of false alarms.
    """
    size = min(count, math.ceil(MOST_ABOVE / rate - 1e-9) - 1)
    above = math.floor(rate * (size + 1) + 1e-9)
    return (math.ceil(above / rate - 1e-9) - 1 if above else size), above
