"""A resumable loader: its state is two numbers, epoch and batch."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from tsfm_data.errors import InputError

B = TypeVar("B")


class ResumableLoader(ABC, Generic[B]):
    """An iterable over the batches of an epoch; each batch depends on its epoch and number only.

    Lightning calls ``set_epoch`` before every epoch; in a plain loop every new iteration is the next epoch. A resumed
    loader yields exactly the batches that were not yielded before, also if another number of processes shares them:
    their number is counted over all processes (if it is no multiple of the new number, a few are yielded again).

    Attributes:
        world: number of processes.
    """

    world = 1

    batch_sampler = None  # Lightning looks for this attribute and for ``sampler`` when it sets the epoch

    def __init__(self) -> None:
        self._epoch = self._batch = 0
        self._resume: tuple[int, int] | None = None
        self._epoch_is_new = True

    @abstractmethod
    def __len__(self) -> int:
        """Number of batches of an epoch (of this rank)."""

    @abstractmethod
    def from_batch(self, epoch: int, first: int) -> Iterator[B]:
        """The batches of an epoch from number ``first`` on."""

    @property
    def sampler(self) -> "ResumableLoader[B]":
        """The loader itself, because Lightning calls ``sampler.set_epoch``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self._epoch, self._epoch_is_new = epoch, True

    def state_dict(self) -> dict[str, int]:
        """The epoch, and the number of its batches already yielded by all processes."""
        return {"epoch": self._epoch, "batch": self._batch * self.world}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration continue after the last batch yielded before ``state`` was taken."""
        self.set_epoch(state["epoch"])
        self._batch = state["batch"] // self.world
        self._resume = (state["epoch"], self._batch)

    def __iter__(self) -> Iterator[B]:
        # A generator body runs at the first ``next``: Lightning creates the iterator before it sets the epoch.
        if not self._epoch_is_new:
            self._epoch += 1
        self._epoch_is_new = False
        resumed, self._resume = self._resume, None
        first = resumed[1] if resumed is not None and resumed[0] == self._epoch else 0
        self._batch = first
        for number, batch in enumerate(self.from_batch(self._epoch, first), first):
            self._batch = number + 1
            yield batch


def rank_and_world(trainer: Any) -> tuple[int, int]:
    """Rank of this process and number of processes of a Lightning trainer; 0 and 1 without a trainer."""
    return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)


def even_batch_size(count: int, world: int, batch_size: int) -> int:
    """The smallest size of evaluation batches, from ``batch_size`` on, with which all processes have as many batches.

    Processes exchange weights or buffers while they evaluate, so one with a batch more would wait forever.

    Args:
        count: what is evaluated, each once: process ``r`` takes ``r``, ``r + world``, ...
        world: number of processes.
        batch_size: size to begin with.

    Raises:
        InputError: there is less to evaluate than there are processes.
    """
    if count < world:
        raise InputError(f"expected at least {world} to evaluate, one per process, found {count}: give fewer devices")
    least, most = count // world, -(-count // world)
    return next(size for size in itertools.count(batch_size) if -(-least // size) == -(-most // size))
