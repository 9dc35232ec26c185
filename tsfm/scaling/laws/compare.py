"""Tests whether groups of runs, such as encoder and decoder, follow different joint laws."""

from itertools import combinations

import numpy as np
from jaxtyping import Bool
from scipy import stats

from tsfm.scaling.laws.estimate import Fit, constant_intervals
from tsfm.scaling.laws.form import NAMES
from tsfm.scaling.laws.joint import joint_problem
from tsfm.scaling.laws.minimise import solve
from tsfm.scaling.laws.profile import LEVEL
from tsfm.scaling.record import Record
from tsfm.scaling.runs.ledger import Runs

DRAWS = 999


def compare_groups(fits: dict[str, Fit], runs: Runs, seed: int) -> list[Record]:
    """For every pair of groups a test whether both follow one law, and the difference of each constant.

    Args:
        fits: the joint law of each group that has one.
        runs: the runs of all groups.
        seed: random seed of the test.
    """
    labels = np.array(runs.groups)
    pairs = []
    for first, second in combinations(fits, 2):
        of_pair = (labels == first) | (labels == second)
        both = runs.select(of_pair)
        p, statistic = one_law(both, labels[of_pair] == first, fits[first], fits[second], seed)
        constants = differences(fits[first], fits[second])
        pairs.append({"first": first, "second": second, "p_one_law": p, "statistic": statistic, "constants": constants})
    return pairs


def differences(a: Fit, b: Fit) -> dict[str, Record]:
    """Difference of each constant, its interval from the intervals of both (Zou and Donner 2008), and p of none."""
    ends_a, ends_b = constant_intervals(a), constant_intervals(b)
    freedom = min(a.profile.freedom, b.profile.freedom)
    result = {}
    for k, name in enumerate(NAMES):
        (low_a, high_a), (low_b, high_b) = ends_a[name], ends_b[name]
        apart = float(a.law[k] - b.law[k])
        below = float(np.hypot(a.law[k] - low_a, high_b - b.law[k]))
        above = float(np.hypot(high_a - a.law[k], b.law[k] - low_b))
        side = below if apart > 0 else above
        t = abs(apart) / max(side, 1e-300) * stats.t.ppf(0.5 + LEVEL / 2, freedom)
        p = float(2 * stats.t.sf(t, freedom))
        result[name] = {"difference": apart, "ci95": [apart - below, apart + above], "p": p}
    return result


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
    groups = [
        joint_problem(both.params[part], both.tokens[part], both.loss[part], delta, unit=pooled.unit)
        for part in (is_first, ~is_first)
    ]
    fitted = [group.fit(group.to_theta(fit.law[None])) for group, fit in zip(groups, (a, b), strict=True)]
    apart = sum(float(each.objective[0]) for each in fitted)
    statistic = max(float(solution.objective[0]) / max(apart, 1e-300) - 1, 0.0)
    residual = pooled.problem.residuals(solution.theta[0])
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(draws, both.runs))[:, both.clusters]
    losses = pooled.problem.measured + residual + signs * residual  # those of the law, and a residual again
    start = np.repeat(solution.theta, draws, axis=0)
    together = solve(pooled.problem, start, measured=losses).objective
    separate = np.zeros(draws)
    for part, group in zip((is_first, ~is_first), groups, strict=True):
        begin = np.repeat(group.to_theta(pooled.to_laws(solution.theta)), draws, axis=0)
        separate += solve(group.problem, begin, measured=losses[:, part]).objective
    drawn = together / np.maximum(separate, 1e-300) - 1
    return float((1 + (drawn >= statistic).sum()) / (draws + 1)), statistic
