"""Packed rows by PyTorch's own attention for segments of any length, on CUDA, if no library has a kernel for them.

Shapes: ``B`` rows, ``N`` tokens of a row, ``H`` heads, ``D`` channels of a head.
"""

import inspect
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from tsfm.attention.mask import Mask

MOST_CHANNELS = 256  # of a head
LEAST_CAPABILITY = (8, 0)


@cache
def load_varlen() -> Callable[..., Any] | None:
    """``torch.nn.attention.varlen.varlen_attn``; ``None`` in a PyTorch without it, or with an earlier form of it."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if {"window_size", "scale"} <= set(inspect.signature(varlen_attn).parameters) else None


def takes(q_BNHD: Tensor, mask: Mask | None, dropout: float) -> bool:
    """Whether it computes attention of these queries (and keys and values like them) under this mask."""
    return (
        mask is not None
        and mask.bias is None
        and mask.runs is not None
        and dropout == 0
        and q_BNHD.dtype in (torch.float16, torch.bfloat16)
        and q_BNHD.shape[-1] <= MOST_CHANNELS
        and torch.cuda.get_device_capability(q_BNHD.device) >= LEAST_CAPABILITY
        and load_varlen() is not None
    )


def varlen_attend(q_BNHD: Tensor, k_BNHD: Tensor, v_BNHD: Tensor, mask: Mask, scale: float) -> Tensor:
    """``attend`` for arguments that it ``takes``, of heads whose channels are a multiple of 8."""
    function, runs = load_varlen(), mask.runs
    assert function is not None
    assert runs is not None
    lengths = tuple(runs.lengths.tolist())
    border, longest = borders(lengths, q_BNHD.device), max(lengths)
    left, right = (-1 if reach is None else reach for reach in mask.reach)
    rows = (x.flatten(0, 1) for x in (q_BNHD, k_BNHD, v_BNHD))
    out: Tensor = function(*rows, border, border, longest, longest, scale=scale, window_size=(left, right))
    out = out.view(q_BNHD.shape)
    if mask.segment_ids is None:
        return out
    return out.masked_fill((mask.segment_ids == 0).to(out.device)[:, :, None, None], 0)


@lru_cache(maxsize=4)
def borders(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Where segments begin and the last ends, among all tokens; cached, because every layer needs the same."""
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)
