"""Pretraining by YAML: resuming within an epoch, averaging, two processes, logs, and records in the model folder."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from command import done, run
from safetensors.torch import load_file

from tsfm.training.callbacks import Throughput, device_peak
from tsfm.training.task import ForecastTask
from tsfm.training.validation import WORST, scaled_errors, seasonal_scale
from tsfm.weights.pretrained import load
from tsfm_data.windows.batch import Batch, Forecast

# Lightning 2.6 asks PyTorch a question that PyTorch 2.15 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning")

BASE = ("fit", "--config", "pretrain/base", "--config", "pretrain/debug")
QUIET = ("--trainer.enable_progress_bar", "false")
FIT = (*BASE, *QUIET, "--data.batches_per_epoch", "6")


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def weights(checkpoint: str, key: str = "state_dict") -> dict[str, torch.Tensor]:
    return torch.load(checkpoint, weights_only=True)[key]


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[key].double() - b[key].double()).abs().max()) for key in a)


def metrics(folder: str) -> pd.DataFrame:
    return pd.read_csv(Path(folder, "logs/version_0/metrics.csv"))


@pytest.mark.slow
def test_when_a_model_is_pretrained_then_speed_errors_and_facts_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    output = done(capsys, *FIT, "--trainer.default_root_dir", "run")
    assert "data: generated series" in output
    logged = metrics("run")
    speed = logged.dropna(subset="observations/s")
    assert (speed[["observations/s", "tokens/s", "steps/s", "mfu"]] > 0).all().all()
    assert speed["stall"].between(0, 1).all()
    assert (speed["mfu"] < 1).all()
    errors = logged.dropna(subset="val_in_loss")
    assert len(errors) == 2
    assert errors[["val_in_mae", "val_in_wql"]].max(axis=None) <= WORST
    facts = json.loads(Path("run/model/config.json").read_text())["pretraining"]
    assert (facts["steps"], facts["batches"], facts["seed"], facts["global_seed"]) == (12, 12, 0, 0)
    assert (facts["corpus"], facts["sources"]) == (None, [])
    assert 12 * 16 * 32 < facts["observations"] <= 12 * 16 * 160
    kept = load("run/model").pretraining
    assert kept is not None
    assert kept.steps == 12
    assert "Pretrained for 12 steps over 12 batches" in Path("run/model/README.md").read_text()


@pytest.mark.slow
def test_when_pretraining_is_stopped_then_the_best_weights_so_far_are_a_model_folder(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = ForecastTask.training_step

    def stopped(task: ForecastTask, batch: Batch, batch_idx: int) -> torch.Tensor:
        if task.current_epoch == 1 and batch_idx == 2:
            raise KeyboardInterrupt
        return step(task, batch, batch_idx)

    monkeypatch.setattr(ForecastTask, "training_step", stopped)
    run(capsys, *FIT, "--trainer.default_root_dir", "run")
    model = load("run/model")
    assert model.pretraining is not None
    assert model.pretraining.steps == 6


@pytest.mark.slow
def test_when_a_run_was_moved_then_it_resumes_in_its_new_place(capsys: pytest.CaptureFixture[str]) -> None:
    done(capsys, *FIT, "--trainer.max_epochs", "1", "--trainer.default_root_dir", "run")
    Path("run").rename("moved")
    resumed = ("--ckpt_path", "moved/checkpoints/last.ckpt", "--trainer.default_root_dir", "moved")
    done(capsys, *FIT, "--trainer.max_epochs", "2", *resumed)
    model = load("moved/model")
    assert model.pretraining is not None
    assert model.pretraining.steps == 12


def test_when_a_corpus_is_trained_on_then_the_facts_name_its_manifest_as_sha256sum_does_and_the_configs_by_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = pd.date_range("2024-01-01", periods=400, freq="h")
    pd.DataFrame({"date": rows, "load": np.sin(np.arange(400) / 4)}).to_csv("load.csv", index=False)
    Path("corpus.yaml").write_text("sources: [{path: load.csv, name: load}]")
    done(capsys, "data", "build", "corpus.yaml", "--output", "built")
    budget = ("--trainer.max_epochs", "1", "--data.batches_per_epoch", "2")
    monkeypatch.setattr(sys, "argv", ["tsfm"])
    done(capsys, *BASE, *QUIET, *budget, "--data.corpus", "built", "--trainer.default_root_dir", "run")
    facts = json.loads(Path("run/model/config.json").read_text())["pretraining"]
    assert facts["sources"] == ["load"]
    assert facts["command"].startswith("tsfm fit --config pretrain/base.yaml --config pretrain/debug.yaml --trainer")
    assert facts["manifest_sha256"] == hashlib.sha256(Path("built/manifest.json").read_bytes()).hexdigest()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize(
    "extra",
    [
        ("--config", "pretrain/average"),
        (
            "--model.forecaster",
            "Decoder",
            "--data.packed",
            "true",
            "--data.tokens",
            "32",
        ),
    ],
    ids=["averaged", "packed-decoder"],
)
def test_when_training_resumes_within_an_epoch_then_it_equals_the_uninterrupted_one(
    capsys: pytest.CaptureFixture[str], extra: tuple[str, ...]
) -> None:
    every = {"filename": "{step}", "every_n_train_steps": 4, "save_top_k": -1}
    added = {"trainer": {"callbacks+": [{"class_path": "ModelCheckpoint", "init_args": every}]}}
    Path("steps.yaml").write_text(json.dumps(added))
    done(capsys, *FIT, *extra, "--config", "steps.yaml", "--trainer.default_root_dir", "whole")
    file = "whole/checkpoints/step=4.ckpt"
    assert torch.load(file, weights_only=True)["epoch"] == 0  # of 6 steps
    again = ("--config", "steps.yaml", "--ckpt_path", file)
    done(capsys, *FIT, *extra, *again, "--trainer.default_root_dir", "rest")
    last = "checkpoints/last.ckpt"
    assert largest_difference(weights(f"whole/{last}"), weights(f"rest/{last}")) == 0
    a, b = (load_file(f"{name}/model/model.safetensors") for name in ("whole", "rest"))
    assert largest_difference(a, b) == 0
    a, b = (json.loads(Path(f"{name}/model/config.json").read_text())["pretraining"] for name in ("whole", "rest"))
    assert (a["steps"], a["batches"], a["observations"]) == (b["steps"], b["batches"], b["observations"])


@pytest.mark.slow
def test_when_weights_are_averaged_then_the_checkpoint_and_the_folder_hold_the_average(
    capsys: pytest.CaptureFixture[str],
) -> None:
    average = ("--config", "pretrain/average", "--trainer.callbacks.update_every_n_steps", "1")
    done(capsys, *FIT, *average, "--trainer.max_epochs", "1", "--trainer.default_root_dir", "run")
    saved, current = (weights("run/checkpoints/last.ckpt", key) for key in ("state_dict", "current_model_state"))
    assert largest_difference(saved, current) > 1e-5
    model = {f"forecaster.{key}": value for key, value in load_file("run/model/model.safetensors").items()}
    assert largest_difference(model, saved) == 0


def start(*words: str) -> None:
    """Run the command in processes of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tsfm", *words], env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr[-3000:]


