"""iLLaMA's soft mask: attention weights of later tokens are multiplied by a rate after the softmax.

The weights are not normalised again, so this is not a causal mask on the scores. ``plain`` is the arithmetic;
``in_parts`` is the same for long rows on a CPU, and never holds all weights at once. At 384 pixels it trains iLLaMA-T
1.13 times as fast as the same parts under ``torch.utils.checkpoint``.

Shapes: B batch, N tokens, H heads, D channels of a head, G batch times heads, P queries of a part, R pairs of channels.
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tsfm.nn import Rotary
from tsfm_data.errors import InputError
from tsfm_vision.backbones.cpu import applies, register, wide

# Up to this many tokens, all weights are computed at once: a quarter of a mebibyte per head at most.
SHORT = 256
# Queries of a part: few, so that the scores stay in the cache and few masked products are computed.
PART = 64
Schedule = Literal["constant", "linear"]


def rotary_of(turns_2NR: Tensor) -> Rotary:
    """The table as the shared layers take it."""
    return Rotary(turns_2NR[0][None, :, None], turns_2NR[1][None, :, None])


def plain(qkv_BN3HD: Tensor, turns_2NR: Tensor, rate: float) -> Tensor:
    """Rotary attention under the soft mask by plain arithmetic, ``[B, N, H * D]``.

    Args:
        qkv_BN3HD: queries, keys and values.
        turns_2NR: cosine and sine of each token's rotation, for each pair of channels.
        rate: factor on the weights of later tokens.
    """
    turned = rotary_of(turns_2NR).rotate(qkv_BN3HD[:, :, :2].flatten(2, 3)).unflatten(2, (2, -1))
    q_BHND, k_BHND = turned[:, :, 0].transpose(1, 2), turned[:, :, 1].transpose(1, 2)
    weights = (q_BHND @ k_BHND.transpose(2, 3) * q_BHND.shape[3] ** -0.5).softmax(-1)
    weights = weights * soft_mask(qkv_BN3HD.shape[1], rate, weights)
    return (weights @ qkv_BN3HD[:, :, 2].transpose(1, 2)).transpose(1, 2).flatten(2)


def soft_masked(qkv_BN3HD: Tensor, turns_2NR: Tensor, rate: float) -> Tensor:
    """The same; long rows are computed in parts, on a CPU. Arguments as in ``plain``."""
    if qkv_BN3HD.shape[1] <= SHORT or not applies(qkv_BN3HD, low=True):
        return plain(qkv_BN3HD, turns_2NR, rate)
    return in_parts(qkv_BN3HD, turns_2NR, rate)


def turn(x_BN2HD: Tensor, angle_ND: Tensor, out_2BHND: Tensor) -> None:
    """Rotate queries and keys by complex numbers; the result is written head by head."""
    pairs, out = (torch.view_as_complex(x.unflatten(-1, (-1, 2))) for x in (x_BN2HD, out_2BHND))
    torch.mul(pairs.permute(2, 0, 3, 1, 4), angle_ND, out=out)


def turn_back(x_2BHND: Tensor, angle_ND: Tensor, out_BN2HD: Tensor) -> None:
    """The inverse rotation, for gradients."""
    pairs, out = (torch.view_as_complex(x.unflatten(-1, (-1, 2))) for x in (x_2BHND, out_BN2HD))
    torch.mul(pairs.permute(1, 3, 0, 2, 4), angle_ND.conj_physical()[:, None, None], out=out)


def parts_forward(qkv_BN3HD: Tensor, turns_2NR: Tensor, rate: float) -> Tensor:
    """``plain`` for some queries at a time. If the rate is 0, values of later tokens are not multiplied."""
    b, n, _, h, d = qkv_BN3HD.shape
    with torch.autocast("cpu", enabled=False):  # in the type of the input
        q, k, v = unpack(qkv_BN3HD, torch.complex(turns_2NR[0], turns_2NR[1]))
        out = []
        for start, end, seen, behind in parts(n, rate, q):
            weights = scores(q, k, start, end)
            weights[..., start:end].mul_(behind)
            if rate != 1 and seen > end:
                weights[..., end:].mul_(rate)
            out.append(torch.bmm(weights[..., :seen], v[:, :seen]))
        return torch.cat(out, 1).unflatten(0, (b, h)).transpose(1, 2).reshape(b, n, h * d)


def parts_backward(grad: Tensor, qkv_BN3HD: Tensor, turns_2NR: Tensor, rate: float) -> list[Tensor]:
    """The gradient of ``plain``; weights and their masked products are computed again."""
    (b, n, _, h, d), dtype = qkv_BN3HD.shape, wide(qkv_BN3HD.dtype)
    with torch.autocast("cpu", enabled=False):
        angle = torch.complex(turns_2NR[0], turns_2NR[1])
        q, k, v = unpack(qkv_BN3HD, angle)
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
            inner = (weights[..., :seen] * grad_weights).sum(-1, keepdim=True, dtype=dtype)
            weights[..., :seen].mul_(grad_weights.sub_(inner))
            if seen < n:
                weights[..., seen:].mul_(-inner)
            grad_q[:, start:end] = torch.bmm(weights, k).mul_(d**-0.5)
            grad_k.add_(torch.bmm(weights.transpose(1, 2), q[:, start:end]), alpha=d**-0.5)
        grad_qkv = torch.empty_like(qkv_BN3HD, dtype=dtype, memory_format=torch.contiguous_format)
        turn_back(grad_qk.unflatten(1, (b, h)), angle, grad_qkv[:, :, :2])
        grad_qkv[:, :, 2] = grad_v.unflatten(0, (b, h)).transpose(1, 2)
        return [grad_qkv.to(qkv_BN3HD.dtype)]


def soft_mask(tokens: int, rate: float, like: Tensor) -> Float[Tensor, "N N"]:
    """1 for a key up to the query's own place, ``rate`` for those after it."""
    return like.new_ones(tokens, tokens).tril().mul(1 - rate).add(rate)


