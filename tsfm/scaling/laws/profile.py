"""Confidence intervals from the profile of the objective: all values that some law close to the best one gives.

The interval of a quantity (a constant, a planned size, a loss) holds the values for which the best law with that value
fits hardly worse than the best law of all. Its critical value is that of Student's F, so it holds for few runs, too:
coverage is measured by ``python benchmarks/scaling.py --part coverage``.

- The objective is a Huber loss whose width follows the noise (Huber 1964, proposal 2): nearly as efficient as least
  squares on normal noise, hardly moved by outliers. The width 1e-3 of the point estimate is far below the usual noise:
  it minimises absolute errors, whose profile has steps.
- If runs share a training, the rise of the objective is divided by the ratio of the cluster-robust variance of the
  quantity to its variance for independent runs (Chandler and Bate 2007; CR2 of Bell and McCaffrey 2002).
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy import stats

from tsfm.scaling.laws.minimise import Problem, Quantities, Spring, slopes, solve

LEVEL = 0.95
WIDTH = 1.345  # Huber width in standard deviations: 95 % efficient for normal noise
WIDTH_ROUNDS = 12
PULL = 100.0  # stiffness of the springs compared with the profile
ROUNDS = 30  # of the search for an end
STEPS = 150  # Newton steps of a fit in the search
WIDEST = 10.0  # largest standard error that scales the search
FARTHEST = 200.0  # logarithm beyond which a quantity counts as infinite
TINY = 1e-9  # least noise of log loss
EXPANSION = 2.0  # how much farther than before a search goes at most
CLOSE = 2e-3  # relative error of the square root of the rise at an end
STUCK = 1e-9  # relative movement below which a quantity has reached the end of its range


@dataclass(frozen=True)
class Profile:
    """The best law at a Huber width that follows the noise, and what its intervals need.

    Attributes:
        problem: law and runs, with that width.
        theta: the best fit.
        least: its objective.
        noise: standard deviation of log loss about the law, robust.
        clusters: number of the training of each row, from 0.
    """

    problem: Problem
    theta: Float64[np.ndarray, " P"]
    least: float
    noise: float
    clusters: Int64[np.ndarray, " N"]

    @property
    def shared(self) -> bool:
        """Whether several rows share a training."""
        return int(self.clusters.max()) + 1 < len(self.clusters)

    @property
    def freedom(self) -> int:
        """Degrees of freedom: independent trainings without one for each constant."""
        return max(int(self.clusters.max()) + 1 - len(self.theta), 1)

    @property
    def unit(self) -> float:
        """The rise of the objective that corresponds to an F of 1."""
        return huber_unit(self.problem.residuals(self.theta), self.problem.delta, len(self.theta))

    def covariance(self) -> tuple[Float64[np.ndarray, "P P"], Float64[np.ndarray, "P P"]]:
        """Covariance of the constants for independent rows, and the one that is robust to shared trainings."""
        J = self.problem.jacobian(self.theta)
        residual = self.problem.residuals(self.theta)
        psi = np.clip(residual, -self.problem.delta, self.problem.delta)
        size = np.linalg.norm(J, axis=0) + 1e-300
        J = J / size
        inverse = np.linalg.pinv(J.T @ J, rcond=1e-14, hermitian=True)
        variance = float(psi @ psi) / max(len(psi) - len(self.theta), 1)
        plain = variance * inverse
        middle = np.zeros_like(inverse)
        for k in range(int(self.clusters.max()) + 1):
            part = J[self.clusters == k]
            values, vectors = np.linalg.eigh(np.eye(len(part)) - part @ inverse @ part.T)
            share = vectors.T @ psi[self.clusters == k] / np.sqrt(np.maximum(values, 1e-8))
            score = part.T @ (vectors @ share)
            middle += np.outer(score, score)
        scale = np.outer(size, size)
        return plain / scale, inverse @ middle @ inverse / scale

    def intervals(self, quantities: Quantities, level: float = LEVEL) -> Float64[np.ndarray, "2 Q"]:
        """Intervals of several quantities; an end is infinite where no value of the quantity is excluded.

        Args:
            quantities: their values from parameters of the law.
            level: confidence level.
        """
        center = quantities(self.theta[None])[0]
        search, moving = self._search(quantities, level)
        ends = np.stack([center, center])
        if search is not None:
            ends[:, moving] = search.ends()
        return ends

    def contain(
        self, quantities: Quantities, values: Float64[np.ndarray, " Q"], level: float = LEVEL
    ) -> Bool[np.ndarray, " Q"]:
        """Whether the interval of each quantity contains a value; much faster than the intervals.

        Args:
            quantities: their values from parameters of the law.
            values: one for each.
            level: confidence level.
        """
        inside = quantities(self.theta[None])[0] == values
        search, moving = self._search(quantities, level)
        if search is not None:
            inside[moving] = search.contain(values[moving])
        return inside

    def _search(self, quantities: Quantities, level: float) -> "tuple[_Search | None, Bool[np.ndarray, ' Q']]":
        """The search for the ends of the quantities that depend on the law, and which these are."""
        count = quantities(self.theta[None]).shape[1]
        slope_QP = np.stack(
            [slopes(lambda theta, k=k: quantities(theta)[:, k], self.theta[None])[0] for k in range(count)]
        )
        plain, robust = self.covariance()
        variance = np.einsum("qp,pr,qr->q", slope_QP, plain, slope_QP)
        moving = variance > TINY**2
        if not moving.any():
            return None, moving
        slope, spread = slope_QP[moving], np.sqrt(variance[moving])
        ratio = np.einsum("qp,pr,qr->q", slope, robust, slope) / spread**2 if self.shared else np.ones(len(spread))
        goal = np.sqrt(self.unit * float(stats.f.ppf(level, 1, self.freedom)) * np.maximum(ratio, 1e-3))
        path = slope @ plain / spread[:, None]  # along it a quantity rises fastest
        some: Quantities = lambda theta: quantities(theta)[:, moving]  # noqa: E731
        return _Search(self, some, np.minimum(spread, WIDEST), path, goal), moving


@dataclass
class _Search:
    """Search for the values at which the square root of the rise of the profile reaches a goal, for all quantities.

    The root is nearly linear in the value, so the next trial extrapolates it, at most to twice the distance, or
    interpolates it between a value inside the interval and one outside.
    """

    profile: Profile
    quantities: Quantities
    spread: Float64[np.ndarray, " Q"]
    path: Float64[np.ndarray, "Q P"]
    goal: Float64[np.ndarray, " Q"]

    def ends(self) -> Float64[np.ndarray, "2 Q"]:
        """The lower and upper end of each quantity."""
        center = self.quantities(self.profile.theta[None])[0]
        count = len(center)
        which, sign = np.tile(np.arange(count), 2), np.repeat([-1.0, 1.0], count)
        goal, middle = self.goal[which], center[which]
        theta = np.repeat(self.profile.theta[None], 2 * count, axis=0)
        inside, inside_root = middle.copy(), np.zeros(2 * count)
        outside, outside_root = np.full(2 * count, np.nan), np.full(2 * count, np.nan)
        reach = goal / np.sqrt(self.profile.unit) * self.spread[which]
        lag = np.zeros(2 * count)  # how far a spring is from its target
        end, done = sign * np.inf, np.zeros(2 * count, bool)
        for _ in range(ROUNDS):
            k = np.flatnonzero(~done)
            if not len(k):
                break
            share = np.clip((goal[k] - inside_root[k]) / (outside_root[k] - inside_root[k]), 0.02, 0.98)
            between = inside[k] + share * (outside[k] - inside[k])
            open_ = np.isnan(outside[k])
            target = np.where(open_, inside[k] + sign[k] * reach[k], between) + lag[k]
            found, root = self._fits(which[k], target, inside[k], theta[k])
            value = self.quantities(found)[np.arange(len(k)), which[k]]
            over, close = root > goal[k], np.abs(root - goal[k]) <= CLOSE * goal[k]
            moved = np.abs(value - inside[k]) > STUCK * (self.spread[which[k]] + np.abs(value))
            end[k[close]] = value[close]
            done[k] = close | (~over & ~moved & open_)  # one that moves no further has reached the end of its range
            lag[k] = np.where(over | ~open_, target - value, 0.0)
            outside[k[over]], outside_root[k[over]] = value[over], root[over]
            inside[k[~over]], inside_root[k[~over]], theta[k[~over]] = value[~over], root[~over], found[~over]
            factor = np.clip(goal[k] / np.maximum(root, TINY) - 1, 0.05, EXPANSION - 1)
            reach[k] = np.maximum(np.abs(value - middle[k]) * factor, reach[k] / 2)
        bracketed = ~done & np.isfinite(outside)
        end[bracketed] = outside[bracketed]
        return end.reshape(2, count)

    def contain(self, values: Float64[np.ndarray, " Q"]) -> Bool[np.ndarray, " Q"]:
        """Whether the interval of each quantity contains a value."""
        theta, which = np.repeat(self.profile.theta[None], len(values), axis=0), np.arange(len(values))
        start, target = self.quantities(theta)[which, which], values.copy()
        for _ in range(3):
            theta, root = self._fits(which, target, start, theta)
            start = self.quantities(theta)[which, which]
            target = target + values - start
        return root <= self.goal

    def _fits(
        self, which: np.ndarray, target: np.ndarray, value: np.ndarray, theta: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best laws near each target, from the last ones and from those moved along the path; roots of the rise."""
        problem, count = self.profile.problem, len(which)
        moved = theta + self.path[which] * ((target - value) / self.spread[which])[:, None]
        start = np.concatenate([np.clip(moved, problem.low, problem.high), theta])
        stiffness = PULL * self.profile.unit / self.spread[which] ** 2
        spring = Spring(self.quantities, np.tile(which, 2), np.tile(target, 2), np.tile(stiffness, 2))
        solution = solve(problem, start, spring=spring, steps=STEPS)
        energy = solution.objective + spring.energy(solution.theta)
        best = np.where(energy[:count] <= energy[count:], 0, count) + np.arange(count)
        rise = solution.objective[best] - self.profile.least
        return solution.theta[best], np.sqrt(np.maximum(rise, 0.0))


