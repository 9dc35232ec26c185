"""Segmentation and detection are trained and scored by the command, on shapes and on a folder of images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import done, run
from PIL import Image
from tiny_backbones import SMALL, create, image
from torchvision.ops import box_iou
from torchvision.transforms import v2

from tsfm_vision.training import DetectionTask, FeaturePyramid, SegmentationTask, Segmenter
from tsfm_vision.training.scenes import KINDS, Scenes, draw_shapes, list_boxes

# Few images of an odd size, and a small backbone.
SIZES = ("--data.height", "33", "--data.width", "49", "--model.width", "16", "--data.batch_size", "4")
FEW = ("--data.count", "16", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu")
PYRAMID = ("--model.backbone_args.dims", "[8,16,24]", "--model.backbone_args.depths", "[1,1,1]")
FIT = ("fit", "--config", "vision/segmentation", *SIZES, *FEW, *PYRAMID)
DETECT = ("fit", "--config", "vision/detection", *SIZES, *FEW, *PYRAMID)


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_when_shapes_are_drawn_then_every_class_occurs_each_has_its_box_and_the_seed_alone_decides() -> None:
    images, labels, boxes = draw_shapes(20, 40, 60, np.random.default_rng(3))
    again = draw_shapes(20, 40, 60, np.random.default_rng(3))
    assert images.shape == (20, 3, 40, 60)
    assert labels.unique().tolist() == list(range(len(KINDS) + 1))
    assert torch.equal(images, again[0])
    assert torch.equal(labels, again[1])
    for mask, own, same in zip(labels, boxes, again[2], strict=True):
        assert torch.equal(own["boxes"], same["boxes"])
        left = mask.clone()
        for (x0, y0, x1, y1), kind in zip(own["boxes"].int().tolist(), own["labels"].tolist(), strict=True):
            inside = mask[y0:y1, x0:x1]
            assert set(inside.unique().tolist()) <= {0, kind}
            assert all(bool((edge == kind).any()) for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
            left[y0:y1, x0:x1] = 0
        assert not left.any()


def test_when_a_backbone_is_given_weights_of_a_classifier_then_its_features_are_those(workplace: Path) -> None:
    name, sizes = "tsfm_poolformer_s12", {**SMALL["tsfm_poolformer_s12"], "num_classes": 10}
    classifier = create(name)
    torch.save(classifier.state_dict(), "w.pth")
    pyramid = FeaturePyramid(name, 16, "w.pth", **{**sizes, "num_classes": 1000}, out_indices=(0, 2))
    net = Segmenter(pyramid, 4).eval()
    x = image(40, width=56)
    with torch.no_grad():
        maps = classifier.forward_intermediates(x, [0, 2], intermediates_only=True)
        assert all(torch.equal(a, b) for a, b in zip(pyramid.backbone(x), maps, strict=True))
        assert net(x).shape == (2, 4, 40, 56)


def test_when_an_image_is_flipped_then_its_mask_and_its_boxes_are_too() -> None:
    images, labels, boxes = draw_shapes(4, 40, 60, np.random.default_rng(0))
    flip = v2.RandomHorizontalFlip(1.0)
    for index in range(4):
        pixels, mask = Scenes(list(images), list(labels), flip, 0, 4)[index]
        assert torch.equal(pixels, images[index].flip(2))
        assert torch.equal(mask, labels[index].flip(1))
        _, target = Scenes(list(images), boxes, flip, 0, 4)[index]
        expected = boxes[index]["boxes"][:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1]) + torch.tensor([60, 0, 60, 0])
        assert torch.equal(torch.as_tensor(target["boxes"]), expected)
        assert torch.equal(target["labels"], boxes[index]["labels"])


def score_of(said: str, name: str) -> float:
    """A score in Lightning's table."""
    return float(said.partition(f" {name} ")[2].split()[1])


def seen_by(task: Any, images: Any) -> Any:
    """Images as the data module gives them: already of the right size, and normalised."""
    mean, std = (torch.tensor(task.data_config[key])[:, None, None] for key in ("mean", "std"))
    return (images / 255 - mean) / std


