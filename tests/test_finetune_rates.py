"""Learning rates of fine-tuning: rows, continuation of an interrupted table, and the page."""

from pathlib import Path

import finetune_rates
import numpy as np
import pytest
import torch
from command import script
from finetune_rates import measure, summarise, to_markdown

from tsfm.models.zeroshot.encoder import ZeroShotEncoder
from tsfm.models.zeroshot.recipe import ZeroShotConfig
from tsfm.training.finetuning import Recipe
from tsfm.weights.pretrained import load, save
from tsfm_data.io.series import SeriesSet


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> ZeroShotEncoder:
    """A tiny model, and two sets instead of those of the catalogue: a sawtooth, and one that is too short."""
    rng = np.random.default_rng(0)
    teeth = [(np.arange(4000) + 3 * k) % 24 + rng.normal(0, 0.5, 4000) for k in range(2)]
    sets = [("teeth", SeriesSet.from_arrays("teeth", teeth, "h"))]
    sets += [("short", SeriesSet.from_arrays("short", [part[:100] for part in teeth], "h"))]
    monkeypatch.setattr(finetune_rates, "held_out_sets", lambda: tuple(sets))
    torch.manual_seed(0)
    return ZeroShotEncoder(48, 48, ZeroShotConfig(d_model=16, layers=1, heads=2, patch_size=8)).eval()


@pytest.mark.slow
def test_when_rates_are_tried_then_a_rate_that_learns_is_better_and_nothing_is_trained_twice(
    model: ZeroShotEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = [Recipe("full", steps=30, checks=3, lr=rate) for rate in (1e-9, 5e-3)]
    rows = measure(model, recipes, tmp_path)
    assert [(row["set"], row["lr"]) for row in rows] == [("teeth", 1e-9), ("teeth", 5e-3)]
    assert rows[0]["MASE"] == rows[0]["WQL"] == 1.0
    assert rows[1]["WQL"] < 0.9
    assert [row["kept"] for row in rows] == [False, True]

    def again(*_: object) -> None:
        raise AssertionError("trained twice")

    monkeypatch.setattr(finetune_rates, "finetune", again)
    assert measure(model, recipes, tmp_path) == rows
    table = summarise(rows)
    assert [line["rate"] for line in table] == ["1e-09", "0.005"]
    assert table[0]["kept"] == "0 of 1"
    assert "python benchmarks/finetune_rates.py" in to_markdown(rows, "tiny", "python benchmarks/finetune_rates.py")


def test_when_a_method_is_unknown_then_near_names_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    result = script(capsys, finetune_rates.main, "--methods", "loro")
    assert result.status == 2
    assert "lora" in result.err


def test_when_weights_are_stored_in_half_precision_then_the_file_halves_and_the_model_is_loaded_as_before(
    model: ZeroShotEncoder, tmp_path: Path
) -> None:
    save(model, tmp_path / "full")
    save(model, tmp_path / "half", dtype=torch.float16)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("full", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    for key, value in load(tmp_path / "half").state_dict().items():
        assert value.dtype == model.state_dict()[key].dtype
        torch.testing.assert_close(value, model.state_dict()[key], rtol=1e-3, atol=1e-6)
