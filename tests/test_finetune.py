"""Fine-tuning: never to the worse, what each method trains, the same twice, and what is said of bad input."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command import done, run

from tsfm.models.base import FineTuning, Forecaster
from tsfm.models.zeroshot.encoder import ZeroShotEncoder
from tsfm.models.zeroshot.recipe import ZeroShotConfig
from tsfm.training.finetuning import (
    Finetuned,
    Recipe,
    finetune,
    is_head,
    train,
    trainable,
    without_covariates,
)
from tsfm.training.holdout import BY_SERIES, Errors, compare, errors_of, hold_out
from tsfm.training.lora import add_updates, merge
from tsfm.weights.cards import card
from tsfm.weights.pretrained import load, save
from tsfm_data.errors import InputError
from tsfm_data.io.series import SeriesSet
from tsfm_data.io.tables import read_series
from tsfm_data.windows.batch import Batch
from tsfm_data.windows.loader import item_lengths

HORIZON = 8


def tiny(seed: int = 0, **choices: bool) -> ZeroShotEncoder:
    torch.manual_seed(seed)
    config = ZeroShotConfig(d_model=16, layers=1, heads=2, patch_size=8, flip_average=False, **choices)  # type: ignore[arg-type]
    return ZeroShotEncoder(48, 16, config).eval()


def ramps(count: int = 4, rows: int = 240, noise: float = 0.7, seed: int = 0) -> SeriesSet:
    """Saw teeth of 12 steps: no model of random weights knows them, any that trains does."""
    rng = np.random.default_rng(seed)
    values = [(np.arange(rows) + 3 * k) % 12 + rng.normal(0, noise, rows) for k in range(count)]
    return SeriesSet.from_arrays("ramps", values, "h")


def same(a: Forecaster, b: Forecaster) -> bool:
    other = b.state_dict()
    return all(torch.equal(value, other[key]) for key, value in a.state_dict().items())


@pytest.fixture(scope="module")
def better() -> tuple[Forecaster, Finetuned]:
    model = tiny()
    return model, finetune(model, ramps(), HORIZON, Recipe(steps=40, checks=4, lr=5e-3, share=1.0))


def test_when_training_helps_then_the_fine_tuned_model_wins_and_the_start_is_left_alone(
    better: tuple[Forecaster, Finetuned],
) -> None:
    start, result = better
    assert same(start, tiny())
    assert result.improved
    first, last = result.candidates
    assert last.errors.score < 0.8 * first.errors.score
    assert last.against is not None
    assert last.against.wins
    assert result.trained == sum(p.numel() for p in start.parameters())
    assert result.model.training_data is not None
    assert result.model.training_data.source == "ramps"


def test_when_a_model_was_fine_tuned_then_its_card_says_from_what_how_and_on_which_data(
    better: tuple[Forecaster, Finetuned], tmp_path: Path
) -> None:
    start, result = better
    steps = result.candidate(result.winner).steps
    facts = FineTuning(start.name, "full", steps, ramps().univariate().sha256())
    assert result.model.finetuning == facts
    assert start.finetuning is None
    save(result.model, tmp_path / "tuned")
    assert load(tmp_path / "tuned").finetuning == facts
    line = f"Fine-tuned from {start.name} by method full, {steps} steps, on data of SHA-256 {facts.data_sha256}"
    for text in ((tmp_path / "tuned" / "README.md").read_text(), card(tmp_path / "tuned")):
        assert line in text
        assert "ramps" in text
    other = ramps()
    other.values[5] += 1e-9
    assert other.sha256() != ramps().sha256()
    frame = ramps().to_frame()
    frame.to_csv(tmp_path / "ramps.csv", index=False)
    assert read_series(frame).sha256() == read_series(tmp_path / "ramps.csv").sha256()


def test_when_training_harms_then_the_zero_shot_model_stays_bit_by_bit() -> None:
    start = tiny()
    rng = np.random.default_rng(0)
    noise = SeriesSet.from_arrays("noise", [rng.normal(size=160) for _ in range(3)], "h")
    learnt = finetune(start, noise, HORIZON, Recipe(steps=20, checks=2, lr=3e-3)).model
    spoilt = finetune(learnt, noise, HORIZON, Recipe(steps=4, checks=2, lr=3.0))
    assert spoilt.winner == "zero-shot"
    assert not spoilt.improved
    assert same(spoilt.model, learnt)


def test_when_the_same_seed_is_used_twice_then_the_weights_are_the_same(better: tuple[Forecaster, Finetuned]) -> None:
    start = tiny()
    torch.manual_seed(99)  # the state of the user's generator is of no account, and is kept
    before = torch.get_rng_state()
    again = finetune(start, ramps(), HORIZON, Recipe(steps=40, checks=4, lr=5e-3, share=1.0))
    assert same(again.model, better[1].model)
    assert torch.equal(before, torch.get_rng_state())


def test_when_the_head_is_trained_then_nothing_else_changes() -> None:
    model, series = tiny(), ramps(2, 160)
    recipe = Recipe("head", steps=10, lr=1e-3)
    tuned, curve, steps, count = train(model, series, hold_out(series, model, HORIZON, 0), HORIZON, recipe)
    assert 0 < steps == curve[min(range(len(curve)), key=lambda k: curve[k][1])][0]
    after = tuned.state_dict()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, after[key])}
    assert changed == {name for name, _ in model.named_parameters() if is_head(name)}
    assert count == sum(p.numel() for name, p in model.named_parameters() if is_head(name))


def test_when_weights_are_blended_then_they_lie_between_those_of_the_start_and_the_trained_ones() -> None:
    model, series = tiny(), ramps(2, 160)
    held = hold_out(series, model, HORIZON, 0)
    whole, half = (
        train(model, series, held, HORIZON, Recipe(steps=10, checks=2, lr=1e-3, share=share))[0] for share in (1.0, 0.5)
    )
    trained = dict(whole.named_parameters())
    for (name, before), after in zip(model.named_parameters(), half.parameters(), strict=True):
        torch.testing.assert_close(after, (before + trained[name]) / 2)
    assert not same(whole, model)


def test_when_low_rank_updates_are_merged_then_forecasts_stay_and_the_model_is_as_it_was_made() -> None:
    pytest.importorskip("peft")
    model = tiny()
    add_updates(model, 2, is_head)
    updates = [p for name, p in model.named_parameters() if "lora_" in name]
    assert sum(p.numel() for p in updates) == 2 * (4 * 32 + 3 * (16 + 48))
    with torch.no_grad():
        for parameter in updates:
            parameter.normal_(0, 0.1)
    past = torch.randn(2, 48, 1, dtype=torch.float64)
    batch = Batch(past, torch.ones_like(past, dtype=torch.bool), HORIZON)
    before = model.predict(batch, (0.1, 0.5, 0.9)).quantiles
    merge(model)
    assert model.state_dict().keys() == tiny().state_dict().keys()
    assert not same(model, tiny())
    torch.testing.assert_close(model.predict(batch, (0.1, 0.5, 0.9)).quantiles, before, rtol=1e-5, atol=1e-6)


def test_when_all_weights_are_trained_then_deeper_ones_have_smaller_rates() -> None:
    model = tiny()
    groups = trainable(model, Recipe(lr=1.0, depth_decay=0.5))
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    rate_by_name = {name: rates[id(p)] for name, p in model.named_parameters()}
    assert rate_by_name["trunk.head.projection.output_layer.weight"] == 1.0
    assert rate_by_name["trunk.stack.layers.0.ffn.fc1.weight"] == 0.5
    assert rate_by_name["trunk.embed.hidden_layer.weight"] == 0.25


@pytest.mark.parametrize(("count", "rows"), [(2, 240), (BY_SERIES, 240), (BY_SERIES, 28)])
def test_when_windows_are_held_out_then_training_sees_none_and_choosing_and_judging_share_none(
    count: int, rows: int
) -> None:
    series = ramps(count, rows)
    held = hold_out(series, tiny(), HORIZON, 0)
    steps = []
    for windows in (held.select, held.judge):
        seen = {(i, row) for i, c in zip(windows.items, windows.cuts, strict=True) for row in range(c, c + HORIZON)}
        assert all(row >= held.ends[item] for item, row in seen)
        steps.append(seen)
    assert not steps[0] & steps[1]
    assert (held.ends <= item_lengths(series) - HORIZON).all()


def test_when_errors_are_compared_then_a_gain_must_be_large_sure_and_in_wql_too() -> None:
    def errors(scaled: np.ndarray, total: float = 1.0, at_once: int = 1) -> Errors:
        n = len(scaled)
        return Errors(scaled, np.full(n, total), np.ones(n), np.zeros(n, dtype=np.int64), np.arange(n) // at_once)

    base = np.array([1.0, 1.1, 0.9, 1.0, 1.2, 0.8])
    spread = np.array([0.5, -0.5, 0.5, -0.5, 0.5, -0.4])
    assert compare(errors(base), errors(base - 0.05 - 0.01 * spread, 0.9)).wins
    assert not compare(errors(base), errors(base - 0.005 - 0.001 * spread, 0.9)).wins  # half a percent
    assert not compare(errors(base), errors(base - 0.05 - spread, 0.9)).wins  # may be chance
    assert not compare(errors(base), errors(base - 0.05 - 0.01 * spread, 1.1)).wins
    assert not compare(errors(base, 1.0, 6), errors(base - 0.02 - 0.001 * spread, 0.9, 6)).wins  # all at one time
    assert compare(errors(base, 1.0, 6), errors(base - 0.05 - 0.001 * spread, 0.9, 6)).wins
    assert not compare(errors(base[:1]), errors(base[:1] - 0.5, 0.9)).wins  # one window cannot rule out chance


def test_when_a_window_is_scored_then_the_numbers_are_those_by_hand() -> None:
    class Always(ZeroShotEncoder):
        def rollout(self, batch: Batch) -> torch.Tensor:
            return batch.past.new_zeros(len(batch), batch.horizon, 1, 9)  # the mean of the history

    model = tiny()
    model.__class__ = Always
    series = SeriesSet.from_arrays("s", [np.tile([0.0, 2.0], 60)], "YS")
    held = hold_out(series, model, 4, 0)
    judged = errors_of(model, held.judge)
    # Every error is 1, so every pinball loss is one half times two; the naive error of the history is 2.
    assert judged.scaled == pytest.approx(np.full(len(judged.scaled), 0.5))
    assert judged.wql == pytest.approx(1.0)


def with_covariate(useful: bool) -> SeriesSet:
    """White noise that its known covariate tells, or does not."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=240)
    series = SeriesSet.from_arrays("noise", [x], "h")
    known = x if useful else rng.normal(size=240)
    return replace(series, known=known[:, None], known_names=("told",))


