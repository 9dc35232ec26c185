"""Fine-tune an image model of a folder on another set; if the classes are the same, the result is never worse.

Held-out training images choose the best checkpoint. Test images choose nothing.
"""

import copy
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from tsfm.training import add_updates, merge
from tsfm_data.errors import LIBRARY_ERRORS, InputError, check_sizes, check_workers, reason_of
from tsfm_data.images import ImageSet, OnBad
from tsfm_data.progress import progress
from tsfm_vision.evaluation import Transformed, probabilities, reseed
from tsfm_vision.training.data import divide, open_source
from tsfm_vision.training.recipes import Augment, ImageOptim, build_optimizer, lr_factor
from tsfm_vision.weights import Seen, TrainedOn, data_config, load, save, seen_by


def finetune(
    data: str,
    model: str,
    output: Path,
    steps: int,
    batch_size: int,
    lr: float,
    checks: int,
    seed: int,
    scratch: bool,
    on_bad: OnBad,
    device: str = "cpu",
    layer_decay: float = 0.8,
    method: Literal["full", "lora", "head"] = "full",
    rank: int = 8,
    precision: Literal["32", "bf16"] = "32",
    workers: int = 0,
) -> dict[str, Any]:
    """Train on a set's training images and write the model folder; returns the steps of the best model and its scores.

    The score "val" is of the images that chose the best model, "test" of those that did not, None if there are none.

    Args:
        data: an image set.
        model: the folder to start from.
        output: the folder to write.
        steps: optimiser steps.
        batch_size: images per step.
        lr: peak learning rate of the head.
        checks: times that the held-out images are scored.
        seed: of held-out images, order, augmentation and a new head.
        scratch: start from random weights instead, for comparison.
        on_bad: whether an image that cannot be read is an error or is skipped.
        device: where to train, by PyTorch's name.
        layer_decay: factor on the learning rate from each layer to the one below; unused with ``scratch``.
        method: "full" trains all weights, "head" the classifier, "lora" the classifier and low-rank updates of the
            linear layers inside blocks, which are added to their weights at the end.
        rank: of the updates.
        precision: of the products in training, 32 bits or bfloat16; weights have 32 bits.
        workers: processes that read and augment images; 0 does it in this one, with the same result.

    Raises:
        InputError: an image set without classes to train on, or numbers out of range.
    """
    check_sizes("change it", steps=steps, batch_size=batch_size, checks=checks, rank=rank)
    check_workers(workers)
    if not 0 < layer_decay <= 1:
        raise InputError(f"expected a layer_decay above 0 and at most 1, found {layer_decay}: change it")
    if scratch and method != "full":
        raise InputError(f"expected method full for random weights, found {method}: leave one of them out")
    place = device_of(device)
    net, classes = load(model)
    config, seen = data_config(net), Seen() if scratch else seen_by(model)
    parts = divide(open_source(data, None, config["input_size"][0], on_bad), 0.1, seed, seen)
    if "train" not in parts or len(parts["train"]) < batch_size:
        count = len(parts.get("train", ()))
        raise InputError(
            f"{data}: expected {batch_size} training images or more, found {count}: give --batch-size {count or 1}"
        )
    same = parts["train"].classes == classes
    net = begin(net, model, len(parts["train"].classes), same, scratch, seed).to(place)
    curve = [(0, score(net, parts["val"], workers))] if same and not scratch else []
    choose_trained(net, method, rank)
    best, best_step = copy.deepcopy(net.state_dict()), 0
    optim = ImageOptim(
        lr=lr, warmup_epochs=0, min_lr=0.0, layer_decay=None if scratch or layer_decay == 1 else layer_decay
    )
    optimizer = build_optimizer(optim, net, batch_size)
    schedule = LambdaLR(optimizer, lr_factor(optim, steps, 1, batch_size))
    images = Transformed(parts["train"], Augment(crop="pad", policy=None, erase=0.0).build(config), seed)
    loader = DataLoader(images, batch_sampler=draw(len(images), batch_size, steps, seed), num_workers=workers)
    for step, (x, labels) in enumerate(progress(loader, "fine-tune"), 1):
        reseed(seed, step, 1)
        net.train(method != "head")  # where all but the classifier is frozen, running statistics are as well
        with torch.autocast(place.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = F.cross_entropy(net(x.to(place)), labels.to(place), label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % max(1, steps // checks) == 0 or step == steps:
            check_finite(net, step, lr)
            curve.append((step, score(net, parts["val"], workers)))
            if curve[-1][1] >= max(value for _, value in curve):
                best, best_step = copy.deepcopy(net.state_dict()), step
    net.load_state_dict(best)
    merge(net)
    train, test = parts["train"], parts.get("test")
    now = seen.and_now(train, parts["val"])
    save(net.eval(), output, TrainedOn(train.name, train.classes, len(train), now))
    return {
        "steps": best_step,
        "curve": curve,
        "val": dict(curve)[best_step],
        "test": None if test is None else score(net, test, workers),
        "warning": None if test is None else now.warning(test),
    }


def draw(count: int, batch_size: int, steps: int, seed: int) -> list[list[tuple[int, int, int]]]:
    """For each step, its images as keys of ``Transformed``: step, place in the batch, and a random index."""
    keys = []
    for step in range(1, steps + 1):
        reseed(seed, step)
        keys.append([(step, place, i) for place, i in enumerate(torch.randint(count, (batch_size,)).tolist())])
    return keys


def choose_trained(net: nn.Module, method: str, rank: int) -> None:
    """Freeze what a method does not train, and add the updates of "lora"."""
    if method == "full":
        return
    model: Any = net
    head = list(model.get_classifier().modules())
    if method == "lora":
        add_updates(net, rank, lambda name: net.get_submodule(name) in head)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_("lora_" in name)
    model.get_classifier().requires_grad_(True)


def device_of(name: str) -> torch.device:
    """A device by PyTorch's name, checked to be there.

    Raises:
        InputError: it is not.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except LIBRARY_ERRORS as error:
        raise InputError(
            f"expected a device that is here, found {name!r} ({reason_of(error, 80)}): give cpu"
        ) from error
    return device


def check_finite(net: nn.Module, step: int, lr: float) -> None:
    """Check that all weights are finite.

    Raises:
        InputError: one is not.
    """
    if not all(bool(weight.isfinite().all()) for weight in net.parameters()):
        raise InputError(
            f"training diverged: expected finite weights, found others in step {step} at a learning rate of {lr:g}; "
            "give a smaller --lr"
        )


def begin(net: nn.Module, folder: str, classes: int, same: bool, scratch: bool, seed: int) -> nn.Module:
    """The model to train: with a new head for other classes, or with random weights."""
    torch.manual_seed(seed)
    if scratch:
        path = Path(folder)
        inner = path if (path / "config.json").is_file() else path / "model"
        made: Any = timm.create_model(f"local-dir:{inner}", pretrained=False, num_classes=classes)
        made.pretrained_cfg.pop("license", None)  # that of the weights
        return made
    if not same:
        reset: Any = net
        reset.reset_classifier(classes)
    return net


def score(net: nn.Module, images: ImageSet, workers: int) -> float:
    """Top-1 accuracy."""
    net.eval()
    predicted = probabilities(net, images, 250, workers).argmax(1)
    return float((predicted == images.labels).mean())
