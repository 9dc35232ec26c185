"""Images that cannot be used: named in one line, or skipped and counted, as asked."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from command import run
from PIL import Image

from tsfm_data.errors import InputError
from tsfm_data.images.sets import ImageSet, from_arrays, hold_out, open_images
from tsfm_vision.training import ImageDataModule
from tsfm_vision.weights import TrainedOn, check_size, create, load
from tsfm_vision.weights import save as save_model

PIXELS = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)


def save(path: Path, image: Image.Image | None = None, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or Image.fromarray(PIXELS)).save(path, **options)
    return path


def bad(kind: str, path: Path) -> Path:
    """Write one bad image and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "empty":
        path = path.with_suffix(".png")
        path.write_bytes(b"")
    elif kind == "truncated":
        stream = io.BytesIO()
        Image.fromarray(PIXELS).save(stream, "JPEG")
        path = path.with_suffix(".jpg")
        path.write_bytes(stream.getvalue()[: len(stream.getvalue()) * 2 // 3])
    elif kind == "no pixels":
        path = path.with_suffix(".gif")
        path.write_bytes(b"GIF89a" + bytes(7) + b"," + bytes(9) + b"\x02\x01\x44\x00;")
    elif kind == "text":
        path = path.with_suffix(".png")
        path.write_text("no image")
    elif kind == "animated":
        frames = [Image.fromarray(np.roll(PIXELS, k, 0)) for k in range(3)]
        path = save(path.with_suffix(".gif"), frames[0], save_all=True, append_images=frames[1:])
    elif kind == "CMYK":
        path = save(path.with_suffix(".jpg"), Image.fromarray(PIXELS).convert("CMYK"))
    else:
        path = save(path.with_suffix(".png"), Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 256))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("ants", "bees"):
        for k in range(4):
            save(tmp_path / "set" / name / f"{k}.png")
    return tmp_path / "set"


KINDS = {
    "empty": "found an empty file",
    "truncated": "found a corrupt one",
    "text": "found something else",
    "animated": "found an animation of 3 frames",
    "CMYK": "found CMYK",
    "16 bits": "found 16 bits",
    "no pixels": "found something else",
}


@pytest.mark.parametrize("kind", KINDS)
def test_when_an_image_is_bad_then_it_is_named_or_skipped_and_counted(kind: str, folder: Path) -> None:
    path = bad(kind, folder / "ants" / "bad.x")
    images = open_images(folder)["all"]
    with pytest.raises(InputError, match=KINDS[kind]) as error:
        images.image([images.locate(i) for i in range(len(images))].index(str(path)))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    kept = open_images(folder, on_bad="skip")["all"]
    assert (len(kept), len(kept.skipped)) == (8, 1)
    assert str(path) in kept.skipped[0]
    assert kept.labels.tolist() == [0] * 4 + [1] * 4


def test_when_a_photo_says_that_it_was_taken_sideways_then_it_is_read_upright(tmp_path: Path) -> None:
    from PIL.Image import Exif

    exif = Exif()
    exif[0x0112] = 6  # the top is at the right
    path = save(tmp_path / "x.png", Image.fromarray(PIXELS[:, :8]), exif=exif)
    (image,) = open_images(path).values()
    assert (image.pixels(0) == np.rot90(PIXELS[:, :8], -1)).all()


@pytest.mark.parametrize("verb", ["evaluate", "predict", "explain", "finetune"])
@pytest.mark.parametrize("device", ["cuda:7", "gpu"])
def test_when_a_device_is_not_there_then_one_line_says_so(
    verb: str, device: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--output", str(tmp_path / "out")] if verb == "finetune" else []
    model = small_model(tmp_path / "model")
    result = run(capsys, "image", verb, str(folder), "--model", model, "--device", device, *words)
    assert (result.status, result.err.count("\n")) == (2, 1)
    assert f"expected a device that is here, found '{device}'" in result.err


def test_when_a_class_folder_is_empty_then_it_is_named_or_left_out(folder: Path) -> None:
    (folder / "cats").mkdir()
    with pytest.raises(InputError, match=r"cats.*expected at least one image"):
        open_images(folder)
    images = open_images(folder, on_bad="skip")["all"]
    assert images.classes == ("ants", "bees")
    assert "cats" in images.skipped[0]


def test_when_every_image_is_bad_then_skipping_is_an_error(tmp_path: Path) -> None:
    bad("text", tmp_path / "set" / "ants" / "one.x")
    with pytest.raises(InputError, match="found none among 1"):
        open_images(tmp_path / "set", on_bad="skip")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path / "nothing.parquet", "found no such file or folder"),
        (lambda path: path / "set" / "ants" / "0.txt", "expected an image set|expected an image"),
    ],
)
def test_when_the_source_is_no_image_set_then_one_line_says_so(make, message: str, folder: Path) -> None:
    with pytest.raises(InputError, match=message):
        open_images(make(folder.parent))


def test_when_labels_have_no_class_then_the_image_is_named() -> None:
    with pytest.raises(InputError, match=r"image 3: expected a label from 0 to 1, found 2"):
        from_arrays(np.zeros((3, 4, 4), np.uint8), np.array([0, 1, 2]), ("a", "b"))


def module_of(images: ImageSet, **options: object) -> ImageDataModule:
    data = ImageDataModule("arrays", **options)  # type: ignore[arg-type]
    data.parts = dict(zip(("train", "val"), hold_out(images, 0.25, 0), strict=True))
    data.data_config = {"input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"}
    return data


