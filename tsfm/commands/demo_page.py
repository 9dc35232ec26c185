"""The page of ``tsfm demo``, its tables in the terminal, and the commands for the user's own table."""

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from tsfm import reports
from tsfm.commands import demo_images
from tsfm.reports import Code, Image, Section, Table, Value, page

if TYPE_CHECKING:
    from tsfm.commands.demo import Example, Outcome
    from tsfm_data.evaluation import Report

WIDTH = 60  # characters of a command after which its next option starts a new line
MODEL = "iTransformer"
# Name of a metric in report.json -> the heading of its column.
HEADINGS = {"MASE": "MASE", "WQL": "WQL", "MAE": "MAE", "coverage80": "80 % coverage"}
SCORES = (
    "All windows of the test rows, one step apart, are scored on all series. MASE: mean absolute error of the median "
    "divided by that of seasonal naive forecasts within the history. WQL: weighted quantile loss at the levels 0.1 to "
    "0.9. MAE: mean absolute error of the median, in the units of the data. For these three, lower is better. 80 % "
    "coverage: the share of true values inside the 80 % interval; it should be 0.8."
)
SEASONS = (
    "By GluonTS's convention the season of monthly data is twelve steps and that of daily data one step, so seasonal "
    "naive and naive forecasts are the same on daily data."
)
INTERVALS = (
    "iTransformer is trained on the squared error and forecasts one value per step. Its intervals are split-conformal: "
    "their width at each step ahead comes from the errors on the validation windows. Validation windows also chose the "
    "epoch and the sizes of model and windows. Test rows were only used for the scores."
)


def build_page(
    outcomes: "Sequence[Outcome]", report: "Report", commands: Sequence[str], output: Path, images: Any = None
) -> str:
    """The HTML text of the page.

    Args:
        outcomes: results of the examples, in order.
        report: the scores of all examples.
        commands: the command of the demo, then those of each training.
        output: folder of the demo.
        images: results of the image example; None if it was skipped.
    """
    examples = [outcome.example for outcome in outcomes]
    sections = [
        *(result_section(outcome) for outcome in outcomes),
        Section("How to read the numbers", [SCORES, SEASONS, INTERVALS]),
        Section("Data and training", [fact_table(outcomes)]),
        *([] if images is None else [demo_images.section(images)]),
        Section("On your own table", [*table_format(), Code(own_commands(output))]),
        Section(
            "Reproduce this page",
            [
                "The first command writes this page again, with the same numbers; the others are its trainings.",
                Code("\n".join(executable() + wrapped(command).removeprefix("tsfm") for command in commands)),
            ],
        ),
    ]
    return page("iTransformer on real series", sections, lead(report, examples))


def lead(report: "Report", examples: "Sequence[Example]") -> str:
    """The main result in words."""
    parts = []
    for example in examples:
        errors = {row["model"]: row["value"] for row in report.rows if _scores(row, example)}
        ours = errors.pop(MODEL)
        best = min((name for name in errors if errors[name]), key=errors.__getitem__, default=None)
        if ours is not None and best is not None:
            side = "below" if ours < errors[best] else "above"
            parts.append(f"{100 * abs(1 - ours / errors[best]):.0f}\u00a0% {side} that of {best} on {example.title}")
    return (
        "An iTransformer, trained within two minutes on a CPU and scored on held-out windows. "
        f"Its error (MASE) is {' and '.join(parts)}, in each case the best of the simple baselines."
    )


def _scores(row: dict[str, Any], example: "Example") -> bool:
    """Whether a row is the MASE of some model on an example."""
    return bool(row["metric"] == "MASE" and row["dataset"] == example.name)


