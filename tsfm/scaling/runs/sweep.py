"""Runs the cells of ``tsfm scaling sweep`` in parallel, writes the ledger and reports progress.

The state of a sweep is its files, so any process may be killed and started again. Every cell runs in its own process
by the command ``tsfm scaling sweep GRID --output DIR --index K``, whether on this machine, a Ray cluster or SLURM.
"""

import csv
import math
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol, runtime_checkable

import numpy as np
from annotated_types import Len
from filelock import FileLock
from scipy.optimize import nnls
from typing_extensions import TypedDict

from tsfm.scaling.runs.cell import FAILED, HINT, ROWS, Train, best_lr, read_row, run_cell, scanned, write_json
from tsfm.scaling.runs.grid import Cell, Grid, cells, pieces
from tsfm_data.errors import InputError, reason_of
from tsfm_data.io import atomic_file, read_record

LEDGER = "ledger.csv"
TRIES = 2
POLL = 0.2  # seconds between looks at the running jobs
PARENT = "TSFM_SWEEP_PROCESS"  # environment variable of a cell: the process of its sweep
GRACE = 10.0  # seconds that jobs have to end when they are asked to
FAILED_STATUS = 2  # exit status of a cell that failed twice and recorded why


class Failed(TypedDict):
    """The content of ``failed.json``."""

    reasons: Annotated[list[str], Len(1)]


@runtime_checkable
class Job(Protocol):
    """A running cell."""

    def poll(self) -> int | None:
        """Exit status, or None while it runs."""

    def terminate(self) -> None:
        """Ask it to end; it then ends the command that it runs."""

    def kill(self) -> None:
        """End it at once."""


def run_index(grid: Grid, index: int, folder: Path, train: Train) -> None:
    """Run one cell in this process, twice if it fails, and update the ledger.

    Args:
        grid: the grid.
        index: number of the cell.
        folder: folder of the sweep.
        train: trains by the command-line arguments of ``tsfm fit``.

    Raises:
        InputError: no such cell, or it failed twice.
    """
    end_with_parent()
    every = cells(grid)
    if not 0 <= index < len(every):
        raise InputError(f"expected an index from 0 to {len(every) - 1}, found {index}")
    reasons: list[str] = []
    for _ in range(TRIES):
        try:
            run_cell(grid, every[index], folder, train)
            break
        except Exception as error:  # whatever a training raises is recorded, and a reason to try again
            reasons.append(f"{type(error).__name__}: {reason_of(error, 500)}")
            record_failure(grid, every[index], folder, reasons)
    write_ledger(grid, folder)
    if len(reasons) == TRIES:
        raise InputError(f"cell {index} ({describe(every[index])}) failed {TRIES} times: {reasons[-1]}")


def record_failure(grid: Grid, cell: Cell, folder: Path, reasons: list[str]) -> None:
    """Write the reasons why a cell failed to its folder."""
    try:
        lr = cell.lr if cell.lr is not None else best_lr(grid, cell, folder)
    except InputError:
        return
    write_json(folder / "runs" / cell.name(lr) / FAILED, {"reasons": reasons})


def describe(cell: Cell) -> str:
    """A cell as text for the user."""
    rate = f", learning rate {cell.lr:g}" if cell.scan else ""
    return f"{cell.arch} {cell.size}, data {cell.data}, seed {cell.seed}{rate}"


def command_of(grid_file: Path, folder: Path, index: int | str) -> list[str]:
    """The command line of one cell."""
    words = ["scaling", "sweep", str(grid_file.resolve()), "--output", str(folder.resolve()), "--index", str(index)]
    return [sys.executable, "-m", "tsfm", *words]


def start_local(command: Sequence[str], log: Path) -> Job:
    """Start a cell as a process with one thread, which ends if this process does."""
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", PARENT: str(os.getpid())}
    with log.open("a") as handle:
        return subprocess.Popen(command, stdout=handle, stderr=subprocess.STDOUT, env=environment)


