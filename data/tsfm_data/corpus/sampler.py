"""Random windows of a corpus: which series, where they are cut, and their values read from the memory-mapped store.

Nothing here is as long as the corpus: a series is found by two reads of the mapped offsets, a window is one run of
the mapped values. Shapes: R windows, L steps of a window (context and horizon).
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

LEAST_HISTORY = 3  # steps before a cut
FUTURE_PART = 8  # a series too short for a whole horizon leaves one part in so many to forecast


@dataclass(frozen=True)
class Drawn:
    """Where windows lie; sorted by source.

    Attributes:
        source: number of the source.
        offset: position of the series in the values of its source.
        end: steps of the series that the window may show.
        cut: step of the series where the forecast begins.
        series: number of the series in its source.
        up: a window of rate ``up / down`` shows every ``up``-th step of a grid ``down`` times as fine as the series.
        down: see ``up``.
    """

    source: Int[np.ndarray, " R"]
    offset: Int[np.ndarray, " R"]
    end: Int[np.ndarray, " R"]
    cut: Int[np.ndarray, " R"]
    series: Int[np.ndarray, " R"]
    up: Int[np.ndarray, " R"]
    down: Int[np.ndarray, " R"]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, rows: Any) -> "Drawn":
        """Some of the windows."""
        return replace(self, **{f.name: getattr(self, f.name)[rows] for f in fields(self)})


@dataclass(frozen=True)
class SourceTables:
    """The mapped arrays of one source, as plain arrays: NumPy's memmap class costs microseconds an operation."""

    name: str
    values: Float32[np.ndarray, " points"]
    tensor: Tensor
    offsets: Int[np.ndarray, " borders"]
    season: Int[np.ndarray, " series"]

    @classmethod
    def of(cls, source: Source) -> "SourceTables":
        """Those of a source of a ``Store``."""
        values = np.asarray(source.values)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)  # we only read
            tensor = torch.from_numpy(values)
        return cls(source.name, values, tensor, np.asarray(source.offsets), np.asarray(source.season))

    def __len__(self) -> int:
        return len(self.offsets) - 1


def held_tail(length: Int[np.ndarray, " R"], holdout: float, horizon: int) -> Int[np.ndarray, " R"]:
    """Steps at the end of series that training never sees: the share ``holdout``, two horizons at most.

    A series of fewer than four steps keeps all.
    """
    tail = np.minimum(np.floor(length * holdout).astype(np.int64), 2 * horizon)
    return np.where(length > LEAST_HISTORY, np.minimum(tail, length - LEAST_HISTORY - 1), 0)


