"""Evaluation of any predictor on any series: ``evaluate(predictor, source, profile) -> Report``.

The predictor gets windows in the data's own units without their future. Errors are summed batch by batch in float64, so
that memory does not grow with the number of windows. If not all expected windows are scored, there is no report.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from tsfm_data.errors import check_horizon, check_sizes
from tsfm_data.evaluation.baselines import Predictor, SeasonalNaive, bind
from tsfm_data.evaluation.elements import Elements, seasonal_error
from tsfm_data.evaluation.gaps import BATCH_VALUES, columns_of, forecast_windows
from tsfm_data.evaluation.metrics import Accumulator, get_metric, needed_levels
from tsfm_data.evaluation.profiles import Profile, get_profile
from tsfm_data.evaluation.report import Report, make_row
from tsfm_data.io import SeriesSet, catalog
from tsfm_data.progress import progress
from tsfm_data.windows import Forecast, Split, StandardScaler, Windows, item_lengths

__all__ = ["Predictor", "evaluate", "evaluate_series", "forecast_elements", "pool", "window_scale"]

Source = SeriesSet | str | Path


def evaluate(
    predictor: Predictor,
    source: Source | Sequence[Source],
    profile: str | Profile,
    *,
    horizon: int | None = None,
    batch_size: int = 256,
    levels: Sequence[float] | None = None,
    dataset: str | None = None,
    context: int | None = None,
    per_series: bool = False,
    number: int | None = None,
    step: int | None = None,
) -> Report:
    """Score a predictor under a named protocol.

    Args:
        predictor: a baseline or a model.
        source: series; the name of a data set in the catalogue; or the path of a table. Several are pooled into one
            data set of univariate series, as the Chronos benchmark pools ETTh1 and ETTh2.
        profile: "lsf", "gift", "gift-medium", "gift-long", "chronos", or your own ``Profile``.
        horizon: steps to forecast; None takes the protocol's.
        batch_size: most windows in a batch.
        levels: quantile levels; None takes the protocol's.
        dataset: name in the report, by which the protocol also looks up horizon, season and borders; None takes the
            source's.
        context: history for which an inferred split leaves room; None takes the predictor's. Give a number to score
            several predictors on the same windows.
        per_series: add rows for each series, with its ``item_id``.
        number: windows of each series, counted from its end; None takes the protocol's.
        step: steps from one window to the next; None takes the protocol's.

    Returns:
        One row per metric and frequency.

    Raises:
        InputError: the source cannot be read, or a series is too short for the horizon.
    """
    protocol = get_profile(profile) if isinstance(profile, str) else profile
    if levels is not None:
        protocol = replace(protocol, levels=tuple(sorted(levels)))
    if horizon is not None:
        check_horizon(horizon)
    check_sizes("give windows and step of at least 1", windows=number, step=step)
    protocol = replace(protocol, number=number or protocol.number, step=step or protocol.step)
    sources = [source] if isinstance(source, SeriesSet | str | Path) else list(source)
    sets = [item if isinstance(item, SeriesSet) else catalog.open_source(item) for item in sources]
    series = sets[0] if len(sets) == 1 else pool("+".join(item.name for item in sets), sets)
    if protocol.univariate:
        series = series.univariate()
    name, report = dataset or series.name, Report()
    for freq in dict.fromkeys(series.freqs):
        same = [i for i, item_freq in enumerate(series.freqs) if item_freq == freq]
        part = series if len(same) == len(series) else series.select(same)
        split = None
        if protocol.windows == "rolling":
            steps = horizon or protocol.horizon(name, freq)
            room = context or predictor.context or protocol.context or 1
            split = _published_split(name, part) or Split.infer(item_lengths(part), room, steps)
        report += evaluate_series(predictor, part, protocol, name, horizon, batch_size, split, per_series)
    return report


def _published_split(name: str, series: SeriesSet) -> Split | None:
    """The borders of this data set in the catalogue, or None."""
    borders = catalog.get(name).splits.get("lsf") if name in catalog.names() else None
    return None if borders is None else Split.from_spec(item_lengths(series), borders, origin=f"lsf borders of {name}")


def evaluate_series(
    predictor: Predictor,
    series: SeriesSet,
    profile: Profile,
    dataset: str,
    horizon: int | None = None,
    batch_size: int = 256,
    split: Split | None = None,
    per_series: bool = False,
) -> Report:
    """Score a predictor on series of one frequency; the arguments are those of ``evaluate``.

    Args:
        predictor: a baseline or a model.
        series: series of one frequency, univariate if the protocol requires that.
        profile: the protocol.
        dataset: name in the report.
        horizon: steps to forecast; None takes the protocol's.
        batch_size: most windows in a batch.
        split: borders of rolling windows and of the rows for standardisation; None counts windows from the end.
        per_series: add rows for each series.

    Raises:
        InputError: a series is too short for the horizon.
        RuntimeError: the predictor's forecasts are not finite or of the wrong shape, or a window went missing.
    """
    freq, lengths = series.freqs[0], item_lengths(series)
    notes = [f"{dataset}: {split.describe()}"] if split is not None else []
    if horizon is None:
        horizon = profile.horizon(dataset, freq)
        if profile.natural and 3 <= lengths.min() <= horizon:
            usual, horizon = horizon, int(lengths.min()) // 3
            notes.append(
                f"{dataset}: horizon {horizon}, a third of the shortest series, which the usual {usual} does not fit"
            )
    season = series.season or (series.season_of(freq) if profile.natural else profile.season(dataset, freq))
    predictor = bind(_as_published(predictor, profile), series)
    items, cuts = profile.cuts(dataset, series.item_ids, lengths, horizon, split)
    scaler = StandardScaler.fit_split(series.values, series.offsets, split) if profile.standardise and split else None
    context = _context(predictor, profile, season, int(cuts.max()))
    covariates = predictor.covariates
    windows = Windows(
        series,
        context,
        horizon,
        items,
        cuts,
        marks=predictor.marks,
        season=season,
        dtype=torch.float64,
        covariates=covariates,
    )
    metrics = [replace(get_metric(text, profile.levels), name=name) for name, text in profile.metrics.items()]
    scaled = any("scaled" in statistic for metric in metrics for statistic, _ in metric.keys)
    scale = window_scale(series, items, cuts, season, scaler) if scaled else None
    whole, each = Accumulator(metrics), Accumulator(metrics, len(series)) if per_series else None
    scored, points = 0, np.zeros(len(series), dtype=np.int64)
    size = max(1, min(batch_size, BATCH_VALUES // ((context + horizon) * columns_of(predictor, series))))
    for elements in forecast_elements(predictor, windows, size, needed_levels(metrics, (0.5,)), scaler):
        now = slice(scored, scored + len(elements.label))
        if scale is not None:
            elements = replace(elements, scale=scale[now, None])
        whole.update(elements)
        if each is not None:
            each.update(elements, items[now, None, None])
        np.add.at(points, items[now], np.isfinite(elements.label).sum(axis=(1, 2)))
        scored += len(elements.label)
    if scored != len(items):
        raise RuntimeError(f"{dataset}: expected {len(items)} windows, scored {scored}")
    labels: dict[str, Any] = {"dataset": dataset, "model": predictor.name, "profile": profile.name, "freq": freq}
    labels |= {"horizon": horizon, "season": season, "windows": len(items)}
    rows = _rows(whole, labels, points.sum(keepdims=True))
    if each is not None:
        rows += _rows(each, labels, points, series.item_ids, np.bincount(items, minlength=len(series)))
    if season != series.season_of(freq):
        notes.append(
            f"{dataset}: season {season} as in profile {profile.name}; that of the calendar is "
            f"{series.season_of(freq)} (profile table, or --season)"
        )
    return Report(rows, notes)


def _as_published(predictor: Predictor, profile: Profile) -> Predictor:
    """Naive forecasts with or without intervals, as the protocol publishes them."""
    if isinstance(predictor, SeasonalNaive) and not profile.naive_intervals:
        return replace(predictor, intervals=False)
    return predictor


def _context(predictor: Predictor, profile: Profile, season: int, longest: int) -> int:
    """History steps that the predictor is given."""
    if predictor.context is not None:
        return predictor.context
    return longest if profile.context is None else max(profile.context, season)


def forecast_elements(
    predictor: Predictor,
    windows: Windows,
    batch_size: int,
    levels: tuple[float, ...],
    scaler: StandardScaler | None = None,
) -> Iterator[Elements]:
    """Forecasts and true values of each batch, on the scale of the scores.

    Raises:
        RuntimeError: the forecasts are not finite or of the wrong shape, or a window ends beyond its series.
    """
    dtype = predictor.dtype
    batches = windows.batches(batch_size)
    for batch in progress(batches, f"evaluate {predictor.name}", -(-len(windows) // batch_size)):
        label, observed = batch.future, batch.future_observed
        if label is None or observed is None:
            raise RuntimeError("evaluation windows must end within their series")
        blind = replace(batch, future=None, future_observed=None).to(dtype)
        with torch.no_grad():
            # The published naive forecasts repeat the last value if the end is missing.
            published = isinstance(predictor, SeasonalNaive)
            forecast = predictor.predict(blind, levels) if published else forecast_windows(predictor, blind, levels)
        _check(forecast, predictor, tuple(label.shape), levels)
        truth = np.where(observed.numpy(), label.numpy(), np.nan)
        mean, quantiles = _float64(forecast.mean), _float64(forecast.quantiles)
        if scaler is not None:
            truth, mean = scaler.transform(truth), scaler.transform(mean)
            quantiles = scaler.transform(quantiles, axis=-2)
        yield Elements(truth, quantiles, levels, mean)


def _float64(values: Tensor) -> np.ndarray:
    return values.detach().to("cpu", torch.float64).numpy()


def _check(forecast: Forecast, predictor: Predictor, shape: tuple[int, ...], levels: tuple[float, ...]) -> None:
    """Raise an error if a forecast cannot be scored; no window is left out."""
    if tuple(forecast.mean.shape) != shape or tuple(forecast.quantiles.shape) != (*shape, len(levels)):
        raise RuntimeError(
            f"model {predictor.name!r}: expected forecasts of shape {shape} with {len(levels)} quantiles, found "
            f"{tuple(forecast.mean.shape)} and {tuple(forecast.quantiles.shape)}"
        )
    if not (torch.isfinite(forecast.mean).all() and torch.isfinite(forecast.quantiles).all()):
        raise RuntimeError(f"model {predictor.name!r}: expected finite forecasts, found NaN or infinity")


def window_scale(
    series: SeriesSet,
    items: Int64[np.ndarray, " W"],
    cuts: Int64[np.ndarray, " W"],
    season: int,
    scaler: StandardScaler | None = None,
) -> Float64[np.ndarray, "W V"]:
    """In-sample seasonal error of the whole history before each window, on the scale of the scores."""
    scale = np.empty((len(items), len(series.variates)))
    bounds = np.searchsorted(items, np.arange(len(series) + 1))  # windows are in the order of their series
    for i, (first, last) in enumerate(pairwise(bounds)):
        if first < last:
            values = series.item(i) if scaler is None else scaler.transform(series.item(i))
            scale[first:last] = seasonal_error(values, season, cuts[first:last])
    return scale


def _rows(
    accumulator: Accumulator,
    labels: dict[str, Any],
    points: Int64[np.ndarray, " G"],
    item_ids: Sequence[str] = (),
    windows: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    values, undefined = accumulator.values(), accumulator.undefined()
    rows = []
    for group in range(accumulator.groups):
        where = dict(labels)
        if windows is not None:
            where |= {"item_id": item_ids[group], "windows": int(windows[group])}
        for name in values:
            count, lost = int(points[group]), int(undefined[name][group])
            rows.append(make_row(where, name, float(values[name][group]), count, lost))
    return rows


def pool(name: str, sets: Sequence[SeriesSet]) -> SeriesSet:
    """Every variate of several sets as one set of univariate series.

    Args:
        name: name of the pooled set.
        sets: the sets; covariates and static features are left out.
    """
    parts = [part.univariate() for part in sets]
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    values = np.concatenate([part.values for part in parts])
    return SeriesSet(
        name=name,
        source=", ".join(part.source for part in parts),
        values=values,
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        item_ids=tuple(f"{part.name}/{item}" for part in parts for item in part.item_ids),
        variates=parts[0].variates,
        starts=np.concatenate([part.starts for part in parts]),
        freqs=tuple(freq for part in parts for freq in part.freqs),
        past=np.empty((len(values), 0)),
        past_names=(),
        known=np.empty((len(values), 0)),
        known_names=(),
        future_rows=np.concatenate([part.future_rows for part in parts]),
        static=None,
    )
