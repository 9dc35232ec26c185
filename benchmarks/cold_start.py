"""A first forecast from a cold start: from the start of the process to the file written, and its peak memory.

Run it by ``python benchmarks/cold_start.py``.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import run, write
from tabulate import tabulate

from tsfm_data.errors import InputError

SERIES, ROWS, HORIZON = 10, 500, 24
MOST_SECONDS, MOST_MIB = 6.0, 1024


def measure(repeats: int, threads: int) -> list[dict[str, Any]]:
    """Forecast a table with the shipped model in a process of its own, several times; the first is not counted.

    Args:
        repeats: counted processes.
        threads: of each.

    Returns:
        A row a process: seconds by the clock, CPU seconds, and the largest resident memory in MiB.

    Raises:
        InputError: fewer than one repeat or thread, or a process that failed.
    """
    if repeats < 1 or threads < 1:
        raise InputError(f"expected repeats and threads of at least 1, found {repeats} and {threads}: change them")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "series.csv"
        write_table(table)
        for number in range(repeats + 1):
            found = once(table, Path(folder) / f"forecast{number}.csv", threads)
            if number:  # the first one reads what it imports from the disk
                rows.append(found)
    return rows


# Starts a command and says its status, seconds, CPU seconds and peak memory. A process counts the memory of the one
# that started it into its peak, so that one has to be small.
LAUNCH = """
import os, sys, time
begin = time.perf_counter()
quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
_, status, usage = os.wait4(os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=quiet), 0)
seconds = time.perf_counter() - begin
print(os.waitstatus_to_exitcode(status), seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss)
"""


def write_table(file: Path, seed: int = 0) -> None:
    """A long table of hourly series: a walk and a daily season."""
    rng = np.random.default_rng(seed)
    hours = np.datetime64("2024-01-01T00", "h") + np.arange(ROWS)
    lines = ["item_id,timestamp,target"]
    for item in range(SERIES):
        values = 50 + rng.normal(size=ROWS).cumsum() + 10 * np.sin(2 * np.pi * np.arange(ROWS) / 24)
        lines += [f"s{item},{hour},{value:.3f}" for hour, value in zip(hours, values, strict=True)]
    file.write_text("\n".join(lines) + "\n")


def once(table: Path, output: Path, threads: int) -> dict[str, float]:
    """One process: what it took.

    Raises:
        InputError: it failed, or wrote no whole forecast.
    """
    words = [sys.executable, "-m", "tsfm", "forecast", str(table), "--horizon", str(HORIZON), "--output", str(output)]
    path = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}
    launched = subprocess.run(
        [sys.executable, "-S", "-c", LAUNCH, *words], env=environment, stdout=subprocess.PIPE, text=True, check=False
    )
    status, seconds, cpu, peak = map(float, launched.stdout.split())
    lines = output.read_text().count("\n") if output.is_file() else 0
    if status or lines != 1 + SERIES * HORIZON:
        raise InputError(f"expected a forecast of {SERIES} series, found status {status:.0f}: see above")
    kib = peak / (1024 if sys.platform == "darwin" else 1)  # macOS says bytes, Linux KiB
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_mib": kib / 1024}


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians and ranges, and whether the aims are met."""
    found: dict[str, Any] = {"processes": len(rows)}
    for key in ("seconds", "cpu_seconds", "peak_mib"):
        values = [row[key] for row in rows]
        found[key] = {"median": float(np.median(values)), "least": min(values), "most": max(values)}
    found["met"] = bool(found["seconds"]["median"] < MOST_SECONDS and found["peak_mib"]["most"] < MOST_MIB)
    return found


def to_markdown(rows: list[dict[str, Any]], threads: int, command: str) -> str:
    """The page ``benchmarks/cold_start.md``."""
    import platform
    from importlib.metadata import version

    whole = summarise(rows)
    names = {"seconds": "seconds by the clock", "cpu_seconds": "CPU seconds", "peak_mib": "peak memory, MiB"}
    aims = {"seconds": f"< {MOST_SECONDS:g}", "cpu_seconds": "", "peak_mib": f"< {MOST_MIB:,}"}
    table = [
        {"": names[key], "aim": aims[key], **{name: f"{value:,.1f}" for name, value in whole[key].items()}}
        for key in names
    ]
    lines = [
        "# Cold start",
        "",
        f"`tsfm forecast` with the shipped model on a CSV of {SERIES} series of {ROWS} hours, {HORIZON} steps each:",
        f"from the start of the process to its end, the file written; {len(rows)} processes one after the other,",
        f"{threads} threads each, after one that is not counted (what it imports is then in memory). Memory: the",
        "largest resident set.",
        f"Python {platform.python_version()}, PyTorch {version('torch')}, pandas {version('pandas')}.",
        "",
        f"    {command}",
        "",
        tabulate(table, headers="keys", tablefmt="github", disable_numparse=True),
        "",
    ]
    return "\n".join(lines)


def main(output: Path = Path("benchmarks"), repeats: int = 5, threads: int = 2) -> None:
    """Time tsfm forecast with the shipped model from the start of the process to the file written; its peak memory.

    Args:
        output: folder for cold_start.md and cold_start.json.
        repeats: counted processes, one after the other.
        threads: of each.
    """
    rows = measure(repeats, threads)
    command = "python benchmarks/cold_start.py" + (f" --repeats {repeats}" if repeats != 5 else "")
    command += f" --threads {threads}" if threads != 2 else ""
    write(output, "cold_start", rows, summarise(rows) | {"command": command}, to_markdown(rows, threads, command))


if __name__ == "__main__":
    run(main)
