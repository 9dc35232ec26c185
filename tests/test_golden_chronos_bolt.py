"""Chronos-Bolt equals chronos-forecasting: every golden case found is a test."""

import json
from pathlib import Path

import pytest
import torch
from conftest import golden_cases
from golden_series import close, close_by_series, split
from safetensors.torch import load_file

from tsfm.models.chronos_bolt import ChronosBolt, from_reference
from tsfm.nn.quantiles import interpolate_quantiles
from tsfm_data.windows.batch import Batch

CASES = golden_cases("timeseries/chronos_bolt")


@pytest.fixture(params=CASES, ids=lambda path: path.stem)
def case(request: pytest.FixtureRequest) -> tuple[dict, dict[str, torch.Tensor], ChronosBolt]:
    info = json.loads(request.param.read_text())
    tensors = load_file(Path(request.param).with_suffix(".safetensors"))
    weights = {key.removeprefix("weights/"): value for key, value in tensors.items() if key.startswith("weights/")}
    return info, tensors, from_reference(info["hf_config"], weights).eval()


def test_golden_case_when_one_pass_is_made_then_states_loss_and_gradients_agree(case: tuple) -> None:
    info, tensors, model = case
    past, observed = split(tensors["in/context"])
    loc, scale = model.scale(past, observed)
    close_by_series(loc, tensors["out/loc"])
    close_by_series(scale, tensors["out/scale"])
    tokens, seen = model.embed((past - loc) / scale, observed)
    close(tokens, tensors["out/input_embeds"])
    assert torch.equal(seen.float(), tensors["out/attention_mask"])
    encoded = model.encoder(tokens, seen)
    close(encoded, tensors["out/encoder_hidden"])
    close(model.decoder(model.shared.weight[:1].expand(len(past), 1, -1), seen, encoded), tensors["out/decoder_hidden"])
    future, future_observed = split(tensors["in/target"])
    batch = Batch(
        past[..., None], observed[..., None], 24, future=future[..., None], future_observed=future_observed[..., None]
    )
    output = model(batch)
    close_by_series(output[:, :, 0].transpose(1, 2), tensors["out/forward_quantiles"])
    loss = model.loss(batch)
    close(loss, tensors["out/loss"])
    close(model.loss_of(output, batch), tensors["out/loss"], 1e-3)  # constant series are scaled by 1e5 and back
    loss.backward()
    found = {name: p.grad.norm() for name, p in model.named_parameters() if p.grad is not None}
    largest = max(info["grad_param_norms"].values())
    assert found.keys() == info["grad_param_norms"].keys()
    for name, norm in info["grad_param_norms"].items():
        # The reference's own rounding noise stands beside norms that are almost zero.
        assert found[name].item() == pytest.approx(norm, rel=1e-3, abs=1e-6 * largest), name
    assert sum(p.numel() for p in model.parameters()) == info["n_params"]


@torch.inference_mode()
def test_golden_case_when_any_horizon_is_asked_then_raw_quantiles_agree(case: tuple) -> None:
    _, tensors, model = case
    past, observed = split(tensors["in/context"])
    horizons = [int(key.removeprefix("out/quantiles_h")) for key in tensors if key.startswith("out/quantiles_h")]
    assert horizons
    for horizon in horizons:
        found = model.unroll(past, observed, horizon)
        close_by_series(found.transpose(1, 2), tensors[f"out/quantiles_h{horizon}"])
    long = model.unroll(*split(tensors["in/context_long"]), 24)
    close_by_series(long.transpose(1, 2), tensors["out/quantiles_long_context_h24"])


@torch.inference_mode()
def test_golden_case_when_series_of_a_list_have_different_lengths_then_quantiles_agree(case: tuple) -> None:
    _, tensors, model = case
    context = tensors["in/context"]
    parts = [context[0, -100:], context[7, -5:], context[6, :130]]
    rows = torch.stack([torch.nn.functional.pad(x, (130 - len(x), 0), value=torch.nan) for x in parts])
    close_by_series(model.unroll(*split(rows), 24).transpose(1, 2), tensors["out/list_quantiles_h24"])


@torch.inference_mode()
def test_golden_case_when_other_levels_are_asked_then_interpolated_quantiles_agree(case: tuple) -> None:
    _, tensors, model = case
    past, observed = split(tensors["in/context"])
    raw = model.unroll(past, observed, 24)
    # The original repeats the outermost levels at 0 and 1 and puts all in order; ours has exponential tails instead.
    repeated = torch.cat([raw[..., :1], raw, raw[..., -1:]], dim=-1).sort(dim=-1).values
    found = interpolate_quantiles(repeated, (0.0, *model.levels, 1.0), (0.1, 0.25, 0.5, 0.75, 0.95))
    close_by_series(found, tensors["out/interpolated_quantiles_h24"])
    close_by_series(raw[..., 4], tensors["out/median_h24"])
    ordered = model.rollout(Batch(past[..., None], observed[..., None], 24))[:, :, 0]
    torch.testing.assert_close(ordered, raw.sort(dim=-1).values)
