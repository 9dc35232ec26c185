"""Exact operations of the backbones on a CPU that are faster or need less memory than PyTorch's.

In training, backward computes intermediate values again instead of keeping them. Other devices, float16 and traced
graphs use PyTorch's own layers and ``tsfm.attention.dispatch``.

Shapes: B batch, H and W rows and columns of a map, N tokens of a region, D channels of a head, C channels of a token,
X channels of queries, keys and values together, R regions, K regions that a region attends to.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from timm.models import register_notrace_module
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Elements of keys, values and scores that are held at once.
GATHERED = 2**18
# Computes in the types of the inputs, whatever autocast would choose.
as_given = torch.autocast("cpu", enabled=False)


def applies(x: Tensor, low: bool = False) -> bool:
    """Whether these operations are used for a tensor.

    Args:
        x: the tensor.
        low: whether the operation also works in bfloat16 and under autocast.
    """
    if x.device.type != "cpu" or torch.jit.is_tracing():
        return False
    if low and x.dtype == torch.bfloat16:
        return True
    return x.dtype in (torch.float32, torch.float64) and (low or not torch.is_autocast_enabled("cpu"))


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type for sums: float32 or wider."""
    return torch.promote_types(dtype, torch.float32)


@register_notrace_module
class Linear(nn.Linear):
    """PyTorch's; in float32 and without gradients by oneDNN, which multiplies many narrow rows faster than BLAS."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript leaves out what this alone encloses
            if self.by_onednn(x):
                return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return F.linear(x, self.weight, self.bias)

    @torch.jit.ignore
    def by_onednn(self, x: Tensor) -> bool:
        """Whether oneDNN computes this: its operator has no backward pass, and exported graphs hold PyTorch's own."""
        return (
            applies(x)
            and x.dtype == self.weight.dtype == torch.float32
            and not (torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad))
            and not torch.compiler.is_compiling()
            and torch.backends.mkldnn.is_available()
        )


def use_linear(model: nn.Module) -> None:
    """Replace PyTorch's linear layers of a model by ``Linear``; weights, names and hooks stay."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear


class RMSNorm(torch.autograd.Function):
    """``x / sqrt(mean(x ** 2) + eps) * weight`` over the last axis."""

    @staticmethod
    @as_given
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide(x.dtype))
        inverse = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight).to(x.dtype)

    @staticmethod
    @as_given
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        normed = x * inverse
        product = grad * normed
        mean = (product @ weight.to(product.dtype)).div_(x.shape[-1]).unsqueeze(-1)
        grad_x = (grad * weight.to(product.dtype)).addcmul_(normed, mean, value=-1).mul_(inverse)
        return grad_x.to(x.dtype), product.flatten(0, -2).sum(0).to(weight.dtype), None


class GatedSilu(torch.autograd.Function):
    """``silu(gate) * value``."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(gate, value)
        return F.silu(gate).mul_(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, value = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * value, gate), F.silu(gate).mul_(grad)


