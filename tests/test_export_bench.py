"""The benchmark of exports times both sides, and scores smaller weights."""

import json
import subprocess
import sys
from pathlib import Path

import export
import pytest
from command import script
from tiny_series import tiny

from tsfm.weights.pretrained import save

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_when_an_export_is_timed_and_scored_then_the_page_shows_every_batch_and_type_of_weights(
    data_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    save(tiny(), tmp_path / "tiny")
    words = ["--models", "tiny", "--batches", "1", "3", "--sets", "national_illness", "--repeats", "1", "--series", "2"]
    # In a process of its own: the checks of shapes in tests are nothing that PyTorch can trace.
    command = [sys.executable, str(ROOT / "benchmarks/export.py"), *words, "--horizon", "8", "--output", "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "export.json").read_text())["rows"]
    speeds, weights = rows[:2], rows[2:]
    assert [row["batch"] for row in speeds] == [1, 3]
    assert all(row["speed_over_eager"] > 0 for row in speeds)
    assert [row["weights"] for row in weights] == ["fp32", "bf16", "int8"]
    assert weights[0]["national_illness MASE"] == weights[0]["national_illness WQL"] == 1
    assert all(row["MiB"] > 0 and row["difference_mean"] < 0.02 for row in weights)
    assert weights[0]["difference_worst"] < 1e-3
    text = (tmp_path / "export.md").read_text()
    assert "--batches 1 3 --sets national_illness --repeats 1 --series 2 --horizon 8" in text


def test_when_errors_change_then_their_mean_is_geometric() -> None:
    speed = {"model": "m", "batch": 1, "eager_seconds": 2.0, "onnx_seconds": 1.0}
    speed |= {"speed_over_eager": 2.0, "speed_over_eager_range": [1.5, 2.5]}
    row = {"model": "m", "weights": "int8", "MiB": 1.0, "difference_mean": 0.01, "difference_worst": 0.1}
    row |= {"a MASE": 1.1, "b MASE": 1.1, "a WQL": 0.5, "b WQL": 2.0}
    text = export.to_markdown([speed], [row], 1, 100, True, "python benchmarks/export.py")
    assert "2.00 (1.50 to 2.50)" in text
    assert "+10.00% | +0.00%" in " ".join(text.split())


def test_when_no_series_is_asked_for_then_one_line_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    result = script(capsys, export.main, "--batches", "0")
    assert result.status == 2
    assert "expected batches of at least 1" in result.err
