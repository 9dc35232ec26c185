"""The attention door: one ``Mask`` type and one function, ``attend``, whatever the device.

On CUDA the work is done by xformers' ``memory_efficient_attention`` and its attention-bias classes, elsewhere by
PyTorch; both agree with the plain softmax of ``attend_reference``. Nothing else in the suite imports xformers.

Shapes: ``B`` batch, ``N`` query tokens, ``M`` key tokens, ``H`` heads, ``D`` channels of a head.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from tsfm.dropout import dropout as drop


@dataclass(frozen=True, eq=False)
class Mask:
    """Which keys a query may see, and what is added to the scores. The parts combine: a key must pass all of them.

    Where there are fewer queries than keys, the queries are the last ``N`` of the ``M`` tokens (decoding with a cache).
    A query that sees no key gives 0.

    Attributes:
        is_causal: a token sees itself and what comes before it.
        lengths: segments laid one after the other along the tokens of a batch of one; a token sees its own segment.
        segment_ids: the segment of every token in every row, ``0`` for padding; a token sees its own segment.
        window: ``(left, right)``: a token sees at most ``left`` tokens before it and ``right`` after it.
        bias: added to the scores, broadcastable to ``[B, H, N, M]``; ``-inf`` hides a key.
    """

    is_causal: bool = False
    lengths: tuple[int, ...] | None = None
    segment_ids: Int[Tensor, "B N"] | None = None
    window: tuple[int, int] | None = None
    bias: Float[Tensor, "#B #H #N #M"] | None = None

    def __post_init__(self) -> None:
        if self.lengths is not None and self.segment_ids is not None:
            raise ValueError("expected segments either as lengths or as segment_ids, found both: give one of them")
        if self.lengths is not None and min(self.lengths, default=0) < 1:
            raise ValueError(f"expected segments of one token or more, found lengths {self.lengths}")
        if self.window is not None and min(self.window) < 0:
            raise ValueError(f"expected a window of two sizes, 0 or more (left, right), found {self.window}")

    @classmethod
    def causal(cls) -> "Mask":
        """Every token sees itself and what comes before it."""
        return cls(is_causal=True)

    @classmethod
    def packed(cls, lengths: list[int] | tuple[int, ...], *, causal: bool = False) -> "Mask":
        """Segments of these lengths along the tokens of a batch of one; no segment sees another."""
        return cls(lengths=tuple(lengths), is_causal=causal)

    @classmethod
    def segments(cls, segment_ids: Int[Tensor, "B N"], *, causal: bool = False) -> "Mask":
        """Rows that hold several segments, told apart by their number; ``0`` marks padding, seen by nobody."""
        return cls(segment_ids=segment_ids, is_causal=causal)

    @classmethod
    def local(cls, left: int, right: int, *, causal: bool = False) -> "Mask":
        """A window of ``left`` tokens before and ``right`` tokens after each token, itself always included."""
        return cls(window=(left, right), is_causal=causal)

    @cached_property
    def reach(self) -> tuple[int | None, int | None]:
        """How many tokens back and forward a token sees, ``None`` without a limit; causal is no step forward."""
        left, right = self.window if self.window is not None else (None, None)
        return left, 0 if self.is_causal else right

    def visible(self, n: int, m: int, device: torch.device | str = "cpu") -> Bool[Tensor, "#B 1 #N #M"] | None:
        """True where query ``n`` may see key ``m``; ``None`` where every query sees every key (the bias not counted)."""
        left, right = self.reach
        seen: Tensor | None = None
        if left is not None or right is not None:
            if n > m:
                raise ValueError(f"expected no more queries than keys under a causal or local mask, found {n} and {m}")
            offset = torch.arange(m, device=device) - torch.arange(m - n, m, device=device)[:, None]
            seen = torch.ones_like(offset, dtype=torch.bool)
            if left is not None:
                seen &= offset >= -left
            if right is not None:
                seen &= offset <= right
            seen = seen[None, None]
        ids = self.ids(n, m, device)
        if ids is not None:
            same = ((ids[:, :, None] == ids[:, None, :]) & (ids != 0)[:, None, :])[:, None]
            seen = same if seen is None else seen & same
        return seen

    def ids(self, n: int, m: int, device: torch.device | str = "cpu") -> Int[Tensor, "B N"] | None:
        """The segment number of every token, whichever way the segments were given."""
        if self.lengths is None and self.segment_ids is None:
            return None
        if self.segment_ids is not None:
            found = self.segment_ids.shape[1]
            ids = self.segment_ids.to(device)
        else:
            assert self.lengths is not None
            found = sum(self.lengths)
            sizes = torch.tensor(self.lengths, device=device)
            ids = torch.repeat_interleave(torch.arange(1, len(self.lengths) + 1, device=device), sizes)[None]
        if not n == m == found:
            raise ValueError(f"expected segments that cover {n} queries and {m} keys, found {found} tokens in segments")
        return ids


def _scores_bias(mask: Mask | None, n: int, m: int, like: Tensor) -> Tensor | None:
    """What is added to the scores, in the type of ``like``; boolean where no bias is involved."""
    if mask is None:
        return None
    seen = mask.visible(n, m, like.device)
    if mask.bias is None:
        return seen
    bias = mask.bias.to(like.device, like.dtype)
    return bias if seen is None else bias.masked_fill(~seen, -math.inf)


def attend(
    q_BNHD: Float[Tensor, "B N H D"],
    k_BMHD: Float[Tensor, "B M H D"],
    v_BMHD: Float[Tensor, "B M H D"],
    mask: Mask | None = None,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "B N H D"]:
    """Scaled-dot-product attention: ``softmax(q k^T * scale + bias) v`` for each head.

    Args:
        q_BNHD: queries.
        k_BMHD: keys.
        v_BMHD: values.
        mask: which keys a query may see; ``None``: all of them.
        scale: factor on the scores, by default ``1 / sqrt(D)``.
        dropout: share of attention weights set to 0 (give 0 outside training).

    Returns:
        The mixed values; 0 for a query that sees no key.
    """
    bias = _scores_bias(mask, q_BNHD.shape[1], k_BMHD.shape[1], q_BNHD)
    q, k, v = (x.transpose(1, 2) for x in (q_BNHD, k_BMHD, v_BMHD))
    return F.scaled_dot_product_attention(q, k, v, bias, dropout_p=dropout, scale=scale).transpose(1, 2)


def attend_reference(
    q_BNHD: Float[Tensor, "B N H D"],
    k_BMHD: Float[Tensor, "B M H D"],
    v_BMHD: Float[Tensor, "B M H D"],
    mask: Mask | None = None,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "B N H D"]:
    """The same as ``attend``, as a plain softmax over all scores: what the tests hold the kernels to."""
    scale = 1 / math.sqrt(q_BNHD.shape[-1]) if scale is None else scale
    scores_BHNM = torch.einsum("bnhd,bmhd->bhnm", q_BNHD, k_BMHD) * scale
    bias = _scores_bias(mask, q_BNHD.shape[1], k_BMHD.shape[1], q_BNHD)
    if bias is not None and bias.dtype == torch.bool:
        scores_BHNM = scores_BHNM.masked_fill(~bias, -math.inf)
    elif bias is not None:
        scores_BHNM = scores_BHNM + bias
    blind = (scores_BHNM == -math.inf).all(-1, keepdim=True)
    weights_BHNM = scores_BHNM.masked_fill(blind, 0).softmax(-1).masked_fill(blind, 0)
    return torch.einsum("bhnm,bmhd->bnhd", drop(weights_BHNM, dropout, training=True), v_BMHD)
