"""Loaders of images: training images shuffled, in an order that resumed training continues; others in order."""

from collections.abc import Iterator, Sized
from typing import Any, cast

import pytorch_lightning as pl
from timm.data.distributed_sampler import RepeatAugSampler
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from tsfm_data.errors import InputError, check_seed, check_sizes, check_workers
from tsfm_data.windows import even_batch_size, rank_and_world


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


class Loaders(pl.LightningDataModule):
    """The loaders of a set of images in parts "train", "val" and "test"; a set adds ``dataset``.

    Args:
        source: name of the set.
        batch_size: training images in a batch (of each process).
        workers: processes that decode and augment; 0 does it in the training process.
        seed: of order and augmentation.

    Raises:
        InputError: numbers out of range.

    Attributes:
        eval_batch_size: images in a batch that is not trained on.
        parts: what the set has of each part.
        collate: makes a batch of images and targets; None stacks them.
        repeats: how often an image comes in an epoch, see ``Augment``.
    """

    collate: Any = None
    repeats = 1

    def __init__(self, source: str, batch_size: int, workers: int, seed: int) -> None:
        super().__init__()
        check_seed(seed)
        check_sizes("change it", batch_size=batch_size)
        check_workers(workers)
        self.source, self.batch_size, self.eval_batch_size = source, batch_size, batch_size
        self.workers, self.seed = workers, seed
        self.parts: dict[str, Any] = {}

    def dataset(self, part: str) -> Dataset:
        """The images of a part with their targets, by index or the keys of ``Shuffled``; those of "train" augmented."""
        raise NotImplementedError

    def part(self, part: str) -> Any:
        """What there is of a part; the validation images are those to test on if there are no others.

        Raises:
            InputError: nothing.
        """
        part = "val" if part == "test" and part not in self.parts else part
        if part not in self.parts:
            raise InputError(f"{self.source}: expected a {part} part, found {', '.join(self.parts)}: give another set")
        return self.parts[part]

    def counts(self) -> str:
        """The number of images of each part, and what a missing one means."""
        text = ", ".join(f"{len(images):,} {part}" for part, images in self.parts.items())
        if "val" in self.parts and "test" not in self.parts:
            text += "; no test part: scores on val, which chooses the checkpoint, are too good"
        return text

    def train_dataloader(self) -> DataLoader:
        """Shuffled and augmented training images, in whole batches."""
        data = self.dataset("train")
        count, (rank, world) = len(cast(Sized, data)), rank_and_world(self.trainer)
        if count < self.batch_size * world:
            raise InputError(
                f"{self.source}: expected at least one batch of {self.batch_size * world} training images, found "
                f"{count}: give --data.batch_size {max(2, count // world // 2 * 2)}"
            )
        sampler = Shuffled(count, self.seed, self.repeats, rank, world)
        return self._loader(data, self.batch_size, TrainLoader, sampler=sampler, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        """Every validation image, in order."""
        return self._in_order("val")

    def test_dataloader(self) -> DataLoader:
        """Every test image, in order."""
        return self._in_order("test")

    def predict_dataloader(self) -> DataLoader:
        """Every test image, in order."""
        return self.test_dataloader()

    def _in_order(self, part: str) -> DataLoader:
        """A process's share of a part, each image once; all processes have as many batches."""
        data, (rank, world) = self.dataset(part), rank_and_world(self.trainer)
        if world == 1:
            return self._loader(data, self.eval_batch_size)
        count = len(cast(Sized, data))
        batch_size = even_batch_size(count, world, self.eval_batch_size)
        return self._loader(data, batch_size, sampler=InOrder(count, rank, world))

    def _loader(
        self, data: Dataset, batch_size: int, kind: type[DataLoader] = DataLoader, **options: Any
    ) -> DataLoader:
        # By keyword: to predict, Lightning makes the loader again and adds its own batch_size to positional arguments.
        options |= {"num_workers": self.workers, "persistent_workers": self.workers > 0, "collate_fn": self.collate}
        return kind(dataset=data, batch_size=batch_size, **options)
