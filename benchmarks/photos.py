"""What photos gain in forecasts of new products: a planted effect with real photos, trained by ``tsfm fit``.

Run it by ``python benchmarks/photos.py``.
"""

import io
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import run, write
from PIL import Image
from tabulate import tabulate

from tsfm.commands.train import run as fit
from tsfm_data.errors import check_sizes
from tsfm_data.io import SeriesSet
from tsfm_vision.training import PlantedSales

FIRST_SEED = 2023
FROZEN_EPOCHS = 18  # of the fixed image model, which still gains after the 6 of the config


class Tiles(PlantedSales):
    """The same products; a grey tile, whose brightness is the kind of the product, takes the place of its photo."""

    def read(self) -> SeriesSet:
        """The products with their tiles."""
        series = super().read()
        assert series.static is not None
        kinds, kind = np.unique(series.static["kind"], return_inverse=True)
        tiles = [tile(self.grey(k / (len(kinds) - 1))) for k in range(len(kinds))]
        return replace(series, static=series.static.assign(photo=[tiles[k] for k in kind]))

    def grey(self, kind: float) -> int:
        """Brightness from 0 to 255 of a kind from 0 to 1."""
        return round(255 * kind)


class Blank(Tiles):
    """The same products; all have the same tile in the place of their photos."""

    def grey(self, kind: float) -> int:
        return 128


def tile(grey: int) -> bytes:
    """A PNG file of one grey."""
    file = io.BytesIO()
    Image.new("L", (64, 64), grey).save(file, "png")
    return file.getvalue()


# What differs from the config.
ARMS = {
    "none": ["--data=photos.Blank"],
    "photo, shipped image model, not trained further": [
        "--model.forecaster.config.frozen=true",
        f"--trainer.max_epochs={FROZEN_EPOCHS}",
    ],
    "photo, image model trained together, from random weights": ["--model.forecaster.start="],
    "photo, shipped image model, trained together": [],
    "the true kind": ["--data=photos.Tiles"],
}


def one(arm: str, seed: int, epochs: int | None) -> dict[str, Any]:
    """Train by the config with the changes of an arm, and test the best checkpoint; errors in sales per day."""
    with tempfile.TemporaryDirectory() as folder:
        words = [f"--seed_everything={seed}", f"--data.seed={seed}", f"--trainer.default_root_dir={folder}"]
        words += [f"--trainer.{name}=false" for name in ("enable_progress_bar", "enable_model_summary", "logger")]
        words += [f"--trainer.max_epochs={epochs}"] if epochs else []
        cli = fit(["fit", "--config=vision/sales", *ARMS[arm], *words])
        errors = cli.trainer.test(cli.model, datamodule=cli.datamodule, ckpt_path="best", verbose=False)[0]
    data, scale = cli.datamodule, float(cli.datamodule.scaler.std[0])
    row = {"arm": arm, "seed": seed, "mae": errors["test_mae"] * scale, "rmse": errors["test_mse"] ** 0.5 * scale}
    return row | {part: len(data.windows(part)) for part in ("train", "val", "test")}


def summarise(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Per arm: means over the seeds, the largest distance from the mean, and the share of the possible gain."""
    means = {arm: statistics.mean(row["mae"] for row in rows if row["arm"] == arm) for arm in ARMS}
    worst, best = means["none"], means["the true kind"]
    return {
        arm: {
            "mae": mean,
            "within": max(abs(row["mae"] - mean) for row in rows if row["arm"] == arm),
            "rmse": statistics.mean(row["rmse"] for row in rows if row["arm"] == arm),
            "share": (worst - mean) / (worst - best),
        }
        for arm, mean in means.items()
    }


def page(rows: list[dict[str, Any]], summary: dict[str, dict[str, float]], command: str) -> str:
    """The page ``benchmarks/photos.md``."""
    table = [
        {
            "what the model sees besides the history": arm,
            "MAE": f"{found['mae']:.2f} ± {found['within']:.2f}",
            "RMSE": f"{found['rmse']:.2f}",
            "share of the possible gain": f"{found['share']:.0%}",
        }
        for arm, found in summary.items()
    ]
    sizes, seeds = rows[0], len(rows) // len(ARMS)
    lines = [
        "# Forecasts with a photo",
        "",
        "Daily sales of flowers that were put on sale three days ago, for the next 14 days. The sales are made, the",
        f"photos are real, of five kinds: {sizes['train']:,} products to train on, {sizes['val']:,} to choose the",
        f"epoch and {sizes['test']:,} to test, each with a photo of its own. The kind decides how much weekends add to",
        "the sales, from five fewer to five more a day; the first three days, Monday to Wednesday, do not show it. The",
        "level of a product is its own, and every day has noise of standard deviation 1.",
        "",
        "Everything is trained by the config `vision/sales`, and rows differ only in what they say. Without a photo,",
        "all products have the same grey tile; the true kind is a tile of one grey per kind. Errors are in sales per",
        f"day, means over {seeds} seeds of weights, series and held-out photos, ± the largest distance from the mean.",
        "The possible gain is that of the true kind. The shipped image model was trained on CIFAR-10, without flowers.",
        f"If it is not trained further, the rest is trained for {FROZEN_EPOCHS} epochs: it gains from more than the",
        "6 of the config.",
        "",
        f"    {command}",
        "",
        tabulate(table, headers="keys", tablefmt="github", disable_numparse=True, colalign=("left", *["right"] * 3)),
        "",
    ]
    return "\n".join(lines)


def main(output: Path = Path("benchmarks"), seeds: int = 3, epochs: int | None = None) -> None:
    """Measure what photos gain in forecasts of new products, and write the page.

    Args:
        output: folder for photos.md and photos.json.
        seeds: trainings of each row.
        epochs: epochs of each; by default those of the config.
    """
    check_sizes(seeds=seeds, epochs=epochs)
    rows = [one(arm, FIRST_SEED + k, epochs) for arm in ARMS for k in range(seeds)]
    words = [f"--seeds {seeds}"] * (seeds != 3) + ([f"--epochs {epochs}"] if epochs else [])
    command, summary = " ".join(["python benchmarks/photos.py", *words]), summarise(rows)
    write(output, "photos", rows, {"arms": summary, "command": command}, page(rows, summary, command))


if __name__ == "__main__":
    run(main)
