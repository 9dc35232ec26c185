"""Windows over a set of series, each given by (item, cut), and a loader of batches of windows.

Letters as in ``tsfm_data.windows.batch``; L: steps of a window, T + H.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from numpy.typing import ArrayLike
from torch import Tensor

from tsfm_data.errors import InputError, check_horizon, check_sizes
from tsfm_data.io import SeriesSet
from tsfm_data.windows.batch import Batch
from tsfm_data.windows.gather import Covariates, gather, lay_out, mark_tables
from tsfm_data.windows.resumable import ResumableLoader
from tsfm_data.windows.splits import StandardScaler

OBSERVED = torch.ones((), dtype=torch.bool)  # expanded, not copied, if nothing is missing


class Windows:
    """A set of (item, cut) pairs over one ``SeriesSet``; a cut is the row of the item where the forecast begins.

    A history shorter than the context is padded with zeros on the left, and missing values become zeros; both are
    marked as not observed. A cut at the end of an item forecasts past its end, so its future is not known.

    Args:
        series: the series.
        context: context steps of every window, T.
        horizon: steps to forecast, H.
        items: index of each window's item, [windows].
        cuts: each window's first row to forecast, from 1 to the length of its item, [windows].
        marks: calendar features to add (see ``frequency.calendar_features``), or None.
        scaler: standardises the values; None leaves them in their own units.
        variates: indices of the variates that the windows show; None shows all.
        season: steps in a season; None takes that of the series.
        dtype: floating-point type of the batches.
        covariates: whether batches hold the covariates of the series.
        past_scaler: standardises the covariates known up to the present; None leaves them in their own units.
        known_scaler: the same for those known in the future too.

    Raises:
        InputError: a size is below 1, a cut lies outside its item, the frequencies have different seasons, or a known
            covariate is missing in the horizon past the end of its item.
    """

    def __init__(
        self,
        series: SeriesSet,
        context: int,
        horizon: int,
        items: ArrayLike,
        cuts: ArrayLike,
        *,
        marks: str | None = None,
        scaler: StandardScaler | None = None,
        variates: Sequence[int] | None = None,
        season: int | None = None,
        dtype: torch.dtype = torch.float32,
        covariates: bool = False,
        past_scaler: StandardScaler | None = None,
        known_scaler: StandardScaler | None = None,
    ) -> None:
        self.lengths = item_lengths(series)
        if context > self.lengths.max(initial=0):  # a context as long as the longest series is fine
            check_horizon(context, "context")
        check_sizes("give 24, for instance", context=context)
        check_horizon(horizon)
        self.series, self.context, self.horizon, self.scaler = series, context, horizon, scaler
        self.season, self.seasons = season or common_season(series), common_seasons(series)
        self._offsets = np.asarray(series.offsets[:-1], dtype=np.int64)
        self._values, self._observed = lay_out(series.values, context, horizon, scaler, dtype)
        self._marks, self._mark_offsets = mark_tables(series, self.lengths, context, horizon, marks, dtype)
        self._covariates: Covariates | None = None
        if covariates and (series.past_names or series.known_names):
            self._covariates = Covariates(series, self.lengths, context, horizon, past_scaler, known_scaler, dtype)
        self.variates = np.arange(len(series.variates)) if variates is None else np.asarray(variates, dtype=np.int64)
        self._set_windows(items, cuts)

    def _set_windows(self, items: ArrayLike, cuts: ArrayLike) -> None:
        """Set items and cuts after checking them."""
        self.items = np.asarray(items, dtype=np.int64)
        self.cuts = np.asarray(cuts, dtype=np.int64)
        ends = self.lengths[self.items]
        wrong = np.flatnonzero((self.cuts < 1) | (self.cuts > ends))
        if len(wrong):
            w = wrong[0]
            raise InputError(
                f"{self.series.name}: expected cuts from 1 to {ends[w]} in series "
                f"{self.series.item_ids[self.items[w]]!r}, found {self.cuts[w]}"
            )
        if self._covariates is not None:
            self._covariates.check(self.items, self.cuts)
        self._future_known = bool((self.cuts < ends).any())
        self._whole = bool(((self.cuts >= self.context) & (self.cuts + self.horizon <= ends)).all())

    @classmethod
    def rolling(
        cls,
        series: SeriesSet,
        context: int,
        horizon: int,
        *,
        first: ArrayLike | None = None,
        last: ArrayLike | None = None,
        stride: int = 1,
        count: int | None = None,
        **options: Any,
    ) -> "Windows":
        """Rolling evaluation windows, item by item in order of time.

        Args:
            series: the series.
            context: context steps.
            horizon: steps to forecast.
            first: lowest cut, one for all or one per item; None: the first with a full context, or 1 with ``count``.
            last: highest cut; None: the last with a full horizon.
            stride: rows from one cut to the next; counted from ``first``, or back from ``last`` with ``count``.
            count: at most this many windows per item, the last ones; None means all.
            **options: passed on to ``Windows``.

        Raises:
            InputError: no item is long enough for one window.
        """
        items, cuts = rolling_cuts(
            item_lengths(series), context, horizon, first=first, last=last, stride=stride, count=count
        )
        return cls(series, context, horizon, items, cuts, **options)

    def at(self, items: ArrayLike, cuts: ArrayLike, variates: Sequence[int] | None = None) -> "Windows":
        """Windows at other cuts over the same memory, by default with the same variates."""
        windows = copy.copy(self)
        if variates is not None:
            windows.variates = np.asarray(variates, dtype=np.int64)
        windows._set_windows(items, cuts)
        return windows

    def put(self, item: int, begin: int, values: Float64[np.ndarray, "rows V"]) -> None:
        """Replace observed values of an item in all later batches, also those of ``at``.

        Args:
            item: its index.
            begin: the first row that is replaced.
            values: new values, in the units of the batches; those that are not observed stay so.
        """
        first = self.context + int(self._offsets[item]) + begin
        rows = torch.from_numpy(np.nan_to_num(values.T)).to(self._values.dtype)
        self._values[:, first : first + len(values)] = rows

    def __len__(self) -> int:
        return len(self.items)

    def batch(self, indices: ArrayLike, variates: ArrayLike | None = None) -> Batch:
        """Gather the windows at ``indices``.

        Args:
            indices: positions in this set, [B].
            variates: positions among the variates of this set; None means all.
        """
        index_B = np.asarray(indices, dtype=np.int64)
        item_B, cut_B = self.items[index_B], self.cuts[index_B]
        shown_V = self.variates if variates is None else self.variates[np.asarray(variates)]
        steps = self.context + self.horizon if self._future_known else self.context
        begin_B = self._offsets[item_B] + cut_B  # the tables begin with ``context`` rows of padding
        values_BLV = gather(self._values, begin_B, steps, shown_V)
        if self._observed is None:
            observed_BLV = OBSERVED.expand(values_BLV.shape)
        else:
            observed_BLV = gather(self._observed, begin_B, steps, shown_V)
        if not self._whole:
            row_BL = cut_B[:, None] + np.arange(-self.context, steps - self.context)
            inside_BL = (row_BL >= 0) & (row_BL < self.lengths[item_B][:, None])
            inside_BL1 = torch.from_numpy(inside_BL)[..., None]
            # Filled, not multiplied by 0: values outside the item are those of its neighbours, possibly infinite.
            values_BLV.masked_fill_(~inside_BL1, 0.0)
            observed_BLV = observed_BLV & inside_BL1
        past_marks, future_marks = self._gather_marks(item_B, cut_B)
        covariates = self._covariates.gather(item_B, cut_B) if self._covariates is not None else {}
        T, known = self.context, self._future_known
        return Batch(
            past=values_BLV[:, :T],
            past_observed=observed_BLV[:, :T],
            horizon=self.horizon,
            season=self.season,
            seasons=self.seasons,
            future=values_BLV[:, T:] if known else None,
            future_observed=observed_BLV[:, T:] if known else None,
            past_marks=past_marks,
            future_marks=future_marks,
            item=torch.from_numpy(item_B),
            cut=torch.from_numpy(cut_B),
            **covariates,
        )

    def _gather_marks(
        self, item_B: Int[np.ndarray, " B"], cut_B: Int[np.ndarray, " B"]
    ) -> tuple[Float[Tensor, "B T M"] | None, Float[Tensor, "B H M"] | None]:
        """Calendar features of context and horizon; zero before a series begins."""
        if self._marks is None:
            return None, None
        steps = self.context + self.horizon
        marks_BLM = gather(self._marks, self._mark_offsets[item_B] + cut_B, steps, np.arange(len(self._marks)))
        if not self._whole:
            before_BL = cut_B[:, None] + np.arange(-self.context, self.horizon) < 0
            marks_BLM.masked_fill_(torch.from_numpy(before_BL)[..., None], 0.0)
        return marks_BLM[:, : self.context], marks_BLM[:, self.context :]

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Iterate over all windows in order; the last batch may be smaller."""
        for begin in range(0, len(self), batch_size):
            yield self.batch(np.arange(begin, min(begin + batch_size, len(self))))


