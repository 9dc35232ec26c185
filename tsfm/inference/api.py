"""The suite from Python in three lines: ``tsfm.load("name").forecast(table, horizon=24)``."""

import inspect
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tsfm import training
from tsfm.inference.backtesting import backtest
from tsfm.inference.choice import Backtest
from tsfm.inference.detection import AHEAD, RATE, Detector
from tsfm.inference.embedding import embedding_frame
from tsfm.inference.imputation import INTERVAL, impute
from tsfm.inference.limits import check_lower, limit
from tsfm.inference.predictors import check_covariates, check_observed, forecast_frame, load_predictor
from tsfm.inference.selection import Selection
from tsfm.models import Forecaster
from tsfm.nn import DEFAULT_LEVELS, check_levels
from tsfm.weights import registry, save
from tsfm_data.errors import InputError, check_horizon, check_sizes, unknown_name
from tsfm_data.evaluation import Predictor
from tsfm_data.io import SeriesSet, like, open_source, read_series

if TYPE_CHECKING:
    from tsfm.training import Finetuned

# A path or a name of the catalogue; a data frame of pandas, polars, pyarrow, duckdb or any other library with the Arrow
# or the data-frame interchange protocol; a pandas Series; an array, list or tensor of numbers; a GluonTS data set; or a
# SeriesSet. Some of these libraries may not be installed, so this cannot be a type.
Table = Any
# Options of ``read_series`` that hold for rows that come later, too.
LATER = ("season", "resample", "aggregate", "timezone", "dayfirst", "decimal")


