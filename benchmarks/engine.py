"""Forecasts of a table in many files: on one process, and on Ray with one and two workers.

The rounds alternate between the engines. Rates are from the first part to the last, without the start of the workers,
which the page gives by itself. CPU seconds hardly depend on what else runs on the machine, so they say more than a
ratio of times on a busy one.

    python benchmarks/engine.py
"""

import datetime
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
from common import run, write
from scale import write_long
from tabulate import tabulate

from tsfm import inference
from tsfm.commands.forecast import forecast_part, limited
from tsfm.nn import DEFAULT_LEVELS
from tsfm.weights import default
from tsfm_data.errors import InputError, check_sizes

HORIZON = 12
COMMAND = "import sys; sys.argv[0] = 'tsfm'; from tsfm.commands.cli import main; main()"
ENGINES = {"local": (None, 1), "ray, 1 worker": ("ray", 1), "ray, 2 workers": ("ray", 2)}


def write_parts(folder: Path, parts: int, series: int) -> None:
    """Parts of some series each, 100 steps long."""
    folder.mkdir()
    for part in range(parts):
        write_long(folder / f"part-{part:04}.parquet", series, "by series")


def measure(folder: Path, output: Path, work: inference.Work, engine: str | None, workers: int) -> dict[str, Any]:
    """Forecast all parts; returns times and memory."""
    shutil.rmtree(output, ignore_errors=True)
    ends: list[float] = []

    def timed(*given: Any) -> Generator[dict[str, Any]]:
        for outcome in (inference.run_on_ray if engine else inference.run_locally)(*given):
            ends.append(time.perf_counter())
            yield outcome

    begin = time.perf_counter()
    done = inference.run_parts(str(folder), {}, work, timed, workers)
    if len(done.those("done")) < len(ends):
        raise InputError(f"expected all parts to be done, found {done.those('failed')[:1]}: try again")
    first = done.those("done")[0]["seconds"]
    span = ends[-1] - ends[0] + first  # the first part of each worker began before the first end
    cpu = sum(part["cpu_seconds"] for part in done.those("done"))
    return {
        "series": done.total("series"),
        "seconds": ends[-1] - begin,
        "start": max(0.0, ends[0] - begin - first),
        "series_per_s": done.total("series") / span,
        "cpu_ms_per_series": 1000 * cpu / done.total("series"),
        "peak_mib": max(part["peak_mib"] for part in done.those("done")),
        "workers": len({part["worker"] for part in done.those("done")}),
        "load": os.getloadavg()[0],
    }


def measure_resuming(folder: Path, output: Path, engine: str, parts: int) -> dict[str, Any]:
    """Kill a run when half of its parts are there, and run it again."""
    shutil.rmtree(output, ignore_errors=True)
    words = ["forecast", str(folder), "--horizon", str(HORIZON), "--output", str(output), "--engine", engine]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", COMMAND, *words], env=environment) as process:
        while process.poll() is None and len([*output.glob("[!.]*.parquet")]) < parts // 2:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    time.sleep(3)  # workers of a killed driver end, too
    before = {path.name: path.stat().st_mtime_ns for path in output.glob("[!.]*.parquet")}
    subprocess.run([sys.executable, "-c", COMMAND, *words], env=environment, check=True, stdout=subprocess.DEVNULL)
    after = {path.name: path.stat().st_mtime_ns for path in output.glob("[!.]*.parquet")}
    again = sum(after[name] != stamp for name, stamp in before.items())
    return {"engine": engine, "parts": parts, "at_kill": len(before), "repeated": again, "at_end": len(after)}


def main(
    *,
    parts: int = 8,
    series: int = 512,
    rounds: int = 2,
    growth: int = 4,
    ray: bool = True,
    output: Path = Path(__file__).parent,
) -> None:
    """Measure the engines.

    Args:
        parts: files of the table.
        series: series of a file.
        rounds: measurements of each engine, in alternation.
        growth: how many times as many files the table has with which memory is compared.
        ray: whether Ray is measured, too.
        output: folder for the page.
    """
    check_sizes("give 4, for instance", parts=parts, series=series, rounds=rounds, growth=growth)
    predictor = inference.load_predictor(default())
    options = {"horizon": HORIZON, "levels": DEFAULT_LEVELS, "batch_size": 256, "lower": None, "integer": "false"}
    answer = functools.partial(forecast_part, predictor=predictor, forecasts=functools.partial(limited, **options))
    engines = {name: given for name, given in ENGINES.items() if ray or given[0] is None}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        small, large, target = place / "small", place / "large", place / "out"
        write_parts(small, parts, series)
        write_parts(large, growth * parts, series)
        work = inference.Work(answer, {}, str(target))
        for k in range(rounds):
            for engine, given in engines.items():
                rows.append({"engine": engine, "parts": parts, "round": k + 1, **measure(small, target, work, *given)})
        last = list(engines)[-1]
        for engine in dict.fromkeys(("local", last)):
            found = measure(large, target, work, *engines[engine])
            rows.append({"engine": engine, "parts": growth * parts, "round": 1, **found})
        resumed = [measure_resuming(small, target, kind, parts) for kind in (("local", "ray") if ray else ("local",))]
    summary = {"date": f"{datetime.date.today()}", "cpus": os.cpu_count(), "model": default(), "resumed": resumed}
    write(output, "engine", rows, summary, page(rows, summary, f"--parts {parts} --series {series} --rounds {rounds}"))


def page(rows: list[dict[str, Any]], summary: dict[str, Any], options: str) -> str:
    """The page."""
    columns = {
        "engine": "engine", "parts": "parts", "series": "series", "start": "start, s", "series_per_s": "series/s",
        "cpu_ms_per_series": "CPU ms per series", "peak_mib": "peak MiB per worker", "load": "load",
    }  # fmt: skip
    table = [{title: row[key] for key, title in columns.items()} for row in rows]
    rates = {
        engine: float(np.median([row["series_per_s"] for row in rows if row["engine"] == engine and row["round"]]))
        for engine in dict.fromkeys(row["engine"] for row in rows)
    }
    two, one = rates.get("ray, 2 workers"), rates.get("ray, 1 worker")
    ratio = (
        f" Two workers of Ray forecast {two / one:.2f} times as many series per second as one." if two and one else ""
    )
    killed = [
        f"- {found['engine']}: killed with {found['at_kill']} of {found['parts']} parts; the next run wrote the other "
        f"{found['at_end'] - found['at_kill']}, and {found['repeated']} of the finished ones again."
        for found in summary["resumed"]
    ]
    return "\n".join(
        [
            "# Tables in many files",
            "",
            f"Forecasts of {HORIZON} steps of series of 100 steps by {summary['model']}, on {summary['cpus']} cores "
            f"that other work shares (`load`: runnable processes), {summary['date']}. `start`: until the first worker "
            "began its first part. A worker has one thread." + ratio,
            "",
            f"    python benchmarks/engine.py {options}",
            "",
            tabulate(
                table, headers="keys", tablefmt="github", floatfmt=("", "", "", ".0f", ".1f", ".2f", ".0f", ".1f")
            ),
            "",
            "A run is killed (SIGKILL), and the same command given again:",
            "",
            *killed,
            "",
        ]
    )


if __name__ == "__main__":
    run(main)
