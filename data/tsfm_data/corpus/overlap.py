"""Which evaluation series a corpus contains, by fingerprints of short blocks that ignore scale and shift.

A series is cut into consecutive blocks of 32 steps (16 steps, one every 8, if it has fewer than 96). The differences
between the steps of a block are divided by their standard deviation and rounded to quarters; the vector of these
integers, hashed to 64 bits, is the block's fingerprint. It does not change if the series is scaled by a positive factor
or shifted. Blocks with a missing value or with few different rounded values have no fingerprint, because zeros and
straight lines are the same everywhere.

The corpus keeps the fingerprints of its blocks; an evaluation series is fingerprinted at *every* position. So a common
stretch of 63 steps is detected wherever it begins in either series. Resampled, filtered or aggregated copies are not
detected by content; the ``groups`` of the catalogue list those. A source with very many blocks keeps a random sample of
2^18 fingerprints: a copied series is still detected, a short stretch of one perhaps not.
"""

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int64, UInt64

from tsfm_data.corpus.store import FINGERPRINTS, REBUILD, current_path, read_manifest
from tsfm_data.errors import LIBRARY_ERRORS, InputError, reason_of
from tsfm_data.io import catalog
from tsfm_data.progress import progress

if TYPE_CHECKING:
    from tsfm_data.io import DatasetSpec, SeriesSet

BLOCK, SHORT_BLOCK = 32, 16
SHORT_STRIDE, SHORT_SERIES = 8, 96
GRAIN = 0.25  # in standard deviations of the differences
CHUNK = 1 << 15  # blocks hashed at once
MAX_FINGERPRINTS = 1 << 18  # per source
# A block with fewer different rounded differences has no fingerprint.
DISTINCT = {BLOCK: 12, SHORT_BLOCK: 10}


def _multipliers(width: int) -> UInt64[np.ndarray, " steps"]:
    numbers = np.random.Generator(np.random.PCG64(width)).integers(0, 2**63, width - 1, dtype=np.uint64)
    return numbers * np.uint64(2) + np.uint64(1)


MULTIPLIERS = {width: _multipliers(width) for width in (BLOCK, SHORT_BLOCK)}


def fingerprints(values: Float[np.ndarray, " T"]) -> UInt64[np.ndarray, " blocks"]:
    """The fingerprints that a corpus keeps for one series."""
    if len(values) < SHORT_SERIES:
        return block_hashes(values, SHORT_BLOCK, SHORT_STRIDE)
    return block_hashes(values, BLOCK, BLOCK)


def subsample(hashes: UInt64[np.ndarray, " blocks"]) -> UInt64[np.ndarray, " smallest"]:
    """The smallest distinct fingerprints, ``MAX_FINGERPRINTS`` at most; as they are hashes, this is a random sample."""
    smallest = np.zeros(0, np.uint64)
    for start in range(0, len(hashes), MAX_FINGERPRINTS):
        smallest = np.sort(np.concatenate([smallest, hashes[start : start + MAX_FINGERPRINTS]]))
        smallest = smallest[np.diff(smallest, prepend=~smallest[:1]) != 0][:MAX_FINGERPRINTS]
    return smallest


def block_hashes(values: Float[np.ndarray, " T"], width: int, stride: int) -> UInt64[np.ndarray, " blocks"]:
    """Fingerprints of the blocks of ``width`` steps at every ``stride``-th step; blocks without one are left out.

    Args:
        values: one series; NaN where missing.
        width: 16 or 32.
        stride: steps from one block to the next.
    """
    if len(values) < width:
        return np.zeros(0, np.uint64)
    steps = np.diff(values.astype(np.float64))
    blocks = np.lib.stride_tricks.sliding_window_view(steps, width - 1)[::stride]
    parts = [_hash(blocks[i : i + CHUNK], width) for i in range(0, len(blocks), CHUNK)]
    return np.concatenate(parts)


def _hash(blocks: Float[np.ndarray, "n steps"], width: int) -> UInt64[np.ndarray, " informative"]:
    scale = blocks.std(axis=1)
    varying = np.isfinite(scale) & (scale > 0)
    rounded = np.rint(blocks[varying] / (GRAIN * scale[varying, None])).astype(np.int64)
    ordered = np.sort(rounded, axis=1)
    informative = (np.diff(ordered, axis=1) != 0).sum(axis=1) + 1 >= DISTINCT[width]
    return (rounded[informative].astype(np.uint64) * MULTIPLIERS[width]).sum(axis=1, dtype=np.uint64)


