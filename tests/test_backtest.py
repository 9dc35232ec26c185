"""A backtest finds the best model, chooses without looking ahead, repairs intervals, and its choice is a model."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import backtest as bench
import numpy as np
import pandas as pd
import pytest
import torch
from command import done, run, script
from tiny_series import tiny

import tsfm
from tsfm import inference, weights
from tsfm.training.finetuning import training_data
from tsfm_data.errors import InputError
from tsfm_data.evaluation import Naive, evaluate
from tsfm_data.io import SeriesSet, read_series
from tsfm_data.windows import Batch, Forecast

NAIVE, SEASONAL = "naive", "seasonal-naive"
HORIZON = 6


def planted(rows: int = 240, seed: int = 0) -> SeriesSet:
    """Days that repeat, which seasonal naive knows, and random walks, which naive knows; every variate its own."""
    rng = np.random.default_rng(seed)
    days = [10 * np.sin(2 * np.pi * np.arange(rows) / 24 + k) + rng.normal(0, 0.3, rows) for k in range(2)]
    walks = [rng.normal(0, 1, rows).cumsum() for _ in range(2)]
    return SeriesSet.from_arrays("planted", [*days, *walks], "h", item_ids=["day 1", "day 2", "walk 1", "walk 2"])


def mixed(rows: int = 400) -> SeriesSet:
    """One series that is half a day that repeats and half a random walk: the mean of both forecasts is better."""
    rng = np.random.default_rng(3)
    day = 3 * np.sin(2 * np.pi * np.arange(rows) / 24)
    return SeriesSet.from_arrays("mixed", [day + rng.normal(0, 0.7, rows).cumsum()], "h")


@dataclass(frozen=True)
class Bent:
    """Naive forecasts, moved and made narrow or wide."""

    name: str
    shift: float = 0.0
    width: float = 1.0
    context: int | None = None
    marks: str | None = None
    dtype = torch.float64
    covariates = False
    joint = False

    def predict(self, batch: Batch, levels: Sequence[float]) -> Forecast:
        plain = Naive().predict(batch, levels)
        quantiles = plain.mean[..., None] + self.width * (plain.quantiles - plain.mean[..., None])
        return Forecast(plain.mean + self.shift, quantiles + self.shift, plain.levels)


@pytest.mark.slow
def test_when_one_model_is_best_for_some_series_and_another_for_others_then_each_series_gets_its_own() -> None:
    result = inference.backtest(planted(), HORIZON, (NAIVE, SEASONAL), windows=8)
    chosen = result.chosen("best-per-series")
    assert chosen == {"day 1": SEASONAL, "day 2": SEASONAL, "walk 1": NAIVE, "walk 2": NAIVE}
    board = {row["model"]: row for row in result.leaderboard()}
    losses = [row["scaled loss"] for row in result.leaderboard()]
    assert losses == sorted(losses)
    assert board["best-per-series"]["scaled loss"] < min(board[NAIVE]["scaled loss"], board[SEASONAL]["scaled loss"])
    assert result.chosen("best") in (NAIVE, SEASONAL)


def test_when_a_model_is_scored_then_its_numbers_are_those_of_the_evaluation_layer() -> None:
    series = planted()
    result = inference.backtest(series, HORIZON, (SEASONAL,), windows=1)
    report = evaluate(inference.load_predictor(SEASONAL), series, "chronos", horizon=HORIZON)
    (row,) = result.leaderboard()
    assert row["MASE"] == pytest.approx(report.value("MASE"), rel=1e-12)
    assert row["model"] == SEASONAL
    assert not result.judged  # one window can choose, but not judge what it chose


@pytest.mark.slow
def test_when_two_models_err_in_opposite_ways_then_their_mean_wins() -> None:
    rng = np.random.default_rng(0)
    series = SeriesSet.from_arrays("walks", [rng.normal(size=200).cumsum() for _ in range(5)], "D")
    result = inference.backtest(series, HORIZON, (Bent("high", 3.0), Bent("low", -3.0), Bent("far", 40.0)), windows=6)
    shares = result.chosen("ensemble")
    assert isinstance(shares, dict)
    assert shares.keys() == {"high", "low"}
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["high"] == pytest.approx(0.5, abs=0.15)
    assert result.leaderboard()[0]["model"] == "ensemble"


@pytest.mark.parametrize("choice", ["best", "best-per-series", "ensemble"])
@pytest.mark.parametrize("step", [2, HORIZON])
def test_when_the_truth_of_a_window_changes_then_what_is_judged_there_was_forecast_as_before(
    choice: str, step: int
) -> None:
    """Nothing that a window is judged by has chosen for it, nor stretched its intervals; not even partly, if windows
    overlap."""
    series = planted()
    other = SeriesSet.from_arrays(
        "planted", [np.r_[series.item(i)[:-HORIZON, 0], np.full(HORIZON, 99.0)] for i in range(4)], "h"
    )
    plain, moved = (inference.backtest(s, HORIZON, (NAIVE, SEASONAL), windows=12, step=step) for s in (series, other))
    for before, after in zip(plain.rolling(choice), moved.rolling(choice), strict=True):
        assert before is not None
        assert after is not None
        np.testing.assert_array_equal(before[-1], after[-1])
    late = max(1, HORIZON // step)
    assert not np.array_equal(plain.label[-1], moved.label[-1])
    assert plain.known(plain.judged[0]).stop <= plain.judged[0] - late + 1


@pytest.mark.parametrize("width", [0.25, 4.0])
def test_when_intervals_are_too_narrow_or_too_wide_then_calibration_brings_coverage_nearer(width: float) -> None:
    rng = np.random.default_rng(1)
    series = SeriesSet.from_arrays("walks", [rng.normal(size=300).cumsum() for _ in range(12)], "D")
    result = inference.backtest(series, HORIZON, (Bent("bent", width=width),), windows=8)
    (row,) = result.leaderboard()
    assert abs(row["80 % coverage"] - 0.8) > 0.15
    assert row["calibrated coverage"] == pytest.approx(0.8, abs=0.06)
    assert row["calibrated loss"] < row["scaled loss"]
    factors = result.selection("bent", calibrated=True).factors
    assert factors is not None
    assert factors.shape == (HORIZON, 9)
    np.testing.assert_allclose(factors[:, [0, -1]], 1 / width, rtol=0.5)


def test_when_a_series_is_constant_then_a_mean_of_models_forecasts_it_as_itself() -> None:
    members = tuple(inference.Member(name, inference.load_predictor(name), True) for name in (NAIVE, SEASONAL))
    chosen = inference.Selection(members, (0.3, 0.7))
    frame = inference.forecast_frame(chosen, SeriesSet.from_arrays("flat", [np.full(60, 0.1)], "h"), 4, (0.1, 0.9))
    assert (frame[["mean", "0.1", "0.9"]] == 0.1).all(axis=None)


def test_when_windows_are_too_few_then_calibration_is_said_to_be_not_available() -> None:
    result = inference.backtest(mixed(), HORIZON, (NAIVE, SEASONAL), windows=4)
    assert all(row["calibrated coverage"] is None for row in result.leaderboard())
    assert any("calibration: not available" in note for note in result.notes())
    with pytest.raises(InputError, match="expected at least 9 true values per step"):
        result.selection("best", calibrated=True)
    alone = inference.backtest(mixed(), HORIZON, (NAIVE, SEASONAL), windows=1)
    assert {row["model"] for row in alone.leaderboard()} == {NAIVE, SEASONAL}
    assert any("too few to score choices" in note for note in alone.notes())
    assert alone.chosen("best") in (NAIVE, SEASONAL)


@pytest.mark.parametrize("choice", ["best", "best-per-series", "ensemble"])
def test_when_a_choice_is_saved_then_it_is_loaded_as_the_same_model(tmp_path: Path, choice: str) -> None:
    series = planted()
    result = inference.backtest(series, HORIZON, (NAIVE, SEASONAL), windows=8)
    chosen = result.selection(choice, calibrated=True)
    chosen.save(tmp_path / "choice" / "model")
    loaded = tsfm.load(tmp_path / "choice")
    before = inference.forecast_frame(chosen, series, HORIZON, (0.05, 0.1, 0.5, 0.9))
    after = loaded.forecast(series, HORIZON, levels=(0.05, 0.1, 0.5, 0.9))
    pd.testing.assert_frame_equal(before, after)
    assert loaded.name == "choice"
    backwards = loaded.forecast(series.select([3, 0]), HORIZON, levels=(0.1, 0.9))
    pd.testing.assert_frame_equal(
        backwards[backwards["item_id"] == "day 1"].reset_index(drop=True),
        after.loc[after["item_id"] == "day 1", backwards.columns].reset_index(drop=True),
    )


def test_when_no_calibration_is_asked_then_each_series_is_forecast_exactly_as_by_its_model() -> None:
    series = planted()
    chosen = inference.backtest(series, HORIZON, (NAIVE, SEASONAL), windows=8).selection("best-per-series")
    frame = inference.forecast_frame(chosen, series, HORIZON, (0.1, 0.5, 0.9)).set_index("item_id")
    for name, model in {"day 1": SEASONAL, "walk 2": NAIVE}.items():
        alone = inference.forecast_frame(inference.load_predictor(model), series, HORIZON, (0.1, 0.5, 0.9))
        pd.testing.assert_frame_equal(frame.loc[[name]], alone.set_index("item_id").loc[[name]])
    scores = {}
    for predictor in (chosen, inference.load_predictor(SEASONAL)):
        report = evaluate(predictor, series, "table", horizon=HORIZON, per_series=True)
        rows = [row for row in report.rows if row.get("item_id") == "day 1"]
        scores[predictor.name] = {row["metric"]: row["value"] for row in rows}
    assert scores["best-per-series"] == scores[SEASONAL]


def test_when_variates_belong_together_then_each_has_its_own_choice() -> None:
    single = planted()
    wide = SeriesSet.from_arrays("wide", [single.values.reshape(4, -1).T], "h", variates=single.item_ids)
    result = inference.backtest(wide, HORIZON, (NAIVE, SEASONAL), windows=8)
    apart = inference.backtest(single, HORIZON, (NAIVE, SEASONAL), windows=8)
    assert result.chosen("best-per-series") == apart.chosen("best-per-series")
    frames = [
        inference.forecast_frame(r.selection("best-per-series", calibrated=True), s, HORIZON, (0.1, 0.9))
        for r, s in ((result, wide), (apart, single))
    ]
    pd.testing.assert_frame_equal(*frames)


def test_when_a_model_of_a_folder_is_a_member_then_the_choice_carries_its_weights(tmp_path: Path) -> None:
    weights.save(tiny(), tmp_path / "own")
    series = planted()
    model = tsfm.load(tmp_path / "own")
    result = model.backtest(series, HORIZON, (NAIVE,), windows=3)
    chosen = result.selection("own")
    chosen.save(tmp_path / "saved")
    pd.testing.assert_frame_equal(
        tsfm.load(tmp_path / "saved").forecast(series, HORIZON), model.forecast(series, HORIZON)
    )


@pytest.mark.slow
def test_when_models_are_refitted_then_each_window_has_a_model_of_its_own_past(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    teeth = [(np.arange(240) + 3 * k) % 12 + rng.normal(0, 0.7, 240) for k in range(4)]
    series = SeriesSet.from_arrays("teeth", teeth, "h")
    boards = []
    for refit in (False, True):
        result = inference.backtest(series, 8, (tiny(), NAIVE), windows=1, refit=refit)
        boards.append({row["model"]: row["scaled loss"] for row in result.leaderboard()})
    assert boards[1][NAIVE] == boards[0][NAIVE]
    assert boards[1]["zeroshot-encoder"] < 0.95 * boards[0]["zeroshot-encoder"]
    result.selection("best").save(tmp_path / "refitted")
    assert tsfm.load(tmp_path / "refitted").forecast(series, 8).shape == (32, 12)


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    series = planted()
    frame = pd.DataFrame(series.values.reshape(4, -1).T, columns=list(series.item_ids))
    frame.insert(0, "date", series.timestamps(0))
    frame.to_csv("table.csv", index=False)
    return "table.csv"


@pytest.mark.slow
def test_when_the_command_runs_then_it_prints_a_leaderboard_and_leaves_page_numbers_and_model(
    table: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["backtest", table, "--horizon", "6", "--models", NAIVE, SEASONAL, "--windows", "8"]
    said = done(capsys, *words, "--model", "best-per-series", "--calibrate", "--output", "out")
    assert "| model " in said
    assert said.index("best-per-series") < said.index("| naive")
    found = json.loads(Path("out/backtest.json").read_text())
    rows = found["rows"]
    assert {row["item_id"] for row in rows} == {None, "day 1", "day 2", "walk 1", "walk 2"}
    assert {row["step"] for row in rows} == {None, *range(1, 7)}
    assert found["summary"]["choice"]["best-per-series"]["walk 1"] == NAIVE
    assert found["summary"]["windows"]["judge"] == [5, 6, 7, 8]
    page = Path("out/report.html").read_text()
    assert "<svg" in page or "image/svg+xml" in page
    assert "best-per-series" in page
    assert done(capsys, "forecast", table, "--horizon", "6", "--model", "out").count("\n") == 25
    again = done(capsys, *words, "--model", "best-per-series", "--calibrate", "--output", "again")
    assert again.splitlines()[0] == said.splitlines()[0]
    twice = json.loads(Path("again/backtest.json").read_text())
    assert twice["rows"] == rows
    assert Path("again/model/config.json").read_text() == Path("out/model/config.json").read_text()


@pytest.mark.slow
def test_when_forecast_is_asked_for_the_best_model_then_a_backtest_chooses_it(
    table: str, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(capsys, "forecast", table, "--horizon", "6", "--model", "ensemble")
    assert result.status == 0
    assert "a backtest" in result.err
    assert result.out.count("\n") == 25


BAD = {
    ("--horizon", "400"): "expected at least 402 rows in every series",
    ("--horizon", "0"): "expected a horizon of at least 1 step",
    ("--horizon", "6", "--windows", "0"): "expected windows of at least 1",
    ("--horizon", "6", "--windows", "60"): "no more fit",
    ("--horizon", "6", "--step", "0"): "expected step of at least 1",
    ("--horizon", "6", "--models", "naiv"): "did you mean naive",
    ("--horizon", "6", "--models", "naive", "naive"): "found naive twice",
    ("--horizon", "6", "--model", "worst"): "invalid choice",
    ("--horizon", "6", "--models", "naive", "--windows", "1", "--calibrate"): "expected at least 9 true values",
    ("--horizon", "6", "--models", "naive", "--output", "full"): "found full",
}


@pytest.mark.parametrize("words", BAD, ids=" ".join)
def test_when_input_is_bad_then_one_line_says_so(
    table: str, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    Path("full").mkdir()
    Path("full/notes.txt").write_text("mine")
    result = run(capsys, "backtest", table, *words)
    assert result.status == 2
    assert result.err.count("\n") == 1
    assert BAD[words] in result.err
    assert sorted(p.name for p in Path().iterdir()) == ["full", "table.csv"]


def test_when_a_saved_choice_is_damaged_then_one_line_says_so(tmp_path: Path) -> None:
    chosen = inference.backtest(planted(), HORIZON, (NAIVE, SEASONAL), windows=8).selection("ensemble", calibrated=True)
    chosen.save(tmp_path / "good")
    whole = json.loads((tmp_path / "good/config.json").read_text())
    damaged = [
        {"members": ["nothing"]},
        {"members": []},
        {"members": [str(tmp_path / "good")] * len(whole["members"])},
        {"weights": [0.5]},
        {"weights": ["a", "b"]},
        {"weights": [float("nan")] * len(whole["members"])},
        {"series": {"day 1": [1.0, 1.0, 1.0]}},
        {"factors": [[1.0]]},
        {"factors": "wide"},
        {"format_version": 99},
    ]
    folder = tmp_path / "bad"
    folder.mkdir()
    for change in damaged:
        (folder / "config.json").write_text(json.dumps(whole | change))
        with pytest.raises(InputError) as error:
            tsfm.load(folder)
        assert "\n" not in str(error.value), change


def test_when_a_predictor_of_ones_own_is_chosen_then_it_cannot_be_saved_and_a_line_says_so(tmp_path: Path) -> None:
    result = inference.backtest(planted(), HORIZON, (Bent("own"),), windows=2)
    with pytest.raises(InputError, match="can be saved, found own"):
        result.selection("best").save(tmp_path / "model")


def test_when_a_model_was_trained_on_the_table_then_a_line_says_that_its_scores_are_not_of_new_data() -> None:
    series, model = planted(), tiny()
    model.training_data = training_data(series, model)
    notes = inference.backtest(series, HORIZON, (model, NAIVE), windows=2).notes()
    assert any("was trained on planted" in note for note in notes)


@pytest.mark.slow
def test_when_the_bench_runs_then_each_choice_stands_beside_each_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("vega_datasets")
    words = ["--sets", "seattle_weather", "--models", NAIVE, SEASONAL, "--output", str(tmp_path)]
    assert script(capsys, bench.main, *words).status == 0
    rows = json.loads((tmp_path / "backtest.json").read_text())["rows"]
    assert {row["model"] for row in rows} == {NAIVE, SEASONAL, *inference.CHOICES}
    assert "python benchmarks/backtest.py --sets seattle_weather" in (tmp_path / "backtest.md").read_text()
    assert script(capsys, bench.main, "--sets", "seatle").status == 2


def test_series_that_repeat_themselves_choose_the_model_that_repeats_them() -> None:
    week = np.tile([10.0, 20, 30, 40, 50, 70, 5], 20)
    days = pd.date_range("2024-01-01", periods=len(week))
    series = read_series(pd.DataFrame({"date": days, "a": week, "b": np.roll(week, 3)}))
    result = inference.backtest(series, 6, [NAIVE, SEASONAL])
    assert result.chosen("best") == SEASONAL
    assert set(result.chosen("best-per-series").values()) == {SEASONAL}
    assert result.chosen("ensemble") == {SEASONAL: 1}
    assert [row["model"] for row in result.leaderboard()][-1] == NAIVE


def test_one_short_series_is_left_out_when_bad_ones_are_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    days = pd.date_range("2024-01-01", periods=60)
    frame = pd.DataFrame({"item_id": [*["a"] * 60, "b"], "timestamp": [*days, days[0]], "target": np.arange(61.0)})
    frame.to_csv(tmp_path / "table.csv", index=False)
    words = ["backtest", str(tmp_path / "table.csv"), "--horizon", "3", "--models", NAIVE, SEASONAL]
    refused = run(capsys, *words)
    assert refused.status == 2
    assert "found 1 in 'b'" in refused.err
    assert "--on-bad-series skip" in refused.err
    skipped = run(capsys, *words, "--on-bad-series", "skip")
    assert skipped.status == 0
    assert "1 of 2 series left out, too short for a horizon of 3: b" in skipped.err
