"""A loader that says where it stands: two numbers, from which another one goes on."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

B = TypeVar("B")


class ResumableLoader(ABC, Generic[B]):
    """Batches of one epoch after the other, each a function of its number alone.

    A plain iterable with a length. Lightning calls ``set_epoch`` before every epoch; in a
    plain loop every new iteration is the next epoch by itself. ``state_dict`` is two numbers, and a resumed loader
    hands out exactly the batches that were not handed out before.
    """

    batch_sampler = None  # Lightning looks for this name and for ``sampler`` when it announces an epoch

    def __init__(self) -> None:
        self._epoch = self._batch = 0
        self._resume: tuple[int, int] | None = None
        self._epoch_is_new = True

    @abstractmethod
    def __len__(self) -> int:
        """Batches of an epoch (of this rank)."""

    @abstractmethod
    def from_batch(self, epoch: int, first: int) -> Iterator[B]:
        """The batches of an epoch from number ``first`` on."""

    @property
    def sampler(self) -> "ResumableLoader[B]":
        """Itself: Lightning calls ``sampler.set_epoch``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the next iteration."""
        self._epoch, self._epoch_is_new = epoch, True

    def state_dict(self) -> dict[str, int]:
        """Where the iteration stands: the epoch, and how many of its batches were handed out."""
        return {"epoch": self._epoch, "batch": self._batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on, at the next iteration, after the last batch that was handed out when ``state`` was taken."""
        self.set_epoch(state["epoch"])
        self._batch = state["batch"]
        self._resume = (state["epoch"], state["batch"])

    def __iter__(self) -> Iterator[B]:
        # The body runs at the first ``next``: Lightning asks for the iterator before it announces the epoch.
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
    """The number of this process and how many there are, of a Lightning trainer; 0 and 1 without one."""
    return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
