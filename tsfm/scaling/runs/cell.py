"""Runs one cell of a sweep: its pieces in order, each resumed from its last checkpoint, with one row per budget.

DIR/runs/CELL/PIECE/fit.yaml      the config of the piece: tsfm fit --config fit.yaml [--ckpt_path ...]
DIR/runs/CELL/PIECE/...           the output of tsfm fit: logs, checkpoints, the resolved config.yaml
DIR/runs/CELL/PIECE/done.json     written when the piece is done: its time, losses, digest of fit.yaml
DIR/runs/CELL/rows/BUDGET.json    a row of the ledger
DIR/runs/CELL/failed.json         reasons of failure, written if a try failed
"""

import csv
import hashlib
import json
import math
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock
from typing_extensions import TypedDict

import tsfm
from tsfm.scaling.runs.grid import CHECKPOINT, Cell, Grid, Piece, overlay, piece_config, pieces
from tsfm.weights import read_tensors
from tsfm_data.corpus import MANIFEST, Store, current_path
from tsfm_data.errors import InputError
from tsfm_data.io import atomic_file, read_record

DONE, FAILED, ROWS = "done.json", "failed.json", "rows"
HINT = "delete it, and run the sweep again"

# Trains by the command-line arguments of ``tsfm fit``.
Train = Callable[[Sequence[str]], object]


class Done(TypedDict):
    """The content of ``done.json``."""

    config_sha256: str
    wall_s: float
    losses: dict[str, float]
    observations: int | None


class Row(TypedDict):
    """The columns of a row of the ledger that the sweep itself uses; there are more."""

    run: str
    arch: str
    size: str
    data: str
    seed: int
    lr: float
    steps: int
    flops: float
    loss: float
    wall_s: float


def run_cell(grid: Grid, cell: Cell, folder: Path, train: Train) -> None:
    """Run the unfinished pieces of a cell; of two processes with the same cell one waits for the other.

    Args:
        grid: the grid.
        cell: the cell to run.
        folder: folder of the sweep.
        train: trains in this process by the command-line arguments of ``tsfm fit``.

    Raises:
        InputError: a piece could not be run, its losses were not found, or the folder holds another grid's run.
    """
    lr = cell.lr if cell.lr is not None else best_lr(grid, cell, folder)
    budgets = grid.budgets(cell)
    todo, unit = pieces(budgets, grid.decay)
    if cell.scan:
        first = next(piece for piece in todo if piece.budget)
        todo = [piece for piece in todo if piece is first or piece.name == first.after]
    root = folder / "runs" / cell.name(lr)
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".lock"):
        for piece in todo:
            config = piece_config(grid, cell, lr, piece, unit, root)
            done = run_piece(grid, piece, config, root, train)
            if piece.budget is not None:
                write_json(root / ROWS / f"{piece.budget}.json", ledger_row(grid, cell, lr, piece, config, done, root))
        (root / FAILED).unlink(missing_ok=True)


def run_piece(grid: Grid, piece: Piece, config: dict[str, Any], root: Path, train: Train) -> dict[str, Any]:
    """Run a piece of training unless it is done; returns the content of ``done.json``."""
    folder = root / piece.name
    text = yaml.safe_dump(config, sort_keys=False)
    digest = hashlib.sha256(text.replace(str(root), "").encode()).hexdigest()
    if (folder / DONE).is_file():
        done: dict[str, Any] = dict(read_record(folder / DONE, Done, "a finished run", finite=False, hint=HINT))
        if done["config_sha256"] != digest:
            raise InputError(
                f"{folder}: expected a run of this grid, found one of another config: give another --output, or "
                "delete the folder"
            )
        return done
    with atomic_file(folder / "fit.yaml") as file:
        file.write_text(text)
    checkpoint = folder / CHECKPOINT
    if grid.command is None:
        discard_broken(checkpoint)
    start = checkpoint if checkpoint.is_file() else None if piece.after is None else root / piece.after / CHECKPOINT
    if start is not None and not (start.is_file() and (grid.command is not None or is_readable(start))):
        shutil.rmtree(root / str(piece.after))
        raise InputError(f"expected a checkpoint at {start}, found a broken one or none: that piece will be run again")
    started = time.perf_counter()
    fit(grid.command, folder / "fit.yaml", start, train)
    wall = time.perf_counter() - started
    losses = read_losses(folder) if piece.budget is not None else {}
    if not checkpoint.is_file() or (piece.budget is not None and not losses):
        missing = "checkpoint" if not checkpoint.is_file() else "validation losses"
        shutil.rmtree(folder)  # killed between its last checkpoint and its last log line: cheap to repeat
        raise InputError(f"expected {missing} in {folder}, found none: the piece will be run again")
    done = {
        "config_sha256": digest,
        "wall_s": wall + seconds_of_killed_tries(folder),
        "losses": losses,
        "observations": observations_seen(checkpoint),
    }
    write_json(folder / DONE, done)
    return done


