"""What is wrong with a corpus or its YAML: one line, status 2, and nothing that was there is lost."""

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from command import done, listing, run

from tsfm_data.corpus.shards import GrowingArray
from tsfm_data.corpus.store import Store
from tsfm_data.io import catalog

DATE = pd.date_range("2024-01-01", periods=40, freq="D")


def write(path: Path, dates: Any = DATE, **columns: Any) -> Path:
    pd.DataFrame({"date": dates, **columns}).to_csv(path, index=False)
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with some tables, good and bad, and a corpus "out" of the good one."""
    monkeypatch.chdir(tmp_path)
    good = np.random.default_rng(0).normal(size=40)
    write(tmp_path / "good.csv", v=good)
    write(tmp_path / "other.csv", v=good + 1)
    write(tmp_path / "constant.csv", a=7.0, b=8.0)
    write(tmp_path / "point.csv", ["2024-01-01"], v=[5.0])
    write(tmp_path / "points.csv", v=[1.0] + [np.nan] * 39)
    write(tmp_path / "late.csv", [*DATE[:-1].astype(str), "9999-12-31"], v=good)
    write(tmp_path / "huge.csv", v=good, w=good * 1e39)
    write(tmp_path / "tiny.csv", v=good * 1e-42)
    write(tmp_path / "text.csv", v=["x", *good[1:]])
    (tmp_path / "header.csv").write_text("date,v\n")
    (tmp_path / "broken.yaml").write_text("sources: [")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/letter.txt").write_text("dear")
    (tmp_path / "gluon").mkdir()
    (tmp_path / "gluon/data.json").write_text('{"start": "2024-01-01", "target": [1, 2, 3]}\n')
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn/data.json").write_text('{"start": "2024-01-01", "tar\n')
    config(tmp_path, {"path": "good.csv"})
    return tmp_path


def config(folder: Path, *sources: Any) -> str:
    (folder / "c.yaml").write_text(yaml.safe_dump({"sources": list(sources)}))
    return "c.yaml"


BAD: dict[str, tuple[list[Any], tuple[str, ...]]] = {
    "constant": ([{"path": "constant.csv"}], ("source 'constant'", "whose values change", "2 constant", "leave the")),
    "one row": ([{"path": "point.csv", "freq": "D"}], ("source 'point'", "found none (1 one point)")),
    "one value": ([{"path": "points.csv"}], ("source 'points'", "found none (1 one point)")),
    "no frequency": ([{"path": "point.csv"}], ("source 'point'", "expected at least two rows", "give freq")),
    "no rows": ([{"path": "header.csv"}], ("header.csv", "found only a header")),
    "out of range": ([{"path": "late.csv"}], ("source 'late'", "row 41")),
    "float32": ([{"path": "huge.csv"}], ("huge.csv", "series 'w'", "expected values of at most 3.40e+38", "rescale")),
    "underflow": (
        [{"path": "tiny.csv"}],
        ("tiny.csv", "series 'v'", "expected a range of at least 1.18e-38", "rescale"),
    ),
    "text": ([{"path": "text.csv"}], ("text.csv, column 'v', row 2", "expected a number")),
    "vanished": ([{"path": "god.csv"}], ("source 1", "god.csv", "found no file")),
    "nothing fits": ([{"path": "x*.csv"}], ("source 1", "x*.csv", "found no file")),
    "unknown frequency": ([{"path": "good.csv", "freq": "fortnight"}], ("source 1", "unknown frequency 'fortnight'")),
    "near key": ([{"path": "good.csv", "wieght": 1}], ("source 1", "unknown key 'wieght'", "did you mean weight?")),
    "near kind": ([{"pth": "good.csv"}], ("source 1", "unknown key 'pth'", "did you mean path?")),
    "two kinds": (
        [{"path": "good.csv", "generator": "gp"}],
        ("expected one of catalog, path", "found path, generator"),
    ),
    "twice": ([{"path": "good.csv"}, {"path": "other.csv", "name": "Good"}], ("distinct source names", "'Good' twice")),
    "no sources": ([], ("expected sources as a list", "found []")),
    "not a mapping": (["good.csv"], ("expected sources as a list",)),
    "evaluation set": ([{"catalog": "ETTh1"}], ("'ETTh1' is for evaluation", "not for pretraining")),
    "evaluation role": ([{"catalog": {"role": "bench"}}], ("expected role train, found 'bench'",)),
    "near data set": ([{"catalog": "electricty_weekly"}], ("did you mean electricity_weekly",)),
    "no data set": ([{"catalog": "zz*"}], ("found none that matches 'zz*'",)),
    "near condition": ([{"catalog": {"licence_clas": "open"}}], ("did you mean licence_class?",)),
    "near class": ([{"catalog": {"licence_class": "opne"}}], ("unknown licence_class 'opne'", "did you mean open")),
    "near generator": ([{"generator": "pg"}], ("unknown generator 'pg'",)),
    "no count": ([{"generator": "gp", "length": 10}], ("expected count as a whole number", "found None")),
    "short": ([{"generator": "gp", "count": 3, "length": 1}], ("expected length", "at least 2, found 1")),
    "weight": ([{"path": "good.csv", "weight": -1}], ("expected weight as a positive number, found -1",)),
    "weights": (
        [{"path": "good.csv", "weight": 1.5}, {"path": "other.csv"}],
        ("expected weights that sum to less than 1", "found 1.5"),
    ),
    "name": ([{"path": "good.csv", "name": "../x"}], ("expected a name of letters", "found '../x'")),
    "gluonts frequency": ([{"gluonts": "gluon"}], ("metadata.json with the frequency", "give freq")),
    "gluonts content": ([{"gluonts": "gluon/data.json", "freq": "D"}], ("a folder written by GluonTS", "found none")),
    "gluonts entries": ([{"gluonts": "torn", "freq": "D"}], ("source 'torn'", "expected a data set of GluonTS")),
    "gluonts folder": ([{"gluonts": "glue"}], ("a folder written by GluonTS", "found none")),
}


@pytest.mark.parametrize("case", BAD)
def test_when_a_source_is_wrong_then_one_line_says_so_and_the_corpus_is_as_before(
    case: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done(capsys, "data", "build", "c.yaml", "--output", "out")
    before = {name: (folder / "out" / name).read_bytes() for name in listing(folder / "out") if name.endswith(".npy")}
    manifest = (folder / "out/manifest.json").read_text()
    sources, parts = BAD[case]
    result = run(capsys, "data", "build", config(folder, *sources), "--output", "out")
    assert result.status == 2
    assert result.err.startswith("tsfm: error: ")
    assert result.err.count("\n") == 1, result.err
    for part in parts:
        assert part in result.err, result.err
    assert (folder / "out/manifest.json").read_text() == manifest
    assert {name: (folder / "out" / name).read_bytes() for name in before} == before
    assert len(Store("out", verify=True)) == 1


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("sources: [", "expected YAML"),
        ("- a", "expected the key sources"),
        ("source: []", "did you mean sources?"),
        ("", "expected the key sources"),
    ],
)
def test_when_the_yaml_is_wrong_then_one_line_says_so(
    content: str, part: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "c.yaml").write_text(content)
    result = run(capsys, "data", "build", "c.yaml", "--output", "new")
    assert (result.status, result.err.count("\n")) == (2, 1)
    assert part in result.err
    assert not (folder / "new").exists()


@pytest.mark.parametrize("output", ["full", "good.csv"])
def test_when_the_output_is_no_corpus_then_it_is_left_alone(
    output: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = listing(folder)
    result = run(capsys, "data", "build", "c.yaml", "--output", output)
    assert result.status == 2
    assert "expected a" in result.err
    assert listing(folder) == before


def test_when_a_users_file_is_an_evaluation_set_then_it_is_refused(
    folder: Path, data_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = catalog.pull("hospital")
    (folder / "mine.parquet").write_bytes(path.read_bytes())
    result = run(capsys, "data", "build", config(folder, {"path": "mine.parquet"}), "--output", "new")
    assert result.status == 2
    assert "'hospital', which is for evaluation" in result.err


@pytest.mark.parametrize("array", ["values", "offsets", "items", "freqs", "overlap"])
def test_when_a_shard_is_corrupt_then_it_is_named(array: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done(capsys, "data", "build", "c.yaml", "--output", "out")
    file = folder / f"out/sources/good/{array}.npy"
    data = file.read_bytes()
    for damaged, part in (
        (data[:-1], "bytes, found"),
        (data[:-1] + bytes([data[-1] ^ 1]), "it is damaged"),
        (None, ""),
    ):
        file.write_bytes(damaged) if damaged is not None else file.unlink()
        result = run(capsys, "data", "verify", "out")
        assert (result.status, result.err.count("\n")) == (2, 1)
        assert f"out/sources/good/{array}.npy: expected" in result.err
        assert part in result.err
        assert "run tsfm data build again" in result.err
    assert "1 built, 0 reused" in done(capsys, "data", "build", "c.yaml", "--output", "out")
    assert file.read_bytes() == data


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 99, "sources": []}', '{"format": 1}'])
def test_when_a_manifest_is_not_one_then_it_is_named(
    text: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "made").mkdir()
    (folder / "made/manifest.json").write_text(text)
    for words in (("verify", "made"), ("overlap", "made"), ("build", "c.yaml", "--output", "made")):
        result = run(capsys, "data", *words)
        assert (result.status, result.err.count("\n")) == (2, 1)
        assert "made/manifest.json: expected" in result.err
    assert (folder / "made/manifest.json").read_text() == text


def test_when_there_is_no_corpus_then_one_line_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("verify", "overlap"):
        assert "no such file; expected a corpus folder" in run(capsys, "data", word, "nowhere").err


def test_when_the_disk_is_full_then_the_corpus_is_as_before(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done(capsys, "data", "build", "c.yaml", "--output", "out")
    before = listing(folder / "out")
    append = GrowingArray.append

    def full(self: GrowingArray, values: np.ndarray) -> None:
        append(self, values)
        if self.path.stem == "values":
            raise OSError(errno.ENOSPC, "No space left on device", str(self.path))

    monkeypatch.setattr(GrowingArray, "append", full)
    result = run(capsys, "data", "build", config(folder, {"path": "other.csv"}), "--output", "out")
    assert (result.status, result.err.count("\n")) == (2, 1)
    assert "No space left on device" in result.err
    assert "free space" in result.err
    monkeypatch.undo()
    left = listing(folder / "out")
    assert {name: size for name, size in left.items() if not name.startswith(".build")} == before
    assert [name for name in left if name.startswith(".build/")] == []  # nothing half-written
