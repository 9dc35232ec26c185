"""Held-out windows at the ends of series: some choose a checkpoint, the others judge whether it is better.

Shapes: W windows, H horizon steps, V variates.
"""

import math
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

SHARE = 0.25  # largest share of the rows of a series that is held out
MOST_PER_SERIES = 10  # windows without overlap per series
BY_SERIES = 16  # number of short series from which half of them choose and half of them judge
FEW_WINDOWS = 32  # with fewer windows, they overlap
LEAST_HISTORY = 8  # steps before a window
MOST_WINDOWS = 256  # that choose, and that judge
LEAST_GAIN = 0.01  # share by which a challenger must reduce the error
# If the judging windows begin at fewer times than this, all series may share the luck of one time, and the challenger
# must reduce the error by a larger share.
FEW_TIMES = 3
LEAST_GAIN_AT_ONCE = 0.03
LEAST_SIGMAS = 1.0  # standard errors by which a challenger must be better: a chance of one in six without a gain


@dataclass(frozen=True)
class Holdout:
    """The end of training in every series, and the windows after it.

    Attributes:
        ends: number of rows of every item to train on.
        select: windows that choose a checkpoint.
        judge: windows on which the checkpoint is compared with the model before.
    """

    ends: Int[np.ndarray, " items"]
    select: Windows
    judge: Windows


