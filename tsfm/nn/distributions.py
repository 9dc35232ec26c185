"""Predictive distributions: Student-T, normal, negative binomial, log-normal, and their mixtures.

Shapes: ``*S`` shape of the parameters (steps), K components of a mixture, Q levels.
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

from tsfm.nn.special import incomplete_beta, normal_cdf, sinh

# Counts with tabulated probabilities.
TABLE = 64
# Halvings of the bracket around a quantile, down to the resolution of float32.
HALVINGS = 28
# Newton's method for a quantile, on the scale of ``asinh``, has converged if the bracket is narrower than BRACKET
# (relative beyond 1), or if the step and the difference of the log odds are below STEP and ODDS.
BRACKET, STEP, ODDS, MAX_STEPS = 1e-6, 2e-4, 5e-4, 60


class Distribution(ABC):
    """One distribution per step. ``of`` creates it from the outputs of a network."""

    parameters: ClassVar[tuple[str, ...]]
    is_discrete: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def of(cls, raw: dict[str, Tensor]) -> "Distribution":
        """From unbounded outputs, one tensor per parameter."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Log density; ``-inf`` outside the support."""

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

    def cdf_and_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Probability of at most ``x`` and its derivative."""
        return self.cdf(x), self.log_prob(x).exp()

    @abstractmethod
    def bracket(self, levels: Float[Tensor, "Q 1"]) -> tuple[Tensor, Tensor]:
        """Lower and upper bound of the quantile of every level, [Q, S], for parameters of shape [S]."""

    def take(self, chosen: Tensor) -> "Distribution":
        """The distributions of some of the steps, for parameters of shape [S]."""
        return type(self)(*(getattr(self, name)[chosen] for name in self.parameters))


def positive(raw: Tensor) -> Tensor:
    """Softplus, at least the machine epsilon."""
    return F.softplus(raw).clamp(min=torch.finfo(raw.dtype).eps)


@dataclass(frozen=True)
class StudentT(Distribution):
    """Student's t with more than two degrees of freedom, location and scale."""

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
        return -(self.df / 2 + 0.5) * torch.log1p(((x - self.loc) / self.scale).square() / self.df) - self.log_norm

    @cached_property
    def log_norm(self) -> Tensor:
        """Minus the log density at the centre."""
        half = self.df / 2
        return self.scale.log() + 0.5 * (self.df * math.pi).log() + torch.lgamma(half) - torch.lgamma(half + 0.5)

    def cdf(self, x: Tensor) -> Tensor:
        """Hill's expansion (1970, Algorithm 395); error at most 2.1e-4 for 2 degrees of freedom, 2e-7 for 5."""
        t = (x - self.loc) / self.scale
        return self._hill(t, torch.log1p(t.square() / self.df))

    def cdf_and_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Probability and density, which share a logarithm."""
        t = (x - self.loc) / self.scale
        log = torch.log1p(t.square() / self.df)
        return self._hill(t, log), (-(self.df / 2 + 0.5) * log - self.log_norm).exp()

    def _hill(self, t: Tensor, log: Tensor) -> Tensor:
        a = self.df - 0.5
        y = a * log
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

    def bracket(self, levels: Float[Tensor, "Q 1"]) -> tuple[Tensor, Tensor]:
        """Quantiles of the normal and of two degrees of freedom, both in closed form, with a margin."""
        near = 0.98 * torch.special.ndtri(levels)
        far = 1.03 * (2 * levels - 1) / (2 * levels * (1 - levels)).sqrt()
        low, high = torch.minimum(near, far) - 0.01, torch.maximum(near, far) + 0.01
        return self.loc + low * self.scale, self.loc + high * self.scale


@dataclass(frozen=True)
class NarrowNormal(Distribution):
    """Normal with a fixed standard deviation of 0.001, for values that are almost certain."""

    loc: Tensor
    parameters: ClassVar[tuple[str, ...]] = ("loc",)
    sigma: ClassVar[float] = 1e-3

    @classmethod
    def of(cls, raw: dict[str, Tensor]) -> "NarrowNormal":
        """The location without a transformation."""
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

    def bracket(self, levels: Float[Tensor, "Q 1"]) -> tuple[Tensor, Tensor]:
        """The quantile itself, and a little more."""
        z = torch.special.ndtri(levels)
        return self.loc + (z - 0.01) * self.sigma, self.loc + (z + 0.01) * self.sigma


@dataclass(frozen=True)
class NegativeBinomial(Distribution):
    """Counts. The density is also defined for real numbers (as in Moirai), the distribution function has steps.

    ``logits`` are the log odds that a trial adds to the count.
    """

    total_count: Tensor
    logits: Tensor
    parameters: ClassVar[tuple[str, ...]] = ("total_count", "logits")
    is_discrete: ClassVar[bool] = True

    @classmethod
    def of(cls, raw: dict[str, Tensor]) -> "NegativeBinomial":
        """Total count (failures until the end) by softplus."""
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
        """Probabilities of at most 0, 1, ... along a first axis, for small counts, which are the most frequent."""
        k = torch.arange(TABLE, dtype=self.logits.dtype, device=self.logits.device)
        return self.log_prob(k.view(-1, *(1,) * self.logits.ndim)).exp().cumsum(0).clamp(max=1)

    def cdf(self, x: Tensor) -> Tensor:
        """Probability of at most ``x``, which may have axes before those of the parameters."""
        k = x.floor()
        index = k.clamp(0, TABLE - 1).long().view(-1, *self.logits.shape)
        probability = torch.where(k < 0, 0.0, self.table.gather(0, index).view(x.shape))
        far = k >= TABLE
        if bool(far.any()):
            count, chance = (p.expand_as(x)[far] for p in (self.total_count, torch.sigmoid(-self.logits)))
            probability[far] = incomplete_beta(count, k[far] + 1, chance)
        return probability

    @property
    def mean(self) -> Tensor:
        """Expected value."""
        return self.total_count * self.logits.exp()

    @property
    def variance(self) -> Tensor:
        """Variance."""
        return self.mean / torch.sigmoid(-self.logits)

    def bracket(self, levels: Float[Tensor, "Q 1"]) -> tuple[Tensor, Tensor]:
        """From below 0 to Cantelli's bound."""
        high = self.mean + (levels / (1 - levels)).sqrt() * self.variance.sqrt() + 1
        return torch.full_like(high, -1.0), high


