"""Outputs, features and gradients of the original vision backbones, reproduced from their own weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import golden_cases
from safetensors.torch import load_file
from torch import Tensor, nn

import tsfm_vision  # noqa: F401  registers the models
from tsfm_vision import poolformer, tnt


def cases(family: str) -> list[Any]:
    found = [file for file in golden_cases(f"vision/{family}") if "kwargs" in json.loads(file.read_text()).get("config", {})]
    return [pytest.param(file, id=file.stem) for file in found] or [pytest.param(None, marks=pytest.mark.skip("absent"))]


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


def close(found: Tensor, expected: Tensor, what: str) -> None:
    assert found.shape == expected.shape, what
    limit = 5e-5 * max(1.0, float(expected.abs().max()))
    assert float((found.detach() - expected).abs().max()) <= limit, what


def check_gradients(model: nn.Module, case: dict[str, Any], io: dict[str, Tensor], x: Tensor, renamed: dict[str, str]) -> None:
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


def sizes_of(case: dict[str, Any]) -> Any:
    return json.loads(case.read_text())["config"]["kwargs"]


MIXERS = {"Identity": "identity", "Pooling": "pool", "Attention": "attention", "SpatialFc": "fc"}


def metaformer(kwargs: dict[str, Any], size: int) -> nn.Module:
    def name(entry: Any) -> Any:
        return entry and MIXERS.get(entry.get("$") or entry["$partial"][0])

    ours: dict[str, Any] = {
        "depths": kwargs["layers"],
        "dims": kwargs["embed_dims"],
        "mlp_ratios": kwargs["mlp_ratios"],
        "num_classes": kwargs["num_classes"],
        "layer_scale": 1e-5 if kwargs.get("use_layer_scale", True) else None,
        "stage_norms": kwargs.get("fork_feat", False),
        "pool_size": kwargs.get("pool_size", 3),
        "img_size": size,
    }
    if "token_mixers" in kwargs:
        ours["mixers"] = [name(entry) for entry in kwargs["token_mixers"]]
        ours["channel_norm"] = "norm_layer" not in kwargs
        ours["positioned"] = [i for i, entry in enumerate(kwargs.get("add_pos_embs", [])) if entry]
    return poolformer.PoolFormer(**ours)


@pytest.mark.parametrize("file", cases("poolformer") + cases("metaformer"))
def test_when_given_the_golden_weights_of_poolformer_then_outputs_and_gradients_are_the_originals(file: Path) -> None:
    model = metaformer(sizes_of(file), 64)
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
    names = {"outer_dim": "embed_dim", "outer_num_heads": "num_heads_outer", "inner_num_heads": "num_heads_inner"}
    names |= {"inner_stride": "first_stride", "se": "gated"}
    sizes = {names.get(key, key): value for key, value in sizes_of(file).items()}
    model = tnt.TNT(**{**sizes, "gated": bool(sizes.get("gated"))})
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
