"""Anomalies are found from earlier values alone, at the rate of false alarms asked for, in batches as in streams."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command import done, run
from tiny_series import tiny

import tsfm
from tsfm.inference import Detector, load_predictor
from tsfm.inference.anomaly_scores import calibration_size
from tsfm_data.errors import InputError
from tsfm_data.io import SeriesSet

NAIVE, SEASONAL = load_predictor("naive"), load_predictor("seasonal-naive")
NUMBERS = ["value", "expected", "low", "high", "score", "p_value"]


def days(rows: int = 600, seed: int = 0) -> np.ndarray:
    """A day that repeats, with noise."""
    return 3 * np.sin(2 * np.pi * np.arange(rows) / 24) + np.random.default_rng(seed).normal(0, 0.3, rows)


def table(values: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"date": pd.date_range("2024-01-01", periods=len(values), freq="h"), "y": values})


def frame_of(*values: np.ndarray, **options: object) -> pd.DataFrame:
    return Detector(SEASONAL, SeriesSet.from_arrays("days", list(values), "h"), **options).table()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "first", "end"), [("value", 400, 401), ("frozen", 400, 430), ("drift", 400, 424), ("value", 400, 420)]
)
def test_when_an_anomaly_is_planted_then_it_is_found_by_its_kind(kind: str, first: int, end: int) -> None:
    values = days()
    if kind == "frozen":
        values[first:end] = values[first - 1]
    else:
        values[first:end] += 1.2 if kind == "drift" else 8
    frame = frame_of(values)
    planted = frame.iloc[first:end]
    assert (planted["kind"] == kind).any()
    assert planted["anomaly"].mean() >= (0.2 if kind == "drift" else 0.4)
    assert frame.drop(planted.index)["anomaly"].mean() < 0.02


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "count"), [(0.01, 12), (0.05, 3)])
def test_when_series_are_clean_then_as_many_values_are_flagged_as_asked(rate: float, count: int) -> None:
    rng = np.random.default_rng(0)
    noise = [rng.standard_t(4, 1000) for _ in range(count)]
    walks = [rng.normal(size=1000).cumsum() for _ in range(count)]
    found = Detector(NAIVE, SeriesSet.from_arrays("clean", noise + walks, "h"), rate)
    assert found.judged > 1700 * count
    assert found.table()["anomaly"].sum() / found.judged == pytest.approx(rate, rel=0.2)


@pytest.mark.parametrize(("count", "rate"), [(99, 0.01), (150, 0.01), (5000, 0.01), (40, 0.05), (500, 0.03)])
def test_when_scores_are_ranked_then_the_share_above_the_limit_is_the_rate(count: int, rate: float) -> None:
    size, above = calibration_size(count, rate)
    assert size <= count
    assert above / (size + 1) == pytest.approx(rate, rel=0.02)
    assert calibration_size(round(1 / rate) - 2, rate)[1] == 0


def test_when_later_values_change_then_earlier_rows_stay_as_they_were() -> None:
    values, other = days(), days()
    other[300:] += 50 * np.random.default_rng(1).normal(size=300)
    both = [frame_of(x) for x in (values, other)]
    pd.testing.assert_frame_equal(both[0].iloc[:300], both[1].iloc[:300])
    assert not both[0].iloc[300:].equals(both[1].iloc[300:])


@pytest.mark.parametrize("model", ["seasonal-naive", "tsfm-decoder-small"])
def test_when_rows_come_one_by_one_then_they_are_judged_as_in_one_batch(model: str) -> None:
    values = days(260)
    values[200] += 9
    values[230:245] = np.nan
    values[247:256] = values[246]
    whole, loaded = table(values), tsfm.load(model)
    batch = loaded.detect(whole, rate=0.05)
    stream = loaded.detector(whole.iloc[:190], rate=0.05)
    parts = [stream.series.present(stream.table())]
    for first, end in ((190, 191), (191, 192), (192, 205), (205, 230), (245, 250), (250, 251), (251, 260)):
        parts.append(stream.update(whole.iloc[first:end]))  # the missing rows are a gap
    joined = pd.concat(parts, ignore_index=True)
    assert batch["anomaly"].any()
    pd.testing.assert_frame_equal(joined.drop(columns=NUMBERS), batch.drop(columns=NUMBERS))
    np.testing.assert_allclose(joined[NUMBERS].to_numpy(), batch[NUMBERS].to_numpy(), rtol=1e-4, atol=1e-5)


def test_when_series_of_a_long_table_or_an_array_go_on_then_old_and_new_items_are_judged() -> None:
    def long(first: int, end: int, *names: str) -> pd.DataFrame:
        parts = [table(days(300, len(name)))[first:end].assign(unique_id=name) for name in names]
        return pd.concat(parts)[["unique_id", "date", "y"]]

    stream = tsfm.load("naive").detector(long(0, 200, "a", "bb"), rate=0.05)
    later = stream.update(pd.concat([long(200, 220, "a"), long(0, 100, "ccc")]))
    assert later["unique_id"].tolist() == ["a"] * 20 + ["ccc"] * 100
    batch = tsfm.load("naive").detect(
        pd.concat([long(0, 220, "a"), long(0, 200, "bb"), long(0, 100, "ccc")]), rate=0.05
    )
    joined = stream.series.present(stream.table())
    pd.testing.assert_frame_equal(joined, batch)
    array = np.stack([days(300, seed) for seed in range(3)])
    stream = tsfm.load("naive").detector(array[:, :250], rate=0.05)
    rows = pd.concat([stream.update(array[:, first : first + 25]) for first in (250, 275)])
    whole = tsfm.load("naive").detect(array, rate=0.05)
    for name in range(3):
        expected = whole[whole["item_id"] == name].iloc[250:].reset_index(drop=True)
        pd.testing.assert_frame_equal(rows[rows["item_id"] == name].reset_index(drop=True), expected)


def test_when_one_row_of_each_series_comes_at_a_time_then_it_is_judged_as_in_one_batch() -> None:
    stamps = pd.date_range("2024-01-01", periods=60, freq="h")
    parts = [pd.DataFrame({"id": name, "time": stamps, "value": days(60, i)}) for i, name in enumerate("abc")]
    whole = pd.concat(parts).sort_values(["time", "id"], ignore_index=True)
    whole.loc[whole["time"] == stamps[55], "value"] = np.nan
    model = tsfm.load("seasonal-naive")
    stream = model.detector(whole[whole["time"] < stamps[50]], rate=0.1)
    rows = pd.concat([stream.update(part) for _, part in whole[whole["time"] >= stamps[50]].groupby("time")])
    expected = model.detect(whole, rate=0.1)
    expected = expected[expected["time"] >= stamps[50]].sort_values(["time", "id"], ignore_index=True)
    pd.testing.assert_frame_equal(rows.reset_index(drop=True), expected)
    assert expected["value"].isna().sum() == 3


def test_when_a_value_is_flagged_then_later_forecasts_do_not_know_it_unless_it_lasts() -> None:
    values = np.random.default_rng(0).normal(0, 0.1, 300)
    values[16 + 8 * 20 - 1] = 30  # the last value of a block, so naive would repeat it
    spike = Detector(NAIVE, SeriesSet.from_arrays("spike", [values], "h"), 0.05).table()
    assert spike["anomaly"][175]
    assert abs(spike["expected"][176:184]).max() < 0.5
    values[150:] += 5  # for good
    shift = Detector(NAIVE, SeriesSet.from_arrays("shift", [values], "h"), 0.05).table()
    assert shift["anomaly"][150:158].all()
    assert shift["expected"][190:].to_numpy() == pytest.approx(5, abs=0.5)
    assert not shift["anomaly"][240:].any() or shift["anomaly"][240:].mean() < 0.1


def test_when_a_series_is_constant_then_nothing_is_flagged_until_it_changes() -> None:
    values = np.full(200, 0.1)
    assert not frame_of(values, rate=0.05)["anomaly"].any()
    values[150] = 0.2
    assert np.flatnonzero(frame_of(values, rate=0.05)["anomaly"]).tolist() == [150]
    assert not frame_of(1e-200 * values * 1e-100, rate=0.05)["anomaly"][:150].any()


def test_when_there_are_fewer_than_16_values_before_a_row_then_nothing_is_expected_of_it() -> None:
    values = days(200)
    values[:100] = np.nan
    frame = Detector(load_predictor("tsfm-decoder-small"), SeriesSet.from_arrays("days", [values], "h")).table()
    known = frame["expected"].notna()
    assert not known[:116].any()
    assert known[124:].all()


def test_when_values_are_in_other_units_then_the_same_ones_are_flagged() -> None:
    values = days()
    values[[300, 450]] += 6
    plain = frame_of(values)
    for scale, offset in ((1e-150, 0.0), (1e150, 0.0), (2.0, 1e6)):
        other = frame_of(values * scale + offset)
        assert (other["anomaly"] == plain["anomaly"]).all()


def test_when_variates_and_known_covariates_are_given_then_each_variate_is_judged() -> None:
    frame = table(days(150)).assign(z=days(150, 3), promo=np.arange(150) % 5 == 0)
    frame["promo"] = frame["promo"].astype(float)
    options = {"target": ["y", "z"], "known_covariates": "promo", "rate": 0.05, "ahead": 5}
    batch = tsfm.inference.Model(tiny()).detect(frame, **options)
    assert batch["item_id"].unique().tolist() == ["y", "z"]
    assert batch.groupby("item_id")["p_value"].count().tolist() == [134, 134]
    stream = tsfm.inference.Model(tiny()).detector(frame.iloc[:120], **options)
    later = stream.update(frame.iloc[120:])
    expected = batch.groupby("item_id").tail(30).reset_index(drop=True)
    np.testing.assert_allclose(later[NUMBERS].to_numpy(), expected[NUMBERS].to_numpy(), rtol=1e-3, atol=1e-4)


def test_when_there_is_too_little_history_then_p_values_have_a_floor_and_a_note_says_so() -> None:
    values = days(60)
    values[50] = 90
    found = Detector(SEASONAL, SeriesSet.from_arrays("short", [values, np.full(60, np.nan)], "h"))
    frame = found.table()
    assert not frame["anomaly"].any()
    assert frame["p_value"].min() >= 1 / (60 - 16)
    empty, short = found.notes()
    assert "1 of 2 series have no value at all" in empty
    assert "1 of 2 series are too short for a rate of 0.01, which takes 99 scores" in short


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    values = days(400)
    values[300] += 9
    table(values).to_csv("days.csv", index=False)
    return "days.csv"


OUTPUTS = ("--output", "out.csv", "--plot", "out.png", "--page", "out.html")


def test_when_the_command_runs_then_it_prints_the_anomalies_and_writes_all_rows(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = done(capsys, "detect", file, "--model", "seasonal-naive", *OUTPUTS)
    assert "2024-01-13 12:00:00" in said
    assert "per series and week" in said
    rows = pd.read_csv("out.csv", parse_dates=["date"])
    assert len(rows) == 400
    assert rows.loc[300, ["anomaly", "kind"]].tolist() == [True, "value"]
    outside = (rows["value"] < rows["low"]) | (rows["value"] > rows["high"])
    assert (outside == (rows["kind"] == "value")).all()
    assert Path("out.png").stat().st_size > 10_000
    page = Path("out.html").read_text()
    assert all(part in page for part in ("image/svg", "2024-01-13 12:00:00", "would be false alarms", "By series"))
    assert "http" not in page.replace("http://www.w3.org", "")
    Path("short.csv").write_text("\n".join(Path(file).read_text().splitlines()[:41]))
    short = run(capsys, "detect", "short.csv", "--model", "naive")
    assert short.status == 0
    assert "no value could be judged" in short.out
    assert "give more rows, or a larger rate" in short.err


BAD = {
    ("--rate", "0"): "expected a rate of false alarms between 0 and 1, found 0.0",
    ("--rate", "1"): "expected a rate of false alarms between 0 and 1, found 1.0",
    ("--rate", "nan"): "expected a rate of false alarms between 0 and 1, found nan",
    ("--ahead", "0"): "expected ahead of at least 1",
    ("--model", "naiv"): "did you mean naive",
    ("--output", "out.txt"): "expected an output that ends in",
    ("--plot", "out.bmp"): "expected an output that ends in",
    ("--output", "days.csv"): "days.csv",
}


@pytest.mark.parametrize("words", BAD, ids=" ".join)
def test_when_input_is_bad_then_one_line_says_so(
    file: str, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    result = run(capsys, "detect", file, *words)
    assert result.status == 2
    assert result.err.count("\n") == 1
    assert BAD[words] in result.err


def test_when_new_rows_do_not_follow_the_old_ones_then_one_line_says_so() -> None:
    whole = table(days(100))
    stream = tsfm.load("naive").detector(whole.iloc[:50], rate=0.05)
    for rows, said in (
        (whole.iloc[40:60], "after 2024-01-03 01:00:00, found 2024-01-02 16:00:00"),
        (whole.iloc[50:60].rename(columns={"y": "x"}), "y"),
        (whole.iloc[50:60].assign(date=lambda x: x["date"] + pd.Timedelta("30min")), "times of its frequency h"),
    ):
        with pytest.raises(InputError, match=said):
            stream.update(rows)
    assert len(stream.update(whole.iloc[50:60])) == 10
    array = tsfm.load("naive").detector(np.ones((2, 40)), rate=0.1)
    with pytest.raises(InputError, match="new values of 2 series of 1 variates"):
        array.update(np.ones(3))
