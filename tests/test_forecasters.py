"""The contract of every forecaster, on every registered model with random weights and every kind of head.

A univariate model forecasts one variate at a time, so its forecasts follow any order of the variates trivially.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_series import CONTEXT, HORIZON, KINDS, MODELS, VARIATES, make, make_batch, with_known
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from tsfm.models.base import Forecaster, roll_out_paths
from tsfm.weights.pretrained import calibrate, load, save
from tsfm_data.errors import InputError
from tsfm_data.windows.batch import Batch

LEVELS = (0.01, 0.1, 0.5, 0.9, 0.99)


def rows(batch: Batch, index: object) -> Batch:
    moved = {k: v[index] for k, v in batch.__dict__.items() if isinstance(v, torch.Tensor)}
    return replace(batch, **moved)


@pytest.fixture(params=KINDS, ids="-".join)
def model(request: pytest.FixtureRequest) -> Forecaster:
    made = make(*request.param)
    calibrate(made, [make_batch(40, seed=9)])
    return made.eval()


def test_when_a_series_is_alone_or_in_any_batch_and_order_then_its_forecast_is_the_same(model: Forecaster) -> None:
    batch = make_batch()
    together = model.predict(batch, LEVELS).quantiles
    order = torch.tensor([3, 0, 4, 2, 1])
    torch.testing.assert_close(
        model.predict(rows(batch, order), LEVELS).quantiles, together[order], atol=1e-5, rtol=1e-5
    )
    alone = torch.cat([model.predict(rows(batch, slice(i, i + 1)), LEVELS).quantiles for i in range(5)])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)


def test_when_history_is_padded_in_front_as_unobserved_then_the_forecast_is_the_same(model: Forecaster) -> None:
    batch = make_batch(context=CONTEXT - 7)
    pad = (0, 0, 7, 0)
    padded = replace(
        batch,
        past=torch.nn.functional.pad(batch.past, pad, value=123.0),
        past_observed=torch.nn.functional.pad(batch.past_observed, pad),
        past_marks=torch.nn.functional.pad(batch.past_marks, pad),
    )
    padded = replace(padded, past=torch.where(padded.past_observed, padded.past, 0.0))
    expected = model.predict(batch, LEVELS).quantiles
    torch.testing.assert_close(model.predict(padded, LEVELS).quantiles, expected)


def test_when_units_change_then_the_forecast_changes_with_them(model: Forecaster) -> None:
    batch = make_batch()
    double = replace(batch, past=batch.past.double())
    for a, b in ((1e4, -3e5), (1e-4, 7.0)):
        scaled = replace(double, past=a * double.past + b)
        expected = a * model.predict(double, LEVELS).quantiles + b
        found = model.predict(scaled, LEVELS).quantiles
        torch.testing.assert_close(found, expected, atol=a * 1e-3, rtol=1e-5)


@pytest.mark.parametrize(("scale", "shift"), [(1e-300, 0.0), (1e300, 0.0), (-1e306, 0.0), (1.0, 1e12), (1e-3, -1e9)])
def test_when_numbers_are_of_any_size_then_the_forecast_is_the_same(
    model: Forecaster, scale: float, shift: float
) -> None:
    batch = make_batch()
    double = replace(batch, past=batch.past.double().sin())
    expected = model.predict(double, LEVELS)
    found = model.predict(replace(double, past=scale * double.past + shift), LEVELS)
    if scale < 0:
        mirrored = model.predict(replace(double, past=-double.past), LEVELS)
        torch.testing.assert_close(found.quantiles / -scale, mirrored.quantiles, atol=1e-5, rtol=1e-5)
        return
    resolution = abs(shift) / scale * 2**-52  # what is left of the signal
    torch.testing.assert_close(
        (found.quantiles - shift) / scale, expected.quantiles, atol=1e-5 + 100 * resolution, rtol=1e-5
    )
    torch.testing.assert_close((found.mean - shift) / scale, expected.mean, atol=1e-5 + 100 * resolution, rtol=1e-5)


@pytest.mark.parametrize("value", [5e-324, 1e-300, -1e-3, 0.1, 0.0, 7e12, -1e300, 1.79e308])
def test_when_a_series_is_constant_then_it_is_forecast_as_itself(model: Forecaster, value: float) -> None:
    batch = make_batch(2, horizon=3 * HORIZON)
    past = batch.past.double()
    past[..., 1] = value
    forecast = model.predict(replace(batch, past=past, future=None, future_observed=None), LEVELS)
    assert (forecast.mean[..., 1] == value).all()
    assert (forecast.quantiles[:, :, 1] == value).all()
    assert (forecast.quantiles[:, :, 0].diff(dim=-1) > 0).any()


def test_when_any_level_is_asked_then_quantiles_never_cross_and_are_finite(model: Forecaster) -> None:
    levels = tuple(k / 200 for k in range(1, 200))
    forecast = model.predict(make_batch(horizon=3 * HORIZON + 1), levels)
    assert forecast.quantiles.shape == (5, 3 * HORIZON + 1, VARIATES, 199)
    assert forecast.quantiles.isfinite().all()
    assert (forecast.quantiles.diff(dim=-1) >= 0).all()


@pytest.mark.parametrize("case", ["missing", "zero", "five points", "nothing observed"])
def test_when_history_is_poor_then_the_forecast_is_finite(model: Forecaster, case: str) -> None:
    batch = make_batch()
    past, observed = batch.past.clone(), batch.past_observed.clone()
    if case == "missing":
        observed = torch.rand(observed.shape, generator=torch.Generator().manual_seed(0)) > 0.5
    elif case == "zero":
        past[:] = 0
    elif case == "five points":
        observed[:, :-5] = False
    else:
        observed[:] = False
    forecast = model.predict(replace(batch, past=torch.where(observed, past, 0.0), past_observed=observed), LEVELS)
    assert forecast.quantiles.isfinite().all()


def test_when_levels_are_asked_then_the_mean_does_not_depend_on_them_and_a_point_forecast_is_its_own(
    model: Forecaster,
) -> None:
    batch = make_batch()
    mean, *others = (model.predict(batch, levels).mean for levels in ((0.5,), (0.01, 0.99), LEVELS))
    for other in others:
        assert torch.equal(mean, other)
    if len(model.levels) == 1:
        torch.testing.assert_close(model.predict(batch, (0.5,)).quantiles[..., 0], mean)
    else:
        assert not torch.allclose(model.predict(batch, (0.5,)).quantiles[..., 0], mean)


def test_when_in_evaluation_mode_then_two_calls_give_the_same_numbers(model: Forecaster) -> None:
    first, second = (model.predict(make_batch(), LEVELS).quantiles for _ in range(2))
    assert torch.equal(first, second)


def test_when_the_model_is_in_training_mode_then_predict_is_still_deterministic_and_leaves_the_mode(
    model: Forecaster,
) -> None:
    expected = model.predict(make_batch(), LEVELS).quantiles
    model.train()
    assert torch.equal(model.predict(make_batch(), LEVELS).quantiles, expected)
    assert model.training


def test_when_variates_change_places_then_their_forecasts_do_too(model: Forecaster) -> None:
    batch = make_batch()
    order = torch.tensor([2, 0, 1])
    moved = replace(batch, past=batch.past[..., order], past_observed=batch.past_observed[..., order])
    expected = model.predict(batch, LEVELS).quantiles[:, :, order]
    torch.testing.assert_close(model.predict(moved, LEVELS).quantiles, expected, atol=1e-5, rtol=1e-5)


def test_when_saved_and_loaded_then_forecasts_are_equal_to_the_bit(model: Forecaster, tmp_path: object) -> None:
    save(model, f"{tmp_path}/folder")
    loaded = load(f"{tmp_path}/folder")
    assert torch.equal(loaded.predict(make_batch(), LEVELS).quantiles, model.predict(make_batch(), LEVELS).quantiles)


def test_when_trained_for_a_few_steps_then_the_loss_falls_and_gradients_are_finite(model: Forecaster) -> None:
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        torch.manual_seed(0)  # the same random cuts, for models whose loss draws some
        loss = model.loss(make_batch())
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_when_more_variates_come_than_were_trained_then_they_are_forecast_too(model: Forecaster) -> None:
    batch = make_batch()
    more = {name: getattr(batch, name).repeat(1, 1, 4) for name in ("past", "past_observed")}
    wide = replace(batch, **more, future=None, future_observed=None)
    assert model.predict(wide, LEVELS).mean.shape == (5, HORIZON, 4 * VARIATES)


def test_when_the_asked_horizon_is_a_part_of_a_longer_one_then_the_first_steps_agree(model: Forecaster) -> None:
    if model.model_type == "chronos2":
        return  # as in the original, all patches that are asked for at once see each other
    long, short = make_batch(horizon=2 * HORIZON), make_batch(horizon=2 * HORIZON)
    short = replace(short, horizon=4, future=None, future_observed=None)
    expected = model.predict(long, LEVELS).quantiles[:, :4]
    # Products of other sizes round otherwise, more so on some processors.
    torch.testing.assert_close(model.predict(short, LEVELS).quantiles, expected, atol=1e-5, rtol=1e-5)


def test_when_the_future_is_in_the_batch_then_the_forecast_does_not_see_it(model: Forecaster) -> None:
    batch = make_batch()
    assert batch.future is not None
    other = replace(batch, future=batch.future + 100)
    blind = replace(batch, future=None, future_observed=None)
    expected = model.predict(blind, LEVELS).quantiles
    for given in (batch, other):
        assert torch.equal(model.predict(given, LEVELS).quantiles, expected)


def test_when_known_covariates_change_then_only_a_model_that_attends_to_them_forecasts_something_else(
    model: Forecaster,
) -> None:
    """The other models with covariates learn their effect from the history, and noise has none."""
    batch = make_batch(horizon=2 * HORIZON + 1)
    bare, given, other = (
        model.predict(b, LEVELS).quantiles for b in (batch, with_known(batch), with_known(batch, shift=1.0))
    )
    assert given.shape == bare.shape
    assert given.isfinite().all()
    attends = model.covariates and model.joint
    assert torch.equal(bare, given) != attends
    assert torch.equal(given, other) != attends


def test_when_windows_with_covariates_come_in_any_batch_and_units_then_the_forecast_is_the_same(
    model: Forecaster,
) -> None:
    batch = with_known(make_batch(horizon=2 * HORIZON))
    together = model.predict(batch, LEVELS).quantiles
    order = torch.tensor([3, 0, 4])
    found = model.predict(rows(batch, order), LEVELS).quantiles
    torch.testing.assert_close(found, together[order], atol=1e-5, rtol=1e-5)
    assert batch.known_past is not None
    assert batch.known_future is not None
    scaled = replace(
        batch, known_past=1e3 * batch.known_past.double() - 7e4, known_future=1e3 * batch.known_future.double() - 7e4
    )
    torch.testing.assert_close(model.predict(scaled, LEVELS).quantiles, together, atol=1e-3, rtol=1e-4)


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that an operator put out."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in tree_flatten(out)[0]:
            if isinstance(x, Tensor) and x.untyped_storage().nbytes() >= x.numel():  # a view holds nothing
                self.elements = max(self.elements, x.numel())
        return out


LONG: dict[str, dict[str, Any]] = {"decoder": {"patch_size": 50}, "moirai2": {"predict_tokens": 25}}
LONG["zeroshot-decoder"] = {"predict_patches": 50}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_when_ten_thousand_steps_are_asked_then_only_the_forecast_itself_takes_more_memory(name: str) -> None:
    made = make(name, "quantile", horizon=200, **LONG.get(name, {}))
    batch = replace(make_batch(1), future=None, future_observed=None, past_marks=None, future_marks=None)
    largest = {}
    for horizon in (1_000, 10_000):
        with LargestTensor() as seen:
            found = made.predict(replace(batch, horizon=horizon), (0.1, 0.5, 0.9)).quantiles
        largest[horizon] = seen.elements
    assert found.shape == (1, 10_000, VARIATES, 3)
    assert found.isfinite().all()
    assert largest[10_000] <= max(largest[1_000], 1.05 * found.numel())


def test_when_a_batch_holds_no_series_then_that_is_said(model: Forecaster) -> None:
    batch = make_batch()
    for empty in (rows(batch, slice(0, 0)), rows(batch, (slice(None), slice(None), slice(0, 0)))):
        with pytest.raises(InputError, match="expected at least one series in a batch, found none"):
            model.predict(empty, LEVELS)


def test_when_forecasts_go_on_from_themselves_then_their_intervals_stay_as_wide_as_the_doubt() -> None:
    """A random walk, of which each call forecasts four steps: ten calls on, it lies as far off as a walk does."""
    levels = (0.1, 0.3, 0.5, 0.7, 0.9)
    normal = torch.special.ndtri(torch.tensor(levels, dtype=torch.float64))

    def walk(batch: Batch) -> Tensor:
        spread = torch.arange(1, 5, dtype=torch.float64).sqrt()[:, None] * normal
        return batch.past[:, -1:, :, None] + spread[:, None]

    past = torch.tensor([[[0.0]], [[7.0]]], dtype=torch.float64).expand(2, 8, 1)
    found = roll_out_paths(Batch(past, torch.ones_like(past, dtype=torch.bool), 38), walk, levels)
    expected = past[:, -1:, :, None] + (torch.arange(1, 39).sqrt()[:, None] * normal)[:, None]
    assert found.shape == (2, 38, 1, 5)
    assert (found.diff(dim=-1) >= 0).all()
    relative = (found - expected)[..., [0, -1]] / expected.sub(past[:, -1:, :, None])[..., [0, -1]]
    assert relative.abs().max() < 0.25  # by the median alone, .84 of it would be lost
