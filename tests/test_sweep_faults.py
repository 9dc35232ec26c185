"""A sweep whose checkpoints are broken or whose processes are ended loses nothing and leaves no process behind."""

import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import trials
import yaml
from sweeps import write_grid

from tsfm import scaling
from tsfm.commands.cli import main
from tsfm.scaling.runs import sweep as sweep_module
from tsfm.scaling.runs.grid import cells, read_grid
from tsfm.scaling.runs.sweep import Job, is_done, run_index


def test_when_a_checkpoint_is_broken_then_it_is_discarded_and_the_run_is_done_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, *_ = prepare_cell(tmp_path)
    grid = read_grid(config)
    starts = []

    def train(words: Sequence[str]) -> None:
        root = Path(words[2]).parent
        starts.append((root.name, words[4].split("/")[-3] if len(words) > 3 else None))
        (root / "checkpoints").mkdir(exist_ok=True)
        torch.save({"state_dict": {}}, root / "checkpoints/last.ckpt")
        (root / "logs/version_0").mkdir(parents=True, exist_ok=True)
        (root / "logs/version_0/metrics.csv").write_text("step,val_in_loss\n1,0.5\n")

    (cell,) = cells(grid)
    folder = tmp_path / "out/runs" / cell.name(1e-3)
    own, before = folder / "budget-10/checkpoints/last.ckpt", folder / "trunk-8/checkpoints/last.ckpt"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"PK cut off")
    run_index(grid, 0, tmp_path / "out", train)
    assert starts == [("trunk-8", None), ("budget-10", "trunk-8")]
    assert f"discarded {own}, which is broken" in capsys.readouterr().out
    for done in folder.glob("budget-10/done.json"):
        done.unlink()
    own.unlink()
    before.write_bytes(before.read_bytes()[:-50])
    starts.clear()
    run_index(grid, 0, tmp_path / "out", train)
    assert starts == [("trunk-8", None), ("budget-10", "trunk-8")]
    assert is_done(grid, cell, tmp_path / "out")
    assert not (folder / "failed.json").exists()


def prepare_cell(folder: Path) -> tuple[Path, ...]:
    """A grid of one cell with one budget."""
    config = write_grid(folder, size=["1K"], seed=[0], steps=[10])
    plain = yaml.safe_load(config.read_text())
    del plain["command"]
    config.write_text(yaml.safe_dump(plain))
    return (config,)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_when_a_sweep_is_ended_then_its_trainings_end_too(tmp_path: Path, number: int) -> None:
    config = write_grid(tmp_path, sleep=60.0, size=["1K"], seed=[0], steps=[10])

    def forked(command: Sequence[str], log: Path) -> Job:
        """Start a cell as ``start_local`` does, but in a process that need not import anything."""
        os.environ[sweep_module.PARENT] = str(os.getpid())
        process = multiprocessing.get_context("fork").Process(target=cell, args=(command[3:],))
        process.start()
        return SimpleNamespace(poll=lambda: process.exitcode, terminate=process.terminate, kill=process.kill)

    def cell(words: Sequence[str]) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as in a new process
        main(words)

    def sweep_all() -> None:
        scaling.start_local = forked  # type: ignore[assignment]

    trial = trials.start(("scaling", "sweep", str(config), "--output", "out"), tmp_path, sweep_all)
    end = time.monotonic() + 60
    while not (tmp_path / "out/calls.txt").exists() and time.monotonic() < end:
        time.sleep(0.02)
    assert len(trials.session(trial.process)) == 3  # sweep, cell and the command of the cell
    trial.kill(number)
    assert trial.wait(30).status == (2 if number == signal.SIGTERM else -number)
    assert trial.survivors() == []
