"""Faster forecasts are equal to plain ones, and the benchmark compares models of the same size."""

import sys

import numpy as np
import pytest
import torch
from inference import bolt_sizes, make_chronos, make_values, own_model, parameters, prepare_own

from tsfm.attention.dispatch import Mask
from tsfm.models.chronos_bolt import ChronosBolt
from tsfm.models.zeroshot.decoder import ZeroShotDecoder
from tsfm.models.zeroshot.encoder import ZeroShotEncoder
from tsfm.models.zeroshot.recipe import ZeroShotConfig, ZeroShotForecaster
from tsfm.nn.transformer import Stack
from tsfm_data.errors import InputError
from tsfm_data.windows.batch import Batch

TINY = ZeroShotConfig(d_model=16, layers=2, heads=2, patch_size=8, predict_patches=2)


@pytest.mark.parametrize("any_variate", [False, True])
def test_when_some_tokens_are_wanted_then_they_are_as_among_all(any_variate: bool) -> None:
    torch.manual_seed(0)
    stack = Stack(16, 2, 2, any_variate)
    x = torch.randn(3, 10, 16)
    hidden = torch.rand(3, 10, 10) < 0.4
    hidden &= ~torch.eye(10, dtype=torch.bool)
    mask = Mask(bias=torch.zeros(()).masked_fill(hidden, -torch.inf)[:, None])
    variate = torch.arange(2).repeat_interleave(5)[None] if any_variate else None
    wanted = torch.tensor([2, 7, 9])
    found = [stack(x, mask, torch.arange(10)[None], variate, which) for which in (None, wanted)]
    torch.testing.assert_close(found[1], found[0][:, wanted], atol=1e-6, rtol=1e-5)


def test_when_a_mask_is_more_than_a_bias_then_it_cannot_be_cut() -> None:
    with pytest.raises(ValueError, match="expected a mask with only a bias"):
        Mask.causal().asked_by(torch.tensor([1]))


@pytest.mark.parametrize("kind", [ZeroShotEncoder, ZeroShotDecoder])
def test_when_a_batch_is_worked_on_in_pieces_then_nothing_changes(
    kind: type[ZeroShotForecaster], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = kind(64, 16, TINY)
    past = torch.randn(7, 64, 2, generator=torch.Generator().manual_seed(0)).cumsum(1)
    batch = Batch(past, torch.ones_like(past, dtype=torch.bool), 40)
    found = []
    for chunk_size in (None, 64, 4, 1):
        monkeypatch.setattr(kind, "chunk_size", chunk_size)
        found.append(model.predict(batch, (0.1, 0.5, 0.9)).quantiles)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("size", "steps"), [("encoder", 512), ("decoder", 512), ("long", 4096)])
def test_when_a_peer_is_sized_then_it_has_as_many_parameters(size: str, steps: int) -> None:
    count = parameters(own_model(size, steps))
    assert parameters(ChronosBolt(steps, 64, bolt_sizes(count, steps))) == pytest.approx(count, rel=0.005)


def test_when_a_side_runs_then_it_forecasts_every_series_of_the_table() -> None:
    model = own_model("encoder", 64)
    runs = prepare_own(model, bf16=False, values=make_values(3, 64))
    runs["arrays"]()
    table = runs["table"]()
    assert table.shape == (3 * 48, 2 + 1 + 9)  # type: ignore[attr-defined]
    assert np.isfinite(table.iloc[:, 2:].to_numpy()).all()  # type: ignore[attr-defined]


def test_when_chronos_forecasting_is_not_installed_then_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "chronos", None)
    with pytest.raises(InputError, match="pip install chronos-forecasting") as caught:
        make_chronos(bolt_sizes(100_000, 512), 512)
    assert "\n" not in str(caught.value)
