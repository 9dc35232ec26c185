"""Forecasts inside Spark, by the function for mapInPandas; those with Spark itself need pyspark and Java."""

import os
import pickle
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import tsfm
from tsfm.inference import MapInPandas
from tsfm_data.errors import InputError


def table(series: int = 7) -> pd.DataFrame:
    days = pd.date_range("2024-01-01", periods=20)
    frames = [
        pd.DataFrame({"shop": f"s{i}", "day": days[i:], "sold": np.random.default_rng(i).normal(size=20 - i)})
        for i in range(series)
    ]
    return pd.concat(frames, ignore_index=True)


def function(**options: Any) -> MapInPandas:
    columns = {"item_column": "shop", "time_column": "day", "target": "sold"}
    return MapInPandas(tsfm.load("seasonal-naive").predictor, **{"horizon": 2, "freq": "D", **columns, **options})


def expected() -> pd.DataFrame:
    return tsfm.load("seasonal-naive").forecast(table(), horizon=2)


def pieces(frame: pd.DataFrame, rows: int) -> Iterator[pd.DataFrame]:
    return (frame.iloc[begin : begin + rows] for begin in range(0, len(frame), rows))


@pytest.mark.parametrize("rows", [1, 5, 33, 1000])
@pytest.mark.parametrize("series", [1, 3, 256])
def test_pieces_of_any_size_give_the_forecast_of_the_whole_table(rows: int, series: int) -> None:
    found = pickle.loads(pickle.dumps(function(series=series)))(pieces(table(), rows))
    pd.testing.assert_frame_equal(pd.concat(list(found), ignore_index=True), expected(), check_dtype=False)


def test_only_some_series_are_in_memory() -> None:
    taken, given = 0, 0

    def counted() -> Iterator[pd.DataFrame]:
        nonlocal taken
        for piece in pieces(table(), 5):
            taken += len(piece)
            yield piece

    for frame in function(series=2)(counted()):
        given += frame["shop"].nunique()
        assert frame["shop"].nunique() <= 2
        assert taken <= 20 * (given + 2)  # rows; a series has at most 20, and there are 119
    assert given == 7


def test_rows_in_another_order_are_one_line() -> None:
    frame = table()
    for shuffled in (frame.iloc[::-1], pd.concat([frame.iloc[5:], frame.iloc[:5]])):
        for rows in (4, 1000):
            with pytest.raises(InputError, match=r"in order of shop, found others: give rows\.repartition"):
                list(function()(pieces(shuffled, rows)))
    assert list(function()(iter([]))) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_spark_gives_the_forecast_of_the_whole_table(monkeypatch: pytest.MonkeyPatch) -> None:
    sql = pytest.importorskip("pyspark.sql")
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java")
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)  # Spark's own choice is the python3 of the PATH
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*sys.path, str(Path(__file__).parent)]))
    builder = sql.SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    builder = builder.config("spark.sql.shuffle.partitions", "2").config("spark.driver.host", "127.0.0.1")
    session = builder.config("spark.sql.execution.arrow.maxRecordsPerBatch", "9").getOrCreate()
    try:
        rows = session.createDataFrame(table().sample(frac=1, random_state=0))
        rows = rows.repartition("shop").sortWithinPartitions("shop", "day")
        forecast = function(series=2)
        found = rows.mapInPandas(forecast, forecast.schema).toPandas()
    finally:
        session.stop()
    found = found.sort_values(["shop", "day"], ignore_index=True)
    pd.testing.assert_frame_equal(found, expected(), check_dtype=False)
