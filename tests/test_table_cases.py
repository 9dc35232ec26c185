"""Small tables as people export them: each is read as its line says, or refused with the way out.

Every file of the folder is a case by being there. A file without a line below is read or refused in one line.
"""

import contextlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pytest
from command import run
from conftest import shared_folder

from tsfm.inference import forecast_frame, load_predictor
from tsfm_data.errors import InputError
from tsfm_data.io import SeriesSet, read_series
from tsfm_data.windows import Windows

FOLDER = shared_folder("TSFM_CASES", "../shared/cases") / "tables"
FILES = sorted(path.name for path in FOLDER.glob("*") if path.name != "README.md")
WEEK = (10.0, 20.0, 30.0, 40.0, 50.0, 70.0, 5.0)
PROMO = {"known_covariates": ["promo"]}


@dataclass(frozen=True)
class Right:
    """What is right for a table.

    Attributes:
        next: the first stamp of the forecast, as text.
        values: what seasonal naive forecasts for the first steps.
        freq: frequency.
        season: steps in a season.
        variates: value columns; None leaves them open.
        ids: series; None leaves them open.
        note: part of a note.
        options: how it is read.
    """

    next: str
    values: tuple[float, ...]
    freq: str = "D"
    season: int | None = None
    variates: tuple[str, ...] | None = None
    ids: tuple[str, ...] | None = None
    note: str = ""
    options: dict[str, Any] = field(default_factory=dict)


