"""Compute-optimal size from minima over training curves (approach 1) and from IsoFLOP profiles (approach 2).

Even without noise, approach 2 is biased if the parabolas are wide or off centre, or if alpha and beta differ (Czech et
al. 2026, arXiv 2603.22339). Applying it to the noise-free losses of the joint law shows the bias.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from scipy.cluster.hierarchy import fcluster, linkage

from tsfm.scaling.laws.bootstrap import cluster_weights, percentile_interval
from tsfm.scaling.laws.form import JointLaw
from tsfm.scaling.runs.ledger import Runs, distinct

SPAN = 0.2  # decades of compute that one budget may span
FEWEST_SIZES = 5  # sizes needed for a parabola
FEWEST_BUDGETS = 3
NEAR = 3.0  # ratio to the size of least loss up to which sizes belong to a parabola; five sizes at least
SAME_SIZE = 0.02  # difference of logarithms of equal sizes
DRAWS = 1000
GRID = 40  # number of budgets at which training curves are compared


@dataclass(frozen=True)
class Optimum:
    """Compute-optimal sizes by one approach.

    Attributes:
        flops: budgets.
        params: the best size at each budget.
        exponent: a in N_opt ~ C^a.
        ci: 95 % interval of a.
    """

    flops: Float64[np.ndarray, " K"]
    params: Float64[np.ndarray, " K"]
    exponent: float
    ci: tuple[float, float]


@dataclass(frozen=True)
class Parabola:
    """One IsoFLOP profile: loss = c0 + c1 u + c2 u^2 with u = log N - center."""

    flops: float
    rows: Int64[np.ndarray, " K"]
    coefficients: tuple[float, float, float]
    center: float


def budgets(flops: Float64[np.ndarray, " N"], span: float = SPAN) -> list[Int64[np.ndarray, " K"]]:
    """Rows grouped by compute, the smallest first; a group spans at most ``span`` decades."""
    if len(flops) < 2:
        return [np.arange(len(flops))]
    logs = np.log10(flops)
    labels = fcluster(linkage(logs[:, None], method="complete"), t=span, criterion="distance")
    groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return sorted(groups, key=lambda rows: float(logs[rows].mean()))


def parabolas(runs: Runs) -> list[Parabola]:
    """The IsoFLOP profiles whose minimum lies among the sizes that were run."""
    profiles = []
    for group in budgets(runs.flops):
        rows = _around_minimum(runs, group)
        if distinct(runs.params[rows]) < FEWEST_SIZES:
            continue
        size = np.log(runs.params[rows])
        center = float(size.mean())
        c = _weighted_parabola(size - center, runs.loss[rows], np.ones((1, len(rows))))[0]
        if c[2] > 0 and size.min() < center - c[1] / (2 * c[2]) < size.max():
            budget = float(np.exp(np.log(runs.flops[rows]).mean()))
            profiles.append(Parabola(budget, rows, (float(c[0]), float(c[1]), float(c[2])), center))
    return profiles


def _around_minimum(runs: Runs, rows: Int64[np.ndarray, " K"]) -> Int64[np.ndarray, " M"]:
    """The rows near the size of least loss: far from it the profile is no parabola."""
    size = np.log(runs.params[rows])
    apart = np.abs(size - size[np.argmin(runs.loss[rows])])
    sizes = np.unique(np.round(apart / SAME_SIZE))
    reach = max(np.log(NEAR), SAME_SIZE * (sizes[min(FEWEST_SIZES, len(sizes)) - 1] + 0.5))
    return rows[apart <= reach]


def isoflop(runs: Runs, profiles: list[Parabola], seed: int = 0) -> Optimum | None:
    """Approach 2: the minima of the profiles and the slope of their logarithms; None with fewer than three profiles."""
    if len(profiles) < FEWEST_BUDGETS:
        return None
    weights = np.concatenate([np.ones((1, len(runs))), cluster_weights(runs.clusters, DRAWS, seed)])
    minima = np.stack([_minima(each, runs.loss, runs.params, weights) for each in profiles], axis=1)
    return _slope(np.array([each.flops for each in profiles]), minima)


def isoflop_bias(runs: Runs, profiles: list[Parabola], law: JointLaw) -> dict[str, float] | None:
    """The result of approach 2 on losses predicted by the joint law, compared with the truth under that law."""
    if len(profiles) < FEWEST_BUDGETS:
        return None
    loss = np.asarray(law.loss(runs.params, runs.tokens))
    minima = np.stack([_minima(each, loss, runs.params, np.ones((1, len(runs)))) for each in profiles], axis=1)
    if not np.isfinite(minima).all():
        return None
    flops = np.array([each.flops for each in profiles])
    slope = float(np.polyfit(np.log(flops), minima[0], 1)[0])
    ratio = np.exp(minima[0]) / np.asarray(law.optimal_params(flops))
    return {
        "exponent_found": slope,
        "exponent_true": float(law.size_exponent),
        "size_ratio_smallest_budget": float(ratio[0]),
        "size_ratio_largest_budget": float(ratio[-1]),
    }


def curve_minima(runs: Runs, seed: int = 0) -> Optimum | None:
    """Approach 1: at each budget the size with the lowest training curve; None without enough curves."""
    if not runs.has_curves:
        return None
    count = runs.runs
    sizes = np.array([np.log(runs.params[runs.clusters == k][0]) for k in range(count)])
    grid = np.linspace(np.log(runs.flops.min()), np.log(runs.flops.max()), GRID)
    table_KG = np.full((count, GRID), np.inf)
    for k in range(count):
        rows = np.flatnonzero(runs.clusters == k)
        rows = rows[np.argsort(runs.flops[rows], kind="stable")]
        x, y = np.log(runs.flops[rows]), runs.loss[rows]
        table_KG[k] = np.interp(grid, x, y, left=np.inf, right=np.inf)
    drawn = cluster_weights(np.arange(count), DRAWS, seed) > 0
    best_sizes = np.full((DRAWS + 1, GRID), np.nan)
    for i, present in enumerate([np.ones(count, bool), *drawn]):
        part, present_sizes = table_KG[present], sizes[present]
        best = present_sizes[np.argmin(part, axis=0)]
        inner = np.isfinite(part).any(axis=0) & (best > present_sizes.min()) & (best < present_sizes.max())
        best_sizes[i, inner] = best[inner]
    usable = np.isfinite(best_sizes[0])
    if usable.sum() < FEWEST_BUDGETS or distinct(np.exp(best_sizes[0, usable])) < FEWEST_BUDGETS:
        return None
    return _slope(np.exp(grid[usable]), best_sizes[:, usable])


def _weighted_parabola(u: np.ndarray, loss: np.ndarray, weight_SK: np.ndarray) -> Float64[np.ndarray, "S 3"]:
    """Coefficients of weighted least squares; NaN for a draw with fewer than three sizes."""
    X = np.stack([np.ones_like(u), u, u * u], axis=1)
    matrix = np.einsum("sk,ki,kj->sij", weight_SK, X, X)
    right = np.einsum("sk,ki,k->si", weight_SK, X, loss)
    good = np.linalg.det(matrix) > 1e-10 * np.prod(np.diagonal(matrix, axis1=1, axis2=2), axis=1)
    matrix[~good] = np.eye(3)
    result = np.linalg.solve(matrix, right[..., None])[..., 0]
    result[~good] = np.nan
    return result


def _minima(profile: Parabola, loss: np.ndarray, params: np.ndarray, weights: np.ndarray) -> Float64[np.ndarray, " S"]:
    """Log of the best size of a profile in every draw; NaN if the parabola has no minimum."""
    size = np.log(params[profile.rows])
    c = _weighted_parabola(size - profile.center, loss[profile.rows], weights[:, profile.rows])
    positive = c[:, 2] > 0
    vertex = profile.center - c[:, 1] / np.where(positive, 2 * c[:, 2], np.nan)
    return np.clip(vertex, size.min() - 1, size.max() + 1)


def _slope(flops: np.ndarray, sizes_SK: np.ndarray) -> Optimum | None:
    """Slope of log size on log compute: the first row gives the estimate, the others its interval."""
    x = np.log(flops)
    known = np.isfinite(sizes_SK)
    y = np.where(known, sizes_SK, 0.0)
    weight = known / np.maximum(known.sum(axis=1, keepdims=True), 1)
    dx = np.where(known, x - (weight * x).sum(axis=1, keepdims=True), 0.0)
    bottom = (dx**2).sum(axis=1)
    slopes = np.where(bottom > 0, (dx * y).sum(axis=1) / np.where(bottom > 0, bottom, 1.0), np.nan)
    draws = slopes[1:][(known[1:].sum(axis=1) >= FEWEST_BUDGETS) & np.isfinite(slopes[1:])]
    if len(draws) < DRAWS // 2:
        return None
    low, high = percentile_interval(draws[:, None])[:, 0]
    return Optimum(flops, np.exp(sizes_SK[0]), float(slopes[0]), (float(low), float(high)))
