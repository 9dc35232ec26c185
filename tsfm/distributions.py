"""Predictive distributions of a step: Student-T, normal, negative binomial, log-normal, and mixtures of them.

Shapes: ``*S`` whatever the parameters have, K components of a mixture, Q levels.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

# Counts whose probabilities are tabulated.
TABLE = 64
# Halvings of the bracket around a quantile, down to what float32 can tell apart.
HALVINGS = 28


class Distribution(ABC):
    """A distribution a step. ``of`` makes it from what a network puts out."""

    parameters: ClassVar[tuple[str, ...]]

    @classmethod
    @abstractmethod
    def of(cls, raw: dict[str, Tensor]) -> "Distribution":
        """From unbounded numbers, one tensor a parameter."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Log density; ``-inf`` where ``x`` is outside the support."""

    @abstractmethod
    def cdf(self, x: Tensor) -> Tensor:
        """Probability of at most ``x``."""

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """Expected value."""

    @property
    @abstractmethod
    def variance(self) -> Tensor:
        """Variance."""

    @abstractmethod
    def bracket(self, low: float, high: float) -> tuple[Tensor, Tensor]:
        """Bounds that hold the quantiles from level ``low`` to level ``high``."""


def positive(raw: Tensor) -> Tensor:
    """Softplus, kept above the smallest number that does not vanish beside 1."""
    return F.softplus(raw).clamp(min=torch.finfo(raw.dtype).eps)


def normal_cdf(z: Tensor) -> Tensor:
    """Standard normal distribution function, exact in both tails."""
    return 0.5 * torch.erfc(-z / math.sqrt(2))


def sinh(x: Tensor) -> Tensor:
    """Hyperbolic sine; PyTorch's own is several times slower on a CPU."""
    return (x.exp() - (-x).exp()) / 2


def normal_reach(low: float, high: float) -> float:
    """A number of standard deviations beyond which neither quantile is: ``P(|z| > s) <= exp(-s^2 / 2)``."""
    return math.sqrt(-2 * math.log(min(low, 1 - high)))


