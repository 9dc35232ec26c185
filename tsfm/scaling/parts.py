"""The parts of the record of a law: constants and warnings, plans, laws in one variable, facts about the runs."""

from functools import partial

import numpy as np

from tsfm.scaling.laws.bootstrap import percentile_interval
from tsfm.scaling.laws.broken import broken_law
from tsfm.scaling.laws.estimate import (
    CONSTANTS,
    FLATTEST,
    Fit,
    Interval,
    constants,
    optimal_plans,
)
from tsfm.scaling.laws.form import FLOPS_PER_TOKEN, NAMES, JointLaw, training_flops
from tsfm.scaling.laws.joint import as_dict
from tsfm.scaling.laws.minimise import LARGEST_EXPONENT
from tsfm.scaling.laws.misfit import misfit_warnings
from tsfm.scaling.laws.profile import open_ends
from tsfm.scaling.laws.routes import Optimum
from tsfm.scaling.laws.sensitivity import outlier_warnings
from tsfm.scaling.laws.single import (
    FEWEST,
    PowerLaw,
    best_of_bins,
    held_out_errors,
    power_law,
    preferred_form,
    saturating_law,
)
from tsfm.scaling.record import Record
from tsfm.scaling.runs.ledger import Runs, distinct

BUDGETS_PER_DECADE = 2
UNLIKE = 1.3  # ratio of the widths of two intervals from which they are explained
FEW = 50  # trainings below which a draw of the bootstrap misses parts of the design
SingleLaws = dict[str, tuple[np.ndarray, PowerLaw | None, PowerLaw | None]]  # rows used, pure and saturating law


def weak_constants(fit: Fit, intervals: dict[str, Interval]) -> list[str]:
    """Warnings about constants that the data hardly determine."""
    words = []
    losses = fit.runs.loss
    if fit.problem.problem.log and fit.floor is None and intervals["E"][0] < 0.01 * losses.min():
        words.append("E is not identifiable: its interval reaches 0, so there may be no irreducible loss")
    if not fit.problem.problem.log and intervals["E"][0] < losses.min() - np.ptp(losses):
        words.append(f"E is hardly determined: its interval is {intervals['E'][0]:.3g} to {intervals['E'][1]:.3g}")
    for name in ("alpha", "beta"):
        low, high = intervals[name]
        if low < FLATTEST or high > 0.9 * LARGEST_EXPONENT:
            words.append(f"{name} is not identifiable: its interval is {low:.3g} to {high:.3g}")
    for name in ("A", "B"):
        low, high = intervals[name]
        if high > 1e3 * low:
            span = f"spans a factor of {high / max(low, 1e-300):.2g}" if np.isfinite(high) else "is open above"
            words.append(f"{name} is hardly determined: its interval {span}")
    low, high = intervals["a"]
    if high - low > 0.5:
        words.append(f"a is hardly determined: its interval is {low:.2f} to {high:.2f}")
    return words


def why_intervals_differ(fit: Fit, intervals: dict[str, Interval], drawn: dict[str, list[float]]) -> list[str]:
    """Constants whose intervals by profile and bootstrap differ, and what differs between the two for these runs.

    Args:
        fit: the joint law.
        intervals: of each constant by the profile.
        drawn: ends of each constant by the bootstrap.
    """
    notes = []
    for name, (low, high) in intervals.items():
        ends, lowest = np.array([[low, high], drawn[name]]), 0.0
        if name in ("A", "B"):  # their intervals are found for the logarithm
            ends, lowest = np.log(np.maximum(ends, 1e-300)), -600.0
        width, other = (float(wide[1] - max(wide[0], lowest)) for wide in ends)
        if np.isfinite(other) and not other / UNLIKE <= width <= other * UNLIKE:
            wider = f"{other / width:.2g} times as wide" if np.isfinite(width) else "closed"
            notes.append(f"{name}: {low:.3g} to {high:.3g} by the profile; by the bootstrap {wider}")
    if not notes:
        return []
    count, draws = fit.runs.runs, fit.draws
    if count < FEW:
        notes.append(f"a draw leaves out about {round(count * (1 - 1 / count) ** count)} of the {count} trainings")
    at_zero = float((draws[:, 0] <= 0).mean())
    if at_zero > 0.025:
        notes.append(f"E is 0, the end of its range, in {100 * at_zero:.0f} % of the draws")
    best = fit.problem.to_laws(fit.profile.theta[None])[0]
    moved = [
        f"{name} {there:.3g} instead of {here:.3g}"
        for name, here, there in zip(NAMES, fit.law, best, strict=True)
        if name in intervals and abs(here - there) > (intervals[name][1] - intervals[name][0]) / 8
    ]
    if moved:
        notes.append(
            f"draws minimise a Huber loss of width {fit.problem.problem.delta:.2g}, the profile one of width "
            f"{fit.profile.problem.delta:.2g}, which follows the noise: its best law has {', '.join(moved)}"
        )
    if fit.runs.runs < len(fit.runs):
        notes.append(
            "trainings have several rows: draws take whole trainings, the profile corrects for what they share"
        )
    return notes


