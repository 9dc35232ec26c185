"""Series that come with a picture each: trained together with an image model, and forecast from a table of paths."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import photos
import pytest
import torch
import yaml
from command import done, run
from PIL import Image

from tsfm import load
from tsfm.inference import forecast_frame
from tsfm.inference.selection import Member, Selection
from tsfm.training.task import ModelFolder
from tsfm.weights import save
from tsfm_data.errors import InputError
from tsfm_data.evaluation import get_baseline
from tsfm_data.io import read_series
from tsfm_data.windows import Batch, Windows
from tsfm_vision.forecasting import PhotoConfig, PhotoForecaster
from tsfm_vision.training import PlantedSales

ITEMS, DAYS, CONTEXT, HORIZON = 8, 14, 4, 3
TINY = {"d_model": 16, "d_ff": 16, "heads": 2, "image": 32}
SIZES = {"depths": [1, 1, 1, 1], "dims": [8, 16, 16, 16]}


def picture(level: int, seed: int) -> Image.Image:
    """A picture of one brightness, with noise of its own."""
    noise = np.random.default_rng(seed).integers(0, 40, (32, 32, 3))
    return Image.fromarray((noise + level).astype(np.uint8))


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    """Daily sales of products with a photo each, as table.csv and photos/*.png."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    rng, rows = np.random.default_rng(0), []
    for item in range(ITEMS):
        picture(200 * (item % 2), item).save(f"photos/{item}.png")
        sales = 20 + rng.normal(0, 1, DAYS)
        days = pd.date_range("2024-01-01", periods=DAYS)
        rows.append(pd.DataFrame({"id": f"p{item}", "day": days, "sales": sales, "photo": f"photos/{item}.png"}))
    frame = pd.concat(rows, ignore_index=True)
    frame.to_csv("table.csv", index=False)
    return frame


def tiny(**options: Any) -> PhotoForecaster:
    torch.manual_seed(0)
    return PhotoForecaster(CONTEXT, HORIZON, PhotoConfig(**{**TINY, "sizes": SIZES, **options}))


def batch_of(model: PhotoForecaster, frame: pd.DataFrame) -> tuple[PhotoForecaster, Batch]:
    """The model bound to a table, and a batch of its windows."""
    series = read_series(frame, target="sales")
    windows = Windows.rolling(series, CONTEXT, HORIZON)
    return model.bind(series), windows.batch(np.arange(len(windows)))


@pytest.mark.parametrize("frozen", [False, True])
def test_when_a_window_is_learnt_from_then_gradients_reach_the_image_model_unless_it_is_frozen(
    table: pd.DataFrame, frozen: bool
) -> None:
    model, batch = batch_of(tiny(frozen=frozen), table)
    model.loss(batch).backward()
    for name, weight in model.named_parameters():
        if name.startswith("backbone."):
            assert (weight.grad is None) if frozen else bool(weight.grad is not None and weight.grad.abs().sum() > 0)
    assert model.photo_in.weight.grad is not None


def test_when_the_image_model_is_frozen_then_training_leaves_even_its_batch_norms_as_they_are(
    table: pd.DataFrame,
) -> None:
    model, batch = batch_of(tiny(backbone="resnet10t", sizes={}, frozen=True).train(), table)
    before = {name: x.clone() for name, x in model.backbone.state_dict().items()}
    model.loss(batch)
    assert all(torch.equal(x, before[name]) for name, x in model.backbone.state_dict().items())


def test_when_pictures_differ_then_each_window_is_forecast_from_its_own(table: pd.DataFrame) -> None:
    model, batch = batch_of(tiny().eval(), table)
    together = model(batch)
    for item in (0, ITEMS - 1):
        rows = table[table["id"] == f"p{item}"]
        alone, windows = batch_of(model, rows)
        torch.testing.assert_close(alone(windows), together[batch.item == item])
    swapped = table.assign(photo=table["photo"].map(lambda path: path.replace("0.png", "1.png")))
    other, _ = batch_of(model, swapped)
    changed = (other(batch) - together).abs().amax((1, 2, 3)) > 1e-6
    assert torch.equal(changed, batch.item == 0)


CONFIG = {
    "seed_everything": 1,
    "model": {
        "class_path": "ForecastTask",
        "init_args": {
            "forecaster": {"class_path": "PhotoForecaster", "init_args": {"config": {**TINY, "sizes": SIZES}}}
        },
    },
    "data": {
        "class_path": "ForecastDataModule",
        "init_args": {"source": "table.csv", "context": CONTEXT, "horizon": HORIZON, "split": [8, 3, 3]},
    },
    "trainer": {
        "max_epochs": 2,
        "accelerator": "cpu",
        "callbacks": [
            {"class_path": "ModelCheckpoint", "init_args": {"monitor": "val_loss", "filename": "best"}},
            {"class_path": f"{ModelFolder.__module__}.ModelFolder"},
        ],
    },
}


def fit(capsys: pytest.CaptureFixture[str], root: str) -> Path:
    """Train on table.csv; returns the model folder."""
    Path("config.yaml").write_text(yaml.safe_dump(CONFIG))
    done(capsys, "fit", "--config", "config.yaml", "--data.target", "sales", "--trainer.default_root_dir", root)
    return Path(root) / "model"


@pytest.mark.filterwarnings("ignore:columns not used")
def test_when_a_table_with_photos_is_trained_on_then_the_folder_forecasts_new_ones_and_a_seed_gives_the_same_weights(
    table: pd.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fit(capsys, "run")
    assert (fit(capsys, "again") / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    Path("new").mkdir()
    picture(90, 99).save("new/other.png")
    frame = table[table["id"].isin(["p0", "p1"])].assign(photo="other.png")
    frame.to_csv("new/table.csv", index=False)
    words = ("--model", str(folder), "--target", "sales", "--horizon", str(2 * HORIZON), "--levels", "0.1", "0.9")
    done(capsys, "forecast", "new/table.csv", *words, "--output", "out.csv")
    found = pd.read_csv("out.csv")
    model = load(str(folder))
    inside = frame.assign(photo=[Path("new/other.png").read_bytes()] * len(frame))  # content in place of a path
    again = model.forecast(inside, 2 * HORIZON, target="sales", levels=(0.1, 0.9))
    np.testing.assert_allclose(found[["mean", "0.1", "0.9"]], again[["mean", "0.1", "0.9"]], rtol=1e-6)
    save(model.predictor, "saved")  # type: ignore[arg-type]
    third = load("saved").forecast("new/table.csv", 2 * HORIZON, target="sales", levels=(0.1, 0.9))
    np.testing.assert_array_equal(third["mean"], again["mean"])
    dark = frame.assign(photo=str(Path("photos/0.png").resolve()))
    assert not np.allclose(model.forecast(dark, 2 * HORIZON, target="sales")["mean"], again["mean"])


def test_when_the_picture_column_is_missing_then_every_way_to_the_model_is_refused_in_one_line(
    table: pd.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tiny(levels=(0.1, 0.5, 0.9)), "saved")
    for name, frame in {
        "without": table.drop(columns="photo"),
        "varying": table.assign(photo=[f"photos/{row % 2}.png" for row in range(len(table))]),
        "alone": table[table["id"] == "p0"].drop(columns="id"),
    }.items():
        frame.to_csv(f"{name}.csv", index=False)
        for command in ("forecast", "backtest"):
            words = ("--model", "saved") if command == "forecast" else ("--models", "saved")
            said = run(capsys, command, f"{name}.csv", *words, "--horizon", "2", "--target", "sales")
            assert said.status == 2
            assert f"{name}.csv, column photo: expected a picture per series, found none: add this column" in said.err
            assert said.err.strip().splitlines()[-1].startswith("tsfm: error: ")
    said = run(capsys, "finetune", "table.csv", "--model", "saved", "--horizon", "2", "--output", "tuned")
    assert said.status == 2
    assert "takes a picture per series, found none" in said.err
    _, batch = batch_of(tiny(), table)
    with pytest.raises(InputError, match="model photo takes a picture per series, found none"):
        tiny().predict(batch, (0.5,))


def test_when_the_model_is_part_of_an_ensemble_then_it_still_sees_the_pictures(table: pd.DataFrame) -> None:
    series = read_series(table, target="sales")
    model = tiny(levels=(0.1, 0.5, 0.9)).eval()
    mixed = Selection((Member("photo", model), Member("naive", get_baseline("naive"))), (0.5, 0.5))
    alone, naive, both = (forecast_frame(x, series, HORIZON, (0.5,)) for x in (model, get_baseline("naive"), mixed))
    np.testing.assert_allclose(both["mean"], (alone["mean"] + naive["mean"]) / 2)


def test_when_pictures_are_missing_or_broken_then_one_line_counts_them_and_an_empty_cell_is_no_picture(
    table: pd.DataFrame,
) -> None:
    model, batch = batch_of(tiny().eval(), table)
    Path("photos/3.png").write_bytes(b"no picture")
    Path("photos/4.png").unlink()
    with pytest.raises(InputError, match=r"photo: photos/3.png: expected an image, found something else") as refused:
        batch_of(model, table)
    assert "(2 such in all)" in str(refused.value)
    bad = table["id"].isin(["p3", "p4"])
    partly, _ = batch_of(model, table.assign(photo=table["photo"].mask(bad, None)))
    changed = (partly(batch) - model(batch)).abs().amax((1, 2, 3)) > 1e-6
    assert torch.equal(changed, (batch.item == 3) | (batch.item == 4))
    with pytest.raises(InputError, match="found only empty cells"):
        batch_of(model, table.assign(photo=""))


def test_when_an_image_model_is_given_to_start_with_then_its_weights_are_those_and_other_sizes_are_one_line() -> None:
    shipped = {"dims": [32, 64, 96, 128], "depths": [1, 1, 3, 1], "head_dim": 16, "n_win": 4, "topks": [1, 4, 16, -2]}
    config = {**TINY, "backbone": "biformer_tiny", "image": 64}
    name = "tsfm-biformer-cifar10"
    made = [PhotoForecaster(4, 3, PhotoConfig(**config, sizes=shipped), start) for start in (name, name, "")]
    first, second, other = (model.backbone.state_dict() for model in made)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)
    with pytest.raises(
        InputError, match="expected the backbone tsfm_poolformer_s12 to have the sizes of tsfm-biformer"
    ):
        PhotoForecaster(4, 3, PhotoConfig.tiny(), name)


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Class folders of dark and bright pictures, in parts."""
    monkeypatch.chdir(tmp_path)
    for part, count in {"train": 80, "test": 20}.items():
        for kind, level in {"bright": 200, "dark": 0}.items():
            folder = Path("shop", part, kind)
            folder.mkdir(parents=True)
            for k in range(count):
                picture(level, 1000 * level + 100 * (part == "test") + k).save(folder / f"{k}.png")


@pytest.mark.usefixtures("images")
def test_when_sales_are_planted_then_a_part_has_products_of_its_own_and_the_first_days_do_not_show_the_kind() -> None:
    data, other = PlantedSales("shop"), PlantedSales("shop", seed=1)
    data.setup()
    other.setup()
    items = {part: set(data.windows(part).items) for part in ("train", "val", "test")}  # type: ignore[arg-type]
    assert {part: len(found) for part, found in items.items()} == {"train": 144, "val": 16, "test": 40}
    assert len(set.union(*items.values())) == 200
    assert not np.array_equal(data.series.values, other.series.values)
    static = data.series.static
    assert static is not None
    assert static["photo"].is_unique
    sales = data.series.values.reshape(200, 17)
    bright = (static["kind"] == "bright").to_numpy()
    weekend = sales[:, [4, 5, 11, 12]].mean(1) - sales[:, [0, 1, 2, 7, 8, 9]].mean(1)
    assert weekend[bright].mean() == pytest.approx(-5, abs=0.5)
    assert weekend[~bright].mean() == pytest.approx(5, abs=0.5)
    assert abs(sales[bright, :3].mean() - sales[~bright, :3].mean()) < 1.5
    again = PlantedSales("shop")
    again.setup()
    np.testing.assert_array_equal(again.series.values, data.series.values)


@pytest.mark.slow
@pytest.mark.usefixtures("images")
def test_when_the_shipped_config_is_trained_end_to_end_then_photos_explain_most_of_the_planted_effect(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = ["--data.source=shop", "--model.forecaster.start=", "--data.batch_size=16"]
    monkeypatch.setattr(photos, "ARMS", {arm: [*words, *small] for arm, words in photos.ARMS.items()})
    rows = [photos.one(arm, 1, 4) for arm in photos.ARMS if "shipped image model, trained" in arm or arm == "none"]
    error = {row["arm"]: row["mae"] for row in rows}
    assert error.pop("none") > 1.5 * next(iter(error.values()))


def test_when_the_photos_are_not_at_hand_then_one_line_names_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TSFM_DATA", str(tmp_path))
    said = run(capsys, "fit", "--config", "vision/sales")
    assert said.status == 2
    assert "expected an image set at flowers5_128, or images/flowers5_128.parquet in the folder TSFM_DATA" in said.err
