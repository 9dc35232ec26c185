"""Adapters to other evaluation packages: a GluonTS ``Predictor`` (as used by GIFT-Eval), and fev tasks.

Shapes: H horizon, V variates, Q quantile levels.
"""

import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tsfm.inference.predictors import forecast_ends
from tsfm_data.errors import check_sizes
from tsfm_data.evaluation import LEVELS, Predictor
from tsfm_data.io import SeriesSet, read_gluonts

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # GluonTS recommends a faster JSON parser, which is not needed here
    from gluonts.model.forecast import QuantileForecast
    from gluonts.model.predictor import Predictor as GluonTSBase

COVARIATES = ("feat_dynamic_real", "past_feat_dynamic_real")
SQUARED = ("MSE", "RMSE", "RMSSE")  # metrics of fev that the mean minimises; the others are minimised by the median


class GluonTSPredictor(GluonTSBase):
    """A model or baseline as a GluonTS predictor: one ``QuantileForecast`` per entry, in order.

    Use it in ``gluonts.model.evaluation.evaluate_model(GluonTSPredictor(model, horizon), test_data=..., metrics=...)``
    and the scripts of GIFT-Eval. Univariate entries (``target`` of shape [T]) give forecasts [H], multivariate ones
    ([V, T]) give [H, V]. Covariates (``feat_dynamic_real``, ``past_feat_dynamic_real``) are given to models that use
    them.

    Args:
        predictor: a model or a baseline.
        prediction_length: steps to forecast.
        levels: ascending quantile levels of the forecasts; GluonTS interpolates others.
        batch_size: entries per batch.
        season: steps per season, for baselines; None takes it from each entry's frequency.

    Raises:
        InputError: a number below 1; in ``predict``, an invalid entry.
    """

    def __init__(
        self,
        predictor: Predictor,
        prediction_length: int,
        levels: Sequence[float] = LEVELS,
        batch_size: int = 256,
        season: int | None = None,
    ) -> None:
        check_sizes(prediction_length=prediction_length, batch_size=batch_size)
        super().__init__(prediction_length=prediction_length)
        self.predictor, self.levels, self.batch_size, self.season = predictor, tuple(levels), batch_size, season

    def predict(self, dataset: Iterable[dict[str, Any]], **kwargs: Any) -> Iterator[QuantileForecast]:
        """Forecast every entry past its end. ``kwargs``, for the models of GluonTS, are ignored."""
        entries = iter(dataset)
        keys = ["mean", *(str(level) for level in self.levels)]
        while chunk := list(itertools.islice(entries, self.batch_size)):
            series = to_series(self.predictor, chunk, "entries")
            forecasts = forecast_ends(
                self.predictor, series, self.prediction_length, self.levels, self.batch_size, self.season
            )
            for entry, values in zip(chunk, forecasts, strict=True):
                target = np.asarray(entry["target"])
                arrays = values.transpose(2, 0, 1) if target.ndim == 2 else values[:, 0].T
                start = entry["start"] + target.shape[-1]
                yield QuantileForecast(arrays, start_date=start, forecast_keys=keys, item_id=entry.get("item_id"))


def to_series(
    predictor: Predictor, entries: Sequence[Mapping[str, Any]], name: str, freq: str | None = None
) -> SeriesSet:
    """GluonTS entries as series, with covariates only if the predictor uses them.

    Args:
        predictor: a model or a baseline.
        entries: entries with ``start``, ``target`` and so on.
        name: name of the entries in messages.
        freq: frequency of all entries, if ``start`` is not a period.

    Raises:
        InputError: an invalid entry, or entries that do not fit together.
    """
    left_out = () if predictor.covariates else COVARIATES
    used = [{key: value for key, value in entry.items() if key not in left_out} for entry in entries]
    series: SeriesSet = read_gluonts(used, freq=freq, name=name)
    return series


def fev_predictions(predictor: Predictor, task: Any, batch_size: int = 256) -> list[dict[str, list[dict[str, Any]]]]:
    """Forecasts for ``fev.Task.evaluation_summary``: per window and target column, one forecast per item.

    The point forecast is the mean if the task's metric is a squared error, else the median. Numeric covariates are
    given to models that use them; others are ignored.

    Args:
        predictor: a model or a baseline.
        task: a ``fev.Task``.
        batch_size: most items forecast at once.

    Raises:
        InputError: series that cannot be read.
    """
    metric = task.eval_metric if isinstance(task.eval_metric, str) else task.eval_metric["name"]
    levels = sorted({*task.quantile_levels, 0.5})
    point = 0 if metric in SQUARED else 1 + levels.index(0.5)
    columns = {str(level): 1 + levels.index(level) for level in task.quantile_levels} | {"predictions": point}
    windows = []
    for number, window in enumerate(task.iter_windows()):
        entries = list(_fev_entries(task, *window.get_input_data()))
        series = to_series(predictor, entries, f"{task.task_name}, window {number + 1}", task.freq)
        forecasts = forecast_ends(predictor, series, task.horizon, levels, batch_size, task.seasonality)
        windows.append(
            {
                target: [
                    {name: values[:, variate, column].tolist() for name, column in columns.items()}
                    for values in forecasts
                ]
                for variate, target in enumerate(task.target_columns)
            }
        )
    return windows


def fev_summary(predictor: Predictor, task: Any, batch_size: int = 256) -> dict[str, Any]:
    """Score a predictor on a fev task; the result is a row for ``fev.leaderboard``.

    Args:
        predictor: a model or a baseline.
        task: a ``fev.Task``.
        batch_size: most items forecast at once.
    """
    predictions = fev_predictions(predictor, task, batch_size)
    summary: dict[str, Any] = task.evaluation_summary(predictions, model_name=predictor.name)
    return summary


def _fev_entries(task: Any, past: Any, future: Any) -> Iterator[dict[str, Any]]:
    """The rows of a window's past and known future as GluonTS entries."""
    for before, after in zip(past.with_format("numpy"), future.with_format("numpy"), strict=True):
        entry = {
            "item_id": str(before[task.id_column]),
            "start": before[task.timestamp_column][0],
            "target": np.stack([before[name] for name in task.target_columns]),
        }
        known = [np.concatenate([before[name], after[name]]) for name in task.known_dynamic_columns]
        only_past = [before[name] for name in task.past_dynamic_columns]
        for key, rows in (("feat_dynamic_real", known), ("past_feat_dynamic_real", only_past)):
            numbers = [row for row in rows if np.issubdtype(row.dtype, np.number)]
            if numbers:
                entry[key] = np.stack(numbers)
        yield entry
