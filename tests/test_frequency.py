"""Frequencies: names, seasons and calendar features agree with GluonTS; every regular index is read back."""

import numpy as np
import pandas as pd
import pytest

from tsfm_data.errors import InputError
from tsfm_data.io.frequency import (
    DAY,
    Step,
    calendar_features,
    calendar_seasons,
    mark_names,
    natural_season,
    normalise,
    period_alias,
    season_length,
    step_of,
)
from tsfm_data.io.grid import BadTime, regular_grid


@pytest.mark.parametrize(
    "case",
    [
        "h=24",
        "H=24",
        "15min=96",
        "10min=144",
        "30min=48",
        "D=1",
        "B=5",
        "W-THU=1",
        "7D=1",
        "MS=12",
        "ME=12",
        "M=12",
        "QS=4",
        "QS-OCT=4",
        "YE=1",
        "2h=12",
        "5h=1",
        "500ms=1",
    ],
)
def test_season_length_is_the_one_of_gluonts(case: str) -> None:
    freq, season = case.split("=")
    assert season_length(freq) == int(season)


@pytest.mark.parametrize(
    ("freq", "seasons"),
    [
        ("min", (60, 1440, 10080, 525960)),
        ("5min", (12, 288, 2016, 105192)),
        ("h", (24, 168, 8766)),
        ("D", (7, 365)),
        ("B", (5, 21, 261)),
        ("W-MON", (52,)),
        ("ME", (12,)),
        ("QS-OCT", (4,)),
        ("YS", ()),
        ("7min", (1440, 75137)),  # a day is no whole number of steps
        ("15min@MON-FRI 09:30-15:45", (26, 130, 6783)),
        ("D@MON-SAT", (6, 313)),
    ],
)
def test_the_calendar_gives_a_frequency_several_seasons(freq: str, seasons: tuple[int, ...]) -> None:
    assert calendar_seasons(freq) == seasons
    assert natural_season(freq) in (1, *seasons)


def test_a_frequency_that_is_no_regular_grid_has_no_seasons_of_the_calendar() -> None:
    assert calendar_seasons("BMS") == ()


@pytest.mark.parametrize(
    ("freq", "period"), [("MS", "M"), ("QS-OCT", "Q-SEP"), ("YS", "Y-DEC"), ("QE", "Q-DEC"), ("h", "h")]
)
def test_period_alias_is_understood_by_pandas(freq: str, period: str) -> None:
    assert period_alias(freq) == period
    pd.Period("2020-03-31", freq=period)


@pytest.mark.parametrize(("old", "new"), [("H", "h"), ("M", "ME"), ("QS-JAN", "QS"), ("YE-DEC", "YE"), ("W", "W-SUN")])
def test_old_and_long_spellings_are_normalised(old: str, new: str) -> None:
    assert normalise(old) == new


def test_unknown_frequency_is_one_clear_line() -> None:
    for call in (normalise, season_length, step_of, mark_names):
        with pytest.raises(InputError, match=r"unknown frequency 'fortnight': expected a pandas alias"):
            call("fortnight")
    with pytest.raises(InputError, match="'BMS' is not supported"):
        step_of("BMS")


def test_hourly_marks_are_hour_weekday_day_and_day_of_year() -> None:
    index = pd.DatetimeIndex(["2016-07-01 23:00", "2019-12-31 00:00"])
    expected = [[23 / 23 - 0.5, 4 / 6 - 0.5, 0 / 30 - 0.5, 182 / 365 - 0.5], [-0.5, 1 / 6 - 0.5, 0.5, 364 / 365 - 0.5]]
    np.testing.assert_allclose(calendar_features(index, "h"), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("marks", "names"),
    [
        ("t", ["minute_of_hour", "hour_of_day", "day_of_week", "day_of_month", "day_of_year"]),
        ("15min", ["minute_of_hour", "hour_of_day", "day_of_week", "day_of_month", "day_of_year"]),
        ("d", ["day_of_week", "day_of_month", "day_of_year"]),
        ("w", ["day_of_month", "week_of_year"]),
        ("m", ["month_of_year"]),
        ("YS", []),
    ],
)
def test_mark_sets_have_the_features_of_gluonts_in_range(marks: str, names: list[str]) -> None:
    assert list(mark_names(marks)) == names
    features = calendar_features(pd.date_range("2000-01-01", periods=5000, freq="7h"), marks)
    assert features.shape == (5000, len(names))
    assert features.dtype == np.float32
    assert np.abs(features).max(initial=0) <= 0.5


