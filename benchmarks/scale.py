"""A million series of a hundred steps, and other large tables, under a hard limit of memory.

Each command runs in its own process, which is killed if its resident memory exceeds the limit. Peak is the largest
resident memory of the process (VmHWM), libraries included.

    python benchmarks/scale.py --series 1000000
"""

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from common import run, write
from inference import bolt_sizes
from tabulate import tabulate

from tsfm.models import ChronosBolt
from tsfm.weights import default, load_named, save
from tsfm_data.errors import InputError, check_sizes
from tsfm_data.io import atomic_file

STEPS, HORIZON = 100, 12
LIMIT = 2048  # MiB
COMMAND = "import sys; sys.argv[0] = 'tsfm'; from tsfm.commands.cli import main; main()"
PEER = """
import sys, time
import pandas as pd
from statsforecast import StatsForecast
from statsforecast.models import AutoTheta, SeasonalNaive

path, name, rows = sys.argv[1:]
frame = pd.read_parquet(path).head(int(rows)).set_axis(["unique_id", "ds", "y"], axis="columns")
model = {"SeasonalNaive": SeasonalNaive, "AutoTheta": AutoTheta}[name](season_length=7)
begin = time.perf_counter()
StatsForecast(models=[model], freq="D", n_jobs=2).forecast(df=frame, h=12, level=[80])
print(time.perf_counter() - begin)
"""
Order = Literal["by series", "by time"]


@dataclass
class Watched:
    """A command that was watched.

    Attributes:
        seconds: until it ended.
        status: its exit status.
        peak: largest resident memory in MiB; anon and file: of its own pages, and of pages of mapped files.
        done: pieces of the output and resident memory over time.
        said: what it printed.
    """

    seconds: float = 0.0
    status: int = 0
    peak: int = 0
    anon: int = 0
    file: int = 0
    done: list[tuple[int, int]] = field(default_factory=list)
    said: str = ""


def watch(words: list[str], limit: int = LIMIT, pieces: Path | None = None, stop_at: int | None = None) -> Watched:
    """Run a Python process and watch its memory.

    Args:
        words: its arguments.
        limit: MiB of resident memory at which it is killed.
        pieces: folder with a file for each finished piece of the output.
        stop_at: number of pieces at which it is killed.
    """
    result, begin = Watched(), time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        reader = threading.Thread(
            target=lambda: setattr(result, "said", process.stdout.read() if process.stdout else "")
        )
        reader.start()
        while process.poll() is None:
            memory = memory_of(process.pid)
            result.peak = max(result.peak, memory.get("VmHWM", 0))
            result.anon = max(result.anon, memory.get("RssAnon", 0) + memory.get("RssShmem", 0))
            result.file = max(result.file, memory.get("RssFile", 0))
            finished = len([*pieces.glob("0*")]) if pieces is not None and pieces.is_dir() else 0
            result.done.append((finished, memory.get("VmRSS", 0)))
            if memory.get("VmRSS", 0) > limit or (stop_at is not None and finished >= stop_at):
                process.kill()
            time.sleep(0.1)
        reader.join()
        result.status = process.returncode
    result.seconds = time.perf_counter() - begin
    return result


