"""Tables become regular, contiguous series; every mistake in a table is one line that names its place."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from tsfm_data.errors import InputError
from tsfm_data.io.series import SeriesSet
from tsfm_data.io.tables import read_series

HOURS = pd.date_range("2021-01-01", periods=6, freq="h")


def wide() -> pd.DataFrame:
    return pd.DataFrame({"date": HOURS, "a": np.arange(6.0), "b": [1, 2, np.nan, 4, 5, 6]})


def long() -> pd.DataFrame:
    """Two daily series row by row, the second with a missing day, and a monthly one."""
    days = pd.date_range("2021-03-01", periods=4, freq="D")
    months = pd.date_range("2020-01-01", periods=3, freq="MS")
    return pd.DataFrame(
        {
            "unique_id": ["x", "y", "x", "x", "y", "x", "y", "m", "m", "m"],
            "ds": [days[0], days[0], days[1], days[2], days[1], days[3], days[3], *months],
            "y": [1, 10, 2, 3, 11, 4, 13, 100, 200, 300],
        }
    )


@pytest.mark.parametrize(
    "kind", ["csv", "tsv", "semicolon", "csv.gz", "parquet", "feather", "arrow", "frame", "table", "index"]
)
def test_a_wide_table_of_any_format_is_one_item(kind: str, tmp_path: Path) -> None:
    frame, path = wide(), tmp_path / f"sales.{kind}"
    source: Any = path
    if kind in ("csv", "csv.gz"):
        frame.to_csv(path, index=False)
    elif kind == "tsv":
        frame.to_csv(path, index=False, sep="\t")
    elif kind == "semicolon":
        source = tmp_path / "sales.txt"
        frame.to_csv(source, index=True, sep=";")
    elif kind == "parquet":
        frame.to_parquet(path)
    elif kind == "feather":
        pyarrow.feather.write_feather(frame, path)
    elif kind == "arrow":
        table = pa.Table.from_pandas(frame)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    else:
        source = {"frame": frame, "table": pa.Table.from_pandas(frame), "index": frame.set_index("date")}[kind]
    series = read_series(source)
    assert (len(series), series.variates, series.freqs) == (1, ("a", "b"), ("h",))
    assert series.name == ("sales" if isinstance(source, Path) else "table")
    np.testing.assert_array_equal(series.item(0), frame[["a", "b"]].to_numpy())
    assert series.timestamps(0, extra=2).equals(pd.date_range(HOURS[0], periods=8, freq="h"))


@pytest.mark.parametrize("kind", ["csv", "frame", "multiindex"])
def test_a_long_table_is_one_item_an_id_with_gaps_as_missing_rows(kind: str, tmp_path: Path) -> None:
    source: Any = long()
    if kind == "csv":
        source = tmp_path / "long.csv"
        long().to_csv(source, index=False)
    if kind == "multiindex":
        source = long().set_index(["unique_id", "ds"])
    series = read_series(source)
    assert (series.item_ids, series.freqs, series.variates) == (("x", "y", "m"), ("D", "D", "MS"), ("y",))
    assert series.offsets.tolist() == [0, 4, 8, 11]
    np.testing.assert_array_equal(series.values[:, 0], [1, 2, 3, 4, 10, 11, np.nan, 13, 100, 200, 300])
    assert str(series.timestamps(2)[-1]) == "2020-03-01 00:00:00"


def test_known_covariates_may_reach_past_the_target() -> None:
    frame = pd.DataFrame(
        {
            "item_id": ["a"] * 5 + ["b"] * 3,
            "timestamp": [*pd.date_range("2021-01-01", periods=5), *pd.date_range("2021-01-01", periods=3)],
            "target": [1.0, np.nan, 3, np.nan, np.nan, 7, 8, 9],
            "price": np.arange(8.0),
            "visits": np.arange(8.0) * 10,
            "shop": list("sssssttt"),
        }
    )
    series = read_series(frame, known_covariates=["price"], past_covariates=["visits"])
    assert series.future_rows.tolist() == [2, 0]
    assert [series.length(0), series.length(1)] == [3, 3]
    np.testing.assert_array_equal(series.item(0)[:, 0], [1, np.nan, 3])
    assert series.known[series.offsets[0] : series.offsets[1], 0].tolist() == [0, 1, 2, 3, 4]
    assert (series.past_names, series.known_names) == (("visits",), ("price",))
    assert len(series.timestamps(0)) == 3
    plain = read_series(frame)
    assert plain.future_rows.tolist() == [0, 0]
    assert plain.length(0) == 5


def test_numbers_of_every_type_and_missing_spelling_are_read(tmp_path: Path) -> None:
    path = tmp_path / "mixed.csv"
    path.write_text("date,i,f,b,m\n2021-01-01,1,1.5,true,NA\n2021-01-02,2,,false,null\n2021-01-03,3,1e3,true,4\n")
    series = read_series(path)
    np.testing.assert_array_equal(series.values, [[1, 1.5, 1, np.nan], [2, np.nan, 0, np.nan], [3, 1000, 1, 4]])
    frame = pd.DataFrame(
        {"ds": pd.date_range("2021-01-01", periods=2), "y": ["1", " 2.5 "], "c": pd.Categorical([3, 4])}
    )
    np.testing.assert_array_equal(read_series(frame).values, [[1, 3], [2.5, 4]])
    big = pd.DataFrame({"ds": pd.date_range("2021-01-01", periods=2), "y": pd.array([2**40, None], dtype="Int64")})
    np.testing.assert_array_equal(read_series(big).values[:, 0], [2.0**40, np.nan])


@pytest.mark.parametrize(
    ("stamps", "first", "freq"),
    [
        (["31/12/2020", "01/01/2021", "02/01/2021"], "2020-12-31", "D"),
        (["12/31/2020", "1/1/2021", "1/2/2021"], "2020-12-31", "D"),
        (["31.12.2020 23:00", "01.01.2021 00:00", "01.01.2021 01:00"], "2020-12-31 23:00", "h"),
        (["2020-01", "2020-02", "2020-03"], "2020-01-01", "MS"),
        (["2020Q1", "2020Q2", "2020Q3"], "2020-01-01", "QS"),
        ([1999, 2000, 2001], "1999-01-01", "YS"),
        ([20200131, 20200201, 20200202], "2020-01-31", "D"),
        ([1577836800, 1577840400, 1577844000], "2020-01-01", "h"),
        ([1577836800000, 1577840400000, 1577844000000], "2020-01-01", "h"),
        (["2020-03-29T00:00Z", "2020-03-29T01:00Z", "2020-03-29T02:00Z"], "2020-03-29", "h"),
        (["2020-03-29T01:00+01:00", "2020-03-29T03:00+02:00", "2020-03-29T04:00+02:00"], "2020-03-29", "h"),
        (["2020-03-28T00:00+01:00", "2020-03-29T00:00+01:00", "2020-03-30T00:00+02:00"], "2020-03-28", "D"),
        (pd.date_range("2020-03-28", periods=3, freq="D", tz="Europe/Berlin"), "2020-03-28", "D"),
        (pd.date_range("2020-03-28 23:30", periods=3, freq="h", tz="Europe/Berlin"), "2020-03-28 22:30", "h"),
        (pd.period_range("2020-01", periods=3, freq="M"), "2020-01-01", "MS"),
    ],
)
def test_dates_of_any_usual_spelling_are_read(stamps: Any, first: str, freq: str, tmp_path: Path) -> None:
    frame = pd.DataFrame({"date": stamps, "y": [1.0, 2, 3]})
    sources: list[Any] = [frame]
    if not isinstance(stamps, pd.Index):
        frame.to_csv(tmp_path / "dates.csv", index=False)
        sources.append(tmp_path / "dates.csv")
    for source in sources:
        series = read_series(source)
        assert pd.Timestamp(series.starts[0]) == pd.Timestamp(first)
        assert series.freqs == (freq,)
        assert series.values[:, 0].tolist() == [1, 2, 3]


HEAD = "date,a,b\n"
ROWS = "2021-01-01,1,2\n2021-01-02,3,4\n2021-01-03,5,6\n"
LONG = "item_id,timestamp,target\n"
MISTAKES: dict[str, tuple[str | bytes, dict[str, Any], str]] = {
    "empty file": ("", {}, "expected a table, found an empty file"),
    "blank lines": ("\n\n", {}, "found only blank lines"),
    "binary junk": (b"\x89PNG\r\n\x1a\n\x00\x00\x00", {}, "found binary data"),
    "binary text": (b"date,a\n2021-01-01,\xe9\xff\n", {}, "column 'a', row 2: expected a number, found 'éÿ'"),
    "binary after text": (b"date,a\n2021-01-01,\xe9\x01\x02\n", {}, "found binary data"),
    "utf-16": ("date,a\n".encode("utf-16"), {}, "expected rows of values, found only a header"),
    "half utf-16": (b"\xff\xfed\x00a", {}, "expected UTF-16 text after its byte-order mark"),
    "header only": (HEAD, {}, "expected rows of values, found only a header"),
    "no header": ("2021-01-01,1\n2021-01-02,2\n", {}, "row 1: expected a header"),
    "wrong delimiter": ("date#a\n2021-01-01#1\n", {}, "row 1: .*single column 'date#a'"),
    "ragged row": (
        HEAD + ROWS + "2021-01-04,7\n",
        {},
        "row 5: expected 3 fields separated by commas, as in the header, found 2",
    ),
    "other delimiter below": ("a,date\n1;2021-01-01\n", {}, "row 2: expected 2 fields"),
    "same name twice": ("date,a,a\n2021-01-01,1,2\n", {}, "row 1: .*'a' more than once"),
    "no time column": ("when,a\n1,2\n", {}, "expected a time column .*found columns when, a; name it with time_column"),
    "wrong time column": (HEAD + ROWS, {"time_column": "dat"}, "unknown column 'dat': did you mean date"),
    "wrong target": (HEAD + ROWS, {"target": ["a", "bb"]}, "unknown column 'bb': did you mean b"),
    "wrong covariate": (HEAD + ROWS, {"past_covariates": ["B"]}, "unknown column 'B'"),
    "two roles": (
        HEAD + ROWS,
        {"target": "a", "known_covariates": ["a"]},
        "one role per column, found two for column 'a'",
    ),
    "nothing but time": ("date,item_id\n2021-01-01,1\n", {}, "expected a column of values, found only"),
    "no target": ("item_id,date,p,q\n1,2021-01-01,1,2\n", {}, "expected a column named target.*found p, q"),
    "unparsable time": (HEAD + ROWS + "soon,7,8\n", {}, "column 'date', row 5: expected a date, found 'soon'"),
    "impossible date": (
        HEAD + ROWS + "2021-02-30,7,8\n",
        {},
        "column 'date', row 5: expected a date, found '2021-02-30'",
    ),
    "empty time": (HEAD + ROWS + ",7,8\n", {}, "column 'date', row 5: expected a date, found an empty cell"),
    "blank line before": (HEAD + "\n" + ROWS + "soon,7,8\n", {}, "row 6: expected a date, found 'soon'"),
    "ambiguous dates": (
        "date,a\n01/02/2021,1\n01/03/2021,2\n",
        {},
        r"row 2: .*clear order, found '01/02/2021'.*YYYY-MM-DD",
    ),
    "fractions for time": ("time,a\n0.5,1\n1.5,2\n", {}, "column 'time', row 2: expected dates, found the number 0.5"),
    "ids of single rows": (
        LONG + "a,2021-01-01,1\nb,2021-01-01,2\n",
        {},
        "column 'timestamp', row 2, series 'a': expected at least two rows",
    ),
    "duplicate time": (HEAD + ROWS + "2021-01-03,7,8\n", {}, "row 5: expected each timestamp once.*found 2021-01-03"),
    "mixed frequencies": (
        HEAD + ROWS + "2021-01-03 07:00,7,8\n",
        {},
        "row 5: expected one frequency.*07:00:00 after.*mixed",
    ),
    "one row": ("date,a\n2021-01-01,1\n", {}, "row 2: expected at least two rows.*give freq"),
    "wrong date far off": (HEAD + ROWS + "9021-01-04,7,8\n", {}, "row 5"),
    "wrong frequency": (HEAD + ROWS, {"freq": "dayly"}, "unknown frequency 'dayly'"),
    "text": (HEAD + ROWS + "2021-01-04,much,8\n", {}, "column 'a', row 5: expected a number, found 'much'"),
    "two decimal marks": ("date;a\n2021-01-01;1,5\n2021-01-02;1.5\n", {}, "row 2: expected a number, found '1,5'"),
    "all missing": (
        "date,a,b\n2021-01-01,1,\n2021-01-02,2,\n",
        {},
        "column 'b': expected numbers, found no value in any row",
    ),
    "infinite": (HEAD + ROWS + "2021-01-04,7,-inf\n", {}, "column 'b', row 5: expected a finite number, found -inf"),
    "empty id": (LONG + "a,2021-01-01,1\na,2021-01-02,2\n", {"item_column": "target"}, "expected a column"),
    "one bad series of three": (
        LONG + "".join(f"{i},2021-01-{d:02d},{d}\n" for i in "abc" for d in (1, 2, 3)) + "b,2021-01-03,9\n",
        {},
        "row 11, series 'b': expected each timestamp once.*2 of 3 series are good.*--on-bad-series",
    ),
    "repeats with other values": (
        "date,kind,a\n2021-01-01,1,5\n2021-01-01,2,6\n2021-01-02,1,5\n",
        {},
        "row 3: .*ids of the series with item_column",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_in_a_table_is_one_line_with_its_place(case: str, tmp_path: Path) -> None:
    content, options, message = MISTAKES[case]
    path = tmp_path / "table.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as caught:
        read_series(path, **options)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path)) or case == "wrong frequency"


def test_a_file_that_is_no_table_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "sales.csv").write_text("date,a\n2021-01-01,1\n")
    (tmp_path / "junk.parquet").write_bytes(b"PAR1 no table")
    (tmp_path / "junk.feather").write_bytes(b"no table at all")
    (tmp_path / "junk.csv.gz").write_bytes(b"not packed")
    cases = {
        "sale.csv": "no such file; near names there: sales.csv",
        "deep/sales.csv": "nor the folder",
        ".": "expected a file, found a folder",
        "junk.parquet": "expected a Parquet file, found something else",
        "junk.feather": "expected an Arrow file, found something else",
        "junk.csv.gz": "expected a text file, found something else",
    }
    for name, message in cases.items():
        with pytest.raises(InputError, match=message) as caught:
            read_series(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_rows_of_other_tables_count_from_one() -> None:
    frame = wide()
    frame.loc[3, "b"] = np.inf
    with pytest.raises(InputError, match="the table, column 'b', row 4: expected a finite number, found inf"):
        read_series(frame)
    frame = long().iloc[[0, 2, 1, 3, 5, 4, 6]].assign(unique_id=["x", "x", None, "x", "x", "y", "y"])
    with pytest.raises(InputError, match="column 'unique_id', row 3: expected the id of a series"):
        read_series(frame)


def test_frames_with_odd_names_or_dates_are_read_or_refused() -> None:
    frame = pd.DataFrame({0: pd.date_range("2020", periods=3), 1: [1, 2, 3]})
    assert read_series(frame).variates == ("1",)
    with pytest.raises(InputError, match="the table: expected different column names, found 'a' more than once"):
        read_series(pd.DataFrame([["2020-01-01", 2, 3]], columns=["date", "a", "a"]))
    far = np.array(["2020-01-01", "2020-01-02", "9999-12-31"], "datetime64[ms]")
    with pytest.raises(InputError, match="column 'date', row 3: expected a date, found '9999-12-31"):
        read_series(pd.DataFrame({"date": far, "y": [1.0, 2, 3]}))
    with pytest.raises(InputError, match="only a header"):
        read_series(pd.DataFrame())


def test_constant_one_point_and_all_missing_series_are_legal_in_a_table() -> None:
    days = pd.date_range("2021-01-01", periods=5)
    frame = pd.DataFrame(
        {"id": [1] * 5 + [2] + [3] * 5, "date": [*days, days[2], *days], "value": [7.0] * 5 + [1] + [np.nan] * 5}
    )
    series = read_series(frame)
    assert [series.length(i) for i in range(3)] == [5, 1, 5]
    assert series.freqs == ("D", "D", "D")
    assert np.isnan(series.item(2)).all()


def test_rows_in_order_are_taken_as_a_plain_sequence_when_asked() -> None:
    frame = pd.DataFrame({"date": [HOURS[0], HOURS[1], HOURS[1], HOURS[5]], "a": [1.0, 2, 3, 4]})
    series = read_series(frame, order="rows", freq="h")
    assert series.values[:, 0].tolist() == [1, 2, 3, 4]
    assert series.timestamps(0).equals(HOURS[:4])


@pytest.mark.filterwarnings("ignore:Using `json`-module:UserWarning", "ignore:'M' is deprecated:FutureWarning")
def test_gluonts_data_sets_are_read_and_written_back() -> None:
    from gluonts.dataset.common import ListDataset
    from gluonts.dataset.pandas import PandasDataset

    entries = [
        {"start": "2021-01-01", "target": [1.0, 2, 3], "item_id": "a", "feat_dynamic_real": [[0.0, 1, 2, 3, 4]]},
        {"start": "2021-06-01", "target": [4.0, np.nan], "item_id": "b", "feat_dynamic_real": [[5.0, 6, 7, 8]]},
    ]
    series = read_series(ListDataset(entries, freq="M"))
    assert (series.item_ids, series.freqs) == (("a", "b"), ("MS", "MS"))
    assert series.future_rows.tolist() == [2, 2]
    np.testing.assert_array_equal(series.item(1)[:, 0], [4, np.nan])
    back = read_series(series.to_gluonts())
    np.testing.assert_array_equal(back.values, series.values)
    np.testing.assert_array_equal(back.known, series.known)
    assert back.timestamps(1, 2).equals(series.timestamps(1, 2))

    frame = long().query("unique_id == 'x'").reset_index(drop=True)
    pandas_set = PandasDataset.from_long_dataframe(frame, item_id="unique_id", timestamp="ds", target="y", freq="D")
    series = read_series(pandas_set)
    assert series.values[:, 0].tolist() == [1, 2, 3, 4]
    assert series.timestamps(0)[0] == pd.Timestamp("2021-03-01")
    many = SeriesSet.from_arrays("m", np.arange(8.0).reshape(4, 2), "W-WED", start="2021-01-06")
    back = read_series(many.to_gluonts())
    assert back.timestamps(0).equals(many.timestamps(0))
    np.testing.assert_array_equal(back.values, many.values)
    for broken, text in (
        ([{"target": [1]}], "entries with start and target"),
        ([], "empty"),
        ([{"start": "2021", "target": 1}], "give freq"),
    ):
        with pytest.raises(InputError, match=text):
            read_series(broken)


def test_univariate_select_and_frame_keep_every_value() -> None:
    series = read_series(wide())
    single = series.univariate()
    assert single.item_ids == ("a", "b")
    np.testing.assert_array_equal(np.column_stack([single.item(0), single.item(1)]), series.values)
    pair = SeriesSet.from_arrays(
        "p", [np.ones((2, 2)), np.full((3, 2), 2.0)], "D", variates=["u", "v"], item_ids=["i", "j"]
    )
    assert pair.univariate().item_ids == ("i/u", "i/v", "j/u", "j/v")
    assert [pair.univariate().length(i) for i in range(4)] == [2, 2, 3, 3]
    chosen = read_series(long()).select([2, 0])
    assert (chosen.item_ids, chosen.offsets.tolist()) == (("m", "x"), [0, 3, 7])
    assert chosen.values[:, 0].tolist() == [100, 200, 300, 1, 2, 3, 4]
    again = read_series(series.to_frame(), target=["a", "b"])
    np.testing.assert_array_equal(again.values, series.values)


def test_from_arrays_checks_what_it_is_given() -> None:
    series = SeriesSet.from_arrays("s", [np.arange(3), np.arange(2)], ["H", "MS"], start=["2020-01-01", "2020-01-15"])
    assert (series.freqs, series.variates) == (("h", "MS"), ("target",))
    assert str(series.starts[1])[:10] == "2020-02-01"
    for values, text in (
        ([np.ones((2, 2)), np.ones(2)], r"shape \[T\] or \[T, 2\]"),
        ([np.array([1, np.inf])], "row 2"),
    ):
        with pytest.raises(InputError, match=text):
            SeriesSet.from_arrays("s", values, "D")
    with pytest.raises(InputError, match="expected 1 item names, found 2"):
        SeriesSet.from_arrays("s", np.ones(3), "D", item_ids=["a", "b"])


@pytest.mark.filterwarnings("ignore:Using `json`-module:UserWarning")
def test_a_long_table_of_many_series_reads_several_times_faster_than_gluonts() -> None:
    from gluonts.dataset.pandas import PandasDataset

    count, rows = 300, 60
    frame = pd.DataFrame(
        {
            "item_id": np.repeat([f"s{i}" for i in range(count)], rows),
            "timestamp": np.tile(pd.date_range("2020-01-01", periods=rows, freq="h"), count),
            "target": np.arange(float(count * rows)),
        }
    )
    begin = time.process_time()
    series = read_series(frame)
    ours = time.process_time() - begin
    begin = time.process_time()
    entries = list(
        PandasDataset.from_long_dataframe(frame, item_id="item_id", timestamp="timestamp", target="target", freq="h")
    )
    theirs = time.process_time() - begin
    assert len(series) == len(entries) == count
    # 12 to 17 times in a quiet process; half of that leaves room for a loaded machine
    assert theirs > 5 * ours, f"{count / ours:.0f} series/s, GluonTS {count / theirs:.0f}"
