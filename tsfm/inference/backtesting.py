"""Backtests: several models forecast the last windows of every series of a table.

Axes: M members, N windows, H horizon steps, S series (every variate of every item), K the mean and the quantiles.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64

from tsfm import training
from tsfm.inference.choice import CHOICES, Backtest
from tsfm.inference.predictors import load_predictor
from tsfm.inference.selection import Member
from tsfm.models import Forecaster
from tsfm.weights import default, local_folder
from tsfm_data.errors import InputError, check_horizon, check_sizes
from tsfm_data.evaluation import (
    BASELINES,
    BATCH_VALUES,
    LEVELS,
    Predictor,
    bind,
    columns_of,
    forecast_elements,
    window_scale,
)
from tsfm_data.io import SeriesSet
from tsfm_data.windows import Windows, item_lengths

LEAST_HISTORY = 2  # fewest rows before the first window, so that its seasonal error is defined
FEW_WINDOWS, VALUES = 8, 20  # default number of windows; for few series, of windows times series
MOST_FITTED = 40_000  # rows in all windows; with more, statistical models are not among the defaults


def backtest(
    series: SeriesSet,
    horizon: int,
    models: Sequence[str | Path | Predictor] | None = None,
    windows: int | None = None,
    step: int | None = None,
    refit: bool = False,
    batch_size: int = 256,
) -> Backtest:
    """Forecast the last windows of every series with several models.

    Args:
        series: a table.
        horizon: steps to forecast in each window.
        models: names, folders, or predictors; by default the zero-shot model that ships, naive and seasonal naive, and
            AutoETS and AutoTheta if they are installed and would not be fitted to more than ``MOST_FITTED`` rows.
        windows: number of windows, the last of which ends with the series; by default enough to choose, score and
            calibrate if they fit into half of the shortest series.
        step: steps from one window to the next; by default the horizon.
        refit: fine-tune pretrained models before each window on the rows before it, without covariates. Baselines are
            always fitted to each window.
        batch_size: largest number of windows per batch.

    Raises:
        InputError: a number below 1, an unknown model, or a series too short.
    """
    check_horizon(horizon, option="--horizon")
    check_sizes(windows=windows, step=step, batch_size=batch_size)
    step = step or horizon
    if refit:
        series = training.without_covariates(series)
    count, names = count_windows(series, horizon, windows, step), len(series.univariate())
    notes: tuple[str, ...] = ()
    if models is None:
        models, notes = default_models(count * names, int(item_lengths(series).max()))
    members = [member_of(model) for model in models]
    for member in members:
        if member.name in CHOICES or sum(other.name == member.name for other in members) > 1:
            raise InputError(f"expected models with different names, found {member.name} twice: leave one out")
    label, scale = np.empty((count, horizon, names)), np.empty((count, 1, names))
    forecasts, seconds = np.empty((len(members), *label.shape, 1 + len(LEVELS))), []
    for m, member in enumerate(members):
        begin = time.perf_counter()
        for freq in dict.fromkeys(series.freqs):  # a batch has one season and one set of calendar features
            items = np.flatnonzero([other == freq for other in series.freqs])
            part = series.select(items.tolist())
            cuts = item_lengths(part)[:, None] - horizon - step * np.arange(count)[::-1]
            place = (items[:, None] * len(series.variates) + np.arange(len(series.variates))).ravel()
            label[:, :, place], scale[:, :, place], forecasts[m][:, :, place] = forecast_cuts(
                member.predictor, part, horizon, cuts, refit, batch_size
            )
        seconds.append(time.perf_counter() - begin)
    return Backtest(series, horizon, step, tuple(members), label, scale, forecasts, tuple(seconds), refit, notes)


def without_short(series: SeriesSet, horizon: int) -> SeriesSet:
    """The series that hold a window, with a note of those that do not; all of them if none does."""
    long = item_lengths(series) >= horizon + LEAST_HISTORY
    if long.all() or not long.any():
        return series
    names = [name for name, enough in zip(series.item_ids, long, strict=True) if not enough]
    note = f"{len(names)} of {len(series)} series left out, too short for a horizon of {horizon}: "
    note += ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return replace(series.select(np.flatnonzero(long).tolist()), notes=(*series.notes, note))


def count_windows(series: SeriesSet, horizon: int, windows: int | None, step: int) -> int:
    """The number of windows.

    Raises:
        InputError: the shortest series is too short for them.
    """
    lengths = item_lengths(series)
    if not len(lengths):
        raise InputError(f"expected at least one series in {series.source}, found none: give a table with rows")
    shortest, needed = int(lengths.argmin()), horizon + LEAST_HISTORY
    rows, name = int(lengths[shortest]), series.item_ids[shortest]
    if rows < needed:
        raise InputError(
            f"expected at least {needed} rows in every series of {series.source} for a horizon of {horizon}, found "
            f"{rows} in {name!r}: give a smaller horizon, or leave short series out (--on-bad-series skip)"
        )
    fit = 1 + (rows - needed) // step
    if windows is None:
        wanted = max(FEW_WINDOWS, -(-VALUES // len(series.univariate())))
        return min(wanted, fit, max(1, 1 + (rows // 2 - horizon) // step))
    if windows > fit:
        raise InputError(
            f"expected at most {fit} windows, found {windows}: no more fit into the {rows} rows of {name!r} ({horizon} "
            f"steps each, {step} steps apart); give fewer windows, a smaller step or a smaller horizon"
        )
    return windows


def default_models(fits: int, rows: int) -> tuple[list[str], tuple[str, ...]]:
    """The models that are compared by default, and notes about them.

    Args:
        fits: number of windows of all series, to each of which a statistical model is fitted.
        rows: rows of the longest series.
    """
    models, statistical = [default(), "seasonal-naive", "naive"], ["auto-ets", "auto-theta"]
    if find_spec("statsforecast") is None:
        return models, ()
    if fits * rows > MOST_FITTED:
        left = f"{' and '.join(statistical)} are left out, as {fits:,} fits would take long; --models can add them"
        return models, (left,)
    return models + statistical, ()


def member_of(model: str | Path | Predictor) -> Member:
    """A member of a backtest, from a name, a folder or a predictor.

    Raises:
        InputError: no such model.
    """
    if not isinstance(model, str | Path):
        return Member(model.name, model)
    name = str(model)
    return Member(name, load_predictor(name), known=name in BASELINES or local_folder(name) is not None)


def forecast_cuts(
    predictor: Predictor,
    series: SeriesSet,
    horizon: int,
    cuts: Int64[np.ndarray, "items N"],
    refit: bool,
    batch_size: int,
) -> tuple[Float64[np.ndarray, "N H S"], Float64[np.ndarray, "N 1 S"], Float64[np.ndarray, "N H S K"]]:
    """True values in windows of series of one frequency, the seasonal errors before them, and the forecasts.

    Args:
        predictor: a model or a baseline.
        series: series of one frequency.
        horizon: steps to forecast.
        cuts: first row of each window of each item.
        refit: fine-tune a pretrained model on the rows before each window.
        batch_size: largest number of windows per batch.
    """
    if refit and isinstance(predictor, Forecaster):
        parts = []
        for window in cuts.T:
            tuned = training.finetune(predictor, training.truncate(series, window), horizon).model
            parts.append(forecast_cuts(tuned, series, horizon, window[:, None], False, batch_size))
        label, scale, values = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return label, scale, values
    items = np.repeat(np.arange(len(cuts)), cuts.shape[1])
    context = predictor.context or int(cuts.max())
    options: dict[str, Any] = {"marks": predictor.marks, "covariates": predictor.covariates, "dtype": torch.float64}
    windows = Windows(series, context, horizon, items, cuts.ravel(), **options)
    size = max(1, min(batch_size, BATCH_VALUES // ((context + horizon) * columns_of(predictor, series))))
    batches = list(forecast_elements(bind(predictor, series), windows, size, LEVELS))
    label = np.concatenate([batch.label for batch in batches])
    mean = np.concatenate([batch.forecast("mean") for batch in batches])
    values = np.concatenate([mean[..., None], np.concatenate([batch.quantiles for batch in batches])], axis=-1)
    scale = window_scale(series, items, cuts.ravel(), windows.season)[:, None]

    def by_window(rows: np.ndarray) -> np.ndarray:
        """From [items x N, H, V, ...] to [N, H, items x V, ...]."""
        apart = np.moveaxis(rows.reshape(*cuts.shape, *rows.shape[1:]), 0, 2)
        return apart.reshape(*apart.shape[:2], -1, *rows.shape[3:])

    return by_window(label), by_window(scale), by_window(values)
