"""From series to a table of forecasts, with any predictor by its name."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64

from tsfm.inference.selection import Selection, selection_folder
from tsfm.models import Forecaster
from tsfm.weights import load_named
from tsfm_data.errors import InputError
from tsfm_data.evaluation import BASELINES, BATCH_VALUES, Predictor, bind, forecast_windows, get_baseline, history_of
from tsfm_data.io import SeriesSet
from tsfm_data.windows import Batch, Forecast, Windows, item_lengths


def load_predictor(model: str) -> Predictor:
    """A baseline by its name, a model that ships with the package or was pulled, or the model of a folder.

    Args:
        model: "naive", "seasonal-naive", ..., a name of ``tsfm weights list``, or a folder with ``config.json`` and
            ``model.safetensors``; the folder of a training run will do, too, and so will that of a backtest's choice.

    Raises:
        InputError: neither; near names are listed.
    """
    baseline = get_baseline(model)
    if baseline is not None:
        return baseline
    folder = selection_folder(model)
    return load_named(model, BASELINES) if folder is None else Selection.load(folder)


def forecast_frame(
    predictor: Predictor, series: SeriesSet, horizon: int, levels: Sequence[float], batch_size: int = 256
) -> pd.DataFrame:
    """Forecast every series past its end.

    Args:
        predictor: a model or a baseline.
        series: histories; those of one item are forecast together, so a multivariate model sees all of its variates.
        horizon: steps to forecast.
        levels: ascending quantile levels.
        batch_size: most windows forecast at once; long ones or many variates are forecast in smaller batches.

    Returns:
        Columns item_id, timestamp, mean and one a level, named by it; item by item, in the units of the series.

    Raises:
        InputError: as ``forecast_ends``.
    """
    return _frame(series, horizon, forecast_ends(predictor, series, horizon, levels, batch_size), levels)


def forecast_ends(
    predictor: Predictor,
    series: SeriesSet,
    horizon: int,
    levels: Sequence[float],
    batch_size: int = 256,
    season: int | None = None,
) -> list[Float64[np.ndarray, "H V K"]]:
    """The forecasts of ``forecast_frame`` as one array per item: the mean, then the quantiles.

    Args:
        predictor, series, horizon, levels, batch_size: as there.
        season: steps in a season; None takes it from the frequency.

    Raises:
        InputError: no series, a series without any value, or, for a predictor that takes covariates, one whose known
            covariates do not cover the horizon.
    """
    lengths = item_lengths(series)
    if len(lengths) == 0:
        raise InputError(f"expected at least one series in {series.source}, found none: give a table with rows")
    if lengths.min() < 1:
        empty = series.item_ids[int(lengths.argmin())]
        raise InputError(
            f"expected at least one value in every series of {series.source}, found none in {empty!r}: leave it out"
        )
    arrays: dict[int, np.ndarray] = {}
    for freq in dict.fromkeys(series.freqs):  # a batch has one season and one set of calendar features
        items = [i for i, other in enumerate(series.freqs) if other == freq]
        part = series.select(items)
        ends = item_lengths(part)
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
        values = (windows.context + horizon * len(levels)) * len(part.variates)
        size = max(1, min(batch_size, BATCH_VALUES // values))
        forecasts = (forecast_windows(bound, batch, levels) for batch in windows.batches(size))
        arrays |= zip(items, (row for forecast in forecasts for row in _rows(forecast)), strict=True)
    return [arrays[i] for i in range(len(series))]


def forecast_table(series: SeriesSet, horizon: int, forecasts: Sequence[Forecast]) -> pd.DataFrame:
    """Forecasts past the end of every series as a table.

    Args:
        series: what was forecast.
        horizon: steps forecast.
        forecasts: batches that together hold one window a series, in order and in the units of the series.

    Returns:
        As ``forecast_frame``.
    """
    rows = [row for forecast in forecasts for row in _rows(forecast)]
    return _frame(series, horizon, rows, forecasts[0].levels)


def _rows(forecast: Forecast) -> Float64[np.ndarray, "B H V K"]:
    """Mean and quantiles of every window."""
    return torch.cat([forecast.mean.unsqueeze(-1), forecast.quantiles], dim=-1).double().numpy()


def _frame(series: SeriesSet, horizon: int, rows: Sequence[np.ndarray], levels: Sequence[float]) -> pd.DataFrame:
    """The table of one array [H, V, 1 + Q] per item."""
    table = np.concatenate([row.transpose(1, 0, 2).reshape(-1, 1 + len(levels)) for row in rows])
    if (np.abs(table) == np.finfo(table.dtype).max).any():
        warnings.warn(
            f"{series.source}: forecasts reach beyond the largest number of double precision and end there: give the "
            "values in a larger unit",
            stacklevel=2,
        )
    frame = pd.DataFrame(table, columns=["mean", *(f"{level:g}" for level in levels)])
    ahead: dict[tuple[object, str, int], np.ndarray] = {}  # most series of a table begin and end together
    times = []
    for i, key in enumerate(
        zip(series.starts, series.freqs, (series.length(i) for i in range(len(series))), strict=True)
    ):
        if key not in ahead:
            ahead[key] = series.timestamps(i, extra=horizon)[key[2] : key[2] + horizon].to_numpy()
        times += [ahead[key]] * len(series.variates)
    frame.insert(0, "item_id", np.repeat(series.univariate().item_ids, horizon))
    frame.insert(1, "timestamp", np.concatenate(times))
    return frame


def check_observed(series: SeriesSet) -> str | None:
    """What a user should know about series whose values are all missing, in one line, or None.

    Args:
        series: what is to be forecast.
    """
    single = series.univariate()
    empty = [name for i, name in enumerate(single.item_ids) if single.length(i) and np.isnan(single.item(i)).all()]
    if not empty:
        return None
    named = ", ".join(map(repr, empty[:3])) + (", ..." if len(empty) > 3 else "")
    return f"{len(empty)} of {len(single)} series hold no value at all, so their forecasts say nothing: {named}"


@dataclass(frozen=True)
class WithoutCovariates:
    """A predictor that is kept from looking at covariates, to see what they buy it."""

    predictor: Predictor
    covariates = False

    @property
    def name(self) -> str:
        """Its name, and that it sees none."""
        return f"{self.predictor.name} without covariates"

    @property
    def context(self) -> int | None:
        """As the predictor's."""
        return self.predictor.context

    @property
    def marks(self) -> str | None:
        """As the predictor's."""
        return self.predictor.marks

    @property
    def dtype(self) -> torch.dtype:
        """As the predictor's."""
        return self.predictor.dtype

    @property
    def joint(self) -> bool:
        """As the predictor's."""
        return getattr(self.predictor, "joint", True)

    def bind(self, series: SeriesSet) -> "WithoutCovariates":
        """As the predictor."""
        return WithoutCovariates(bind(self.predictor, series))

    def predict(self, batch: Batch, levels: Sequence[float]) -> Forecast:
        """As the predictor, of batches that hold no covariates."""
        return self.predictor.predict(batch, levels)


def check_covariates(predictor: Predictor, series: SeriesSet) -> str | None:
    """What a user should know about the covariates of a table and a predictor, in one line, or None.

    Args:
        predictor: a model or a baseline.
        series: what it is to forecast.
    """
    given = [*series.past_names, *series.known_names]
    if given and not predictor.covariates:
        return f"model {predictor.name} takes no covariates: {', '.join(given)} ignored"
    data = predictor.training_data if isinstance(predictor, Forecaster) else None
    missing = [name for name in (data.past_covariates + data.known_covariates if data else ()) if name not in given]
    if missing:
        return f"model {predictor.name} was trained with the covariates {', '.join(missing)}, which are not given"
    return None
