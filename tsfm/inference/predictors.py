"""Tables of forecasts for series, with any model or baseline by its name."""

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64, Int

from tsfm.inference.selection import Selection, selection_folder
from tsfm.models import Forecaster
from tsfm.weights import load_named
from tsfm_data.errors import InputError, unknown_name
from tsfm_data.evaluation import (
    BASELINES,
    BATCH_VALUES,
    Predictor,
    bind,
    columns_of,
    forecast_windows,
    get_baseline,
    history_of,
)
from tsfm_data.io import Parts, SeriesSet
from tsfm_data.progress import progress
from tsfm_data.windows import Batch, Forecast, Windows, item_lengths

LONGEST_CONTEXT = 2048  # of windows before their ends, for predictors that take a history of any length
VARIATES_AT_ONCE = 4096  # variates that are forecast at a time if each is forecast by itself


def load_predictor(model: str, effort: Literal["fast", "best"] = "fast") -> Predictor:
    """A baseline or a model by its name, or the model of a folder.

    Args:
        model: "naive", "seasonal-naive", ..., a name of ``tsfm weights list``, or a folder with ``config.json`` and
            ``model.safetensors``, or the folder of a training run or of a backtest's choice.
        effort: "fast", or "best": zero-shot models then average two forecasts, which takes twice as long.

    Raises:
        InputError: no such name, folder or effort; similar names are listed.
    """
    if effort not in ("fast", "best"):
        raise unknown_name("effort", str(effort), ("fast", "best"))
    baseline = get_baseline(model)
    if baseline is not None:
        return baseline
    folder = selection_folder(model)
    predictor = load_named(model, BASELINES) if folder is None else Selection.load(folder)
    set_effort(predictor, effort)
    return predictor


def set_effort(predictor: Predictor, effort: Literal["fast", "best"]) -> None:
    """Set the effort of a model, or of the members of a choice; baselines have none."""
    if isinstance(predictor, Forecaster):
        predictor.effort = effort
    elif isinstance(predictor, Selection):
        for member in predictor.members:
            set_effort(member.predictor, effort)


