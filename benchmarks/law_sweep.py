"""Trainings for a law of our own: three architectures, learning rates tried at two budgets.

It takes about an hour on two idle cores. It is resumed by the same command; a killed training goes on from its last
checkpoint. The cheapest models come first.

    tsfm data build corpus/all --output corpus/all
    python benchmarks/law_sweep.py --estimate-only
    python benchmarks/law_sweep.py --output runs/law --jobs 2
"""

import csv
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from common import run

from tsfm.commands.scaling import sweep
from tsfm.configs import config_path
from tsfm.models import model_class
from tsfm.scaling.runs.grid import Grid, overlay, pieces, read_grid
from tsfm.scaling.runs.sweep import LEDGER, format_duration, read_rows
from tsfm_data.corpus.augmentation import AugmentConfig
from tsfm_data.corpus.datamodule import PretrainingDataModule
from tsfm_data.errors import InputError
from tsfm_data.io import atomic_file

BUDGETS = [62, 250, 1000, 4000]  # steps: a factor of 64 in data
TRIED = (62, 500)  # budgets at which learning rates are tried
WARMUP = 6  # steps: a tenth of the smallest budget
SIZES = {  # from which grid, and its sizes
    "encoder": ("scaling/grid", ["1K", "10K", "100K", "300K", "1M"]),
    "decoder": ("scaling/grid", ["1K", "10K", "100K", "300K", "1M"]),
    "zeroshot-long": ("scaling/long", ["d16", "d32", "d64", "d96", "d128"]),
}
SEEDS = [4, 4, 1, 1, 1]  # trainings of each size, from the smallest to the largest
RATES = {"1K": (1e-2, 3e-2, 1e-1), "10K": (3e-3, 1e-2, 3e-2), "100K": (1e-3, 3e-3, 1e-2)}
OTHER_RATES = (3e-4, 1e-3, 3e-3, 1e-2)
TIMED = 3  # steps whose time is measured


def models() -> Iterator[tuple[str, str, list[int]]]:
    """Architecture, size and seeds of every model, the small ones first."""
    for k in range(max(len(sizes) for _, sizes in SIZES.values())):
        for arch, (_, sizes) in SIZES.items():
            yield arch, sizes[k], list(range(SEEDS[k]))


def write_grid(
    path: Path, arch: str, size: str, steps: list[int], lr: list[float], seeds: list[int], corpus: str | None
) -> Grid:
    """Write the grid of one model, made from that of its architecture."""
    plain = yaml.safe_load(config_path(SIZES[arch][0]).read_text())
    sizes = {size: plain["size"][size]} if isinstance(plain["size"], dict) else [size]
    changed: dict[str, Any] = {"arch": [arch], "size": sizes, "steps": steps, "lr": lr, "seed": seeds}
    data = {"corpus": corpus} if corpus else {"corpus": None, "held_out": [], "synthetic_share": 1.0}
    plain |= changed | {"warmup": WARMUP, "fit": overlay(plain["fit"], {"data": {"init_args": data}})}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write_text(yaml.safe_dump(plain, sort_keys=False))
    return read_grid(path)


def train(folder: Path, arch: str, size: str, seeds: list[int], corpus: str | None, jobs: int) -> dict[str, Any]:
    """Try the learning rates at two budgets, and train the law with the one that is best at the larger.

    That one is nearer to most budgets of the law; a rate that wins at the smaller one may be too high for them.

    Returns:
        The losses of each rate, the rate that was taken, and how much worse it is than the best one at each budget.
    """
    rates = list(RATES.get(size, OTHER_RATES))
    losses: dict[float, list[float]] = {rate: [] for rate in rates}
    for budget in TRIED:
        part = folder / f"rates-{budget}"
        write_grid(part / "grid.yaml", arch, size, [budget], rates, seeds[:1], corpus)
        sweep(part / "grid.yaml", output=part, jobs=jobs)
        for row in read_rows(part):
            losses[row["lr"]].append(float(row["loss"]))
    known = {
        rate: found for rate, found in losses.items() if len(found) == len(TRIED) and all(map(math.isfinite, found))
    }
    if not known:
        raise InputError(f"expected a learning rate at which {arch} {size} does not diverge, found none in {folder}")
    least = [min(found[k] for found in known.values()) for k in range(len(TRIED))]
    best = min(known, key=lambda rate: known[rate][-1])
    write_grid(folder / "grid.yaml", arch, size, BUDGETS, [best], seeds, corpus)
    sweep(folder / "grid.yaml", output=folder, jobs=jobs)
    worse = [loss / low - 1 for loss, low in zip(known[best], least, strict=True)]
    return {"arch": arch, "size": size, "lr": best} | {f"worse_at_{b}": w for b, w in zip(TRIED, worse, strict=True)}


def seconds_per_step(grid: Grid, arch: str, size: str) -> float:
    """CPU seconds of a training step with its batch, the least of some."""
    init = grid.base()["data"]["init_args"] | {"batches_per_epoch": TIMED + 1, "prefetch": 0, "val_windows": 1}
    init["augment"] = AugmentConfig(**init.get("augment", {}))
    module = PretrainingDataModule(**init)
    module.setup("fit")
    model, times = model_class(arch)(init["context"], init["horizon"], grid.config_of(arch, size)), []
    batches = iter(module.train_dataloader())
    for _ in range(TIMED + 1):
        begun = time.process_time()
        model.loss(next(batches)).backward()
        times.append(time.process_time() - begun)
    return min(times)


def steps_of(budgets: list[int], decay: float) -> int:
    """Optimiser steps of one training with all its budgets."""
    return sum(piece.end - piece.start for piece in pieces(budgets, decay)[0])


def estimate(folder: Path, corpus: str | None) -> None:
    """Print the CPU time of every model, from a few of its steps."""
    total = 0.0
    for arch, size, seeds in models():
        grid = write_grid(folder / "estimate.yaml", arch, size, BUDGETS, [1e-3], seeds, corpus)
        tried = len(RATES.get(size, OTHER_RATES)) * sum(steps_of([budget], grid.decay) for budget in TRIED)
        steps, each = tried + len(seeds) * steps_of(BUDGETS, grid.decay), seconds_per_step(grid, arch, size)
        total += steps * each
        params = grid.counts(arch, size).params
        print(f"{arch} {size}: {params:,} parameters, {steps:,} steps of {each:.3f} s: {format_duration(steps * each)}")
    print(f"all: {total / 3600:.1f} hours of one core, without starting and validating the trainings")


def main(
    output: Path = Path("runs/law"), jobs: int = 2, corpus: str = "corpus/all", estimate_only: bool = False
) -> None:
    """Train all models of the law, or estimate how long that takes.

    Args:
        output: folder of the trainings, and of ledger.csv and rates.csv.
        jobs: trainings at the same time, one thread each.
        corpus: folder of the corpus, or "none" for synthetic series alone.
        estimate_only: only time a few steps of each model.
    """
    source = None if corpus == "none" else corpus
    if estimate_only:
        estimate(output, source)
        return
    chosen, rows = [], []
    for arch, size, seeds in models():
        folder = output / f"{arch}-{size}"
        chosen.append(train(folder, arch, size, seeds, source, jobs))
        rows += [row for row in read_rows(folder) if row["lr"] == chosen[-1]["lr"]]
        for name, table in ((LEDGER, rows), ("rates.csv", chosen)):
            with atomic_file(output / name) as file, file.open("w", newline="") as handle:
                writer = csv.DictWriter(handle, list(dict.fromkeys(key for row in table for key in row)), restval="")
                writer.writeheader()
                writer.writerows(table)


if __name__ == "__main__":
    run(main)
