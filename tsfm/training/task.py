"""The Lightning module of a forecaster, and the callback that writes the model folder after training."""

import copy
import hashlib
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from tsfm.configs import CONFIG_FOLDER
from tsfm.models import Forecaster, PackedForecaster, Pretraining, TrainingData
from tsfm.nn import DEFAULT_LEVELS
from tsfm.training.blocks import checkpoint_activations, shard
from tsfm.training.callbacks import Throughput
from tsfm.training.checkpoints import note_processes, share_progress
from tsfm.training.from_pretrained import FromPretrained
from tsfm.training.lora import merge
from tsfm.training.optim import OptimConfig, build_optimizer, lr_factor, training_steps
from tsfm.training.validation import scaled_errors
from tsfm.weights import calibrate, save
from tsfm_data.corpus import MANIFEST, PackedRows, PretrainingDataModule, current_path
from tsfm_data.errors import InputError, check_horizon
from tsfm_data.evaluation import bind, forecast_windows
from tsfm_data.windows import Batch, WindowLoader


class ForecastTask(pl.LightningModule):
    """Train, validate, test and predict with a forecaster.

    Args:
        forecaster: the model class and its sizes, or a pretrained model; context and horizon come from the data.
        context: time steps of history in a window.
        horizon: time steps to forecast.
        optim: optimiser and schedule.
        levels: quantile levels that ``tsfm predict`` writes, and of the WQL in the validation of pretraining.
        activation_checkpointing: save memory: keep only the inputs of the blocks, and compute the rest again in the
            backward pass.
    """

    def __init__(
        self,
        forecaster: Callable[[int, int], Forecaster] | FromPretrained,
        context: int = 96,
        horizon: int = 96,
        optim: OptimConfig = OptimConfig(),  # noqa: B008
        levels: tuple[float, ...] = DEFAULT_LEVELS,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        for name, size in (("context", context), ("horizon", horizon)):
            check_horizon(size, name, option=f"--data.{name}")
        self.forecaster = forecaster(context, horizon)
        if activation_checkpointing:
            checkpoint_activations(self.forecaster)
        self.optim = optim
        self.levels = levels
        self._random_state: Tensor | None = None

    def configure_model(self) -> None:
        """Shard the forecaster under Lightning's ``ModelParallelStrategy``."""
        shard(self, self.forecaster, "loss")

    def configure_optimizers(self) -> Any:
        """The optimiser, with its schedule stepped after every optimiser step."""
        # Lightning does not clip gradients under mixed precision with a fused optimiser.
        fused = not (self.trainer.gradient_clip_val and str(self.trainer.precision).endswith("mixed"))
        optimizer = build_optimizer(self.optim, self.forecaster, fused)
        per_epoch, total = training_steps(self.trainer)
        factor = lr_factor(self.optim, per_epoch, total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}

    def setup(self, stage: str) -> None:
        """Store facts about the training data in the forecaster, and bind it to its series; a checkpoint has neither.

        Raises:
            InputError: the data have covariates or packed rows, and the forecaster takes none.
        """
        module = getattr(self.trainer, "datamodule", None)
        if isinstance(module, PretrainingDataModule):
            if module.packed and not isinstance(self.forecaster, PackedForecaster):
                raise InputError(
                    f"model {self.forecaster.name} trains on windows, found packed rows: leave out --data.packed"
                )
        elif module is not None:
            given = [*module.series.past_names, *module.series.known_names]
            if given and not self.forecaster.covariates:
                raise InputError(
                    f"model {self.forecaster.name} takes no covariates, found {', '.join(given)} in the data: leave "
                    "them out, or train a model that takes them, such as moirai"
                )
            self.forecaster = bind(self.forecaster, module.series)  # type: ignore[assignment]  # of the same class
            self.forecaster.training_data = training_data(module)

    def transfer_batch_to_device(
        self, batch: Batch | PackedRows, device: torch.device, dataloader_idx: int
    ) -> Batch | PackedRows:
        """Move a batch; Lightning itself cannot move frozen dataclasses."""
        values = batch.past if isinstance(batch, Batch) else batch.target
        return batch if values.device == device else batch.to(device)

    def training_step(self, batch: Batch | PackedRows, batch_idx: int) -> Tensor:
        """Loss of one batch; logged only when the logger writes, because logging takes 5 % of a small model's step."""
        loss = self.forecaster.loss(batch)  # type: ignore[arg-type]  # rows only if the forecaster takes them, see setup
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log(
                "train_loss", loss.detach(), on_step=True, on_epoch=False, prog_bar=True, batch_size=1, sync_dist=True
            )
        return loss

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log the errors of one batch."""
        module = getattr(self.trainer, "datamodule", None)
        if isinstance(module, PretrainingDataModule):
            self.log_scaled_errors(f"val_{module.val_names[dataloader_idx]}", batch, batch_idx)
        else:
            self.log_errors("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the errors of one batch on the scale of the data module, as long-horizon benchmarks report them."""
        self.log_errors("test", batch)

    def log_errors(self, part: str, batch: Batch) -> None:
        """Log loss, MSE and MAE, weighted by the number of observed values so that their mean is exact."""
        if batch.future is None or batch.future_observed is None:
            return
        output = self.forecaster(batch)
        count = int(batch.future_observed.sum())
        loss = self.forecaster.loss_of(output, batch)
        error = torch.where(batch.future_observed, self.forecaster.centre(output) - batch.future, 0.0)
        values = {"loss": loss, "mse": error.square().sum() / max(count, 1), "mae": error.abs().sum() / max(count, 1)}
        for name, value in values.items():
            log_mean(self, f"{part}_{name}", value, count)

    def log_scaled_errors(self, part: str, batch: Batch, number: int) -> None:
        """Log the training loss, and errors of forecasts divided by the seasonal-naive error of each window.

        The forecasts are those that a user gets, over the whole horizon and in the units of the data. What a training
        loss draws at random is the same in every validation: it depends on the number of the batch alone.
        """

        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(number)
            loss = self.forecaster.loss(batch)
        log_mean(self, f"{part}_loss", loss, len(batch))
        errors, count = scaled_errors(batch, self.forecaster.predict(batch, self.levels))
        for name, value in errors.items():
            log_mean(self, f"{part}_{name}", value.to(self.device, torch.float32), count)

    def on_predict_start(self) -> None:
        """Calibrate the intervals of a point model on validation windows, as for the model folder."""
        module = getattr(self.trainer, "datamodule", None)
        if module is not None:
            calibrate(self.forecaster, module.val_dataloader())

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Mean and quantiles past the end of the data, in the data's own units."""
        scaler = self.trainer.datamodule.scaler  # type: ignore[attr-defined]
        batch = batch.to("cpu")
        past = torch.where(batch.past_observed, scaler.inverse(batch.past.double()), 0.0)
        forecast = forecast_windows(self.forecaster, replace(batch, past=past), self.levels)
        return {"mean": forecast.mean, "quantiles": forecast.quantiles}  # Lightning refuses frozen dataclasses

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the state of the random generator, so that resumed training has the same dropout."""
        checkpoint["random_state"] = torch.get_rng_state()
        note_processes(checkpoint, self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Read the state; it is set when training starts, after the sanity check of the validation loader."""
        self._random_state = checkpoint.get("random_state")
        share_progress(checkpoint, self)

    def on_train_start(self) -> None:
        """Restore the state of the random generator of the interrupted training."""
        if self._random_state is not None:
            torch.set_rng_state(self._random_state.cpu())
            self._random_state = None


def log_mean(task: pl.LightningModule, name: str, value: Tensor, count: int) -> None:
    """Log the mean of a batch; the logged value is the mean over all batches of all processes, weighted by ``count``.

    Args:
        task: the task that logs.
        name: of the metric.
        value: mean over a batch.
        count: how much it is the mean of. Lightning averages the counts over the processes and rounds whole numbers
            down, so that 10 and 9 would count as 9 and 9.
    """
    task.log(
        name, value, on_step=False, on_epoch=True, batch_size=float(count), sync_dist=True, add_dataloader_idx=False  # type: ignore[arg-type]
    )  # fmt: skip


def logged_names(module: Any) -> tuple[str, ...]:
    """Names of the metrics that a task logs while it trains on a data module, which callbacks may monitor."""
    if not isinstance(module, PretrainingDataModule):
        return ("train_loss", "val_loss", "val_mse", "val_mae")
    errors = [f"val_{part}_{name}" for part in module.val_names for name in ("loss", "mae", "wql")]
    return ("train_loss", *errors)


def training_data(module: Any) -> TrainingData:
    """Facts about the training data of a data module, which are saved with the weights."""
    scaler = module.scaler
    return TrainingData(
        source=module.series.name,
        freq=module.series.freqs[0],
        marks=module.marks,
        variates=module.series.variates,
        mean=tuple(scaler.mean.tolist()),
        std=tuple(scaler.std.tolist()),
        past_covariates=module.series.past_names,
        known_covariates=module.series.known_names,
    )


def pretraining(trainer: pl.Trainer, module: PretrainingDataModule) -> Pretraining:
    """Facts about the pretraining of a run so far, which are saved with the weights."""
    store, seed = module.store, os.environ.get("PL_GLOBAL_SEED")
    manifest = None if store is None else current_path(store.folder, MANIFEST).read_bytes()
    names = () if store is None else tuple(source.name for source in store.sources)
    started = Path(sys.argv[0]).stem == "tsfm" or Path(sys.argv[0]).parent.name == "tsfm"  # python -m tsfm
    observations = next((c.observations for c in trainer.callbacks if isinstance(c, Throughput)), None)  # type: ignore[attr-defined]
    return Pretraining(
        corpus=None if module.corpus is None else Path(module.corpus).name,
        manifest_sha256=None if manifest is None else hashlib.sha256(manifest).hexdigest(),
        sources=tuple(name for name in names if name not in module.held_out),
        held_out=tuple(name for name in names if name in module.held_out),
        seed=module.seed,
        global_seed=None if seed is None else int(seed),
        steps=trainer.global_step,
        batches=(trainer.fit_loop.epoch_loop.total_batch_idx + 1) * trainer.world_size,
        observations=observations,
        # Name shipped configs without the folder of this installation.
        command=shlex.join(["tsfm", *sys.argv[1:]]).replace(f"{CONFIG_FOLDER}/", "") if started else None,
    )


class ModelFolder(pl.Callback):
    """After training, load the best checkpoint, calibrate intervals on validation windows and write the model folder.

    In pretraining, which takes long, the folder is also written after every epoch, so the best weights so far can be
    used whenever it stops.

    The folder ``model`` in the run's folder has ``config.json``, ``model.safetensors`` and ``README.md``; ``tsfm
    forecast --model`` and ``tsfm evaluate --model`` read it.
    """

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the folder of the epochs so far. At the end of an epoch, its checkpoint may not exist yet."""
        if trainer.current_epoch and isinstance(trainer.datamodule, PretrainingDataModule):  # type: ignore[attr-defined]
            self.on_fit_end(trainer, pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the folder, only in the first process."""
        if (
            getattr(trainer, "fast_dev_run", False)
            or not trainer.is_global_zero
            or not isinstance(pl_module, ForecastTask)
        ):
            return
        module: Any = trainer.datamodule  # type: ignore[attr-defined]
        with torch.random.fork_rng(devices=[]):  # a new model is initialised; training goes on with its own numbers
            model = self.trained(trainer, pl_module)
        if isinstance(module, PretrainingDataModule):
            model.pretraining = pretraining(trainer, module)
        else:
            model = bind(model, module.series)  # type: ignore[assignment]  # of the same class
            # All windows, and not only those of this process.
            calibrate(model, WindowLoader(module.windows("val"), module.eval_batch_size))
        save(model, Path(trainer.default_root_dir) / "model")

    def trained(self, trainer: pl.Trainer, task: ForecastTask) -> Forecaster:
        """A new forecaster with the weights of the best checkpoint, also if training shards them."""
        checkpoint, forecaster = trainer.checkpoint_callback, task.forecaster
        if not (isinstance(checkpoint, ModelCheckpoint) and checkpoint.best_model_path):
            return merged(forecaster)
        path = Path(checkpoint.best_model_path)
        if not path.is_file() and checkpoint.dirpath is not None:  # the run was moved
            path = Path(checkpoint.dirpath) / path.name
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        prefix = "forecaster."
        weights = {key.removeprefix(prefix): x for key, x in state.items() if key.startswith(prefix)}
        updated = any("lora_" in key for key in weights)
        model = (
            copy.deepcopy(forecaster)
            if updated
            else type(forecaster)(forecaster.context, forecaster.horizon, forecaster.config)
        )
        model.training_data = forecaster.training_data
        model.load_state_dict(weights)
        return merged(model).to(task.device)


def merged(model: Forecaster) -> Forecaster:
    """The model with its low-rank updates, if any, added to the weights."""
    if not any("lora_" in name for name, _ in model.named_parameters()):
        return model
    model = copy.deepcopy(model)
    merge(model)
    return model