def memory_of(pid: int) -> dict[str, int]:
    """The fields of memory in /proc/PID/status, in MiB; Linux only."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in lines if line.startswith(("Vm", "Rss")))
    return {name: int(value.split()[0]) >> 10 for name, value in pairs}


def write_long(path: Path, series: int, order: Order) -> None:
    """A long table of daily random walks with a weekly season, as Parquet or CSV."""
    rng = np.random.default_rng(0)
    days = np.datetime64("2024-01-01", "s") + np.arange(STEPS) * np.timedelta64(86_400, "s")
    season = 3 * np.sin(2 * np.pi * np.arange(STEPS) / 7)
    names, begin = np.array([f"series-{i:07}" for i in range(series)]), 0
    blocks = max(1, series // 10_000) if order == "by series" else STEPS
    schema = pa.schema([("item_id", pa.string()), ("timestamp", pa.timestamp("s")), ("target", pa.float64())])
    last = np.zeros(series)
    writer: Any = (pyarrow.csv.CSVWriter if path.suffix == ".csv" else pyarrow.parquet.ParquetWriter)(path, schema)
    with writer:
        for block in range(blocks):
            if order == "by time":
                last += rng.normal(size=series)
                ids, stamps, values = names, np.repeat(days[block], series), last + season[block]
            else:
                ids = names[begin : (block + 1) * series // blocks]
                begin += len(ids)
                values = (rng.normal(size=(len(ids), STEPS)).cumsum(1) + season).reshape(-1)
                stamps = np.tile(days, len(ids))
                ids = np.repeat(ids, STEPS)
            writer.write_table(pa.table([ids, stamps, np.round(values, 3)], schema=schema))


def write_wide(path: Path, columns: int) -> None:
    """A wide table of many columns."""
    days = np.datetime64("2024-01-01", "s") + np.arange(STEPS) * np.timedelta64(86_400, "s")
    values = np.random.default_rng(0).normal(size=(columns, STEPS)).cumsum(1).round(3)
    pyarrow.parquet.write_table(pa.table({"date": days, **{f"v{i}": values[i] for i in range(columns)}}), path)


def write_tall(path: Path, rows: int) -> None:
    """A table of one long series."""
    minutes = np.datetime64("2000-01-01", "s") + np.arange(rows) * np.timedelta64(60, "s")
    values = np.random.default_rng(0).normal(size=rows) + 10 * np.sin(np.arange(rows) / 1440 * 2 * np.pi)
    table = pa.table({"date": minutes, "y": values.round(3)})
    (pyarrow.csv.write_csv if path.suffix == ".csv" else pyarrow.parquet.write_table)(table, path)


def write_bolt(folder: Path) -> int:
    """A Chronos-Bolt with random weights and as many parameters as the default model; returns their number."""
    size = sum(p.numel() for p in load_named(default(), ()).parameters())
    model = ChronosBolt(512, 64, bolt_sizes(size))
    save(model.eval(), folder)
    return sum(p.numel() for p in model.parameters())


def forecast(table: Path, model: str, stop_at: int | None = None) -> Watched:
    """Run ``tsfm forecast`` on a table."""
    output = table.with_name("forecast.parquet")
    words = ["-c", COMMAND, "forecast", str(table), "--horizon", str(HORIZON), "--model", model]
    pieces = output.with_name(f".{output.name}.pieces")
    return watch([*words, "--output", str(output), "--overwrite"], pieces=pieces, stop_at=stop_at)


def row(what: str, model: str, series: int, found: Watched) -> dict[str, Any]:
    """A row of the table of measurements.

    Raises:
        InputError: the command failed.
    """
    if found.status:
        raise InputError(f"{what}, {model}: expected status 0, found {found.status} at {found.peak} MiB: {found.said}")
    rates = {"seconds": found.seconds, "series_per_s": series / found.seconds}
    memory = {"peak_mib": found.peak, "anon_mib": found.anon, "file_mib": found.file}
    return {"what": what, "model": model, "series": series, **rates, **memory, "load": os.getloadavg()[1]}


def measure_peers(table: Path, series: int, theta: int) -> list[dict[str, Any]]:
    """StatsForecast on the first series of a table, two processes."""
    rows = []
    for name, count in (("SeasonalNaive", series), ("AutoTheta", theta)):
        found = watch(["-c", PEER, str(table), name, str(count * STEPS)], limit=1 << 20)
        made = row("in memory, without reading and writing", f"StatsForecast {name}", count, found)
        seconds = float(found.said.split()[-1])
        rows.append(made | {"seconds": seconds, "series_per_s": count / seconds})
    return rows


def measure_resuming(table: Path, model: str) -> dict[str, float]:
    """Seconds of an undisturbed run, and of one killed at half of its parts and run again; empty if it has one part."""
    whole = forecast(table, model)
    parts = max(done for done, _ in whole.done)
    if parts < 2:
        return {}
    killed = forecast(table, model, stop_at=parts // 2)
    rest = forecast(table, model)
    if killed.status == 0 or rest.status or whole.status:
        raise InputError(f"expected a killed run and one that goes on, found {killed.status}, {rest.status}: try again")
    return {"undisturbed": whole.seconds, "killed": killed.seconds, "rest": rest.seconds}


def draw(curves: dict[int, Watched], path: Path) -> None:
    """Resident memory against series done."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    for series, found in curves.items():
        parts = max(1, max(done for done, _ in found.done))
        axes.plot(
            [series * done / parts for done, _ in found.done],
            [mib for _, mib in found.done],
            label=f"{series:,} series",
        )
    axes.axhline(LIMIT, color="black", linestyle=":", linewidth=1)
    axes.set(xlabel="series done", ylabel="resident memory (MiB)", ylim=(0, 1.1 * LIMIT))
    axes.legend(frameon=False)
    with atomic_file(path) as file:
        figure.savefig(file, format="svg")


