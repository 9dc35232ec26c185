"""Gaps are filled from both sides, with an interval; what was observed stays as it is."""

from pathlib import Path

import impute as benchmark
import numpy as np
import pandas as pd
import pytest
from command import done, run
from tiny_series import tiny

import tsfm
from tsfm.inference import impute, load_predictor
from tsfm.inference.imputation import find_gaps, trials_of
from tsfm.inference.interpolation import Gap, by_means, by_moved_means, by_season
from tsfm_data.errors import InputError
from tsfm_data.io import SeriesSet

SEASONAL = load_predictor("seasonal-naive")


def days(rows: int = 600, seed: int = 0) -> np.ndarray:
    """A day that repeats, with noise."""
    return 3 * np.sin(2 * np.pi * np.arange(rows) / 24) + np.random.default_rng(seed).normal(0, 0.3, rows)


def with_gaps(values: np.ndarray, *gaps: tuple[int, int]) -> np.ndarray:
    values = values.copy()
    for begin, end in gaps:
        values[begin:end] = np.nan
    return values


def series(*values: np.ndarray) -> SeriesSet:
    return SeriesSet.from_arrays("days", list(values), "h")


def table(values: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"date": pd.date_range("2024-01-01", periods=len(values), freq="h"), "y": values})


@pytest.mark.parametrize("model", ["naive", "seasonal-naive", "tsfm-decoder-small"])
def test_when_gaps_are_filled_then_observed_values_are_the_same_to_the_bit_and_others_are_marked(model: str) -> None:
    values = with_gaps(days(), (100, 101), (200, 230), (400, 408))
    filled = tsfm.load(model).impute(table(values))
    seen = np.isfinite(values)
    assert list(filled.columns) == ["item_id", "date", "value", "low", "high", "filled"]
    assert filled["value"][seen].to_numpy().tobytes() == values[seen].tobytes()
    assert (filled["filled"] == ~seen).all()
    assert filled[["low", "high"]][seen].isna().all(axis=None)
    gap = filled[~seen]
    assert (gap["low"] <= gap["value"]).all()
    assert (gap["value"] <= gap["high"]).all()


def test_when_a_series_has_a_season_then_it_is_used_and_the_interval_contains_the_truth() -> None:
    truth = [days(800, seed) for seed in range(4)]
    holes = [benchmark.plant(x, 40, 4, np.random.default_rng(k)) for k, x in enumerate(truth)]
    result = impute(SEASONAL, series(*holes), 80.0)
    missing = np.isnan(np.concatenate(holes))
    errors = np.abs(result.values[:, 0] - np.concatenate(truth))[missing]
    line = np.abs(np.concatenate([benchmark.interpolate(x, 1) for x in holes]) - np.concatenate(truth))[missing]
    season = np.abs(np.concatenate([benchmark.interpolate(x, 24) for x in holes]) - np.concatenate(truth))[missing]
    assert errors.mean() < 0.2 * line.mean()
    assert errors.mean() < 1.0 * season.mean()
    inside = (result.low[:, 0] <= np.concatenate(truth)) & (np.concatenate(truth) <= result.high[:, 0])
    assert inside[missing].mean() == pytest.approx(0.8, abs=0.08)


def test_when_a_series_is_a_random_walk_then_a_gap_is_filled_by_nearly_a_line() -> None:
    walk = np.random.default_rng(0).normal(size=600).cumsum()
    holes = benchmark.plant(walk, 20, 6, np.random.default_rng(1))
    result, missing = impute(SEASONAL, series(holes)), np.isnan(holes)
    line = benchmark.interpolate(holes, 1)
    assert np.abs(result.values[:, 0] - walk)[missing].mean() <= 1.05 * np.abs(line - walk)[missing].mean()


def test_when_the_left_side_is_turned_around_then_the_fill_is_the_same_backwards() -> None:
    values = days()
    values[:240], values[240:300], values[300:] = 0.1 * values[:240], np.nan, 2 + values[300:]
    forward, backward = (impute(SEASONAL, series(x)) for x in (values, values[::-1].copy()))
    middle = slice(240, 300)
    # Trials lie elsewhere, so the weights differ a little; a fill from the left alone would differ by 2.
    assert np.abs(forward.values[middle, 0] - backward.values[::-1][middle, 0]).mean() < 0.3


def test_when_the_benchmark_interpolates_then_it_does_what_the_members_do() -> None:
    values = with_gaps(days(), (100, 103), (200, 290))
    expected = benchmark.interpolate(values, 24)
    for begin, end in ((100, 103), (200, 290)):
        np.testing.assert_allclose(by_season(values, Gap(0, 0, begin, end), 24), expected[begin:end], atol=1e-12)


def test_when_means_of_a_phase_are_taken_then_they_are_those_of_the_nearest_seasons() -> None:
    values = np.arange(12) % 3 + np.repeat([0.0, 10.0, 20.0, 30.0], 3)
    gap = Gap(0, 0, 4, 7)
    assert by_means(values, gap, 3) == pytest.approx([1 + 50 / 3, 2 + 50 / 3, 40 / 3])
    assert by_moved_means(values + 5, gap, 3) == pytest.approx(by_moved_means(values, gap, 3) + 5)
    assert np.isnan(by_means(values[:8], Gap(0, 0, 1, 7), 7)[1:]).all()


