"""Image models are fine-tuned on other classes by one command, which the forecasting command names."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import done, run, script
from PIL import Image

from tsfm_data.images import ImageSet

pytest.importorskip("timm")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    from tsfm_vision.weights import create, save

    torch.manual_seed(0)
    sizes = {"dims": [16, 32], "depths": [1, 1], "mixers": ["pool", "pool"], "mlp_ratios": [2, 2]}
    folder = tmp_path_factory.mktemp("start") / "model"
    save(create("tsfm_poolformer_s12", 3, 16, 3, sizes, {}), folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("scratch", [False, True])
def test_when_classes_are_others_then_a_new_head_learns_them(
    start: Path, scratch: bool, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tsfm_vision.weights import load

    words = [str(data_folder / "images/digits_8x8.parquet"), "--model", str(start), "--output", str(tmp_path / "out")]
    words += ["--steps", "40", "--checks", "1", "--batch-size", "32", "--lr", "4e-3", *["--scratch"] * scratch]
    said = done(capsys, "image", "finetune", *words)
    assert float(said.rpartition("%")[0].split()[-1]) > 30  # of ten classes
    model, classes = load(tmp_path / "out")
    assert len(classes) == model.num_classes == 10


@pytest.mark.slow
def test_when_both_arms_are_trained_then_the_page_compares_them_and_finished_ones_are_kept(
    start: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import image_finetune

    words = [
        "--data",
        str(data_folder / "images/digits_8x8.parquet"),
        "--model",
        str(start),
        "--runs",
        str(tmp_path / "runs"),
    ]
    words += ["--output", str(tmp_path), "--seeds", "0", "1", "--steps", "4", "--batch-size", "8", "--checks", "2"]
    said = script(capsys, image_finetune.main, *words).out
    assert said.count("CPU s\n") == 4
    rows = json.loads((tmp_path / "image_finetune.json").read_text())["rows"]
    assert [(row["arm"], row["seed"]) for row in rows] == [
        (a, s) for s in (0, 1) for a in ("fine-tuned", "from scratch")
    ]
    assert all([step for step, _ in row["curve"]] == [2, 4] for row in rows)
    text = (tmp_path / "image_finetune.md").read_text()
    assert text.count(" ± ") == 7
    assert "--seeds 0 1 --steps 4 --batch-size 8 --lr 0.001 --checks 2" in text
    again = script(capsys, image_finetune.main, *words).out
    assert "CPU s\n" not in again
    assert (tmp_path / "image_finetune.md").read_text() == text


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Class folders of ten images each, all different, without train, val and test folders."""
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        (tmp_path / "flat" / name).mkdir(parents=True)
        for number in range(10):
            pixels = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "flat" / name / f"{number}.png")
    return tmp_path / "flat"


def tuned(capsys: pytest.CaptureFixture[str], data: Path, model: Path, output: Path, seed: int = 0) -> str:
    words = ("--steps", "1", "--batch-size", "8", "--checks", "1", "--seed", str(seed))
    return done(capsys, "image", "finetune", str(data), "--model", str(model), "--output", str(output), *words)


