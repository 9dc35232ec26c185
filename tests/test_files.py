"""Files that appear whole, and for everybody."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tsfm_data.io.files import atomic_file, atomic_folder


@pytest.fixture
def umask() -> Iterator[int]:
    mask = 0o027
    before = os.umask(mask)
    yield mask
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


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
    (tmp_path / "scores.json").write_text("old")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("old")
    for atomic, name in ((atomic_file, "scores.json"), (atomic_folder, "model")):
        with pytest.raises(ZeroDivisionError), atomic(tmp_path / name):
            1 / 0  # noqa: B018
    assert (tmp_path / "scores.json").read_text() == (tmp_path / "model/config.json").read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"scores.json", "model"}
