"""Power spectra and autocorrelations of windows, to compare synthetic series with real ones."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Float32

from tsfm_data.corpus.store import Store
from tsfm_data.errors import InputError
from tsfm_data.io import catalog

MIN_OBSERVED = 0.95  # share of the steps of a window


def standardised(x: Float[np.ndarray, "count length"]) -> Float[np.ndarray, "count length"]:
    """Rows of mean 0 and standard deviation 1; rows that are constant become zeros."""
    centred = x.astype(np.float64) - x.mean(1, keepdims=True, dtype=np.float64)
    return centred / np.maximum(centred.std(1, keepdims=True), 1e-12)


def power_spectrum(x: Float[np.ndarray, "count length"]) -> Float[np.ndarray, "count frequencies"]:
    """Share of each row's variance at 1, 2, ... cycles per window, up to one per two steps, with a Hann window."""
    length = x.shape[1]
    spectrum = np.abs(np.fft.rfft(standardised(x) * np.hanning(length), axis=1)[:, 1:]) ** 2
    return spectrum / np.maximum(spectrum.sum(1, keepdims=True), 1e-12)


def autocorrelation(x: Float[np.ndarray, "count length"], lags: int) -> Float[np.ndarray, "count lags"]:
    """Autocorrelation of every row at lags ``1 .. lags``."""
    length = x.shape[1]
    spectrum = np.abs(np.fft.rfft(standardised(x), 2 * length, axis=1)) ** 2
    return np.fft.irfft(spectrum, axis=1)[:, 1 : lags + 1] / length


def real_windows(
    sources: Sequence[tuple[float, Sequence[np.ndarray]]], count: int, length: int, rng: np.random.Generator
) -> Float32[np.ndarray, "windows length"]:
    """Sample windows of real series: a source by its weight, one of its series, a position in it.

    Gaps are interpolated linearly. Windows with more than 5 % missing, and constant ones, are left out.

    Args:
        sources: weight and series of each source; series shorter than ``length`` are skipped.
        count: windows to sample, before some are left out.
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
    steps, windows = np.arange(length), []
    for k in rng.choice(len(long), count, p=weights / weights.sum()):
        series = long[k][1][rng.integers(len(long[k][1]))]
        begin = int(rng.integers(len(series) - length + 1))
        window = np.asarray(series[begin : begin + length], np.float32)
        observed = np.isfinite(window)
        if observed.mean() >= MIN_OBSERVED and np.ptp(window[observed]) > 0:
            windows.append(np.interp(steps, steps[observed], window[observed]).astype(np.float32))
    return np.stack(windows) if windows else np.zeros((0, length), np.float32)


def store_sources(store: Store) -> list[tuple[float, list[np.ndarray]]]:
    """Weight and series of every source of a corpus, as views of its files."""
    return [
        (source.weight, [source.values[a:b] for a, b in zip(source.offsets[:-1], source.offsets[1:], strict=True)])
        for source in store.sources
    ]


def catalogue_sources() -> Iterator[tuple[float, list[np.ndarray]]]:
    """The training sets of the catalogue that are stored locally, with equal weights."""
    for name in catalog.names("train"):
        if catalog.local_file(catalog.get(name)) is not None:
            series = catalog.load(name).univariate()
            yield 1.0, [series.item(k)[: series.length(k), 0] for k in range(len(series.item_ids))]
