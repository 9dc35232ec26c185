"""Writes and verifies the checksums of model folders."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tsfm.weights.tensors import Layout, check_file, layout
from tsfm_data.errors import InputError
from tsfm_data.io import atomic_file

CHECKSUMS = "checksums.json"
FORMAT_VERSION = 1
# The files of a model folder; the first two are required.
FILES = ("config.json", "model.safetensors", "README.md", "scores.json")


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
    content = read_object(file)
    version = content.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise InputError(
            f"expected format_version up to {FORMAT_VERSION} in {file}, found {version!r}: upgrade tsfm-suite"
        )
    try:
        origin = Origin(**content["origin"])
        sums = {name: (int(entry["size"]), str(entry["sha256"])) for name, entry in content["files"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"expected checksums of a model folder in {file}, found other content ({error}): get it again"
        ) from error
    for name in sums:
        if name not in FILES:
            raise InputError(
                f"expected the files {', '.join(FILES)} in {file}, found {name!r:.80}: it was not followed"
            )
    if not {*FILES[:2]} <= {*sums}:
        raise InputError(f"expected checksums of {FILES[0]} and {FILES[1]} in {file}, found none: get it again")
    return origin, sums


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        InputError: the file is not JSON, or another value.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"expected JSON in {file}, found an error ({error}): get the file again") from error
    if not isinstance(content, dict):
        raise InputError(f"expected a JSON object in {file}, found {type(content).__name__}: get the file again")
    return content


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
        return [_verify(folder)]
    inside = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    if not inside:
        raise InputError(f"expected a model folder or a mirror at {folder}, found no config.json: check the path")
    return [_verify(path) for path in inside]


def _verify(folder: Path) -> Checked:
    for path in sorted(folder.iterdir()):
        if path.name not in (*FILES, CHECKSUMS):
            raise InputError(
                f"expected only {', '.join((*FILES, CHECKSUMS))} in {folder}, found {path.name!r:.80}: take it out"
            )
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
    kind = str(config.get("model_type") or config.get("architecture"))
    if "model_type" in config:
        from tsfm.weights.pretrained import check_folder  # PyTorch, which a list of weights does not need

        check_folder(folder)
    return Checked(folder, kind, layout(folder / FILES[1]), len(sums), origin)
