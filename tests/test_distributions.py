"""Own distributions: densities integrate to their distribution functions, quantiles invert those of mixtures."""

import math
from typing import Any

import pytest
import torch

from tsfm.nn.distributions import Distribution, LogNormal, Mixture, NarrowNormal, NegativeBinomial, StudentT

LEVELS = (0.01, 0.1, 0.5, 0.9, 0.99)


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def span(part: Distribution, tail: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Bounds beyond which no more than a tail is."""
    low, high = part.bracket(column(tail, 1 - tail))
    return low[:1], high[1:]


CONTINUOUS = {
    "student at 2 degrees": (StudentT(column(2.0), column(0.3), column(0.7)), 2.1e-4),
    "student at 5 degrees": (StudentT(column(5.0), column(-1.0), column(2.0)), 1e-6),
    "student at 300 degrees": (StudentT(column(300.0), column(0.0), column(1.0)), 1e-6),
    "narrow normal": (NarrowNormal(column(0.0005)), 1e-6),
    "log-normal": (LogNormal(column(0.2), column(0.8)), 1e-6),
}


@pytest.mark.parametrize("name", CONTINUOUS)
def test_when_a_density_is_integrated_then_the_distribution_function_comes_out(name: str) -> None:
    part, tolerance = CONTINUOUS[name]
    low, high = span(part, 1e-6) if name != "student at 2 degrees" else (column(-3000.0), column(3000.0))
    grid = torch.asinh(low * 1e3) / 1 + (torch.asinh(high * 1e3) - torch.asinh(low * 1e3)) * torch.linspace(
        0, 1, 400_001, dtype=torch.float64
    )
    x = torch.sinh(grid) / 1e3
    density = part.log_prob(x).exp()
    summed = torch.cat([torch.zeros(1, 1), torch.cumulative_trapezoid(density, x)], dim=1) + part.cdf(x[:, :1])
    assert (summed - part.cdf(x)).abs().max() < tolerance
    assert (part.cdf(x).diff() >= 0).all()


@pytest.mark.parametrize(("count", "logits"), [(0.3, -1.0), (4.5, 0.7), (250.0, -2.0), (9000.0, -3.0)])
def test_when_probabilities_of_counts_are_summed_then_the_distribution_function_comes_out(
    count: float, logits: float
) -> None:
    part = NegativeBinomial(torch.tensor(count).double(), torch.tensor(logits).double())
    k = torch.arange(0, 3000, dtype=torch.float64)
    torch.testing.assert_close(part.cdf(k), part.log_prob(k).exp().cumsum(0), atol=1e-9, rtol=0)
    assert part.log_prob(torch.tensor(-0.1)).item() == -math.inf
    assert part.cdf(torch.tensor(-0.1)).item() == 0
    chance = part.log_prob(k).exp()
    torch.testing.assert_close((chance * k).sum(), part.mean)
    torch.testing.assert_close((chance * (k - part.mean).square()).sum(), part.variance)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_when_moments_are_asked_then_they_are_those_of_the_density(name: str) -> None:
    part, _ = CONTINUOUS[name]
    if name == "student at 2 degrees":
        assert part.variance.isinf().all()
        return
    low, high = span(part, 1e-9)
    x = low + (high - low) * torch.linspace(0, 1, 2_000_001, dtype=torch.float64)
    density = part.log_prob(x).exp()
    torch.testing.assert_close(torch.trapezoid(density * x, x), part.mean[0], atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(
        torch.trapezoid(density * (x - part.mean).square(), x), part.variance[0], atol=1e-12, rtol=1e-2
    )


def mixture(*parts: Distribution, loc: float = 0.0, scale: float = 1.0) -> Mixture:
    weights = torch.full((1, len(parts)), -math.log(len(parts)), dtype=torch.float64)
    return Mixture(weights, parts, torch.tensor([loc]).double(), torch.tensor([scale]).double())


def flat(part: Distribution) -> Distribution:
    return type(part)(*(getattr(part, name)[:, 0] for name in part.parameters))


def test_when_quantiles_of_a_mixture_far_apart_are_asked_then_its_distribution_function_is_inverted() -> None:
    parts = [
        StudentT(torch.tensor([3.0]), torch.tensor([centre]), torch.tensor([0.1])) for centre in (-50.0, 0.0, 70.0)
    ]
    parts = [StudentT(p.df.double(), p.loc.double(), p.scale.double()) for p in parts]
    found = mixture(*parts, loc=10.0, scale=2.0).quantiles(LEVELS)
    z = (found - 10) / 2
    probability = torch.stack([part.cdf(z) for part in parts]).mean(0)
    torch.testing.assert_close(probability, torch.tensor([LEVELS]).double(), atol=1e-5, rtol=0)
    assert (found.diff(dim=-1) > 0).all()


def test_when_all_four_families_are_mixed_then_the_density_is_their_weighted_sum_on_the_scale() -> None:
    parts = [flat(CONTINUOUS[name][0]) for name in ("student at 5 degrees", "narrow normal", "log-normal")]
    parts.append(NegativeBinomial(torch.tensor([2.0]).double(), torch.tensor([0.5]).double()))
    mixed = mixture(*parts, loc=3.0, scale=4.0)
    for x in (-2.0, 3.002, 9.0):
        z = torch.tensor([(x - 3) / 4]).double()
        expected = (sum(part.log_prob(z).exp() for part in parts) / 4 / 4).log()
        torch.testing.assert_close(mixed.log_prob(torch.tensor([x]).double()), expected)
    quantiles = mixed.quantiles(LEVELS)
    below = torch.stack([part.cdf((quantiles.T - 3) / 4).T for part in parts]).mean(0)
    assert (below >= torch.tensor([LEVELS]) - 1e-6).all()  # the counts step, so more may be below
    less = torch.stack([part.cdf((quantiles.T - 1e-4 - 3) / 4).T for part in parts]).mean(0)
    assert (less <= torch.tensor([LEVELS]) + 1e-6).all()


def random_mixture(spread: float, counts: bool) -> Mixture:
    """Mixtures of [7, 40] steps in float32, their parts close together or far apart."""
    g = torch.Generator().manual_seed(0)

    def draw(factor: float, shift: float = 0.0) -> torch.Tensor:
        return torch.randn(7, 40, generator=g) * factor + shift

    kinds: list[Any] = [StudentT, NarrowNormal, NegativeBinomial, LogNormal] if counts else 4 * [StudentT]
    raw = [
        {"df": draw(2), "loc": draw(spread), "scale": draw(1.5, -1), "total_count": draw(2), "logits": draw(1)}
        for _ in kinds
    ]
    parts = tuple(kind.of(numbers) for kind, numbers in zip(kinds, raw, strict=True))
    weights = (1.5 * torch.randn(7, 40, 4, generator=g)).log_softmax(-1)
    return Mixture(weights, parts, torch.zeros(7, 1), torch.ones(7, 1))


@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.parametrize("spread", [0.5, 5.0])
def test_when_quantiles_of_any_mixture_are_asked_then_they_are_those_of_a_plain_bisection(
    spread: float, counts: bool
) -> None:
    mixed = random_mixture(spread, counts)
    found = mixed.quantiles(LEVELS)
    assert (found.diff(dim=-1) >= 0).all()

    def chance(x: torch.Tensor) -> torch.Tensor:
        parts = torch.stack([part.cdf(x.movedim(-1, 0)).movedim(0, -1) for part in mixed.components])
        return (mixed.log_weights.exp().movedim(-1, 0)[..., None] * parts).sum(0)

    asked = torch.tensor(LEVELS)
    low, high = torch.full_like(found, -20.0), torch.full_like(found, 20.0)  # asinh of 2e8
    for _ in range(40):
        middle = (low + high) / 2
        below = chance(middle.sinh()) < asked
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    expected = high.sinh()
    # Where the probability hardly rises, float32 does not tell the place of a quantile.
    flat = (chance(found) - asked).abs() < 2e-6
    close = (found - expected).abs() <= 1e-5 * expected.abs().clamp(min=1)
    assert (close | flat).all()
    assert close.float().mean() > 0.99
