"""A bootstrap over runs."""

import numpy as np
from jaxtyping import Float64, Int64

LEVEL = 0.95


def cluster_weights(clusters: Int64[np.ndarray, " N"], draws: int, seed: int) -> Float64[np.ndarray, "S N"]:
    """How often each row is in each draw of a bootstrap that draws whole clusters with replacement.

    Args:
        clusters: the run that each row belongs to, counted from 0.
        draws: number of draws.
        seed: random seed.
    """
    count = int(clusters.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)
    return drawn[:, clusters].astype(np.float64)


def percentile_interval(draws: Float64[np.ndarray, "S P"], level: float = LEVEL) -> Float64[np.ndarray, "2 P"]:
    """Percentile intervals by column."""
    return np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2], axis=0)