@pytest.mark.slow
def test_when_two_processes_train_then_the_weights_are_those_of_one_that_sees_both_batches() -> None:
    two = ("--trainer.devices", "2", "--data.batches_per_epoch", "3")
    gloo = ("--trainer.strategy.process_group_backend", "gloo")
    start(*FIT, "--config", "pretrain/ddp", *two, "--trainer.default_root_dir", "ddp")
    start(*FIT, "--config", "pretrain/fsdp", *two, *gloo, "--trainer.default_root_dir", "fsdp")
    start(*FIT, "--trainer.accumulate_grad_batches", "2", "--trainer.default_root_dir", "one")
    one = load_file("one/model/model.safetensors")
    for name in ("ddp", "fsdp"):
        assert largest_difference(load_file(f"{name}/model/model.safetensors"), one) < 1e-5, name
        actual, wanted = (metrics(run).dropna(subset="val_in_loss")["val_in_loss"] for run in (name, "one"))
        np.testing.assert_allclose(actual, wanted, rtol=1e-5)


def test_when_a_model_of_windows_is_given_packed_rows_then_one_line_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = ("--model.forecaster", "ChronosBolt", "--data.packed", "true")
    result = run(capsys, *BASE[:3], *QUIET, *model, "--trainer.accelerator", "cpu")
    assert result.status == 2
    assert "trains on windows, found packed rows: leave out --data.packed" in result.err
    assert len(result.err.strip().splitlines()) == 1


def test_when_a_metric_is_not_logged_in_pretraining_then_near_names_are_listed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = run(capsys, *FIT, "--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor", "val_loss")
    assert result.status == 2
    assert "unknown metric to monitor in EarlyStopping 'val_loss'" in result.err
    assert "val_in_loss" in result.err


def make_batch(unit: float) -> Batch:
    steps = torch.arange(40.0).repeat(3, 1)
    past = torch.where(steps % 2 == 0, 1.0, 3.0)  # changes by 2 a step
    past[1] = 5.0  # no seasonal error
    future = torch.tensor([[4.0, 0.0], [1.0, 1.0], [100.0, 100.0]])
    seen = torch.tensor([[True, False], [True, True], [True, True]])
    return Batch(
        past[..., None] * unit, torch.ones(3, 40, 1, dtype=torch.bool), 2, 1, future[..., None] * unit, seen[..., None]
    )


@pytest.mark.parametrize("unit", [1.0, 1e-6, 1e6])
def test_when_errors_are_scaled_then_units_and_constant_histories_do_not_count(unit: float) -> None:
    batch = make_batch(unit)
    quantiles = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64).expand(3, 2, 1, 3) * unit
    forecast = Forecast(quantiles[..., 1], quantiles, (0.1, 0.5, 0.9))
    errors, count = scaled_errors(batch, forecast)
    assert count == 2
    # Window 0: |4 - 2| / 2 = 1; window 2: 98 / 2, cut at 10.
    assert float(errors["mae"]) == pytest.approx((1 + 10) / 2, rel=1e-5)
    # Window 0: pinballs of 4 are .3, 1 and .9; twice their mean over 2.
    assert float(errors["wql"]) == pytest.approx(((2 * 2.2 / 3) / 2 + 10) / 2, rel=1e-5)


def test_when_a_history_is_shorter_than_its_season_then_single_steps_scale_it() -> None:
    past = torch.tensor([[1.0, 2.0, 4.0, 7.0]])[..., None]
    seen = torch.tensor([[True, True, True, False]])[..., None]
    assert float(seasonal_scale(past, seen, 24)) == pytest.approx(1.5)
    assert float(seasonal_scale(past, seen, 2)) == pytest.approx(3.0)


def test_when_the_throughput_is_counted_then_waiting_is_told_from_working() -> None:
    monitor = Throughput(peak_flops=1e9)
    monitor._observed, monitor._tokens, monitor._steps, monitor._step_flops = 1000, 50, 5, 10_000_000
    monitor._waited, monitor._worked = 0.1, 0.4
    assert monitor.rates(devices=2) == pytest.approx(
        {"observations/s": 4000, "tokens/s": 200, "steps/s": 10, "stall": 0.2, "mfu": 0.1}
    )
    assert device_peak(torch.device("cpu"), torch.float32) > 1e8
