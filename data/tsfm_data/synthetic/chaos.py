"""Chaotic systems: deterministic, yet hard to forecast."""

import numpy as np
from jaxtyping import Float

from tsfm_data.synthetic.sampling import (
    chance,
    choose_blocks,
    log_uniform,
    normal,
    recurrence,
    standardise,
    to_float32,
    uniform,
)

WEIGHT = 0.01
ABOUT = "chaotic systems"
BURN_IN = 48


def chaos(count: int, length: int, rng: np.random.Generator) -> Float[np.ndarray, "count length"]:
    """Logistic map, Henon map, Mackey-Glass equation and Lorenz system, some with a little observation noise.

    Args:
        count: series.
        length: steps of each.
        rng: source of randomness.
    """
    out = np.empty((count, length), np.float32)
    kind = choose_blocks(rng, (1, 1, 3, 3), count)
    for k, system in enumerate((logistic, henon, mackey_glass, lorenz)):
        rows = np.flatnonzero(kind == k)
        if len(rows):  # these functions loop over time, so none is called for zero rows
            out[rows] = standardise(system(len(rows), length, rng))
    noise_size = np.where(chance(rng, 0.5, count), log_uniform(rng, 0.01, 0.2, count), 0)
    return to_float32(out + noise_size * normal(rng, count, length))


def logistic(count: int, length: int, rng: np.random.Generator) -> Float[np.ndarray, "count length"]:
    """``x <- r x (1 - x)`` with r from 3.6 to 4 (May 1976)."""
    rate, x = rng.uniform(3.6, 3.999, count), rng.uniform(0.1, 0.9, count)
    out = np.empty((length + BURN_IN, count))
    for t in range(len(out)):
        x = rate * x * (1 - x)
        out[t] = x
    return out[BURN_IN:].T


def henon(count: int, length: int, rng: np.random.Generator) -> Float[np.ndarray, "count length"]:
    """``x, y <- 1 - a x^2 + y, b x`` with a from 1.2 to 1.4 and b = 0.3 (Henon 1976)."""
    a, x = rng.uniform(1.2, 1.4, count), rng.uniform(-0.1, 0.1, count)
    y = np.zeros(count)
    out = np.empty((length + BURN_IN, count))
    for t in range(len(out)):
        x, y = 1 - a * x * x + y, 0.3 * x
        out[t] = x
    return out[BURN_IN:].T


def mackey_glass(count: int, length: int, rng: np.random.Generator) -> Float[np.ndarray, "count length"]:
    """``x' = 0.2 x(t - delay) / (1 + x(t - delay)^10) - 0.1 x`` with delays from 17 to 30 (Mackey and Glass 1977).

    A delay is ``block`` steps, so the input of one block is known from the block before, and each block is one linear
    recurrence.
    """
    block = int(rng.integers(12, 40))
    step = uniform(rng, 17, 30, count) / block
    keep = np.exp(-0.1 * step).astype(np.float32)
    past = uniform(rng, 0.5, 1.3, count) + 0.1 * normal(rng, count, block)
    blocks = []
    for _ in range(-(-(length + 10 * block) // block)):  # the first ten are dropped
        drive = (1 - keep) * 2.0 * past / (1 + np.abs(past) ** 10)
        drive[:, :1] += keep * past[:, -1:]
        past = recurrence(keep, drive)
        blocks.append(past)
    return np.concatenate(blocks, 1)[:, -length:]


def lorenz(count: int, length: int, rng: np.random.Generator) -> Float[np.ndarray, "count length"]:
    """One coordinate of the Lorenz system (1963), sampled at a random speed by interpolation between solver steps."""
    rho = rng.uniform(26, 45, count)
    state = rng.uniform(-10, 10, (3, count)) + np.array([[0.0], [0.0], [25.0]])
    steps = length // 4 + 4
    path = np.empty((steps + BURN_IN, 3, count))
    for t in range(len(path)):
        state = runge_kutta(state, rho, 0.04)
        path[t] = state
    solved = path[BURN_IN:, rng.integers(0, 3, count), np.arange(count)].T
    position = 1 + np.arange(length) * rng.uniform(0.08, 0.25, (count, 1))
    left = np.minimum(position.astype(np.intp), steps - 3)
    neighbours = np.stack([np.take_along_axis(solved, left + k, 1) for k in range(-1, 3)])
    return catmull_rom(neighbours, position - left)


def catmull_rom(
    neighbours: Float[np.ndarray, "4 count length"], part: Float[np.ndarray, "count length"]
) -> Float[np.ndarray, "count length"]:
    """Catmull-Rom interpolation between the second and the third of four neighbours; ``part`` is from 0 to 1."""
    before, left, right, after = neighbours
    slope = (right - before) / 2
    bend = before - 2.5 * left + 2 * right - after / 2
    twist = 1.5 * (left - right) + (after - before) / 2
    return left + part * (slope + part * (bend + part * twist))


def runge_kutta(
    state: Float[np.ndarray, "3 count"], rho: Float[np.ndarray, " count"], step: float
) -> Float[np.ndarray, "3 count"]:
    """One classical fourth-order Runge-Kutta step for the Lorenz system with sigma = 10 and beta = 8 / 3."""
    first = lorenz_slope(state, rho)
    second = lorenz_slope(state + step / 2 * first, rho)
    third = lorenz_slope(state + step / 2 * second, rho)
    fourth = lorenz_slope(state + step * third, rho)
    return state + step / 6 * (first + 2 * (second + third) + fourth)


def lorenz_slope(state: Float[np.ndarray, "3 count"], rho: Float[np.ndarray, " count"]) -> Float[np.ndarray, "3 count"]:
    """Time derivative of the Lorenz system."""
    x, y, z = state
    out = np.empty_like(state)
    out[0] = 10 * (y - x)
    out[1] = x * (rho - z) - y
    out[2] = x * y - 8 / 3 * z
    return out
