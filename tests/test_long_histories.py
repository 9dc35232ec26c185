"""The long-history decoder: finite, ordered quantiles for any history, and no more steps than its tokens hold."""

import math

import pytest
import torch

from tsfm.models.zeroshot.long_history import LongHistoryConfig, LongHistoryDecoder
from tsfm_data.evaluation import forecast_windows
from tsfm_data.windows import Batch

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


def batch_of(history: torch.Tensor, horizon: int) -> Batch:
    past = history.reshape(1, len(history), -1)
    return Batch(past.nan_to_num(0.0), ~past.isnan(), horizon, season=24, seasons=(1, 24, 168, 10**7))


@pytest.mark.parametrize("horizon", [1, 40])
@pytest.mark.parametrize("name", HISTORIES)
def test_when_a_history_is_odd_then_its_quantiles_are_finite_and_ordered(name: str, horizon: int) -> None:
    found = forecast_windows(tiny(), batch_of(HISTORIES[name], horizon), LEVELS)
    assert found.quantiles.shape[1] == horizon
    assert found.quantiles.isfinite().all()
    assert found.mean.isfinite().all()
    assert (found.quantiles.diff(dim=-1) >= 0).all()


def test_when_a_history_is_longer_than_the_tokens_hold_then_the_rest_is_cut_first() -> None:
    model = tiny()
    assert model.context == model.config.longest
    million = torch.cat([torch.zeros(10**6, dtype=torch.float64), NOISE])
    found = model.predict(batch_of(million, 8), LEVELS).quantiles
    assert torch.equal(found, model.predict(batch_of(NOISE[-model.context :], 8), LEVELS).quantiles)
    seen = torch.where(torch.arange(len(million)) % 3 == 0, math.nan, million)
    assert forecast_windows(model, batch_of(seen, 8), LEVELS).quantiles.isfinite().all()
