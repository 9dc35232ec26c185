"""A named file from a local folder, the cache or a URL: verified, resumed if cut off, locked for other processes."""

import errno
import hashlib
import os
import re
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path, PurePosixPath
from typing import IO, Any

from filelock import FileLock

from tsfm_data.errors import InputError
from tsfm_data.progress import progress as bar_of

CHUNK = 1 << 20
ATTEMPTS = 4
PAUSE = 0.5  # seconds before the second attempt, doubled before each further one
CONNECT_TIMEOUT, READ_TIMEOUT = 10.0, 30.0


class _Retry(Exception):
    """A transfer that broke off and may be resumed."""


class _TooLong(Exception):
    """A transfer that brings more than the file has."""


def data_folder() -> Path | None:
    """The folder that the environment variable TSFM_DATA names, which is searched first; None if it is not set."""
    value = os.environ.get("TSFM_DATA")
    return Path(value).expanduser() if value else None


def cache_folder() -> Path:
    """Where downloads are kept: TSFM_CACHE, else ``tsfm`` in XDG_CACHE_HOME or ~/.cache."""
    value = os.environ.get("TSFM_CACHE")
    if value:
        return Path(value).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tsfm"


def find(file: str, folder: Path | None = None) -> Path | None:
    """The path of ``file`` in ``folder`` (default TSFM_DATA), by its whole or last name, else in the cache; or None."""
    local = folder if folder is not None else data_folder()
    places = [] if local is None else [local / file, local / PurePosixPath(file).name]
    return next((path for path in (*places, cache_folder() / file) if path.is_file()), None)


def fetch(
    file: str,
    *,
    url: str | None,
    sha256: str | None,
    folder: Path | None = None,
    progress: bool = True,
    git_blob: str | None = None,
    size: int | None = None,
) -> Path:
    """A verified local copy of a file.

    ``folder`` (default: the environment variable TSFM_DATA) is searched first, for ``file`` and for its last name, then
    the cache (TSFM_CACHE), then ``url`` is read into the cache. A transfer that breaks off is resumed where it
    stopped, now or at the next call. Files in ``folder`` are never changed.

    Args:
        file: relative name, for instance "bench/ETTh1.parquet".
        url: http, https or file URL; None if there is none.
        sha256: expected digest in hexadecimal; None if unknown (then a broken transfer starts anew).
        folder: folder to search first.
        progress: whether a bar on standard error shows the transfer (never if that is no terminal).
        git_blob: expected git blob id, a second way to name the content.
        size: expected bytes; a transfer that brings more is ended there.

    Returns:
        The path of the file.

    Raises:
        InputError: neither present nor downloadable, wrong content, a failed download or a disk error.
    """
    if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
        raise InputError(f"expected a relative file name without '..', found {file!r}")
    path = find(file, folder)
    cached = cache_folder() / file
    if path is not None and path != cached:
        check(path, sha256, git_blob)
        return path
    if path is None and url is None:
        raise InputError(
            f"{file} is not available and has no URL; put it into the folder of the environment variable "
            f"TSFM_DATA ({folder or data_folder() or 'not set'})"
        )
    with disk_errors(cached):
        cached.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{cached}.lock"):
            if cached.is_file():
                try:
                    check(cached, sha256, git_blob)
                    return cached
                except InputError:
                    cached.unlink()  # damaged: download it again
                    if url is None:
                        raise
            if url is not None:
                _download(url, cached, sha256, git_blob, progress, size)
    return cached


def check(path: Path, sha256: str | None, git_blob: str | None = None) -> None:
    """Compare the content of a file with its digest.

    Raises:
        InputError: they differ; the message has both.
    """
    for name, expected in (("sha256", sha256), ("git blob", git_blob)):
        if expected is None:
            continue
        found = _digest(path, name)
        if found != expected:
            raise InputError(
                f"{path}: expected {name} {expected}, found {found} ({path.stat().st_size:,} bytes); it is "
                "damaged or another version: replace it"
            )


