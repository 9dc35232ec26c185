"""What the zero-shot models start from, and what they can learn."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tsfm.inference import Member, Selection, load_predictor
from tsfm.models.registry import model_class
from tsfm.models.zeroshot.decoder import ZeroShotDecoder
from tsfm.models.zeroshot.encoder import ZeroShotEncoder
from tsfm.models.zeroshot.recipe import ZeroShotConfig, ZeroShotForecaster
from tsfm.models.zeroshot.seasonal_features import ScaledRows, seasonal_naive_features
from tsfm_data.errors import InputError
from tsfm_data.windows.batch import Batch

KINDS = [ZeroShotEncoder, ZeroShotDecoder]
SMALL = ZeroShotConfig(d_model=32, layers=2, heads=4, patch_size=8, predict_patches=2)
CONTEXT, HORIZON = 64, 16


def draw(count: int, generator: torch.Generator, variates: int = 1) -> torch.Tensor:
    return torch.randn(count, CONTEXT + HORIZON, variates, generator=generator)


def batch_of(values: torch.Tensor) -> Batch:
    past, future = values[:, :CONTEXT], values[:, CONTEXT:]
    return Batch(
        past, torch.ones_like(past, dtype=torch.bool), HORIZON, 1, future, torch.ones_like(future, dtype=torch.bool)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "steps", "most"),
    [(ZeroShotEncoder, 150, 0.3), (ZeroShotDecoder, 500, 0.5)],
)
def test_when_y_equals_a_known_covariate_then_it_is_learnt_from_it(
    kind: type[ZeroShotForecaster], steps: int, most: float
) -> None:
    """White noise can be forecast from the covariate alone; what it says of the past is of no use."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = kind(CONTEXT, HORIZON, replace(SMALL, any_variate=True))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def sample() -> Batch:
        x = draw(32, generator)
        batch = batch_of(x)
        assert batch.future is not None
        seen = torch.ones_like(x, dtype=torch.bool)
        return replace(
            batch,
            known_past=x[:, :CONTEXT],
            known_past_observed=seen[:, :CONTEXT],
            known_future=x[:, CONTEXT:],
            known_future_observed=seen[:, CONTEXT:],
        )

    for _ in range(steps):
        optimizer.zero_grad()
        model.loss(sample()).backward()
        optimizer.step()
    test = sample()
    assert test.future is not None
    error = (model.predict(test, (0.5,)).mean - test.future).abs().mean().item()
    blind = replace(test, known_future=None, known_future_observed=None, known_past=None, known_past_observed=None)
    assert (model.predict(blind, (0.5,)).mean - test.future).abs().mean().item() > 0.7  # E|x| is 0.80
    assert error < most