def hold_out(series: SeriesSet, model: Forecaster, horizon: int, seed: int) -> Holdout:
    """Hold out the ends of the series that are long enough.

    Args:
        series: all series.
        model: gives the context, calendar features and whether covariates are used.
        horizon: steps to forecast in a window.
        seed: random seed of the choice among many series and windows.

    Raises:
        InputError: no series is long enough.
    """
    lengths = item_lengths(series)
    usable = lengths >= 3 * horizon + LEAST_HISTORY
    short = lengths >= 2 * horizon + LEAST_HISTORY
    # Earlier windows choose and later ones judge, so that luck shared by all series at one time counts only once. If
    # the series are too short for that, some series choose and others judge.
    halves = int(short.sum()) >= max(BY_SERIES, 2 * int(usable.sum()))
    usable = short if halves else usable
    if not usable.any():
        needed = 3 * horizon + LEAST_HISTORY
        raise InputError(
            f"expected a series of at least {needed} rows in {series.source} to hold out windows of {horizon} steps, "
            f"found {lengths.max(initial=0)} in the longest: give more rows or a smaller horizon"
        )
    least = 1 if halves else 2
    count = np.clip((SHARE * lengths / horizon).astype(np.int64), least, MOST_PER_SERIES) * usable
    ends = lengths - count * horizon
    stride = horizon if count.sum() >= FEW_WINDOWS else max(1, horizon // 4)
    rng = np.random.default_rng([seed, 1])
    chosen = rng.permutation(np.flatnonzero(usable))
    selecting_series = set(chosen[: len(chosen) // 2].tolist()) if halves else set()
    parts: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])
    for item in np.flatnonzero(usable).tolist():
        last = int(lengths[item]) - horizon
        cuts = list(range(last, int(ends[item]) - 1, -stride))
        if halves:
            parts[0 if item in selecting_series else 1].extend((item, cut) for cut in cuts)
        else:  # no window that judges overlaps with one that chooses
            border = int(ends[item]) + int(count[item] // 2) * horizon
            parts[0].extend((item, cut) for cut in cuts if cut + horizon <= border)
            parts[1].extend((item, cut) for cut in cuts if cut >= border)
    windows = []
    for part in parts:
        chosen_windows = sorted(rng.permutation(len(part))[:MOST_WINDOWS].tolist())
        items, cuts = np.array([part[k] for k in chosen_windows], dtype=np.int64).T
        windows.append(windows_of(series, model, horizon, items, cuts))
    return Holdout(ends, *windows)


def windows_of(
    series: SeriesSet, model: Forecaster, horizon: int, items: Int[np.ndarray, " W"], cuts: Int[np.ndarray, " W"]
) -> Windows:
    """The windows in the form that a model needs."""
    options: dict[str, Any] = {"marks": model.marks, "dtype": torch.float64, "covariates": model.covariates}
    return Windows(series, model.context, horizon, items, cuts, **options)


def truncate(series: SeriesSet, ends: Int[np.ndarray, " items"]) -> SeriesSet:
    """The series cut to the first ``ends`` rows of every item."""
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
        scaled: mean pinball loss of every window divided by the seasonal-naive error within its history, at most 10.
        total: sum of the losses of every window in the units of the data.
        size: sum of the absolute true values of every window.
        item: the series of every window.
        time: start of every window in nanoseconds since 1970.
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
        """Weighted quantile loss: sum of the losses divided by the sum of the absolute true values."""
        return float(self.total.sum() / max(self.size.sum(), 1e-12))


def errors_of(model: Forecaster, windows: Windows) -> Errors:
    """Errors of a model on every window, averaged over variates.

    Raises:
        InputError: the held-out values are constant or missing.
    """
    batch_errors = [window_errors(model, batch) for batch in windows.batches(128)]
    scaled, total, size = (torch.cat(parts).numpy() for parts in zip(*batch_errors, strict=True))
    if not np.isfinite(scaled).any():
        raise InputError(
            f"expected series of {windows.series.source} that change, found only constant or missing values in the "
            "held-out windows: give series that change at their ends"
        )
    starts = zip(windows.items.tolist(), windows.cuts.tolist(), strict=True)
    times = [windows.series.timestamps(item)[cut].value for item, cut in starts]
    return Errors(scaled, total, size, windows.items, np.array(times, dtype=np.int64))


def window_errors(
    model: Forecaster, batch: Batch
) -> tuple[Float[Tensor, " W"], Float[Tensor, " W"], Float[Tensor, " W"]]:
    """Scaled loss, loss and absolute true value of every window; NaN, 0 and 0 if nothing was observed."""
    if batch.future is None or batch.future_observed is None:
        raise ValueError("expected windows with their future, found none")
    inputs = replace(batch, future=None, future_observed=None)
    forecast = model.predict(inputs, DEFAULT_LEVELS)
    check_finite(forecast, model.name, batch.past_observed.any(dim=1))
    observed: Bool[Tensor, "W H V"] = batch.future_observed
    levels_tensor = forecast.quantiles.new_tensor(forecast.levels)
    error = batch.future[..., None] - forecast.quantiles
    loss = torch.where(observed, 2 * torch.maximum(levels_tensor * error, (levels_tensor - 1) * error).mean(-1), 0.0)
    mean = loss.sum(1) / observed.sum(1)  # NaN for a variate without observations
    scaled = (mean / seasonal_scale(batch.past, batch.past_observed, batch.season)).clamp(max=WORST).nanmean(1)
    size = torch.where(observed, batch.future.abs(), 0.0)
    return scaled, loss.sum((1, 2)), size.sum((1, 2))


@dataclass(frozen=True)
class Comparison:
    """A challenger compared with the current model.

    Attributes:
        gain: share by which the challenger reduces the scaled loss; negative if it increases it.
        sigmas: mean difference divided by its standard error; NaN if that is unknown, with a single series or time.
        wql_gain: share by which the challenger reduces the weighted quantile loss.
        times: number of different times at which the windows begin.
    """

    gain: float
    sigmas: float
    wql_gain: float
    times: int

    @property
    def least(self) -> float:
        """The gain that the challenger needs."""
        return LEAST_GAIN if self.times >= FEW_TIMES else LEAST_GAIN_AT_ONCE

    @property
    def wins(self) -> bool:
        """Whether the challenger is better by a sufficient margin."""
        return self.gain >= self.least and self.sigmas >= LEAST_SIGMAS and self.wql_gain >= 0


def compare(current: Errors, challenger: Errors) -> Comparison:
    """Compare a challenger with the current model on the same windows."""
    seen = np.isfinite(current.scaled) & np.isfinite(challenger.scaled)
    saved = (current.scaled - challenger.scaled)[seen]
    items, times = current.item[seen], current.time[seen]
    many = [group for group, least in ((items, BY_SERIES // 2), (times, FEW_TIMES)) if len(np.unique(group)) >= least]
    # Errors are correlated within a series and within a time: the smaller of both statistics counts.
    sigmas = min(t_statistic(saved, group) for group in many or [np.arange(len(saved))])
    before = float(current.scaled[seen].mean())
    gain = 1 - float(challenger.scaled[seen].mean()) / before if before else 0.0
    wql_gain = 1 - challenger.wql / current.wql if current.wql else 0.0
    return Comparison(gain, sigmas, wql_gain, len(np.unique(times)))


def t_statistic(saved: Float[np.ndarray, " W"], group: Int[np.ndarray, " W"]) -> float:
    """Mean of the group means divided by its standard error; NaN if that is unknown."""
    _, index = np.unique(group, return_inverse=True)
    means = np.bincount(index, saved) / np.bincount(index)
    spread = means.std(ddof=1) / math.sqrt(len(means)) if len(means) > 1 else math.nan
    return float(means.mean() / spread) if spread > 0 else math.nan
