"""Lightning callbacks of the vision models."""

from typing import Any

import pytorch_lightning as pl

from tsfm_data.errors import InputError
from tsfm_vision.backbones import ILlama, Schedule, rates


class SoftMaskSchedule(pl.Callback):
    """Sets iLLaMA's soft-mask rate before every optimiser step; after training the rate is that of the schedule's end.

    The rate depends on the number of optimiser steps done and on nothing else, so that a resumed training goes on with
    the rate it would have had.

    Args:
        schedule: ``"constant"`` or ``"linear"`` until the cutoff.
        cutoff_epochs: epochs until the rate is 0; as many as the training has keep a constant rate to the end.

    Raises:
        InputError: the model has no soft mask, or the training no length that is known.
    """

    def __init__(self, schedule: Schedule = "constant", cutoff_epochs: int = 50) -> None:
        self.schedule: Schedule = schedule
        self.cutoff_epochs = cutoff_epochs

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lay out the rates of the whole training."""
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
