"""The record of a fit: the content of ``fit.json``, and its reading.

Numbers are plain floats, or None if a value is infinite or unknown: an interval whose upper end is None is open.
Losses are in the units of the table; errors and noise are those of log loss. Sizes are in parameters, compute in FLOPs.
"""

from pathlib import Path
from typing import Annotated, Any, NotRequired

from annotated_types import Ge, Gt, Le, Len
from typing_extensions import TypedDict

from tsfm_data.errors import InputError, unknown_name
from tsfm_data.io import check_record, read_record

MOST_RUNS = 100_000  # in a fit.json
WHAT, HINT = "a fit.json of this version of tsfm scaling fit", "run tsfm scaling fit LEDGER"

Record = dict[str, Any]
Interval = Annotated[list[float | None], Len(2, 2)]  # lower and upper end, 95 %
Positive = Annotated[float, Gt(0)]
Range = Annotated[list[Positive], Len(2, 2)]
Column = Annotated[list[Positive], Len(1, MOST_RUNS)]


class Constants(TypedDict):
    """The constants of a joint law E + A / N^alpha + B / D^beta; E may be negative if losses are."""

    E: float
    A: Positive
    B: Positive
    alpha: Positive
    beta: Positive


class JointStatus(TypedDict):
    """Whether the joint law is identifiable. If it is not, its constants and intervals are None."""

    identifiable: bool
    not_identifiable: list[str]  # reasons why there is no law, or warnings about single constants


class JointRecord(Constants, JointStatus):
    """The joint law, if it is identifiable."""

    ci95: dict[str, Interval | None]  # of E, A, B, alpha, beta and a, from the profile
    a: float  # exponent of the compute-optimal size
    bootstrap_ci95: dict[str, Interval]
    interval_notes: NotRequired[list[str]]  # where the two differ, and why
    objective: float  # Huber loss, summed over runs
    converged: bool
    unconverged_draws: int
    huber_delta: Positive
    measured: NotRequired[str]  # to which the law is fitted: log loss, or loss if some are at or below 0
    floor: NotRequired[float | None]  # E, if the user has fixed it
    rms_log_error: float  # of loss, if that is measured; the same holds for all errors
    noise: float  # robust standard deviation about the law; of runs at the centre of the table
    noise_exponent: NotRequired[float]  # of the noise in compute
    freedom: int  # degrees of freedom of the intervals


class RunsRecord(TypedDict):
    """The fitted runs, from which plans find their intervals."""

    params: Column
    tokens: Column
    loss: Annotated[list[float], Len(1, MOST_RUNS)]
    clusters: Annotated[list[Annotated[int, Ge(0), Le(MOST_RUNS)]], Len(1, MOST_RUNS)]  # training of each run, from 0
    unique: Column | None


class DataRecord(TypedDict):
    """Facts about the table; ranges are smallest and largest value."""

    file: str
    sha256: str
    rows: int
    runs: int
    fitted_rows: int
    sizes: int
    amounts_of_data: int
    params: Range
    tokens: Range
    flops: Range
    loss: Annotated[list[float], Len(2, 2)]
    flops_over_6ND: list[Record]


class RepetitionRecord(TypedDict):
    """The law of repeated data, if there are any; without one, only the reasons."""

    R_star: NotRequired[Positive | None]
    R_params: NotRequired[Positive | None]
    law: NotRequired[Constants]  # in effective tokens


class PlanRecord(TypedDict):
    """What a plan needs of the law of one set of runs: the whole table, or a group."""

    data: DataRecord
    runs: RunsRecord
    joint: JointRecord
    repetition: RepetitionRecord | None
    warnings: list[str]


class LawRecord(PlanRecord):
    """All about the law of one set of runs."""

    extrapolation: Record | None  # error on the runs of the largest compute by the law of the others
    misfit: Record | None  # p of patterns in the residuals, of lack of fit, and of unequal noise
    laws: list[Record]  # other forms of the law, with held-out errors and a plan; one is preferred
    sensitivity: list[Record]  # fits without outliers and with other widths
    routes: Record  # exponents of approach 1 (curves) and 2 (isoflop)
    single: list[Record]  # laws in one variable
    metrics: list[Record]  # joint laws, and exponents in one variable, of the other metrics of the table
    optimal: list[Record]  # compute-optimal plans with intervals; beyond_data marks extrapolation
    next_runs: Record | None  # runs that would narrow the best size for ten times the largest compute most


class FitRecord(LawRecord):
    """The whole of ``fit.json``; with groups, the law of all runs is only identifiable if the groups do not differ."""

    format: str
    settings: Record  # draws, seed, huber_delta, and how intervals are found
    groups: Record | None  # laws: a LawRecord for each group; pairs: tests whether two follow one law
    published: dict[str, dict[str, float]]
    published_exponents: dict[str, dict[str, list[float]]]  # of time-series models, by architecture and variable


class _Status(TypedDict):
    joint: JointStatus


class _Groups(TypedDict):
    laws: dict[str, _Status]


class _AnyFit(_Status):
    groups: _Groups | None


def read_law(path: str | Path, group: str | None = None) -> Record:
    """The ``PlanRecord`` of a fit.json, with a law that is identifiable.

    Args:
        path: the file.
        group: group whose law is read, if the fit has groups.

    Raises:
        InputError: no such file or group, a file of another kind, or a joint law that is not identifiable.
    """
    if not Path(path).is_file():
        raise InputError(
            f"{path}: expected a fit.json, found no such file; tsfm scaling fit LEDGER --output DIR writes one"
        )
    whole: Record = dict(read_record(path, _AnyFit, WHAT, hint=HINT))
    groups: dict[str, Record] = {} if whole["groups"] is None else whole["groups"]["laws"]
    if group is not None and not groups:
        raise InputError(
            f"{path}: expected a fit with groups for --group {group}, found one law for all runs: leave it out"
        )
    if group is not None and group not in groups:
        raise InputError(f"{path}: {unknown_name('group', group, list(groups))}")
    if group is None and groups and not whole["joint"]["identifiable"]:
        raise InputError(f"{path}: expected --group with one of {', '.join(groups)}, found none; each has its own law")
    record = whole if group is None else groups[group]
    if not record["joint"]["identifiable"]:
        raise InputError(
            f"{path}: expected a joint law to plan with, found one that is not identifiable: "
            f"{'; '.join(record['joint']['not_identifiable']):.300}"
        )
    law: Record = dict(check_record(record, PlanRecord, path, WHAT, hint=HINT))
    law["runs"] = {name: law["runs"][name] for name in RunsRecord.__annotations__}
    if len({len(column) for column in law["runs"].values() if column is not None}) > 1:
        raise InputError(f"{path}: expected runs in lists of one length, found others: {HINT}")
    repetition = law["repetition"] or {}
    if "R_star" in repetition and not ({"R_params", "law"} <= set(repetition) and law["runs"]["unique"]):
        raise InputError(f"{path}: expected a law of repeated data with its runs, found a part of it: {HINT}")
    return law
