"""The data module of pretraining: nothing of validation is trained on, and training resumes bit for bit."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from tsfm.models import LongHistoryConfig, LongHistoryDecoder
from tsfm.training.task import ForecastTask
from tsfm_data.corpus.augmentation import AugmentConfig
from tsfm_data.corpus.building import build
from tsfm_data.corpus.datamodule import PretrainingDataModule
from tsfm_data.corpus.packing import PackedRows
from tsfm_data.errors import InputError
from tsfm_data.windows.batch import Batch

# Lightning 2.6 asks PyTorch a question that PyTorch 2.15 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning")

OPTIONS: dict[str, Any] = {"context": 32, "horizon": 8, "batch_size": 16, "batches_per_epoch": 7, "val_windows": 40}
ROWS = {"hourly": 400, "daily": 90, "other": 60}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three sources whose values say where they stand: 1,000 times the number of the series, plus the step."""
    folder = tmp_path_factory.mktemp("corpus")
    lines = ["sources:"]
    for number, (name, rows) in enumerate(ROWS.items()):
        values = {f"v{k}": np.arange(rows) + 1000.0 * (10 * number + k + 1) for k in range(3)}
        index = pd.date_range("2024-01-01", periods=rows, freq="h" if name == "hourly" else "D")
        pd.DataFrame({"date": index, **values}).to_csv(folder / f"{name}.csv", index=False)
        lines.append(f"  - {{path: {name}.csv, name: {name}}}")
    (folder / "corpus.yaml").write_text("\n".join(lines))
    build(folder / "corpus.yaml", folder / "built", progress=False)
    return str(folder / "built")


def seen(batch: Batch | PackedRows) -> tuple[np.ndarray, np.ndarray]:
    """The observed values of the past and of the future."""
    assert isinstance(batch, Batch)
    assert batch.future is not None
    assert batch.future_observed is not None
    return batch.past[batch.past_observed].numpy(), batch.future[batch.future_observed].numpy()


def test_when_validated_then_no_future_value_is_ever_trained_on(corpus: str) -> None:
    data = PretrainingDataModule(corpus, synthetic=False, held_out=["other"], **OPTIONS)
    trained: set[float] = set()
    loader = data.train_dataloader()
    for _ in range(20):
        trained.update(x for batch in loader for part in seen(batch) for x in part.tolist())
    assert data.val_names == ("in", "out")
    inside, outside = data.val_dataloader()
    futures = {x for batch in inside for x in seen(batch)[1].tolist()}
    assert futures
    assert not futures & trained
    held = {x for batch in outside for part in seen(batch) for x in part.tolist()}
    assert min(held) > 20_000 > max(trained)
    assert sum(len(batch) for batch in outside) == 40
    # Every forecast of "in" begins where training ends: at the last tenth, or 16 steps before the end.
    futures_BH = torch.cat([batch.future[..., 0] for batch in inside if batch.future is not None])
    firsts = {float(first) % 1000 for first in futures_BH[:, 0]}
    assert firsts == {400 - 16, 90 - 9}


def test_when_series_have_unlike_seasons_then_a_batch_holds_one_of_them(corpus: str) -> None:
    (inside,) = PretrainingDataModule(corpus, synthetic=False, **OPTIONS).val_dataloader()
    for batch in inside:
        hourly = batch.past.amax(dim=1)[:, 0] < 4000
        assert hourly.unique().numel() == 1
        assert batch.season == (24 if hourly[0] else 1)
    assert {batch.season for batch in inside} == {24, 1}


def test_when_there_are_two_processes_then_each_validation_window_is_scored_once(corpus: str) -> None:
    data = PretrainingDataModule(corpus, synthetic=False, **OPTIONS)
    (whole,) = data.val_dataloader()
    pieces: list[torch.Tensor] = []
    for rank in range(2):
        other = PretrainingDataModule(corpus, synthetic=False, **OPTIONS)
        other.trainer = SimpleNamespace(global_rank=rank, world_size=2)  # type: ignore[assignment]
        pieces += [batch.past for batch in other.val_dataloader()[0]]
    ours, theirs = (torch.cat([x.flatten(1) for x in part]) for part in ([b.past for b in whole], pieces))
    assert torch.equal(ours[ours.sum(1).argsort()].sort(0).values, theirs[theirs.sum(1).argsort()].sort(0).values)


