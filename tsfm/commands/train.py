"""``tsfm fit | validate | test | predict``: the Lightning CLI with our tasks and data modules."""

import contextlib
import logging
import os
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import jsonargparse
import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor

from tsfm.commands.checkpoints import (
    NAMED,
    check_checkpoint,
    guard_restoring,
    interruption_message,
    read_checkpoint,
    short_path,
)
from tsfm.commands.config_errors import check_files, config_files, explain, with_config_files
from tsfm.commands.forecast import write_frame
from tsfm.inference import forecast_table
from tsfm.models import model_classes
from tsfm.nn import check_levels, keep_large_blocks
from tsfm.training import AtomicCheckpoints, FiniteLosses, ForecastTask, ResumeWithConfig, logged_names
from tsfm_data import io
from tsfm_data.corpus import PretrainingDataModule
from tsfm_data.errors import InputError, check_seed, unknown_name
from tsfm_data.output import say
from tsfm_data.windows import Forecast, ForecastDataModule, item_lengths

DESCRIPTION = (
    "Train a model from YAML; every option can also be given on the command line. A config is code: it names classes "
    "that are imported and called, so read the configs of others before you run them. Checkpoints are not: nothing "
    "that one names is run."
)
GLOBAL_SEED = "PL_GLOBAL_SEED"  # environment variable of Lightning
# Warnings of Lightning that do not apply here, or need no action of the user.
NOT_FOR_USERS = (
    ".*does not have many workers.*",  # gathering a batch takes microseconds
    ".*is smaller than the logging interval.*",
    ".*You have overridden `transfer_batch_to_device`.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*You're resuming from a checkpoint that ended before the epoch ended.*",  # our loader resumes within an epoch
    ".*is called with Trainer configured with multiple `ModelCheckpoint`.*",  # the first is the best one
    ".*The dirpath has changed from.*",  # a run that continues in another folder
    ".*WeightAveraging callback, but loading a checkpoint outside.*",  # the checkpoint holds the averaged weights
    ".*WeightAveraging callback with a model that overrides the configure_model.*",  # which only FSDP needs
    ".*isinstance\\(treespec, LeafSpec\\).*",
)


class SaveConfig(SaveConfigCallback):
    """Write the resolved config as ``config.yaml`` to the run's folder."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write the file once, atomically, in the first process."""
        if (
            self.already_saved
            or stage != "fit"
            or not trainer.is_global_zero
            or getattr(trainer, "fast_dev_run", False)
        ):
            return
        text = self.parser.dump(self.config, skip_none=False)
        with io.atomic_file(Path(trainer.default_root_dir) / "config.yaml") as file:
            file.write_text(text)
        self.already_saved = True