def test_when_values_are_missing_at_the_ends_then_they_are_no_gaps() -> None:
    values = with_gaps(days(), (0, 20), (300, 310), (590, 600))
    assert list(find_gaps(series(values))) == [Gap(0, 0, 300, 310)]
    result = impute(SEASONAL, series(values, np.full(50, np.nan)))
    assert np.isnan(result.values[:20]).all()
    assert result.filled.sum() == 10
    empty, ends = result.notes()
    assert empty == "1 of 2 series have no value at all and stay as they are: '1'"
    assert "30 missing values before the first or after the last one" in ends
    assert impute(SEASONAL, series(days())).notes() == ["no gap between two values, so nothing was filled"]


def test_when_a_gap_is_longer_than_the_history_then_it_is_filled_by_a_line_and_a_note_says_so() -> None:
    values = with_gaps(np.arange(40.0), (5, 36))
    result = impute(SEASONAL, series(values))
    assert result.values[:, 0] == pytest.approx(np.arange(40), abs=1e-9)
    assert "1 of 1 gaps are longer than all values of their series together" in result.notes()[0]
    assert "1 of 1 gaps are filled by interpolation alone" in result.notes()[1]


def test_when_trials_are_chosen_then_their_ends_and_most_of_their_values_are_observed() -> None:
    values = with_gaps(days(), (100, 140), (300, 320))
    gaps = list(find_gaps(series(values)))
    trials = trials_of(values, gaps)
    assert len(trials) == 16
    assert {trial.size for trial in trials} == {40}
    for trial in trials:
        assert np.isfinite(values[[trial.begin - 1, trial.end]]).all()
        assert np.isfinite(values[trial.begin : trial.end]).mean() >= 0.5
    assert trials_of(with_gaps(np.arange(9.0), (1, 8)), [Gap(0, 0, 1, 8)]) == []


def test_when_units_change_then_the_same_is_filled() -> None:
    values = with_gaps(days(), (100, 101), (200, 230))
    plain = impute(SEASONAL, series(values))
    for scale in (1e-150, 1e150):
        other = impute(SEASONAL, series(values * scale))
        np.testing.assert_allclose(other.values / scale, plain.values, rtol=1e-6)
        np.testing.assert_allclose(other.high / scale, plain.high, rtol=1e-4)
    constant = impute(SEASONAL, series(with_gaps(np.full(100, 0.1), (50, 60))))
    assert constant.values[:, 0] == pytest.approx(0.1)


def test_when_variates_and_known_covariates_are_given_then_each_variate_is_filled() -> None:
    frame = table(with_gaps(days(150), (60, 66))).assign(
        z=with_gaps(days(150, 3), (80, 81)), promo=(np.arange(150) % 5 == 0).astype(float)
    )
    filled = tsfm.inference.Model(tiny()).impute(frame, target=["y", "z"], known_covariates="promo")
    assert filled.groupby("item_id")["filled"].sum().to_dict() == {"y": 6, "z": 1}
    assert filled["value"].notna().all()


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    table(with_gaps(days(400), (100, 103), (300, 330))).to_csv("days.csv", index=False)
    return "days.csv"


OUTPUTS = ("--output", "out.csv", "--plot", "out.png", "--page", "out.html")


def test_when_the_command_runs_then_all_rows_and_a_picture_are_written(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = done(capsys, "impute", file, "--model", "seasonal-naive", *OUTPUTS)
    assert "33 of 400 values filled, 2 gaps, model seasonal-naive" in said
    rows = pd.read_csv("out.csv")
    assert rows["filled"].sum() == 33
    assert rows["value"].notna().all()
    assert Path("out.png").stat().st_size > 10_000
    page = Path("out.html").read_text()
    assert all(part in page for part in ("image/svg", "33 of 400 values were filled, 2 gaps", "longest gap", ">30<"))
    printed = done(capsys, "impute", file, "--model", "seasonal-naive")
    assert printed == Path("out.csv").read_text()


BAD = {
    ("--interval", "0"): "expected an interval between 0 and 100 percent, found 0.0",
    ("--interval", "100"): "expected an interval between 0 and 100 percent, found 100.0",
    ("--model", "naiv"): "did you mean naive",
    ("--output", "out.txt"): "expected an output that ends in",
    ("--output", "days.csv"): "days.csv",
}


@pytest.mark.parametrize("words", BAD, ids=" ".join)
def test_when_input_is_bad_then_one_line_says_so(
    file: str, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    result = run(capsys, "impute", file, *words)
    assert result.status == 2
    assert result.err.count("\n") == 1
    assert BAD[words] in result.err


def test_when_there_is_no_series_then_one_line_says_so() -> None:
    with pytest.raises(InputError, match="at least one series"):
        impute(SEASONAL, SeriesSet.from_arrays("none", [], "h"))
