"""iTransformer equals the original code and the Time-Series-Library: every golden case found is a test."""

import json
import re
from pathlib import Path

import pytest
import torch
from conftest import golden_cases
from golden_series import close
from safetensors.torch import load_file

from tsfm.models.itransformer import ITransformer, from_reference_state
from tsfm.nn.layers import PostNormBlock
from tsfm_data.windows.batch import Batch


def attention_weights(block: PostNormBlock, tokens: torch.Tensor) -> torch.Tensor:
    """The weights of a block's attention, [batch, heads, query, key]; the door itself never makes them."""
    query, key, _ = block.attention.qkv(tokens).chunk(3, dim=-1)
    query, key = (x.unflatten(2, (block.attention.heads, -1)).transpose(1, 2) for x in (query, key))
    return (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)


def reference_gradients(model: ITransformer) -> dict[str, torch.Tensor]:
    """Gradients by the names of the reference's parameters."""
    ours = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    found = {}
    for name, gradient in ours.items():
        layer = re.sub(r"^blocks\.(\d+)\.", r"encoder.attn_layers.\1.", name)
        if ".attention.qkv." in layer:
            for part, piece in zip(("query", "key", "value"), gradient.chunk(3), strict=True):
                found[layer.replace("qkv", f"{part}_projection")] = piece
            continue
        for mine, theirs in RENAMED.items():
            layer = re.sub(mine, theirs, layer)
        found[layer] = gradient
    return found


RENAMED = {
    r"^embedding": "enc_embedding.value_embedding",
    r"^norm": "encoder.norm",
    r"^head": "projector",
    r"attention\.out": "attention.out_projection",
    r"feed_forward\.up": "conv1",
    r"feed_forward\.down": "conv2",
}


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
        if f"out/attention_{k}" in tensors:
            close(attention_weights(block, tokens), tensors[f"out/attention_{k}"])
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
    gradients = reference_gradients(model)
    for name, norm in info["grad_param_norms"].items():
        if not name.endswith("key_projection.bias"):  # no influence: its gradient is rounding noise
            ours = gradients[re.sub("^projection", "projector", name)].norm()  # the Time-Series-Library's name
            close(ours, torch.tensor(norm), 1e-3)
    assert sum(p.numel() for p in model.parameters()) == info["n_params"]
