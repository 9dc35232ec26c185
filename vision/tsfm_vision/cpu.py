"""Operations of the backbones in the form that is fastest on a CPU, exact, with backward passes that keep little.

What autograd would keep of every step is computed again from the inputs. Elsewhere (``applies`` is False: other
devices, float16, tracing) the models go through ``tsfm.attention.dispatch`` and PyTorch's own layers. Those of iLLaMA also work
under autocast: in the type that they are given, bfloat16 after a linear layer, with sums in float32.

Shapes: B batch, N tokens, H heads, D channels of a head, C channels of a token, G batch times heads, R regions,
K regions that a region attends to, M keys of a region.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from timm.models import register_notrace_module
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Queries of a part of the soft mask: few, so that the scores stay in the cache and little is computed for nothing.
PART = 64
# Tokens up to which all weights of a block are kept for its backward pass: a quarter of a mebibyte a head at most.
SHORT = 256
# Numbers of keys, values and scores that are held at once.
GATHERED = 2**18
# Hidden values of a feed-forward part that are held at once.
HIDDEN = 2**18
# In the types that come in, whatever autocast would make of them.
as_given = torch.autocast("cpu", enabled=False)


def applies(x: Tensor, low: bool = False) -> bool:
    """Whether these operations serve a tensor.

    Args:
        x: the tensor.
        low: whether the operation is one of those that work in bfloat16 and under autocast, too.
    """
    if x.device.type != "cpu" or torch.jit.is_tracing():
        return False
    if low and x.dtype == torch.bfloat16:
        return True
    return x.dtype in (torch.float32, torch.float64) and (low or not torch.is_autocast_enabled("cpu"))


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type to add up in."""
    return torch.promote_types(dtype, torch.float32)


def by_parts(
    function: Callable[[Float[Tensor, "N C"]], Float[Tensor, "N C"]], x: Float[Tensor, "*S C"], hidden: int
) -> Float[Tensor, "*S C"]:
    """A feed-forward part some tokens at a time, without gradients: what is inside stays in a cache.

    Args:
        function: of tokens, each by itself.
        x: tokens.
        hidden: values that it holds inside of each.
    """
    tokens_NC = x.flatten(0, -2)
    out_NC = torch.empty_like(tokens_NC)
    size = max(1, HIDDEN // hidden)
    for out, tokens in zip(out_NC.split(size), tokens_NC.split(size), strict=True):
        out.copy_(function(tokens))
    return out_NC.view_as(x)


@register_notrace_module
class Linear(nn.Linear):
    """PyTorch's; without gradients, in float32, by oneDNN, which makes products of many narrow rows faster than BLAS.

    On an EPYC by 1.1 to 1.5 times; in bfloat16 PyTorch takes oneDNN by itself.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript leaves out what this alone encloses
            if self.by_onednn(x):
                return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return F.linear(x, self.weight, self.bias)

    @torch.jit.ignore
    def by_onednn(self, x: Tensor) -> bool:
        """Whether oneDNN makes this product; its operator has no backward pass, and graphs shall hold PyTorch's own."""
        return (
            applies(x)
            and x.dtype == self.weight.dtype == torch.float32
            and not (torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad))
            and not torch.compiler.is_compiling()
            and torch.backends.mkldnn.is_available()
        )


def use_linear(model: nn.Module) -> None:
    """Make ours of all PyTorch's linear layers in a model; weights, names and hooks stay."""
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


def turn(x_BN2HD: Tensor, angle_ND: Tensor, out_2BHND: Tensor) -> None:
    """Queries and keys turned by complex numbers, written head by head."""
    pairs, out = (torch.view_as_complex(x.unflatten(-1, (-1, 2))) for x in (x_BN2HD, out_2BHND))
    torch.mul(pairs.permute(2, 0, 3, 1, 4), angle_ND, out=out)


def turn_back(x_2BHND: Tensor, angle_ND: Tensor, out_BN2HD: Tensor) -> None:
    """The inverse, for gradients."""
    pairs, out = (torch.view_as_complex(x.unflatten(-1, (-1, 2))) for x in (x_2BHND, out_BN2HD))
    torch.mul(pairs.permute(1, 3, 0, 2, 4), angle_ND.conj_physical()[:, None, None], out=out)


