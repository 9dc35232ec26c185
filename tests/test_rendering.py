"""Pictures of series: the right way up, independent of units, one by one as in a batch, and differentiable."""

import numpy as np
import pytest
import torch
from torch import Tensor

from tsfm_data.errors import InputError
from tsfm_data.images import render

KINDS = ("line", "fold", "recurrence", "spectrogram")


def draw(x: Tensor, *kinds: str, size: int = 32, season: int = 8) -> Tensor:
    return render(x, kinds or KINDS, size, season)


def series(count: int = 4, steps: int = 96) -> Tensor:
    return torch.randn(count, steps, generator=torch.Generator().manual_seed(0), dtype=torch.float64).cumsum(1)


def test_when_a_series_rises_then_its_line_goes_from_bottom_left_to_top_right() -> None:
    picture = draw(torch.arange(64.0)[None], "line")[0, 0]
    rows = picture.argmax(0)
    assert int(rows[0]) >= 30
    assert int(rows[-1]) <= 1
    assert bool((rows.diff() <= 0).all())
    spike = torch.zeros(1, 640)
    spike[0, 410] = 1.0
    assert draw(spike, "line")[0, 0, 0].argmax() == 410 * 32 // 640  # at its full height, though a step of many


def test_when_a_series_is_folded_then_a_row_is_a_cycle_and_the_latest_is_at_the_bottom() -> None:
    x = torch.tile(torch.arange(8.0), (8,)) + 10 * torch.arange(64).div(8, rounding_mode="floor")
    picture = render(torch.cat([torch.full((3,), 5.0), x])[None], ("fold",), 8, 8)[0, 0]
    torch.testing.assert_close(picture * 77, x.reshape(8, 8), atol=1e-4, rtol=0)


def test_when_a_value_comes_back_then_the_recurrence_plot_is_bright_there() -> None:
    picture = draw(torch.tensor([[0.0, 1.0, 0.0, 0.5]]), "recurrence", size=4)[0, 0]
    torch.testing.assert_close(picture[0], torch.tensor([1.0, 0.0, 1.0, 0.5]))
    torch.testing.assert_close(picture, picture.T)


def test_when_the_frequency_rises_then_the_spectrogram_does_too() -> None:
    t = torch.arange(1024.0)
    slow_then_fast = torch.where(t < 512, (2 * np.pi * t / 64).sin(), (2 * np.pi * t / 4).sin())[None]
    picture = draw(slow_then_fast, "spectrogram")[0, 0]
    early, late = picture[:, 4].argmax(), picture[:, -5].argmax()
    assert 28 <= int(early) <= 31  # 1 / 64 lies near the bottom
    assert abs(int(late) - 15.5) <= 1.5  # 1 / 4 is half of the highest frequency


@pytest.mark.parametrize("kind", KINDS)
def test_when_units_or_the_batch_change_then_the_picture_stays(kind: str) -> None:
    x = series()
    picture = draw(x, kind)
    assert picture.shape == (4, 1, 32, 32)
    assert float(picture.min()) >= 0
    assert float(picture.max()) <= 1 + 1e-9
    assert float(picture.std()) > 0.01
    torch.testing.assert_close(draw(1000 * x - 5, kind), picture, atol=1e-6, rtol=0)
    torch.testing.assert_close(draw(x[2:3], kind), picture[2:3])


@pytest.mark.parametrize("steps", [1, 5, 2000])
def test_when_a_series_is_short_long_or_constant_then_there_is_a_picture(steps: int) -> None:
    for x in (series(2, steps), torch.full((2, steps), 3.0)):
        assert bool(draw(x).isfinite().all())


def test_when_a_loss_depends_on_the_picture_then_its_gradient_reaches_the_series() -> None:
    x = series().requires_grad_()
    draw(x).square().sum().backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())
    assert float(x.grad.abs().sum()) > 0


@pytest.mark.parametrize(
    ("kinds", "season", "value", "part"),
    [(("bars",), 8, 0.0, "unknown picture 'bars'"), (("fold",), None, 0.0, "expected a season"),
     (("line",), 8, float("nan"), "without missing values")],
)  # fmt: skip
def test_when_a_picture_cannot_be_drawn_then_one_line_says_why(
    kinds: tuple[str, ...], season: int | None, value: float, part: str
) -> None:
    with pytest.raises(InputError, match=part):
        render(torch.tensor([[1.0, value]]), kinds, 8, season)
