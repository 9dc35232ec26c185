"""Building a corpus folder: everything new is written to a staging folder, and one renaming commits it.

A build that is stopped before the renaming leaves the corpus as it was; the next build reuses the sources that were
finished. A build that is stopped after it leaves the new corpus. Readers find its files in the committed folder through
``store.current_path``, until the next build has moved them into place. A source of an existing corpus is reused if its
inputs (files, digests, options) are the same and its arrays are undamaged.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from tsfm_data.corpus.overlap import subsample
from tsfm_data.corpus.shards import ShardWriter
from tsfm_data.corpus.sources import Plan, read_plans
from tsfm_data.corpus.store import (
    COMMIT,
    FINGERPRINTS,
    FORMAT,
    MANIFEST,
    SOURCE_ENTRY,
    SOURCES,
    SourceRecord,
    check_arrays,
    read_manifest,
)
from tsfm_data.errors import InputError
from tsfm_data.io import atomic_file, atomic_folder, lock_folder, read_record
from tsfm_data.progress import progress as show_progress

STAGING, LOCK = ".build", ".lock"
# The largest default share of the windows of one source; with few sources, twice the mean share if that is more.
LARGEST_SHARE = 0.08


@dataclass(frozen=True)
class BuildResult:
    """What a build did.

    Attributes:
        folder: the corpus.
        built: names of the sources built or rebuilt.
        reused: names of the sources that were there already.
        manifest: content of ``manifest.json``.
    """

    folder: Path
    built: tuple[str, ...]
    reused: tuple[str, ...]
    manifest: Mapping[str, Any]


def build(config: str | Path, output: str | Path, progress: bool = True) -> BuildResult:
    """Build the corpus that a YAML describes, or update one: missing and changed sources are built.

    Sources of an existing corpus that the YAML does not name stay in it.

    Args:
        config: YAML as in ``tsfm_data.corpus.sources``.
        output: the corpus folder; new, empty, or a corpus.
        progress: whether to show a progress bar on standard error (never if that is no terminal).

    Raises:
        InputError: the YAML, a source or the output folder is wrong; the corpus is then as before.
        OSError: the folder cannot be written, or the disk is full; the corpus is then as before.
    """
    folder = Path(output)
    plans = read_plans(Path(config))
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: expected a folder for the corpus, found a file")
    with lock_folder(folder):
        _finish_commit(folder)
        old = _existing_entries(folder)
        entries: dict[str, dict[str, Any]] = {}
        staged: list[str] = []
        reused: list[str] = []
        for plan in show_progress(plans, "sources") if progress else plans:
            parent, entries[plan.name] = _build_source(plan, folder)
            (staged if parent == STAGING else reused).append(plan.name)
        for name, entry in old.items():
            if name not in entries:
                check_arrays(folder / SOURCES / name, entry["arrays"], verify=False)
                entries[name] = entry
                reused.append(name)
        manifest = _commit(folder, [*old, *(n for n in entries if n not in old)], entries, staged)
    return BuildResult(folder, tuple(staged), tuple(reused), manifest)


def _existing_entries(folder: Path) -> dict[str, dict[str, Any]]:
    """Entries of the corpus in a folder; none if it is empty, or holds an interrupted first build."""
    if (folder / MANIFEST).is_file():
        return {entry["name"]: entry for entry in read_manifest(folder)["sources"]}
    names = sorted(path.name for path in folder.iterdir() if path.name not in (STAGING, LOCK))
    sources = folder / SOURCES  # earlier versions moved the sources before they wrote the manifest
    stopped = sources.is_dir() and all((path / SOURCE_ENTRY).is_file() for path in sources.iterdir())
    if names and not (stopped and set(names) <= {SOURCES, FINGERPRINTS}):
        raise InputError(
            f"{folder}: expected a corpus or an empty folder, found {', '.join(names[:3])} and no {MANIFEST}; name "
            "another folder with --output"
        )
    return {}


def _build_source(plan: Plan, folder: Path) -> tuple[str, dict[str, Any]]:
    """Build a source unless it can be reused; returns whether staging or the corpus holds it, and its entry."""
    for parent in (STAGING, ""):
        entry = _reusable_entry(folder / parent / SOURCES / plan.name, plan.inputs())
        if entry is not None:
            return parent, {"name": plan.name, **entry, **plan.about()}
    try:
        with atomic_folder(folder / STAGING / SOURCES / plan.name) as new, ShardWriter(new, plan.name) as writer:
            for part in plan.parts():
                writer.add(part, plan.options.get("without", ()))
            entry = writer.finish(plan.inputs())
    except InputError as error:
        text = str(error)
        raise InputError(text if text.startswith("source ") else f"source {plan.name!r}: {text}") from error
    return STAGING, {"name": plan.name, **entry, **plan.about()}


def _reusable_entry(folder: Path, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The entry of a source if it was built from the same inputs and is undamaged, else None."""
    try:
        entry: dict[str, Any] = dict(read_record(folder / SOURCE_ENTRY, SourceRecord, "a source of a corpus"))
        if {key: entry.get(key) for key in inputs} != json.loads(json.dumps(inputs)):
            return None
        check_arrays(folder, entry["arrays"], verify=True)
    except (OSError, InputError, KeyError):  # a damaged source is rebuilt
        return None
    return entry


