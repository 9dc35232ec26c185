"""Kills every long command at random moments, runs it again, and compares the result with that of an undisturbed run.

Full disks, read-only folders, two runs in one folder and closed outputs are tried, too. Commands run in processes
forked from one that has imported everything, on the data of ``soak_cases.py``. Trials that were made are kept in the
runs folder, so an interrupted soak continues where it stopped.
"""

import importlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trials
from common import run, write
from soak_cases import CASES, Case, prepare
from tabulate import tabulate

from tsfm_data.errors import InputError, unknown_name

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT)
AGAIN = 3  # runs after a kill, at most
REFUSED = 2  # exit status of a command without a result, with one line on standard error
FAULTS = ("full disk", "read-only folder", "two runs at once", "closed output", "full output", "unread output")


@dataclass(frozen=True)
class Known:
    """What is known of a case from undisturbed runs.

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


def known(name: str, case: Case, inputs: Path, place: Path) -> Known:
    """Run a case undisturbed three times: to import what it needs, to take its time, and to compare.

    Raises:
        InputError: it fails, or two runs differ.
    """
    seed = place / f"{name.replace(' ', '_')}-seed"
    copy(inputs, seed)
    if case.first:
        succeed(name, trials.learn(case.first, seed, case.before))
    results, seconds = [], []
    for number in range(3):
        work = place / "work"
        copy(seed, work)
        again = trials.learn if number == 0 else lambda *given: trials.start(*given).wait()
        ended = succeed(name, again(case.words, work, case.before))
        results.append(case.result(work))
        seconds.append(ended.seconds)
    if not results[0] or results[1] != results[2]:
        different = sorted(key for key in results[1] if results[1][key] != results[2].get(key))
        raise InputError(f"expected equal results of two undisturbed runs of {name}, found {different}: leave them out")
    return Known(seed, case.result(seed) if case.first else {}, results[1], min(seconds[1:]))


def succeed(name: str, ended: trials.Ended) -> trials.Ended:
    """Check that a command ended with status 0.

    Raises:
        InputError: it did not.
    """
    if ended.status:
        raise InputError(f"expected {name} to end with status 0, found {ended.status}: {ended.err[-500:]}")
    return ended


def copy(source: Path, target: Path) -> None:
    """Copy a folder in place of another one."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)


def kill(case: Case, facts: Known, work: Path, number: int, share: float) -> dict[str, Any]:
    """Kill a command after a share of its time, run it again, and compare.

    Returns:
        A row; its ``problems`` are empty if nothing was lost.
    """
    copy(facts.seed, work)
    after = share * facts.seconds
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
    problems += broken(case, facts, work)
    seconds = recover(case, facts, work, problems)
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


def broken(case: Case, facts: Known, work: Path) -> list[str]:
    """What is neither the earlier result nor the new one."""
    found = case.result(work)
    if not facts.old or found in (facts.old, facts.new):
        return []
    wrong = [key for key, value in found.items() if value not in (facts.old.get(key), facts.new.get(key))]
    missing = sorted(facts.old.keys() - found.keys())
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


def recover(case: Case, facts: Known, work: Path, problems: list[str]) -> float | None:
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
    if found != facts.new:
        different = sorted(key for key in {*found, *facts.new} if found.get(key) != facts.new.get(key))
        problems.append(f"another result than that of an undisturbed run: {different[:3]}")
    problems += hidden(work)
    return round(ended.seconds, 3)


