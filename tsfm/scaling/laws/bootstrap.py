"""Intervals: bootstrap over runs, and profiles of the objective; and the test whether two laws differ."""

import numpy as np
from jaxtyping import Float64, Int64
from scipy import stats

from tsfm.scaling.laws.minimise import Problem, solve

LEVEL = 0.95
PROFILE_POINTS = 33


def cluster_weights(clusters: Int64[np.ndarray, " N"], draws: int, seed: int) -> Float64[np.ndarray, "S N"]:
    """How often each draw of a bootstrap holds each row: whole clusters are drawn with replacement.

    Args:
        clusters: the run that each row belongs to, counted from 0.
        draws: number of draws.
        seed: of the draws.
    """
    count = int(clusters.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)
    return drawn[:, clusters].astype(np.float64)


def percentile_interval(draws: Float64[np.ndarray, "S P"], level: float = LEVEL) -> Float64[np.ndarray, "2 P"]:
    """Percentile intervals by column."""
    return np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2], axis=0)


def profile_scale(residual: Float64[np.ndarray, " N"], delta: float, parameters: int) -> float:
    """What a rise of the objective is multiplied by to be distributed as chi squared.

    For a Huber loss twice its rise is chi squared after division by E psi^2 / E psi'. Where the width is small against
    the noise, E psi' is 2 delta times the density at zero, which is estimated in a window as wide as the noise.
    """
    freedom = max(len(residual) - parameters, 1)
    ordered = np.sort(np.abs(residual))
    spread = 1.4826 * ordered[min(len(ordered) - 1, (len(ordered) + parameters) // 2)]
    width = max(delta, 0.9 * spread * freedom**-0.2)
    # A fit of P constants makes about P residuals vanish; they say nothing of the density.
    near = max(float((np.abs(residual) <= width).sum()) - parameters, 1.0)
    bend = near / freedom * delta / width if np.isfinite(delta) else 1.0
    slope = float((np.clip(residual, -delta, delta) ** 2).sum()) / freedom
    return 2 * min(bend, 1.0) / max(slope, 1e-300)


def profile_interval(
    problem: Problem,
    theta: Float64[np.ndarray, " P"],
    column: int,
    spread: float,
    clusters: int,
    level: float = LEVEL,
) -> tuple[float, float]:
    """Where the profile of one parameter crosses the critical value; infinite on a side where it never does.

    Args:
        problem: law and runs.
        theta: the best fit.
        column: the parameter.
        spread: about the standard error of the parameter, to place the grid.
        clusters: number of runs.
        level: of the interval.
    """
    residual = problem.residuals(theta)
    least = float(problem.objective(residual[None], np.ones((1, len(residual))))[0])
    scale = profile_scale(residual, problem.delta, len(theta))
    critical = float(stats.f.ppf(level, 1, max(clusters - len(theta), 1)))
    ends = []
    for sign in (-1.0, 1.0):
        offsets = sign * spread * np.linspace(0.0, 8.0, PROFILE_POINTS)
        start = np.repeat(theta[None], len(offsets), axis=0)
        start[:, column] = np.clip(theta[column] + offsets, problem.low[column], problem.high[column])
        free = np.ones(start.shape, bool)
        free[:, column] = False
        found = solve(problem, start, free=free)
        rise = scale * (found.objective - least) - critical
        above = np.flatnonzero(rise > 0)
        if not len(above):
            ends.append(sign * np.inf)
            continue
        j = max(int(above[0]), 1)
        share = -rise[j - 1] / (rise[j] - rise[j - 1])
        ends.append(float(start[j - 1, column] + share * (start[j, column] - start[j - 1, column])))
    return ends[0], ends[1]


def two_sided_share(differences: Float64[np.ndarray, " S"]) -> float:
    """Two-sided p of no difference: twice the share of draws on the rarer side of 0, at least 1 / S."""
    count = len(differences)
    rarer = min((differences <= 0).sum(), (differences >= 0).sum())
    return float(min(1.0, max(2 * rarer, 1) / count))
