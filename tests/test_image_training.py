"""Image models trained, resumed, scored and explained by the command, on a small set of drawn classes."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from command import done, run
from PIL import Image
from safetensors.torch import save_file
from timm.data import IterableImageDataset

from tsfm_data.errors import InputError
from tsfm_data.images.sets import from_arrays
from tsfm_vision.evaluation import Transformed
from tsfm_vision.training import (
    Augment,
    ImageDataModule,
    ImageOptim,
    ImageTask,
    Shuffled,
    TrainLoader,
    build_optimizer,
    lr_factor,
    open_source,
)
from tsfm_vision.weights import create, data_config, save

CONFIG = """\
seed_everything: 1
model:
  class_path: tsfm_vision.training.ImageTask
  init_args:
    model: illama_tiny
    num_classes: 2
    img_size: 16
    model_args: {patch_size: 4, embed_dim: 32, depth: 2, num_heads: 2, drop_path_rate: 0.1}
    preprocessing: {crop_pct: 1.0}
    optim: {lr: 3.0e-3, warmup_epochs: 1, layer_decay: 0.8}
    mix: {mixup: 0.2, cutmix: 0.2, prob: 0.5}
data:
  class_path: tsfm_vision.training.ImageDataModule
  init_args:
    source: set.parquet
    batch_size: 16
    augment: {crop: pad, policy: rand-m3-mstd0.5-inc1, erase: 0.1, repeats: 2}
trainer:
  max_epochs: 16
  accelerator: cpu
  enable_progress_bar: false
  default_root_dir: run
  num_sanity_val_steps: 0
  log_every_n_steps: 1
  callbacks:
    - class_path: pytorch_lightning.callbacks.ModelCheckpoint
      init_args: {monitor: val_loss, filename: best}
    - class_path: pytorch_lightning.callbacks.ModelCheckpoint
      init_args: {filename: last}
    - class_path: tsfm_vision.training.ImageModelFolder
    - class_path: pytorch_lightning.callbacks.EMAWeightAveraging
      init_args: {decay: 0.5}
"""
CONFIG_8 = {"input_size": (1, 8, 8), "mean": (0.5,), "std": (0.5,), "interpolation": "bilinear", "crop_pct": 1.0}
FIT = ("fit", "--config", "config.yaml")


def png(label: int, rng: np.random.Generator) -> bytes:
    """Rows of stripes for one class, columns for the other."""
    import io

    stripes = np.where(np.arange(16) // 2 % 2, 200, 40).astype(np.uint8)
    image = np.broadcast_to(stripes if label else stripes[:, None], (16, 16)) + rng.integers(0, 40, (16, 16))
    stream = io.BytesIO()
    Image.fromarray(np.repeat(image[..., None], 3, 2).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 2
    table = pa.table(
        {
            "image": [png(int(label), rng) for label in labels],
            "label": labels.astype(np.int32),
            "split": ["test" if i % 4 == 3 or i % 4 == 2 else "train" for i in range(120)],
        }
    )
    pq.write_table(table.replace_schema_metadata({"classes": '["rows", "columns"]'}), "set.parquet")
    Path("config.yaml").write_text(CONFIG)
    return tmp_path


def table_of(path: str) -> list[dict[str, str]]:
    with Path(path).open() as file:
        return list(csv.DictReader(file))


def weights(path: str) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.mark.slow
def test_when_an_image_model_is_trained_then_it_can_be_resumed_scored_asked_explained_and_read_by_timm(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = done(capsys, *FIT)
    assert "2 classes; images: 54 train, 60 test, 6 val" in said
    said = done(capsys, "image", "evaluate", "set.parquet", "--model", "run", "--json", "r.json", "--plot", "r.png")
    rows = json.loads(Path("r.json").read_text())["rows"]
    assert rows[0]["metric"] == "top1"
    assert rows[0]["value"] > 0.9
    assert {row["item_id"] for row in rows if "item_id" in row} == {"rows", "columns"}
    assert Path("r.png").stat().st_size > 10_000

    said = done(capsys, "image", "predict", "set.parquet", "--model", "run", "--top", "1", "--output", "p.csv")
    assert "... 60 images in all" in said
    table = table_of("p.csv")
    assert float(table[0]["rows"]) + float(table[0]["columns"]) == pytest.approx(1, abs=1e-5)
    done(capsys, "predict", *FIT[1:], "--ckpt_path", "run/checkpoints/best.ckpt")
    assert [line["prediction"] for line in table_of("run/predictions.csv")] == [line["prediction"] for line in table]

    done(capsys, "image", "explain", "set.parquet", "--model", "run", "--output", "e.png", "--count", "2")
    with Image.open("e.png") as picture:
        assert picture.size[0] > 300
    model = timm.create_model("local-dir:run/model", pretrained=True)
    assert model.pretrained_cfg["label_names"] == ["rows", "columns"]
    assert (model.num_classes, model.pretrained_cfg["input_size"]) == (2, (3, 16, 16))


@pytest.mark.slow
def test_when_training_is_resumed_after_an_epoch_then_it_ends_as_if_it_had_not_stopped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    done(capsys, *FIT, "--trainer.max_epochs", "2", "--model.optim.min_lr", "3e-3", "--model.optim.warmup_epochs", "0")
    same = ("--model.optim.min_lr", "3e-3", "--model.optim.warmup_epochs", "0")  # so that the schedule has no length
    done(capsys, *FIT, *same, "--trainer.max_epochs", "3", "--trainer.default_root_dir", "whole")
    resumed = ("--ckpt_path", "run/checkpoints/last.ckpt", "--trainer.default_root_dir", "rest")
    done(capsys, *FIT, *same, "--trainer.max_epochs", "3", *resumed)
    one, two = weights("whole/checkpoints/last.ckpt"), weights("rest/checkpoints/last.ckpt")
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.slow
def test_when_training_is_resumed_within_an_epoch_then_it_ends_as_if_it_had_not_stopped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    often = """
    - class_path: pytorch_lightning.callbacks.ModelCheckpoint
      init_args: {filename: "{step}", every_n_train_steps: 2, save_top_k: -1}
