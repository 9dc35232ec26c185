"""Fine-tuning an image model on another set compared with training from scratch at equal steps.

    python benchmarks/image_finetune.py

Both arms have the same images in the same order, the same optimiser with one rate for all layers, and as many steps.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import run, write

from tsfm.weights import default_image, local_folder
from tsfm_data.errors import InputError
from tsfm_data.io import atomic_file
from tsfm_vision.commands import name_of
from tsfm_vision.training import finetune

ARMS = ("fine-tuned", "from scratch")


def transfer(
    data: str,
    model: str,
    seeds: Sequence[int],
    steps: int,
    batch_size: int,
    lr: float,
    checks: int,
    runs: Path,
    progress: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """A row a seed and arm; finished ones are kept in files of their own and not trained again.

    Args:
        data: an image set.
        model: the folder to start from.
        seeds: of held-out images, order, augmentation and new weights.
        steps: optimiser steps of each arm.
        batch_size: images per step.
        lr: peak learning rate of all layers.
        checks: times that held-out images are looked at; the best checkpoint is scored on the test images.
        runs: folder of the finished rows and their model folders.
        progress: called with a line for each row.

    Raises:
        InputError: as ``finetune``.
    """
    path = Path(model)
    weights = (path if (path / "config.json").is_file() else path / "model") / "model.safetensors"
    if not weights.is_file():
        raise InputError(f"expected a model folder, found none at {path}: check the path")
    content = hashlib.sha256(weights.read_bytes()).hexdigest()
    rows = []
    for seed in seeds:
        for arm in ARMS:
            work = repr((data, content, arm, steps, batch_size, lr, checks, seed))
            folder = runs / f"{arm.replace(' ', '-')}_{seed}_{hashlib.sha256(work.encode()).hexdigest()[:12]}"
            result = folder / "result.json"
            if result.is_file():
                rows.append(json.loads(result.read_text()))
                continue
            begin = time.process_time()
            scratch = arm == ARMS[1]
            outcome = finetune(
                data, model, folder / "model", steps, batch_size, lr, checks, seed, scratch, "error", layer_decay=1.0
            )
            row: dict[str, Any] = {"model": name_of(model), "data": data, "arm": arm, "seed": seed, **outcome}
            row["cpu_seconds"] = time.process_time() - begin
            with atomic_file(result) as file:
                file.write_text(json.dumps(row) + "\n")
            progress(f"{arm}, seed {seed}: top-1 {row['test']:.2%} on test images, {row['cpu_seconds']:.0f} CPU s")
            rows.append(row)
    return rows


def interval(values: Sequence[float]) -> str:
    """Mean and half the width of its 95 % interval (Student's t) in percentage points; a single value alone."""
    from scipy import stats

    mean = 100 * float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.1f}"
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{mean:.1f} ± {100 * half:.1f}"


def page(rows: Sequence[dict[str, Any]], steps: int, batch_size: int, lr: float, command: str) -> str:
    """The table with what it measures."""
    from tabulate import tabulate

    by_arm = {arm: [row for row in rows if row["arm"] == arm] for arm in ARMS}
    checks = [step for step, _ in by_arm[ARMS[1]][0]["curve"]]
    table = []
    for arm, own in by_arm.items():
        line = {"arm": arm, "top-1, test images": interval([row["test"] for row in own])}
        for step in checks:
            line[f"held out, step {step}"] = interval([dict(map(tuple, row["curve"]))[step] for row in own])
        table.append(line | {"CPU s": f"{np.mean([row['cpu_seconds'] for row in own]):.0f}"})
    pairs = zip(*by_arm.values(), strict=True)
    gain = interval([tuned["test"] - scratch["test"] for tuned, scratch in pairs])
    lines = [
        "# Fine-tuning an image model",
        "",
        f"{rows[0]['model']} as a start on {rows[0]['data']}, brought to the model's image size, compared with the",
        f"same model with random weights: {steps} steps of {batch_size} images for both, the same images, order and",
        f"augmentation, AdamW at a peak rate of {lr:g} for all layers. Top-1 in per cent: mean over",
        f"{len(by_arm[ARMS[0]])} seeds with its 95 % interval (Student's t). The best checkpoint by held-out training",
        "images is scored on the test images, which choose nothing.",
        "",
        f"    {command}",
        "",
        tabulate(table, headers="keys", tablefmt="github", disable_numparse=True),
        "",
        f"Fine-tuned less from scratch, seed by seed: {gain} points of top-1 on the test images.",
        "",
    ]
    return "\n".join(lines)


def main(
    data: str = "flowers5_128",
    model: str | None = None,
    seeds: list[int] | None = None,
    steps: int = 150,
    batch_size: int = 32,
    lr: float = 1e-3,
    checks: int = 5,
    runs: Path = Path("runs/image_finetune"),
    output: Path = Path("benchmarks"),
) -> None:
    """Compare fine-tuning an image model with training it from scratch, for each seed, and write the page.

    Args:
        data: an image set.
        model: a model folder or a name; by default the image model that ships.
        seeds: of held-out images, order, augmentation and new weights; 0, 1 and 2 by default.
        steps: optimiser steps of each training.
        batch_size: images per step.
        lr: peak learning rate of all layers.
        checks: times that held-out images are looked at.
        runs: folder of finished trainings.
        output: folder of the page.
    """
    name = model or default_image()
    start = str(local_folder(name) or name)
    rows = transfer(data, start, seeds or [0, 1, 2], steps, batch_size, lr, checks, runs)
    chosen = [f"--data {data}", *([f"--model {model}"] if model else [])]
    chosen += [f"--seeds {' '.join(map(str, seeds))}"] if seeds else []
    chosen.append(f"--steps {steps} --batch-size {batch_size} --lr {lr:g} --checks {checks}")
    command = " ".join(["python benchmarks/image_finetune.py", *chosen])
    write(output, "image_finetune", rows, {"command": command}, page(rows, steps, batch_size, lr, command))


if __name__ == "__main__":
    run(main)
