"""Every config of a forecaster parses, builds its model, and states the command that runs it."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonargparse
import pytest
import pytorch_lightning as pl
import torch
import yaml
from ablation import CHOICES, RECIPE, choose

import tsfm.models.itransformer  # noqa: F401  so that its short class name is known
from tsfm.commands.config_errors import with_config_files
from tsfm.configs import CONFIG_FOLDER, config_names, config_path
from tsfm.training.task import ForecastTask
from tsfm.weights import default
from tsfm_data.corpus.datamodule import PretrainingDataModule
from tsfm_data.io import catalog
from tsfm_data.windows.datamodule import ForecastDataModule

# Lists of sources and grids of runs are tested in test_store.py and test_scaling_sweep.py.
OTHERS = ("corpus", "scaling")
CONFIGS = [path for path in map(config_path, config_names()) if path.parent.name not in OTHERS]
# Image models and their data modules: test_vision_configs.py.
FORECAST_CONFIGS = [path for path in CONFIGS if path.parent.name != "vision"]
# The published scripts: width (of tokens and of the feed-forward part), layers, learning rate, batch, calendar features
# and window normalisation of each config file.
PUBLISHED = {
    "ETTh1": (256, 2, 1e-4, 32, True, True),
    "ETTh1_long": (512, 2, 1e-4, 32, True, True),
    "ETTh2": (128, 2, 1e-4, 32, True, True),
    "ETTm1": (128, 2, 1e-4, 32, True, True),
    "ETTm2": (128, 2, 1e-4, 32, True, True),
    "exchange_rate": (128, 2, 1e-4, 32, True, True),
    "exchange_rate_336": (128, 2, 1e-4, 32, True, True),
    "weather": (512, 3, 1e-4, 32, True, True),
    "electricity": (512, 3, 5e-4, 16, True, True),
    "traffic": (512, 4, 1e-3, 16, True, True),
    "solar": (512, 2, 5e-4, 32, False, True),
    "PEMS03": (512, 4, 1e-3, 32, False, True),
    "PEMS04": (1024, 4, 5e-4, 32, False, False),
    "PEMS07": (512, 2, 1e-3, 32, False, False),
    "PEMS07_long": (512, 4, 1e-3, 16, False, False),
    "PEMS08": (512, 2, 1e-4, 32, False, True),
    "PEMS08_long": (512, 4, 1e-3, 16, False, False),
}


def commands(path: Path) -> list[str]:
    """The ``tsfm`` commands in the comment at the top of a config."""
    header = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        header.append(line.lstrip("# "))
    return [line for line in header if line.startswith("tsfm ")]


def files(command: str) -> list[Path]:
    return [config_path(name) for name in re.findall(r"--config (\S+)", command)]


def parse(paths: list[Path], words: Sequence[str] = ()) -> tuple[jsonargparse.ArgumentParser, jsonargparse.Namespace]:
    """The stacked files as the command parses them, without the trainer's classes being made."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--seed_everything", type=int)
    parser.add_subclass_arguments(pl.LightningModule, "model")
    parser.add_subclass_arguments(pl.LightningDataModule, "data")
    parser.add_class_arguments(pl.Trainer, "trainer", instantiate=False)
    for name in ("context", "horizon"):
        parser.link_arguments(f"data.init_args.{name}", f"model.init_args.{name}")
    return parser, parser.parse_args([word for path in paths for word in ("--config", str(path))] + list(words))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_when_a_config_is_read_then_its_header_holds_a_command_that_names_it(path: Path) -> None:
    head_commands = commands(path)
    assert head_commands, f"{path} does not open with its command"
    for command in head_commands:
        assert command.startswith("tsfm fit --config ")
        assert " --config configs/" not in command
    assert any(path in files(command) for command in head_commands)


@pytest.mark.parametrize("path", FORECAST_CONFIGS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_when_the_command_of_a_config_is_parsed_then_model_and_data_module_are_built(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of the name of instantiate_classes
    paths = files(commands(path)[0])
    parser, config = parse(paths)
    with torch.device("meta"):  # shapes without memory
        made = parser.instantiate_classes(config)
    task, data = made.model, made.data
    assert isinstance(task, ForecastTask)
    assert isinstance(data, ForecastDataModule | PretrainingDataModule)
    assert (task.forecaster.context, task.forecaster.horizon) == (data.context, data.horizon)
    if isinstance(data, PretrainingDataModule):
        return
    assert data.source in catalog.names()
    spec = catalog.get(data.source)
    if data.split_option == "lsf":
        assert "lsf" in spec.splits


def test_when_the_config_of_an_earlier_run_is_parsed_then_its_class_path_is_still_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    text = config_path("finetune/full").read_text().replace("from_pretrained.FromPretrained", "start.Pretrained")
    (tmp_path / "config.yaml").write_text(text)
    parser, config = parse([tmp_path / "config.yaml"])
    assert config.model.init_args.forecaster.class_path == "tsfm.training.start.Pretrained"
    assert parser.instantiate_classes(config).model.forecaster.name == default()


@pytest.mark.parametrize(("kind", "name"), [(k, name) for k in ("encoder", "decoder") for name in choose(k, [])])
def test_when_a_choice_of_the_recipe_is_taken_back_then_its_options_are_understood(kind: str, name: str) -> None:
    files = [config_path(f"pretrain/{file}") for file in ("base", f"zeroshot_{kind}", "cpu")]
    words = with_config_files(CHOICES[name])
    corpus = ["--data.corpus=corpus/open"]
    assert (parse(files, corpus + words)[1] == parse(files, corpus)[1]) == (name == RECIPE)


@pytest.mark.parametrize("path", sorted((CONFIG_FOLDER / "itransformer").glob("*.yaml")), ids=lambda p: p.stem)
def test_when_an_itransformer_config_is_parsed_then_its_sizes_are_the_published_ones(path: Path) -> None:
    if path.stem == "base":
        assert set(PUBLISHED) | {"base"} == {p.stem for p in path.parent.glob("*.yaml")}
        return
    _, config = parse(files(commands(path)[0]))
    model, data = config.model.init_args, config.data.init_args
    sizes = model.forecaster.init_args.config
    width, layers, lr, batch, marks, norm = PUBLISHED[path.stem]
    assert (sizes.d_model, sizes.d_ff, sizes.layers, sizes.heads, sizes.dropout) == (width, width, layers, 8, 0.1)
    assert (sizes.window_norm, sizes.activation, sizes.levels) == (norm, "gelu", ())
    assert (model.optim.lr, model.optim.schedule, model.optim.name) == (lr, "halving", "adam")
    assert (data.batch_size, data.context, data.marks) == (batch, 96, "h" if marks else None)
    assert (config.seed_everything, data.seed) == (2023, 2023)
    assert config.trainer.max_epochs == (1 if path.stem == "exchange_rate_336" else 10)


def test_when_the_base_config_trains_then_it_stops_early_and_keeps_the_best_and_the_last_epoch() -> None:
    trainer: dict[str, Any] = yaml.safe_load(config_path("itransformer/base").read_text())["trainer"]
    callbacks = [(c["class_path"].split(".")[-1], c.get("init_args", {})) for c in trainer["callbacks"]]
    assert callbacks == [
        ("EarlyStopping", {"monitor": "val_loss", "patience": 3}),
        ("ModelCheckpoint", {"monitor": "val_loss", "filename": "best"}),
        ("ModelCheckpoint", {"filename": "last"}),
        ("ModelFolder", {}),
    ]
