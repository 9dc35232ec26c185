"""Exported files repeat the model, whatever the number of series and steps, and are served without the suite."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command import run
from tiny_series import tiny

from tsfm.inference.exporting import Exportable, compress, differences, export, hard_inputs
from tsfm.models.base import TrainingData
from tsfm.models.zeroshot.decoder import ZeroShotDecoder
from tsfm.models.zeroshot.encoder import ZeroShotEncoder
from tsfm.models.zeroshot.history_tokens import LongHistoryConfig
from tsfm.models.zeroshot.long_history import LongHistoryDecoder
from tsfm.models.zeroshot.recipe import ZeroShotConfig
from tsfm.weights.pretrained import save
from tsfm_data.errors import InputError
from tsfm_data.windows.batch import Batch

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    folder = tmp_path_factory.mktemp("export")
    save(tiny(), folder / "tiny")
    # In a process of its own: the checks of shapes in tests are nothing that PyTorch can trace.
    words = ["-m", "tsfm", "export", "--model", "tiny", "--output", "tiny.onnx"]
    done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "8 steps at the levels 0.1" in done.stdout
    assert "difference from the model" in done.stdout
    return folder / "tiny.onnx"


def test_when_a_series_is_exported_then_it_is_forecast_as_by_the_model() -> None:
    model = tiny()
    whole = Exportable(tiny(), 12)  # longer than the model's own horizon
    for past in hard_inputs(model.context):
        actual = whole(torch.from_numpy(past))
        seen = torch.from_numpy(~np.isnan(past))[..., None]
        batch = Batch(torch.from_numpy(np.nan_to_num(past))[..., None], seen, 12)
        expected = model.predict(batch, model.levels).quantiles[:, :, 0]
        scale = expected.abs().amax().clamp(min=1)
        torch.testing.assert_close(actual / scale, expected / scale, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_when_the_onnx_file_runs_then_it_repeats_the_model_on_hard_inputs(onnx_file: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
    past = np.random.default_rng(3).normal(size=(7, 50)).cumsum(1) + 100
    past[1, ::3] = np.nan
    past[2] = -4.0
    past[3] = np.nan
    expected = Exportable(tiny(), 8)(torch.from_numpy(past)).numpy()
    np.testing.assert_allclose(session.run(None, {"past": past})[0], expected, rtol=1e-4, atol=1e-3)
    assert b"/work" not in onnx_file.read_bytes()
    assert str(ROOT).encode() not in onnx_file.read_bytes()


@pytest.mark.slow
def test_when_the_file_is_served_without_the_suite_then_it_forecasts(onnx_file: Path) -> None:
    lines = "1,2,3,4,5,6,,8\n5,5,5\n"
    words = [sys.executable, "-I", str(ROOT / "docs/serve_onnx.py"), str(onnx_file)]
    served = subprocess.run(words, input=lines, text=True, capture_output=True, check=True).stdout.splitlines()
    assert served[0] == "series,step,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9"
    assert len(served) == 1 + 2 * 8
    past = np.full((2, 8), np.nan)
    past[0], past[1, 5:] = [1, 2, 3, 4, 5, 6, np.nan, 8], 5
    expected = Exportable(tiny(), 8)(torch.from_numpy(past)).numpy().reshape(16, 9)
    actual = np.array([[float(field) for field in line.split(",")[2:]] for line in served[1:]])
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("dtype", "most"), [("bf16", 0.05), ("int8", 0.05)])
def test_when_weights_are_compressed_then_the_loss_is_small_and_not_nothing(dtype: str, most: float) -> None:
    torch.manual_seed(0)
    model = ZeroShotEncoder(32, 8, ZeroShotConfig(d_model=64, layers=1, heads=2, patch_size=8)).eval()
    whole, small = (Exportable(m, 8) for m in (model, model.__class__(32, 8, model.config)))
    small.load_state_dict(whole.state_dict())
    compress(small, dtype)  # type: ignore[arg-type]
    stored = {x.dtype for name, x in small.state_dict().items() if name.endswith("stored")}
    assert stored == {{"bf16": torch.bfloat16, "int8": torch.int8}[dtype]}
    actual = differences(lambda past: small(torch.from_numpy(past)).numpy(), whole, 32)
    assert 0 < actual.mean() < most


def test_when_a_model_wants_calendar_features_then_it_is_refused(tmp_path: Path) -> None:
    model = tiny()
    model.training_data = TrainingData("x", "h", "h", ("a",), (0.0,), (1.0,))
    with pytest.raises(InputError, match="calendar features"):
        export(model, tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--output", "m.bin"], "ends in .onnx"),
        (["--output", "m.onnx", "--horizon", "0"], "horizon of at least 1"),
        (["--output", "m.onnx", "--model", "naive"], "found the baseline naive"),
        (["--output", "m.onnx", "--dtype", "int4"], "int4"),
    ],
)
def test_when_an_export_is_asked_for_the_impossible_then_one_line_says_why(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(capsys, "export", *words)
    assert result.status == 2
    assert expected in result.err


@pytest.mark.slow
def test_when_the_horizon_is_beyond_a_pass_of_the_decoder_then_its_paths_are_in_the_file(tmp_path: Path) -> None:
    """In a process of its own, as above."""
    torch.manual_seed(0)
    sizes = ZeroShotConfig(d_model=16, hidden=16, layers=1, heads=2, patch_size=8, predict_patches=1)
    save(ZeroShotDecoder(32, 8, sizes).eval(), tmp_path / "tiny")
    words = ["--model", "tiny", "--output", "tiny.pt2", "--horizon", "20", "--format", "torch"]
    command = [sys.executable, "-m", "tsfm", "export", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "20 steps at the levels 0.1" in done.stdout


@pytest.mark.slow
def test_when_the_long_history_decoder_is_exported_then_the_file_repeats_it_for_any_series(tmp_path: Path) -> None:
    """In a process of its own, as above."""
    for library in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(library)
    import onnxruntime

    torch.manual_seed(0)
    model = LongHistoryDecoder(64, 8, LongHistoryConfig.tiny()).eval()
    save(model, tmp_path / "tiny")
    words = [sys.executable, "-m", "tsfm", "export", "--model", "tiny", "--output", "tiny.onnx"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    session = onnxruntime.InferenceSession(str(tmp_path / "tiny.onnx"), providers=["CPUExecutionProvider"])
    whole = Exportable(model, 8)
    rng = np.random.default_rng(0)
    for series, steps in ((1, 1), (2, 9), (5, 64), (3, 300)):
        past = 5 * np.sin(2 * np.pi * np.arange(steps) / 12) + rng.normal(size=(series, steps)).cumsum(1)
        past[1:, ::5] = np.nan
        past[2:, : steps // 2] = np.nan
        expected = whole(torch.from_numpy(past)).numpy()
        np.testing.assert_allclose(
            session.run(None, {"past": past})[0], expected, rtol=1e-4, atol=1e-4 * abs(past[0]).max()
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tsfm-encoder-small", "tsfm-decoder-small"])
def test_when_a_released_model_is_exported_then_the_file_passes_the_check(name: str, tmp_path: Path) -> None:
    """In a process of its own, as above; its check of the file against the model would refuse to write it."""
    for library in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(library)
    words = ["--model", name, "--output", "small.onnx", "--horizon", "48"]
    command = [sys.executable, "-m", "tsfm", "export", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "small.onnx").is_file()