def huber_unit(residual: Float64[np.ndarray, " N"], width: float, parameters: int) -> float:
    """The rise of a Huber loss that corresponds to an F of 1."""
    count, size = len(residual), np.abs(residual)
    inside = max(float((size <= width).mean()), 0.2)
    variance = float((np.minimum(size, width) ** 2).sum()) / max(count - parameters, 1)
    correction = 1 + parameters / count * (1 - inside) / inside  # Huber 1981, section 7.6
    return max(variance * correction**2 / (2 * inside), 1e-300)


def finite_log(values: Float64[np.ndarray, "S Q"]) -> Float64[np.ndarray, "S Q"]:
    """Logarithms, cut off so that a quantity that is infinite, 0 or undefined for some law has a finite one."""
    with np.errstate(all="ignore"):
        logs = np.log(values)
    return np.clip(np.nan_to_num(logs, nan=FARTHEST, posinf=FARTHEST, neginf=-FARTHEST), -FARTHEST, FARTHEST)


def open_ends(ends: Float64[np.ndarray, "2 Q"]) -> Float64[np.ndarray, "2 Q"]:
    """Intervals of logarithms as those of the values: 0 or infinite where they reach the cut."""
    with np.errstate(over="ignore"):
        return np.exp(np.where(np.abs(ends) >= FARTHEST - 1, np.copysign(np.inf, ends), ends))