def unpack(qkv_BN3HD: Tensor, angle: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated queries, rotated keys, and values, ``[G, N, D]`` each."""
    b, n, _, h, d = qkv_BN3HD.shape
    qk = qkv_BN3HD.new_empty(2, b, h, n, d, dtype=wide(qkv_BN3HD.dtype))
    turn(qkv_BN3HD[:, :, :2].to(qk.dtype), angle, qk)
    q, k = qk.flatten(1, 2).to(qkv_BN3HD.dtype)
    return q, k, qkv_BN3HD[:, :, 2].transpose(1, 2).reshape(b * h, n, d)


def parts(tokens: int, rate: float, like: Tensor) -> list[tuple[int, int, int, Tensor]]:
    """For each part: first query, end, number of keys whose values it uses, and the mask among its own tokens."""
    mask = soft_mask(PART, rate, like)
    out = []
    for start in range(0, tokens, PART):
        end = min(start + PART, tokens)
        out.append((start, end, end if rate == 0 else tokens, mask[: end - start, : end - start]))
    return out


def scores(q_GND: Tensor, k_GND: Tensor, start: int, end: int) -> Float[Tensor, "G P N"]:
    """Attention weights of some queries for all keys."""
    keys = k_GND.transpose(1, 2)
    blank = q_GND.new_empty(q_GND.shape[0], end - start, k_GND.shape[1])
    return torch.baddbmm(blank, q_GND[:, start:end], keys, beta=0, alpha=q_GND.shape[-1] ** -0.5, out=blank).softmax(-1)


in_parts = register(
    "soft_masked",
    plain,
    parts_forward,
    parts_backward,
    lambda qkv, *_: (qkv.shape[0], qkv.shape[1], qkv.shape[3] * qkv.shape[4]),
    flops=lambda qkv, *_: 4 * qkv[0] * qkv[1] ** 2 * qkv[3] * qkv[4],
)


def rates(schedule: Schedule, cutoff_epochs: int, epochs: int, steps_per_epoch: int) -> np.ndarray:
    """The soft-mask rate at each optimiser step of a training.

    Args:
        schedule: ``"constant"``: 1 until the cutoff; ``"linear"``: from 1 to 0 at the cutoff, both ends included.
            After the cutoff it is 0.
        cutoff_epochs: epochs until the rate is 0; all epochs keep a constant rate to the end, 0 has a causal model
            from the start (fine-tuning).
        epochs: epochs of the whole training.
        steps_per_epoch: optimiser steps in an epoch.

    Returns:
        ``[epochs * steps_per_epoch]`` rates.

    Raises:
        InputError: the cutoff lies outside the training.
    """
    if not 0 <= cutoff_epochs <= epochs:
        raise InputError(f"expected a cutoff within the {epochs} epochs, found {cutoff_epochs}: change cutoff_epochs")
    out = np.zeros(epochs * steps_per_epoch)
    steps = cutoff_epochs * steps_per_epoch
    out[:steps] = 1.0 if schedule == "constant" else np.linspace(1.0, 0.0, steps)
    return out
