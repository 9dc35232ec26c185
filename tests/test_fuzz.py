"""Damaged and odd files: each ends in a value or in one line."""

import contextlib
from pathlib import Path
from typing import Any

import fuzz
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from command import script
from fuzzing import Limits, Part, Target, try_parts
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tsfm_data.errors import InputError
from tsfm_data.io import read_series

FEW, MANY = 12, 700  # inputs of each kind
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
DAYS = [f"2024-01-{day:02d}" for day in range(1, 29)]
# One column: its values are all of one kind, or a mixture.
CELLS = (
    st.floats(allow_nan=True, allow_infinity=True),
    st.integers(-(2**63), 2**63 - 1),
    st.booleans(),
    TEXT,
    st.binary(max_size=6),
    st.dates(),
    st.datetimes(),
    st.timedeltas(),
    st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**9), max_value=10**9),
    st.lists(st.integers(0, 9), max_size=3),
    st.sampled_from(("1,5", "1.234,5", "$5", "5%", "nan", "1E4041751706", "1e-4041751706", "9" * 400, "0x1F", "")),
)
NAMES = st.one_of(st.sampled_from(("date", "id", "target", "y", "value", "t", "", "hour", "year", "2024-01-01")), TEXT)


@st.composite
def tables(draw: Any) -> dict[str, list[Any]]:
    """Columns of one length with odd values; often one of them is a column of dates, and one of ids."""
    rows = draw(st.integers(0, 12))
    columns = {}
    if draw(st.booleans()):
        columns["date"] = DAYS[:rows]
    if draw(st.booleans()):
        columns["id"] = draw(st.lists(st.sampled_from(("a", "b", 1, None)), min_size=rows, max_size=rows))
    for name in draw(st.lists(NAMES, min_size=1, max_size=4)):
        cell = draw(st.sampled_from(CELLS))
        columns[name] = draw(st.lists(st.one_of(st.none(), cell), min_size=rows, max_size=rows))
    return columns


def check(path: Path) -> None:
    """A table ends in finite or missing values, or in one line."""
    with contextlib.suppress(InputError):
        assert not np.isinf(read_series(path).values).any()


def hold(size: int) -> Any:
    """Settings of a property that is tried so often, each time with the same inputs: the nightly run tries others."""
    return settings(
        max_examples=size, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )


@pytest.mark.parametrize("size", [30, pytest.param(2000, marks=pytest.mark.slow)])
def test_any_parquet_table_gives_series_or_one_line(size: int, tmp_path: Path) -> None:
    @hold(size)
    @given(tables())
    def property(columns: dict[str, list[Any]]) -> None:
        try:
            table = pa.table(columns)
        except (pa.ArrowException, TypeError, OverflowError):
            table = pa.table(
                {name: pa.array([None if v is None else str(v) for v in c]) for name, c in columns.items()}
            )
        pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
        check(tmp_path / "t.parquet")

    property()


@pytest.mark.parametrize("size", [30, pytest.param(2000, marks=pytest.mark.slow)])
def test_any_csv_table_gives_series_or_one_line(size: int, tmp_path: Path) -> None:
    @hold(size)
    @given(tables(), st.sampled_from(",;\t|"))
    @example({"date": [None, None], "": ["a,b", None]}, ";")  # read with two columns without a name
    def property(columns: dict[str, list[Any]], mark: str) -> None:
        pd.DataFrame(columns).to_csv(tmp_path / "t.csv", index=False, sep=mark)
        check(tmp_path / "t.csv")

    property()


def failures(folder: Path) -> str:
    """What was raised about the files of ``try_parts`` that failed."""
    return "\n".join(f"{path.name}: {path.read_text()[-600:]}" for path in (folder / "failures").glob("*.said"))


@pytest.mark.parametrize("size", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", [target.kind for target in fuzz.fuzz_tables.TARGETS])
def test_damaged_files_give_a_value_or_one_line(kind: str, size: int, tmp_path: Path) -> None:
    parts = [Part(kind, start, start + min(size, 500)) for start in range(0, size, 500)]
    for part in try_parts([fuzz.TARGETS[kind]], parts, tmp_path, 20240101, Limits()):
        assert part.done["read"] + part.done["refused"] == part.stop - part.start, failures(tmp_path)
        assert part.done["read"], "nothing could be read: the damage is too great to try anything"


def ends(path: Path) -> None:
    """A reader that fails in each of the ways, by what the damaged file begins with."""
    import ctypes

    how = path.read_bytes()[:1]
    if how == b"e":
        raise KeyError("x")
    if how == b"i":
        raise InputError("one line")
    if how == b"c":
        ctypes.string_at(0)
    if how == b"h":
        while True:
            pass
    if how == b"m":
        bytearray(1 << 31)


def test_every_way_to_fail_is_counted_and_its_file_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def seeds(folder: Path) -> list[Path]:
        (folder / "seed.txt").write_text("read")
        return [folder / "seed.txt"]

    order = ["read", "error", "input", "crash", "hang", "memory", "read"]
    monkeypatch.setattr("fuzzing.mutate", lambda name, data, rng: order[rng.random()].encode())
    monkeypatch.setattr("fuzzing.random.Random", lambda key: Numbered(int(key.split()[-1])))
    target = Target("odd", seeds, ends)
    (part,) = try_parts([target], [Part("odd", 0, 7)], tmp_path, 0, Limits(1.0, 256))
    expected = {"read": 2, "exception": 1, "refused": 1, "crash": 1, "hang": 1, "over memory": 1}
    assert dict(part.done) == expected
    kept = {path.name.split("_")[-2]: path.read_text() for path in (tmp_path / "failures").glob("*.txt")}
    assert kept == {"1": "error", "3": "crash", "4": "hang", "5": "memory"}


class Numbered:
    """Random numbers that are the number of the input."""

    def __init__(self, number: int) -> None:
        self.number = number

    def random(self) -> int:
        return self.number

    def choice(self, items: list[Any]) -> Any:
        return items[0]


@pytest.mark.slow
def test_the_page_counts_the_inputs_of_all_runs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ("--kinds", "csv", "--state", str(tmp_path / "state"), "--output", str(tmp_path))
    for inputs in ("500", "1000"):
        assert script(capsys, fuzz.fuzz, "--inputs", inputs, *words).status == 0
        page = (tmp_path / "fuzz.md").read_text()
        assert f"{int(inputs):,} files were damaged" in page
