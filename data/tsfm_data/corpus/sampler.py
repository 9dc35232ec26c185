"""Sampling of random windows from a memory-mapped corpus: choice of series, cut points, and reading of values.

Memory does not grow with the corpus: a series is located by two reads of the mapped offsets, and a window is one
contiguous read of the mapped values. Shapes: R windows, L steps of a window (context and horizon).
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int
from torch import Tensor

from tsfm_data.corpus.store import Source
from tsfm_data.errors import InputError

MIN_HISTORY = 3  # steps before a cut
SHORT_FUTURE = 8  # a series too short for a whole horizon leaves 1 / SHORT_FUTURE of its steps to forecast


@dataclass(frozen=True)
class WindowPositions:
    """Positions of windows in a corpus; sorted by source.

    Attributes:
        source: index of the source.
        offset: position of the series in the values of its source.
        end: steps of the series that the window may show.
        cut: step of the series where the forecast begins.
        series: index of the series in its source.
        stride: the window takes every ``stride``-th step of a grid ``refinement`` times as fine as the series.
        refinement: see ``stride``.
        average: how many steps of the series are averaged to a step of the window. Above 1 only if ``stride`` and
            ``refinement`` are 1.
    """

    source: Int[np.ndarray, " R"]
    offset: Int[np.ndarray, " R"]
    end: Int[np.ndarray, " R"]
    cut: Int[np.ndarray, " R"]
    series: Int[np.ndarray, " R"]
    stride: Int[np.ndarray, " R"]
    refinement: Int[np.ndarray, " R"]
    average: Int[np.ndarray, " R"]

    def __len__(self) -> int:
        return len(self.source)

    @property
    def coarser(self) -> Int[np.ndarray, " R"]:
        """Steps of the series, on its refined grid, in one step of the window."""
        return self.stride * self.average

    def __getitem__(self, rows: Any) -> "WindowPositions":
        """Select windows."""
        return replace(self, **{f.name: getattr(self, f.name)[rows] for f in fields(self)})


@dataclass(frozen=True)
class SourceArrays:
    """The mapped arrays of one source, as plain arrays: NumPy's memmap class costs microseconds per operation."""

    name: str
    values: Float32[np.ndarray, " points"]
    tensor: Tensor
    offsets: Int[np.ndarray, " borders"]
    season: Int[np.ndarray, " series"]

    @classmethod
    def from_source(cls, source: Source) -> "SourceArrays":
        """Wrap the arrays of a source of a ``Store``."""
        values = np.asarray(source.values)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)  # we only read
            tensor = torch.from_numpy(values)
        return cls(source.name, values, tensor, np.asarray(source.offsets), np.asarray(source.season))

    def __len__(self) -> int:
        return len(self.offsets) - 1


def held_tail(length: Int[np.ndarray, " R"], holdout: float, horizon: int) -> Int[np.ndarray, " R"]:
    """Number of steps at the end of series that training never sees: the share ``holdout``, two horizons at most.

    Nothing is held out of a series of fewer than four steps.
    """
    tail = np.minimum(np.floor(length * holdout).astype(np.int64), 2 * horizon)
    return np.where(length > MIN_HISTORY, np.minimum(tail, length - MIN_HISTORY - 1), 0)


