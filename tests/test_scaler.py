"""Where nothing is missing, windows are normalised and losses taken without masks, to the same numbers."""

import torch

from tsfm.nn.heads import masked_mean
from tsfm.nn.scaler import is_complete, window_scale


def test_when_nothing_is_missing_then_scale_values_and_loss_are_those_of_a_mask_that_is_all_true() -> None:
    torch.manual_seed(0)
    x = 50 + 7 * torch.randn(4, 96, 3)
    seen = torch.ones((), dtype=torch.bool).expand(x.shape)
    full = torch.ones_like(x, dtype=torch.bool)
    assert is_complete(seen)
    assert is_complete(seen[:, :10])
    assert not is_complete(full)
    scale, expected = window_scale(x, seen), window_scale(x, full)
    torch.testing.assert_close(scale.loc, expected.loc)
    torch.testing.assert_close(scale.scale, expected.scale)
    torch.testing.assert_close(scale.normalise(x, seen), expected.normalise(x, full))
    torch.testing.assert_close(masked_mean(x, seen), masked_mean(x, full))


def test_when_nothing_at_all_is_observed_then_no_shortcut_is_taken() -> None:
    x = torch.zeros(2, 5, 3)
    nothing = torch.zeros((), dtype=torch.bool).expand(x.shape)
    assert not is_complete(nothing)
    assert not is_complete(torch.ones(0, 5, 3, dtype=torch.bool))
    assert float(masked_mean(x + 1, nothing)) == 0
    torch.testing.assert_close(window_scale(x, nothing).scale, torch.full((2, 1, 3), 1e-5**0.5))
