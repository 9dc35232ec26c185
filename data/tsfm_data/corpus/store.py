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
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int16, Int32, Int64, UInt64

from tsfm_data.errors import InputError
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
        folder = current(self.folder, SOURCES, entry["name"])
        check_arrays(folder, entry["arrays"], verify)
        arrays = {name: _map(folder / f"{name}.npy", dtype) for name, dtype in ARRAYS.items()}
        series, points = len(arrays["items"]), len(arrays["values"])
        if not (len(arrays["freqs"]) == series == len(arrays["offsets"]) - 1 and arrays["offsets"][-1] == points):
            raise InputError(f"{folder}: expected arrays of matching lengths, found others; {REBUILD}")
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


def current(folder: Path, *names: str) -> Path:
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
        InputError: there is none, or it is not one of ours.
    """
    file = Path(path)
    file = current(file, MANIFEST) if file.is_dir() or not file.suffix else file
    if not file.is_file():
        raise InputError(f"{file}: no such file; expected a corpus folder (tsfm data build) or its manifest")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        written = manifest["format"]
        manifest["sources"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: expected the manifest of a corpus, found something else") from error
    if written != FORMAT:
        raise InputError(f"{file}: expected a corpus of format {FORMAT}, found format {written}; build it again")
    return manifest


def check_arrays(folder: Path, arrays: Mapping[str, Mapping[str, Any]], verify: bool) -> None:
    """Check the sizes of the array files of one source, and with ``verify`` their digests.

    Args:
        folder: of the source.
        arrays: file name -> {"bytes", "sha256"}.
        verify: whether to read the files and compare digests.

    Raises:
        InputError: a file is missing or differs; it is named.
    """
    for name, written in arrays.items():
        file = folder / name
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
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError(f"{path}: expected an array, found something else ({error}); {REBUILD}") from error
    if array.dtype != np.dtype(dtype) or array.ndim != 1:
        raise InputError(f"{path}: expected one axis of {dtype}, found {array.ndim} of {array.dtype.str}; {REBUILD}")
    return array