@dataclass(frozen=True)
class StudentT(Distribution):
    """Student's t with more than two degrees of freedom, moved and stretched."""

    df: Tensor
    loc: Tensor
    scale: Tensor
    parameters: ClassVar[tuple[str, ...]] = ("df", "loc", "scale")

    @classmethod
    def of(cls, raw: dict[str, Tensor]) -> "StudentT":
        """Degrees of freedom ``2 + softplus``, scale softplus."""
        return cls(2 + F.softplus(raw["df"]), raw["loc"], positive(raw["scale"]))

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density."""
        half = self.df / 2
        norm = self.scale.log() + 0.5 * (self.df * math.pi).log() + torch.lgamma(half) - torch.lgamma(half + 0.5)
        return -(half + 0.5) * torch.log1p(((x - self.loc) / self.scale).square() / self.df) - norm

    def cdf(self, x: Tensor) -> Tensor:
        """Hill's expansion (1970, Algorithm 395), within 2.1e-4 of the probability at 2 degrees, 2e-7 at 5."""
        t = (x - self.loc) / self.scale
        a = self.df - 0.5
        y = a * torch.log1p(t.square() / self.df)
        b = 48 * a.square()
        tail = ((-0.4 * y - 3.3) * y - 24) * y - 85.5
        z = ((tail / (0.8 * y.square() + 100 + b) + y + 3) / b + 1) * y.sqrt()
        return normal_cdf(torch.copysign(z, t))

    @property
    def mean(self) -> Tensor:
        """Expected value."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """Variance."""
        return self.scale.square() * self.df / (self.df - 2)

    def bracket(self, low: float, high: float) -> tuple[Tensor, Tensor]:
        """Bounds from the quantile of two degrees of freedom, the widest there is, which has a closed form."""
        p = min(low, 1 - high, 0.4)
        reach = 1.01 * (1 - 2 * p) / math.sqrt(2 * p * (1 - p)) * self.scale
        return self.loc - reach, self.loc + reach


@dataclass(frozen=True)
class NarrowNormal(Distribution):
    """Normal with the fixed deviation 0.001, for values that are almost known."""

    loc: Tensor
    parameters: ClassVar[tuple[str, ...]] = ("loc",)
    sigma: ClassVar[float] = 1e-3

    @classmethod
    def of(cls, raw: dict[str, Tensor]) -> "NarrowNormal":
        """The location as it is."""
        return cls(raw["loc"])

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density."""
        return -0.5 * ((x - self.loc) / self.sigma).square() - math.log(self.sigma) - 0.5 * math.log(2 * math.pi)

    def cdf(self, x: Tensor) -> Tensor:
        """Probability of at most ``x``."""
        return normal_cdf((x - self.loc) / self.sigma)

    @property
    def mean(self) -> Tensor:
        """Expected value."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """Variance."""
        return torch.full_like(self.loc, self.sigma**2)

    def bracket(self, low: float, high: float) -> tuple[Tensor, Tensor]:
        """Bounds from the tails of the normal."""
        reach = normal_reach(low, high) * self.sigma
        return self.loc - reach, self.loc + reach


@dataclass(frozen=True)
class NegativeBinomial(Distribution):
    """Counts; its density is taken at real numbers too, as Moirai does, its distribution function steps at whole ones.

    ``logits`` are the log odds that every trial adds to the count.
    """

    total_count: Tensor
    logits: Tensor
    parameters: ClassVar[tuple[str, ...]] = ("total_count", "logits")

    @classmethod
    def of(cls, raw: dict[str, Tensor]) -> "NegativeBinomial":
        """Number of failures to wait for: softplus."""
        return cls(positive(raw["total_count"]), raw["logits"])

    def log_prob(self, x: Tensor) -> Tensor:
        """Log probability; ``-inf`` below 0."""
        inside = x >= 0
        k = torch.where(inside, x, 0.0)
        ways = torch.lgamma(self.total_count + k) - torch.lgamma(1 + k) - torch.lgamma(self.total_count)
        chance = self.total_count * F.logsigmoid(-self.logits) + k * F.logsigmoid(self.logits)
        return torch.where(inside, ways + chance, -math.inf)

    @cached_property
    def table(self) -> Tensor:
        """Probabilities of at most 0, 1, ... along a first axis: small counts, which are asked for most."""
        k = torch.arange(TABLE, dtype=self.logits.dtype, device=self.logits.device)
        return self.log_prob(k.view(-1, *(1,) * self.logits.ndim)).exp().cumsum(0).clamp(max=1)

    def cdf(self, x: Tensor) -> Tensor:
        """Probability of at most ``x``, which may have axes before those of the parameters."""
        k = x.floor()
        index = k.clamp(0, TABLE - 1).long().view(-1, *self.logits.shape)
        found = torch.where(k < 0, 0.0, self.table.gather(0, index).view(x.shape))
        far = k >= TABLE
        if bool(far.any()):
            count, chance = (p.expand_as(x)[far] for p in (self.total_count, torch.sigmoid(-self.logits)))
            found[far] = incomplete_beta(count, k[far] + 1, chance)
        return found

    @property
    def mean(self) -> Tensor:
        """Expected value."""
        return self.total_count * self.logits.exp()

    @property
    def variance(self) -> Tensor:
        """Variance."""
        return self.mean / torch.sigmoid(-self.logits)

    def bracket(self, low: float, high: float) -> tuple[Tensor, Tensor]:
        """From below 0 to Cantelli's bound."""
        return torch.full_like(self.mean, -1.0), self.mean + math.sqrt(high / (1 - high)) * self.variance.sqrt() + 1


