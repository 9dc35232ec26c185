"""What ``tsfm image`` does with model folders; the command's own functions are in ``tsfm.commands.image``."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tsfm_data.errors import InputError
from tsfm_data.evaluation import Report
from tsfm_data.images import ImageSet, OnBad
from tsfm_vision import evaluation
from tsfm_vision.backbones import BiFormer
from tsfm_vision.training import divide, open_source
from tsfm_vision.weights import data_config, load


def evaluate(
    data: str,
    model: str,
    part: str,
    robustness: bool,
    json: Path | None,
    plot: Path | None,
    batch_size: int,
    limit: int | None,
    on_bad: OnBad,
) -> None:
    """Score a model folder on one part of an image set, print the table, and write what is asked for."""
    net, classes = load(model)
    images = pick(data, net, part, on_bad, limit)
    if images.classes and images.classes != classes and len(images.classes) == len(classes):
        raise InputError(
            f"{data}: expected the model's classes {', '.join(classes[:5])}, found {', '.join(images.classes[:5])}: "
            "give the data set that the model is for"
        )
    name = name_of(model)
    report = evaluation.evaluate(net, images, name, batch_size)
    if robustness:
        report += evaluation.robustness(net, images, name, batch_size=batch_size)
    print(Report([row for row in report.rows if row.get("item_id") is None], report.notes).to_markdown())
    say_skipped(images)
    if json is not None:
        report.save(json)
        print(f"{json}: {len(report.rows)} rows")
    if plot is not None:
        found = evaluation.probabilities(net, images, batch_size)
        evaluation.save_figure(evaluation.draw_calibration(found, images.labels, classes), plot)
        print(f"{plot}: calibration and confusion")


def predict(data: str, model: str, top: int, output: Path | None, batch_size: int, on_bad: OnBad) -> None:
    """Print the most probable classes of each image, and write all probabilities."""
    net, classes = load(model)
    if top < 1:
        raise InputError(f"expected top of at least 1, found {top}: change --top")
    images = pick(data, net, None, on_bad, None)
    found = evaluation.probabilities(net, images, batch_size)
    best = evaluation.predictions(found, min(top, len(classes)))
    shown = range(min(len(images), 20))
    for index in shown:
        text = ", ".join(f"{classes[k]} {found[index, k]:.1%}" for k in best[index])
        print(f"{images.places(index)}: {text}")
    if len(images) > len(shown):
        print(f"... {len(images):,} images in all; give --output FILE.csv for the others")
    say_skipped(images)
    if output is not None:
        evaluation.write_probabilities(output, found, images, classes)
        print(f"{output}: {len(images):,} images")


def explain(data: str, model: str, output: Path, count: int, seed: int, on_bad: OnBad) -> None:
    """Draw where the model looks in some images of a set."""
    if count < 1:
        raise InputError(f"expected at least 1 image to draw, found {count}: change --count")
    net, classes = load(model)
    images = pick(data, net, None, on_bad, None)
    if len(images) > count:
        images = images.select(np.sort(np.random.default_rng(seed).permutation(len(images))[:count]))
    figure = explained(net, images, classes)
    evaluation.save_figure(figure, output)
    print(f"{output}: {len(images)} images")


def explained(net: nn.Module, images: ImageSet, classes: tuple[str, ...], across: bool = False) -> Any:
    """A figure of the images, what the model finds in each, and where it looks; one row per image, or one column."""
    config = data_config(net)
    pixels = evaluation.inputs(net, images)(range(len(images)))
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
    x = (pixels - mean) / std
    found = evaluation.probabilities(net, images, len(images))
    title, large = evaluation.look(net, x)
    columns = [(title, large.numpy())]
    if isinstance(net, BiFormer) and (routes := evaluation.region_routes(net, x)) is not None:
        size = tuple(x.shape[2:])
        enlarged = torch.nn.functional.interpolate(routes[:, None], size, mode="nearest")[:, 0]
        columns.append(("where the middle region looks", enlarged.numpy()))
    captions = []
    for index, values in enumerate(found):
        best, label = int(values.argmax()), int(images.labels[index])
        known = "" if label < 0 else " (right)" if label == best else f" (is {images.classes[label]})"
        captions.append(f"{classes[best]} {values[best]:.0%}{known}")
    shown = (pixels * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return evaluation.draw_maps(list(shown), columns, captions, across)


def pick(data: str, net: nn.Module, part: str | None, on_bad: OnBad, limit: int | None) -> ImageSet:
    """The images of one part; by default those to test with, which are all if the set has no parts."""
    found = open_source(data, None, data_config(net)["input_size"][0], on_bad)
    if "all" in found and part in (None, "all"):
        images = found["all"]
    else:
        parts = divide(found, 0.1, 2023) if "all" not in found else found
        wanted = part or "test"
        if wanted not in parts:
            raise InputError(
                f"{data}: expected a part {wanted}, found {', '.join(parts)}: give --part {next(iter(parts))}"
            )
        images = parts[wanted]
    return images if limit is None else images.select(range(min(limit, len(images))))


def say_skipped(images: ImageSet) -> None:
    """Print how many images were left out, and which."""
    if images.skipped:
        print(f"{len(images.skipped)} bad ones skipped:", *images.skipped, sep="\n  ")


def name_of(model: str) -> str:
    """What a model folder is called in rows: the run's name if it is the folder ``model`` of a run."""
    path = Path(model).resolve()
    return path.parent.name if path.name == "model" else path.name
