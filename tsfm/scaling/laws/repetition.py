"""The value of repeated data: the data term of Muennighoff et al. 2023 (arXiv 2305.16264, equation 5).

    D' = U + U R* (1 - exp(-R / R*)),    R = D / U - 1,

where U is the number of different tokens and R how often they were repeated. The joint law holds in D' instead of D.
R* near 0 means that repeated tokens are worth nothing, a large R* that they are worth as much as new ones.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float64
from scipy import optimize, stats

from tsfm.scaling.laws.bootstrap import LEVEL, profile_scale
from tsfm.scaling.laws.estimate import why_not_identifiable
from tsfm.scaling.laws.form import JointLaw
from tsfm.scaling.laws.joint import JointProblem, as_dict, joint_problem
from tsfm.scaling.laws.minimise import solve
from tsfm.scaling.runs.ledger import Runs

GRID = np.geomspace(0.05, 500.0, 13)  # values of R* that are tried
TOLERANCE = 1e-3  # tolerance of log R*
FOLDS = 5
FEWEST = 5  # runs with repeated data that are needed
REPEATED = 1.5  # epochs from which a run counts as repeating data


def effective_tokens(
    tokens: Float64[np.ndarray, " N"], unique: Float64[np.ndarray, " N"], scale: float
) -> Float64[np.ndarray, " N"]:
    """The number of new tokens that would be worth as much.

    Args:
        tokens: tokens seen.
        unique: number of different tokens.
        scale: R*, infinite if repeated tokens are worth as much as new ones.
    """
    if not np.isfinite(scale):
        return tokens
    return unique + unique * scale * -np.expm1(-(tokens / unique - 1) / scale)


def repetition(runs: Runs, delta: float, law: Float64[np.ndarray, " 5"]) -> dict[str, Any] | None:
    """Fit R* and the joint law in effective tokens; None if the table has no column of different tokens.

    Args:
        runs: the runs to which the joint law was fitted.
        delta: width of the Huber loss.
        law: the joint law that counts every token as new, the starting point of the fits.
    """
    if runs.unique is None:
        return None
    repeated = int((runs.tokens > REPEATED * runs.unique).sum())
    if repeated < FEWEST:
        return {"not_identifiable": f"{repeated} runs with repeated data; at least {FEWEST} are needed"}
    everyone = np.ones(len(runs), bool)
    scale = _best_scale(runs, everyone, delta, law)
    problem, theta, least = _fit(runs, everyone, scale, delta, law)
    weight = profile_scale(problem.problem.residuals(theta), delta, 6)
    critical = float(stats.f.ppf(LEVEL, 1, max(runs.runs - 6, 1)))

    best = problem.to_laws(theta[None])[0]

    def rise(log: float) -> float:
        return weight * (_fit(runs, everyone, float(np.exp(log)), delta, best)[2] - least) - critical

    ends = [_crossing(rise, float(np.log(scale)), float(np.log(end))) for end in (GRID[0], GRID[-1])]
    with_term, without = _held_out(runs, delta, law)
    return {
        "R_star": scale,
        "ci95": ends,
        "runs_with_repeated_data": repeated,
        "law": as_dict(best),
        "held_out_rms": {"repetition": with_term, "all_tokens_new": without},
        "preferred": bool(with_term < without),
    }


def _crossing(rise: Callable[[float], float], start: float, end: float) -> float | None:
    """exp of the point between start and end at which the profile crosses its critical value; None if there is none."""
    if not start - TOLERANCE > end and not start + TOLERANCE < end:
        return None
    if rise(end) <= 0 or rise(start) >= 0:
        return None
    return float(np.exp(optimize.brentq(rise, start, end, xtol=TOLERANCE)))


def _fit(
    runs: Runs, keep: np.ndarray, scale: float, delta: float, law: np.ndarray
) -> tuple[JointProblem, np.ndarray, float]:
    """The joint law in effective tokens for a given R*: problem, solution, objective."""
    unique = runs.tokens if runs.unique is None else runs.unique
    tokens = effective_tokens(runs.tokens[keep], unique[keep], scale)
    problem = joint_problem(runs.params[keep], tokens, runs.loss[keep], delta)
    solution = solve(problem.problem, problem.to_theta(law[None]))
    return problem, solution.theta[0], float(solution.objective[0])


def _best_scale(runs: Runs, keep: np.ndarray, delta: float, law: np.ndarray) -> float:
    """R* of the least objective: the best point of a grid, refined between its neighbours."""
    near = law  # each fit starts from the solution of the one before

    def objective(log: float) -> float:
        nonlocal near
        problem, theta, value = _fit(runs, keep, float(np.exp(log)), delta, near)
        near = problem.to_laws(theta[None])[0]
        return value

    logs = np.log(GRID)
    k = int(np.argmin([objective(float(log)) for log in logs]))
    ends = (logs[max(k - 1, 0)], logs[min(k + 1, len(logs) - 1)])
    minimum = optimize.minimize_scalar(objective, bounds=ends, method="bounded", options={"xatol": TOLERANCE})
    return float(np.exp(minimum.x))


def _held_out(runs: Runs, delta: float, law: np.ndarray) -> tuple[float, float]:
    """Root mean squared error of log loss in cross-validation over runs, with the term and without."""
    squared = np.zeros((2, len(runs)))
    for fold in range(FOLDS):
        out = runs.clusters % FOLDS == fold
        if why_not_identifiable(runs.select(~out)):
            return float("inf"), float("inf")
        for row, scale in enumerate((_best_scale(runs, ~out, delta, law), float("inf"))):
            problem, theta, _ = _fit(runs, ~out, scale, delta, law)
            fitted = JointLaw(*problem.to_laws(theta[None])[0])
            unique = runs.tokens if runs.unique is None else runs.unique
            tokens = effective_tokens(runs.tokens[out], unique[out], scale)
            squared[row, out] = np.log(np.asarray(fitted.loss(runs.params[out], tokens)) / runs.loss[out]) ** 2
    with_term, without = np.sqrt(squared.mean(axis=1))
    return float(with_term), float(without)
