"""Images of a set as tensors: the transform for classifying, and sets to load from."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import Dataset

from tsfm_data.errors import InputError
from tsfm_data.images import ImageSet, decode

Key = tuple[int, int, int]
Source = TypeVar("Source", str, bytes, str | bytes)


def reseed(*numbers: int) -> None:
    """Seed every random generator that augmentation and dropout use from these numbers."""
    (seed,) = np.random.SeedSequence(numbers).generate_state(1)
    random.seed(int(seed))
    np.random.seed(int(seed))
    torch.manual_seed(int(seed))


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


def read_pictures(
    items: Sequence[Source], folder: Path, data_config: dict[str, Any]
) -> tuple[dict[Source, Tensor], list[str]]:
    """Images as a model takes them, by what they were read from, and a message for each that cannot be read.

    Args:
        items: paths, or contents of image files.
        folder: what relative paths start from.
        data_config: of the model.
    """
    transform, found, bad = eval_transform(data_config), {}, []
    for item in items:
        try:
            image = decode(folder / item if isinstance(item, str) else item, data_config["input_size"][0])
            found[item] = transform(image)
        except (InputError, OSError) as error:
            reason = str(error) if isinstance(error, InputError) else "expected an image, found no such file"
            bad.append(f"{item if isinstance(item, str) else f'content of {len(item)} bytes'}: {reason}")
    return found, bad


class Transformed(Dataset):
    """Transformed images, each with its label; keys are indices, or (epoch, position in the epoch, index).

    Args:
        images: to read from.
        transform: a PIL image to a tensor.
        seed: of the augmentation of keyed images.
    """

    def __init__(self, images: ImageSet, transform: Callable[..., Any], seed: int = 0) -> None:
        self.images, self.transform, self.seed = images, transform, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: int | Key) -> tuple[Tensor, int]:
        index = key
        if isinstance(key, tuple):
            epoch, place, index = key
            reseed(self.seed, epoch, place, index)
        assert isinstance(index, int)
        return self.transform(self.images.image(index)), int(self.images.labels[index])