@dataclass(frozen=True)
class Overlap:
    """The overlap of a corpus with one evaluation set.

    Attributes:
        name: of the evaluation set.
        series: number of its series.
        checked: number of series with at least one fingerprint; None if the set or the fingerprints are not available.
        seen: name of each series that shares a block with the corpus -> the sources that contain the block.
        same: sources that are the same data set or file.
        related: sources that share raw series with the set, according to the catalogue.
    """

    name: str
    series: int
    checked: int | None
    seen: Mapping[str, tuple[str, ...]]
    same: tuple[str, ...]
    related: tuple[str, ...]

    @property
    def clean(self) -> bool:
        """Whether no overlap was detected."""
        return not (self.seen or self.same or self.related)


def check_overlap(corpus: str | Path, names: Sequence[str]) -> list[Overlap]:
    """Compare evaluation sets with a corpus, by name, file and groups of the catalogue, and by content.

    Args:
        corpus: a corpus folder, or a manifest with ``overlap.npz`` next to it, as in the folder of a model card.
        names: data sets of the catalogue, or tables.

    Raises:
        InputError: no corpus, damaged fingerprints, or an unknown data set.
    """
    manifest = read_manifest(corpus)
    known = _read_fingerprints(Path(corpus))
    results = []
    for name in progress(names, "overlap"):
        spec = catalog.get(name) if name in catalog.names() else None
        same: tuple[str, ...] = ()
        related: tuple[str, ...] = ()
        if spec is not None:
            pairs = [(entry["name"], _relation(entry, spec)) for entry in manifest["sources"]]
            same = tuple(source for source, relation in pairs if relation == "same")
            related = tuple(source for source, relation in pairs if relation == "related")
        if known is None or (spec is not None and catalog.local_file(spec) is None):
            results.append(Overlap(name, 0 if spec is None else spec.series, None, {}, same, related))
            continue
        series = catalog.open_source(name).univariate()
        checked, seen = _search(series, *known)
        results.append(Overlap(name, len(series), checked, seen, same, related))
    return results


def _relation(entry: Mapping[str, Any], spec: "DatasetSpec") -> str:
    digests = {file["sha256"] for file in entry["files"]}
    if spec.name == entry["name"] or spec.sha256 in digests:
        return "same"
    return "related" if set(entry["groups"]) & set(spec.groups) else ""


def _read_fingerprints(
    corpus: Path,
) -> tuple[UInt64[np.ndarray, " hashes"], Int64[np.ndarray, " hashes"], list[str]] | None:
    """All fingerprints in ascending order, the source of each, and the names of the sources; None without a file."""
    file = current_path(corpus if corpus.is_dir() else corpus.parent, FINGERPRINTS)
    if not file.is_file():
        return None
    try:
        with zipfile.ZipFile(file) as archive:  # ours are not compressed; another one might unpack to any size
            if sum(entry.file_size for entry in archive.infolist()) > file.stat().st_size:
                raise InputError(f"{file}: expected fingerprints of a corpus, found compressed ones; {REBUILD}")
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except InputError:
        raise
    except LIBRARY_ERRORS as error:
        raise InputError(
            f"{file}: expected fingerprints of a corpus, found something else ({reason_of(error)}); {REBUILD}"
        ) from error
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype != np.uint64 or array.ndim != 1:
            raise InputError(
                f"{file}: expected fingerprints of a corpus, found another array for {name!r:.60}; {REBUILD}"
            )
    hashes = np.concatenate([*arrays.values(), np.zeros(0, np.uint64)])
    owner = np.repeat(np.arange(len(arrays)), [len(array) for array in arrays.values()])
    order = np.argsort(hashes, kind="stable")
    return hashes[order], owner[order], list(arrays)


def _search(
    series: "SeriesSet", hashes: UInt64[np.ndarray, " hashes"], owner: Int64[np.ndarray, " hashes"], sources: list[str]
) -> tuple[int, dict[str, tuple[str, ...]]]:
    """The number of series with a fingerprint, and the series that share one with a source."""
    checked, seen = 0, dict[str, tuple[str, ...]]()
    for i, name in enumerate(progress(series.item_ids, series.name)):
        values = series.item(i)[:, 0]
        own_hashes = np.unique(np.concatenate([block_hashes(values, width, 1) for width in (BLOCK, SHORT_BLOCK)]))
        checked += len(own_hashes) > 0
        left, right = np.searchsorted(hashes, own_hashes, "left"), np.searchsorted(hashes, own_hashes, "right")
        owners = {int(k) for a, b in zip(left[left < right], right[left < right], strict=True) for k in owner[a:b]}
        if owners:
            seen[name] = tuple(sources[k] for k in sorted(owners))
    return checked, seen
