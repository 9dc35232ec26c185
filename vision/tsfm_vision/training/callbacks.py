"""Lightning callbacks of the vision models."""

from typing import Any

import pytorch_lightning as pl

from tsfm_data.errors import InputError
from tsfm_vision.backbones import ILlama, Schedule, rates


class SoftMaskSchedule(pl.Callback):
    """Sets iLLaMA's soft-mask rate before every optimiser step; after training the rate is the schedule's last.

    The rate depends only on the number of optimiser steps done, so resumed training continues with the right rate.

    Args:
        schedule: ``"constant"`` or ``"linear"`` until the cutoff.
        cutoff_epochs: epochs until the rate is 0; with all epochs of the training, a constant rate stays to the end.

    Raises:
        InputError: the model has no soft mask, or the length of the training is unknown.
    """

    def __init__(self, schedule: Schedule = "constant", cutoff_epochs: int = 50) -> None:
        self.schedule: Schedule = schedule
        self.cutoff_epochs = cutoff_epochs

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compute the rates of the whole training."""
        self.models = [module for module in pl_module.modules() if isinstance(module, ILlama)]
        epochs, total = trainer.max_epochs, trainer.estimated_stepping_batches
        if not self.models:
            raise InputError("expected an iLLaMA in the training that SoftMaskSchedule is for, found none: remove it")
        if not epochs or epochs < 1 or total == float("inf"):
            raise InputError("expected max_epochs for SoftMaskSchedule, found a training without an end: set it")
        self.rates = rates(self.schedule, self.cutoff_epochs, epochs, int(total) // epochs)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the rate of the coming optimiser step."""
        for model in self.models:
            model.soft_mask_rate = float(self.rates[min(trainer.global_step, len(self.rates) - 1)])