class SoftMasked(torch.autograd.Function):
    """Rotary attention whose weights are multiplied by ``rate`` ahead of the query, after the softmax.

    A part of the queries at a time: its weights are used and forgotten, and where the rate is 0 no product is made with
    what lies ahead. ``angle`` holds complex numbers of length 1, ``[N, D / 2]``.
    """

    @staticmethod
    @as_given
    def forward(ctx: Any, qkv_BN3HD: Tensor, angle: Tensor, rate: float) -> Float[Tensor, "B N HD"]:
        b, n, _, h, d = qkv_BN3HD.shape
        q, k, v = unpack(qkv_BN3HD, angle)
        out = []
        for start, end, seen, behind in parts(n, rate, q):
            weights = scores(q, k, start, end)
            weights[..., start:end].mul_(behind)
            if rate != 1 and seen > end:
                weights[..., end:].mul_(rate)
            out.append(torch.bmm(weights[..., :seen], v[:, :seen]))
        mixed = torch.cat(out, 1).unflatten(0, (b, h)).transpose(1, 2).reshape(b, n, h * d)
        ctx.save_for_backward(qkv_BN3HD, angle, mixed)
        ctx.rate = rate
        return mixed

    @staticmethod
    @as_given
    @once_differentiable
    def backward(ctx: Any, grad: Float[Tensor, "B N HD"]) -> tuple[Tensor | None, ...]:
        qkv_BN3HD, angle, mixed = ctx.saved_tensors
        rate, (b, n, _, h, d), dtype = ctx.rate, qkv_BN3HD.shape, wide(qkv_BN3HD.dtype)
        q, k, v = unpack(qkv_BN3HD, angle)
        inner = (grad.to(dtype) * mixed).unflatten(2, (h, d)).sum(-1).transpose(1, 2).reshape(b * h, n, 1)
        grad = grad.unflatten(2, (h, d)).transpose(1, 2).reshape(b * h, n, d)
        grad_qk = q.new_zeros(2, b * h, n, d, dtype=dtype)
        (grad_q, grad_k), grad_v = grad_qk, torch.zeros_like(v, dtype=dtype)
        for start, end, seen, behind in parts(n, rate, q):
            weights, grad_part = scores(q, k, start, end), grad[:, start:end]
            grad_weights = torch.bmm(grad_part, v[:, :seen].transpose(1, 2))
            grad_weights[..., start:end].mul_(behind)
            masked = weights[..., start:end] * behind
            grad_v[:, :start].add_(torch.bmm(weights[..., :start].transpose(1, 2), grad_part))
            grad_v[:, start:end].add_(torch.bmm(masked.transpose(1, 2), grad_part))
            if seen > end:
                grad_v[:, end:].add_(torch.bmm(weights[..., end:].transpose(1, 2), grad_part), alpha=rate)
                grad_weights[..., end:].mul_(rate)
            weights[..., :seen].mul_(grad_weights.sub_(inner[:, start:end]))
            if seen < n:
                weights[..., seen:].mul_(-inner[:, start:end])
            grad_q[:, start:end] = torch.bmm(weights, k).mul_(d**-0.5)
            grad_k.add_(torch.bmm(weights.transpose(1, 2), q[:, start:end]), alpha=d**-0.5)
        grad_qkv = torch.empty_like(qkv_BN3HD, dtype=dtype)
        turn_back(grad_qk.unflatten(1, (b, h)), angle, grad_qkv[:, :, :2])
        grad_qkv[:, :, 2] = grad_v.unflatten(0, (b, h)).transpose(1, 2)
        return grad_qkv.to(qkv_BN3HD.dtype), None, None


class ShortSoftMasked(torch.autograd.Function):
    """As ``SoftMasked`` for few tokens: all weights at once, and kept for the backward pass."""

    @staticmethod
    @as_given
    def forward(ctx: Any, qkv_BN3HD: Tensor, angle: Tensor, rate: float) -> Float[Tensor, "B N HD"]:
        b, n, _, h, _ = qkv_BN3HD.shape
        q, k, v = unpack(qkv_BN3HD, angle)
        weights, mask = scores(q, k, 0, n), soft_mask(n, rate, q)
        ctx.save_for_backward(q, k, v, angle, weights, mask)
        return torch.bmm(weights * mask, v).unflatten(0, (b, h)).transpose(1, 2).reshape(b, n, -1)

    @staticmethod
    @as_given
    @once_differentiable
    def backward(ctx: Any, grad: Float[Tensor, "B N HD"]) -> tuple[Tensor | None, ...]:
        q, k, v, angle, weights, mask = ctx.saved_tensors
        b, (n, d) = len(grad), q.shape[1:]
        grad = grad.unflatten(2, (-1, d)).transpose(1, 2).reshape(q.shape)
        grad_qkv = grad.new_empty(b, n, 3, len(q) // b, d)
        grad_qkv[:, :, 2] = torch.bmm((weights * mask).transpose(1, 2), grad).unflatten(0, (b, -1)).transpose(1, 2)
        grad_weights = torch.bmm(grad, v.transpose(1, 2)).mul_(mask)
        grad_scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, weights.dtype).mul_(d**-0.5)
        grad_qk = torch.stack([torch.bmm(grad_scores, k), torch.bmm(grad_scores.transpose(1, 2), q)])
        turned_back = torch.empty_like(grad_qkv[:, :, :2], dtype=wide(grad.dtype))
        turn_back(grad_qk.to(turned_back.dtype).unflatten(1, (b, -1)), angle, turned_back)
        grad_qkv[:, :, :2] = turned_back
        return grad_qkv, None, None


