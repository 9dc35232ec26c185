"""Forecasts inside Spark: the function that ``DataFrame.mapInPandas`` takes. It needs nothing of Spark."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from tsfm.inference.predictors import forecast_frame
from tsfm.nn import DEFAULT_LEVELS, check_levels
from tsfm_data.errors import InputError, check_horizon, check_sizes
from tsfm_data.evaluation import Predictor
from tsfm_data.io import read_series

SORTED = 'give rows.repartition("{0}").sortWithinPartitions("{0}", "{1}")'


@dataclass(frozen=True)
class MapInPandas:
    """A function from pieces of a long table to pieces of its forecast, for ``mapInPandas``.

    Rows of a series have to follow each other, and series have to be in ascending order, so that only some series are
    in memory at a time::

        forecast = MapInPandas(tsfm.load().predictor, horizon=14, freq="D")
        rows = rows.repartition("item_id").sortWithinPartitions("item_id", "timestamp")
        rows.mapInPandas(forecast, forecast.schema).write.parquet("forecast")

    Attributes:
        predictor: the model, which Spark sends to each task.
        horizon: steps to forecast.
        freq: pandas frequency of all series. The series of a task do not tell that of the table.
        levels: quantile levels.
        item_column, time_column, target: names of the columns.
        series: most series that are forecast at a time.
        reading: other options of ``read_series``, such as {"on_bad_series": "skip"}.

    Raises:
        InputError: a wrong horizon, level or size.
    """

    predictor: Predictor
    horizon: int
    freq: str
    levels: Sequence[float] = DEFAULT_LEVELS
    item_column: str = "item_id"
    time_column: str = "timestamp"
    target: str = "target"
    series: int = 256
    reading: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_horizon(self.horizon)
        check_sizes("give 256, for instance", series=self.series)
        check_levels(self.levels)

    @property
    def schema(self) -> str:
        """The columns of the forecast, for Spark; ids are text."""
        numbers = ["mean", *(f"{level:g}" for level in check_levels(self.levels))]
        return f"`{self.item_column}` string, `{self.time_column}` timestamp_ntz, " + ", ".join(
            f"`{name}` double" for name in numbers
        )

    def __call__(self, pieces: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        """The forecasts of the series in the pieces of a task.

        Raises:
            InputError: rows that are not in order, or that cannot be read.
        """
        rows, last = pd.DataFrame(), None
        for piece in pieces:
            ids = piece[self.item_column].astype(str)
            first = last if last is not None else ids.iloc[0] if len(ids) else None
            if len(ids) and (not ids.is_monotonic_increasing or str(first) > ids.iloc[0]):
                hint = SORTED.format(self.item_column, self.time_column)
                raise InputError(f"expected rows in order of {self.item_column}, found others: {hint}")
            if not len(ids):
                continue
            last = ids.iloc[-1]
            rows = pd.concat([rows, piece.assign(**{self.item_column: ids})], ignore_index=True)
            names = rows[self.item_column].drop_duplicates()
            if len(names) > self.series:  # the last one may go on in the next piece
                whole = rows[self.item_column] != last
                yield from self._forecasts(rows[whole])
                rows = rows[~whole]
        yield from self._forecasts(rows)

    def _forecasts(self, rows: pd.DataFrame) -> Iterator[pd.DataFrame]:
        """The forecasts of whole series, some at a time."""
        if rows.empty:
            return
        numbers = rows.groupby(self.item_column, sort=False).ngroup() // self.series
        for _, some in rows.groupby(numbers, sort=False):
            series = read_series(
                some[[self.item_column, self.time_column, self.target]],
                item_column=self.item_column,
                time_column=self.time_column,
                target=self.target,
                freq=self.freq,
                **self.reading,
            )
            frame = forecast_frame(self.predictor, series, self.horizon, check_levels(self.levels), bar=False)
            yield series.present(frame)