@dataclass(frozen=True, repr=False)
class Model:
    """A predictor that takes tables.

    Attributes:
        predictor: the model itself, or a baseline.
        history: the result of ``finetune``, if it was fine-tuned.
    """

    predictor: Predictor
    history: "Finetuned | None" = None

    @property
    def name(self) -> str:
        """Name of the predictor."""
        return self.predictor.name

    def __repr__(self) -> str:
        reads = "takes covariates" if self.predictor.covariates else "no covariates"
        context = self.predictor.context
        reach = "all of the history" if context is None else f"context {context:,}"
        kind = "baseline"
        if isinstance(self.predictor, Forecaster):
            kind = f"{sum(weight.numel() for weight in self.predictor.parameters()):,} parameters"
        return f"Model({self.name}: {kind}, {reach}, {reads})"

    def forecast(
        self,
        data: Table,
        horizon: int,
        *,
        future: Table | None = None,
        levels: Sequence[float] = DEFAULT_LEVELS,
        time_column: str | None = None,
        item_column: str | None = None,
        target: str | Sequence[str] | None = None,
        past_covariates: str | Sequence[str] | None = None,
        known_covariates: str | Sequence[str] | None = None,
        freq: str | None = None,
        season: int | None = None,
        batch_size: int = 256,
        lower: float | Literal["auto"] | None = None,
        integer: bool | Literal["auto"] = False,
        resample: str | None = None,
        aggregate: Literal["mean", "sum", "last", "max"] | None = None,
        on_bad_series: Literal["error", "skip", "fix"] | None = None,
        timezone: str | None = None,
        dayfirst: bool | None = None,
        decimal: Literal[".", ","] | None = None,
        holidays: Sequence[str] | None = None,
    ) -> Any:
        """Forecast every series past its end.

        Args:
            data: a path or a name of the catalogue; a data frame of pandas, polars, pyarrow or any library with the
                Arrow or the data-frame interchange protocol, wide or long; a pandas Series; an array, list or tensor
                [T], [N, T] or [N, V, T] (N series, V variates, T steps) or a list of arrays [T] or [V, T]; a GluonTS
                data set; or a ``SeriesSet``.
            horizon: steps to forecast.
            future: a second table with future values of the known covariates.
            levels: quantile levels.
            time_column: name of the time column; None infers it.
            item_column: name of the column of ids in a long table; None infers it, "" means that there is none.
            target: name of the column or columns to forecast; None infers them.
            past_covariates: columns known only up to the present.
            known_covariates: columns whose future is known, in rows at the end without a target or in ``future``.
            freq: pandas frequency; None infers it. For an array, it sets the season.
            season: season length in steps; None takes that of the frequency (7 for days, 24 for hours, 12 for months).
            batch_size: largest number of windows per batch.
            lower: lower bound of the forecasts; "auto" uses 0 for series that were never negative.
            integer: whether quantiles are rounded to whole numbers; "auto" does so for series of whole numbers.
            resample: frequency to resample to first.
            aggregate: how resampling combines the values of a period; "mean" by default.
            on_bad_series: whether series that cannot be read raise ("error", the default), are left out ("skip") or
                repaired ("fix").
            timezone: time zone of timestamps without one.
            dayfirst: whether 01/02/2024 is 1 February; None infers it from the column.
            decimal: decimal mark of numbers in text; None infers it from the column.
            holidays: dates that are not business days, or a file with one date per line.

        Returns:
            A table of the library of ``data``: polars for polars, pyarrow for other Arrow data, else pandas. Its
            columns are ids and times, named as in the data (else item_id and timestamp; for arrays, steps), mean, and
            one per level, in the units of the data. For a Series, it is indexed by time.

        Raises:
            InputError: data or another argument is wrong; one line says what was expected, what was found, and what to
                do.
        """
        check_horizon(horizon)
        check_sizes("give 256, for instance", batch_size=batch_size)
        asked, bound = check_levels(levels), check_lower(lower)
        if integer not in (True, False, "auto"):
            raise InputError(f"expected integer to be True, False or 'auto', found {integer!r:.40}: choose one")
        reading = {
            "future": future,
            "time_column": time_column,
            "item_column": item_column,
            "target": target,
            "past_covariates": past_covariates,
            "known_covariates": known_covariates,
            "freq": freq,
            "season": season,
            "resample": resample,
            "aggregate": aggregate,
            "on_bad_series": on_bad_series,
            "timezone": timezone,
            "dayfirst": dayfirst,
            "decimal": decimal,
            "holidays": holidays,
        }
        series = series_of(data, **{name: value for name, value in reading.items() if value is not None})
        if self.history is not None and self.history.ignored:  # fine-tuning showed that they do not help
            series = training.without_covariates(series)
        for warning in filter(None, (*series.notes, check_covariates(self.predictor, series), check_observed(series))):
            warnings.warn(warning, stacklevel=2)
        frame = forecast_frame(self.predictor, series, horizon, asked, batch_size)
        whole: Literal["true", "false", "auto"] = "auto" if integer == "auto" else "true" if integer else "false"
        return like(data, series.present(limit(frame, series, bound, whole)))

    def finetune(self, table: Table, horizon: int, method: str = "full", **options: Any) -> "Model":
        """Fine-tune on the series of a table; the model stays unchanged unless a backtest prefers the result.

        Args:
            table: data as for ``forecast``.
            horizon: steps to forecast.
            method: "full", "lora" or "head".
            **options: other fields of ``tsfm.training.finetuning.Recipe`` (steps, lr, seed, ...), and options
                of ``read_series``.

        Returns:
            The better model; its ``history`` has the comparison.

        Raises:
            InputError: a baseline, a table that is too short, or another wrong argument.
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
            horizon: steps to forecast in each window.
            models: other models to compare: names, folders or models.
            windows, step, refit, batch_size: as for ``tsfm.inference.backtest``.
            **columns: as for ``forecast``.

        Returns:
            The results. ``leaderboard()`` has one row per model and choice; ``selection("best")`` is a predictor that
            can be saved, and loaded by ``load``.

        Raises:
            InputError: the table cannot be read, or is too short for the windows.
        """
        others = [other.predictor if isinstance(other, Model) else other for other in models]
        series = series_of(table, **columns)
        return backtest(series, horizon, [self.predictor, *others], windows, step, refit, batch_size)

    def detect(self, data: Table, *, rate: float = RATE, ahead: int = AHEAD, **columns: Any) -> Any:
        """Find anomalies: values that forecasts from earlier values did not expect.

        Args:
            data: as for ``forecast``.
            rate: share of the values of clean series that are flagged.
            ahead: most steps ahead that a value is forecast; more take less time.
            **columns: as for ``forecast``.

        Returns:
            A table of the library of ``data`` with a row per series and time: ids and times, named as in the data;
            value, expected, low, high (a value outside is flagged), score, p_value, anomaly and kind.

        Raises:
            InputError: data or another argument is wrong.
        """
        detector = self.detector(data, rate=rate, ahead=ahead, **columns)
        return like(data, detector.series.present(detector.table()))

    def detector(
        self, data: Table, *, rate: float = RATE, ahead: int = AHEAD, batch_size: int = 256, **columns: Any
    ) -> Detector:
        """As ``detect``, for data that go on: ``update(rows)`` of the result judges rows that came later.

        Args:
            data, rate, ahead: as there.
            batch_size: largest number of windows per batch.
            **columns: as there.

        Raises:
            InputError: data or another argument is wrong.
        """
        series = series_of(data, **columns)
        later = {name: value for name, value in columns.items() if name in LATER}
        detector = Detector(self.predictor, series, rate, ahead, batch_size, later)
        for note in (*series.notes, check_covariates(self.predictor, series), *detector.notes()):
            if note:
                warnings.warn(note, stacklevel=3)
        return detector

    def embed(self, data: Table, *, patches: bool = False, batch_size: int = 256, **columns: Any) -> Any:
        """One vector per series, for clustering, search or classification; it does not depend on scale and offset.

        Args:
            data: as for ``forecast``.
            patches: whether there is a vector per patch of each series instead.
            batch_size: largest number of windows per batch.
            **columns: as for ``forecast``.

        Returns:
            A table of the library of ``data``: ids, the time of each patch if asked for, and the columns e0, e1, ...

        Raises:
            InputError: data or another argument is wrong, or the model is no zero-shot model.
        """
        series = series_of(data, **columns)
        return like(data, series.present(embedding_frame(trained(self.predictor), series, batch_size, patches)))

    def impute(self, data: Table, *, interval: float = INTERVAL, batch_size: int = 256, **columns: Any) -> Any:
        """Fill the gaps of every series from both sides; observed values stay as they are.

        Args:
            data: as for ``forecast``.
            interval: percent of the true values that should lie in the interval.
            batch_size: largest number of windows per batch.
            **columns: as for ``forecast``.

        Returns:
            A table of the library of ``data`` with a row per series and time: ids and times, named as in the data;
            value, with the median in the gaps; low and high, the interval there; and filled.

        Raises:
            InputError: data or another argument is wrong.
        """
        series = series_of(data, **columns)
        result = impute(self.predictor, series, interval, batch_size)
        for note in (*series.notes, check_covariates(self.predictor, series), *result.notes()):
            if note:
                warnings.warn(note, stacklevel=2)
        return like(data, series.present(result.table()))

    def save(self, folder: str | Path) -> None:
        """Write a model folder: what ``load`` and ``tsfm forecast --model`` take.

        Raises:
            InputError: a baseline.
        """
        if isinstance(self.predictor, Selection):
            self.predictor.save(folder)
            return
        save(trained(self.predictor), folder)


