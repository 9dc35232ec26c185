"""The ablation table of the zero-shot recipe."""

import math

import pytest
from ablation import CHOICES, RECIPE, choose, compare, to_markdown

from tsfm_data.errors import InputError

NAIVE = {name: {"MASE": 1.0, "WQL": 0.5} for name in ("a", "b", "c", "d")}


def run(choice: str, seed: int, factor: float) -> dict[str, object]:
    return {
        "choice": choice,
        "seed": seed,
        "scores": {name: {"MASE": 0.8 * factor, "WQL": 0.3 * factor} for name in ("a", "b", "c")},
    }


def test_when_a_choice_is_worse_on_every_set_then_the_interval_says_so() -> None:
    runs = [run(RECIPE, seed, 1.0 + 0.02 * seed) for seed in range(2)]
    runs += [run("no copy", seed, 1.1 * (1.0 + 0.02 * seed)) for seed in range(2)]
    recipe, without = compare(runs, NAIVE)
    assert recipe["MASE"] == pytest.approx(0.8 * math.sqrt(1.02))
    assert recipe["WQL"] == pytest.approx(0.6 * math.sqrt(1.02))
    assert recipe["MASE_change"] == 0
    assert without["MASE_change"] == pytest.approx(0.1)
    assert without["MASE_low"] == pytest.approx(0.1)
    assert without["WQL_high"] == pytest.approx(0.1)
    assert "+10.0 % (+10.0 to +10.0)" in to_markdown("encoder", [recipe, without], 300, "python benchmarks/ablation.py")


def test_when_choices_are_named_then_the_recipe_comes_along() -> None:
    assert choose("encoder", ["no copy"]) == [RECIPE, "no copy"]
    assert set(choose("encoder", [])) | set(choose("decoder", [])) == set(CHOICES)
    assert "span masking" not in choose("decoder", [])
    with pytest.raises(InputError, match="no copies"):
        choose("encoder", ["no copies"])
