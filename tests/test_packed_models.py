"""Models of packed rows: sizes as published, packed equals apart, nothing to predict and no padding is looked at."""

from dataclasses import replace

import pytest
import torch

from tsfm.models.chronos_bolt import ChronosBoltConfig, from_reference
from tsfm.models.moirai import Moirai, MoiraiConfig
from tsfm.models.moirai import from_reference as moirai_from_reference
from tsfm.models.moirai2 import Moirai2
from tsfm.models.packing import Packed, join
from tsfm.models.scaling_law.decoder import Decoder
from tsfm.models.scaling_law.encoder import Encoder
from tsfm.models.scaling_law.trunk import DECODER_SIZES, SIZES, TrunkConfig, from_reference_state
from tsfm.nn.distributions import Mixture, StudentT
from tsfm_data.errors import InputError

# Stack, and input and output projections together; the published "10K" counts one of its two layers.
PUBLISHED = {
    "1K": (872, 4_872),
    "10K": (14_040, 13_592),
    "100K": (100_928, 35_392),
    "300K": (302_656, 35_392),
    "1M": (1_771_712, 105_152),
    "3M": (4_747_264, 140_032),
    "10M": (14_163_328, 209_792),
    "30M": (37_812_224, 279_552),
    "100M": (127_432_704, 419_072),
    "300M": (302_436_352, 558_592),
    "1B": (1_019_300_000, 837_632),
}
Model = Encoder | Decoder | Moirai


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_when_a_published_size_is_built_then_it_has_the_published_number_of_parameters(name: str) -> None:
    stack, projections = PUBLISHED[name]
    with torch.device("meta"):
        encoder, decoder = Encoder(512, 96, SIZES[name]), Decoder(512, 96, DECODER_SIZES[name])
    assert count(encoder.encoder) == pytest.approx(stack, rel=1e-4 if name == "1B" else 0)
    assert count(decoder.encoder) == pytest.approx(906_100_000 if name == "1B" else stack, rel=1e-4)
    assert count(encoder.in_proj) + count(encoder.param_proj) == projections
    assert count(encoder) - count(encoder.encoder) - projections == SIZES[name].d_model  # the mask token


@pytest.mark.parametrize(("sizes", "number"), [((384, 6, 6), 13_827_528), ((768, 12, 12), 91_357_728)])
def test_when_a_published_moirai_is_built_then_it_has_the_published_number_of_parameters(
    sizes: tuple[int, int, int], number: int
) -> None:
    with torch.device("meta"):
        assert count(Moirai(512, 96, MoiraiConfig(*sizes))) == number


def test_when_the_small_moirai2_is_built_then_it_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        assert count(Moirai2(512, 64)) == 11_387_208


def make(kind: type[Model]) -> Model:
    torch.manual_seed(0)
    if kind is Moirai:
        return Moirai(32, 8, MoiraiConfig(16, 2, 2, (4, 8), 8)).eval()
    return kind(32, 8, TrunkConfig(16, 2, 2, patch_size=8)).eval()  # type: ignore[call-arg, arg-type]


@pytest.fixture(params=[Encoder, Decoder, Moirai], ids=lambda kind: kind.__name__)
def model(request: pytest.FixtureRequest) -> Model:
    return make(request.param)


def sample(number: int, tokens: int, predicted: int, seed: int) -> Packed:
    """One row of one series, with holes."""
    generator = torch.Generator().manual_seed(seed)
    observed = torch.rand(1, tokens, 8, generator=generator) > 0.2
    target = torch.randn(1, tokens, 8, generator=generator).cumsum(1) * 10**number
    time_id = torch.arange(tokens)[None]
    return Packed(
        target=torch.where(observed, target, 0.0),
        observed=observed,
        sample_id=torch.full_like(time_id, number),
        time_id=time_id,
        variate_id=torch.zeros_like(time_id),
        is_predicted=time_id >= tokens - predicted,
        patch_size=torch.full_like(time_id, 8) if number else torch.zeros_like(time_id),
    )


def likelihood(model: Model, packed: Packed) -> torch.Tensor:
    return model.distribution(packed).log_prob(packed.target)


def test_when_series_are_packed_into_a_row_then_each_is_judged_as_alone(model: Model) -> None:
    first, second, padding = sample(1, 5, 2, seed=1), sample(2, 3, 1, seed=2), sample(0, 4, 0, seed=3)
    packed = join(first, second, padding)
    together = likelihood(model, packed)
    torch.testing.assert_close(together[:, :5], likelihood(model, first), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together[:, 5:8], likelihood(model, second), atol=1e-4, rtol=1e-4)
    apart = (model.packed_loss(first) + model.packed_loss(second)) / 2
    torch.testing.assert_close(model.packed_loss(packed), apart, atol=1e-4, rtol=1e-4)


def test_when_padding_holds_garbage_then_loss_and_gradients_are_the_same_and_finite(model: Model) -> None:
    losses, gradients = [], []
    for seed in (3, 4):
        row = join(sample(1, 5, 2, seed=1), sample(0, 4, 0, seed=seed))
        packed = replace(row, **{k: torch.cat([v, w]) for k, v, w in both(row, sample(0, 9, 0, seed=seed))})
        model.zero_grad()
        loss = model.packed_loss(packed)
        loss.backward()
        losses.append(loss.detach())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert gradients[0].isfinite().all()
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(gradients[0], gradients[1])


