"""Tables of runs with known truth: each is fitted as its line says, or refused or called not identifiable.

Every file of the folder is a case by being there. A file without a line below is fitted or refused in one line.
"""

import contextlib
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from conftest import shared_folder

from tsfm.scaling.analysis import law_of
from tsfm.scaling.record import Record
from tsfm.scaling.runs.ledger import Runs, read_runs
from tsfm_data.errors import InputError

FOLDER = shared_folder("TSFM_CASES", "../shared/cases") / "scaling"
FILES = sorted(path.name for path in FOLDER.glob("*") if path.name != "README.md")
CURVES = {"params": "config.n_params", "tokens": "train/tokens_seen", "loss": "eval/loss", "run": "Name"}
NAMED = {"params": "# Params (M)", "tokens": "train/n_tokens", "loss": "eval/Loss [nats]"}
REPEATED = {"unique": "unique"}


@dataclass(frozen=True)
class Right:
    """What is right for a table.

    Attributes:
        holds: true constants that the intervals must hold.
        warned: part of a warning, or of the reasons why there is no law.
        refused: part of the message of a refusal.
        law: the law that held-out error prefers.
        no_law: whether the joint law must be called not identifiable.
        repetition: true R_D* and R_N*.
        runs: number of runs.
        options: how it is read.
    """

    holds: dict[str, float] = field(default_factory=dict)
    warned: str = ""
    refused: str = ""
    law: str = ""
    no_law: bool = False
    repetition: tuple[float, ...] = ()
    runs: int | None = None
    options: dict[str, Any] = field(default_factory=dict)


CLEAN = {"E": 1.8, "alpha": 0.35, "beta": 0.37}
PLAIN = Right(CLEAN, runs=25)
FINISHED = Right({"E": 1.8, "alpha": 0.35}, "training curves", runs=24, options=CURVES)
NONE = Right(no_law=True)
CASES: dict[str, Right] = {
    "E0.csv": Right({"E": 0.0}, "E is not identifiable"),
    "e_pinned.csv": Right({"E": 1.0, "beta": 0.4, "a": 0.5}),
    "one_low_outlier_big.csv": Right({**CLEAN, "a": 0.37 / 0.72}),
    "one_low_outlier_small.csv": Right({**CLEAN, "a": 0.37 / 0.72}),
    "eight.csv": Right(CLEAN),
    "kaplan.csv": Right(warned="the law does not fit", law="Kaplan"),
    "coupled.csv": Right(warned="the law does not fit", law="coupled"),
    "brokenD.csv": Right(warned="another law predicts held-out runs better", law="broken in data"),
    "undertuned_big.csv": Right(warned="the law does not fit", law="broken in size"),
    "outliers30.csv": Right(CLEAN),
    "negative_nll.csv": Right({"E": -1.2, "alpha": 0.35, "beta": 0.37}, "with a loss at or below 0"),
    "constant.csv": NONE,
    "constant_noise.csv": NONE,
    "no_N_effect.csv": NONE,
    "rising.csv": NONE,
    "one_budget.csv": NONE,
    "ratio20.csv": NONE,
    "ratio20_jit.csv": NONE,
    "ratio20_jit30.csv": Right(CLEAN),
    "narrow.csv": Right({"alpha": 0.35}, "hardly determined"),
    "two_budgets.csv": Right(CLEAN),
    "rep_RD_0.002.csv": Right(repetition=(15.387756,), options=REPEATED),
    "rep_RD_0.01.csv": Right(repetition=(15.387756,), options=REPEATED),
    "rep_RD_RN.csv": Right(repetition=(15.387756, 5.309743), options=REPEATED),
    "rep_few_epochs.csv": Right(repetition=(15.387756,), options=REPEATED),
    "rep_oneU.csv": Right(repetition=(15.387756,), options=REPEATED),
    "wb_1.csv": Right({"E": 1.8, "alpha": 0.35}, runs=24, options=CURVES),
    "wb_5.csv": FINISHED,
    "wb_9.csv": FINISHED,
    "wb_10.csv": FINISHED,
    "wb_40.csv": FINISHED,
    "wb_norun.csv": Right({"alpha": 0.35}, "taken as one run", options={k: v for k, v in CURVES.items() if k != "run"}),
    "wb_crashed.csv": Right({"E": 1.8, "alpha": 0.35}, "'State' is crashed", options=CURVES),
    "wb_wide.csv": Right(refused="a column for each run", options=CURVES),
    "odd_accuracy.csv": PLAIN,
    "odd_bom.csv": PLAIN,
    "odd_dups.csv": Right(CLEAN, "exact copies", runs=25),
    "odd_empty.csv": Right(refused="expected rows of values"),
    "odd_jsonl.jsonl": PLAIN,
    "odd_mixed_units.csv": Right(refused="expected one unit"),
    "odd_mixed_units_few.csv": Right(refused="expected one unit"),
    "odd_named.csv": Right(CLEAN, runs=25, options=NAMED),
    "odd_nan_inf.csv": Right(CLEAN, "diverged", runs=22),
    "odd_nan_words.csv": Right(CLEAN, "without a finite loss", runs=21),
    "odd_nocols.csv": Right(refused="--params COLUMN"),
    "odd_one_row_1000x.csv": Right(warned="the law does not fit", law="equal exponents"),
    "odd_params_millions.csv": Right(warned="'params' looks like thousands or millions", runs=25),
    "odd_params_thousands.csv": Right(warned="'params' looks like thousands or millions", runs=25),
    "odd_tokens_billions.csv": Right(warned="'tokens' looks like millions or billions", runs=25),
    "odd_parquet.parquet": PLAIN,
    "odd_perplexity.csv": PLAIN,
    "odd_seeds.csv": Right({"E": 1.8}, "more than runs of the same size and data differ", runs=50),
    "odd_semicolon.csv": PLAIN,
    "odd_semicolon_comma.csv": PLAIN,
    "odd_suffix.csv": PLAIN,
    "odd_thousands.csv": PLAIN,
    "odd_tsv.tsv": PLAIN,
    "odd_xlsx.xlsx": Right(refused="expected an Excel file"),
}