def result_section(outcome: "Outcome") -> Section:
    """Figure and scores of one example."""
    example, rows = outcome.example, score_rows(outcome.report)
    shown = f"{len(example.shown)} of {outcome.series} series"
    image = Image(
        outcome.figure,
        f"History, truth, median and intervals of {', '.join(example.shown)}",
        f"The last {example.horizon} steps, which were held out: history, true values, and the forecast ({shown}).",
    )
    windows = outcome.report.rows[0]["windows"]
    caption = f"{windows} held-out windows of {example.horizon} steps, {outcome.series} series; MAE in {example.unit}."
    strong = [index for index, row in enumerate(rows) if row["model"] == MODEL]
    return Section(example.title, [image, Table(rows, caption, strong)])


def fact_table(outcomes: "Sequence[Outcome]") -> Table:
    """Facts about data and training, one column per example."""
    names = list(outcomes[0].facts)
    rows = [{"": name} | {outcome.example.title: outcome.facts[name] for outcome in outcomes} for name in names]
    return Table(rows)


def score_rows(report: "Report") -> list[dict[str, Value]]:
    """One row per data set and model."""
    lines: dict[tuple[str, str], dict[str, Value]] = {}
    for row in report.rows:
        line = lines.setdefault((row["dataset"], row["model"]), {"model": row["model"]})
        line[HEADINGS[row["metric"]]] = row["value"]
    return list(lines.values())


def terminal_table(rows: "Sequence[dict[str, Value]]", title: str) -> str:
    """The scores of one example as a table for the terminal."""
    cells = [[reports.show_value(value) for value in row.values()] for row in rows]
    head = [title, *list(rows[0])[1:]]
    return tabulate(cells, head, disable_numparse=True, colalign=["left", *["right"] * (len(head) - 1)])


def table_format() -> list[str]:
    """Paragraphs on the format of a table and on the commands."""
    return [
        "CSV or Parquet, in one of two formats: wide, with a date column and one numeric column per series; or long, "
        "with the columns item_id, timestamp and target. Missing values may be empty. The first three lines set table, "
        "context and horizon; as they are, the commands run on a table of the demo.",
        "Training splits the rows by time into 70 % for training, 10 % for validation and 20 % for the test, and ends "
        "by early stopping. Evaluation scores forecasts of the last tenth of every series, together with naive and "
        "seasonal naive forecasts. The forecast is a table with the columns item_id, timestamp, mean and one per "
        "quantile.",
    ]


def own_commands(output: Path) -> str:
    """Commands that train, evaluate and forecast on the user's table; they run as they are."""
    tsfm, config = executable(), shlex.quote(str(output / "fit.yaml"))
    run = shlex.quote(str(output / "own_table"))
    return f"""TABLE={shlex.quote(str(output / "seattle_weather.csv"))}
CONTEXT=365
HORIZON=14
{tsfm} data inspect "$TABLE"
{tsfm} fit --config {config} --data.source "$TABLE" \\
    --data.context $CONTEXT --data.horizon $HORIZON --trainer.default_root_dir {run} --overwrite
{tsfm} evaluate --model {run} --data "$TABLE" --horizon $HORIZON \\
    --json {run}/scores.json --overwrite
{tsfm} forecast "$TABLE" --model {run} --horizon $HORIZON \\
    --output {run}/forecast.csv --plot {run}/forecast.png --overwrite"""


def wrapped(command: str) -> str:
    """A command on several lines for a shell, with each option and its value on one line."""
    lines = [""]
    for word in shlex.split(command):
        quoted = shlex.quote(word)
        if word.startswith("--") and len(lines[-1]) > WIDTH:
            lines.append(f"    {quoted}")
        else:
            lines[-1] = f"{lines[-1]} {quoted}".strip() if len(lines) == 1 else f"{lines[-1]} {quoted}"
    return " \\\n".join(lines)


def executable() -> str:
    """The path of the ``tsfm`` command from the current folder, or its name if it is on the PATH."""
    installed = Path(sys.executable).parent / "tsfm"
    on_path = shutil.which("tsfm")
    if not installed.exists() or (on_path and Path(on_path).resolve() == installed.resolve()):
        return "tsfm"
    relative = os.path.relpath(installed)
    return shlex.quote(str(installed) if relative.startswith("..") else relative)
