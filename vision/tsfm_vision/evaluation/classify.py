"""Class probabilities of images by a model: as arrays, tables and a Report."""

import csv
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import nn
from torch.utils.data import DataLoader

from tsfm_data.errors import InputError
from tsfm_data.evaluation import Report
from tsfm_data.images import ImageSet, row, score
from tsfm_data.io import atomic_file
from tsfm_data.output import without_formulas
from tsfm_data.progress import progress
from tsfm_vision.evaluation.reading import Transformed, eval_transform
from tsfm_vision.weights import data_config


@torch.inference_mode()
def probabilities(
    model: nn.Module, images: ImageSet, batch_size: int = 64, workers: int = 0
) -> Float[np.ndarray, "N K"]:
    """Class probabilities of all images, in order.

    Args:
        model: in evaluation mode, on any device.
        images: what to classify.
        batch_size: images classified at once.
        workers: processes that read images; 0 does it in this one.

    Raises:
        InputError: no images, or one that cannot be read.
    """
    if not len(images):
        raise InputError(f"{images.name}: expected images to classify, found none: check the source")
    data, device = Transformed(images, eval_transform(data_config(model))), next(model.parameters()).device
    # With a generator of its own, since a loader draws a seed even if nothing is random.
    loader = DataLoader(data, batch_size, num_workers=workers, generator=torch.Generator())
    batches = [model(x.to(device)).float().softmax(-1).cpu() for x, _ in progress(loader, images.name)]
    return torch.cat(batches).numpy()


def evaluate(
    model: nn.Module, images: ImageSet, predicted: Float[np.ndarray, "N K"], name: str, batch_size: int = 64
) -> Report:
    """Accuracy, calibration and speed of a model on labelled images.

    Args:
        model: in evaluation mode.
        images: of the model's classes.
        predicted: their ``probabilities`` by the model.
        name: of the model in the rows.
        batch_size: images classified at once, for the speed.

    Raises:
        InputError: no images, no labels, or other classes.
    """
    report = score(predicted, images.labels, images.classes, images.name, name)
    speed = throughput(model, batch_size)
    report.rows.append(row(images.name, name, "images_per_second", speed, len(images)))
    if images.skipped:
        report.notes.append(f"{images.name}: {len(images.skipped)} bad images skipped, the first: {images.skipped[0]}")
    return report


@torch.inference_mode()
def throughput(model: nn.Module, batch_size: int) -> float:
    """Images per second of the model alone: the median of five passes after a warm-up."""
    like = next(model.parameters())
    x = like.new_zeros(batch_size, *data_config(model)["input_size"])
    times = []
    for _ in range(6):
        start = time.perf_counter()
        model(x).flatten()[0].item()  # waits for the device
        times.append(time.perf_counter() - start)
    return batch_size / float(np.median(times[1:]))


def write_probabilities(
    path: Path, probabilities: Float[np.ndarray, "N K"], images: ImageSet, classes: Sequence[str], safe: bool = False
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
