"""A model card states what is recorded of its model, and every shipped card is up to date."""

import json
from pathlib import Path

import pytest
import torch
from command import done, run

from tsfm.models.base import Pretraining
from tsfm.models.scaling_law.encoder import Encoder
from tsfm.models.scaling_law.trunk import TrunkConfig
from tsfm.weights import registry
from tsfm.weights.cards import card
from tsfm.weights.pretrained import load, save

ROOT = Path(__file__).resolve().parent.parent
FACTS = Pretraining("corpus-a", "ab" * 32, ("solar", "wind"), ("m4_hourly",), 5, 7, 1000, 2000, 123_456, "tsfm fit X")
SCORES = {
    "model": "model",
    "suite": "bench",
    "rows": [
        {"dataset": "a", "profile": "gift", "horizon": 8, "metric": "MASE", "value": 0.5, "model": "x", "windows": 2},
        {"dataset": "a", "profile": "gift", "horizon": 8, "metric": "MASE", "value": 0.4, "model": "published"},
    ],
    "summary": {
        "gift": {
            "model": {"MASE": {"relative": 0.8123, "datasets": 22}, "WQL": {"relative": 0.7}, "coverage80": 0.79},
            "naive": {"MASE": {"relative": 1.5, "datasets": 22}, "WQL": {"relative": None}},
        }
    },
}


@pytest.fixture
def released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model as it ships."""
    torch.manual_seed(0)
    model = Encoder(64, 32, TrunkConfig(8, 1, 1))
    model.pretraining = FACTS
    save(model, tmp_path / "tsfm-encoder-toy")
    (tmp_path / "tsfm-encoder-toy/scores.json").write_text(json.dumps(SCORES))
    monkeypatch.setattr(registry, "released_folder", lambda: tmp_path)
    return tmp_path / "tsfm-encoder-toy"


def test_when_a_card_is_made_then_it_says_what_is_recorded(released: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done(capsys, "weights", "card", str(released))
    text = (released / "README.md").read_text()
    assert text.startswith("---\nlicense: apache-2.0\nlibrary_name: tsfm-suite\n")
    parameters = sum(p.numel() for p in load(released).parameters())
    for part in (
        f"{parameters:,} parameters",
        'datasets:\n- "solar"\n- "wind"\nmetrics:\n- mase',
        "1,000 steps on 2,000 batches with 123,456 observed values. Seeds: 5 for batches, 7 for weights.",
        f"its manifest.json has SHA-256 {'ab' * 32}",
        "- held out: m4_hourly",
        "    tsfm fit X",
        "| gift | **tsfm-encoder-toy** | 22 | 0.812 | 0.700 |",
        "| gift | naive | 22 | 1.500 |  |",
        "share of true values inside the 80 % interval 0.790",
        "tsfm evaluate --model tsfm-encoder-toy --suite bench --profiles gift --json scores.json",
        "## Limits",
        "## Licence",
    ):
        assert part in text
    assert "up to date" in done(capsys, "weights", "card", str(released), "--check")
    (released / "scores.json").write_text(json.dumps(SCORES).replace("0.8123", "0.9"))
    result = run(capsys, "weights", "card", str(released), "--check")
    assert result.status == 2
    assert "0.900" in result.err
    assert (released / "README.md").read_text() == text


def test_when_a_model_ships_then_its_name_is_enough(released: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load("tsfm-encoder-toy").pretraining == FACTS
    (row,) = [
        row for row in json.loads(done(capsys, "weights", "list", "--json", "-"))["rows"] if row["source"] == "shipped"
    ]
    assert (row["name"], row["family"], row["restricted"]) == ("tsfm-encoder-toy", "encoder", False)
    assert row["scores"][0] == {
        "suite": "bench, gift",
        "metric": "MASE relative to seasonal naive",
        "value": 0.8123,
    }
    assert str(released) in done(capsys, "weights", "pull", "tsfm-encoder-toy")


@pytest.mark.parametrize("folder", sorted(registry.released_folder().glob("*/")), ids=lambda path: path.name)
def test_when_a_card_ships_then_it_is_what_its_model_says(folder: Path) -> None:
    if (folder / "config.json").is_file() and "model_type" in json.loads((folder / "config.json").read_text()):
        assert (folder / "README.md").read_text() == card(folder)
        assert (ROOT / "model_cards" / f"{folder.name}.md").read_text() == card(folder)


def test_when_an_evaluation_is_given_then_its_summary_and_the_models_own_errors_are_kept(
    released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"dataset": "ETTh1", "profile": "gift", "horizon": 48, "windows": 7, "metric": "MASE", "value": 0.9}
    rows = [row | {"model": "model"}, row | {"model": "other"}, row | {"model": "model", "metric": "MSE"}]
    (tmp_path / "all.json").write_text(json.dumps(SCORES | {"rows": rows, "notes": ["x"]}))
    (released / "scores.json").unlink()
    done(capsys, "weights", "card", str(released), "--scores", str(tmp_path / "all.json"))
    kept = json.loads((released / "scores.json").read_text())
    assert kept["rows"] == [row]
    assert kept["summary"] == SCORES["summary"]
    assert "| gift | **tsfm-encoder-toy** | 22 | 0.812 | 0.700 |" in (released / "README.md").read_text()
    (tmp_path / "all.json").write_text("{}")
    result = run(capsys, "weights", "card", str(released), "--scores", str(tmp_path / "all.json"))
    assert result.status == 2
    assert "tsfm evaluate" in result.err
