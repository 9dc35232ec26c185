"""Confidence intervals from a bootstrap over runs and from profiles of the objective, and a test for a difference."""

import numpy as np
from jaxtyping import Float64, Int64
from scipy import stats

from tsfm.scaling.laws.minimise import Problem, solve

LEVEL = 0.95
PROFILE_POINTS = 33


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


def profile_scale(residual: Float64[np.ndarray, " N"], delta: float, parameters: int) -> float:
    """The factor that makes a rise of the objective chi squared.

    For a Huber loss, twice its rise divided by E psi^2 / E psi' is chi squared. If the width is small compared with the
    noise, E psi' is 2 delta times the density at zero, which is estimated in a window as wide as the noise.
    """
    freedom = max(len(residual) - parameters, 1)
    ordered = np.sort(np.abs(residual))
    spread = 1.4826 * ordered[min(len(ordered) - 1, (len(ordered) + parameters) // 2)]
    width = max(delta, 0.9 * spread * freedom**-0.2)
    # A fit of P constants makes about P residuals vanish; they are left out of the density.
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
    """The interval of a parameter in which its profile is below the critical value; infinite on an open side.

    Args:
        problem: law and runs.
        theta: the best fit.
        column: index of the parameter.
        spread: rough standard error of the parameter, the scale of the search grid.
        clusters: number of runs.
        level: confidence level.
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
        solution = solve(problem, start, free=free)
        rise = scale * (solution.objective - least) - critical
        above = np.flatnonzero(rise > 0)
        if not len(above):
            ends.append(sign * np.inf)
            continue
        j = max(int(above[0]), 1)
        share = -rise[j - 1] / (rise[j] - rise[j - 1])
        ends.append(float(start[j - 1, column] + share * (start[j, column] - start[j - 1, column])))
    return ends[0], ends[1]


def two_sided_p(differences: Float64[np.ndarray, " S"]) -> float:
    """Two-sided p of no difference: twice the share of draws on the rarer side of 0, at least 1 / S."""
    count = len(differences)
    rarer = min((differences <= 0).sum(), (differences >= 0).sum())
    return float(min(1.0, max(2 * rarer, 1) / count))
