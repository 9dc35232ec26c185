"""Checks of the fits against known answers: the Chinchilla runs, the exponents of Yao et al. 2025, simulated laws."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from tsfm.scaling.laws.bootstrap import percentile_interval
from tsfm.scaling.laws.estimate import Fit, fit_joint
from tsfm.scaling.laws.form import NAMES, JointLaw, training_flops
from tsfm.scaling.laws.minimise import DELTA
from tsfm.scaling.laws.single import power_law
from tsfm.scaling.runs.ledger import Runs, read_runs
from tsfm_data.errors import InputError
from tsfm_data.io import data_folder, read_table
from tsfm_data.progress import progress

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
# Yao et al. 2025: exponents in the figures of the paper's notebooks, in distribution, on LSF and on Monash.
EVALUATIONS = ("ID", "OOD-LSF", "OOD-Monash")
EXPONENTS = {
    ("encoder", "N"): (0.029, 0.026, 0.023),
    ("encoder", "D"): (0.094, 0.029, 0.023),
    ("decoder", "N"): (0.015, 0.016, 0.017),
    ("decoder", "D"): (0.090, 0.019, 0.030),
}
PLANTED = np.array([1.8, 480.0, 2100.0, 0.35, 0.37])
BRANCHES = 5  # runs that share a training in the design "branches"
# Study of the coverage of intervals: design, number of runs, noise.
STUDY = (
    ("grid", 36, 0.003),
    ("grid", 36, 0.02),
    ("grid", 100, 0.01),
    ("isoflop", 60, 0.005),
    ("isoflop", 240, 0.01),
    ("unbalanced", 60, 0.003),
    ("unbalanced", 100, 0.005),
    ("unbalanced", 100, 0.02),
    ("truncated", 60, 0.003),
    ("truncated", 100, 0.003),
    ("branches", 120, 0.005),
    ("branches", 120, 0.01),
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
    return chinchilla_checks(base / CHINCHILLA, draws) + exponent_checks(base / POINTS)


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
    for (arch, axis), exponents in EXPONENTS.items():
        for evaluation, exponent in zip(EVALUATIONS, exponents, strict=True):
            part = frame[(frame["arch"] == arch) & (frame["axis"] == axis) & (frame["eval"] == evaluation)]
            x, loss = (part[name].to_numpy(dtype=np.float64) for name in ("x", "nll_digitised"))
            checks.append(Check(f"{arch} {axis} {evaluation}: exponent", exponent, power_law(x, loss).exponent, 1e-3))
    return checks


def planted_runs(design: str, count: int, noise: float, seed: int) -> Runs:
    """Simulated runs of the law ``PLANTED`` with normal noise on log loss.

    Args:
        design: "grid" (sizes by data), "isoflop" (budgets by sizes), "unbalanced" (many small runs, few large ones),
            "truncated" (no run above a budget) or "branches" (five budgets per training, with noise in common).
        count: approximate number of runs.
        noise: standard deviation of log loss.
        seed: random seed of noise and designs.
    """
    rng = np.random.default_rng(seed)
    side = round(count**0.5)
    if design == "grid":
        params, tokens = np.repeat(np.geomspace(1e7, 1e10, side), side), np.tile(np.geomspace(3e8, 3e11, side), side)
    elif design == "isoflop":
        flops, ratio = np.repeat(np.geomspace(1e18, 1e21, 6), count // 6), np.tile(np.geomspace(0.15, 6, count // 6), 6)
        params = np.sqrt(flops / 120) * ratio
        tokens = flops / 6 / params
    elif design == "unbalanced":
        params, tokens = 10 ** (7 + 3 * rng.beta(0.8, 2.0, count)), 10 ** (8.5 + 3 * rng.beta(0.8, 2.0, count))
    elif design == "truncated":
        params, tokens = 10 ** rng.uniform(7, 10, 20 * count), 10 ** rng.uniform(8.5, 11.5, 20 * count)
        chosen = np.flatnonzero(training_flops(params, tokens) < 1e20)[:count]
        params, tokens = params[chosen], tokens[chosen]
    elif design == "branches":
        trunks = max(1, count // BRANCHES)
        params = np.repeat(np.geomspace(1e7, 1e10, trunks), BRANCHES)
        tokens = np.tile(np.geomspace(3e8, 3e11, BRANCHES), trunks)
    else:
        raise InputError(f"expected the design grid, isoflop, unbalanced, truncated or branches, found {design!r}")
    clusters = np.arange(len(params)) // (BRANCHES if design == "branches" else 1)
    error = rng.normal(size=len(params))
    if design == "branches":  # half of the variance is shared by the runs of a training
        error = (error + rng.normal(size=clusters[-1] + 1)[clusters]) / np.sqrt(2)
    loss = np.asarray(JointLaw(*PLANTED).loss(params, tokens)) * np.exp(noise * error)
    flops = np.asarray(training_flops(params, tokens))
    return Runs("planted", "", params, tokens, loss, flops, clusters.astype(np.int64))


def coverage(
    design: str, count: int, noise: float, repeats: int, draws: int = 400, delta: float = DELTA
) -> Float64[np.ndarray, " 5"]:
    """Share of simulated tables in which the 95 % interval of each constant contains the true value."""
    inside = np.zeros(len(NAMES))
    for seed in progress(range(repeats), f"coverage ({design})"):
        fit = fit_joint(planted_runs(design, count, noise, seed), draws, seed, delta)
        low, high = percentile_interval(fit.draws)
        inside += (low <= PLANTED) & (high >= PLANTED)
    return inside / repeats
