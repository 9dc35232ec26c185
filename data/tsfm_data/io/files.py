"""Files that are written completely or not at all, and replace others only on request."""

import contextlib
import ctypes
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from tsfm_data.errors import InputError

PART, OLD = ".tsfm-part", ".tsfm-old"  # in the names of unfinished files and folders, and of folders being replaced
PICTURES, REPORTS = (".png", ".svg", ".pdf"), (".json", ".md", ".parquet")  # suffixes of outputs
LONGEST_STEM = 40  # characters; names of files have at most 255 bytes


def check_suffix(path: Path | None, suffixes: tuple[str, ...]) -> None:
    """Check that the suffix of an output is one that we can write.

    Raises:
        InputError: it is not.
    """
    if path is not None and path.suffix not in suffixes:
        known = " or ".join(filter(None, (", ".join(suffixes[:-1]), suffixes[-1])))
        raise InputError(f"expected an output that ends in {known}, found {path}: rename it")


def check_new(
    outputs: Iterable[Path | None], overwrite: bool, inputs: Iterable[object] = (), sign: str | None = None
) -> None:
    """Check, before any work is done, that outputs can be written and replace nothing that a user may want to keep.

    Args:
        outputs: files, or folders that are replaced as a whole; None and "-" are ignored.
        overwrite: whether existing outputs may be replaced.
        inputs: inputs, which are never replaced. Names that are no paths are ignored.
        sign: name of a file in all folders that the command writes; other folders are never replaced. None if the
            outputs are files.

    Raises:
        InputError: an output exists, cannot be written, or is an input, or is a folder that contains an input.
    """
    places = [Path(str(given)) for given in inputs if given is not None and Path(str(given)).exists()]
    for output in outputs:
        if output is None or str(output) == "-":
            continue
        for given in places:
            same = output.exists() and output.samefile(given)  # also by a symbolic or hard link
            if same or Path(os.path.realpath(output)) in Path(os.path.realpath(given)).parents:
                raise InputError(
                    f"expected an output that is not an input, found {output} as both: name another output"
                )
        check_writable(output)
        if sign is not None:
            restore(output)
        if not os.path.lexists(output) or (sign is not None and output.is_dir() and not any(output.iterdir())):
            continue
        if sign is None and output.exists() and not output.is_file():
            kind = "a folder" if output.is_dir() else "a device"
            raise InputError(f"expected a file as output, found {output}, which is {kind}: name a file")
        if sign is not None and not (output / sign).is_file():
            raise InputError(
                f"expected a new folder or an earlier output of this command, found {output}: name another output"
            )
        if not overwrite:
            raise InputError(
                f"expected a new output, found {output}, which exists: name another one, or give --overwrite"
            )


def check_writable(output: Path) -> None:
    """Check that a file or folder can be made, without making it.

    Raises:
        InputError: the nearest folder that exists is a file, or cannot be written.
    """
    place = Path(os.path.abspath(output)).parent
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise InputError(f"expected a folder for {output}, found the file {place}: name another output")
    try:
        with tempfile.TemporaryFile(dir=place):  # permissions alone say nothing of read-only and full disks
            pass
    except OSError as error:
        raise InputError(
            f"expected a folder that can be written for {output}, found {place} ({error.strerror}): name another output"
        ) from error


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it becomes ``path`` if the block ends without an error.

    The temporary file is in the same folder, because only renaming inside a file system is atomic. If the process is
    killed, the next one that writes ``path`` removes it.

    Args:
        path: the file to write. Missing parent folders are created.

    Raises:
        OSError: the folder cannot be created or written, or the disk is full; ``path`` is then unchanged.
    """
    target = Path(path)
    with _part(target, wait=True) as temporary:
        temporary.touch()
        yield temporary
        _share(temporary)
        _sync(temporary)
        temporary.replace(target)
        _sync(target.parent)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder to write to; it replaces ``path`` if the block ends without an error.

    Long commands enter it before their work: it locks ``path`` against other processes, and an output that cannot be
    written is noticed. If the process is killed, the next one that writes ``path`` removes the temporary folder.

    Args:
        path: the folder to write; an existing one is replaced, in one step if the system can.

    Raises:
        InputError: another process is writing it.
        OSError: the folder cannot be written; ``path`` is then unchanged.
    """
    target = Path(path)
    with _part(target, wait=False) as temporary:
        restore(target)
        temporary.mkdir()
        yield temporary
        for written in (*temporary.rglob("*"), temporary):
            _share(written)
            _sync(written)
        if not target.exists():
            temporary.replace(target)
        elif not _exchanged(temporary, target):
            old = _hidden(target, OLD)
            target.replace(old)
            temporary.replace(target)
            _remove(old)
        _sync(target.parent)


