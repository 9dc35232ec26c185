"""Embeddings: one vector per series, from the tokens of a zero-shot model and from statistics of the series.

Every series is standardised first, so its vector depends neither on its units nor on its offset. The model sees it
twice: as a whole, stretched or averaged to one window, and step by step in windows of its own. The statistics are what
tokens of whole patches do not keep: the outline, levels and changes in eighths, spectrum and autocorrelation.

Shapes: B windows, R series, N patches, C channels of a token, D numbers of a vector, T steps of a window.
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float32, Float64

from tsfm.models import Forecaster, hidden_states, window_steps
from tsfm.nn import keep_large_blocks, onednn_products, standardise_windows
from tsfm_data.errors import InputError, check_sizes
from tsfm_data.io import SeriesSet

OUTLINE, EIGHTHS, BANDS = 128, 8, 16  # points of the outline; parts with their own levels; bands of the spectrum
LEVELS = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
LAGS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
LEAST_FFT = 2048  # steps; shorter series are padded, so that their spectrum has all bands
STATISTICS = (2 * (4 * EIGHTHS + len(LEVELS)), BANDS, len(LAGS), OUTLINE)  # sizes of the groups of ``describe``
WHOLE, STEPS = 0, 1  # the two views of the model
Window = tuple[int, np.ndarray, np.ndarray]  # number of the series; values and where there are some, T steps each


def embed(model: Forecaster, series: SeriesSet, batch_size: int = 256) -> Float32[np.ndarray, "R D"]:
    """One vector per series; the variates of an item are as many series.

    Series of one kind have near vectors (Euclidean distance), in which each group of numbers has the same weight.

    Args:
        model: a zero-shot model.
        series: the series; missing values are allowed.
        batch_size: windows at a time, which bounds the memory.

    Raises:
        InputError: the model gives no embeddings, or a series has no value.
    """
    steps, known = window_steps(model), standardised(series)

    def views() -> Iterator[Window]:
        for i, (z, seen) in enumerate(known):
            yield 2 * i + WHOLE, resample(filled(z, seen), steps), np.ones(steps, bool)
            for x, observed in cut(z, seen, steps):
                yield 2 * i + STEPS, x, observed

    width = model.config.d_model
    total, most = np.zeros((2 * len(known), width)), np.full((2 * len(known), width), -np.inf)
    count = np.zeros(2 * len(known))
    for index, tokens, seen in tokens_of(model, views(), batch_size):
        np.add.at(total, index, np.where(seen[..., None], tokens, 0).sum(1))
        np.maximum.at(most, index, np.where(seen[..., None], tokens, -np.inf).max(1))
        count += np.bincount(index, seen.sum(1), 2 * len(known))
    pooled = np.concatenate([total / count[:, None], most], 1)
    statistics = np.stack([describe(filled(z, seen)) for z, seen in known])
    vectors = np.concatenate([pooled[WHOLE::2], pooled[STEPS::2], statistics], 1)
    return (vectors * group_weights(vectors.shape[1])).astype(np.float32)


def group_weights(size: int) -> Float64[np.ndarray, " D"]:
    """The factor of each number of a vector of this size that gives all groups the same weight."""
    views = (size - sum(STATISTICS)) // 2
    return np.concatenate([np.full(group, group**-0.5) for group in (views, views, *STATISTICS)])


def embedding_frame(model: Forecaster, series: SeriesSet, batch_size: int = 256, patches: bool = False) -> pd.DataFrame:
    """The vectors as a table: item_id, and the columns e0, e1, ... of the numbers.

    Args:
        model, series, batch_size: as for ``embed``.
        patches: one row per patch instead, with the timestamp of its first step and its token.

    Raises:
        InputError: as ``embed``.
    """
    check_sizes(batch_size=batch_size)
    single = series.univariate()
    if not patches:
        return _frame({"item_id": list(single.item_ids)}, embed(model, series, batch_size))
    steps, size = window_steps(model), model.config.patch_size
    windows = ((i, x, seen) for i, pair in enumerate(standardised(series)) for x, seen in cut(*pair, steps))
    ids, tokens = [], []
    for index, hidden, _ in tokens_of(model, windows, batch_size):
        ids += [*np.repeat(index, hidden.shape[1])]
        tokens += [*hidden.reshape(-1, hidden.shape[2])]
    order = np.array(ids)
    names, stamps, rows = [], [], []
    for i, name in enumerate(single.item_ids):
        mine = np.flatnonzero(order == i)
        length = single.length(i)
        first = length - size * np.arange(-(-length // size), 0, -1)  # patches end with the series
        names += [name] * len(first)
        stamps.append(single.timestamps(i)[np.maximum(first, 0)].to_numpy())
        rows += [tokens[row] for row in mine[len(mine) - len(first) :]]
    return _frame({"item_id": names, "timestamp": np.concatenate(stamps)}, np.stack(rows).astype(np.float32))


def _frame(columns: dict[str, Any], vectors: Float32[np.ndarray, "R D"]) -> pd.DataFrame:
    names = [f"e{i}" for i in range(vectors.shape[1])]
    return pd.concat([pd.DataFrame(columns), pd.DataFrame(vectors, columns=names)], axis=1)


def standardised(series: SeriesSet) -> list[tuple[np.ndarray, np.ndarray]]:
    """Values with mean 0 and standard deviation 1, 0 where missing, and where there are some; one pair per series.

    Raises:
        InputError: no series, or one without a value.
    """
    single, pairs = series.univariate(), []
    if not len(single):
        raise InputError(f"expected at least one series in {series.source}, found none: give a table with rows")
    for i, name in enumerate(single.item_ids):
        x = torch.from_numpy(single.item(i).T[..., None].copy())
        seen = x.isfinite()
        if not seen.any():
            raise InputError(f"{series.source}: series {name!r} has no value at all, so no embedding: leave it out")
        pairs.append((standardise_windows(x, seen)[0][0, :, 0].numpy(), seen[0, :, 0].numpy()))
    return pairs


def filled(z: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """The values with straight lines over gaps."""
    return z if seen.all() else np.interp(np.arange(len(z)), np.flatnonzero(seen), z[seen])


def resample(z: np.ndarray, steps: int) -> np.ndarray:
    """A series of ``steps`` steps: interpolated if there are fewer, averages if there are more."""
    if len(z) <= steps:
        return np.interp(np.linspace(0, len(z) - 1, steps), np.arange(len(z)), z)
    edges = np.linspace(0, len(z), steps + 1)
    return np.diff(np.interp(edges, np.arange(len(z) + 1), np.append(0, z.cumsum()))) * steps / len(z)


def cut(z: np.ndarray, seen: np.ndarray, steps: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The windows of a series in order, the last of which ends with it."""
    z, seen = (np.pad(x, (-len(x) % steps, 0)).reshape(-1, steps) for x in (z, seen))
    yield from zip(z, seen, strict=True)


