"""Training speed of iTransformer in this suite, in a plain PyTorch loop and in neuralforecast.

Each side runs several times in a fresh process, in turn. Times vary on a shared machine, so the result is the median
over repeats of the ratio of two runs that followed each other. The training loop is timed with data loading and without
start-up.

    python benchmarks/speed.py
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from common import run, write
from tabulate import tabulate

from tsfm_data.errors import InputError, unknown_name

CONTEXT = HORIZON = 96
WARMUP = 3  # steps before the clock starts, for allocators and kernels


class Case(NamedTuple):
    """A training to time: the sizes of a published config, on generated data with the shape of a data set."""

    name: str
    variates: int
    rows: int
    d_model: int
    layers: int
    batch_size: int
    steps: int


CASES = (
    Case("ETTh1-96", 7, 8640, 256, 2, 32, 263),  # all full batches of one epoch
    Case("electricity-96", 321, 18317, 512, 3, 16, 6),
    Case("electricity-96, d_model 256, 2 layers, batch 32", 321, 18317, 256, 2, 32, 6),
)


def make_values(case: Case) -> np.ndarray:
    """Seeded daily seasons with noise, [rows, variates]: the time of a step does not depend on the values."""
    rng = np.random.default_rng(0)
    hours = np.arange(case.rows)[:, None]
    return np.sin(2 * np.pi * (hours / 24 + rng.random(case.variates))) + rng.normal(size=(case.rows, case.variates))


class Clock:
    """Seconds from the end of the warm-up to the last step."""

    def __init__(self, steps: int) -> None:
        self.last = steps + WARMUP
        self.started = self.seconds = 0.0

    def step(self, done: int) -> None:
        """Call after each optimiser step with the number of steps done."""
        if done == WARMUP:
            self.started = time.perf_counter()
        if done == self.last:
            self.seconds = time.perf_counter() - self.started


def time_ours(case: Case, trainer: bool = True, precision: Literal["32-true", "bf16-mixed"] = "32-true") -> float:
    """Seconds of our training loop, through the Lightning trainer or as a bare loop over the same model and loader."""
    import pytorch_lightning as pl

    from tsfm.models import ITransformer, ITransformerConfig
    from tsfm.nn import keep_large_blocks
    from tsfm.training import ForecastTask, OptimConfig, build_optimizer
    from tsfm_data.io import SeriesSet
    from tsfm_data.windows import WindowLoader, Windows

    keep_large_blocks()  # as `tsfm fit` does
    pl.seed_everything(0, verbose=False)
    series = SeriesSet.from_arrays("stand-in", [make_values(case)], "h")
    # neuralforecast's model takes no calendar tokens, so neither does ours here.
    windows = Windows.rolling(series, CONTEXT, HORIZON, first=CONTEXT)
    loader = WindowLoader(windows, case.batch_size, shuffle=True, drop_last=True, seed=0)
    config = ITransformerConfig(d_model=case.d_model, d_ff=case.d_model, layers=case.layers)
    task = ForecastTask(
        lambda context, horizon: ITransformer(context, horizon, config), CONTEXT, HORIZON, OptimConfig()
    )
    clock = Clock(case.steps)
    if trainer:
        _fit(task, loader, clock, precision)
        return clock.seconds
    optimizer = build_optimizer(task.optim, task)
    done = 0
    task.train()
    while done < clock.last:
        for batch in loader:
            optimizer.zero_grad()
            task.forecaster.loss(batch).backward()
            optimizer.step()
            done += 1
            clock.step(done)
            if done == clock.last:
                break
    return clock.seconds


def time_bf16(case: Case) -> float:
    """Seconds of our training loop with ``--trainer.precision bf16-mixed``."""
    return time_ours(case, precision="bf16-mixed")


def time_bare(case: Case) -> float:
    """Seconds of a bare PyTorch loop over our model and loader."""
    return time_ours(case, trainer=False)


def time_neuralforecast(case: Case) -> float:
    """Seconds of neuralforecast's training loop with its own loader, the same sizes and the same loss."""
    import pandas as pd
    from neuralforecast import NeuralForecast
    from neuralforecast.losses.pytorch import MSE
    from neuralforecast.models import iTransformer

    clock = Clock(case.steps)
    model = iTransformer(
        h=HORIZON,
        input_size=CONTEXT,
        n_series=case.variates,
        hidden_size=case.d_model,
        d_ff=case.d_model,
        e_layers=case.layers,
        n_heads=8,
        dropout=0.1,
        loss=MSE(),
        learning_rate=1e-4,
        max_steps=clock.last,
        windows_batch_size=case.batch_size,
        random_seed=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[_callback(clock)],
    )
    values = make_values(case)
    times = pd.date_range("2016-01-01", periods=case.rows, freq="h")
    frame = pd.DataFrame(
        {
            "unique_id": np.repeat(np.arange(case.variates), case.rows),
            "ds": np.tile(times, case.variates),
            "y": values.T.reshape(-1).astype(np.float32),
        }
    )
    NeuralForecast(models=[model], freq="h").fit(frame)
    return clock.seconds


