"""Outputs, features and gradients of the original vision backbones, reproduced from their own weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_images import biformer_sizes, cases, close, illama_sizes, metaformer_sizes, sizes_of, tnt_sizes
from safetensors.torch import load_file
from torch import Tensor, nn

import tsfm_vision  # noqa: F401  registers the models
from tsfm_vision.backbones import base, biformer, illama, poolformer, pyramid_tnt, soft_mask, tnt


def load_case(file: Path, model: nn.Module, filter_fn: Any) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, str]]:
    """The case with its weights in the model; also the model's key of every weight that was only renamed."""
    case, tensors = json.loads(file.read_text()), load_file(file.with_suffix(".safetensors"))
    weights = {key.removeprefix("weights/"): value for key, value in tensors.items() if key.startswith("weights/")}
    state = filter_fn({"model": weights}, model)
    model.load_state_dict(state, strict=True)
    ours = {value.data_ptr(): key for key, value in state.items()}
    renamed = {key: ours[value.data_ptr()] for key, value in weights.items() if value.data_ptr() in ours}
    model.train(case.get("mode") == "train")
    return case, {key.removeprefix("io/"): value for key, value in tensors.items() if key.startswith("io/")}, renamed


def check_gradients(
    model: nn.Module, case: dict[str, Any], io: dict[str, Tensor], x: Tensor, renamed: dict[str, str]
) -> None:
    limit = 5e-4 * float(io["grad_input"].abs().max())
    assert float((x.grad - io["grad_input"]).abs().max()) <= limit
    parameters = dict(model.named_parameters())
    compared = 0
    for key, norm in case["grad_param_norms"].items():
        if norm is not None and renamed.get(key) in parameters:
            grad = parameters[renamed[key]].grad
            assert grad is not None, key
            assert float(grad.norm()) == pytest.approx(norm, rel=1e-3, abs=1e-5), key
            compared += 1
    assert compared > 10


@pytest.mark.parametrize("file", cases("poolformer") + cases("metaformer"))
def test_when_given_the_golden_weights_of_poolformer_then_outputs_and_gradients_are_the_originals(file: Path) -> None:
    model = poolformer.PoolFormer(**metaformer_sizes(sizes_of(file), 64))
    case, io, renamed = load_case(file, model, poolformer.checkpoint_filter_fn)
    x = io["input"].requires_grad_()
    last, stages = model.forward_intermediates(x)
    for index, stage in enumerate(stages):
        close(stage, io[f"stage_{index}"], f"stage {index}")
    if "logits" in io:
        close(last, io["features"], "features")
        close(model.head.norm(last), io["features_norm"], "features_norm")
        logits = model.forward_head(last)
        close(logits, io["logits"], "logits")
        (logits * io["probe"]).sum().backward()
    else:
        outs = model.forward_intermediates(x, norm=True, intermediates_only=True)
        for index, out in enumerate(outs):
            close(out, io[f"out_{index}"], f"out {index}")
        sum((out * io[f"probe_{i}"]).sum() for i, out in enumerate(outs)).backward()
    check_gradients(model, case, io, x, renamed)


@pytest.mark.parametrize("file", cases("tnt"))
def test_when_given_the_golden_weights_of_tnt_then_outputs_and_gradients_are_the_originals(file: Path) -> None:
    model = tnt.TNT(**tnt_sizes(sizes_of(file)))
    case, io, renamed = load_case(file, model, tnt.checkpoint_filter_fn)
    x = io["input"].requires_grad_()
    inner, outer = model.embed(x)
    close(inner - model.pixel_pos.flatten(2).transpose(1, 2), io["inner_embed"], "inner_embed")
    for block in model.blocks:
        inner, outer = block(inner, outer)
    close(inner, io["inner_tokens"], "inner_tokens")
    tokens = model.forward_features(x)
    close(tokens, io["tokens"], "tokens")
    logits = model.forward_head(tokens)
    close(logits, io["logits"], "logits")
    (logits * io["probe"]).sum().backward()
    check_gradients(model, case, io, x, renamed)


