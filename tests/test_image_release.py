"""An image model ships as forecasters do: listed, verified, with a card of what is recorded, and used by default."""

import json
from pathlib import Path

import numpy as np
import pytest
from command import done, run
from PIL import Image

from tsfm.weights import registry
from tsfm.weights.cards import card
from tsfm.weights.pretrained import load
from tsfm_data.errors import InputError

pytest.importorskip("timm")
RUN = """\
seed_everything: 7
trainer: {max_epochs: 3, precision: 32-true, gradient_clip_val: 1.0}
model:
  init_args: {optim: {lr: 0.002, betas: [0.9, 0.999]}, mix: {mixup: 0.0}}
data:
  init_args: {batch_size: 16, val_fraction: 0.1, fraction: 1.0, augment: {crop: pad}}
"""


@pytest.fixture
def released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small image model in the folder of released models, with its run next to it, and a picture."""
    import torch

    from tsfm_vision.weights import TrainedOn, create, save

    torch.manual_seed(0)
    sizes = {"dims": [8, 16], "depths": [1, 1], "mixers": ["pool", "pool"], "mlp_ratios": [2, 2]}
    model = create("tsfm_poolformer_s12", 2, 16, 3, sizes, {})
    save(model, tmp_path / "released/tsfm-toy", TrainedOn("toys", ("cat", "dog"), 1234))
    monkeypatch.setattr(registry, "released_folder", lambda: tmp_path / "released")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text(RUN)
    (tmp_path / "pictures").mkdir()
    for label in ("cat", "dog"):
        (tmp_path / "pictures" / label).mkdir()
        pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        for number in range(3):
            Image.fromarray(pixels).save(tmp_path / f"pictures/{label}/{number}.png")
    return tmp_path / "released/tsfm-toy"


def test_when_an_image_model_ships_then_it_is_scored_carded_listed_and_verified_by_name(
    released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = tmp_path / "scores.json"
    done(capsys, "image", "evaluate", str(tmp_path / "pictures"), "--part", "all", "--json", str(scores))
    done(capsys, "weights", "card", str(released), "--scores", str(scores), "--run", str(tmp_path / "run"))
    kept = json.loads((released / "scores.json").read_text())
    assert kept["images"] == 6
    assert kept["scores"]["top1"] == 0.5  # the same picture in both classes
    assert set(kept["classes"]) == {"cat", "dog"}
    text = (released / "README.md").read_text()
    for part in (
        "# tsfm-toy",
        "classifies colour images into 2 classes: cat, dog.\n\nImages are resized to 16 x 16 pixels",
        "1,234 training images of toys",
        'Recipe: seed 7, epochs 3, precision "32-true", gradient_clip_val 1.0, batch_size 16',
        "- optim: lr 0.002, betas [0.9, 0.999]",
        "| top-1 | 50.00% |",
        "--model tsfm-toy --json scores.json",
        "## Limits",
        "## Licence",
    ):
        assert part in text
    assert "up to date" in done(capsys, "weights", "card", str(released), "--check")
    (row,) = json.loads(done(capsys, "weights", "list", "--task", "image", "--json", "-"))["rows"][:1]
    assert (row["name"], row["family"], row["source"]) == ("tsfm-toy", "tsfm_poolformer_s12", "shipped")
    assert row["scores"] == [{"suite": "pictures", "metric": "top-1", "value": 0.5}]
    assert "tsfm_poolformer_s12" in done(capsys, "weights", "verify", str(released))


def test_when_no_image_model_is_named_then_the_shipped_one_predicts(
    released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = str(tmp_path / "pictures/cat/0.png")
    own = done(capsys, "image", "predict", picture, "--top", "2")
    assert own == done(capsys, "image", "predict", picture, "--top", "2", "--model", "tsfm-toy")
    assert "cat " in own
    with pytest.raises(InputError, match=r"expected a forecasting model in .* found an image model"):
        load("tsfm-toy")


def test_when_none_ships_or_files_are_others_then_one_line_says_so(
    released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.json").write_text('{"rows": []}')
    (tmp_path / "run/config.yaml").write_text("seed_everything: 1\n")
    for words, message in (
        (["--scores", str(tmp_path / "x.json")], "tsfm image evaluate --json"),
        (["--run", str(tmp_path / "run")], "expected config.yaml of a run of tsfm fit"),
    ):
        result = run(capsys, "weights", "card", str(released), *words)
        assert (result.status, result.err.count("\n")) == (2, 1)
        assert message in result.err
    monkeypatch.setattr(registry, "released_folder", lambda: tmp_path / "nothing")
    result = run(capsys, "image", "predict", str(tmp_path / "pictures/cat/0.png"))
    assert result.status == 2
    assert "give --model" in result.err


@pytest.mark.parametrize(
    "folder",
    [
        file.parent
        for file in sorted(registry.released_folder().glob("*/config.json"))
        if "architecture" in file.read_text()
    ],
    ids=lambda path: path.name,
)
def test_when_the_card_of_an_image_model_ships_then_it_is_what_its_model_says(folder: Path) -> None:
    assert (folder / "README.md").read_text() == card(folder)
    copy = Path(__file__).resolve().parent.parent / f"model_cards/{folder.name}.md"
    assert copy.read_text() == card(folder)
