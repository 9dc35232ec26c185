"""Moirai 2 equals uni2ts: every golden case found is a test.

Padding tokens are left out: nobody sees them here, while the original lets them see each other.
"""

import json
from pathlib import Path

import pytest
import torch
from conftest import golden_cases
from golden_series import close
from safetensors.torch import load_file

from tsfm.models.moirai2 import Moirai2, from_reference
from tsfm.models.packing import Packed, pack_window
from tsfm.nn.quantiles import DEFAULT_LEVELS

CASES = [path for path in golden_cases("timeseries/moirai") if path.stem.startswith("moirai2")]
FIELDS = {"target": "target", "observed": "observed_mask", "sample_id": "sample_id", "time_id": "time_id"}
FIELDS |= {"variate_id": "variate_id", "is_predicted": "prediction_mask"}


def load(path: Path) -> tuple[dict, dict[str, torch.Tensor], Moirai2]:
    config = json.loads(path.read_text())["config"]
    tensors = load_file(path.with_suffix(".safetensors"))
    state = {k.removeprefix("weights/"): v for k, v in tensors.items() if k.startswith("weights/")}
    model = from_reference({**config, "quantile_levels": DEFAULT_LEVELS}, state, config.get("context_length", 96), 24)
    return config, tensors, model.eval()


@pytest.mark.parametrize("path", [p for p in CASES if "forecast" not in p.stem], ids=lambda path: path.stem)
def test_golden_case_when_rows_are_packed_then_tokens_and_quantiles_agree(path: Path) -> None:
    config, tensors, model = load(path)
    packed = Packed(**{ours: tensors[f"in/{theirs}"] for ours, theirs in FIELDS.items()})
    real = packed.sample_id > 0
    loc, scale = packed.scale()
    for found, name in ((loc, "scaler_loc"), (scale, "scaler_scale")):
        reference = tensors[f"out/{name}"]
        close(found / reference.abs().clamp(min=1), reference / reference.abs().clamp(min=1))
    close((packed.target - loc) / scale, tensors["out/scaled_target"])
    close(model.embed(packed, loc, scale), tensors["out/embedded"])
    close(model.represent(packed, loc, scale)[real], tensors["out/hidden"][real])
    ours = model.next_quantiles(packed)
    layout = (config["num_predict_token"], 9, config["patch_size"])
    reference = tensors["out/preds"].unflatten(-1, layout).transpose(2, 3).flatten(3)
    units = tensors["out/scaler_scale"][..., None]
    close((ours / units)[real], (reference / units)[real])
    assert sum(p.numel() for p in model.parameters()) == json.loads(path.read_text())["n_params"]


@torch.inference_mode()
@pytest.mark.parametrize("path", [p for p in CASES if "forecast" in p.stem], ids=lambda path: path.stem)
def test_golden_forecast_when_any_horizon_is_asked_then_quantiles_agree(path: Path) -> None:
    config, tensors, model = load(path)
    past, observed, pad = (tensors[f"in/past_{name}"] for name in ("target", "observed_target", "is_pad"))
    packed = pack_window(past, observed, pad, config["patch_size"])
    tokens = packed.target.shape[1]
    for ours, theirs in FIELDS.items():
        torch.testing.assert_close(
            getattr(packed, ours), tensors[f"out/packed_{theirs}"][:, :tokens], check_dtype=False
        )
    for horizon in config["prediction_lengths"]:
        found = model.unroll(packed, horizon, 1)[:, :, 0].transpose(1, 2)
        for row, expected in zip(found, tensors[f"out/quantiles_h{horizon}"], strict=True):
            close(row, expected)