class Routed(torch.autograd.Function):
    """Attention of each region of a map to the regions that it is routed to.

    Keys and values are gathered for some rows at a time (a row is one head of one region) and not kept. The map holds
    queries, keys and values of all heads side by side; a region is ``rows`` x ``columns`` tokens.
    """

    @staticmethod
    def forward(
        ctx: Any, qkv_BHWX: Tensor, index_BRK: Tensor, heads: int, rows: int, columns: int, scale: float
    ) -> Float[Tensor, "B H W C"]:
        ctx.save_for_backward(qkv_BHWX, index_BRK)
        ctx.sizes, ctx.scale = (rows, columns, heads), scale
        width = qkv_BHWX.shape[3] // 3
        k, v = table_of(qkv_BHWX[..., width:], 2, ctx.sizes)
        out = table_of(qkv_BHWX[..., :width], 1, ctx.sizes)[0]
        for part, chosen in chunks(index_BRK, heads, out):
            # A query is needed once: its output overwrites it.
            weights = routed_weights(out[part], gathered(k, chosen), scale)
            torch.bmm(weights, gathered(v, chosen), out=out[part])
        del k, v
        return map_of(out[None], qkv_BHWX.shape, ctx.sizes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BHWC: Float[Tensor, "B H W C"]) -> tuple[Tensor | None, ...]:
        qkv_BHWX, index_BRK = ctx.saved_tensors
        (q, k, v), (grad,) = table_of(qkv_BHWX, 3, ctx.sizes), table_of(grad_BHWC, 1, ctx.sizes)
        total = q.new_zeros(3, *q.shape)
        for part, chosen in chunks(index_BRK, ctx.sizes[2], q):
            keys = gathered(k, chosen)
            weights = routed_weights(q[part], keys, ctx.scale)
            scatter(total[2], chosen, torch.bmm(weights.transpose(1, 2), grad[part]))
            grad_weights = torch.bmm(grad[part], gathered(v, chosen).transpose(1, 2))
            inner = (grad_weights * weights).sum(-1, keepdim=True)
            weights.mul_(grad_weights.sub_(inner)).mul_(ctx.scale)
            torch.bmm(weights, keys, out=total[0][part])
            scatter(total[1], chosen, torch.bmm(weights.transpose(1, 2), q[part]))
        return map_of(total, qkv_BHWX.shape, ctx.sizes), None, None, None, None, None


def table_of(map_BHWX: Tensor, kinds: int, sizes: tuple[int, int, int]) -> Float[Tensor, "kinds BRH N D"]:
    """The tokens of a map, copied region by region and head by head; ``kinds`` of queries, keys and values."""
    rows, columns, heads = sizes
    x = map_BHWX.unflatten(3, (kinds, heads, -1)).unflatten(2, (-1, columns)).unflatten(1, (-1, rows))
    x = x.permute(5, 0, 1, 3, 6, 2, 4, 7).clone(memory_format=torch.contiguous_format)
    return x.flatten(5, 6).flatten(1, 4)


def map_of(table: Float[Tensor, "kinds BRH N D"], shape: torch.Size, sizes: tuple[int, int, int]) -> Tensor:
    """The inverse of ``table_of``."""
    rows, columns, heads = sizes
    x = table.view(len(table), shape[0], shape[1] // rows, shape[2] // columns, heads, rows, columns, -1)
    return x.permute(1, 2, 5, 3, 6, 0, 4, 7).flatten(5).flatten(3, 4).flatten(1, 2)


def chunks(index_BRK: Int[Tensor, "B R K"], heads: int, q: Float[Tensor, "BRH N D"]) -> list[tuple[slice, Tensor]]:
    """Slices of query rows that are computed at once, and the rows of keys and values that each row attends to."""
    batch, regions, routes = index_BRK.shape
    first = torch.arange(batch, device=index_BRK.device)[:, None, None] * regions
    head = torch.arange(heads, device=index_BRK.device)[:, None]
    rows = ((index_BRK + first)[:, :, None] * heads + head).flatten(0, 2)
    size = max(1, GATHERED // (routes * q.shape[1] * (2 * q.shape[2] + q.shape[1])))
    return [(slice(i * size, (i + 1) * size), part) for i, part in enumerate(rows.split(size))]


def gathered(x: Float[Tensor, "BRH N D"], chosen: Int[Tensor, "rows K"]) -> Float[Tensor, "rows KN D"]:
    """Keys or values of the chosen regions, concatenated."""
    return x.flatten(1).index_select(0, chosen.flatten()).view(len(chosen), -1, x.shape[2])


def scatter(total: Float[Tensor, "BRH N D"], chosen: Int[Tensor, "rows K"], x: Float[Tensor, "rows KN D"]) -> None:
    """Add the gradients of gathered rows to their regions: the backward pass of ``gathered``."""
    total.flatten(1).index_add_(0, chosen.flatten(), x.view(-1, total.shape[1] * total.shape[2]))


def routed_weights(q: Float[Tensor, "rows N D"], k: Float[Tensor, "rows KN D"], scale: float) -> Tensor:
    """Attention weights of some rows of queries."""
    weights = torch.bmm(q, k.transpose(1, 2)).mul_(scale)
    return torch.softmax(weights, -1, out=weights)
