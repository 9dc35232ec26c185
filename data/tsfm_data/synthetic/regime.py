"""Mean-reverting diffusions that switch between two regimes, with parameters after TempoPFN (Moroshan et al. 2025)."""

import numpy as np
from jaxtyping import Bool, Float, Float32

from tsfm_data.synthetic.sampling import (
    chance,
    cycles,
    last_mark,
    log_uniform,
    normal,
    recurrence,
    season,
    slow_curve,
    to_float32,
    uniform,
)

WEIGHT = 0.06
ABOUT = "switching diffusions"


def regime(count: int, length: int, rng: np.random.Generator) -> Float[np.ndarray, "count length"]:
    """Ornstein-Uhlenbeck processes with a fast and a slow regime, stochastic volatility, a varying mean and a season.

    Args:
        count: series.
        length: steps of each.
        rng: source of randomness.
    """
    slow = switching(rng.uniform(0.85, 0.999, (count, 2)).astype(np.float32), length, rng)
    step = log_uniform(rng, 0.01, 0.2, count)
    rate = np.where(slow, uniform(rng, 0.05, 0.5, count), uniform(rng, 1, 5, count))
    spread = np.where(slow, log_uniform(rng, 0.1, 1, count), log_uniform(rng, 0.1, 2, count))
    mean = np.where(slow, normal(rng, count, 1), normal(rng, count, 1)) * chance(rng, 0.7, count)
    mean = mean + np.where(chance(rng, 0.7, count), uniform(rng, 0.3, 2, count), 0) * slow_curve(rng, count, length)
    # The logarithm of the volatility is a slow mean-reverting process.
    persistence = 1 - log_uniform(rng, 0.003, 0.1, count)
    log_volatility = recurrence(persistence, normal(rng, count, length)) * np.sqrt(1 - persistence**2)
    spread = spread * np.exp(np.where(chance(rng, 0.7, count), uniform(rng, 0.2, 0.8, count), 0) * log_volatility)
    x = reverting(rate * step, mean.astype(np.float32), spread, normal(rng, count, length))
    rows = np.flatnonzero(rng.random(count) < 0.6)
    period = np.maximum(cycles(rng, len(rows))[:, :1], 2)
    parts = np.round(period[:, 0]).astype(np.int64)
    wave = season(rng, period, parts, length) * log_uniform(rng, 0.1, 1.5, len(rows))
    # Half of the seasons act in the slow regime only.
    x[rows] += wave * np.where(chance(rng, 0.5, len(rows)), slow[rows], True)
    return to_float32(x)


def switching(
    stay: Float32[np.ndarray, "count 2"], length: int, rng: np.random.Generator
) -> Bool[np.ndarray, "count length"]:
    """Two-state Markov chains without a loop over time.

    One uniform number u per step drives both states: the next state is 1 if ``u < 1 - stay[0]`` and 0 if
    ``u >= stay[1]``, whatever the last one was; in between the state stays. So the state is that of the last step
    where u decided it.

    Args:
        stay: probabilities of staying in state 0 and in state 1; their sum is at least 1.
        length: steps.
        rng: source of randomness.
    """
    u = rng.random((len(stay), length), dtype=np.float32)
    leave, keep = 1 - stay[:, :1], stay[:, 1:]
    is_one = u < leave
    decided = is_one | (u >= keep)
    is_one[:, :1] = rng.random((len(stay), 1)) < leave / (leave + 1 - keep)  # the stationary distribution
    return np.take_along_axis(is_one, last_mark(decided), 1)


def reverting(
    rate: Float[np.ndarray, "count length"],
    mean: Float32[np.ndarray, "count length"],
    spread: Float[np.ndarray, "count length"],
    white: Float32[np.ndarray, "count length"],
) -> Float32[np.ndarray, "count length"]:
    """Exact steps of ``dx = rate (mean - x) dt + spread sqrt(2 rate) dW``, whose stationary deviation is ``spread``.

    Args:
        rate: speed of reversion per step.
        mean: what the process reverts to.
        spread: stationary standard deviation.
        white: standard normal numbers.
    """
    keep = np.exp(-rate).astype(np.float32)
    drive = (1 - keep) * mean + np.sqrt(1 - keep**2) * spread * white
    drive[:, :1] = mean[:, :1] + spread[:, :1] * white[:, :1]  # starts in its stationary distribution
    return recurrence(keep, drive.astype(np.float32))
