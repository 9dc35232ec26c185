"""iTransformer equals the original code and the Time-Series-Library: every golden case found is a test."""

import json
from pathlib import Path

import pytest
import torch
from conftest import golden_cases
from safetensors.torch import load_file

from tsfm.models.itransformer import from_reference_state
from tsfm_data.batch import Batch


def close(ours: torch.Tensor, reference: torch.Tensor, tolerance: float = 5e-5) -> None:
    """``max|a - b| <= tolerance * max|reference|``, the tolerance that the golden files state."""
    assert ours.shape == reference.shape
    error = (ours - reference).abs().max().item()
    assert error <= tolerance * reference.abs().max().item(), f"off by {error}"


@pytest.mark.parametrize("case", golden_cases("timeseries/itransformer"), ids=lambda path: path.stem)
def test_golden_case_when_loaded_from_reference_weights_then_outputs_and_gradients_agree(case: Path) -> None:
    info = json.loads(case.read_text())
    config = info["config"]
    tensors = load_file(case.with_suffix(".safetensors"))
    weights = {key.removeprefix("weights/"): value for key, value in tensors.items() if key.startswith("weights/")}
    model = from_reference_state(
        weights, heads=config["n_heads"], activation=config["activation"], window_norm=config["use_norm"]
    ).eval()
    past = tensors["in/x_enc"]
    batch = Batch(
        past=past,
        past_observed=torch.ones_like(past, dtype=torch.bool),
        horizon=config["pred_len"],
        past_marks=tensors.get("in/x_mark_enc"),
    )
    tokens, _ = model.embed(batch)
    close(tokens, tensors["out/embedding"])
    for k, block in enumerate(model.blocks):
        tokens = block(tokens)
        close(tokens, tensors[f"out/layer_{k}"])
    close(model.norm(tokens), tensors["out/encoder"])
    forecast = model(batch).squeeze(-1)
    for row, reference in zip(forecast.unbind(-1), tensors["out/forecast"].unbind(-1), strict=True):
        close(row, reference)  # a variate at a time: their scales differ
    target = tensors["in/target"]
    loss = model.head.loss(forecast.unsqueeze(-1), target, torch.ones_like(target, dtype=torch.bool))
    close(loss, tensors["out/loss_mse"])
    loss.backward()
    norms = info["grad_param_norms"]
    ours = dict(model.named_parameters())
    close(ours["embedding.weight"].grad.norm(), torch.tensor(norms["enc_embedding.value_embedding.weight"]), 1e-3)
    close(
        ours["blocks.0.feed_forward.up.weight"].grad.norm(),
        torch.tensor(norms["encoder.attn_layers.0.conv1.weight"]),
        1e-3,
    )
    assert sum(p.numel() for p in model.parameters()) == info["n_params"]