def test_when_a_folder_has_no_parts_then_only_images_that_the_model_has_not_seen_are_scored(
    start: Path, flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tsfm_data.images import open_images
    from tsfm_vision.weights import seen_by

    tuned(capsys, flat, start, tmp_path / "one")
    shutil.move(flat / "a" / "0.png", flat / "a" / "renamed.png")  # its content counts, not its name or place
    whole = open_images(flat)["all"]
    seen = seen_by(tmp_path / "one")
    trained, chose = seen.masks(whole)
    assert (trained.sum(), chose.sum()) == (24, 3)
    score = ("image", "evaluate", str(flat), "--model", str(tmp_path / "one"), "--json", str(tmp_path / "scores.json"))
    said = done(capsys, *score)
    assert "too good" not in said
    rows = json.loads((tmp_path / "scores.json").read_text())["rows"]
    assert rows[0]["points"] == 3
    said = done(capsys, *score, "--part", "all", "--overwrite")
    assert "the model was trained on 24 and was chosen by 3 of these 30 images: its scores are too good" in said
    for path in (flat / "b").iterdir():
        if not trained[[whole.items.index(path)]]:
            path.unlink()
    for name in ("a", "c"):
        shutil.rmtree(flat / name)
    refused = run(capsys, *score, "--overwrite")
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert "expected images that the model has not seen, found train, all: give --part train" in refused.err


def test_when_a_model_is_fine_tuned_again_with_another_seed_then_nothing_it_was_trained_on_is_held_out(
    start: Path, flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tsfm_data.images import open_images
    from tsfm_vision.weights import seen_by

    tuned(capsys, flat, start, tmp_path / "one")
    tuned(capsys, flat, tmp_path / "one", tmp_path / "two", seed=1)
    whole = open_images(flat)["all"]
    test = [seen_by(tmp_path / name).parts(whole)["test"].digests() for name in ("one", "two")]
    assert len(test[0]) == len(test[1]) == 3
    assert set(test[0]) == set(test[1])
    other = open_images(flat)["all"].select(range(4))  # all of them trained on or held out before
    assert len(seen_by(tmp_path / "two").masks(other)[0]) == 4


def test_when_a_set_has_train_and_val_alone_then_nothing_is_said_to_judge(
    start: Path, flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(flat, tmp_path / "set" / "train")
    shutil.copytree(flat, tmp_path / "set" / "val")
    said = tuned(capsys, tmp_path / "set", start, tmp_path / "one")
    assert "no test part, so nothing judges the model" in said
    assert "test images" not in said
    said = done(capsys, "image", "evaluate", str(tmp_path / "set"), "--model", str(tmp_path / "one"))
    assert "the model was trained on 30 of these 30 images: its scores are too good" in said


def test_when_the_test_images_are_those_of_the_training_then_a_line_of_its_own_says_so(
    start: Path, flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("train", "test"):
        shutil.copytree(flat, tmp_path / "set" / part)
    said = tuned(capsys, tmp_path / "set", start, tmp_path / "one")
    assert "which chose nothing\nset: the model was trained on 27 and was chosen by 3 of these 30 images" in said


def test_when_images_are_predicted_by_other_processes_or_in_bf16_then_classes_stay_and_a_bad_image_is_named(
    start: Path, flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(flat, tmp_path / "set" / "test")
    for number, name in enumerate("abc"):
        (tmp_path / "set/test" / name).rename(tmp_path / "set/test" / str(number))  # the names of the model's classes
    words = (str(tmp_path / "set"), "--model", str(start))
    told = []
    for number, more in enumerate([(), ("--workers", "2"), ("--precision", "bf16")]):
        file = tmp_path / f"{number}.csv"
        done(capsys, "image", "predict", *words, "--output", str(file), *more)
        told.append(np.loadtxt(file, delimiter=",", skiprows=1, usecols=(2, 3, 4)))
    np.testing.assert_array_equal(told[1], told[0])
    assert 0 < np.abs(told[2] - told[0]).max() < 0.02
    scores = []
    for more in ((), ("--workers", "1")):
        done(capsys, "image", "evaluate", *words, "--json", str(tmp_path / "s.json"), "--overwrite", *more)
        rows = json.loads((tmp_path / "s.json").read_text())["rows"]
        scores.append({row["metric"]: row["value"] for row in rows if row["metric"] != "images_per_second"})
    assert scores[0] == scores[1]
    (tmp_path / "set/test/0/3.png").write_text("no image")
    refused = run(capsys, "image", "predict", *words, "--workers", "1")
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert "3.png: expected an image, found something else: remove it" in refused.err
    assert "Traceback" not in refused.err
    assert "expected workers of 0 or more, found -1" in run(capsys, "image", "predict", *words, "--workers", "-1").err


def test_when_calibration_is_drawn_then_each_image_is_classified_once(
    start: Path, flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, image = [], ImageSet.image
    monkeypatch.setattr(ImageSet, "image", lambda self, index: [read.append(index), image(self, index)][1])
    words = ("--part", "all", "--plot", str(tmp_path / "p.png"))
    for number, name in enumerate("abc"):
        (flat / name).rename(flat / str(number))  # the names of the model's classes
    done(capsys, "image", "evaluate", str(flat), "--model", str(start), *words)
    assert sorted(read) == list(range(30))


def test_when_the_record_of_seen_images_is_corrupt_then_one_line_says_so(
    start: Path, flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from safetensors.torch import save_file

    shutil.copytree(start, tmp_path / "bad")
    for content in (b"\x00" * 40, {"trained": torch.zeros(2)}):
        file = tmp_path / "bad" / "seen.safetensors"
        file.write_bytes(content) if isinstance(content, bytes) else save_file(content, file)
        refused = run(capsys, "image", "evaluate", str(flat), "--model", str(tmp_path / "bad"))
        assert (refused.status, refused.err.count("\n")) == (2, 1)
        assert "seen.safetensors" in refused.err


def test_when_a_forecasting_command_is_given_an_image_model_then_it_names_the_other_command(
    start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["t.csv", "--horizon", "4", "--model", str(start), "--output", str(tmp_path / "out")]
    assert "tsfm image finetune" in run(capsys, "finetune", *words).err


def weights_after(
    capsys: pytest.CaptureFixture[str], data: Path, model: Path, output: Path, *words: str
) -> dict[str, Any]:
    """The weights after some steps of fine-tuning."""
    from safetensors.torch import load_file

    common = ("--steps", "3", "--batch-size", "8", "--checks", "1", "--lr", "1e-2", "--output", str(output))
    done(capsys, "image", "finetune", str(data), "--model", str(model), *common, *words)
    return load_file(output / "model.safetensors")


@pytest.mark.parametrize("method", ["head", "lora"])
def test_when_a_method_trains_a_part_then_the_rest_stays_as_it_was(
    start: Path, flat: Path, method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file

    if method == "lora":
        pytest.importorskip("peft")
    shutil.move(flat / "c", flat / "d")
    shutil.copytree(flat / "a", flat / "e")  # four classes, so that the head is new
    (flat / "e" / "9.png").unlink()
    before = load_file(start / "model.safetensors")
    after = weights_after(capsys, flat, start, tmp_path / "out", "--method", method)
    assert after.keys() == before.keys()
    changed = {key for key in after if not (before[key].shape == after[key].shape and before[key].equal(after[key]))}
    inside = {key for key in after if method == "lora" and "mlp.fc" in key and key.endswith("weight")}
    assert changed == {"head.fc.weight", "head.fc.bias"} | inside


@pytest.mark.parametrize("method", ["full", "lora"])
def test_when_training_makes_a_model_worse_then_the_weights_are_those_it_began_with(
    start: Path,
    flat: Path,
    method: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch
    from safetensors.torch import load_file

    if method == "lora":
        pytest.importorskip("peft")
    for number, name in enumerate("abc"):
        (flat / name).rename(flat / str(number))  # the names of the model's classes
    scores = iter([0.9, 0.5, 0.8])
    monkeypatch.setattr("tsfm_vision.training.finetuning.score", lambda *_: next(scores))
    before = load_file(start / "model.safetensors")
    after = weights_after(capsys, flat, start, tmp_path / "out", "--method", method)
    assert after.keys() == before.keys()
    for key in after:
        torch.testing.assert_close(after[key], before[key], rtol=0, atol=0)


def test_when_images_are_read_by_other_processes_then_the_weights_are_the_same(
    start: Path, flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = weights_after(capsys, flat, start, tmp_path / "one")
    two = weights_after(capsys, flat, start, tmp_path / "two", "--workers", "2")
    assert all(two[key].equal(one[key]) for key in one)
    low = weights_after(capsys, flat, start, tmp_path / "low", "--precision", "bf16", "--layer-decay", "1")
    assert all(bool(low[key].isfinite().all()) for key in low)
    assert not all(low[key].equal(one[key]) for key in one)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--layer-decay", "0"), "expected a layer_decay above 0 and at most 1"),
        (("--rank", "0"), "expected rank of at least 1"),
        (("--batch-size", "512"), "training images or more, found"),
        (("--batch-size", "512"), ": give --batch-size "),
        (("--method", "head", "--scratch"), "expected method full for random weights, found head"),
    ],
)
def test_when_options_of_fine_tuning_do_not_fit_then_one_line_says_so(
    start: Path, flat: Path, words: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = run(
        capsys, "image", "finetune", str(flat), "--model", str(start), "--output", str(tmp_path / "o"), *words
    )
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert message in refused.err


def test_when_an_image_is_fine_tuned_on_then_it_is_resized_and_cropped_as_in_evaluation() -> None:
    import torch

    from tsfm_vision.evaluation import eval_transform
    from tsfm_vision.training import Augment

    config = {"input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.2,) * 3, "interpolation": "bicubic"}
    config |= {"crop_pct": 0.8, "crop_mode": "center"}
    pixels = np.random.default_rng(0).integers(0, 255, (30, 70, 3), dtype=np.uint8)
    picture, train = Image.fromarray(pixels), Augment(crop="pad", flip=0.0, policy=None, erase=0.0).build(config)
    expected = eval_transform(config)(picture)
    torch.manual_seed(0)
    assert any(torch.equal(train(picture), expected) for _ in range(200))  # one of 25 shifts is none