@dataclass(frozen=True)
class LogNormal(Distribution):
    """The exponential of a normal."""

    loc: Tensor
    scale: Tensor
    parameters: ClassVar[tuple[str, ...]] = ("loc", "scale")

    @classmethod
    def of(cls, raw: dict[str, Tensor]) -> "LogNormal":
        """Scale softplus."""
        return cls(raw["loc"], positive(raw["scale"]))

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density; ``-inf`` at 0 and below."""
        inside = x > 0
        log = torch.where(inside, x, 1.0).log()
        density = -0.5 * ((log - self.loc) / self.scale).square() - self.scale.log() - 0.5 * math.log(2 * math.pi) - log
        return torch.where(inside, density, -math.inf)

    def cdf(self, x: Tensor) -> Tensor:
        """Probability of at most ``x``."""
        tiny = torch.finfo(x.dtype).tiny
        return torch.where(x > 0, normal_cdf((x.clamp(min=tiny).log() - self.loc) / self.scale), 0.0)

    @property
    def mean(self) -> Tensor:
        """Expected value."""
        return (self.loc + 0.5 * self.scale.square()).exp()

    @property
    def variance(self) -> Tensor:
        """Variance."""
        square = self.scale.square()
        return torch.expm1(square) * (2 * self.loc + square).exp()

    def bracket(self, low: float, high: float) -> tuple[Tensor, Tensor]:
        """Bounds from the tails of the normal; the exponent stays within float32."""
        reach = normal_reach(low, high) * self.scale
        return (self.loc - reach).clamp(-80, 80).exp(), (self.loc + reach).clamp(-80, 80).exp()


def incomplete_beta(a: Tensor, b: Tensor, x: Tensor, terms: int = 300) -> Tensor:
    """Regularised incomplete beta function ``I_x(a, b)`` by its continued fraction (Lentz's method), in float64.

    Args:
        a: above 0.
        b: above 0.
        x: from 0 to 1.
        terms: of the fraction, at most; about the square root of the larger of ``a`` and ``b`` are needed.
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
    found = log_front.exp() * fraction / a
    return torch.where(flipped, 1 - found, found).clamp(0, 1).to(dtype)


@dataclass(frozen=True)
class Mixture:
    """A weighted sum of distributions, moved and stretched as a whole.

    Attributes:
        log_weights: normalised, one a component.
        components: the parts.
        loc: of the whole, 0 before it is put on the scale of the data.
        scale: of the whole, 1 before.
    """

    log_weights: Float[Tensor, "*S K"]
    components: tuple[Distribution, ...]
    loc: Tensor
    scale: Tensor

    def log_prob(self, x: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
        """Log density in the units of ``x``; a component whose support excludes ``x`` drops out."""
        z = (x - self.loc) / self.scale
        parts = torch.stack([part.log_prob(z) for part in self.components], dim=-1)
        return torch.logsumexp(self.log_weights + parts, dim=-1) - self.scale.log()

    @property
    def mean(self) -> Float[Tensor, "*S"]:
        """Expected value."""
        means = torch.stack([part.mean for part in self.components], dim=-1)
        return self.loc + self.scale * (self.log_weights.exp() * means).sum(-1)

    @property
    def variance(self) -> Float[Tensor, "*S"]:
        """Variance: the components' own and that of their means."""
        weights = self.log_weights.exp()
        means = torch.stack([part.mean for part in self.components], dim=-1)
        own = (weights * torch.stack([part.variance for part in self.components], dim=-1)).sum(-1)
        centre = (weights * means).sum(-1, keepdim=True)
        return self.scale.square() * (own + (weights * (means - centre).square()).sum(-1))

    @torch.no_grad()
    def quantiles(self, levels: Sequence[float]) -> Float[Tensor, "*S Q"]:
        """Quantiles by bisection of the distribution function, without gradient; ascending as the levels are.

        All levels start from one bracket, so two of them part where one of them turns and cannot cross. The brackets
        of heavy tails are wide: they are halved on the scale of ``asinh``, linear near 0 and logarithmic far out.
        """
        bounds = [part.bracket(min(levels), max(levels)) for part in self.components]
        shape = (*self.log_weights.shape[:-1], len(levels))
        low = torch.stack([left for left, _ in bounds]).amin(0)[..., None].expand(shape).asinh()
        high = torch.stack([right for _, right in bounds]).amax(0)[..., None].expand(shape).asinh()
        asked = self.log_weights.new_tensor(levels)
        weights = self.log_weights.exp().unsqueeze(-2)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            at = sinh(middle).movedim(-1, 0)
            found = torch.stack([part.cdf(at) for part in self.components], dim=-1).movedim(0, -2)
            below = (weights * found).sum(-1) < asked
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return self.loc[..., None] + self.scale[..., None] * sinh(high)
