"""The trials of ``soak.py``: a kill, a full disk, a read-only folder, two runs at once, and lost outputs."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trials
from soak_cases import Case

from tsfm_data.errors import InputError

AGAIN = 3  # runs after a kill, at most
REFUSED = 2  # exit status of a command without a result, with one line on standard error


@dataclass(frozen=True)
class Undisturbed:
    """A case without faults, as some runs have measured it.

    Attributes:
        seed: a folder with its inputs and its earlier result.
        old: the earlier result.
        new: the result.
        seconds: of an undisturbed run.
    """

    seed: Path
    old: dict[str, str]
    new: dict[str, str]
    seconds: float


def copy(source: Path, target: Path) -> None:
    """Copy a folder in place of another one."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)


def kill(case: Case, undisturbed: Undisturbed, work: Path, number: int, share: float) -> dict[str, Any]:
    """Kill a command after a share of its time, run it again, and compare.

    Returns:
        A row; its ``problems`` are empty if nothing was lost.
    """
    copy(undisturbed.seed, work)
    after = share * undisturbed.seconds
    trial = trials.start(case.words, work, case.before)
    time.sleep(after)
    trial.kill(number)
    problems: list[str] = []
    ended = attempt(trial, problems)
    alive = trial.survivors()
    if alive:
        problems.append(f"{len(alive)} processes left")
    if number != signal.SIGKILL and ended is not None:
        problems += unclean(case, ended, work)
    problems += broken(case, undisturbed, work)
    seconds = recover(case, undisturbed, work, problems)
    row = {"signal": signal.Signals(number).name, "share": round(share, 4), "seconds": round(after, 3)}
    return row | {"status": None if ended is None else ended.status, "again": seconds, "problems": problems}


def attempt(trial: trials.Trial, problems: list[str]) -> trials.Ended | None:
    """Wait for a command; one that never ends is a problem."""
    try:
        return trial.wait(120)
    except TimeoutError as error:
        problems.append(str(error))
        return None


def unclean(case: Case, ended: trials.Ended, work: Path) -> list[str]:
    """What is wrong with the end of a command that could clean up."""
    problems = []
    if ended.status not in (0, REFUSED, case.failed) or (
        ended.status == REFUSED and ended.err.count("tsfm: error: ") != 1
    ):
        problems.append(f"status {ended.status}, {ended.err[-300:]!r}")
    if "Traceback" in ended.err:
        problems.append(f"a traceback: {ended.err[-300:]!r}")
    return problems + hidden(work)


def broken(case: Case, undisturbed: Undisturbed, work: Path) -> list[str]:
    """What is neither the earlier result nor the new one."""
    found = case.result(work)
    if not undisturbed.old or found in (undisturbed.old, undisturbed.new):
        return []
    wrong = [key for key, value in found.items() if value not in (undisturbed.old.get(key), undisturbed.new.get(key))]
    missing = sorted(undisturbed.old.keys() - found.keys())
    return (
        [f"neither the old nor the new result: {[*wrong, *missing][:3]}"]
        if wrong or missing or not case.several
        else []
    )


def hidden(work: Path) -> list[str]:
    """Unfinished files and locks in a folder."""
    marks = (".tsfm-part", ".tsfm-old", ".commit")
    left = [path for path in work.rglob(".*") if any(mark in path.name for mark in marks)]
    left += [path for path in work.rglob(".lock") if path.parent.name in ("run", "out", ".build")]
    return [f"left behind: {path.relative_to(work)}" for path in left][:3]


def recover(case: Case, undisturbed: Undisturbed, work: Path, problems: list[str]) -> float | None:
    """Run a command again until it is done, and compare its result; returns the seconds of the last run."""
    for _ in range(AGAIN):
        words = case.again(work) if case.again else case.words
        ended = attempt(trials.start(words, work, case.before), problems)
        if ended is None:
            return None
        if ended.status == 0:
            break
        problems.append(f"run again: status {ended.status}, {ended.err[-300:]!r}")
    found = case.result(work)
    if found != undisturbed.new:
        different = sorted(key for key in {*found, *undisturbed.new} if found.get(key) != undisturbed.new.get(key))
        problems.append(f"another result than that of an undisturbed run: {different[:3]}")
    problems += hidden(work)
    return round(ended.seconds, 3)


@contextmanager
def small_disk(place: Path, kibibytes: int) -> Iterator[Path]:
    """A file system of its own, of some size.

    Raises:
        InputError: it cannot be mounted, which only root may do.
    """
    place.mkdir(parents=True, exist_ok=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(place)]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        raise InputError("expected to mount a small disk, found no right to: run the soak as root, or leave out faults")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def remount(place: Path, option: str) -> None:
    """Change an option of a mounted file system."""
    subprocess.run(["mount", "-o", f"remount,{option}", str(place)], check=True)


