"""Building a corpus folder: sources are made one after the other in a staging folder, the manifest is written last.

A build that is stopped leaves the corpus as it was; the sources it had finished are taken up by the next one. A source
that is in the corpus already is kept when its inputs (files, digests, options) are the same and its arrays are whole.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from jaxtyping import Float64

from tsfm_data.corpus.overlap import sample
from tsfm_data.corpus.shards import ShardWriter
from tsfm_data.corpus.sources import Plan, read_plans
from tsfm_data.corpus.store import (
    FINGERPRINTS,
    FORMAT,
    MANIFEST,
    SOURCE_ENTRY,
    SOURCES,
    check_arrays,
    read_manifest,
)
from tsfm_data.errors import InputError
from tsfm_data.io import atomic_file, atomic_folder
from tsfm_data.progress import progress as bar_of

STAGING, LOCK = ".build", ".lock"
# No source has a larger share of the windows than this by default, or than twice the mean share where there are few.
LARGEST_SHARE = 0.08


@dataclass(frozen=True)
class Built:
    """What a build did.

    Attributes:
        folder: the corpus.
        made: sources built, or built anew.
        kept: sources that were there already.
        manifest: content of ``manifest.json``.
    """

    folder: Path
    made: tuple[str, ...]
    kept: tuple[str, ...]
    manifest: Mapping[str, Any]


def build(config: str | Path, output: str | Path, progress: bool = True) -> Built:
    """Make the corpus that a YAML describes, or bring one up to date: missing and changed sources are made.

    Sources of an existing corpus that the YAML does not name stay in it.

    Args:
        config: YAML as in ``tsfm_data.corpus.sources``.
        output: the corpus folder; new, empty, or a corpus.
        progress: whether a bar on standard error shows the sources (never when that is no terminal).

    Raises:
        InputError: the YAML, a source or the output folder is not as it should be; the corpus is then as before.
        OSError: the folder cannot be written, or the disk is full; the corpus is then as before.
    """
    folder = Path(output)
    plans = read_plans(Path(config))
    old = _existing(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK, timeout=0):
            _clean(folder, old)
            entries: dict[str, dict[str, Any]] = {}
            staged: list[str] = []
            kept: list[str] = []
            for plan in bar_of(plans, "sources") if progress else plans:
                place, entries[plan.name] = _source(plan, folder)
                (staged if place == STAGING else kept).append(plan.name)
            for name, entry in old.items():
                if name not in entries:
                    check_arrays(folder / SOURCES / name, entry["arrays"], verify=False)
                    entries[name] = entry
                    kept.append(name)
            manifest = _commit(folder, [*old, *(n for n in entries if n not in old)], entries, staged)
    except Timeout as error:
        raise InputError(f"{folder}: another build is at work on this corpus; wait until it has ended") from error
    return Built(folder, tuple(staged), tuple(kept), manifest)


def _existing(folder: Path) -> dict[str, dict[str, Any]]:
    """Entries of the corpus in a folder; none where it is absent, empty, or a first build was stopped."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: expected a folder for the corpus, found a file")
    if (folder / MANIFEST).is_file():
        return {entry["name"]: entry for entry in read_manifest(folder)["sources"]}
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if set(found) - {STAGING, LOCK, SOURCES} or (SOURCES in found and STAGING not in found):
        raise InputError(
            f"{folder}: expected a corpus or an empty folder, found {', '.join(found[:3])} and no {MANIFEST}; name "
            "another folder with --output"
        )
    return {}


def _clean(folder: Path, old: Mapping[str, Any]) -> None:
    """Remove what a stopped build left half-done."""
    for parent in (folder / STAGING, folder / SOURCES):
        for path in parent.iterdir() if parent.is_dir() else ():
            if not (path / SOURCE_ENTRY).is_file() or path.name.startswith("."):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in (*folder.glob(f".{Path(MANIFEST).stem}.*"), *folder.glob(f".{Path(FINGERPRINTS).stem}.*")):
        path.unlink()


