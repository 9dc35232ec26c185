"""The joint law of a set of runs with its bootstrap, or the reasons why it is not identifiable."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from tsfm.scaling.laws.bootstrap import cluster_weights, percentile_interval
from tsfm.scaling.laws.form import NAMES
from tsfm.scaling.laws.joint import JointProblem, joint_problem
from tsfm.scaling.laws.minimise import DELTA, solve
from tsfm.scaling.runs.ledger import Runs, distinct

FEWEST_ROWS = 8  # for five constants


@dataclass(frozen=True)
class Fit:
    """A fitted joint law with its bootstrap draws.

    Attributes:
        runs: the runs to which it was fitted.
        problem: the optimisation problem.
        theta: the solution in the parameters of the solver.
        law: constants in the order of ``NAMES``.
        objective: Huber loss, summed.
        draws: constants in each draw of the bootstrap.
    """

    runs: Runs
    problem: JointProblem
    theta: Float64[np.ndarray, " 5"]
    law: Float64[np.ndarray, " 5"]
    objective: float
    draws: Float64[np.ndarray, "S 5"]


def fit_joint(runs: Runs, draws: int, seed: int, delta: float = DELTA) -> Fit:
    """Fit the joint law and bootstrap it over runs.

    Args:
        runs: rows whose joint law can be identified.
        draws: number of bootstrap draws.
        seed: random seed.
        delta: width of the Huber loss.
    """
    problem = joint_problem(runs.params, runs.tokens, runs.loss, delta)
    solution = problem.fit()
    weights = cluster_weights(runs.clusters, draws, seed)
    refits = solve(problem.problem, np.repeat(solution.theta, draws, axis=0), weights)
    theta = solution.theta + narrowing(len(runs), solution.theta.shape[1]) * (refits.theta - solution.theta)
    laws = problem.to_laws(solution.theta)[0]
    return Fit(runs, problem, solution.theta[0], laws, float(solution.objective[0]), problem.to_laws(theta))


def narrowing(rows: int, parameters: int) -> float:
    """The factor on the spread of the bootstrap draws.

    A draw leaves out a third of the runs, so with few runs the draws spread more than fits to new sets of runs would.
    Without the factor 95 % intervals contain the true constants 97 times in 100 (measured by
    ``python benchmarks/scaling.py --part coverage``).
    """
    return ((rows - parameters) / (rows + parameters)) ** 0.5


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


def named_intervals(fit: Fit) -> dict[str, list[float]]:
    """95 % bootstrap intervals of the constants by name."""
    low, high = percentile_interval(fit.draws)
    return {name: [float(low[k]), float(high[k])] for k, name in enumerate(NAMES)}
