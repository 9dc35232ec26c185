"""Files of partitioned tables: in folders, named by globs, or behind URLs that fsspec opens."""

import contextlib
import hashlib
import json
import os
import posixpath
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from tsfm_data import io
from tsfm_data.errors import InputError, reason_of

SUFFIXES = (".csv", ".csv.gz", ".tsv", ".txt", ".parquet", ".pq", ".arrow", ".feather", ".ipc")
MAGIC = re.compile(r"[*?[]")
PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}


@dataclass(frozen=True)
class Part:
    """One file of a partitioned table.

    Attributes:
        name: its path below the folder of the table.
        place: its whole path or URL.
        size: in bytes.
        stamp: text that changes when the file does.
    """

    name: str
    place: str
    size: int
    stamp: str

    @property
    def output(self) -> str:
        """Name of the file that is made of it; parts of several folders get different ones."""
        stem = re.sub(r"[^A-Za-z0-9_-]+", "-", PurePosixPath(self.name).name.split(".")[0])[:60].strip("-_") or "part"
        return f"{stem}-{hashlib.sha256(self.name.encode()).hexdigest()[:8]}.parquet"


def is_glob(source: str) -> bool:
    """Whether a source is a pattern for names of files."""
    return MAGIC.search(source) is not None and not Path(source).exists()


def file_system(place: str) -> tuple[Any, str]:
    """The file system of a path or URL, and the path in it.

    Raises:
        InputError: no such kind of URL, its driver is not installed, or it cannot be reached.
    """
    kind = place.split("://")[0] if "://" in place else ""
    try:
        return fsspec.core.url_to_fs(place)
    except ImportError as error:
        package = PACKAGES.get(kind)
        hint = f"pip install {package}" if package else reason_of(error)
        raise InputError(f"{place}: expected the driver of {kind}:// URLs, found none: {hint}") from error
    except ValueError as error:
        raise InputError(
            f"{place}: expected a path or a URL such as s3://, found {reason_of(error)}: correct it"
        ) from error
    except Exception as error:  # what a driver raises that cannot work here
        raise unreachable(place, error) from error


def unreachable(place: str, error: Exception) -> InputError:
    """The error for a place that a driver cannot read or write."""
    return InputError(f"expected a place that can be reached at {place}, found: {reason_of(error)}: check it")


def find_parts(source: str) -> list[Part]:
    """The files of a partitioned table, in order of their names.

    Args:
        source: a file, a folder (with its subfolders), or a pattern; as a path or a URL. Names that begin with a dot
            or an underscore, such as ``_SUCCESS``, are left out.

    Raises:
        InputError: there is none, or the place cannot be reached.
    """
    system, path = file_system(source)
    local = isinstance(system, LocalFileSystem)
    try:
        if MAGIC.search(source) and not system.exists(path):
            found = system.glob(path, detail=True)
            root = posixpath.dirname(MAGIC.split(path)[0])
        elif system.isfile(path):
            found, root = {path: system.info(path)}, posixpath.dirname(path)
        else:
            found, root = system.find(path, detail=True), path.rstrip("/")
    except Exception as error:
        raise unreachable(source, error) from error
    parts = []
    for file, info in sorted(found.items()):
        name = posixpath.relpath(file, root) if root else file
        hidden = any(step[0] in "._" for step in name.split("/"))
        if info["type"] == "file" and not hidden and file.lower().endswith(SUFFIXES):
            stamp = str(info["mtime"]) if local else _digest(info)
            parts.append(Part(name, file if local else system.unstrip_protocol(file), int(info["size"] or 0), stamp))
    if not parts:
        raise InputError(
            f"{source}: expected files of a table ({', '.join(SUFFIXES)}), found none: check the folder or pattern"
        )
    return parts


def _digest(info: dict[str, Any]) -> str:
    """A digest of what a file system says of a file: size, time, checksum, or what else it has."""
    return hashlib.sha256(json.dumps(info, default=str, sort_keys=True).encode()).hexdigest()[:16]


@contextlib.contextmanager
def local_copy(place: str) -> Iterator[Path]:
    """A file as one on this machine: itself, or a temporary copy.

    Raises:
        InputError: it cannot be fetched.
    """
    system, path = file_system(place)
    if isinstance(system, LocalFileSystem):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / posixpath.basename(path)
        try:
            system.get_file(path, str(file))
        except Exception as error:
            raise unreachable(place, error) from error
        yield file


class Folder:
    """A folder for outputs, here or behind a URL. Files in it appear whole or not at all.

    Args:
        place: path or URL.
    """

    def __init__(self, place: str) -> None:
        self.place = place
        self.system, self.path = file_system(place)
        self.local = isinstance(self.system, LocalFileSystem)

    def names(self) -> set[str]:
        """Names of the files and folders in it, without those of unfinished files; empty if there is no folder."""
        try:
            if not self.system.exists(self.path):
                return set()
            self.system.invalidate_cache()
            found = {posixpath.basename(name.rstrip("/")) for name in self.system.ls(self.path, detail=False)}
        except Exception as error:
            raise unreachable(self.place, error) from error
        return {name for name in found if name and not name.startswith(".")}

    def at(self, name: str) -> str:
        """The whole path or URL of a file in it."""
        return f"{self.path if self.local else self.place.rstrip('/')}/{name}"

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Yield a path to write to; it becomes the file of that name if the block ends without an error.

        Raises:
            OSError: it cannot be written.
        """
        if self.local:
            with io.atomic_file(Path(self.path) / name) as file:
                yield file
            return
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / name
            yield file
            unfinished = f"{self.path}/.{name}.{os.urandom(4).hex()}"  # two workers may do one part
            try:
                self.system.makedirs(self.path, exist_ok=True)
                self.system.put_file(str(file), unfinished)
                self.system.mv(unfinished, f"{self.path}/{name}")
            except Exception as error:
                raise OSError(0, reason_of(error), self.at(name)) from error

    def remove(self, name: str) -> None:
        """Remove a file."""
        self.system.rm_file(f"{self.path}/{name}")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold a lock against other runs with this output; behind a URL there is none.

        Raises:
            InputError: another run has it.
        """
        with io.lock_folder(Path(self.path)) if self.local else contextlib.nullcontext():
            yield