def _callback(clock: Clock) -> Any:
    """A Lightning callback that reports every step to the clock."""
    import pytorch_lightning as pl

    class Steps(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            clock.step(trainer.global_step)

    return Steps()


def _fit(task: Any, loader: Any, clock: Clock, precision: Literal["32-true", "bf16-mixed"]) -> None:
    """Train with the options of ``tsfm fit``, without validation."""
    import pytorch_lightning as pl

    from tsfm.commands.train import quiet

    quiet()
    pl.Trainer(
        max_steps=clock.last,
        accelerator="cpu",
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[_callback(clock)],
    ).fit(task, loader)


SIDES: dict[str, Callable[[Case], float]] = {
    "tsfm": time_ours,
    "tsfm-bf16": time_bf16,
    "bare": time_bare,
    "neuralforecast": time_neuralforecast,
}


def run_side(side: str, case: Case, threads: int) -> float:
    """Seconds of one side in a fresh process.

    Raises:
        InputError: the process failed; a frequent reason is that neuralforecast is not installed.
    """
    code = "import json, sys; from speed import SIDES, Case; "
    code += "print('SECONDS', SIDES[sys.argv[1]](Case(*json.loads(sys.argv[2]))))"
    paths = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, side, json.dumps(case)],
        env=environment,
        capture_output=True,
        text=True,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("SECONDS")]
    if done.returncode or not lines:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise InputError(f"expected a timing of {side}, found: {reason}: is it installed (pip install neuralforecast)?")
    return float(lines[0].split()[1])


def run_table(
    cases: list[str], sides: list[str], repeats: int = 3, threads: int = 2, steps: int | None = None
) -> list[dict[str, Any]]:
    """Time every side of every case, in turn; returns one row per case with the ratios to ``tsfm``.

    Args:
        cases: names of cases; all if empty.
        sides: names of sides, with ``tsfm``.
        repeats: runs per side.
        threads: CPU threads per process.
        steps: timed optimiser steps; by default those of the case.
    """
    rows = []
    for case in CASES:
        if cases and case.name not in cases:
            continue
        case = case._replace(steps=steps or case.steps)
        times: dict[str, list[float]] = {side: [] for side in sides}
        for repeat in range(repeats):
            # The order is reversed each time, so that a machine that becomes slower favours no side.
            for side in sides if repeat % 2 == 0 else reversed(sides):
                times[side].append(run_side(side, case, threads))
        row: dict[str, Any] = {"case": case.name, "steps": case.steps, "threads": threads, "repeats": repeats}
        for side in (side for side in sides if side != "tsfm"):
            ratios = [theirs / ours for theirs, ours in zip(times[side], times["tsfm"], strict=True)]
            row[f"{side}_over_tsfm"] = statistics.median(ratios)
            row[f"{side}_over_tsfm_range"] = [min(ratios), max(ratios)]
        for side in sides:
            row[f"{side}_ms_per_step"] = 1000 * statistics.median(times[side]) / case.steps
            row[f"{side}_least_ms_per_step"] = 1000 * min(times[side]) / case.steps
        rows.append(row)
        print(json.dumps(row), file=sys.stderr)
    return rows


def to_markdown(rows: list[dict[str, Any]], command: str) -> str:
    """The page ``benchmarks/speed.md``."""
    sides = [side for side in SIDES if rows and f"{side}_ms_per_step" in rows[0]]
    others = [side for side in sides if side != "tsfm"]
    head = [
        "case",
        "steps",
        *(f"{side} / tsfm (range)" for side in others),
        *(f"{side}, ms per step" for side in sides),
    ]
    table = [
        [row["case"], row["steps"]]
        + ["{:.2f} ({:.2f} to {:.2f})".format(row[f"{s}_over_tsfm"], *row[f"{s}_over_tsfm_range"]) for s in others]
        + [f"{row[f'{s}_ms_per_step']:.1f}" for s in sides]
        for row in rows
    ]
    text = [
        "# Training speed of iTransformer",
        "",
        "Wall time of training steps on CPU, data loading included and start-up not: context and horizon 96, dropout",
        "0.1.",
        "",
        "- tsfm: `tsfm fit`, that is the Lightning trainer, in float32.",
        "- tsfm-bf16: the same with `--trainer.precision bf16-mixed`.",
        "- bare: a plain PyTorch loop with the same model, loader and optimiser.",
        "- neuralforecast: its iTransformer with the same sizes, batch size, number of steps and loss.",
        "",
        "A ratio is a side's time divided by that of tsfm in float32: above 1, tsfm is faster. It is the median over",
        "runs in turn, each in a fresh process.",
        *(f"Threads: {row['threads']}. Runs of each: {row['repeats']}." for row in rows[:1]),
        "",
        f"    {command}",
        "",
        tabulate(table, head, tablefmt="github", disable_numparse=True),
        "",
    ]
    return "\n".join(text)


def main(
    cases: list[str] | None = None,
    sides: list[str] | None = None,
    output: Path = Path("benchmarks"),
    repeats: int = 5,
    threads: int = 2,
    steps: int | None = None,
) -> None:
    """Compare training speed with a plain PyTorch loop over the same model and with neuralforecast's iTransformer.

    Args:
        cases: rows of the table, for instance ETTh1-96; all by default.
        sides: one or more of tsfm, tsfm-bf16, bare and neuralforecast (which needs the extra "peers"); all by default.
        output: folder for speed.md and speed.json.
        repeats: rounds in which all sides take turns; the median of their ratios is reported.
        threads: CPU threads per process.
        steps: optimiser steps per timing; by default those of the case.
    """
    known = [case.name for case in CASES]
    for name in cases or []:
        if name not in known:
            raise unknown_name("case", name, known)
    for name in sides or []:
        if name not in SIDES:
            raise unknown_name("side", name, SIDES)
    rows = run_table(cases or [], list(dict.fromkeys(["tsfm", *(sides or SIDES)])), repeats, threads, steps)
    command = f"python benchmarks/speed.py --repeats {repeats} --threads {threads}"
    write(output, "speed", rows, {"cases": len(rows), "command": command}, to_markdown(rows, command))


if __name__ == "__main__":
    run(main)
