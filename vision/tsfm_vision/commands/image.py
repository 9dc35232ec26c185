"""The commands ``tsfm image evaluate | predict | explain | finetune | export``.

Annotations and defaults of their options only use the standard library, so that help is fast (see
``tsfm.commands.added``).
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from tsfm.nn import keep_large_blocks
from tsfm.weights import image_folder
from tsfm_data.errors import InputError, check_sizes, check_workers
from tsfm_data.evaluation import Report
from tsfm_data.images import ImageSet, OnBad
from tsfm_data.io import PICTURES, REPORTS, atomic_folder, check_new, check_suffix
from tsfm_data.output import say
from tsfm_vision import evaluation, training, weights
from tsfm_vision.weights import Seen, data_config, load, seen_by


def evaluate(
    data: str,
    *,
    model: str | None = None,
    part: str = "test",
    json: Path | None = None,
    plot: Path | None = None,
    overwrite: bool = False,
    batch_size: int = 64,
    limit: int | None = None,
    device: str = "cpu",
    precision: Literal["32", "bf16"] = "32",
    workers: int = 0,
    on_bad: Literal["error", "skip"] = "error",
) -> None:
    """Score an image model: accuracy, log loss and calibration.

    The table also has top-5 accuracy, the accuracy of each class, and images per second.

    Args:
        data: a folder of class folders, a Parquet file with image, label and split, or a set's name.
        model: a model folder written by tsfm fit, the folder of a run, or a name of tsfm weights list; by default the
            image model that ships with the package.
        part: part of the set: test, val, train, or all if it has no parts. If the set has no test part, test means
            the images that the model was neither trained on nor chosen by. If the model has seen the images that are
            scored, a warning says so.
        json: file for the scores (.json, .md or .parquet).
        plot: file for the reliability plot and the confusion matrix (.png, .svg or .pdf).
        overwrite: replace an existing output.
        batch_size: images per batch.
        limit: largest number of images to score.
        device: where the model runs: cpu, cuda, or cuda:1 for the second GPU.
        precision: of matrix products: 32 bits, or bf16, which is faster on GPUs and newer CPUs.
        workers: processes that read images.
        on_bad: what to do with images that cannot be read: error, or skip, which lists them.
    """
    check_sizes("change it", batch_size=batch_size, limit=limit)
    check_workers(workers)
    check_suffix(json, REPORTS)
    check_suffix(plot, PICTURES)
    check_new([json, plot], overwrite, [data, model])
    folder, net, classes = open_model(model, device, precision)
    seen = seen_by(folder)
    images = pick(data, net, part, on_bad, limit, seen)
    if images.classes and images.classes != classes and len(images.classes) == len(classes):
        raise InputError(
            f"{data}: expected the model's classes {', '.join(classes[:5])}, found {', '.join(images.classes[:5])}: "
            "give the data set that the model is for"
        )
    name = name_of(folder)
    scores = evaluation.probabilities(net, images, batch_size, workers)
    report = evaluation.evaluate(net, images, scores, name, batch_size)
    report.notes.extend(filter(None, [seen.warning(images)]))
    say(Report([row for row in report.rows if row.get("item_id") is None], report.notes).to_markdown())
    print_skipped(images)
    if json is not None:
        report.save(json)
        say(f"{json}: {len(report.rows)} rows")
    if plot is not None:
        evaluation.save_figure(evaluation.draw_calibration(scores, images.labels, classes), plot)
        say(f"{plot}: calibration and confusion")


def predict(
    data: str,
    *,
    model: str | None = None,
    top: int = 3,
    output: Path | None = None,
    overwrite: bool = False,
    safe_csv: bool = False,
    batch_size: int = 64,
    device: str = "cpu",
    precision: Literal["32", "bf16"] = "32",
    workers: int = 0,
    on_bad: Literal["error", "skip"] = "error",
) -> None:
    """Print the most probable classes of images.

    Args:
        data: an image, a folder of images, or an image set (the test part, if it has parts).
        model: a model folder written by tsfm fit, the folder of a run, or a name of tsfm weights list; by default the
            image model that ships with the package.
        top: number of classes to print per image.
        output: file for all probabilities (.csv).
        overwrite: replace an existing output.
        safe_csv: put an apostrophe before paths and classes that a spreadsheet would run as a formula.
        batch_size: images per batch.
        device: where the model runs: cpu, cuda, or cuda:1 for the second GPU.
        precision: of matrix products: 32 bits, or bf16, which is faster on GPUs and newer CPUs.
        workers: processes that read images.
        on_bad: what to do with images that cannot be read: error, or skip, which lists them.
    """
    check_sizes("change it", batch_size=batch_size, top=top)
    check_workers(workers)
    check_suffix(output, (".csv",))
    check_new([output], overwrite, [data, model])
    _, net, classes = open_model(model, device, precision)
    images = pick(data, net, None, on_bad, None)
    scores = evaluation.probabilities(net, images, batch_size, workers)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    shown = range(min(len(images), 20))
    for index in shown:
        text = ", ".join(f"{classes[k]} {scores[index, k]:.1%}" for k in best[index])
        say(f"{images.locate(index)}: {text}")
    if len(images) > len(shown):
        say(f"... {len(images):,} images in all; give --output FILE.csv for the others")
    print_skipped(images)
    if output is not None:
        evaluation.write_probabilities(output, scores, images, classes, safe_csv)
        say(f"{output}: {len(images):,} images")


def explain(
    data: str,
    *,
    model: str | None = None,
    output: Path = Path("explain.png"),
    overwrite: bool = False,
    count: int = 4,
    seed: int = 0,
    device: str = "cpu",
    on_bad: Literal["error", "skip"] = "error",
) -> None:
    """Draw attention maps of an image model.

    The map shows attention, routing, or gradients with respect to the input, depending on the model.

    Args:
        data: an image, a folder of images, or an image set (the test part, if it has parts).
        model: a model folder written by tsfm fit, the folder of a run, or a name of tsfm weights list; by default the
            image model that ships with the package.
        output: the picture (.png, .svg or .pdf).
        overwrite: replace an existing output.
        count: number of images to draw, chosen at random if there are more.
        seed: random seed of the choice.
        device: where the model runs: cpu, cuda, or cuda:1 for the second GPU.
        on_bad: what to do with images that cannot be read: error, or skip, which lists them.
    """
    check_sizes("change it", count=count)
    check_suffix(output, PICTURES)
    check_new([output], overwrite, [data, model])
    _, net, classes = open_model(model, device)
    images = pick(data, net, None, on_bad, None)
    if len(images) > count:
        images = images.select(np.sort(np.random.default_rng(seed).permutation(len(images))[:count]))
    figure = draw_explanation(net, images, classes)
    evaluation.save_figure(figure, output)
    say(f"{output}: {len(images)} images")


def finetune(
    data: str,
    *,
    output: Path,
    model: str | None = None,
    steps: int = 200,
    batch_size: int = 64,
    lr: float = 1e-3,
    layer_decay: float = 0.8,
    method: Literal["full", "lora", "head"] = "full",
    rank: int = 8,
    checks: int = 5,
    seed: int = 0,
    scratch: bool = False,
    overwrite: bool = False,
    device: str = "cpu",
    precision: Literal["32", "bf16"] = "32",
    workers: int = 0,
    on_bad: Literal["error", "skip"] = "error",
) -> None:
    """Fine-tune an image model on your images.

    If the classes are the model's own, the result is never worse on held-out images.

    Args:
        data: a folder of class folders, a Parquet file with image, label and split, or a set's name.
        output: the model folder to write.
        model: a model folder written by tsfm fit, the folder of a run, or a name of tsfm weights list; by default the
            image model that ships with the package.
        steps: optimiser steps.
        batch_size: images per step.
        lr: peak learning rate of the last layers.
        layer_decay: factor on the learning rate from each layer to the one before; 1 for the same everywhere.
        method: what to train: full (all weights), lora (low-rank updates of the weights) or head (the classifier).
        rank: rank of the LoRA updates.
        checks: number of evaluations on the val part, or on held-out training images; the best checkpoint is kept.
        seed: random seed of held-out images, order, augmentation and a new head.
        scratch: start from random weights instead, for comparison.
        overwrite: replace an existing output.
        device: where the model runs: cpu, cuda, or cuda:1 for the second GPU.
        precision: of matrix products in training: 32 bits, or bf16, which is faster on GPUs and newer CPUs.
        workers: processes that read and augment images.
        on_bad: what to do with images that cannot be read: error, or skip, which lists them.
    """
    check_new([output], overwrite, [data, model], sign="config.json")
    keep_large_blocks()
    schedule, part = (steps, batch_size, lr, checks, seed, scratch, on_bad, device), (layer_decay, method, rank)
    with atomic_folder(output) as temporary:
        result = training.finetune(data, image_folder(model), temporary, *schedule, *part, precision, workers)
    say(f"top-1 {result['val']:.2%} on the held-out training or val images, which chose step {result['steps']}")
    if result["test"] is None:
        say("no test part, so nothing judges the model: score it on other images with tsfm image evaluate")
    else:
        say(f"top-1 {result['test']:.2%} on the test images, which chose nothing")
        if result["warning"]:
            say(result["warning"])
    say(f"{output}: a model folder; tsfm image predict IMAGES --model {output}")


def export(
    *,
    output: Path,
    model: str | None = None,
    format: Literal["onnx", "torch"] = "onnx",
    overwrite: bool = False,
) -> None:
    """Write an image model as ONNX or torch.export, and check it.

    The file is run and compared with the model. Its input is images [batch, channels, rows, columns] as the model takes
    them, for any number of images of the model's size, and its output is logits [batch, classes]. An ONNX file names
    the classes and says how images are resized, cropped and normalised (timm's keys) in its metadata.

    Args:
        output: file to write (.onnx or .pt2).
        model: a model folder written by tsfm fit, the folder of a run, or a name of tsfm weights list; by default the
            image model that ships with the package.
        format: onnx, or torch for torch.export.load.
        overwrite: replace an existing output.
    """
    suffix = {"onnx": ".onnx", "torch": ".pt2"}[format]
    if output.suffix != suffix:
        raise InputError(f"expected an output that ends in {suffix} for format {format}, found {output}: rename it")
    check_new([output], overwrite, [model])
    _, net, classes = open_model(model, "cpu")
    worst = weights.export(net, classes, output, format)
    size = data_config(net)["input_size"]
    say(f"{output}: {output.stat().st_size / 1e6:.1f} MB, for any number of images {' x '.join(map(str, size))}")
    say(f"difference from the model in batches of 1 to 3 random images, relative to the largest logit: {worst:.1e}")


def open_model(model: str | None, device: str, precision: str = "32") -> tuple[str, nn.Module, tuple[str, ...]]:
    """Load a model: its folder, the model on a device and in a precision, and the names of its classes.

    Raises:
        InputError: no such model, or no such device.
    """
    keep_large_blocks()
    place, folder = training.device_of(device), image_folder(model)
    net, classes = load(folder)
    if precision == "bf16":
        net.forward = torch.autocast(place.type, torch.bfloat16)(net.forward)  # type: ignore[method-assign]
    return folder, net.to(place), classes


def draw_explanation(net: nn.Module, images: ImageSet, classes: tuple[str, ...], across: bool = False) -> Any:
    """A figure of images, predicted classes and attention maps; one row per image, or one column if ``across``."""
    config = data_config(net)
    read = evaluation.Transformed(images, evaluation.eval_transform(config))
    x = torch.stack([read[index][0] for index in range(len(images))])
    probabilities = evaluation.probabilities(net, images, len(images))
    columns = [
        (title, maps.cpu().numpy()) for title, maps in evaluation.look(net, x.to(next(net.parameters()).device)).items()
    ]
    captions = []
    for index, values in enumerate(probabilities):
        best, label = int(values.argmax()), int(images.labels[index])
        verdict = "" if label < 0 else " (right)" if label == best else f" (is {images.classes[label]})"
        captions.append(f"{classes[best]} {values[best]:.0%}{verdict}")
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
    shown = ((x * std + mean) * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return evaluation.draw_maps(list(shown), columns, captions, across)


def pick(
    data: str,
    net: nn.Module,
    part: str | None,
    on_bad: OnBad,
    limit: int | None,
    seen: Seen = Seen(),  # noqa: B008
) -> ImageSet:
    """The images of a part of a set; without such a part, those that the model used for it, by what it has seen.

    Args:
        data: the set.
        net: the model, which says how many channels it takes.
        part: name of the part; None for the test images, or all if the set has no parts.
        on_bad: what to do with images that cannot be read.
        limit: largest number of images.
        seen: what the model has seen; the test images of a set without parts are all others.

    Raises:
        InputError: there is no such part.
    """
    source = training.open_source(data, None, data_config(net)["input_size"][0], on_bad)
    name = part or ("all" if "all" in source else "test")
    whole = source.get("all", source.get("train"))
    parts = source if name in source or whole is None else {**seen.parts(whole), **source}
    if name == "test" and "test" not in source and "val" in source:
        name = "val"
    if name not in parts:
        what = "images that the model has not seen" if name == "test" else f"a part {name}"
        raise InputError(f"{data}: expected {what}, found {', '.join(parts)}: give --part {next(iter(parts))}")
    images = parts[name]
    return images if limit is None else images.select(range(min(limit, len(images))))


def print_skipped(images: ImageSet) -> None:
    """Print how many images were left out, and which."""
    if images.skipped:
        say(f"{len(images.skipped)} bad ones skipped:", *images.skipped, sep="\n  ")


def name_of(model: str) -> str:
    """The name of a model in score tables: that of its folder, or of the run if the folder is RUN/model."""
    path = Path(model).resolve()
    return path.parent.name if path.name == "model" else path.name
