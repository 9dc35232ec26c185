"""Odd but possible input: each is read as it is meant, or refused in one line before any work."""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from command import run

from tsfm_data import io
from tsfm_data.errors import InputError
from tsfm_data.io import blocks

ROWS = 28
DAYS = np.datetime64("2024-01-01") + np.arange(ROWS)
TEXT = "date,v\n" + "".join(f"{day},{i % 7}\n" for i, day in enumerate(DAYS))


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--freq", "0D"], "unknown frequency '0D'"),
        (["--freq=-1D"], "unknown frequency '-1D'"),
        (["--resample", "0h"], "unknown frequency '0h'"),
        (["--season", str(2**70)], "expected season of at most"),
        (["--season", str(2**62)], "expected season of at most"),
        (["--timezone", "+25:00"], "unknown time zone '+25:00'"),
        (["--timezone", "+x"], "unknown time zone '+x'"),
        (["--levels", "0.3", "0.30000001"], "expected distinct quantile levels"),
        (["--levels", "0.99999999"], "expected distinct quantile levels between 0 and 1"),
        (["--output", "loop.csv"], "which exists"),
        (["--output", "loop.csv", "--overwrite", "--model", "loop.csv"], "unknown model"),
        (["--output", "loop.csv/out.csv"], "expected a folder"),
        (["--output", "dangling.csv"], "which exists"),
    ],
)
def test_a_value_out_of_range_or_a_link_to_nothing_is_refused_in_one_line(
    words: list[str], part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("table.csv").write_text(TEXT)
    Path("loop.csv").symlink_to("loop.csv")
    Path("dangling.csv").symlink_to("nothing.csv")
    result = run(capsys, "forecast", "table.csv", "--horizon", "2", "--model", "seasonal-naive", *words)
    assert result.status == 2
    assert part in result.err
    assert result.err.count("\n") == 1
    assert sorted(os.listdir()) == ["dangling.csv", "loop.csv", "table.csv"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-be", "utf-8-sig"])
def test_text_is_read_in_any_unicode_encoding(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_bytes(TEXT.encode(encoding))
    assert io.read_series(tmp_path / "table.csv").values[:, 0].tolist() == [i % 7 for i in range(ROWS)]


@pytest.mark.parametrize("text", ["date,v", '[{"date": "2024-01-01", "v": 1}]'])
def test_a_header_without_rows_is_named_so(text: str, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(InputError, match="only a header"):
        io.read_series(tmp_path / "table.csv")


def test_a_pipe_is_neither_called_empty_nor_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "table.csv")
    with pytest.raises(InputError, match="found a pipe or device; give - to read standard input"):
        io.read_series(tmp_path / "table.csv")


def _stream(path: Path, table: pa.Table) -> bytes:
    with pa.ipc.new_stream(path, table.schema) as file:
        file.write_table(table)
    return path.read_bytes()


def test_rows_after_the_end_of_an_arrow_stream_are_not_dropped_silently(tmp_path: Path) -> None:
    path = tmp_path / "table.arrow"
    data = _stream(path, pa.table({"date": DAYS, "v": np.arange(ROWS)}))
    assert len(io.read_series(path).values) == ROWS
    path.write_bytes(data + data)
    with pytest.raises(InputError, match="expected one Arrow stream"):
        io.read_series(path)


def _parquet(path: Path, table: pa.Table) -> None:
    pyarrow.parquet.write_table(table, path)


@pytest.mark.parametrize(("suffix", "write"), [(".parquet", _parquet), (".arrow", _stream)])
def test_ids_of_the_type_uuid_are_text(suffix: str, write: Callable[[Path, pa.Table], object], tmp_path: Path) -> None:
    ids = [uuid.UUID(int=2**127 + k) for k in range(2)]
    cells = pa.array([i.bytes for i in ids for _ in DAYS], pa.uuid())
    path = tmp_path / f"table{suffix}"
    write(path, pa.table({"item_id": cells, "date": np.tile(DAYS, 2), "v": np.arange(2.0 * ROWS)}))
    assert list(io.read_series(path).item_ids) == [str(i) for i in ids]


def test_a_quote_that_is_never_closed_costs_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1 << 20)
    (tmp_path / "table.csv").write_bytes(b'item_id,date,v\n"a,2024-01-01,1\n' + b"a,2024-01-02,1\n" * 400_000)
    start = time.process_time()
    with pytest.raises(blocks.ReadAtOnce):
        blocks.open_blocks(tmp_path / "table.csv", None, None, 1)
    assert time.process_time() - start < 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_note_that_cannot_be_written_changes_neither_result_nor_status() -> None:
    code = "from tsfm_data.output import note; note('first'); note('second'); print('result'); raise SystemExit(2)"
    with open("/dev/full", "w") as full:
        ended = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=full, text=True)
    assert (ended.returncode, ended.stdout) == (2, "result\n")
