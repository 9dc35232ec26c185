"""The Lightning data module of images: parts of a set, augmented for the model that is trained, in batches."""

from pathlib import Path
from typing import Any

import numpy as np
from timm.data import create_dataset
from torch.utils.data import IterableDataset

from tsfm_data.errors import InputError, check_sizes, reason_of, unknown_name
from tsfm_data.images import WHOLE, ImageSet, OnBad, hold_out, open_images
from tsfm_data.io import find
from tsfm_vision.evaluation import Transformed, eval_transform
from tsfm_vision.training.loaders import Loaders
from tsfm_vision.training.recipes import Augment
from tsfm_vision.weights import Seen

# Prefixes of the sources that timm reads: torchvision's sets, Hugging Face's, TensorFlow's, and tar files.
TIMM_SOURCES = ("torch/", "hfds/", "hfids/", "tfds/", "wds/")
CACHE_BYTES = 2**30


class ImageDataModule(Loaders):
    """Images of one set to train, validate, test and predict with.

    The model's preprocessing (size, channels, mean and deviation, crop) comes from the trained task, or is given to
    ``prepare``. If the set has no "val" part, ``val_fraction`` of each class's training images are held out, so that
    no test image chooses a model. If it has no "test" part, "val" chooses and is tested on, which ``describe`` says.

    After ``setup``, ``parts`` maps "train", "val" and "test" to their images.
    """

    parts: dict[str, ImageSet]

    def __init__(
        self,
        source: str,
        root: str | None = None,
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        augment: Augment = Augment(),  # noqa: B008
        val_fraction: float = 0.1,
        fraction: float = 1.0,
        on_bad: OnBad = "error",
        workers: int = 0,
        seed: int = 2023,
    ) -> None:
        """Store the options; nothing is read before ``setup``.

        Args:
            source: a folder of class folders (or of train, val and test folders with them), a Parquet file, the name
                of one in the folder images of TSFM_DATA, or a set that timm opens, such as torch/cifar10 or
                hfds/NAME.
            root: the folder that timm opens a set in.
            batch_size: training images in a batch (of each process).
            eval_batch_size: images in a batch when validating, testing and predicting; null takes batch_size.
            augment: augmentation of training images.
            val_fraction: share of each class's training images to validate on if the set has no such part.
            fraction: share of each class's training images to train on, for trials.
            on_bad: "error" stops at an image that cannot be read, "skip" leaves it out and counts it.
            workers: processes that decode and augment; 0 does it in the training process.
            seed: of order, augmentation, dropout and the held-out images.
        """
        super().__init__(source, batch_size, workers, seed)
        check_sizes("change it", eval_batch_size=eval_batch_size)
        self.root, self.augment, self.on_bad, self.repeats = root, augment, on_bad, augment.repeats
        self.eval_batch_size = eval_batch_size or batch_size
        self.val_fraction, self.fraction = val_fraction, fraction
        self.data_config: dict[str, Any] = {}

    def prepare(self, data_config: dict[str, Any]) -> None:
        """Open the set for a model of this data config (timm's keys).

        Raises:
            InputError: the source cannot be opened, or has no images to train on.
        """
        self.data_config = data_config
        if self.parts:
            return
        channels = data_config["input_size"][0]
        source = open_source(self.source, self.root, channels, self.on_bad)
        parts = divide(source, self.val_fraction, self.seed)
        self.parts = {part: self._cached(images) for part, images in parts.items()}
        if self.fraction < 1 and "train" in self.parts:
            self.parts["train"] = hold_out(self.parts["train"], self.fraction, self.seed)[1]

    def setup(self, stage: str) -> None:
        """Open the set for the model that is trained.

        Raises:
            InputError: as ``prepare``, or the model has another number of classes than the set.
        """
        task: Any = self.trainer.lightning_module if self.trainer is not None else None
        if task is None:
            raise RuntimeError("setup() needs a trainer; without one call prepare()")
        self.prepare(task.data_config)
        task.meet(self)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return next(iter(self.parts.values())).classes

    def _cached(self, images: ImageSet) -> ImageSet:
        """Decode a small set once, so that no epoch waits for it."""
        if not len(images):
            return images
        height, width = images.size()
        return images.decoded() if len(images) * height * width * images.channels <= CACHE_BYTES else images

    def dataset(self, part: str) -> Transformed:
        """The images of a part; those of "train" augmented."""
        transform = self.augment.build(self.data_config) if part == "train" else eval_transform(self.data_config)
        return Transformed(self.part(part), transform, self.seed)

    def describe(self) -> str:
        """One line for a command to print: the images of each part, and how many were skipped."""
        skipped = sum(len(images.skipped) for images in self.parts.values())
        text = f"{len(self.classes)} classes; images: {self.counts()}"
        if skipped:
            first = next(images.skipped[0] for images in self.parts.values() if images.skipped)
            text += f"; {skipped} bad ones skipped, the first: {first}"
        return text


