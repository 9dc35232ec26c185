"""Quantiles never cross, any level is answered, and conformal intervals cover what they promise."""

import numpy as np
import pytest
import torch

from tsfm.nn.heads import ConformalIntervals, PointHead, QuantileHead
from tsfm.nn.quantiles import check_levels, interpolate_quantiles, mean_of_quantiles, median_in_time
from tsfm_data.errors import InputError
from tsfm_data.evaluation.elements import quantile_at


def test_when_the_quantile_head_has_any_weights_then_its_quantiles_never_cross() -> None:
    torch.manual_seed(0)
    head = QuantileHead(8, 5, (0.05, 0.3, 0.5, 0.8, 0.99))
    torch.nn.init.normal_(head.projection.weight, std=10)
    quantiles = head(torch.randn(4, 3, 8) * 5)
    assert quantiles.shape == (4, 5, 3, 5)
    assert (quantiles.diff(dim=-1) >= 0).all()


def test_when_quantiles_are_those_of_an_exponential_then_tails_beyond_the_known_levels_are_exact() -> None:
    known, asked = (0.5, 0.8, 0.9), (0.95, 0.99)
    values = -torch.log1p(-torch.tensor([known], dtype=torch.float64))
    expected = -torch.log1p(-torch.tensor([asked], dtype=torch.float64))
    torch.testing.assert_close(interpolate_quantiles(values, known, asked), expected)


def test_when_levels_lie_between_known_ones_then_quantiles_are_linear_and_known_ones_are_kept() -> None:
    found = interpolate_quantiles(torch.tensor([[0.0, 1.0, 3.0]]), (0.1, 0.5, 0.9), (0.1, 0.3, 0.5, 0.7, 0.9))
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.5, 1.0, 2.0, 3.0]]))


@pytest.mark.parametrize(
    "known", [(0.1, 0.5, 0.9), (0.05, 0.15, 0.5, 0.85, 0.95), (0.01, 0.05, *(k / 10 for k in range(1, 10)), 0.95, 0.99)]
)
def test_models_and_evaluation_interpolate_by_one_rule_tails_included(known: tuple[float, ...]) -> None:
    values = np.sort(np.random.default_rng(0).normal(size=(7, len(known))))
    asked = [k / 200 for k in range(1, 200)]
    by_model = interpolate_quantiles(torch.from_numpy(values), known, asked).numpy()
    by_evaluation = np.stack([quantile_at(values, known, level) for level in asked], axis=-1)
    np.testing.assert_allclose(by_evaluation, by_model, rtol=0, atol=1e-5)
    assert (np.diff(by_evaluation) >= 0).all()


def test_when_levels_are_outside_the_unit_interval_then_the_error_says_so() -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        check_levels([0.5, 1.0])
    with pytest.raises(InputError, match="distinct"):
        check_levels([0.5, 0.5])


def test_when_residuals_are_exchangeable_then_a_new_value_is_covered_as_often_as_promised() -> None:
    generator = torch.Generator().manual_seed(1)
    intervals = ConformalIntervals(2)
    assert not intervals.calibrated
    residuals = torch.randn(20_000, 2, generator=generator) * torch.tensor([1.0, 3.0])
    intervals.calibrate(residuals, torch.ones_like(residuals, dtype=torch.bool))
    new = torch.randn(50_000, 2, generator=generator) * torch.tensor([1.0, 3.0])
    low, high = intervals.quantiles(torch.zeros(1, 2, 1), (0.1, 0.9)).unbind(-1)
    covered = ((new >= low[0, :, 0]) & (new <= high[0, :, 0])).float().mean(0)
    torch.testing.assert_close(covered, torch.full((2,), 0.8), atol=0.01, rtol=0)


def test_when_few_residuals_are_known_then_the_finite_sample_rank_is_taken() -> None:
    intervals = ConformalIntervals(1)
    sizes = torch.arange(1.0, 10.0)[:, None]  # nine scores: coverage 0.8 is the ceil(10 * 0.8) = 8th
    intervals.calibrate(sizes, torch.ones_like(sizes, dtype=torch.bool))
    quantiles = intervals.quantiles(torch.zeros(1, 1, 1), (0.1, 0.5, 0.9))
    torch.testing.assert_close(quantiles.flatten(), torch.tensor([-8.0, 0.0, 8.0]))


def test_when_a_step_has_no_validation_value_then_calibration_says_which() -> None:
    intervals = ConformalIntervals(2)
    with pytest.raises(InputError, match="step 2"):
        intervals.calibrate(torch.zeros(3, 2), torch.tensor([[True, False]] * 3))


def test_when_values_are_missing_then_the_point_loss_leaves_them_out() -> None:
    output = torch.tensor([[[[1.0]], [[5.0]]]])
    target, observed = torch.zeros(1, 2, 1), torch.tensor([[[True], [False]]])
    assert PointHead.loss(output, target, observed).item() == 1.0


def test_when_one_level_is_the_median_then_the_quantile_loss_is_the_absolute_error() -> None:
    head = QuantileHead(4, 1, (0.5,))
    loss = head.loss(torch.tensor([[[[2.0]]]]), torch.tensor([[[-1.0]]]), torch.ones(1, 1, 1, dtype=torch.bool))
    assert loss.item() == pytest.approx(3.0)


@pytest.mark.parametrize("known", [(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), (0.01, 0.5, 0.8), (0.3, 0.7)])
def test_when_quantiles_are_known_then_their_mean_is_the_integral_of_the_rule_for_all_levels(
    known: tuple[float, ...],
) -> None:
    values = torch.rand(3, len(known), dtype=torch.float64).exp().cumsum(-1)
    count = 20_000
    asked = tuple((i + 0.5) / count for i in range(count))
    sampled = interpolate_quantiles(values, known, asked).mean(-1)
    torch.testing.assert_close(mean_of_quantiles(values, known), sampled, atol=1e-3, rtol=1e-3)


def test_when_a_distribution_is_exponential_then_its_mean_comes_out_of_its_deciles() -> None:
    deciles = torch.arange(1, 10, dtype=torch.float64) / 10
    found = mean_of_quantiles(-torch.log1p(-deciles), tuple(deciles.tolist()))
    assert abs(found.item() - 1) < 0.02


def test_when_values_are_missing_then_the_median_in_time_is_that_of_the_others() -> None:
    x = torch.randn(5, 30, 3, generator=torch.Generator().manual_seed(0))
    x[1, 4:9], x[2, :, 1], x[3, 1:] = torch.nan, torch.nan, torch.nan
    assert torch.equal(median_in_time(x).nan_to_num(9.0), x.nanmedian(1, keepdim=True).values.nan_to_num(9.0))