@pytest.mark.slow
def test_when_fit_on_shapes_then_test_gives_the_mean_intersection_over_union(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = done(capsys, *FIT, "--data.count", "64", "--trainer.max_epochs", "3", "--trainer.default_root_dir", "run")
    assert "model: Segmenter" in said
    assert "input (3, 33, 49)" in said
    assert "best val_miou 0." in said
    words = ("--data.count", "64", "--trainer.default_root_dir", "run", "--ckpt_path", "run/checkpoints/best.ckpt")
    value = score_of(done(capsys, "test", *FIT[1:], *words), "test_miou")
    assert 0.12 < value < 1  # background alone: at most a quarter of about 0.6
    sizes = {"dims": [8, 16, 24], "depths": [1, 1, 1], "mixers": ["pool"] * 3, "mlp_ratios": [4] * 3}
    task = SegmentationTask("tsfm_poolformer_s12", 4, 16, {**sizes, "layer_scale": None, "out_indices": [0, 1, 2]})
    task.load_state_dict(torch.load("run/checkpoints/best.ckpt", weights_only=True)["state_dict"])
    images, labels, _ = draw_shapes(16, 33, 49, np.random.default_rng([2023, 2]))
    with torch.no_grad():
        found = task.eval().net(seen_by(task, images)).argmax(1)
    classes = [(found == k, labels == k) for k in range(4)]
    shares = [(a & b).sum() / (a | b).sum() for a, b in classes if (a | b).any()]
    assert value == pytest.approx(float(np.mean(shares)), abs=1e-5)


@pytest.mark.slow
def test_when_a_detector_is_trained_on_few_images_then_it_finds_their_objects(
    capsys: pytest.CaptureFixture[str],
) -> None:
    sizes = ("--data.height", "64", "--data.width", "64", "--data.count", "8", "--data.flip", "0")
    long = ("--trainer.max_epochs", "50", "--trainer.check_val_every_n_epoch", "50", "--model.width", "32")
    said = done(capsys, *DETECT, *sizes, *long, "--model.optim.lr", "4e-3")
    assert "model: FasterRCNN" in said
    assert "best val_map 0." in said
    sizes = {"dims": [8, 16, 24], "depths": [1, 1, 1], "mixers": ["pool"] * 3, "mlp_ratios": [4] * 3}
    sizes |= {"layer_scale": None, "out_indices": [0, 1, 2]}
    task = DetectionTask("tsfm_poolformer_s12", 3, 32, sizes, anchor=4, regions=64)
    task.load_state_dict(torch.load("runs/detection/checkpoints/last.ckpt", weights_only=True)["state_dict"])
    images, _, boxes = draw_shapes(8, 64, 64, np.random.default_rng([2023, 0]))
    with torch.no_grad():
        found = task.eval().net(seen_by(task, images))
    for own, seen in zip(boxes, found, strict=True):
        sure = seen["scores"] > 0.5
        overlap, place = box_iou(own["boxes"], seen["boxes"][sure]).max(1)
        assert overlap.min() > 0.5
        assert torch.equal(seen["labels"][sure][place], own["labels"])
    task.metric.update(found, boxes)
    assert float(task.scores()["map_50"]) > 0.9


@pytest.mark.parametrize("name", ["tsfm_poolformer_s12", "metaformer_ppaa_s12_224", "biformer_tiny"])
def test_when_a_detector_reads_a_backbone_then_its_loss_reaches_every_weight(name: str) -> None:
    task = DetectionTask(name, 3, 16, SMALL[name])
    images, _, boxes = draw_shapes(2, 64, 96, np.random.default_rng(0))
    task.loss((seen_by(task, images), boxes)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in task.net.parameters())


def test_when_all_boxes_are_found_then_the_precision_is_1_and_otherwise_lower() -> None:
    task = DetectionTask("tsfm_poolformer_s12", 3, 16, SMALL["tsfm_poolformer_s12"])
    _, _, boxes = draw_shapes(4, 64, 64, np.random.default_rng(0))
    found = [{**own, "scores": torch.ones(len(own["labels"]))} for own in boxes]
    task.metric.update(found, boxes)
    assert {name: float(value) for name, value in task.scores().items()} == {"map": 1.0, "map_50": 1.0}
    task.metric.reset()
    task.metric.update([{**one, "boxes": one["boxes"] + 4} for one in found], boxes)  # sides of 15 to 31 pixels
    scores = task.scores()
    assert 0 < scores["map"] < scores["map_50"] < 1


def masked_folder(folder: Path, parts: tuple[str, ...] = ("train", "val")) -> None:
    """Images of noise, the right half brighter and of class 1, a corner of no class; the half is also a box."""
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
        images = [{"id": 10 * k, "file_name": f"{k}.jpg", "width": 60, "height": 40} for k in range(8)]
        boxes = [{"id": k, "image_id": 10 * k, "category_id": 7, "bbox": [30, 0, 30.0, 40]} for k in range(8)]
        kinds = [{"id": 90, "name": "other"}, {"id": 7, "name": "half"}]
        written = {"info": {}, "images": images, "annotations": boxes, "categories": kinds}
        (folder / part / "annotations.json").write_text(json.dumps(written))


@pytest.mark.slow
def test_when_fit_on_images_with_masks_then_their_halves_are_found(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masked_folder(workplace / "set")
    words = ("--data.source", "set", "--model.num_classes", "2", "--trainer.max_epochs", "10", "--data.flip", "0")
    said = done(capsys, *FIT, *words)
    assert "no test part: scores on val" in said
    best = said.partition("best val_miou ")[2].split()[0]
    assert float(best) > 0.8
    root = ("--ckpt_path", "runs/segmentation/checkpoints/best.ckpt")
    said = done(capsys, "test", *FIT[1:], *words, *root)
    assert "images: 8 train, 8 val; no test part: scores on val" in said
    assert score_of(said, "test_miou") == pytest.approx(float(best), abs=1e-4)


@pytest.mark.slow
def test_when_fit_on_images_with_boxes_then_the_annotations_are_read_and_scored(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masked_folder(workplace / "set")
    words = ("--data.source", "set", "--model.num_classes", "2", "--trainer.max_epochs", "8", "--data.workers", "1")
    said = done(capsys, *DETECT, *words, "--data.height", "40", "--data.width", "60")
    assert "images: 8 train, 8 val" in said
    assert 0 <= float(said.partition("best val_map ")[2].split()[0]) <= 1


def test_when_annotations_have_crowds_and_boxes_without_area_then_crowds_are_kept_and_the_others_left_out(
    workplace: Path,
) -> None:
    masked_folder(workplace / "set", ("train",))
    file = workplace / "set/train/annotations.json"
    content = json.loads(file.read_text())
    content["annotations"] += [
        {"image_id": 20, "category_id": 90, "bbox": [1, 2, 3, 4], "iscrowd": 1},
        {"image_id": 20, "category_id": 90, "bbox": [1, 2, 3, 0]},
    ]
    del content["annotations"][0]
    file.write_text(json.dumps(content))
    found = list_boxes(workplace / "set/train", 2)
    assert [path.name for path, _ in found] == [f"{k}.jpg" for k in range(8)]
    assert found[0][1]["boxes"].shape == (0, 4)
    two = found[2][1]
    assert two["boxes"].tolist() == [[30, 0, 60, 40], [1, 2, 4, 6]]
    assert (two["labels"].tolist(), two["iscrowd"].tolist()) == ([1, 2], [0, 1])


@pytest.mark.parametrize("words", [FIT, DETECT])
def test_when_predictions_of_pixels_or_boxes_are_asked_for_then_one_line_leads_to_their_scores(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    refused = run(capsys, "predict", *words[1:])
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert "expected a task whose predictions can be written, found " in refused.err
    assert "tsfm test gives its scores" in refused.err


def broken(folder: Path, what: str) -> None:
    """A folder that cannot be used."""
    masked_folder(folder)
    annotations = folder / "train/annotations.json"
    content = json.loads(annotations.read_text())
    if what == "mask":
        (folder / "train/masks/3.png").unlink()
    elif what in ("class", "size"):
        size = (40, 60) if what == "class" else (40, 61)
        Image.fromarray(np.full(size, 7 * (what == "class"), np.uint8)).save(folder / "train/masks/3.png")
    elif what == "colours":
        Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(folder / "train/masks/3.png")
    elif what == "torn":
        mask = folder / "train/masks/3.png"
        mask.write_bytes(mask.read_bytes()[:60])
    elif what == "bbox":
        content["annotations"][2]["bbox"] = [1, 2, 3]
    elif what == "kind":
        content["annotations"][2]["category_id"] = 8
    elif what == "outside":
        content["images"][2]["file_name"] = "../../../secret.jpg"
        Image.new("RGB", (4, 4)).save(folder.parent / "secret.jpg")
    annotations.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("what", "words", "message"),
    [
        ("mask", (), "found no set/train/masks/3.png: add it"),
        ("class", (), "set/train/masks/3.png: expected classes below 2 as values of pixels, found class 7"),
        ("colours", (), "found colours"),
        ("size", (), "expected a mask as large as its image, 40 x 60, found 40 x 61"),
        ("torn", (), "set/train/masks/3.png: expected an intact PNG of classes"),
        ("class", ("--data.workers", "1"), "set/train/masks/3.png: expected classes below 2"),
        ("", ("--data.batch_size", "9"), "expected at least one batch of 9 training images, found 8"),
        ("", ("--data.flip", "2"), "expected a flip probability from 0 to 1, found 2"),
        ("", ("--data.source", "none"), "expected none/train/images/NAME.jpg with masks/NAME.png, found no images"),
        ("", ("--data.source", "shapes"), "expected num_classes 4 for shapes, found 2"),
        ("", ("--data.source", "shapes", "--model.num_classes", "4", "--data.height", "9"), "at least 16 x 16 pixels"),
        ("", ("--trainer.callbacks.monitor", "val_mio"), "unknown metric to monitor in ModelCheckpoint 'val_mio'"),
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


@pytest.mark.parametrize(
    ("what", "words", "message"),
    [
        ("bbox", (), "set/train/annotations.json"),
        ("kind", (), "expected boxes of its images and categories"),
        ("outside", (), "expected its images in set/train/images, found no set/train/images/../../../secret.jpg"),
        ("", ("--model.num_classes", "3"), "expected 3 categories, found 2: give --model.num_classes"),
        ("", ("--data.source", "none"), "expected none/train/images/NAME.jpg with annotations.json, found no images"),
        ("", ("--data.source", "shapes"), "expected num_classes 3 for shapes, found 2"),
        ("", ("--model.regions", "0"), "expected regions of at least 1, found 0: change it"),
    ],
)
def test_when_images_with_boxes_do_not_fit_then_one_line_says_so(
    what: str, words: tuple[str, ...], message: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken(workplace / "set", what)
    options: Any = ("--data.source", "set", "--model.num_classes", "2", *words)
    refused = run(capsys, *DETECT, *options)
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert message in refused.err
