"""A callback that logs the speed of training: observations and tokens per second, utilisation, waiting time."""

import time
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import STEP_OUTPUT

from tsfm.models import Forecaster, count
from tsfm_data.corpus import PackedRows
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