def load(name: str | Path | None = None, effort: Literal["fast", "best"] = "fast") -> Model:
    """Load a model or a baseline.

    Args:
        name: a name of ``tsfm weights list``, a model folder, or a baseline; None takes the model that ships with the
            package.
        effort: "fast", or "best": zero-shot models then average two forecasts, which takes twice as long.

    Raises:
        InputError: no such model, or effort; near names are listed.
    """
    if name is not None and not isinstance(name, str | os.PathLike):
        raise InputError(f"expected the name or folder of one model, found {name!r:.60}: see tsfm weights list")
    return Model(load_predictor(registry.default() if name is None else str(name), effort))


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
    """The series of data as ``Model.forecast`` takes them, which may be a set of series already.

    Args:
        table: the data.
        **columns: as ``tsfm_data.io.read_series`` takes them.

    Raises:
        InputError: the table cannot be read, or an option is unknown.
    """
    if isinstance(table, SeriesSet):
        if columns:
            raise InputError(
                f"expected a set of series alone, which has its columns, found {', '.join(columns)}: leave this out"
            )
        return table
    known = [name for name in inspect.signature(read_series).parameters if name != "source"]
    for name in columns:
        if name not in known:
            raise unknown_name("option", name, known)
    return open_source(table, **columns) if isinstance(table, str | Path) else read_series(table, **columns)
