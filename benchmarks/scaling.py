"""The scaling-law fit compared with the ``chinchilla`` package and SciPy, and the coverage of its intervals.

Run it by ``python benchmarks/scaling.py``.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import pandas as pd
from common import run, write
from jaxtyping import Float64
from tabulate import tabulate

from tsfm.scaling import CHINCHILLA, STUDY, Runs, coverage, fit_joint, read_runs
from tsfm.scaling.laws.form import JointLaw
from tsfm.scaling.laws.routes import isoflop, parabolas
from tsfm_data.errors import InputError
from tsfm_data.io import data_folder, read_table

DRAWS = 10_000
SOME_DRAWS = 100  # of SciPy, of which the time is measured
DELTA = 1e-3
PUBLISHED_A = 0.49  # Hoffmann et al. 2022, approach 2
# The grid of Hoffmann et al. 2022, approach 3: 4,500 starts of log A, log B, log E, alpha and beta.
STARTS = {
    "a": np.arange(0.0, 26.0, 5.0),
    "b": np.arange(0.0, 26.0, 5.0),
    "e": np.arange(-1.0, 1.5, 0.5),
    "alpha": np.arange(0.0, 2.5, 0.5),
    "beta": np.arange(0.0, 2.5, 0.5),
}


def seconds(action: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this process for an action, and its result; other work on the machine does not count."""
    begun = time.process_time()
    result = action()
    return time.process_time() - begun, result


def huber(runs: Runs, theta: Float64[np.ndarray, " 5"]) -> tuple[float, Float64[np.ndarray, " 5"]]:
    """The objective of Hoffmann et al. and its gradient at log A, log B, log E, alpha, beta."""
    x, z, y = np.log(runs.params), np.log(runs.tokens), np.log(runs.loss)
    a, b, e, alpha, beta = theta
    terms = np.stack([a - alpha * x, b - beta * z, np.full_like(x, e)])
    top = terms.max(axis=0)
    share = np.exp(terms - top)
    total = share.sum(axis=0)
    residual = top + np.log(total) - y
    small = np.abs(residual) <= DELTA
    value = np.where(small, residual**2 / 2, DELTA * (np.abs(residual) - DELTA / 2)).sum()
    slope = np.clip(residual, -DELTA, DELTA) * share / total
    gradient = [slope[0].sum(), slope[1].sum(), slope[2].sum(), -(slope[0] * x).sum(), -(slope[1] * z).sum()]
    return float(value), np.array(gradient)


def scipy_fit(runs: Runs, starts: Iterable[Sequence[float]] | None = None) -> float:
    """The smallest objective that SciPy's L-BFGS reaches, with exact gradients.

    Args:
        runs: the training runs.
        starts: log A, log B, log E, alpha and beta of each start; by default all of ``STARTS``.
    """
    from scipy.optimize import minimize

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:  # scaled: its tolerances are absolute
        value, gradient = huber(runs, theta)
        return 1e3 * value, 1e3 * gradient

    options = {"maxiter": 2000, "ftol": 1e-14, "gtol": 1e-9}
    found = [
        minimize(objective, np.array(start), jac=True, method="L-BFGS-B", options=options)
        for start in starts or product(*STARTS.values())
    ]
    return min(float(minimum.fun) for minimum in found) / 1e3


def scipy_draws(runs: Runs, law: Float64[np.ndarray, " 5"], count: int) -> None:
    """Bootstrap draws by SciPy, each from the best law of all runs.

    Args:
        runs: the training runs.
        law: E, A, B, alpha and beta.
        count: number of draws.
    """
    E, A, B, alpha, beta = law
    start = (float(np.log(A)), float(np.log(B)), float(np.log(E)), float(alpha), float(beta))
    rng = np.random.default_rng(0)
    for _ in range(count):
        scipy_fit(runs.select(rng.integers(0, len(runs), len(runs))), [start])


def public_sets(folder: Path) -> list[dict[str, Any]]:
    """Every table of runs in a folder: our objective compared with that of SciPy, and the exponent of approach 2.

    Args:
        folder: tables with the columns params, tokens and loss; one with ``epoch_outlier`` is fitted without these
            runs, too.
    """
    rows = []
    for path in sorted(folder.glob("*")):
        table = read_table(path).frame if path.suffix in (".csv", ".parquet") else pd.DataFrame()
        if not {"params", "tokens", "loss"} <= set(table):
            continue
        for exclude in (None, "epoch_outlier") if "epoch_outlier" in table else (None,):
            runs = read_runs(path, exclude=exclude)
            ours, theirs = fit_joint(runs, 0, 0), scipy_fit(runs, product(*(axis[::2] for axis in STARTS.values())))
            optimum = isoflop(runs, parabolas(runs))
            row = {"set": path.stem, "runs": len(runs), "tsfm": ours.objective, "scipy": theirs}
            row |= {"a": float(JointLaw(*ours.law).size_exponent)}
            rows.append(row | {"isoflop": optimum and [optimum.exponent, *optimum.ci], "published": PUBLISHED_A})
    return rows


