"""A loader whose every batch is a pure function of seed, epoch and number: endless data, exact resume."""

from abc import abstractmethod
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np

from tsfm_data.errors import InputError, check_sizes
from tsfm_data.windows import B, ResumableLoader


class CountedLoader(ResumableLoader[B]):
    """Batches made on the fly, each from random numbers of its own (Philox, counted by epoch and batch).

    Of the one stream of batches of an epoch, rank ``r`` of ``w`` takes numbers ``r``, ``r + w``, ...: two processes see
    in one step what one process sees in two, and no batch depends on those before it.

    Args:
        batches: batches of an epoch (of this rank).
        seed: of the whole stream.
        rank: number of this process.
        world: number of processes.
        prefetch: next batches that are made meanwhile, each in a thread of its own; 0 makes each when asked for.

    Raises:
        InputError: a number is out of range.
    """

    def __init__(self, batches: int, *, seed: int = 0, rank: int = 0, world: int = 1, prefetch: int = 0) -> None:
        super().__init__()
        check_sizes(batches=batches)
        if not 0 <= seed < 1 << 63:
            raise InputError(f"seed: expected 0 or more, below 2^63, found {seed}")
        if prefetch < 0:
            raise InputError(f"prefetch: expected 0 or more batches, found {prefetch}")
        self.batches, self.seed, self.rank, self.world, self.prefetch = batches, seed, rank, world, prefetch

    @abstractmethod
    def make(self, rng: np.random.Generator) -> B:
        """One batch, of these random numbers alone."""

    def __len__(self) -> int:
        return self.batches

    def batch(self, epoch: int, number: int) -> B:
        """Batch ``number`` of an epoch of this rank."""
        counter = [0, 0, number * self.world + self.rank, epoch]
        return self.make(np.random.Generator(np.random.Philox(key=self.seed, counter=counter)))

    def from_batch(self, epoch: int, first: int) -> Iterator[B]:
        numbers = range(first, self.batches)
        return self._ahead(epoch, iter(numbers)) if self.prefetch else (self.batch(epoch, n) for n in numbers)

    def _ahead(self, epoch: int, numbers: Iterator[int]) -> Iterator[B]:
        """The same batches, made while those before them are worked on."""
        with ThreadPoolExecutor(self.prefetch, thread_name_prefix="tsfm-loader") as threads:
            coming = deque(threads.submit(self.batch, epoch, n) for n in islice(numbers, self.prefetch))
            while coming:
                ready = coming.popleft().result()
                coming.extend(threads.submit(self.batch, epoch, n) for n in islice(numbers, 1))
                yield ready
