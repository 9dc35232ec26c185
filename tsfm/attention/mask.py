"""The one mask type of the suite: what a query may see, said in words that every kernel can be told.

Import it from ``tsfm.attention.dispatch``. Shapes: ``B`` batch, ``H`` heads, ``N`` query tokens, ``M`` key tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tsfm.attention.segments import Runs, SegmentGroups, group, runs_of


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

    Raises:
        ValueError: where the parts contradict each other or are out of range.
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
    def packed(cls, lengths: Sequence[int], *, causal: bool = False) -> "Mask":
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

    @property
    def is_segmented(self) -> bool:
        """Whether tokens are divided into segments, in either way."""
        return self.lengths is not None or self.segment_ids is not None

    @property
    def reach(self) -> tuple[int | None, int | None]:
        """How many tokens back and forward a token sees, ``None`` without a limit; causal is no step forward."""
        left, right = self.window if self.window is not None else (None, None)
        return left, 0 if self.is_causal else right

    @cached_property
    def runs(self) -> Runs | None:
        """The segments as runs of tokens; ``None`` where there are none or one of them is not in one piece.

        Found once a mask, whichever number of layers uses it (the ids may have to come from another device).
        """
        if self.lengths is not None:
            return Runs(np.array(self.lengths), np.ones(len(self.lengths), dtype=bool))
        if self.segment_ids is None:
            return None
        return runs_of(self.segment_ids.cpu().numpy())

    @cached_property
    def groups(self) -> SegmentGroups | None:
        """The segments batched by length; ``None`` where there are no ``runs``. Found once a mask, too."""
        return None if self.runs is None else group(self.runs)

    def asked_by(self, asking_M: Int[Tensor, " M"]) -> "Mask":
        """The same mask for these queries alone.

        Raises:
            ValueError: it says more than its bias, whose queries would have to be the last tokens.
        """
        if self.bias is None or self.is_segmented or self.reach != (None, None):
            raise ValueError("expected a mask of a bias alone for some of the queries, found more: give it as a bias")
        return self if self.bias.shape[2] == 1 else Mask(bias=self.bias[:, :, asking_M])

    def check(self, b: int, n: int, m: int) -> None:
        """Raise ``ValueError`` where the mask does not fit ``b`` rows of ``n`` queries and ``m`` keys."""
        if n > m and self.reach != (None, None):
            raise ValueError(f"expected no more queries than keys under a causal or local mask, found {n} and {m}")
        found: tuple[int, int] | None = None
        if self.lengths is not None:
            found = (1, sum(self.lengths))
        elif self.segment_ids is not None:
            found = (self.segment_ids.shape[0], self.segment_ids.shape[1])
        if found is not None and ((b, n) != found or n != m):
            raise ValueError(
                f"expected queries and keys of the {found[1]} tokens in {found[0]} rows that the mask divides into "
                f"segments, found {b} rows of {n} queries and {m} keys"
            )

    def visible(self, n: int, m: int, device: torch.device | str = "cpu") -> Bool[Tensor, "_ 1 _ M"] | None:
        """True where query ``n`` may see key ``m``; ``None`` where all see all. The bias is not counted."""
        left, right = self.reach
        seen: Tensor | None = None
        if (left, right) != (None, None):
            ahead = torch.arange(m, device=device) - torch.arange(m - n, m, device=device)[:, None]
            near = torch.ones_like(ahead, dtype=torch.bool) if left is None else ahead >= -left
            seen = (near if right is None else near & (ahead <= right))[None, None]
        ids = self._ids(device)
        if ids is not None:
            same = ((ids[:, :, None] == ids[:, None, :]) & (ids != 0)[:, None, :])[:, None]
            seen = same if seen is None else seen & same
        return seen

    def dense(self, n: int, m: int, like: Tensor) -> Tensor | None:
        """The whole mask as one tensor for the scores: boolean, or additive in the type of ``like`` with a bias."""
        seen = self.visible(n, m, like.device)
        if self.bias is None:
            return seen
        bias = self.bias.to(like.device, like.dtype)
        return bias if seen is None else torch.where(seen, bias, -math.inf)

    def _ids(self, device: torch.device | str) -> Tensor | None:
        if self.segment_ids is not None:
            return self.segment_ids.to(device)
        if self.lengths is not None:
            sizes = torch.tensor(self.lengths, device=device)
            return torch.repeat_interleave(torch.arange(1, len(self.lengths) + 1, device=device), sizes)[None]
        return None
