"""A loader whose every batch is a pure function of seed, epoch and number: endless data, exact resume."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Generic, TypeVar

import numpy as np

from tsfm_data.errors import InputError

B = TypeVar("B")


class CountedLoader(ABC, Generic[B]):
    """Batches made on the fly, each from random numbers of its own (Philox, counted by epoch and batch).

    Of the one stream of batches of an epoch, rank ``r`` of ``w`` takes numbers ``r``, ``r + w``, ...: two processes see
    in one step what one process sees in two, and no batch depends on those before it. So ``state_dict`` is two numbers
    and a resumed loader hands out exactly the batches that were not handed out before. Lightning calls ``set_epoch``
    before every epoch; in a plain loop every new iteration is the next epoch by itself.

    Args:
        batches: batches of an epoch (of this rank).
        seed: of the whole stream.
        rank: number of this process.
        world: number of processes.
        prefetch: next batches that are made meanwhile, each in a thread of its own; 0 makes each when asked for.

    Raises:
        InputError: a number is out of range.
    """

    batch_sampler = None  # Lightning looks for this name and for ``sampler`` when it announces an epoch

    def __init__(self, batches: int, *, seed: int = 0, rank: int = 0, world: int = 1, prefetch: int = 0) -> None:
        if batches < 1:
            raise InputError(f"batches: expected at least 1 an epoch, found {batches}")
        if not 0 <= seed < 1 << 63:
            raise InputError(f"seed: expected 0 or more, below 2^63, found {seed}")
        if prefetch < 0:
            raise InputError(f"prefetch: expected 0 or more batches, found {prefetch}")
        self.batches, self.seed, self.rank, self.world, self.prefetch = batches, seed, rank, world, prefetch
        self._epoch = self._batch = 0
        self._resume: tuple[int, int] | None = None
        self._epoch_is_new = True

    @abstractmethod
    def make(self, rng: np.random.Generator) -> B:
        """One batch, of these random numbers alone."""

    @property
    def sampler(self) -> "CountedLoader[B]":
        """Itself: Lightning calls ``sampler.set_epoch``."""
        return self

    def __len__(self) -> int:
        return self.batches

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

    def batch(self, epoch: int, number: int) -> B:
        """Batch ``number`` of an epoch of this rank."""
        counter = [0, 0, number * self.world + self.rank, epoch]
        return self.make(np.random.Generator(np.random.Philox(key=self.seed, counter=counter)))

    def __iter__(self) -> Iterator[B]:
        # The body runs at the first ``next``: Lightning asks for the iterator before it announces the epoch.
        if not self._epoch_is_new:
            self._epoch += 1
        self._epoch_is_new = False
        resumed, self._resume = self._resume, None
        first = resumed[1] if resumed is not None and resumed[0] == self._epoch else 0
        self._batch = first
        made = self._ahead(self._epoch, first) if self.prefetch else self._at_once(self._epoch, first)
        for number, batch in enumerate(made, first):
            self._batch = number + 1
            yield batch

    def _at_once(self, epoch: int, first: int) -> Iterator[B]:
        for number in range(first, self.batches):
            yield self.batch(epoch, number)

    def _ahead(self, epoch: int, first: int) -> Iterator[B]:
        """The same batches, made while those before them are worked on."""
        with ThreadPoolExecutor(self.prefetch, thread_name_prefix="tsfm-loader") as threads:
            numbers = iter(range(first, self.batches))
            coming = deque(threads.submit(self.batch, epoch, n) for n in islice(numbers, self.prefetch))
            while coming:
                ready = coming.popleft().result()
                coming.extend(threads.submit(self.batch, epoch, n) for n in islice(numbers, 1))
                yield ready