def optimal_rows(fit: Fit) -> list[Record]:
    """The compute-optimal size, data and loss for budgets from the smallest run to a hundred times the largest."""
    low, high = (np.log10(end) for end in (fit.runs.flops.min(), fit.runs.flops.max()))
    steps = np.arange(np.ceil(low * BUDGETS_PER_DECADE), np.floor((high + 2) * BUDGETS_PER_DECADE) + 1)
    budgets = 10 ** (steps / BUDGETS_PER_DECADE)
    if not len(budgets):
        return []

    quantities = partial(optimal_plans, budgets=budgets, positive=fit.problem.positive)
    value = np.exp(quantities(fit.law[None])[0])
    ends = open_ends(fit.intervals(quantities))
    ends[:, len(budgets) :] = fit.problem.loss_of(ends[:, len(budgets) :])
    value[len(budgets) :] = fit.problem.loss_of(value[len(budgets) :])
    count, rows = len(budgets), []
    for k, flops in enumerate(budgets):
        params, loss = float(value[k]), float(value[count + k])
        tokens = float(flops) / FLOPS_PER_TOKEN / params
        size_ends, loss_ends = ends[:, k].tolist(), ends[:, count + k].tolist()
        inside = flops <= fit.runs.flops.max() and all(
            seen.min() <= best <= seen.max() for seen, best in ((fit.runs.params, params), (fit.runs.tokens, tokens))
        )
        row: Record = {"flops": float(flops), "beyond_data": not inside, "params": params, "params_ci95": size_ends}
        row |= {"tokens": tokens, "tokens_ci95": [float(flops) / FLOPS_PER_TOKEN / end for end in size_ends[::-1]]}
        rows.append(row | {"loss": loss, "loss_ci95": loss_ends})
    return rows


def single_laws(runs: Runs) -> tuple[list[Record], SingleLaws]:
    """The laws in one variable, on the best loss of each tenth of a decade of parameters, data and compute."""
    rows, fits, log = [], {}, bool(runs.loss.min() > 0)
    for name, x in (("params", runs.params), ("tokens", runs.tokens), ("flops", runs.flops)):
        best = best_of_bins(x, runs.loss)
        if len(best) < FEWEST + (0 if log else 2):
            rows.append({"variable": name, "points": len(best), "not_identifiable": f"{len(best)} points"})
            continue
        pure = power_law(x[best], runs.loss[best]) if log else None
        full = saturating_law(x[best], runs.loss[best]) if len(best) >= FEWEST + 2 else None
        fits[name] = (best, pure, full)
        held = held_out_errors(x[best], runs.loss[best])
        row: Record = {"variable": name, "points": len(best), "held_out_rms": held}
        if pure is not None:
            row["power"] = {"x0": pure.x0, "exponent": pure.exponent, "ci95": list(pure.exponent_ci), "rms": pure.error}
        if full is not None:
            E_low, least = full.E_ci[0] if full.E_ci else 0.0, runs.loss.min()
            row["saturating"] = {"E": full.E, "x0": full.x0, "exponent": full.exponent, "rms": full.error}
            row["saturating"]["ci95"] = [end if np.isfinite(end) else None for end in full.exponent_ci]
            row["saturating"]["E_ci95"] = list(full.E_ci or ())
            row["saturating"]["E_identifiable"] = bool(E_low > (0.01 * least if log else least - np.ptp(runs.loss)))
        if held is not None:
            row["preferred"] = preferred_form(held)
        if held is not None and "broken" in held:
            bent = broken_law(x[best], runs.loss[best])
            row["broken"] = {"E": bent.E, "first": bent.first, "second": bent.second, "break_at": bent.break_at}
            row["broken"]["rms"] = bent.error
        rows.append(row)
    return rows, fits