def _digest(path: Path, name: str) -> str:
    if name == "sha256":
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as handle:
        while block := handle.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Failures of the disk as one line."""
    try:
        yield
    except OSError as error:
        reasons = {
            errno.ENOSPC: "the disk is full; free some space",
            errno.EDQUOT: "the disk quota is used up; free some space",
            errno.EROFS: "the disk is read-only",
            errno.EACCES: "no permission to write there",
            errno.EPERM: "no permission to write there",
        }
        reason = reasons.get(error.errno or 0, error.strerror or str(error))
        raise InputError(f"{path}: cannot be written, {reason} (TSFM_CACHE names another folder)") from error


def _download(
    url: str, target: Path, sha256: str | None, git_blob: str | None, progress: bool, size: int | None
) -> None:
    """Read ``url`` into ``target``, which appears whole and verified or not at all."""
    part = target.with_name(target.name + ".part")
    if sha256 is None and git_blob is None:
        part.unlink(missing_ok=True)  # what is there could be of another version, and nothing would tell
    problem = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE * 2 ** (attempt - 1))
        try:
            _transfer(url, part, target.name, progress, size)
            break
        except _Retry as error:
            problem = str(error)
        except _TooLong as error:
            part.unlink()
            raise InputError(f"{url}: expected {size:,} bytes, the server sends more: check the URL") from error
    else:
        kept = part.stat().st_size if part.exists() else 0
        raise InputError(f"{url}: {problem}, {ATTEMPTS} attempts; {kept:,} bytes are kept, run again to resume")
    try:
        check(part, sha256, git_blob)
    except InputError as error:
        part.unlink()
        raise InputError(f"{url}: {str(error).removeprefix(f'{part}: ')}") from error
    part.replace(target)


def _transfer(url: str, part: Path, name: str, progress: bool, size: int | None) -> None:
    """One attempt to bring ``part`` to its full length."""
    scheme = urllib.parse.urlsplit(url).scheme
    if scheme in ("http", "https"):
        _transfer_http(url, part, name, progress, size)
    elif scheme == "file":
        _transfer_file(url, part, name, progress, size)
    else:
        raise InputError(f"{url}: expected an http, https or file URL, found {scheme or 'no scheme'!r}")


def _transfer_file(url: str, part: Path, name: str, progress: bool, size: int | None) -> None:
    source = Path(urllib.request.url2pathname(urllib.parse.urlsplit(url).path))
    try:
        handle = source.open("rb")
    except OSError as error:
        raise InputError(f"{url}: cannot be read ({error.strerror})") from error
    with handle, part.open("wb") as out:
        _copy(iter(lambda: handle.read(CHUNK), b""), out, name, source.stat().st_size, progress, size)


def _transfer_http(url: str, part: Path, name: str, progress: bool, size: int | None) -> None:
    import httpx  # which only a transfer needs

    done = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    timeout = httpx.Timeout(READ_TIMEOUT, connect=CONNECT_TIMEOUT)
    try:
        with httpx.stream("GET", url, headers=headers, follow_redirects=True, timeout=timeout) as answer:
            if answer.status_code == 416:  # nothing left to send, or our part is of another file: the digest will tell
                if _total(answer.headers.get("Content-Range", "")) == done:
                    return
                part.unlink()
                raise _Retry("the server refused to go on where the transfer stopped")
            if answer.status_code >= 500 or answer.status_code == 429:
                raise _Retry(f"the server answered {answer.status_code} {answer.reason_phrase}")
            if answer.status_code not in (200, 206):
                hint = ": it asks for a login; download the file yourself" if answer.status_code in (401, 403) else ""
                raise InputError(
                    f"{url}: expected the file, the server answered {answer.status_code} {answer.reason_phrase}{hint}"
                )
            resumed = answer.status_code == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {done}-")
            if answer.status_code == 206 and not resumed:
                part.unlink()
                raise _Retry("the server sent another range than asked for")
            length = int(answer.headers.get("Content-Length", 0)) + (done if resumed else 0)
            with part.open("ab" if resumed else "wb") as out:
                _copy(answer.iter_bytes(), out, name, length, progress, size)
    except httpx.TimeoutException as error:
        raise _Retry(f"no answer within {READ_TIMEOUT:g} s") from error
    except httpx.UnsupportedProtocol as error:
        raise InputError(f"{url}: {error}") from error
    except httpx.HTTPError as error:
        raise _Retry(f"the download was interrupted ({str(error) or type(error).__name__})") from error


def _total(content_range: str) -> int | None:
    """The length in a header such as "bytes */1234"."""
    match = re.fullmatch(r"bytes .*/(\d+)", content_range)
    return int(match[1]) if match else None


def _copy(chunks: Iterator[bytes], out: IO[bytes], name: str, length: int, progress: bool, size: int | None) -> None:
    shown: dict[str, Any] = {"unit": "B", "unit_scale": True, "initial": out.tell()}
    with bar_of(None, name, length or None, **shown) if progress else nullcontext() as bar:
        for chunk in chunks:
            if size is not None and out.tell() + len(chunk) > size:
                raise _TooLong
            out.write(chunk)
            out.flush()  # what arrived stays when the process is stopped
            if bar is not None:
                bar.update(len(chunk))
