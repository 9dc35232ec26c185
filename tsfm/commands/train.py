"""``tsfm fit | validate | test | predict``: the Lightning CLI over our tasks and data modules."""

import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import jsonargparse
import pytorch_lightning as pl
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

import tsfm.models.itransformer
import tsfm.task  # noqa: F401  so that YAML may use the short class names
import tsfm_data.module  # noqa: F401
from tsfm_data.errors import InputError

DESCRIPTION = "Train a model from YAML; every option can also be given on the command line."


class SaveConfig(SaveConfigCallback):
    """Write the whole resolved config as ``config.yaml`` into the run's folder."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write the file once, whole, on the first process."""
        from tsfm_data.files import atomic_file

        if (
            self.already_saved
            or stage != "fit"
            or not trainer.is_global_zero
            or getattr(trainer, "fast_dev_run", False)
        ):
            return
        text = self.parser.dump(self.config, skip_none=False)
        with atomic_file(Path(trainer.default_root_dir) / "config.yaml") as file:
            file.write_text(text)
        self.already_saved = True


class SuiteCLI(LightningCLI):
    """Lightning's CLI with our links: the model's context and horizon are those of the data."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link what must agree."""
        for name in ("context", "horizon"):
            parser.link_arguments(f"data.init_args.{name}", f"model.init_args.{name}")

    def before_instantiate_classes(self) -> None:
        """Give a run one folder for logs, checkpoints and model: ``runs/DATA_CONTEXT_HORIZON`` unless one is named."""
        config = self.config[self.subcommand]
        trainer, data = config.trainer, config.data.init_args
        if trainer.default_root_dir is None:
            name = f"{Path(str(data.get('source', 'data'))).stem}_{data.get('context')}_{data.get('horizon')}"
            trainer.default_root_dir = str(Path("runs") / name)
        root = trainer.default_root_dir
        if trainer.logger is None:
            arguments = jsonargparse.Namespace(save_dir=root, name="logs")
            trainer.logger = jsonargparse.Namespace(
                class_path="pytorch_lightning.loggers.CSVLogger", init_args=arguments
            )
        for callback in trainer.callbacks or []:
            if callback.class_path.endswith(".ModelCheckpoint") and callback.init_args.get("dirpath") is None:
                callback.init_args.dirpath = str(Path(root) / "checkpoints")

    def after_fit(self) -> None:
        """Say where everything is."""
        root = Path(self.trainer.default_root_dir)
        if (root / "model").is_dir():
            print(f"model folder: {root / 'model'}")


def train(words: Sequence[str]) -> int:
    """Run one of Lightning's four commands; returns the exit status.

    Args:
        words: the command (fit, validate, test or predict) and its options.

    Raises:
        InputError: the config is wrong; the line names the key.
    """
    run(words)
    return 0


def run(words: Sequence[str]) -> SuiteCLI:
    """As ``train``, but hands back the finished CLI with its ``trainer``, ``model`` and ``datamodule``."""
    quiet()
    sys.argv = ["tsfm", *words]  # Lightning reads it; handing the words over as well makes it warn
    try:
        return SuiteCLI(
            pl.LightningModule,
            pl.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=SaveConfig,
            parser_kwargs={"prog": "tsfm", "description": DESCRIPTION, "exit_on_error": False},
        )
    except jsonargparse.ArgumentError as error:
        raise InputError(" ".join(str(error).split())) from error


def quiet() -> None:
    """Keep Lightning's advertisements and advice that does not apply here away from the user."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(
        lambda record: not any(word in record.getMessage() for word in ("litlogger", "litmodels", "Tip:"))
    )
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*You have overridden `transfer_batch_to_device`.*")
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
