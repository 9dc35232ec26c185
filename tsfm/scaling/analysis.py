"""Fits and tests all laws for ``tsfm scaling fit``; the results are one record, the content of fit.json."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from tsfm.scaling.laws.bootstrap import percentile_interval, profile_interval
from tsfm.scaling.laws.broken import broken_law
from tsfm.scaling.laws.compare import Record, compare_groups
from tsfm.scaling.laws.estimate import Fit, fit_joint, named_intervals, why_not_identifiable
from tsfm.scaling.laws.form import NAMES, PUBLISHED, JointLaw, training_flops
from tsfm.scaling.laws.joint import COLUMNS, as_dict, joint_problem
from tsfm.scaling.laws.minimise import DELTA, LARGEST_EXPONENT
from tsfm.scaling.laws.repetition import repetition
from tsfm.scaling.laws.routes import Optimum, Parabola, curve_minima, isoflop, isoflop_bias, parabolas
from tsfm.scaling.laws.single import (
    FEWEST,
    PowerLaw,
    best_of_bins,
    held_out_errors,
    power_law,
    preferred_form,
    saturating_law,
)
from tsfm.scaling.runs.ledger import Runs, distinct
from tsfm_data.errors import InputError

HELD_OUT = 0.1  # share of the runs, those with the most compute, on which the extrapolation is tested
KEPT_DRAWS = 1000  # in fit.json, for plans
FLATTEST = 0.005  # exponents below count as 0
OUTLIER = 6.0  # robust standard deviations from the law
BUDGETS_PER_DECADE = 2
DIFFERENT = 0.05  # below this p two groups do not follow one law


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


def weak_constants(fit: Fit) -> list[str]:
    """Warnings about constants that the data hardly determine."""
    low, high = percentile_interval(fit.draws)
    words = []
    if low[0] < 0.01 * fit.runs.loss.min():
        words.append("E is not identifiable: its interval reaches 0, so there may be no irreducible loss")
    for name in ("alpha", "beta"):
        k = NAMES.index(name)
        if low[k] < 0.01 or high[k] > 0.9 * LARGEST_EXPONENT:
            words.append(f"{name} is not identifiable: its interval is {low[k]:.3g} to {high[k]:.3g}")
    for name in ("A", "B"):
        k = NAMES.index(name)
        if high[k] > 1e3 * low[k]:
            words.append(
                f"{name} is hardly determined: its interval spans a factor of {high[k] / max(low[k], 1e-300):.2g}"
            )
    return words


def why_no_law(fit: Fit) -> list[str]:
    """Reasons why a fit is rejected: an exponent at a bound of the search."""
    reasons = []
    for name, word in (("alpha", "size"), ("beta", "data")):
        exponent = fit.law[NAMES.index(name)]
        if exponent < FLATTEST or exponent > 0.9 * LARGEST_EXPONENT:
            reasons.append(f"{name} is {exponent:.2g}: the losses do not fall with {word} as a power law")
    return reasons


def as_json(value: Any) -> Any:
    """A record for JSON, which has no infinite or missing numbers: they become None."""
    if isinstance(value, dict):
        return {key: as_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(part) for part in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def profile_intervals(fit: Fit) -> dict[str, list[float | None]]:
    """95 % intervals of the constants from the profile of the objective; None for an open side."""
    flat = joint_problem(fit.runs.params, fit.runs.tokens, fit.runs.loss, fit.problem.problem.delta, centered=False)
    theta, draws = flat.to_theta(fit.law[None])[0], flat.to_theta(fit.draws)
    result: dict[str, list[float | None]] = {}
    for name, column in COLUMNS.items():
        spread = float(np.clip(np.diff(np.quantile(draws[:, column], [0.16, 0.84]))[0] / 2, 1e-4, 3.0))
        ends = profile_interval(flat.problem, theta, column, spread, fit.runs.runs)
        if name in ("E", "A", "B"):
            ends = (float(np.exp(ends[0])), float(np.exp(ends[1])))
        result[name] = [end if np.isfinite(end) and end > 0 else None for end in ends]
    return result


def sensitivity(fit: Fit) -> list[Record]:
    """Fits without outliers, with other widths of the Huber loss, and with E = 0."""
    runs, delta = fit.runs, fit.problem.problem.delta
    residual = fit.problem.problem.residuals(fit.theta)
    spread = 1.4826 * float(np.median(np.abs(residual)))
    highest = np.argsort(-runs.loss, kind="stable")[: max(1, round(0.02 * len(runs)))]
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
    cases.append((f"without the {len(highest)} highest losses", runs.select(without), delta, False))
    cases += [(f"Huber width {width:g}", runs, width, False) for width in (1e-4, 1e-2)]
    cases += [("least squares", runs, float("inf"), False), ("E = 0", runs, delta, True)]
    rows = []
    for name, part, width, zero in cases:
        if why_not_identifiable(part):
            continue
        problem = joint_problem(part.params, part.tokens, part.loss, width, zero_E=zero)
        solution = problem.fit()
        law = problem.to_laws(solution.theta)[0]
        values = as_dict(law) | ({"E": 0.0} if zero else {})
        error = float(np.sqrt((problem.problem.residuals(solution.theta[0]) ** 2).mean()))
        rows.append(
            {"fit": name, "runs": part.runs, **values, "a": float(JointLaw(*law).size_exponent), "rms_log_error": error}
        )
    return rows


def outlier_warnings(fit: Fit, rows: list[Record]) -> list[str]:
    """Warnings about constants that move by more than a standard error without a few runs."""
    warnings = []
    ends = named_intervals(fit)
    for row in rows:
        # On data without noise the standard errors are 0, and rounding errors would exceed them.
        least = {n: max((ends[n][1] - ends[n][0]) / 4, 1e-3 * abs(fit.law[k])) for k, n in enumerate(NAMES)}
        moved = [n for k, n in enumerate(NAMES) if abs(row[n] - fit.law[k]) > least[n]]
        if row["fit"].startswith("without") and moved:
            changes = ", ".join(f"{n} from {fit.law[NAMES.index(n)]:.4g} to {row[n]:.4g}" for n in moved)
            warnings.append(f"a few runs decide: {row['fit']} the fit changes {changes}, more than a standard error")
    return warnings


def extrapolation(runs: Runs, delta: float) -> Record | None:
    """Fit without the runs of the largest compute and predict them; None if too few would be left."""
    count = max(3, round(HELD_OUT * len(runs)))
    order = np.argsort(runs.flops, kind="stable")
    keep = np.zeros(len(runs), bool)
    keep[order[:-count]] = True
    seen, held = runs.select(keep), runs.select(~keep)
    if not keep.any() or why_not_identifiable(seen):
        return None
    problem = joint_problem(seen.params, seen.tokens, seen.loss, delta)
    solution = problem.fit()
    law = problem.to_laws(solution.theta)[0]
    error = np.log(np.asarray(JointLaw(*law).loss(held.params, held.tokens)) / held.loss)
    inside = problem.problem.residuals(solution.theta[0])
    return {
        "held_out_rows": count,
        "largest_flops_seen": float(seen.flops.max()),
        "largest_flops_held_out": float(held.flops.max()),
        "mean_log_error": float(error.mean()),
        "rms_log_error": float(np.sqrt((error**2).mean())),
        "rms_log_error_seen": float(np.sqrt((inside**2).mean())),
        "law": as_dict(law),
    }


def optimal_rows(fit: Fit) -> list[Record]:
    """The compute-optimal size, data and loss for budgets from the smallest run to a hundred times the largest."""
    low, high = (np.log10(end) for end in (fit.runs.flops.min(), fit.runs.flops.max()))
    steps = np.arange(np.ceil(low * BUDGETS_PER_DECADE), np.floor((high + 2) * BUDGETS_PER_DECADE) + 1)
    rows = []
    for flops in 10 ** (steps / BUDGETS_PER_DECADE):
        values = {}
        for name, law in (("value", fit.law[None]), ("draws", fit.draws)):
            joint = JointLaw.from_rows(law)
            with np.errstate(all="ignore"):
                params = np.asarray(joint.optimal_params(float(flops)))
                tokens = float(flops) / 6 / params
                values[name] = np.stack([params, tokens, np.asarray(joint.loss(params, tokens))], axis=1)
        finite = values["draws"][np.isfinite(values["draws"]).all(axis=1)]
        if not len(finite):
            continue
        ends = percentile_interval(finite)
        inside = flops <= fit.runs.flops.max() and all(
            seen.min() <= best <= seen.max()
            for seen, best in zip((fit.runs.params, fit.runs.tokens), values["value"][0], strict=False)
        )
        row: Record = {"flops": float(flops), "beyond_data": not inside}
        for k, name in enumerate(("params", "tokens", "loss")):
            row |= {name: float(values["value"][0, k]), f"{name}_ci95": [float(ends[0, k]), float(ends[1, k])]}
        rows.append(row)
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


def joint_record(fit: Fit) -> Record:
    """The part of fit.json about the joint law."""
    with np.errstate(invalid="ignore"):  # draws in which neither exponent differs from 0
        exponents = np.asarray(JointLaw.from_rows(fit.draws).size_exponent)[:, None]
    residual = fit.problem.problem.residuals(fit.theta)
    low, high = percentile_interval(exponents[np.isfinite(exponents[:, 0])])
    return as_dict(fit.law) | {
        "identifiable": True,
        "ci95": named_intervals(fit),
        "profile_ci95": profile_intervals(fit),
        "not_identifiable": weak_constants(fit),
        "objective": fit.objective,
        "huber_delta": fit.problem.problem.delta,
        "rms_log_error": float(np.sqrt((residual**2).mean())),
        "size_exponent": {"a": float(JointLaw(*fit.law).size_exponent), "ci95": [float(low[0]), float(high[0])]},
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
            f"{len(rows):,} rows of {rows.runs} runs are training curves: the joint law is fitted to the last of each"
        )
    reasons = why_not_identifiable(runs)
    fit = None if reasons else fit_joint(runs, draws, seed, delta)
    if fit is not None and (reasons := why_no_law(fit)):
        fit = None
    profiles = parabolas(runs)
    isoflop_route, curve_route = isoflop(runs, profiles, seed), curve_minima(rows, seed)
    single_rows, single = single_laws(runs)
    nothing: Record = dict.fromkeys(NAMES) | {"ci95": dict.fromkeys(NAMES)}
    choices = [] if fit is None else sensitivity(fit)
    warnings += [] if fit is None else outlier_warnings(fit, choices)
    repeats = None if fit is None else repetition(runs, delta, fit.law)
    if repeats is not None and repeats.get("preferred"):
        warnings.append("the joint law counts repeated tokens as new, but a law in which they count less fits better")
    groups = compare_groups(runs, min(draws, 2000), seed, delta)
    warnings += [
        f"{pair['first']} and {pair['second']} do not follow one law (p = {pair['p_one_law']:.2g}), but the "
        "laws above are fitted to both together; fit each group in a table of its own"
        for pair in ([] if groups is None else groups["pairs"])
        if pair["p_one_law"] < DIFFERENT
    ]
    joint = nothing | {"identifiable": False, "not_identifiable": reasons} if fit is None else joint_record(fit)
    record: Record = {
        "format": "tsfm scaling fit 1",
        "data": _data_record(rows, runs),
        "settings": {"draws": draws, "seed": seed, "huber_delta": delta, "interval": "percentile bootstrap over runs"},
        "joint": joint,
        "routes": {
            "curves": _route(curve_route),
            "isoflop": _route(isoflop_route),
            "isoflop_bias": None if fit is None else isoflop_bias(runs, profiles, JointLaw(*fit.law)),
        },
        "single": single_rows,
        "extrapolation": None if fit is None else extrapolation(runs, delta),
        "sensitivity": choices,
        "repetition": repeats,
        "groups": groups,
        "optimal": [] if fit is None else optimal_rows(fit),
        "published": {name: dict(zip(NAMES, law, strict=True)) for name, law in PUBLISHED.items()},
        "warnings": warnings,
        "draws": [] if fit is None else [[float(f"{v:.7g}") for v in row] for row in fit.draws[:KEPT_DRAWS]],
    }
    return Analysis(as_json(record), runs, rows, fit, profiles, isoflop_route, curve_route, single)


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
