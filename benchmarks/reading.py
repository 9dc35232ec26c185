"""Time to read clean tables, compared with an earlier version of the code.

Run it by ``python benchmarks/reading.py --before ROOT``, where ROOT is a checkout of the earlier version
(``git worktree add ROOT COMMIT``). Both versions read in turns, each in its own process; CPU time is counted.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from common import run, write
from tabulate import tabulate

from tsfm_data.errors import InputError, check_sizes

FOLDER = Path(__file__).resolve().parent
# What each process does: it reads the files that it is told, and says how many seconds that took.
CHILD = """
import sys, time
from pathlib import Path
from tsfm_data.io import read_series
for line in sys.stdin:
    begin = time.process_time()
    read_series(Path(line.strip()))
    print(time.process_time() - begin, flush=True)
"""


def reading(*, before: Path, rounds: int = 9, output: Path = FOLDER) -> None:
    """Read clean tables with this version and an earlier one.

    Args:
        before: the root of a checkout of the earlier version.
        rounds: times that each table is read by each version, after one that is not counted.
        output: folder for the page.
    """
    check_sizes(rounds=rounds)
    if not (before / "data/tsfm_data").is_dir():
        raise InputError(f"expected a checkout with data/tsfm_data, found {before}: give --before ROOT")
    with tempfile.TemporaryDirectory() as folder:
        tables = write_tables(Path(folder))
        children = [_start(root) for root in (before.resolve(), FOLDER.parent)]
        rows = [_compare(kind, path, children, rounds) for kind, path in tables.items()]
        for child in children:
            child.communicate()
    worst = max(row["ratio"] for row in rows)
    commits = [_commit(root) for root in (before, FOLDER.parent)]
    table = tabulate([row.values() for row in rows], list(rows[0]), "github", floatfmt=".3f", intfmt=",")
    text = f"""# Reading clean tables

CPU time of `read_series`: medians of {rounds} rounds in which both versions read the same file in turns, commit
{commits[0]} (before) and {commits[1]} (now). `ratio` is the median of the ratios of the rounds.

`python benchmarks/reading.py --before ROOT`

{table}

The largest ratio is {worst:.2f}.
"""
    write(output, "reading", rows, {"before": commits[0], "now": commits[1], "rounds": rounds, "worst": worst}, text)


def write_tables(folder: Path) -> dict[str, Path]:
    """Clean tables, by kind: long and wide ones."""
    rng = np.random.default_rng(0)
    stamps = pd.date_range("2024-01-01", periods=500, freq="h")
    long = pd.DataFrame(
        {
            "id": np.repeat([f"series {i}" for i in range(400)], 500),
            "timestamp": np.tile(stamps, 400),
            "target": rng.standard_normal(200_000).cumsum().round(4),
        }
    )
    wide = pd.DataFrame(rng.standard_normal((2000, 300)).round(4), columns=[f"v{i}" for i in range(300)])
    wide.insert(0, "date", pd.date_range("2024-01-01", periods=2000, freq="h"))
    words = long.assign(target=long["target"].map("{:,.2f} €".format))
    names = {"long CSV": "long.csv", "wide CSV": "wide.csv", "long CSV of text": "words.csv"}
    names |= {"long CSV, packed": "long.csv.gz", "long Parquet": "long.parquet", "wide Parquet": "wide.parquet"}
    paths = {kind: folder / name for kind, name in (names | {"long Arrow": "long.arrow"}).items()}
    long.to_csv(paths["long CSV"], index=False)
    wide.to_csv(paths["wide CSV"], index=False)
    words.to_csv(paths["long CSV of text"], index=False)
    long.to_csv(paths["long CSV, packed"], index=False)
    long.to_parquet(paths["long Parquet"])
    wide.to_parquet(paths["wide Parquet"])
    table = pa.Table.from_pandas(long)
    with pa.ipc.new_file(paths["long Arrow"], table.schema) as writer:
        writer.write_table(table)
    return paths


def _start(root: Path) -> "subprocess.Popen[str]":
    packages = os.pathsep.join(str(root / name) for name in (".", "data", "vision"))
    environment = {**os.environ, "PYTHONPATH": packages, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=pipe, stdout=pipe, text=True, env=environment, cwd=root
    )


def _compare(kind: str, path: Path, children: "list[subprocess.Popen[str]]", rounds: int) -> dict[str, Any]:
    """Seconds of both versions, and their ratio."""
    times: list[list[float]] = []
    for _ in range(rounds + 1):
        times.append([_ask(child, path) for child in children])
    before, now = zip(*times[1:], strict=True)
    ratio = statistics.median(b / a for a, b in times[1:])
    seconds = {"before, s": statistics.median(before), "now, s": statistics.median(now)}
    return {"table": kind, "MB": round(path.stat().st_size / 1e6, 1), **seconds, "ratio": ratio}


def _ask(child: "subprocess.Popen[str]", path: Path) -> float:
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(f"{path}\n")
    child.stdin.flush()
    return float(child.stdout.readline())


def _commit(root: Path) -> str:
    words = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, cwd=root, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    run(reading)
