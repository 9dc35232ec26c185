"""Attention whose weights are dropped out, on a CPU.

PyTorch's fused kernel takes no dropout on a CPU; its way around writes the scores, the weights, the mask and the
dropped weights of the whole batch to memory. Here a few heads at a time stay in the cache, backward computes the
weights again, and only the mask (one byte a weight) is kept.

Shapes: ``B`` batch, ``H`` heads, ``N`` queries, ``M`` keys, ``D`` channels of a head, ``G`` heads of a chunk.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from tsfm.dropout import keep_mask

Where = tuple[slice, slice]
# Weights worked on at a time by a thread: what a chunk touches stays in a core's own cache (1 MiB in float32).
CHUNK = 1 << 18
# Shorter rows do not fill a vector register, and softmax along them takes them number by number.
SHORT_ROW = 16


def _chunks(b: int, h: int, weights: int) -> Iterator[Where]:
    """Slices of batch and heads with about ``CHUNK`` weights a thread, where one head has ``weights``."""
    chunk = CHUNK * torch.get_num_threads()
    heads = max(1, min(h, chunk // weights))
    rows = max(1, chunk // (weights * h)) if heads == h else 1
    for row in range(0, b, rows):
        for head in range(0, h, heads):
            yield slice(row, min(row + rows, b)), slice(head, min(head + heads, h))


def _flat(x: Tensor, where: Where) -> Tensor:
    return x[where].flatten(0, 1)


def _weights(q_GND: Tensor, k_GMD: Tensor, bias: Tensor | None, out_GNM: Tensor) -> Tensor:
    """The softmax of the scores; ``bias`` is the chunk's, heads apart from the batch; ``out_GNM`` is scratch."""
    torch.bmm(q_GND, k_GMD.transpose(1, 2), out=out_GNM)
    if bias is not None:
        out_GNM.unflatten(0, bias.shape[:2]).add_(bias)
    if out_GNM.shape[-1] < SHORT_ROW:
        return out_GNM.flatten(0, 1).t().contiguous().softmax(0).t().contiguous().view_as(out_GNM)
    return out_GNM.softmax(-1)


class _DropoutAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, p: float) -> Tensor:
        (b, h, n, d), m = q.shape, k.shape[2]
        # Scaling the small operands spares a pass over the large one.
        q, v = q * scale, v * (1 / (1 - p))
        out = q.new_empty(b, n, h, d).transpose(1, 2)
        keep = keep_mask((b, h, n, m), p).view(torch.uint8)
        space: Tensor | None = None
        for where in _chunks(b, h, n * m):
            keep_GNM = keep[where].flatten(0, 1)
            space = q.new_empty(keep_GNM.shape) if space is None else space  # the first chunk is the largest
            scratch = space[: keep_GNM.shape[0]]
            weights = _weights(_flat(q, where), _flat(k, where), None if bias is None else bias[where], scratch)
            weights *= keep_GNM
            out[where] = torch.bmm(weights, _flat(v, where)).view_as(out[where])
        ctx.save_for_backward(q, k, v, bias, out, keep)
        ctx.scale, ctx.p = scale, p
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, out, keep = ctx.saved_tensors
        dq, dk, dv = (x.new_empty(x.transpose(1, 2).shape).transpose(1, 2) for x in (q, k, v))
        wide = torch.promote_types(q.dtype, torch.float32)
        delta = (grad.to(wide) * out.to(wide)).sum(-1, keepdim=True).to(q.dtype)
        space: Tensor | None = None
        for where in _chunks(q.shape[0], q.shape[1], q.shape[2] * k.shape[2]):
            q_GND, k_GMD, v_GMD, grad_GND = (_flat(x, where) for x in (q, k, v, grad))
            keep_GNM = keep[where].flatten(0, 1)
            space = q.new_empty(keep_GNM.shape) if space is None else space  # the first chunk is the largest
            scratch = space[: keep_GNM.shape[0]]
            weights = _weights(q_GND, k_GMD, None if bias is None else bias[where], scratch)
            dropped = torch.mul(weights, keep_GNM, out=scratch)
            dv[where] = torch.bmm(dropped.transpose(1, 2), grad_GND).view_as(dv[where])
            # d scores = weights * (keep * d dropped - delta), the two products shared with what is at hand.
            scores = torch.bmm(grad_GND, v_GMD.transpose(1, 2)).mul_(dropped)
            scores.addcmul_(weights, _flat(delta, where), value=-1)
            dq[where] = torch.bmm(scores, k_GMD).view_as(dq[where])
            dk[where] = torch.bmm(scores.transpose(1, 2), q_GND).view_as(dk[where])
        return dq.mul_(ctx.scale), dk, dv.mul_(1 / (1 - ctx.p)), None, None, None


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
