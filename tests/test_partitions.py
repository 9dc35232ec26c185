"""Tables in many files: the same numbers as one table, a manifest, and runs that go on, whatever happens to a part."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest
from command import done, listing, run

import tsfm
from tsfm.commands import pieces
from tsfm.inference.partitions import places, work
from tsfm_data import io
from tsfm_data.io import blocks

WORDS = ("--horizon", "2", "--model", "seasonal-naive", "--output", "out")
FORECAST = ("forecast", "sales", *WORDS)


def long(name: str, series: int = 3, rows: int = 20) -> pd.DataFrame:
    """A long table of daily series, the first of which is the longest."""
    rng = np.random.default_rng(len(name))
    days = pd.date_range("2024-01-01", periods=rows)
    frames = [
        pd.DataFrame({"item_id": f"{name}{i}", "timestamp": days[i:], "target": rng.normal(size=rows - i)})
        for i in range(series)
    ]
    return pd.concat(frames, ignore_index=True)


@pytest.fixture(autouse=True)
def sales(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three parts: two as Parquet, one of them in a subfolder, and one as CSV."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "sales"
    (folder / "region=eu").mkdir(parents=True)
    long("a").to_parquet(folder / "a.parquet", index=False)
    long("b").to_csv(folder / "b.csv", index=False)
    long("c").to_parquet(folder / "region=eu/a.parquet", index=False)
    (folder / "_SUCCESS").touch()
    return folder


def manifest(folder: str = "out") -> dict:
    return json.loads((Path(folder) / "manifest.json").read_text())


def states() -> dict[str, str]:
    return {name: part["state"] for name, part in manifest()["parts"].items()}


def rows(folder: str = "out") -> pd.DataFrame:
    return pd.read_parquet(sorted(Path(folder).glob("*.parquet")))


def whole() -> pd.DataFrame:
    """The forecast of all parts as one table."""
    table = pd.concat([long(name) for name in "abc"], ignore_index=True)
    return tsfm.load("seasonal-naive").forecast(table, horizon=2)


def same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    """Compare; the order of series in a part is that of their length."""
    tables = [frame.sort_values(["item_id", "timestamp"], ignore_index=True) for frame in (found, expected)]
    pd.testing.assert_frame_equal(*tables, check_dtype=False)


@pytest.mark.parametrize("source", ["sales", "sales/**/*.[pc]*", "file://{here}/sales"])
def test_a_folder_a_pattern_and_a_url_give_the_forecast_of_the_whole_table(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = done(capsys, "forecast", source.format(here=tmp_path), *WORDS)
    assert said == f"{tmp_path}/out: 3 of 3 parts done, 9 series, 18 rows\n"
    same(rows(), whole())
    assert sorted(states()) == ["a.parquet", "b.csv", "region=eu/a.parquet"]
    first = manifest()["parts"]["a.parquet"]
    assert (first["state"], first["series"], first["rows"]) == ("done", 3, 6)
    assert first["size"] == (tmp_path / "sales/a.parquet").stat().st_size
    assert manifest()["asked"]["horizon"] == 2
    assert manifest()["asked"]["version"] == tsfm.__version__
    assert len(listing(tmp_path / "out")) == 4


def test_one_file_is_a_part_if_an_engine_is_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "1 of 1 parts done, 3 series" in done(capsys, "forecast", "sales/b.csv", *WORDS, "--engine", "local")
    same(rows(), tsfm.load("seasonal-naive").forecast(long("b"), horizon=2))


def test_parts_may_be_read_and_written_behind_urls(sales: Path, capsys: pytest.CaptureFixture[str]) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(sales), "/sales", recursive=True)
    try:
        words = ("forecast", "memory://sales", *WORDS[:-1], "memory://out")
        assert "memory://out: 3 of 3 parts done, 9 series" in done(capsys, *words)
        memory.get("/out", "fetched", recursive=True)
        same(rows("fetched"), whole())
        assert "3 parts done (3 of them before)" in done(capsys, *words)
        assert not [name for name in memory.ls("/out", detail=False) if "/." in name]
    finally:
        memory.rm("/sales", recursive=True)
        memory.rm("/out", recursive=True)


def test_a_bad_part_is_one_line_and_the_others_are_done(sales: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (sales / "b.csv").write_text("name,value\nx,1\n")
    (sales / "c.parquet").write_bytes(b"PAR1 no table")
    said = run(capsys, *FORECAST)
    assert said.status == 1
    lines = said.err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("error: b.csv: ")
    assert "time column" in lines[0]
    assert lines[1].startswith("error: c.parquet: ")
    assert "2 of 4 parts done, 6 series" in said.out
    assert states() == {"a.parquet": "done", "b.csv": "failed", "c.parquet": "failed", "region=eu/a.parquet": "done"}
    assert "time column" in manifest()["parts"]["b.csv"]["error"]
    (sales / "c.parquet").unlink()
    long("b").to_csv(sales / "b.csv", index=False)
    said = run(capsys, *FORECAST)
    assert (said.status, said.err) == (0, "")
    assert "3 of 3 parts done (2 of them before), 9 series" in said.out
    same(rows(), whole())


def test_if_no_part_can_be_read_then_the_command_failed(sales: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in sales.rglob("*.*"):
        path.write_text("nothing")
    said = run(capsys, *FORECAST)
    assert said.status == 2
    assert said.err.splitlines()[-1].startswith("tsfm: error: expected parts that can be read in sales, found none")
    assert len(said.err.splitlines()) == 4


def count(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the parts that are worked on."""
    seen, do = [], work.Work.do

    def counted(self: work.Work, part: places.Part) -> dict:
        seen.append(part.name)
        return do(self, part)

    monkeypatch.setattr(work.Work, "do", counted)
    return seen