def chinchilla_fit(runs: Runs, points: int) -> float:
    """The objective that one grid fit of the package ``chinchilla`` reaches with its defaults.

    Args:
        runs: the training runs.
        points: starts along each of five axes; the package's example has 5.
    """
    import warnings

    from chinchilla import Chinchilla  # type: ignore[import-not-found,unused-ignore]

    ends = {"E": (1.0, 2.5), "a": (1.0, 10.0), "b": (1.0, 10.0), "alpha": (0.1, 0.7), "beta": (0.1, 0.7)}
    table = pd.DataFrame({"C": runs.flops, "N": runs.params, "D": runs.tokens, "loss": runs.loss})
    with TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
        table.to_csv(Path(folder) / "df.csv", index=False)
        grid = {name: np.linspace(low, high, points) for name, (low, high) in ends.items()}
        model = Chinchilla(folder, param_grid=grid, log_level=40)
        model.fit(parallel=False)
    theta = [np.log(model.A), np.log(model.B), np.log(model.E), model.alpha, model.beta]
    return huber(runs, np.array(theta))[0]


def side_by_side(repeats: int, points: int) -> list[dict[str, Any]]:
    """Times (median CPU seconds of one thread) and objectives on the 245 Chinchilla runs.

    Args:
        repeats: timings of our fit and of the package chinchilla, in turn.
        points: starts of chinchilla along each of five axes.

    Raises:
        InputError: the package is not installed.
    """
    try:
        import chinchilla  # type: ignore[import-not-found,unused-ignore] # noqa: F401
    except ImportError as error:
        raise InputError(
            "expected the package chinchilla to compare with, found none: pip install chinchilla"
        ) from error
    folder = data_folder()
    if folder is None:
        raise InputError("expected a folder of data sets, found none: set TSFM_DATA")
    runs = read_runs(folder / CHINCHILLA)
    ours, theirs, objectives = [], [], {}
    for _ in range(repeats):
        took, fit = seconds(lambda: fit_joint(runs, DRAWS, 0))
        ours.append(took)
        objectives["tsfm"] = fit.objective
        took, objectives["chinchilla"] = seconds(lambda: chinchilla_fit(runs, points))
        theirs.append(took)
    alone, _ = seconds(lambda: fit_joint(runs, 1, 0))
    of_draws, _ = seconds(lambda: scipy_draws(runs, fit.law, SOME_DRAWS))
    scipy_time, objectives["scipy"] = seconds(lambda: scipy_fit(runs))
    base = float(np.median(ours))
    return [
        {
            "side": f"tsfm, fit and 10,000 bootstrap draws, {fit.unconverged} of them not converged",
            "seconds": base,
            "ratio": 1.0,
            "objective": objectives["tsfm"],
        },
        {"side": "tsfm, fit alone", "seconds": alone, "ratio": alone / base, "objective": objectives["tsfm"]},
        {
            "side": f"chinchilla, one grid fit of {points**5:,} starts",
            "seconds": float(np.median(theirs)),
            "ratio": float(np.median(np.array(theirs) / np.array(ours))),
            "objective": objectives["chinchilla"],
        },
        {
            "side": "SciPy L-BFGS, 4,500 starts",
            "seconds": scipy_time,
            "ratio": scipy_time / base,
            "objective": objectives["scipy"],
        },
        {
            "side": f"SciPy L-BFGS, 10,000 draws from the best fit, by {SOME_DRAWS}",
            "seconds": of_draws * DRAWS / SOME_DRAWS,
            "ratio": of_draws * DRAWS / SOME_DRAWS / base,
            "objective": objectives["scipy"],
        },
    ]


def cover(setting: tuple[str, int, float, str], repeats: int) -> dict[str, Any]:
    """One row of the coverage study."""
    design, count, noise, tails = setting
    facts = {"design": design, "runs": count, "noise": noise, "tails": tails, "repeats": repeats}
    return facts | coverage(*setting, repeats)


def coverage_study(repeats: int, jobs: int) -> list[dict[str, Any]]:
    """All rows of the coverage study, ``jobs`` at the same time."""
    with ProcessPoolExecutor(jobs) as pool:
        return list(pool.map(cover, STUDY, [repeats] * len(STUDY)))


def side_to_markdown(rows: Sequence[dict[str, Any]], command: str, sets: Sequence[dict[str, Any]] = ()) -> str:
    """The page ``benchmarks/scaling.md``.

    Args:
        rows: from ``side_by_side``.
        command: that made them.
        sets: from ``public_sets``.
    """
    table = [[r["side"], f"{r['seconds']:.2f}", f"{r['ratio']:.2f}", f"{r['objective']:.9e}"] for r in rows]
    text = tabulate(
        table, ["", "CPU seconds", "times our fit with bootstrap", "Huber objective"], "github", disable_numparse=True
    )
    return (
        "# Speed of the scaling-law fit\n\n"
        "The law L = E + A / N^alpha + B / D^beta is fitted to the 245 runs of Hoffmann et al. (Chinchilla) that\n"
        "Besiroglu et al. extracted. Times are median CPU seconds of one thread, measured in turn.\n\n"
        "The objective is the sum of the Huber losses of the log loss, with width 1e-3, at the fitted constants. The\n"
        f"package chinchilla itself minimises an asymmetric absolute error.\n\n    {command}\n\n{text}\n"
        + sets_to_markdown(sets)
    )


