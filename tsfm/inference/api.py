"""The suite from Python in three lines: ``tsfm.load("name").forecast(table, horizon=24)``."""

import inspect
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tsfm import training
from tsfm.inference.backtesting import backtest
from tsfm.inference.choice import Backtest
from tsfm.inference.limits import check_lower, limit
from tsfm.inference.predictors import check_covariates, check_observed, forecast_frame, load_predictor
from tsfm.inference.selection import Selection
from tsfm.models import Forecaster
from tsfm.nn import DEFAULT_LEVELS, check_levels
from tsfm.weights import registry, save
from tsfm_data.errors import InputError, check_horizon, unknown_name
from tsfm_data.evaluation import Predictor
from tsfm_data.io import SeriesSet, open_source, read_series

if TYPE_CHECKING:
    import pandas as pd

    from tsfm.training import Finetuned

Table = Any  # a path, a catalogue name, a pandas or pyarrow table, a GluonTS data set, or a SeriesSet


@dataclass(frozen=True)
class Model:
    """A predictor that takes tables.

    Attributes:
        predictor: the model itself, or a baseline.
        history: how it was fine-tuned, where it was by ``finetune``.
    """

    predictor: Predictor
    history: "Finetuned | None" = None

    @property
    def name(self) -> str:
        """Name of the predictor."""
        return self.predictor.name

    def forecast(
        self,
        table: Table,
        horizon: int,
        levels: Sequence[float] = DEFAULT_LEVELS,
        batch_size: int = 256,
        lower: float | Literal["auto"] | None = None,
        integer: bool | Literal["auto"] = False,
        **columns: Any,
    ) -> "pd.DataFrame":
        """Forecast every series of a table past its end.

        Args:
            table: a path, a catalogue name, a pandas or pyarrow table, a GluonTS data set, or a ``SeriesSet``.
            horizon: steps to forecast.
            levels: quantile levels.
            batch_size: most windows forecast at once.
            lower: least value that a forecast may take; "auto" takes 0 for series that were never below it.
            integer: whether quantiles are rounded to whole numbers; "auto" does so for series that hold nothing else.
            **columns: roles of columns, frequency, second table of the future and whatever else
                ``tsfm_data.io.tables.read_series`` takes.

        Returns:
            The table's own columns of series and time (item_id and timestamp if it has none), mean and one a level, in
            the units of the table.

        Raises:
            InputError: the table is not as it should be, or horizon or levels are out of range.
        """
        check_horizon(horizon)
        asked, bound = check_levels(levels), check_lower(lower)
        series = series_of(table, **columns)
        if self.history is not None and self.history.ignored:  # tried, and found to be of no use
            series = training.without_covariates(series)
        for warning in filter(None, (*series.notes, check_covariates(self.predictor, series), check_observed(series))):
            warnings.warn(warning, stacklevel=2)
        frame = forecast_frame(self.predictor, series, horizon, asked, batch_size)
        whole: Literal["true", "false", "auto"] = "auto" if integer == "auto" else "true" if integer else "false"
        return series.present(limit(frame, series, bound, whole))

    def finetune(self, table: Table, horizon: int, method: str = "full", **options: Any) -> "Model":
        """Fine-tune on the series of a table; where no backtest prefers the result, the model stays as it is.

        Args:
            table: as for ``forecast``.
            horizon: steps that shall be forecast.
            method: "full", "lora" or "head".
            **options: other fields of ``tsfm.training.finetuning.Recipe`` (steps, lr, seed, ...), and roles of columns.

        Returns:
            The winner, whose ``history`` says what was tried and how it compared.

        Raises:
            InputError: a baseline, a table that is too short, or anything else that is not as it should be.
        """
        names = {field.name for field in fields(training.Recipe)}
        recipe = training.Recipe(method=method, **{key: value for key, value in options.items() if key in names})  # type: ignore[arg-type]
        series = series_of(table, **{key: value for key, value in options.items() if key not in names})
        result = training.finetune(trained(self.predictor), series, horizon, recipe)
        return Model(result.model, result)

    def backtest(
        self,
        table: Table,
        horizon: int,
        models: "Sequence[str | Path | Model]" = ("seasonal-naive", "naive"),
        windows: int | None = None,
        step: int | None = None,
        refit: bool = False,
        batch_size: int = 256,
        **columns: Any,
    ) -> Backtest:
        """Forecast the last windows of every series with this model and others, and compare.

        Args:
            table: as for ``forecast``.
            horizon: steps of a window.
            models: what else is compared: names, folders or models.
            windows, step, refit, batch_size: as for ``tsfm.inference.backtest``.
            **columns: as for ``forecast``.

        Returns:
            Its ``leaderboard()`` has a row for each model, best and ensemble; its ``selection("best")`` is a predictor
            that can be saved, and loaded by ``load``.

        Raises:
            InputError: the table is not as it should be, or too short for the windows.
        """
        others = [other.predictor if isinstance(other, Model) else other for other in models]
        series = series_of(table, **columns)
        return backtest(series, horizon, [self.predictor, *others], windows, step, refit, batch_size)

    def save(self, folder: str | Path) -> None:
        """Write a model folder: what ``load`` and ``tsfm forecast --model`` take.

        Raises:
            InputError: a baseline.
        """
        if isinstance(self.predictor, Selection):
            self.predictor.save(folder)
            return
        save(trained(self.predictor), folder)


def load(name: str | Path | None = None) -> Model:
    """A model by its name.

    Args:
        name: a name of ``tsfm weights list``, a model folder, or a baseline; None takes the model that ships with the
            package.

    Raises:
        InputError: no such model; near names are listed.
    """
    return Model(load_predictor(registry.default() if name is None else str(name)))


def load_model(name: str | Path | None = None) -> Forecaster:
    """A model that can be trained, by its name; as ``load``.

    Raises:
        InputError: no such model, or a baseline.
    """
    return trained(load(name).predictor)


def trained(predictor: Predictor) -> Forecaster:
    """The predictor, if it is a model.

    Raises:
        InputError: it is a baseline.
    """
    if not isinstance(predictor, Forecaster):
        kind = "choice of a backtest" if isinstance(predictor, Selection) else "baseline"
        raise InputError(f"expected a model with weights, found the {kind} {predictor.name}: name a model or folder")
    return predictor


def series_of(table: Table, **columns: Any) -> SeriesSet:
    """The series of a table, which may be a set of series already.

    Raises:
        InputError: the table is not as it should be, or an option is unknown.
    """
    if isinstance(table, SeriesSet):
        return table
    known = [name for name in inspect.signature(read_series).parameters if name != "source"]
    for name in columns:
        if name not in known:
            raise unknown_name("option", name, known)
    return open_source(table, **columns) if isinstance(table, str | Path) else read_series(table, **columns)