def test_when_there_are_fewer_images_than_a_batch_then_a_batch_that_fits_is_named(folder: Path) -> None:
    with pytest.raises(
        InputError, match=r"at least one batch of 64 training images, found 6: give --data.batch_size 6"
    ):
        module_of(open_images(folder)["all"], batch_size=64).train_dataloader()


def test_when_a_model_is_unknown_then_near_names_are_listed() -> None:
    with pytest.raises(InputError, match=r"unknown image model 'biformer_tinny'.*biformer_tiny"):
        create("biformer_tinny", 10, None, 3, {}, {})


def test_when_channels_or_preprocessing_are_wrong_then_the_choices_are_said() -> None:
    with pytest.raises(InputError, match=r"in_chans of an image, 1 to 4, found 5"):
        create("illama_tiny", 10, 32, 5, {}, {})
    with pytest.raises(InputError, match=r"unknown key of preprocessing 'means'.*mean"):
        create("illama_tiny", 10, 32, 3, {}, {"means": [0.5]})
    with pytest.raises(InputError, match=r"at interpolation, found 'cubic': change it"):
        create("illama_tiny", 10, 32, 3, {}, {"interpolation": "cubic"})
    with pytest.raises(
        InputError, match=r"expected sizes that illama_tiny takes, found others|even number of channels"
    ):
        create("illama_tiny", 10, 32, 3, {"embed_dim": 30, "num_heads": 4}, {})
    with pytest.raises(InputError, match=r"expected 1 to 4 channels"):
        open_images("set", channels=5)


def test_when_a_model_cannot_take_a_size_then_those_that_it_takes_are_said() -> None:
    model = create("vit_tiny_patch16_224", 4, 32, 3, {"embed_dim": 12, "depth": 1, "num_heads": 2}, {})
    check_size(model, 32, 32)
    with pytest.raises(InputError, match=r"found 33 x 40: it takes 32 x 32"):
        check_size(model, 33, 40)


@pytest.mark.parametrize(
    ("model", "size", "sizes"),
    [
        ("illama_tiny", 8, {"embed_dim": 16, "depth": 1, "num_heads": 2}),
        ("tsfm_tnt_s_patch16_224", 9, {"embed_dim": 16, "inner_dim": 8, "depth": 1, "num_heads_outer": 2}),
        ("tsfm_poolformer_s12", 2, {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)}),
    ],
)
def test_when_an_img_size_is_too_small_then_those_that_the_model_takes_are_said(
    model: str, size: int, sizes: dict[str, object]
) -> None:
    with pytest.raises(InputError, match=rf"an img_size that {model} takes, found {size}: give 32 or 64"):
        create(model, 2, size, 3, sizes, {})


def small_model(folder: Path) -> str:
    net = create("illama_tiny", 2, 16, 3, {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}, {})
    save_model(net, folder, TrainedOn("set", ("ants", "bees"), 8))
    return str(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": [0.5, 0.5]}, "expected mean of 3 channels, found 2"),
        ({"std": [0.5, 0.5, 0.5, 0.5]}, "expected std of 3 channels, found 4"),
        ({"input_size": [1, 16, 16]}, "expected input_size of 3 channels, found 1"),
        ({"interpolation": "cubic"}, "'hamming' or 'lanczos' at pretrained_cfg.interpolation, found 'cubic'"),
        ({"crop_mode": "centre"}, "'squash' or 'border' at pretrained_cfg.crop_mode, found 'centre'"),
    ],
)
def test_when_a_model_folder_names_other_preprocessing_than_there_is_then_one_line_says_so(
    change: dict[str, object], message: str, tmp_path: Path
) -> None:
    config = Path(small_model(tmp_path / "model")) / "config.json"
    content = json.loads(config.read_text())
    content["pretrained_cfg"] |= change
    config.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        load(tmp_path / "model")


@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_when_a_folder_holds_every_bad_image_then_the_command_stops_or_skips_and_counts(
    verb: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [bad(kind, folder / "ants" / f"bad-{kind}.x") for kind in KINDS]
    (folder / "cats").mkdir()
    words = ["image", verb, str(folder), "--model", small_model(tmp_path / "model")]
    words += ["--part", "all"] if verb == "evaluate" else []
    result = run(capsys, *words)
    assert (result.status, result.err.count("\n")) == (2, 1)
    result = run(capsys, *words, "--on_bad", "skip")
    assert result.status == 0
    assert f"{len(KINDS) + 1} bad ones skipped:" in result.out
    assert all(str(path) in result.out for path in [*paths, folder / "cats"])


def test_when_a_model_folder_says_a_size_that_its_model_cannot_take_then_the_command_says_which_it_can(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = small_model(tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    content = json.loads(config.read_text())
    content["pretrained_cfg"]["input_size"] = [3, 2, 2]
    config.write_text(json.dumps(content))
    result = run(capsys, "image", "predict", str(folder), "--model", model)
    assert result.status == 2
    assert "config.json, input_size: expected an image size that the model takes, found 2 x 2: it takes" in result.err
    assert "32 x 32" in result.err


def test_when_the_model_folder_is_none_then_the_command_says_so(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    result = run(capsys, "image", "evaluate", "nothing", "--model", str(tmp_path))
    assert result.status == 2
    assert "expected config.json in the model folder" in result.err
    assert result.err.count("\n") == 1
