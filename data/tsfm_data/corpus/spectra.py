"""What windows of series look like as a whole: power spectra and autocorrelations, of real series and of any others."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Float32

from tsfm_data.corpus.store import Store
from tsfm_data.errors import InputError
from tsfm_data.io import catalog

LEAST_OBSERVED = 0.95  # of a window


def standardised(x: Float[np.ndarray, "count length"]) -> Float[np.ndarray, "count length"]:
    """Rows of mean 0 and standard deviation 1; rows that are constant become zeros."""
    centred = x.astype(np.float64) - x.mean(1, keepdims=True, dtype=np.float64)
    return centred / np.maximum(centred.std(1, keepdims=True), 1e-12)


def power(x: Float[np.ndarray, "count length"]) -> Float[np.ndarray, "count frequencies"]:
    """Share of a row's variance at 1, 2, ... cycles a window up to one cycle in two steps, under a Hann window."""
    length = x.shape[1]
    spectrum = np.abs(np.fft.rfft(standardised(x) * np.hanning(length), axis=1)[:, 1:]) ** 2
    return spectrum / np.maximum(spectrum.sum(1, keepdims=True), 1e-12)


def autocorrelation(x: Float[np.ndarray, "count length"], lags: int) -> Float[np.ndarray, "count lags"]:
    """Correlation of every row with itself ``1 .. lags`` steps later, as a share of its variance."""
    length = x.shape[1]
    spectrum = np.abs(np.fft.rfft(standardised(x), 2 * length, axis=1)) ** 2
    return np.fft.irfft(spectrum, axis=1)[:, 1 : lags + 1] / length


def real_windows(
    sources: Sequence[tuple[float, Sequence[np.ndarray]]], count: int, length: int, rng: np.random.Generator
) -> Float32[np.ndarray, "found length"]:
    """Windows of real series: a source by its weight, one of its series, a place in it.

    Gaps are filled with straight lines. Windows with more than a few, and constant ones, are left out.

    Args:
        sources: weight and series of each source; series shorter than ``length`` are passed over.
        count: windows to try.
        length: steps of a window.
        rng: source of randomness.

    Raises:
        InputError: no series is as long as a window.
    """
    long = [(weight, [x for x in series if len(x) >= length]) for weight, series in sources]
    long = [(weight, series) for weight, series in long if series and weight > 0]
    if not long:
        raise InputError(f"expected series of at least {length} steps to compare with, found none: lower the length")
    weights = np.array([weight for weight, _ in long])
    steps, found = np.arange(length), []
    for k in rng.choice(len(long), count, p=weights / weights.sum()):
        series = long[k][1][rng.integers(len(long[k][1]))]
        begin = int(rng.integers(len(series) - length + 1))
        window = np.asarray(series[begin : begin + length], np.float32)
        seen = np.isfinite(window)
        if seen.mean() >= LEAST_OBSERVED and np.ptp(window[seen]) > 0:
            found.append(np.interp(steps, steps[seen], window[seen]).astype(np.float32))
    return np.stack(found) if found else np.zeros((0, length), np.float32)


def store_sources(store: Store) -> list[tuple[float, list[np.ndarray]]]:
    """Weight and series of every source of a corpus, as views of its files."""
    return [
        (source.weight, [source.values[a:b] for a, b in zip(source.offsets[:-1], source.offsets[1:], strict=True)])
        for source in store.sources
    ]


def catalogue_sources() -> Iterator[tuple[float, list[np.ndarray]]]:
    """The training sets of the catalogue that are at hand, with equal weights."""
    for name in catalog.names("train"):
        if catalog.at_hand(catalog.get(name)) is not None:
            series = catalog.load(name).univariate()
            yield 1.0, [series.item(k)[: series.length(k), 0] for k in range(len(series.item_ids))]
