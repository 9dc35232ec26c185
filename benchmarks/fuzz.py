"""Damaged files of every format that we read, each read by the product's own reader in a child process.

Run it by ``python benchmarks/fuzz.py --inputs 1000000``. A second run goes on where the first one ended.
"""

import json
import shutil
import subprocess
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import fuzz_records
import fuzz_tables
from common import run, write
from fuzzing import ENDINGS, Limits, Part, Target, try_parts
from tabulate import tabulate

from tsfm_data.errors import InputError, check_sizes, unknown_name
from tsfm_data.progress import progress

FOLDER = Path(__file__).resolve().parent
PART = 500  # inputs of one child process
TARGETS: dict[str, Target] = {target.kind: target for target in (*fuzz_tables.TARGETS, *fuzz_records.TARGETS)}


def fuzz(
    *,
    inputs: int = 100_000,
    kinds: list[str] | None = None,
    seed: int = 0,
    workers: int = 1,
    seconds: float = 20,
    memory: int = 1024,
    state: Path = Path("report/fuzz"),
    output: Path = FOLDER,
    fresh: bool = False,
) -> None:
    """Read damaged files, and write what they ended in.

    Args:
        inputs: number of files, shared by the kinds; those of earlier runs count.
        kinds: kinds of files; by default all.
        seed: of the damage.
        workers: child processes at a time.
        seconds: CPU time that one file may take.
        memory: MiB that one file may take.
        state: folder for the results so far, and for files that ended in something else than a table or a line.
        output: folder for the page.
        fresh: forget the results of earlier runs.
    """
    check_sizes(inputs=inputs, workers=workers, memory=memory)
    for kind in kinds or ():
        if kind not in TARGETS:
            raise unknown_name("kind", kind, TARGETS)
    log = state / "parts.jsonl"
    if fresh:
        shutil.rmtree(state, ignore_errors=True)
    state.mkdir(parents=True, exist_ok=True)
    chosen = [TARGETS[kind] for kind in dict.fromkeys(kinds or TARGETS)]
    earlier = {(part["kind"], part["seed"], part["start"]) for part in _lines(log)}
    each = -(-inputs // len(chosen))
    starts = [(start, target.kind) for start in range(0, each, PART) for target in chosen]
    parts = [Part(kind, start, start + PART) for start, kind in starts if (kind, seed, start) not in earlier]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=FOLDER, capture_output=True, text=True)
    begin = time.perf_counter()
    with log.open("a") as file:
        results = try_parts(chosen, parts, state, seed, Limits(seconds, memory), workers)
        for part in progress(results, "parts", total=len(parts)):
            line = {"kind": part.kind, "seed": seed, "start": part.start, "commit": commit.stdout.strip()}
            line |= {"endings": part.done, "slowest": part.slowest, "memory": part.memory}
            file.write(json.dumps(line | {"seconds": time.perf_counter() - begin}) + "\n")
            file.flush()
    page(_lines(log), output, Limits(seconds, memory))


def _lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def page(parts: list[dict[str, Any]], output: Path, limits: Limits) -> None:
    """Write the page of all parts so far."""
    if not parts:
        raise InputError("expected results, found none: give --inputs 1000")
    by_kind: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for part in parts:
        by_kind[part["kind"]].append(part)
    rows = []
    for kind, own in by_kind.items():
        endings = sum((Counter(part["endings"]) for part in own), Counter[str]())
        row: dict[str, Any] = {"kind": kind, "inputs": endings.total()}
        row |= {ending: endings[ending] for ending in ENDINGS}
        row |= {"slowest, s": round(max(part["slowest"] for part in own), 2)}
        rows.append(row | {"most memory, MiB": round(max(part["memory"] for part in own))})
    total = {name: sum(row[name] for row in rows) for name in ("inputs", *ENDINGS)}
    commits = sorted({part["commit"] for part in parts})
    seeds = sorted({part["seed"] for part in parts})
    summary = total | {"seeds": seeds, "commits": commits}
    summary |= {"seconds allowed": limits.seconds, "MiB allowed": limits.memory}
    last = {"kind": "all", **total, "slowest, s": max(row["slowest, s"] for row in rows)}
    last |= {"most memory, MiB": max(row["most memory, MiB"] for row in rows)}
    table = tabulate([row.values() for row in (*rows, last)], list(rows[0]), "github", intfmt=",")
    text = f"""# Damaged files

{total["inputs"]:,} files were damaged at random (bytes, words, types, structure) and read by the product's own
readers, each in a child process that may take {limits.seconds:g} s of CPU time and {limits.memory:,} MiB.
Right results are a value (`read`) and one line that says what is wrong (`refused`); a warning counts as an exception.
Memory is what the process took beyond that of its beginning.

`python benchmarks/fuzz.py --inputs {total["inputs"]} --kinds {" ".join(by_kind)}`, seed {", ".join(map(str, seeds))},
commits {", ".join(commits)}

{table}
"""
    write(output, "fuzz", rows, summary, text)


if __name__ == "__main__":
    run(fuzz)