class Drawer:
    """Draws windows of some sources of a store.

    A source is chosen by its weight, in equal steps through the sum of the weights: every batch holds its share. Half
    of the series of a source are drawn by their length, half each as likely as any other: neither does one long series
    crowd out the others, nor do many short ones.

    Args:
        sources: what is drawn from.
        horizon: steps of the future of a window.
        holdout: share of every series, at its end, that is not shown.
        variates: above 1, only items of so many aligned variates are drawn, each as likely as any other of its source.

    Raises:
        InputError: there is no source, or a number is out of range.
    """

    def __init__(self, sources: Sequence[Source], horizon: int, holdout: float = 0.1, variates: int = 1) -> None:
        if not sources:
            raise InputError("corpus: expected at least one source to draw from, found none")
        if variates > 1:
            found = {source.name: wide_items(source, variates) for source in sources}
            sources = [source for source in sources if len(found[source.name])]
            if not sources:
                raise InputError(
                    f"variates: expected a source with items of at least {variates} variates, found none: give fewer"
                )
            self._items = [found[source.name] for source in sources]
        self.count = variates
        if not 0 <= holdout < 1:
            raise InputError(f"holdout: expected a share in [0, 1), found {holdout}")
        self.horizon, self.holdout = horizon, holdout
        self.tables = [SourceTables.of(source) for source in sources]
        weights = np.array([source.weight for source in sources], dtype=np.float64)
        if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
            raise InputError(f"corpus: expected weights of at least 0, one above, found {weights.tolist()}")
        self._borders = np.cumsum(weights / weights.sum())[:-1]
        self._points = np.array([len(table.values) for table in self.tables])
        self._series = np.array([len(table) for table in self.tables])

    def series(self, count: int, rng: np.random.Generator) -> Drawn:
        """Whole series for ``count`` windows, each cut at its end."""
        source = np.searchsorted(self._borders, (rng.random() + np.arange(count)) / count, side="right")
        share, by_length = rng.random(count), rng.random(count) < 0.5
        series = (share * self._series[source]).astype(np.int64)
        point = (share * self._points[source]).astype(np.int64)
        borders = np.empty((count, 2), dtype=np.int64)
        for table, rows in self.by_source(source):
            if self.count > 1:
                items = self._items[source[rows.start]]
                series[rows] = items[(share[rows] * len(items)).astype(np.int64), 0]
            else:
                longer = np.searchsorted(table.offsets, point[rows], side="right") - 1
                series[rows] = np.where(by_length[rows], longer, series[rows])
            borders[rows] = table.offsets[series[rows, None] + np.arange(2)]
        length, one = borders[:, 1] - borders[:, 0], np.ones(count, dtype=np.int64)
        return Drawn(source, borders[:, 0], length, length, series, one, one)

    def place(self, drawn: Drawn, rng: np.random.Generator) -> Drawn:
        """Cut every series at a random step of what training may see.

        At least three steps lie before a cut, and behind it a whole horizon; of a series too short for that, an eighth.
        """
        end = drawn.end - held_tail(drawn.end, self.holdout, self.horizon)
        needed = np.minimum(self.horizon * drawn.up // drawn.down, -(-end // FUTURE_PART))
        high = np.maximum(end - np.maximum(needed, 1), 1)
        low = np.minimum(LEAST_HISTORY * drawn.up, high)
        cut = low + (rng.random(len(drawn)) * (high - low + 1)).astype(np.int64)
        return replace(drawn, end=end, cut=cut)

    def variates(self, drawn: Drawn, rng: np.random.Generator) -> Drawn:
        """Random variates of the item of each of these series, in order: ``count`` rows for one."""
        chosen = np.empty((len(drawn), self.count), dtype=np.int64)
        offset = np.empty_like(chosen)
        for table, rows in self.by_source(drawn.source):
            items = self._items[drawn.source[rows.start]]
            first, width = items[np.searchsorted(items[:, 0], drawn.series[rows])].T
            spare = (width - self.count + 1)[:, None]
            within = np.sort((rng.random((len(width), self.count)) * spare).astype(np.int64), axis=1)
            chosen[rows] = first[:, None] + within + np.arange(self.count)
            offset[rows] = table.offsets[chosen[rows]]
        wide = drawn[np.repeat(np.arange(len(drawn)), self.count)]
        return replace(wide, series=chosen.reshape(-1), offset=offset.reshape(-1))

    def tails(self, drawn: Drawn) -> Drawn:
        """Cut every series where its held-out tail begins; series too short for one are left out."""
        tail = held_tail(drawn.end, self.holdout, self.horizon)
        return replace(drawn, cut=drawn.end - tail)[tail > 0]

    def by_source(self, source: Int[np.ndarray, " R"]) -> Iterator[tuple[SourceTables, slice]]:
        """Every source with the rows that are its own."""
        begins = np.flatnonzero(np.diff(source, prepend=-1))
        for begin, end in zip(begins, [*begins[1:], len(source)], strict=True):
            yield self.tables[source[begin]], slice(int(begin), int(end))

    def read(self, drawn: Drawn, context: int, horizon: int) -> Float32[np.ndarray, "R L"]:
        """The values of the windows, ``context`` steps before the cut and ``horizon`` from it on.

        NaN stands where a value is missing, before a series begins, and behind what may be shown.
        """
        steps = context + horizon
        out = np.empty((len(drawn), steps), dtype=np.float32)
        begin = drawn.offset + drawn.cut - context
        inside = np.clip(begin, 0, np.maximum(self._points[drawn.source] - steps, 0))
        for table, rows in self.by_source(drawn.source):
            if len(table.values) >= steps:
                read_runs(table.tensor, inside[rows], out[rows])
        fresh = (drawn.up == 1) & (drawn.down == 1) & (begin == inside) & (self._points[drawn.source] >= steps)
        # What lies around a series are its neighbours.
        before, behind = np.maximum(context - drawn.cut, 0), np.minimum(context + drawn.end - drawn.cut, steps)
        partly = np.flatnonzero((before > 0) | (behind < steps))
        for row, first, last in zip(*(x.tolist() for x in (partly, before[partly], behind[partly])), strict=True):
            out[row, :first] = out[row, max(last, 0) :] = np.nan
        rest = np.flatnonzero(~fresh)
        if len(rest):
            out[rest] = self.read_steps(drawn[rest], context, horizon)
        return out

    def read_steps(self, drawn: Drawn, context: int, horizon: int) -> Float32[np.ndarray, "R L"]:
        """The same for windows at the very ends of a source, or of a rate, in straight lines between the steps."""
        down = drawn.down[:, None]
        place = drawn.cut[:, None] * down + drawn.up[:, None] * np.arange(-context, horizon)
        step, rest = np.divmod(place, down)
        last = drawn.end[:, None] - 1
        here = drawn.offset[:, None] + np.clip(step, 0, last)
        after = np.minimum(here + (rest > 0), drawn.offset[:, None] + last)
        values, other = np.empty((2, *here.shape), dtype=np.float32)
        for table, rows in self.by_source(drawn.source):
            values[rows], other[rows] = table.values[here[rows]], table.values[after[rows]]
        part = (rest / down).astype(np.float32)
        inside = (step >= 0) & (step + (rest > 0) <= last)
        # A missing neighbour takes nothing from a step that lies on the grid itself.
        values = np.where(rest == 0, values, values * (1 - part) + other * part)
        return np.where(inside, values, np.float32(np.nan))

    def seasons(self, drawn: Drawn) -> Int[np.ndarray, " R"]:
        """Steps in a season of every window."""
        season = np.empty(len(drawn), dtype=np.int64)
        for table, rows in self.by_source(drawn.source):
            season[rows] = table.season[drawn.series[rows]]
        return season


def wide_items(source: Source, variates: int) -> Int[np.ndarray, "items 2"]:
    """First series and number of variates of the items that have at least so many, all of one length."""
    items, lengths = np.asarray(source.items), np.diff(np.asarray(source.offsets))
    first = np.flatnonzero(np.diff(items, prepend=-1))
    width = np.diff(first, append=len(items))
    even = np.minimum.reduceat(lengths, first) == np.maximum.reduceat(lengths, first)
    return np.stack([first, width], axis=1)[even & (width >= variates)]


def read_runs(
    values: Float32[Tensor, " points"], begin: Int[np.ndarray, " R"], out: Float32[np.ndarray, "R L"]
) -> None:
    """Copy runs of ``values`` that lie within it into ``out``."""
    steps = out.shape[1]
    runs = values.as_strided((len(values) - steps + 1, steps), (1, 1))
    torch.index_select(runs, 0, torch.from_numpy(begin), out=torch.from_numpy(out))