def open_source(source: str, root: str | None, channels: int, on_bad: OnBad = "error") -> dict[str, ImageSet]:
    """The parts of an image set by its path, its name in the folder images of TSFM_DATA, or timm's name.

    Raises:
        InputError: there is no such set, or it holds bad images that are not to be skipped.
    """
    if source.startswith(TIMM_SOURCES):
        return _from_timm(source, root, channels)
    known = find(f"images/{source}.parquet") if not Path(source).exists() else None
    if known is None and not Path(source).exists() and Path(source).name == source and not Path(source).suffix:
        raise InputError(
            f"expected an image set at {source}, or images/{source}.parquet in the folder TSFM_DATA, found neither: "
            "check the path, or set TSFM_DATA"
        )
    return open_images(known or source, channels, on_bad)


def _from_timm(source: str, root: str | None, channels: int) -> dict[str, ImageSet]:
    """A set that timm opens, held in memory as pixels."""
    parts: dict[str, ImageSet] = {}
    for part, split in (("train", "train"), ("test", "validation")):
        try:
            data: Any = create_dataset(source, root, split=split, input_img_mode="L" if channels == 1 else "RGB")
        except (ImportError, OSError, RuntimeError, ValueError, KeyError, AssertionError) as error:
            reason = reason_of(error, 120)
            raise InputError(
                f"{source}: timm could not open it in {root} ({reason}): give root, or its files"
            ) from error
        parts[part] = _listed(data, source, channels)
    return parts


def _listed(data: Any, name: str, channels: int) -> ImageSet:
    pairs = list(data) if isinstance(data, IterableDataset) else [data[i] for i in range(len(data))]
    labels = np.array([int(label) for _, label in pairs], np.int64)
    classes = tuple(getattr(data, "classes", None) or map(str, range(int(labels.max(initial=0)) + 1)))
    mode = "L" if channels == 1 else "RGB"
    arrays = [np.asarray(image.convert(mode)) for image, _ in pairs]
    items = [pixels[..., None] if pixels.ndim == 2 else pixels for pixels in arrays]
    return ImageSet(name, classes, labels, items, lambda i: f"{name}, image {i}", channels)


def divide(
    source: dict[str, ImageSet],
    val_fraction: float,
    seed: int,
    seen: Seen = Seen(),  # noqa: B008
) -> dict[str, ImageSet]:
    """Images to train on ("train"), to choose the checkpoint ("val") and to judge it ("test"), as far as there are any.

    Parts that the set has stay as they are. Of the rest, images that the model has seen before are never held out.

    Args:
        source: the parts of a set.
        val_fraction: share of each class that is held out for a part that the set does not have.
        seed: of the held-out images.
        seen: what the model that is to be trained has seen.

    Raises:
        InputError: no images, or none that can be held out.
    """
    parts = dict(source)
    if WHOLE in parts:
        whole = parts.pop(WHOLE)
        if not whole.classes:
            return {"test": whole}
        parts["train"], parts["test"] = hold_out(whole, val_fraction, seed, ~np.logical_or(*seen.masks(whole)))
    if "train" in parts and "val" not in parts:
        train = parts["train"]
        parts["train"], parts["val"] = hold_out(train, val_fraction, seed + 1, ~seen.masks(train)[0])
    if not parts:
        raise unknown_name("part", "train", source)
    for part, images in parts.items():
        if not len(images):
            raise InputError(
                f"{images.name}: expected images for a {part} part that the model has not seen, found none: add some"
            )
    return parts
