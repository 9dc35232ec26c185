"""The joint law of a set of runs with its bootstrap, or the reasons for which there is none."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from tsfm.scaling.laws.bootstrap import cluster_weights, percentile_interval
from tsfm.scaling.laws.form import NAMES
from tsfm.scaling.laws.joint import JointProblem, joint_problem
from tsfm.scaling.laws.minimise import DELTA, solve
from tsfm.scaling.runs.ledger import Runs, distinct

FEWEST_ROWS = 8  # five constants and a little more


@dataclass(frozen=True)
class Fit:
    """A joint law with its draws.

    Attributes:
        runs: what it was fitted to.
        problem: the joint law on them.
        theta: solver parameters.
        law: constants in the order of ``NAMES``.
        objective: Huber loss, summed.
        draws: constants of each draw of the bootstrap.
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
        draws: of the bootstrap.
        seed: of the draws.
        delta: width of the Huber loss.
    """
    problem = joint_problem(runs.params, runs.tokens, runs.loss, delta)
    found = problem.fit()
    weights = cluster_weights(runs.clusters, draws, seed)
    drawn = solve(problem.problem, np.repeat(found.theta, draws, axis=0), weights)
    spread = found.theta + narrowing(len(runs), found.theta.shape[1]) * (drawn.theta - found.theta)
    laws = problem.to_laws(found.theta)[0]
    return Fit(runs, problem, found.theta[0], laws, float(found.objective[0]), problem.to_laws(spread))


def narrowing(rows: int, parameters: int) -> float:
    """What the spread of the draws is multiplied by.

    A draw leaves out a third of the runs, so fits of few runs spread more over draws than over new sets of runs.
    Without it 95 % intervals hold planted constants 97 times in 100;
    ``python benchmarks/scaling.py --part coverage`` counts.
    """
    return ((rows - parameters) / (rows + parameters)) ** 0.5


def why_not(runs: Runs) -> list[str]:
    """Reasons for which the joint law cannot be identified from these rows; empty where it can."""
    reasons = []
    if runs.runs < FEWEST_ROWS:
        reasons.append(f"{runs.runs} runs for five constants; at least {FEWEST_ROWS} are needed")
    for name, values, pair in (("sizes", runs.params, "alpha from E"), ("amounts of data", runs.tokens, "beta from E")):
        if distinct(values) < 3:
            reasons.append(f"{distinct(values)} different {name}: they cannot tell {pair}; run at least three")
    if reasons:
        return reasons
    x, z = np.log(runs.params), np.log(runs.tokens)
    if np.ptp(np.log10(runs.flops)) < 0.15 or np.ptp(x + z) < 0.35:
        return ["all runs have one budget: they cannot tell how loss falls with compute; run a second budget"]
    if abs(np.corrcoef(x, z)[0, 1]) > 0.9995:
        return ["data grow in a fixed proportion to size: what each adds cannot be told; vary tokens at one size"]
    return []


def named_intervals(fit: Fit) -> dict[str, list[float]]:
    """Bootstrap intervals of the constants by name."""
    low, high = percentile_interval(fit.draws)
    return {name: [float(low[k]), float(high[k])] for k, name in enumerate(NAMES)}