def discard_broken(checkpoint: Path) -> None:
    """Delete a checkpoint that cannot be read, and say so."""
    if checkpoint.is_file() and not is_readable(checkpoint):
        checkpoint.unlink()
        print(f"discarded {checkpoint}, which is broken: the piece starts again", flush=True)


def is_readable(checkpoint: Path) -> bool:
    """Whether a checkpoint can be read."""
    try:
        read_tensors(checkpoint, device="meta", foreign=False)
    except InputError:
        return False
    return True


def fit(command: list[str] | None, config: Path, start: Path | None, train: Train) -> None:
    """Train by a config, in this process or by another command.

    Raises:
        InputError: the command failed; its last line is part of the message.
    """
    words = ["--config", str(config)] + ([] if start is None else ["--ckpt_path", str(start)])
    if command is None:
        train(["fit", *words])
        return
    process = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
    if process.returncode:
        last_line = (process.stderr.strip() or process.stdout.strip() or "nothing").splitlines()[-1]
        raise InputError(
            f"expected {' '.join(command)} to end with status 0, found {process.returncode}: {last_line:.300}"
        )


def seconds_of_killed_tries(folder: Path) -> float:
    """Seconds of the tries that were killed, from their first to their last log line; 0 without any."""
    logs = sorted(folder.glob("logs/version_*/metrics.csv"), key=lambda path: path.stat().st_mtime)[:-1]
    # The folder was last modified when the log was created, with its first line.
    return float(sum(max(0.0, path.stat().st_mtime - path.parent.stat().st_mtime) for path in logs))


def read_losses(folder: Path) -> dict[str, float]:
    """The last validation losses in the logs of a run, by name; empty without any."""
    logs = sorted(folder.glob("logs/version_*/metrics.csv"), key=lambda path: path.stat().st_mtime)
    for path in reversed(logs):
        with path.open(newline="") as handle:
            lines = list(csv.DictReader(handle))
        for line in reversed(lines):
            losses = {k: float(v) for k, v in line.items() if k.startswith("val_") and v}
            if losses:
                return losses
    return {}


def observations_seen(checkpoint: Path) -> int | None:
    """Number of observed values that a training has seen; None if its callback did not count them."""
    try:
        states = read_tensors(checkpoint, device="meta", foreign=False).get("callbacks")
    except InputError:  # a checkpoint of another command, in another format
        return None
    states = states.values() if isinstance(states, dict) else ()
    return next((s["observations"] for s in states if isinstance(s, dict) and "observations" in s), None)


def ledger_row(
    grid: Grid, cell: Cell, lr: float, piece: Piece, config: dict[str, Any], done: dict[str, Any], root: Path
) -> dict[str, Any]:
    """A row of the ledger: what was trained, its cost and its losses."""
    assert piece.budget is not None
    counts, batch, init = grid.counts(cell.arch, cell.size), grid.batch(cell.data), config["data"]["init_args"]
    windows = piece.budget * batch
    tokens = windows * counts.tokens
    losses = done["losses"]
    return {
        "run": root.name,
        "arch": cell.arch,
        "size": cell.size,
        "data": cell.data,
        "seed": cell.seed,
        "lr": lr,
        "batch_size": batch,
        "steps": piece.budget,
        "params": counts.params,
        "params_non_embedding": counts.non_embedding,
        "params_active": counts.active,
        "tokens": tokens,
        "observations": done["observations"] or windows * (init["context"] + init["horizon"]),
        "flops": windows * counts.flops,
        **corpus_facts(init, tokens, counts.tokens),
        "commit": commit(),
        "loss": losses.get(grid.loss, math.nan),
        **losses,
        "wall_s": round(done["wall_s"] + trunk_time(piece, root), 2),
        "status": "done" if math.isfinite(losses.get(grid.loss, math.nan)) else "diverged",
    }


