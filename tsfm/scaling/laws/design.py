"""Which further runs would narrow the interval of a quantity most: a sequential V-optimal design.

Near the fit the variance of the logarithm of a quantity, such as a planned size, is ``g' M^-1 g`` in units of the
noise of a run: ``g`` is its gradient in the constants of the law, and ``M = J' J`` the Fisher information, with a row
of J for each run (Atkinson, Donev and Tobias 2007, section 10). A run with the row ``j`` lowers it by
``(g' M^-1 j)^2 / (1 + j' M^-1 j)``. Each step takes the run that lowers it most among those that can be paid.
"""

from dataclasses import replace

import numpy as np
from jaxtyping import Float64
from scipy import stats

from tsfm.scaling.laws.estimate import Fit, optimal_plans
from tsfm.scaling.laws.form import training_flops
from tsfm.scaling.laws.joint import JointProblem
from tsfm.scaling.laws.minimise import Quantities, slopes
from tsfm.scaling.laws.profile import LEVEL, Profile
from tsfm.scaling.record import Record

BEYOND = 10.0  # times the largest compute: the budget whose best size is to be narrowed
COUNT = 4  # runs that are proposed
STEPS = 15  # sizes, and amounts of data, that are tried
ROOM = 3.0  # how far beyond the runs so far they reach
RIDGE = 1e-12


def next_runs(fit: Fit) -> Record:
    """The runs that narrow the best size for ten times the largest compute most, for as much compute as all runs."""
    runs, flops = fit.runs, BEYOND * float(fit.runs.flops.max())
    budget = float(runs.flops.sum())

    def size(theta: np.ndarray) -> np.ndarray:
        return optimal_plans(fit.problem.to_laws(theta), np.array([flops]))[:, :1]

    chosen = best_runs(fit.problem, fit.profile, size, candidates(runs.params, runs.tokens), budget)
    return {"flops": flops, "budget": budget, "runs": chosen}


def candidates(
    params: Float64[np.ndarray, " N"], tokens: Float64[np.ndarray, " N"]
) -> tuple[Float64[np.ndarray, " K"], Float64[np.ndarray, " K"]]:
    """Sizes and tokens of runs that could be made: a grid from the smallest run to a little beyond the largest."""
    sizes, amounts = (np.geomspace(values.min(), ROOM * values.max(), STEPS) for values in (params, tokens))
    return np.repeat(sizes, STEPS), np.tile(amounts, STEPS)


def best_runs(
    problem: JointProblem,
    profile: Profile,
    quantity: Quantities,
    possible: tuple[Float64[np.ndarray, " K"], Float64[np.ndarray, " K"]],
    budget: float,
) -> list[Record]:
    """The runs that narrow the interval of a quantity most, in the order in which they should be made.

    Args:
        problem: the joint law on the runs so far.
        profile: its best fit, and the noise.
        quantity: logarithm of the quantity, [S, 1], from parameters of the law.
        possible: sizes and tokens of the runs that could be made.
        budget: compute of all new runs together.

    Returns:
        For each run ``params``, ``tokens``, ``flops``, and ``width``: that of the interval after this run and those
        before it, as a share of the width now.
    """
    params, tokens = possible
    costs = np.asarray(training_flops(params, tokens))
    points = replace(profile.problem, terms=problem.terms_at(params, tokens), measured=np.zeros(len(params)))
    seen, new = (law.jacobian(profile.theta) for law in (profile.problem, points))
    unit = np.linalg.norm(seen, axis=0) + 1e-300
    seen, new = seen / unit, new / unit
    slope = slopes(quantity, profile.theta[None])[0, 0] / unit
    trainings = int(profile.clusters.max()) + 1
    information = seen.T @ seen * (trainings / len(seen))  # rows of one training count as one run in all
    inverse = np.linalg.inv(information + RIDGE * np.eye(len(unit)))
    first, freedom, rows = float(slope @ inverse @ slope), profile.freedom, []
    for k in range(1, COUNT + 1):
        toward = new @ inverse
        gain = np.where(costs <= budget, (toward @ slope) ** 2 / (1 + np.einsum("kp,kp->k", toward, new)), -1.0)
        best = int(np.argmax(gain))
        if gain[best] <= 0:
            break
        column = inverse @ new[best]
        inverse = inverse - np.outer(column, column) / (1 + new[best] @ column)
        budget -= float(costs[best])
        width = np.sqrt(max(float(slope @ inverse @ slope), 0.0) / first)
        width *= stats.t.ppf(0.5 + LEVEL / 2, freedom + k) / stats.t.ppf(0.5 + LEVEL / 2, freedom)
        row = {"params": float(params[best]), "tokens": float(tokens[best]), "flops": float(costs[best])}
        rows.append(row | {"width": float(width)})
    return rows
