"""Exported models: ONNX compared with eager PyTorch in speed and outputs, and what smaller weights cost in accuracy.

Both sides compute the same function of an array, ``Exportable``, in one process and on the same number of threads. They
take turns, and the result is the median over rounds of the ratio of CPU times. So other work on the machine favours
neither side.

    python benchmarks/export.py
"""

import copy
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from common import run, write
from jaxtyping import Float
from tabulate import tabulate

from tsfm.inference import Dtype, Exportable, compress, differences, export, load_model
from tsfm.models import Forecaster
from tsfm.weights import released
from tsfm_data.errors import InputError
from tsfm_data.evaluation import choose, evaluate_series, suite_profile

BATCHES = (1, 32, 256)
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
METRICS = ("MASE", "WQL")
PROFILE = "gift"
SETS = ("exchange_rate", "national_illness", "m4_weekly", "hospital", "us_births")
REPEATS, MOST_SERIES = 9, 100


def measure(
    model: Forecaster,
    batches: Sequence[int],
    repeats: int,
    threads: int,
    sets: Sequence[str],
    series: int,
    horizon: int | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Time, compare and score one model.

    Args:
        model: a forecaster that can be exported.
        batches: numbers of series per call.
        repeats: counted rounds; one more comes first.
        threads: CPU threads of both sides.
        sets: names of sets of the suite "bench".
        series: largest number of series per set; the first ones are taken.
        horizon: steps that the files forecast; None takes the model's own.

    Returns:
        One row per batch size with the times, and one row per type of weights. The latter has the size, the differences
        from the model on hard inputs (of the file for float32), and the errors relative to float32 on every set.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        exact = scores(model, sets, series)  # first, so that a missing set is reported at once
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.onnx"
            made = export(model, file, horizon)
            speeds = times(model, file, made.horizon, batches, repeats, threads)
        rows: list[dict[str, Any]] = []
        for dtype in DTYPES:
            small = copy.deepcopy(model).requires_grad_(False)
            compress(small, dtype)
            mean, worst = (made.mean, made.worst) if dtype == "fp32" else apart(small, model, made.horizon)
            errors = exact if dtype == "fp32" else scores(small, sets, series)
            size = sum(value.nbytes for value in small.state_dict().values())
            row: dict[str, Any] = {"model": model.name, "weights": dtype, "MiB": size / 2**20}
            row |= {"difference_mean": mean, "difference_worst": worst}
            rows.append(row | {key: value / exact[key] for key, value in errors.items()})
        return speeds, rows
    finally:
        torch.set_num_threads(before)


def times(
    model: Forecaster, file: Path, horizon: int, batches: Sequence[int], repeats: int, threads: int
) -> list[dict[str, Any]]:
    """Seconds of an ONNX file and of the model itself, in turn; one row per batch size."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    eager = Exportable(copy.deepcopy(model), horizon)
    rows = []
    for batch in batches:
        past = walks(batch, model.context)
        sides: list[Callable[[], object]] = [
            lambda past=past: eager(torch.from_numpy(past)),  # type: ignore[misc]
            lambda past=past: session.run(None, {"past": past}),  # type: ignore[misc]
        ]
        ratios: list[float] = []
        seconds: list[list[float]] = []
        with torch.inference_mode():
            for number in range(repeats + 1):
                taken = [0.0, 0.0]
                for side in (0, 1) if number % 2 else (1, 0):
                    begin = time.process_time()
                    sides[side]()
                    taken[side] = time.process_time() - begin
                if number:  # the first round allocates memory
                    ratios.append(taken[0] / taken[1])
                    seconds.append(taken)
        rows.append(
            {
                "model": model.name,
                "batch": batch,
                "eager_seconds": statistics.median(pair[0] for pair in seconds),
                "onnx_seconds": statistics.median(pair[1] for pair in seconds),
                "speed_over_eager": statistics.median(ratios),
                "speed_over_eager_range": [min(ratios), max(ratios)],
            }
        )
    return rows


def walks(count: int, steps: int) -> Float[np.ndarray, "B T"]:
    """Seeded random walks with a daily season, in float64."""
    noise = np.random.default_rng(0).normal(size=(count, steps)).cumsum(1)
    return noise + 3 * np.sin(2 * np.pi * np.arange(steps) / 24)


@torch.no_grad()
def apart(small: Forecaster, model: Forecaster, horizon: int) -> tuple[float, float]:
    """Mean and largest difference on hard inputs of a model with smaller weights, relative to a series' size."""
    made, whole = (Exportable(copy.deepcopy(one), horizon) for one in (small, model))
    errors = differences(lambda past: made(torch.from_numpy(past)).numpy(), whole, model.context)
    return float(errors.mean()), float(errors.max())


def scores(model: Forecaster, sets: Sequence[str], most: int) -> dict[str, float]:
    """The metrics of a model on the first series of each set, by "SET METRIC"."""
    errors: dict[str, float] = {}
    for one in choose("bench", (PROFILE,), sets):
        series = one.load()
        chosen = series.select(range(min(most, len(series))))
        report = evaluate_series(model, chosen, suite_profile(PROFILE), one.name)
        errors |= {f"{one.name} {metric}": float(report.value(metric) or math.nan) for metric in METRICS}
    return errors


def to_markdown(
    speeds: Sequence[dict[str, Any]],
    rows: Sequence[dict[str, Any]],
    threads: int,
    series: int,
    busy: bool,
    command: str,
) -> str:
    """The page ``benchmarks/export.md``; ``busy``: other work ran at the same time."""
    keys = [key for key in rows[0] if key.split()[-1] in METRICS]
    first = [
        {
            "model": row["model"],
            "series at once": row["batch"],
            "eager CPU s": f"{row['eager_seconds']:.4f}",
            "ONNX CPU s": f"{row['onnx_seconds']:.4f}",
            "speed over eager (range)": "{:.2f} ({:.2f} to {:.2f})".format(
                row["speed_over_eager"], *row["speed_over_eager_range"]
            ),
        }
        for row in speeds
    ]
    second = [
        {
            "model": row["model"],
            "weights": row["weights"],
            "MiB": f"{row['MiB']:.2f}",
            "mean difference": f"{row['difference_mean']:.1e}",
            "largest": f"{row['difference_worst']:.1e}",
            **{f"{metric} mean": f"{_mean(row, keys, metric):+.2%}" for metric in METRICS},
        }
        for row in rows
    ]
    third = [
        {"model": row["model"], "weights": row["weights"], **{key: f"{row[key] - 1:+.2%}" for key in keys}}
        for row in rows
        if row["weights"] != "fp32"
    ]
    lines = [
        "# Exported models",
        "",
        "The ONNX file of `tsfm export` in ONNX Runtime is compared with the same model in eager PyTorch. Both take",
        f"turns in one process with {threads} thread{'s' * (threads > 1)}. Speed is the CPU time of eager PyTorch",
        "divided by that of ONNX Runtime: above 1, the file is faster. It is the median over rounds, with its range.",
        "Other work ran on the machine at the same time." if busy else "Nothing else ran on the machine.",
        "",
        f"    {command}",
        "",
        tabulate(first, headers="keys", tablefmt="github", disable_numparse=True),
        "",
        "## Smaller weights",
        "",
        "`tsfm export --dtype` stores weights in fewer bytes; computation stays in float32.",
        "",
        "- Differences are from the outputs of the float32 model in PyTorch. The fp32 row compares the ONNX file, the",
        "  others the PyTorch model with smaller weights. The inputs are hard ones: missing values, constants, large",
        "  offsets, short and long histories (`hard_inputs` in `tsfm/inference/exporting.py`). A difference is divided",
        "  by the standard deviation of its series, or by the largest distance of its forecast from the mean if that",
        "  is larger.",
        "- MASE and WQL show the change of the error compared with float32: geometric mean over sets, above 0 is",
        f"  worse. Scored are the test windows of the protocol `{PROFILE}`, for the first {series} series of each set.",
        "",
        tabulate(second, headers="keys", tablefmt="github", disable_numparse=True),
        "",
        "The same change for each set:",
        "",
        tabulate(third, headers="keys", tablefmt="github", disable_numparse=True),
        "",
    ]
    return "\n".join(lines)


def _mean(row: dict[str, Any], keys: Sequence[str], metric: str) -> float:
    """The geometric mean of the ratios of a metric over sets, less 1."""
    return math.exp(statistics.fmean(math.log(row[key]) for key in keys if key.endswith(metric))) - 1


def main(
    models: list[str] | None = None,
    batches: list[int] | None = None,
    sets: list[str] | None = None,
    repeats: int = REPEATS,
    threads: int = 1,
    series: int = MOST_SERIES,
    horizon: int | None = None,
    output: Path = Path("benchmarks"),
) -> None:
    """Compare ONNX files with the PyTorch models in speed and outputs, and score smaller weights.

    Args:
        models: names from tsfm weights list, or model folders; by default the forecasters that ship with the package.
        batches: numbers of series per call; 1, 32 and 256 by default.
        sets: sets of the suite bench, to score smaller weights on; a few small ones by default.
        repeats: rounds in which both sides take turns; the median of their ratios is reported.
        threads: CPU threads.
        series: largest number of series per set.
        horizon: steps that the files forecast; each model's own by default.
        output: folder for export.md and export.json.
    """
    numbers = {"repeats": repeats, "threads": threads, "series": series, "horizon": horizon or 1}
    for name, value in {**numbers, "batches": min(batches or [1])}.items():
        if value < 1:
            raise InputError(f"expected {name} of at least 1, found {value}: change it")
    busy = os.getloadavg()[0] > threads
    speeds, rows = [], []
    for name in models or [name for name, entry in released().items() if entry.task == "forecast"]:
        own_speeds, own_rows = measure(
            load_model(name), batches or BATCHES, repeats, threads, sets or SETS, series, horizon
        )
        speeds += own_speeds
        rows += own_rows
    given: dict[str, list[Any] | None] = {"models": models, "batches": batches, "sets": sets}
    given["repeats"] = [repeats] if repeats != REPEATS else None
    given["threads"] = [threads] if threads != 1 else None
    given["series"] = [series] if series != MOST_SERIES else None
    given["horizon"] = [horizon] if horizon else None
    words = [f"--{name} {' '.join(map(str, values))}" for name, values in given.items() if values]
    command = " ".join(["python benchmarks/export.py", *words])
    write(
        output,
        "export",
        [*speeds, *rows],
        {"command": command, "busy": busy},
        to_markdown(speeds, rows, threads, series, busy, command),
    )


if __name__ == "__main__":
    run(main)
