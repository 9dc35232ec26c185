"""From a table to a table of forecasts: names, order, frequencies and units are those of the input."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command import run

import tsfm
from tsfm.inference.predictors import check_observed, forecast_frame, load_predictor
from tsfm_data.errors import InputError
from tsfm_data.io.tables import read_series


def long_table() -> pd.DataFrame:
    monthly = pd.DataFrame({"item_id": "m", "timestamp": pd.date_range("2020-01-01", periods=30, freq="MS")})
    weekly = pd.DataFrame({"item_id": "w", "timestamp": pd.date_range("2021-01-03", periods=12, freq="W")})
    late = pd.DataFrame({"item_id": "a", "timestamp": pd.date_range("2022-01-01", periods=26, freq="MS")})
    table = pd.concat([monthly, weekly, late], ignore_index=True)
    return table.assign(target=np.arange(len(table), dtype=float))


def test_when_series_of_several_frequencies_come_in_one_table_then_each_goes_on_in_its_own_and_in_order() -> None:
    frame = forecast_frame(load_predictor("seasonal-naive"), read_series(long_table()), 3, (0.1, 0.5, 0.9))
    assert list(frame.columns) == ["item_id", "timestamp", "mean", "0.1", "0.5", "0.9"]
    assert frame["item_id"].tolist() == ["m"] * 3 + ["w"] * 3 + ["a"] * 3
    stamps = [f"{t:%Y-%m-%d}" for t in frame["timestamp"]]
    assert stamps[:3] == ["2022-07-01", "2022-08-01", "2022-09-01"]
    assert stamps[3:6] == ["2021-03-28", "2021-04-04", "2021-04-11"]
    assert stamps[6:] == ["2024-03-01", "2024-04-01", "2024-05-01"]
    # Twelve months back, and the last value of the weekly series, whose season is one step.
    assert frame["mean"].tolist() == [18, 19, 20, 41, 41, 41, 56, 57, 58]


def test_when_a_wide_table_has_one_variate_then_its_name_is_the_series() -> None:
    table = pd.DataFrame({"date": pd.date_range("2020-01-01", periods=9), "sales": range(9)})
    frame = forecast_frame(load_predictor("naive"), read_series(table), 2, (0.5,))
    assert frame["item_id"].tolist() == ["sales", "sales"]
    assert frame["mean"].tolist() == [8.0, 8.0]


def test_when_the_series_are_forecast_in_smaller_batches_then_nothing_changes() -> None:
    series, predictor = read_series(long_table()), load_predictor("naive")
    expected = forecast_frame(predictor, series, 2, (0.5,))
    pd.testing.assert_frame_equal(forecast_frame(predictor, series, 2, (0.5,), batch_size=1), expected)


def test_when_no_model_has_the_name_then_near_ones_are_listed() -> None:
    with pytest.raises(InputError, match="did you mean seasonal-naive"):
        load_predictor("seasonal_naive")


def test_when_a_series_holds_no_value_then_it_is_forecast_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = long_table()
    assert check_observed(read_series(table)) is None
    table.loc[table["item_id"] == "w", "target"] = np.nan
    table.to_csv(tmp_path / "table.csv", index=False)
    expected = "1 of 3 series have no value at all, so their forecasts mean nothing: 'w'"
    said = run(capsys, "forecast", str(tmp_path / "table.csv"), "--horizon", "2", "--model", "seasonal-naive")
    assert (said.status, said.err.strip()) == (0, f"warning: {expected}")
    assert len(said.out.splitlines()) == 1 + 3 * 2
    with pytest.warns(UserWarning, match=expected):
        frame = tsfm.load("seasonal-naive").forecast(table, horizon=2)
    assert np.isfinite(frame["mean"]).all()


def test_when_a_forecast_reaches_past_the_largest_number_then_it_is_that_number_and_is_said() -> None:
    noise = np.random.default_rng(0).normal(size=60)
    table = pd.DataFrame({"date": pd.date_range("2020-01-01", periods=60), "y": 1.7e308 * np.tanh(3 * noise)})
    with pytest.warns(UserWarning, match="beyond the largest number .* larger unit"):
        frame = tsfm.load("naive").forecast(table, horizon=3)
    assert np.isfinite(frame[["mean", "0.1", "0.9"]].to_numpy()).all()
    assert (frame["0.9"] == np.finfo(np.float64).max).all()
