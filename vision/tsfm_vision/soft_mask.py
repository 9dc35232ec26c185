"""iLLaMA's soft mask: attention weights that look ahead are multiplied by a rate after the softmax.

The weights are not normalised again, so a causal mask on the scores is something else. Exact with any kernel: every key
stands twice, once with its value for the queries from its place on, and once with its value times the rate for the
queries before. Each query sees each key once, so the softmax is that over all keys.

Shapes: B batch, N tokens, H heads, D channels of a head.
"""

import math
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tsfm.attention import Mask, attend
from tsfm_data.errors import InputError

Schedule = Literal["constant", "linear"]


def doubled_mask(tokens: int, like: Tensor) -> Mask:
    """The mask over doubled keys: the first copy for queries from its place on, the second for those before."""
    behind = torch.ones(tokens, tokens, dtype=torch.bool, device=like.device).tril()
    bias = torch.zeros(1, 1, tokens, 2 * tokens, dtype=like.dtype, device=like.device)
    return Mask(bias=bias.masked_fill_(~torch.cat([behind, ~behind], 1), -math.inf))


def soft_masked(
    q_BNHD: Float[Tensor, "B N H D"],
    k_BNHD: Float[Tensor, "B N H D"],
    v_BNHD: Float[Tensor, "B N H D"],
    rate: float,
    mask: Mask | None,
) -> Float[Tensor, "B N H D"]:
    """``(softmax(q k^T / sqrt(D)) * S) v``, where S is 1 for a key up to the query's own place and ``rate`` after it.

    Args:
        q_BNHD: queries.
        k_BNHD: keys.
        v_BNHD: values.
        rate: from 0 (nothing that lies ahead) to 1 (plain attention).
        mask: ``doubled_mask`` for these tokens, made once for all blocks; not needed at rate 1.
    """
    if mask is None:
        return attend(q_BNHD, k_BNHD, v_BNHD)
    return attend(q_BNHD, torch.cat([k_BNHD, k_BNHD], 1), torch.cat([v_BNHD, v_BNHD * rate], 1), mask)


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