def test_when_covariates_do_not_help_then_the_winner_goes_without_them() -> None:
    result = finetune(tiny(any_variate=True), with_covariate(False), HORIZON, Recipe(steps=4, checks=2))
    assert "with covariates" not in result.winner
    assert result.ignored == ("told",)
    assert any("with covariates" in candidate.name for candidate in result.candidates)


def test_when_covariates_are_learnt_in_context_then_every_model_is_tried_with_and_without_them() -> None:
    result = finetune(tiny(), with_covariate(True), HORIZON, Recipe(steps=4, checks=2))
    tried = {candidate.name: candidate.steps for candidate in result.candidates}
    assert tried["zero-shot with covariates"] == tried["zero-shot"]
    assert tried["fine-tuned with covariates"] == tried["fine-tuned"] > 0


def test_when_covariates_are_dropped_then_rows_that_held_them_alone_are_gone() -> None:
    series = replace(with_covariate(True), future_rows=np.array([8]))
    plain = without_covariates(series)
    assert (len(plain.values), plain.known_names, plain.length(0)) == (232, (), 232)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--horizon", "100"], "expected a series of at least 308 rows"),
        (["--horizon", "0"], "horizon of at least 1"),
        (["--horizon", "8", "--method", "magic"], "magic"),
        (["--horizon", "8", "--model", "naive"], "found the baseline naive"),
        (["--horizon", "8", "--steps", "0"], "expected steps of at least 1"),
        (["--horizon", "8", "--lr", "-1"], "expected lr above 0"),
    ],
)
def test_when_fine_tuning_is_asked_for_the_impossible_then_one_line_says_why(
    words: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tiny(), tmp_path / "start")
    ramps(2, 120).to_frame().to_csv(tmp_path / "t.csv", index=False)
    given = [] if "--model" in words else ["--model", str(tmp_path / "start")]
    result = run(capsys, "finetune", str(tmp_path / "t.csv"), "--output", str(tmp_path / "out"), *given, *words)
    assert result.status == 2
    assert expected in result.err
    assert result.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_when_the_command_is_done_then_the_folder_holds_a_model_that_forecasts_and_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(tiny(), "start")
    ramps(2, 160).to_frame().to_csv("t.csv", index=False)
    words = ["finetune", "t.csv", "--horizon", "8", "--model", "start", "--steps", "20", "--lr", "5e-3"]
    output = done(capsys, *words, "--output", "out")
    assert output.startswith("Kept: fine-tuned, with ")
    facts = json.loads(Path("out/result.json").read_text())
    assert facts["summary"]["improved"] is True
    page = Path("out/report.html").read_text()
    assert "Before" in page
    assert "After" in page
    assert load("out/model").training_data is not None
    forecast = done(capsys, "forecast", "t.csv", "--horizon", "8", "--model", "out")
    assert len(forecast.splitlines()) == 1 + 2 * 8
    before = (Path("out/result.json").read_bytes(), Path("out/model/model.safetensors").read_bytes())
    done(capsys, *words, "--output", "out", "--overwrite")
    assert before == (Path("out/result.json").read_bytes(), Path("out/model/model.safetensors").read_bytes())


