"""iLLaMA's soft mask: attention weights that look ahead are multiplied by a rate after the softmax.

The weights are not normalised again, so a causal mask on the scores is something else. Exact with any kernel, by parts
of the queries: keys before a part keep their values, keys after it have them times the rate, and keys within it stand
twice, once with their value for the queries from their place on, and once with it times the rate for the queries
before. Each query sees each key once, so the softmax is that over all keys.

Shapes: B batch, N tokens, H heads, D channels of a head.
"""

import math
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tsfm.attention.dispatch import Mask, attend
from tsfm_data.errors import InputError

# Queries of a part: enough for a kernel to be busy, few enough that little is computed twice.
PART = 128
Schedule = Literal["constant", "linear"]


class Part(NamedTuple):
    """Queries from ``start`` to ``end``, and what they may see of all keys followed by the keys of this part again."""

    start: int
    end: int
    mask: Mask


def parts(tokens: int, like: Tensor) -> tuple[Part, ...]:
    """The parts of ``tokens`` queries, for tensors like ``like``; all blocks of a model ask for the same."""
    is_plain = type(like) is Tensor and not torch.compiler.is_compiling() and not torch.jit.is_tracing()
    return (kept_parts if is_plain else made_parts)(tokens, PART, like.dtype, like.device)


def made_parts(tokens: int, size: int, dtype: torch.dtype, device: torch.device) -> tuple[Part, ...]:
    """Parts of ``size`` queries."""
    found = []
    with torch.inference_mode(False):  # what is kept may be met in training later
        for start in range(0, tokens, size):
            end = min(start + size, tokens)
            behind = torch.ones(end - start, end - start, dtype=torch.bool, device=device).tril()
            bias = torch.zeros(1, 1, end - start, tokens + end - start, dtype=dtype, device=device)
            bias[..., start:end].masked_fill_(~behind, -math.inf)
            bias[..., tokens:].masked_fill_(behind, -math.inf)
            found.append(Part(start, end, Mask(bias=bias)))
    return tuple(found)


kept_parts = lru_cache(maxsize=4)(made_parts)


def soft_masked(
    q_BNHD: Float[Tensor, "B N H D"],
    k_BNHD: Float[Tensor, "B N H D"],
    v_BNHD: Float[Tensor, "B N H D"],
    rate: float,
) -> Float[Tensor, "B N H D"]:
    """``(softmax(q k^T / sqrt(D)) * S) v``, where S is 1 for a key up to the query's own place and ``rate`` after it.

    Args:
        q_BNHD: queries.
        k_BNHD: keys.
        v_BNHD: values.
        rate: from 0 (nothing that lies ahead) to 1 (plain attention).
    """
    if rate == 1:
        return attend(q_BNHD, k_BNHD, v_BNHD)
    weak_BNHD = v_BNHD * rate
    out = []
    for start, end, mask in parts(q_BNHD.shape[1], q_BNHD):
        keys = torch.cat([k_BNHD, k_BNHD[:, start:end]], 1)
        values = torch.cat([v_BNHD[:, :end], weak_BNHD[:, end:], weak_BNHD[:, start:end]], 1)
        out.append(attend(q_BNHD[:, start:end], keys, values, mask))
    return torch.cat(out, 1)


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