def joint_record(fit: Fit, intervals: dict[str, Interval]) -> Record:
    """The part of fit.json about the joint law."""
    residual = fit.problem.problem.residuals(fit.theta)
    draws = constants(fit.draws)
    draws[:, 1:3] = np.exp(draws[:, 1:3])
    ends = percentile_interval(draws) if len(draws) else np.full((2, len(CONSTANTS)), np.nan)
    return as_dict(fit.law) | {
        "a": float(JointLaw(*fit.law).size_exponent),
        "identifiable": True,
        "ci95": {name: list(pair) for name, pair in intervals.items()},
        "bootstrap_ci95": {name: ends[:, k].tolist() for k, name in enumerate(CONSTANTS)},
        "interval_notes": why_intervals_differ(fit, intervals, dict(zip(CONSTANTS, ends.T.tolist(), strict=True))),
        "not_identifiable": weak_constants(fit, intervals),
        "objective": fit.objective,
        "converged": fit.converged,
        "unconverged_draws": fit.unconverged,
        "huber_delta": fit.problem.problem.delta,
        "measured": fit.measured,
        "floor": fit.floor,
        "rms_log_error": fit.problem.step * float(np.sqrt((residual**2).mean())),
        "noise": fit.problem.step * fit.profile.noise,
        "noise_exponent": next(iter(fit.problem.problem.trend), 0.0),
        "freedom": fit.profile.freedom,
    }


def law_warnings(fit: Fit, ends: dict[str, Interval], record: Record) -> list[str]:
    """Warnings about a fitted law."""
    warnings = [] if fit.converged else ["the fit has not converged: its constants are not those of the best law"]
    if fit.unconverged:
        warnings.append(f"draws of the bootstrap that have not converged and were left out: {fit.unconverged}")
    if fit.problem.problem.trend:
        warnings.append(
            f"the noise of runs changes with their compute, about as C^{record['joint']['noise_exponent']:.2g}: those "
            "with more noise count less in the fit"
        )
    warnings += misfit_warnings(
        record["misfit"], record["extrapolation"], fit.problem.step * fit.profile.noise, fit.measured
    )
    chosen = next((row for row in record["laws"] if row["preferred"]), None)
    if chosen is not None and chosen["law"] != "joint":
        joint = next(row for row in record["laws"] if row["law"] == "joint")
        plan, own = chosen["plan"], joint["plan"]
        warnings.append(
            f"another law predicts held-out runs better: {chosen['law']!r} misses them by "
            f"{chosen['cross_validation']:.2g} of {fit.measured}, the joint law by {joint['cross_validation']:.2g}; "
            f"for {plan['flops']:.2g} FLOPs it plans {plan['params']:.3g} parameters and a loss of {plan['loss']:.4g}, "
            f"the joint law {own['params']:.3g} and {own['loss']:.4g}"
        )
    warnings += outlier_warnings(fit, ends, record["sensitivity"])
    if (record["repetition"] or {}).get("preferred"):
        warnings.append("the joint law counts repeated tokens as new, but a law in which they count less fits better")
    return warnings


def runs_record(runs: Runs) -> Record:
    """The fitted runs, from which ``tsfm scaling plan`` finds the intervals of a plan."""
    columns = {name: getattr(runs, name).tolist() for name in ("params", "tokens", "loss", "clusters")}
    return columns | {"unique": None if runs.unique is None else runs.unique.tolist()}


def data_record(rows: Runs, runs: Runs) -> Record:
    """A ``DataRecord`` of all rows, and of the runs among them that are fitted."""
    ranges = {
        name: [float(values.min()), float(values.max())]
        for name, values in (
            ("params", runs.params),
            ("tokens", runs.tokens),
            ("flops", runs.flops),
            ("loss", runs.loss),
        )
    }
    counts = {"rows": len(rows), "runs": rows.runs, "fitted_rows": len(runs)}
    sizes = {"sizes": distinct(runs.params), "amounts_of_data": distinct(runs.tokens)}
    name = rows.source.replace("\\", "/").rsplit("/", 1)[-1]
    facts = {"file": name, "sha256": rows.digest} | counts | sizes | ranges
    return facts | {"flops_over_6ND": flops_over_rule(runs)}


def flops_over_rule(runs: Runs) -> list[Record]:
    """Median of compute in the table / 6 N D for every size; empty if all agree to 1 % or the table has no compute."""
    ratio = runs.flops / np.asarray(training_flops(runs.params, runs.tokens))
    if np.abs(ratio - 1).max() < 0.01:
        return []
    sizes = np.unique(runs.params)
    medians = [float(np.median(ratio[runs.params == size])) for size in sizes]
    return [{"params": float(size), "ratio": value} for size, value in zip(sizes, medians, strict=True)]


def route_record(optimum: Optimum | None) -> Record | None:
    """Exponent, interval and points of an approach; None if it has no optimum."""
    if optimum is None:
        return None
    points = [{"flops": float(c), "params": float(n)} for c, n in zip(optimum.flops, optimum.params, strict=True)]
    return {"exponent": optimum.exponent, "ci95": list(optimum.ci), "points": points}