def _commit(
    folder: Path, order: Sequence[str], entries: Mapping[str, dict[str, Any]], staged: Sequence[str]
) -> dict[str, Any]:
    """Complete the staging folder with fingerprints and manifest, and make it part of the corpus."""
    chosen = [entries[name] for name in order]
    weights = shares([entry["points"] for entry in chosen], [entry["share"] for entry in chosen])
    listed = [{**entry, "weight": float(weight)} for entry, weight in zip(chosen, weights, strict=True)]
    manifest = {
        "format": FORMAT,
        "series": sum(entry["series"] for entry in listed),
        "points": sum(entry["points"] for entry in listed),
        "sources": listed,
    }
    staging = folder / STAGING
    hashes = {}
    for name in order:
        place = (staging if name in staged else folder) / SOURCES / name
        hashes[name] = subsample(np.load(place / "overlap.npy", mmap_mode="r"))
    with atomic_file(staging / FINGERPRINTS) as file, file.open("wb") as handle:
        np.savez(handle, allow_pickle=False, **hashes)
    with atomic_file(staging / MANIFEST) as file:
        file.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for path in (staging / SOURCES).glob("*"):
        if path.name not in staged:  # of an interrupted build from another YAML
            shutil.rmtree(path)
    staging.replace(folder / COMMIT)
    _finish_commit(folder)
    return manifest


def _finish_commit(folder: Path) -> None:
    """Move committed files into place, the manifest last; ``current_path`` finds each of them at any moment."""
    committed = folder / COMMIT
    if not committed.is_dir():
        return
    for new in (committed / SOURCES).glob("*"):
        target = folder / SOURCES / new.name
        target.parent.mkdir(exist_ok=True)
        if target.exists():
            shutil.rmtree(target)
        new.replace(target)
    for name in (FINGERPRINTS, MANIFEST):
        if (committed / name).exists():
            (committed / name).replace(folder / name)
    shutil.rmtree(committed)


def shares(points: Sequence[int], given: Sequence[float | None]) -> Float64[np.ndarray, " sources"]:
    """Shares of the training windows per source; they sum to 1.

    Given weights are kept. The rest is divided in proportion to the fourth root of the points, because many points of
    one kind teach less than their number: months and years have few points, hours and minutes many. No share exceeds
    8 % of the rest (or twice the mean share, if there are fewer than 25 sources). If all weights are given, they are
    normalised.

    Args:
        points: values of each source.
        given: the weight of each source in the YAML, or None.

    Raises:
        InputError: the given weights leave nothing for the other sources.
    """
    fixed = np.array([share or 0.0 for share in given])
    free = np.array([share is None for share in given])
    if not free.any():
        return fixed / fixed.sum()
    rest = 1 - fixed.sum()
    if rest <= 0:
        raise InputError(
            f"expected weights that sum to less than 1 because {free.sum()} sources have none, found {fixed.sum():g}; "
            "weights are shares of the training windows"
        )
    roots = np.asarray(points, dtype=np.float64)[free] ** 0.25
    largest = min(1.0, max(LARGEST_SHARE, 2 / len(roots)))
    share = roots / roots.sum()
    for _ in roots:  # each round caps at least one more source, or ends
        capped = share >= largest
        if not (share > largest + 1e-12).any():
            break
        share = np.where(capped, largest, roots * (1 - largest * capped.sum()) / roots[~capped].sum())
    fixed[free] = rest * share
    return fixed
