"""Parameters and training FLOPs of a model from its configuration, without memory for weights and without computing.

Forward and backward pass run on PyTorch's fake tensors, which have shapes but no storage, under PyTorch's FLOP counter:
two FLOPs per multiply-add of matrix products, convolutions and attention. Integer tensors (the segments of packed rows)
stay real, because masks depend on their values. Attention is counted as the fused kernels compute it: all scores, also
under a causal mask, and the scores once more in the backward pass.
"""

import functools
import importlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from tsfm.models.base import Forecaster
from tsfm.models.registry import MODELS, model_class
from tsfm_data.errors import InputError, check_horizon, unknown_name
from tsfm_data.windows import Batch

# Modules that turn data into tokens or tokens into outputs; "non-embedding" counts leave them out.
EMBEDDINGS_AND_HEADS = frozenset(
    {
        "embedding",
        "head",
        "in_proj",
        "input_patch_embedding",
        "mask_encoding",
        "out_proj",
        "output_patch_embedding",
        "param_proj",
        "patch_embed",
        "shared",
    }
)

# Raised if shapes depend on values, perhaps as the cause of an InputError: then all is computed.
VALUES_NEEDED = (DataDependentOutputException, DynamicOutputShapeException)
MOST_TOKENS = 10_000  # of a window, whose mask is real and has the square of this


@dataclass(frozen=True)
class Counts:
    """Parameters and FLOPs of a model.

    Attributes:
        params: trainable parameters.
        non_embedding: parameters without the layers from data to tokens and from tokens to outputs.
        active: parameters that one token uses; fewer than all if a layer is chosen per token.
        forward_flops: FLOPs of the loss of one window (or image).
        flops: FLOPs of the loss of one window and its gradients.
        tokens: tokens of one window and its horizon.
    """

    params: int
    non_embedding: int
    active: int
    forward_flops: int
    flops: int
    tokens: int

    def times_6nd(self, params: int) -> float:
        """Training FLOPs relative to 6 N D, for a number of parameters N."""
        return self.flops / (6 * params * self.tokens)


def parameters(model: nn.Module) -> tuple[int, int, int]:
    """Total, non-embedding and active parameters, without buffers and frozen weights."""
    sizes = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    total = sum(sizes.values())
    idle = 0
    for module in model.modules():
        layers = len(getattr(module, "sizes", ()))  # one linear layer per patch size; a token uses one of them
        if layers > 1 and all(name in module._parameters for name in ("weight", "bias")):
            idle += sum(p.numel() * (layers - 1) // layers for p in module.parameters(recurse=False))
    edges = sum(size for name, size in sizes.items() if name.split(".")[0] in EMBEDDINGS_AND_HEADS)
    return total, total - edges, total - idle


def count(build: Callable[[], nn.Module], loss: Callable[[nn.Module, Callable[..., Tensor]], Tensor]) -> Counts:
    """Count any model by its loss.

    Args:
        build: creates the model.
        loss: calls the model and returns its scalar loss; its second argument creates a floating-point input of a
            given shape. ``tokens`` of the result is 1.
    """
    try:
        return _count(build, loss, FakeTensorMode(allow_non_fake_inputs=True))
    except (*VALUES_NEEDED, InputError) as error:
        if not isinstance(error, VALUES_NEEDED) and not isinstance(error.__cause__, VALUES_NEEDED):
            raise
        return _count(build, loss, None)


def _count(
    build: Callable[[], nn.Module], loss: Callable[[nn.Module, Callable[..., Tensor]], Tensor], fake: Any
) -> Counts:
    def zeros(*shape: int) -> Tensor:
        if fake is None:
            return torch.zeros(*shape)
        with fake:
            return torch.zeros(*shape)

    if fake is None:
        model = build()
    else:
        with fake:
            model = build()
    with FlopCounterMode(display=False) as counter:
        scalar = loss(model, zeros)
        forward = counter.get_total_flops()
        scalar.backward()
    return Counts(*parameters(model), forward, counter.get_total_flops(), 1)


@functools.cache
def count_forecaster(model_type: str, config: Any, context: int, horizon: int) -> Counts:
    """Count a forecaster by the loss of one window of one variate whose history and future are fully observed.

    Args:
        model_type: a key of ``tsfm.models.registry.MODELS``.
        config: its sizes.
        context: steps of history.
        horizon: steps to forecast.

    Raises:
        InputError: no such model, or inconsistent sizes.
    """
    kind = model_class(model_type)

    def build() -> Forecaster:
        return kind(context, horizon, config)

    def loss(model: nn.Module, zeros: Callable[..., Tensor]) -> Tensor:
        assert isinstance(model, Forecaster)
        past, future = zeros(1, context, 1), zeros(1, horizon, 1)
        seen, wanted = (torch.ones(1, steps, 1, dtype=torch.bool) for steps in (context, horizon))
        return model.loss(Batch(past, seen, horizon, 1, future, wanted))

    patch = getattr(config, "patch_size", None)
    tokens = math.ceil(context / patch) + math.ceil(horizon / patch) if patch else 1
    if tokens > MOST_TOKENS:
        raise InputError(f"expected windows of at most {MOST_TOKENS:,} tokens, found {tokens:,}: shorten the context")
    return replace(count(build, loss), tokens=tokens)


def sizes_of(model_type: str) -> dict[str, Any]:
    """The named sizes of an architecture; empty if it has none."""

    if model_type not in MODELS:
        raise unknown_name("architecture", model_type, MODELS)
    if model_type in ("encoder", "decoder"):
        trunk = importlib.import_module("tsfm.models.scaling_law.trunk")
        return dict(trunk.SIZES if model_type == "encoder" else trunk.DECODER_SIZES)
    module = importlib.import_module(MODELS[model_type].split(":")[0])
    return dict(getattr(module, "SIZES", {}))


def counts_table(archs: list[str], context: int, horizon: int, sizes: list[str] | None = None) -> list[dict[str, Any]]:
    """One row per architecture and size: counts, and training FLOPs relative to 6 N D.

    Args:
        archs: keys of ``tsfm.models.registry.MODELS``; those without named sizes are counted at their default size.
        context: steps of history.
        horizon: steps to forecast.
        sizes: names of sizes; all by default.

    Raises:
        InputError: an unknown name, or a window of no steps.
    """
    check_horizon(context, "context")
    check_horizon(horizon)
    rows = []
    for arch in archs:
        known = sizes_of(arch) or {"default": model_class(arch).config_type()}
        for name in sizes or known:
            if name not in known:
                raise unknown_name(f"size of {arch}", name, known)
            counts = count_forecaster(arch, known[name], context, horizon)
            ratios = {
                "times_6ND": counts.times_6nd(counts.params),
                "times_6ND_trunk": counts.times_6nd(counts.non_embedding),
            }
            rows.append({"arch": arch, "size": name} | asdict(counts) | ratios)
    return rows
