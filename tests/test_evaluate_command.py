"""``tsfm evaluate`` on a table of one's own: no option is needed but the table, and a page is written on request."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command import done, run


def write(folder: Path, freq: str, rows: int) -> str:
    table = pd.DataFrame({"date": pd.date_range("2001-01-01", periods=rows, freq=freq), "y": np.arange(rows) % 7.0})
    table.to_csv(folder / "table.csv", index=False)
    return str(folder / "table.csv")


def test_when_nothing_but_a_table_is_given_then_the_default_model_of_forecast_is_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = done(capsys, "evaluate", "--data", write(tmp_path, "D", 300), "--horizon", "7")
    models = [line.split("|")[3].strip() for line in said.splitlines()[2:5]]
    assert models == ["tsfm-long-small", "naive", "seasonal-naive"]


@pytest.mark.parametrize(
    ("freq", "rows", "horizon", "shortened"),
    [("YS", 12, 6, 0), ("YS", 6, 2, 1), ("QS", 40, 8, 0), ("B", 400, 30, 0), ("D", 20, 6, 1), ("ms", 90, 24, 0)],
)
def test_when_no_horizon_is_given_then_the_frequency_has_one_that_fits_the_table(
    freq: str, rows: int, horizon: int, shortened: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--model", "naive", "--json", str(tmp_path / "scores.json"))
    said = done(capsys, "evaluate", "--data", write(tmp_path, freq, rows), *words)
    found = json.loads((tmp_path / "scores.json").read_text())
    assert {row["horizon"] for row in found["rows"]} == {horizon}
    assert ("a third of the shortest series" in said) == bool(shortened)


def test_when_windows_and_step_are_given_then_so_many_are_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--model", "naive", "--baselines", "false", "--horizon", "5", "--windows", "3", "--step", "2")
    file = tmp_path / "scores.json"
    done(capsys, "evaluate", "--data", write(tmp_path, "D", 50), *words, "--json", str(file))
    rows = {row["metric"]: row for row in json.loads(file.read_text())["rows"]}
    values = np.arange(50) % 7.0
    errors = [values[cut : cut + 5] - values[cut - 1] for cut in (41, 43, 45)]
    assert rows["MAE"]["windows"] == 3
    assert rows["MAE"]["value"] == pytest.approx(np.abs(errors).mean())
    for option in ("--windows", "--step"):
        result = run(capsys, "evaluate", "--data", str(tmp_path / "table.csv"), option, "0")
        assert (result.status, result.err.count("\n")) == (2, 1)
        assert f"expected {option[2:]} of at least 1, found 0" in result.err


def test_when_files_of_two_folders_have_one_name_then_each_has_its_own_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = []
    for folder, rows in (("one", 50), ("two", 60)):
        (tmp_path / folder).mkdir()
        files.append(write(tmp_path / folder, "D", rows))
    words = ("--model", "naive", "--baselines", "false", "--horizon", "3")
    said = done(capsys, "evaluate", "--data", *files, files[0], *words)
    names = [line.split("|")[1].strip() for line in said.splitlines()[2:] if line.startswith("|")]
    assert names == ["table", files[1]]


def test_when_an_output_is_given_then_a_page_shows_scores_and_forecasts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("evaluate", "--model", "seasonal-naive", "--data", write(tmp_path, "D", 100), "--horizon", "7")
    said = done(capsys, *words, "--output", str(tmp_path / "out"))
    assert "report.html: open it in a browser" in said
    page = (tmp_path / "out" / "report.html").read_text()
    assert "seasonal-naive on table" in page
    assert "table: the last 7 steps, forecast from the values before them." in page
    assert page.count("<img") == 1
    rows = json.loads((tmp_path / "out" / "report.json").read_text())["rows"]
    assert {row["model"] for row in rows} == {"seasonal-naive", "naive"}
    assert (tmp_path / "out" / "report.md").read_text().splitlines()[0].startswith("| dataset")


def test_when_a_known_covariate_has_a_gap_in_the_last_window_then_the_page_is_still_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    times = pd.date_range("2024-01-01", periods=200, freq="D")
    promo = (np.arange(200) % 9 == 0).astype(float)
    table = pd.DataFrame({"item_id": "b", "timestamp": times, "target": np.arange(200) % 7 + 5 * promo, "promo": promo})
    table.drop(index=195).to_csv(tmp_path / "table.csv", index=False)  # a day on which the shop wrote nothing
    words = ("--data", str(tmp_path / "table.csv"), "--known-covariates", "promo", "--horizon", "14")
    said = done(capsys, "evaluate", *words, "--output", str(tmp_path / "out"))
    assert "tsfm-long-small without covariates" in said
    assert "Smaller errors are better" in said
    assert ("coverage80" in said, "MSIS" in said) == (True, False)  # not all would fit into a terminal
    page = (tmp_path / "out" / "report.html").read_text()
    assert (page.count("<img"), "History, truth and forecast of b" in page) == (1, True)
