"""Special functions that PyTorch does not have, or that are faster here."""

import math

import torch
from torch import Tensor


def normal_cdf(z: Tensor) -> Tensor:
    """Standard normal distribution function, accurate in both tails."""
    return 0.5 * torch.erfc(-z / math.sqrt(2))


def asinh(x: Tensor) -> Tensor:
    """Inverse hyperbolic sine, accurate near 0; PyTorch's is several times slower on a CPU."""
    size = x.abs()
    square = size * size
    return log1p(size + square / (1 + (square + 1).sqrt())) * x.sign()


def log1p(x: Tensor) -> Tensor:
    """``log(1 + x)`` for x of at least 0, accurate near 0; on a CPU, PyTorch's takes twice as long or more."""
    sum_ = x + 1
    return sum_.log() + (x - (sum_ - 1)) / sum_  # the second term is what rounding took from the sum


def softplus(x: Tensor) -> Tensor:
    """``log(1 + exp(x))``; PyTorch's takes four times as long on a CPU."""
    return x.clamp(min=0) + log1p((-x.abs()).exp())


def sinh(x: Tensor) -> Tensor:
    """Hyperbolic sine; PyTorch's is several times slower on a CPU."""
    return (x.exp() - (-x).exp()) / 2


def incomplete_beta(a: Tensor, b: Tensor, x: Tensor, terms: int = 300) -> Tensor:
    """Regularised incomplete beta function ``I_x(a, b)`` by its continued fraction (Lentz's method), in float64.

    Args:
        a: above 0.
        b: above 0.
        x: from 0 to 1.
        terms: most terms of the fraction; about the square root of the larger of ``a`` and ``b`` are needed.
    """
    dtype = x.dtype
    a, b, x = (value.double() for value in torch.broadcast_tensors(a, b, x))
    flipped = x > (a + 1) / (a + b + 2)
    a, b, x = torch.where(flipped, b, a), torch.where(flipped, a, b), torch.where(flipped, 1 - x, x)
    x = x.clamp(1e-300, 1 - 1e-16)
    tiny = 1e-300

    def away_from_zero(value: Tensor) -> Tensor:
        return torch.where(value.abs() < tiny, tiny, value)

    c = torch.ones_like(x)
    d = 1 / away_from_zero(1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, terms):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for part in (even, odd):
            d = 1 / away_from_zero(1 + part * d)
            c = away_from_zero(1 + part / c)
            fraction = fraction * c * d
        if bool(((c * d - 1).abs() < 1e-10).all()):
            break
    log_front = torch.lgamma(a + b) - torch.lgamma(a) - torch.lgamma(b) + a * x.log() + b * torch.log1p(-x)
    value = log_front.exp() * fraction / a
    return torch.where(flipped, 1 - value, value).clamp(0, 1).to(dtype)
