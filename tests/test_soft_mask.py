"""iLLaMA's soft mask: exact, and scheduled by the number of optimiser steps."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from tsfm_data.errors import InputError
from tsfm_vision.backbones import ILlama, soft_mask
from tsfm_vision.training import SoftMaskSchedule


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("short", [0, 256])
def test_when_the_mask_is_soft_then_values_and_gradients_are_those_of_weights_multiplied_after_softmax(
    rate: float, short: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soft_mask, "SHORT", short)  # 0: in parts
    monkeypatch.setattr(soft_mask, "PART", 4)  # the 9 tokens make three parts, the last one shorter
    generator = torch.Generator().manual_seed(0)
    q, k, v, probe = (torch.randn(2, 9, 3, 4, generator=generator, dtype=torch.float64) for _ in range(4))
    still_2NR = torch.stack([torch.ones(9, 2), torch.zeros(9, 2)]).double()  # no rotation
    actual, expected = [], []
    for results in (actual, expected):
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        if results is actual:
            out = soft_mask.soft_masked(torch.stack(inputs, 2), still_2NR, rate).unflatten(2, (3, 4))
        else:
            weights = (torch.einsum("bnhd,bmhd->bhnm", inputs[0], inputs[1]) / 2).softmax(-1)
            weights = weights * (rate + (1 - rate) * torch.ones(9, 9, dtype=torch.float64).tril())
            out = torch.einsum("bhnm,bmhd->bnhd", weights, inputs[2])
        (out * probe).sum().backward()
        results += [out, *(x.grad for x in inputs)]
    for one, other in zip(actual, expected, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-13)


class Training(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = ILlama(img_size=16, patch_size=8, embed_dim=8, depth=1, num_heads=2, num_classes=2)
        self.seen: list[float] = []

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        self.seen.append(self.model.soft_mask_rate)
        return self.model(batch[0]).sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def train(folder: Path, epochs: int, module: pl.LightningModule, resume: Path | None = None) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=4,
        limit_train_batches=3,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[SoftMaskSchedule("linear", 2), Stop(epochs)],
    )
    trainer.fit(module, DataLoader(TensorDataset(torch.randn(3, 3, 16, 16))), ckpt_path=resume, weights_only=False)
    return trainer


class Stop(pl.Callback):
    """Ends the training after so many epochs, as an interruption would."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*LeafSpec")
def test_when_training_is_resumed_then_the_soft_mask_goes_on_where_it_was(tmp_path: Path) -> None:
    first, second = Training(), Training()
    train(tmp_path, 1, first).save_checkpoint(tmp_path / "last.ckpt")
    train(tmp_path, 4, second, tmp_path / "last.ckpt")
    assert first.seen == pytest.approx([1.0, 0.8, 0.6])
    assert second.seen == pytest.approx([0.4, 0.2, 0.0, 0, 0, 0, 0, 0, 0])


def test_when_the_model_has_no_soft_mask_then_the_schedule_says_so() -> None:
    with pytest.raises(InputError, match="found none"):
        SoftMaskSchedule().on_train_start(pl.Trainer(max_epochs=1, logger=False, accelerator="cpu"), Other())


class Other(pl.LightningModule):
    pass
