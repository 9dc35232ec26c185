"""Checks of the fits against known answers: the Chinchilla runs, the exponents of Yao et al. 2025, simulated laws."""

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np

from tsfm.scaling.laws.bootstrap import percentile_interval
from tsfm.scaling.laws.choice import compare_laws
from tsfm.scaling.laws.estimate import CONSTANTS, Fit, constant_intervals, constants, fit_joint, optimal_plans
from tsfm.scaling.laws.form import NAMES, PUBLISHED_EXPONENTS, JointLaw, training_flops
from tsfm.scaling.laws.joint import joint_problem
from tsfm.scaling.laws.profile import follow_noises
from tsfm.scaling.laws.repetition import Repetition, repetition
from tsfm.scaling.laws.search import Search
from tsfm.scaling.laws.single import power_law
from tsfm.scaling.runs.ledger import Runs, read_runs
from tsfm_data.errors import InputError
from tsfm_data.io import data_folder, read_table

CHINCHILLA, POINTS = "scaling/chinchilla_runs_epoch.parquet", "scaling/tsfm_points.csv"
OBJECTIVE = 1.01827e-3
# Besiroglu et al. 2024 and an independent refit of the same runs: E, A, B, alpha, beta.
FIT_240 = (1.81724, 477.84, 2143.86, 0.34731, 0.36718)
FIT_245 = (1.89134, 495.726, 12845.6, 0.349313, 0.453049)
BOOTSTRAP_240 = (1.8169, 482.01, 2085.43, 0.3478, 0.3659)
INTERVALS_240 = {
    "E": (1.769, 1.871),
    "A": (285.2, 743.6),
    "B": (1042.0, 5810.0),
    "alpha": (0.317, 0.373),
    "beta": (0.331, 0.415),
}
EVALUATIONS = ("ID", "OOD-LSF", "OOD-Monash")  # of the published exponents, in their order
PLANTED = np.array([1.8, 480.0, 2100.0, 0.35, 0.37])
TREND = 0.15  # exponent of uneven noise in compute
STARTS = 6  # starting points of each fit in the study of coverage
BRANCHES = 5  # runs that share a training in the design "branches"
PLANNED = ("planned size", "planned loss")  # for ten times the largest compute
# Study of the coverage of intervals: design, number of runs, noise of log loss, distribution of the noise.
STUDY = (
    ("grid", 8, 0.003, "normal"),
    ("grid", 9, 0.003, "normal"),
    ("grid", 9, 0.02, "normal"),
    ("grid", 9, 0.01, "t2"),
    ("grid", 16, 0.005, "normal"),
    ("grid", 16, 0.003, "outlier"),
    ("grid", 36, 0.003, "normal"),
    ("grid", 36, 0.02, "normal"),
    ("grid", 36, 0.005, "t2"),
    ("grid", 36, 0.003, "outlier"),
    ("grid", 100, 0.01, "normal"),
    ("isoflop", 24, 0.005, "normal"),
    ("isoflop", 60, 0.005, "normal"),
    ("isoflop", 240, 0.01, "normal"),
    ("unbalanced", 20, 0.005, "normal"),
    ("unbalanced", 60, 0.003, "normal"),
    ("unbalanced", 60, 0.005, "t2"),
    ("unbalanced", 60, 0.003, "outlier"),
    ("unbalanced", 100, 0.02, "normal"),
    ("unbalanced", 300, 0.01, "normal"),
    ("unbalanced", 300, 0.01, "t2"),
    ("truncated", 60, 0.003, "normal"),
    ("truncated", 100, 0.003, "normal"),
    ("branches", 40, 0.005, "normal"),
    ("branches", 60, 0.005, "normal"),
    ("branches", 120, 0.005, "normal"),
    ("branches", 120, 0.01, "t2"),
    ("ledger", 48, 0.005, "normal"),
    ("grid", 36, 0.005, "growing"),
    ("unbalanced", 100, 0.005, "growing"),
)


