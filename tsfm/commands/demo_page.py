"""What ``tsfm demo`` says: its page, its table in the terminal, and the commands for a table of one's own."""

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
    "Scored are all windows of the test rows, one step apart, and all series. MASE: mean absolute error of the median "
    "over that of seasonal naive forecasts within the history. WQL: weighted quantile loss at the levels 0.1 to 0.9. "
    "MAE: mean absolute error of the median, in the units of the data. For these three less is better. 80 % coverage: "
    "the share of true values inside the 80 % interval; it should be 0.8."
)
SEASONS = (
    "By GluonTS's convention the season of monthly data is twelve steps and that of daily data one step, so that on "
    "daily data seasonal naive and naive are the same forecast."
)
INTERVALS = (
    "iTransformer is trained on the squared error and forecasts one value a step. Its intervals are split-conformal: "
    "as wide as its errors on the validation windows were, at each step ahead. Validation windows also chose the epoch "
    "and, before, the sizes of model and windows. Test rows were used for nothing but the scores."
)


def build_page(
    outcomes: "Sequence[Outcome]", report: "Report", commands: Sequence[str], output: Path, images: Any = None
) -> str:
    """The page.

    Args:
        outcomes: of the examples, in order.
        report: the scores of all of them.
        commands: what was run: the demo itself, then the training of each example.
        output: folder of the demo.
        images: what became of the example on images, where there was one.
    """
    examples = [outcome.example for outcome in outcomes]
    sections = [
        *(result_section(outcome) for outcome in outcomes),
        Section("How to read the numbers", [SCORES, SEASONS, INTERVALS]),
        Section("Data and training", [fact_table(outcomes)]),
        *([] if images is None else [demo_images.section(images)]),
        Section("On your own table", [*own_text(), Code(own_commands(output))]),
        Section(
            "This page again",
            [
                "The first command writes this page anew, with the same numbers; the others are the trainings it ran.",
                Code("\n".join(executable() + wrapped(command).removeprefix("tsfm") for command in commands)),
            ],
        ),
    ]
    return page("iTransformer on real series", sections, lead(report, examples))


def lead(report: "Report", examples: "Sequence[Example]") -> str:
    """The result in words, whichever way it went."""
    parts = []
    for example in examples:
        errors = {row["model"]: row["value"] for row in report.rows if _scores(row, example)}
        ours = errors.pop(MODEL)
        best = min((name for name in errors if errors[name]), key=errors.__getitem__, default=None)
        if ours is not None and best is not None:
            side = "below" if ours < errors[best] else "above"
            parts.append(f"{100 * abs(1 - ours / errors[best]):.0f}\u00a0% {side} that of {best} on {example.title}")
    return (
        "An iTransformer, trained within two minutes on a processor and scored on windows that it never saw. "
        f"Its error (MASE) is {' and '.join(parts)}, in each case the best of the simple baselines."
    )


def _scores(row: dict[str, Any], example: "Example") -> bool:
    """Whether a row is the MASE of some model on an example."""
    return bool(row["metric"] == "MASE" and row["dataset"] == example.name)


def result_section(outcome: "Outcome") -> Section:
    """Picture and scores of one example."""
    example, rows = outcome.example, score_rows(outcome.report)
    shown = f"{len(example.shown)} of {outcome.series} series"
    image = Image(
        outcome.figure,
        f"History, truth, median and intervals of {', '.join(example.shown)}",
        f"The last {example.horizon} steps, which were held out: history, what came, and the forecast ({shown}).",
    )
    windows = outcome.report.rows[0]["windows"]
    caption = f"{windows} held-out windows of {example.horizon} steps, {outcome.series} series; MAE in {example.unit}."
    strong = [index for index, row in enumerate(rows) if row["model"] == MODEL]
    return Section(example.title, [image, Table(rows, caption, strong)])


def fact_table(outcomes: "Sequence[Outcome]") -> Table:
    """What the examples are and how training on them went, a column each."""
    names = list(outcomes[0].facts)
    rows = [{"": name} | {outcome.example.title: outcome.facts[name] for outcome in outcomes} for name in names]
    return Table(rows)


def score_rows(report: "Report") -> list[dict[str, Value]]:
    """One line a data set and model."""
    lines: dict[tuple[str, str], dict[str, Value]] = {}
    for row in report.rows:
        line = lines.setdefault((row["dataset"], row["model"]), {"model": row["model"]})
        line[HEADINGS[row["metric"]]] = row["value"]
    return list(lines.values())


def terminal_table(rows: "Sequence[dict[str, Value]]", title: str) -> str:
    """The scores of one example as the terminal shows them."""
    cells = [[reports.show_value(value) for value in row.values()] for row in rows]
    head = [title, *list(rows[0])[1:]]
    return tabulate(cells, head, disable_numparse=True, colalign=["left", *["right"] * (len(head) - 1)])


def own_text() -> list[str]:
    """What a table has to look like."""
    return [
        "CSV or Parquet, in one of two shapes: wide, with a date column and one numeric column a series; or long, with "
        "the columns item_id, timestamp and target. Missing values may stay empty. The first three lines say what to "
        "forecast: as they stand, the commands run on the demo's own table.",
        "Training splits the rows by time into 70 % for training, 10 % for validation and 20 % for the test, prints "
        "what it did, and ends by itself. Evaluation scores the last tenth of every series, each forecast by itself, "
        "beside naive and seasonal naive forecasts. The forecast is a table with the columns item_id, timestamp, mean "
        "and one a quantile.",
    ]


def own_commands(output: Path) -> str:
    """Commands that fit, evaluate and forecast a table; they run as they are."""
    tsfm, config = executable(), shlex.quote(str(output / "fit.yaml"))
    run = shlex.quote(str(output / "mine"))
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
    """A command on several lines, each option beside its value, as a shell takes it."""
    lines = [""]
    for word in shlex.split(command):
        quoted = shlex.quote(word)
        if word.startswith("--") and len(lines[-1]) > WIDTH:
            lines.append(f"    {quoted}")
        else:
            lines[-1] = f"{lines[-1]} {quoted}".strip() if len(lines) == 1 else f"{lines[-1]} {quoted}"
    return " \\\n".join(lines)


def executable() -> str:
    """How this command is called from the current folder, with or without an activated environment."""
    beside = Path(sys.executable).parent / "tsfm"
    found = shutil.which("tsfm")
    if not beside.exists() or (found and Path(found).resolve() == beside.resolve()):
        return "tsfm"
    relative = os.path.relpath(beside)
    return shlex.quote(str(beside) if relative.startswith("..") else relative)