@pytest.mark.parametrize("file", cases("illama"))
def test_when_given_the_golden_weights_of_illama_then_outputs_and_gradients_are_the_originals(file: Path) -> None:
    model = illama.ILlama(**illama_sizes(sizes_of(file)))
    case, io, renamed = load_case(file, model, illama.checkpoint_filter_fn)
    model.soft_mask_rate = case["soft_mask_rate"]
    x = io["input"].requires_grad_()
    close(model.forward_intermediates(x, [0], output_fmt="NLC")[1][0], io["block_0"][:, :-1], "block_0")
    tokens = model.forward_features(x)
    close(tokens, io["tokens"], "tokens")
    logits = model.forward_head(tokens)
    close(logits, io["logits"], "logits")
    (logits * io["probe"]).sum().backward()
    check_gradients(model, case, io, x, renamed)


def test_when_the_position_table_of_illama_is_resized_then_it_is_the_golden_one(golden_folder: Path) -> None:
    tables = load_file(golden_folder / "vision/illama/illama_pos_embed_resize.safetensors")
    for key in [key for key in tables if key.endswith("before")]:
        old, new = (int(side) for side in key.split("/")[1].split("_to_"))
        after = base.resize_positions(tables[key], (old, old), (new, new), 0)
        assert torch.allclose(after, tables[key.replace("before", "after")], rtol=0, atol=1e-6), key


def test_when_the_soft_mask_is_scheduled_then_its_rates_are_the_golden_ones(golden_folder: Path) -> None:
    file = golden_folder / "vision/illama/illama_mask_schedules.json"
    for name, expected in json.loads(file.read_text())["schedules"].items():
        steps, cutoff = expected["niter_per_ep"], expected["cutoff_soft"]
        if expected["mask_mode"] == "standard":  # holds the rate to the end
            cutoff = expected["epochs"]
        mask_rates = soft_mask.rates(expected["mask_schedule"], cutoff, expected["epochs"], steps)
        assert len(mask_rates) == expected["length"], name
        for iteration, rate in expected["at_iteration"].items():
            assert mask_rates[int(iteration)] == pytest.approx(rate, abs=1e-12), (name, iteration)


@pytest.mark.parametrize("file", cases("biformer") + cases("biformer_stl") + cases("biformer_stl_nchw"))
def test_when_given_the_golden_weights_of_biformer_then_outputs_and_gradients_are_the_originals(file: Path) -> None:
    model = biformer.BiFormer(**biformer_sizes(sizes_of(file), file.parent.name))
    case, io, renamed = load_case(file, model, biformer.checkpoint_filter_fn)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    routes = list(model.routes(io["input"]).values())
    model.load_state_dict(before)
    for kind, number in (("route_idx", 1), ("route_w", 0)):
        expected = [io[key] for key in sorted(io) if key.startswith(kind)]
        for route, value in zip(routes, expected, strict=kind == "route_idx"):
            close(route[number].sort(-1).values.double(), value.sort(-1).values.double(), kind)
    x = io["input"].requires_grad_()
    features, stages = model.forward_intermediates(x)
    for index, stage in enumerate(stages):
        close(stage, io[f"stage_{index}"], f"stage {index}")
    close(features, io["features"], "features")
    logits = model.forward_head(features)
    close(logits, io["logits"], "logits")
    (logits * io["probe"]).sum().backward()
    check_gradients(model, case, io, x, renamed)
    for key in [key for key in io if key.startswith("after/")]:
        close(model.state_dict()[key.removeprefix("after/")].float(), io[key].float(), key)


@pytest.mark.parametrize("file", cases("ptnt"))
def test_when_given_the_golden_weights_of_pyramid_tnt_then_outputs_and_gradients_are_the_originals(file: Path) -> None:
    kwargs = sizes_of(file)
    model = pyramid_tnt.PyramidTNT(**kwargs.pop("configs"), **kwargs)
    case, io, renamed = load_case(file, model, pyramid_tnt.checkpoint_filter_fn)
    x = io["input"].requires_grad_()
    tokens = model.forward_features(x)
    close(tokens, io["tokens"], "tokens")
    logits = model.forward_head(tokens)
    close(logits, io["logits"], "logits")
    (logits * io["probe"]).sum().backward()
    check_gradients(model, case, io, x, renamed)
