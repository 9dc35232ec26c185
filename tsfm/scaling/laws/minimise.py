"""Fits scaling laws by minimising a Huber loss on log loss; many fits are solved at once.

Every law here has the form log L = logsumexp_k(X_k theta_k). The constant E is the term with X = [1], and A / N^alpha
the term with X = [1, -log N]. Value, gradient and Hessian are matrix products with the fixed X_k, so thousands of
weighted fits (draws of a bootstrap, starting points, points of a profile) are one batch.

Starting points come from variable projection: for given exponents the law is linear in E, A and B, which leaves a grid
over the two exponents (as in arXiv 2603.22339). From the best of them a damped Newton method minimises the Huber loss
over all constants (the objective of Hoffmann et al. 2022, approach 3; width 1e-3, summed over runs).

Legend: S fits solved at once, N runs, P parameters of the law.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float64

from tsfm_data.progress import progress

DELTA = 1e-3
STARTS = 24
EXPONENTS = np.geomspace(0.02, 1.6, 28)
LARGEST_EXPONENT = 4.0
CHUNK = 1 << 17  # elements of an [S, N] array that fit into the cache


@dataclass(frozen=True)
class Solution:
    """Results of a batch of fits.

    Attributes:
        theta: parameters of each fit, in the order of the terms.
        objective: Huber loss summed over runs with their weights.
    """

    theta: Float64[np.ndarray, "S P"]
    objective: Float64[np.ndarray, " S"]


@dataclass(frozen=True)
class Problem:
    """A law and the runs it is fitted to.

    Attributes:
        terms: X_k of each term, [N, f_k].
        log_loss: logarithm of the loss of each run.
        low: smallest value of each parameter.
        high: largest value of each parameter.
        delta: width of the quadratic part of the Huber loss; infinite for least squares.
    """

    terms: tuple[Float64[np.ndarray, "N _"], ...]
    log_loss: Float64[np.ndarray, " N"]
    low: Float64[np.ndarray, " P"]
    high: Float64[np.ndarray, " P"]
    delta: float = DELTA

    def slices(self) -> list[slice]:
        """The columns of theta that belong to each term."""
        ends = np.cumsum([0] + [term.shape[1] for term in self.terms])
        return [slice(int(a), int(b)) for a, b in pairwise(ends)]

    def parts(
        self, theta: Float64[np.ndarray, "S P"], log_loss: Float64[np.ndarray, "S N"] | None = None
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Share of each term in the loss, and residuals log prediction - log loss, each [S, N].

        Args:
            theta: parameters of each fit.
            log_loss: log loss of the runs in each fit; by default that of the problem.
        """
        logs = [theta[:, columns] @ term.T for columns, term in zip(self.slices(), self.terms, strict=True)]
        top = logs[0]
        for log in logs[1:]:
            top = np.maximum(top, log)
        powers = [np.exp(log - top) for log in logs]
        total = sum(powers[1:], powers[0])
        return [power / total for power in powers], top + np.log(total) - (
            self.log_loss if log_loss is None else log_loss
        )

    def residuals(self, theta: Float64[np.ndarray, " P"]) -> Float64[np.ndarray, " N"]:
        """Residuals log prediction - log loss of one fit."""
        return self.parts(theta[None])[1][0]

    def objective(
        self, residual_SN: Float64[np.ndarray, "S N"], weight_SN: Float64[np.ndarray, "S N"]
    ) -> Float64[np.ndarray, " S"]:
        """The Huber loss summed over runs."""
        inside = np.minimum(np.abs(residual_SN), self.delta)
        return np.einsum("sn,sn->s", weight_SN, inside * (np.abs(residual_SN) - 0.5 * inside))

    def derivatives(
        self, shares: Sequence[np.ndarray], residual_SN: np.ndarray, weight_SN: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Gradient [S, P], Hessian [S, P, P], and the diagonal [S, P] of the reweighted Gauss-Newton matrix."""
        size, count = len(residual_SN), len(self.low)
        gradient, hessian, scale = np.empty((size, count)), np.empty((size, count, count)), np.empty((size, count))
        absolute = np.abs(residual_SN)
        slope = weight_SN * np.clip(residual_SN, -self.delta, self.delta)
        curvature = np.where(absolute <= self.delta, weight_SN, 0.0) - slope
        irls = weight_SN * np.minimum(1.0, self.delta / np.maximum(absolute, 1e-300))
        slices = self.slices()
        for k, (columns, term, share) in enumerate(zip(slices, self.terms, shares, strict=True)):
            gradient[:, columns] = (slope * share) @ term
            scale[:, columns] = (irls * share * share) @ (term * term)
            for m in range(k, len(slices)):
                cross = curvature * share * shares[m]
                if m == k:
                    cross += slope * share
                products = (term[:, :, None] * self.terms[m][:, None, :]).reshape(len(term), -1)
                block = (cross @ products).reshape(size, term.shape[1], -1)
                hessian[:, columns, slices[m]] = block
                hessian[:, slices[m], columns] = block.transpose(0, 2, 1)
        return gradient, hessian, scale


def solve(
    problem: Problem,
    start: Float64[np.ndarray, "S P"],
    weight: Float64[np.ndarray, "S N"] | None = None,
    free: Bool[np.ndarray, "S P"] | None = None,
    log_loss: Float64[np.ndarray, "S N"] | None = None,
    steps: int = 150,
) -> Solution:
    """Minimise the Huber loss of every fit by a damped Newton method.

    Args:
        problem: law and runs.
        start: starting point of each fit.
        weight: weight of each run in each fit (how often the bootstrap drew it); 1 by default.
        free: parameters that may move; all by default.
        log_loss: log loss of the runs in each fit; by default that of the problem.
        steps: largest number of Newton steps.
    """
    weights = np.ones((len(start), len(problem.log_loss))) if weight is None else weight
    frees = np.ones(start.shape, bool) if free is None else free
    size = max(1, CHUNK // max(1, len(problem.log_loss)))
    targets = np.broadcast_to(problem.log_loss, weights.shape) if log_loss is None else log_loss
    chunks = [slice(i, i + size) for i in range(0, len(start), size)]
    parts = [
        _solve_chunk(problem, start[c].copy(), weights[c], frees[c], targets[c], steps) for c in progress(chunks, "fit")
    ]
    return Solution(np.concatenate([p.theta for p in parts]), np.concatenate([p.objective for p in parts]))


def _solve_chunk(
    problem: Problem, theta: np.ndarray, weight: np.ndarray, free: np.ndarray, target: np.ndarray, steps: int
) -> Solution:
    """Levenberg-Marquardt with the exact Hessian; fits that have converged are not computed further."""
    theta = np.clip(theta, problem.low, problem.high)
    _, residual = problem.parts(theta, target)
    best = problem.objective(residual, weight)
    damping, quiet = np.ones(len(theta)), np.zeros(len(theta), int)
    active = np.arange(len(theta))
    for _ in range(steps):
        current, held, aim = theta[active], weight[active], target[active]
        shares, residual = problem.parts(current, aim)
        gradient, hessian, scale = problem.derivatives(shares, residual, held)
        step = _newton_step(gradient, hessian, scale, damping[active], free[active])
        trial = np.clip(current - step, problem.low, problem.high)
        value = problem.objective(problem.parts(trial, aim)[1], held)
        gain = best[active] - value
        better = gain > 0
        theta[active[better]], best[active[better]] = trial[better], value[better]
        damping[active] = np.clip(np.where(better, damping[active] * 0.2, damping[active] * 5.0), 1e-9, 1e9)
        small = gain <= 1e-9 * best[active]
        quiet[active] = np.where(small & better, quiet[active] + 1, np.where(better, 0, quiet[active]))
        active = active[(quiet[active] < 3) & (damping[active] < 1e8)]
        if not len(active):
            break
    return Solution(theta, best)


def _newton_step(
    gradient: np.ndarray, hessian: np.ndarray, scale: np.ndarray, damping: np.ndarray, free: np.ndarray
) -> np.ndarray:
    """Steps [S, P] of the damped system; parameters that are not free stay."""
    count = gradient.shape[1]
    floor = scale.max(axis=1, keepdims=True) * 1e-9 + 1e-300
    diagonal = damping[:, None] * (scale + floor)
    matrix = hessian * (free[:, :, None] & free[:, None, :])
    matrix[:, range(count), range(count)] += np.where(free, diagonal, scale + floor)
    size = np.sqrt(scale + floor)  # scaled so that no step is lost to rounding
    scaled = matrix / (size[:, :, None] * size[:, None, :])
    scaled[:, range(count), range(count)] += 1e-13
    return np.linalg.solve(scaled, (gradient * free / size)[..., None])[..., 0] / size