def both(first: Packed, second: Packed) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    names = ("target", "observed", "sample_id", "time_id", "variate_id", "is_predicted", "patch_size")
    return [(name, getattr(first, name), getattr(second, name)) for name in names]


def test_when_trained_in_bfloat16_then_the_likelihood_stays_near_that_of_float32(model: Model) -> None:
    packed = join(sample(1, 5, 2, seed=1), sample(2, 3, 1, seed=2), sample(0, 4, 0, seed=3))
    expected = model.packed_loss(packed)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.packed_loss(packed)
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    # A normal with deviation 0.001 magnifies what bfloat16 rounds off.
    assert loss.item() == pytest.approx(expected.item(), rel=0.2 if isinstance(model, Moirai) else 0.01)


@pytest.mark.parametrize("kind", [Encoder, Moirai])
def test_when_values_to_predict_change_then_a_masked_model_says_the_same(kind: type[Model]) -> None:
    model, packed = make(kind), sample(1, 6, 2, seed=1)
    other = replace(packed, target=torch.where(packed.is_predicted[..., None], 99.0, packed.target))
    assert torch.equal(model.distribution(packed).mean, model.distribution(other).mean)


def test_when_the_future_changes_then_a_decoder_says_the_same_before_it() -> None:
    model, packed = make(Decoder), sample(1, 6, 2, seed=1)
    other = replace(packed, target=torch.where(packed.is_predicted[..., None], 99.0, packed.target))
    ours, theirs = (model.distribution(rows).mean for rows in (packed, other))
    assert torch.equal(ours[:, :4], theirs[:, :4])
    assert not torch.equal(ours[:, 4:], theirs[:, 4:])


def test_when_time_begins_later_then_nothing_changes(model: Model) -> None:
    packed = sample(1, 6, 2, seed=1)
    later = replace(packed, time_id=packed.time_id + 100)
    torch.testing.assert_close(likelihood(model, later), likelihood(model, packed), atol=1e-3, rtol=1e-3)


def test_when_the_decoder_forecasts_several_patches_then_each_median_is_history_for_the_next() -> None:
    model = make(Decoder)
    window = sample(1, 4, 0, seed=1)
    seen: list[Mixture] = []

    def point(patch: Mixture) -> torch.Tensor:
        seen.append(patch)
        return patch.quantiles((0.5,))[..., 0]

    patches = model.decode(replace(window, patch_size=None), 3, point)
    assert len(patches) == 3
    assert seen == patches[:2]
    assert all(isinstance(part, StudentT) for part in patches[0].components)


def test_when_weights_or_sizes_do_not_fit_then_one_line_says_what_was_expected() -> None:
    state = make(Encoder).state_dict()
    with pytest.raises(InputError, match=r"state dict of a decoder.*mask_encoding"):
        from_reference_state(Decoder, state, 32, 8)
    with pytest.raises(InputError, match=r"encoder state dict, found no 'in_proj.weight'"):
        from_reference_state(Encoder, {}, 32, 8)
    with pytest.raises(InputError, match="no key 'chronos_config'"):
        from_reference({}, {})
    with pytest.raises(InputError, match="found no key 'distr_output'"):
        moirai_from_reference({}, {}, 32, 8)
    with pytest.raises(InputError, match="heads that divide the width"):
        Encoder(32, 8, TrunkConfig(16, 2, 3))
    with pytest.raises(InputError, match="multiple of 4 channels"):
        Encoder(32, 8, TrunkConfig(12, 2, 2))
    with pytest.raises(InputError, match="patch_size out of"):
        MoiraiConfig(patch_sizes=(4, 8), patch_size=16)
    with pytest.raises(InputError, match="buckets a multiple of 4"):
        ChronosBoltConfig(buckets=6)


@pytest.mark.parametrize("kind", [Encoder, Decoder])
def test_when_padding_is_left_out_then_the_loss_and_its_gradients_are_the_same(kind: type[Encoder | Decoder]) -> None:
    torch.manual_seed(0)
    model = kind(64, 32, "10K")
    ids = torch.tensor([[1, 1, 1, 2, 2, 0, 0, 0], [1, 1, 1, 1, 2, 2, 2, 0]])
    places = torch.tensor([[0, 1, 2, 0, 1, 0, 0, 0], [0, 1, 2, 3, 0, 1, 2, 0]])
    last = torch.tensor([[0, 0, 1, 0, 1, 0, 0, 0], [0, 0, 1, 1, 0, 0, 1, 0]]).bool()
    seen = (ids > 0)[..., None] & (torch.rand(2, 8, 32) < 0.9)
    target = torch.where(seen, torch.randn(2, 8, 32), 0.0)
    packed = Packed(target, seen, ids, places, torch.zeros_like(ids), last)
    assert packed.compact().target.shape == (1, 12, 32)
    with_padding, without = model.packed_loss(packed), model.loss(packed)
    torch.testing.assert_close(without, with_padding, rtol=1e-6, atol=0)
    wanted, found = (torch.autograd.grad(loss, list(model.parameters())) for loss in (with_padding, without))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
