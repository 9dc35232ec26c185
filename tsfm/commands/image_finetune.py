"""``tsfm image finetune``: an image model on another set of images."""

from pathlib import Path
from typing import Literal


def finetune(
    data: str,
    *,
    output: Path,
    model: str | None = None,
    steps: int = 200,
    batch_size: int = 64,
    lr: float = 1e-3,
    checks: int = 5,
    seed: int = 0,
    scratch: bool = False,
    on_bad: Literal["error", "skip"] = "error",
) -> None:
    """Fine-tune an image model; where the classes are the model's own, never to the worse on held-out images.

    Args:
        data: a folder of class folders, a Parquet file with image, label and split, or a set's name.
        output: the model folder to write.
        model: a model folder written by tsfm fit, the folder of a run, or a name of tsfm weights list; by default the
            image model that ships with the package.
        steps: optimiser steps.
        batch_size: images of a step.
        lr: peak learning rate; deeper layers have less.
        checks: times that held-out training images are looked at; the best checkpoint is kept.
        seed: of held-out images, order, augmentation and a new head.
        scratch: start from random weights instead, for comparison.
        on_bad: what becomes of images that cannot be read: error, or skip, which counts them.
    """
    from tsfm.commands.image import folder_of, vision
    from tsfm_data.errors import InputError

    if output.exists() and not (output / "config.json").is_file() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"expected a new folder or a model folder, found {output}: give another --output")
    options = (steps, batch_size, lr, checks, seed, scratch, on_bad)
    found = vision("commands").finetune(data, folder_of(model), output, *options)
    print(f"top-1 {found['val']:.2%} on held-out images at step {found['steps']}, {found['test']:.2%} on test images")
    print(f"{output}: a model folder; tsfm image predict IMAGES --model {output}")
