"""Confidence intervals from the profile of the objective: all values that some law close to the best one gives.

The interval of a quantity (a constant, a planned size, a loss) holds the values for which the best law with that value
fits hardly worse than the best law of all. Its critical value is that of Student's F, so it holds for few runs, too:
coverage is measured by ``python benchmarks/scaling.py --part coverage``.

- The objective is a Huber loss whose width follows the noise (Huber 1964, proposal 2): nearly as efficient as least
  squares on normal noise, hardly moved by outliers. The width 1e-3 of the point estimate is far below the usual noise:
  it minimises absolute errors, whose profile has steps.
- If runs share a training, the rise of the objective is divided by the ratio of the cluster-robust variance of the
  quantity to its variance for independent runs (Chandler and Bate 2007; CR2 of Bell and McCaffrey 2002).
- If the noise depends on size, data or compute, the variance of each quantity is one that is robust to that (every run
  is then a cluster). If asked for, the noise is fitted as a power of compute, and the residual of each run is divided
  by its noise: weighted least squares whose weights come from the residuals (Carroll and Ruppert 1988).
- If the law misses its runs by more than runs of the same size and data differ, such as near-copies with other seeds,
  these count as one.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64, Int64
from scipy import stats

from tsfm.scaling.laws.minimise import Problem, Quantities, slopes, solve
from tsfm.scaling.laws.scatter import SURE, SURE_OF_ONE, lack_of_fit_p, noise_exponent, noise_trend, same_points
from tsfm.scaling.laws.search import Search

LEVEL = 0.95
WIDTH = 1.345  # Huber width in standard deviations: 95 % efficient for normal noise
WIDTH_ROUNDS = 12
WIDEST = 10.0  # largest standard error that scales a search
FARTHEST = 200.0  # logarithm beyond which a quantity counts as infinite
TINY = 1e-9  # least noise of log loss
LIKELY = 0.05  # p below which the noise is fitted as a power of compute
FEWEST_FOR_TREND = 20  # degrees of freedom from which a dependence of the noise on compute is fitted
TREND_ROUNDS = 3  # of law and noise
LEAST_SEEN = 0.1  # share of the noise of a run that is at least left in its residual
ROUNDED = 1e-6  # noise of log loss below which residuals are rounding errors


@dataclass(frozen=True)
class Profile:
    """The best law at a Huber width that follows the noise, and what its intervals need.

    Attributes:
        problem: law and runs, with that width.
        theta: the best fit.
        least: its objective.
        noise: standard deviation of (log) loss about the law, robust; at the centre of the runs if it has a trend.
        clusters: number of the training of each row, from 0.
        uneven: whether the noise depends on size, data or compute beyond the trend of the problem.
    """

    problem: Problem
    theta: Float64[np.ndarray, " P"]
    least: float
    noise: float
    clusters: Int64[np.ndarray, " N"]
    uneven: bool = False

    @property
    def shared(self) -> bool:
        """Whether several rows share a training."""
        return int(self.clusters.max()) + 1 < len(self.clusters)

    @property
    def corrected(self) -> bool:
        """Whether intervals are corrected by the robust variance."""
        return self.shared or self.uneven

    @property
    def freedom(self) -> int:
        """Degrees of freedom: independent trainings without one for each constant."""
        return max(int(self.clusters.max()) + 1 - self.problem.free, 1)

    @property
    def unit(self) -> float:
        """The rise of the objective that corresponds to an F of 1."""
        return huber_unit(self.problem.residuals(self.theta), self.problem.delta, self.problem.free)

    def covariance(self) -> tuple[Float64[np.ndarray, "P P"], Float64[np.ndarray, "P P"]]:
        """Covariance of the constants for independent rows, and the one that is robust to shared trainings."""
        is_free = self.problem.low < self.problem.high  # a fixed constant has no variance
        J = self.problem.jacobian(self.theta) * is_free
        residual = self.problem.residuals(self.theta)
        psi = np.clip(residual, -self.problem.delta, self.problem.delta)
        size = np.linalg.norm(J, axis=0)
        size = np.where(size > 0, size, 1.0)
        J = J / size
        inverse = np.linalg.pinv(J.T @ J, rcond=1e-14, hermitian=True)
        variance = float(psi @ psi) / max(len(psi) - self.problem.free, 1)
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
        search = self.search(quantities, level)
        ends = np.stack([center, center])
        ends[:, search.which] = search.ends()
        return ends

    def with_noise(
        self, center: Float64[np.ndarray, " Q"], ends: Float64[np.ndarray, "2 Q"], spread: np.ndarray | float = 1.0
    ) -> Float64[np.ndarray, "2 Q"]:
        """95 % prediction intervals of new runs: of their expected log loss and of the noise of a run.

        Args:
            center: expected log loss.
            ends: its 95 % interval.
            spread: the noise of these runs as a multiple of that at the centre.
        """
        noise = spread * self.noise * float(stats.t.ppf(0.5 + LEVEL / 2, self.freedom))
        return np.stack([center - np.hypot(center - ends[0], noise), center + np.hypot(ends[1] - center, noise)])

    def search(self, quantities: Quantities, level: float = LEVEL) -> "Search":
        """The search for the ends of the quantities that depend on the law.

        Args:
            quantities: their values from parameters of the law.
            level: confidence level.
        """
        slope_QP = slopes(quantities, self.theta[None])[0]
        plain, robust = self.covariance()
        variance = np.einsum("qp,pr,qr->q", slope_QP, plain, slope_QP)
        which = np.flatnonzero(variance > TINY**2)
        slope, spread = slope_QP[which], np.sqrt(variance[which])
        ratio = np.einsum("qp,pr,qr->q", slope, robust, slope) / spread**2 if self.corrected else np.ones(len(which))
        critical = float(stats.f.ppf(level, 1, self.freedom))
        return Search(
            self.problem,
            quantities,
            which,
            np.repeat(self.theta[None], len(which), axis=0),
            np.full(len(which), self.least),
            np.full(len(which), self.unit),
            np.repeat(self.problem.measured[None], len(which), axis=0),
            np.full(len(which), self.problem.delta),
            np.minimum(spread, WIDEST),
            slope @ plain / spread[:, None],
            np.sqrt(self.unit * critical * np.maximum(ratio, 1e-3)),
        )


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


def follow_noise(
    problem: Problem, start: Float64[np.ndarray, "K P"], clusters: Int64[np.ndarray, " N"], weigh: bool = False
) -> Profile:
    """The best law at a Huber width of 1.345 standard deviations of the noise; both are found together.

    Args:
        problem: law and runs; its own width is not used.
        start: starting points.
        clusters: number of the training of each row.
        weigh: divide residuals by a noise that is a power of compute, if a test says that the noise depends on it.
    """
    return follow_noises(problem, start, problem.measured[None], clusters, weigh)[0]


def follow_noises(
    problem: Problem,
    start: Float64[np.ndarray, "K P"],
    measured_SN: Float64[np.ndarray, "S N"],
    clusters: Int64[np.ndarray, " N"],
    weigh: bool = False,
) -> list[Profile]:
    """The same for several sets of losses of the same runs, solved at once.

    Args:
        problem: law and runs.
        start: starting points for every set.
        measured_SN: log losses of each set, in the units of the problem.
        clusters: number of the training of each row.
        weigh: as in ``follow_noise``.
    """
    return [_with_scatter(profile, weigh) for profile in _follow(problem, start, measured_SN, clusters)]


def _follow(
    problem: Problem,
    start: Float64[np.ndarray, "K P"],
    measured_SN: Float64[np.ndarray, "S N"],
    clusters: Int64[np.ndarray, " N"],
) -> list[Profile]:
    """The same if the scatter of the runs is as the problem says."""
    sets, parameters = len(measured_SN), start.shape[1]
    freedom = max(len(problem.measured) - problem.free, 1)

    def fit(starts_SKP: np.ndarray, width_S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        count = starts_SKP.shape[1]
        losses, widths = np.repeat(measured_SN, count, axis=0), np.repeat(width_S, count)
        solution = solve(problem, starts_SKP.reshape(-1, parameters), measured=losses, delta=widths)
        objective = solution.objective.reshape(sets, count)
        best = np.argmin(objective, axis=1)
        rows = np.arange(sets)
        return solution.theta.reshape(sets, count, parameters)[rows, best], objective[rows, best]

    every = np.repeat(start[None], sets, axis=0)
    width, expected = np.full(sets, np.inf), 1.0
    theta, least = fit(every, width)
    for _ in range(WIDTH_ROUNDS):
        clipped = np.minimum(np.abs(problem.parts(theta, measured_SN)[1]), width[:, None])
        noise = np.maximum(np.sqrt((clipped**2).sum(axis=1) / (freedom * expected)), TINY)
        width, expected = WIDTH * noise, _clipped_variance(WIDTH)
        theta, least = fit(theta[:, None], width)
    theta, least = fit(np.concatenate([theta[:, None], every], axis=1), width)
    return [
        Profile(
            replace(problem, delta=float(width[k]), measured=measured_SN[k]),
            theta[k],
            float(least[k]),
            float(noise[k]),
            clusters,
        )
        for k in range(sets)
    ]


def _with_scatter(profile: Profile, weigh: bool) -> Profile:
    """A profile that knows whether its runs are alike at one size and data, and how their noise depends on them."""
    problem = profile.problem
    if profile.noise > ROUNDED and not profile.shared:
        residual = np.clip(problem.residuals(profile.theta), -3 * profile.noise, 3 * profile.noise)
        points = same_points(*(-term[:, 1] for term in problem.terms))
        p = lack_of_fit_p(points, residual, problem.free)
        if p is not None and p < SURE:
            return replace(profile, clusters=points)
    if weigh and profile.freedom >= FEWEST_FOR_TREND and _trends(profile)[-1] < LIKELY:
        profile = _with_trend(profile)
    return replace(profile, uneven=min(_trends(profile)) < SURE_OF_ONE)


def _trends(profile: Profile) -> list[float]:
    """p that the noise does not depend on size, on data, and on compute."""
    if profile.noise < ROUNDED:
        return [1.0]
    residual = np.clip(profile.problem.residuals(profile.theta), -3 * profile.noise, 3 * profile.noise)
    size, tokens = (-term[:, 1] for term in profile.problem.terms)
    return [noise_trend(axis, residual)["p"] for axis in (size, tokens, size + tokens)]


def _with_trend(profile: Profile) -> Profile:
    """The law at a noise that is a power of compute; law and noise are found together."""
    for _ in range(TREND_ROUNDS):
        problem = profile.problem
        J = problem.jacobian(profile.theta) * (problem.low < problem.high)
        basis = np.linalg.svd(J / (np.linalg.norm(J, axis=0) + 1e-300), full_matrices=False)[0][:, : problem.free]
        seen = np.maximum(1 - (basis**2).sum(axis=1), LEAST_SEEN)  # of the noise of a run, the law has taken the rest
        residual = problem.residuals(profile.theta) * problem.spread / np.sqrt(seen)
        power = noise_exponent(-np.sum([term[:, 1] for term in problem.terms], axis=0), residual)
        new = replace(problem, trend=(power,) * len(problem.terms))
        profile = _follow(new, profile.theta[None], problem.measured[None], profile.clusters)[0]
    return profile


def _clipped_variance(width: float) -> float:
    """E min(z^2, width^2) for a standard normal z."""
    inside = stats.norm.cdf(width) - stats.norm.cdf(-width) - 2 * width * stats.norm.pdf(width)
    return float(inside + 2 * width**2 * stats.norm.sf(width))
