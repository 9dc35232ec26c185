"""Downloads models by name into the cache as model folders, and makes mirrors for machines without network."""

import os
import shutil
from pathlib import Path

from filelock import FileLock

from tsfm.weights import registry
from tsfm.weights.conversion import convert
from tsfm.weights.folders import CHECKSUMS, FILES, Origin, digest, read_checksums, verify, write_checksums
from tsfm.weights.hub import download
from tsfm.weights.registry import Entry
from tsfm_data.errors import InputError
from tsfm_data.io import atomic_file, atomic_folder, cache_folder, disk_errors, fetch
from tsfm_data.output import say


def pull(name: str, *, revision: str | None = None, accept_licence: bool = False, mirror: str | None = None) -> Path:
    """The model folder of a named model, downloaded and converted unless it is in the cache.

    Args:
        name: a name of ``tsfm weights list``.
        revision: another branch, tag or commit of its repository.
        accept_licence: whether the user accepts a licence that restricts use or is unknown.
        mirror: URL or path of a mirror made by ``mirror``, used instead of the source; by default the environment
            variable TSFM_MIRROR.

    Returns:
        The folder, in the package or in the cache.

    Raises:
        InputError: an unknown name, a licence that was not accepted, no source, or a failed download.
    """
    entry = registry.get(name)
    if entry.folder is not None:
        return entry.folder
    registry.check_licence(entry, accept_licence)
    if revision is not None and entry.repo is None:
        raise InputError(
            f"{name}: expected no revision, because the source is {entry.url}, found {revision!r}: leave it out"
        )
    target = registry.pulled_folder(entry.name, revision)
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if (target / CHECKSUMS).is_file():
                try:
                    verify(target)
                    return target
                except InputError:
                    pass  # damaged: download it again
            mirror = mirror or os.environ.get("TSFM_MIRROR")
            with atomic_folder(target) as folder:
                if mirror:
                    _from_mirror(mirror, target.name, folder)
                else:
                    _from_source(entry, revision or entry.revision, folder)
                verify(folder)
    return target


def mirror(name: str, folder: Path, *, revision: str | None = None, accept_licence: bool = False) -> Path:
    """Write the model folder of a model into a mirror: ``folder/NAME``, with checksums.

    The mirror works without network: use ``--model folder/NAME``, or pull from it.

    Args:
        name: a name of ``tsfm weights list``.
        folder: the mirror; it may hold other models already.
        revision: another branch, tag or commit of its repository.
        accept_licence: see ``pull``.

    Raises:
        InputError: see ``pull``.
    """
    target = folder / registry.pulled_folder(name, revision).name
    with disk_errors(target), atomic_folder(target) as temporary:
        source = pull(name, revision=revision, accept_licence=accept_licence)
        entry = registry.get(name)
        for file in (*FILES, CHECKSUMS):
            if (source / file).is_file():
                shutil.copyfile(source / file, temporary / file)
        if not (temporary / CHECKSUMS).is_file():
            write_checksums(temporary, Origin(name, entry.licence))
        verify(temporary)
    return target


def _from_source(entry: Entry, revision: str, folder: Path) -> None:
    """Download the published files of a model and convert them into a folder."""
    files, commit = {}, None
    if entry.repo is not None:
        for file in entry.files:
            files[file], commit = download(entry.repo, file, revision if commit is None else commit)
    elif entry.url is not None:
        file_name = entry.url.rsplit("/", 1)[-1]
        pin = cache_folder() / "pins" / f"{entry.name}.sha256"
        known = entry.sha256 or (pin.read_text() if pin.is_file() else None)
        files[file_name] = fetch(f"downloads/{entry.name}-{file_name}", url=entry.url, sha256=known)
    else:
        raise InputError(
            f"{entry.name}: no source is known, {entry.note or 'none was published'}: tsfm weights convert"
        )
    sums = {name: digest(path) for name, path in files.items()}
    origin = Origin(entry.name, entry.licence, entry.source, commit, sums)
    convert(files, folder, name=entry.name, architecture=entry.architecture, family=entry.family, origin=origin)
    if entry.repo is None:
        files[file_name].unlink()
        if known is None:  # only of what turned out to be weights
            with atomic_file(pin) as temporary:
                temporary.write_text(sums[file_name])
            say(
                f"{entry.name}: no digest was published, so this download is trusted; later ones must be the same: "
                f"{pin} has its SHA-256"
            )


def _from_mirror(mirror: str, name: str, folder: Path) -> None:
    """Download a model folder from a mirror and compare every file with the mirror's checksums."""
    base = (mirror if "://" in mirror else Path(mirror).expanduser().resolve().as_uri()).rstrip("/") + f"/{name}"
    copy = cache_folder() / "downloads" / f"{name}-{CHECKSUMS}"
    copy.unlink(missing_ok=True)  # perhaps outdated
    fetched = fetch(f"downloads/{copy.name}", url=f"{base}/{CHECKSUMS}", sha256=None, progress=False, size=2**20)
    _, sums = read_checksums(fetched)
    fetched.replace(folder / CHECKSUMS)
    for file, (size, sha256) in sums.items():
        part = fetch(f"downloads/{sha256}", url=f"{base}/{file}", sha256=sha256, size=size)
        part.replace(folder / file)
