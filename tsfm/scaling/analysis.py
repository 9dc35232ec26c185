"""Fits and tests all laws for ``tsfm scaling fit``; the results are one record, the content of fit.json."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tsfm.scaling.laws.bootstrap import percentile_interval
from tsfm.scaling.laws.broken import broken_law
from tsfm.scaling.laws.choice import compare_laws
from tsfm.scaling.laws.compare import compare_groups
from tsfm.scaling.laws.estimate import (
    CONSTANTS,
    FLATTEST,
    Fit,
    Interval,
    constant_intervals,
    constants,
    fit_joint,
    optimal_plans,
    why_no_law,
    why_not_identifiable,
    why_nothing_known,
)
from tsfm.scaling.laws.form import FLOPS_PER_TOKEN, NAMES, PUBLISHED, JointLaw, training_flops
from tsfm.scaling.laws.joint import as_dict
from tsfm.scaling.laws.minimise import DELTA, LARGEST_EXPONENT
from tsfm.scaling.laws.misfit import extrapolation, misfit, misfit_warnings
from tsfm.scaling.laws.profile import open_ends
from tsfm.scaling.laws.repetition import repetition
from tsfm.scaling.laws.routes import Optimum, Parabola, curve_minima, isoflop, isoflop_bias, parabolas
from tsfm.scaling.laws.sensitivity import outlier_warnings, sensitivity
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
from tsfm_data.errors import InputError

BUDGETS_PER_DECADE = 2
DIFFERENT = 0.05  # below this p two groups do not follow one law
GROUP_DRAWS = 2000  # resamples of the bootstrap of a group
FORMAT = "tsfm scaling fit 2"
INTERVAL = "profile of the objective at a Huber width that follows the noise, F distribution"


@dataclass(frozen=True)
class Analysis:
    """The record of results, and the data of the figures."""

    record: Record
    runs: Runs
    all_rows: Runs
    fit: Fit | None
    profiles: list[Parabola]
    isoflop: Optimum | None
    curves: Optimum | None
    single: dict[str, tuple[np.ndarray, PowerLaw, PowerLaw | None]]


def as_json(value: Any) -> Any:
    """A record for JSON, which has no infinite or missing numbers: they become None."""
    if isinstance(value, dict):
        return {key: as_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(part) for part in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def weak_constants(fit: Fit, intervals: dict[str, Interval]) -> list[str]:
    """Warnings about constants that the data hardly determine."""
    words = []
    if intervals["E"][0] < 0.01 * fit.runs.loss.min():
        words.append("E is not identifiable: its interval reaches 0, so there may be no irreducible loss")
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


def optimal_rows(fit: Fit) -> list[Record]:
    """The compute-optimal size, data and loss for budgets from the smallest run to a hundred times the largest."""
    low, high = (np.log10(end) for end in (fit.runs.flops.min(), fit.runs.flops.max()))
    steps = np.arange(np.ceil(low * BUDGETS_PER_DECADE), np.floor((high + 2) * BUDGETS_PER_DECADE) + 1)
    budgets = 10 ** (steps / BUDGETS_PER_DECADE)
    if not len(budgets):
        return []

    quantities = partial(optimal_plans, budgets=budgets)
    value = np.exp(quantities(fit.law[None])[0])
    ends = open_ends(fit.intervals(quantities))
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


def single_laws(runs: Runs) -> tuple[list[Record], dict[str, tuple[np.ndarray, PowerLaw, PowerLaw | None]]]:
    """The laws in one variable, on the best loss of each tenth of a decade of parameters, data and compute."""
    rows, fits = [], {}
    for name, x in (("params", runs.params), ("tokens", runs.tokens), ("flops", runs.flops)):
        best = best_of_bins(x, runs.loss)
        if len(best) < FEWEST:
            rows.append({"variable": name, "points": len(best), "not_identifiable": f"{len(best)} points"})
            continue
        pure = power_law(x[best], runs.loss[best])
        full = saturating_law(x[best], runs.loss[best]) if len(best) >= FEWEST + 2 else None
        fits[name] = (best, pure, full)
        held = held_out_errors(x[best], runs.loss[best])
        row: Record = {
            "variable": name,
            "points": len(best),
            "power": {"x0": pure.x0, "exponent": pure.exponent, "ci95": list(pure.exponent_ci), "rms": pure.error},
            "held_out_rms": held,
        }
        if full is not None:
            E_low = full.E_ci[0] if full.E_ci else 0.0
            row["saturating"] = {"E": full.E, "x0": full.x0, "exponent": full.exponent, "rms": full.error}
            row["saturating"]["ci95"] = [end if np.isfinite(end) else None for end in full.exponent_ci]
            row["saturating"]["E_ci95"] = list(full.E_ci or ())
            row["saturating"]["E_identifiable"] = bool(E_low > 0.01 * runs.loss.min())
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
        "not_identifiable": weak_constants(fit, intervals),
        "objective": fit.objective,
        "converged": fit.converged,
        "unconverged_draws": fit.unconverged,
        "huber_delta": fit.problem.problem.delta,
        "rms_log_error": float(np.sqrt((residual**2).mean())),
        "noise": fit.profile.noise,
        "freedom": fit.profile.freedom,
    }


def analyse(rows: Runs, draws: int = 10_000, seed: int = 0, delta: float = DELTA) -> Analysis:
    """Fit and test every law; for laws that are not identifiable the record gives the reasons.

    Args:
        rows: a checked ledger.
        draws: resamples of the bootstrap.
        seed: random seed of the bootstrap.
        delta: width of the Huber loss.

    Raises:
        InputError: fewer than 100 draws, or a width that is not above 0.
    """
    if draws < 100 or not delta > 0:
        raise InputError(f"expected at least 100 draws and a Huber width above 0, found {draws} and {delta:g}")
    warnings = list(rows.warnings)
    runs = rows.last() if rows.has_curves else rows
    if rows.has_curves:
        warnings.append(
            f"{len(rows):,} rows of {rows.runs} runs are taken as training curves: the joint law is fitted to the last "
            "row of each; if every row is a finished training, such as a branch, give --every-row"
        )
    groups, different = _groups(rows, runs, draws, seed, delta)
    law, fit = law_record(rows, runs, draws, seed, delta, different)
    profiles = parabolas(runs)
    isoflop_route, curve_route = isoflop(runs, profiles, seed), curve_minima(rows, seed)
    single_rows, single = single_laws(runs)
    record: Record = {
        "format": FORMAT,
        "settings": {"draws": draws, "seed": seed, "huber_delta": delta, "interval": INTERVAL},
        **law,
        "routes": {
            "curves": _route(curve_route),
            "isoflop": _route(isoflop_route),
            "isoflop_bias": None if fit is None else isoflop_bias(runs, profiles, JointLaw(*fit.law)),
        },
        "single": single_rows,
        "groups": groups,
        "published": {name: dict(zip(NAMES, law, strict=True)) for name, law in PUBLISHED.items()},
        "warnings": warnings + law["warnings"],
    }
    return Analysis(as_json(record), runs, rows, fit, profiles, isoflop_route, curve_route, single)


def law_record(
    rows: Runs, runs: Runs, draws: int, seed: int, delta: float, reasons: list[str] | None = None
) -> tuple[Record, Fit | None]:
    """All about the joint law of some runs, and the fit if there is one.

    Args:
        rows: all rows, of which the runs are the last ones if they are training curves.
        runs: the runs to fit.
        draws: resamples of the bootstrap.
        seed: random seed of the bootstrap.
        delta: width of the Huber loss.
        reasons: why no law is fitted to these runs, if there are reasons already.
    """
    reasons = reasons or why_not_identifiable(runs)
    fit = None if reasons else fit_joint(runs, draws, seed, delta)
    if fit is not None and (reasons := why_no_law(fit)):
        fit = None
    ends = {} if fit is None else constant_intervals(fit)
    if fit is not None and (reasons := why_nothing_known(ends)):
        fit = None
    record: Record = {"data": _data_record(rows, runs), "runs": runs_record(runs)}
    if fit is None:
        nothing: Record = dict.fromkeys(CONSTANTS) | {"ci95": dict.fromkeys(CONSTANTS)}
        record["joint"] = nothing | {"identifiable": False, "not_identifiable": reasons}
        record |= {"extrapolation": None, "misfit": None, "laws": [], "sensitivity": [], "repetition": None}
        return record | {"optimal": [], "warnings": []}, None
    record["joint"] = joint_record(fit, ends)
    record["extrapolation"] = extrapolation(runs, delta)
    record["misfit"] = misfit(fit)
    record["laws"] = compare_laws(fit)
    record["sensitivity"] = sensitivity(fit)
    record["repetition"] = repetition(fit)
    record["optimal"] = optimal_rows(fit)
    record["warnings"] = _law_warnings(fit, ends, record)
    return record, fit


def _law_warnings(fit: Fit, ends: dict[str, Interval], record: Record) -> list[str]:
    """Warnings about a fitted law."""
    warnings = [] if fit.converged else ["the fit has not converged: its constants are not those of the best law"]
    if fit.unconverged:
        warnings.append(f"{fit.unconverged} draws of the bootstrap have not converged and were left out")
    warnings += misfit_warnings(record["misfit"], record["extrapolation"], fit.profile.noise)
    chosen = next((row for row in record["laws"] if row["preferred"]), None)
    if chosen is not None and chosen["law"] != "joint":
        joint = next(row for row in record["laws"] if row["law"] == "joint")
        plan, own = chosen["plan"], joint["plan"]
        warnings.append(
            f"another law predicts held-out runs better: {chosen['law']!r} misses them by "
            f"{chosen['cross_validation']:.2g} of log loss, the joint law by {joint['cross_validation']:.2g}; for "
            f"{plan['flops']:.2g} FLOPs it plans {plan['params']:.3g} parameters and a loss of {plan['loss']:.4g}, the "
            f"joint law {own['params']:.3g} and {own['loss']:.4g}"
        )
    warnings += outlier_warnings(fit, ends, record["sensitivity"])
    if (record["repetition"] or {}).get("preferred"):
        warnings.append("the joint law counts repeated tokens as new, but a law in which they count less fits better")
    return warnings


def _groups(rows: Runs, runs: Runs, draws: int, seed: int, delta: float) -> tuple[Record | None, list[str]]:
    """The law of each group, tests for each pair, and the reasons why all runs have no common law; None without any."""
    if runs.groups is None or rows.groups is None:
        return None, []
    laws, fits = {}, {}
    for k, label in enumerate(sorted(set(runs.groups))):
        part, part_rows = (table.select(np.array(table.groups) == label) for table in (runs, rows))
        laws[label], fit = law_record(part_rows, part, min(draws, GROUP_DRAWS), seed + 1 + k, delta)
        if fit is not None:
            fits[label] = fit
    pairs = compare_groups(fits, runs, seed)
    different = [
        f"{pair['first']} and {pair['second']} do not follow one law (p = {pair['p_one_law']:.2g})"
        for pair in pairs
        if pair["p_one_law"] < DIFFERENT
    ]
    return {"laws": laws, "pairs": pairs}, different


def runs_record(runs: Runs) -> Record:
    """The fitted runs, from which ``tsfm scaling plan`` finds the intervals of a plan."""
    columns = {name: getattr(runs, name).tolist() for name in ("params", "tokens", "loss", "clusters")}
    return columns | {"unique": None if runs.unique is None else runs.unique.tolist()}


def _data_record(rows: Runs, runs: Runs) -> Record:
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


def _route(optimum: Optimum | None) -> Record | None:
    if optimum is None:
        return None
    points = [{"flops": float(c), "params": float(n)} for c, n in zip(optimum.flops, optimum.params, strict=True)]
    return {"exponent": optimum.exponent, "ci95": list(optimum.ci), "points": points}
