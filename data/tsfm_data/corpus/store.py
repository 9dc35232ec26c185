"""A pretraining corpus on disk, memory-mapped: a few arrays per source, and one manifest.

    DIR/manifest.json              origin, licence, counts, weight and array digests of every source
    DIR/overlap.npz                fingerprints by source (``tsfm_data.corpus.overlap``), copied to a model's folder
    DIR/sources/NAME/values.npy    float32: every variate of every item, one after the other; NaN where missing
                    /offsets.npy   int64: series ``i`` is values ``offsets[i]:offsets[i + 1]``
                    /items.npy     int32: series with the same number are the aligned variates of one item
                    /freqs.npy     int16: index of each series' frequency in the list of the source
                    /overlap.npy   uint64: fingerprints
                    /source.json   inputs of the source, counts and array digests

``tsfm_data.corpus.building`` writes these files.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Le, MaxLen
from jaxtyping import Float32, Int16, Int32, Int64, UInt64
from typing_extensions import TypedDict

from tsfm_data.errors import LIBRARY_ERRORS, InputError, reason_of
from tsfm_data.io import is_plain_name, normalise, read_record
from tsfm_data.progress import progress

FORMAT = 1
COMMIT = ".commit"
MANIFEST, FINGERPRINTS, SOURCES, SOURCE_ENTRY = "manifest.json", "overlap.npz", "sources", "source.json"
ARRAYS: Mapping[str, str] = {
    "values": "<f4",
    "offsets": "<i8",
    "items": "<i4",
    "freqs": "<i2",
    "overlap": "<u8",
}

Count = Annotated[int, Ge(0), Le(2**62)]


class Frequency(TypedDict):
    """A frequency of a source: its alias, steps in one season, and number of series."""

    freq: Annotated[str, MaxLen(60)]
    season: Annotated[int, Ge(1), Le(10**6)]
    series: Count


class ArrayFile(TypedDict):
    """Size and digest of an array file."""

    bytes: Count
    sha256: str


class SourceRecord(TypedDict):
    """The content of ``source.json``."""

    origin: str
    files: list[dict[str, str]]
    series: Count
    items: Count
    points: Count
    missing: Count
    dropped: dict[str, Count]
    frequencies: list[Frequency]
    arrays: dict[str, ArrayFile]


class ManifestEntry(SourceRecord):
    """A source in a manifest."""

    name: str
    licence: str
    licence_class: str
    groups: list[str]
    share: Annotated[float, Ge(0)] | None
    weight: Annotated[float, Ge(0)]


class Manifest(TypedDict):
    """The content of ``manifest.json``."""

    format: int
    series: Count
    points: Count
    sources: list[ManifestEntry]


@dataclass(frozen=True)
class Source:
    """One source of a corpus; its arrays are memory-mapped.

    Attributes:
        name: unique in the corpus.
        weight: share of training windows; the weights of a corpus sum to 1.
        licence: as the origin states it.
        licence_class: released weights are trained on "open" sources only.
        values: all series, one after the other; NaN where missing.
        offsets: series ``i`` is ``values[offsets[i]:offsets[i + 1]]``.
        items: series with the same number are the aligned variates of one item, in order.
        freqs: index of each series' frequency in ``freq_names``.
        freq_names: pandas aliases.
        season: steps in one season of each series.
        fingerprints: of its blocks, for ``tsfm_data.corpus.overlap``.
        entry: the source's entry in the manifest.
    """

    name: str
    weight: float
    licence: str
    licence_class: str
    values: Float32[np.ndarray, " points"]
    offsets: Int64[np.ndarray, " borders"]
    items: Int32[np.ndarray, " series"]
    freqs: Int16[np.ndarray, " series"]
    freq_names: tuple[str, ...]
    season: Int64[np.ndarray, " series"]
    fingerprints: UInt64[np.ndarray, " blocks"]
    entry: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def points(self) -> int:
        """Number of values in all series, including missing ones."""
        return len(self.values)


class Store:
    """An open corpus folder.

    Args:
        folder: written by ``tsfm data build``.
        verify: whether to check the digest of every array, which reads the whole corpus; sizes are always checked.

    Attributes:
        folder: as given.
        manifest: content of ``manifest.json``.
        sources: in the order of the manifest.

    Raises:
        InputError: no corpus, or an array that is missing, cut off or (with ``verify``) altered.
    """

    def __init__(self, folder: str | Path, verify: bool = False) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        entries = progress(self.manifest["sources"], "verify") if verify else self.manifest["sources"]
        self.sources: tuple[Source, ...] = tuple(self._open(entry, verify) for entry in entries)

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def points(self) -> int:
        """Number of values in all series of all sources."""
        return sum(source.points for source in self.sources)

    def _open(self, entry: Mapping[str, Any], verify: bool) -> Source:
        folder = current_path(self.folder, SOURCES, entry["name"])
        check_arrays(folder, entry["arrays"], verify)
        if not folder.resolve().is_relative_to(self.folder.resolve()):
            raise InputError(f"{folder}: expected a folder of the corpus, found a link out of it; {REBUILD}")
        arrays = {name: _map(folder / f"{name}.npy", dtype) for name, dtype in ARRAYS.items()}
        _check_content(folder, entry, arrays)
        seasons = np.array([frequency["season"] for frequency in entry["frequencies"]], dtype=np.int64)
        return Source(
            name=entry["name"],
            weight=entry["weight"],
            licence=entry["licence"],
            licence_class=entry["licence_class"],
            values=arrays["values"],
            offsets=arrays["offsets"],
            items=arrays["items"],
            freqs=arrays["freqs"],
            freq_names=tuple(frequency["freq"] for frequency in entry["frequencies"]),
            season=seasons[arrays["freqs"]],
            fingerprints=arrays["overlap"],
            entry=entry,
        )


def current_path(folder: Path, *names: str) -> Path:
    """A file or folder of a corpus.

    Args:
        folder: the corpus. If its last build was stopped while it moved new files into place, those that it has not
            moved are still in the subfolder ``.commit``; the next build moves them.
        names: of the file or folder in the corpus.
    """
    pending = folder.joinpath(COMMIT, *names)
    return pending if pending.exists() else folder.joinpath(*names)


REBUILD = "run tsfm data build again with its YAML, which rebuilds that source"


def read_manifest(path: str | Path) -> dict[str, Any]:
    """The manifest of a corpus folder, or the manifest file itself (for instance that of a released model).

    Raises:
        InputError: there is none, it is not one of ours, or a name in it would lead out of the folder.
    """
    file = Path(path)
    file = current_path(file, MANIFEST) if file.is_dir() or not file.suffix else file
    if not file.is_file():
        raise InputError(f"{file}: no such file; expected a corpus folder (tsfm data build) or its manifest")
    what, hint = "the manifest of a corpus", "build it again"
    written = read_record(file, dict, what, hint=hint).get("format", FORMAT)
    if written != FORMAT:
        raise InputError(f"{file}: expected a corpus of format {FORMAT}, found format {written!r:.40}; {hint}")
    manifest: dict[str, Any] = dict(read_record(file, Manifest, what, hint=hint))
    names = [entry["name"] for entry in manifest["sources"]]
    for name in names:
        if not is_plain_name(name):
            raise InputError(
                f"{file}: expected names of sources without slashes and spaces, found {name!r:.60}; {hint}"
            )
    if len({name.lower() for name in names}) < len(names):
        raise InputError(f"{file}: expected distinct names of sources, found one twice; {hint}")
    for entry in manifest["sources"]:
        if missing := [name for name in ARRAYS if f"{name}.npy" not in entry["arrays"]]:
            raise InputError(f"{file}: expected sizes of the arrays of {entry['name']}, found no {missing[0]}; {hint}")
        for frequency in entry["frequencies"]:
            try:
                normalise(frequency["freq"])
            except InputError as error:
                raise InputError(f"{file}, source {entry['name']}: {error}; {hint}") from error
    return manifest


def check_arrays(folder: Path, arrays: Mapping[str, Mapping[str, Any]], verify: bool) -> None:
    """Check the sizes of the array files of one source, and with ``verify`` their digests.

    Args:
        folder: of the source.
        arrays: file name -> {"bytes", "sha256"}; other files than arrays are not looked at.
        verify: whether to read the files and compare digests.

    Raises:
        InputError: a file is missing, differs or is a link to another folder; it is named.
    """
    for name, written in ((f"{name}.npy", arrays[f"{name}.npy"]) for name in ARRAYS):
        file = folder / name
        if file.is_symlink() and not file.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"{file}: expected a file, found a link out of its folder; {REBUILD}")
        size = file.stat().st_size if file.is_file() else None
        if size is None:
            raise InputError(f"{file}: expected {written['bytes']:,} bytes, found no file; {REBUILD}")
        if size != written["bytes"]:
            raise InputError(f"{file}: expected {written['bytes']:,} bytes, found {size:,}; {REBUILD}")
        if verify and (digest := file_digest(file)) != written["sha256"]:
            raise InputError(f"{file}: expected sha256 {written['sha256']}, found {digest}: it is damaged; {REBUILD}")


def file_digest(path: Path) -> str:
    """The sha256 of a file in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _map(path: Path, dtype: str) -> np.ndarray:
    try:
        array = np.lib.format.open_memmap(path, mode="r")  # never a pickle or an archive, unlike np.load
    except LIBRARY_ERRORS as error:
        raise InputError(f"{path}: expected an array, found something else ({reason_of(error)}); {REBUILD}") from error
    if array.dtype != np.dtype(dtype) or array.ndim != 1:
        raise InputError(f"{path}: expected one axis of {dtype}, found {array.ndim} of {array.dtype.str}; {REBUILD}")
    return array


def _check_content(folder: Path, entry: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Check that arrays refer to each other within their bounds, and that their lengths are those of the manifest.

    Raises:
        InputError: they do not.
    """
    series, points = len(arrays["items"]), len(arrays["values"])
    offsets, items, freqs = arrays["offsets"], arrays["items"], arrays["freqs"]
    if not (len(freqs) == series == len(offsets) - 1 and offsets[-1] == points):
        raise InputError(f"{folder}: expected arrays of matching lengths, found others; {REBUILD}")
    kinds = len(entry["frequencies"])
    wrong = {
        "series as in the manifest": (entry["series"], entry["points"]) != (series, points),
        "offsets that ascend from 0": offsets[0] != 0 or bool((offsets[1:] < offsets[:-1]).any()),
        "items that ascend from 0 by 1": series > 0 and (items[0] != 0 or not set(np.unique(np.diff(items))) <= {0, 1}),
        f"frequencies from 0 to {kinds - 1}": series > 0 and not 0 <= freqs.min() <= freqs.max() < kinds,
    }
    for expected, is_wrong in wrong.items():
        if is_wrong:
            raise InputError(f"{folder}: expected {expected}, found others: it is damaged; {REBUILD}")