def model_key(predictor: Predictor, name: str | None) -> list[Any]:
    """What tells whether a model is the same: its name, and a digest of its weights, or its files.

    Args:
        predictor: the model.
        name: the name or folder that it was loaded by.
    """
    if isinstance(predictor, Forecaster):
        digest = hashlib.sha256()
        for key, tensor in sorted(predictor.state_dict().items()):
            digest.update(key.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return [predictor.name, digest.hexdigest()]
    files = sorted(Path(name or "").rglob("*")) if name and Path(name).is_dir() else []
    return [predictor.name, [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]]


def forecast_frame(
    predictor: Predictor,
    series: SeriesSet,
    horizon: int,
    levels: Sequence[float],
    batch_size: int = 256,
    bar: bool = True,
    held_out: bool = False,
) -> pd.DataFrame:
    """Forecast every series past its end.

    Args:
        predictor: a model or a baseline.
        series: histories; the variates of one item are forecast together.
        horizon: steps to forecast.
        levels: ascending quantile levels.
        batch_size: most windows per batch; batches of long windows or many variates are smaller.
        bar: whether long work shows a progress bar.
        held_out: forecast the last ``horizon`` rows of each series from those before, as evaluations do: known
            covariates may have gaps there.

    Returns:
        Columns item_id, timestamp, mean and one per level, named by it; in the order and units of the series.

    Raises:
        InputError: as ``forecast_ends``.
    """
    history = replace(series, future_rows=series.future_rows + horizon) if held_out else series
    frame = _frame(history, horizon)  # before the forecasts: a horizon past the calendar is refused at once
    rows = forecast_ends(predictor, series, horizon, levels, batch_size, bar=bar, held_out=held_out)
    return _filled(frame, history, rows, levels)


def forecast_ends(
    predictor: Predictor,
    series: SeriesSet,
    horizon: int,
    levels: Sequence[float],
    batch_size: int = 256,
    season: int | None = None,
    bar: bool = True,
    held_out: bool = False,
) -> list[Float64[np.ndarray, "H V K"]]:
    """The forecasts of ``forecast_frame`` as one array per item: the mean, then the quantiles.

    Args:
        predictor, series, horizon, levels, batch_size: as there.
        season: steps per season; None takes it from the frequency.
        bar, held_out: as there.

    Raises:
        InputError: no series, a series without rows, or known covariates that do not cover the horizon.
    """
    back = horizon if held_out else 0
    lengths = item_lengths(series) - back
    if len(lengths) == 0:
        raise InputError(f"expected at least one series in {series.source}, found none: give a table with rows")
    if lengths.min() < 1:
        empty = series.item_ids[int(lengths.argmin())]
        raise InputError(
            f"expected at least one value in every series of {series.source}, found none in {empty!r}: leave it out"
        )
    arrays: dict[int, np.ndarray] = {}
    for freq in dict.fromkeys(series.freqs):  # a batch has one season and one set of calendar features
        items = [i for i, item_freq in enumerate(series.freqs) if item_freq == freq]
        part = series.select(items) if len(items) < len(series) else series
        ends = item_lengths(part) - back
        bound = bind(predictor, part)
        windows = Windows(
            part,
            history_of(predictor, part),
            horizon,
            np.arange(len(part)),
            ends,
            marks=predictor.marks,
            season=season,
            dtype=predictor.dtype,
            covariates=predictor.covariates,
        )
        together = (
            len(part.variates) if getattr(predictor, "joint", True) else min(len(part.variates), VARIATES_AT_ONCE)
        )
        columns = together + columns_of(predictor, part) - len(part.variates)
        size = max(1, min(batch_size, BATCH_VALUES // ((windows.context + horizon * len(levels)) * columns)))
        indices = np.split(np.arange(len(part)), np.arange(size, len(part), size))
        batches = progress(indices, f"forecast ({predictor.name})", shown=bar)
        forecasts = (_forecast(bound, windows, index, together, levels) for index in batches)
        arrays |= zip(items, (row for forecast in forecasts for row in forecast), strict=True)
    return [arrays[i] for i in range(len(series))]


def _forecast(
    predictor: Predictor, windows: Windows, index: Int[np.ndarray, " B"], together: int, levels: Sequence[float]
) -> Float64[np.ndarray, "B H V K"]:
    """Mean and quantiles of some windows, computed for ``together`` variates at a time."""
    width = len(windows.variates)
    parts = [np.arange(begin, min(begin + together, width)) for begin in range(0, width, together)]
    batches = (windows.batch(index, part if len(parts) > 1 else None) for part in parts)
    blind = (replace(batch, future=None, future_observed=None) for batch in batches)
    rows = [_rows(forecast_windows(predictor, batch, levels)) for batch in blind]
    return rows[0] if len(rows) == 1 else np.concatenate(rows, axis=2)


def quantiles_at(
    predictor: Predictor, windows: Windows, levels: Sequence[float], batch_size: int
) -> Float64[np.ndarray, "windows H V Q"]:
    """Quantiles of forecasts at the cuts of windows, which need not be the ends of their series.

    Args:
        predictor: a model or a baseline, bound to the series of the windows.
        windows: the windows, at least one; what they hold of the future is hidden.
        levels: ascending quantile levels.
        batch_size: most windows per batch; batches of long windows or many variates are smaller.
    """
    values = (windows.context + windows.horizon * len(levels)) * columns_of(predictor, windows.series)
    size, parts = max(1, min(batch_size, BATCH_VALUES // values)), []
    for first in range(0, len(windows), size):
        batch = windows.batch(np.arange(first, min(first + size, len(windows))))
        blind = replace(batch, future=None, future_observed=None)
        parts.append(forecast_windows(predictor, blind, levels).quantiles.double().numpy())
    return np.concatenate(parts)


def with_known_ahead(series: SeriesSet, steps: int) -> SeriesSet:
    """The series with known covariates for some steps past the end; where they are not known, the last values.

    No value there is judged, so this only completes blocks.
    """
    missing = np.maximum(steps - series.future_rows, 0)
    ends = series.offsets[1:]
    rows = np.concatenate(
        [
            np.r_[first:end, np.full(more, max(first, end - 1))]
            for first, end, more in zip(series.offsets, ends, missing, strict=False)
        ]
    ).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(np.diff(series.offsets) + missing)]).astype(np.int64)
    arrays: dict[str, Any] = {name: getattr(series, name)[rows] for name in ("values", "past", "known")}
    return replace(series, offsets=offsets, future_rows=series.future_rows + missing, **arrays)


def forecast_table(series: SeriesSet, horizon: int, forecasts: Sequence[Forecast]) -> pd.DataFrame:
    """Forecasts past the end of every series as a table.

    Args:
        series: the series.
        horizon: steps of the forecasts.
        forecasts: batches that together contain one window per series, in order and in the units of the series.

    Returns:
        As ``forecast_frame``.
    """
    rows = [row for forecast in forecasts for row in _rows(forecast)]
    return _filled(_frame(series, horizon), series, rows, forecasts[0].levels)


def _rows(forecast: Forecast) -> Float64[np.ndarray, "B H V K"]:
    """Mean and quantiles of every window."""
    return torch.cat([forecast.mean.unsqueeze(-1), forecast.quantiles], dim=-1).double().numpy()


def _frame(series: SeriesSet, horizon: int) -> pd.DataFrame:
    """The columns item_id and timestamp of forecasts.

    Raises:
        InputError: a horizon past the calendar.
    """
    ahead: dict[tuple[object, str, int], np.ndarray] = {}  # most series of a table begin and end together
    times = []
    for i, key in enumerate(
        zip(series.starts, series.freqs, (series.length(i) for i in range(len(series))), strict=True)
    ):
        if key not in ahead:
            ahead[key] = series.timestamps(i, extra=horizon)[key[2] : key[2] + horizon].to_numpy()
        times += [ahead[key]] * len(series.variates)
    stamps = np.concatenate(times) if times else np.zeros(0, "datetime64[ns]")
    return pd.DataFrame({"item_id": np.repeat(series.univariate().item_ids, horizon), "timestamp": stamps})


def _filled(
    frame: pd.DataFrame, series: SeriesSet, rows: Sequence[np.ndarray], levels: Sequence[float]
) -> pd.DataFrame:
    """Those columns with the values of one array [H, V, 1 + Q] per item."""
    table = np.concatenate([row.transpose(1, 0, 2).reshape(-1, 1 + len(levels)) for row in rows])
    if (np.abs(table) == np.finfo(table.dtype).max).any():
        warnings.warn(
            f"{series.source}: forecasts reach beyond the largest number of double precision and end there: give the "
            "values in a larger unit",
            stacklevel=2,
        )
    values = pd.DataFrame(table, columns=["mean", *(f"{level:g}" for level in levels)])
    return pd.concat([frame, values], axis=1)


def check_observed(series: SeriesSet | Parts) -> str | None:
    """A warning, in one line, about series whose values are all missing, or None.

    Args:
        series: the series to forecast.
    """
    empty = series.unobserved()
    if not empty:
        return None
    total = (series.series if isinstance(series, Parts) else len(series)) * len(series.variates)
    named = ", ".join(map(repr, empty[:3])) + (", ..." if len(empty) > 3 else "")
    return f"{len(empty)} of {total} series have no value at all, so their forecasts mean nothing: {named}"


@dataclass(frozen=True)
class WithoutCovariates:
    """A predictor without its covariates, to measure their benefit."""

    predictor: Predictor
    covariates = False

    @property
    def name(self) -> str:
        """The name of the predictor, with a suffix."""
        return f"{self.predictor.name} without covariates"

    @property
    def context(self) -> int | None:
        """That of the predictor."""
        return self.predictor.context

    @property
    def marks(self) -> str | None:
        """That of the predictor."""
        return self.predictor.marks

    @property
    def dtype(self) -> torch.dtype:
        """That of the predictor."""
        return self.predictor.dtype

    @property
    def joint(self) -> bool:
        """That of the predictor."""
        return getattr(self.predictor, "joint", True)

    @property
    def handles_gaps(self) -> bool:
        """That of the predictor."""
        return getattr(self.predictor, "handles_gaps", False)

    def bind(self, series: SeriesSet) -> "WithoutCovariates":
        """As the predictor."""
        return WithoutCovariates(bind(self.predictor, series))

    def predict(self, batch: Batch, levels: Sequence[float]) -> Forecast:
        """As the predictor, for batches without covariates."""
        return self.predictor.predict(batch, levels)


def check_covariates(predictor: Predictor, series: SeriesSet | Parts) -> str | None:
    """A warning, in one line, about covariates that are ignored or missing, or None.

    Args:
        predictor: a model or a baseline.
        series: the series to forecast.
    """
    given = [*series.past_names, *series.known_names]
    if given and not predictor.covariates:
        return f"model {predictor.name} takes no covariates: {', '.join(given)} ignored"
    data = predictor.training_data if isinstance(predictor, Forecaster) else None
    missing = [name for name in (data.past_covariates + data.known_covariates if data else ()) if name not in given]
    if missing:
        return f"model {predictor.name} was trained with the covariates {', '.join(missing)}, which are not given"
    return None
