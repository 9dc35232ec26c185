"""What ``tsfm demo`` says: its page, its table in the terminal, and the commands for a table of one's own."""

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tsfm.report import Code, Image, Section, Table, Value, page

if TYPE_CHECKING:
    from tsfm.commands.demo import Example, Outcome
    from tsfm_data.report import Report

MODEL, BASELINE = "iTransformer", "seasonal-naive"
# Name of a metric in report.json -> the heading of its column.
HEADINGS = {"MASE": "MASE", "WQL": "WQL", "MAE": "MAE", "coverage80": "coverage of the 80 % interval"}
SCORES = (
    "MASE: mean absolute error of the median over that of a seasonal naive forecast within the history. WQL: weighted "
    "quantile loss at the levels 0.1 to 0.9. MAE: in the units of the data. For these three less is better. Coverage: "
    "the share of true values inside the 80 % interval; 80 % is what it should be. Scored are all windows of the test "
    "rows, one step apart, and all series."
)
DAILY = (
    "By GluonTS's convention the season of monthly data is twelve steps and that of daily data one step, so that on "
    "daily data seasonal naive and naive are the same forecast."
)
INTERVALS = (
    "iTransformer is trained on the squared error and forecasts one value a step. Its intervals are split-conformal: "
    "as wide as its errors on the validation windows were, at each step ahead. Validation windows also chose the epoch "
    "and, before, the sizes of model and windows. Test rows were used for nothing but the scores."
)


def build_page(outcomes: "Sequence[Outcome]", report: "Report", commands: Sequence[str], output: Path) -> str:
    """The page.

    Args:
        outcomes: of the examples, in order.
        report: the scores of all of them.
        commands: what was run: the demo itself, then the training of each example.
        output: folder of the demo.
    """
    examples = [outcome.example for outcome in outcomes]
    rows = score_rows(report, examples)
    strong = [index for index, row in enumerate(rows) if row["model"] == MODEL]
    figures = [
        Image(
            outcome.figure,
            f"History, forecast and truth of {', '.join(outcome.example.shown)}",
            f"{outcome.example.title}: the last {outcome.example.horizon} steps, held out. "
            f"{len(outcome.example.shown)} of {outcome.data['series']} series shown.",
        )
        for outcome in outcomes
    ]
    sections = [
        Section("Forecasts", figures),
        Section("Scores on held-out windows", [Table(rows, SCORES, strong), DAILY]),
        Section("Data", [Table([outcome.data for outcome in outcomes])]),
        Section("Training", [Table([outcome.training for outcome in outcomes]), INTERVALS]),
        Section("On your own table", [*own_text(), Code(own_commands(output))]),
        Section(
            "This page again",
            [
                "The first command writes this page anew, with the same numbers; the others are the trainings it ran.",
                Code("\n".join(commands).replace("tsfm ", f"{executable()} ")),
            ],
        ),
    ]
    return page("iTransformer on real series", sections, lead(report, examples))


def lead(report: "Report", examples: "Sequence[Example]") -> str:
    """The result in words, whichever way it went."""
    parts = []
    for example in examples:
        ours, theirs = (report.value("MASE", dataset=example.name, model=model) for model in (MODEL, BASELINE))
        if ours is not None and theirs:
            side = "below" if ours < theirs else "above"
            parts.append(f"{abs(1 - ours / theirs):.0%} {side} that of seasonal naive on {example.title}")
    return (
        "An iTransformer, trained within two minutes on a processor and scored on windows that it never saw. "
        f"Its error (MASE) is {' and '.join(parts)}."
    )


def score_rows(report: "Report", examples: "Sequence[Example]") -> list[dict[str, Value]]:
    """One line a data set and model."""
    titles = {example.name: f"{example.title} ({example.unit})" for example in examples}
    lines: dict[tuple[str, str], dict[str, Value]] = {}
    for row in report.rows:
        place = row["dataset"], row["model"]
        start: dict[str, Value] = {"data": titles[place[0]], "model": place[1]}
        line = lines.setdefault(place, start)
        value = row["value"]
        percent = row["metric"] == "coverage80" and value is not None
        line[HEADINGS[row["metric"]]] = f"{value:.1%}".replace("%", " %") if percent else value
        line["windows"] = line.pop("windows", row["windows"])  # stays last
    return list(lines.values())


def terminal_table(report: "Report", examples: "Sequence[Example]") -> str:
    """The scores as the terminal shows them."""
    from tabulate import tabulate

    from tsfm.report import show_value

    rows = score_rows(report, examples)
    cells = [[show_value(value) for value in row.values()] for row in rows]
    head = [name.replace("coverage of the 80 % interval", "80 % coverage") for name in rows[0]]
    return tabulate(cells, head, disable_numparse=True, colalign=["left", "left", *["right"] * (len(head) - 2)])


def own_text() -> list[str]:
    """What a table has to look like."""
    return [
        "CSV or Parquet, in one of two shapes: wide, with a date column and one numeric column a series; or long, with "
        "the columns item_id, timestamp and target. Missing values may stay empty. The first three lines say what to "
        "forecast: as they stand, the commands run on the demo's own table.",
        "Training splits the rows by time into 70 % for training, 10 % for validation and 20 % for the test, prints "
        "what it did, and ends by itself. Evaluation scores the last tenth of every series, beside naive and seasonal "
        "naive forecasts. The forecast is a table with the columns item_id, timestamp, mean and one a quantile.",
    ]


def own_commands(output: Path) -> str:
    """Commands that fit, evaluate and forecast a table; they run as they are."""
    tsfm, config = executable(), shlex.quote(str(output / "fit.yaml"))
    run = shlex.quote(str(output / "mine"))
    return "\n".join(
        [
            f"TABLE={shlex.quote(str(output / 'seattle_weather.csv'))}",
            "CONTEXT=365",
            "HORIZON=14",
            f"{tsfm} data inspect $TABLE",
            f"{tsfm} fit --config {config} --data.source $TABLE --data.context $CONTEXT --data.horizon $HORIZON "
            f"--trainer.default_root_dir {run}",
            f"{tsfm} evaluate --model {run} --data $TABLE --horizon $HORIZON --json {run}/scores.json",
            f"{tsfm} forecast $TABLE --model {run} --horizon $HORIZON --output {run}/forecast.csv "
            f"--plot {run}/forecast.png",
        ]
    )


def executable() -> str:
    """How this command is called from the current folder, with or without an activated environment."""
    beside = Path(sys.executable).parent / "tsfm"
    found = shutil.which("tsfm")
    if not beside.exists() or (found and Path(found).resolve() == beside.resolve()):
        return "tsfm"
    relative = os.path.relpath(beside)
    return shlex.quote(str(beside) if relative.startswith("..") else relative)
