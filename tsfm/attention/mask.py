"""The attention mask type of the suite, independent of the kernel that runs.

Shapes: ``B`` batch, ``H`` heads, ``N`` query tokens, ``M`` key tokens.
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
    """Which keys a query may see, and a bias on the scores. A key is visible if every part allows it.

    If there are fewer queries than keys, the queries are the last ``N`` of the ``M`` tokens (decoding with a cache).
    A query that sees no key gives 0.

    Attributes:
        is_causal: a token sees itself and the tokens before it.
        lengths: lengths of consecutive segments in a batch of one; a token sees its own segment.
        segment_ids: number of the segment of every token, ``0`` for padding; a token sees its own segment.
        window: ``(left, right)``: a token sees at most ``left`` tokens before it and ``right`` after it.
        bias: added to the scores, broadcastable to ``[B, H, N, M]``; ``-inf`` hides a key.

    Raises:
        ValueError: the parts contradict each other or are out of range.
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
        """Every token sees itself and the tokens before it."""
        return cls(is_causal=True)

    @classmethod
    def packed(cls, lengths: Sequence[int], *, causal: bool = False) -> "Mask":
        """Consecutive segments of these lengths in a batch of one; no segment sees another."""
        return cls(lengths=tuple(lengths), is_causal=causal)

    @classmethod
    def segments(cls, segment_ids: Int[Tensor, "B N"], *, causal: bool = False) -> "Mask":
        """Rows with several numbered segments; ``0`` marks padding, which no token sees."""
        return cls(segment_ids=segment_ids, is_causal=causal)

    @classmethod
    def local(cls, left: int, right: int, *, causal: bool = False) -> "Mask":
        """Every token sees itself, ``left`` tokens before it and ``right`` tokens after it."""
        return cls(window=(left, right), is_causal=causal)

    @property
    def is_segmented(self) -> bool:
        """Whether tokens are divided into segments, by lengths or by numbers."""
        return self.lengths is not None or self.segment_ids is not None

    @property
    def reach(self) -> tuple[int | None, int | None]:
        """How many tokens backward and forward a token sees, ``None`` without a limit; causal means 0 forward."""
        left, right = self.window if self.window is not None else (None, None)
        return left, 0 if self.is_causal else right

    @cached_property
    def runs(self) -> Runs | None:
        """The segments as runs of tokens; ``None`` without segments or if one of them is not contiguous.

        Computed once per mask, however many layers use it, because the numbers may have to be copied from a GPU.
        """
        if self.lengths is not None:
            return Runs(np.array(self.lengths), np.ones(len(self.lengths), dtype=bool))
        if self.segment_ids is None:
            return None
        return runs_of(self.segment_ids.cpu().numpy())

    @cached_property
    def groups(self) -> SegmentGroups | None:
        """The segments batched by length; ``None`` without ``runs``. Computed once per mask, too."""
        return None if self.runs is None else group(self.runs)

    def asked_by(self, asking_M: Int[Tensor, " M"]) -> "Mask":
        """The same mask for some of the queries.

        Args:
            asking_M: positions of the queries.

        Raises:
            ValueError: the mask has other parts than a bias; these need the queries to be the last tokens.
        """
        if self.bias is None or self.is_segmented or self.reach != (None, None):
            raise ValueError(
                "expected a mask with only a bias for some of the queries, found other parts: give the mask as a bias"
            )
        return self if self.bias.shape[2] == 1 else Mask(bias=self.bias[:, :, asking_M])

    def check(self, b: int, n: int, m: int) -> None:
        """Raise ``ValueError`` if the mask does not fit ``b`` rows of ``n`` queries and ``m`` keys."""
        if n > m and self.reach != (None, None):
            raise ValueError(f"expected no more queries than keys under a causal or local mask, found {n} and {m}")
        segmented_shape: tuple[int, int] | None = None
        if self.lengths is not None:
            segmented_shape = (1, sum(self.lengths))
        elif self.segment_ids is not None:
            segmented_shape = (self.segment_ids.shape[0], self.segment_ids.shape[1])
        if segmented_shape is not None and ((b, n) != segmented_shape or n != m):
            raise ValueError(
                f"expected queries and keys for the {segmented_shape[1]} tokens in {segmented_shape[0]} rows of the "
                f"mask's segments, found {b} rows of {n} queries and {m} keys"
            )

    def visible(self, n: int, m: int, device: torch.device | str = "cpu") -> Bool[Tensor, "_ 1 _ M"] | None:
        """True where a query may see a key, without regard to the bias; ``None`` if all queries see all keys."""
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
        """The mask as one tensor for the scores: boolean, or additive in the type of ``like`` with a bias."""
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
