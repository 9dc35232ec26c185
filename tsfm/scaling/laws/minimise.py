"""Fits scaling laws by minimising a Huber loss on log loss, or on loss; many fits are solved at once.

Every law here has the form L = E + sum_k exp(X_k theta_k). The term A / N^alpha has X = [1, -log N]. Value, gradient
and Hessian are matrix products with the fixed X_k, so thousands of weighted fits (draws of a bootstrap, starting
points, points of a profile) are one batch. E is a parameter itself, not its logarithm, so that a fit without a floor,
E = 0, is reached in a few steps.

Starting points come from variable projection: for given exponents the law is linear in E, A and B, which leaves a grid
over the two exponents (as in arXiv 2603.22339). From the best of them a damped Newton method minimises the Huber loss
over all constants (the objective of Hoffmann et al. 2022, approach 3; width 1e-3, summed over runs).

Legend: S fits solved at once, N runs, P parameters of the law.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float64, Int64

from tsfm_data.progress import progress

DELTA = 1e-3
STARTS = 24
EXPONENTS = np.geomspace(0.02, 1.6, 28)
LARGEST_EXPONENT = 4.0
CHUNK = 1 << 17  # elements of an [S, N] array that fit into the cache
STEPS = 2000  # largest number of Newton steps
QUIET = 3  # steps in a row with a relative gain below GAIN after which a fit has converged
GAIN = 1e-9
FLAT = 1e-15  # squared scaled gradient per objective below which a point is a minimum
ROUNDING = 1e-22  # an objective of nothing: residuals of 1e-11
NUDGE = 1e-5  # step of the numerical gradient of a quantity

# Values of several quantities of each fit from its parameters.
Quantities = Callable[[Float64[np.ndarray, "S P"]], Float64[np.ndarray, "S Q"]]


@dataclass(frozen=True)
class Solution:
    """Results of a batch of fits.

    Attributes:
        theta: parameters of each fit: E, then those of the terms in order.
        objective: Huber loss summed over runs with their weights.
        converged: whether the fit ended at a minimum, and not by the limit of steps.
    """

    theta: Float64[np.ndarray, "S P"]
    objective: Float64[np.ndarray, " S"]
    converged: Bool[np.ndarray, " S"]

    def best(self) -> "Solution":
        """The fit of the least objective, as a batch of one."""
        k = int(np.argmin(self.objective))
        return Solution(self.theta[k : k + 1], self.objective[k : k + 1], self.converged[k : k + 1])


@dataclass(frozen=True)
class Spring:
    """Pulls a quantity of each fit to a target: ``stiffness (value - target)^2 / 2`` is added to the objective.

    The solution is the best fit among all with the same value: a point of the profile of the quantity.

    Attributes:
        quantities: values of all quantities from the parameters.
        which: number of the quantity that is pulled in each fit.
        target: where it is pulled.
        stiffness: in units of the objective per squared unit of the quantity.
    """

    quantities: Quantities
    which: Int64[np.ndarray, " S"]
    target: Float64[np.ndarray, " S"]
    stiffness: Float64[np.ndarray, " S"]

    def rows(self, chosen: np.ndarray | slice) -> "Spring":
        """The springs of some fits."""
        return Spring(self.quantities, self.which[chosen], self.target[chosen], self.stiffness[chosen])

    def values(self, theta: Float64[np.ndarray, "S P"]) -> Float64[np.ndarray, " S"]:
        """The quantity of each fit."""
        return self.quantities(theta)[np.arange(len(theta)), self.which]

    def energy(self, theta: Float64[np.ndarray, "S P"]) -> Float64[np.ndarray, " S"]:
        """What is added to the objective."""
        return 0.5 * self.stiffness * (self.values(theta) - self.target) ** 2

    def derivatives(self, theta: Float64[np.ndarray, "S P"]) -> tuple[np.ndarray, np.ndarray]:
        """Gradient [S, P] and Gauss-Newton matrix [S, P, P]."""
        slope = slopes(self.quantities, theta)[np.arange(len(theta)), self.which]
        force = self.stiffness * (self.values(theta) - self.target)
        return force[:, None] * slope, self.stiffness[:, None, None] * slope[:, :, None] * slope[:, None, :]


def slopes(quantities: Quantities, theta: Float64[np.ndarray, "S P"]) -> Float64[np.ndarray, "S Q P"]:
    """The numerical gradients of all quantities of each fit, from one call: most of the time is that of calls."""
    count, parameters = theta.shape
    step = NUDGE * np.eye(parameters)[:, None]
    moved = np.concatenate([theta + step, theta - step]).reshape(-1, parameters)
    up, down = quantities(moved).reshape(2, parameters, count, -1)
    return ((up - down) / (2 * NUDGE)).transpose(1, 2, 0)


@dataclass(frozen=True)
class Problem:
    """A law and the runs it is fitted to.

    Attributes:
        terms: X_k of each term, [N, f_k].
        measured: logarithm of the loss of each run, or the loss itself.
        low: smallest value of each parameter.
        high: largest value of each parameter.
        delta: width of the quadratic part of the Huber loss; infinite for least squares.
        log: whether logarithms are measured; losses at or below 0 have none.
        trend: exponents of the noise in the variable of each term; empty if all runs are equally noisy. Residuals are
            divided by the noise of their run, as a multiple of that at the centre of the runs.
    """

    terms: tuple[Float64[np.ndarray, "N _"], ...]
    measured: Float64[np.ndarray, " N"]
    low: Float64[np.ndarray, " P"]
    high: Float64[np.ndarray, " P"]
    delta: float = DELTA
    log: bool = True
    trend: tuple[float, ...] = ()

    @cached_property
    def spread(self) -> Float64[np.ndarray, " N"]:
        """The noise of each run as a multiple of that at the centre of the runs."""
        return self.spread_at(self.terms)

    def spread_at(self, terms: tuple[Float64[np.ndarray, "K _"], ...]) -> Float64[np.ndarray, " K"]:
        """The same of other runs, from their terms."""
        pairs = zip(self.trend, terms, strict=False)
        return np.exp(-sum((power * term[:, 1] for power, term in pairs), np.zeros(len(terms[0]))))

    @property
    def free(self) -> int:
        """Number of parameters that are not fixed."""
        return int((self.low < self.high).sum())

    def slices(self) -> list[slice]:
        """The columns of theta that belong to each term."""
        ends = np.cumsum([1] + [term.shape[1] for term in self.terms])
        return [slice(int(a), int(b)) for a, b in pairwise(ends)]

    def totals(self, theta: Float64[np.ndarray, "S P"]) -> Float64[np.ndarray, "S N"]:
        """The expected loss of every run."""
        pairs = zip(self.slices(), self.terms, strict=True)
        return sum((np.exp(theta[:, columns] @ term.T) for columns, term in pairs), theta[:, :1])

    def parts(
        self, theta: Float64[np.ndarray, "S P"], measured: Float64[np.ndarray, "S N"] | None = None
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Derivatives of what is measured by E and by the exponent of each term, and residuals, each [S, N].

        The former are 1 / L and the share of each term in the loss L if its logarithm is measured, else 1 and the
        terms. All are divided by the noise of their run.

        Args:
            theta: parameters of each fit.
            measured: log losses, or losses, of the runs in each fit; by default those of the problem.
        """
        powers = [np.exp(theta[:, columns] @ term.T) for columns, term in zip(self.slices(), self.terms, strict=True)]
        total = sum(powers, theta[:, :1])
        goal = self.measured if measured is None else measured
        shares, residual = [np.ones_like(total), *powers], total - goal
        if self.log:
            shares, residual = [1 / total, *(power / total for power in powers)], np.log(total) - goal
        if self.trend:
            shares, residual = [share / self.spread for share in shares], residual / self.spread
        return shares, residual

    def residuals(self, theta: Float64[np.ndarray, " P"]) -> Float64[np.ndarray, " N"]:
        """Residuals of one fit: log prediction - log loss, or prediction - loss, divided by the noise of each run."""
        return self.parts(theta[None])[1][0]

    def objective(
        self,
        residual_SN: Float64[np.ndarray, "S N"],
        weight_SN: Float64[np.ndarray, "S N"],
        delta_S1: np.ndarray | float | None = None,
    ) -> Float64[np.ndarray, " S"]:
        """The Huber loss summed over runs."""
        inside = np.minimum(np.abs(residual_SN), self.delta if delta_S1 is None else delta_S1)
        return np.einsum("sn,sn->s", weight_SN, inside * (np.abs(residual_SN) - 0.5 * inside))

    def jacobian(self, theta: Float64[np.ndarray, " P"]) -> Float64[np.ndarray, "N P"]:
        """Derivatives of the residuals of one fit."""
        shares, _ = self.parts(theta[None])
        return np.concatenate(
            [shares[0].T, *(share.T * term for share, term in zip(shares[1:], self.terms, strict=True))], axis=1
        )

    def derivatives(
        self, shares: Sequence[np.ndarray], residual_SN: np.ndarray, weight_SN: np.ndarray, delta_S1: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Gradient [S, P], Hessian [S, P, P], and the diagonal [S, P] of the reweighted Gauss-Newton matrix."""
        size, count = len(residual_SN), len(self.low)
        gradient, hessian, scale = np.empty((size, count)), np.empty((size, count, count)), np.empty((size, count))
        absolute = np.abs(residual_SN)
        slope = weight_SN * np.clip(residual_SN, -delta_S1, delta_S1)
        # The logarithm of a sum curves by minus the product of its shares, a plain sum does not.
        bend = slope * self.spread if self.trend else slope
        curvature = np.where(absolute <= delta_S1, weight_SN, 0.0) - (bend if self.log else 0.0)
        irls = weight_SN * np.minimum(1.0, delta_S1 / np.maximum(absolute, 1e-300))
        columns = [slice(0, 1), *self.slices()]
        terms = [np.ones((len(self.measured), 1)), *self.terms]
        for k, (own, term, share) in enumerate(zip(columns, terms, shares, strict=True)):
            gradient[:, own] = (slope * share) @ term
            scale[:, own] = (irls * share * share) @ (term * term)
            for m in range(k, len(columns)):
                cross = curvature * share * shares[m]
                if m == k > 0:  # the law is linear in E
                    cross += slope * share
                products = (term[:, :, None] * terms[m][:, None, :]).reshape(len(term), -1)
                block = (cross @ products).reshape(size, term.shape[1], -1)
                hessian[:, own, columns[m]] = block
                hessian[:, columns[m], own] = block.transpose(0, 2, 1)
        return gradient, hessian, scale


@dataclass(frozen=True)
class _Batch:
    """What differs between the fits of a batch."""

    weight: Float64[np.ndarray, "S N"]
    target: Float64[np.ndarray, "S N"]
    delta: Float64[np.ndarray, "S 1"]
    spring: Spring | None

    def rows(self, chosen: np.ndarray | slice) -> "_Batch":
        spring = None if self.spring is None else self.spring.rows(chosen)
        return _Batch(self.weight[chosen], self.target[chosen], self.delta[chosen], spring)


def solve(
    problem: Problem,
    start: Float64[np.ndarray, "S P"],
    weight: Float64[np.ndarray, "S N"] | None = None,
    measured: Float64[np.ndarray, "S N"] | None = None,
    delta: Float64[np.ndarray, " S"] | None = None,
    spring: Spring | None = None,
    steps: int = STEPS,
) -> Solution:
    """Minimise the Huber loss of every fit by a damped Newton method.

    Args:
        problem: law and runs.
        start: starting point of each fit.
        weight: weight of each run in each fit (how often the bootstrap drew it); 1 by default.
        measured: log losses, or losses, of the runs in each fit; by default those of the problem.
        delta: width of the Huber loss in each fit; by default that of the problem.
        spring: pulls a quantity of each fit to a target; the objective that is returned is without it.
        steps: largest number of Newton steps.
    """
    count, runs = len(start), len(problem.measured)
    batch = _Batch(
        np.broadcast_to(1.0, (count, runs)) if weight is None else weight,
        np.broadcast_to(problem.measured, (count, runs)) if measured is None else measured,
        np.full((count, 1), problem.delta) if delta is None else delta[:, None],
        spring,
    )
    size = max(1, CHUNK // max(1, runs))
    chunks = [slice(i, i + size) for i in range(0, max(count, 1), size)]
    parts = [_solve_chunk(problem, start[c].copy(), batch.rows(c), steps) for c in progress(chunks, "fit")]
    return Solution(
        np.concatenate([p.theta for p in parts]),
        np.concatenate([p.objective for p in parts]),
        np.concatenate([p.converged for p in parts]),
    )


def _solve_chunk(problem: Problem, theta: np.ndarray, batch: _Batch, steps: int) -> Solution:
    """Levenberg-Marquardt with the exact Hessian; fits that have converged are not computed further."""
    theta = np.clip(theta, problem.low, problem.high)
    best = _value(problem, theta, batch)
    damping, quiet = np.ones(len(theta)), np.zeros(len(theta), int)
    active, held = np.arange(len(theta)), batch
    for _ in range(steps if len(theta) else 0):
        current = theta[active]
        step, steepness = _newton_step(problem, current, held, damping[active])
        trial = np.clip(current - step, problem.low, problem.high)
        value = _value(problem, trial, held)
        gain = best[active] - value
        better = gain > 0
        quiet[active] = np.where(better & (gain <= GAIN * best[active] + ROUNDING), quiet[active] + 1, 0)
        quiet[active[steepness <= FLAT * best[active] + ROUNDING]] = QUIET
        theta[active[better]], best[active[better]] = trial[better], value[better]
        damping[active] = np.clip(np.where(better, damping[active] * 0.2, damping[active] * 5.0), 1e-9, 1e9)
        go_on = (quiet[active] < QUIET) & (damping[active] < 1e8)
        if not go_on.all():
            active, held = active[go_on], held.rows(go_on)
        if not len(active):
            break
    if batch.spring is not None:
        best = best - batch.spring.energy(theta)
    return Solution(theta, best, quiet >= QUIET)


def _value(problem: Problem, theta: np.ndarray, batch: _Batch) -> np.ndarray:
    """What is minimised."""
    value = problem.objective(problem.parts(theta, batch.target)[1], batch.weight, batch.delta)
    return value if batch.spring is None else value + batch.spring.energy(theta)


def _newton_step(
    problem: Problem, theta: np.ndarray, batch: _Batch, damping: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Steps [S, P] of the damped system, in which parameters that would leave their range stay; squared gradients."""
    shares, residual = problem.parts(theta, batch.target)
    gradient, hessian, scale = problem.derivatives(shares, residual, batch.weight, batch.delta)
    if batch.spring is not None:
        force, stiffness = batch.spring.derivatives(theta)
        gradient, hessian = gradient + force, hessian + stiffness
        scale = scale + np.diagonal(stiffness, axis1=1, axis2=2)
    free = ~((theta <= problem.low) & (gradient > 0) | (theta >= problem.high) & (gradient < 0))
    count = gradient.shape[1]
    floor = scale.max(axis=1, keepdims=True) * 1e-9 + 1e-300
    matrix = hessian * (free[:, :, None] & free[:, None, :])
    matrix[:, range(count), range(count)] += np.where(free, damping[:, None], 1.0) * (scale + floor)
    size = np.sqrt(scale + floor)  # scaled so that no step is lost to rounding
    scaled = matrix / (size[:, :, None] * size[:, None, :])
    scaled[:, range(count), range(count)] += 1e-13
    scaled_gradient = gradient * free / size
    return np.linalg.solve(scaled, scaled_gradient[..., None])[..., 0] / size, (scaled_gradient**2).sum(axis=1)
