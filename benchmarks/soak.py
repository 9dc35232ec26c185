"""Kills every long command at random moments, runs it again, and compares the result with that of an undisturbed run.

Full disks, read-only folders, two runs in one folder and closed outputs are tried, too. Commands run in processes
forked from one that has imported everything, on the data of ``soak_cases.py``. Trials that were made are kept in the
runs folder, so an interrupted soak continues where it stopped.
"""

import importlib
import json
import os
import random
import shlex
import shutil
import signal
import statistics
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import trials
from common import run, write
from soak_cases import CASES, Case, prepare
from soak_trials import TRIALS, Undisturbed, copy, kill
from tabulate import tabulate

from tsfm_data.errors import InputError, unknown_name

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT)


def run_undisturbed(name: str, case: Case, inputs: Path, place: Path) -> Undisturbed:
    """Run a case undisturbed three times: to import what it needs, to take its time, and to compare.

    Raises:
        InputError: it fails, or two runs differ.
    """
    seed = place / f"{name.replace(' ', '_')}-seed"
    copy(inputs, seed)
    if case.first:
        succeed(name, trials.run_and_import(case.first, seed, case.before))
    results, seconds = [], []
    for number in range(3):
        work = place / "work"
        copy(seed, work)
        again = trials.run_and_import if number == 0 else lambda *given: trials.start(*given).wait()
        ended = succeed(name, again(case.words, work, case.before))
        results.append(case.result(work))
        seconds.append(ended.seconds)
    if not results[0] or results[1] != results[2]:
        different = sorted(key for key in results[1] if results[1][key] != results[2].get(key))
        raise InputError(f"expected equal results of two undisturbed runs of {name}, found {different}: leave them out")
    return Undisturbed(seed, case.result(seed) if case.first else {}, results[1], min(seconds[1:]))


def succeed(name: str, ended: trials.Ended) -> trials.Ended:
    """Check that a command ended with status 0.

    Raises:
        InputError: it did not.
    """
    if ended.status:
        raise InputError(f"expected {name} to end with status 0, found {ended.status}: {ended.err[-500:]}")
    return ended


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
        for fault in TRIALS:
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
        undisturbed = run_undisturbed(name, CASES[name], inputs, place)
        for row in mine:
            made = run_trial(CASES[name], undisturbed, place / "work", row)
            rows.append({**row, "undisturbed": round(undisturbed.seconds, 3), **made})
            with log.open("a") as handle:
                handle.write(json.dumps(rows[-1]) + "\n")
            for problem in made["problems"]:
                print(f"{name}, {row['fault']} {row['number']}: {problem}", flush=True)
        print(f"{name}: {len(mine)} trials, {undisturbed.seconds:.2f} s undisturbed", flush=True)
    command = f"python benchmarks/soak.py --kills {kills} --faults {faults} --seed {seed}"
    command += f" --commands {shlex.join(commands)}" if commands else ""
    rows = [row for row in rows if row["command"] in names]
    write(output, "soak", rows, summary(rows), page(rows, command))


def run_trial(case: Case, undisturbed: Undisturbed, work: Path, row: dict[str, Any]) -> dict[str, Any]:
    """Make one trial."""
    if row["fault"] == "kill":
        return kill(case, undisturbed, work, row["signal"], row["share"])
    with suppress(FileNotFoundError):
        shutil.rmtree(work)
    return {"problems": TRIALS[row["fault"]](case, undisturbed, work, row["share"])}


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
    for fault in ("kill", *TRIALS):
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