def test_finished_parts_are_not_done_again_but_changed_and_lost_ones_are(
    sales: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done(capsys, *FORECAST)
    seen = count(monkeypatch)
    assert "(3 of them before)" in done(capsys, *FORECAST)
    assert seen == []
    long("b", series=4).to_csv(sales / "b.csv", index=False)
    Path("out", manifest()["parts"]["a.parquet"]["output"]).unlink()
    (sales / "region=eu/a.parquet").rename(sales / "d.parquet")
    said = run(capsys, *FORECAST)
    assert said.status == 0
    assert said.err.startswith("note: 1 parts are no longer in the input; their outputs stay, such as a-")
    assert seen == ["a.parquet", "b.csv", "d.parquet"]
    assert states()["region=eu/a.parquet"] == "gone"


@pytest.mark.slow
def test_a_killed_run_goes_on_even_if_the_manifest_is_behind(
    sales: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import os; from tsfm.commands.cli import main; from tsfm.inference.partitions.work import Work; do = Work.do\n"
        "Work.do = lambda self, part: os._exit(9) if part.name == 'region=eu/a.parquet' else do(self, part)\n"
        f"main({[*FORECAST]})"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 9
    assert set(states().values()) == {"waiting"}  # nothing was written to it since it began
    seen = count(monkeypatch)
    assert "3 of 3 parts done (2 of them before), 9 series, 18 rows" in done(capsys, *FORECAST)
    assert seen == ["region=eu/a.parquet"]
    same(rows(), whole())


def test_an_interrupted_run_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    do = work.Work.do

    def stopped(self: work.Work, part: places.Part) -> dict:
        if part.name == "b.csv":
            raise KeyboardInterrupt
        return do(self, part)

    with monkeypatch.context() as patched:
        patched.setattr(work.Work, "do", stopped)
        said = run(capsys, *FORECAST)
    assert (said.status, said.err) == (
        2, "tsfm: error: interrupted after 1 of 3 parts: the same command goes on\n"
    )  # fmt: skip
    assert states()["a.parquet"] == "done"
    assert "(1 of them before)" in done(capsys, *FORECAST)


def test_an_output_of_another_request_is_kept_unless_it_may_be_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done(capsys, *FORECAST)
    before = {path: path.read_bytes() for path in Path("out").iterdir()}
    for change in (("--horizon", "3"), ("--model", "naive"), ("--season", "3")):
        said = run(capsys, *FORECAST, *change)
        assert (said.status, said.err.count("\n")) == (2, 1)
        assert "found the manifest of another one" in said.err
        assert "--overwrite" in said.err
        assert {path: path.read_bytes() for path in Path("out").iterdir()} == before
    done(capsys, *FORECAST, "--horizon", "3", "--overwrite")
    assert len(rows()) == 27
    Path("notes").mkdir()
    Path("notes/mine.txt").write_text("mine")
    said = run(capsys, *FORECAST[:-1], "notes", "--overwrite")
    assert said.status == 2
    assert "with 'mine.txt'" in said.err
    Path("notes/manifest.json").write_text('{"sources": []}')
    said = run(capsys, *FORECAST[:-1], "notes", "--overwrite")
    assert (said.status, said.err.count("\n")) == (2, 1)
    assert sorted(listing(Path("notes"))) == ["manifest.json", "mine.txt"]


WRONG = {
    "no output": (("forecast", "sales/*.csv", "--horizon", "2"), ("--output FOLDER",)),
    "a table as output": (("forecast", "sales/*.csv", *WORDS[:-1], "out.csv"), ("found out.csv", "--output FOLDER")),
    "a folder for one table": (("forecast", "sales", *WORDS[:-1], "out.csv"), ("expected a file, found a folder",)),
    "no match": (("forecast", "sales/*.tsv", *WORDS), ("sales/*.tsv", "found none")),
    "no file": (("forecast", "nothing.csv", *WORDS, "--engine", "local"), ("nothing.csv", "found none")),
    "an output among the parts": ((*FORECAST[:-1], "sales/out"), ("expected an output outside of the input",)),
    "no driver": (("forecast", "s3://bucket/sales", *WORDS), ("the driver of s3:// URLs", "pip install s3fs")),
    "no driver for the output": ((*FORECAST[:-1], "gs://bucket/out"), ("the driver of gs:// URLs", "gcsfs")),
    "no such kind of URL": (("forecast", "ftpx://a/b", *WORDS), ("ftpx://a/b", "Protocol not known")),
    "a plot": ((*FORECAST, "--plot", "a.png"), ("expected no --plot",)),
    "a table of the future": ((*FORECAST, "--future", "a.csv"), ("expected no --future", "into the parts")),
    "a choice per part": ((*FORECAST, "--model", "best"), ("expected one model for all parts",)),
    "two local workers": ((*FORECAST, "--workers", "2"), ("--engine ray",)),
    "no worker": ((*FORECAST, "--workers", "0"), ("workers of at least 1",)),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_request_is_one_line_and_leaves_nothing(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, parts = WRONG[case]
    before = listing(tmp_path)
    said = run(capsys, *words)
    assert (said.status, said.err.count("\n"), said.out) == (2, 1, "")
    for part in parts:
        assert part in said.err
    assert listing(tmp_path) == before


def test_a_large_part_is_read_a_few_series_at_a_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, answer = [], work._by_length

    def counted(series: io.SeriesSet) -> io.SeriesSet:
        sizes.append(len(series))
        return answer(series)

    monkeypatch.setattr(work, "_by_length", counted)
    monkeypatch.setattr(pieces, "VALUES", 40)
    monkeypatch.setattr(blocks, "LEAST_ROWS", 0)
    monkeypatch.setattr(blocks, "LEAST_BYTES", 0)
    done(capsys, *FORECAST)
    assert max(sizes) == 2
    same(rows(), whole())


def test_batches_have_series_of_about_the_same_length(tmp_path: Path) -> None:
    lengths = []

    def answer(series: io.SeriesSet) -> pd.DataFrame:
        lengths.extend(series.length(i) for i in range(len(series)))
        return pd.DataFrame({"item_id": [1]})

    table = pd.concat([long("x", rows=30), long("y", rows=10), long("z", rows=20)], ignore_index=True)
    table.to_parquet("table.parquet", index=False)
    (part,) = places.find_parts("table.parquet")
    assert work.Work(answer, {}, str(tmp_path / "out"), most=2).do(part)["state"] == "done"
    assert lengths == sorted(lengths)
    assert len(lengths) == 9


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A disk without space for outputs of parts."""

    def write(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(work.pyarrow.parquet.ParquetWriter, "write_table", write)
    return


def test_when_the_disk_is_full_then_the_run_ends_with_one_line(full: None, capsys: pytest.CaptureFixture[str]) -> None:
    said = run(capsys, *FORECAST)
    assert (said.status, said.err.count("\n")) == (2, 1)
    assert "No space left on device" in said.err
    assert [path.name for path in Path("out").iterdir()] == ["manifest.json"]


@pytest.mark.filterwarnings("ignore:.*too short for a rate", "ignore:no gap between two values")
def test_every_command_with_series_takes_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    table = pd.concat([long(name) for name in "abc"], ignore_index=True)
    model, words = tsfm.load("seasonal-naive"), ("--model", "seasonal-naive", "--output")
    assert "3 of 3 parts done, 9 series, 171 rows" in done(capsys, "detect", "sales", *words, "found")
    same(rows("found"), model.detect(table))
    assert "3 of 3 parts done, 9 series, 171 rows" in done(capsys, "impute", "sales", *words, "filled")
    same(rows("filled"), model.impute(table))
    words = ("--models", "seasonal-naive", "naive", "--horizon", "2", "--windows", "4", "--output", "scored")
    assert "3 of 3 parts done, 9 series, 45 rows" in done(capsys, "backtest", "sales", *words)
    scored = rows("scored").set_index(["item_id", "model"]).sort_index()
    whole = model.backtest(table, 2, ("naive",), windows=4)
    for name, score in zip(
        whole.ids, whole.scores(whole.forecasts[1, whole.judging], whole.judging, "series")["MASE"], strict=True
    ):
        assert scored.loc[(name, "naive"), "MASE"] == pytest.approx(score)
    for command in ("detect", "impute", "backtest"):
        said = run(capsys, command, "sales/*.csv", *(("--horizon", "2") if command == "backtest" else ()))
        assert (said.status, said.err.count("\n")) == (2, 1)
        assert "--output FOLDER" in said.err
