"""Image models are fine-tuned on other classes by one command, which the forecasting command names."""

import json
from pathlib import Path

import pytest
from command import done, run, script

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


def test_when_a_forecasting_command_is_given_an_image_model_then_it_names_the_other_command(
    start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["t.csv", "--horizon", "4", "--model", str(start), "--output", str(tmp_path / "out")]
    assert "tsfm image finetune" in run(capsys, "finetune", *words).err