def soft_masked(qkv_BN3HD: Tensor, angle: Tensor, rate: float) -> Float[Tensor, "B N HD"]:
    """Rotary attention under the soft mask, by the faster of both ways; ``angle`` as ``SoftMasked`` says."""
    return (ShortSoftMasked if qkv_BN3HD.shape[1] <= SHORT else SoftMasked).apply(qkv_BN3HD, angle, rate)


def soft_mask(tokens: int, rate: float, like: Tensor) -> Float[Tensor, "N N"]:
    """1 for a key up to the query's own place, ``rate`` for those after it."""
    return like.new_ones(tokens, tokens).tril_().mul_(1 - rate).add_(rate)


def unpack(qkv_BN3HD: Tensor, angle: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Turned queries, turned keys and values, ``[G, N, D]`` each."""
    b, n, _, h, d = qkv_BN3HD.shape
    qk = qkv_BN3HD.new_empty(2, b, h, n, d, dtype=wide(qkv_BN3HD.dtype))
    turn(qkv_BN3HD[:, :, :2].to(qk.dtype), angle, qk)
    q, k = qk.flatten(1, 2).to(qkv_BN3HD.dtype)
    return q, k, qkv_BN3HD[:, :, 2].transpose(1, 2).reshape(b * h, n, d)


def parts(tokens: int, rate: float, like: Tensor) -> list[tuple[int, int, int, Tensor]]:
    """Each part's first query, the one after its last, the keys it uses, and the mask among its own places."""
    mask = soft_mask(PART, rate, like)
    found = []
    for start in range(0, tokens, PART):
        end = min(start + PART, tokens)
        found.append((start, end, end if rate == 0 else tokens, mask[: end - start, : end - start]))
    return found


class Routed(torch.autograd.Function):
    """Attention of each region of a map to the regions that it is routed to.

    Keys and values are gathered for some rows (a head of a region each) at a time, used and forgotten. The map holds
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
            # A query is needed once: what is found for it takes its place.
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
    """A copy of the tokens of a map region by region and head by head: queries, keys and values, or some of them."""
    rows, columns, heads = sizes
    x = map_BHWX.unflatten(3, (kinds, heads, -1)).unflatten(2, (-1, columns)).unflatten(1, (-1, rows))
    x = x.permute(5, 0, 1, 3, 6, 2, 4, 7).clone(memory_format=torch.contiguous_format)
    return x.flatten(5, 6).flatten(1, 4)


def map_of(table: Float[Tensor, "kinds BRH N D"], shape: torch.Size, sizes: tuple[int, int, int]) -> Tensor:
    """The inverse."""
    rows, columns, heads = sizes
    x = table.view(len(table), shape[0], shape[1] // rows, shape[2] // columns, heads, rows, columns, -1)
    return x.permute(1, 2, 5, 3, 6, 0, 4, 7).flatten(5).flatten(3, 4).flatten(1, 2)


def chunks(index_BRK: Int[Tensor, "B R K"], heads: int, q: Float[Tensor, "BRH N D"]) -> list[tuple[slice, Tensor]]:
    """Rows of queries to work on at once, and the rows of keys and values that each of them sees."""
    batch, regions, routes = index_BRK.shape
    first = torch.arange(batch, device=index_BRK.device)[:, None, None] * regions
    head = torch.arange(heads, device=index_BRK.device)[:, None]
    rows = ((index_BRK + first)[:, :, None] * heads + head).flatten(0, 2)
    size = max(1, GATHERED // (routes * q.shape[1] * (2 * q.shape[2] + q.shape[1])))
    return [(slice(i * size, (i + 1) * size), part) for i, part in enumerate(rows.split(size))]


def gathered(x: Float[Tensor, "BRH N D"], chosen: Int[Tensor, "rows K"]) -> Float[Tensor, "rows KN D"]:
    """Keys or values of the chosen regions, end to end."""
    return x.flatten(1).index_select(0, chosen.flatten()).view(len(chosen), -1, x.shape[2])


def scatter(total: Float[Tensor, "BRH N D"], chosen: Int[Tensor, "rows K"], x: Float[Tensor, "rows KN D"]) -> None:
    """Add to each region what was found for it: the inverse of ``gathered`` for gradients."""
    total.flatten(1).index_add_(0, chosen.flatten(), x.view(-1, total.shape[1] * total.shape[2]))


def routed_weights(q: Float[Tensor, "rows N D"], k: Float[Tensor, "rows KN D"], scale: float) -> Tensor:
    """Attention weights of some rows of queries."""
    weights = torch.bmm(q, k.transpose(1, 2)).mul_(scale)
    return torch.softmax(weights, -1, out=weights)


def scores(q_GND: Tensor, k_GND: Tensor, start: int, end: int) -> Float[Tensor, "G P N"]:
    """Attention weights of some queries for all keys."""
    keys = k_GND.transpose(1, 2)
    blank = q_GND.new_empty(q_GND.shape[0], end - start, k_GND.shape[1])
    return torch.baddbmm(blank, q_GND[:, start:end], keys, beta=0, alpha=q_GND.shape[-1] ** -0.5, out=blank).softmax(-1)