def test_when_a_season_repeats_then_the_seasonal_naive_features_continue_it() -> None:
    config = replace(SMALL, lags=2, drift=True)
    period = 6
    time = torch.arange(30)
    season = torch.tensor([0.0, 1, 4, 2, -1, -3])[time % period]
    x = (season + 0.5 * (time // period))[None]
    seen = torch.ones_like(x, dtype=torch.bool)
    rows = ScaledRows(
        x,
        seen,
        torch.tensor([[period, 0]]),
        torch.tensor([[1.0, 0.0]]),
        torch.tensor([30]),
        torch.tensor([[0.1, 0.5, 0.0]]),
        torch.ones(1),
        x[:, -1],
    )
    step = torch.arange(30, 44)
    features = seasonal_naive_features(rows, step, torch.full_like(step, 30), config.lags, config.drift)[0]
    last, with_drift, newest, mean, on_level, seasonal_drift = features.unbind(-1)[:6]
    assert (last == x[0, -1]).all()
    torch.testing.assert_close(with_drift, x[0, -1] + 0.1 * (step - 29))
    torch.testing.assert_close(newest, x[0, 24 + (step % period)])
    torch.testing.assert_close(mean, newest - 0.25)
    torch.testing.assert_close(on_level[:6], newest[:6] + 0.5)  # the last value lies half a step above a period ago
    torch.testing.assert_close(seasonal_drift, x[0, 24 + step % period] + 0.5 * (step // period - 4))


def test_when_a_value_is_missing_then_the_period_before_stands_in() -> None:
    config = replace(SMALL, lags=3, drift=False)
    x = torch.arange(12.0)[None]
    seen = torch.ones_like(x, dtype=torch.bool)
    seen[0, 9] = False
    rows = ScaledRows(
        x * seen,
        seen,
        torch.tensor([[3]]),
        torch.ones(1, 1),
        torch.tensor([12]),
        torch.zeros(1, 2),
        torch.ones(1),
        x[:, -1],
    )
    features = seasonal_naive_features(rows, torch.tensor([12, 13]), torch.tensor([12, 12]), config.lags, config.drift)[
        0
    ]
    assert features[:, 1].tolist() == [6.0, 10.0]
    assert features[:, 2].tolist() == pytest.approx([4.5, 7.0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "choice",
    [
        {"residual_mlp": False},
        {"scale": "robust"},
        {"arcsinh": False},
        {"periods": 0},
        {"periods": 1},
        {"lags": 0},
        {"drift": True},
        {"naive_unit": False},
        {"copy": False},
        {"span_masking": 1.0},
        {"any_variate": True},
        {"random_horizon": False},
        {"flip_average": True},
    ],
    ids=str,
)
def test_when_a_choice_is_taken_back_then_the_model_trains_and_forecasts(
    kind: type[ZeroShotForecaster], choice: dict[str, object]
) -> None:
    torch.manual_seed(0)
    model = kind(CONTEXT, HORIZON, replace(SMALL, **choice))
    generator = torch.Generator().manual_seed(0)
    batch = batch_of(draw(4, generator, 2).cumsum(1))
    loss = model.loss(batch)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    quantiles = model.predict(
        replace(batch, horizon=3 * HORIZON, future=None, future_observed=None), (0.1, 0.9)
    ).quantiles
    assert quantiles.shape == (4, 3 * HORIZON, 2, 2)
    assert quantiles.isfinite().all()
    assert (quantiles.diff(dim=-1) >= 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_when_history_is_mirrored_then_so_is_the_forecast(kind: type[ZeroShotForecaster]) -> None:
    torch.manual_seed(0)
    model = kind(CONTEXT, HORIZON, replace(SMALL, flip_average=True))
    batch = batch_of(draw(4, torch.Generator().manual_seed(0)).cumsum(1))
    found = model.predict(batch, (0.1, 0.5, 0.9)).quantiles
    mirrored = model.predict(replace(batch, past=-batch.past), (0.1, 0.5, 0.9)).quantiles
    torch.testing.assert_close(mirrored, -found.flip(-1), atol=1e-5, rtol=1e-5)


def test_when_the_decoder_is_trained_then_no_token_sees_what_it_forecasts() -> None:
    torch.manual_seed(0)
    model = ZeroShotDecoder(CONTEXT, HORIZON, SMALL)
    x = draw(2, torch.Generator().manual_seed(0))[..., 0].cumsum(1)
    patch, history = SMALL.patch_size, 4

    def tokens(values: torch.Tensor) -> torch.Tensor:
        from tsfm.models.zeroshot.patches import pad_to_patches

        window = pad_to_patches(batch_of(values[..., None]), HORIZON, patch, False)
        rows = model.trunk.describe_rows(window.target, window.known, history)
        return model.tokens(rows, window, 1, history - 1, 10)

    changed = x.clone()
    changed[:, 7 * patch :] += 100.0
    before, after = tokens(x), tokens(changed)
    torch.testing.assert_close(before[:, : 7 - history + 1], after[:, : 7 - history + 1])
    assert (before[:, 7 - history + 1 :] - after[:, 7 - history + 1 :]).abs().max() > 0.1


@pytest.mark.parametrize(("field", "value"), [("d_model", 0), ("periods", 3), ("lags", -1), ("levels", (0.5, 1.0))])
def test_when_a_size_is_impossible_then_one_line_says_so(field: str, value: object) -> None:
    with pytest.raises(InputError, match=r"expected .* found") as caught:
        replace(SMALL, **{field: value})
    assert "\n" not in str(caught.value)


def test_when_units_are_those_of_the_noise_then_a_trend_does_not_widen_them() -> None:
    model = ZeroShotEncoder(CONTEXT, HORIZON, SMALL)
    time = torch.arange(CONTEXT, dtype=torch.float32)
    x = (0.05 * time + 0.05 * torch.sin(2 * math.pi * time / 8))[None]
    rows = model.trunk.describe_rows(x, torch.ones_like(x, dtype=torch.bool), CONTEXT // SMALL.patch_size)
    assert rows.period[0, 0] == 8
    assert rows.change[0, 1].item() == pytest.approx(0.4, rel=1e-3)
    assert rows.error_scale.item() == pytest.approx(0.02)


def test_when_a_batch_tells_seasons_then_the_long_history_decoder_looks_for_them_and_others_do_not() -> None:
    """Weeks so noisy that some are found with the calendar alone."""
    noise = 2 * torch.randn(32, 64, 1, generator=torch.Generator().manual_seed(0))
    past = noise + torch.tensor([0.0, 3, -2, 1, 0, -3, 1])[torch.arange(64) % 7, None]
    batch = Batch(past, torch.ones_like(past, dtype=torch.bool), 7)
    told = replace(batch, seasons=(7,))
    for name, uses in (("zeroshot-long", True), ("zeroshot-decoder", False)):
        torch.manual_seed(0)
        kind = model_class(name)
        model = kind(64, 8, kind.config_type.tiny()).eval()
        found = (model.predict(batch, (0.5,)).mean != model.predict(told, (0.5,)).mean).flatten(1).any(1)
        assert bool(found.any()) == uses
        assert not found.all()


@pytest.mark.parametrize("name", ["tsfm-long-small", "tsfm-decoder-small", "tsfm-encoder-small"])
def test_when_the_effort_is_best_then_a_negated_history_gives_the_negated_forecast(name: str) -> None:
    levels = (0.1, 0.5, 0.8, 0.9)
    x = torch.randn(3, 80, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64).cumsum(1)
    batch, mirrored = (Batch(values, torch.ones_like(values, dtype=torch.bool), 8) for values in (x, -x))
    model = load_predictor(name, "best")
    forecast, other = (model.predict(b, levels).quantiles for b in (batch, mirrored))
    torch.testing.assert_close(forecast[..., [0, 1, 3]], -other[..., [3, 1, 0]])
    fast = load_predictor(name)
    assert not torch.allclose(fast.predict(batch, levels).quantiles, forecast)


def test_when_a_choice_of_models_is_loaded_then_the_effort_is_that_of_its_members(tmp_path: Path) -> None:
    name = "tsfm-decoder-small"
    Selection((Member(name, load_predictor(name), known=True),), (1.0,)).save(tmp_path)
    x = torch.randn(2, 40, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64).cumsum(1)
    batch = Batch(x, torch.ones_like(x, dtype=torch.bool), 4)
    for effort in ("fast", "best"):
        chosen, alone = (load_predictor(model, effort).predict(batch, (0.1, 0.5)) for model in (str(tmp_path), name))
        torch.testing.assert_close(chosen.quantiles, alone.quantiles)
