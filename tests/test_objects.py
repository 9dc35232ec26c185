"""Data that a program holds are forecast as they are, and the answer is of the same kind."""

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

import tsfm
import tsfm_data.io
from tsfm_data.errors import InputError
from tsfm_data.io import read_series

WEEK = np.arange(70.0) % 7
DAYS = pd.date_range("2024-01-01", periods=70, name="ds")


def long_table() -> pd.DataFrame:
    """Two series, the second higher by 10; their ids are numbers and not in order."""
    one = pd.DataFrame({"shop": 30, "ds": DAYS, "sales": WEEK})
    return pd.concat([one, one.assign(shop=7, sales=WEEK + 10)], ignore_index=True)


def forecast(data: Any, **options: Any) -> Any:
    options = {"horizon": 2, "levels": [0.5]} | options
    return tsfm.load("seasonal-naive").forecast(data, **options)


class Interchange:
    """A frame that speaks the data-frame interchange protocol alone."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.frame = frame

    def __dataframe__(self, nan_as_null: bool = False, allow_copy: bool = True) -> Any:
        return self.frame.__dataframe__(nan_as_null, allow_copy)


def test_when_a_frame_of_another_library_is_forecast_then_the_answer_is_one_too() -> None:
    options = {"item_column": "shop", "target": "sales"}
    expected = forecast(long_table(), **options)
    assert expected["shop"].tolist() == [30, 30, 7, 7]
    assert expected["0.5"].tolist() == [0, 1, 10, 11]
    arrow = forecast(pa.Table.from_pandas(long_table()), **options)
    assert isinstance(arrow, pa.Table)
    pd.testing.assert_frame_equal(arrow.to_pandas(), expected)
    batch = forecast(pa.RecordBatch.from_pandas(long_table()), **options)
    assert batch.equals(arrow)
    pd.testing.assert_frame_equal(forecast(Interchange(long_table()), **options), expected)


def test_when_a_polars_frame_is_forecast_then_the_answer_is_one_too() -> None:
    polars = pytest.importorskip("polars")
    known = long_table().assign(promo=(WEEK.tolist() * 2))
    frame, later = polars.from_pandas(known[known.index % 70 < 60]), polars.from_pandas(known[known.index % 70 >= 60])
    with pytest.warns(UserWarning, match="takes no covariates: promo ignored"):
        answer = forecast(frame, future=later.drop("sales"), item_column="shop", target="sales")
    assert isinstance(answer, polars.DataFrame)
    assert answer.columns == ["shop", "ds", "mean", "0.5"]
    assert answer["shop"].to_list() == [30, 30, 7, 7]
    assert answer["0.5"].to_list() == [4, 5, 14, 15]


def test_when_a_duckdb_relation_is_forecast_then_the_answer_is_an_arrow_table() -> None:
    duckdb = pytest.importorskip("duckdb")
    table = long_table()
    answer = forecast(duckdb.from_df(table), item_column="shop")
    assert isinstance(answer, pa.Table)
    assert answer["0.5"].to_pylist() == [0, 1, 10, 11]


def test_when_a_pandas_series_is_forecast_then_the_answer_is_indexed_by_time() -> None:
    answer = forecast(pd.Series(WEEK, DAYS, name="sales"))
    assert answer.index.tolist() == [pd.Timestamp("2024-03-11"), pd.Timestamp("2024-03-12")]
    assert (answer.index.name, list(answer.columns)) == ("ds", ["mean", "0.5"])
    months = pd.Series(np.arange(36.0), pd.period_range("2021-01", periods=36, freq="M"))
    assert forecast(months).index.astype(str).tolist() == ["2024-01", "2024-02"]
    assert forecast(months)["0.5"].tolist() == [24, 25]
    assert forecast(pd.Series(WEEK), season=7).index.tolist() == [70, 71]
    both = forecast(long_table().set_index(["shop", "ds"])["sales"])
    assert both.index.names == ["shop", "ds"]
    assert both["0.5"].tolist() == [0, 1, 10, 11]


@pytest.mark.parametrize("kind", [np.asarray, list, torch.tensor, lambda rows: torch.tensor(rows, requires_grad=True)])
def test_when_numbers_are_forecast_then_their_steps_go_on(kind: Any) -> None:
    one = forecast(kind(WEEK), freq="D")
    assert one["step"].tolist() == [70, 71]
    assert one["0.5"].tolist() == [0, 1]
    two = forecast(kind(np.stack([WEEK, WEEK + 10])), season=7)
    assert two["item_id"].tolist() == [0, 0, 1, 1]
    assert two["0.5"].tolist() == [0, 1, 10, 11]
    four = forecast(kind(np.stack([[WEEK, WEEK + 10], [WEEK + 20, WEEK + 30]])), season=7)
    assert four["item_id"].unique().tolist() == ["0/0", "0/1", "1/0", "1/1"]
    assert four["0.5"].tolist() == [0, 1, 10, 11, 20, 21, 30, 31]


def test_when_cells_of_an_array_are_masked_then_they_are_missing() -> None:
    masked = np.ma.masked_array(WEEK, np.arange(70) == 5)
    for array in (masked, masked.astype(int), [masked]):
        values = read_series(array).values[:, 0]
        assert np.isnan(values).tolist() == masked.mask.tolist()
        assert values[6] == 6


def test_when_a_list_holds_series_of_different_lengths_then_each_goes_on_from_its_own_end() -> None:
    ragged = forecast([WEEK.tolist(), torch.tensor(WEEK[:21] + 10)], season=7)
    assert ragged["step"].tolist() == [70, 71, 21, 22]
    assert ragged["0.5"].tolist() == [0, 1, 10, 11]
    named = forecast([pd.Series(WEEK, DAYS, name="a"), pd.Series(WEEK[:21], DAYS[:21], name="b")])
    assert named["item_id"].tolist() == ["a", "a", "b", "b"]
    assert named["timestamp"].dt.day.tolist() == [11, 12, 22, 23]
    holes = forecast([1.0, None, *WEEK[2:]], season=7)
    assert holes["0.5"].tolist() == [0, 1]


def test_when_more_rows_than_columns_come_then_how_they_are_read_is_said() -> None:
    with pytest.warns(UserWarning, match=r"an array of shape \[70, 5\] is read as 70 series of 5 steps"):
        forecast(np.tile(WEEK[:5], (70, 1)))
    with pytest.raises(InputError, match=r"found shape \[70, 1\]: give array\[:, 0\]"):
        forecast(WEEK[:, None])


def test_when_one_name_stands_where_several_may_then_it_is_one() -> None:
    table = pd.DataFrame({"ds": DAYS, "y": WEEK, "temp": WEEK, 3: WEEK})
    series = read_series(table, past_covariates="temp", target="3", freq=DAYS.freq)
    assert (series.past_names, series.variates, series.freqs) == (("temp",), ("3",), ("D",))


def test_when_a_package_is_listed_then_its_public_names_are_there() -> None:
    for package in (tsfm, tsfm_data.io):
        public = [name for name in dir(package) if not name.startswith("__") or name == "__version__"]
        assert sorted(public) == sorted(package.__all__)


def test_when_a_model_is_shown_then_one_line_says_what_it_is() -> None:
    assert repr(tsfm.load("naive")) == "Model(naive: baseline, all of the history, no covariates)"
    shown = repr(tsfm.load("tsfm-decoder-small"))
    assert shown == "Model(tsfm-decoder-small: 1,383,424 parameters, context 512, takes covariates)"


# What is wrong -> part of the line that says so. Run in a process of its own, where no test checks types on the way.
WRONG: dict[str, str] = {
    "forecast(table, 1.5)": "expected a whole number as horizon, found 1.5",
    "forecast(table, '24')": "expected a whole number as horizon, found '24'",
    "forecast(table, None)": "expected a whole number as horizon, found None",
    "forecast(table, 10**12)": "expected a horizon of at most 1,000,000 steps, found 1,000,000,000,000",
    "forecast(table, 10**6)": "up to the year 2262, found 1,000,009 steps of D",
    "forecast(table, 3, levels=0.5)": "expected a list of quantile levels, found 0.5",
    "forecast(table, 3, levels='0.5')": "expected a list of quantile levels, found '0.5'",
    "forecast(table, 3, batch_size=2.5)": "expected a whole number as batch_size, found 2.5",
    "forecast(table, 3, time_column=['ds'])": "expected one name as time_column, found ['ds']",
    "forecast(table, 3, item_column=['a'])": "expected one name as item_column, found ['a']",
    "forecast(table, 3, target=[['y']])": "expected one name as target, found ['y']",
    "forecast(table, 3, past_covariates=3.5)": "expected one name as past_covariates, found 3.5",
    "forecast(table, 3, freq=['D'])": "expected one name as freq, found ['D']",
    "forecast(table, 3, freq=5)": "expected one name as freq, found 5",
    "forecast(table, 3, season=1.5)": "expected a whole number as season, found 1.5",
    "forecast(table, 3, aggregate='median')": "expected aggregate to be one of 'mean'",
    "forecast(table, 3, on_bad_series=True)": "expected on_bad_series to be one of 'error'",
    "forecast(table, 3, timezone=5)": "expected one name as timezone, found 5",
    "forecast(table, 3, dayfirst='no')": "expected dayfirst to be one of None, True, False",
    "forecast(table, 3, holidays=3)": "holidays: expected dates",
    "forecast(table, 3, lower=[0])": "expected a number or auto",
    "forecast(table, 3, integer='no')": "expected integer to be True, False or 'auto'",
    "forecast(table, 3, future=5)": "found int",
    "forecast(None, 3)": "expected a path, a data frame (pandas, polars, Arrow)",
    "forecast({'a': [1.0]}, 3)": "found dict",
    "forecast(object(), 3)": "found object",
    "forecast(['a', 'b'], 3)": "expected numbers of shape [T], [N, T] or [N, V, T]",
    "forecast([table, table], 3)": "found DataFrame: put all series into one table",
    "forecast(table.ds.to_numpy(), 3)": "found datetime64[ns] of shape [9]",
    "forecast(read_series(table), 3, freq='D')": "expected a set of series alone",
    "load(['naive'])": "expected the name or folder of one model, found ['naive']",
}
SCRIPT = """
import json, sys
import pandas as pd
from tsfm import load
from tsfm_data.io import read_series
table = pd.DataFrame({'ds': pd.date_range('2024-01-01', periods=9), 'y': range(9)})
forecast, said = load('naive').forecast, {}
for call in json.loads(sys.argv[1]):
    try:
        said[call] = repr(eval(call))
    except Exception as error:
        said[call] = f'{type(error).__name__}: {error}'
print(json.dumps(said))
"""


@pytest.mark.slow
def test_when_an_argument_is_of_a_wrong_type_then_one_line_says_what_belongs_there() -> None:
    ended = subprocess.run([sys.executable, "-c", SCRIPT, json.dumps(list(WRONG))], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    for call, line in json.loads(ended.stdout).items():
        assert line.startswith("InputError: "), (call, line)
        assert WRONG[call] in line, (call, line)
        assert "\n" not in line
        assert len(line) < 400
