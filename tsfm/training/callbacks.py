"""What happens beside a training: its speed is measured, its config counts, and it ends where it diverges."""

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
from tsfm_data.windows import Batch

# Dense matrix products a second by the makers' data sheets: half precision, and float32 (as TF32 where it is allowed).
GPU_PEAKS = {
    "H200": (989e12, 494.5e12),
    "H100 PCIe": (756e12, 378e12),
    "H100": (989e12, 494.5e12),
    "A100": (312e12, 156e12),
    "L40S": (362e12, 183e12),
    "L4": (121e12, 60e12),
    "A10": (125e12, 62.5e12),
}
SIDE = 1024  # of the matrices whose product is timed


class Throughput(pl.Callback):
    """Log how fast training goes, over the steps since the last log.

    ``observations/s`` counts observed values, of all devices; ``tokens/s`` the tokens that the model makes of them;
    ``mfu`` is the share of the device's peak (model FLOPs utilisation, Chowdhery et al. 2022, appendix B), with the
    operations of one step counted once; ``stall`` is the share of the time that a step waits for its batch. The time
    of validation and of writing checkpoints is left out.

    Args:
        peak_flops: operations a second that one device could do at best; by default from the data sheet of a known
            GPU, else the best of a few matrix products, timed.
    """

    def __init__(self, peak_flops: float | None = None) -> None:
        self.peak_flops = peak_flops
        self.observations = 0
        self._step_flops: int | None = None
        self._ended: float | None = None
        self._begun = 0.0
        self._clear()

    def _clear(self) -> None:
        self._waited = self._worked = 0.0
        self._observed = self._tokens = self._steps = 0

    def state_dict(self) -> dict[str, int]:
        """Observations seen so far."""
        return {"observations": self.observations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.observations = state_dict["observations"]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the peak before the clock starts."""
        if self.peak_flops is None:
            half = str(trainer.precision) in ("bf16-mixed", "bf16-true", "16-mixed", "16-true")
            self.peak_flops = device_peak(trainer.strategy.root_device, torch.bfloat16 if half else torch.float32)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stop waiting; before the first step of all, count its operations."""
        if self._step_flops is None:
            self._step_flops = step_flops(batch, pl_module)
            self._ended = None
        self._begun = time.perf_counter()
        if self._ended is not None:
            self._waited += self._begun - self._ended

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Add a step up; log where the logger writes."""
        logs = trainer.global_step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        if logs and pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        observed, tokens = batch_size(batch, pl_module)
        self.observations += observed * trainer.world_size
        self._observed += observed
        self._tokens += tokens
        self._steps += 1
        self._ended = time.perf_counter()
        self._worked += self._ended - self._begun
        if logs:
            for name, value in self.rates(trainer.world_size).items():
                shown = name in ("observations/s", "mfu")
                pl_module.log(name, value, on_step=True, on_epoch=False, prog_bar=shown, batch_size=1)
            self._clear()

    def rates(self, devices: int) -> dict[str, float]:
        """What is logged, over the steps since the last log."""
        seconds = self._waited + self._worked
        found = {
            "observations/s": devices * self._observed / seconds,
            "tokens/s": devices * self._tokens / seconds,
            "steps/s": self._steps / seconds,
            "stall": self._waited / seconds,
        }
        if self._step_flops and self.peak_flops:
            found["mfu"] = self._step_flops * self._steps / seconds / self.peak_flops
        return found

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What comes until the next step is no waiting for a batch."""
        self._ended = None

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """As for validation."""
        self._ended = None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """As for validation."""
        self._ended = None


class ConfigCounts(pl.Callback):
    """Resumed, a training goes on with the numbers of its config, whatever those of its checkpoint were.

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
            print(f"not as in the checkpoint: {', '.join(changed)}")


class FiniteLosses(pl.Callback):
    """Ends a training whose loss is no longer finite, before a checkpoint or a model folder is made of it.

    Looked at with the losses that are logged, at the end of each epoch and after validation.
    """

    def __init__(self) -> None:
        self._last: Tensor | None = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Look at the training loss where it is logged; half precision scales its losses and skips what overflows."""
        self._last = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        if trainer.global_step % trainer.log_every_n_steps == 0 and trainer.precision != "16-mixed":  # type: ignore[attr-defined]
            self._check(trainer, "train_loss", self._last)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the last training loss."""
        if trainer.precision != "16-mixed":
            self._check(trainer, "train_loss", self._last)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the validation losses."""
        for name, value in trainer.callback_metrics.items():
            if name.startswith("val_") and name.endswith("loss") and not trainer.sanity_checking:
                self._check(trainer, name, value)

    def _check(self, trainer: pl.Trainer, name: str, value: Tensor | None) -> None:
        if value is None or bool(torch.isfinite(value).all()):
            return
        group = trainer.optimizers[0].param_groups[0]
        best = getattr(trainer.checkpoint_callback, "best_model_path", "")
        raise InputError(
            f"training diverged: expected a finite {name}, found {float(value):g} in epoch {trainer.current_epoch} at "
            f"a learning rate of {group.get('initial_lr', group['lr']):g}; give a smaller --model.optim.lr, or "
            f"--trainer.gradient_clip_val 1{f' (the best checkpoint is {best})' if best else ''}"
        )


def batch_size(batch: Batch | PackedRows, task: pl.LightningModule) -> tuple[int, int]:
    """Observed values of a batch, and tokens that hold some of a series."""
    if isinstance(batch, PackedRows):
        return int(batch.observed.sum()), int((batch.sample_id > 0).sum())
    observed = int(batch.past_observed.sum())
    if batch.future_observed is not None:
        observed += int(batch.future_observed.sum())
    patch = getattr(getattr(getattr(task, "forecaster", None), "config", None), "patch_size", 1)
    windows, steps, variates = batch.past.shape
    return observed, windows * variates * (-(-steps // patch) + -(-batch.horizon // patch))


def step_flops(batch: Batch | PackedRows, task: pl.LightningModule) -> int:
    """Operations of one training step on a batch, 0 for a task without a forecaster.

    They are counted on another model of the same sizes that has no numbers (fake tensors): under the counter PyTorch
    takes other kernels, and a training would depend, in the last bit, on where it was resumed.
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
    """Operations a second that a device does at best in matrix products of a type."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for part, (half, single) in GPU_PEAKS.items():
            if all(word in name for word in part.split()):
                return half if dtype != torch.float32 else single
    a = torch.ones(SIDE, SIDE, dtype=dtype, device=device)

    def product() -> float:
        begun = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begun

    return 2 * SIDE**3 / min(product() for _ in range(6))