@pytest.mark.parametrize(
    "freq",
    [
        "h",
        "15min",
        "10s",
        "500ms",
        "D",
        "2D",
        "B",
        "W-SUN",
        "W-THU",
        "2W-MON",
        "MS",
        "ME",
        "2MS",
        "QS",
        "QS-FEB",
        "QE",
        "QE-FEB",
        "YS",
        "YS-APR",
        "YE",
        "YE-JUN",
        "2YS",
    ],
)
def test_when_a_regular_index_is_given_then_its_frequency_is_read_back(freq: str) -> None:
    index = pd.date_range("1999-12-27", periods=40, freq=freq)
    grid = regular_grid(index.as_unit("ns").asi8, np.array([0, 40]))
    assert grid.freqs == (freq,)
    assert grid.length.tolist() == [40]
    assert pd.date_range(grid.starts[0], periods=40, freq=grid.freqs[0]).equals(index)
    step, _ = step_of(freq)
    assert step.alias(index[0].to_datetime64()) == freq


@pytest.mark.parametrize("freq", ["h", "D", "B", "W-SUN", "MS", "QE", "YS"])
def test_when_rows_are_absent_then_positions_skip_them(freq: str) -> None:
    index = pd.date_range("1801-01-01", periods=300, freq=freq)
    keep = np.sort(np.r_[0, 299, np.random.default_rng(3).choice(np.arange(1, 299), 240, replace=False)])
    grid = regular_grid(index[keep].as_unit("ns").asi8, np.array([0, len(keep)]))
    assert grid.freqs == (freq,)
    np.testing.assert_array_equal(grid.position, keep)


def test_short_and_sparse_series_take_the_step_of_the_others() -> None:
    days = pd.date_range("2021-03-01", periods=60, freq="D")
    parts = [days, days[[0, 3]], days[[0, 2, 5, 7, 12, 14]], days[[7]]]
    ns = np.concatenate([part.as_unit("ns").asi8 for part in parts])
    grid = regular_grid(ns, np.cumsum([0, 60, 2, 6, 1]))
    assert grid.freqs == ("D", "D", "D", "D")
    assert grid.length.tolist() == [60, 4, 15, 1]


@pytest.mark.parametrize(
    ("stamps", "freq", "row", "text"),
    [
        (["2020-01-01", "2020-01-02", "2020-01-02"], None, 2, "each timestamp once"),
        (["2020-01-01", "2020-01-03", "2020-01-02"], None, 2, "ascending"),
        (["2020-01-01", "2020-01-02", "2020-01-03", "2020-01-04 06:00"], None, 3, "mixed frequencies"),
        (["2020-01-01"], None, 0, "at least two rows"),
        (["2020-01-01", "2020-01-02", "2020-01-02 12:00"], "D", 2, "steps of D"),
        (["2020-01-01", "2020-02-01", "2020-02-15"], "MS", 2, "one row per period"),
        (["2020-01-03", "2020-01-04"], "B", 1, "weekdays"),
        (["2020-01-01 00:00", "2020-01-01 01:00", "2205-01-01 02:00"], None, 2, "large gaps"),
    ],
)
def test_a_broken_grid_names_its_first_row(stamps: list[str], freq: str | None, row: int, text: str) -> None:
    ns = pd.DatetimeIndex(pd.to_datetime(stamps, format="ISO8601")).as_unit("ns").asi8
    with pytest.raises(BadTime, match=text) as caught:
        regular_grid(ns, np.array([0, len(ns)]), freq)
    assert caught.value.row == row


def test_any_day_of_a_period_stands_for_it_when_the_frequency_is_given() -> None:
    ns = pd.DatetimeIndex(["2020-01-15", "2020-02-15", "2020-04-14"]).as_unit("ns").asi8
    for freq, start in (("MS", "2020-01-01"), ("ME", "2020-01-31")):
        grid = regular_grid(ns, np.array([0, 3]), freq)
        assert grid.position.tolist() == [0, 1, 3]
        assert str(grid.starts[0])[:10] == start
    quarters = regular_grid(ns[[0, 2]], np.array([0, 2]), "QS-FEB")
    assert (quarters.position.tolist(), str(quarters.starts[0])[:10]) == ([0, 1], "2019-11-01")


def test_step_of_days_has_the_alias_of_days() -> None:
    assert Step("tick", DAY).alias(np.datetime64("2020-01-01")) == "D"