@contextmanager
def small_disk(place: Path, kibibytes: int) -> Iterator[Path]:
    """An own file system of some size.

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


def used(folder: Path) -> int:
    """KiB that a folder takes on a small disk."""
    return sum(-(-path.stat().st_size // 4096) * 4 if path.is_file() else 0 for path in folder.rglob("*")) + 64


def refused(case: Case, facts: Known, work: Path, ended: trials.Ended | None, problems: list[str]) -> None:
    """Check that a command without a result said so in one line and left the earlier result."""
    if ended is None:
        return
    problems += unclean(case, ended, work)
    found = case.result(work)
    if ended.status == 0 and found != facts.new:
        problems.append("status 0 without the result")
    problems += broken(case, facts, work)


def full_disk(case: Case, facts: Known, work: Path, share: float) -> list[str]:
    """Run a command on a disk that is full after a share of what it writes, and again when there is space."""
    problems: list[str] = []
    with small_disk(work.with_name("disk"), 1 << 19) as disk:
        place = disk / "work"
        copy(facts.seed, place)
        remount(disk, f"size={used(facts.seed) + int(share * 200)}k")
        out, err = work.with_name("disk.out"), work.with_name("disk.err")
        trial = trials.start(case.words, place, case.before, out, err=err)
        refused(case, facts, place, attempt(trial, problems), problems)
        remount(disk, "size=500m")
        recover(case, facts, place, problems)
    return problems


def read_only(case: Case, facts: Known, work: Path, share: float) -> list[str]:
    """Run a command in a folder that cannot be written, and again when it can."""
    problems: list[str] = []
    with small_disk(work.with_name("disk"), 1 << 19) as disk:
        place = disk / "work"
        copy(facts.seed, place)
        out, err = work.with_name("disk.out"), work.with_name("disk.err")
        remount(disk, "ro")
        ended = attempt(trials.start(case.words, place, case.before, out, err=err), problems)
        if ended is not None and ended.status != REFUSED:
            problems.append(f"expected status 2 in a read-only folder, found {ended.status}: {ended.err[-300:]!r}")
        if ended is not None and ended.status and ended.seconds > max(2.0, facts.seconds):
            problems.append(f"noticed only after {ended.seconds:.1f} s")
        refused(case, facts, place, ended, problems)
        remount(disk, "rw")
        recover(case, facts, place, problems)
    return problems


def two_runs(case: Case, facts: Known, work: Path, share: float) -> list[str]:
    """Run a command twice at once; one is refused in a line, or both give the result."""
    problems: list[str] = []
    copy(facts.seed, work)
    first = trials.start(case.words, work, case.before)
    time.sleep(share * facts.seconds)
    second = trials.start(case.words, work, case.before, work.with_name("second.out"), err=work.with_name("second.err"))
    statuses = []
    for trial in (first, second):
        if (ended := attempt(trial, problems)) is not None:
            statuses.append(ended.status)
            if ended.status:
                problems += [text for text in unclean(case, ended, work) if "left behind" not in text]
    if 0 not in statuses:
        problems.append(f"expected one run to end with status 0, found {statuses}")
    if case.result(work) != facts.new:
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


def lost_output(fault: str) -> Callable[[Case, Known, Path, float], list[str]]:
    """Run a command whose standard output cannot be written; the status is 0 only if the result is there."""

    def trial(case: Case, facts: Known, work: Path, share: float) -> list[str]:
        def before() -> None:
            case.before()
            {"closed output": closed, "unread output": unread}.get(fault, lambda: None)()

        problems: list[str] = []
        copy(facts.seed, work)
        out = Path("/dev/full") if fault == "full output" else None
        ended = attempt(trials.start(case.words, work, before, out), problems)
        if ended is not None and ended.status == 0 and case.result(work) != facts.new:
            problems.append("status 0 without the result")
        if ended is not None and ended.status not in (0, REFUSED, case.failed, 141):
            problems.append(f"status {ended.status}: {ended.err[-300:]!r}")
        problems += hidden(work)
        recover(case, facts, work, problems)
        return problems

    return trial


TRIALS: dict[str, Callable[[Case, Known, Path, float], list[str]]] = {
    "full disk": full_disk,
    "read-only folder": read_only,
    "two runs at once": two_runs,
    **{fault: lost_output(fault) for fault in FAULTS[3:]},
}


def plan(kills: int, faults: int, names: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """All trials: kills in proportion to the shares of the commands, spread evenly over their time."""
    rng = random.Random(seed)
    total = sum(CASES[name].share for name in names)
    rows: list[dict[str, Any]] = []
    for name in names:
        count = -(-kills * CASES[name].share // total)
        for k in range(count):
            # A little beyond the end, because a run may take longer than that whose time was taken.
            row = {"command": name, "fault": "kill", "number": k, "share": 1.1 * (k + rng.random()) / count}
            rows.append(row | {"signal": int(SIGNALS[k % len(SIGNALS)])})
        for fault in FAULTS:
            for k in range(faults):
                row = {"command": name, "fault": fault, "number": k, "share": (k + rng.random()) / faults}
                rows.append(row | {"signal": 0})
    return rows


def main(
    kills: int = 200,
    faults: int = 2,
    seed: int = 0,
    commands: list[str] | None = None,
    runs: Path = Path("runs/soak"),
    output: Path = Path("benchmarks"),
) -> None:
    """Kill commands, fill disks, and compare with undisturbed runs.

    Args:
        kills: number of kills over all commands.
        faults: trials of each other fault for each command; full disks and read-only folders need root.
        seed: random seed of the moments.
        commands: commands to try; by default all.
        runs: folder for the trials, which are not made again.
        output: folder of the page.

    Raises:
        InputError: an unknown command, fewer than one kill, or a command that fails undisturbed.
    """
    names = commands or list(CASES)
    for name in names:
        if name not in CASES:
            raise unknown_name("command", name, CASES)
    if kills < 1 or faults < 0:
        raise InputError(f"expected at least 1 kill and 0 faults, found {kills} and {faults}: change them")
    place, log = runs.resolve() / f"seed{seed}", runs.resolve() / f"trials-{kills}-{faults}-{seed}.jsonl"
    place.mkdir(parents=True, exist_ok=True)
    os.environ |= {"TSFM_CACHE": "cache", "HF_HUB_OFFLINE": "1"}
    importlib.import_module("tsfm.commands.train")  # the trainings of a sweep need it, and the sweep does not
    inputs = place / "inputs"
    shutil.rmtree(inputs, ignore_errors=True)
    inputs.mkdir()
    prepared = trials.start((), inputs, entry=lambda words: prepare(inputs)).wait()
    succeed("the preparation", prepared)
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    done = {(row["command"], row["fault"], row["number"]) for row in rows}
    todo = plan(kills, faults, names, seed)
    for name in names:
        mine = [r for r in todo if r["command"] == name and (name, r["fault"], r["number"]) not in done]
        if not mine:
            continue
        facts = known(name, CASES[name], inputs, place)
        for row in mine:
            made = tried(CASES[name], facts, place / "work", row)
            rows.append({**row, "undisturbed": round(facts.seconds, 3), **made})
            with log.open("a") as handle:
                handle.write(json.dumps(rows[-1]) + "\n")
            for problem in made["problems"]:
                print(f"{name}, {row['fault']} {row['number']}: {problem}", flush=True)
        print(f"{name}: {len(mine)} trials, {facts.seconds:.2f} s undisturbed", flush=True)
    command = f"python benchmarks/soak.py --kills {kills} --faults {faults} --seed {seed}"
    rows = [row for row in rows if row["command"] in names]
    write(output, "soak", rows, summary(rows), page(rows, command))


def tried(case: Case, facts: Known, work: Path, row: dict[str, Any]) -> dict[str, Any]:
    """Make one trial."""
    if row["fault"] == "kill":
        return kill(case, facts, work, row["signal"], row["share"])
    with suppress(FileNotFoundError):
        shutil.rmtree(work)
    return {"problems": TRIALS[row["fault"]](case, facts, work, row["share"])}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts over all commands."""
    kills = [row for row in rows if row["fault"] == "kill"]
    others = [row for row in rows if row["fault"] != "kill"]
    return {
        "kills": len(kills),
        "lost": sum(bool(row["problems"]) for row in kills),
        "faults": len(others),
        "failed": sum(bool(row["problems"]) for row in others),
    }