@dataclass(frozen=True)
class LogNormal(Distribution):
    """The exponential of a normal variable."""

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

    def bracket(self, levels: Float[Tensor, "Q 1"]) -> tuple[Tensor, Tensor]:
        """The quantile itself, and a little more; the exponent stays within float32."""
        z = torch.special.ndtri(levels)
        low, high = (self.loc + (z + more) * self.scale for more in (-0.01, 0.01))
        return low.clamp(-80, 80).exp(), high.clamp(-80, 80).exp()


@dataclass(frozen=True)
class Mixture:
    """A mixture of distributions on the scale of the data.

    Attributes:
        log_weights: normalised log weights of the components.
        components: the distributions, on the normalised scale.
        loc: location of the data.
        scale: scale of the data.
    """

    log_weights: Float[Tensor, "*S K"]
    components: tuple[Distribution, ...]
    loc: Tensor
    scale: Tensor

    def log_prob(self, x: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
        """Log density in the units of ``x``; a component whose support excludes ``x`` contributes nothing."""
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
        """Variance: within components plus between their means."""
        weights = self.log_weights.exp()
        means = torch.stack([part.mean for part in self.components], dim=-1)
        own = (weights * torch.stack([part.variance for part in self.components], dim=-1)).sum(-1)
        centre = (weights * means).sum(-1, keepdim=True)
        return self.scale.square() * (own + (weights * (means - centre).square()).sum(-1))

    @torch.no_grad()
    def quantiles(self, levels: Sequence[float]) -> Float[Tensor, "*S Q"]:
        """Ascending quantiles at ascending levels, without gradient."""
        shape = self.log_weights.shape[:-1]
        parts = [
            type(part)(*(getattr(part, name).expand(shape).flatten() for name in part.parameters))
            for part in self.components
        ]
        level_Q1 = self.log_weights.new_tensor(levels)[:, None]
        quantiles = find_quantiles(parts, self.log_weights.exp().flatten(0, -2), level_Q1)
        return self.loc[..., None] + self.scale[..., None] * quantiles.T.unflatten(0, shape)


def find_quantiles(
    parts: list[Distribution], weights_SK: Float[Tensor, "S K"], level_Q1: Float[Tensor, "Q 1"]
) -> Float[Tensor, "Q S"]:
    """Quantiles of the mixtures of S steps.

    A quantile of a mixture lies between those of its components. The brackets of heavy tails are wide, so the search is
    on the scale of ``asinh``, which is linear near 0 and logarithmic far from it.
    """
    bounds = [part.bracket(level_Q1) for part in parts]
    low = torch.stack([left for left, _ in bounds]).amin(0).asinh()
    high = torch.stack([right for _, right in bounds]).amax(0).asinh()
    weights = list(weights_SK.unbind(-1))
    if any(part.is_discrete for part in parts):
        quantiles = bisect(parts, weights, level_Q1, low, high)
    else:
        centres = (weight * (left + right) / 2 for weight, (left, right) in zip(weights, bounds, strict=True))
        start = sum(centres, torch.zeros_like(low)).asinh()
        quantiles = newton(parts, weights, level_Q1, low, high, torch.minimum(torch.maximum(start, low), high))
    return sinh(quantiles.cummax(0).values)  # quantiles must not cross by rounding


def bisect(
    parts: list[Distribution], weights: list[Tensor], level_Q1: Float[Tensor, "Q 1"], low: Tensor, high: Tensor
) -> Float[Tensor, "Q S"]:
    """Bisection."""
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        x, chance = sinh(middle), torch.zeros_like(middle)
        for part, weight in zip(parts, weights, strict=True):
            chance = chance.addcmul(weight, part.cdf(x))
        below = chance < level_Q1
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return high


def newton(
    parts: list[Distribution],
    weights: list[Tensor],
    level_Q1: Float[Tensor, "Q 1"],
    low: Tensor,
    high: Tensor,
    at: Tensor,
) -> Float[Tensor, "Q S"]:
    """Newton's method on the log odds, which are almost linear in the tails.

    If a step would leave the bracket or is not much shorter than the last, the bracket is halved instead. Mixtures
    whose quantiles have all converged are left out.
    """
    eps, odds = torch.finfo(level_Q1.dtype).eps, torch.logit(level_Q1)
    last, done = 2 * (high - low), torch.zeros_like(low, dtype=torch.bool)
    quantiles, steps = torch.empty_like(at), torch.arange(at.shape[1], device=at.device)
    for _ in range(MAX_STEPS):
        x = sinh(at)
        chance, slope = torch.zeros_like(x), torch.zeros_like(x)
        for part, weight in zip(parts, weights, strict=True):
            probability, density = part.cdf_and_slope(x)
            chance, slope = chance.addcmul(weight, probability), slope.addcmul(weight, density)
        below = chance < level_Q1
        low, high = torch.where(below, at, low), torch.where(below, high, at)
        chance = chance.clamp(eps, 1 - eps)
        missing = odds - torch.logit(chance)
        step = missing * chance * (1 - chance) / (slope * (1 + x.square()).sqrt())
        new, narrow = at + step, high - low <= BRACKET * high.abs().clamp(min=1)
        newton = (new >= low) & (new <= high) & (2 * step.abs() <= last)
        new = torch.where(newton, new, torch.where(narrow, high, (low + high) / 2))
        new = torch.where(done, at, new)
        last, at = (new - at).abs(), new
        done = done | narrow | (newton & (last < STEP) & (missing.abs() < ODDS))
        live = ~done.all(0)
        count = int(live.sum())
        if count == 0:
            break
        if count < 0.7 * len(steps):
            quantiles[:, steps] = at
            steps, parts, weights = steps[live], [part.take(live) for part in parts], [w[live] for w in weights]
            at, low, high, last, done = (x[:, live] for x in (at, low, high, last, done))
    quantiles[:, steps] = at
    return quantiles
