"""The record of a fit: the content of ``fit.json``.

Numbers are plain floats, and None where a value is infinite or unknown: an interval whose upper end is None is open.
Losses are in the units of the table; errors and noise are those of log loss. Sizes are in parameters, compute in FLOPs.
"""

from typing import Any, TypedDict

Record = dict[str, Any]
Interval = list[float | None]  # lower and upper end, 95 %


class JointRecord(TypedDict, total=False):
    """The joint law E + A / N^alpha + B / D^beta; without a law only the first four keys, with None as constants."""

    identifiable: bool
    not_identifiable: list[str]  # reasons why there is no law, or warnings about single constants
    ci95: dict[str, Interval | None]  # of E, A, B, alpha, beta and a, from the profile
    a: float | None  # exponent of the compute-optimal size
    E: float | None
    A: float | None
    B: float | None
    alpha: float | None
    beta: float | None
    bootstrap_ci95: dict[str, Interval]
    objective: float  # Huber loss, summed over runs
    converged: bool
    unconverged_draws: int
    huber_delta: float
    rms_log_error: float
    noise: float  # robust standard deviation about the law
    freedom: int  # degrees of freedom of the intervals


class RunsRecord(TypedDict):
    """The fitted runs, from which plans find their intervals."""

    params: list[float]
    tokens: list[float]
    loss: list[float]
    clusters: list[int]  # number of the training of each run, from 0
    unique: list[float] | None


class DataRecord(TypedDict):
    """Facts about the table; ranges are smallest and largest value."""

    file: str
    sha256: str
    rows: int
    runs: int
    fitted_rows: int
    sizes: int
    amounts_of_data: int
    params: list[float]
    tokens: list[float]
    flops: list[float]
    loss: list[float]
    flops_over_6ND: list[Record]


class LawRecord(TypedDict):
    """All about the law of one set of runs: the whole table, or a group."""

    data: DataRecord
    runs: RunsRecord
    joint: JointRecord
    extrapolation: Record | None  # error on the runs of the largest compute by the law of the others
    misfit: Record | None  # p of patterns in the residuals, of lack of fit, and of unequal noise
    laws: list[Record]  # other forms of the law, with held-out errors and a plan; one is preferred
    sensitivity: list[Record]  # fits without outliers and with other widths
    repetition: Record | None  # R_star and R_params of the law of repeated data
    optimal: list[Record]  # compute-optimal plans with intervals; beyond_data marks extrapolation
    warnings: list[str]


class FitRecord(LawRecord):
    """The whole of ``fit.json``; with groups, the law of all runs is only identifiable if the groups do not differ."""

    format: str
    settings: Record  # draws, seed, huber_delta, and how intervals are found
    routes: Record  # exponents of approach 1 (curves) and 2 (isoflop)
    single: list[Record]  # laws in one variable
    groups: Record | None  # laws: a LawRecord for each group; pairs: tests whether two follow one law
    published: dict[str, dict[str, float]]
