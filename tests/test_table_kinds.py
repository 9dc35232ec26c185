"""What people export, by kind: spellings of dates and numbers, calendars, several columns for one time or id, rows
around a table, other steps, bad series, and answers that join their table."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from command import done, run
from stamps import BERLIN, DAYS, HOURS, MONTHS, WEEKS

import tsfm
from tsfm_data.errors import InputError
from tsfm_data.io import natural_season, read_series

WEEK = (10, 20, 30, 40, 50, 70, 5)


def table(stamps: Any, spelling: str | None = None, head: str = "date,v", sep: str = ",") -> str:
    """A table whose values repeat every seven rows."""
    cells = [stamp.strftime(spelling) if spelling else stamp for stamp in stamps]
    return f"{head}\n" + "".join(f"{cell}{sep}{WEEK[i % 7]}\n" for i, cell in enumerate(cells))


def cells(spelling: str, sep: str = ",") -> str:
    """A daily table whose values are spelt with {} for 10, 20, ..."""
    return f"date{sep}v\n" + "".join(f"{d:%Y-%m-%d}{sep}{spelling.format(WEEK[i % 7])}\n" for i, d in enumerate(DAYS))


def open_hours(days: int, *hours: tuple[int, int]) -> list[pd.Timestamp]:
    """Hours of a shop: (first, last) from Monday on; days without are closed."""
    stamps = pd.date_range("2024-01-01", periods=24 * days, freq="h")
    return [s for s in stamps if s.dayofweek < len(hours) and hours[s.dayofweek][0] <= s.hour <= hours[s.dayofweek][1]]


def late(stamps: pd.DatetimeIndex, **moved: int) -> list[pd.Timestamp]:
    """Some stamps, moved."""
    return [s + pd.Timedelta(**moved) if i in (5, 17, 40) else s for i, s in enumerate(stamps)]


ISO_WEEKS = "week,v\n" + "".join(f"{y}-W{w:02d},{w}\n" for y in (2021, 2022) for w in range(1, 53))
TRADING = [s for s in pd.date_range("2024-01-01", periods=480, freq="15min") if "09:30" <= f"{s:%H:%M}" < "16:00"]

# Text of the table -> frequency, first stamp of the forecast, first value.
TEXTS: dict[str, tuple[str, str, str, float]] = {
    "a minute late": (table(late(HOURS, minutes=1)), "h", "2024-01-21", 10),
    "weekday moved": (table(late(WEEKS, days=1), "%Y-%m-%d"), "W-MON", "2022-12-05", 10),
    "closed at night": (table(open_hours(40, *7 * [(8, 19)])), "h@MON-SUN 08:00-19:00", "2024-02-10 08:00", 10),
    "closed on Sunday": (
        table(open_hours(60, *5 * [(8, 19)], (9, 12))),
        "h@MON-FRI 08:00-19:00, SAT 09:00-12:00",
        "2024-03-01 08:00",
        10,
    ),
    "one week of trading": (table(TRADING), "15min@MON-FRI 09:30-15:45", "2024-01-08 09:30", 10),
    "closing prices": (
        table(pd.bdate_range("2024-01-01", periods=80) + pd.Timedelta(hours=16)),
        "D@MON-FRI 16:00",
        "2024-04-22 16:00",
        10,
    ),
    "Monday, Wednesday, Friday": (
        table([d for d in DAYS if d.dayofweek in (0, 2, 4)], "%Y-%m-%d"),
        "D@MON, WED, FRI",
        "2024-03-11",
        10,
    ),
    "any weekday": (
        table([w + pd.Timedelta(days=i * 5 % 3) for i, w in enumerate(WEEKS)], "%Y-%m-%d"),
        "W-MON",
        "2022-12-05",
        10,
    ),
    "six days a week": (table([d for d in DAYS if d.dayofweek < 6], "%Y-%m-%d"), "D@MON-SAT", "2024-03-11", 10),
    "middle of the month": (table(MONTHS + pd.Timedelta(days=14), "%Y-%m-%d"), "MS@15", "2023-01-15", 10),
    "last business day": (table(pd.date_range("2018-01-01", periods=60, freq="BME")), "ME", "2023-01-31", 10),
    "weeks of ISO": (ISO_WEEKS, "W-MON", "2023-01-02", 1),
    "weeks by begin and end": (
        table([f"{w:%Y-%m-%d}/{w + pd.Timedelta(days=6):%Y-%m-%d}" for w in WEEKS]),
        "W-MON",
        "2022-12-05",
        10,
    ),
    "quarters": (
        "quarter,v\n" + "".join(f"Q{q} {y},{q}\n" for y in range(2010, 2022) for q in (1, 2, 3, 4)),
        "QS",
        "2022-01-01",
        1,
    ),
    "half years": (
        "period,v\n" + "".join(f"{y}H{h},{h}\n" for y in range(2010, 2025) for h in (1, 2)),
        "2QS",
        "2025-01-01",
        1,
    ),
    "am and pm": (table(HOURS, "%m/%d/%Y %I:%M %p"), "h", "2024-01-21", 10),
    "month names": (table(DAYS, "%d-%b-%y"), "D", "2024-03-11", 10),
    "months with weekday": (table(DAYS, "%a %d %b %Y"), "D", "2024-03-11", 10),
    "month and short year": (table(MONTHS, "%b-%y"), "MS", "2023-01-01", 10),
    "month of year": (table(MONTHS, "%m/%Y"), "MS", "2023-01-01", 10),
    "month as number": (table(MONTHS, "%Y%m"), "MS", "2023-01-01", 10),
    "Eurostat": (table(MONTHS, "%YM%m", "TIME_PERIOD,OBS_VALUE"), "MS", "2023-01-01", 10),
    "two digits, day first": (table(DAYS, "%d/%m/%y"), "D", "2024-03-11", 10),
    "two digits, month first": (table(DAYS, "%m/%d/%y"), "D", "2024-03-11", 10),
    "two digits, year first": (table(DAYS, "%y-%m-%d"), "D", "2024-03-11", 10),
    "date and time": (
        "Date,Time,v\n" + "".join(f"{h:%m/%d/%Y},{h:%I:%M %p},{h.hour}\n" for h in HOURS),
        "h",
        "2024-01-21",
        0,
    ),
    "hours 1 to 24": (
        "date,hour,v\n" + "".join(f"{h:%Y-%m-%d},{h.hour + 1},{h.hour}\n" for h in HOURS),
        "h",
        "2024-01-21",
        0,
    ),
    "year, month, day": (
        "year,month,day,v\n" + "".join(f"{d.year},{d.month},{d.day},{WEEK[i % 7]}\n" for i, d in enumerate(DAYS)),
        "D",
        "2024-03-11",
        10,
    ),
    "points are day first": (table(MONTHS, "%d.%m.%Y"), "MS", "2023-01-01", 10),
    "year and quarter": (
        "year,quarter,gdp\n" + "".join(f"{y},{q},{q}\n" for y in range(2000, 2020) for q in (1, 2, 3, 4)),
        "QS",
        "2020-01-01",
        1,
    ),
    "begin and end": (
        table([f"{h:%d.%m.%Y %H:%M} - {h + pd.Timedelta(hours=1):%d.%m.%Y %H:%M}" for h in HOURS], None, "MTU,Load"),
        "h",
        "2024-01-21",
        10,
    ),
    "Japanese": (table(DAYS, "%Y/%m/%d", "日付,売上"), "D", "2024-03-11", 10),
    "any header": (table(DAYS, "%Y-%m-%d", "wann,wieviel"), "D", "2024-03-11", 10),
    "Excel serials": (table([(d - pd.Timestamp("1899-12-30")).days for d in DAYS]), "D", "2024-03-11", 10),
    "every fifth step": ("step,y\n" + "".join(f"{5 * i},{WEEK[i % 7]}\n" for i in range(70)), "5ns", "350", 5),
    "offset of India": (table([f"{d:%Y-%m-%d} 00:00:00+05:30" for d in DAYS]), "D", "2024-03-11 00:00:00+05:30", 10),
    "across a clock change": (table(BERLIN), "D", "2024-04-29 00:00:00+02:00", 60),
    "midnights in UTC": (table(BERLIN.tz_convert("UTC").tz_localize(None)), "D", "2024-04-28 22:00:00", 60),
    "euros": (cells("{},50 €", ";"), "D", "2024-03-11", 10.5),
    "pounds": (cells('"£{},000.50"'), "D", "2024-03-11", 10000.5),
    "brackets": (cells("({})"), "D", "2024-03-11", -10),
    "spaces": (cells("{} 000,5", ";"), "D", "2024-03-11", 10000.5),
    "apostrophes": (cells("{}'000.50", ";"), "D", "2024-03-11", 10000.5),
    "percent": (cells("{},5 %", ";"), "D", "2024-03-11", 10.5),
    "Excel's first line": ("sep=;\n" + table(DAYS, "%Y-%m-%d", "date;v", ";"), "D", "2024-03-11", 10),
    "titles": ("Report,\nregion: north,\n,\n" + table(DAYS, "%Y-%m-%d"), "D", "2024-03-11", 10),
    "units": (table(DAYS, "%Y-%m-%d", "date,v\n,kWh"), "D", "2024-03-11", 10),
    "source below": (table(DAYS, "%Y-%m-%d") + "Source: bureau of numbers\n", "D", "2024-03-11", 10),
    "comma at the end": (table(DAYS, "%Y-%m-%d").replace("\n", ",\n").replace("v,", "v"), "D", "2024-03-11", 10),
    "source below, with a comma": (table(DAYS, "%Y-%m-%d") + '\n"Source: bureau, 2024"\n', "D", "2024-03-11", 10),
    "two spans of years": (
        "year,v\n" + "".join(f"{2001 + i}/{(i + 2) % 100:02d},{i + 1}\n" for i in range(10)), "YS", "2011-01-01", 1
    ),
    "fiscal years": ("fy,v\n" + "".join(f"FY{2001 + i},{i + 1}\n" for i in range(10)), "YS", "2011-01-01", 1),
    "weeks as numbers": (ISO_WEEKS.replace("-W", ""), "W-MON", "2023-01-02", 1),
    "quarters with short years": (
        "quarter,v\n" + "".join(f"{q}Q{y},{q}\n" for y in range(10, 22) for q in (1, 2, 3, 4)), "QS", "2022-01-01", 1
    ),
    "year and month by name": (
        "Year,Month,v\n" + "".join(f"{m.year},{m:%B},{WEEK[i % 7]}\n" for i, m in enumerate(MONTHS)),
        "MS", "2023-01-01", 10,
    ),
    "months across": (
        "Year," + ",".join(f"{m:%b}" for m in MONTHS[:12]) + "\n"
        + "".join(f"{y}," + ",".join(map(str, range(1, 13))) + "\n" for y in range(2018, 2023)),
        "MS", "2023-01-01", 1,
    ),
    "hours across": (
        "Date," + ",".join(f"{h:02d}:00" for h in range(24)) + "\n"
        + "".join(f"{d:%Y-%m-%d}," + ",".join(map(str, range(24))) + "\n" for d in DAYS),
        "h", "2024-03-11", 0,
    ),
    "years across": (
        "item," + ",".join(map(str, range(2000, 2020))) + "\na," + ",".join(map(str, range(1, 21))) + "\n",
        "YS", "2020-01-01", 1,
    ),
    "half hours of the day": (
        "settlement_date,settlement_period,v\n"
        + "".join(f"{d:%Y-%m-%d},{p},{p}\n" for d in DAYS for p in range(1, 49)),
        "30min", "2024-03-11", 1,
    ),
    "Chinese": (table(DAYS, "%Y年%m月%d日", "日期,销量"), "D", "2024-03-11", 10),
    "Finnish clock": (table(HOURS, "%d.%m.%Y %H.%M", "Aika;v", ";"), "h", "2024-01-21", 10),
    "hour without a zero": (table([f"{h:%Y-%m-%d} {h.hour}" for h in HOURS]), "h", "2024-01-21", 10),
    "zone said twice": (table([f"{h} +0000 UTC" for h in HOURS]), "h", "2024-01-21 00:00+00:00", 10),
    "name of the zone": (table([f"{h}+01:00[Europe/Berlin]" for h in HOURS]), "h", "2024-01-21 00:00+01:00", 10),
    "epoch microseconds": (
        table([int(d.timestamp() * 1e6) for d in DAYS], None, "ts,v"), "D", "2024-03-11", 10
    ),
    "thousands in one column, decimals in another": (
        "date;b;a\n" + "".join(f"{d:%Y-%m-%d};1.{w:03d};{w},5\n" for d, w in zip(DAYS, 10 * WEEK, strict=True)),
        "D", "2024-03-11", 1010,
    ),
    "years as names of series": (
        table(DAYS, "%Y-%m-%d", "date,2019,2020,2021").replace("\n", ",1,2\n").replace("2021,1,2", "2021"),
        "D", "2024-03-11", 10,
    ),
}  # fmt: skip


def following(series: Any) -> str:
    return str(series.labels.show(series.timestamps(0, extra=1))[-1])


@pytest.mark.parametrize("kind", TEXTS)
def test_a_table_of_any_kind_is_read_and_goes_on_where_it_would(kind: str, tmp_path: Path) -> None:
    text, freq, first, value = TEXTS[kind]
    path = tmp_path / "table.csv"
    path.write_text(text, encoding="utf-8")
    series = read_series(path)
    assert series.freqs[0] == freq
    assert following(series) == first or pd.Timestamp(following(series)) == pd.Timestamp(first)
    if kind not in ("across a clock change", "midnights in UTC", "every fifth step"):
        assert series.item(0)[0, 0] == value
    assert not np.isnan(series.item(0)).any()


def test_columns_of_a_wide_table_that_cannot_be_read_are_named_left_out_or_mended() -> None:
    frame = pd.DataFrame({"date": DAYS, "a": range(70), "b": ["1*", *["2"] * 69], "c": [np.nan] * 70})
    with pytest.raises(InputError, match=r"column 'b', row 1: expected a number, found '1\*'"):
        read_series(frame)
    with pytest.raises(
        InputError, match=r"column 'c'.*no value in any row; leave the column out: .*--on-bad-series skip"
    ):
        read_series(frame.drop(columns="b"))
    skipped = read_series(frame, on_bad_series="skip")
    assert skipped.variates == ("a",)
    assert [note.split(":")[0] for note in skipped.notes] == ["column 'b' left out", "column 'c' left out"]
    mended = read_series(frame, on_bad_series="fix")
    assert mended.variates == ("a", "b")
    assert np.isnan(mended.item(0)[0, 1])
    assert mended.item(0)[1].tolist() == [1, 2]
    assert any(note.startswith("1 rows with cells that are no numbers") for note in mended.notes)


def test_the_columns_of_a_table_of_the_future_are_covariates_and_no_targets() -> None:
    frame = pd.DataFrame({"ds": DAYS, "sales": range(70), "promo": [0, 1] * 35})
    future = pd.DataFrame({"ds": DAYS[-2:] + pd.Timedelta(days=2), "sales": [np.nan] * 2, "promo": [1, 0]})
    series = read_series(frame, future=future)
    assert (series.variates, series.known_names) == (("sales",), ("promo",))
    with pytest.raises(InputError, match="expected a column of the first table"):
        read_series(frame.drop(columns="sales"), future=future[["ds", "promo"]])


def test_steps_that_are_mostly_missing_are_said() -> None:
    frame = pd.DataFrame({"date": [*DAYS[:10], *(DAYS[:10] + pd.Timedelta(days=200))], "v": range(20)})
    assert any("190 of 210 steps of D have no row" in note for note in read_series(frame).notes)
    assert not read_series(frame.iloc[:10]).notes


@pytest.mark.parametrize(
    ("freq", "season"),
    [
        ("D", 7),
        ("h", 24),
        ("15min", 96),
        ("B", 5),
        ("W-MON", 52),
        ("MS", 12),
        ("ME", 12),
        ("QS", 4),
        ("YS", 1),
        ("2h", 12),
    ],
)
def test_the_natural_season_is_that_of_the_calendar(freq: str, season: int) -> None:
    assert natural_season(freq) == season
    frame = pd.DataFrame({"date": pd.date_range("2024-01-01", periods=60, freq=freq), "y": np.arange(60.0)})
    assert read_series(frame).season_of(freq) == season
    assert read_series(frame, season=9).season_of(freq) == 9


def test_rows_of_any_step_are_brought_to_the_one_asked_for() -> None:
    frame = pd.DataFrame({"date": HOURS[:72], "y": np.arange(72.0)})
    frame.loc[5, "y"] = np.nan
    found = {how: read_series(frame, resample="D", aggregate=how) for how in ("mean", "sum", "last", "max")}  # type: ignore[arg-type]
    expected = frame.set_index("date")["y"].resample("D")
    for how, series in found.items():
        assert series.freqs == ("D",)
        np.testing.assert_allclose(series.item(0)[:, 0], getattr(expected, how)())
    weekly = read_series(pd.DataFrame({"date": DAYS, "y": np.arange(70.0)}), resample="W", aggregate="sum")
    np.testing.assert_allclose(weekly.item(0)[:, 0], pd.Series(np.arange(70.0), DAYS).resample("W").sum())
    assert weekly.freqs == ("W-SUN",)
    cut = read_series(frame.iloc[:60], resample="D", aggregate="sum")
    assert cut.length(0) == 2
    assert cut.notes[0] == "the last period of D is incomplete: its 12 rows are left out of the sums"


@pytest.mark.parametrize("first", ["2024-03-28", "2024-10-25"])
def test_days_weeks_and_months_of_a_zone_are_those_of_its_local_time(first: str) -> None:
    hours = pd.date_range(first, "2024-11-04 22:00", freq="h", tz="Europe/Berlin")
    frame = pd.DataFrame({"date": hours, "y": 1.0})
    for freq in ("D", "W", "MS"):
        series = read_series(frame, resample=freq, aggregate="sum")
        expected = frame.set_index("date")["y"].resample(freq).sum().iloc[:-1]  # the last period is not complete
        assert series.values[:, 0].tolist() == expected.tolist()
        assert series.labels.show(series.timestamps(0)).tolist() == expected.index.tolist()
    assert (read_series(frame, resample="6h", aggregate="sum").values[1:] == 6).all()  # of UTC


def test_a_frequency_that_is_named_moves_stamps_that_are_near_its_steps() -> None:
    stamps = [s + pd.Timedelta(seconds=i % 3) for i, s in enumerate(HOURS)]
    series = read_series(pd.DataFrame({"date": stamps, "y": 1.0}), freq="h")
    assert series.notes == ("320 of 480 timestamps moved onto the regular grid of h",)
    assert following(series) == "2024-01-21 00:00:00"
    with pytest.raises(InputError, match="expected steps of 7h from the first timestamp"):
        read_series(pd.DataFrame({"date": stamps, "y": 1.0}), freq="7h")


def test_business_days_leave_the_holidays_out_that_are_named() -> None:
    days = [d for d in pd.bdate_range("2024-01-01", periods=80) if str(d.date()) != "2024-01-15"]
    frame = pd.DataFrame({"date": days, "y": np.arange(79.0)})
    series = read_series(frame, freq="C", holidays=["2024-01-15", "2024-04-22"])
    assert series.length(0) == 79
    assert following(series) == "2024-04-23 00:00:00"
    with pytest.raises(InputError, match="expected frequency B or C with holidays, found 'D'"):
        read_series(frame, freq="D", holidays=["2024-01-15"])


def shops() -> pd.DataFrame:
    """Three daily series, and one with stamps at random."""
    good = [pd.DataFrame({"shop_id": s, "day": DAYS, "sold": [float(v) for v in WEEK * 10]}) for s in (3, 1, 2)]
    stamps = ["2024-01-01 00:03", "2024-01-01 07:00", "2024-01-03 09:00", "2024-02-09 11:13"]
    bad = pd.DataFrame({"shop_id": 9, "day": pd.to_datetime(stamps), "sold": 1.0})
    return pd.concat([*good, bad], ignore_index=True)


def test_one_bad_series_is_named_skipped_or_fixed_but_never_stops_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "shops.csv"
    shops().to_csv(path, index=False)
    words = ("forecast", str(path), "--horizon", "2", "--model", "seasonal-naive", "--levels", "0.5")
    said = run(capsys, *words)
    assert said.status == 2
    assert said.err.count("\n") == 1
    for part in ("row 214", "series '9'", "3 of 4 series are good", "--on-bad-series"):
        assert part in said.err
    said = run(capsys, *words, "--on-bad-series", "skip")
    assert said.status == 0
    assert "1 of 4 series skipped: 9" in said.err
    assert [line.split(",")[0] for line in said.out.splitlines()[1:]] == ["3", "3", "1", "1", "2", "2"]
    said = run(capsys, *words, "--on-bad-series", "fix")
    assert said.status == 0
    assert "1 of 4 series fixed (resampled to D): 9" in said.err
    assert len(said.out.splitlines()) == 1 + 8


def test_invalid_numbers_are_missing_in_a_fixed_series() -> None:
    frame = shops().iloc[:210].astype({"sold": object})
    frame.loc[75, "sold"] = "closed"
    with pytest.raises(InputError, match=r"row 76: expected a number, found 'closed'.*2 of 3 series are good"):
        read_series(frame)
    assert read_series(frame, on_bad_series="skip").item_ids == ("3", "2")
    mended = read_series(frame, on_bad_series="fix")
    assert np.isnan(mended.item(1)).sum() == 1
    frame = shops().iloc[:210].astype({"day": str})
    frame.loc[150, "day"] = "soon"
    with pytest.raises(InputError, match=r"row 151: expected a date, found 'soon'.*2 of 3 series are good"):
        read_series(frame)
    assert read_series(frame, on_bad_series="skip").item_ids == ("3", "1")
    assert np.isnan(read_series(frame, on_bad_series="fix").item(2)).sum() == 1


def test_the_answer_has_the_ids_columns_and_order_of_the_table() -> None:
    frame = tsfm.load("seasonal-naive").forecast(shops().iloc[:210], horizon=1)
    assert list(frame.columns[:3]) == ["shop_id", "day", "mean"]
    assert frame["shop_id"].dtype == np.int64
    assert frame["shop_id"].tolist() == [3, 1, 2]
    assert frame["mean"].tolist() == [10, 10, 10]
    aware = pd.DataFrame({"when": BERLIN, "y": np.arange(40.0)})
    zone = tsfm.load("naive").forecast(aware, horizon=1)["when"]
    assert str(zone.dt.tz) == "Europe/Berlin"


def test_times_with_and_without_a_zone_do_not_mix() -> None:
    stamps = [f"{day:%Y-%m-%d} 00:00:00" + ("Z" if i != 3 else "") for i, day in enumerate(DAYS)]
    with pytest.raises(InputError, match="row 4: expected a time with its zone, as in other rows, found '2024-01-04"):
        read_series(pd.DataFrame({"date": stamps, "y": 1.0}))


def test_keys_and_row_numbers_are_no_targets_and_are_named(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"id": range(1, 71), "date": DAYS, "price": WEEK * 10, "customer_id": [i * 7 % 13 for i in range(70)]}
    )
    series = read_series(frame)
    assert series.variates == ("price",)
    assert series.notes == ("columns not used as target or covariate: id, customer_id",)
    with pytest.raises(InputError, match=r"'id': expected ids of series.*--no-item-column"):
        read_series(frame, item_column="id", target="price", freq="D")


def test_several_key_columns_make_one_id() -> None:
    rows = [(d, s, p, 1.0 * s * p) for d in DAYS for s in (1, 2) for p in (7, 8)]
    series = read_series(pd.DataFrame(rows, columns=["date", "store_nbr", "item_nbr", "units"]))
    assert series.item_ids == ("1/7", "1/8", "2/7", "2/8")
    assert series.variates == ("units",)


def test_the_future_of_known_covariates_comes_as_a_second_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    promo, weather = ["yes", "no"] * 35, ["sun", "rain", "snow", "sun", "sun"] * 14
    past = pd.DataFrame({"date": DAYS, "sales": np.arange(70.0), "promo": promo, "weather": weather})
    ahead = {"date": pd.date_range("2024-03-11", periods=3), "promo": ["yes", "yes", "no"]}
    future = pd.DataFrame({**ahead, "weather": ["sun", "snow", "rain"]})
    series = read_series(past, future=future)
    assert series.variates == ("sales",)
    assert series.future_rows.tolist() == [3]
    assert series.known_names == ("promo", "weather=rain", "weather=snow", "weather=sun")
    assert series.known[70:].tolist() == [[1, 0, 0, 1], [1, 0, 1, 0], [0, 1, 0, 0]]
    past.to_csv(tmp_path / "past.csv", index=False)
    future.to_csv(tmp_path / "future.csv", index=False)
    words = ("forecast", str(tmp_path / "past.csv"), "--horizon", "3", "--model", "naive", "--future")
    assert done(capsys, *words, str(tmp_path / "future.csv")).splitlines()[1].startswith("sales,2024-03-11,69.0")
    future.drop(columns="date").to_csv(tmp_path / "future.csv", index=False)
    said = run(capsys, *words, str(tmp_path / "future.csv"))
    assert said.status == 2
    assert "future.csv: expected the columns date of the first table, found no 'date'" in said.err


def test_rows_of_the_future_that_repeat_the_history_are_left_out() -> None:
    past = pd.DataFrame({"date": DAYS, "sales": np.arange(70.0), "price": WEEK * 10, "shop": "a"})
    future = pd.DataFrame({"date": pd.date_range("2024-03-11", periods=3), "price": [1.5, 2, 3]})
    both = pd.concat([past[["date", "price"]].tail(20), future])
    series = read_series(past, target="sales", future=both)
    assert series.values[:70, 0].tolist() == past["sales"].tolist()
    assert (series.future_rows.tolist(), series.known[70:, 0].tolist()) == ([3], [1.5, 2, 3])
    assert "20 duplicate rows left out" in series.notes
    both.loc[60, "price"] = 99
    with pytest.raises(InputError, match=r"the future table, column 'date', row 11: .*2024-03-01 00:00:00 again"):
        read_series(past, target="sales", future=both)


@pytest.mark.parametrize("suffix", ["csv", "parquet", "json"])
def test_times_and_ids_named_as_columns_of_the_answer_are_not_lost(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = pd.DataFrame({"mean": DAYS, "0.5": "a", "v": np.arange(70.0)})
    frame.to_csv(tmp_path / "t.csv", index=False)
    words = ("--horizon", "2", "--model", "naive", "--time-column", "mean", "--item-column", "0.5")
    done(capsys, "forecast", str(tmp_path / "t.csv"), *words, "--output", str(tmp_path / f"f.{suffix}"))
    if suffix == "json":
        found = pd.DataFrame(json.loads((tmp_path / "f.json").read_text())["rows"])
    else:
        found = getattr(pd, f"read_{suffix}")(tmp_path / f"f.{suffix}")
    assert found.columns.is_unique
    assert found["item_id"].tolist() == ["a", "a"]
    assert found["timestamp"].astype(str).tolist() == ["2024-03-11", "2024-03-12"]
    assert found["mean"].tolist() == [69, 69]


def test_forecasts_are_kept_within_what_series_can_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"date": DAYS, "count": rng.poisson(0.5, 70).astype(float), "level": rng.normal(size=70)})
    frame.to_csv(tmp_path / "t.csv", index=False)
    words = (
        "forecast",
        str(tmp_path / "t.csv"),
        "--horizon",
        "7",
        "--model",
        "seasonal-naive",
        "--interval",
        "80",
        "95",
    )
    path = tmp_path / "out.csv"
    done(capsys, *words, "--output", str(path))
    free = pd.read_csv(path).set_index("item_id")
    assert list(free.columns[2:]) == ["0.025", "0.1", "0.5", "0.9", "0.975"]
    assert free.loc["count", "0.025"].min() < 0
    done(capsys, *words, "--output", str(path), "--overwrite", "--lower", "auto", "--integer", "auto")
    kept = pd.read_csv(path).set_index("item_id")
    counts = kept.loc["count"].iloc[:, 2:].to_numpy()
    assert (counts >= 0).all()
    assert (counts == np.round(counts)).all()
    pd.testing.assert_frame_equal(kept.loc[["level"]], free.loc[["level"]])
    done(capsys, *words, "--output", str(path), "--overwrite", "--lower", "0", "--integer")
    assert (pd.read_csv(path).iloc[:, 2:].to_numpy() >= 0).all()
    said = run(capsys, *words, "--lower", "much")
    assert said.status == 2
    assert "expected a number or auto" in said.err


def test_an_excel_file_is_read_or_says_what_it_needs(tmp_path: Path) -> None:
    path = tmp_path / "book.xlsx"
    path.write_bytes(b"no book")
    with pytest.raises(InputError, match=r"openpyxl|expected an Excel file"):
        read_series(path)
    pytest.importorskip("openpyxl")
    frame = pd.DataFrame({"date": DAYS, "v": WEEK * 10})
    with pd.ExcelWriter(path) as writer:
        pd.DataFrame([["Report"]]).to_excel(writer, index=False, header=False, sheet_name="one")
        frame.to_excel(writer, index=False, sheet_name="one", startrow=2)
    series = read_series(path)
    assert (series.variates, series.freqs) == (("v",), ("D",))
    assert series.item(0)[:3, 0].tolist() == [10, 20, 30]


def test_the_profile_of_your_own_tables_has_the_season_of_the_calendar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.csv").write_text(table(DAYS, "%Y-%m-%d"))
    words = ("evaluate", "--model", "seasonal-naive", "--data", str(tmp_path / "t.csv"), "--horizon", "7", "--json")
    path = str(tmp_path / "s.json")
    rows = {}
    for name, more in {"own": (), "gift": ("--profile", "gift"), "asked": ("--season", "3")}.items():
        shown = done(capsys, *words, path, *more, "--overwrite")
        assert "season" in shown
        if name == "gift":
            assert "season 1 as in profile gift; that of the calendar is 7" in shown
        rows[name] = pd.DataFrame(json.loads(Path(path).read_text())["rows"]).query(
            "model == 'seasonal-naive' and metric == 'MAE'"
        )
    assert {name: int(found["season"].iloc[0]) for name, found in rows.items()} == {"own": 7, "gift": 1, "asked": 3}
    assert rows["own"]["value"].iloc[0] == 0
    assert rows["gift"]["value"].iloc[0] > 1


def test_when_rows_are_taken_in_their_order_then_a_bad_date_or_cell_is_an_error_whatever_is_asked() -> None:
    days = ["2024-01-01", "2024-01-02", "2024-01-03"]
    frame = pd.DataFrame({"item_id": list("bbbaaa"), "timestamp": [*days[:2], "soon", *days], "target": range(6)})
    with pytest.raises(InputError, match="soon"):
        read_series(frame, freq="D", order="rows", on_bad_series="skip")
    frame = frame.assign(timestamp=[*days, *days], target=[0, "x1y", 2, 3, 4, 5])
    with pytest.raises(InputError, match="x1y"):
        read_series(frame, freq="D", order="rows", on_bad_series="skip")
