"""Scores of the values of a block, one for each kind of anomaly, and their p-values and limits.

Axes: A steps of a block, V variates, T rows of history.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

LEAST_HISTORY = 16  # observed values before the first forecast
FLAT, EXACT = 0.01, 1e-9  # least half-width of an interval: of the standard deviation, and of the largest value
DULL = 1e-3  # scores below it are 0: they are differences in rounding
# Drift: the mean error of about so many latest steps, each error at most MOST_ERROR, times WEIGHT. These three and the
# unit of frozen values were chosen on training sets with planted anomalies (``benchmarks/detect.py --role train``).
STEPS, MOST_ERROR, WEIGHT = 8, 8.0, 2.0
UNIT = 2.0  # frozen: minus the logarithm of the probability of so many equal values, divided by this
LEAST_FROZEN = 1.0  # frozen scores below it are 0: that many equal values are nothing unusual
KINDS = ("value", "drift", "frozen")
# Of the calibration scores, at most so many may be above the limit; more would be slower to follow a change.
MOST_ABOVE = 10
SHARE = 0.25  # drifts and frozen values are judged at this share of the rate, once there are enough scores
MOST_SCORE = 1.3  # a calibration score counts at most this many limits, so that gross errors do not hide later ones


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

    So many that the second is the rate of the first plus one: a p-value of at most the rate then has exactly this
    probability. With too few scores the second is 0, and no value can be flagged.

    Args:
        count: scores that are there.
        rate: of false alarms.
    """
    size = min(count, math.ceil(MOST_ABOVE / rate - 1e-9) - 1)
    above = math.floor(rate * (size + 1) + 1e-9)
    return (math.ceil(above / rate - 1e-9) - 1 if above else size), above


def calibrate(
    scores: Float64[np.ndarray, "3 A"], known: list[list[float]], factor: float, rate: float
) -> tuple[Float64[np.ndarray, " A"], Float64[np.ndarray, " 3"]]:
    """P-values of the values of a block, and the limits above which their scores are those of an anomaly.

    A value has a p-value of at most the rate if and only if one of its scores is above the limit of its kind. A frozen
    value must also be as improbable by itself as its score says, because most series have none before.

    Args:
        scores: scores by kind; NaN if they cannot be judged.
        known: earlier scores by kind.
        factor: earlier scores are multiplied by it.
        rate: of false alarms.

    Returns:
        P-values, NaN for a score that is, and limits, infinite if there are too few earlier scores.
    """
    p_values, limits = np.ones(scores.shape), np.full(len(scores), np.inf)
    for k, earlier in enumerate(known):
        size, above = calibration_size(len(earlier), rate)
        others = np.array(earlier[len(earlier) - size :]) * factor
        ranks = 1 + (others[:, None] >= scores[k]).sum(axis=0)
        if above:
            above = above if k == 0 else max(1, math.floor(SHARE * above))
            limits[k] = np.partition(others, size - above)[size - above]
            p_values[k] = rate * ranks / above
        elif k == 0:
            p_values[k] = ranks / (size + 1)
    with np.errstate(under="ignore"):
        p_values[2] = np.maximum(p_values[2], np.exp(-UNIT * scores[2]) / SHARE)
    limits[2] = max(limits[2], least_frozen(rate))
    return np.where(np.isnan(scores[0]), np.nan, np.minimum(p_values.min(axis=0), 1)), limits


def least_frozen(rate: float) -> float:
    """The score of a frozen value whose probability is the share of the rate for frozen values."""
    return -math.log(SHARE * rate) / UNIT


def score_caps(limits: Float64[np.ndarray, "3 V"], rate: float) -> Float64[np.ndarray, "3 V"]:
    """The largest scores that enter a calibration with these limits, which are those without the factor."""
    caps = np.where(limits > 0, MOST_SCORE * limits, MOST_ERROR)
    caps[2, np.isinf(caps[2])] = MOST_SCORE * least_frozen(rate)
    return caps