@contextlib.contextmanager
def lock_folder(folder: str | Path) -> Iterator[None]:
    """Lock a folder that a command works in, and remove what killed processes left unfinished in it.

    Args:
        folder: created if it is missing, and then removed again if it stays empty.

    Raises:
        InputError: another process uses it.
        OSError: it cannot be created or written.
    """
    place = Path(folder)
    problem = f"expected a folder that no other run uses, found one that is running in {place}"
    with _locked(place / ".lock", f"{problem}: wait until it has ended, or name another folder"):
        remove_leftovers(place)
        yield


def remove_leftovers(folder: Path) -> None:
    """Remove unfinished files and folders of killed processes under a folder; those of running ones stay."""
    for lock in sorted(folder.rglob(f".*{PART}*.lock")):
        with contextlib.suppress(InputError), _locked(lock, "running"):
            _remove(lock.with_suffix(""))


def restore(folder: Path) -> None:
    """Bring back a folder whose replacement was cut short on a system that cannot exchange folders."""
    old = _hidden(folder, OLD)
    if folder.exists():
        _remove(old)
    elif old.exists():
        old.replace(folder)


@contextlib.contextmanager
def _part(target: Path, wait: bool) -> Iterator[Path]:
    """The name of a temporary file or folder for a target, free to use and locked; what is there then is removed."""
    temporary = _hidden(target, PART)
    problem = f"expected an output that no other run writes, found one that is writing {target}"
    with _locked(Path(f"{temporary}.lock"), None if wait else f"{problem}: wait until it has ended, or name another"):
        _remove(temporary)
        try:
            yield temporary
        finally:
            _remove(temporary)


@contextlib.contextmanager
def _locked(file: Path, problem: str | None) -> Iterator[None]:
    """Hold a lock whose file exists only meanwhile; if another process has it, wait, or raise ``problem``."""
    missing = [place for place in file.parents if not place.exists()]
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file, timeout=-1 if problem is None else 0)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(problem or "") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # some systems do not delete open files
            file.unlink()
        lock.release()
        for place in missing:
            with contextlib.suppress(OSError):  # not empty: the work was done
                place.rmdir()


def _hidden(target: Path, mark: str) -> Path:
    """A hidden name next to a target, with the same suffix, which tells libraries the format."""
    target = Path(os.path.abspath(target))
    stem = target.stem
    if len(stem) > LONGEST_STEM:
        stem = stem[:LONGEST_STEM] + hashlib.sha256(os.fsencode(stem)).hexdigest()[:8]
    return target.with_name(f".{stem}{mark}{target.suffix}")


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; False if the system cannot."""
    names = os.fsencode(one), os.fsencode(other)
    try:
        library = ctypes.CDLL(None)
        if sys.platform == "darwin":
            return library.renamex_np(*names, 2) == 0  # RENAME_SWAP
        return library.renameat2(-100, names[0], -100, names[1], 2) == 0  # AT_FDCWD, RENAME_EXCHANGE
    except (AttributeError, OSError, TypeError):
        return False


def _remove(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Have the content of a file, or the names in a folder, written to the disk."""
    if path.is_symlink() or (os.name == "nt" and path.is_dir()):  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _share(path: Path) -> None:
    """Give a file the permissions of new files; those of safetensors, for instance, are private."""
    umask = os.umask(0)
    os.umask(umask)
    if not path.is_symlink():
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
