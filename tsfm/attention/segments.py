"""Regroups the segments of a packed batch by length, for attention without a dense mask.

Shapes: ``T`` tokens of all rows concatenated; a group has ``G`` segments padded to its longest, of ``L`` tokens.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Segments of a group have at least this share of the length of its longest: the padding then adds at most
# 1 / 0.8^2 - 1 = 56 % to the sum of the squared lengths.
FILL = 0.8


class Runs(NamedTuple):
    """Segments as runs along the concatenated tokens of all rows; ``real`` is False for runs of padding."""

    lengths: np.ndarray
    real: np.ndarray


def runs_of(ids: np.ndarray) -> Runs | None:
    """The runs of equal numbers in the rows of ``ids [B, N]`` (0: padding); ``None`` if a segment is not contiguous."""
    new = np.ones(ids.shape, dtype=bool)
    new[:, 1:] = ids[:, 1:] != ids[:, :-1]
    starts = np.flatnonzero(new)
    number = ids.reshape(-1)[starts]
    real = number != 0
    names = starts[real] // ids.shape[1] * (number.max(initial=0) + 1) + number[real]
    if len(np.unique(names)) < len(names):
        return None
    return Runs(np.diff(starts, append=ids.size), real)


@dataclass(frozen=True)
class SegmentGroups:
    """Segments batched in groups of similar length: the order of their tokens and its inverse.

    Attributes:
        shapes: ``(G, L)`` of every group.
        lengths: ``[G]`` true lengths of the segments of every group, ``None`` if all have ``L`` tokens.
        index: for every slot of the concatenated groups, the position of its token among the ``T`` tokens.
        inverse: ``[T]`` slot of every token.
        filler: the slots that only pad a segment.
        pad: ``[T]`` True for padding tokens, ``None`` without any.
    """

    shapes: list[tuple[int, int]]
    lengths: list[Tensor | None]
    index: Tensor
    inverse: Tensor
    filler: Tensor
    pad: Tensor | None

    @property
    def sizes(self) -> list[int]:
        """Number of slots of every group."""
        return [count * longest for count, longest in self.shapes]

    @property
    def cost(self) -> int:
        """Number of scores to compute per head."""
        return sum(count * longest**2 for count, longest in self.shapes)

    def to(self, device: torch.device) -> "SegmentGroups":
        """The same on another device."""
        if device == self.index.device:
            return self
        return replace(
            self,
            lengths=[None if x is None else x.to(device) for x in self.lengths],
            index=self.index.to(device),
            inverse=self.inverse.to(device),
            filler=self.filler.to(device),
            pad=None if self.pad is None else self.pad.to(device),
        )


def group(runs: Runs) -> SegmentGroups:
    """Sort segments by length and batch similar lengths; every padding token becomes its own segment."""
    starts = np.cumsum(runs.lengths) - runs.lengths
    pad = np.repeat(~runs.real, runs.lengths)
    starts = np.concatenate([starts[runs.real], np.flatnonzero(pad)])
    lengths = np.concatenate([runs.lengths[runs.real], np.ones(pad.sum(), dtype=np.int64)])
    order = np.argsort(-lengths, kind="stable")
    starts, lengths = starts[order], lengths[order]
    shapes, true_lengths, index, inside = [], [], [], []
    first = 0
    while first < len(lengths):
        longest = int(lengths[first])
        last = int(np.searchsorted(-lengths, -FILL * longest, side="right"))
        here = lengths[first:last, None]
        taken = np.arange(longest) < here
        shapes.append((last - first, longest))
        true_lengths.append(None if taken.all() else torch.from_numpy(here[:, 0].copy()))
        index.append((starts[first:last, None] + np.where(taken, np.arange(longest), 0)).reshape(-1))
        inside.append(taken.reshape(-1))
        first = last
    flat, taken = np.concatenate(index), np.concatenate(inside)
    inverse = np.empty(len(pad), dtype=np.int64)
    inverse[flat[taken]] = np.flatnonzero(taken)
    return SegmentGroups(
        shapes,
        true_lengths,
        torch.from_numpy(flat),
        torch.from_numpy(inverse),
        torch.from_numpy(np.flatnonzero(~taken)),
        torch.from_numpy(pad) if pad.any() else None,
    )


class _Regroup(torch.autograd.Function):
    """Gathers rows; its backward also gathers, which is faster than the row-wise additions of ``index_select``.

    This is correct because every token has one slot, and the gradient of a filler is 0: its key is hidden and its
    output is not used.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor, filler: Tensor | None) -> Tensor:
        ctx.save_for_backward(inverse, filler)
        return x.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        inverse, filler = ctx.saved_tensors
        out = grad.index_select(0, inverse)
        return out if filler is None else out.index_fill_(0, filler, 0), None, None, None


def regroup(x: Tensor, groups: SegmentGroups, back: bool = False) -> Tensor:
    """The rows of ``x [T, ...]`` in the order of the groups, with fillers; ``back`` inverts this."""
    if back:
        out: Tensor = _Regroup.apply(x, groups.inverse, groups.index, groups.filler)
    else:
        out = _Regroup.apply(x, groups.index, groups.inverse, None)
    return out