def test_when_there_is_no_corpus_then_synthetic_series_train_and_validate() -> None:
    data = PretrainingDataModule(None, synthetic={"macro": 1.0}, **OPTIONS)
    (inside,) = data.val_dataloader()
    assert sum(len(batch) for batch in inside) == 40
    again = PretrainingDataModule(None, synthetic={"macro": 1.0}, **OPTIONS)
    first, second = (seen(module.train_dataloader().batch(0, 0))[0] for module in (data, again))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, seen(next(iter(inside)))[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corpus": None, "synthetic": False}, "found neither"),
        ({"corpus": "nowhere"}, "no such file"),
        ({"held_out": ["othr"]}, "did you mean other"),
        ({"corpus": None, "held_out": ["other"]}, "found no corpus"),
        ({"synthetic": {"gq": 1.0}}, "unknown family"),
        ({"val_windows": 0}, "val_windows"),
        ({"eval_batch_size": -1}, "eval_batch_size"),
        ({"context": 0}, "context"),
        ({"holdout": 0.001}, "leaves a tail to validate on"),
        ({"packed": True, "tokens": 1}, "tokens"),
    ],
)
def test_when_an_option_is_wrong_then_one_line_says_so(corpus: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        PretrainingDataModule(**{"corpus": corpus, "held_out": [], **OPTIONS, **options}).setup()
    assert "\n" not in str(caught.value)


class Linear(pl.LightningModule):
    """The smallest model that depends on every batch it saw, and on their order."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 8)
        self.sums: list[float] = []

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        values = batch.target if isinstance(batch, PackedRows) else batch.past[..., 0].unflatten(1, (4, 8))
        values = torch.tanh(values / 1000)
        self.sums.append(float(values.double().sum()))
        return (self.layer(values) - values).square().mean()

    def validation_step(self, batch: Batch, index: int, dataloader_idx: int = 0) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def train(corpus: str, folder: Path, packed: bool, every: int | None = None, resume: str | None = None) -> Linear:
    pl.seed_everything(0, verbose=False)
    saver = ModelCheckpoint(dirpath=folder / "c", filename="{step}", save_top_k=-1, every_n_train_steps=every)
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=every is not None,
        callbacks=[saver] if every is not None else None,
        default_root_dir=folder,
    )
    augment, synthetic = AugmentConfig(*[0.2] * 10), {"macro": 1.0}
    data = PretrainingDataModule(
        corpus, synthetic=synthetic, augment=augment, packed=packed, patch_size=8, tokens=8, **OPTIONS
    )
    model = Linear()
    trainer.fit(model, datamodule=data, ckpt_path=resume, weights_only=True if resume else None)
    return model


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")
@pytest.mark.parametrize("packed", [False, True], ids=["windows", "packed"])
def test_when_training_is_resumed_within_an_epoch_then_it_is_bit_equal_to_training_in_one_go(
    corpus: str, tmp_path: Path, packed: bool
) -> None:
    whole = train(corpus, tmp_path, packed)
    assert len(whole.sums) == len(set(whole.sums)) == 14
    train(corpus, tmp_path, packed, every=5)
    for done in (5, 10):
        resumed = train(corpus, tmp_path, packed, every=5, resume=str(tmp_path / "c" / f"step={done}.ckpt"))
        assert resumed.sums == whole.sums[done:]
        assert torch.equal(resumed.layer.weight, whole.layer.weight)


def test_when_a_training_loss_draws_at_random_then_validations_of_the_same_weights_agree(
    corpus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = PretrainingDataModule(corpus, synthetic=False, **OPTIONS)
    config = LongHistoryConfig.tiny()
    task = ForecastTask(lambda context, horizon: LongHistoryDecoder(context, horizon, config), 32, 8)
    logged: list[float] = []

    def log(name: str, value: torch.Tensor, **_: Any) -> None:
        logged.extend([float(value.detach())] * name.endswith("loss"))

    monkeypatch.setattr(task, "log", log)
    batch = next(iter(data.val_dataloader()[0]))
    for seed in (1, 2):
        torch.manual_seed(seed)
        task.log_scaled_errors("val_in", batch, 0)
        assert torch.initial_seed() == seed  # training goes on as if nothing had been validated
    plain = [float(task.forecaster.loss(batch).detach()) for _ in range(4)]
    assert logged[0] == logged[1]
    assert len(set(plain)) > 1