class WindowSampler:
    """Samples windows from sources of a store.

    Sources are sampled systematically by weight, so every batch contains each source in proportion. Within a source,
    half of the series are sampled in proportion to their length and half uniformly, so neither one long series nor many
    short ones dominate.

    Args:
        sources: to sample from.
        horizon: steps of the future of a window.
        holdout: share of every series, at its end, that is never used.
        variates: above 1, only items with at least that many aligned variates are sampled, uniformly within a source.

    Raises:
        InputError: there is no source, or a number is out of range.
    """

    def __init__(self, sources: Sequence[Source], horizon: int, holdout: float = 0.1, variates: int = 1) -> None:
        if not sources:
            raise InputError("corpus: expected at least one source to sample from, found none")
        if variates > 1:
            items = {source.name: wide_items(source, variates) for source in sources}
            sources = [source for source in sources if len(items[source.name])]
            if not sources:
                raise InputError(
                    f"variates: expected a source with items of at least {variates} variates, found none: give fewer"
                )
            self._items = [items[source.name] for source in sources]
        self.variates = variates
        if not 0 <= holdout < 1:
            raise InputError(f"holdout: expected a share in [0, 1), found {holdout}")
        self.horizon, self.holdout = horizon, holdout
        self.arrays = [SourceArrays.from_source(source) for source in sources]
        weights = np.array([source.weight for source in sources], dtype=np.float64)
        if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
            raise InputError(f"corpus: expected weights of at least 0, one above, found {weights.tolist()}")
        self._borders = np.cumsum(weights / weights.sum())[:-1]
        self._points = np.array([len(arrays.values) for arrays in self.arrays])
        self._series = np.array([len(arrays) for arrays in self.arrays])

    def sample_series(self, count: int, rng: np.random.Generator) -> WindowPositions:
        """Sample whole series for ``count`` windows, each cut at its end."""
        source = np.searchsorted(self._borders, (rng.random() + np.arange(count)) / count, side="right")
        share, by_length = rng.random(count), rng.random(count) < 0.5
        series = (share * self._series[source]).astype(np.int64)
        point = (share * self._points[source]).astype(np.int64)
        borders = np.empty((count, 2), dtype=np.int64)
        for arrays, rows in self.by_source(source):
            if self.variates > 1:
                items = self._items[source[rows.start]]
                series[rows] = items[(share[rows] * len(items)).astype(np.int64), 0]
            else:
                by_point = np.searchsorted(arrays.offsets, point[rows], side="right") - 1
                series[rows] = np.where(by_length[rows], by_point, series[rows])
            borders[rows] = arrays.offsets[series[rows, None] + np.arange(2)]
        length, unit_rate = borders[:, 1] - borders[:, 0], np.ones(count, dtype=np.int64)
        return WindowPositions(source, borders[:, 0], length, length, series, unit_rate, unit_rate, unit_rate)

    def cut_at_random(self, positions: WindowPositions, rng: np.random.Generator) -> WindowPositions:
        """Cut every series at a random step before its held-out tail.

        At least three steps lie before the cut and a whole horizon after it; an eighth if the series is too short.
        """
        end = positions.end - held_tail(positions.end, self.holdout, self.horizon)
        needed = np.minimum(self.horizon * positions.coarser // positions.refinement, -(-end // SHORT_FUTURE))
        high = np.maximum(end - np.maximum(needed, 1), 1)
        low = np.minimum(MIN_HISTORY * positions.coarser, high)
        cut = low + (rng.random(len(positions)) * (high - low + 1)).astype(np.int64)
        return replace(positions, end=end, cut=cut)

    def choose_variates(self, positions: WindowPositions, rng: np.random.Generator) -> WindowPositions:
        """Choose random variates, in order, of the item of each series: one row becomes ``variates`` rows."""
        chosen = np.empty((len(positions), self.variates), dtype=np.int64)
        offset = np.empty_like(chosen)
        for arrays, rows in self.by_source(positions.source):
            items = self._items[positions.source[rows.start]]
            first, width = items[np.searchsorted(items[:, 0], positions.series[rows])].T
            spare = (width - self.variates + 1)[:, None]
            within = np.sort((rng.random((len(width), self.variates)) * spare).astype(np.int64), axis=1)
            chosen[rows] = first[:, None] + within + np.arange(self.variates)
            offset[rows] = arrays.offsets[chosen[rows]]
        wide = positions[np.repeat(np.arange(len(positions)), self.variates)]
        return replace(wide, series=chosen.reshape(-1), offset=offset.reshape(-1))

    def cut_at_tails(self, positions: WindowPositions) -> WindowPositions:
        """Cut every series where its held-out tail begins; series too short for one are left out."""
        tail = held_tail(positions.end, self.holdout, self.horizon)
        return replace(positions, cut=positions.end - tail)[tail > 0]

    def by_source(self, source: Int[np.ndarray, " R"]) -> Iterator[tuple[SourceArrays, slice]]:
        """Iterate over the sources and the rows of each."""
        begins = np.flatnonzero(np.diff(source, prepend=-1))
        for begin, end in zip(begins, [*begins[1:], len(source)], strict=True):
            yield self.arrays[source[begin]], slice(int(begin), int(end))

    def read(self, positions: WindowPositions, context: int, horizon: int) -> Float32[np.ndarray, "R L"]:
        """Read the values of the windows: ``context`` steps before the cut and ``horizon`` steps from it on.

        Missing values, steps before the series, and steps after ``end`` are NaN.
        """
        steps = context + horizon
        out = np.empty((len(positions), steps), dtype=np.float32)
        begin = positions.offset + positions.cut - context
        inside = np.clip(begin, 0, np.maximum(self._points[positions.source] - steps, 0))
        for arrays, rows in self.by_source(positions.source):
            if len(arrays.values) >= steps:
                read_runs(arrays.tensor, inside[rows], out[rows])
        is_read = (
            (positions.stride == 1)
            & (positions.refinement == 1)
            & (positions.average == 1)
            & (begin == inside)
            & (self._points[positions.source] >= steps)
        )
        # Steps outside the series belong to its neighbours in the file.
        before, after_end = (
            np.maximum(context - positions.cut, 0),
            np.minimum(context + positions.end - positions.cut, steps),
        )
        partly = np.flatnonzero((before > 0) | (after_end < steps))
        for row, first, last in zip(*(x.tolist() for x in (partly, before[partly], after_end[partly])), strict=True):
            out[row, :first] = out[row, max(last, 0) :] = np.nan
        rest = np.flatnonzero(~is_read & (positions.average == 1))
        if len(rest):
            out[rest] = self.interpolate_windows(positions[rest], context, horizon)
        for row in np.flatnonzero(positions.average > 1):
            out[row] = self.average_window(positions[row : row + 1], context, horizon)
        return out

    def average_window(self, position: WindowPositions, context: int, horizon: int) -> Float32[np.ndarray, " L"]:
        """As ``read``, for one window of means; a mean is observed if at least half of its values are."""
        values = self.arrays[int(position.source[0])].values
        offset, end, cut, width = (int(x[0]) for x in (position.offset, position.end, position.cut, position.average))
        first, last = max(-context, -(cut // width)), min(horizon, (end - cut) // width)
        run = values[offset + cut + first * width : offset + cut + last * width].reshape(-1, width)
        observed = ~np.isnan(run)
        count = observed.sum(axis=1)
        mean = np.where(observed, run, 0).sum(axis=1, dtype=np.float64) / np.maximum(count, 1)
        out = np.full(context + horizon, np.nan, dtype=np.float32)
        out[context + first : context + last] = np.where(2 * count >= width, mean, np.nan)
        return out

    def interpolate_windows(self, positions: WindowPositions, context: int, horizon: int) -> Float32[np.ndarray, "R L"]:
        """As ``read``, step by step with linear interpolation: for resampled windows and at the ends of a source."""
        refinement = positions.refinement[:, None]
        fine_step = positions.cut[:, None] * refinement + positions.stride[:, None] * np.arange(-context, horizon)
        step, rest = np.divmod(fine_step, refinement)
        last = positions.end[:, None] - 1
        here = positions.offset[:, None] + np.clip(step, 0, last)
        after = np.minimum(here + (rest > 0), positions.offset[:, None] + last)
        values, next_values = np.empty((2, *here.shape), dtype=np.float32)
        for arrays, rows in self.by_source(positions.source):
            values[rows], next_values[rows] = arrays.values[here[rows]], arrays.values[after[rows]]
        part = (rest / refinement).astype(np.float32)
        inside = (step >= 0) & (step + (rest > 0) <= last)
        # A step on the grid of the series does not depend on the next one, which may be missing.
        values = np.where(rest == 0, values, values * (1 - part) + next_values * part)
        return np.where(inside, values, np.float32(np.nan))

    def seasons_of(self, positions: WindowPositions) -> Int[np.ndarray, " R"]:
        """Steps in a season of every window."""
        season = np.empty(len(positions), dtype=np.int64)
        for arrays, rows in self.by_source(positions.source):
            season[rows] = arrays.season[positions.series[rows]]
        return season


def wide_items(source: Source, variates: int) -> Int[np.ndarray, "items 2"]:
    """First series and number of variates of the items with at least ``variates`` variates of equal length."""
    items, lengths = np.asarray(source.items), np.diff(np.asarray(source.offsets))
    first = np.flatnonzero(np.diff(items, prepend=-1))
    width = np.diff(first, append=len(items))
    aligned = np.minimum.reduceat(lengths, first) == np.maximum.reduceat(lengths, first)
    return np.stack([first, width], axis=1)[aligned & (width >= variates)]


def read_runs(
    values: Float32[Tensor, " points"], begin: Int[np.ndarray, " R"], out: Float32[np.ndarray, "R L"]
) -> None:
    """Copy the windows of ``values`` that start at ``begin`` into ``out``."""
    steps = out.shape[1]
    runs = values.as_strided((len(values) - steps + 1, steps), (1, 1))
    torch.index_select(runs, 0, torch.from_numpy(begin), out=torch.from_numpy(out))