def end_with_parent() -> None:
    """In a cell that ``start_local`` started: end this process soon after that of the sweep was killed."""
    parent = os.environ.pop(PARENT, None)
    if parent is None:
        return

    def watch() -> None:
        while str(os.getppid()) == parent:
            time.sleep(POLL)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def sweep(
    grid: Grid,
    grid_file: Path,
    folder: Path,
    jobs: int = 1,
    start: Callable[[Sequence[str], Path], Job] = start_local,
    show: Callable[[str], None] = print,
) -> list[str]:
    """Run all cells that are not done.

    Args:
        grid: the grid.
        grid_file: the file of the grid.
        folder: folder of the sweep.
        jobs: number of cells that run at once.
        start: starts a job by its command line and a file for its output.
        show: called with each line of progress.

    Returns:
        The last reason of every cell that failed.
    """
    every = cells(grid)
    progress = Progress(grid, every, folder, jobs, show)
    failed: list[str] = []
    for scan in (True, False):  # the other cells need the best learning rates
        waiting = [k for k, cell in enumerate(every) if cell.scan == scan and not is_done(grid, cell, folder)]
        running: dict[int, tuple[Job, Path]] = {}
        killed: set[int] = set()
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    index = waiting.pop(0)
                    log = folder / "logs" / f"{index}.txt"
                    running[index] = start(command_of(grid_file, folder, index), log), log
                time.sleep(POLL)
                progress.show_new_rows()
                for index, (job, log) in list(running.items()):
                    status = job.poll()
                    if status is None:
                        continue
                    del running[index]
                    if is_done(grid, every[index], folder):
                        continue
                    reason = (
                        last_line(log) if status == FAILED_STATUS else f"ended with status {status}: {last_line(log)}"
                    )
                    if status != FAILED_STATUS:  # the process died, so it could not try again itself
                        record_failure(grid, every[index], folder, [reason])
                        if index not in killed:
                            killed.add(index)
                            waiting.append(index)
                            show(f"again: {describe(every[index])}: {reason}")
                            continue
                    failed.append(f"{describe(every[index])}: {reason}")
                    show(f"failed: {failed[-1]}")
        finally:
            stop([job for job, _ in running.values()])
    progress.show_new_rows()
    write_ledger(grid, folder)
    return failed


def stop(jobs: Sequence[Job]) -> None:
    """End jobs and wait until they have ended."""
    for job in jobs:
        job.terminate()
    end = time.monotonic() + GRACE
    while any(job.poll() is None for job in jobs):
        time.sleep(POLL)
        if time.monotonic() > end:
            for job in jobs:
                job.kill()


def last_line(log: Path) -> str:
    """The last line of a cell's output."""
    lines = log.read_text(errors="replace").strip().splitlines() if log.is_file() else []
    return lines[-1].removeprefix("tsfm: error: ") if lines else ""


def steps_to_run(grid: Grid, cell: Cell) -> list[int]:
    """The budgets that a cell runs, in steps: multiples of its epoch."""
    budgets = [piece.budget for piece in pieces(grid.budgets(cell), grid.decay)[0] if piece.budget]
    return budgets[:1] if cell.scan else budgets


def is_done(grid: Grid, cell: Cell, folder: Path) -> bool:
    """Whether all rows of a cell have been written."""
    try:
        lr = cell.lr if cell.lr is not None else best_lr(grid, cell, folder)
    except InputError:
        return False
    root = folder / "runs" / cell.name(lr) / ROWS
    return all((root / f"{budget}.json").is_file() for budget in steps_to_run(grid, cell))


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """All rows written so far, in the order of their paths."""
    return [read_row(path) for path in sorted(folder.glob(f"runs/*/{ROWS}/[!.]*.json"))]


def write_ledger(grid: Grid, folder: Path) -> Path:
    """Write ``ledger.csv`` from all rows on disk, atomically and by one process at a time.

    The column ``scan`` is true for learning rates that were tried and were not the best. A cell that failed has a row
    without a loss, with the reason in the column ``status``.
    """
    chosen = {}
    for cell in cells(grid):
        if not cell.scan and cell.lr is None:
            tried = {k: v for k, v in scanned(grid, cell, folder).items() if math.isfinite(v)}
            if len(tried) == len(grid.lr):
                chosen[cell.arch, cell.size] = min(tried, key=lambda lr: tried[lr])
    with FileLock(folder / ".ledger.lock"):
        table = []
        for row in read_rows(folder):
            best = chosen.get((row["arch"], row["size"]))
            table.append(row | {"scan": best is not None and row["lr"] != best})
        for path in sorted(folder.glob(f"runs/*/{FAILED}")):
            reason = read_record(path, Failed, "the reasons of a failed run", hint=HINT)["reasons"][-1]
            table.append({"run": path.parent.name, "status": f"failed: {reason}", "scan": True})
        table.sort(key=lambda row: (row["run"], row.get("steps", 0)))
        names = list(dict.fromkeys(name for row in table for name in row))
        with atomic_file(folder / LEDGER) as file, file.open("w", newline="") as handle:
            writer = csv.DictWriter(handle, names, restval="")
            writer.writeheader()
            writer.writerows(table)
    return folder / LEDGER


