"""Callbacks of training: its speed, what the config changes on resuming, and the end of a training that diverges."""

import math
import time
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.utilities.types import STEP_OUTPUT
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from tsfm.models import Forecaster, count
from tsfm_data.corpus import PackedRows
from tsfm_data.errors import InputError
from tsfm_data.output import say
from tsfm_data.windows import Batch

# Peak FLOPs per second of dense matrix products by the data sheets: half precision, and float32 (as TF32 if allowed).
GPU_PEAKS = {
    "H200": (989e12, 494.5e12),
    "H100 PCIe": (756e12, 378e12),
    "H100": (989e12, 494.5e12),
    "A100": (312e12, 156e12),
    "L40S": (362e12, 183e12),
    "L4": (121e12, 60e12),
    "A10": (125e12, 62.5e12),
}
LARGEST_RISE = 10  # of the loss during training; losses are on standardised values, or logarithms of probabilities
SIDE = 1024  # of the matrices whose product is timed


class Throughput(pl.Callback):
    """Log the speed of training, over the steps since the last log.

    ``observations/s`` counts the observed values of all devices, ``tokens/s`` the tokens that the model makes of them.
    ``mfu`` is the share of the device's peak (model FLOPs utilisation, Chowdhery et al. 2022, appendix B), with the
    operations counted at the first step. ``stall`` is the share of the time spent waiting for batches. The time of
    validation and of writing checkpoints is excluded.

    Args:
        peak_flops: peak FLOPs per second of one device; by default from the data sheet of a known GPU, otherwise
            measured on a few matrix products.
    """

    def __init__(self, peak_flops: float | None = None) -> None:
        self.peak_flops = peak_flops
        self.observations = 0
        self._step_flops: int | None = None
        self._step_ended: float | None = None
        self._step_started = 0.0
        self._clear()

    def _clear(self) -> None:
        self._waited = self._worked = 0.0
        self._observed = self._tokens = self._steps = 0

    def state_dict(self) -> dict[str, int]:
        """Observations seen so far."""
        return {"observations": self.observations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the number of observations."""
        self.observations = state_dict["observations"]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Determine the peak of the device before training starts."""
        if self.peak_flops is None:
            half = str(trainer.precision) in ("bf16-mixed", "bf16-true", "16-mixed", "16-true")
            self.peak_flops = device_peak(trainer.strategy.root_device, torch.bfloat16 if half else torch.float32)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Add up the waiting time; count the operations of the first step."""
        if self._step_flops is None:
            self._step_flops = step_flops(batch, pl_module)
            self._step_ended = None
        self._step_started = time.perf_counter()
        if self._step_ended is not None:
            self._waited += self._step_started - self._step_ended

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Add up a step; log at the logger's intervals."""
        logs = trainer.global_step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        if logs and pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        observed, tokens = batch_size(batch, pl_module)
        self.observations += observed * trainer.world_size
        self._observed += observed
        self._tokens += tokens
        self._steps += 1
        self._step_ended = time.perf_counter()
        self._worked += self._step_ended - self._step_started
        if logs:
            for name, value in self.rates(trainer.world_size).items():
                shown = name in ("observations/s", "mfu")
                pl_module.log(name, value, on_step=True, on_epoch=False, prog_bar=shown, batch_size=1)
            self._clear()

    def rates(self, devices: int) -> dict[str, float]:
        """The logged values, over the steps since the last log."""
        seconds = self._waited + self._worked
        rates = {
            "observations/s": devices * self._observed / seconds,
            "tokens/s": devices * self._tokens / seconds,
            "steps/s": self._steps / seconds,
            "stall": self._waited / seconds,
        }
        if self._step_flops and self.peak_flops:
            rates["mfu"] = self._step_flops * self._steps / seconds / self.peak_flops
        return rates

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Do not count the time until the next step as waiting for a batch."""
        self._step_ended = None

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Do not count the time until the next step as waiting for a batch."""
        self._step_ended = None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Do not count the time until the next step as waiting for a batch."""
        self._step_ended = None


class ResumeWithConfig(pl.Callback):
    """A resumed training uses the numbers of its config, not those of its checkpoint.

    Lightning restores rates, decay and patience with the state. The state (moments, steps done, best score) is kept;
    the numbers are those of the config, and the first rate is that of its schedule at the step that was reached.
    """

    def __init__(self) -> None:
        self._settings: list[list[dict[str, Any]]] = []
        self._patience: dict[EarlyStopping, int] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Remember the patience, before a checkpoint is read."""
        stopping = [c for c in trainer.callbacks if isinstance(c, EarlyStopping)]  # type: ignore[attr-defined]
        self._patience = {callback: callback.patience for callback in stopping}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember the optimisers as they were made, before their state is read."""
        self._settings = [
            [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
            for optimizer in trainer.optimizers
        ]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set them again, and say what is not as it was."""
        changed: dict[str, None] = {}
        for optimizer, settings in zip(trainer.optimizers, self._settings, strict=True):
            for group, own in zip(optimizer.param_groups, settings, strict=True):
                before = {**group, "lr": group.get("initial_lr", group["lr"])}
                after = {**own, "lr": own.get("initial_lr", own["lr"])}
                for name in ("lr", "betas", "eps", "weight_decay"):
                    if before.get(name) != after.get(name):
                        changed[f"{name} {before.get(name)} -> {after.get(name)}"] = None
                group.update(own)
        for found in trainer.lr_scheduler_configs:
            schedule = found.scheduler
            if isinstance(schedule, LambdaLR):
                schedule.base_lrs = [group["initial_lr"] for group in schedule.optimizer.param_groups]
                parts = zip(schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True)
                for group, base, factor in parts:
                    group["lr"] = base * factor(schedule.last_epoch)
        for callback, patience in self._patience.items():
            callback.patience = patience
        if changed and trainer.is_global_zero:
            say(f"not as in the checkpoint: {', '.join(changed)}")


class FiniteLosses(pl.Callback):
    """Ends a training that diverges, before a checkpoint or a model folder is made of it.

    Losses must be finite; this is checked with the losses that are logged, at the end of each epoch and after
    validation. At the end of training, the loss must not be far above that of the untrained model.
    """

    def __init__(self) -> None:
        self._last: Tensor | None = None
        self._first = self._least = math.inf

    def state_dict(self) -> dict[str, float]:
        """The training loss of the untrained model, and the least one at the end of an epoch."""
        return {"first": self._first, "least": self._least}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both losses."""
        self._first, self._least = state_dict["first"], state_dict["least"]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Check the training loss if it is logged; half precision scales its losses and skips what overflows."""
        self._last = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        if self._first == math.inf and self._last is not None:
            self._first = float(self._last)
        if trainer.global_step % trainer.log_every_n_steps == 0 and trainer.precision != "16-mixed":  # type: ignore[attr-defined]
            self._check(trainer, "train_loss", self._last)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check the last training loss."""
        if trainer.precision != "16-mixed":
            self._check(trainer, "train_loss", self._last)
        if self._last is not None:
            self._least = min(self._least, float(self._last))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check the validation losses."""
        for name, value in trainer.callback_metrics.items():
            if name.startswith("val_") and name.endswith("loss") and not trainer.sanity_checking:
                self._check(trainer, name, value)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare the training loss with that of the untrained model; losses of other data may be on another scale."""
        keeps_best = getattr(trainer.checkpoint_callback, "monitor", None) is not None  # else the last epoch
        loss = self._least if keeps_best or self._last is None else float(self._last)
        if math.isfinite(loss) and loss > LARGEST_RISE * max(1.0, abs(self._first)):
            raise self._diverged(trainer, f"a train_loss near {self._first:.3g}, that of the untrained model", loss)

    def _check(self, trainer: pl.Trainer, name: str, value: Tensor | None) -> None:
        if value is not None and not bool(torch.isfinite(value).all()):
            raise self._diverged(trainer, f"a finite {name}", float(value))

    def _diverged(self, trainer: pl.Trainer, expected: str, found: float) -> InputError:
        group = trainer.optimizers[0].param_groups[0]
        best = getattr(trainer.checkpoint_callback, "best_model_path", "")
        return InputError(
            f"training diverged: expected {expected}, found {found:.3g} in epoch {trainer.current_epoch} at a learning "
            f"rate of {group.get('initial_lr', group['lr']):g}; give a smaller --model.optim.lr, or "
            f"--trainer.gradient_clip_val 1{f' (the best checkpoint is {best})' if best else ''}"
        )


def batch_size(batch: Batch | PackedRows, task: pl.LightningModule) -> tuple[int, int]:
    """Number of observed values of a batch, and of its tokens without padding."""
    if isinstance(batch, PackedRows):
        return int(batch.observed.sum()), int((batch.sample_id > 0).sum())
    observed = int(batch.past_observed.sum())
    if batch.future_observed is not None:
        observed += int(batch.future_observed.sum())
    patch = getattr(getattr(getattr(task, "forecaster", None), "config", None), "patch_size", 1)
    windows, steps, variates = batch.past.shape
    return observed, windows * variates * (-(-steps // patch) + -(-batch.horizon // patch))


def step_flops(batch: Batch | PackedRows, task: pl.LightningModule) -> int:
    """FLOPs of one training step on a batch; 0 for a task without a forecaster.

    They are counted on a model of the same sizes with fake tensors: while FLOPs are counted PyTorch uses other kernels,
    and the results of a real step would differ in the last bit.
    """
    model = getattr(task, "forecaster", None)
    if not isinstance(model, Forecaster):
        return 0
    here = batch.to("cpu")
    with torch.random.fork_rng(devices=[]):
        return count(
            lambda: type(model)(model.context, model.horizon, model.config),
            lambda fake, _: fake.loss(here),  # type: ignore[operator]
        ).flops


def device_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Peak FLOPs per second of a device in matrix products of a type."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for part, (half, single) in GPU_PEAKS.items():
            if all(word in name for word in part.split()):
                return half if dtype != torch.float32 else single
    a = torch.ones(SIDE, SIDE, dtype=dtype, device=device)

    def product() -> float:
        started = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    return 2 * SIDE**3 / min(product() for _ in range(6))
