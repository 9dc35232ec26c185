"""Fine-tuning an image model on another data set, compared with training it from scratch.

    python benchmarks/image_finetune.py

Both have the same images in the same order, the same optimiser with one learning rate for all layers, and the same
number of steps.
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
    """One row per seed and arm (fine-tuned, from scratch); finished rows are kept in files and not trained again.

    Args:
        data: an image data set.
        model: folder of the pretrained model.
        seeds: seeds of the held-out images, the order, the augmentation and the random weights.
        steps: optimiser steps per arm.
        batch_size: images per step.
        lr: peak learning rate of all layers.
        checks: number of validations on held-out images; the best checkpoint is scored on the test images.
        runs: folder of the finished rows and their model folders.
        progress: called with one line of text per row.

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
    """Mean and half the width of its 95 % interval (Student's t) in percentage points; of one value, the value."""
    from scipy import stats

    mean = 100 * float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.1f}"
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{mean:.1f} ± {100 * half:.1f}"


def page(rows: Sequence[dict[str, Any]], steps: int, batch_size: int, lr: float, command: str) -> str:
    """The page ``benchmarks/image_finetune.md``."""
    from tabulate import tabulate

    by_arm = {arm: [row for row in rows if row["arm"] == arm] for arm in ARMS}
    checks = [step for step, _ in by_arm[ARMS[1]][0]["curve"]]
    table = []
    for arm, own in by_arm.items():
        line = {"training": arm, "top-1, test images": interval([row["test"] for row in own])}
        for step in checks:
            line[f"held out, step {step}"] = interval([dict(map(tuple, row["curve"]))[step] for row in own])
        table.append(line | {"CPU s": f"{np.mean([row['cpu_seconds'] for row in own]):.0f}"})
    pairs = zip(*by_arm.values(), strict=True)
    gain = interval([tuned["test"] - scratch["test"] for tuned, scratch in pairs])
    lines = [
        "# Fine-tuning an image model",
        "",
        f"{rows[0]['model']} is fine-tuned on {rows[0]['data']} and compared with the same architecture trained from",
        f"random weights. Both train for {steps} steps of {batch_size} images, with the same images, order and",
        f"augmentation. The optimiser is AdamW with a peak learning rate of {lr:g} for all layers. Images are resized",
        "to the model's input size.",
        "",
        f"Numbers are top-1 in percent: the mean over {len(by_arm[ARMS[0]])} seeds with its 95 % interval (Student's",
        "t). The checkpoint that is best on held-out training images is scored once on the test images.",
        "",
        f"    {command}",
        "",
        tabulate(table, headers="keys", tablefmt="github", disable_numparse=True),
        "",
        f"Fine-tuning gains {gain} points of top-1 on the test images (mean of the differences per seed).",
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
        data: an image data set.
        model: a name from tsfm weights list, or a model folder; by default the image model that ships with the package.
        seeds: seeds of the held-out images, the order, the augmentation and the random weights; 0, 1 and 2 by default.
        steps: optimiser steps per training.
        batch_size: images per step.
        lr: peak learning rate of all layers.
        checks: number of validations on held-out images.
        runs: folder of finished trainings.
        output: folder for image_finetune.md and image_finetune.json.
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