def page(rows: list[dict[str, Any]], command: str) -> str:
    """The page."""
    counts = summary(rows)
    by_command, by_fault = [], []
    for name in dict.fromkeys(row["command"] for row in rows):
        mine = [row for row in rows if row["command"] == name and row["fault"] == "kill"]
        running = [row for row in mine if row["status"] != 0]  # those that the signal reached in time
        again = [row["again"] for row in running if row["again"] is not None]
        undisturbed = statistics.median(row["undisturbed"] for row in mine)
        survived = sum(not row["problems"] for row in mine)
        after = statistics.median(again) if again else float("nan")
        # Time of both runs together beyond that of an undisturbed one: what the kill cost.
        cost = [row["seconds"] + row["again"] - row["undisturbed"] for row in running if row["again"] is not None]
        overhead = statistics.median(cost) if cost else float("nan")
        cells = [name, len(mine), len(running), survived, len(mine) - survived]
        by_command.append([*cells, *(f"{value:.2f}" for value in (undisturbed, after, overhead))])
    for fault in ("kill", *FAULTS):
        mine = [row for row in rows if row["fault"] == fault]
        by_fault.append([fault, len(mine), sum(not row["problems"] for row in mine)])
    head = ["command", "kills", "while running", "survived", "lost", "undisturbed, s", "after a kill, s", "cost, s"]
    problems = [f"- {r['command']}, {r['fault']} {r['number']}: {p}" for r in rows for p in r["problems"]]
    lines = [
        "# Kills and other faults",
        "",
        f"{counts['kills']} kills, {counts['lost']} lost; {counts['faults']} other faults, {counts['failed']} failed.",
        "",
        tabulate(by_command, head, tablefmt="github", disable_numparse=True),
        "",
        "Kills are SIGKILL (half of them), SIGTERM and SIGINT, spread evenly over the time of a command, from its",
        "first moment to a tenth beyond its end. A kill is survived if the earlier result or the new one is there",
        "afterwards, the command run again (a training resumes from its last checkpoint) gives the files of an",
        "undisturbed run, no temporary file is left, no process still runs, and SIGTERM and SIGINT end in one line and",
        "status 2. Times are medians: of an undisturbed run, of the run after a kill, and of both together minus an",
        "undisturbed one. Commands are forked from a process that has imported all modules, so times are without the",
        "start of Python; the trainings of a sweep are forked, too.",
        "",
        tabulate(by_fault, ["fault", "tried", "passed"], tablefmt="github"),
        "",
        "A full disk is a tmpfs with space for a share of the output; a read-only folder is the same, remounted. Both",
        "must end in one line and status 2 with the earlier result whole, and the command must succeed afterwards. Of",
        "two runs at once, one is refused in a line, or both give the result. If the standard output is closed, full",
        "or not read, the status is 0 only if the result is there. `evaluate --output` and `scaling fit` write several",
        "files; each is the old or the new one, and a kill between two of them leaves some old and some new.",
        "",
        *(["Problems:", "", *problems, ""] if problems else []),
        f"Command: `{command}`.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run(main)