@dataclass(frozen=True)
class Check:
    """A comparison with a known answer.

    Attributes:
        name: description of the value.
        expected: the known value.
        actual: the value that this code computes.
        tolerance: largest difference that passes.
    """

    name: str
    expected: float
    actual: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether the value is within the tolerance."""
        return bool(abs(self.actual - self.expected) <= self.tolerance)


def selftest(folder: Path | None = None, draws: int = 4000) -> list[Check]:
    """All comparisons with known answers.

    Args:
        folder: folder of data sets; by default the one named by TSFM_DATA.
        draws: resamples of the bootstrap.

    Raises:
        InputError: the data are missing.
    """
    base = folder or data_folder()
    if base is None or not (base / CHINCHILLA).is_file() or not (base / POINTS).is_file():
        raise InputError(
            f"expected {CHINCHILLA} and {POINTS} in the folder of data sets, found no such files in "
            f"{base or 'TSFM_DATA'}; set TSFM_DATA or give --data"
        )
    return chinchilla_checks(base / CHINCHILLA, draws) + exponent_checks(base / POINTS) + planted_checks()


def chinchilla_checks(path: Path, draws: int) -> list[Check]:
    """The fits on 240 and 245 runs, and the bootstrap."""
    fit = fit_joint(read_runs(path, exclude="epoch_outlier"), draws, seed=0)
    whole = fit_joint(read_runs(path), draws=1, seed=0)
    checks = [Check("240 runs: objective", OBJECTIVE, fit.objective, 1e-8)]
    checks += _constants("240 runs", FIT_240, fit, 1e-3)
    checks += _constants("245 runs", FIT_245, whole, 1e-3)
    checks += _constants("240 runs, published estimate", BOOTSTRAP_240, fit, 0.03)
    ends = percentile_interval(fit.draws)
    for name, published in INTERVALS_240.items():
        for side, value in enumerate(published):
            end = float(ends[side, NAMES.index(name)])
            word = ("lower", "upper")[side]
            tolerance = (0.06 if name in ("A", "B") else 0.02) * value
            checks.append(Check(f"240 runs, published interval: {name} {word}", value, end, tolerance))
    return checks


def _constants(label: str, known: tuple[float, ...], fit: Fit, relative: float) -> list[Check]:
    return [
        Check(f"{label}: {name}", value, float(ours), relative * value)
        for name, value, ours in zip(NAMES, known, fit.law, strict=True)
    ]


def exponent_checks(path: Path) -> list[Check]:
    """The twelve exponents in size and data; there are no digitised points for those in compute."""
    frame = read_table(path).frame
    checks = []
    for arch, axis in product(PUBLISHED_EXPONENTS, "ND"):
        for evaluation, exponent in zip(EVALUATIONS, PUBLISHED_EXPONENTS[arch][axis], strict=True):
            part = frame[(frame["arch"] == arch) & (frame["axis"] == axis) & (frame["eval"] == evaluation)]
            x, loss = (part[name].to_numpy(dtype=np.float64) for name in ("x", "nll_digitised"))
            checks.append(Check(f"{arch} {axis} {evaluation}: exponent", exponent, power_law(x, loss).exponent, 1e-3))
    return checks


def planted_checks() -> list[Check]:
    """Simulated tables on which fits go wrong easily: no floor, a loss below the floor, repeated data, another law."""
    base = planted_runs("grid", 49, 0.0, 0)
    noise = np.random.default_rng(3).normal(size=len(base))

    def fitted(loss: np.ndarray, spread: float, draws: int = 0) -> Fit:
        return fit_joint(replace(base, loss=loss * np.exp(spread * noise)), draws, 0)

    flat = JointLaw(0.0, 5.29, 8.03, 0.0709, 0.0792)
    no_floor = fitted(np.asarray(flat.loss(base.params, base.tokens)), 0.004, draws=300)
    low, _ = constant_intervals(no_floor)["E"]
    above = JointLaw(2.0, 1e6, 6e8, 0.8, 1.0)
    below = fitted(np.asarray(above.loss(base.params, base.tokens)), 0.02)
    inner = JointLaw(0.0, 20.0, 60.0, 0.12, 0.16)
    coupled = fitted(1.0 + np.asarray(inner.loss(base.params, base.tokens)) ** 2 / 4, 0.002)
    chosen = next(row["law"] for row in compare_laws(coupled) if row["preferred"])
    unique = base.tokens / np.tile([1.0, 2, 4, 10, 20, 40, 100], 7)[np.random.default_rng(1).permutation(49)]
    law = JointLaw(*PLANTED)
    seen = Repetition(unique, 15.0, 5.0).effective(law, base.params, base.tokens)
    repeated = replace(base, loss=np.asarray(law.loss(*seen)) * np.exp(0.002 * noise), unique=unique)
    found = repetition(fit_joint(repeated, 0, 0)) or {}
    least = float(below.runs.loss.min())
    return [
        Check("no floor: lower end of the interval of E", 0.0, low, 0.0),
        Check("no floor: draws that have not converged, of 300", 0.0, float(no_floor.unconverged), 3.0),
        Check("noise below the floor: E", 2.0, float(below.law[0]), 0.05),
        Check("noise below the floor: E above the least loss", 1.0, float(below.law[0] > least), 0.0),
        Check("coupled law: preferred by held-out error", 1.0, float(chosen == "coupled"), 0.0),
        Check("repeated data: R_D*", 15.0, float(found.get("R_star") or np.nan), 2.0),
        Check("repeated data: R_N*", 5.0, float(found.get("R_params") or np.nan), 1.0),
    ]


def planted_runs(design: str, count: int, noise: float, seed: int, tails: str = "normal") -> Runs:
    """Simulated runs of the law ``PLANTED`` with noise on log loss.

    Args:
        design: "grid" (sizes by data), "isoflop" (budgets by sizes), "unbalanced" (many small runs, few large ones),
            "truncated" (no run above a budget), "branches" (five budgets per training, which share half of the
            variance) or "ledger" (the same with six sizes, two seeds and four budgets over a factor of eight, as in
            our own sweep).
        count: approximate number of runs.
        noise: standard deviation of log loss, or scale of the t distribution.
        seed: random seed of the noise.
        tails: distribution of the noise: "normal", "t2" (Student's t with 2 degrees of freedom), "outlier" (normal,
            but one run is off by 20 standard deviations), or "growing" or "shrinking" (as a power of compute).
    """
    params, tokens, per_training = design_of(design, count, np.random.default_rng(count))
    rng = np.random.default_rng(seed)
    clusters = np.arange(len(params)) // per_training
    error = rng.standard_t(2, len(params)) if tails == "t2" else rng.normal(size=len(params))
    if per_training > 1:  # half of the variance is shared by the runs of a training
        error = (error + rng.normal(size=clusters[-1] + 1)[clusters]) / np.sqrt(2)
    if tails in ("growing", "shrinking"):
        error *= (params * tokens / np.exp(np.log(params * tokens).mean())) ** (TREND if tails == "growing" else -TREND)
    if tails == "outlier":
        error[rng.integers(len(error))] += 20 * rng.choice([-1, 1])
    loss = np.asarray(JointLaw(*PLANTED).loss(params, tokens)) * np.exp(noise * error)
    flops = np.asarray(training_flops(params, tokens))
    return Runs("planted", "", params, tokens, loss, flops, clusters.astype(np.int64))


def design_of(design: str, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, int]:
    """Sizes and tokens of simulated runs, and how many runs branch off each training."""
    side = round(count**0.5)
    if design == "grid":
        params, tokens = np.repeat(np.geomspace(1e7, 1e10, side), side), np.tile(np.geomspace(3e8, 3e11, side), side)
        return params[:count], tokens[:count], 1
    if design == "isoflop":
        levels = 6 if count >= 36 else 4
        flops, ratio = (
            np.repeat(np.geomspace(1e18, 1e21, levels), count // levels),
            np.geomspace(0.15, 6, count // levels),
        )
        params = np.sqrt(flops / 120) * np.tile(ratio, levels)
        return params, flops / 6 / params, 1
    if design == "unbalanced":
        return 10 ** (7 + 3 * rng.beta(0.8, 2.0, count)), 10 ** (8.5 + 3 * rng.beta(0.8, 2.0, count)), 1
    if design == "truncated":
        params, tokens = 10 ** rng.uniform(7, 10, 20 * count), 10 ** rng.uniform(8.5, 11.5, 20 * count)
        chosen = np.flatnonzero(training_flops(params, tokens) < 1e20)[:count]
        return params[chosen], tokens[chosen], 1
    if design == "branches":
        trunks = max(1, count // BRANCHES)
        params = np.repeat(np.geomspace(1e7, 1e10, trunks), BRANCHES)
        return params, np.tile(np.geomspace(3e8, 3e11, BRANCHES), trunks), BRANCHES
    if design == "ledger":
        sizes = np.geomspace(6e6, 5e9, 6).repeat(8)
        return sizes, np.tile(8e8 * 2.0 ** np.arange(4), 12), 4
    raise InputError(f"expected the design grid, isoflop, unbalanced, truncated, branches or ledger, found {design!r}")


def coverage(design: str, count: int, noise: float, tails: str, repeats: int) -> dict[str, float]:
    """Share of simulated tables in which each 95 % interval, of a constant or a plan, contains the true value.

    The tables have the same design, so that all are fitted at once. If the noise depends on compute, runs are weighed.
    """
    exact = planted_runs(design, count, 0.0, 0)
    joint = joint_problem(exact.params, exact.tokens, exact.loss)
    tables = [planted_runs(design, count, noise, seed, tails) for seed in range(repeats)]
    losses = np.stack([np.log(table.loss) - joint.unit for table in tables])
    top = replace(joint.problem, high=np.append(np.exp(losses.max()), joint.problem.high[1:]))
    starts = np.concatenate([joint.to_theta(PLANTED[None]), joint.starts(STARTS)])
    budget = np.array([10 * exact.flops.max()])

    def quantities(theta: np.ndarray) -> np.ndarray:
        laws = joint.to_laws(theta)
        return np.concatenate([constants(laws), optimal_plans(laws, budget)], axis=1)

    profiles = follow_noises(top, starts, losses, exact.clusters, tails in ("growing", "shrinking"))
    truth = quantities(joint.to_theta(PLANTED[None]))[0]
    inside = np.zeros((repeats, len(truth)), bool)
    even = [k for k, profile in enumerate(profiles) if not profile.problem.trend]
    for part in [even] * bool(even) + [[k] for k in range(repeats) if k not in even]:
        search = Search.join([profiles[k].search(quantities) for k in part])
        inside[part] = search.contain(truth[search.which]).reshape(len(part), -1)
    return dict(zip((*CONSTANTS, *PLANNED), inside.mean(axis=0).tolist(), strict=True))
