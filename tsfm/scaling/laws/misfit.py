"""Does the joint law hold? Its error on held-out runs, patterns in its residuals, and pure error from repeated runs."""

from itertools import combinations_with_replacement

import numpy as np
from scipy import stats

from tsfm.scaling.laws.estimate import Fit, why_not_identifiable
from tsfm.scaling.laws.form import JointLaw
from tsfm.scaling.laws.joint import as_dict, joint_problem
from tsfm.scaling.laws.profile import ROUNDED
from tsfm.scaling.laws.scatter import SURE, SURE_OF_ONE, lack_of_fit_p, noise_trend, same_points
from tsfm.scaling.record import Record
from tsfm.scaling.runs.ledger import Runs

HELD_OUT = 0.1  # share of the runs, those with the most compute, on which the extrapolation is tested
FARTHER = 2.0  # ratio of the errors on held-out and fitted runs from which there is a warning
AXES = {"params": "size", "tokens": "data", "flops": "compute"}


def extrapolation(runs: Runs, delta: float, floor: float | None = None, trend: tuple[float, ...] = ()) -> Record | None:
    """Fit without the runs of the largest compute and predict them; None if too few would be left.

    Errors are divided by the noise of their run, as a multiple of that at the centre of those that are fitted.
    """
    count = max(3, round(HELD_OUT * len(runs)))
    order = np.argsort(runs.flops, kind="stable")
    keep = np.zeros(len(runs), bool)
    keep[order[:-count]] = True
    seen, held = runs.select(keep), runs.select(~keep)
    if not keep.any() or why_not_identifiable(seen):
        return None
    problem = joint_problem(seen.params, seen.tokens, seen.loss, delta, floor, trend=trend)
    solution = problem.fit()
    law = problem.to_laws(solution.theta)[0]
    predicted = np.asarray(JointLaw(*law).loss(held.params, held.tokens))
    log = problem.problem.log and held.loss.min() > 0
    error = np.log(predicted / held.loss) if log else predicted - held.loss
    error = error / problem.problem.spread_at(problem.terms_at(held.params, held.tokens))
    inside = problem.step * problem.problem.residuals(solution.theta[0])
    return {
        "held_out_rows": count,
        "largest_flops_seen": float(seen.flops.max()),
        "largest_flops_held_out": float(held.flops.max()),
        "mean_log_error": float(error.mean()),
        "rms_log_error": float(np.sqrt((error**2).mean())),
        "rms_log_error_seen": float(np.sqrt((inside**2).mean())),
        "law": as_dict(law),
    }


def misfit(fit: Fit) -> Record:
    """Tests of the joint law on its own runs.

    - patterns: what a trend, a bend, and an interaction in size and data explain of the residuals (an F test of the
      residuals on the squares and the product of log size and log data, after the constants of the law);
    - lack of fit: the error about the law compared with that between runs of the same size and data;
    - noise: whether the size of the residuals depends on size, data or compute.
    """
    residual = np.clip(fit.profile.problem.residuals(fit.profile.theta), -3 * fit.profile.noise, 3 * fit.profile.noise)
    if fit.profile.noise < ROUNDED:
        return {"pattern_p": None, "pattern_share": None, "lack_of_fit_p": None, "noise_trend": {}, "by_axis": {}}
    runs = fit.runs
    p, share = _pattern(fit, residual)
    return {
        "pattern_p": p,
        "pattern_share": share,
        "lack_of_fit_p": lack_of_fit_p(same_points(runs.params, runs.tokens), residual, fit.problem.problem.free),
        "noise_trend": {name: noise_trend(getattr(runs, name), residual) for name in AXES},
        "by_axis": {name: _thirds(getattr(runs, name), residual) for name in AXES},
    }


def misfit_warnings(record: Record, ahead: Record | None, noise: float, measured: str = "log loss") -> list[str]:
    """Texts about a law that does not hold.

    Args:
        record: the tests of ``misfit``.
        ahead: the result of ``extrapolation``.
        noise: standard deviation of what is measured about the law.
        measured: log loss, or loss.
    """
    warnings = []
    p = record["pattern_p"]
    if p is not None and p < SURE:
        warnings.append(
            f"the law does not fit: a quadratic surface in log size and log data explains "
            f"{100 * record['pattern_share']:.0f} % of the variance about it (p = {p:.1g}). Intervals assume that the "
            "law holds; see the other laws in the report"
        )
    p = record["lack_of_fit_p"]
    if p is not None and p < SURE:
        warnings.append(
            f"the law misses its runs by more than runs of the same size and data differ (p = {p:.1g}): intervals "
            "count such runs as one"
        )
    trends = {name: trend for name, trend in record["noise_trend"].items() if trend["p"] < SURE_OF_ONE}
    if trends:
        name = min(trends, key=lambda key: float(trends[key]["p"]))
        more = "more" if trends[name]["correlation"] > 0 else "less"
        warnings.append(
            f"runs of larger {AXES[name]} scatter {more} about the law (p = {trends[name]['p']:.1g}): intervals are "
            "corrected for that in part, but those of E and of planned losses may still be too short; --noise compute "
            "lets noisier runs count less"
        )
    if ahead is not None and ahead["rms_log_error"] > FARTHER * max(ahead["rms_log_error_seen"], noise, ROUNDED):
        warnings.append(
            f"a law fitted without the {ahead['held_out_rows']} runs of the largest compute misses them by "
            f"{ahead['rms_log_error']:.3g} of {measured}, and those it saw by {ahead['rms_log_error_seen']:.3g}: plans "
            "beyond the data are less certain than their intervals"
        )
    return warnings


def _pattern(fit: Fit, residual: np.ndarray) -> tuple[float | None, float | None]:
    """p of an F test: do the squares and the product of log size and log data explain the residuals? And how much."""
    jacobian = fit.profile.problem.jacobian(fit.profile.theta)
    axes = [np.log(values) - np.log(values).mean() for values in (fit.runs.params, fit.runs.tokens)]
    more = np.stack([a * b / fit.profile.problem.spread for a, b in combinations_with_replacement(axes, 2)], axis=1)
    size = np.linalg.norm(jacobian, axis=0) + 1e-300
    base, full = jacobian / size, np.concatenate([jacobian / size, more / np.linalg.norm(more, axis=0)], axis=1)
    squared, ranks = [], []
    for matrix in (base, full):
        left, singular, _ = np.linalg.svd(matrix, full_matrices=False)
        basis = left[:, singular > 1e-8 * singular[0]]
        squared.append(float(((residual - basis @ (basis.T @ residual)) ** 2).sum()))
        ranks.append(basis.shape[1])
    clusters = fit.runs.runs
    extra, freedom = ranks[1] - ranks[0], clusters - ranks[1]
    if extra < 1 or freedom < 3:
        return None, None
    f = (squared[0] - squared[1]) / extra / max(squared[1] / (len(residual) - ranks[1]), 1e-300)
    # Rows of one training do not count as independent.
    return float(stats.f.sf(f * clusters / len(residual), extra, freedom)), 1 - squared[1] / max(squared[0], 1e-300)


def _thirds(values: np.ndarray, residual: np.ndarray) -> list[float]:
    """Mean residual of the runs of the smallest, middle and largest third of a variable."""
    rank = stats.rankdata(values, method="dense") - 1
    third = np.minimum(rank * 3 // (rank.max() + 1), 2)
    return [float(residual[third == k].mean()) if (third == k).any() else 0.0 for k in range(3)]
