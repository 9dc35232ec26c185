"""A loader whose batches are a pure function of seed, epoch and batch number: endless data, exact resume."""

from abc import abstractmethod
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np

from tsfm_data.errors import InputError, check_sizes
from tsfm_data.windows import B, ResumableLoader


class CountedLoader(ResumableLoader[B]):
    """Batches made when they are needed, each from its own random numbers (Philox with a counter of epoch and batch).

    All ranks share one stream of batches per epoch; rank ``r`` of ``w`` takes batches ``r``, ``r + w``, ... So two
    processes see in one step what one process sees in two, and no batch depends on those before it.

    Args:
        batches: batches of an epoch (of this rank).
        seed: of the whole stream.
        rank: number of this process.
        world: number of processes.
        prefetch: batches prepared ahead, each in its own thread; 0 makes each batch when it is requested.

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
    def make_batch(self, rng: np.random.Generator) -> B:
        """Make one batch from these random numbers alone."""

    def __len__(self) -> int:
        return self.batches

    def batch(self, epoch: int, number: int) -> B:
        """Batch ``number`` of this rank in an epoch."""
        return self.make_batch(self.generator(epoch, number, self.rank))

    def generator(self, epoch: int, number: int, rank: int) -> np.random.Generator:
        """The random numbers of batch ``number`` of a rank in an epoch."""
        counter = [0, 0, number * self.world + rank, epoch]
        return np.random.Generator(np.random.Philox(key=self.seed, counter=counter))

    def from_batch(self, epoch: int, first: int) -> Iterator[B]:
        numbers = range(first, self.batches)
        return self._prefetched(epoch, iter(numbers)) if self.prefetch else (self.batch(epoch, n) for n in numbers)

    def _prefetched(self, epoch: int, numbers: Iterator[int]) -> Iterator[B]:
        """The same batches, prepared in threads while the earlier ones are used."""
        with ThreadPoolExecutor(self.prefetch, thread_name_prefix="tsfm-loader") as threads:
            pending = deque(threads.submit(self.batch, epoch, n) for n in islice(numbers, self.prefetch))
            while pending:
                ready = pending.popleft().result()
                pending.extend(threads.submit(self.batch, epoch, n) for n in islice(numbers, 1))
                yield ready
