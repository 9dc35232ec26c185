"""Tests whether groups of runs, such as encoder and decoder, follow different joint laws."""

from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Bool

from tsfm.scaling.laws.bootstrap import percentile_interval, two_sided_p
from tsfm.scaling.laws.estimate import Fit, fit_joint, named_intervals, why_not_identifiable
from tsfm.scaling.laws.form import NAMES
from tsfm.scaling.laws.joint import as_dict, joint_problem
from tsfm.scaling.laws.minimise import solve
from tsfm.scaling.runs.ledger import Runs

Record = dict[str, Any]
DRAWS = 999


def compare_groups(runs: Runs, draws: int, seed: int, delta: float) -> Record | None:
    """The joint law of each group, and for every pair a test whether both follow one law; None without groups."""
    if runs.groups is None:
        return None
    labels = np.array(runs.groups)
    parts = {str(label): runs.select(labels == label) for label in np.unique(labels)}
    refused = {label: why_not_identifiable(part) for label, part in parts.items()}
    fits = {
        label: fit_joint(part, draws, seed + 1 + k, delta)
        for k, (label, part) in enumerate(parts.items())
        if not refused[label]
    }
    laws: Record = {label: {"not_identifiable": reasons} for label, reasons in refused.items() if reasons}
    for label, fit in fits.items():
        laws[label] = as_dict(fit.law) | {"ci95": named_intervals(fit), "runs": fit.runs.runs}
    pairs = [_compare(first, second, runs, labels, fits, seed) for first, second in combinations(fits, 2)]
    return {"laws": laws, "pairs": pairs}


def _compare(first: str, second: str, runs: Runs, labels: np.ndarray, fits: dict[str, Fit], seed: int) -> Record:
    """Compare two groups: p for one common law, and the difference of each constant from the bootstrap draws."""
    a, b = fits[first], fits[second]
    both = runs.select((labels == first) | (labels == second))
    p, statistic = one_law(both, labels[(labels == first) | (labels == second)] == first, a, b, seed)
    ends = percentile_interval(a.draws - b.draws)
    differences = {
        name: {
            "difference": float(a.law[k] - b.law[k]),
            "ci95": [float(ends[0, k]), float(ends[1, k])],
            "p": two_sided_p(a.draws[:, k] - b.draws[:, k]),
        }
        for k, name in enumerate(NAMES)
    }
    return {"first": first, "second": second, "p_one_law": p, "statistic": statistic, "constants": differences}


def one_law(
    both: Runs, is_first: Bool[np.ndarray, " N"], a: Fit, b: Fit, seed: int, draws: int = DRAWS
) -> tuple[float, float]:
    """p for one law for both groups, and the test statistic: the relative rise of the objective with one law.

    Its distribution under one law is simulated by a wild bootstrap: the common law with residuals whose signs are
    flipped at random for each run is fitted again with one law and with two.

    Args:
        both: the runs of both groups.
        is_first: True for runs of the first group.
        a: fit of the first group.
        b: fit of the second.
        seed: random seed.
        draws: number of draws.
    """
    delta = a.problem.problem.delta
    pooled = joint_problem(both.params, both.tokens, both.loss, delta)
    solution = pooled.fit(np.concatenate([pooled.starts(), pooled.to_theta(np.stack([a.law, b.law]))]))
    apart = a.objective + b.objective
    statistic = max(float(solution.objective[0]) / max(apart, 1e-300) - 1, 0.0)
    residual = pooled.problem.residuals(solution.theta[0])
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(draws, both.runs))[:, both.clusters]
    losses = pooled.problem.log_loss + residual + signs * residual  # log of the law, and a residual again
    start = np.repeat(solution.theta, draws, axis=0)
    together = solve(pooled.problem, start, log_loss=losses).objective
    separate = np.zeros(draws)
    for part in (is_first, ~is_first):
        group = joint_problem(both.params[part], both.tokens[part], both.loss[part], delta)
        begin = np.repeat(group.to_theta(pooled.to_laws(solution.theta)), draws, axis=0)
        separate += solve(group.problem, begin, log_loss=losses[:, part]).objective
    drawn = together / np.maximum(separate, 1e-300) - 1
    return float((1 + (drawn >= statistic).sum()) / (draws + 1)), statistic