def trunk_time(piece: Piece, root: Path) -> float:
    """Seconds of the trunk pieces before a branch."""
    trunk = (path.parent for path in root.glob(f"trunk-*/{DONE}"))
    before = [path for path in trunk if int(path.name.split("-")[1]) <= piece.start]
    pieces_before = (read_record(path / DONE, Done, "a finished run", finite=False, hint=HINT) for path in before)
    return float(sum(done["wall_s"] for done in pieces_before))


def corpus_facts(init: dict[str, Any], tokens: int, window_tokens: int) -> dict[str, Any]:
    """Name and hash of the corpus, and the number of different tokens: synthetic ones are all different."""
    corpus = init.get("corpus")
    if corpus is None or not (manifest := current_path(Path(corpus), MANIFEST)).is_file():
        return {"corpus": "", "corpus_sha256": "", "unique_tokens": tokens}
    store = Store(corpus)
    points = sum(source.points for source in store.sources if source.name not in init.get("held_out", ()))
    length = (init["context"] + init["horizon"]) / window_tokens
    share = float(init.get("synthetic_share", 0.0))
    unique = share * tokens + min((1 - share) * tokens, points / length)
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
    return {"corpus": Path(corpus).name, "corpus_sha256": digest, "unique_tokens": round(unique)}


def commit() -> str:
    """The commit of this code, or its version if it does not run from its own checkout."""
    checkout = Path(__file__).resolve().parents[3]
    git = ["git", "rev-parse", "--show-toplevel", "HEAD"]
    # If the package is installed inside another repository, git would give the commit of that repository.
    if shutil.which("git") is None or not (checkout / "data/tsfm_data").is_dir():
        return tsfm.__version__
    answer = subprocess.run(git, cwd=checkout, capture_output=True, text=True, check=False)
    top, _, head = answer.stdout.strip().partition("\n")
    return head if answer.returncode == 0 and Path(top).resolve() == checkout else tsfm.__version__


def best_lr(grid: Grid, cell: Cell, folder: Path) -> float:
    """The learning rate with the least validation loss at the smallest budget, for the cell's architecture and size.

    Raises:
        InputError: not every rate has been tried, or all diverged.
    """
    tried = scanned(grid, cell, folder)
    if len(tried) < len(grid.lr):
        raise InputError(
            f"expected {len(grid.lr)} learning rates tried for {cell.arch} {cell.size}, found {len(tried)}: run the "
            "cells before this one first"
        )
    finite = {lr: loss for lr, loss in tried.items() if math.isfinite(loss)}
    if not finite:
        raise InputError(f"expected a learning rate at which {cell.arch} {cell.size} does not diverge, found none")
    return min(finite, key=lambda lr: finite[lr])


def scanned(grid: Grid, cell: Cell, folder: Path) -> dict[float, float]:
    """Validation loss of every learning rate tried so far; NaN if it diverged."""
    first = next(iter(grid.data or {"all": {}}))
    smallest = next(piece.budget for piece in pieces(grid.budgets(cell), grid.decay)[0] if piece.budget)
    loss_by_rate = {}
    for lr in grid.lr:
        name = Cell(cell.arch, cell.size, first, lr, grid.seed[0]).name(lr)
        file = folder / "runs" / name / ROWS / f"{smallest}.json"
        if file.is_file():
            loss = read_row(file).get(grid.choose)
            loss_by_rate[lr] = float(loss) if isinstance(loss, int | float) else math.nan
    return loss_by_rate


def read_row(file: Path) -> dict[str, Any]:
    """A row of the ledger.

    Raises:
        InputError: the file is none.
    """
    return dict(read_record(file, Row, "a row of a sweep", finite=False, hint=HINT))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a small JSON file atomically."""
    with atomic_file(path) as file:
        file.write_text(json.dumps(overlay({}, content), indent=1) + "\n")
