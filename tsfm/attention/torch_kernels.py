"""Attention by PyTorch's kernels, for the CPU, and for CUDA if no kernel of xformers accepts the arguments.

Shapes: ``B`` batch, ``N`` query tokens, ``M`` key tokens, ``H`` heads, ``D`` channels of a head; a packed batch is
regrouped into ``G`` segments of at most ``L`` tokens.
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from tsfm.attention.dropout_kernel import dropout_attention
from tsfm.attention.mask import Mask
from tsfm.attention.segments import regroup

# Limits of attention by two matrix products, on a CPU.
MOST_SCORES = 2**26  # scores in memory in training
SHORT_ROWS = 64 * 64  # queries times keys up to which it is faster in float32, too
MOST_SCORES_HELD = 2**23  # scores in memory outside training, which otherwise needs little memory
LONGER_ROWS = 256 * 256  # queries times keys up to which it is faster outside training, only in bfloat16
SLOW_ROWS = range(16, 65)  # numbers of keys for which softmax is slow in bfloat16
Layout = Literal["dense", "segments", "windows"]


def layout(mask: Mask | None, b: int, n: int, m: int) -> Layout:
    """How attention is computed: all scores at once, by segments, or by windows."""
    if mask is None or mask.bias is not None:
        return "dense"
    if mask.groups is not None:
        return "segments" if mask.groups.cost < 0.7 * b * n * n else "dense"
    left, right = mask.reach
    if mask.is_segmented or left is None or right is None or n != m:
        return "dense"
    block = _block(left, right)
    return "windows" if 2 * (block + left + right) <= m else "dense"


def _block(left: int, right: int) -> int:
    return max(64, left + right + 1)


def torch_attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask | None, scale: float, dropout: float) -> Tensor:
    """``attend`` on any device, for checked arguments of one type."""
    b, n, m = q.shape[0], q.shape[1], k.shape[1]
    match layout(mask, b, n, m):
        case "segments":
            assert mask is not None
            return _by_segments(q, k, v, mask, scale, dropout)
        case "windows":
            assert mask is not None
            return _by_windows(q, k, v, mask, scale, dropout)
    plain_causal = mask is not None and not mask.is_segmented and mask.window is None and mask.bias is None and n == m
    if mask is None or plain_causal:
        return _kernel(q, k, v, None, scale, dropout, is_causal=mask is not None)
    return _kernel(q, k, v, mask.dense(n, m, q), scale, dropout)


def _kernel(
    q_BNHD: Tensor,
    k_BMHD: Tensor,
    v_BMHD: Tensor,
    bias: Tensor | None,
    scale: float,
    dropout: float,
    is_causal: bool = False,
) -> Tensor:
    """One call of a kernel; ``bias`` is boolean (True: visible) or additive, broadcastable to ``[B, H, N, M]``."""
    q, k, v = (x.transpose(1, 2) for x in (q_BNHD, k_BMHD, v_BMHD))
    learned = bias is not None and bias.requires_grad
    by_products = dropout == 0 and _is_faster_by_products(q, k)
    if q.device.type != "cpu" or (dropout > 0 and learned) or (dropout == 0 and not by_products):
        out = F.scaled_dot_product_attention(q, k, v, bias, dropout_p=dropout, is_causal=is_causal, scale=scale)
        return out.transpose(1, 2)
    if is_causal:
        bias = Mask.causal().visible(q.shape[2], k.shape[2])
    blind: Tensor | None = None
    if bias is not None:
        if bias.dtype == torch.bool:
            bias = torch.zeros(bias.shape, dtype=q.dtype).masked_fill_(~bias, -math.inf)
        blind = (bias == -math.inf).all(-1, keepdim=True)
        bias = bias.masked_fill(blind, 0)
    out = (
        by_products_attention(q, k, v, bias, scale) if by_products else dropout_attention(q, k, v, bias, scale, dropout)
    )
    if blind is not None and bool(blind.any()):
        out = out.masked_fill(blind, 0)
    return out.transpose(1, 2)


def _is_faster_by_products(q: Tensor, k: Tensor) -> bool:
    """Whether plain matrix products are faster on a CPU than PyTorch's fused kernel.

    The backward pass of the fused kernel does not use the matrix units in bfloat16: products take a third of its time
    at 512 tokens and a sixth at 40; in float32 they are faster for short rows. Its forward pass alone takes 1.3 to 2
    times as long as products at up to 200 tokens in bfloat16, and less time at 512.
    """
    if q.device.type != "cpu" or torch.compiler.is_compiling():  # a graph does not branch on values, as these do
        return False
    scores = q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2]
    if not (torch.is_grad_enabled() and (q.requires_grad or k.requires_grad)):
        short = q.shape[2] * k.shape[2] <= LONGER_ROWS
        return q.dtype == torch.bfloat16 and short and scores <= MOST_SCORES_HELD
    return scores <= MOST_SCORES and (q.dtype == torch.bfloat16 or q.shape[2] * k.shape[2] <= SHORT_ROWS)


def by_products_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Softmax attention as two matrix products; axes ``[B, H, N, D]``; every query must see a key."""
    heads = q.shape[:2]
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    if bias is None:
        scores = torch.bmm(q * scale, k.transpose(1, 2))
    else:
        bias = bias.to(q.dtype).expand(*heads, q.shape[1], k.shape[1]).flatten(0, 1)
        scores = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=scale)
    # On short rows PyTorch's softmax takes up to three times as long in bfloat16 as in float32, backward five times.
    is_slow = scores.dtype == torch.bfloat16 and scores.shape[-1] in SLOW_ROWS
    weights = scores.softmax(-1, dtype=torch.float32 if is_slow else None).to(v.dtype)
    return torch.bmm(weights, v).unflatten(0, heads)