def disk_use(folder: Path) -> int:
    """KiB that a folder takes on a small disk."""
    return sum(-(-path.stat().st_size // 4096) * 4 if path.is_file() else 0 for path in folder.rglob("*")) + 64


def refused(case: Case, undisturbed: Undisturbed, work: Path, ended: trials.Ended | None, problems: list[str]) -> None:
    """Check that a command without a result said so in one line and left the earlier result."""
    if ended is None:
        return
    problems += unclean(case, ended, work)
    found = case.result(work)
    if ended.status == 0 and found != undisturbed.new:
        problems.append("status 0 without the result")
    problems += broken(case, undisturbed, work)


def full_disk(case: Case, undisturbed: Undisturbed, work: Path, share: float) -> list[str]:
    """Run a command on a disk that is full after a share of what it writes, and again when there is space."""
    problems: list[str] = []
    with small_disk(work.with_name("disk"), 1 << 19) as disk:
        place = disk / "work"
        copy(undisturbed.seed, place)
        remount(disk, f"size={disk_use(undisturbed.seed) + int(share * 200)}k")
        out, err = work.with_name("disk.out"), work.with_name("disk.err")
        trial = trials.start(case.words, place, case.before, out, err=err)
        refused(case, undisturbed, place, attempt(trial, problems), problems)
        remount(disk, "size=500m")
        recover(case, undisturbed, place, problems)
    return problems


def read_only(case: Case, undisturbed: Undisturbed, work: Path, share: float) -> list[str]:
    """Run a command in a folder that cannot be written, and again when it can."""
    problems: list[str] = []
    with small_disk(work.with_name("disk"), 1 << 19) as disk:
        place = disk / "work"
        copy(undisturbed.seed, place)
        out, err = work.with_name("disk.out"), work.with_name("disk.err")
        remount(disk, "ro")
        ended = attempt(trials.start(case.words, place, case.before, out, err=err), problems)
        if ended is not None and ended.status != REFUSED:
            problems.append(f"expected status 2 in a read-only folder, found {ended.status}: {ended.err[-300:]!r}")
        if ended is not None and ended.status and ended.seconds > max(2.0, undisturbed.seconds):
            problems.append(f"noticed only after {ended.seconds:.1f} s")
        refused(case, undisturbed, place, ended, problems)
        remount(disk, "rw")
        recover(case, undisturbed, place, problems)
    return problems


def two_runs(case: Case, undisturbed: Undisturbed, work: Path, share: float) -> list[str]:
    """Run a command twice at once; one is refused in a line, or both give the result."""
    problems: list[str] = []
    copy(undisturbed.seed, work)
    first = trials.start(case.words, work, case.before)
    time.sleep(share * undisturbed.seconds)
    second = trials.start(case.words, work, case.before, work.with_name("second.out"), err=work.with_name("second.err"))
    statuses = []
    for trial in (first, second):
        if (ended := attempt(trial, problems)) is not None:
            statuses.append(ended.status)
            if ended.status:
                problems += [text for text in unclean(case, ended, work) if "left behind" not in text]
    if 0 not in statuses:
        problems.append(f"expected one run to end with status 0, found {statuses}")
    if case.result(work) != undisturbed.new:
        problems.append("another result than that of an undisturbed run")
    return problems + hidden(work)


def closed() -> None:
    """Close the standard output."""
    os.close(1)
    sys.stdout = None  # type: ignore[assignment]


def unread() -> None:
    """Let the standard output be a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)


def lost_output(fault: str) -> Callable[[Case, Undisturbed, Path, float], list[str]]:
    """Run a command whose standard output cannot be written; the status is 0 only if the result is there."""

    def trial(case: Case, undisturbed: Undisturbed, work: Path, share: float) -> list[str]:
        def before() -> None:
            case.before()
            {"closed output": closed, "unread output": unread}.get(fault, lambda: None)()

        problems: list[str] = []
        copy(undisturbed.seed, work)
        out = Path("/dev/full") if fault == "full output" else None
        ended = attempt(trials.start(case.words, work, before, out), problems)
        if ended is not None and ended.status == 0 and case.result(work) != undisturbed.new:
            problems.append("status 0 without the result")
        if ended is not None and ended.status not in (0, REFUSED, case.failed, 141):
            problems.append(f"status {ended.status}: {ended.err[-300:]!r}")
        problems += hidden(work)
        recover(case, undisturbed, work, problems)
        return problems

    return trial


TRIALS: dict[str, Callable[[Case, Undisturbed, Path, float], list[str]]] = {
    "full disk": full_disk,
    "read-only folder": read_only,
    "two runs at once": two_runs,
    **{fault: lost_output(fault) for fault in ("closed output", "full output", "unread output")},
}
