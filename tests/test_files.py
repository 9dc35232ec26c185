"""Files and folders that appear whole, for everybody, from one process at a time, and never in place of an input."""

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from command import listing

from tsfm_data.errors import InputError
from tsfm_data.io import files
from tsfm_data.io.files import atomic_file, atomic_folder, check_new, lock_folder

ENTER: dict[str, Callable[[Path], Any]] = {"file": atomic_file, "folder": atomic_folder, "lock_folder": lock_folder}


@pytest.fixture
def umask() -> Iterator[int]:
    mask = 0o027
    before = os.umask(mask)
    yield mask
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@contextmanager
def at_work(kind: str, path: Path) -> Iterator[None]:
    """Another process is writing ``path``; it is killed at the end."""
    ready, done = os.pipe()
    child = os.fork()
    if child == 0:
        with ENTER[kind](path) as temporary:
            if kind != "lock_folder":
                (temporary / "half" if kind == "folder" else temporary).write_text("half")
            os.write(done, b"1")
            time.sleep(600)
        os._exit(1)
    os.read(ready, 1)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(done)


def killed(kind: str, path: Path) -> None:
    """Start to write ``path``, and kill the process."""
    with at_work(kind, path):
        pass


def write(kind: str, path: Path, text: str) -> None:
    if kind == "file":
        with atomic_file(path) as file:
            file.write_text(text)
    else:
        with atomic_folder(path) as folder:
            (folder / "config.json").write_text(text)


def read(path: Path) -> str:
    return (path / "config.json" if path.is_dir() else path).read_text()


def test_when_files_are_made_then_they_have_the_permissions_of_any_new_file(tmp_path: Path, umask: int) -> None:
    with atomic_file(tmp_path / "scores.json") as file:
        file.write_text("{}")
    with atomic_folder(tmp_path / "model") as folder:
        (folder / "parts").mkdir(mode=0o700)
        weights = folder / "parts" / "model.safetensors"
        weights.touch(mode=0o600)  # as safetensors makes it
    assert mode(tmp_path / "scores.json") == 0o666 & ~umask
    assert mode(tmp_path / "model/parts/model.safetensors") == 0o666 & ~umask
    assert mode(tmp_path / "model") == mode(tmp_path / "model/parts") == 0o777 & ~umask


def test_when_writing_fails_then_what_was_there_stays_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    write("file", tmp_path / "scores.json", "old")
    write("folder", tmp_path / "model", "old")
    for atomic, name in ((atomic_file, "scores.json"), (atomic_folder, "model"), (atomic_folder, "new/deep/model")):
        with pytest.raises(ZeroDivisionError), atomic(tmp_path / name):
            1 / 0  # noqa: B018
    assert read(tmp_path / "scores.json") == read(tmp_path / "model") == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"scores.json", "model"}


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("name", ["out.csv", "a.b.c", "n" * 250, "ü" * 120, "--output", " "])
def test_when_a_writer_was_killed_then_the_next_one_removes_what_it_left(tmp_path: Path, kind: str, name: str) -> None:
    path = tmp_path / name
    write(kind, path, "old")
    killed(kind, path)
    assert read(path) == "old"
    assert len(listing(tmp_path)) > len([path, *path.rglob("*")])
    write(kind, path, "new")
    assert read(path) == "new"
    assert sorted(tmp_path.rglob("*")) == sorted([path, *path.rglob("*")])


def test_when_a_run_was_killed_then_the_next_one_in_its_folder_removes_what_it_left(tmp_path: Path) -> None:
    killed("lock_folder", tmp_path / "run")
    killed("file", tmp_path / "run/checkpoints/last.ckpt")
    killed("folder", tmp_path / "run/model")
    with at_work("file", tmp_path / "run/logs/metrics.csv"), lock_folder(tmp_path / "run"):
        left = {path.name for path in (tmp_path / "run").rglob("*") if path.is_file()} - {".lock"}
        assert left == {".metrics.tsfm-part.csv", ".metrics.tsfm-part.csv.lock"}


@pytest.mark.parametrize("kind", ["folder", "lock_folder"])
def test_when_another_process_writes_a_folder_then_the_second_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    enter = ENTER[kind]
    with at_work(kind, tmp_path / "out"):
        before = listing(tmp_path)
        with pytest.raises(InputError, match=r"no other run .*out: wait until it has ended"), enter(tmp_path / "out"):
            pass
        assert listing(tmp_path) == before
    with enter(tmp_path / "out"):
        pass


def test_when_a_folder_is_replaced_again_and_again_then_a_reader_always_finds_a_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "model"
    write("folder", path, "0")
    child = os.fork()
    if child == 0:
        for number in itertools.count():
            write("folder", path, str(number))
    try:
        seen, end = set(), time.monotonic() + 20
        while len(seen) < 50 and time.monotonic() < end:
            seen.add(int((path / "config.json").read_text()))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert len(seen) == 50


def test_when_folders_cannot_be_exchanged_then_the_old_one_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_exchanged", lambda one, other: False)
    write("folder", tmp_path / "model", "1")
    write("folder", tmp_path / "model", "2")
    assert read(tmp_path / "model") == "2"
    (tmp_path / "model").rename(tmp_path / ".model.tsfm-old")  # as if the process had been killed here
    check_new([tmp_path / "model"], True, sign="config.json")
    assert read(tmp_path / "model") == "2"
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


@pytest.mark.parametrize("kind", ["same", "dot", "symbolic", "hard", "above", "above, linked"])
def test_when_an_output_is_an_input_by_any_name_then_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    given = Path("in/table.csv")
    given.write_text("mine")
    Path("symbolic.csv").symlink_to(given)
    os.link(given, "hard.csv")
    Path("linked").symlink_to("in")
    output = {"same": given, "dot": Path("in/../in/./table.csv"), "symbolic": Path("symbolic.csv")}
    output |= {"hard": Path("hard.csv"), "above": Path("in"), "above, linked": Path("linked")}
    with pytest.raises(InputError, match="expected an output that is not an input"):
        check_new([output[kind]], True, [str(given)], sign="table.csv" if "above" in kind else None)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("table.csv/out.csv", "found the file"),
        ("folder", "which is a folder"),
        ("/dev/null", "which is a device"),
        ("/proc/out.csv", "a folder that can be written"),
        ("/proc/new/out.csv", "a folder that can be written"),
    ],
)
def test_when_an_output_cannot_be_written_then_it_is_noticed_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("table.csv").write_text("mine")
    Path("folder").mkdir()
    with pytest.raises(InputError, match=message):
        check_new([Path(output)], True)
