"""What the long-history decoder sees, what its simple forecasts continue, and that odd histories do no harm."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tsfm.models.zeroshot.folds import PLAIN, History, fold
from tsfm.models.zeroshot.history_tokens import LongHistoryConfig, make_layout, token_values
from tsfm.models.zeroshot.long_history import LongHistoryDecoder
from tsfm.models.zeroshot.periods import find_periods
from tsfm.nn import asinh, sinh
from tsfm_data.evaluation import forecast_windows
from tsfm_data.windows import Batch

CONFIG = LongHistoryConfig()
CPU = torch.device("cpu")


def forecasts(x: torch.Tensor, period: torch.Tensor, origin: int, ahead: int) -> torch.Tensor:
    """The simple forecasts of the first row, before asinh: [candidates, steps]."""
    history = History(asinh(x).nan_to_num(), x.nan_to_num(), ~x.isnan(), period)
    step = origin + torch.arange(ahead)
    found = fold(history, torch.tensor([origin]), torch.zeros_like(step), step)
    return sinh(history.candidates(found.plain, found.seasonal)[:, 0])


def batch_of(past: torch.Tensor, horizon: int) -> Batch:
    return Batch(past, ~past.isnan(), horizon)


@given(history=st.integers(1, 10_000), future=st.integers(0, 800))
@settings(max_examples=60, deadline=None)
def test_the_tokens_cover_the_history_and_their_number_is_bounded(history: int, future: int) -> None:
    layout = make_layout(CONFIG, history, future, CPU)
    reach = CONFIG.detail + sum(rate * count * CONFIG.patch_size for rate, count in CONFIG.distant)
    ahead = -(-future // CONFIG.patch_size)
    assert layout.steps - ahead * CONFIG.patch_size >= min(history, reach)
    assert len(layout.end) - ahead <= CONFIG.detail // CONFIG.patch_size + sum(count for _, count in CONFIG.distant)
    assert layout.end.tolist() == (layout.rate * CONFIG.patch_size).cumsum(0).tolist()
    assert (layout.rate.diff() <= 0).all()  # distant tokens are the coarse ones


def test_a_distant_token_holds_means_of_the_values_that_are_seen() -> None:
    layout = make_layout(CONFIG, 2048, 0, CPU)
    x = torch.arange(layout.steps, dtype=torch.float32)[None]
    seen = torch.ones_like(x, dtype=torch.bool)
    seen[:, 1] = False
    values, share = token_values(torch.where(seen, x, 0.0), seen, layout, CONFIG.patch_size)
    rate = int(layout.rate[0])
    assert rate > 1
    first = [i for i in range(rate) if i != 1]
    assert values[0, 0, 0] == pytest.approx(sum(first) / len(first))
    assert share[0, 0, 0] == pytest.approx(len(first) / rate)
    assert share[0, 1:].eq(1).all()


@pytest.mark.parametrize(("day", "days"), [(24, 7), (96, 7), (288, 7), (288, 5)])
def test_a_week_that_repeats_is_continued_exactly_by_one_of_the_simple_forecasts(day: int, days: int) -> None:
    generator = torch.Generator().manual_seed(day)
    daily = torch.sin(torch.arange(day) * 2 * math.pi / day)
    week = (daily + 0.3 * torch.randn(days, day, generator=generator)).flatten()
    steps, ahead = 4096, 48
    x = week.repeat(-(-(steps + ahead) // len(week)))[None, : steps + ahead]
    past = x[:, :steps]
    period, _ = find_periods(past, torch.ones_like(past, dtype=torch.bool), 3)
    assert days * day in period[0].tolist()
    known = torch.cat([past, torch.full((1, ahead), math.nan)], 1)
    error = (forecasts(known, period, steps, ahead) - x[0, steps:]).abs().mean(1)
    assert error.min() < 1e-3


@given(slope=st.floats(-3, 3), level=st.floats(-10, 10))
@settings(max_examples=25, deadline=None)
def test_a_line_is_continued_exactly_by_one_of_the_simple_forecasts(slope: float, level: float) -> None:
    steps, ahead = 40, 12
    x = level + slope * torch.linspace(-2, 2, steps + ahead, dtype=torch.float64)[None]
    known = torch.where(torch.arange(steps + ahead) < steps, x, math.nan)
    none = torch.zeros(1, 0, dtype=torch.long)
    error = (forecasts(known, none, steps, ahead) - x[0, steps:]).abs().amax(1)
    assert error.min() < 1e-6 * (1 + abs(level) + abs(slope))


def by_definition(x: np.ndarray, period: int, origin: int, step: int) -> list[float]:
    """The four forecasts of a period, one by one as ``fold`` describes them, before asinh."""
    past = np.concatenate([np.full(999, math.nan), x[:origin]])  # nothing is known before the first step
    now, last = len(past), past[~np.isnan(past)][-1]
    if not period:
        return [last] * 4
    first = ((step - origin) // period + 1) * period
    back = [first + period * j for j in range(8)]
    values = np.array([past[now + step - origin - b] for b in back])

    def level(end: int) -> float:
        span, whole = past[end - period : end], past[np.argmax(~np.isnan(past)) : end]
        enough = len(whole) and (~np.isnan(span)).mean() >= 0.5 * (~np.isnan(whole)).mean()
        return float(np.nanmean(span)) if enough and not np.isnan(span).all() else math.nan

    def usual(of: np.ndarray) -> float:
        seen = of[~np.isnan(of)]
        return float(seen.mean()) if len(seen) else math.nan

    newest = values[0] if not math.isnan(values[0]) else np.sinh(usual(np.arcsinh(values)))
    drifted = level(now) + usual(values - np.array([level(now - b) for b in back]))
    changed = last + values[0] - past[now - 1 - first]
    found = [newest, np.sinh(usual(np.arcsinh(values[:3]))), drifted, changed]
    return [last if math.isnan(value) else float(value) for value in found]


@pytest.mark.parametrize("gaps", ["none", "some", "nights"])
@pytest.mark.parametrize("periods", [(0, 5, 12), (2, 30, 0), (7, 0, 0)])
def test_the_seasonal_forecasts_are_those_of_their_definition(periods: tuple[int, ...], gaps: str) -> None:
    generator = np.random.default_rng(3)
    steps, ahead = 70, 20
    x = generator.normal(size=steps).cumsum()
    x[:4] = math.nan
    if gaps != "none":
        x[generator.random(steps) < 0.3 if gaps == "some" else np.arange(steps) % 12 > 7] = math.nan
    found = forecasts(torch.from_numpy(x)[None], torch.tensor([periods]), steps, ahead)[PLAIN:]
    expected = [
        [by_definition(x, period, steps, steps + i)[j] for i in range(ahead)] for period in periods for j in range(4)
    ]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_later_values_do_not_change_the_forecast_from_an_earlier_token() -> None:
    torch.manual_seed(0)
    model = LongHistoryDecoder(64, 16, LongHistoryConfig.tiny()).eval()
    layout = make_layout(model.config, 64, 0, CPU)
    x = torch.randn(2, layout.steps)
    seen = torch.ones_like(x, dtype=torch.bool)
    known, first = int(layout.end[-3]), len(layout.end) - 3

    def forecast(values: torch.Tensor) -> torch.Tensor:
        rows, _ = model.describe(values, seen, known, values, ())
        tokens = model.tokens(rows, layout, known, first)[:, :1]
        return model.decode(tokens, rows, layout.end[first : first + 1], torch.zeros(1, dtype=torch.long))

    changed = x.clone()
    changed[:, known:] = 100.0
    torch.testing.assert_close(forecast(changed), forecast(x))


def test_the_oldest_step_that_the_tokens_hold_changes_the_forecast_and_older_ones_do_not() -> None:
    torch.manual_seed(0)
    model = LongHistoryDecoder(4608, 32, LongHistoryConfig.tiny()).eval()
    reach = 16 + 2 * 2 * 4 + 2 * 4 * 4  # steps that the tiny tokens hold
    past = torch.randn(1, 4608, 1, dtype=torch.float64).cumsum(1)
    whole = model.predict(batch_of(past, 8), (0.5,)).quantiles
    near, far = past.clone(), past.clone()
    near[:, -reach + 1] += 5
    far[:, :-reach] += 5
    assert not torch.allclose(model.predict(batch_of(near, 8), (0.5,)).quantiles, whole)
    torch.testing.assert_close(model.predict(batch_of(far, 8), (0.5,)).quantiles, whole)


STEPS, LEVELS = 300, (0.1, 0.5, 0.9)
NOISE = torch.randn(STEPS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
DAYS = torch.arange(STEPS) % 24

HISTORIES = {
    "one step": NOISE[:1],
    "no value": torch.full_like(NOISE, math.nan),
    "the first value alone": torch.where(torch.arange(STEPS) == 0, NOISE, math.nan),
    "the last value alone": torch.where(torch.arange(STEPS) == STEPS - 1, NOISE, math.nan),
    "every tenth value": torch.where(torch.arange(STEPS) % 10 == 0, NOISE, math.nan),
    "no nights": torch.where(DAYS < 9, NOISE, math.nan),
    "constant": torch.full_like(NOISE, 3),
    "constant, then not": torch.where(torch.arange(STEPS) < STEPS - 20, 0.0, NOISE),
    "far from zero": NOISE + 1e12,
    "tiny": 1e-300 * NOISE,
    "huge": 1e300 * NOISE,
    "as large as can be": torch.where(NOISE > 0, 1.0, -1.0).double() * torch.finfo(torch.float64).max,
    "an outlier": torch.where(torch.arange(STEPS) == STEPS - 30, 1e250, NOISE),
    "an outlier at the end": torch.where(torch.arange(STEPS) == STEPS - 1, -1e250, NOISE),
    "a wide table": NOISE[:, None].expand(-1, 300) * torch.arange(300),
}


def tiny(context: int = 10**6) -> LongHistoryDecoder:
    torch.manual_seed(0)
    return LongHistoryDecoder(context, 8, LongHistoryConfig.tiny()).eval()


def odd_batch(history: torch.Tensor, horizon: int) -> Batch:
    past = history.reshape(1, len(history), -1)
    return Batch(past.nan_to_num(0.0), ~past.isnan(), horizon, season=24, seasons=(1, 24, 168, 10**7))


@pytest.mark.parametrize("horizon", [1, 40])
@pytest.mark.parametrize("name", HISTORIES)
def test_when_a_history_is_odd_then_its_quantiles_are_finite_and_ordered(name: str, horizon: int) -> None:
    found = forecast_windows(tiny(), odd_batch(HISTORIES[name], horizon), LEVELS)
    assert found.quantiles.shape[1] == horizon
    assert found.quantiles.isfinite().all()
    assert found.mean.isfinite().all()
    assert (found.quantiles.diff(dim=-1) >= 0).all()


def test_when_no_period_is_looked_for_then_a_forecast_is_made() -> None:
    model = LongHistoryDecoder(64, 8, replace(LongHistoryConfig.tiny(), periods=0)).eval()
    assert model.predict(odd_batch(NOISE, 8), LEVELS).quantiles.isfinite().all()


def test_when_a_history_is_longer_than_the_tokens_hold_then_the_rest_is_cut_first() -> None:
    model = tiny()
    assert model.context == model.config.longest
    million = torch.cat([torch.zeros(10**6, dtype=torch.float64), NOISE])
    found = model.predict(odd_batch(million, 8), LEVELS).quantiles
    assert torch.equal(found, model.predict(odd_batch(NOISE[-model.context :], 8), LEVELS).quantiles)
    seen = torch.where(torch.arange(len(million)) % 3 == 0, math.nan, million)
    assert forecast_windows(model, odd_batch(seen, 8), LEVELS).quantiles.isfinite().all()


def test_when_a_horizon_needs_several_passes_then_the_history_is_not_forgotten() -> None:
    model = tiny(64)
    reach = model.config.reach * model.config.patch_size
    past = NOISE[:20]
    short = model.predict(odd_batch(past, reach + 4), LEVELS).quantiles
    padded = torch.cat([torch.full((44,), math.nan, dtype=torch.float64), past])
    torch.testing.assert_close(model.predict(odd_batch(padded, reach + 4), LEVELS).quantiles, short)


@pytest.mark.parametrize("steps", [3, 9, 20, 41])
def test_when_a_longer_series_is_in_the_same_batch_then_the_forecast_is_the_same(steps: int) -> None:
    torch.manual_seed(0)
    model = LongHistoryDecoder(64, 8, LongHistoryConfig.tiny()).eval()
    x = torch.randn(2, 64, 1, dtype=torch.float64).cumsum(1)
    seen = torch.ones_like(x, dtype=torch.bool)
    seen[0, :-steps] = False
    both = model.predict(Batch(x, seen, 8), (0.1, 0.5)).quantiles[:1]
    alone = model.predict(Batch(x[:1, -steps:], seen[:1, -steps:], 8), (0.1, 0.5)).quantiles
    torch.testing.assert_close(both, alone, rtol=1e-4, atol=1e-4)
