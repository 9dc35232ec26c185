"""A run leaves other runs alone, its config counts when it resumes, and it ends in one line if it diverges."""

import shutil
import tempfile
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from command import done, prepare, run
from filelock import FileLock
from jsonargparse import Namespace
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from safetensors.torch import load_file, save_file

from tsfm.commands.train import move, train
from tsfm.commands.train import run as train_run
from tsfm.training import FiniteLosses
from tsfm_data.errors import InputError

FIT = ("fit", "--config", "config.yaml")
AGAIN = ("fit", "--config", "run/config.yaml")
RESUME = (*AGAIN, "--ckpt_path", "run/checkpoints/last.ckpt", "--trainer.max_epochs", "3")
OTHER = ("--trainer.default_root_dir", "other")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with table, config and a finished run, made once."""
    folder = tmp_path_factory.mktemp("trained")
    prepare(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(FIT)
    return folder


@pytest.fixture(autouse=True)
def workplace(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: str) -> dict[str, bytes]:
    """Every file under a folder, byte by byte."""
    return {str(path): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def pin(**callbacks: str) -> None:
    """Write the folders of callbacks and logger into the config, as earlier versions did."""
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    for callback in config["trainer"]["callbacks"]:
        if callback["class_path"].endswith("ModelCheckpoint"):
            callback["init_args"]["dirpath"] = callbacks.get("dirpath", "run/checkpoints")
    logger = {"class_path": "pytorch_lightning.loggers.CSVLogger", "init_args": {"save_dir": "run", "name": "logs"}}
    config["trainer"]["logger"] = logger
    Path("run/config.yaml").write_text(yaml.safe_dump(config))


def rates(checkpoint: str) -> list[float]:
    state = torch.load(checkpoint, weights_only=True)
    return [group["lr"] for group in state["optimizer_states"][0]["param_groups"]]


def test_when_the_config_is_written_then_it_names_no_folder_that_follows_from_the_root() -> None:
    trainer = yaml.safe_load(Path("run/config.yaml").read_text())["trainer"]
    assert trainer["default_root_dir"] == "run"
    assert trainer["logger"] is None
    checkpoints = [c for c in trainer["callbacks"] if c["class_path"].endswith("ModelCheckpoint")]
    assert [callback["init_args"]["dirpath"] for callback in checkpoints] == [None, None]
    assert "overwrite" not in Path("run/config.yaml").read_text()


@pytest.mark.parametrize("pinned", ["", "run/checkpoints", "run/kept"])
@pytest.mark.parametrize("words", [AGAIN, RESUME], ids=["anew", "resumed"])
def test_when_a_config_of_a_run_is_given_another_root_then_the_old_run_is_left_as_it_is(
    capsys: pytest.CaptureFixture[str], pinned: str, words: tuple[str, ...]
) -> None:
    if pinned:
        pin(dirpath=pinned)
    before = contents("run")
    done(capsys, *words, *OTHER)
    assert contents("run") == before
    folder = Path("other", Path(pinned).name or "checkpoints")
    assert {path.name for path in folder.iterdir()} == {"best.ckpt", "last.ckpt"}
    assert Path("other/logs/version_0/metrics.csv").is_file()
    assert Path("other/model/model.safetensors").is_file()


def test_when_training_goes_on_with_another_rate_then_that_rate_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert rates("run/checkpoints/last.ckpt") == [5e-4, 5e-4]  # halved after the second epoch of two
    said = done(capsys, *RESUME, *OTHER, "--model.optim.lr", "1e-5", "--model.optim.weight_decay", "0.25")
    assert rates("other/checkpoints/last.ckpt") == [2.5e-6, 2.5e-6]
    assert "lr 0.001 -> 1e-05" in said
    assert "weight_decay 0.0 -> 0.25" in said
    groups = torch.load("other/checkpoints/last.ckpt", weights_only=True)["optimizer_states"][0]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.25, 0.0]


def test_when_training_goes_on_with_another_schedule_then_that_schedule_counts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    done(capsys, *RESUME, *OTHER, "--model.optim.schedule", "constant")
    assert rates("other/checkpoints/last.ckpt") == [1e-3, 1e-3]


def test_when_training_goes_on_as_it_was_then_nothing_is_said_of_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert "->" not in done(capsys, *RESUME)


def test_when_training_goes_on_with_more_patience_then_it_is_patient(capsys: pytest.CaptureFixture[str]) -> None:
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    config["trainer"]["callbacks"][0]["init_args"]["patience"] = 7
    Path("run/config.yaml").write_text(yaml.safe_dump(config))
    done(capsys, *RESUME, *OTHER)
    states = torch.load("other/checkpoints/last.ckpt", weights_only=True)["callbacks"]
    assert [state["patience"] for name, state in states.items() if "EarlyStopping" in name] == [7]


def test_when_a_folder_holds_a_run_then_another_one_is_refused_unless_it_shall_be_replaced(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = contents("run")
    result = run(capsys, *FIT)
    assert result.status == 2
    assert result.err.count("\n") == 1
    for part in ("run", "--ckpt_path", "--trainer.default_root_dir", "--overwrite"):
        assert part in result.err
    assert contents("run") == before
    done(capsys, *FIT, "--overwrite", "--trainer.max_epochs", "1")
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["epoch"] == 0
    assert "overwrite" not in Path("run/config.yaml").read_text()


def test_when_training_goes_on_from_another_run_into_a_folder_that_holds_one_then_it_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    done(capsys, *RESUME, *OTHER)
    before = contents("other")
    assert "--overwrite" in run(capsys, *RESUME, *OTHER).err
    assert contents("other") == before


def test_when_predictions_are_there_then_they_are_kept_unless_they_shall_be_replaced(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("predict", "--config", "run/config.yaml", "--ckpt_path", "run/checkpoints/best.ckpt")
    done(capsys, *words)
    expected = Path("run/forecast.csv").read_bytes()
    Path("run/forecast.csv").write_text("mine")
    assert "run/forecast.csv" in run(capsys, *words).err
    assert Path("run/forecast.csv").read_text() == "mine"
    done(capsys, *words, "--overwrite")
    assert Path("run/forecast.csv").read_bytes() == expected
    assert len(pd.read_csv("run/forecast.csv")) == 18


def test_when_a_training_is_at_work_in_a_folder_then_a_second_one_is_refused_in_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = contents("run")
    with FileLock("run/.lock"):
        result = run(capsys, *FIT, "--overwrite")
        resumed = run(capsys, *RESUME)
    for each in (result, resumed):
        assert (each.status, each.err.count("\n")) == (2, 1)
        assert "one that is running in run" in each.err
    Path("run/.lock").unlink(missing_ok=True)
    assert contents("run") == before
    done(capsys, *RESUME)
    assert not list(Path("run").rglob(".*"))


def test_when_a_config_is_stacked_on_that_of_another_run_then_folders_follow_the_root_that_wins() -> None:
    def moved(root: str, *files: str, **arguments: str) -> dict[str, str]:
        for index, text in enumerate(files):
            Path(f"{index}.yaml").write_text(f"trainer: {{default_root_dir: {text}}}")
        holder = Namespace(class_path="ModelCheckpoint", init_args=Namespace(**arguments))
        trainer = Namespace(callbacks=[holder], logger=None)
        move(trainer, root, [Path(f"{index}.yaml") for index in range(len(files))])
        return vars(holder.init_args)

    assert moved("b", "a", dirpath="a/checkpoints") == {"dirpath": "b/checkpoints"}
    assert moved("b", "a", "b", dirpath="a/checkpoints") == {"dirpath": "b/checkpoints"}
    assert moved("a/b", "a", dirpath="a/checkpoints") == {"dirpath": "a/b/checkpoints"}
    assert moved("a", "a/b", dirpath="a/b/checkpoints") == {"dirpath": "a/checkpoints"}
    assert moved("a/b", "a", "a/b", dirpath="a/b/kept") == {"dirpath": "a/b/kept"}
    assert moved("b", "a", dirpath="/elsewhere", save_dir=str(Path("a").resolve())) == {
        "dirpath": "/elsewhere",
        "save_dir": "b",
    }


NO_VALIDATION = ("--trainer.limit_val_batches", "0")


@pytest.mark.parametrize(("rate", "words"), [("1000", ()), ("1e+06", ()), ("1e+30", NO_VALIDATION)])
def test_when_training_diverges_then_it_ends_and_the_line_names_the_rate(
    capsys: pytest.CaptureFixture[str], rate: str, words: tuple[str, ...]
) -> None:
    result = run(capsys, *FIT, *OTHER, *words, "--model.optim.lr", rate)
    assert (result.status, result.err.count("\n")) == (2, 1)
    for part in ("diverged", "_loss", f"learning rate of {rate}", "--model.optim.lr"):
        assert part in result.err
    assert not Path("other/model").exists()


def test_when_training_diverges_after_resuming_then_the_loss_of_the_untrained_model_is_remembered(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "diverged" in run(capsys, *FIT, *OTHER, "--model.optim.lr", "1000").err
    words = (*FIT, *OTHER, "--ckpt_path", "other/checkpoints/last.ckpt", "--trainer.max_epochs", "3")
    assert "that of the untrained model" in run(capsys, *words).err  # the rate is a good one now, but too late
    assert not Path("other/model").exists()


def test_when_a_good_epoch_is_kept_then_a_loss_that_rises_later_is_no_error() -> None:
    module, callback = LightningModule(), FiniteLosses()
    for monitor in ("val_loss", None):
        checkpoints = ModelCheckpoint(monitor=monitor)
        trainer = Trainer(accelerator="cpu", logger=False, callbacks=[checkpoints])
        trainer.strategy.optimizers = [torch.optim.SGD([torch.zeros(1)], lr=0.125)]
        for loss in (1.0, 0.5, 1e6):
            callback.on_train_batch_end(trainer, module, {"loss": torch.tensor(loss)}, None, 0)
            callback.on_train_epoch_end(trainer, module)
        if monitor:
            callback.on_train_end(trainer, module)
    with pytest.raises(InputError, match=r"expected a train_loss near 1, .*found 1e\+06 .* rate of 0.125"):
        callback.on_train_end(trainer, module)  # without a monitor, the last epoch is kept


def test_when_a_checkpoint_is_written_then_the_folder_for_temporary_files_is_not_used(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")  # it may be another file system, or full
    done(capsys, *RESUME)
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["epoch"] == 2


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_when_the_checkpoint_is_cut_off_then_one_line_says_so(capsys: pytest.CaptureFixture[str], share: float) -> None:
    file = Path("run/checkpoints/last.ckpt")
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    before = contents("run")
    result = run(capsys, *RESUME)
    assert (result.status, result.err.count("\n")) == (2, 1)
    assert "found a broken or foreign file at run/checkpoints/last.ckpt" in result.err
    assert contents("run") == before


def test_when_a_run_may_diverge_then_it_goes_on_to_its_end() -> None:
    words = ["fit", "--config", "config.yaml", *OTHER, "--model.optim.lr", "1e30"]
    trainer = train_run(words, finite=False).trainer
    assert not torch.isfinite(trainer.callback_metrics["val_loss"])


def test_when_forecasts_are_not_finite_then_one_line_names_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    file = Path("run/model/model.safetensors")
    state = load_file(file)
    save_file({**state, "head.bias": torch.full_like(state["head.bias"], torch.nan)}, file)
    for words in (
        ("forecast", "table.csv", "--horizon", "6", "--model", "run"),
        ("evaluate", "--data", "table.csv", "--horizon", "6", "--model", "run"),
    ):
        result = run(capsys, *words)
        assert (result.status, result.err.count("\n")) == (2, 1)
        assert "expected finite forecasts" in result.err
        assert "from run" in result.err