"""
    Path("config.yaml").write_text(CONFIG.rstrip() + often)
    short = ("--trainer.max_epochs", "3")
    done(capsys, *FIT, *short)
    assert len(list(Path("run/checkpoints").glob("step=*.ckpt"))) == 4  # of 9 steps, 3 an epoch
    whole = weights("run/checkpoints/last.ckpt")
    for step in (4, 8):  # after one batch of the second epoch, and after two of the third
        words = ("--ckpt_path", f"run/checkpoints/step={step}.ckpt", "--trainer.default_root_dir", f"rest{step}")
        done(capsys, *FIT, *short, *words)
        rest = weights(f"rest{step}/checkpoints/last.ckpt")
        assert all(torch.equal(whole[key], rest[key]) for key in whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_when_a_loader_is_given_a_state_then_it_goes_on_with_the_batches_that_were_not_handed_out(workers: int) -> None:
    images = from_arrays(np.arange(40 * 64, dtype=np.uint8).reshape(40, 8, 8), np.arange(40) % 2, ("a", "b"))

    def loader() -> TrainLoader:
        data = Transformed(images, Augment(crop="pad", policy=None).build(CONFIG_8), seed=3)
        return TrainLoader(data, 8, sampler=Shuffled(40, 3, 1, 0, 1), num_workers=workers, drop_last=True)

    one, two = loader(), loader()
    one.sampler.set_epoch(4)
    batches = iter(one)
    seen = [next(batches) for _ in range(2)]
    state = one.state_dict()
    assert state == {"epoch": 4, "batch": 2}
    rest = list(batches)
    assert (len(seen), len(rest)) == (2, 3)
    two.load_state_dict(state)
    two.sampler.set_epoch(4)
    for (x, y), (x2, y2) in zip(rest, two, strict=True):
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)
    two.sampler.set_epoch(5)
    assert len(list(two)) == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model.num_classes", "3"), "expected a model of 2 classes for set.parquet, found one of 3"),
        (("--data.batch_size", "15"), "expected an even batch_size"),
        (("--data.batch_size", "512"), "expected at least one batch of 512 training images, found 54"),
        (("--model.model", "illama_tinny"), "unknown image model 'illama_tinny': did you mean illama_tiny"),
        (("--model.img_size", "2"), "expected an img_size that illama_tiny takes, found 2: give 32 or 64"),
        (("--model.in_chans", "5"), "expected in_chans of an image, 1 to 4, found 5"),
        (("--model.weights", "vit.safetensors"), "expected a checkpoint of iLLaMA, found one of ViT"),
        (("--model.weights", "none.pth"), "expected a file of weights at none.pth, found none"),
        (("--data.source", "sett.parquet"), "near names there: set.parquet"),
        (("--data.augment.policy", "rnd-m9"), "expected augment.policy of timm, such as rand-m9-mstd0.5-inc1, found"),
        (("--data.augment.erase", "5"), "expected shares from 0 to 1, jitter of 0 or more and repeats of at least 1"),
        (("--data.augment.repeats", "0"), "repeats 0: change them"),
        (("--model.mix.mixup", "-1"), "expected mixup and cutmix of 0 or more and shares from 0 to 1 in mix"),
        (("--model.mix.smoothing", "2"), "smoothing 2.0: change them"),
        (("--model.optim.betas", "[2,3]"), "expected optim.betas from 0 to below 1"),
        (("--model.optim.layer_decay", "-1"), "layer_decay above 0 and at most 1, found"),
    ],
)
def test_when_an_image_training_cannot_be_then_one_line_says_why(
    words: tuple[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    vit = timm.create_model("vit_tiny_patch16_224", img_size=16, embed_dim=12, depth=1, num_heads=2)
    save_file(vit.state_dict(), "vit.safetensors")
    result = run(capsys, *FIT, *words)
    assert result.status == 2
    assert message in result.err
    assert result.err.count("\n") == 1


def test_when_images_are_repeated_then_each_process_sees_its_share_of_an_epoch_as_long() -> None:
    keys = [list(Shuffled(100, 7, 3, rank, 2)) for rank in range(2)]
    assert [len(k) for k in keys] == [50, 50]
    counts = np.bincount([index for k in keys for _, _, index in k], minlength=100)
    assert counts.max() == 3
    plain = list(Shuffled(100, 7, 1, 0, 1))
    assert sorted(index for _, _, index in plain) == list(range(100))


def test_when_layers_decay_then_lower_ones_learn_more_slowly_and_norms_do_not_decay() -> None:
    model = timm.create_model("illama_tiny", embed_dim=32, depth=2, num_heads=2, img_size=32)
    groups = build_optimizer(ImageOptim(lr=1e-3, lr_batch=256, layer_decay=0.5), model, 512).param_groups
    rates = {g["lr"] for g in groups}
    assert max(rates) == pytest.approx(2e-3)
    assert min(rates) == pytest.approx(2e-3 * 0.5 ** (len(rates) - 1))
    assert all((g["weight_decay"] == 0) == all(p.ndim < 2 or p.shape[0] == 1 for p in g["params"]) for g in groups)


def test_when_the_schedule_runs_then_it_warms_up_falls_and_cools_down() -> None:
    factor = lr_factor(ImageOptim(lr=1.0, warmup_lr=0.1, min_lr=0.01, warmup_epochs=2, cooldown_epochs=1), 10, 11, 64)
    assert factor(0) == pytest.approx(0.1)
    assert factor(10) == pytest.approx(0.55)
    assert factor(50) == pytest.approx(0.01 + 0.99 / 2)
    assert factor(100) == factor(109) == pytest.approx(0.01)


def test_when_a_model_is_trained_from_random_weights_then_it_does_not_take_over_the_licence_of_the_published_ones(
    tmp_path: Path,
) -> None:
    sizes = {"depth": 1, "embed_dim": 24, "inner_dim": 8, "num_heads_outer": 2}
    arguments = {"model": "tsfm_tnt_s_patch16_224", "num_classes": 2, "img_size": 32, "model_args": sizes}
    task = ImageTask(**arguments)
    save_file(task.net.state_dict(), tmp_path / "weights.safetensors")
    licences = []
    for one in (task, ImageTask(**arguments, weights=str(tmp_path / "weights.safetensors"))):
        save(one.net, tmp_path / "model")
        config = json.loads((tmp_path / "model/config.json").read_text())
        licences.append(config["pretrained_cfg"].get("license"))
    assert licences == [None, "apache-2.0"]


class InOrder:
    """A reader of timm for sets that are iterated over, in memory."""

    def __iter__(self) -> Iterator[tuple[Image.Image, int]]:
        for label in (0, 1, 1):
            yield Image.new("RGB", (8, 6), (label, 2, 3)), label


def test_when_a_set_of_timm_can_only_be_iterated_over_then_its_images_are_read_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def opened(source: str, root: str | None, split: str, input_img_mode: str) -> IterableImageDataset:
        return IterableImageDataset(root, reader=InOrder(), split=split)

    monkeypatch.setattr("tsfm_vision.training.data.create_dataset", opened)
    parts = open_source("wds/set", "folder", 3)
    assert list(parts) == ["train", "test"]
    assert parts["train"].labels.tolist() == [0, 1, 1]
    assert parts["train"].pixels(2)[0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("channels", [2, 4])
def test_when_images_have_alpha_then_a_model_trains_on_all_channels(channels: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(4):
            pixels = rng.integers(0, 255, (16, 16, 4), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    net = create(
        "tsfm_poolformer_s12", 2, 16, channels, {"dims": (8, 16), "depths": (1, 1), "mixers": ("pool",) * 2}, {}
    )
    data = ImageDataModule(str(tmp_path), batch_size=4, augment=Augment(policy=None), val_fraction=0.25)
    data.prepare(data_config(net))
    x, labels = next(iter(data.train_dataloader()))
    assert x.shape == (4, channels, 16, 16)
    assert net(x).shape == (len(labels), 2)
    assert float(x[:, -1].std()) > 0.5  # alpha is data
    with pytest.raises(InputError, match=r"expected augment\.policy null for images with alpha"):
        Augment().build(data_config(net))
