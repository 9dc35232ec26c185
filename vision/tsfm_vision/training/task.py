"""The thin Lightning module around a timm model; the mathematics are the model's."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from tsfm.training import log_mean, note_processes, shard, share_progress, training_steps
from tsfm_data.errors import InputError
from tsfm_data.output import say
from tsfm_vision.backbones import load_weights
from tsfm_vision.evaluation import reseed, write_probabilities
from tsfm_vision.training.data import ImageDataModule
from tsfm_vision.training.recipes import ImageOptim, Mix, build_optimizer, lr_factor
from tsfm_vision.weights import Seen, TrainedOn, create, data_config, save


class NetTask(pl.LightningModule):
    """What tasks of images share: a model ``net`` of a ``data_config``, trained as ``optim`` says."""

    net: nn.Module
    data_config: dict[str, Any]
    optim: ImageOptim

    def on_fit_start(self) -> None:
        """Print the data and the model."""
        self.say_data()
        if self.trainer.is_global_zero:
            parameters = sum(p.numel() for p in self.net.parameters())
            say(f"model: {type(self.net).__name__}, {parameters:,} parameters, input {self.data_config['input_size']}")

    def on_test_start(self) -> None:
        """Print the data."""
        self.say_data()

    def say_data(self) -> None:
        """Print the data, and whether validation images are tested on because there are no others."""
        if self.trainer.is_global_zero:
            data = self.trainer.datamodule  # type: ignore[attr-defined]
            say(f"data: {data.source}, {data.describe()}")

    def configure_model(self) -> None:
        """Shard the model under Lightning's ``ModelParallelStrategy``."""
        shard(self, self.net)

    def configure_optimizers(self) -> Any:
        """AdamW over timm's parameter groups, its schedule stepped after every optimiser step."""
        trainer, data = self.trainer, self.trainer.datamodule  # type: ignore[attr-defined]
        batch = data.batch_size * trainer.world_size * trainer.accumulate_grad_batches
        optimizer = build_optimizer(self.optim, self.net, batch)
        per_epoch, _ = training_steps(trainer)
        schedule = LambdaLR(optimizer, lr_factor(self.optim, per_epoch, max(1, trainer.max_epochs or 1), batch))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save what another number of processes needs to resume."""
        note_processes(checkpoint, self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue with another number of processes."""
        share_progress(checkpoint, self)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed dropout and mixing for each batch, so that resumed training gives the same result."""
        reseed(self.trainer.datamodule.seed, self.trainer.current_epoch, batch_idx, self.global_rank)  # type: ignore[attr-defined]

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """As in validation."""
        self.validation_step(batch, batch_idx, "test")


class ImageTask(NetTask):
    """Train, validate, test and predict with an image model of timm or of this package.

    Args:
        model: its name in timm.
        num_classes: classes of the images.
        img_size: side of the images in pixels; null takes the model's own.
        in_chans: channels of the images: 1 (grey), 2 (grey and alpha), 3 (RGB) or 4 (RGB and alpha).
        model_args: further sizes that the model takes.
        preprocessing: mean, std, crop_pct, interpolation and crop_mode that replace the model's own.
        weights: a file of weights to start from, of timm or of the original implementation.
        optim: optimiser and schedule.
        mix: mixup, cutmix and label smoothing.
        activation_checkpointing: save memory: keep only the inputs of the blocks, and compute the rest again in the
            backward pass.
    """

    logged: ClassVar[tuple[str, ...]] = ("train_loss", "val_loss", "val_top1")  # while training
    predictions = "predictions.csv"  # file of ``write_predictions``

    def __init__(
        self,
        model: str,
        num_classes: int = 1000,
        img_size: int | None = None,
        in_chans: int = 3,
        model_args: dict[str, Any] | None = None,
        preprocessing: dict[str, Any] | None = None,
        weights: str | None = None,
        optim: ImageOptim = ImageOptim(),  # noqa: B008
        mix: Mix = Mix(),  # noqa: B008
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.make = partial(create, model, num_classes, img_size, in_chans, model_args or {}, preprocessing or {})
        self.net = self.make()
        if weights is None:  # the licence is that of published weights
            self.net.pretrained_cfg.pop("license", None)  # type: ignore[operator,union-attr]
        else:
            load_weights(self.net, weights)
        if activation_checkpointing:
            self.net.set_grad_checkpointing()  # type: ignore[operator]
        self.data_config = data_config(self.net)
        self.num_classes, self.optim, self.mix = num_classes, optim, mix
        self.mixup = mix.build(num_classes)
        self.trained_on: TrainedOn | None = None

    def whole(self, state: dict[str, Tensor]) -> nn.Module:
        """The model with the weights of a checkpoint, not sharded."""
        net: nn.Module = self.make()
        net.pretrained_cfg = self.net.pretrained_cfg
        net.load_state_dict({key.removeprefix("net."): x for key, x in state.items() if key.startswith("net.")})
        return net

    def meet(self, data: ImageDataModule) -> None:
        """Store what the model is trained on, and check that model and data fit.

        Raises:
            InputError: another number of classes, or a batch of an odd size if images are mixed in pairs.
        """
        if len(data.classes) != self.num_classes:
            raise InputError(
                f"expected a model of {len(data.classes)} classes for {data.source}, found one of {self.num_classes}: "
                f"give --model.num_classes {len(data.classes)}"
            )
        if self.mixup is not None and data.batch_size % 2:
            raise InputError(f"expected an even batch_size to mix images in pairs, found {data.batch_size}: change it")
        (first, *_), train = data.parts.values(), data.parts.get("train", ())
        self.trained_on = TrainedOn(first.name, data.classes, len(train))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Cross-entropy of one batch, mixed and smoothed as the recipe says."""
        images, labels = batch
        if self.mixup is not None:
            images, labels = self.mixup(images, labels)
            loss = F.cross_entropy(self.net(images), labels)
        else:
            loss = F.cross_entropy(self.net(images), labels, label_smoothing=self.mix.smoothing)
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log("train_loss", loss.detach(), on_step=True, on_epoch=False, prog_bar=True, sync_dist=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int, part: str = "val") -> None:
        """Log cross-entropy (without smoothing) and top-1 accuracy, each weighted by the number of images."""
        images, labels = batch
        logits = self.net(images)
        values = {"loss": F.cross_entropy(logits, labels), "top1": (logits.argmax(1) == labels).float().mean()}
        if self.num_classes > 5 and part == "test":
            values["top5"] = (logits.topk(5).indices == labels[:, None]).any(1).float().mean()
        for name, value in values.items():
            log_mean(self, f"{part}_{name}", value, len(labels))

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Class probabilities."""
        return self.net(batch[0]).softmax(-1)

    def write_predictions(self, batches: list[Tensor]) -> None:
        """Write the class probabilities of the test images to ``predictions.csv`` in the run's folder."""
        data, path = self.trainer.datamodule, Path(self.trainer.default_root_dir) / self.predictions  # type: ignore[attr-defined]
        write_probabilities(path, torch.cat(batches).float().cpu().numpy(), data.part("test"), data.classes)
        say(f"{path}: {len(data.part('test'))} images")


