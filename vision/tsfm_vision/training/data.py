"""The Lightning data module of images: parts of a set, augmented for the model that is trained, in batches."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from timm.data import create_dataset
from timm.data.distributed_sampler import RepeatAugSampler
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset

from tsfm_data.errors import InputError, check_seed, reason_of, unknown_name
from tsfm_data.images import WHOLE, ImageSet, OnBad, hold_out, open_images
from tsfm_data.io import find
from tsfm_data.windows import even_batch_size, rank_and_world
from tsfm_vision.evaluation import eval_transform
from tsfm_vision.training.recipes import Augment
from tsfm_vision.weights import Seen

Key = tuple[int, int, int]
# Prefixes of the sources that timm reads: torchvision's sets, Hugging Face's, TensorFlow's, and tar files.
TIMM_SOURCES = ("torch/", "hfds/", "hfids/", "tfds/", "wds/")
CACHE_BYTES = 2**30


def reseed(*numbers: int) -> None:
    """Seed every random generator that augmentation and dropout use from these numbers."""
    (seed,) = np.random.SeedSequence(numbers).generate_state(1)
    random.seed(int(seed))
    np.random.seed(int(seed))
    torch.manual_seed(int(seed))


class Shuffled(DistributedSampler):
    """A process's share of an epoch's images, as keys (epoch, position in the epoch, index of the image).

    The key and the seed alone decide an image's augmentation, so the numbers of workers and of processes change
    nothing, and resumed training sees the same images. No image is repeated: of a number that the processes cannot
    divide, a few are left out of the epoch.

    Attributes:
        skip: images to leave out at the beginning of the next pass.
    """

    def __init__(self, count: int, seed: int, repeats: int, rank: int, world: int) -> None:
        super().__init__(range(count), world, rank, shuffle=True, seed=seed, drop_last=True)  # type: ignore[arg-type]
        self.skip = 0
        self.inner = None
        if repeats > 1:
            # Rounded down to whole batches by the loader; timm's rounding to 256 would lose most of a small set.
            self.inner = RepeatAugSampler(range(count), world, rank, num_repeats=repeats, selected_round=0)

    def __len__(self) -> int:
        return len(self.inner) if self.inner is not None else super().__len__()

    def __iter__(self) -> Iterator[Any]:
        if self.inner is not None:
            self.inner.set_epoch(self.epoch)
        chosen = super().__iter__() if self.inner is None else iter(self.inner)
        for place, index in enumerate(chosen):
            if place >= self.skip:
                yield self.epoch, place * self.num_replicas + self.rank, int(index)


class InOrder(DistributedSampler):
    """A process's share of the images to evaluate, each of them once: every ``world``-th.

    Lightning would replace other samplers by one that repeats images until all processes have as many.
    """

    def __init__(self, count: int, rank: int, world: int) -> None:
        super().__init__(range(count), world, rank, shuffle=False)  # type: ignore[arg-type]
        self.share = range(rank, count, world)

    def __len__(self) -> int:
        return len(self.share)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.share)


class TrainLoader(DataLoader):
    """Batches of ``Shuffled`` images. Its state is two numbers: the epoch, and the batches used by all processes.

    With a state loaded, it continues after the last batch that had been used when the state was saved.
    """

    sampler: Shuffled
    batch_size: int
    _batch = 0
    _resume: tuple[int, int] | None = None

    def state_dict(self) -> dict[str, int]:
        """The epoch, and the batches of it that were used."""
        return {"epoch": self.sampler.epoch, "batch": self._batch * self.sampler.num_replicas}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from there at the next iteration, if it is of the same epoch."""
        self._resume = (state["epoch"], state["batch"] // self.sampler.num_replicas)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # The body runs at the first ``next``: Lightning asks for the iterator before it announces the epoch.
        resumed, self._resume = self._resume, None
        self._batch = resumed[1] if resumed is not None and resumed[0] == self.sampler.epoch else 0
        self.sampler.skip = self._batch * self.batch_size
        for batch in super().__iter__():
            self._batch += 1
            yield batch


class Transformed(Dataset):
    """Transformed images, each with its label; keys are indices, or those of ``Shuffled``.

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


class ImageDataModule(pl.LightningDataModule):
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
        super().__init__()
        check_seed(seed)
        for name, size in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size or 1)):
            if size < 1:
                raise InputError(f"expected a {name} of at least 1 image, found {size}: give --data.{name} 128")
        self.source, self.root, self.augment, self.on_bad = source, root, augment, on_bad
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.val_fraction, self.fraction, self.workers, self.seed = val_fraction, fraction, workers, seed
        self.data_config: dict[str, Any] = {}
        self.parts = {}

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

    @property
    def set_name(self) -> str:
        """Name of the data set."""
        return next(iter(self.parts.values())).name

    def _cached(self, images: ImageSet) -> ImageSet:
        """Decode a small set once, so that no epoch waits for it."""
        if not len(images):
            return images
        height, width = images.size()
        return images.decoded() if len(images) * height * width * images.channels <= CACHE_BYTES else images

    def train_dataloader(self) -> DataLoader:
        """Shuffled and augmented training images, in whole batches."""
        images, (rank, world) = self.part("train"), rank_and_world(self.trainer)
        if len(images) < self.batch_size * world:
            raise InputError(
                f"{self.source}: expected at least one batch of {self.batch_size * world} training images, "
                f"found {len(images)}: give --data.batch_size {max(2, len(images) // world // 2 * 2)}"
            )
        data = Transformed(images, self.augment.build(self.data_config), self.seed)
        sampler = Shuffled(len(images), self.seed, self.augment.repeats, rank, world)
        return TrainLoader(data, self.batch_size, sampler=sampler, drop_last=True, **workers(self.workers))

    def val_dataloader(self) -> DataLoader:
        """Every validation image, in order."""
        return self._in_order("val")

    def test_dataloader(self) -> DataLoader:
        """Every test image, in order."""
        return self._in_order("test")

    def predict_dataloader(self) -> DataLoader:
        """Every test image, in order."""
        return self._in_order("test")

    def _in_order(self, part: str) -> DataLoader:
        data = Transformed(self.part(part), eval_transform(self.data_config))
        return in_order(data, self.eval_batch_size, self.trainer, self.workers)

    def part(self, part: str) -> ImageSet:
        """The images of a part; the validation images are those to test on if there are no others.

        Raises:
            InputError: there are none.
        """
        part = "val" if part == "test" and part not in self.parts else part
        if part not in self.parts:
            raise InputError(f"{self.source}: expected a {part} part, found {', '.join(self.parts)}: give another set")
        return self.parts[part]

    def describe(self) -> str:
        """One line for a command to print: the images of each part, and how many were skipped."""
        counts = ", ".join(f"{len(images):,} {part}" for part, images in self.parts.items())
        skipped = sum(len(images.skipped) for images in self.parts.values())
        text = f"{len(self.classes)} classes; images: {counts}"
        if "val" in self.parts and "test" not in self.parts:
            text += "; no test part: scores on val, which chooses the checkpoint, are too good"
        if skipped:
            first = next(images.skipped[0] for images in self.parts.values() if images.skipped)
            text += f"; {skipped} bad ones skipped, the first: {first}"
        return text


def in_order(data: Dataset, batch_size: int, trainer: Any, count: int) -> DataLoader:
    """A process's share of what is evaluated, each image once; all processes have as many batches.

    Args:
        data: images, with a length.
        batch_size: images in a batch (of each process).
        trainer: the trainer, or None.
        count: worker processes that read.
    """
    (rank, world), images = rank_and_world(trainer), len(data)  # type: ignore[arg-type]
    options = workers(count)
    if world > 1:
        batch_size = even_batch_size(images, world, batch_size)
        options["sampler"] = InOrder(images, rank, world)
    # By keyword: to predict, Lightning makes the loader again and adds its own batch_size to positional arguments.
    return DataLoader(dataset=data, batch_size=batch_size, **options)


def workers(count: int) -> dict[str, Any]:
    """Options of a loader with so many worker processes."""
    return {"num_workers": count, "persistent_workers": count > 0}


def open_source(source: str, root: str | None, channels: int, on_bad: OnBad = "error") -> dict[str, ImageSet]:
    """The parts of an image set by its path, its name in the folder images of TSFM_DATA, or timm's name.

    Raises:
        InputError: there is no such set, or it holds bad images that are not to be skipped.
    """
    if source.startswith(TIMM_SOURCES):
        return _from_timm(source, root, channels)
    known = find(f"images/{source}.parquet") if not Path(source).exists() else None
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