class Progress:
    """Shows every budget that is done, and the time left.

    The time of a run is modelled as ``a * steps + b * FLOPs``, with ``a`` and ``b`` >= 0 fitted to finished runs.
    """

    def __init__(self, grid: Grid, every: list[Cell], folder: Path, jobs: int, show: Callable[[str], None]) -> None:
        self.grid, self.folder, self.jobs, self.show = grid, folder, jobs, show
        # Runs of a scan are told apart by their learning rate; the other runs have one rate per architecture and size.
        self.goal = {
            (cell.arch, cell.size, cell.data, cell.seed, cell.lr if cell.scan else None, budget)
            for cell in every
            for budget in steps_to_run(grid, cell)
        }
        self.known = {str(path) for path in folder.glob(f"runs/*/{ROWS}/[!.]*.json")}
        if self.known:
            show(f"{len(self.known)} runs are done already")

    def show_new_rows(self) -> None:
        """Show the rows written since the last call."""
        new_rows = sorted(path for path in self.folder.glob(f"runs/*/{ROWS}/[!.]*.json") if str(path) not in self.known)
        for path in new_rows:
            row = read_row(path)
            self.known.add(str(path))
            left = self.seconds_left()
            after = "" if left is None else f"; about {format_duration(left)} left"
            self.show(
                f"[{len(self.known)}] {row['run']}, {row['steps']} steps: {self.grid.loss} {row['loss']:.4f}, "
                f"{row['wall_s']:.0f} s{after}"
            )

    def seconds_left(self) -> float | None:
        """Estimated seconds until all runs are done; None before the first one is."""
        rows = read_rows(self.folder)
        if not rows:
            return None
        cost = np.array([[row["steps"], row["flops"] / 1e9] for row in rows], dtype=np.float64)
        rate, _ = nnls(cost, np.array([row["wall_s"] for row in rows], dtype=np.float64))
        total = 0.0
        have = {(r["arch"], r["size"], r["data"], r["seed"], r["steps"]) for r in rows}
        scans = {(r["arch"], r["size"], r["data"], r["seed"], r["lr"], r["steps"]) for r in rows}
        for arch, size, data, seed, lr, budget in self.goal:
            done = (arch, size, data, seed, lr, budget) in scans if lr else (arch, size, data, seed, budget) in have
            if done:
                continue
            flops = budget * self.grid.batch(data) * self.grid.counts(arch, size).flops
            share = 1.0 if lr or budget == min(b for *_, b in self.goal) else self.new_share(budget)
            total += share * float(rate @ np.array([budget, flops / 1e9]))
        return total / self.jobs

    def new_share(self, budget: int) -> float:
        """Share of a budget's steps that smaller budgets do not share."""
        budgets = sorted({b for *_, b in self.goal})
        before = budgets[max(0, budgets.index(budget) - 1)]
        return 1 - (1 - self.grid.decay) * before / budget if before < budget else 1.0


def format_duration(seconds: float) -> str:
    """A time as text, such as "40 s" or "1.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def learning_rate_warnings(grid: Grid, folder: Path) -> list[str]:
    """Warnings for sizes whose best learning rate is the largest or smallest tried: badly tuned sizes bias the law."""
    warnings = []
    for cell in {(c.arch, c.size): c for c in cells(grid)}.values():
        tried = {k: v for k, v in scanned(grid, cell, folder).items() if math.isfinite(v)}
        if len(grid.lr) > 1 and len(tried) == len(grid.lr):
            best = min(tried, key=lambda lr: tried[lr])
            if best in (min(tried), max(tried)):
                side = "largest" if best == max(tried) else "smallest"
                warnings.append(
                    f"the best learning rate of {cell.arch} {cell.size}, {best:g}, is the {side} tried: add a "
                    f"{'larger' if side == 'largest' else 'smaller'} one"
                )
    return warnings


def slurm_files(grid: Grid, grid_file: Path, folder: Path) -> list[Path]:
    """Write the files of SLURM array jobs, one task per cell: first the learning rates, then the other cells."""
    every = cells(grid)
    scans = sum(cell.scan for cell in every)
    parts = [("scan", 0, scans), ("runs", scans, len(every))] if scans else [("runs", 0, len(every))]
    files = []
    for name, first, end in parts:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        line = shlex.join(command_of(grid_file, folder, "INDEX")).replace("INDEX", '"$SLURM_ARRAY_TASK_ID"')
        text = (
            "#!/bin/sh\n"
            f"#SBATCH --job-name=tsfm-{name}\n#SBATCH --array={first}-{end - 1}\n"
            f"#SBATCH --cpus-per-task=1\n#SBATCH --output={(folder / 'logs').resolve()}/slurm-%a.txt\n"
            f"export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1\nexec {line}\n"
        )
        files.append(folder / f"{name}.sbatch")
        with atomic_file(files[-1]) as file:
            file.write_text(text)
    return files
