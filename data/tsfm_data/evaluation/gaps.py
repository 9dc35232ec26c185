"""Forecasts of histories with holes: any predictor's, over missing ends and long gaps, in phase.

A predictor that is shown a missing end has to guess where the present is, and one that sees a gap where its last
seasons should be has nothing to repeat. So a history ends with its last value (the steps between it and the window's
end are forecast too, and cut off), and a gap longer than all that follows it is filled with what the predictor itself
says of it from the values before.

Axes: B windows, T context steps, H horizon steps, V variates, R rows (windows, some of them cut earlier), M steps.
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

BATCH_VALUES = 2**24  # most values in one batch (128 MiB in float64), however long the histories are
LONG = 8  # steps of a gap from which on it is filled: models see through shorter ones
# What a batch holds of the past, and what it knows of the future of the same.
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
    """What ``predictor.predict`` says of windows without holes; with holes, what it says past them.

    Args:
        predictor: a model or a baseline.
        batch: windows, without their future. They may be longer than the predictor's context, so that what it is
            shown reaches as far back as of a window without holes.
        levels: ascending quantile levels.
        wanted: variates whose forecasts are asked for; those of the others may be anything. None: all.

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
    """The same, whatever the predictor says."""
    if bool(batch.past_observed.all()):
        return predictor.predict(last_steps(batch, predictor.context), levels)
    variates = batch.past.shape[2]
    # Another package's predictor may not say; then every variate keeps its company.
    if variates > 1 and not getattr(predictor, "joint", True):
        asked = None if wanted is None else wanted.reshape(-1, 1)
        alone = forecast_windows(predictor, univariate(batch), levels, asked)
        mean, quantiles = (x.squeeze(2).unflatten(0, (-1, variates)) for x in (alone.mean, alone.quantiles))
        return Forecast(mean.transpose(1, 2), quantiles.transpose(1, 2), alone.levels)
    missing_BV = missing_end(batch.past_observed)
    if wanted is None:
        wanted = torch.ones_like(missing_BV, dtype=torch.bool)
    if not bool(missing_BV[wanted].any()):
        return predictor.predict(last_steps(fill_gaps(predictor, batch, wanted), predictor.context), levels)
    shape = len(batch), batch.horizon, variates
    mean = torch.zeros(shape, dtype=torch.float64)
    quantiles = torch.zeros((*shape, len(levels)), dtype=torch.float64)
    missing_BV = torch.where(wanted, missing_BV, -1)
    for row_R, cut_R, mine_RV, part in earlier(batch, missing_BV, missing_BV, batch.horizon, len(levels)):
        ahead = predictor.predict(last_steps(fill_gaps(predictor, part, mine_RV), predictor.context), levels)
        for r, v in mine_RV.nonzero().tolist():
            row, steps = int(row_R[r]), slice(int(cut_R[r]), int(cut_R[r]) + batch.horizon)
            mean[row, :, v], quantiles[row, :, v] = ahead.mean[r, steps, v], ahead.quantiles[r, steps, v]
    return Forecast(mean, quantiles, tuple(levels))


def missing_end(observed: Bool[Tensor, "B T V"]) -> Int[Tensor, "B V"]:
    """Steps after the last observed one; 0 where nothing is observed."""
    count = observed.flip(1).int().argmax(dim=1)
    return torch.where(observed.any(dim=1), count, 0)


def latest_gap(observed: Bool[Tensor, "B T V"]) -> tuple[Int[Tensor, "B V"], Int[Tensor, "B V"]]:
    """Begin and length of the last gap that is longer than all that follows it, and long; 0 and 0 where none is.

    What is missing before the first value and after the last one is no gap.
    """
    steps = observed.shape[1]
    time = torch.arange(steps, device=observed.device)[None, :, None]
    seen = torch.where(observed, time, -1).cummax(dim=1).values
    before = F.pad(seen[:, :-1], (0, 0, 1, 0), value=-1)  # the observed step before each
    length = torch.where(observed & (before >= 0), time - before - 1, 0)
    end = torch.where((length >= LONG) & (length > steps - time), time, 0).amax(dim=1)
    size = length.gather(1, end[:, None])[:, 0]
    return torch.where(end > 0, end - size, 0), torch.where(end > 0, size, 0)


def history_of(predictor: Predictor, series: SeriesSet) -> int:
    """Steps of context that windows at the end of every series need for ``forecast_windows``.

    As many as the predictor looks at, and more where an end is missing or a gap is filled.
    """
    lengths = item_lengths(series)
    if predictor.context is None:
        return int(lengths.max())
    needed = predictor.context
    if np.isnan(series.values).any():
        for i, length in enumerate(lengths):
            needed = max(needed, *(history_needed(column, predictor.context) for column in series.item(i)[:length].T))
    return needed


def history_needed(values: Float[np.ndarray, " rows"], context: int) -> int:
    """Rows at the end of a series that hold ``context`` rows besides a missing end and the gaps that are filled.

    Args:
        values: one series, NaN where missing.
        context: rows that a predictor looks at.
    """
    seen = np.flatnonzero(~np.isnan(values))
    if not len(seen):
        return context
    length, follows = np.diff(seen) - 1, seen[-1] + 1 - seen[1:]
    filled = np.where((length >= LONG) & (length > follows), length, 0)[::-1]
    # From the end on: a gap counts if the rows after it do not make up the context.
    reached = follows[::-1] - (np.cumsum(filled) - filled) < context
    return context + len(values) - 1 - int(seen[-1]) + int(filled[reached].sum())


