"""Trainings of a second that ``test_distributed`` runs in one process or two; the processes import only this file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.strategies import ModelParallelStrategy

from tsfm.models import ITransformer, ITransformerConfig
from tsfm.training import ForecastTask, OptimConfig
from tsfm.training.task import ModelFolder
from tsfm_data.images.sets import from_arrays
from tsfm_data.windows import ForecastDataModule
from tsfm_vision.training import Augment, ImageDataModule, ImageModelFolder, ImageOptim, ImageTask, Mix

STRATEGIES: dict[str, Callable[[], Any]] = {
    "ddp": lambda: "ddp",
    "fsdp": lambda: ModelParallelStrategy(save_distributed_checkpoint=False, process_group_backend="gloo"),
}
CLASSES = 3


class Losses(pl.Callback):
    """The training losses as they are logged, and the metrics of validation."""

    def __init__(self) -> None:
        self.train: list[float] = []
        self.val: dict[str, float] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.train.append(float(trainer.callback_metrics["train_loss"]))

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.val = {name: float(x) for name, x in trainer.callback_metrics.items() if name.startswith("val_")}


def series_task(folder: Path, batch: int, **options: Any) -> tuple[pl.LightningModule, pl.LightningDataModule]:
    """A transformer over the variates of a small table with missing values in its validation part."""
    config = ITransformerConfig(d_model=16, d_ff=16, layers=2, heads=2, dropout=0.0)
    task = ForecastTask(
        lambda context, horizon: ITransformer(context, horizon, config), 24, 6, OptimConfig(lr=1e-2), **options
    )
    return task, ForecastDataModule(str(folder / "table.csv"), 24, 6, batch, eval_batch_size=8)


def image_task(folder: Path, batch: int, **options: Any) -> tuple[pl.LightningModule, pl.LightningDataModule]:
    """A small image model on 51 coloured squares with augmentation; 19 more are validated."""
    sizes = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
    task = ImageTask(
        "illama_tiny", CLASSES, 16, model_args=sizes, optim=ImageOptim(lr=1e-2), mix=Mix(0.0, 0.0), **options
    )
    data = ImageDataModule(
        "squares", batch_size=batch, eval_batch_size=8, augment=Augment("pad", policy=None, erase=0.2)
    )
    rng = np.random.default_rng(0)
    for part, count in (("train", 51), ("val", 19)):
        labels = np.arange(count) % CLASSES
        pixels = rng.integers(0, 120, (count, 16, 16, 3)) + 40 * labels[:, None, None, None]
        data.parts[part] = from_arrays(pixels.astype(np.uint8), labels, tuple("abc"), "squares")
    return task, data


FOLDERS: dict[str, type[pl.Callback]] = {"series": ModelFolder, "images": ImageModelFolder}
TASKS = {"series": series_task, "images": image_task}


def fit(
    kind: str,
    folder: Path,
    batch: int,
    strategy: str | None,
    steps: int = 6,
    resume: str | None = None,
    accumulate: int = 1,
    **options: Any,
) -> dict[str, Any]:
    """Train, with a checkpoint after every two steps; returns the loss of every batch and the metrics of validation."""
    pl.seed_everything(0, verbose=False)
    torch.set_num_threads(1)
    task, data = TASKS[kind](folder, batch, **options)
    losses, world = Losses(), 1 if strategy is None else 2
    saver = ModelCheckpoint(folder / f"{strategy}-{batch}", "{step}", save_top_k=-1, every_n_train_steps=2)
    trainer = pl.Trainer(
        accelerator="cpu", devices=world, strategy="auto" if strategy is None else STRATEGIES[strategy](),
        max_epochs=2, max_steps=steps, accumulate_grad_batches=accumulate, log_every_n_steps=1,
        num_sanity_val_steps=0, logger=False, callbacks=[losses, saver, FOLDERS[kind]()], enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder / f"{strategy}",
    )  # fmt: skip
    trainer.fit(task, data, ckpt_path=resume, weights_only=True if resume else None)
    trainer.validate(task, data, verbose=False)
    return {"train": losses.train, "val": losses.val}
