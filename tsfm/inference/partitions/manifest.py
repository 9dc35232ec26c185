"""Runs over partitioned tables: a manifest in the output folder says what was asked for and how far each part is."""

import hashlib
import json
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem
from typing_extensions import TypedDict

from tsfm.inference.partitions.places import Folder, Part, file_system, find_parts, is_glob, local_copy
from tsfm.inference.partitions.work import Work, made_of
from tsfm_data.errors import InputError, shown
from tsfm_data.io import check_version, read_record
from tsfm_data.progress import progress

MANIFEST, FORMAT_VERSION = "manifest.json", 1
EVERY = 5.0  # seconds from one write of the manifest to the next, at least; outputs say themselves what is done
SHARE = 0.05  # most of the time that is spent on writing it
Engine = Callable[[Work, list[Part], int | None], Generator[dict[str, Any]]]


class Manifest(TypedDict):
    """The content of ``manifest.json``."""

    format_version: int
    asked: dict[str, Any]
    parts: dict[str, dict[str, Any]]


@dataclass
class Run:
    """A run over a partitioned table.

    Attributes:
        folder: the output.
        asked: all that outputs depend on except the parts: command, model, options, version.
        parts: name of a part -> what is known of it.
        kept: number of parts that earlier runs had finished.
    """

    folder: Folder
    asked: dict[str, Any]
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    kept: int = 0
    next_save: float = 0.0

    def those(self, state: str) -> list[dict[str, Any]]:
        """What is known of the parts in a state: "waiting", "done", "failed", or "gone" from the input."""
        return [part for part in self.parts.values() if part["state"] == state]

    def total(self, count: str) -> int:
        """The number of "series" or "rows" of all finished parts."""
        return sum(part.get(count, 0) for part in self.those("done"))

    def save(self) -> None:
        """Write the manifest."""
        begin = time.monotonic()
        record: Manifest = {"format_version": FORMAT_VERSION, "asked": self.asked, "parts": self.parts}
        with self.folder.writing(MANIFEST) as file:
            file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        end = time.monotonic()
        self.next_save = end + max(EVERY, (end - begin) / SHARE)

    def save_now_and_then(self) -> None:
        """Write the manifest if that was not done just before."""
        if time.monotonic() >= self.next_save:
            self.save()


def run_locally(work: Work, parts: list[Part], workers: int | None = None) -> Generator[dict[str, Any]]:
    """Do one part after the other in this process, whatever the number of workers."""
    yield from map(work.do, parts)


def run_parts(
    source: str,
    asked: dict[str, Any],
    work: Work,
    engine: Engine = run_locally,
    workers: int | None = None,
    overwrite: bool = False,
    tell: Callable[[str], None] = print,
) -> Run:
    """Do what is left to do of a partitioned table. Parts that an earlier run of the same kind has finished are kept.

    Args:
        source: file, folder, pattern or URL of the parts, each of which holds all rows of its series.
        asked: all that outputs depend on except the parts, as it stands in the manifest.
        work: what is done with each part; its key is set here.
        engine: who does it.
        workers: number of workers; None leaves it to the engine.
        overwrite: whether the output of another run may be removed.
        tell: called with one line for each part that fails.

    Raises:
        InputError: no parts, a folder of something else, an output that cannot be written, or an engine that cannot
            work.
        KeyboardInterrupt: stopped by the user, with a line that says how to go on.
    """
    found, folder = find_parts(source), Folder(work.output)
    _check_apart(source, found, folder)
    run = Run(folder, json.loads(json.dumps(asked, default=str)))
    key = hashlib.sha256(json.dumps(run.asked, sort_keys=True).encode()).hexdigest()[:16]
    work = replace(work, key=key, output=folder.at("").rstrip("/"))  # absolute: workers are in other folders
    with folder.locked():
        left = _left(run, work, found, _known(run, overwrite))
        run.kept = len(found) - len(left)
        run.save()
        try:
            with (
                closing(engine(work, left, workers)) as outcomes,
                progress(None, "parts", total=len(found), initial=run.kept, unit="part") as bar,
            ):
                for outcome in outcomes if left else ():
                    stop = outcome.pop("stop", False)
                    run.parts[outcome["name"]] = outcome
                    bar.update()
                    if stop:
                        raise InputError(f"expected an output that can be written, found one that {outcome['error']}")
                    if outcome["state"] == "failed":
                        tell(f"{outcome['name']}: {outcome['error']}")
                    run.save_now_and_then()
        except KeyboardInterrupt:
            ready = len(run.those("done"))
            raise KeyboardInterrupt(
                f"interrupted after {ready} of {len(found)} parts: the same command goes on"
            ) from None
        finally:
            run.save()
    return run


def _check_apart(source: str, parts: list[Part], folder: Folder) -> None:
    """Check that outputs do not become parts of the next run.

    Raises:
        InputError: the output is in the folder of the parts, or holds parts.
    """
    places = [part.place for part in parts]
    within = not is_glob(source) and f"{folder.at('')}".startswith(f"{_whole(source)}/")
    if within or any(place.startswith(folder.at("")) for place in places):
        raise InputError(
            f"expected an output outside of the input, found {folder.place} for {source}: name another folder"
        )


def _whole(source: str) -> str:
    system, path = file_system(source)
    return path.rstrip("/") if isinstance(system, LocalFileSystem) else source.rstrip("/")


def _known(run: Run, overwrite: bool) -> dict[str, dict[str, Any]]:
    """What earlier runs with the same request left in the manifest.

    Raises:
        InputError: the folder holds something else, or the manifest of another request.
    """
    names, folder = run.folder.names(), run.folder
    if MANIFEST not in names:
        if names:
            raise InputError(
                f"expected a new folder or an earlier output of this command, found {folder.place} with "
                f"{min(names)!r}: name another folder"
            )
        return {}
    hint = "name another folder"
    with local_copy(folder.at(MANIFEST)) as file:
        record = read_record(file, Manifest, "the manifest of a run over parts", hint=hint)
    check_version(dict(record), FORMAT_VERSION, Path(folder.at(MANIFEST)))
    if record["asked"] == run.asked:
        return record["parts"]
    if not overwrite:
        before, now = record["asked"], run.asked
        key = next(key for key in {**now, **before} if before.get(key) != now.get(key))
        raise InputError(
            f"expected an output of the same request in {folder.place}, found the manifest of another one ({key} "
            f"{shown(before.get(key))}, now {shown(now.get(key))}): {hint}, or give --overwrite"
        )
    for output in {str(part.get("output")) for part in record["parts"].values()} & names:
        folder.remove(output)
    folder.remove(MANIFEST)
    return {}


def _left(run: Run, work: Work, parts: list[Part], known: dict[str, dict[str, Any]]) -> list[Part]:
    """The parts that are not finished. What is known of the others is kept."""
    names, left = run.folder.names(), []
    finished = {name: entry for name, entry in known.items() if entry.get("output") in names}
    run.parts = {name: {**entry, "state": "gone"} for name, entry in finished.items()}
    for part in parts:
        entry = known.get(part.name, {})
        same = (entry.get("size"), entry.get("stamp"), entry.get("state")) == (part.size, part.stamp, "done")
        base = {"name": part.name, "size": part.size, "stamp": part.stamp, "output": part.output}
        if part.output in names and not same:  # finished after the manifest was last written?
            stamp, counts = made_of(run.folder, part.output)
            if stamp == work.stamp_of(part):
                entry, same = {**base, "state": "done", **counts}, True
        if part.output in names and same:
            run.parts[part.name] = entry
        else:
            run.parts[part.name] = {**base, "state": "waiting"}
            left.append(part)
    return left
