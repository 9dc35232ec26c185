"""CIFAR-10: compact models of each family, trained on the same budget by ``tsfm fit``.

    python benchmarks/cifar10.py

Finished runs are kept in the runs folder and not trained again, so an interrupted table continues.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from common import run, write
from tabulate import tabulate

from tsfm.configs import config_path
from tsfm_data.errors import InputError, unknown_name
from tsfm_data.io import atomic_file
from tsfm_vision.commands import pick
from tsfm_vision.evaluation import evaluate, probabilities
from tsfm_vision.weights import load

MODELS = ("poolformer", "tnt", "illama", "biformer", "vit", "resnet")


def cifar10(
    models: list[str] | None, runs: Path, epochs: int | None, fraction: float, limit: int | None
) -> tuple[list[dict[str, Any]], dict[str, Any], str]:
    """Train and score; returns rows, summary and the Markdown page.

    Raises:
        InputError: a training failed.
    """
    settings = yaml.safe_load(config_path("vision/cifar10").read_text())
    used = epochs or settings["trainer"]["max_epochs"]
    rows = [one(name, runs, used, fraction, limit) for name in models or MODELS]
    words = ["python benchmarks/cifar10.py"]
    words += [f"--models {' '.join(models)}"] if models else []
    words += [f"--epochs {epochs}"] if epochs else []
    words += [f"--fraction {fraction:g}"] if fraction != 1 else []
    words += [f"--limit {limit}"] if limit else []
    command = " ".join(words)
    return rows, {"models": len(rows), "epochs": used, "command": command}, page(rows, used, fraction, command)


def one(name: str, runs: Path, epochs: int, fraction: float, limit: int | None) -> dict[str, Any]:
    """The row of one model: trained if its run is not there yet, then scored on the test images."""
    folder = runs / f"{name}_{epochs}_{fraction:g}"
    result = folder / f"result_{limit or 'all'}.json"
    if result.is_file():
        return json.loads(result.read_text())
    seconds = folder / "seconds.json"
    if not seconds.is_file():
        words = ["fit", "--config", "vision/cifar10", "--config", f"vision/cifar10_{name}"]
        words += ["--trainer.default_root_dir", folder, "--trainer.max_epochs", epochs, "--data.fraction", fraction]
        words += ["--trainer.enable_progress_bar", "false", "--overwrite"]
        start = time.perf_counter()
        path = os.pathsep.join(filter(None, sys.path))
        # PyTorch's fused attention makes no use of bfloat16 in its backward pass on a CPU; the products alone do.
        own = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TIMM_FUSED_ATTN": "0"}
        done = subprocess.run([sys.executable, "-m", "tsfm", *map(str, words)], env={**os.environ, **own})
        if done.returncode:
            raise InputError(f"expected the training of {name} to end well, found status {done.returncode}: see above")
        with atomic_file(seconds) as file:
            file.write_text(json.dumps(time.perf_counter() - start))
    model, _ = load(folder)
    images = pick("cifar10", model, "test", "error", limit)
    report = evaluate(model, images, probabilities(model, images, 250), name, batch_size=250)
    report.save(folder / "report.json")
    row: dict[str, Any] = {
        "model": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        **{metric: report.value(metric, model=name) for metric in ("log_loss", "ECE", "images_per_second")},
        "top1": next(r["value"] for r in report.rows if r["metric"] == "top1" and r.get("item_id") is None),
        "top5": report.value("top5"),
        "minutes": json.loads(seconds.read_text()) / 60,
    }
    with atomic_file(result) as file:
        file.write_text(json.dumps(row))
    return row


def page(rows: list[dict[str, Any]], epochs: int, fraction: float, command: str) -> str:
    """The table with what it measures."""
    share = "45,000 training images" if fraction == 1 else f"{fraction:.0%} of 45,000 training images"
    table = [
        {
            "model": row["model"],
            "parameters": f"{row['parameters']:,}",
            "top-1": f"{row['top1']:.2%}",
            "top-5": f"{row['top5']:.2%}",
            "log loss": f"{row['log_loss']:.3f}",
            "ECE": f"{row['ECE']:.3f}",
            "training, minutes": f"{row['minutes']:.1f}",
        }
        for row in rows
    ]
    lines = [
        "# CIFAR-10 from scratch",
        "",
        f"Each model trains for {epochs} epochs on {share}, enlarged to 64 pixels.",
        "Optimiser, batch size, precision and augmentation (shift by up to an eighth, mirroring) are the same for all:",
        "see the config `vision/cifar10`. The epoch with the best accuracy on 5,000 held-out training images is scored",
        "on the test images. The models vit and resnet are those of timm, with about as many parameters.",
        "",
        f"    {command}",
        "",
        tabulate(table, headers="keys", tablefmt="github", disable_numparse=True, colalign=("left",) + ("right",) * 6),
        "",
        "Training used one thread of a machine that did other work at the same time.",
        "",
    ]
    return "\n".join(lines)


def main(
    models: list[str] | None = None,
    runs: Path = Path("runs/cifar10"),
    output: Path = Path("benchmarks"),
    epochs: int | None = None,
    fraction: float = 1.0,
    limit: int | None = None,
) -> None:
    """Train compact models of each family on CIFAR-10, score them and write the page.

    Args:
        models: names of models, for instance tnt; all by default.
        runs: folder of the runs and their results.
        output: folder for cifar10.md and cifar10.json.
        epochs: epochs per model; by default those of the config.
        fraction: share of the training images, for a quick try.
        limit: largest number of test images to score; all by default.
    """
    for name in models or []:
        if name not in MODELS:
            raise unknown_name("model", name, MODELS)
    write(output, "cifar10", *cifar10(models, runs, epochs, fraction, limit))


if __name__ == "__main__":
    run(main)
