"""The image example of ``tsfm demo``: handwritten digits, where the packages of image models are installed."""

import shlex
import shutil
from pathlib import Path
from typing import Any

from tsfm.commands.image import vision
from tsfm.reports import Image, Section, Table, Value
from tsfm_data.errors import InputError
from tsfm_data.evaluation import Report

TITLE = "Handwritten digits"
# Name of a metric in report.json -> how the page calls it.
METRICS = {"top1": "accuracy", "log_loss": "log loss", "ECE": "calibration error"}
TEXT = (
    "The same command trains image models. This one is a small iLLaMA, with random weights at first; it saw each digit "
    "moved by up to an eighth. Accuracy is the share of test images whose class it finds. Log loss and calibration "
    "error say how far its probabilities can be taken at their word; less is better."
)


def run(output: Path, seed: int, max_epochs: int | None) -> tuple[str, Any] | None:
    """Train and score on scikit-learn's digits.

    Args:
        output: folder of the demo.
        seed: of weights, order, augmentation and held-out images.
        max_epochs: trains shorter, to try the command out.

    Returns:
        The command that trained and an ``Outcome`` of ``tsfm_vision.commands.digits``; None if a package that it needs
        is missing, which is said.
    """
    from tsfm.commands.train import train  # Lightning takes seconds

    try:
        digits = vision("commands.digits")
        command = digits.prepare(output, seed, max_epochs)
    except InputError as missing:
        print(f"\n{TITLE}: skipped ({missing})")
        return None
    print(f"\n{TITLE}: images of 8 x 8 pixels")
    shutil.rmtree(output / digits.RUN, ignore_errors=True)  # of an earlier demo
    train(shlex.split(command)[1:])
    return command, digits.outcome(output)


def scores(outcome: Any) -> Report:
    """The scores that are the same in every run: all but the speed."""
    return Report([row for row in outcome.report.rows if row["metric"] in METRICS])


def score_rows(outcome: Any) -> list[dict[str, Value]]:
    """The scores of all test images, in a line."""
    rows = [row for row in scores(outcome).rows if row.get("item_id") is None]
    return [{"model": rows[0]["model"]} | {METRICS[row["metric"]]: row["value"] for row in rows}]


def section(outcome: Any) -> Section:
    """Pictures and scores of the example."""
    count = next(row["points"] for row in outcome.report.rows if row["metric"] == "top1")
    return Section(
        TITLE,
        [
            TEXT,
            Image(
                outcome.maps,
                "Four test images, what the model finds in each, and where it looks",
                "Test images with the class that was found, and how much each place weighs in the model's attention; "
                "the last one is a mistake, where there is any.",
            ),
            Table(score_rows(outcome), f"{count} test images, none of which chose anything."),
            Image(
                outcome.calibration,
                "Reliability plot and confusion matrix of the test images",
                "How often the model is right at each confidence, and which digits it takes for which.",
            ),
            Table([{"": name, TITLE: value} for name, value in outcome.facts.items()]),
        ],
    )