def follow_noise(problem: Problem, start: Float64[np.ndarray, "S P"], clusters: Int64[np.ndarray, " N"]) -> Profile:
    """The best law at a Huber width of 1.345 standard deviations of the noise; both are found together.

    Args:
        problem: law and runs; its own width is not used.
        start: starting points.
        clusters: number of the training of each row.
    """
    freedom = max(len(problem.log_loss) - start.shape[1], 1)
    solution = solve(replace(problem, delta=float("inf")), start).best()
    width, expected = float("inf"), 1.0
    for _ in range(WIDTH_ROUNDS):
        clipped = np.minimum(np.abs(problem.residuals(solution.theta[0])), width)
        noise = max(float(np.sqrt((clipped**2).sum() / (freedom * expected))), TINY)
        width, expected = WIDTH * noise, _clipped_variance(WIDTH)
        solution = solve(replace(problem, delta=width), solution.theta)
    final = replace(problem, delta=width)
    solution = solve(final, np.concatenate([solution.theta, start])).best()
    return Profile(final, solution.theta[0], float(solution.objective[0]), noise, clusters)


def _clipped_variance(width: float) -> float:
    """E min(z^2, width^2) for a standard normal z."""
    inside = stats.norm.cdf(width) - stats.norm.cdf(-width) - 2 * width * stats.norm.pdf(width)
    return float(inside + 2 * width**2 * stats.norm.sf(width))