class SuiteCLI(LightningCLI):
    """Lightning's CLI; the model's context and horizon are linked to those of the data."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link the settings that model and data share."""
        for name in ("context", "horizon"):
            parser.link_arguments(f"data.init_args.{name}", f"model.init_args.{name}")
        parser.add_argument("--overwrite", action="store_true", help="replace an existing run or forecast")

    def _parse_ckpt_path(self) -> None:
        """Check the checkpoint, and nothing else: Lightning would import a class that its hyper-parameters name."""
        given = self.config[self.config.subcommand].get("ckpt_path")
        if given is not None and str(given) not in NAMED:
            read_checkpoint(str(given))

    def _set_seed(self) -> None:
        """Check the seed, and that of the environment, before Lightning uses it.

        Raises:
            InputError: it is not one that random generators take.
        """
        given = self._get(self.config, "seed_everything")
        if given is True and (word := os.environ.get(GLOBAL_SEED)) is not None:
            check_seed(int(word) if re.fullmatch(r"\s*-?\d{1,99}\s*", word) else word, GLOBAL_SEED)
        elif not isinstance(given, bool):
            check_seed(given, "seed_everything")
        super()._set_seed()

    def before_instantiate_classes(self) -> None:
        """Set one folder for logs, checkpoints and model; by default ``runs/DATA_CONTEXT_HORIZON``."""
        config = self.config[self.subcommand]
        trainer, data = config.trainer, config.data.init_args
        if trainer.default_root_dir is None:
            source = data.get("source") or data.get("corpus") or "data"
            name = f"{Path(str(source)).stem}_{data.get('context')}_{data.get('horizon')}"
            trainer.default_root_dir = str(Path("runs") / name)
        root = trainer.default_root_dir
        move(trainer, root, [file for file in config_files(sys.argv[1:]) if file.is_file()])
        self.written = config.clone()  # without folders derived from the root, so that another root can be given
        self.written.pop("overwrite", None)
        if self.subcommand == "predict":
            trainer.logger = False
        elif trainer.logger is None:
            arguments = jsonargparse.Namespace(save_dir=root, name="logs")
            trainer.logger = jsonargparse.Namespace(
                class_path="pytorch_lightning.loggers.CSVLogger", init_args=arguments
            )
        for callback in trainer.callbacks or []:
            if callback.class_path.endswith(".ModelCheckpoint") and callback.init_args.get("dirpath") is None:
                callback.init_args.dirpath = str(Path(root) / "checkpoints")
                callback.init_args.enable_version_counter = False  # a new run replaces the checkpoints of the old one
        if str(config.get("ckpt_path")) in NAMED:
            config.ckpt_path = find_named(config.ckpt_path, trainer, str(self.subcommand))

    def instantiate_classes(self) -> None:
        """Instantiate the classes of the config; their errors are mistakes in the config."""
        try:
            super().instantiate_classes()
        except (ValueError, TypeError, MisconfigurationException) as error:
            raise explain(error, sys.argv[1:]) from error

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """The trainer, with a progress bar only in a terminal, and checkpoints that are written whole or not at all."""
        trainer = super().instantiate_trainer(**kwargs)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # else the config names another one
            trainer.strategy.checkpoint_io = AtomicCheckpoints()
        if trainer.progress_bar_callback is not None and not sys.stderr.isatty():
            trainer.progress_bar_callback.disable()
        guard_restoring(trainer)
        return trainer

    def before_fit(self) -> None:
        """Check everything that can be checked before a file is written."""
        self.check("train", "val")
        check_monitors(self.trainer, self.model, self.datamodule)
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, SaveConfig):
                callback.config = self.written

    def announce(self) -> None:
        """Print one line each about data and model."""
        if isinstance(self.datamodule, ForecastDataModule):
            say(f"data: {self.datamodule.source}, {self.datamodule.describe()}")
        elif isinstance(self.datamodule, PretrainingDataModule):
            say(f"data: {corpus_line(self.datamodule)}")
        if isinstance(self.model, ForecastTask):
            forecaster = self.model.forecaster
            parameters = sum(p.numel() for p in forecaster.parameters())
            steps = f"{forecaster.context} steps in, {forecaster.horizon} out"
            say(f"model: {forecaster.model_type}, {parameters:,} parameters, {steps}")

    def before_validate(self) -> None:
        """Check data and checkpoint before anything is written."""
        self.check("val")

    def before_test(self) -> None:
        """Check data and checkpoint before anything is written."""
        self.check("test")

    def before_predict(self) -> None:
        """Check task, data and checkpoint before anything is written."""
        if not isinstance(self.model, ForecastTask) and not hasattr(self.model, "write_predictions"):
            raise InputError(
                f"expected a task whose predictions can be written, found {type(self.model).__name__}: tsfm test gives "
                "its scores"
            )
        name = getattr(self.model, "predictions", "forecast.csv")
        inputs = [getattr(self.datamodule, "source", None), self._get(self.config_init, "ckpt_path")]
        io.check_new([Path(self.trainer.default_root_dir) / name], self._get(self.config_init, "overwrite"), inputs)
        if self.trainer.world_size > 1:
            raise InputError(f"expected one device, found {self.trainer.world_size}: give --trainer.devices 1")
        if isinstance(self.model, ForecastTask) and not isinstance(self.datamodule, ForecastDataModule):
            raise InputError(
                f"expected a ForecastDataModule to predict with, found {type(self.datamodule).__name__}: use "
                "tsfm forecast INPUT --model RUN"
            )
        self.check("val")

    def check(self, *parts: str) -> None:
        """Read the data, create the loaders and check the checkpoint.

        Raises:
            InputError: the data are too short for a window, or the checkpoint is missing, broken or of another model.
        """
        given = self._get(self.config_init, "ckpt_path")
        if given is not None and str(given) not in NAMED:
            check_checkpoint(str(given), self.model)
        elif given is None and self.subcommand != "fit":
            raise InputError(
                f"expected a checkpoint to {self.subcommand} with, found none: give --ckpt_path FILE, such as "
                f"{Path(self.trainer.default_root_dir) / 'checkpoints' / 'best.ckpt'}"
            )
        if isinstance(self.datamodule, ForecastDataModule | PretrainingDataModule):
            self.datamodule.setup(str(self.subcommand))
            for part in parts:
                getattr(self.datamodule, f"{part}_dataloader")()

    def check_folder(self) -> None:
        """Check that the folder contains no other run than the one that is resumed.

        Raises:
            InputError: it does.
        """
        root, given = Path(self.trainer.default_root_dir), self._get(self.config_init, "ckpt_path")
        callbacks = [c for c in self.trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
        places = [Path(c.dirpath) for c in callbacks if c.dirpath]
        is_resumed = given is not None and (
            str(given) in NAMED or any(Path(given).resolve().is_relative_to(p.resolve()) for p in (root, *places))
        )
        if is_resumed or self._get(self.config_init, "overwrite"):
            return
        kept = [root / "model", *(p for p in places if p.resolve().is_relative_to(root.resolve()))]
        if any(place.is_dir() and any(place.iterdir()) for place in kept):
            raise InputError(
                f"expected a new folder for the run, found an earlier run in {root}: resume it with --ckpt_path, give "
                "another --trainer.default_root_dir, or --overwrite"
            )

    def fit(self, **arguments: Any) -> None:
        """Train with a lock on the folder; after Ctrl-C, a message says how to resume."""
        with contextlib.ExitStack() as stack:
            if self.trainer.is_global_zero:
                if not getattr(self.trainer, "fast_dev_run", False):
                    stack.enter_context(io.lock_folder(self.trainer.default_root_dir))
                    self.check_folder()
                self.announce()
            try:
                self.trainer.fit(**arguments)
            except SystemExit as error:  # Lightning raises this after Ctrl-C
                raise KeyboardInterrupt(interruption_message(self.trainer)) from error

    def after_fit(self) -> None:
        """Print where checkpoint and model folder are."""
        if not self.trainer.is_global_zero:
            return
        checkpoint, root = self.trainer.checkpoint_callback, Path(self.trainer.default_root_dir)
        if isinstance(checkpoint, ModelCheckpoint) and checkpoint.best_model_score is not None:
            best = f"best {checkpoint.monitor} {float(checkpoint.best_model_score):.4f}"
            say(f"trained {self.trainer.current_epoch} epochs; {best} in {short_path(checkpoint.best_model_path)}")
        if (root / "model").is_dir() and isinstance(self.model, ForecastTask):
            horizon = getattr(getattr(self.model, "forecaster", None), "horizon", "H")
            say(f"model folder: {root / 'model'}")
            say(f"to forecast: tsfm forecast INPUT --horizon {horizon} --model {root}")

    def predict(self, **arguments: Any) -> None:
        """Forecast past the end of the data, in its units, and write ``forecast.csv`` to the run's folder."""
        forecasts = cast(list[dict[str, Tensor]], self.trainer.predict(**arguments))
        if hasattr(self.model, "write_predictions"):
            self.model.write_predictions(forecasts)
        if isinstance(self.datamodule, ForecastDataModule) and isinstance(self.model, ForecastTask):
            path = Path(self.trainer.default_root_dir) / "forecast.csv"
            series, levels = self.datamodule.series, check_levels(self.model.levels)
            batches = [Forecast(batch["mean"], batch["quantiles"], levels) for batch in forecasts]
            items = np.flatnonzero(item_lengths(series) > 0).tolist()  # the loader skips empty ones
            frame = forecast_table(series.select(items), self.datamodule.horizon, batches)
            write_frame(series.present(frame), path)
            say(f"{path}: {frame['item_id'].nunique()} series, {self.datamodule.horizon} steps each")


def move(trainer: jsonargparse.Namespace, root: str, files: Sequence[Path]) -> None:
    """Move folders of callbacks and loggers from the root folder of an earlier run to the new root folder.

    Args:
        trainer: section of the config; it is changed.
        root: folder of the new run.
        files: config files; those that earlier versions wrote for a run contain the folders of that run.
    """
    trainers = [io.read_yaml(file, "sections").get("trainer") for file in files]
    named = [section.get("default_root_dir") for section in trainers if isinstance(section, dict)]
    roots = [Path(str(name)).resolve() for name in (*named, root) if name is not None]
    loggers = trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]
    for holder in (*(trainer.callbacks or []), *loggers):
        arguments = getattr(holder, "init_args", None) or {}
        for name in ("dirpath", "save_dir"):
            place = Path(str(arguments.get(name) or "")).resolve()
            holding = [one for one in roots if place.is_relative_to(one)]
            if arguments.get(name) is not None and holding:
                nearest = max(holding, key=lambda one: len(one.parts))
                arguments[name] = str(Path(root) / place.relative_to(nearest))


