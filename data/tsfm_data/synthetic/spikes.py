"""Periodic spikes and trapezoids, as of machines and schedules; after the synthetic corpus of Reverso."""

import numpy as np
from jaxtyping import Float, Float32

from tsfm_data.synthetic.sampling import chance, log_uniform, noise, slow_curve, to_float32, uniform

WEIGHT = 0.03
ABOUT = "periodic spikes"


def spikes(count: int, length: int, rng: np.random.Generator) -> Float[np.ndarray, "count length"]:
    """Periodic trapezoids, up or down, some with varying heights or skipped periods, plus noise.

    Args:
        count: series.
        length: steps of each.
        rng: source of randomness.
    """
    longest = max(length / 8, 17.0)
    period = np.round(log_uniform(rng, 5, longest, count))
    time = np.arange(length, dtype=np.float32) + np.floor(rng.random((count, 1)) * period).astype(np.float32)
    turn = np.floor(time / period)
    share = log_uniform(rng, 0.03, 0.8, count)
    edges = np.where(chance(rng, 0.4, count), uniform(rng, 0, 0.5, count), 0)  # vertical edges in most
    x = trapezoid(time / period - turn, share, edges)
    # Height and skipping are sampled once per period.
    turns = turn.astype(np.intp)
    height = np.exp(uniform(rng, 0.1, 0.6, count) * rng.standard_normal((count, turns.max(initial=0) + 1)))
    height = np.where(chance(rng, 0.3, count), height, 1)
    skipped = (rng.random(height.shape) < uniform(rng, 0.05, 0.3, count)) & chance(rng, 0.2, count)
    x *= np.take_along_axis(np.where(skipped, 0, height).astype(np.float32), turns, 1)
    sign = np.where(chance(rng, 0.75, count), np.float32(1), np.float32(-1))
    x *= sign * uniform(rng, 0.5, 3, count)
    x += np.where(chance(rng, 0.3, count), uniform(rng, 0.2, 1, count), 0) * slow_curve(rng, count, length)
    return to_float32(x + log_uniform(rng, 0.01, 0.3, count) * noise(rng, count, length))


def trapezoid(
    phase: Float32[np.ndarray, "count length"],
    share: Float32[np.ndarray, "count 1"],
    edges: Float[np.ndarray, "count 1"],
) -> Float32[np.ndarray, "count length"]:
    """A rise from 0 to 1, a plateau and a fall within the first ``share`` of every period, else 0.

    Args:
        phase: position in the period, from 0 to 1.
        share: part of the period that is not zero.
        edges: part of ``share`` that the rise takes, and the fall, too; at most a half.
    """
    slope = np.maximum(edges * share, 1e-4).astype(np.float32)
    rise, fall = (phase + 0.02) / slope, (share - phase) / slope
    return np.clip(np.minimum(rise, fall), 0, 1).astype(np.float32)
