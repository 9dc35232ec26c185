"""Laws of the other metrics of a table, such as MASE and WQL, or the loss of each frequency or source."""

import numpy as np

from tsfm.scaling.laws.estimate import (
    CONSTANTS,
    constant_intervals,
    constants,
    fit_joint,
    why_no_law,
    why_not_identifiable,
    why_nothing_known,
)
from tsfm.scaling.laws.single import FEWEST, best_of_bins, power_law
from tsfm.scaling.record import Record
from tsfm.scaling.runs.ledger import Runs


def metric_laws(runs: Runs, delta: float) -> list[Record]:
    """The joint law of every metric, or why there is none, and its exponents in one variable.

    Args:
        runs: the runs that are fitted, with their metrics.
        delta: width of the Huber loss.
    """
    others = [name for name, values in runs.metrics.items() if not np.array_equal(values, runs.loss)]
    return [_metric_law(runs.with_loss(name), name, delta) for name in others]


def _metric_law(runs: Runs, name: str, delta: float) -> Record:
    row: Record = {"metric": name, "runs": runs.runs, "exponents": exponents(runs)}
    reasons = why_not_identifiable(runs) if len(runs) else ["no values"]
    if not reasons:
        fit = fit_joint(runs, 0, 0, delta)
        ends = constant_intervals(fit)
        if not (reasons := why_no_law(fit) or why_nothing_known(ends)):
            values = constants(fit.law[None])[0]
            values[1:3] = np.exp(values[1:3])
            row["law"] = dict(zip(CONSTANTS, values.tolist(), strict=True))
            row["ci95"] = {key: list(pair) for key, pair in ends.items()}
            row["noise"] = fit.profile.noise
    return row | {"not_identifiable": reasons}


def exponents(runs: Runs) -> Record:
    """Exponent and 95 % interval of the pure power law in size, data and compute, on the best of each tenth decade.

    There are none if some values are at or below 0.
    """
    found: Record = {}
    if not len(runs) or runs.loss.min() <= 0:
        return found
    for name, x in (("params", runs.params), ("tokens", runs.tokens), ("flops", runs.flops)):
        best = best_of_bins(x, runs.loss)
        if len(best) >= FEWEST:
            law = power_law(x[best], runs.loss[best])
            found[name] = {"exponent": law.exponent, "ci95": list(law.exponent_ci)}
    return found