def read(name: str) -> tuple[Runs, Runs]:
    """All rows of a case, and the runs that are fitted."""
    rows = read_runs(FOLDER / name, **CASES.get(name, Right()).options)
    return rows, rows.last() if rows.has_curves else rows


def fitted(name: str) -> tuple[Runs, Record, str]:
    """The runs of a case, the record of its law, and all that it says."""
    rows, runs = read(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        record = law_of(rows, 100, 0, 1e-3).record
    curves = ["training curves"] if rows.has_curves else []
    said = [*rows.warnings, *curves, *record["warnings"], *record["joint"]["not_identifiable"]]
    return runs, record, " / ".join(said)


@pytest.mark.parametrize("name", [name for name in FILES if CASES.get(name, Right()).refused])
def test_table_that_cannot_be_fitted_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(InputError) as error:
        read(name)
    assert CASES[name].refused in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FILES if not CASES.get(name, Right()).refused])
def test_table_is_fitted_as_its_line_says(name: str) -> None:
    right = CASES.get(name, Right())
    with contextlib.suppress(*([] if name in CASES else [InputError])):
        runs, record, said = fitted(name)
        check(name, right, runs, record, said)


def check(name: str, right: Right, runs: Runs, record: Record, said: str) -> None:
    """Compare a fit with what is right."""
    joint = record["joint"]
    assert right.warned in said
    assert right.runs in (None, runs.runs)
    assert not (right.no_law and joint["identifiable"])
    if not joint["identifiable"]:
        assert right.no_law or name not in CASES, said
        return
    for constant, value in right.holds.items():
        low, high = joint["ci95"][constant]
        rounding = 1e-9 * abs(value)  # tables without noise have intervals without width
        assert low - rounding <= value <= high + rounding, constant
    chosen = next((row["law"] for row in record["laws"] if row["preferred"]), "joint")
    assert chosen == (right.law or "joint")
    for key, value in zip(("ci95", "R_params_ci95"), right.repetition, strict=False):
        low, high = record["repetition"][key]
        assert (low or 0) <= value <= (high or np.inf)


@pytest.mark.skipif(not FILES, reason="the cases are not there")
def test_every_line_has_its_file() -> None:
    assert set(CASES) <= set(FILES)