def find_named(name: str, trainer: jsonargparse.Namespace, subcommand: str) -> str:
    """The file of the run's best or last checkpoint.

    Lightning knows the best one of its own process alone, and without a last one it goes on with random weights. A
    training may begin with those: then the name stays.
    """
    callbacks = [c.init_args for c in trainer.callbacks or [] if c.class_path.endswith(".ModelCheckpoint")]
    places = [c.dirpath for c in callbacks if c.get("filename") == name]
    file = Path(places[0] if places else Path(trainer.default_root_dir) / "checkpoints") / f"{name}.ckpt"
    return name if (subcommand, name) == ("fit", "last") and not file.is_file() else str(file)


def corpus_line(data: PretrainingDataModule) -> str:
    """One line about the data of a pretraining run."""
    if data.store is None:
        return "generated series"
    trained = [source for source in data.store.sources if source.name not in data.held_out]
    line = f"{data.corpus}, {len(trained)} sources, {sum(source.points for source in trained):,} points"
    return line + (f"; held out: {', '.join(data.held_out)}" if data.held_out else "")


def check_monitors(trainer: pl.Trainer, model: pl.LightningModule, module: pl.LightningDataModule) -> None:
    """Check that the metrics monitored by early stopping and checkpoints are logged by the task.

    Raises:
        InputError: one is not; similar names are listed.
    """
    logged = logged_names(module) if isinstance(model, ForecastTask) else getattr(model, "logged", None)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        name = getattr(callback, "monitor", None)
        if logged is not None and name is not None and name not in logged:
            raise unknown_name(f"metric to monitor in {type(callback).__name__}", name, logged)


