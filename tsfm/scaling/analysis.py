"""Fits and tests all laws for ``tsfm scaling fit``; the results are one record, the content of fit.json."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from tsfm.scaling.laws.choice import compare_laws
from tsfm.scaling.laws.compare import compare_groups
from tsfm.scaling.laws.design import next_runs
from tsfm.scaling.laws.estimate import (
    CONSTANTS,
    Fit,
    constant_intervals,
    fit_joint,
    why_no_law,
    why_not_identifiable,
    why_nothing_known,
)
from tsfm.scaling.laws.form import NAMES, PUBLISHED, PUBLISHED_EXPONENTS, JointLaw
from tsfm.scaling.laws.metrics import metric_laws
from tsfm.scaling.laws.minimise import DELTA
from tsfm.scaling.laws.misfit import extrapolation, misfit
from tsfm.scaling.laws.repetition import repetition
from tsfm.scaling.laws.routes import Optimum, Parabola, curve_minima, isoflop, isoflop_bias, parabolas
from tsfm.scaling.laws.sensitivity import sensitivity
from tsfm.scaling.parts import (
    SingleLaws,
    data_record,
    joint_record,
    law_warnings,
    optimal_rows,
    route_record,
    runs_record,
    single_laws,
)
from tsfm.scaling.record import Record
from tsfm.scaling.runs.ledger import Runs
from tsfm_data.errors import InputError

DIFFERENT = 0.05  # below this p two groups do not follow one law
GROUP_DRAWS = 2000  # resamples of the bootstrap of a group
FORMAT = "tsfm scaling fit 3"
INTERVAL = "profile of the objective at a Huber width that follows the noise, F distribution"


@dataclass(frozen=True)
class Law:
    """All about the law of one set of runs: its record, and the data of its figures.

    Attributes:
        record: a ``LawRecord``.
        runs: the runs that are fitted.
        rows: all rows of these runs; more than the runs if they are training curves.
        fit: the joint law; None if it is not identifiable.
        profiles: the parabolas of approach 2.
        isoflop: the optimum by approach 2.
        curves: the optimum by approach 1.
        single: the laws in one variable.
    """

    record: Record
    runs: Runs
    rows: Runs
    fit: Fit | None
    profiles: list[Parabola]
    isoflop: Optimum | None
    curves: Optimum | None
    single: SingleLaws


@dataclass(frozen=True)
class Analysis:
    """The record of results, and the laws from which figures are drawn.

    Attributes:
        record: a ``FitRecord``.
        whole: the law of all runs.
        groups: the law of each group.
    """

    record: Record
    whole: Law
    groups: dict[str, Law]

    @property
    def shown(self) -> dict[str, Law]:
        """The laws that the report shows: of each group if there is none for all of them, else of all runs."""
        return self.groups if self.groups and self.whole.fit is None else {"": self.whole}


def as_json(value: Any) -> Any:
    """A record for JSON, which has no infinite or missing numbers: they become None."""
    if isinstance(value, dict):
        return {key: as_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(part) for part in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def analyse(
    rows: Runs,
    draws: int = 10_000,
    seed: int = 0,
    delta: float = DELTA,
    floor: float | None = None,
    weigh: bool = False,
) -> Analysis:
    """Fit and test every law; for laws that are not identifiable the record gives the reasons.

    Args:
        rows: a checked ledger.
        draws: resamples of the bootstrap.
        seed: random seed of the bootstrap.
        delta: width of the Huber loss.
        floor: fixes E, if it is known.
        weigh: noisier runs count less, if a test says that the noise depends on compute.

    Raises:
        InputError: fewer than 100 draws, a width that is not above 0, or a floor that is not below the largest loss or
            is negative although no loss is.
    """
    if draws < 100 or not delta > 0:
        raise InputError(f"expected at least 100 draws and a Huber width above 0, found {draws} and {delta:g}")
    lowest = 0.0 if rows.loss.min() > 0 else -np.inf
    if floor is not None and not lowest <= floor < rows.loss.max():
        raise InputError(
            f"expected a floor from {lowest:g} to below the largest loss, {rows.loss.max():.4g}, found {floor:g}"
        )
    warnings = list(rows.warnings)
    if rows.has_curves:
        warnings.append(
            f"{len(rows):,} rows of {rows.runs} runs are taken as training curves: the joint law is fitted to the last "
            "row of each; if every row is a finished training, such as a branch, give --every-row"
        )
    groups: dict[str, Law] = {}
    for k, label in enumerate(sorted(set(rows.groups or ()))):
        part = rows.select(np.array(rows.groups) == label)
        groups[label] = law_of(part, min(draws, GROUP_DRAWS), seed + 1 + k, delta, floor, weigh=weigh)
    fits = {label: law.fit for label, law in groups.items() if law.fit is not None}
    pairs = compare_groups(fits, last_rows(rows), seed)
    different = [
        f"{pair['first']} and {pair['second']} do not follow one law (p = {pair['p_one_law']:.2g})"
        for pair in pairs
        if pair["p_one_law"] < DIFFERENT
    ]
    whole = law_of(rows, draws, seed, delta, floor, different, weigh)
    record: Record = {
        "format": FORMAT,
        "settings": {"draws": draws, "seed": seed, "huber_delta": delta, "interval": INTERVAL},
        **whole.record,
        "groups": {"laws": {label: law.record for label, law in groups.items()}, "pairs": pairs} if groups else None,
        "published": {name: dict(zip(NAMES, law, strict=True)) for name, law in PUBLISHED.items()},
        "published_exponents": PUBLISHED_EXPONENTS,
        "warnings": warnings + whole.record["warnings"],
    }
    return Analysis(as_json(record), whole, groups)


def last_rows(rows: Runs) -> Runs:
    """The rows that are fitted: the last one of each run if they are training curves."""
    return rows.last() if rows.has_curves else rows


def law_of(
    rows: Runs,
    draws: int,
    seed: int,
    delta: float,
    floor: float | None = None,
    different: list[str] | None = None,
    weigh: bool = False,
) -> Law:
    """The laws of some runs.

    Args:
        rows: all rows.
        draws: resamples of the bootstrap.
        seed: random seed of the bootstrap.
        delta: width of the Huber loss.
        floor: fixes E, if it is known.
        different: reasons why these runs are several groups with laws of their own, for which no common law is offered.
        weigh: noisier runs count less, if a test says that the noise depends on compute.
    """
    runs = last_rows(rows)
    reasons = different or why_not_identifiable(runs)
    fit = None if reasons else fit_joint(runs, draws, seed, delta, floor, weigh)
    if fit is not None and (reasons := why_no_law(fit)):
        fit = None
    ends = {} if fit is None else constant_intervals(fit)
    if fit is not None and (reasons := why_nothing_known(ends)):
        fit = None
    profiles = [] if different else parabolas(runs)
    by_size, by_curve = isoflop(runs, profiles, seed), None if different else curve_minima(rows, seed)
    single_rows, single = ([], {}) if different else single_laws(runs)
    record: Record = {
        "data": data_record(rows, runs),
        "runs": runs_record(runs),
        "routes": {
            "curves": route_record(by_curve),
            "isoflop": route_record(by_size),
            "isoflop_bias": None if fit is None else isoflop_bias(runs, profiles, JointLaw(*fit.law)),
        },
        "single": single_rows,
        "metrics": [] if different else metric_laws(runs, delta),
    }
    if fit is None:
        nothing: Record = dict.fromkeys(CONSTANTS) | {"ci95": dict.fromkeys(CONSTANTS)}
        record["joint"] = nothing | {"identifiable": False, "not_identifiable": reasons}
        record |= {"extrapolation": None, "misfit": None, "laws": [], "sensitivity": [], "repetition": None}
        record |= {"optimal": [], "next_runs": None, "warnings": []}
    else:
        record["joint"] = joint_record(fit, ends)
        record["extrapolation"] = extrapolation(runs, delta, floor, fit.problem.problem.trend)
        record["misfit"] = misfit(fit)
        record["laws"] = compare_laws(fit)
        record["sensitivity"] = sensitivity(fit)
        record["repetition"] = repetition(fit)
        record["optimal"] = optimal_rows(fit)
        record["next_runs"] = next_runs(fit)
        record["warnings"] = law_warnings(fit, ends, record)
    return Law(as_json(record), runs, rows, fit, profiles, by_size, by_curve, single)
