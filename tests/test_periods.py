"""Seasons found in the spectrum."""

import math

import pytest
import torch

from tsfm.models.zeroshot import periods
from tsfm.models.zeroshot.folds import History
from tsfm.models.zeroshot.periods import (
    autocorrelation,
    detrend,
    find_periods,
    lag_products,
    lag_products_by_matrices,
    length_of,
)

STEPS = 512


def observed(x: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(x, dtype=torch.bool)


def waves(period: float, rows: int = 16, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    phase = torch.rand(rows, 1, generator=generator) * 2 * math.pi
    time = torch.arange(STEPS)
    noise = 0.5 * torch.randn(rows, STEPS, generator=generator)
    return torch.sin(2 * math.pi * time / period + phase) + noise


@pytest.mark.parametrize("period", [4, 7, 12, 24, 52, 96, 168])
def test_when_a_wave_is_noisy_then_its_period_is_found(period: int) -> None:
    found, score = find_periods(waves(period), observed(waves(period)))
    assert ((found[:, 0] - period).abs() <= 1 + period // 24).float().mean() >= 0.9
    assert (score[:, 0] > 0.3).all()


def test_when_a_trend_hides_the_season_then_it_is_still_found() -> None:
    x = waves(12) + 0.2 * torch.arange(STEPS)
    assert (find_periods(x, observed(x))[0][:, 0] == 12).all()


def test_when_a_week_modulates_the_day_then_both_are_found() -> None:
    time = torch.arange(STEPS)
    day = torch.sin(2 * math.pi * time / 24)
    x = (day * (1 + 0.8 * ((time // 24) % 7 < 5)))[None] + 0.1 * waves(1e9)
    found, _ = find_periods(x, observed(x))
    assert (found == torch.tensor([24, 168])).float().mean() > 0.9


def test_when_there_is_no_season_then_most_rows_have_none() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(200, STEPS, generator=generator)
    assert (find_periods(noise, observed(noise))[0][:, 0] == 0).float().mean() > 0.75
    walk = noise.cumsum(1)
    _, score = find_periods(walk, observed(walk))
    assert score[:, 0].median() < 0.2


@pytest.mark.parametrize("steps", [60, 200, 512, 1500])
def test_when_series_are_random_walks_then_hardly_one_has_a_season_and_planted_ones_are_found(steps: int) -> None:
    generator = torch.Generator().manual_seed(steps)
    walk = torch.randn(2000, steps, generator=generator).cumsum(1)
    assert (find_periods(walk, observed(walk), 3)[0] > 0).any(1).float().mean() <= 0.05
    phase = 2 * math.pi * torch.rand(len(walk), 1, generator=generator)
    planted = walk + 3 * torch.sin(2 * math.pi * torch.arange(steps) / 12 + phase)
    assert ((find_periods(planted, observed(walk), 3)[0] - 12).abs() <= 1).any(1).float().mean() >= 0.9


def test_when_values_are_missing_then_the_period_is_found_in_the_others() -> None:
    x = waves(24)
    seen = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) > 0.3
    assert ((find_periods(torch.where(seen, x, 0.0), seen)[0][:, 0] - 24).abs() <= 2).all()


def test_when_less_than_two_periods_are_seen_then_there_is_none() -> None:
    x = waves(48)
    seen = observed(x)
    seen[:, :-90] = False
    found, _ = find_periods(torch.where(seen, x, 0.0), seen)
    assert (found[:, 0] <= 45).all()
    assert length_of(seen).tolist() == [90] * len(x)


def test_when_computed_by_fourier_then_the_autocorrelation_is_the_sum_over_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    seen = torch.rand(3, 40, generator=generator) > 0.2
    x = detrend(torch.where(seen, torch.randn(3, 40, generator=generator).cumsum(1), 0.0), seen)
    found = autocorrelation(x, seen)
    for row in range(3):
        variance = x[row].square().sum() / seen[row].sum()
        for lag in range(30):
            pairs = seen[row, lag:] & seen[row, : 40 - lag]
            expected = (x[row, lag:] * x[row, : 40 - lag]).sum() / pairs.sum() / variance
            assert found[row, lag].item() == pytest.approx(expected.item(), abs=1e-4)


def test_when_rows_have_no_gaps_then_their_lengths_tell_the_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    x = waves(24.0, rows=5)
    seen = torch.arange(STEPS) >= torch.tensor([0, 3, 300, STEPS - 1, STEPS])[:, None]  # the last one is empty
    x = detrend(torch.where(seen, x, 0.0), seen)
    assert periods.without_gaps(seen)
    found = autocorrelation(x, seen)
    monkeypatch.setattr(periods, "without_gaps", lambda _: False)
    torch.testing.assert_close(found, autocorrelation(x, seen), atol=1e-6, rtol=1e-6)
    seen[0, 7] = False
    monkeypatch.undo()
    assert not periods.without_gaps(seen)


@pytest.mark.parametrize("steps", [1, 2, 7, 32, 100, STEPS])
def test_when_lag_products_are_made_of_matrices_as_in_exports_then_they_are_those_of_the_spectrum(steps: int) -> None:
    x = torch.randn(3, steps, generator=torch.Generator().manual_seed(1))
    expected = lag_products(x)
    assert ((lag_products_by_matrices(x) - expected).abs() <= 1e-6 * expected[:, :1]).all()


def test_when_a_row_is_constant_or_empty_then_nothing_is_found() -> None:
    x = torch.zeros(2, STEPS)
    seen = observed(x)
    seen[1] = False
    found, score = find_periods(x, seen)
    assert not found.any()
    assert not score.any()


def nights(days: int, open_steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Days of 48 steps that differ by weekday, of which only the first steps are observed."""
    time = torch.arange(48 * days)
    x = torch.sin(math.pi * (time % 48) / open_steps) * (1 + 0.5 * ((time // 48) % 7 < 5)) + 0.1 * waves(1e9, 4)[:, :1]
    noise = torch.randn(4, len(time), generator=torch.Generator().manual_seed(2))
    seen = (time % 48 < open_steps).expand(4, -1)
    return torch.where(seen, x + 0.1 * noise, 0.0), seen


def test_when_every_night_is_missing_then_the_week_is_found_and_no_lag_with_few_pairs() -> None:
    found, score = find_periods(*nights(70, 18), 3)
    assert (found == torch.tensor([48, 336, 0])).all()
    assert (score <= 1).all()


def test_when_every_night_is_missing_then_the_mean_of_a_day_is_that_of_its_open_hours() -> None:
    x, seen = nights(14, 18)
    day = torch.full((4, 1), 48)
    mean, counts = History(x, x, seen, day).levels
    torch.testing.assert_close(mean[:, 48::48], x.unflatten(1, (14, 48))[..., :18].mean(-1), atol=1e-4, rtol=1e-4)
    assert counts[:, 48:].eq(1).all()
    seen = seen.clone()
    seen[:, -48:] = False  # a day without any value
    _, counts = History(torch.where(seen, x, 0.0), torch.where(seen, x, 0.0), seen, day).levels
    assert counts[:, -1].eq(0).all()


def test_when_the_calendar_knows_a_season_then_a_period_beside_it_becomes_this_season() -> None:
    x = waves(52)
    assert (find_periods(x, observed(x))[0][:, 0] != 52).any()
    assert (find_periods(x, observed(x), 1, (52,))[0] == 52).all()
    x = waves(60)  # 15 % away
    assert ((find_periods(x, observed(x), 1, (52,))[0] - 60).abs() <= 3).all()


def test_when_noise_makes_several_weeks_look_better_than_one_then_the_calendar_tells_that_it_is_one() -> None:
    x = torch.randn(64, STEPS, generator=torch.Generator().manual_seed(3))
    for step in range(1, STEPS):
        x[:, step] += 0.7 * x[:, step - 1]
    x = 5 * x + torch.tensor([0.0, 3, -2, 1, 0, -3, 1])[torch.arange(STEPS) % 7]
    assert (find_periods(x, observed(x), 1)[0] == 7).float().mean() < 0.7
    assert (find_periods(x, observed(x), 1, (7, 365))[0] == 7).float().mean() > 0.9


def test_when_two_weeks_of_five_minutes_are_seen_then_day_and_week_are_found() -> None:
    time = torch.arange(16 * 288)
    day = torch.sin(2 * math.pi * time / 288).clamp(min=0) * (1 - 0.5 * (time // 288 % 7 >= 5))
    x = day + 0.2 * torch.randn(8, len(time), generator=torch.Generator().manual_seed(4))
    found, score = find_periods(x, observed(x), 3, (12, 288, 2016, 105192))
    assert (found == torch.tensor([288, 2016, 0])).all()
    assert (score[:, :2] > 0.1).all()


@pytest.mark.parametrize("seasons", [(7, 365), (24, 168, 8766), (12,), (5, 21, 261), (288, 2016)])
def test_when_the_calendar_is_wrong_then_the_period_of_the_series_is_still_found(seasons: tuple[int, ...]) -> None:
    noise = torch.randn(200, STEPS, generator=torch.Generator().manual_seed(5))
    x = noise + 2 * waves(33.0, 200)
    period, score = find_periods(x, observed(x), 3)
    found, found_score = find_periods(x, observed(x), 3, seasons)
    same = (period == found)[:, 0] & (score == found_score)[:, 0]
    assert same.float().mean() > 0.95


@pytest.mark.parametrize(("steps", "expected"), [(26, []), (28, [24]), (38, [24]), (200, [24, 168])])
def test_when_a_history_is_too_short_to_show_a_season_then_the_calendar_is_believed(
    steps: int, expected: list[int]
) -> None:
    x = waves(24)[:, :steps]
    period, score = find_periods(x, observed(x), 3, (24, 168, 8766))
    assert all((period == season).any(1).all() for season in expected)
    assert all((period != season).all() for season in {24, 168} - set(expected))
    assert ((score > 0) == (period > 0)).all()


def test_when_no_season_fits_into_the_history_then_nothing_changes() -> None:
    x = waves(24)
    found, expected = find_periods(x, observed(x), 3, (1, 500, 8766)), find_periods(x, observed(x), 3)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