def test_when_the_output_is_another_folder_then_it_is_left_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    words = ["finetune", "t.csv", "--horizon", "8", "--output", str(tmp_path / "mine")]
    assert "expected a new folder" in run(capsys, *words).err
    assert (tmp_path / "mine/letter.txt").read_text() == "dear"


@pytest.mark.parametrize("rate", ["1e10", "1e30"])
def test_when_fine_tuning_diverges_then_the_line_names_the_rate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, rate: str
) -> None:
    monkeypatch.chdir(tmp_path)
    save(tiny(), "start")
    ramps(2, 160).to_frame().to_csv("t.csv", index=False)
    words = ["finetune", "t.csv", "--horizon", "8", "--model", "start", "--steps", "20", "--lr", rate]
    result = run(capsys, *words, "--output", "out")
    assert result.status == 2
    assert "training diverged" in result.err
    assert f"learning rate of {float(rate):g}" in result.err
    assert "constant" not in result.err
    assert not Path("out").exists()


def test_when_weights_start_a_training_then_they_are_the_models_and_only_the_head_is_trained(tmp_path: Path) -> None:
    from tsfm.training.from_pretrained import FromPretrained

    save(tiny(), tmp_path / "start")
    made = FromPretrained(str(tmp_path / "start"), "head")(32, 24)
    assert (made.context, made.horizon) == (32, 24)
    assert same(made, tiny())
    assert {is_head(name) for name, p in made.named_parameters() if p.requires_grad} == {True}


def test_when_low_rank_updates_are_trained_by_yaml_then_the_model_folder_holds_them_merged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    monkeypatch.chdir(tmp_path)
    save(tiny(), "start")
    ramps(2, 300).to_frame().to_csv("t.csv", index=False)
    words = [f"--config=finetune/{name}" for name in ("full", "lora")]
    words += ["--model.init_args.forecaster.init_args.model=start", "--data.source=t.csv", "--data.split=auto"]
    words += ["--data.context=48", "--data.horizon=16", "--trainer.limit_train_batches=4", "--trainer.accelerator=cpu"]
    done(capsys, "fit", *words, "--trainer.default_root_dir=run", "--trainer.enable_progress_bar=false")
    after = load("run/model").state_dict()
    changed = {key for key, value in tiny().state_dict().items() if not torch.equal(value, after[key])}
    assert after.keys() == tiny().state_dict().keys()
    assert changed
    assert all(".layers." in key and key.endswith("weight") for key in changed)


def test_when_a_recipe_is_out_of_range_then_it_is_refused() -> None:
    with pytest.raises(InputError, match="seed"):
        Recipe(seed=-1)
    with pytest.raises(InputError, match="depth_decay"):
        Recipe(depth_decay=0.0)
