"""Matrix products of forecasts on a CPU."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# The product that PyTorch's compiler uses on a CPU; builds without oneDNN do not have it.
PRODUCT = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


@contextmanager
def onednn_products(model: nn.Module) -> Iterator[None]:
    """Within it, linear layers in float32 on a CPU are computed by oneDNN if nothing is differentiated.

    PyTorch gives them to MKL, which does without AVX-512 on processors of AMD: there oneDNN takes less than half of the
    time. Layers stay ``nn.Linear`` and are as before afterwards, because exporters, quantisation and counters of
    operations know no other.
    """
    layers = [layer for layer in model.modules() if type(layer) is nn.Linear and "forward" not in vars(layer)]
    if PRODUCT is None:
        layers = []
    for layer in layers:
        vars(layer)["forward"] = functools.partial(_forward, layer)
    try:
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def _forward(layer: nn.Linear, x: Tensor) -> Tensor:
    if (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch.is_autocast_enabled("cpu")
        or x.device.type != "cpu"
        or not x.dtype == layer.weight.dtype == torch.float32
    ):
        return F.linear(x, layer.weight, layer.bias)
    product: Tensor = PRODUCT(x, layer.weight, layer.bias, "none", [], "")  # type: ignore[misc]
    return product
