"""How much the joint law depends on a few runs and on the choices of the fit."""

import numpy as np

from tsfm.scaling.laws.estimate import Fit, Interval, why_not_identifiable
from tsfm.scaling.laws.form import NAMES, JointLaw
from tsfm.scaling.laws.joint import as_dict, joint_problem
from tsfm.scaling.record import Record
from tsfm.scaling.runs.ledger import Runs

OUTLIER = 6.0  # robust standard deviations from the law
HIGHEST = 0.02  # share of the runs, those with the highest losses, without which the law is fitted again


def sensitivity(fit: Fit) -> list[Record]:
    """Fits without outliers, with other widths of the Huber loss, and with E = 0."""
    runs, delta = fit.runs, fit.problem.problem.delta
    residual = fit.problem.problem.residuals(fit.theta)
    spread = 1.4826 * float(np.median(np.abs(residual)))
    highest = np.argsort(-runs.loss, kind="stable")[: max(1, round(HIGHEST * len(runs)))]
    without = np.ones(len(runs), bool)
    without[highest] = False
    cases: list[tuple[str, Runs, float, bool]] = [("as fitted", runs, delta, False)]
    near = np.abs(residual) <= OUTLIER * max(spread, 1e-12)
    if not near.all():
        cases.append(
            (
                f"without {int((~near).sum())} runs farther than {OUTLIER:g} standard deviations from the law",
                runs.select(near),
                delta,
                False,
            )
        )
    few = "highest loss" if len(highest) == 1 else f"{len(highest)} highest losses"
    cases.append((f"without the {few}", runs.select(without), delta, False))
    cases += [(f"Huber width {width:g}", runs, width, False) for width in (1e-4, 1e-2)]
    cases += [("least squares", runs, float("inf"), False)]
    cases += [("E = 0", runs, delta, True)] if fit.problem.problem.log else []
    rows = []
    for name, part, width, zero in cases:
        if why_not_identifiable(part):
            continue
        floor, trend = 0.0 if zero else fit.floor, fit.problem.problem.trend
        problem = joint_problem(part.params, part.tokens, part.loss, width, floor, trend=trend)
        solution = problem.fit()
        law = problem.to_laws(solution.theta)[0]
        values = as_dict(law) | ({"E": 0.0} if zero else {})
        error = problem.step * float(np.sqrt((problem.problem.residuals(solution.theta[0]) ** 2).mean()))
        rows.append(
            {"fit": name, "runs": part.runs, **values, "a": float(JointLaw(*law).size_exponent), "rms_log_error": error}
        )
    return rows


def outlier_warnings(fit: Fit, intervals: dict[str, Interval], rows: list[Record]) -> list[str]:
    """Warnings about constants that move by more than a standard error without a few runs."""
    warnings = []
    for row in rows:
        # On data without noise the standard errors are 0, and rounding errors would exceed them.
        least = {n: max((intervals[n][1] - intervals[n][0]) / 4, 1e-3 * abs(fit.law[k])) for k, n in enumerate(NAMES)}
        moved = [n for k, n in enumerate(NAMES) if abs(row[n] - fit.law[k]) > least[n]]
        if row["fit"].startswith("without") and moved:
            changes = ", ".join(f"{n} from {fit.law[NAMES.index(n)]:.4g} to {row[n]:.4g}" for n in moved)
            warnings.append(f"a few runs decide: {row['fit']} the fit changes {changes}, more than a standard error")
    return warnings
