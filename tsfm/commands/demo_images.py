"""The image example of ``tsfm demo``: handwritten digits, if the packages of image models are installed."""

import shlex
import shutil
from pathlib import Path
from typing import Any

from tsfm.reports import Image, Section, Table, Value
from tsfm_data.errors import InputError
from tsfm_data.evaluation import Report
from tsfm_data.output import say
from tsfm_data.plugins import entry_points, load

TITLE = "Handwritten digits"
# Name of a metric in report.json -> its name on the page.
METRICS = {"top1": "accuracy", "log_loss": "log loss", "ECE": "calibration error"}
TEXT = (
    "The same command trains image models. This one is a small iLLaMA, trained from random weights on digits that are "
    "shifted by up to an eighth of their size. Accuracy is the share of test images that are classified correctly. Log "
    "loss and calibration error measure how reliable its probabilities are; lower is better."
)


def run(output: Path, seed: int, max_epochs: int | None) -> tuple[str, Any] | None:
    """Train and score on scikit-learn's digits.

    Args:
        output: folder of the demo.
        seed: random seed of weights, order, augmentation and held-out images.
        max_epochs: largest number of epochs, to try the command quickly.

    Returns:
        The command that trained and its results; None, after a message, if a package is missing.
    """
    from tsfm.commands.train import train  # Lightning takes seconds

    try:
        digits = example()
        command = digits.prepare(output, seed, max_epochs)
    except InputError as error:
        say(f"\n{TITLE}: skipped ({error})")
        return None
    say(f"\n{TITLE}: images of 8 x 8 pixels")
    shutil.rmtree(output / digits.RUN, ignore_errors=True)  # from an earlier demo
    train(shlex.split(command)[1:])
    return command, digits.outcome(output)


def example() -> Any:
    """The image example, a module of another package with ``prepare``, ``outcome`` and ``RUN``.

    Raises:
        InputError: no package provides it, or it cannot be imported.
    """
    entry = next(iter(entry_points("tsfm.demos")), None)
    if entry is None:
        raise InputError("expected the package of image models, found none: pip install 'tsfm-suite[vision]'")
    return load(entry, "image models")


def scores(outcome: Any) -> Report:
    """The scores that are the same in every run: all except the speed."""
    return Report([row for row in outcome.report.rows if row["metric"] in METRICS])


def score_rows(outcome: Any) -> list[dict[str, Value]]:
    """The scores of all test images, as one row."""
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
                "Four test images, their predicted classes, and attention maps",
                "Test images with their predicted classes, and the weight of each position in the model's attention. "
                "The last one is misclassified, if any is.",
            ),
            Table(score_rows(outcome), f"{count} test images, not used for training or model selection."),
            Image(
                outcome.calibration,
                "Reliability plot and confusion matrix of the test images",
                "How often the model is right at each confidence, and which digits it confuses.",
            ),
            Table([{"": name, TITLE: value} for name, value in outcome.facts.items()]),
        ],
    )
