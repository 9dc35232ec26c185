"""Training by YAML: what it writes, resuming bit for bit, repeating itself, partial variates, quantiles, prediction."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from command import done, prepare, run
from safetensors.torch import load_file

FIT = ("fit", "--config", "config.yaml")
STEPS = 3  # optimiser steps in an epoch: 125 training windows in batches of 32, the last one left out


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own folder with a table and a config."""
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    return tmp_path


def weights(checkpoint: str) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def assert_equal_weights(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert np.array_equal(a[key].numpy(), b[key].numpy(), equal_nan=True), key


def logged(folder: str) -> pd.DataFrame:
    """The training losses of all runs in a folder, by step."""
    files = sorted(Path(folder, "logs").glob("version_*/metrics.csv"))
    rows = pd.concat([pd.read_csv(file) for file in files])
    return rows.dropna(subset="train_loss").set_index("step")["train_loss"].to_frame()


def test_when_fit_ends_then_config_log_checkpoints_and_model_folder_are_there(
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = done(capsys, *FIT)
    assert "windows: 125 train, 17 val, 39 test" in output
    assert "to forecast: tsfm forecast INPUT --horizon 6 --model run" in output
    files = {str(p.relative_to("run")) for p in Path("run").rglob("*") if p.is_file()}
    assert files == {
        "config.yaml",
        "logs/version_0/metrics.csv",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "model/config.json",
        "model/model.safetensors",
        "model/README.md",
    }
    assert len(logged("run")) == 2 * STEPS
    written = json.loads(Path("run/model/config.json").read_text())
    assert (written["context"], written["horizon"], written["config"]["d_model"]) == (24, 6, 16)
    assert written["training_data"]["variates"] == ["v0", "v1", "v2"]
    best = {k.removeprefix("forecaster."): v for k, v in weights("run/checkpoints/best.ckpt").items()}
    stored = load_file("run/model/model.safetensors")
    assert_equal_weights(
        {k: stored[k] for k in stored if "conformal" not in k}, {k: best[k] for k in best if "conformal" not in k}
    )


@pytest.mark.slow
def test_when_training_is_done_then_validate_test_and_predict_work_from_the_written_config(
    capsys: pytest.CaptureFixture[str],
) -> None:
    done(capsys, *FIT, "--data.horizon", "5")
    from_run = ("--config", "run/config.yaml", "--ckpt_path", "run/checkpoints/best.ckpt")
    assert "val_mse" in done(capsys, "validate", *from_run)
    assert "test_mae" in done(capsys, "test", *from_run)
    done(capsys, "predict", *from_run)
    frame = pd.read_csv("run/forecast.csv")
    assert len(frame) == 3 * 5


@pytest.mark.parametrize("window_norm", ["true", "false"])
def test_when_predicting_then_forecasts_lie_past_the_end_in_the_units_of_the_table(
    capsys: pytest.CaptureFixture[str], window_norm: str
) -> None:
    norm = ("--model.forecaster.config.window_norm", window_norm)
    done(capsys, *FIT, *norm)
    done(capsys, "predict", "--config", "config.yaml", *norm, "--ckpt_path", "run/checkpoints/best.ckpt")
    done(capsys, "forecast", "table.csv", "--horizon", "6", "--model", "run", "--output", "direct.csv")
    table, frame, direct = (pd.read_csv(name) for name in ("table.csv", "run/forecast.csv", "direct.csv"))
    assert list(frame.columns) == ["item_id", "date", "mean", *(f"0.{i}" for i in range(1, 10))]
    assert frame["item_id"].tolist() == [v for v in ("v0", "v1", "v2") for _ in range(6)]
    assert frame["date"].iloc[0] == "2024-01-10 04:00:00"  # 220 hours after the first row
    for name, part in frame.groupby("item_id"):
        assert part["mean"].between(table[name].min() - 3, table[name].max() + 3).all()
    assert (frame["0.9"] > frame["0.1"]).all()
    # The model folder forecasts the same: its best weights, its intervals from the same validation windows.
    pd.testing.assert_frame_equal(frame, direct, rtol=1e-5)


@pytest.mark.parametrize("window_norm", ["true", "false"])
def test_when_the_model_folder_is_evaluated_under_lsf_then_the_error_is_that_of_the_test_command(
    capsys: pytest.CaptureFixture[str], window_norm: str
) -> None:
    norm = ("--model.forecaster.config.window_norm", window_norm)
    done(capsys, *FIT, *norm)
    text = done(capsys, "test", "--config", "config.yaml", *norm, "--ckpt_path", "run/checkpoints/best.ckpt")
    tested = float(re.search(r"test_mse\D+([\d.]+)", text)[1])
    evaluate = ("evaluate", "--model", "run", "--data", "table.csv", "--horizon", "6", "--profile", "lsf")
    done(capsys, *evaluate, "--json", "scores.json")
    rows = json.loads(Path("scores.json").read_text())["rows"]
    scored = next(row["value"] for row in rows if row["model"] == "run" and row["metric"] == "MSE")
    assert scored == pytest.approx(tested, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("extra", [(), ("--model.forecaster.config.levels", "[0.1,0.5,0.9]")])
def test_when_training_stops_at_an_epoch_and_resumes_then_it_equals_the_uninterrupted_one(
    capsys: pytest.CaptureFixture[str], extra: tuple[str, ...]
) -> None:
    done(capsys, *FIT, *extra, "--trainer.max_epochs", "4", "--trainer.default_root_dir", "whole")
    done(capsys, *FIT, *extra, "--trainer.max_epochs", "2")
    done(capsys, *FIT, *extra, "--trainer.max_epochs", "4", "--ckpt_path", "run/checkpoints/last.ckpt")
    assert_equal_weights(weights("whole/checkpoints/last.ckpt"), weights("run/checkpoints/last.ckpt"))
    assert_equal_weights(load_file("whole/model/model.safetensors"), load_file("run/model/model.safetensors"))
    assert logged("whole").equals(logged("run"))
    assert len(logged("whole")) == 4 * STEPS


@pytest.mark.slow
def test_when_training_stops_within_an_epoch_and_resumes_then_it_equals_the_uninterrupted_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = yaml.safe_load(Path("config.yaml").read_text())
    steps = {"every_n_train_steps": 4, "filename": "{step}", "save_top_k": -1, "dirpath": "steps"}
    config["trainer"]["callbacks"].append({"class_path": "ModelCheckpoint", "init_args": steps})
    Path("config.yaml").write_text(yaml.safe_dump(config))
    done(capsys, *FIT, "--trainer.max_epochs", "3", "--trainer.default_root_dir", "whole")
    after = {"epoch 1": 4, "epoch 2": 8}  # steps 0-2 are epoch 0, 3-5 epoch 1, 6-8 epoch 2
    for step in after.values():
        file = f"steps/step={step}.ckpt"
        assert torch.load(file, weights_only=True)["global_step"] == step
        done(
            capsys, *FIT, "--trainer.max_epochs", "3", "--trainer.default_root_dir", f"from{step}", "--ckpt_path", file
        )
        assert_equal_weights(weights("whole/checkpoints/last.ckpt"), weights(f"from{step}/checkpoints/last.ckpt"))
        assert logged("whole").loc[step:].equals(logged(f"from{step}").loc[step:])


@pytest.mark.slow
def test_when_the_same_command_runs_twice_then_weights_and_losses_are_identical(
    capsys: pytest.CaptureFixture[str],
) -> None:
    done(capsys, *FIT)
    first = load_file("run/model/model.safetensors")
    done(capsys, *FIT, "--trainer.default_root_dir", "again")
    assert_equal_weights(first, load_file("again/model/model.safetensors"))
    assert logged("run").equals(logged("again"))
    done(capsys, *FIT, "--seed_everything", "2", "--trainer.default_root_dir", "other")
    assert not torch.equal(first["head.weight"], load_file("other/model/model.safetensors")["head.weight"])


def test_when_a_run_is_repeated_in_its_folder_then_the_old_checkpoints_are_replaced(
    capsys: pytest.CaptureFixture[str],
) -> None:
    done(capsys, *FIT)
    done(capsys, *FIT, "--trainer.max_epochs", "1", "--overwrite")
    assert {p.name for p in Path("run/checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"] == STEPS


@pytest.mark.slow
def test_when_validation_does_not_improve_then_training_stops_early_and_keeps_the_best(
    capsys: pytest.CaptureFixture[str],
) -> None:
    done(capsys, *FIT, "--model.optim.lr", "0.2", "--trainer.max_epochs", "40")
    metrics = pd.read_csv("run/logs/version_0/metrics.csv").dropna(subset="val_loss")
    losses = metrics["val_loss"].to_numpy()
    assert len(losses) < 40
    assert len(losses) - 1 - losses.argmin() == 3  # the patience
    last = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    best = torch.load("run/checkpoints/best.ckpt", weights_only=True)
    assert (last["epoch"], best["epoch"]) == (len(losses) - 1, losses.argmin())


@pytest.mark.slow
def test_when_validation_is_scored_then_every_window_counts_whatever_the_batch_size(
    capsys: pytest.CaptureFixture[str],
) -> None:
    done(capsys, *FIT)
    errors = []
    for size in ("5", "17", "64"):  # 17 validation windows
        output = done(
            capsys, "validate", "--config", "config.yaml", "--ckpt_path", "run/checkpoints/best.ckpt",
            "--data.eval_batch_size", size,
        )  # fmt: skip
        errors.append(float(re.search(r"val_mse\D+([\d.e+-]+)", output)[1]))  # type: ignore[index]
    np.testing.assert_allclose(errors, errors[0], rtol=1e-6)


def test_when_yaml_files_are_stacked_then_the_later_one_wins_and_the_rest_stays(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("wide.yaml").write_text(
        "model:\n  init_args:\n    forecaster:\n      init_args:\n        config:\n          d_model: 32\n"
        "data:\n  init_args:\n    horizon: 3\n"
    )
    output = done(capsys, *FIT, "--config", "wide.yaml", "--data.context", "12", "--print_config")
    config = yaml.safe_load(output)
    sizes = config["model"]["init_args"]["forecaster"]["init_args"]["config"]
    assert (sizes["d_model"], sizes["d_ff"], sizes["heads"]) == (32, 16, 2)
    assert (config["data"]["init_args"]["horizon"], config["data"]["init_args"]["context"]) == (3, 12)
    assert not Path("run").exists()


def test_when_training_on_a_part_of_the_variates_then_the_others_can_be_forecast(
    capsys: pytest.CaptureFixture[str],
) -> None:
    done(capsys, *FIT, "--data.train_variates", "0.4")
    done(capsys, "test", "--config", "config.yaml", "--ckpt_path", "run/checkpoints/best.ckpt")
    done(capsys, "forecast", "table.csv", "--horizon", "6", "--model", "run", "--output", "out.csv")
    frame = pd.read_csv("out.csv")
    assert frame["item_id"].unique().tolist() == ["v0", "v1", "v2"]
    for k, (_, part) in enumerate(frame.groupby("item_id")):
        assert part["mean"].between(10 + 100 * k - 7, 10 + 100 * k + 7).all()


@pytest.mark.parametrize("shown", ["2", "0.4"])
def test_when_batches_show_random_variates_then_training_runs_and_forecasts_all(
    capsys: pytest.CaptureFixture[str], shown: str
) -> None:
    done(capsys, *FIT, "--data.variates_per_batch", shown, "--trainer.max_epochs", "1")
    done(capsys, "forecast", "table.csv", "--horizon", "9", "--model", "run", "--output", "out.csv")
    assert len(pd.read_csv("out.csv")) == 27  # longer than the model's own horizon


def test_when_levels_are_in_the_config_then_the_model_forecasts_quantiles(capsys: pytest.CaptureFixture[str]) -> None:
    done(capsys, *FIT, "--model.forecaster.config.levels", "[0.1,0.5,0.9]")
    assert json.loads(Path("run/model/config.json").read_text())["config"]["levels"] == [0.1, 0.5, 0.9]
    done(
        capsys,
        "forecast",
        "table.csv",
        "--horizon",
        "6",
        "--model",
        "run",
        "--levels",
        "0.1,0.5,0.9",
        "--output",
        "o.csv",
    )
    frame = pd.read_csv("o.csv")
    assert ((frame["0.1"] < frame["0.5"]) & (frame["0.5"] < frame["0.9"])).all()


def test_when_tensorboard_is_asked_for_then_its_log_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard")
    done(
        capsys, *FIT, "--trainer.max_epochs", "1",
        "--trainer.logger", "TensorBoardLogger", "--trainer.logger.save_dir", "run/tensorboard",
    )  # fmt: skip
    assert len(list(Path("run/tensorboard").rglob("events.out.tfevents.*"))) == 1


def test_when_no_checkpoint_is_given_then_testing_is_refused_rather_than_done_on_random_weights(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for command in ("validate", "test", "predict"):
        result = run(capsys, command, "--config", "config.yaml")
        assert result.status == 2
        assert "give --ckpt_path FILE, such as run/checkpoints/best.ckpt" in result.err


@pytest.mark.parametrize("name", ["best", "last"])
def test_when_a_checkpoint_is_named_then_it_is_that_of_the_run_or_one_line_says_that_there_is_none(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("validate", "test", "predict"):
        result = run(capsys, command, "--config", "config.yaml", "--ckpt_path", name)
        assert (result.status, result.err.count("\n")) == (2, 1)
        assert f"expected a checkpoint, found no file at run/checkpoints/{name}.ckpt" in result.err
    done(capsys, *FIT, "--trainer.max_epochs", "1")
    named, given = (
        done(capsys, "test", "--config", "config.yaml", "--ckpt_path", path)
        for path in (name, f"run/checkpoints/{name}.ckpt")
    )
    assert named == given
    done(capsys, *FIT, "--ckpt_path", name, "--trainer.max_epochs", "2")
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["epoch"] == 1


def test_when_a_run_is_made_from_python_then_its_trainer_tests_the_best_checkpoint() -> None:
    from tsfm.commands.train import run as run_config

    cli = run_config([*FIT, "--trainer.max_epochs", "3"])
    cli.model.load_state_dict({key: value * 0 for key, value in cli.model.state_dict().items()})
    (scores,) = cli.trainer.test(cli.model, datamodule=cli.datamodule, ckpt_path="best", verbose=False)
    assert set(scores) == {"test_loss", "test_mse", "test_mae"}
    assert scores["test_mse"] < 1.0  # a constant forecast has about 1 on the standardised scale
    assert_equal_weights(dict(cli.model.state_dict()), weights("run/checkpoints/best.ckpt"))
