"""A corpus on disk: what goes in comes out, it grows, resumes after a kill, and never sits in memory."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from command import done, waves

from tsfm.configs import CONFIG_FOLDER, config_path
from tsfm_data.corpus.building import build, shares
from tsfm_data.corpus.shards import to_float32
from tsfm_data.corpus.sources import read_plans
from tsfm_data.corpus.store import Store, current_path
from tsfm_data.errors import InputError
from tsfm_data.io import catalog, lock_folder

ROOT = Path(__file__).resolve().parent.parent


def write(folder: Path, *sources: dict[str, Any]) -> Path:
    """A corpus YAML."""
    path = folder / "corpus.yaml"
    path.write_text(yaml.safe_dump({"sources": list(sources)}))
    return path


def table(folder: Path, name: str, seed: int = 0, rows: int = 300, items: int = 3) -> Path:
    """A long daily table of random walks."""
    rng = np.random.default_rng(seed)
    date = pd.date_range("2024-01-01", periods=rows, freq="D")
    frames = [pd.DataFrame({"item_id": f"i{k}", "ds": date, "y": rng.normal(size=rows).cumsum()}) for k in range(items)]
    pd.concat(frames).to_csv(folder / name, index=False)
    return folder / name


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def test_when_a_wide_table_is_built_then_its_variates_stand_aligned_in_one_item(tmp_path: Path) -> None:
    frame = waves(rows=100, variates=3)
    frame.loc[7, "v1"] = np.nan
    frame.to_csv(tmp_path / "wide.csv", index=False)
    build(write(tmp_path, {"path": "wide.csv", "licence": "CC0", "licence_class": "open"}), tmp_path / "out")
    (source,) = Store(tmp_path / "out", verify=True).sources
    assert (source.name, source.weight, source.licence, source.licence_class) == ("wide", 1.0, "CC0", "open")
    assert source.offsets.tolist() == [0, 100, 200, 300]
    assert source.items.tolist() == [0, 0, 0]
    assert source.season.tolist() == [24, 24, 24]
    assert source.freq_names == ("h",)
    assert source.values.dtype == np.float32
    expected = frame[["v0", "v1", "v2"]].to_numpy().T.reshape(-1).astype(np.float32)
    np.testing.assert_array_equal(source.values, expected)
    assert source.entry["missing"] == 1
    assert isinstance(source.values, np.memmap)


def test_when_series_hold_nothing_to_learn_then_they_are_dropped_and_counted(tmp_path: Path) -> None:
    date = pd.date_range("2024-01-01", periods=5, freq="D")
    columns = {"a": [1.0, 2, 3, 4, 5], "b": [7.0] * 5, "c": [np.nan, 1, np.nan, np.nan, np.nan], "d": [5.0, 4, 3, 2, 1]}
    pd.DataFrame({"date": date, **columns}).to_csv(tmp_path / "t.csv", index=False)
    built = build(write(tmp_path, {"path": "t.csv", "freq": "D"}), tmp_path / "out")
    (entry,) = built.manifest["sources"]
    assert entry["dropped"] == {"constant": 1, "one point": 1}
    assert Store(tmp_path / "out").sources[0].values.tolist() == [1, 2, 3, 4, 5, 5, 4, 3, 2, 1]


def test_when_a_source_is_added_or_changed_then_it_alone_is_made(tmp_path: Path) -> None:
    table(tmp_path, "a.csv", 1)
    table(tmp_path, "b.csv", 2)
    out = tmp_path / "out"
    assert build(write(tmp_path, {"path": "a.csv"}), out).built == ("a",)
    both = write(tmp_path, {"path": "a.csv"}, {"path": "b.csv"})
    grown = build(both, out)
    assert (grown.built, grown.reused) == (("b",), ("a",))
    fresh = build(both, tmp_path / "fresh")
    assert fresh.built == ("a", "b")
    assert content(out) == content(tmp_path / "fresh")  # however it came about, the same bytes
    table(tmp_path, "a.csv", 3)
    changed = build(both, out)
    assert (changed.built, changed.reused) == (("a",), ("b",))
    only_b = build(write(tmp_path, {"path": "b.csv", "weight": 0.25}), out)  # a stays in the corpus
    assert (only_b.built, only_b.reused) == ((), ("b", "a"))
    assert {s.name: s.weight for s in Store(out, verify=True).sources} == {"a": 0.75, "b": 0.25}
    shorter = build(write(tmp_path, {"path": "b.csv", "target": "y", "freq": "D"}), out)
    assert shorter.built == ("b",)  # other options, another source


def test_when_an_array_is_damaged_then_the_next_build_mends_it(tmp_path: Path) -> None:
    table(tmp_path, "a.csv")
    config, out = write(tmp_path, {"path": "a.csv"}), tmp_path / "out"
    build(config, out)
    before = content(out)
    file = out / "sources/a/values.npy"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert build(config, out).built == ("a",)
    assert content(out) == before


def test_when_a_build_is_killed_then_the_corpus_is_as_before_and_the_next_build_goes_on(tmp_path: Path) -> None:
    for name in "abc":
        table(tmp_path, f"{name}.csv", ord(name))
    out = tmp_path / "out"
    build(write(tmp_path, {"path": "a.csv"}), out)
    before = content(out)
    config = write(tmp_path, *({"path": f"{name}.csv"} for name in "abc"))
    script = (
        "import os, signal, sys\n"
        "import tsfm_data.corpus.shards as shards\n"
        "add = shards.ShardWriter.add\n"
        "def stop(self, *rest):\n"
        "    add(self, *rest)\n"
        "    if self.name == 'c':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "shards.ShardWriter.add = stop\n"
        "from tsfm_data.corpus.building import build\n"
        "build(sys.argv[1], sys.argv[2])\n"
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "data")])
    killed = subprocess.run(
        [sys.executable, "-c", script, str(config), str(out)], env={**os.environ, "PYTHONPATH": path}, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    left = content(out)
    assert {name: left[name] for name in before} == before
    assert [s.name for s in Store(out, verify=True).sources] == ["a"]
    assert list((out / ".build/sources").glob(".c.*"))  # half-done
    made = (out / ".build/sources/b").stat().st_ino
    build(config, out)
    assert (out / "sources/b").stat().st_ino == made  # finished before the kill: taken up, not made again
    assert not (out / ".build").exists()
    build(config, tmp_path / "fresh")
    assert content(out) == content(tmp_path / "fresh")


def killed_at(step: int, function: Callable[[], object]) -> bool:
    """Whether a function was killed in another process at its n-th change of the file system."""
    child = os.fork()
    if child == 0:
        steps = itertools.count()

        def stop(event: str, arguments: tuple[Any, ...]) -> None:
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if (writes or event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir")) and next(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(stop)
        function()
        os._exit(0)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


@pytest.mark.slow
def test_when_a_build_is_killed_anywhere_then_the_corpus_is_the_old_or_the_new_one(tmp_path: Path) -> None:
    for name in "ab":
        table(tmp_path, f"{name}.csv", ord(name), rows=30)
    old, out = tmp_path / "old", tmp_path / "out"
    build(write(tmp_path, {"path": "a.csv"}), old)
    before = [source.fingerprints.tolist() for source in Store(old).sources]
    table(tmp_path, "a.csv", 5, rows=40)
    config = write(tmp_path, {"path": "a.csv"}, {"path": "b.csv"})
    build(config, tmp_path / "new")
    after = [source.fingerprints.tolist() for source in Store(tmp_path / "new").sources]
    new, seen = content(tmp_path / "new"), []
    for step in itertools.count():
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(old, out)
        if not killed_at(step, lambda: build(config, out)):
            break
        store = Store(out, verify=True)
        seen.append([source.fingerprints.tolist() for source in store.sources])
        assert seen[-1] in (before, after)
        with np.load(current_path(out, "overlap.npz")) as hashes:
            assert {*hashes} == {source.name for source in store.sources}
        build(config, out)
        assert content(out) == new
        assert not list(out.rglob(".*"))
    assert (seen[0], seen[-1]) == (before, after)
    assert len(seen) > 20


@pytest.mark.slow
def test_when_a_source_is_large_then_memory_does_not_grow_with_it(tmp_path: Path) -> None:
    script = (
        "import resource, sys\n"
        "import numpy as np\n"
        "import tsfm_data.synthetic as synthetic\n"
        "synthetic.GENERATORS = {'walk': lambda count, length, rng: rng.normal(size=(count, length)).cumsum(1)}\n"
        "from tsfm_data.corpus.building import build\n"
        "build(sys.argv[1], sys.argv[2])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)\n"
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "data")])
    peaks = []
    for count in (256, 3072):
        config = write(tmp_path, {"generator": "walk", "count": count, "length": 2560})
        out = tmp_path / f"out{count}"
        ran = subprocess.run(
            [sys.executable, "-c", script, str(config), str(out)],
            env={**os.environ, "PYTHONPATH": path},
            text=True,
            capture_output=True,
            check=True,
        )
        peaks.append(int(ran.stdout))
    assert (tmp_path / "out3072/sources/walk/values.npy").stat().st_size > 30 << 20
    assert peaks[1] - peaks[0] < 10  # MiB, of 30 written


def test_when_gluonts_wrote_a_data_set_then_it_is_a_source(tmp_path: Path) -> None:
    (tmp_path / "ds/train").mkdir(parents=True)
    (tmp_path / "ds/metadata.json").write_text(json.dumps({"freq": "1H", "prediction_length": 24}))
    rng = np.random.default_rng(0)
    series = [rng.normal(size=40 + k).round(3) for k in range(700)]  # more than are read at once
    lines = [
        json.dumps({"start": "2024-01-01 00:00:00", "target": list(s), "item_id": str(k)}) for k, s in enumerate(series)
    ]
    (tmp_path / "ds/train/data.json").write_text("\n".join(lines) + "\n")
    build(write(tmp_path, {"gluonts": "ds", "name": "mine"}), tmp_path / "out")
    (source,) = Store(tmp_path / "out").sources
    assert (source.name, len(source), source.freq_names) == ("mine", 700, ("h",))
    assert source.items.tolist() == list(range(700))
    np.testing.assert_array_equal(source.values, np.concatenate(series).astype(np.float32))


def test_when_gluonts_wrote_several_variates_then_they_stand_aligned_in_one_item(tmp_path: Path) -> None:
    (tmp_path / "ds").mkdir()
    values = np.random.default_rng(0).normal(size=(3, 2, 50)).round(3)
    lines = [json.dumps({"start": "2024-01-01", "target": item.tolist()}) for item in values]
    (tmp_path / "ds/data.json").write_text("\n".join(lines) + "\n")
    build(write(tmp_path, {"gluonts": "ds", "freq": "W"}), tmp_path / "out")
    (source,) = Store(tmp_path / "out").sources
    assert source.items.tolist() == [0, 0, 1, 1, 2, 2]
    assert source.freq_names == ("W-SUN",)
    np.testing.assert_array_equal(source.values, values.reshape(-1).astype(np.float32))


def test_when_series_are_generated_then_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    def made(out: str, **options: Any) -> np.ndarray:
        entry = {"generator": "mixture", "name": "synth", "count": 300, "length": 64, "seed": 3, **options}
        build(write(tmp_path, entry), tmp_path / out)
        return np.asarray(Store(tmp_path / out).sources[0].values)

    first = made("one")
    np.testing.assert_array_equal(made("two"), first)
    assert not np.array_equal(made("three", seed=4)[:64], first[:64])
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_when_several_files_fit_a_pattern_then_they_are_one_source(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    for k in range(3):
        table(tmp_path / "shop", f"part{k}.csv", k)
    built = build(write(tmp_path, {"path": "shop/part*.csv"}), tmp_path / "out")
    (entry,) = built.manifest["sources"]
    assert (entry["name"], entry["series"], len(entry["files"])) == ("part", 9, 3)


@pytest.mark.parametrize("offset", [0.0, 1e9, -3e15])
def test_when_a_series_lies_far_from_zero_then_its_shape_survives_single_precision(offset: float) -> None:
    shape = np.round(np.random.default_rng(0).normal(size=500).cumsum() * 64)
    values, shifted = to_float32(shape + offset, "here")
    assert shifted == (offset != 0)
    assert np.abs(np.diff(values.astype(np.float64)) - np.diff(shape)).max() == 0


def test_when_nothing_is_lost_then_values_are_only_rounded() -> None:
    values, shifted = to_float32(np.array([1000.1, 1001.3, np.nan, 990.7]), "here")
    assert not shifted
    np.testing.assert_array_equal(values, np.array([1000.1, 1001.3, np.nan, 990.7], np.float32))


def test_when_no_weights_are_given_then_shares_follow_the_fourth_root_of_points_up_to_a_bound() -> None:
    weights = shares([100] * 39 + [100 * 10**6], [None] * 40)
    assert weights[-1] == pytest.approx(0.08)
    assert weights[:-1] == pytest.approx(0.92 / 39)
    weights = shares([1, 16, 81] * 20, [None] * 60)
    assert weights[:3] == pytest.approx(np.array([1, 2, 3]) / 120)
    assert shares([5], [None]) == pytest.approx(1.0)
    assert shares([5, 16, 10**8], [0.5, None, None]) == pytest.approx(
        [0.5, 0.5 * 2 / (2 + 10**2), 0.5 * 10**2 / (2 + 10**2)]
    )
    assert shares([5, 9], [3.0, 1.0]) == pytest.approx([0.75, 0.25])


@pytest.mark.parametrize("seed", range(20))
def test_when_shares_are_bounded_then_they_sum_to_one_and_none_exceeds_the_bound(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = np.exp(rng.normal(8, 4, rng.integers(1, 80))).astype(int) + 1
    weights = shares(points.tolist(), [None] * len(points))
    assert weights.sum() == pytest.approx(1)
    assert weights.max() <= max(0.08, 2 / len(points)) + 1e-9
    assert (np.diff(weights[np.argsort(points)]) >= -1e-12).all()  # more points, no smaller share


def test_when_the_corpus_of_released_weights_is_listed_then_it_is_every_open_training_set(data_folder: Path) -> None:
    plans = read_plans(config_path("corpus/open"))
    assert len(plans) == 56
    assert {plan.licence_class for plan in plans} == {"open"}
    assert not {plan.name for plan in plans} & set(catalog.names("bench"))
    assert len(read_plans(config_path("corpus/all"))) == len(catalog.names("train")) == 100


@pytest.mark.parametrize("path", sorted((CONFIG_FOLDER / "corpus").glob("*.yaml")), ids=lambda p: p.stem)
def test_when_a_corpus_config_is_read_then_it_says_how_to_run_it(path: Path, data_folder: Path) -> None:
    assert f"tsfm data build corpus/{path.stem} --output" in path.read_text()
    assert read_plans(path)


def test_when_the_command_builds_then_it_says_what_is_in_the_corpus(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data_folder: Path
) -> None:
    table(tmp_path, "a.csv")
    config = write(tmp_path, {"catalog": "us_initial_claims"}, {"path": "a.csv", "weight": 0.1})
    said = done(capsys, "data", "build", str(config), "--output", str(tmp_path / "out"))
    assert "2 sources (2 built, 0 reused), 8 series" in said
    assert "10.00%" in said
    assert "all checksums correct" in done(capsys, "data", "verify", str(tmp_path / "out"))
    entry = Store(tmp_path / "out").sources[0].entry
    assert entry["dropped"] == {"in evaluation sets": 1}  # M4's W4
    assert entry["files"][0]["sha256"] == catalog.get("us_initial_claims").sha256


def test_when_another_build_is_at_work_then_this_one_waits_for_nothing(tmp_path: Path) -> None:
    table(tmp_path, "a.csv")
    with lock_folder(tmp_path / "out"), pytest.raises(InputError, match="no other run uses"):
        build(write(tmp_path, {"path": "a.csv"}), tmp_path / "out")
