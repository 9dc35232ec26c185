"""Attention with dropout of its weights on a CPU.

PyTorch's fused kernel has no dropout on a CPU; its fallback writes the scores, the weights, the mask and the dropped
weights of the whole batch to memory. Here a few heads at a time are processed in the cache, backward recomputes the
weights, and only the mask (one byte per weight) is saved.

Shapes: ``B`` batch, ``H`` heads, ``N`` queries, ``M`` keys, ``D`` channels of a head,
``G`` heads of a chunk, from any rows of the batch.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from tsfm.attention.dropout import keep_mask

# Weights processed at a time by a thread, so that they stay in the cache of a core (1 MiB in float32).
CHUNK = 1 << 18
# Softmax along shorter rows is not vectorised.
SHORT_ROW = 16


def _chunks(heads: int, weights: int) -> Iterator[slice]:
    """Slices of all heads of the batch with about ``CHUNK`` weights per thread; one head has ``weights``."""
    size = max(1, CHUNK * torch.get_num_threads() // weights)
    for start in range(0, heads, size):
        yield slice(start, min(start + size, heads))


def _product(a: Tensor, b: Tensor, factor: float, out: Tensor) -> Tensor:
    """``factor`` times the matrix products, written to ``out`` in one pass."""
    return torch.baddbmm(out, a, b, beta=0, alpha=factor, out=out)


def _weights(q_GND: Tensor, k_GMD: Tensor, bias: Tensor | None, scale: float, chunk: slice, out_GNM: Tensor) -> Tensor:
    """The softmax of the scores of a chunk of heads; ``bias`` is for the whole batch, ``out_GNM`` is scratch memory."""
    _product(q_GND, k_GMD.transpose(1, 2), scale, out_GNM)
    if bias is not None:
        head = torch.arange(chunk.start, chunk.stop)
        out_GNM += bias[head // bias.shape[1], head % bias.shape[1]]
    if out_GNM.shape[-1] < SHORT_ROW:
        return out_GNM.flatten(0, 1).t().contiguous().softmax(0).t().contiguous().view_as(out_GNM)
    return out_GNM.softmax(-1)


class _DropoutAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, p: float) -> Tensor:
        (b, h, n, d), m = q.shape, k.shape[2]
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        keep = keep_mask((b * h, n, m), p).view(torch.uint8)
        out = torch.empty_like(q)
        space: Tensor | None = None
        for g in _chunks(b * h, n * m):
            space = q.new_empty(keep[g].shape) if space is None else space  # the first chunk is the largest
            weights = _weights(q[g], k[g], bias, scale, g, space[: g.stop - g.start])
            weights *= keep[g]
            _product(weights, v[g], 1 / (1 - p), out[g])
        ctx.save_for_backward(q, k, v, bias, out, keep)
        ctx.scale, ctx.p = scale, p
        return out.view(b, h, n, d)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, out, keep = ctx.saved_tensors
        scale, keep_scale = ctx.scale, 1 / (1 - ctx.p)
        shape, grad = grad.shape[:2], grad.flatten(0, 1)
        dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
        sum_dtype = torch.promote_types(q.dtype, torch.float32)
        delta = (grad.to(sum_dtype) * out.to(sum_dtype)).sum(-1, keepdim=True).to(q.dtype)
        space: Tensor | None = None
        for g in _chunks(len(q), q.shape[1] * k.shape[1]):
            space = q.new_empty(keep[g].shape) if space is None else space  # the first chunk is the largest
            scratch = space[: g.stop - g.start]
            weights = _weights(q[g], k[g], bias, scale, g, scratch)
            dropped = torch.mul(weights, keep[g], out=scratch)
            _product(dropped.transpose(1, 2), grad[g], keep_scale, dv[g])
            # d scores = weights * (keep * d dropped - delta), computed as d dropped * dropped - weights * delta.
            scores = _product(grad[g], v[g].transpose(1, 2), keep_scale, torch.empty_like(scratch)).mul_(dropped)
            scores.addcmul_(weights, delta[g], value=-1)
            _product(scores, k[g], scale, dq[g])
            _product(scores.transpose(1, 2), q[g], scale, dk[g])
        return *(x.unflatten(0, shape) for x in (dq, dk, dv)), None, None, None


def dropout_attention(
    q_BHND: Float[Tensor, "B H N D"],
    k_BHMD: Float[Tensor, "B H M D"],
    v_BHMD: Float[Tensor, "B H M D"],
    bias: Float[Tensor, "#B #H #N M"] | None,
    scale: float,
    p: float,
) -> Float[Tensor, "B H N D"]:
    """``dropout(softmax(q k^T * scale + bias)) v`` on a CPU, each weight dropped with probability ``p``.

    Args:
        q_BHND: queries.
        k_BHMD: keys.
        v_BHMD: values.
        bias: added to the scores; every query must see a key, and no gradient flows to the bias.
        scale: factor on the scores.
        p: probability of dropping a weight, above 0 and below 1; the rest is scaled by ``1 / (1 - p)``.
    """
    if bias is not None:
        bias = bias.detach().expand(*q_BHND.shape[:3], k_BHMD.shape[2])
    with torch.autocast("cpu", enabled=False):
        out: Tensor = _DropoutAttention.apply(q_BHND, k_BHMD, v_BHMD, bias, scale, p)
    return out
