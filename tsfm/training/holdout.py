"""Windows held out at the ends of series, in two parts: one to choose a checkpoint by, one to judge the choice.

Shapes: W windows, H horizon steps, V variates.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tsfm.models import Forecaster
from tsfm.nn import DEFAULT_LEVELS
from tsfm.training.validation import WORST, seasonal_scale
from tsfm_data.errors import InputError
from tsfm_data.evaluation import check_finite
from tsfm_data.io import SeriesSet
from tsfm_data.windows import Batch, Windows, item_lengths

SHARE, MOST_A_SERIES = 0.25, 10  # of the rows of a series that are held out at most; most windows of one series
BY_SERIES = 16  # from so many short series on, half of them choose and half of them judge
FEW_WINDOWS = 32  # below, windows overlap
LEAST_HISTORY = 8  # steps before a window
MOST_WINDOWS = 256  # of each part
LEAST_GAIN = 0.01  # of the error that a challenger must save
FEW_TIMES = 3  # fewer times of judging windows: what all series share at one time may be chance, and more must be saved
LEAST_GAIN_AT_ONCE = 0.03
LEAST_SIGMAS = 1.0  # and by so many standard errors: one chance in six that it is none


@dataclass(frozen=True)
class Holdout:
    """Where training ends in every series, and the windows behind that.

    Attributes:
        ends: rows of every item to train on.
        select: windows to choose a checkpoint by.
        judge: windows that say whether the choice is better than what was there before.
    """

    ends: Int[np.ndarray, " items"]
    select: Windows
    judge: Windows


def hold_out(series: SeriesSet, model: Forecaster, horizon: int, seed: int) -> Holdout:
    """Hold out the ends of the series that are long enough.

    Args:
        series: all that may be used.
        model: says context, calendar features and whether covariates are shown.
        horizon: steps of a window.
        seed: of the choice among many series and windows.

    Raises:
        InputError: no series is long enough.
    """
    lengths = item_lengths(series)
    usable = lengths >= 3 * horizon + LEAST_HISTORY
    short = lengths >= 2 * horizon + LEAST_HISTORY
    # Times that choose and times that judge, so that a luck that all series share is no luck twice; where the series
    # are too short for that, some series choose and others judge.
    halves = int(short.sum()) >= max(BY_SERIES, 2 * int(usable.sum()))
    usable = short if halves else usable
    if not usable.any():
        needed = 3 * horizon + LEAST_HISTORY
        raise InputError(
            f"expected a series of at least {needed} rows in {series.source} to hold windows of {horizon} steps out, "
            f"found {lengths.max(initial=0)} in the longest: give more rows or a smaller horizon"
        )
    least = 1 if halves else 2
    count = np.clip((SHARE * lengths / horizon).astype(np.int64), least, MOST_A_SERIES) * usable
    ends = lengths - count * horizon
    stride = horizon if count.sum() >= FEW_WINDOWS else max(1, horizon // 4)
    rng = np.random.default_rng([seed, 1])
    chosen = rng.permutation(np.flatnonzero(usable))
    choosers = set(chosen[: len(chosen) // 2].tolist()) if halves else set()
    parts: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])
    for item in np.flatnonzero(usable).tolist():
        last = int(lengths[item]) - horizon
        cuts = list(range(last, int(ends[item]) - 1, -stride))
        if halves:
            parts[0 if item in choosers else 1].extend((item, cut) for cut in cuts)
        else:  # no window that judges overlaps with one that chooses
            border = int(ends[item]) + int(count[item] // 2) * horizon
            parts[0].extend((item, cut) for cut in cuts if cut + horizon <= border)
            parts[1].extend((item, cut) for cut in cuts if cut >= border)
    windows = []
    for part in parts:
        kept = sorted(rng.permutation(len(part))[:MOST_WINDOWS].tolist())
        items, cuts = np.array([part[k] for k in kept], dtype=np.int64).T
        windows.append(windows_of(series, model, horizon, items, cuts))
    return Holdout(ends, *windows)


def windows_of(
    series: SeriesSet, model: Forecaster, horizon: int, items: Int[np.ndarray, " W"], cuts: Int[np.ndarray, " W"]
) -> Windows:
    """Windows as a model is shown them."""
    options: dict[str, Any] = {"marks": model.marks, "dtype": torch.float64, "covariates": model.covariates}
    return Windows(series, model.context, horizon, items, cuts, **options)


def until(series: SeriesSet, ends: Int[np.ndarray, " items"]) -> SeriesSet:
    """The first rows of every item."""
    begins = np.asarray(series.offsets[:-1], dtype=np.int64)
    rows = np.concatenate([np.arange(a, a + n) for a, n in zip(begins, ends, strict=True)])
    return replace(
        series,
        values=series.values[rows],
        offsets=np.concatenate([[0], np.cumsum(ends)]).astype(np.int64),
        past=series.past[rows],
        known=series.known[rows],
        future_rows=np.zeros(len(series), dtype=np.int64),
    )


@dataclass(frozen=True)
class Errors:
    """Errors of a model on windows.

    Attributes:
        scaled: mean pinball loss of every window in units of the seasonal-naive error within its history, at most 10.
        total: sum of the losses of every window in the units of the data.
        size: sum of the absolute true values of every window.
        item: the series of every window.
        time: when every window begins, in nanoseconds.
    """

    scaled: Float[np.ndarray, " W"]
    total: Float[np.ndarray, " W"]
    size: Float[np.ndarray, " W"]
    item: Int[np.ndarray, " W"]
    time: Int[np.ndarray, " W"]

    @property
    def score(self) -> float:
        """Mean scaled loss."""
        return float(np.nanmean(self.scaled))

    @property
    def wql(self) -> float:
        """Weighted quantile loss: the losses over the sum of the absolute true values."""
        return float(self.total.sum() / max(self.size.sum(), 1e-12))


def errors_of(
    model: Forecaster, windows: Windows, levels: Sequence[float] = DEFAULT_LEVELS, batch_size: int = 128
) -> Errors:
    """Errors of a model on every window; variates are averaged."""
    found = [window_errors(model, batch, levels) for batch in windows.batches(batch_size)]
    scaled, total, size = (torch.cat(parts).numpy() for parts in zip(*found, strict=True))
    if not np.isfinite(scaled).any():
        raise InputError(
            f"expected series of {windows.series.source} that change, found constant or missing values alone in the "
            "windows held out: there is nothing to compare models on"
        )
    places = zip(windows.items.tolist(), windows.cuts.tolist(), strict=True)
    stamps = [windows.series.timestamps(item)[cut].value for item, cut in places]
    return Errors(scaled, total, size, windows.items, np.array(stamps, dtype=np.int64))


def window_errors(
    model: Forecaster, batch: Batch, levels: Sequence[float]
) -> tuple[Float[Tensor, " W"], Float[Tensor, " W"], Float[Tensor, " W"]]:
    """Scaled loss, loss and absolute value of every window; NaN and 0 where nothing was observed."""
    if batch.future is None or batch.future_observed is None:
        raise ValueError("expected windows with their future, found none")
    blind = replace(batch, future=None, future_observed=None)
    forecast = model.predict(blind, levels)
    check_finite(forecast, model.name, batch.past_observed.any(dim=1))
    seen: Bool[Tensor, "W H V"] = batch.future_observed
    asked = forecast.quantiles.new_tensor(forecast.levels)
    error = batch.future[..., None] - forecast.quantiles
    loss = torch.where(seen, 2 * torch.maximum(asked * error, (asked - 1) * error).mean(-1), 0.0)
    mean = loss.sum(1) / seen.sum(1)  # NaN for a variate of which nothing is observed
    scaled = (mean / seasonal_scale(batch.past, batch.past_observed, batch.season)).clamp(max=WORST).nanmean(1)
    size = torch.where(seen, batch.future.abs(), 0.0)
    return scaled, loss.sum((1, 2)), size.sum((1, 2))


@dataclass(frozen=True)
class Comparison:
    """A challenger against the model that stands.

    Attributes:
        gain: share of the scaled error that the challenger saves; below 0 it adds some.
        sigmas: the mean difference over its standard error; NaN where a single cluster leaves none.
        wql_gain: share of the weighted quantile loss that it saves.
        times: how many different times the windows begin at.
    """

    gain: float
    sigmas: float
    wql_gain: float
    times: int

    @property
    def least(self) -> float:
        """The gain that is asked for."""
        return LEAST_GAIN if self.times >= FEW_TIMES else LEAST_GAIN_AT_ONCE

    @property
    def wins(self) -> bool:
        """Whether the challenger is better by a margin that is not chance."""
        return self.gain >= self.least and self.sigmas >= LEAST_SIGMAS and self.wql_gain >= 0


def compare(standing: Errors, challenger: Errors) -> Comparison:
    """Compare two models window by window, on the same windows."""
    seen = np.isfinite(standing.scaled) & np.isfinite(challenger.scaled)
    saved = (standing.scaled - challenger.scaled)[seen]
    items, times = standing.item[seen], standing.time[seen]
    many = [group for group, least in ((items, BY_SERIES // 2), (times, FEW_TIMES)) if len(np.unique(group)) >= least]
    # Windows of one series fail together, and so do those of one time: the less certain of both views counts.
    sigmas = min(in_errors(saved, group) for group in many or [np.arange(len(saved))])
    before = float(standing.scaled[seen].mean())
    gain = 1 - float(challenger.scaled[seen].mean()) / before if before else 0.0
    wql_gain = 1 - challenger.wql / standing.wql if standing.wql else 0.0
    return Comparison(gain, sigmas, wql_gain, len(np.unique(times)))


def in_errors(saved: Float[np.ndarray, " W"], group: Int[np.ndarray, " W"]) -> float:
    """Mean of the groups' means in units of its standard error; NaN where that is unknown."""
    _, index = np.unique(group, return_inverse=True)
    means = np.bincount(index, saved) / np.bincount(index)
    spread = means.std(ddof=1) / math.sqrt(len(means)) if len(means) > 1 else math.nan
    return float(means.mean() / spread) if spread > 0 else math.nan