def tokens_of(
    model: Forecaster, windows: Iterable[Window], batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Numbers [B], tokens [B, N, C] and which of them hold a value [B, N], of one batch of windows after the other."""
    keep_large_blocks()
    like, remaining = next(model.parameters()), iter(windows)
    while batch := list(itertools.islice(remaining, batch_size)):
        index, x, seen = (np.stack(part) for part in zip(*batch, strict=True))
        known = torch.from_numpy(seen).to(like.device)
        with torch.inference_mode(), onednn_products(model):
            tokens, visible = hidden_states(model.eval(), torch.from_numpy(x).to(like), known)
        yield index, tokens.double().cpu().numpy(), visible.cpu().numpy()


def describe(z: np.ndarray) -> np.ndarray:
    """Statistics of a standardised series without gaps, in the groups of ``STATISTICS``: means, spreads, ends and
    quantiles of its eighths and of its changes'; bands of its spectrum; its autocorrelation; its outline."""
    parts = []
    for x in (z, np.diff(z)):
        x = resample(x if len(x) else np.zeros(1), max(len(x), 2 * EIGHTHS))
        begin = np.arange(EIGHTHS) * len(x) // EIGHTHS
        size = np.diff(begin, append=len(x))
        mean = np.add.reduceat(x, begin) / size
        spread = np.sqrt((np.add.reduceat(x * x, begin) / size - mean**2).clip(0))
        parts += [mean, spread, np.minimum.reduceat(x, begin), np.maximum.reduceat(x, begin), np.quantile(x, LEVELS)]
    power = np.abs(np.fft.rfft(z, max(LEAST_FFT, 2 * len(z)))) ** 2 / len(z)
    begin = np.geomspace(1, len(power) - 1, BANDS + 1).astype(int)
    bands = np.add.reduceat(power, begin)[:-1] / np.diff(begin).clip(1)
    products = np.fft.irfft(power)[: len(z)]
    lags = np.interp(LAGS, np.arange(len(z)), products / max(products[0], 1e-12), right=0)
    return np.concatenate([*parts, np.log(bands + 1e-6), lags, resample(z, OUTLINE)])
