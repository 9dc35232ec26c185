"""Two training processes (DDP through gloo, one thread each) compared with one process with twice the batch.

    python benchmarks/distributed.py

Each side is started by ``torchrun`` and trains the same model on the same data. The losses must be the same up to
rounding; the speed says what the second process gains.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from common import run, write
from tabulate import tabulate

from tsfm.commands.train import quiet
from tsfm.models import ITransformer, ITransformerConfig
from tsfm.training import ForecastTask, OptimConfig
from tsfm_data.errors import InputError
from tsfm_data.images.sets import from_arrays
from tsfm_data.windows import ForecastDataModule
from tsfm_vision.training import Augment, ImageDataModule, ImageOptim, ImageTask, Mix

WARMUP = 3  # steps that are not timed
CONTEXT = 96
TOLERANCE = 1e-4  # relative, of losses after all steps
BATCHES = {"iTransformer": 32, "iLLaMA": 16}  # of one process alone


def series(batch: int, folder: Path) -> tuple[pl.LightningModule, pl.LightningDataModule]:
    """A forecaster, and a table of generated hourly series."""
    rng, hours = np.random.default_rng(0), np.arange(4000)[:, None]
    values = np.sin(2 * np.pi * (hours / 24 + rng.random(20))) + rng.normal(size=(4000, 20))
    table = pd.DataFrame(values, columns=[f"v{k}" for k in range(20)])
    table.insert(0, "date", pd.date_range("2024-01-01", periods=4000, freq="h"))
    table.to_parquet(folder / "table.parquet")
    config = ITransformerConfig(d_model=128, d_ff=128, layers=3, heads=4, dropout=0.0)
    make = lambda context, horizon: ITransformer(context, horizon, config)  # noqa: E731
    data = ForecastDataModule(str(folder / "table.parquet"), CONTEXT, CONTEXT, batch)
    return ForecastTask(make, CONTEXT, CONTEXT, OptimConfig(lr=1e-3)), data


def images(batch: int, folder: Path) -> tuple[pl.LightningModule, pl.LightningDataModule]:
    """An image model, and images of noise."""
    sizes = {"patch_size": 4, "embed_dim": 96, "depth": 2, "num_heads": 3}
    task = ImageTask("illama_tiny", 10, 32, model_args=sizes, optim=ImageOptim(lr=1e-3), mix=Mix(0.0, 0.0))
    data = ImageDataModule("noise", batch_size=batch, augment=Augment("pad", policy=None, erase=0.0))
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (1024, 32, 32, 3)).astype(np.uint8), np.arange(1024) % 10
    data.parts["train"] = data.parts["val"] = from_arrays(pixels, labels, [str(k) for k in range(10)], "noise")
    return task, data


TASKS = {"iTransformer": series, "iLLaMA": images}


class Watch(pl.Callback):
    """The loss and the time of each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.ends = [time.perf_counter()]

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Keep both."""
        self.losses.append(float(trainer.callback_metrics["train_loss"]))
        self.ends.append(time.perf_counter())


def work(case: str, steps: int) -> None:
    """One process of a side; the first one prints losses and seconds of a step."""
    quiet()
    torch.set_num_threads(1)
    pl.seed_everything(0, verbose=False)
    world = int(os.environ["WORLD_SIZE"])
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        task, data = TASKS[case](BATCHES[case] // world, Path(folder))
        pl.Trainer(
            max_steps=steps + WARMUP, accelerator="cpu", devices=world, strategy="ddp" if world > 1 else "auto",
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            log_every_n_steps=1, limit_val_batches=0, callbacks=[watch],
        ).fit(task, data)  # fmt: skip
    if os.environ["RANK"] == "0":
        seconds = statistics.median(np.diff(watch.ends)[WARMUP:].tolist())
        print("RESULT", json.dumps({"losses": watch.losses, "seconds": seconds}))


def side(case: str, processes: int, steps: int) -> dict[str, Any]:
    """Losses and seconds of a step with so many processes.

    Raises:
        InputError: they failed.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    words = [sys.executable, "-W", "ignore", *launcher, __file__, "--case", case, "--steps", str(steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    lines = [line.split(maxsplit=1)[1] for line in done.stdout.splitlines() if line.startswith("RESULT")]
    if done.returncode or not lines:
        said = [line for line in done.stderr.splitlines() if "Error" in line] or ["no output"]
        reason = said[0].strip()
        raise InputError(f"expected losses of {processes} processes, found: {reason}")
    found: dict[str, Any] = json.loads(lines[0])
    return found


def compare(case: str, steps: int, repeats: int) -> dict[str, Any]:
    """The row of a case: both sides in turn, their losses, and the median of the ratios of their times."""
    ratios, gap = [], 0.0
    for _ in range(repeats):
        one, two = (side(case, processes, steps) for processes in (1, 2))
        ratios.append(one["seconds"] / two["seconds"])
        gap = max(gap, float(np.max(np.abs(np.array(two["losses"]) / np.array(one["losses"]) - 1))))
    if gap > TOLERANCE:
        raise InputError(f"{case}: expected the losses of one process, found a relative difference of {gap:.2g}")
    return {
        "model": case, "batch": BATCHES[case], "steps": len(one["losses"]), "largest difference of losses": gap,
        "first loss": one["losses"][0], "last loss": one["losses"][-1],
        "times as fast": statistics.median(ratios), "efficiency": statistics.median(ratios) / 2,
    }  # fmt: skip


def page(rows: list[dict[str, Any]], command: str, load: float) -> str:
    """The page ``benchmarks/distributed.md``."""

    def text(key: str, value: Any) -> str:
        return f"{value:.1e}" if "difference" in key else f"{value:.3f}" if isinstance(value, float) else str(value)

    shown = [{key: text(key, value) for key, value in row.items()} for row in rows]
    return "\n".join(
        [
            "# Two training processes compared with one",
            "",
            "DDP through gloo, started by `torchrun`, one thread per process, on two CPU cores. The total batch",
            "is the same, and two processes share it. The difference of losses is the largest of all steps, relative.",
            "Efficiency is the gain in speed divided by the number of processes; 1 would be ideal. Other work ran at",
            f"the same time: {load:.1f} processes wanted a core on average. Then times are rough, and the gain may",
            "be too high, because two processes get a larger share of a busy machine than one.",
            "",
            f"    {command}",
            "",
            tabulate(shown, headers="keys", tablefmt="github", disable_numparse=True),
            "",
        ]
    )


def main(output: Path = Path("benchmarks"), steps: int = 12, repeats: int = 1, case: str | None = None) -> None:
    """Compare two training processes with one, and write distributed.md and distributed.json.

    Args:
        output: folder of the two files.
        steps: timed steps of each side.
        repeats: rounds in which both sides take turns.
        case: for the processes themselves: the model that they train.
    """
    if case is not None:
        work(case, steps)
        return
    rows = [compare(name, steps, repeats) for name in TASKS]
    command, load = f"python benchmarks/distributed.py --steps {steps} --repeats {repeats}", os.getloadavg()[1]
    write(output, "distributed", rows, {"command": command, "load": load}, page(rows, command, load))


if __name__ == "__main__":
    run(main)