def train(words: Sequence[str]) -> int:
    """Run one of Lightning's four commands; returns the exit status.

    Args:
        words: the command (fit, validate, test or predict) and its options.

    Raises:
        InputError: a mistake in the config; the message names the key.
    """
    run(words)
    return 0


def run(words: Sequence[str], finite: bool = True) -> SuiteCLI:
    """Like ``train``, but returns the CLI with its ``trainer``, ``model`` and ``datamodule``.

    Args:
        words: as for ``train``.
        finite: whether a loss that is not finite ends the training; a sweep records it instead.
    """
    quiet()
    keep_large_blocks()
    words = with_config_files(words)
    check_files(words)
    callbacks = [ResumeWithConfig(), FiniteLosses()] if finite else [ResumeWithConfig()]
    # Lightning parses sys.argv and starts other processes with it; if arguments are passed as well, it warns.
    sys.argv = [sys.argv[0], *words]
    model_classes()  # import the models, so that YAML may use short class names
    try:
        return SuiteCLI(
            pl.LightningModule,
            pl.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=SaveConfig,
            trainer_defaults={
                "enable_model_summary": False,
                "callbacks": callbacks,
            },
            parser_kwargs={"prog": "tsfm", "description": DESCRIPTION, "exit_on_error": False},
        )
    except (jsonargparse.ArgumentError, MisconfigurationException) as error:
        raise explain(error, words) from error
    except SystemExit as error:
        if error.code == 1:  # Lightning raises this after Ctrl-C
            raise KeyboardInterrupt from error
        raise


def quiet() -> None:
    """Silence messages of Lightning that do not help users of this suite."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # they concern code of Lightning
    for message in NOT_FOR_USERS:
        warnings.filterwarnings("ignore", message=message)