def sets_to_markdown(sets: Sequence[dict[str, Any]]) -> str:
    """The section about public sets; nothing without any."""
    if not sets:
        return ""
    table = [
        [
            *(row["set"], row["runs"], f"{row['tsfm']:.9e}", f"{row['scipy']:.9e}", f"{row['a']:.3f}"),
            "-" if row["isoflop"] is None else "{:.3f} ({:.3f} to {:.3f})".format(*row["isoflop"]),
        ]
        for row in sets
    ]
    heads = ["set", "runs", "Huber objective", "by SciPy", "a, joint law", "a, IsoFLOP profiles"]
    return (
        "\n## Public sets of runs\n\n"
        "Every table of runs in the folder of data sets, fitted by us and by SciPy's L-BFGS from "
        f"{np.prod([len(axis[::2]) for axis in STARTS.values()])} starts.\n"
        "The objective should not be above that of SciPy. `a` is the exponent of the compute-optimal size. For the\n"
        f"Chinchilla runs, Hoffmann et al. 2022 report {PUBLISHED_A:.2f} by IsoFLOP profiles.\n\n"
        + tabulate(table, heads, "github", disable_numparse=True)
        + "\n"
    )


def coverage_to_markdown(rows: Sequence[dict[str, Any]], command: str) -> str:
    """The page ``benchmarks/coverage.md``."""
    counts = sorted({row["repeats"] for row in rows})
    repeats = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
    names = list(rows[0])[5:]
    shares = np.array([[row[name] for name in names] for row in rows])
    table = [
        [*(r[key] for key in ("design", "runs", "noise", "tails", "repeats")), *(f"{r[name]:.3f}" for name in names)]
        for r in rows
    ]
    table.append(["mean", "", "", "", "", *(f"{share:.3f}" for share in shares.mean(axis=0))])
    error = (0.95 * 0.05 / counts[0]) ** 0.5
    near = np.mean((shares > 0.93 - 1e-9) & (shares < 0.97 + 1e-9))
    text = tabulate(table, ["design", "runs", "noise", "errors", "repeats", *names], "github", disable_numparse=True)
    return (
        "# Coverage of the 95 % intervals of scaling laws\n\n"
        "How often does the 95 % interval of a fitted constant, or of a plan, contain the true one? Each row\n"
        "simulates runs of a known law L = E + A / N^alpha + B / D^beta and fits them, "
        f"{repeats} times with different\n"
        "seeds. Numbers are the share of intervals that contain the true value: 0.95 is ideal, with a standard\n"
        f"error of {error:.3f} or less. a is the exponent of the compute-optimal size; the planned size and loss are\n"
        f"those for ten times the largest compute. Of all shares, {100 * near:.0f} % are between 0.93 and 0.97; the\n"
        f"least is {shares.min():.3f}.\n\n"
        "- noise: standard deviation of log loss, or scale of the t distribution.\n"
        "- errors: normal; t2: Student's t with 2 degrees of freedom; outlier: one run is off by 20 standard\n"
        "  deviations; growing: the noise is a power of compute, C^0.15, and runs are weighed (--noise compute).\n"
        "- grid, isoflop: the usual designs.\n"
        "- unbalanced: many small runs and few large ones.\n"
        "- truncated: no run above a budget.\n"
        "- branches: five budgets from each training, which share half of the variance.\n"
        "- ledger: six sizes, two seeds and four budgets over a factor of eight, as in our own sweep; the budgets\n"
        "  of a training share half of the variance.\n\n"
        f"    {command}\n\n{text}\n"
    )


def main(
    part: Literal["fit", "coverage"] = "fit",
    output: Path = Path("benchmarks"),
    repeats: int | None = None,
    points: int = 5,
    jobs: int = 1,
) -> None:
    """Compare the scaling-law fit with the package chinchilla and SciPy, or measure the coverage of its intervals.

    Args:
        part: fit writes scaling.md and scaling.json; coverage writes coverage.md and coverage.json.
        output: folder for the page.
        repeats: timings (3 by default), or simulations per row of the coverage (400 by default).
        points: starts of chinchilla along each of its five axes.
        jobs: processes at the same time, for coverage.
    """
    count = repeats or (3 if part == "fit" else 400)
    if count < 1 or points < 2 or jobs < 1:
        raise InputError(f"expected repeats, jobs and points (2) above 0, found {count}, {jobs} and {points}")
    command = f"python benchmarks/scaling.py --part {part} --repeats {count}"
    if part == "fit":
        command += f" --points {points}"
        rows = side_by_side(count, points)
        folder = data_folder()
        sets = [] if folder is None else public_sets(folder / "scaling")
        write(output, "scaling", rows, {"command": command, "sets": sets}, side_to_markdown(rows, command, sets))
    else:
        rows = coverage_study(count, jobs)
        write(output, "coverage", rows, {"command": command}, coverage_to_markdown(rows, command))


if __name__ == "__main__":
    run(main)
