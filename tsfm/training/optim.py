"""Optimisers and learning-rate schedules, by name."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from torch.optim import Adam, AdamW, Optimizer

from tsfm_data.errors import InputError

Schedule = Literal["constant", "halving", "cosine", "wsd"]


@dataclass(frozen=True)
class OptimConfig:
    """Settings of the optimiser and the learning-rate schedule.

    Attributes:
        name: "adam", or "adamw" (decoupled weight decay).
        lr: peak learning rate.
        betas: decay rates of the two moments.
        eps: added to the denominator.
        weight_decay: on weights of linear layers; biases, norms and embeddings have none.
        schedule: "constant"; "halving", which keeps the rate for two epochs and then halves it every epoch (the
            long-horizon protocol); "cosine" to zero over the whole training; "wsd" (warm-up, stable, decay), which
            keeps the peak rate until the last ``decay`` of the steps and then decays to zero as one minus a square
            root, the best shape in Hägele et al. (2024, arXiv 2405.18392, section 3).
        warmup_steps: steps of linear warm-up, for every schedule.
        decay: share of all steps over which "wsd" decays.
    """

    name: Literal["adam", "adamw"] = "adam"
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    schedule: Schedule = "constant"
    warmup_steps: int = 0
    decay: float = 0.2

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise InputError(f"expected a learning rate above 0, found {self.lr}: change optim.lr")
        if self.weight_decay < 0 or self.warmup_steps < 0:
            raise InputError("expected optim.weight_decay and optim.warmup_steps of 0 or more: change them")
        if not 0 <= self.decay <= 1:
            raise InputError(f"expected optim.decay from 0 to 1 (a share of all steps), found {self.decay}: change it")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"expected optim.betas of at least 0 and below 1, found {list(self.betas)}: change them")


def parameter_groups(modules: Iterable[nn.Module], weight_decay: float) -> list[dict[str, object]]:
    """Two groups of parameters: weights of linear layers and convolutions with weight decay, all others without."""
    decay: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for root in modules:
        for module in root.modules():
            matrix = isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d)
            for name, parameter in module.named_parameters(recurse=False):
                (decay if matrix and name == "weight" else rest).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def build_optimizer(config: OptimConfig, model: nn.Module, fused: bool = True) -> Optimizer:
    """The optimiser over all parameters of ``model``.

    Args:
        config: kind and settings of the optimiser.
        model: the model to train.
        fused: whether one kernel does the whole update.
    """
    groups = parameter_groups([model], config.weight_decay)
    kind = AdamW if config.name == "adamw" else Adam
    # Without fusion the update of a small model takes a tenth of its training step.
    return kind(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)


def lr_factor(config: OptimConfig, steps_per_epoch: int, total_steps: int) -> Callable[[int], float]:
    """The factor on the peak learning rate at each optimiser step, counted from 0.

    Args:
        config: settings with the schedule.
        steps_per_epoch: optimiser steps in an epoch, for "halving".
        total_steps: optimiser steps of the whole training, for "cosine" and "wsd".
    """
    warmup = config.warmup_steps

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        match config.schedule:
            case "constant":
                return 1.0
            case "halving":
                return 0.5 ** max(0, step // max(1, steps_per_epoch) - 1)
            case "cosine":
                done = (step - warmup) / max(1, total_steps - warmup)
                return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
            case "wsd":
                decay = max(1, round(config.decay * total_steps))
                return 1 - math.sqrt(min(1.0, max(0, step - (total_steps - decay)) / decay))

    return factor


def training_steps(trainer: Any) -> tuple[int, int]:
    """Optimiser steps per epoch and of the whole training of a Lightning trainer.

    Lightning's own estimate creates the training loader before the state of a checkpoint is read, which is then lost:
    training that is resumed within an epoch would see other batches.
    """
    module = getattr(trainer, "datamodule", None)
    if module is None:
        total = int(trainer.estimated_stepping_batches)
        return max(1, total // max(1, trainer.max_epochs or 1)), total
    batches, limit = len(module.train_dataloader()), trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    per_epoch = max(1, math.ceil(batches / trainer.accumulate_grad_batches))
    epochs = trainer.max_epochs if trainer.max_epochs is not None else 1
    ends = [end for end in (per_epoch * epochs, trainer.max_steps) if end >= 0]  # -1 means no limit
    return per_epoch, min(ends, default=per_epoch)
