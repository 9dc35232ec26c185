"""The scaling-law fit compared with the ``chinchilla`` package and SciPy, and the coverage of its intervals.

Run it by ``python benchmarks/scaling.py``.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from common import run, write
from jaxtyping import Float64
from tabulate import tabulate

from tsfm.scaling import CHINCHILLA, STUDY, Runs, coverage, fit_joint, read_runs
from tsfm_data.errors import InputError
from tsfm_data.io import data_folder

DRAWS = 10_000
DELTA = 1e-3
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


def scipy_fit(runs: Runs) -> float:
    """The smallest objective that SciPy's L-BFGS reaches from all starts, with exact gradients."""
    from scipy.optimize import minimize

    best = np.inf
    for start in product(*STARTS.values()):

        def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:  # scaled: its tolerances are absolute
            value, gradient = huber(runs, theta)
            return 1e3 * value, 1e3 * gradient

        options = {"maxiter": 2000, "ftol": 1e-14, "gtol": 1e-9}
        minimum = minimize(objective, np.array(start), jac=True, method="L-BFGS-B", options=options)
        best = min(best, float(minimum.fun) / 1e3)
    return best


def chinchilla_fit(runs: Runs, points: int) -> float:
    """The objective that one grid fit of the package ``chinchilla`` reaches with its defaults.

    Args:
        runs: the training runs.
        points: starts along each of five axes; the package's example has 5.
    """
    import warnings

    import pandas as pd
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
    scipy_time, objectives["scipy"] = seconds(lambda: scipy_fit(runs))
    base = float(np.median(ours))
    return [
        {
            "side": "tsfm, fit and 10,000 bootstrap draws",
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


def side_to_markdown(rows: Sequence[dict[str, Any]], command: str) -> str:
    """The page ``benchmarks/scaling.md``."""
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
    )


def coverage_to_markdown(rows: Sequence[dict[str, Any]], command: str) -> str:
    """The page ``benchmarks/coverage.md``."""
    repeats = rows[0]["repeats"]
    names = list(rows[0])[5:]
    shares = np.array([[row[name] for name in names] for row in rows])
    table = [
        [r["design"], r["runs"], f"{r['noise']:g}", r["tails"], *(f"{r[name]:.3f}" for name in names)] for r in rows
    ]
    table.append(["mean", "", "", "", *(f"{share:.3f}" for share in shares.mean(axis=0))])
    error = (0.95 * 0.05 / repeats) ** 0.5
    near = np.mean((shares > 0.93 - 1e-9) & (shares < 0.97 + 1e-9))
    text = tabulate(table, ["design", "runs", "noise", "errors", *names], "github", disable_numparse=True)
    return (
        "# Coverage of the 95 % intervals of scaling laws\n\n"
        "How often does the 95 % interval of a fitted constant, or of a plan, contain the true one? Each row\n"
        "simulates runs of a known law L = E + A / N^alpha + B / D^beta and fits them, "
        f"{repeats} times with different\n"
        "seeds. Numbers are the share of intervals that contain the true value: 0.95 is ideal, with a standard\n"
        f"error of {error:.3f}. a is the exponent of the compute-optimal size; the planned size and loss are those\n"
        f"for ten times the largest compute. Of all shares, {100 * near:.0f} % are between 0.93 and 0.97; the least is "
        f"{shares.min():.3f}.\n\n"
        "- noise: standard deviation of log loss, or scale of the t distribution.\n"
        "- errors: normal; t2: Student's t with 2 degrees of freedom; outlier: one run is off by 20 standard\n"
        "  deviations.\n"
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
        write(output, "scaling", rows, {"command": command}, side_to_markdown(rows, command))
    else:
        rows = coverage_study(count, jobs)
        write(output, "coverage", rows, {"command": command}, coverage_to_markdown(rows, command))


if __name__ == "__main__":
    run(main)
