"""Files that appear whole or not at all, and replace nothing unasked."""

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
    """Check, before any work is done, that no output replaces what a user may want to keep.

    Args:
        outputs: files, or folders that are replaced whole; None and "-" stand for none.
        overwrite: whether what is there may be replaced.
        inputs: what is read, which is never replaced. Names that are no path are passed over.
        sign: a file by which a folder of the same command is known; another folder is never replaced.

    Raises:
        InputError: an output is there, or is an input, or is a folder that holds an input.
    """
    places = [Path(str(given)).resolve() for given in inputs if given is not None and Path(str(given)).exists()]
    for output in outputs:
        if output is None or str(output) == "-":
            continue
        place = output.resolve()
        for given in places:
            if place in (given, *given.parents):
                raise InputError(f"expected an output that is no input, found {output} to be both: name another output")
        if not output.exists() or (output.is_dir() and not any(output.iterdir())):
            continue
        if sign is not None and not (output / sign).is_file():
            raise InputError(
                f"expected a new folder or an earlier output of this command, found {output}: name another output"
            )
        if not overwrite:
            raise InputError(
                f"expected a new output, found {output}, which is there already: name another one, or give --overwrite"
            )


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; it becomes ``path`` when the block ends without an error.

    Args:
        path: the file that shall appear. Missing parent folders are made.

    Raises:
        OSError: the folder cannot be made or written, or the disk is full; ``path`` is then as it was before.
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
    """Yield a new folder beside ``path``; when the block ends without an error it replaces ``path`` whole.

    Args:
        path: the folder that shall appear; an existing one is replaced.

    Raises:
        OSError: the folder cannot be written; ``path`` is then as it was before.
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
    """Give a result the permissions of any new file; temporary files, and those of safetensors, begin private."""
    umask = os.umask(0)
    os.umask(umask)
    if not path.is_symlink():
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
