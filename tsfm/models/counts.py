"""Parameters and training FLOPs of a model, from its configuration: no weight is stored and no number computed.

The model is built and its loss differentiated with PyTorch's fake tensors, which have shapes but no storage, under
PyTorch's own counter: two FLOPs a multiply-add of matrix products, convolutions and attention, forward and backward.
Integers (the segments of packed rows) stay real, since masks are made from them. Attention is counted as the fused
kernels do it: the whole square of scores also under a causal mask, and the scores once more in the backward pass.
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
from tsfm_data.errors import check_horizon, unknown_name
from tsfm_data.windows import Batch

# Children of a model that turn data into tokens or tokens into an answer: what "non-embedding" leaves out.
EDGES = frozenset(
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


@dataclass(frozen=True)
class Counts:
    """What a model costs.

    Attributes:
        params: trainable numbers.
        non_embedding: those without the layers from data to tokens and from tokens to the answer.
        active: those that one token meets; fewer than all where a token chooses its layer.
        forward_flops: of the loss of one window (or image).
        flops: of the loss of one window and its gradients.
        tokens: of one window, those of the horizon included.
    """

    params: int
    non_embedding: int
    active: int
    forward_flops: int
    flops: int
    tokens: int

    def rule(self, params: int) -> float:
        """How many times 6 N D the training FLOPs are, for a choice of N."""
        return self.flops / (6 * params * self.tokens)


def parameters(model: nn.Module) -> tuple[int, int, int]:
    """Total, non-embedding and active parameters; of buffers and frozen weights none."""
    sizes = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    total = sum(sizes.values())
    idle = 0
    for module in model.modules():
        layers = len(getattr(module, "sizes", ()))  # one linear layer a patch size, of which a token takes one
        if layers > 1 and all(name in module._parameters for name in ("weight", "bias")):
            idle += sum(p.numel() * (layers - 1) // layers for p in module.parameters(recurse=False))
    edges = sum(size for name, size in sizes.items() if name.split(".")[0] in EDGES)
    return total, total - edges, total - idle


def count(build: Callable[[], nn.Module], loss: Callable[[nn.Module, Callable[..., Tensor]], Tensor]) -> Counts:
    """Count any model by its loss.

    Args:
        build: makes the model.
        loss: calls the model and gives a number to differentiate; makes its floating-point inputs with its second
            argument, which takes a shape. ``tokens`` of the result is 1.
    """
    try:
        return _count(build, loss, FakeTensorMode(allow_non_fake_inputs=True))
    except (DataDependentOutputException, DynamicOutputShapeException):  # shapes come from values: run it for real
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
        found = loss(model, zeros)
        forward = counter.get_total_flops()
        found.backward()
    return Counts(*parameters(model), forward, counter.get_total_flops(), 1)


@functools.cache
def count_forecaster(model_type: str, config: Any, context: int, horizon: int, variates: int = 1) -> Counts:
    """Count a forecaster by the loss of one window whose history and future are fully observed.

    Args:
        model_type: a key of ``tsfm.models.registry.MODELS``.
        config: its sizes.
        context: steps of history.
        horizon: steps to forecast.
        variates: series of the window.

    Raises:
        InputError: no such model, or sizes that do not fit each other.
    """
    kind = model_class(model_type)

    def build() -> Forecaster:
        return kind(context, horizon, config)

    def loss(model: nn.Module, zeros: Callable[..., Tensor]) -> Tensor:
        assert isinstance(model, Forecaster)
        past, future = zeros(1, context, variates), zeros(1, horizon, variates)
        seen, wanted = (torch.ones(1, steps, variates, dtype=torch.bool) for steps in (context, horizon))
        return model.loss(Batch(past, seen, horizon, 1, future, wanted))

    patch = getattr(config, "patch_size", None)
    tokens = variates * (math.ceil(context / patch) + math.ceil(horizon / patch)) if patch else variates
    return replace(count(build, loss), tokens=tokens)


def sizes_of(model_type: str) -> dict[str, Any]:
    """The named sizes of an architecture; empty where it has none."""

    if model_type not in MODELS:
        raise unknown_name("architecture", model_type, MODELS)
    if model_type in ("encoder", "decoder"):
        trunk = importlib.import_module("tsfm.models.scaling_law.trunk")
        return dict(trunk.SIZES if model_type == "encoder" else trunk.DECODER_SIZES)
    module = importlib.import_module(MODELS[model_type].split(":")[0])
    return dict(getattr(module, "SIZES", {}))


def counts_table(archs: list[str], context: int, horizon: int, sizes: list[str] | None = None) -> list[dict[str, Any]]:
    """One row an architecture and size: counts, and how many times 6 N D the training FLOPs are.

    Args:
        archs: keys of ``tsfm.models.registry.MODELS``; one without named sizes is counted at its default size.
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
            found = count_forecaster(arch, known[name], context, horizon)
            rule = {"times_6ND": found.rule(found.params), "times_6ND_trunk": found.rule(found.non_embedding)}
            rows.append({"arch": arch, "size": name} | asdict(found) | rule)
    return rows