def main(
    *,
    series: int = 1_000_000,
    slow: int = 200_000,
    theta: int = 200,
    columns: int = 100_000,
    rows: int = 10_000_000,
    output: Path = Path(__file__).parent,
    folder: Path | None = None,
) -> None:
    """Measure forecasts of large tables.

    Args:
        series: series of the largest table.
        slow: series for neural models and for resuming.
        theta: series for AutoTheta.
        columns: columns of the wide table.
        rows: rows of the tall table.
        output: folder for the page.
        folder: folder for tables, which may take 10 GB; the temporary folder by default.
    """
    check_sizes("give 1000, for instance", series=series, slow=slow, theta=theta, columns=columns, rows=rows)
    options = f"--series {series} --slow {slow} --theta {theta} --columns {columns} --rows {rows}"
    page = Page(output, f"python benchmarks/scale.py {options}")
    with tempfile.TemporaryDirectory(dir=folder) as name:
        place = Path(name)

        def case(what: str, file: str, count: int, model: str, make: Callable[[Path], None], label: str = "") -> None:
            table = place / file
            if not table.exists():
                make(table)
            page.add(row(what, label or model, count, seen := forecast(table, model)), seen)

        def long(order: Order, count: int) -> Callable[[Path], None]:
            return lambda path: write_long(path, count, order)

        what = "long Parquet, by series"
        for count in dict.fromkeys((max(1, series // 100), max(1, series // 10), series)):
            case(what, f"{count}.parquet", count, "seasonal-naive", long("by series", count))
        case("long CSV, by series", "long.csv", slow, "seasonal-naive", long("by series", slow))
        case("long Parquet, by time", "time.parquet", slow, "seasonal-naive", long("by time", slow))
        case(what, "slow.parquet", slow, default(), long("by series", slow))
        label = f"Chronos-Bolt, {write_bolt(place / 'bolt'):,} random weights"
        case(what, "slow.parquet", slow, str(place / "bolt"), long("by series", slow), label)
        wide = f"wide Parquet, {columns:,} columns"
        case(wide, "wide.parquet", columns, "seasonal-naive", lambda path: write_wide(path, columns))
        for suffix in (".parquet", ".csv"):
            tall = f"one series, {rows:,} rows, {suffix[1:]}"
            case(tall, f"tall{suffix}", 1, "seasonal-naive", lambda path: write_tall(path, rows))
        for made in measure_peers(place / f"{series}.parquet", slow, theta):
            page.add(made)
        page.resuming = measure_resuming(place / "slow.parquet", default())
        page.complete = True
        page.write()


@dataclass
class Page:
    """The page, which is written after every case.

    Attributes:
        output: its folder.
        command: what measures it.
        rows: measurements.
        curves: commands in parts by number of series, for the figure.
        resuming: as ``measure_resuming``.
        complete: whether all cases are measured.
    """

    output: Path
    command: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    curves: dict[int, Watched] = field(default_factory=dict)
    resuming: dict[str, float] = field(default_factory=dict)
    complete: bool = False

    def add(self, made: dict[str, Any], seen: Watched | None = None) -> None:
        """Add a case."""
        self.rows.append(made)
        if seen is not None and made["series"] not in self.curves and max((done for done, _ in seen.done), default=0):
            self.curves[made["series"]] = seen
        self.write()

    def write(self) -> None:
        """Write page, JSON and figure."""
        if self.curves:
            draw(self.curves, self.output / "scale.svg")
        text = to_markdown(self.rows, self.resuming, self.command, bool(self.curves), self.complete)
        write(self.output, "scale", self.rows, {"limit_mib": LIMIT, "resuming": self.resuming}, text)


def to_markdown(
    rows: list[dict[str, Any]], resuming: dict[str, float], command: str, figure: bool = True, complete: bool = True
) -> str:
    """The page ``benchmarks/scale.md``."""
    head = ["table", "model", "series", "seconds", "series / s", "peak MiB", "own MiB", "mapped files MiB", "load"]
    cells = [
        [r["what"], r["model"], f"{r['series']:,}", f"{r['seconds']:.1f}", f"{r['series_per_s']:,.0f}"]
        + [f"{r[key]:,}" for key in ("peak_mib", "anon_mib", "file_mib")]
        + [f"{r['load']:.1f}" if "load" in r else ""]
        for r in rows
    ]
    text = [
        "# Large tables",
        "",
        f"`tsfm forecast` of {STEPS} daily steps per series, {HORIZON} steps ahead at nine quantile levels, from file",
        f"to file with all checks, in a process that is killed above {LIMIT:,} MiB of resident memory. Peak is VmHWM",
        "of the whole process; own is RssAnon and RssShmem, mapped files RssFile (mostly libraries). StatsForecast",
        "runs in memory on the first series of the same table, without a limit and with two processes, of which only",
        "the first is counted; its time is that of `forecast` alone. Chronos-Bolt is ours, as large as the zero-shot",
        "model, with random weights. Load is the mean number of processes that wanted a processor in the last five",
        "minutes; if it exceeds the number of processors, a quiet machine is faster.",
        "",
        f"    {command}",
        "",
        tabulate(cells, head, tablefmt="github", disable_numparse=True),
        "",
        *(["![Resident memory against series done](scale.svg)", ""] if figure else []),
        *([] if complete else ["The command was stopped; the other cases are not measured yet.", ""]),
    ]
    if resuming:
        again, whole = resuming["killed"] + resuming["rest"], resuming["undisturbed"]
        text += [
            f"A run of the zero-shot model that was killed at half and run again took {again:.1f} s in all, an",
            f"undisturbed one {whole:.1f} s: {100 * (again / whole - 1):.0f} % more.",
            "",
        ]
    return "\n".join(text)


if __name__ == "__main__":
    run(main)
