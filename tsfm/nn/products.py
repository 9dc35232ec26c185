"""Matrix products of forecasts on a CPU."""

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import _get_current_dispatch_mode

# The product that PyTorch's compiler uses on a CPU; builds without oneDNN do not have it.
PRODUCT = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None

LOCK = threading.Lock()
USERS: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()  # of a layer: how many are within


@contextmanager
def onednn_products(model: nn.Module) -> Iterator[None]:
    """Within it, linear layers in float32 on a CPU are computed by oneDNN if nothing is differentiated.

    PyTorch gives them to MKL, which does without AVX-512 on processors of AMD: there oneDNN takes less than half of the
    time. Layers stay ``nn.Linear`` and are as before afterwards, because exporters, quantisation and counters of
    operations know no other. If several threads use a model, its layers stay as they are until the last has left: then
    no result depends on the others.
    """
    layers = []
    # What watches operations, such as a counter of FLOPs, knows PyTorch's own; so do weights of another type.
    if PRODUCT is not None and _get_current_dispatch_mode() is None:
        layers = [x for x in model.modules() if type(x) is nn.Linear and type(x.weight) is nn.Parameter]
    with LOCK:
        layers = [x for x in layers if x in USERS or "forward" not in vars(x)]
        for layer in layers:
            USERS[layer] = USERS.get(layer, 0) + 1
            vars(layer)["forward"] = functools.partial(_forward, layer)
    try:
        yield
    finally:
        with LOCK:
            for layer in layers:
                USERS[layer] -= 1
                if not USERS[layer]:
                    del USERS[layer]
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
