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

from tsfm_data.errors import InputError
from tsfm_data.store import Source

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
        season: steps in a season of the series.
        up: a window of rate ``up / down`` shows every ``up``-th step of a grid ``down`` times as fine as the series.
        down: see ``up``.
    """

    source: Int[np.ndarray, " R"]
    offset: Int[np.ndarray, " R"]
    end: Int[np.ndarray, " R"]
    cut: Int[np.ndarray, " R"]
    season: Int[np.ndarray, " R"]
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

    Raises:
        InputError: there is no source, or a number is out of range.
    """

    def __init__(self, sources: Sequence[Source], horizon: int, holdout: float = 0.1) -> None:
        if not sources:
            raise InputError("corpus: expected at least one source to draw from, found none")
        if not 0 <= holdout < 1:
            raise InputError(f"holdout: expected a share in [0, 1), found {holdout}")
        self.horizon, self.holdout = horizon, holdout
        self.tables = [SourceTables.of(source) for source in sources]
        weights = np.array([source.weight for source in sources], dtype=np.float64)
        if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
            raise InputError(f"corpus: expected weights of at least 0, one above, found {weights.tolist()}")
        self._borders = np.cumsum(weights / weights.sum())[:-1]

    def series(self, count: int, rng: np.random.Generator) -> Drawn:
        """Whole series for ``count`` windows, each cut at its end."""
        source = np.searchsorted(self._borders, (rng.random() + np.arange(count)) / count, side="right")
        share, by_length = rng.random(count), rng.random(count) < 0.5
        first, last, season = np.empty((3, count), dtype=np.int64)
        for table, rows in self.by_source(source):
            point = (share[rows] * len(table.values)).astype(np.int64)
            number = (share[rows] * len(table)).astype(np.int64)
            longer = np.searchsorted(table.offsets, point, side="right") - 1
            number = np.where(by_length[rows], longer, number)
            first[rows], last[rows] = table.offsets[number], table.offsets[number + 1]
            season[rows] = table.season[number]
        one = np.ones(count, dtype=np.int64)
        return Drawn(source, first, last - first, last - first, season, one, one)

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
        whole = (drawn.cut >= context) & (drawn.cut + horizon <= drawn.end) & (drawn.up == 1) & (drawn.down == 1)
        begin = drawn.offset + drawn.cut - context
        for table, rows in self.by_source(drawn.source):
            here = whole[rows]
            if here.all():
                read_runs(table.tensor, begin[rows], out[rows])
                continue
            if here.any():
                runs = np.empty((int(here.sum()), steps), dtype=np.float32)
                read_runs(table.tensor, begin[rows][here], runs)
                out[rows][here] = runs
            out[rows][~here] = read_steps(table.values, drawn[rows][~here], context, horizon)
        return out


def read_runs(
    values: Float32[Tensor, " points"], begin: Int[np.ndarray, " R"], out: Float32[np.ndarray, "R L"]
) -> None:
    """Copy runs of ``values`` that lie within it into ``out``."""
    steps = out.shape[1]
    runs = values.as_strided((len(values) - steps + 1, steps), (1, 1))
    torch.index_select(runs, 0, torch.from_numpy(begin), out=torch.from_numpy(out))


def read_steps(
    values: Float32[np.ndarray, " points"], drawn: Drawn, context: int, horizon: int
) -> Float32[np.ndarray, "R L"]:
    """Windows that reach over the ends of their series, or show it coarser or finer (in straight lines)."""
    down = drawn.down[:, None]
    place = drawn.cut[:, None] * down + drawn.up[:, None] * np.arange(-context, horizon)
    step, rest = np.divmod(place, down) if (down > 1).any() else (place, np.zeros(1, dtype=np.int64))
    last = drawn.end[:, None] - 1
    inside = (step >= 0) & (step + (rest > 0) <= last)
    here = values[drawn.offset[:, None] + np.clip(step, 0, last)]
    if (rest > 0).any():
        part = (rest / down).astype(np.float32)
        after = values[drawn.offset[:, None] + np.clip(step + 1, 0, last)]
        here = np.where(rest == 0, here, here * (1 - part) + after * part)
    return np.where(inside, here, np.float32(np.nan))