def fill_gaps(predictor: Predictor, batch: Batch, wanted: Bool[Tensor, "B V"]) -> Batch:
    """The windows with the median forecast of every gap of the wanted variates that is longer than all after it."""
    while True:
        begin_BV, length_BV = latest_gap(batch.past_observed)
        length_BV = torch.where(wanted, length_BV, 0)
        if not bool(length_BV.any()):
            return batch
        past, observed, steps = batch.past.clone(), batch.past_observed.clone(), batch.past.shape[1]
        cut_BV = torch.where(length_BV > 0, steps - begin_BV, -1)
        for row_R, cut_R, mine_RV, part in earlier(batch, cut_BV, length_BV, 0, 1):
            median = forecast_windows(predictor, part, (0.5,), mine_RV).quantiles[..., 0]
            for r, v in mine_RV.nonzero().tolist():
                row, begin = int(row_R[r]), steps - int(cut_R[r])
                place = slice(begin, begin + int(length_BV[row, v]))
                past[row, place, v] = median[r, : place.stop - begin, v].to(past)
                observed[row, place, v] = True
        batch = replace(batch, past=past, past_observed=observed)


def earlier(
    batch: Batch, cut_BV: Int[Tensor, "B V"], extra_BV: Int[Tensor, "B V"], horizon: int, levels: int
) -> Iterator[tuple[Int[Tensor, " R"], Int[Tensor, " R"], Bool[Tensor, "R V"], Batch]]:
    """Windows as they were some steps ago: their rows, those steps, the variates that are meant, the windows.

    Every variate is meant once. The horizon grows in powers of two, which makes few batches of many windows and does
    not depend on the other series of a batch.

    Args:
        batch: windows.
        cut_BV: how many steps ago each variate is to be seen; below 0: not at all.
        extra_BV: how many steps each is to be forecast beyond ``horizon``, at least.
        horizon: steps to forecast.
        levels: quantile levels that will be asked for.
    """
    grown_BV = torch.where(extra_BV > 0, 2 ** (extra_BV.clamp(min=1) - 0.5).log2().ceil().long().clamp(min=0), 0)
    row_BV = torch.arange(len(batch), device=cut_BV.device)[:, None].expand_as(cut_BV)
    triple_P3 = torch.stack([row_BV, cut_BV, grown_BV], -1)[cut_BV >= 0].unique(dim=0)
    for grown in triple_P3[:, 2].unique().tolist():
        row_P, cut_P, _ = triple_P3[triple_P3[:, 2] == grown].unbind(1)
        mine_PV = (cut_BV[row_P] == cut_P[:, None]) & (grown_BV[row_P] == grown)
        values = (batch.past.shape[1] + (horizon + grown) * levels) * batch.past.shape[2]
        for some in torch.arange(len(row_P), device=row_P.device).split(max(1, BATCH_VALUES // values)):
            part = moved_back(batch, row_P[some], cut_P[some], horizon + grown)
            yield row_P[some], cut_P[some], mine_PV[some], part


def moved_back(batch: Batch, row_R: Int[Tensor, " R"], cut_R: Int[Tensor, " R"], horizon: int) -> Batch:
    """Some windows of a batch, each as it was so many steps ago; what is known of the future moves with it."""
    steps = batch.past.shape[1]
    time_RM = torch.arange(steps + horizon, device=cut_R.device) - cut_R[:, None]
    moved: dict[str, Any] = {"horizon": horizon, "future": None, "future_observed": None}
    for name, future in HISTORY.items():
        rows = getattr(batch, name)
        if rows is None:
            continue
        if future is not None and getattr(batch, future) is not None:
            rows = torch.cat([rows, getattr(batch, future)], dim=1)
        there_RM = (time_RM >= 0) & (time_RM < rows.shape[1])
        found = rows[row_R[:, None], time_RM.clamp(0, rows.shape[1] - 1)]
        found = torch.where(there_RM[..., None], found, torch.zeros_like(found))
        moved[name] = found[:, :steps]
        if future is not None:
            moved[future] = found[:, steps:]
    return replace(
        batch,
        item=None if batch.item is None else batch.item[row_R],
        cut=None if batch.cut is None else batch.cut[row_R] - cut_R,
        **moved,
    )


def last_steps(batch: Batch, context: int | None) -> Batch:
    """The windows with the last steps of their history alone, if it is longer than that."""
    if context is None or batch.past.shape[1] <= context:
        return batch
    cut: dict[str, Any] = {name: x[:, -context:] for name in HISTORY if (x := getattr(batch, name)) is not None}
    return replace(batch, **cut)


def univariate(batch: Batch) -> Batch:
    """Every variate of every window as a window of its own; they share what else the window holds."""
    variates = batch.past.shape[2]
    own = {name: getattr(batch, name).transpose(1, 2).flatten(0, 1)[..., None] for name in ("past", "past_observed")}
    batch = replace(batch, future=None, future_observed=None)
    shared = {name: x for name, x in vars(batch).items() if isinstance(x, Tensor) and name not in own}
    repeated: dict[str, Any] = {name: x.repeat_interleave(variates, 0) for name, x in shared.items()}
    return replace(batch, **repeated, **own)
