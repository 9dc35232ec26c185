"""Forecasts of large tables in pieces: as those of small tables, and continued after a stop."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command import listing, run

from tsfm.commands import pieces
from tsfm_data.io import blocks

WORDS = ("--horizon", "2", "--model", "seasonal-naive")


def long(series: int = 7) -> pd.DataFrame:
    days = pd.date_range("2024-01-01", periods=20)
    values = np.random.default_rng(0).normal(size=20 * series)
    ids = np.repeat([f"s{i}" for i in range(series)], 20)
    return pd.DataFrame({"item_id": ids, "timestamp": np.tile(days, series), "target": values})


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tables are read in parts of two series."""
    monkeypatch.setattr(blocks, "LEAST_ROWS", 0)
    monkeypatch.setattr(blocks, "LEAST_BYTES", 0)
    monkeypatch.setattr(pieces, "VALUES", 40)
    monkeypatch.setattr(pieces, "SMALL", 0)


def test_pieces_together_are_the_forecast_of_the_whole_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    table, whole, joined = (str(tmp_path / name) for name in ("t.parquet", "whole", "joined"))
    long().to_parquet(table, index=False)
    expected = {
        suffix: run(capsys, "forecast", table, *WORDS, "--output", whole + suffix) for suffix in (".csv", ".parquet")
    }
    printed = run(capsys, "forecast", table, *WORDS)
    monkeypatch.setattr(blocks, "LEAST_ROWS", 0)
    monkeypatch.setattr(pieces, "VALUES", 40)
    monkeypatch.setattr(pieces, "SMALL", 0)
    for suffix, said in expected.items():
        assert run(capsys, "forecast", table, *WORDS, "--output", joined + suffix).out == said.out.replace(
            whole, joined
        )
    assert Path(joined + ".csv").read_bytes() == Path(whole + ".csv").read_bytes()
    pd.testing.assert_frame_equal(pd.read_parquet(joined + ".parquet"), pd.read_parquet(whole + ".parquet"))
    assert run(capsys, "forecast", table, *WORDS).out == printed.out
    assert len(listing(tmp_path)) == 5


def test_a_stopped_forecast_goes_on_where_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, in_parts: None
) -> None:
    table, output = tmp_path / "t.parquet", tmp_path / "f.csv"
    long().to_parquet(table, index=False)
    words = ("forecast", str(table), *WORDS, "--output", str(output))
    write, written, stop_at = pieces._write, [], 2

    def counted(*given: object, **options: object) -> None:
        if len(written) == stop_at:
            raise KeyboardInterrupt
        written.append(given[2])
        write(*given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(pieces, "_write", counted)
    said = run(capsys, *words)
    assert (said.status, said.err) == (
        2, "tsfm: error: interrupted after 2 of 4 parts: the same command goes on\n"
    )  # fmt: skip
    assert not output.exists()
    assert (tmp_path / ".f.csv.pieces" / "000001.csv").is_file()
    assert not (tmp_path / ".f.csv.pieces" / "rows").exists()
    (tmp_path / ".f.csv.pieces" / "rows").mkdir()  # of a process that was killed
    written, stop_at = [], 99
    assert run(capsys, *words).status == 0
    assert len(written) == 2  # the other two of four
    assert sorted(listing(tmp_path)) == ["f.csv", "t.parquet"]
    stopped = output.read_bytes()
    written = []
    assert run(capsys, *words, "--overwrite").status == 0
    assert len(written) == 4
    assert output.read_bytes() == stopped


@pytest.mark.parametrize("change", ["table", "option"])
def test_pieces_of_another_forecast_are_not_used(
    change: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, in_parts: None
) -> None:
    table, output = tmp_path / "t.parquet", tmp_path / "f.csv"
    long().to_parquet(table, index=False)
    words = ("forecast", str(table), *WORDS, "--output", str(output))
    join = pieces._join
    with monkeypatch.context() as patched:
        patched.setattr(pieces, "_join", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(capsys, *words).status == 2
    assert pieces._join is join
    if change == "table":
        long().assign(target=1.0).to_parquet(table, index=False)
    assert run(capsys, *words, *(("--season", "3") if change == "option" else ())).status == 0
    found = pd.read_csv(output)
    fresh = tmp_path / "fresh.csv"
    run(capsys, *words[:-1], str(fresh), *(("--season", "3") if change == "option" else ()))
    pd.testing.assert_frame_equal(found, pd.read_csv(fresh))


def test_a_bad_table_is_one_line_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], in_parts: None
) -> None:
    table = tmp_path / "t.csv"
    frame = long().astype({"timestamp": str})
    frame.loc[50, "timestamp"] = "soon"
    frame.to_csv(table, index=False)
    words = ("forecast", str(table), *WORDS, "--output", str(tmp_path / "f.csv"))
    said = run(capsys, *words)
    assert said.status == 2
    assert said.err.count("\n") == 1
    assert "row 52: expected a date, found 'soon'" in said.err.replace(", column 'timestamp'", "")
    assert sorted(listing(tmp_path)) == ["t.csv"]
    said = run(capsys, *words, "--on-bad-series", "skip")
    assert said.status == 0, said.err
    assert "1 of 7 series skipped: s2" in said.err
    assert pd.read_csv(tmp_path / "f.csv")["item_id"].nunique() == 6
    assert sorted(listing(tmp_path)) == ["f.csv", "t.csv"]
