"""The zero-shot models learn the effect of covariates from each history, and useless ones cost nothing."""

from dataclasses import replace

import pytest
import torch
from jaxtyping import Bool, Float
from tiny_series import make, with_known
from tiny_series import make_batch as tiny_batch
from torch import Tensor

from tsfm.inference.predictors import load_predictor
from tsfm.models.base import select
from tsfm.models.covariates import standardise_covariates
from tsfm.models.zeroshot.covariate_features import features, within_range
from tsfm.models.zeroshot.recipe import ZeroShotForecaster
from tsfm.nn import mean_pinball_loss
from tsfm_data.evaluation import Predictor
from tsfm_data.windows.batch import Batch

LEVELS = tuple(i / 10 for i in range(1, 10))
T, H, ROWS = 240, 12, 24
IN_CONTEXT = ["zeroshot-encoder", "zeroshot-decoder", "zeroshot-long"]


@pytest.fixture(scope="module")
def model() -> Predictor:
    return load_predictor("tsfm-decoder-small")


def noise(*shape: int, seed: int = 0) -> Float[Tensor, "..."]:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seasonal(steps: int = T + H) -> Float[Tensor, "R S"]:
    """Series with a season of twelve steps and noise of size 1."""
    return 3 * torch.sin(2 * torch.pi * torch.arange(steps) / 12) + noise(ROWS, steps)


def windows(
    y: Float[Tensor, "R S"],
    known: Float[Tensor, "R S K"] | None = None,
    past: Float[Tensor, "R S P"] | None = None,
    seen: Bool[Tensor, "R S _"] | None = None,
) -> tuple[Batch, Float[Tensor, "R H 1"]]:
    """Windows that end ``H`` steps before the series, and what follows. ``seen``: where covariates are observed."""
    first = y.shape[1] - H
    batch = Batch(y[:, :first, None], torch.ones(len(y), first, 1, dtype=torch.bool), H, 12)
    if known is not None:
        observed = torch.ones_like(known, dtype=torch.bool) if seen is None else seen
        x = torch.where(observed, known, 0.0)
        batch = replace(batch, known_past=x[:, :first], known_past_observed=observed[:, :first])
        batch = replace(batch, known_future=x[:, first:], known_future_observed=observed[:, first:])
    if past is not None:
        observed = torch.ones_like(past, dtype=torch.bool) if seen is None else seen
        batch = replace(batch, past_covariates=torch.where(observed, past, 0.0)[:, :first])
        batch = replace(batch, past_covariates_observed=observed[:, :first])
    return batch, y[:, first:, None]


def bare(batch: Batch) -> Batch:
    return Batch(batch.past, batch.past_observed, batch.horizon, batch.season)


def error(model: Predictor, batch: Batch, truth: Float[Tensor, "R H 1"], steps: int = H) -> float:
    """Mean absolute error of the median over the first steps."""
    return float((model.predict(batch, LEVELS).quantiles[..., 4] - truth)[:, :steps].abs().mean())


def coverage(model: Predictor, batch: Batch, truth: Float[Tensor, "R H 1"]) -> float:
    quantiles = model.predict(batch, LEVELS).quantiles
    return float(((quantiles[..., 0] <= truth) & (truth <= quantiles[..., -1])).double().mean())


def promotion() -> Float[Tensor, "R S"]:
    return (noise(ROWS, T + H, seed=5) > 1.3).double()


EFFECTS = {
    "linear": (noise(ROWS, T + H, seed=5), lambda x: 2 * x),
    "promotion": (promotion(), lambda x: 5 * x),
    "saturating": (4 * noise(ROWS, T + H, seed=5).abs(), lambda x: 6 * torch.tanh(x / 2)),
    "turning": (noise(ROWS, T + H, seed=5), lambda x: 2 * x.square()),
    "category": (
        torch.randint(4, (ROWS, T + H), generator=torch.Generator().manual_seed(5)).double(),
        lambda x: 4 * (x == 1),
    ),
    "late": (noise(ROWS, T + H, seed=5), lambda x: 2 * x.roll(3, 1)),
    "early": (noise(ROWS, T + H, seed=5), lambda x: 2 * x.roll(-1, 1)),
}


