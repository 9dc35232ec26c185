"""The vision forecaster: where a step is in the image and back, with every family of backbones; bad sizes.

The contract of every forecaster is tested on it in test_forecasters.py.
"""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_backbones import SMALL
from tiny_series import make_batch
from torch import Tensor

from tsfm.models import model_class
from tsfm_data.errors import InputError
from tsfm_data.windows import Batch
from tsfm_vision.forecasting import VisionConfig, VisionForecaster, fold, read

SIZE, FUTURE, REACH = 32, 8, 16


def folded(x: Tensor, season: int, seen: Tensor | None = None) -> Any:
    seen = torch.ones_like(x, dtype=torch.bool) if seen is None else seen
    return fold(x, seen, torch.full((len(x),), season), SIZE, FUTURE, REACH)


def seasonal(season: int, steps: int) -> Tensor:
    """A cycle that repeats itself, 1.5 to the power of the number of cycles so far times as high."""
    step = torch.arange(steps)
    cycle = torch.rand(season, generator=torch.Generator().manual_seed(0))
    return (cycle[step % season] * 1.5 ** (step // season))[None]


def test_when_a_series_is_drawn_then_a_column_is_a_cycle_its_phases_run_down_and_the_future_is_right() -> None:
    x = seasonal(SIZE, 5 * SIZE)
    drawn = folded(x, SIZE)
    values = drawn.image[0, 0].sinh() * drawn.scale[0] + drawn.loc[0]
    cycles = x.view(5, SIZE).T
    torch.testing.assert_close(values[:, SIZE - FUTURE - 5 : SIZE - FUTURE], cycles, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(values[:, -FUTURE:], cycles[:, -1:].expand(-1, FUTURE), atol=1e-4, rtol=1e-4)
    seen = drawn.image[0, 2]
    assert bool((seen[:, SIZE - FUTURE - 5 : SIZE - FUTURE] == 1).all())
    assert float(seen[:, : SIZE - FUTURE - 5].abs().sum() + seen[:, -FUTURE:].abs().sum()) == 0


def test_when_steps_are_fewer_or_more_than_pixels_then_a_pixel_is_the_mean_of_what_it_covers() -> None:
    few = folded(seasonal(4, 40), 4).image[0, 0, :, -FUTURE - 1].unflatten(0, (4, SIZE // 4))
    torch.testing.assert_close(few, few[:, :1].expand_as(few))
    x = seasonal(4 * SIZE, 12 * SIZE)
    drawn = folded(x, 4 * SIZE)
    values = drawn.image[0, 0, :, -FUTURE - 1].sinh() * drawn.scale[0] + drawn.loc[0]
    torch.testing.assert_close(values, x[0, -4 * SIZE :].view(SIZE, 4).mean(1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("season", [2, 7, 24, 96])
def test_when_the_network_adds_nothing_then_the_last_cycle_is_forecast(season: int) -> None:
    x = seasonal(season, 4 * season + 1)
    seen = torch.ones_like(x, dtype=torch.bool)
    zero = torch.zeros(1, 1, SIZE, FUTURE)
    found = read(folded(x, season), zero, x, seen, REACH)[0, :, 0]
    expected = torch.cat([x[0, -season:]] * math.ceil(REACH / season))[:REACH]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
    last = read(folded(x, 0), zero, x, seen, REACH)[0, :, 0]
    torch.testing.assert_close(last, x[0, -1:].expand(REACH), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("season", [0, 4, 8])
def test_when_the_network_adds_something_to_the_pixels_of_a_step_then_that_step_changes_alone(season: int) -> None:
    x = seasonal(8, 64)
    seen = torch.ones_like(x, dtype=torch.bool)
    drawn = folded(x, season)
    period = int(drawn.period[0])
    height = SIZE // period
    for step in (0, period - 1, period, REACH - 1):
        image = torch.zeros(1, 1, SIZE, FUTURE)
        image[..., step % period * height : (step % period + 1) * height, step // period] = 1.0
        change = read(drawn, image, x, seen, REACH) - read(drawn, 0 * image, x, seen, REACH)
        expected = torch.zeros(REACH).index_fill(0, torch.tensor([step]), 1.0)
        torch.testing.assert_close(change[0, :, 0], expected * drawn.scale[0], atol=1e-5, rtol=1e-5)


def test_when_values_are_missing_then_the_latest_cycle_that_has_the_phase_is_forecast() -> None:
    x, seen = seasonal(8, 64), torch.ones(1, 64, dtype=torch.bool)
    seen[0, -3] = False
    found = read(folded(torch.where(seen, x, 0.0), 8, seen), torch.zeros(1, 1, SIZE, FUTURE), x, seen, 8)[0, :, 0]
    torch.testing.assert_close(found[5], x[0, -11], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(found[[4, 6]], x[0, [-4, -2]], atol=1e-4, rtol=1e-5)


FAST = ("tsfm_poolformer_s12", "tsfm_tnt_s_patch16_224")


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in SMALL])
def test_when_a_family_is_the_backbone_then_it_learns_what_a_repeated_cycle_does_not_say(name: str) -> None:
    """The cycles grow by a half: the last one is no good forecast."""
    sizes = {key: value for key, value in SMALL[name].items() if key != "img_size"}
    torch.manual_seed(0)
    model = VisionForecaster(64, 16, VisionConfig(name, sizes, 64, 16, 16, (0.1, 0.5, 0.9)))
    x = torch.cat([seasonal(8, 80).roll(k, 0) * (1 + k) for k in range(4)])[..., None]
    seen = torch.ones_like(x, dtype=torch.bool)
    batch = Batch(x[:, :64], seen[:, :64], 16, future=x[:, 64:], future_observed=seen[:, 64:])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        loss = model.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    forecast = model.predict(replace(batch, horizon=40, future=None, future_observed=None), (0.1, 0.5, 0.9))
    assert forecast.quantiles.shape == (4, 40, 1, 3)
    assert forecast.quantiles.isfinite().all()


def test_when_the_registry_is_asked_for_vision_then_it_is_this_model() -> None:
    assert model_class("vision") is VisionForecaster
    assert model_class("vision")(24, 6, VisionConfig.tiny()).predict(make_batch(), (0.5,)).mean.shape == (5, 6, 3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: VisionConfig(backbone="tsfm_poolformer_s13"), "unknown image model 'tsfm_poolformer_s13'"),
        (lambda: VisionConfig(future=64), "expected fewer than 64 columns of the future, found 64"),
        (lambda: VisionConfig(future=6), "expected image and future in whole patches of 4 pixels, found 64 and 6"),
        (lambda: VisionConfig(sizes={"depth": 3}), "expected sizes that tsfm_poolformer_s12 takes"),
        (lambda: VisionConfig(sizes={"checkpoint_path": "x.pth"}), "found checkpoint_path"),
    ],
)
def test_when_sizes_do_not_fit_then_one_line_says_so(config: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        VisionForecaster(64, 16, config())