MAR = Right("2024-03-11", WEEK[:2])
MAY = Right("2024-05-20", WEEK[:2])
MONTHS = Right("2023-02-01", (200.0, 300.0), "MS", 12)
HOURS = (0.0, 1.0)
SALES = Right("2024-01-22", (), season=7, variates=("sales",), options=PROMO)
READ: dict[str, Right] = {
    "bday_holidays.csv": Right("2024-07-15", (10.0, 20.0), "B", 5),
    "city_long.csv": Right("2024-05-20", WEEK[:2], ids=("Oslo", "Rome"), variates=("temp",)),
    "city_long_bydate.csv": Right("2024-05-20", WEEK[:2], ids=("Oslo", "Rome"), variates=("temp",)),
    "const_small.csv": Right("2024-05-20", (0.001,)),
    "const_text.csv": Right("2024-05-20", WEEK[:2], variates=("temp",), note="city"),
    "cov_bool.csv": SALES,
    "cov_known.csv": SALES,
    "cov_text.csv": SALES,
    "cov_past_hole.csv": SALES,
    "cov_future_hole.csv": SALES,
    "cov_no_future.csv": SALES,
    "cov_two_future.csv": SALES,
    "cov_long_static.csv": Right("2024-01-22", (), ids=("A", "B"), variates=("sales",), note="region", options=PROMO),
    "cov_uneven_future.csv": Right("2024-01-22", (), ids=("A", "B"), variates=("sales",), options=PROMO),
    "currency.csv": MAR,
    "daily_localmidnight_in_utc.csv": Right("2025-11-09 23:00:00+00:00", WEEK[:2]),
    "daily_noon.csv": Right("2024-03-11 12:00", WEEK[:2]),
    "daily_noon.csv.gz": Right("2024-03-11 12:00", WEEK[:2]),
    "date_plus_hour.csv": Right("2024-01-11", HOURS, "h", 24, ("load",)),
    "dates_across.csv": Right("2023-03-12", WEEK[:2], ids=("a", "b")),
    "dayfirst.csv": MAR,
    "dayfirst_dot.csv": MAR,
    "db_primary_key.csv": Right("2024-05-20", WEEK[:2], variates=("value",), ids=("value",), note="id"),
    "dst_naive_gap.csv": Right("2025-04-09 01:00", (1.0, 2.0), "h", 24),
    "ends_differ_long.csv": Right("2023-05-21", WEEK[:2], ids=("a", "b")),
    "epoch_float.csv": MAR,
    "epoch_frac.csv": Right("2024-03-11 00:00:00.25", WEEK[:2]),
    "epoch_ms.csv": MAR,
    "epoch_s.csv": MAR,
    "exact_dups.csv": Right("2024-03-11", WEEK[:2], note="1 duplicate row"),
    "excel_mixed_midnight.csv": Right("2024-01-03", HOURS, "h", 24),
    "german.csv": Right("2024-03-11", (12345.0, 24690.0), note="Latin-1"),
    "german_hourly.csv": Right("2024-01-21", HOURS, "h", 24),
    "german_thousand_ints.csv": Right("2024-03-11", (10.234, 20.234), note="--decimal ,"),
    "german_utf8bom.csv": Right("2024-03-11", (15.0, 30.0), variates=("Umsatz",)),
    "header_spaces.csv": MAR,
    "int_step.csv": Right("140", (5.0,), "ns", 1, ("y",)),
    "int_step_ds.csv": Right("141", (5.0,), "ns", 1, ids=("x",)),
    "iso_0000.csv": Right("2024-03-11 00:00:00+00:00", WEEK[:2]),
    "iso_z_15min.csv": Right("2025-09-11 00:00:00+00:00", (50.0,), "15min", 96),
    "jitter_5min.csv": Right("2024-01-03 02:00", (), "5min", 288, note="timestamps moved"),
    "lognormal_1.5.csv": Right("2025-02-04", ()),
    "mixed_freq.csv": Right("2024-01-11", HOURS, "h", 24, ids=("h", "d", "m")),
    "month_bY.csv": MONTHS,
    "month_end.csv": Right("2023-02-28", (200.0,), "ME", 12),
    "month_start.csv": MONTHS,
    "month_ym.csv": MONTHS,
    "na_words.csv": MAR,
    "newest_first.csv": Right("2023-05-21", WEEK[:2], note="newest first"),
    "no_time.csv": Right("140", (5.0,), "ns", 1, ("y",), note="steps 0 to 139"),
    "notes.csv": Right("2024-05-20", WEEK[:2], variates=("y", "y_hat"), note="note"),
    "odd_names.csv": MAR,
    "ohlcv.csv": MAY,
    "percent.csv": MAR,
    "poisson03.csv": Right("2025-02-04", ()),
    "preamble.csv": Right("2024-03-11", WEEK[:2], note="above the header"),
    "quarter_end.csv": Right("2022-09-30", (3.0, 10.0), "QE", 4),
    "quarter_fiscal.csv": Right("2022-07-31", (3.0, 10.0), "QE-JAN", 4),
    "retail.csv": Right("2024-01-01", (), season=7, variates=("units",)),
    "sixty.csv": MAR,
    "slash_ymd.csv": MAR,
    "tail_nan20.csv": MAY,
    "theta_1e7.csv": Right("2024-05-20", (1e7 + 10,)),
    "theta_short.csv": Right("2024-01-06", ()),
    "total_row.csv": Right("2024-03-11", WEEK[:2], note="totals"),
    "trading_hours.csv": Right("2024-02-12 09:30", HOURS, "15min@MON-FRI 09:30-15:45", 26),
    "trailing_comma.csv": Right("2024-03-11", WEEK[:2], variates=("v",)),
    "twodigit_year.csv": Right("2024-01-11", HOURS, "h", 24, note="month first"),
    "tz_daily_berlin.csv": Right("2025-11-02 00:00:00+01:00", (5.0, 10.0)),
    "tz_daily_berlin.parquet": Right("2025-11-02 00:00:00+01:00", (5.0, 10.0)),
    "tz_ny.csv": Right("2025-11-08 23:00:00-05:00", (), "h", 24),
    "unnamed_date_index.csv": MAR,
    "unnamed_index.csv": Right("2024-03-11", WEEK[:2], variates=("v",)),
    "us_short.csv": MAR,
    "us_short_5min_oct.csv": Right("2016-10-13 10:55", (), "5min", 288),
    "us_short_oct.csv": Right("2024-03-08", WEEK[:2]),
    "us_thousands.csv": Right("2024-03-11", (12345.0, 24690.0)),
    "utc_suffix.csv": Right("2024-03-11 00:00:00+00:00", WEEK[:2]),
    "utf16.csv": MAR,
    "value_and_target.csv": Right("2024-05-20", WEEK[:2], variates=("value", "target")),
    "week_mon.csv": Right("2024-12-30", (), "W-MON", 52),
    "week_thu.csv": Right("2025-01-02", (), "W-THU", 52),
    "with_calendar_cols.csv": Right("2024-05-20", WEEK[:2], variates=("value",), note="day, year"),
    "year_int.csv": Right("2025-01-01", (2000000.0,), "YS", 1),
    "ym_cols.csv": Right("2020-01-01", (5.0, 15.0), "MS", 12, ("v",), note="joined"),
    "yyyymmdd.csv": MAR,
}
REFUSED: dict[str, tuple[str, ...]] = {
    "dayfirst_12days.csv": ("2024-03-01 with the day first", "2024-01-03 with the month first", "--dayfirst"),
    "dayfirst_monthly_ambiguous.csv": ("day first", "month first", "--dayfirst"),
    "dst_naive_repeat.csv": ("2025-10-26 02:00:00", "clocks", "--timezone Europe/Berlin"),
    "irregular.csv": ("row 3", "--resample"),
    "month_number.csv": ("'month'", "without a year"),
}
WAYS_OUT: dict[str, tuple[dict[str, Any], str]] = {
    "dayfirst_12days.csv": ({"dayfirst": True}, "2024-03-13"),
    "dayfirst_monthly_ambiguous.csv": ({"dayfirst": True}, "2024-01-01"),
    "dst_naive_repeat.csv": ({"timezone": "Europe/Berlin"}, "2025-11-08 23:00:00+01:00"),
    "irregular.csv": ({"resample": "h"}, "2024-01-08 07:00"),
    "german_thousand_ints.csv": ({"decimal": ","}, "2024-03-11"),
}


