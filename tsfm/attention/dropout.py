"""Dropout with a mask that is cheap to sample on a CPU; the distribution is that of PyTorch.

``bernoulli_`` of PyTorch takes longer on a CPU than the layers around it. Here one random byte decides per element: if
it is below ``floor(256 p)`` the element is dropped, if it is above it is kept, and if it is equal (one element in 256)
a second random number decides, so the share is exactly ``p`` and not rounded to a multiple of 1 / 256.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Elements processed at a time, so that they fit into the cache of a core. Fixed, because the masks depend on it.
CHUNK = 1 << 18
# Number of elements below which PyTorch's kernel is as fast.
SMALL = 1 << 12


def _random_stream() -> np.random.Generator:
    """A fast generator seeded by PyTorch's global generator, so ``torch.manual_seed`` determines the masks."""
    return np.random.Generator(np.random.SFC64(int(torch.randint(2**63 - 1, ()))))


def _sample_keep(stream: np.random.Generator, keep: Bool[Tensor, "*shape"], p: float) -> None:
    """Fill ``keep``, a contiguous CPU tensor, with False (share ``p``) and True."""
    flat = keep.numpy().reshape(-1)
    words = stream.bit_generator.random_raw((flat.size + 7) // 8)
    byte = words.view(np.uint8)[: flat.size]
    whole, rest = divmod(p * 256, 1)
    np.greater_equal(byte, np.uint8(whole), out=flat)
    if rest > 0:
        border = np.flatnonzero(byte == np.uint8(whole))
        flat[border] = stream.random(border.size) >= rest


def _pieces(*tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """Contiguous tensors of one size, cut into pieces of ``CHUNK`` elements."""
    if tensors[0].numel() <= CHUNK:
        return (tensors,)
    return zip(*(x.view(-1).split(CHUNK) for x in tensors), strict=True)


def keep_mask(shape: tuple[int, ...], p: float, device: torch.device | str = "cpu") -> Bool[Tensor, "*shape"]:
    """A random mask of elements to keep: each is False with probability ``p``; uses PyTorch's global generator.

    Args:
        shape: the shape of the mask.
        p: the probability of dropping an element, at least 0 and below 1.
        device: device of the mask.
    """
    keep = torch.empty(shape, dtype=torch.bool, device=device)
    if keep.device.type != "cpu":
        return keep.bernoulli_(1 - p)
    stream = _random_stream()
    for (piece,) in _pieces(keep):
        _sample_keep(stream, piece, p)
    return keep


class _Dropout(torch.autograd.Function):
    """Dropout plus residual, computed in pieces that fit into the cache."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor | None, p: float) -> Tensor:
        keep = keep_mask(tuple(x.shape), p)
        ctx.save_for_backward(keep)
        ctx.p, ctx.has_residual = p, residual is not None
        return _apply_keep(x.contiguous(), keep, p, None if residual is None else residual.contiguous())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (keep,) = ctx.saved_tensors
        return _apply_keep(grad.contiguous(), keep, ctx.p), grad if ctx.has_residual else None, None


def _apply_keep(x: Tensor, keep: Tensor, p: float, residual: Tensor | None = None) -> Tensor:
    out = torch.empty_like(x)
    # View the mask as uint8: PyTorch's products with uint8 are vectorised, those with bool are not.
    tensors = (x, keep.view(torch.uint8), out) if residual is None else (x, keep.view(torch.uint8), out, residual)
    for x_piece, keep_piece, out_piece, *residual_piece in _pieces(*tensors):
        torch.mul(x_piece, keep_piece, out=out_piece)
        if residual_piece:
            torch.add(residual_piece[0], out_piece, alpha=1 / (1 - p), out=out_piece)
        else:
            out_piece.mul_(1 / (1 - p))
    return out


def dropout(
    x: Float[Tensor, "*shape"], p: float, training: bool, residual: Float[Tensor, "*shape"] | None = None
) -> Float[Tensor, "*shape"]:
    """Set a share ``p`` of the elements to 0 and scale the rest by ``1 / (1 - p)``; ``x`` itself outside training.

    Args:
        x: any values.
        p: the share, at least 0 and below 1.
        training: whether elements are dropped.
        residual: added to the result in the same pass over memory.
    """
    if training and p > 0 and x.device.type == "cpu" and x.numel() >= SMALL:
        if residual is None or residual.dtype == x.dtype:
            out: Tensor = _Dropout.apply(x, residual, p)
            return out
        return residual + dropout(x, p, training)
    if training and p > 0:
        x = F.dropout(x, p)
    return x if residual is None else residual + x


class Dropout(nn.Module):
    """A drop-in for ``torch.nn.Dropout``.

    Args:
        p: the share of elements set to 0 in training, at least 0 and below 1.

    Raises:
        ValueError: ``p`` is out of range.
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"expected a dropout share of at least 0 and below 1, found {p}")
        self.p = p

    def forward(
        self, x: Float[Tensor, "*shape"], residual: Float[Tensor, "*shape"] | None = None
    ) -> Float[Tensor, "*shape"]:
        """``x`` with a share of its elements dropped in training, unchanged otherwise, plus the residual if any."""
        return dropout(x, self.p, self.training, residual)

    def extra_repr(self) -> str:
        """The share, for ``print(model)``."""
        return f"p={self.p}"
