"""Time and peak memory of a first forecast, from the start of the process to the written file.

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
    """Forecast a table with the default model in a fresh process, several times; the first is not counted.

    Args:
        repeats: counted processes.
        threads: threads per process.

    Returns:
        One row per process: wall time and CPU time in seconds, and the largest resident memory in MiB.

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
            row = once(table, Path(folder) / f"forecast{number}.csv", threads)
            if number:  # the first one reads the libraries from the disk
                rows.append(row)
    return rows


# Starts a command and prints its status, wall time, CPU time and peak memory. The peak of a process includes the memory
# of the process that started it, so this one is kept small.
LAUNCH = """
import os, sys, time
begin = time.perf_counter()
quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
_, status, usage = os.wait4(os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=quiet), 0)
seconds = time.perf_counter() - begin
print(os.waitstatus_to_exitcode(status), seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss)
"""


def write_table(file: Path, seed: int = 0) -> None:
    """A long table of hourly series: random walks with a daily season."""
    rng = np.random.default_rng(seed)
    hours = np.datetime64("2024-01-01T00", "h") + np.arange(ROWS)
    lines = ["item_id,timestamp,target"]
    for item in range(SERIES):
        values = 50 + rng.normal(size=ROWS).cumsum() + 10 * np.sin(2 * np.pi * np.arange(ROWS) / 24)
        lines += [f"s{item},{hour},{value:.3f}" for hour, value in zip(hours, values, strict=True)]
    file.write_text("\n".join(lines) + "\n")


def once(table: Path, output: Path, threads: int) -> dict[str, float]:
    """Time and memory of one process.

    Raises:
        InputError: it failed, or did not write the whole forecast.
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
    kib = peak / (1024 if sys.platform == "darwin" else 1)  # bytes on macOS, KiB on Linux
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_mib": kib / 1024}


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians and ranges, and whether the aims are met."""
    summary: dict[str, Any] = {"processes": len(rows)}
    for key in ("seconds", "cpu_seconds", "peak_mib"):
        values = [row[key] for row in rows]
        summary[key] = {"median": float(np.median(values)), "least": min(values), "most": max(values)}
    summary["met"] = bool(summary["seconds"]["median"] < MOST_SECONDS and summary["peak_mib"]["most"] < MOST_MIB)
    return summary


def to_markdown(rows: list[dict[str, Any]], threads: int, command: str) -> str:
    """The page ``benchmarks/cold_start.md``."""
    import platform
    from importlib.metadata import version

    whole = summarise(rows)
    names = {"seconds": "wall time, s", "cpu_seconds": "CPU time, s", "peak_mib": "peak memory, MiB"}
    aims = {"seconds": f"< {MOST_SECONDS:g}", "cpu_seconds": "", "peak_mib": f"< {MOST_MIB:,}"}
    table = [
        {"": names[key], "aim": aims[key], **{name: f"{value:,.1f}" for name, value in whole[key].items()}}
        for key in names
    ]
    lines = [
        "# Cold start",
        "",
        "Time and memory of `tsfm forecast` with the default model, from the start of the process to the written file.",
        f"The input is a CSV file of {SERIES} series of {ROWS} hourly values; {HORIZON} steps are forecast.",
        f"{len(rows)} processes ran one after the other, with {threads} threads each. Another one ran before them and",
        "is not counted: it brings the libraries into the file cache. Memory is the largest resident set.",
        f"Python {platform.python_version()}, PyTorch {version('torch')}, pandas {version('pandas')}.",
        "",
        f"    {command}",
        "",
        tabulate(table, headers="keys", tablefmt="github", disable_numparse=True),
        "",
    ]
    return "\n".join(lines)


def main(output: Path = Path("benchmarks"), repeats: int = 5, threads: int = 2) -> None:
    """Measure time and peak memory of tsfm forecast, from the start of the process to the written file.

    Args:
        output: folder for cold_start.md and cold_start.json.
        repeats: counted processes, one after the other.
        threads: threads per process.
    """
    rows = measure(repeats, threads)
    command = "python benchmarks/cold_start.py" + (f" --repeats {repeats}" if repeats != 5 else "")
    command += f" --threads {threads}" if threads != 2 else ""
    write(output, "cold_start", rows, summarise(rows) | {"command": command}, to_markdown(rows, threads, command))


if __name__ == "__main__":
    run(main)