def _by_segments(q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float, dropout: float) -> Tensor:
    """Segments of similar length in one call: the cost grows with the sum of the squared lengths."""
    assert mask.groups is not None
    groups, device = mask.groups.to(q.device), q.device
    within = Mask(is_causal=mask.is_causal, window=mask.window)
    rows = (regroup(x.flatten(0, 1), groups).split(groups.sizes) for x in (q, k, v))
    parts = []
    for (count, longest), lengths, *batch in zip(groups.shapes, groups.lengths, *rows, strict=True):
        q_i, k_i, v_i = (x.unflatten(0, (count, longest)) for x in batch)
        seen: Tensor | None = None
        if lengths is not None:
            seen = (torch.arange(longest, device=device) < lengths[:, None])[:, None, None]
        near = within.visible(longest, longest, device) if mask.window is not None or seen is not None else None
        if near is not None:
            seen = near if seen is None else seen & near
        is_causal = mask.is_causal and seen is None
        parts.append(_kernel(q_i, k_i, v_i, seen, scale, dropout, is_causal).flatten(0, 1))
    out = regroup(torch.cat(parts), groups, back=True)
    if groups.pad is not None:
        out = out.masked_fill(groups.pad[:, None, None], 0)
    return out.view(q.shape)


def _by_windows(q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float, dropout: float) -> Tensor:
    """Blocks of queries, each with the keys in its reach: the cost grows with tokens times window."""
    (b, n), (left, right) = q.shape[:2], mask.reach
    assert left is not None
    assert right is not None
    block = _block(left, right)
    blocks, span = -(-n // block), block + left + right
    tail = blocks * block - n
    q_blocks = F.pad(q, (0, 0, 0, 0, 0, tail)).unflatten(1, (blocks, block)).flatten(0, 1)
    k_blocks, v_blocks = (
        F.pad(x, (0, 0, 0, 0, left, right + tail)).unfold(1, span, block).movedim(-1, 2).flatten(0, 1) for x in (k, v)
    )
    ahead = torch.arange(span, device=q.device) - left - torch.arange(block, device=q.device)[:, None]
    position = torch.arange(blocks, device=q.device)[:, None] * block - left + torch.arange(span, device=q.device)
    exists = ((position >= 0) & (position < n))[:, None]
    seen = (((ahead >= -left) & (ahead <= right)) & exists).repeat(b, 1, 1)[:, None]
    out = _kernel(q_blocks, k_blocks, v_blocks, seen, scale, dropout)
    return out.unflatten(0, (b, blocks)).flatten(1, 2)[:, :n]
