"""Scaling-law benchmarks: all fits are compared by the same objective, and coverage is measured on every design."""

import importlib.util
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from law_sweep import BUDGETS, models, write_grid
from scaling import cover, coverage_to_markdown, huber, side_by_side, side_to_markdown

from tsfm.scaling.laws.estimate import fit_joint
from tsfm.scaling.laws.form import NAMES
from tsfm.scaling.selftest import STUDY, planted_runs
from tsfm_data.errors import InputError


def test_when_fits_are_compared_then_objective_and_gradient_are_those_of_our_fit() -> None:
    runs = planted_runs("grid", 36, 0.01, seed=1)
    fit = fit_joint(runs, 1, 0)
    E, A, B, alpha, beta = fit.law
    theta = np.array([np.log(A), np.log(B), np.log(E), alpha, beta])
    assert huber(runs, theta)[0] == pytest.approx(fit.objective, rel=1e-9)
    away = theta + 0.05
    steps = 1e-6 * np.eye(5)
    slopes = [(huber(runs, away + step)[0] - huber(runs, away - step)[0]) / 2e-6 for step in steps]
    np.testing.assert_allclose(huber(runs, away)[1], slopes, rtol=1e-4)


@pytest.mark.parametrize(
    ("design", "size"), sorted({(design, {"branches": 5, "ledger": 4}.get(design, 1)) for design, *_ in STUDY})
)
def test_when_a_design_is_simulated_then_only_branches_of_one_training_share_a_cluster(design: str, size: int) -> None:
    runs = planted_runs(design, 60, 0.01, seed=0)
    assert runs.runs == len(runs) // size
    row = cover((design, 60, 0.01, "normal"), 3)
    assert all(0 <= row[name] <= 1 for name in NAMES)


def test_when_tables_are_written_then_they_name_their_command_and_repeats() -> None:
    row = {"design": "grid", "runs": 36, "noise": 0.01, "tails": "normal", "repeats": 400} | dict.fromkeys(NAMES, 0.95)
    text = coverage_to_markdown([row, row], "python benchmarks/scaling.py --part coverage")
    assert "400 times with different" in text
    assert "0.011" in text
    assert "400 to 1000 times" in coverage_to_markdown([row, row | {"repeats": 1000}], "python benchmarks/scaling.py")
    side = {"side": "tsfm", "seconds": 1.0, "ratio": 1.0, "objective": 1e-3}
    assert "python benchmarks/scaling.py" in side_to_markdown([side], "python benchmarks/scaling.py")


@pytest.mark.skipif(importlib.util.find_spec("chinchilla") is not None, reason="the package is there")
def test_when_the_other_package_is_absent_then_one_line_says_how_to_get_it() -> None:
    with pytest.raises(InputError, match="pip install chinchilla"):
        side_by_side(1, 2)


def test_when_the_law_is_swept_then_warm_up_is_short_data_span_a_factor_of_64_and_small_sizes_have_four_seeds(
    tmp_path: Path,
) -> None:
    sizes: Counter[str] = Counter()
    for arch, size, seeds in models():
        grid = write_grid(tmp_path / "grid.yaml", arch, size, BUDGETS, [1e-3], seeds, corpus=None)
        assert (grid.arch, list(grid.size), grid.steps) == ([arch], [size], BUDGETS)
        assert 10 * grid.warmup <= min(BUDGETS)
        assert len(grid.seed) == (4 if sizes[arch] < 2 else 1)
        assert grid.base()["data"]["init_args"]["corpus"] is None
        sizes[arch] += 1
    assert sizes == {"encoder": 5, "decoder": 5, "zeroshot-long": 5}
    assert max(BUDGETS) >= 64 * min(BUDGETS)
