"""``tsfm image``: what is asked of image models, handed to the vision package.

The package is reached by name when a command runs: nothing here imports it, and help needs none of it.
"""

import importlib
import json as json_module
from pathlib import Path
from types import ModuleType
from typing import Literal

from tsfm.nn import keep_large_blocks
from tsfm_data.errors import InputError

OnBad = Literal["error", "skip"]


def vision(module: str) -> ModuleType:
    """A module of the vision package.

    Raises:
        InputError: its dependencies are not installed.
    """
    keep_large_blocks()
    try:
        return importlib.import_module(f"tsfm_vision.{module}")
    except ModuleNotFoundError as error:
        raise InputError(
            f"expected the packages of image models, found no {error.name}: pip install 'tsfm-suite[vision]'"
        ) from error


def folder_of(model: str | None) -> str:
    """The folder of a model that ships with the package or was pulled; anything else as it is.

    None takes the image model that ships.

    Raises:
        InputError: none ships.
    """
    from tsfm.weights import default_image, local_folder

    name = default_image() if model is None else model
    return str(local_folder(name) or name)


def is_image_model(model: str) -> bool:
    """Whether a model folder, or the run that holds it, is of an image model: its config names a timm architecture."""
    folder = Path(folder_of(model))
    for file in (folder / "config.json", folder / "model" / "config.json"):
        try:
            return "architecture" in json_module.loads(file.read_text())
        except (OSError, ValueError, TypeError):
            continue
    return False


def evaluate(
    data: str,
    *,
    model: str | None = None,
    part: str = "test",
    robustness: bool = False,
    json: Path | None = None,
    plot: Path | None = None,
    batch_size: int = 64,
    limit: int | None = None,
    on_bad: OnBad = "error",
) -> None:
    """Score an image model: top-1, top-5, log loss, calibration, each class, throughput.

    Args:
        data: a folder of class folders, a Parquet file with image, label and split, or a set's name.
        model: a model folder written by tsfm fit, the folder of a run, or a name of tsfm weights list; by default the
            image model that ships with the package.
        part: which part of the set: test, val, train, or all where it has none.
        robustness: also score under noise, blur, contrast, brightness, JPEG and pixelation at five severities.
        json: where to write the rows (.json, .md or .parquet).
        plot: where to draw reliability and confusion (.png, .svg or .pdf).
        batch_size: images classified at once.
        limit: score so many images of the part at most.
        on_bad: what becomes of images that cannot be read: error, or skip, which counts them.
    """
    if batch_size < 1 or (limit is not None and limit < 1):
        raise InputError("expected batch_size and limit of at least 1, found less: change them")
    vision("commands").evaluate(data, folder_of(model), part, robustness, json, plot, batch_size, limit, on_bad)


def predict(
    data: str,
    *,
    model: str | None = None,
    top: int = 3,
    output: Path | None = None,
    batch_size: int = 64,
    on_bad: OnBad = "error",
) -> None:
    """Class probabilities of images.

    Args:
        data: an image, a folder of images, or an image set (of one with parts, the test part).
        model: a model folder written by tsfm fit, the folder of a run, or a name of tsfm weights list; by default the
            image model that ships with the package.
        top: classes to print of each image, at most.
        output: a CSV file for all probabilities.
        batch_size: images classified at once.
        on_bad: what becomes of images that cannot be read: error, or skip, which counts them.
    """
    if batch_size < 1:
        raise InputError(f"expected a batch_size of at least 1, found {batch_size}: change it")
    vision("commands").predict(data, folder_of(model), top, output, batch_size, on_bad)


def explain(
    data: str,
    *,
    model: str | None = None,
    output: Path = Path("explain.png"),
    count: int = 4,
    seed: int = 0,
    on_bad: OnBad = "error",
) -> None:
    """Draw where an image model looks: attention, routing or gradients over the input.

    Args:
        data: an image, a folder of images, or an image set (of one with parts, the test part).
        model: a model folder written by tsfm fit, the folder of a run, or a name of tsfm weights list; by default the
            image model that ships with the package.
        output: the picture (.png, .svg or .pdf).
        count: images to draw, chosen at random where there are more.
        seed: of the choice.
        on_bad: what becomes of images that cannot be read: error, or skip, which counts them.
    """
    vision("commands").explain(data, folder_of(model), output, count, seed, on_bad)