class ImageModelFolder(pl.Callback):
    """After training, write the best checkpoint to the model folder ``model`` in the run's folder.

    ``tsfm image evaluate --model`` and ``timm.create_model("local-dir:FOLDER", pretrained=True)`` read it.
    """

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the folder, in the first process only."""
        if getattr(trainer, "fast_dev_run", False) or not trainer.is_global_zero:
            return
        if not isinstance(pl_module, ImageTask):
            raise InputError(f"expected an ImageTask for ImageModelFolder, found {type(pl_module).__name__}: remove it")
        checkpoint, net = trainer.checkpoint_callback, pl_module.net
        if isinstance(checkpoint, ModelCheckpoint) and checkpoint.best_model_path:
            state = torch.load(checkpoint.best_model_path, map_location="cpu", weights_only=True)["state_dict"]
            if pl_module.device_mesh is None:
                pl_module.load_state_dict(state)
            else:
                net = pl_module.whole(state)
        root = Path(trainer.default_root_dir)
        parts, trained_on = trainer.datamodule.parts, pl_module.trained_on  # type: ignore[attr-defined]
        if trained_on is not None:
            trained_on = replace(trained_on, seen=Seen().and_now(parts["train"], parts["val"]))
        save(net, root / "model", trained_on)
        say(
            f"to score: tsfm image evaluate IMAGES --model {root}; to predict: tsfm image predict IMAGES --model {root}"
        )
