"""Small corpora in memory for the tests of what reads them."""

import numpy as np

from tsfm_data.corpus.store import Source, Store


def make_source(
    name: str, series: list[np.ndarray], weight: float = 1.0, season: int = 24, items: list[int] | None = None
) -> Source:
    """A source as ``Store`` opens it."""
    lengths = [len(values) for values in series]
    return Source(
        name=name,
        weight=weight,
        licence="CC0",
        licence_class="open",
        values=np.concatenate(series).astype(np.float32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items=np.asarray(items if items is not None else range(len(series)), dtype=np.int32),
        freqs=np.zeros(len(series), dtype=np.int16),
        freq_names=("h",),
        season=np.full(len(series), season, dtype=np.int64),
        fingerprints=np.zeros(0, dtype=np.uint64),
        entry={},
    )


def make_store(*sources: Source) -> Store:
    """A corpus of these sources, without a folder."""
    store = Store.__new__(Store)
    store.sources, store.manifest = sources, {"sources": []}
    return store


def coded(series: int, length: int, first: int = 0) -> list[np.ndarray]:
    """Series whose every value says where it stands: 10,000 times the number of the series, plus the step."""
    return [np.arange(length) + 10_000.0 * (first + number) for number in range(series)]


class Noise:
    """The simplest synthetic series: all values far below 0, so that they are told from those of ``coded``."""

    def sample(self, count: int, length: int, rng: np.random.Generator) -> np.ndarray:
        """White noise around -1,000,000."""
        return (rng.normal(size=(count, length)) - 1e6).astype(np.float32)
