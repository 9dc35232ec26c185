"""The joint law of a set of runs with its intervals, or the reasons why it is not identifiable."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64

from tsfm.scaling.laws.bootstrap import cluster_weights
from tsfm.scaling.laws.form import FLOPS_PER_TOKEN, NAMES, JointLaw
from tsfm.scaling.laws.joint import JointProblem, joint_problem
from tsfm.scaling.laws.minimise import DELTA, LARGEST_EXPONENT, Quantities, solve
from tsfm.scaling.laws.profile import Profile, finite_log, follow_noise
from tsfm.scaling.runs.ledger import Runs, distinct

FEWEST_ROWS = 8  # for five constants
CONSTANTS = (*NAMES, "a")  # of which intervals are reported; a is the exponent of the compute-optimal size
FLATTEST, STEEPEST = 0.01, 1.5  # an exponent that may be both flatter and steeper is not identifiable
Interval = tuple[float, float]


@dataclass(frozen=True)
class Fit:
    """A fitted joint law with its bootstrap draws.

    Attributes:
        runs: the runs to which it was fitted.
        problem: the optimisation problem.
        theta: the solution in the parameters of the solver.
        law: constants in the order of ``NAMES``.
        objective: Huber loss, summed.
        converged: whether the fit ended at a minimum.
        profile: the law whose profile gives the intervals.
        draws: constants in each draw of the bootstrap that has converged.
        unconverged: number of the other draws.
    """

    runs: Runs
    problem: JointProblem
    theta: Float64[np.ndarray, " 5"]
    law: Float64[np.ndarray, " 5"]
    objective: float
    converged: bool
    profile: Profile
    draws: Float64[np.ndarray, "S 5"]
    unconverged: int

    @property
    def measured(self) -> str:
        """What is fitted, in words."""
        return "log loss" if self.problem.problem.log else "loss"

    @property
    def floor(self) -> float | None:
        """The value at which E was fixed, if it was."""
        problem = self.problem.problem
        return float(self.law[0]) if problem.low[0] == problem.high[0] else None

    def spread_at(
        self, params: Float64[np.ndarray, " K"], tokens: Float64[np.ndarray, " K"]
    ) -> Float64[np.ndarray, " K"]:
        """The noise of runs as a multiple of that at the centre of the fitted ones."""
        return self.profile.problem.spread_at(self.problem.terms_at(params, tokens))

    def intervals(self, quantities: Quantities) -> Float64[np.ndarray, "2 Q"]:
        """95 % intervals of quantities by the profile, widened to the fitted values where these lie outside.

        Args:
            quantities: their values from constants in the order of ``NAMES``.
        """
        ends = self.profile.intervals(lambda theta: quantities(self.problem.to_laws(theta)))
        value = quantities(self.law[None])[0]
        return np.stack([np.minimum(ends[0], value), np.maximum(ends[1], value)])

    def bands(
        self, params: Float64[np.ndarray, " K"], tokens: Float64[np.ndarray, " K"]
    ) -> tuple[Float64[np.ndarray, " K"], Float64[np.ndarray, "2 K"], Float64[np.ndarray, "2 K"]]:
        """The expected loss of new runs, its 95 % interval, and the 95 % prediction interval of their losses."""

        def logs(laws: np.ndarray) -> np.ndarray:
            return finite_log(self.problem.positive(np.asarray(JointLaw.of_fits(laws).loss(params, tokens))))

        center, ends = logs(self.law[None])[0], self.intervals(logs)
        wide = self.profile.with_noise(center, ends, self.spread_at(params, tokens))
        loss, curve, new = (np.exp(part) for part in (center, ends, wide))
        return self.problem.loss_of(loss), self.problem.loss_of(curve), self.problem.loss_of(new)


def fit_joint(
    runs: Runs, draws: int, seed: int, delta: float = DELTA, floor: float | None = None, weigh: bool = False
) -> Fit:
    """Fit the joint law, its profile, and a bootstrap over runs.

    Args:
        runs: rows whose joint law can be identified.
        draws: number of bootstrap draws.
        seed: random seed.
        delta: width of the Huber loss.
        floor: fixes E.
        weigh: noisier runs count less, as in ``follow_noise``.
    """
    problem = joint_problem(runs.params, runs.tokens, runs.loss, delta, floor)
    starts = problem.starts()
    solution = solve(problem.problem, starts).best()
    profile = follow_noise(problem.problem, np.concatenate([solution.theta, starts]), runs.clusters, weigh)
    if profile.problem.trend:  # noisier runs count less in the estimate and its draws, too
        problem = replace(problem, problem=replace(problem.problem, trend=profile.problem.trend))
        solution = solve(problem.problem, np.concatenate([profile.theta[None], starts])).best()
    weights = cluster_weights(runs.clusters, draws, seed)
    refits = solve(problem.problem, np.repeat(solution.theta, draws, axis=0), weights)
    laws = problem.to_laws(refits.theta[refits.converged])
    return Fit(
        runs,
        problem,
        solution.theta[0],
        problem.to_laws(solution.theta)[0],
        float(solution.objective[0]),
        bool(solution.converged[0]),
        profile,
        laws,
        int((~refits.converged).sum()),
    )


def constants(laws: Float64[np.ndarray, "S 5"]) -> Float64[np.ndarray, "S 6"]:
    """E, log A, log B, alpha, beta and a: the scale on which the intervals are found."""
    safe = np.maximum(laws, 1e-300)
    a = np.asarray(JointLaw.from_rows(safe).size_exponent)
    return np.stack([laws[:, 0], np.log(safe[:, 1]), np.log(safe[:, 2]), laws[:, 3], laws[:, 4], a], axis=1)


def optimal_plans(
    laws: Float64[np.ndarray, "S 5"],
    budgets: Float64[np.ndarray, " K"],
    positive: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> Float64[np.ndarray, "S 2*K"]:
    """Log of the compute-optimal size for each budget, then log of its loss.

    Args:
        laws: constants in the order of ``NAMES``.
        budgets: training compute.
        positive: from losses to numbers above 0, if losses may be negative.
    """
    law = JointLaw.of_fits(laws)
    with np.errstate(all="ignore"):
        params = np.asarray(law.optimal_params(budgets))
        losses = positive(np.asarray(law.loss(params, budgets / FLOPS_PER_TOKEN / params)))
    return finite_log(np.concatenate([params, losses], axis=1))


def constant_intervals(fit: Fit) -> dict[str, Interval]:
    """95 % intervals of ``CONSTANTS``; an upper end is infinite if every larger value fits as well."""
    low, high = fit.intervals(constants)
    low, high = (
        np.where(np.isfinite(low), low, [0.0 if fit.problem.problem.log else -np.inf, -np.inf, -np.inf, 0.0, 0.0, 0.0]),
        np.minimum(high, [np.inf, np.inf, np.inf, np.inf, np.inf, 1.0]),
    )
    with np.errstate(over="ignore"):
        for ends in (low, high):
            ends[1:3] = np.exp(ends[1:3])
    return {name: (float(low[k]), float(high[k])) for k, name in enumerate(CONSTANTS)}


def why_not_identifiable(runs: Runs) -> list[str]:
    """Reasons why the joint law is not identifiable from these runs; empty if it is."""
    reasons = []
    if runs.runs < FEWEST_ROWS:
        reasons.append(f"{runs.runs} runs for five constants; at least {FEWEST_ROWS} are needed")
    for name, values, pair in (("sizes", runs.params, "alpha from E"), ("amounts of data", runs.tokens, "beta from E")):
        if distinct(values) < 3:
            reasons.append(f"{distinct(values)} different {name}: they cannot separate {pair}; run at least three")
    if reasons:
        return reasons
    x, z = np.log(runs.params), np.log(runs.tokens)
    if np.ptp(np.log10(runs.flops)) < 0.15 or np.ptp(x + z) < 0.35:
        return ["all runs have one budget: they do not show how loss falls with compute; run a second budget"]
    if abs(np.corrcoef(x, z)[0, 1]) > 0.9995:
        return ["data grow in a fixed proportion to size: their effects cannot be separated; vary tokens at one size"]
    return []


def why_no_law(fit: Fit) -> list[str]:
    """Reasons why a fit is rejected: an exponent at a bound of the search."""
    reasons = []
    for name, word in (("alpha", "size"), ("beta", "data")):
        exponent = fit.law[NAMES.index(name)]
        if exponent < FLATTEST / 2 or exponent > 0.9 * LARGEST_EXPONENT:
            reasons.append(f"{name} is {exponent:.2g}: the losses do not fall with {word} as a power law")
    return reasons


def why_nothing_known(intervals: dict[str, Interval]) -> list[str]:
    """Reasons why a fit is rejected: an exponent that may be almost anything."""
    return [
        f"{name} may be anything from {low:.2g} to {high:.2g}: the runs do not show it"
        for name in ("alpha", "beta")
        for low, high in [intervals[name]]
        if low < FLATTEST and high > STEEPEST
    ]
