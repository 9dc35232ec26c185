"""Class probabilities of images by a model: as arrays, tables and a Report."""

import csv
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from timm.data import create_transform
from torch import Tensor, nn

from tsfm_data.errors import InputError
from tsfm_data.evaluation import Report
from tsfm_data.images import ImageSet, row, score
from tsfm_data.io import atomic_file
from tsfm_data.output import without_formulas
from tsfm_data.progress import progress
from tsfm_vision.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from tsfm_vision.weights import data_config

Change = Callable[[Float[Tensor, "B C H W"]], Float[Tensor, "B C H W"]]


def same(x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """The images as they are."""
    return x


def eval_transform(data_config: dict[str, Any]) -> Any:
    """timm's transform of an image to be classified, by a model's data config."""
    return create_transform(
        data_config["input_size"],
        is_training=False,
        interpolation=data_config["interpolation"],
        mean=data_config["mean"],
        std=data_config["std"],
        crop_pct=data_config["crop_pct"],
        crop_mode=data_config.get("crop_mode"),
    )


def inputs(model: nn.Module, images: ImageSet) -> Callable[[Sequence[int]], Float[Tensor, "B C H W"]]:
    """A function that reads the images of these indices as the model takes them: values 0 to 1, not yet normalised."""
    config = data_config(model)
    plain = {**config, "mean": (0.0,) * len(config["mean"]), "std": (1.0,) * len(config["std"])}
    transform = eval_transform(plain)
    return lambda indices: torch.stack([transform(images.image(i)) for i in indices])


@torch.inference_mode()
def probabilities(
    model: nn.Module, images: ImageSet, batch_size: int = 64, change: Change = same
) -> Float[np.ndarray, "N K"]:
    """Class probabilities of all images, in order.

    Args:
        model: in evaluation mode, on any device.
        images: what to classify.
        batch_size: images classified at once.
        change: applied to each batch of pixels (0 to 1) before normalisation.

    Raises:
        InputError: no images, or one that cannot be read.
    """
    if not len(images):
        raise InputError(f"{images.name}: expected images to classify, found none: check the source")
    read, config, like = inputs(model, images), data_config(model), next(model.parameters())
    mean, std = (torch.tensor(config[key], device=like.device)[:, None, None] for key in ("mean", "std"))
    batches = []
    for start in progress(range(0, len(images), batch_size), images.name):
        pixels = read(range(start, min(start + batch_size, len(images)))).to(like.device)
        batches.append(model((change(pixels) - mean) / std).float().softmax(-1).cpu())
    return torch.cat(batches).numpy()


def evaluate(model: nn.Module, images: ImageSet, name: str, batch_size: int = 64) -> Report:
    """Accuracy, calibration and speed of a model on labelled images.

    Args:
        model: in evaluation mode.
        images: of the model's classes.
        name: of the model in the rows.
        batch_size: images classified at once.

    Raises:
        InputError: no images, no labels, or other classes.
    """
    predicted = probabilities(model, images, batch_size)
    report = score(predicted, images.labels, images.classes, images.name, name)
    speed = throughput(model, batch_size)
    report.rows.append(row(images.name, name, "images_per_second", speed, len(images)))
    if images.skipped:
        report.notes.append(f"{images.name}: {len(images.skipped)} bad images skipped, the first: {images.skipped[0]}")
    return report


def robustness(
    model: nn.Module,
    images: ImageSet,
    name: str,
    severities: Sequence[int] = SEVERITIES,
    batch_size: int = 64,
    seed: int = 0,
) -> Report:
    """Top-1 accuracy under common corruptions, one row per corruption and severity, and the mean.

    Args:
        model: in evaluation mode.
        images: labelled, of the model's classes.
        name: of the model in the rows.
        severities: from 1 (mild) to 5.
        batch_size: images classified at once.
        seed: of the noise.
    """
    rows: list[dict[str, Any]] = []
    for kind in progress(CORRUPTIONS, "corruptions"):
        for severity in severities:
            generator = torch.Generator().manual_seed(seed)

            def change(x: Tensor, kind: str = kind, severity: int = severity, own: Any = generator) -> Tensor:
                return corrupt(x, kind, severity, own)

            right = probabilities(model, images, batch_size, change).argmax(1) == images.labels
            more = {"corruption": kind, "severity": severity, "item_id": f"{kind} {severity}"}
            rows.append(row(images.name, name, "top1_corrupted", float(right.mean()), len(images), **more))
    mean = float(np.mean([entry["value"] for entry in rows]))
    return Report([*rows, row(images.name, name, "top1_corrupted", mean, len(images))])


@torch.inference_mode()
def throughput(model: nn.Module, batch_size: int, repeats: int = 5) -> float:
    """Images per second of the model alone: the median of several passes after a warm-up."""
    like = next(model.parameters())
    x = like.new_zeros(batch_size, *data_config(model)["input_size"])
    times = []
    for _ in range(repeats + 1):
        _wait(like.device)
        start = time.perf_counter()
        model(x)
        _wait(like.device)
        times.append(time.perf_counter() - start)
    return batch_size / float(np.median(times[1:]))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def write_probabilities(
    path: Path,
    probabilities: Float[np.ndarray, "N K"],
    images: ImageSet,
    classes: Sequence[str],
    safe: bool = False,
) -> None:
    """Write a CSV with one line per image: its path, the most probable class, and each class's probability; ``safe``
    puts an apostrophe before names that a spreadsheet would run as a formula."""
    inert = without_formulas if safe else str
    classes = [inert(name) for name in classes]
    with atomic_file(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "prediction", *classes])
        for index, values in enumerate(probabilities):
            writer.writerow(
                [inert(images.locate(index)), classes[int(values.argmax())], *(f"{value:.6f}" for value in values)]
            )


def predictions(probabilities: Float[np.ndarray, "N K"], top: int) -> Int[np.ndarray, "N T"]:
    """The ``top`` most probable classes of each image, the most probable first."""
    return np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