def stamp(series: SeriesSet, ahead: int = 0) -> str:
    """A stamp past the end of the first series as the table would have it."""
    return str(series.labels.show(series.timestamps(0, extra=ahead + 1))[-1])


def same(text: str, expected: str) -> bool:
    with contextlib.suppress(ValueError):
        return pd.Timestamp(text) == pd.Timestamp(expected) and ("+" in text) == ("+" in expected)
    return text == expected


@pytest.mark.skipif(not FILES, reason=f"no tables at {FOLDER} (set TSFM_CASES)")
@pytest.mark.parametrize("name", FILES)
def test_a_table_is_read_as_it_is_meant_or_refused_with_the_way_out(name: str) -> None:
    path = FOLDER / name
    if name in REFUSED:
        with pytest.raises(InputError) as caught:
            read_series(path)
        text = str(caught.value)
        assert "\n" not in text
        for part in (name, *REFUSED[name]):
            assert part in text
        return
    if name not in READ:
        with contextlib.suppress(InputError):
            assert len(read_series(path)) > 0
        return
    right = READ[name]
    series = read_series(path, **right.options)
    assert series.freqs[0] == right.freq
    assert same(stamp(series), right.next), stamp(series)
    assert series.season_of(right.freq) == (right.season or 7)
    assert right.variates in (None, series.variates)
    assert right.ids in (None, series.item_ids)
    assert right.note in "; ".join(series.notes)
    frame = forecast_frame(load_predictor("seasonal-naive"), series, len(right.values) or 1, (0.5,))
    found = frame["0.5"].iloc[: len(right.values)].tolist()
    if name != "tail_nan20.csv":  # whose tail is for the forecasters to bridge
        assert found == pytest.approx(list(right.values), rel=1e-9)


@pytest.mark.skipif(not FILES, reason=f"no tables at {FOLDER} (set TSFM_CASES)")
@pytest.mark.parametrize("name", WAYS_OUT)
def test_the_option_that_a_refusal_names_reads_the_table(name: str) -> None:
    options, following = WAYS_OUT[name]
    series = read_series(FOLDER / name, **options)
    assert same(stamp(series), following), stamp(series)
    if name == "german_thousand_ints.csv":
        assert series.item(0)[:3, 0].tolist() == [10234, 20234, 30234]


@pytest.mark.skipif(not FILES, reason=f"no tables at {FOLDER} (set TSFM_CASES)")
@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("cov_bool.csv", ()),
        ("cov_known.csv", ()),
        ("cov_text.csv", ()),
        ("cov_past_hole.csv", ()),
        ("cov_long_static.csv", ()),
        ("cov_future_hole.csv", ("'promo'", "row ", "2024-01-2")),
        ("cov_no_future.csv", ("expected 7 rows", "found 0", "add 7 rows", "2024-01-22", "2024-01-28")),
        ("cov_two_future.csv", ("found 2", "add 5 rows", "2024-01-24", "2024-01-28")),
        ("cov_uneven_future.csv", ("series 'B'", "found 6", "add 1 row, 2024-01-28")),
    ],
)
def test_known_covariates_reach_a_model_or_what_is_missing_is_named(name: str, parts: tuple[str, ...]) -> None:
    series = read_series(FOLDER / name, known_covariates=["promo"])
    ends = np.array([series.length(i) for i in range(len(series))])

    def batch() -> Any:
        return Windows(series, 28, 7, np.arange(len(series)), ends, covariates=True).batch([0])

    if parts:
        with pytest.raises(InputError) as caught:
            batch()
        for part in parts:
            assert part in str(caught.value)
        return
    promo = batch().known_future[0, :, 0].tolist()
    assert promo == [0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0] or set(promo) == {0.0, 1.0}


@pytest.mark.skipif(not FILES, reason=f"no tables at {FOLDER} (set TSFM_CASES)")
@pytest.mark.parametrize(
    ("name", "columns", "first"),
    [
        ("retail.csv", "store_id,date", "101,2024-01-01"),
        ("tz_ny.csv", "item_id,timestamp", "load,2025-11-08 23:00:00-05:00"),
        ("int_step_ds.csv", "unique_id,ds", "x,141"),
        ("german_hourly.csv", "item_id,Zeit", "v,2024-01-21 00:00:00"),
    ],
)
def test_the_command_answers_with_the_columns_ids_and_stamps_of_the_table(
    name: str, columns: str, first: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = run(capsys, "forecast", str(FOLDER / name), "--horizon", "2", "--model", "seasonal-naive")
    assert said.status == 0, said.err
    lines = said.out.splitlines()
    assert lines[0].startswith(columns + ",mean,")
    assert lines[1].startswith(first)