def item_lengths(series: SeriesSet) -> Int[np.ndarray, " items"]:
    """Number of rows of each item without its future rows, which have no target."""
    return np.diff(np.asarray(series.offsets, dtype=np.int64)) - np.asarray(series.future_rows, dtype=np.int64)


def common_season(series: SeriesSet) -> int:
    """Steps in the season common to all items.

    Raises:
        InputError: two items have frequencies with different seasons.
    """
    seasons = {series.season_of(freq): freq for freq in sorted(set(series.freqs))}
    if len(seasons) > 1:
        raise InputError(
            f"{series.name}: expected series of one season, found frequencies {', '.join(seasons.values())}: use one "
            "table per frequency"
        )
    return next(iter(seasons), 1)


def common_seasons(series: SeriesSet) -> tuple[int, ...]:
    """The seasons in steps, from short to long, that the frequencies of all items have in common."""
    by_freq = [set(series.seasons_of(freq)) for freq in set(series.freqs)]
    return tuple(sorted(set.intersection(*by_freq))) if by_freq else ()


def rolling_cuts(
    lengths: Int[np.ndarray, " items"],
    context: int,
    horizon: int,
    *,
    first: ArrayLike | None = None,
    last: ArrayLike | None = None,
    stride: int = 1,
    count: int | None = None,
) -> tuple[Int[np.ndarray, " windows"], Int[np.ndarray, " windows"]]:
    """Items and cuts of rolling windows; arguments as in ``Windows.rolling``.

    Raises:
        InputError: no item is long enough for one window, or stride or count is below 1.
    """
    check_sizes(stride=stride, count=count)
    lowest = np.broadcast_to((1 if count else context) if first is None else np.asarray(first), lengths.shape)
    highest = lengths - horizon if last is None else np.broadcast_to(np.asarray(last), lengths.shape)
    number = np.maximum((highest - lowest) // stride + 1, 0)
    if count is not None:
        number = np.minimum(number, count)
        lowest = highest - (number - 1) * stride
    if not number.sum():
        needed = horizon + (int(lowest.max(initial=1)) if first is not None else 1 if count else context)
        raise InputError(
            f"too short for one window: expected at least {needed} rows (context {context}, horizon {horizon}), found "
            f"{lengths.max(initial=0)} in the longest series: give a smaller context or horizon, or more rows"
        )
    items = np.repeat(np.arange(len(lengths), dtype=np.int64), number)
    step = np.arange(len(items)) - np.repeat(np.cumsum(number) - number, number)
    return items, lowest[items] + step * stride


class WindowLoader(ResumableLoader[Batch]):
    """Batches of ``Windows`` for a training or evaluation loop: shuffled by seed and epoch, resumable, sharded.

    Gathering a batch takes microseconds, so worker processes are not needed. The order of an epoch depends only on seed
    and epoch.

    Each of ``world`` ranks takes every ``world``-th window. With ``shuffle``, all ranks get the same number of windows
    (the rest, fewer than ``world``, are left out of this epoch); otherwise no window is dropped or repeated, and the
    numbers of windows of two ranks may differ by one.

    Args:
        windows: to load.
        batch_size: windows in a batch (of this rank).
        shuffle: a new order every epoch.
        drop_last: leave out the last, incomplete batch of an epoch, unless it is the only one.
        seed: of order and variates.
        variates_per_batch: a new random subset of the variates in every batch: a fraction below 1 or a number; None
            means all. It trains a model for unseen variates (iTransformer, section 4.3).
        rank: number of this process.
        world: number of processes.

    Raises:
        InputError: a size is out of range.
    """

    def __init__(
        self,
        windows: Windows,
        batch_size: int,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        variates_per_batch: float | int | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        super().__init__()
        check_sizes(batch_size=batch_size)
        self.windows, self.batch_size, self.shuffle, self.seed = windows, batch_size, shuffle, seed
        self.rank, self.world = rank, world
        self._shown = count_variates("variates_per_batch", variates_per_batch, len(windows.variates))
        total = len(windows)
        self._total = total - total % world if shuffle and total >= world else total
        of_rank = len(range(rank, self._total, world))
        self._windows_used = of_rank - of_rank % batch_size if drop_last and of_rank >= batch_size else of_rank

    def __len__(self) -> int:
        return -(-self._windows_used // self.batch_size)

    def from_batch(self, epoch: int, first: int) -> Iterator[Batch]:
        order = self._order(epoch)
        for number in range(first, len(self)):
            chosen = order[number * self.batch_size : (number + 1) * self.batch_size]
            yield self.windows.batch(chosen, self._variates(epoch, number))

    def _order(self, epoch: int) -> Int[np.ndarray, " used"]:
        """Indices of this rank's windows of an epoch, in order."""
        order = np.arange(len(self.windows))
        if self.shuffle:
            order = np.random.default_rng([self.seed, epoch]).permutation(order)
        return order[: self._total][self.rank :: self.world][: self._windows_used]

    def _variates(self, epoch: int, number: int) -> Int[np.ndarray, " v"] | None:
        """The variates of batch ``number`` of an epoch, the same on all ranks."""
        variates = len(self.windows.variates)
        if self._shown == variates:
            return None
        return np.random.default_rng([self.seed, epoch, number + 1]).permutation(variates)[: self._shown]


def count_variates(option: str, choice: float | int | None, variates: int) -> int:
    """The number of variates that an option selects.

    A fraction below 1 selects at least one variate, None selects all. A whole number may be a float, because a parser
    of ``int | float`` turns 2 into 2.0.

    Raises:
        InputError: neither a fraction in (0, 1) nor a whole number from 1 to variates.
    """
    if choice is None:
        return variates
    if 0 < choice < 1:
        return max(1, round(choice * variates))
    if choice <= 0 or not float(choice).is_integer():
        raise InputError(f"{option}: expected a fraction in (0, 1) or a whole number, found {choice}")
    if not 1 <= choice <= variates:
        raise InputError(f"{option}: expected 1 to {variates} variates (the data have {variates}), found {choice}")
    return int(choice)
