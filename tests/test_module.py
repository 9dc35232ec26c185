"""The data module: published counts, no leak from test rows, and training that resumes bit for bit under Lightning."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from tsfm_data.errors import InputError
from tsfm_data.windows.batch import Batch
from tsfm_data.windows.datamodule import ForecastDataModule

# Lightning 2.6 asks PyTorch a question that PyTorch 2.15 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning")

OPTIONS: dict[str, Any] = {"context": 24, "horizon": 6, "batch_size": 16}


def write_wide(path: Path, rows: int = 300, variates: int = 4, later: float | None = None) -> Path:
    """A wide CSV; ``later`` overwrites the last fifth of the rows."""
    values = np.random.default_rng(0).normal(10, 3, (rows, variates))
    if later is not None:
        values[rows - rows // 5 :] = later
    frame = pd.DataFrame(values, columns=[f"v{i}" for i in range(variates)])
    frame.insert(0, "date", pd.date_range("2024-01-01", periods=rows, freq="h"))
    frame.to_csv(path, index=False)
    return path


@pytest.fixture
def table(tmp_path: Path) -> str:
    return str(write_wide(tmp_path / "wide.csv"))


@pytest.mark.parametrize(
    ("name", "horizon", "counts"),
    [("ETTh1", 96, [8449, 2785, 2785]), ("ETTh2", 720, [7825, 2161, 2161]), ("ETTm1", 96, [34369, 11425, 11425])],
)
def test_the_published_numbers_of_windows_are_scored(
    data_folder: Path, name: str, horizon: int, counts: list[int]
) -> None:
    data = ForecastDataModule(name, context=96, horizon=horizon)
    assert [len(data.windows(part)) for part in ("train", "val", "test")] == counts
    for part, count in (("val", counts[1]), ("test", counts[2])):
        loader = data.val_dataloader() if part == "val" else data.test_dataloader()
        if horizon == 96 and name == "ETTh1":
            assert sum(len(batch) for batch in loader) == count
    assert len(data.train_dataloader()) == counts[0] // 32


def test_etth1_batches_equal_the_protocol_written_out(data_folder: Path) -> None:
    data = ForecastDataModule("ETTh1", context=96, horizon=96)
    frame = pd.read_parquet(data_folder / "bench" / "ETTh1.parquet")
    values = frame.iloc[:, 1:].to_numpy(np.float64)
    values = (values - values[:8640].mean(axis=0)) / values[:8640].std(axis=0)
    windows = data.windows("test")
    batch = windows.batch([0, len(windows) - 1])
    assert batch.future is not None
    for w, cut in enumerate((11520, 14400 - 96)):
        np.testing.assert_allclose(batch.past[w], values[cut - 96 : cut], rtol=2e-6, atol=1e-6)
        np.testing.assert_allclose(batch.future[w], values[cut : cut + 96], rtol=2e-6, atol=1e-6)
    assert batch.future_marks is not None
    date = pd.Timestamp(frame.iloc[11520, 0])
    expected = [date.hour / 23, date.dayofweek / 6, (date.day - 1) / 30, (date.dayofyear - 1) / 365]
    np.testing.assert_allclose(batch.future_marks[0, 0] + 0.5, expected, atol=1e-6)


@pytest.mark.parametrize("later", [float("nan"), 1e30, -7.0])
def test_whatever_stands_in_the_test_rows_training_and_validation_are_the_same(tmp_path: Path, later: float) -> None:
    usual = ForecastDataModule(str(write_wide(tmp_path / "a.csv")), **OPTIONS)
    changed = ForecastDataModule(str(write_wide(tmp_path / "b.csv", later=later)), **OPTIONS)
    for a_loader, b_loader in (
        (usual.train_dataloader(), changed.train_dataloader()),
        (usual.val_dataloader(), changed.val_dataloader()),
    ):
        for a, b in zip(a_loader, b_loader, strict=True):
            for field in ("past", "past_observed", "future", "future_observed"):
                assert torch.equal(getattr(a, field), getattr(b, field))
    assert np.array_equal(usual.scaler.mean, changed.scaler.mean)
    assert np.array_equal(usual.scaler.std, changed.scaler.std)


def test_setup_twice_reads_once(table: str) -> None:
    data = ForecastDataModule(table, **OPTIONS)
    data.setup("fit")
    series = data.series
    data.setup("test")
    assert data.series is series


def test_prediction_starts_after_the_last_row_and_inverts_to_original_units(table: str) -> None:
    data = ForecastDataModule(table, **OPTIONS)
    (batch,) = list(data.predict_dataloader())
    assert batch.future is None
    assert batch.cut is not None
    assert batch.cut.tolist() == [300]
    last = data.scaler.inverse(batch.past[0].double())
    np.testing.assert_allclose(last, pd.read_csv(table).iloc[-24:, 1:], rtol=1e-5)
    assert batch.future_marks is not None
    assert batch.future_marks[0, 0, 0] == pytest.approx(300 % 24 / 23 - 0.5)


def test_without_standardisation_values_keep_their_units(table: str) -> None:
    data = ForecastDataModule(table, standardize=False, marks=None, **OPTIONS)
    (batch,) = list(data.predict_dataloader())
    assert (data.scaler.mean.tolist(), data.scaler.std.tolist()) == ([0.0] * 4, [1.0] * 4)
    assert batch.past_marks is None
    np.testing.assert_allclose(batch.past[0], pd.read_csv(table).iloc[-24:, 1:], rtol=1e-6)


@pytest.mark.parametrize("wanted", [2, 0.5, ["v3", "v1"]])
def test_partial_variate_training_tests_on_all_variates(table: str, wanted: Any) -> None:
    data = ForecastDataModule(table, train_variates=wanted, **OPTIONS)
    assert next(iter(data.train_dataloader())).past.shape[2] == 2
    assert next(iter(data.val_dataloader())).past.shape[2] == 2
    assert next(iter(data.test_dataloader())).past.shape[2] == 4
    if isinstance(wanted, list):
        assert data.windows("train").variates.tolist() == [1, 3]


def test_the_random_choice_of_training_variates_depends_on_the_seed_alone(table: str) -> None:
    def choose(seed: int) -> tuple[int, ...]:
        data = ForecastDataModule(table, train_variates=2, seed=seed, **OPTIONS)
        return tuple(data.windows("train").variates.tolist())

    chosen, again = ([choose(seed) for seed in range(8)] for _ in range(2))
    assert chosen == again
    assert len(set(chosen)) > 1


def test_long_tables_give_windows_of_every_series(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = [
        pd.DataFrame(
            {
                "item_id": name,
                "timestamp": pd.date_range("2024-01-01", periods=rows, freq="D"),
                "target": rng.normal(size=rows),
            }
        )
        for name, rows in (("a", 200), ("b", 120), ("tiny", 9))
    ]
    path = tmp_path / "long.parquet"
    pd.concat(frames).to_parquet(path)
    data = ForecastDataModule(str(path), context=14, horizon=7, marks="d")
    assert set(data.windows("train").items.tolist()) == {0, 1}
    assert "1 of 3 series left out" in data.describe()
    assert len(next(iter(data.predict_dataloader()))) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": 0}, "horizon"),
        ({"context": 0}, "context"),
        ({"context": 400}, "found 300 rows"),
        ({"split": "lfs"}, "did you mean lsf"),
        ({"split": "lsf"}, "no published borders"),
        ({"split": [0.7, 0.2]}, "three numbers"),
        ({"split": [0.7, 0.1, 0.1]}, "sum to 1"),
        ({"split": [250, 40, 40]}, "needs 330 rows, found 300"),
        ({"train_variates": ["v9"]}, "unknown variate 'v9'"),
        ({"train_variates": 9}, "1 to 4"),
        ({"variates_per_batch": 1.5}, "fraction"),
        ({"batch_size": 0}, "batch_size"),
        ({"marks": "nonsense"}, "nonsense"),
    ],
)
def test_a_mistake_is_one_line(table: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        ForecastDataModule(table, **{**OPTIONS, **options}).train_dataloader()
    assert "\n" not in str(caught.value)


class Linear(pl.LightningModule):
    """The smallest model that depends on every batch it saw, and on their order."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(24, 6)
        self.cuts: list[int] = []

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        assert batch.cut is not None
        assert batch.future is not None
        self.cuts.extend(batch.cut.tolist())
        return (self.layer(batch.past.transpose(1, 2)) - batch.future.transpose(1, 2)).square().mean()

    def validation_step(self, batch: Batch, index: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def train(table: str, folder: Path, checkpoint: ModelCheckpoint | None = None, resume: str | None = None) -> Linear:
    pl.seed_everything(0, verbose=False)
    model = Linear()
    trainer = pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=checkpoint is not None,
        callbacks=[checkpoint] if checkpoint else None,
        default_root_dir=folder,
    )
    data = ForecastDataModule(table, variates_per_batch=2, **OPTIONS)
    trainer.fit(model, datamodule=data, ckpt_path=resume, weights_only=True if resume else None)
    return model


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")
@pytest.mark.parametrize(
    "save",
    [
        {"every_n_train_steps": 5},  # in the middle of an epoch (11 steps)
        {"every_n_train_steps": 11},  # at its last step
        {"every_n_train_steps": 12},  # after the first step of an epoch
        {"every_n_epochs": 1, "save_on_train_epoch_end": True},
        {"every_n_epochs": 1, "save_on_train_epoch_end": False},  # after validation
    ],
    ids=["mid-epoch", "last-step", "first-step", "epoch-end", "after-validation"],
)
def test_training_interrupted_and_resumed_is_bit_equal_to_training_in_one_go(
    table: str, tmp_path: Path, save: dict[str, Any]
) -> None:
    def saver() -> ModelCheckpoint:
        return ModelCheckpoint(dirpath=tmp_path / "c", filename="{step}", save_top_k=-1, **save)

    whole = train(table, tmp_path)
    train(table, tmp_path, saver())
    checkpoints = sorted((tmp_path / "c").glob("*.ckpt"), key=lambda p: int(p.stem.split("=")[1]))
    steps = len(whole.cuts) // 16
    assert steps == 3 * 11
    tried = [c for c in checkpoints if int(c.stem.split("=")[1]) < steps]
    assert tried
    for path in {tried[0], tried[-1]}:
        done = int(path.stem.split("=")[1])
        resumed = train(table, tmp_path, saver(), resume=str(path))
        assert resumed.cuts == whole.cuts[16 * done :]
        assert torch.equal(resumed.layer.weight, whole.layer.weight)
