"""Forecasts, with any predictor, of histories with missing values at the end or in long gaps.

Most predictors handle neither well. So each history is cut after its last value, and the steps between this value and
the end of the window are forecast, too, and dropped. A gap longer than all values after it is filled with the
predictor's own forecast from the values before it. Of a predictor that handles gaps, only very long ones are.

Axes: B windows, T context steps, H horizon steps, V variates, R rows (windows, cut at their last values), M steps.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from tsfm_data.errors import InputError
from tsfm_data.evaluation.baselines import Predictor
from tsfm_data.io import SeriesSet
from tsfm_data.windows import Batch, Forecast, item_lengths

BATCH_VALUES = 2**24  # most values in one batch (128 MiB in float64)
MIN_GAP = 8  # steps of the shortest gap that is filled: models handle shorter ones
MOST_SEASONS = 3  # of the longest gap that is left to predictors that handle gaps: a weekend of hours has 2.7
# Fields of a batch along the context, and the fields that continue them over the horizon.
HISTORY = {
    "past": None,
    "past_observed": None,
    "past_marks": "future_marks",
    "past_covariates": None,
    "past_covariates_observed": None,
    "known_past": "known_future",
    "known_past_observed": "known_future_observed",
}


def forecast_windows(
    predictor: Predictor, batch: Batch, levels: Sequence[float], wanted: Bool[Tensor, "B V"] | None = None
) -> Forecast:
    """Forecast windows with ``predictor``, after handling missing ends and long gaps.

    Args:
        predictor: a model or a baseline.
        batch: windows, without their future. They may be longer than the predictor's context, so that a full context
            is left after a cut (see ``history_of``).
        levels: ascending quantile levels.
        wanted: variates to forecast; the forecasts of the others are undefined. None: all.

    Returns:
        As ``predict``. A variate without any value is left to the predictor.

    Raises:
        InputError: a forecast is not finite.
    """
    forecast = _past_holes(predictor, batch, levels, wanted)
    known_BV = batch.past_observed.any(dim=1)
    check_finite(forecast, predictor.name, known_BV if wanted is None else known_BV & wanted)
    return forecast


def check_finite(forecast: Forecast, name: str, wanted: Bool[Tensor, "B V"]) -> None:
    """Check that forecasts are numbers.

    Args:
        forecast: to check.
        name: of the predictor.
        wanted: variates whose forecasts count.

    Raises:
        InputError: they are not.
    """
    finite_BV = torch.isfinite(forecast.quantiles).all(dim=-1).all(dim=1) & torch.isfinite(forecast.mean).all(dim=1)
    if not bool((finite_BV | ~wanted.to(finite_BV.device)).all()):
        raise InputError(
            f"expected finite forecasts, found nan or infinity from {name}: a model that was trained diverged, so "
            "train it with a smaller learning rate; else scale the values"
        )


def _past_holes(
    predictor: Predictor, batch: Batch, levels: Sequence[float], wanted: Bool[Tensor, "B V"] | None
) -> Forecast:
    """As ``forecast_windows``, before the forecasts are checked."""
    if bool(batch.past_observed.all()):
        return predictor.predict(last_steps(batch, predictor.context), levels)
    variates = batch.past.shape[2]
    # A predictor of another package may not have this attribute; then its variates stay together.
    if variates > 1 and not getattr(predictor, "joint", True):
        wanted_R1 = None if wanted is None else wanted.reshape(-1, 1)
        single = forecast_windows(predictor, univariate(batch), levels, wanted_R1)
        mean, quantiles = (x.squeeze(2).unflatten(0, (-1, variates)) for x in (single.mean, single.quantiles))
        return Forecast(mean.transpose(1, 2), quantiles.transpose(1, 2), single.levels)
    missing_BV = missing_end(batch.past_observed)
    if wanted is None:
        wanted = torch.ones_like(missing_BV, dtype=torch.bool)
    if not bool(missing_BV[wanted].any()):
        return predictor.predict(last_steps(fill_gaps(predictor, batch, wanted), predictor.context), levels)
    shape = len(batch), batch.horizon, variates
    mean = torch.zeros(shape, dtype=torch.float64)
    quantiles = torch.zeros((*shape, len(levels)), dtype=torch.float64)
    missing_BV = torch.where(wanted, missing_BV, -1)
    for row_R, cut_R, is_cut_RV, part in shifted_batches(batch, missing_BV, missing_BV, batch.horizon, len(levels)):
        ahead = predictor.predict(last_steps(fill_gaps(predictor, part, is_cut_RV), predictor.context), levels)
        for r, v in is_cut_RV.nonzero().tolist():
            row, steps = int(row_R[r]), slice(int(cut_R[r]), int(cut_R[r]) + batch.horizon)
            mean[row, :, v], quantiles[row, :, v] = ahead.mean[r, steps, v], ahead.quantiles[r, steps, v]
    return Forecast(mean, quantiles, tuple(levels))


def missing_end(observed: Bool[Tensor, "B T V"]) -> Int[Tensor, "B V"]:
    """Steps after the last observed one; 0 if nothing is observed."""
    count = observed.flip(1).int().argmax(dim=1)
    return torch.where(observed.any(dim=1), count, 0)


def latest_gap(observed: Bool[Tensor, "B T V"], least: int = MIN_GAP) -> tuple[Int[Tensor, "B V"], Int[Tensor, "B V"]]:
    """First step and length of the last gap of at least ``least`` steps that is longer than all after it; 0 if none.

    Missing values before the first value and after the last one are not gaps.
    """
    steps = observed.shape[1]
    time = torch.arange(steps, device=observed.device)[None, :, None]
    seen = torch.where(observed, time, -1).cummax(dim=1).values
    before = F.pad(seen[:, :-1], (0, 0, 1, 0), value=-1)  # the observed step before each
    length = torch.where(observed & (before >= 0), time - before - 1, 0)
    end = torch.where((length >= least) & (length > steps - time), time, 0).amax(dim=1)
    size = length.gather(1, end[:, None])[:, 0]
    return torch.where(end > 0, end - size, 0), torch.where(end > 0, size, 0)


def columns_of(predictor: Predictor, series: SeriesSet) -> int:
    """Number of columns of a window: the variates, and the covariates if the predictor uses them."""
    covariates = len(series.past_names) + len(series.known_names) if predictor.covariates else 0
    return len(series.variates) + covariates


def history_of(predictor: Predictor, series: SeriesSet) -> int:
    """Context that windows at the end of the series need for ``forecast_windows``.

    It is the predictor's context, and more if an end is missing or a gap will be filled; never more than the longest
    series has, because that would be padding.
    """
    lengths, filled = item_lengths(series), not handles_gaps(predictor)
    if predictor.context is None:
        return int(lengths.max())
    needed = predictor.context
    if np.isnan(series.values).any():
        for i, length in enumerate(lengths):
            needed = max(
                needed, *(history_needed(column, predictor.context, filled) for column in series.item(i)[:length].T)
            )
    return min(needed, int(lengths.max()))


def handles_gaps(predictor: Predictor) -> bool:
    """Whether the predictor takes histories with gaps of up to ``MOST_SEASONS`` seasons as they are."""
    return getattr(predictor, "handles_gaps", False)


def history_needed(values: Float[np.ndarray, " rows"], context: int, filled: bool = True) -> int:
    """Rows at the end of a series that contain ``context`` rows apart from a missing end and gaps to fill.

    Args:
        values: one series, NaN where missing.
        context: context of the predictor.
        filled: whether long gaps will be filled.
    """
    seen = np.flatnonzero(~np.isnan(values))
    if not len(seen):
        return context
    length, follows = np.diff(seen) - 1, seen[-1] + 1 - seen[1:]
    to_fill = np.where((length >= MIN_GAP) & (length > follows) & filled, length, 0)[::-1]
    # Backwards from the end: a gap counts if the rows after it are fewer than the context.
    is_needed = follows[::-1] - (np.cumsum(to_fill) - to_fill) < context
    return context + len(values) - 1 - int(seen[-1]) + int(to_fill[is_needed].sum())


def fill_gaps(predictor: Predictor, batch: Batch, wanted: Bool[Tensor, "B V"]) -> Batch:
    """Fill every gap of the wanted variates that is longer than all after it with its median forecast.

    If the predictor handles gaps, only those of more than ``MOST_SEASONS`` seasons are filled.
    """
    least = MIN_GAP
    if handles_gaps(predictor):
        least = max(least, MOST_SEASONS * max(batch.season, min(batch.seasons, default=1)) + 1)
    while True:
        begin_BV, length_BV = latest_gap(batch.past_observed, least)
        length_BV = torch.where(wanted, length_BV, 0)
        if not bool(length_BV.any()):
            return batch
        past, observed, steps = batch.past.clone(), batch.past_observed.clone(), batch.past.shape[1]
        cut_BV = torch.where(length_BV > 0, steps - begin_BV, -1)
        for row_R, cut_R, is_cut_RV, part in shifted_batches(batch, cut_BV, length_BV, 0, 1):
            median = forecast_windows(predictor, part, (0.5,), is_cut_RV).quantiles[..., 0]
            for r, v in is_cut_RV.nonzero().tolist():
                row, begin = int(row_R[r]), steps - int(cut_R[r])
                gap = slice(begin, begin + int(length_BV[row, v]))
                past[row, gap, v] = median[r, : gap.stop - begin, v].to(past)
                observed[row, gap, v] = True
        batch = replace(batch, past=past, past_observed=observed)


def shifted_batches(
    batch: Batch, cut_BV: Int[Tensor, "B V"], extra_BV: Int[Tensor, "B V"], horizon: int, levels: int
) -> Iterator[tuple[Int[Tensor, " R"], Int[Tensor, " R"], Bool[Tensor, "R V"], Batch]]:
    """Shift windows back in time, each variate by its own number of steps, in batches of equal horizon.

    A longer horizon is rounded up to ``horizon`` plus a power of two, which makes few batches of many windows and does
    not depend on the other series of a batch.

    Args:
        batch: windows.
        cut_BV: steps to shift each variate back; below 0: leave it out.
        extra_BV: steps to forecast beyond ``horizon``, at least.
        horizon: steps to forecast.
        levels: number of quantile levels, for the size of the batches.

    Yields:
        Rows of the windows, steps by which they are shifted, the variates that are shifted by as many, and the windows.
        Every variate is in one batch.
    """
    longer_BV = torch.where(extra_BV > 0, 2 ** (extra_BV.clamp(min=1) - 0.5).log2().ceil().long().clamp(min=0), 0)
    row_BV = torch.arange(len(batch), device=cut_BV.device)[:, None].expand_as(cut_BV)
    triple_P3 = torch.stack([row_BV, cut_BV, longer_BV], -1)[cut_BV >= 0].unique(dim=0)
    for longer in triple_P3[:, 2].unique().tolist():
        row_P, cut_P, _ = triple_P3[triple_P3[:, 2] == longer].unbind(1)
        is_cut_PV = (cut_BV[row_P] == cut_P[:, None]) & (longer_BV[row_P] == longer)
        values = (batch.past.shape[1] + (horizon + longer) * levels) * batch.past.shape[2]
        for chosen in torch.arange(len(row_P), device=row_P.device).split(max(1, BATCH_VALUES // values)):
            part = shift_back(batch, row_P[chosen], cut_P[chosen], horizon + longer)
            yield row_P[chosen], cut_P[chosen], is_cut_PV[chosen], part


def shift_back(batch: Batch, row_R: Int[Tensor, " R"], cut_R: Int[Tensor, " R"], horizon: int) -> Batch:
    """Shift some windows of a batch back in time; known future values move along."""
    steps = batch.past.shape[1]
    time_RM = torch.arange(steps + horizon, device=cut_R.device) - cut_R[:, None]
    moved: dict[str, Any] = {"horizon": horizon, "future": None, "future_observed": None}
    for name, future in HISTORY.items():
        rows = getattr(batch, name)
        if rows is None:
            continue
        if future is not None and getattr(batch, future) is not None:
            rows = torch.cat([rows, getattr(batch, future)], dim=1)
        inside_RM = (time_RM >= 0) & (time_RM < rows.shape[1])
        values = rows[row_R[:, None], time_RM.clamp(0, rows.shape[1] - 1)]
        values = torch.where(inside_RM[..., None], values, torch.zeros_like(values))
        moved[name] = values[:, :steps]
        if future is not None:
            moved[future] = values[:, steps:]
    return replace(
        batch,
        item=None if batch.item is None else batch.item[row_R],
        cut=None if batch.cut is None else batch.cut[row_R] - cut_R,
        **moved,
    )


def last_steps(batch: Batch, context: int | None) -> Batch:
    """The windows with at most the last ``context`` steps of their history."""
    if context is None or batch.past.shape[1] <= context:
        return batch
    cut: dict[str, Any] = {name: x[:, -context:] for name in HISTORY if (x := getattr(batch, name)) is not None}
    return replace(batch, **cut)


def univariate(batch: Batch) -> Batch:
    """One window per variate; marks and covariates are repeated."""
    variates = batch.past.shape[2]
    own = {name: getattr(batch, name).transpose(1, 2).flatten(0, 1)[..., None] for name in ("past", "past_observed")}
    batch = replace(batch, future=None, future_observed=None)
    shared = {name: x for name, x in vars(batch).items() if isinstance(x, Tensor) and name not in own}
    repeated: dict[str, Any] = {name: x.repeat_interleave(variates, 0) for name, x in shared.items()}
    return replace(batch, **repeated, **own)
