"""Segmentation is trained and scored by the command, on shapes and on a folder of images with masks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import done, run
from PIL import Image
from tiny_backbones import SMALL, create, image

from tsfm_vision.training import Segmenter
from tsfm_vision.training.segmentation import SHAPES, draw_shapes

# Few images of an odd size, and a small backbone.
SIZES = ("--data.height", "33", "--data.width", "49", "--model.width", "16", "--data.batch_size", "4")
FEW = ("--data.count", "16", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu")
PYRAMID = ("--model.backbone_args.dims", "[8,16,24]", "--model.backbone_args.depths", "[1,1,1]")
FIT = ("fit", "--config", "vision/segmentation", *SIZES, *FEW, *PYRAMID)


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_when_shapes_are_drawn_then_every_class_occurs_and_the_seed_alone_decides() -> None:
    images, labels = draw_shapes(20, 40, 60, np.random.default_rng(3))
    again = draw_shapes(20, 40, 60, np.random.default_rng(3))
    assert images.shape == (20, 3, 40, 60)
    assert labels.unique().tolist() == list(range(len(SHAPES)))
    assert torch.equal(images, again[0])
    assert torch.equal(labels, again[1])


def test_when_a_backbone_is_given_weights_of_a_classifier_then_its_features_are_those(workplace: Path) -> None:
    name, sizes = "tsfm_poolformer_s12", {**SMALL["tsfm_poolformer_s12"], "num_classes": 10}
    classifier = create(name)
    torch.save(classifier.state_dict(), "w.pth")
    net = Segmenter(name, 4, 16, "w.pth", **{**sizes, "num_classes": 1000}, out_indices=(0, 2)).eval()
    x = image(40, width=56)
    with torch.no_grad():
        maps = classifier.forward_intermediates(x, [0, 2], intermediates_only=True)
        assert all(torch.equal(a, b) for a, b in zip(net.backbone(x), maps, strict=True))
        assert net(x).shape == (2, 4, 40, 56)


@pytest.mark.slow
def test_when_fit_on_shapes_then_test_gives_the_mean_intersection_over_union(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = done(capsys, *FIT, "--data.count", "64", "--trainer.max_epochs", "3", "--trainer.default_root_dir", "run")
    assert "model: Segmenter" in said
    assert "best val_miou 0." in said
    words = ("test", *FIT[1:], "--trainer.default_root_dir", "run", "--ckpt_path", "run/checkpoints/best.ckpt")
    scored = done(capsys, *words)
    value = float(scored.partition("test_miou")[2].split()[1])
    assert 0.12 < value < 1  # background alone: at most a quarter of about 0.6


def masked_folder(folder: Path, parts: tuple[str, ...] = ("train", "val")) -> None:
    """Images of noise, the right half brighter and of class 1, a corner of no class."""
    rng = np.random.default_rng(0)
    for part in parts:
        for kind in ("images", "masks"):
            (folder / part / kind).mkdir(parents=True)
        for number in range(8):
            mask = np.zeros((40, 60), np.uint8)
            mask[:, 30:] = 1
            pixels = rng.integers(0, 60, (40, 60, 3)) + 150 * mask[..., None]
            mask[:5, :5] = 255
            Image.fromarray(pixels.astype(np.uint8)).save(folder / part / "images" / f"{number}.jpg")
            Image.fromarray(mask).save(folder / part / "masks" / f"{number}.png")


@pytest.mark.slow
def test_when_fit_on_images_with_masks_then_their_halves_are_found(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masked_folder(workplace / "set")
    words = ("--data.source", "set", "--model.num_classes", "2", "--trainer.max_epochs", "10")
    said = done(capsys, *FIT, *words)
    assert float(said.partition("best val_miou ")[2].split()[0]) > 0.8


def broken(folder: Path, what: str) -> None:
    """A folder that cannot be used."""
    masked_folder(folder)
    if what == "mask":
        (folder / "train/masks/3.png").unlink()
    elif what == "class":
        Image.fromarray(np.full((40, 60), 7, np.uint8)).save(folder / "train/masks/3.png")
    elif what == "colours":
        Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(folder / "train/masks/3.png")


@pytest.mark.parametrize(
    ("what", "words", "message"),
    [
        ("mask", (), "found no set/train/masks/3.png: add it"),
        ("class", (), "set/train/masks/3.png: expected classes below 2 as values of pixels, found class 7"),
        ("colours", (), "found colours"),
        ("", ("--data.batch_size", "9"), "expected at least one batch of 9 training images, found 8"),
        ("", ("--data.source", "none"), "expected none/train/images/NAME.jpg with masks/NAME.png, found no images"),
        ("", ("--data.source", "shapes"), "expected num_classes 4 for shapes, found 2"),
        ("", ("--data.source", "shapes", "--model.num_classes", "4", "--data.height", "9"), "at least 16 x 16 pixels"),
    ],
)
def test_when_images_with_masks_do_not_fit_then_one_line_says_so(
    what: str, words: tuple[str, ...], message: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken(workplace / "set", what)
    options: Any = ("--data.source", "set", "--model.num_classes", "2", *words)
    refused = run(capsys, *FIT, *options)
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert message in refused.err
