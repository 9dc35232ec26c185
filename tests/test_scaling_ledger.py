"""A ledger with a mistake raises a one-line error that names the place, or rows are left out with a warning."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tsfm.scaling.runs.ledger import distinct, read_runs
from tsfm_data.errors import InputError

GOOD = "params,tokens,loss\n1e6,1e7,3\n2e6,1e7,2.9\n2e6,2e7,2.8\n"


def write(folder: Path, text: str) -> Path:
    """A CSV file with a text."""
    path = folder / "ledger.csv"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("n_params,tokens,loss\n1e6,1e7,3\n", ["'params'", "n_params", "--params"]),
        ("params,token,loss\n1e6,1e7,3\n", ["'tokens'", "did you mean token?", "--tokens"]),
        (GOOD + "4e6,2e", ["row 5", "expected 3 fields", "found 2"]),
        ("params,tokens,loss\n70Q,1e7,3\n", ["row 2", "'params'", "'70Q'", "plain numbers"]),
        ("params,tokens,loss,_step\n" + "1e6,1e7,3,1\n" * 9 + "1e6,2e7,2,5\n", ["--run", "_step"]),
        ("Step,a - loss,b - loss\n1,2,3\n", ["column for each run", "Step, loss, Name", "'RUN - params'"]),
        ("params,tokens,loss\n70,1e7,3\n7e7,1e7,2.9\n", ["one unit", "70", "'params'"]),
        ("params,tokens,loss\n1e6,1e7,3\n1e6,-1e7,3\n", ["row 3", "'tokens'", "above 0"]),
        ("params,tokens,loss\n,1e7,3\n1e6,1e7,3\n", ["row 2", "'params'", "above 0"]),
        ("params,tokens,loss,run\n1e6,1e7,3,a\n1e6,1e7,2,a\n", ["row 3", "run a", "twice"]),
        ("params,tokens,loss\n1e6,1e7,nan\n", ["'loss'", "no value in any row"]),
        ("params,tokens,loss\n", ["expected rows of values"]),
        ("", ["empty file"]),
    ],
)
def test_bad_ledger_is_refused_in_one_line_that_names_the_place(tmp_path: Path, text: str, parts: list[str]) -> None:
    with pytest.raises(InputError) as error:
        read_runs(write(tmp_path, text))
    for part in [*parts, "ledger.csv"]:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_diverged_repeated_and_unfinished_rows_are_left_out_with_a_warning(tmp_path: Path) -> None:
    rows = GOOD + "2e6,2e7,2.8\n2e6,4e7,nan\n2e6,4e7,inf\n4e6,4e7,9.5\n4e6,4e7,2.7\n4e6,4e7,2.71\n"
    runs = read_runs(write(tmp_path, rows))
    assert runs.loss.tolist() == [3, 2.9, 2.8, 2.7, 2.71]
    warnings = " / ".join(runs.warnings)
    for words in (
        "2 rows without a finite loss",
        "1 row left out as exact copies",
        "1 row left out as diverged",
        "seeds",
    ):
        assert words in warnings


def test_last_row_that_may_be_truncated_is_warned_of(tmp_path: Path) -> None:
    assert "truncated" in read_runs(write(tmp_path, GOOD + "4e6,2e7,2.")).warnings[0]
    assert read_runs(write(tmp_path, GOOD)).warnings == ()


def test_sizes_in_millions_and_odd_compute_are_warned_of(tmp_path: Path) -> None:
    runs = read_runs(write(tmp_path, "params,tokens,loss\n1,1e7,3\n2,1e7,2.9\n"))
    assert "'params' looks like thousands or millions" in runs.warnings[0]
    runs = read_runs(write(tmp_path, "params,tokens,loss\n1e8,2,3\n2e8,2,2.9\n"))
    assert "'tokens' looks like millions or billions" in runs.warnings[0]
    runs = read_runs(write(tmp_path, "params,tokens,loss\n44,880,3\n16000,3.2e5,2.9\n"))
    assert "the smallest model has 44 parameters: 'params' and 'tokens' look like millions or" in runs.warnings[0]
    runs = read_runs(write(tmp_path, "params,tokens,loss\n1,1e7,3\n2,1e7,2.9\n"), params_unit="M")
    assert (runs.params.tolist(), runs.warnings) == ([1e6, 2e6], ())
    runs = read_runs(write(tmp_path, "params,tokens,loss\n1M,10M,3\n2.5M,1B,2.9\n"))
    assert (runs.params.tolist(), runs.tokens.tolist(), runs.warnings) == ([1e6, 2.5e6], [1e7, 1e9], ())
    runs = read_runs(write(tmp_path, "params,tokens,loss,flops\n1e6,1e7,3,6e13\n2e6,1e7,2.9,12\n"))
    assert "its unit may be mixed" in runs.warnings[0]


def test_columns_are_found_by_the_names_that_are_given(tmp_path: Path) -> None:
    table = pd.DataFrame({"N": [1e6, 2e6], "D": [1e7, 2e7], "nll": [3.0, 2.9]})
    table = table.assign(name=["a", "b"], bad=[False, True])
    table.to_parquet(tmp_path / "runs.parquet")
    runs = read_runs(tmp_path / "runs.parquet", "N", "D", "nll", run="name", exclude="bad", group="name")
    assert (runs.params.tolist(), runs.groups, runs.flops.tolist()) == ([1e6], ("a",), [6e13])
    assert runs.warnings == ("1 of 2 rows left out by the column 'bad'",)
    with pytest.raises(InputError, match="one named twice"):
        read_runs(tmp_path / "runs.parquet", "N", "N", "nll")


def test_runs_of_several_rows_are_clusters_and_last_rows_are_their_ends(tmp_path: Path) -> None:
    steps = np.arange(1, 13)
    table = pd.DataFrame({"run": np.repeat(["a", "b"], 12), "params": np.repeat([1e6, 2e6], 12)})
    table["tokens"], table["loss"] = np.tile(steps * 1e6, 2), np.tile(4.0 - steps / 10, 2)
    table.sample(frac=1, random_state=0).to_csv(tmp_path / "ledger.csv", index=False)
    runs = read_runs(tmp_path / "ledger.csv")
    assert (runs.runs, runs.has_curves) == (2, True)
    assert not read_runs(tmp_path / "ledger.csv", every_row=True).has_curves
    assert runs.last().tokens.tolist() == [12e6, 12e6]
    assert sorted(runs.last().params.tolist()) == [1e6, 2e6]


def test_sizes_within_two_per_cent_are_one_size() -> None:
    assert distinct(np.array([1e6, 1.01e6, 1.1e6, 5e6])) == 3


@pytest.mark.parametrize("rows", [2, 9, 10, 40])
def test_a_run_with_several_rows_is_a_curve_however_many_they_are(tmp_path: Path, rows: int) -> None:
    share = np.arange(1, rows + 1) / rows
    table = pd.DataFrame({"Name": np.repeat(["a", "b"], rows), "params": np.repeat([1e6, 2e6], rows)})
    table["tokens"], table["loss"] = np.tile(share * 1e7, 2), np.tile(3 + 6 / share / rows, 2)
    table.to_csv(tmp_path / "ledger.csv", index=False)
    runs = read_runs(tmp_path / "ledger.csv")
    assert runs.has_curves
    assert runs.last().tokens.tolist() == [1e7, 1e7]
    assert len(runs) == 2 * rows  # the high losses at the beginning of a curve are not diverged runs


def test_only_finished_runs_are_read(tmp_path: Path) -> None:
    text = "params,tokens,loss,State\n1e6,1e7,3,finished\n2e6,1e7,2.9,crashed\n4e6,1e7,2.8,running\n"
    runs = read_runs(write(tmp_path, text))
    assert (runs.params.tolist(), "crashed, running" in runs.warnings[0]) == ([1e6], True)
    assert read_runs(write(tmp_path, text), only="State=crashed").params.tolist() == [2e6]
    with pytest.raises(InputError, match="expected rows with 'done', found finished"):
        read_runs(write(tmp_path, text), only="State=done")


def test_json_lines_and_words_for_missing_losses_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"params": 1e6, "tokens": 1e7, "loss": 3}\n{"params": 2e6, "tokens": 1e7, "loss": 2.9}\n'
    )
    assert read_runs(tmp_path / "a.jsonl").loss.tolist() == [3, 2.9]
    (tmp_path / "a.json").write_text((tmp_path / "a.jsonl").read_text())
    assert read_runs(tmp_path / "a.json").loss.tolist() == [3, 2.9]
    (tmp_path / "a.json").write_text('[{"params": 1e6, "tokens": 1e7, "loss": 3}]')
    assert read_runs(tmp_path / "a.json").loss.tolist() == [3]
    (tmp_path / "b.jsonl").write_text('{"params": 1e6\n')
    with pytest.raises(InputError, match="an array of JSON objects, or one object in each line"):
        read_runs(tmp_path / "b.jsonl")
    runs = read_runs(write(tmp_path, GOOD + "4e6,4e7,diverged\n4e6,5e7,NaN\n4e6,6e7,-\n"))
    assert (runs.loss.tolist(), "3 rows without a finite loss" in runs.warnings[0]) == ([3, 2.9, 2.8], True)


def test_chart_with_a_column_for_each_run_and_metric_is_read_by_run(tmp_path: Path) -> None:
    runs = {"small - lr 0.1": (1e6, [4.0, 3.0]), "large": (2e6, [3.5, 2.5])}
    table = pd.DataFrame({"Step": [10, 20, 30]})
    for k, (name, (size, losses)) in enumerate(runs.items()):
        table[f"{name} - n_params"] = np.where(np.arange(3) == k, size, np.nan)  # logged once
        table[f"{name} - eval/loss"] = [*losses, np.nan] if k else [losses[0], np.nan, losses[1]]
        for end in ("__MIN", "__MAX"):
            table[f"{name} - eval/loss{end}"] = -1.0
    table.to_csv(tmp_path / "chart.csv", index=False)
    runs_read = read_runs(tmp_path / "chart.csv", "n_params", "Step", "eval/loss", tokens_unit="1000")
    assert runs_read.params.tolist() == [1e6, 1e6, 2e6, 2e6]
    assert runs_read.tokens.tolist() == [1e4, 3e4, 1e4, 2e4]
    assert runs_read.loss.tolist() == [4.0, 3.0, 3.5, 2.5]
    assert (runs_read.runs, runs_read.has_curves, runs_read.last().loss.tolist()) == (2, True, [3.0, 2.5])
    table["large - eval/loss"] = ["3.5", "much", ""]
    table.to_csv(tmp_path / "chart.csv", index=False)
    with pytest.raises(InputError, match="row 3"):
        read_runs(tmp_path / "chart.csv", "n_params", "Step", "eval/loss", tokens_unit="1000")


def test_factor_of_a_unit_is_a_suffix_or_a_number(tmp_path: Path) -> None:
    assert read_runs(write(tmp_path, GOOD), tokens_unit="2.5").tokens.tolist() == [2.5e7, 2.5e7, 5e7]
    for word in ("x", "-1", "nan", "0"):
        with pytest.raises(InputError, match="expected --tokens-unit K, M, B, T or a number above 0"):
            read_runs(write(tmp_path, GOOD), tokens_unit=word)


def test_columns_of_other_metrics_are_found_by_their_names(tmp_path: Path) -> None:
    text = "params,tokens,loss,eval/MASE,val_wql,loss__MIN,accuracy,mase_word\n1e6,1e7,3,0.9,0.5,1,1,a\n"
    text += "2e6,1e7,2,,0.4,1,1,b\n"
    metrics = read_runs(write(tmp_path, text)).metrics
    assert list(metrics) == ["eval/MASE", "val_wql"]
    assert metrics["eval/MASE"][0] == 0.9
    assert np.isnan(metrics["eval/MASE"][1])


def test_losses_below_zero_are_read_and_a_run_that_diverged_is_still_left_out(tmp_path: Path) -> None:
    runs = read_runs(write(tmp_path, "params,tokens,loss\n1e6,1e7,0.1\n1e6,2e7,-0.3\n2e6,2e7,-0.5\n4e6,2e7,9\n"))
    assert runs.loss.tolist() == [0.1, -0.3, -0.5]
    assert "2 rows with a loss at or below 0" in runs.warnings[0]
    assert "diverged" in runs.warnings[1]