def _source(plan: Plan, folder: Path) -> tuple[str, dict[str, Any]]:
    """Where the source of a plan is, after it was made if need be, and its entry."""
    for place in (STAGING, SOURCES):
        entry = _whole(folder / place / plan.name, plan.inputs())
        if entry is not None:
            return place, {"name": plan.name, **entry, **plan.about()}
    try:
        with atomic_folder(folder / STAGING / plan.name) as new, ShardWriter(new, plan.name) as writer:
            for part in plan.parts():
                writer.add(part, plan.options.get("without", ()))
            entry = writer.finish(plan.inputs())
    except InputError as error:
        text = str(error)
        raise InputError(text if text.startswith("source ") else f"source {plan.name!r}: {text}") from error
    return STAGING, {"name": plan.name, **entry, **plan.about()}


def _whole(folder: Path, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The entry of a source that was made of the same inputs and is undamaged; else None."""
    try:
        entry = json.loads((folder / SOURCE_ENTRY).read_text(encoding="utf-8"))
        if {key: entry[key] for key in inputs} != json.loads(json.dumps(inputs)):
            return None
        check_arrays(folder, entry["arrays"], verify=True)
    except (OSError, ValueError, KeyError):  # an InputError is a ValueError: what is damaged is made anew
        return None
    return entry


def _commit(
    folder: Path, order: Sequence[str], entries: Mapping[str, dict[str, Any]], staged: Sequence[str]
) -> dict[str, Any]:
    """Move the new sources in, then write fingerprints and manifest."""
    chosen = [entries[name] for name in order]
    weights = shares([entry["points"] for entry in chosen], [entry["share"] for entry in chosen])
    listed = [{**entry, "weight": float(weight)} for entry, weight in zip(chosen, weights, strict=True)]
    (folder / SOURCES).mkdir(exist_ok=True)
    for name in staged:
        target = folder / SOURCES / name
        if target.exists():
            shutil.rmtree(target)
        (folder / STAGING / name).replace(target)
    manifest = {
        "format": FORMAT,
        "series": sum(entry["series"] for entry in listed),
        "points": sum(entry["points"] for entry in listed),
        "sources": listed,
    }
    hashes = {name: sample(np.load(folder / SOURCES / name / "overlap.npy", mmap_mode="r")) for name in order}
    with atomic_file(folder / FINGERPRINTS) as file, file.open("wb") as handle:
        np.savez(handle, allow_pickle=False, **hashes)
    with atomic_file(folder / MANIFEST) as file:
        file.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    shutil.rmtree(folder / STAGING, ignore_errors=True)
    return manifest


def shares(points: Sequence[int], given: Sequence[float | None]) -> Float64[np.ndarray, " sources"]:
    """Shares of training windows, which sum to 1.

    Given shares stand. The rest is divided in proportion to the square root of the points, no share larger than 8 %
    of the rest (or twice the mean share, where there are fewer than 25): many points of one kind teach less than
    their number, and none should crowd out the others. Where all are given, their ratio counts.

    Args:
        points: values of each source.
        given: the weight that the YAML states, or None.

    Raises:
        InputError: given shares leave nothing for the others.
    """
    fixed = np.array([share or 0.0 for share in given])
    free = np.array([share is None for share in given])
    if not free.any():
        return fixed / fixed.sum()
    rest = 1 - fixed.sum()
    if rest <= 0:
        raise InputError(
            f"expected weights that sum to less than 1 where {free.sum()} sources have none, found {fixed.sum():g}; "
            "weights are shares of the training windows"
        )
    roots = np.sqrt(np.asarray(points, dtype=np.float64))[free]
    largest = min(1.0, max(LARGEST_SHARE, 2 / len(roots)))
    share = roots / roots.sum()
    for _ in roots:  # each round caps at least one more, or ends
        capped = share >= largest
        if not (share > largest + 1e-12).any():
            break
        share = np.where(capped, largest, roots * (1 - largest * capped.sum()) / roots[~capped].sum())
    fixed[free] = rest * share
    return fixed