@pytest.mark.parametrize("kind", EFFECTS)
def test_when_a_known_covariate_has_an_effect_then_most_of_the_error_it_causes_is_gone(
    model: Predictor, kind: str
) -> None:
    x, effect = EFFECTS[kind]
    pure = seasonal()
    batch, truth = windows(pure + effect(x), x[..., None])
    least = error(model, *windows(pure))
    blind, using = error(model, bare(batch), truth), error(model, batch, truth)
    assert using - least < 0.5 * (blind - least)


@pytest.mark.parametrize("value", [-999.0, 1e9, 1e30])
@pytest.mark.parametrize("step", [T // 2, T - 100, T - 1, T + 3])
def test_when_a_covariate_has_a_wild_value_then_its_effect_is_still_found(
    model: Predictor, value: float, step: int
) -> None:
    x = noise(ROWS, T + H, 1, seed=5)
    pure = seasonal()
    truth_of_x = x.clone()
    x[:, step] = value
    batch, truth = windows(pure + 2 * truth_of_x[..., 0], x)
    least = error(model, *windows(pure))
    blind, using = error(model, bare(batch), truth), error(model, batch, truth)
    assert using - least < 0.5 * (blind - least)


def test_when_an_event_is_rare_then_it_is_not_a_wild_value() -> None:
    flag = torch.zeros(1, 100, 1, dtype=torch.float64)
    flag[:, [20, 50, 80]] = 1
    seen = torch.ones_like(flag, dtype=torch.bool)
    batch = Batch(flag, seen, 20, known_past=flag, known_past_observed=seen)
    batch = replace(batch, known_future=flag[:, :20], known_future_observed=seen[:, :20])
    found = standardise_covariates(batch)
    assert found.known_past_observed is not None
    assert found.known_past_observed.all()


@pytest.mark.parametrize("lag", [3, 7])
def test_when_a_series_follows_another_then_it_is_forecast_better_as_far_as_that_is_known(
    model: Predictor, lag: int
) -> None:
    x = noise(ROWS, T + H + lag, seed=6)
    batch, truth = windows(seasonal() + 2 * x[:, : T + H], past=x[:, lag:, None])
    assert error(model, batch, truth, lag) < 0.65 * error(model, bare(batch), truth, lag)
    later = slice(lag, None)  # where nothing is known, the forecast without covariates stays
    found, expected = (model.predict(b, LEVELS).quantiles[:, later] for b in (batch, bare(batch)))
    assert float((found - expected).abs().mean()) < 0.1


def test_when_another_random_walk_leads_then_its_latest_steps_are_followed(model: Predictor) -> None:
    walk = noise(ROWS, T + H + 3, seed=7).cumsum(1)
    batch, truth = windows(walk[:, : T + H] + 0.5 * noise(ROWS, T + H, seed=8), past=walk[:, 3:, None])
    assert error(model, batch, truth, 3) < 0.8 * error(model, bare(batch), truth, 3)


def test_when_a_covariate_has_gaps_then_its_effect_is_still_found(model: Predictor) -> None:
    x = noise(ROWS, T + H, 1, seed=5)
    seen = torch.rand(x.shape, generator=torch.Generator().manual_seed(9)) > 0.3
    seen[:, T:] = True
    batch, truth = windows(seasonal() + 2 * x[..., 0], x, seen=seen)
    assert error(model, batch, truth) < 0.75 * error(model, bare(batch), truth)


def test_when_an_effect_is_used_then_intervals_hold_as_much_as_without_it(model: Predictor) -> None:
    x = noise(ROWS, T + H, seed=5)
    pure = seasonal()
    expected = coverage(model, *windows(pure))
    assert coverage(model, *windows(pure + 2 * x, x[..., None])) == pytest.approx(expected, abs=0.06)


def useless(kind: str) -> tuple[Float[Tensor, "R S K"], Bool[Tensor, "R S K"]]:
    shape = (ROWS, T + H, 1000 if kind == "thousand" else 5)
    x, seen = noise(*shape, seed=10), torch.ones(shape, dtype=torch.bool)
    if kind == "walks":
        x = x.cumsum(1)
    if kind == "constants":
        x = torch.full_like(x, 7.0)
    if kind == "copies":
        x = x[..., :1].cumsum(1).expand(shape).clone()
    if kind == "seasons":
        x = x + 5 * torch.sin(2 * torch.pi * torch.arange(T + H) / 12)[:, None]
    if kind == "missing":
        seen[:] = False
    if kind == "large":
        x = x * 1e30 + 1e32
    return x, seen


@pytest.mark.parametrize("kind", ["noise", "walks", "constants", "copies", "seasons", "missing", "large", "thousand"])
@pytest.mark.parametrize("series", ["season", "walk"])
def test_when_covariates_say_nothing_then_they_cost_at_most_a_hundredth(
    model: Predictor, kind: str, series: str
) -> None:
    x, seen = useless(kind)
    batch, truth = windows(seasonal() if series == "season" else noise(ROWS, T + H).cumsum(1), x, seen=seen)
    found, expected = (model.predict(b, LEVELS).quantiles for b in (batch, bare(batch)))
    assert found.isfinite().all()
    assert (found.diff(dim=-1) >= 0).all()
    loss, least = (float(mean_pinball_loss(q, truth, LEVELS).mean()) for q in (found, expected))
    assert loss <= 1.01 * least
    assert float((found[..., 4] - truth).abs().mean()) <= 1.01 * float((expected[..., 4] - truth).abs().mean())


@pytest.mark.parametrize("name", ["tsfm-decoder-small", *IN_CONTEXT])
@pytest.mark.parametrize("kind", ["constants", "copies", "missing", "large"])
def test_when_covariates_are_degenerate_then_quantiles_are_finite_and_ordered(name: str, kind: str) -> None:
    predictor = load_predictor(name) if name.startswith("tsfm") else make(name, "quantile")
    x, seen = useless(kind)
    # The first covariate has an effect, so those beside it are not merely ignored.
    x[..., 0], seen[..., 0] = noise(ROWS, T + H, seed=5), True
    if kind == "copies":
        x = x[..., :1].expand_as(x).clone()
    batch, truth = windows(seasonal() + 2 * x[..., 0], x, seen=seen)
    found = predictor.predict(batch, LEVELS).quantiles
    assert found.isfinite().all()
    assert (found.diff(dim=-1) >= 0).all()
    if name.startswith("tsfm"):
        assert error(predictor, batch, truth) < 0.75 * error(predictor, bare(batch), truth)


@pytest.mark.parametrize("steps", [30, 100])
@pytest.mark.parametrize("season", [168, 10_000])
def test_when_the_season_is_longer_than_the_history_then_quantiles_are_finite_and_ordered(
    model: Predictor, steps: int, season: int
) -> None:
    step = torch.arange(steps + H, dtype=torch.float64)
    wave = torch.sin(2 * torch.pi * step / season).expand(ROWS, -1)
    batch, _ = windows(wave + 0.1 * noise(ROWS, steps + H), wave[..., None] + noise(ROWS, steps + H, 1, seed=1))
    found = model.predict(replace(batch, season=season), LEVELS).quantiles
    assert found.isfinite().all()
    assert (found.diff(dim=-1) >= 0).all()


@pytest.mark.parametrize("steps", [1, 2, 20, 35])
def test_when_the_history_is_short_then_covariates_are_not_trusted(model: Predictor, steps: int) -> None:
    batch, _ = windows(noise(ROWS, steps + H), noise(ROWS, steps + H, 5, seed=2).cumsum(1))
    assert torch.equal(model.predict(batch, LEVELS).quantiles, model.predict(bare(batch), LEVELS).quantiles)


@pytest.mark.parametrize("name", IN_CONTEXT)
@pytest.mark.parametrize("steps", [1, 2, 3, 23])
def test_when_a_history_of_a_few_steps_is_not_padded_then_it_is_forecast_without_covariates(
    name: str, steps: int
) -> None:
    model = make(name, "quantile")
    batch, _ = windows(noise(ROWS, steps + H), noise(ROWS, steps + H, 2, seed=2))
    found, expected = (model.predict(b, LEVELS).quantiles for b in (batch, bare(batch)))
    assert found.isfinite().all()
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", IN_CONTEXT)
def test_when_there_are_no_covariates_then_nothing_changes(name: str) -> None:
    model = make(name, "quantile")
    batch = tiny_batch()
    assert model.covariates
    assert torch.equal(model.rollout(batch), model.unroll(batch))  # type: ignore[operator]
    empty = with_known(batch)
    empty = replace(empty, known_past_observed=empty.known_past_observed & False)  # type: ignore[operator]
    empty = replace(empty, past_covariates_observed=empty.past_covariates_observed & False)  # type: ignore[operator]
    assert torch.equal(model.rollout(empty), model.unroll(batch))  # type: ignore[operator]


def test_when_variates_see_each_other_then_covariates_are_variates() -> None:
    model = make("zeroshot-decoder", "any-variate")
    assert isinstance(model, ZeroShotForecaster)
    batch = with_known(tiny_batch())
    assert torch.equal(model.rollout(batch), model.unroll(batch))
    assert not torch.equal(model.rollout(batch), model.unroll(bare(batch)))


def test_when_windows_come_alone_or_in_other_units_then_the_forecast_is_the_same(model: Predictor) -> None:
    x = noise(ROWS, T + H, 1, seed=5)
    batch, _ = windows(seasonal() + 2 * x[..., 0], x)
    expected = model.predict(batch, LEVELS).quantiles
    alone = model.predict(select(batch, torch.tensor([3])), LEVELS).quantiles
    torch.testing.assert_close(alone, expected[3:4], rtol=1e-4, atol=1e-4)
    other, _ = windows(seasonal() + 2 * x[..., 0], 1000 * x + 5)
    torch.testing.assert_close(model.predict(other, LEVELS).quantiles, expected, rtol=1e-3, atol=1e-3)


def test_when_windows_have_several_variates_then_each_has_its_own_effect(model: Predictor) -> None:
    x = noise(ROWS, T + H, 1, seed=5)
    first, second = seasonal() + 2 * x[..., 0], noise(ROWS, T + H, seed=3) - 3 * x[..., 0]
    batch, _ = windows(first, x)
    other, _ = windows(second, x)
    both = replace(
        batch, past=torch.cat([batch.past, other.past], 2), past_observed=batch.past_observed.expand(-1, -1, 2)
    )
    found = model.predict(both, LEVELS).quantiles
    for variate, single in enumerate((batch, other)):
        expected = model.predict(single, LEVELS).quantiles[:, :, 0]
        torch.testing.assert_close(found[:, :, variate], expected, rtol=1e-4, atol=1e-4)


def test_when_a_known_covariate_leaves_its_range_then_the_forecast_stays_near_the_history(model: Predictor) -> None:
    x = noise(ROWS, T + H, 1, seed=5)
    batch, _ = windows(seasonal() + 2 * x[..., 0], x)
    assert batch.known_future is not None
    wild = replace(batch, known_future=batch.known_future + 1e9)
    history = batch.past.abs().amax(1, keepdim=True)[..., None]
    assert (model.predict(wild, LEVELS).quantiles.abs() < 4 * history).all()


def test_the_range_of_a_covariate_is_that_of_its_seen_history() -> None:
    x = torch.tensor([[[0.0, 1.0, 99.0, 50.0, -50.0]]])
    seen = torch.tensor([[[True, True, False, True, True]]])
    assert within_range(x, seen, 3)[0, 0, 3:].tolist() == [1.5, -0.5]
    assert not within_range(x, seen & False, 3).any()


def test_a_covariate_with_few_values_has_a_column_for_each_and_others_have_hinges() -> None:
    few, many = torch.tensor([0.0, 2, 5, 5, 2, 0, 2, 5, 0, 2]), torch.arange(10.0)
    x = torch.stack([few, many])[None]
    columns = features(x, torch.ones_like(x, dtype=torch.bool), 10)
    assert torch.equal(columns[0, :, 0], x[0])
    own = [tuple(column.tolist()) for column in columns[0, 0, 1:] if column.any()]
    assert own == [tuple((few == value).float().tolist()) for value in (0, 2, 5)]
    hinges = [column for column in columns[0, 1, 1:] if column.any()]
    assert [int((column == 0).sum()) for column in hinges] == [4, 7]
