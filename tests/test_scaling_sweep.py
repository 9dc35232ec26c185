"""A sweep trains every cell of its grid once, whatever happens to its processes, and its ledger says what was done."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
import yaml
from command import run
from sweeps import write_grid

from tsfm.commands import train
from tsfm.configs import config_path
from tsfm.scaling.runs.cell import read_losses, run_cell, seconds_of_killed_tries
from tsfm.scaling.runs.grid import Grid, cells, overlay, pieces, read_grid
from tsfm.scaling.runs.ledger import read_runs
from tsfm.scaling.runs.sweep import (
    Job,
    is_done,
    learning_rate_warnings,
    read_rows,
    run_index,
    slurm_files,
    sweep,
    write_ledger,
)
from tsfm_data.errors import InputError
from tsfm_data.io import atomic_file


def in_process(grid: Grid, folder: Path) -> object:
    """Starts cells within this process, by the index of their command line."""

    class Ended:
        def __init__(self, status: int) -> None:
            self.status = status

        def poll(self) -> int:
            return self.status

        def terminate(self) -> None:
            """It has ended."""

        kill = terminate

    def start(command: Sequence[str], log: Path) -> Job:
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            run_index(grid, int(command[-1]), folder, train.run)
        except InputError as error:
            log.write_text(f"tsfm: error: {error}\n")
            return Ended(2)
        return Ended(0)

    return start


def swept(file: Path, folder: Path) -> tuple[list[str], pd.DataFrame, list[str], list[str]]:
    """Failures, ledger, calls of the training command and lines of progress of a whole sweep."""
    grid, lines = read_grid(file), []
    failed = sweep(grid, file, folder, 2, in_process(grid, folder), lines.append)  # type: ignore[arg-type]
    calls = folder / "calls.txt"
    return failed, pd.read_csv(folder / "ledger.csv"), calls.read_text().splitlines() if calls.exists() else [], lines


@pytest.mark.slow
def test_when_a_grid_is_swept_then_every_cell_and_budget_has_one_row_that_a_law_can_read(tmp_path: Path) -> None:
    failed, ledger, _, lines = swept(write_grid(tmp_path), tmp_path / "out")
    assert failed == []
    assert len(ledger) == 2 * 2 * 2
    assert not ledger.duplicated(["run", "steps"]).any()
    assert set(ledger["status"]) == {"done"}
    first = ledger[(ledger["size"] == "1K") & (ledger["steps"] == 40)].iloc[0]
    assert (first["params"], first["params_non_embedding"], first["tokens"]) == (5752, 872, 40 * 4 * 3)
    assert first["val_out_loss"] == pytest.approx(first["val_in_loss"] + 1)
    assert first["loss"] == first["val_in_loss"]
    assert len(lines) == 8
    assert "left" in lines[0]
    runs = read_runs(tmp_path / "out" / "ledger.csv", exclude="scan")
    assert (len(runs), runs.runs) == (8, 4)
    assert runs.flops.tolist() == ledger["flops"].tolist()


def test_when_budgets_share_a_training_then_each_branch_decays_from_the_trunk(tmp_path: Path) -> None:
    calls = swept(write_grid(tmp_path, seed=[0], size=["1K"]), tmp_path / "out")[2]
    name = "encoder-1K-all-lr0.001-seed0"
    assert calls == [
        f"{name}/trunk-8 0 8 constant",
        f"{name}/budget-10 8 10 wsd",
        f"{name}/trunk-32 8 32 constant",
        f"{name}/budget-40 32 40 wsd",
    ]
    config = yaml.safe_load((tmp_path / "out/runs" / name / "budget-40/fit.yaml").read_text())
    assert config["model"]["init_args"]["optim"]["decay"] == pytest.approx(0.2)
    assert config["trainer"]["check_val_every_n_epoch"] == config["trainer"]["max_epochs"] == 20


@pytest.mark.parametrize(("budgets", "decay"), [([500, 1000, 4000], 0.2), ([7], 0.3), ([3, 4, 5, 90], 0.1), ([1], 0.5)])
def test_when_budgets_are_cut_into_pieces_then_they_join_without_gaps(budgets: list[int], decay: float) -> None:
    result, unit = pieces(budgets, decay)
    ends = {piece.name: piece.end for piece in result}
    for piece in result:
        assert piece.start < piece.end
        assert piece.end % unit == 0
        assert piece.start == (0 if piece.after is None else ends[piece.after])
    reached = [piece.budget for piece in result if piece.budget]
    assert all(abs(a - b) <= max(1, unit) for a, b in zip(reached, budgets, strict=False))


@pytest.mark.slow
def test_when_a_sweep_is_run_again_then_nothing_is_trained_again(tmp_path: Path) -> None:
    file, out = write_grid(tmp_path), tmp_path / "out"
    calls = swept(file, out)[2]
    before = (out / "ledger.csv").read_bytes()
    again = swept(file, out)
    assert again[2] == calls
    assert (out / "ledger.csv").read_bytes() == before
    assert again[3] == ["8 runs are done already"]
    bigger = swept(write_grid(tmp_path, size=["1K", "10K", "100K"]), out)
    assert len(bigger[1]) == 12
    assert bigger[2][: len(calls)] == calls


def test_when_a_piece_was_killed_then_it_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    file, out = write_grid(tmp_path, seed=[0], size=["1K"]), tmp_path / "out"
    checkpoint = out / "runs/encoder-1K-all-lr0.001-seed0/trunk-8/checkpoints/last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_text(json.dumps({"steps": 4}))
    calls = swept(file, out)[2]
    assert calls[0].endswith("trunk-8 4 8 constant")
    assert len(calls) == 4


@pytest.mark.slow
def test_when_the_whole_sweep_is_killed_then_no_run_is_lost_or_done_twice(tmp_path: Path) -> None:
    file, out = write_grid(tmp_path, sleep=0.02, size=["1K"]), tmp_path / "out"
    words = [sys.executable, "-m", "tsfm", "scaling", "sweep", str(file), "--output", str(out)]
    path = os.pathsep.join([*sys.path, str(Path(__file__).parent.parent)])
    process = subprocess.Popen(
        words, env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not list(out.glob("runs/*/rows/*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert 0 < len(list(out.glob("runs/*/rows/*.json"))) < 4
    _, ledger, calls, _ = swept(file, out)
    assert len(ledger) == 4
    steps: dict[str, int] = {}
    for call in calls:
        name, start, end, _ = call.split()
        steps[name] = max(steps.get(name, 0), int(end) - int(start))
    assert len(steps) == 2 * 4
    whole = [call.split()[0] for call in calls if int(call.split()[2]) - int(call.split()[1]) == steps[call.split()[0]]]
    assert len(calls) <= 8 + 1, "more than the piece that was killed has been started again"
    assert set(whole) == set(steps)


def test_when_a_run_fails_twice_then_the_ledger_says_why_and_the_others_are_done(tmp_path: Path) -> None:
    file, out = write_grid(tmp_path), tmp_path / "out"
    out.mkdir()
    (out / "broken").touch()
    failed, ledger, calls, lines = swept(file, out)
    assert len(failed) == 2
    assert "encoder 1K" in failed[0]
    assert "failed 2 times" in failed[0]
    assert sum(call.startswith("encoder-1K-all-lr0.001-seed0/") for call in calls) == 2
    bad = ledger[ledger["size"].isna()]
    assert len(bad) == 2
    assert bad["status"].str.contains("out of memory").all()
    assert len(read_runs(out / "ledger.csv", exclude="scan")) == 4
    assert any(line.startswith("failed: ") for line in lines)
    (out / "broken").unlink()
    failed, ledger, *_ = swept(file, out)
    assert (failed, set(ledger["status"]), len(ledger)) == ([], {"done"}, 8)


def test_when_losses_are_not_numbers_then_the_row_says_so_and_no_law_uses_it(tmp_path: Path) -> None:
    file, out = write_grid(tmp_path), tmp_path / "out"
    out.mkdir()
    (out / "diverges").touch()
    failed, ledger, *_ = swept(file, out)
    assert failed == []
    assert set(ledger.loc[ledger["size"] == "10K", "status"]) == {"diverged"}
    runs = read_runs(out / "ledger.csv", exclude="scan")
    assert len(runs) == 4
    assert "diverged" in " ".join(runs.warnings)


def test_when_several_rates_are_given_then_each_size_goes_on_with_its_best(tmp_path: Path) -> None:
    file, out = write_grid(tmp_path, lr=[3e-4, 1e-3, 3e-3], size=["1K"]), tmp_path / "out"
    assert [cell.scan for cell in cells(read_grid(file))] == [True] * 3 + [False] * 2
    with pytest.raises(InputError, match="run the cells before"):
        run_cell(read_grid(file), cells(read_grid(file))[3], out, train.run)
    _, ledger, calls, _ = swept(file, out)
    assert len(ledger) == 2 + 4
    assert ledger.loc[~ledger["scan"], "lr"].unique().tolist() == [1e-3]
    assert sum("lr0.001-seed0/trunk-8" in call for call in calls) == 1
    assert learning_rate_warnings(read_grid(file), out) == []
    swept(write_grid(tmp_path, lr=[1e-3, 3e-3], size=["1K"]), out)
    assert "is the smallest tried" in learning_rate_warnings(read_grid(file), out)[0]


def test_when_the_folder_holds_another_grid_then_it_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    swept(write_grid(tmp_path, seed=[0], size=["1K"]), out)
    other = read_grid(write_grid(tmp_path, seed=[0], size=["1K"], warmup=2))
    with pytest.raises(InputError, match="found one of another config"):
        run_index(other, 0, out, train.run)


def test_when_slurm_is_asked_for_then_its_files_run_every_cell_by_index(tmp_path: Path) -> None:
    file = write_grid(tmp_path, lr=[3e-4, 1e-3])
    scan, runs = slurm_files(read_grid(file), file, tmp_path / "out")
    assert "--array=0-3" in scan.read_text()
    assert "--array=4-7" in runs.read_text()
    script = runs.read_text().replace(sys.executable, "echo")
    result = subprocess.run(["sh"], input=script, env={"SLURM_ARRAY_TASK_ID": "5"}, text=True, capture_output=True)
    assert result.stdout.split()[-2:] == ["--index", "5"]
    assert subprocess.run(["sh", "-n", str(runs)], check=False).returncode == 0


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"arch": ["encodr"]}, "unknown architecture 'encodr': did you mean encoder"),
        ({"size": ["11K"]}, "unknown size of encoder '11K'"),
        ({"size": {"tiny": {"d_modl": 8}}}, "did you mean d_model"),
        ({"size": {"tiny": {"d_model": "8"}}}, "expected a whole number at d_model"),
        ({"lrs": [1]}, "unknown key of a grid 'lrs': did you mean lr"),
        ({"lr": 1e-3}, "expected a list at 'lr'"),
        ({"lr": ["1e-3"]}, "YAML wants 1.0e-3"),
        ({"steps": [0]}, "above 1 at 'steps'"),
        ({"tokens": [1e6]}, "found both or none"),
        ({"decay": 1.5}, "decay between 0 and 1"),
        ({"warmup": 100}, "warmup to end before the decay of the smallest budget"),
        ({"configs": ["gone.yaml"]}, "found nothing at"),
        ({"fit": {}}, "data.init_args in 'configs' or 'fit' with the key 'context'"),
        ({"data": {"all": {"corpus": "gone"}}, "command": None}, "tsfm data build"),
    ],
)
def test_when_a_grid_has_a_mistake_then_one_line_says_what(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, object], part: str
) -> None:
    result = run(capsys, "scaling", "sweep", str(write_grid(tmp_path, **changes)), "--output", str(tmp_path / "out"))
    assert result.status == 2
    assert part in result.err
    assert result.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_when_the_grid_of_the_repository_is_read_then_its_law_can_be_identified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("corpus/all").mkdir(parents=True)
    grid = read_grid(config_path("scaling/grid"))
    sizes = {grid.counts(arch, size).params for arch in grid.arch for size in grid.size}
    assert set(grid.arch) == {"encoder", "decoder"}
    assert min(len(grid.size), len(grid.steps or ())) >= 4
    assert len(grid.seed) >= 2
    assert max(sizes) > 3e6
    assert max(sizes) / min(sizes) > 500
    assert len({cell.name(cell.lr or 0.0) for cell in cells(grid)}) == len(cells(grid))


def test_when_configs_are_stacked_then_mappings_merge_and_the_rest_is_replaced() -> None:
    assert overlay({"a": {"b": 1, "c": [1]}, "d": 1}, {"a": {"c": [2]}, "e": 3}) == {
        "a": {"b": 1, "c": [2]},
        "d": 1,
        "e": 3,
    }


def test_when_logs_are_read_then_the_last_validation_counts(tmp_path: Path) -> None:
    (tmp_path / "logs/version_0").mkdir(parents=True)
    (tmp_path / "logs/version_0/metrics.csv").write_text("step,train_loss,val_in_loss\n1,2,\n2,,3\n3,,2.5\n4,1,\n")
    assert read_losses(tmp_path) == {"val_in_loss": 2.5}
    assert read_losses(tmp_path / "none") == {}


def test_when_tries_were_killed_then_their_time_to_the_last_log_line_counts(tmp_path: Path) -> None:
    for i, seconds in enumerate((30, 7)):
        log = tmp_path / f"logs/version_{i}/metrics.csv"
        log.parent.mkdir(parents=True)
        log.write_text("step,val_in_loss\n1,2\n")  # no other file: Lightning writes its own later
        begun = log.parent.stat().st_mtime + 100 * i
        os.utime(log, (begun + seconds, begun + seconds))
        os.utime(log.parent, (begun, begun))
    assert seconds_of_killed_tries(tmp_path) == pytest.approx(30, abs=0.01)
    assert seconds_of_killed_tries(tmp_path / "none") == 0


@pytest.mark.slow
def test_when_ray_is_there_then_it_runs_the_same_cells(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from tsfm.scaling.runs.ray_jobs import start_ray

    file, out = write_grid(tmp_path, size=["1K"]), tmp_path / "out"
    grid = read_grid(file)
    assert sweep(grid, file, out, 2, start_ray, lambda line: None) == []
    assert len(pd.read_csv(write_ledger(grid, out))) == 4
    assert all(is_done(grid, cell, out) for cell in cells(grid))


def test_when_another_cell_is_just_writing_its_row_then_it_is_not_read_yet(tmp_path: Path) -> None:
    rows = tmp_path / "runs/a/rows"
    with atomic_file(rows / "10.json") as unfinished:
        unfinished.write_text("{")
        assert read_rows(tmp_path) == []
