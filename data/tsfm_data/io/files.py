"""Files that are written completely or not at all, and replace others only on request."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from tsfm_data.errors import InputError


def check_new(
    outputs: Iterable[Path | None], overwrite: bool, inputs: Iterable[object] = (), sign: str | None = None
) -> None:
    """Check, before any work is done, that outputs replace nothing that a user may want to keep.

    Args:
        outputs: files, or folders that are replaced as a whole; None and "-" are ignored.
        overwrite: whether existing outputs may be replaced.
        inputs: inputs, which are never replaced. Names that are no paths are ignored.
        sign: name of a file in all folders that the command writes; other folders are never replaced.

    Raises:
        InputError: an output exists, or is an input, or is a folder that contains an input.
    """
    places = [Path(str(given)).resolve() for given in inputs if given is not None and Path(str(given)).exists()]
    for output in outputs:
        if output is None or str(output) == "-":
            continue
        place = output.resolve()
        for given in places:
            if place in (given, *given.parents):
                raise InputError(
                    f"expected an output that is not an input, found {output} as both: name another output"
                )
        if not output.exists() or (output.is_dir() and not any(output.iterdir())):
            continue
        if sign is not None and not (output / sign).is_file():
            raise InputError(
                f"expected a new folder or an earlier output of this command, found {output}: name another output"
            )
        if not overwrite:
            raise InputError(
                f"expected a new output, found {output}, which exists: name another one, or give --overwrite"
            )


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it becomes ``path`` if the block ends without an error.

    Args:
        path: the file to write. Missing parent folders are created.

    Raises:
        OSError: the folder cannot be created or written, or the disk is full; ``path`` is then unchanged.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}.", suffix=target.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        share(temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder to write to; it replaces ``path`` if the block ends without an error.

    Args:
        path: the folder to write; an existing one is replaced.

    Raises:
        OSError: the folder cannot be written; ``path`` is then unchanged.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        yield temporary
        for made in (temporary, *temporary.rglob("*")):
            share(made)
        if target.exists():
            old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old."))
            target.replace(old / target.name)
            temporary.replace(target)
            shutil.rmtree(old)
        else:
            temporary.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def share(path: Path) -> None:
    """Give a file the permissions of new files; temporary files, and those of safetensors, are private."""
    umask = os.umask(0)
    os.umask(umask)
    if not path.is_symlink():
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
