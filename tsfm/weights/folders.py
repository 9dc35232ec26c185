"""Writes and verifies the checksums of model folders."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tsfm.weights.tensors import Layout, check_file, layout
from tsfm_data.errors import InputError
from tsfm_data.io import atomic_file, check_record, check_version, read_record

CHECKSUMS = "checksums.json"
FORMAT_VERSION = 1
# The files of a model folder; the first two are required.
FILES = ("config.json", "model.safetensors", "README.md", "scores.json", "seen.safetensors")
# The model type of a classifier of series, and the folder of its encoder within its own.
CLASSIFIER, ENCODER = "series-classifier", "encoder"


@dataclass(frozen=True)
class Origin:
    """Where a model folder comes from.

    Attributes:
        name: name of the model.
        licence: SPDX name, or "unknown".
        source: repository or URL of the original; None for a model of one's own.
        revision: commit of the repository.
        sha256: SHA-256 of each original file.
    """

    name: str
    licence: str
    source: str | None = None
    revision: str | None = None
    sha256: dict[str, str] | None = None


@dataclass(frozen=True)
class FileSum:
    """Size in bytes and SHA-256 of a file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Checksums:
    """The content of ``checksums.json``."""

    format_version: int
    origin: Origin
    files: dict[str, FileSum]


@dataclass(frozen=True)
class Checked:
    """Result of the check of a model folder.

    Attributes:
        folder: the folder.
        kind: its model type or architecture.
        layout: names, types and shapes of its tensors.
        compared: number of files compared with their checksums; 0 without checksums.
        origin: where it comes from; None without checksums.
    """

    folder: Path
    kind: str
    layout: Layout
    compared: int
    origin: Origin | None


def digest(file: Path) -> str:
    """SHA-256 of a file."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_checksums(folder: Path, origin: Origin) -> None:
    """Write ``checksums.json`` for the files of a model folder."""
    files = {name: folder / name for name in FILES if (folder / name).is_file()}
    sums = {name: {"size": file.stat().st_size, "sha256": digest(file)} for name, file in files.items()}
    content = {"format_version": FORMAT_VERSION, "origin": asdict(origin), "files": sums}
    with atomic_file(folder / CHECKSUMS) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def read_checksums(file: Path) -> tuple[Origin, dict[str, tuple[int, str]]]:
    """The content of ``checksums.json``: origin of the folder, and size and SHA-256 of every file.

    Raises:
        InputError: another or newer format, or names of files that do not belong in a model folder.
    """
    check_file(file)
    what, plain = "checksums of a model folder", read_object(file)
    content = check_record(check_version(plain, FORMAT_VERSION, file), Checksums, file, what, hint="get it again")
    sums = {name: (entry.size, entry.sha256) for name, entry in content.files.items()}
    for name in sums:
        if name not in FILES:
            raise InputError(
                f"expected the files {', '.join(FILES)} in {file}, found {name!r:.80}: it was not followed"
            )
    if not {*FILES[:2]} <= {*sums}:
        raise InputError(f"expected checksums of {FILES[0]} and {FILES[1]} in {file}, found none: get it again")
    return content.origin, sums


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        InputError: the file is not JSON, or another value.
    """
    return read_record(file, dict, "a JSON object", hint="get the file again")


def verify(folder: Path) -> list[Checked]:
    """Check a model folder, or every model folder in a mirror.

    Every file is compared with ``checksums.json``, if there is one; the weights must be complete and fit the config.
    Nothing is executed, and no other files are allowed.

    Raises:
        InputError: the first problem.
    """
    if not folder.is_dir():
        raise InputError(f"expected a model folder or a mirror at {folder}, found none: check the path")
    if (folder / FILES[0]).exists() or (folder / CHECKSUMS).exists():
        return [_verify(folder), *([_verify(folder / ENCODER)] if (folder / ENCODER).is_dir() else [])]
    inside = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    if not inside:
        raise InputError(f"expected a model folder or a mirror at {folder}, found no config.json: check the path")
    return [_verify(path) for path in inside]


def _verify(folder: Path) -> Checked:
    known = (*FILES, CHECKSUMS)
    stray = [path for path in sorted(folder.iterdir()) if path.name not in known]
    has_encoder = stray == [folder / ENCODER] and stray[0].is_dir()
    if stray and not has_encoder:
        raise InputError(f"expected only {', '.join(known)} in {folder}, found {stray[0].name!r:.80}: take it out")
    for path in sorted(set(folder.iterdir()) - set(stray)):
        check_file(path)
    for name in FILES[:2]:
        if not (folder / name).is_file():
            raise InputError(f"expected {name} in {folder}, found none: get the folder again")
    origin, sums = read_checksums(folder / CHECKSUMS) if (folder / CHECKSUMS).exists() else (None, {})
    for name, (size, expected) in sums.items():
        file = folder / name
        if not file.is_file():
            raise InputError(f"expected {name} in {folder}, which its checksums name, found none: get the folder again")
        if file.stat().st_size != size or (actual := digest(file)) != expected:
            actual = f"{file.stat().st_size:,} bytes" if file.stat().st_size != size else actual
            raise InputError(f"expected {size:,} bytes of SHA-256 {expected} at {file}, found {actual}: get it again")
    unnamed = [name for name in FILES if sums and name not in sums and (folder / name).is_file()]
    if unnamed:
        raise InputError(f"expected checksums of every file of {folder}, found none of {unnamed[0]}: get it again")
    config = read_object(folder / FILES[0])
    kind = str(config.get("model_type") or config.get("architecture"))[:60]
    if has_encoder != (kind == CLASSIFIER):
        found = "another" if has_encoder else "one without"
        raise InputError(f"expected a classifier of series with its {ENCODER} in {folder}, found {found}: get it again")
    if "model_type" in config and kind != CLASSIFIER:
        from tsfm.weights.pretrained import check_folder  # PyTorch, which a list of weights does not need

        check_folder(folder)
    return Checked(folder, kind, layout(folder / FILES[1]), len(sums), origin)
