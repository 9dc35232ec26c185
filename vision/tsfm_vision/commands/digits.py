"""The image example of ``tsfm demo``: trains iLLaMA on the 8 x 8 digits that scikit-learn ships."""

import io
import json
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tsfm_data.errors import InputError
from tsfm_data.evaluation import Report
from tsfm_data.images import open_images
from tsfm_data.io import atomic_file
from tsfm_vision import evaluation
from tsfm_vision.commands.image import draw_explanation
from tsfm_vision.weights import load

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONFIG = Path(__file__).with_name("digits.yaml")
RUN = "digits"
MODEL = "iLLaMA"
TEST_EVERY = 5


@dataclass(frozen=True)
class Outcome:
    """Results of the example.

    Attributes:
        report: accuracy, calibration and throughput on the test images.
        calibration: reliability plot and confusion matrix.
        maps: attention maps of some test images.
        facts: facts about the data and the model, for the page.
    """

    report: Report
    calibration: "Figure"
    maps: "Figure"
    facts: dict[str, str]


def prepare(output: Path, seed: int = 2023, max_epochs: int | None = None) -> str:
    """Write the images (``digits.parquet``) and the config (``digits.yaml``); returns the command that trains.

    Args:
        output: folder of the demo.
        seed: random seed of weights, order, augmentation and held-out images.
        max_epochs: largest number of epochs, to try it quickly.
    """
    write_digits(output / "digits.parquet")
    with atomic_file(output / "digits.yaml") as file:
        shutil.copyfile(CONFIG, file)
    words = ["tsfm", "fit", "--config", output / "digits.yaml", "--data.source", output / "digits.parquet"]
    words += ["--seed_everything", seed, "--data.seed", seed, "--trainer.default_root_dir", output / RUN]
    words += ["--overwrite"]
    if max_epochs is not None:
        words += ["--trainer.max_epochs", max_epochs]
    return shlex.join(map(str, words))


def outcome(output: Path) -> Outcome:
    """Score the model that the command of ``prepare`` has trained in the same folder, and draw figures."""
    model, classes = load(output / RUN)
    images = open_images(output / "digits.parquet", channels=1)["test"].decoded()
    probabilities = evaluation.probabilities(model, images, batch_size=360)
    wrong = np.flatnonzero(probabilities.argmax(1) != images.labels)[:1].tolist()
    one_per_digit = np.unique(images.labels, return_index=True)[1].tolist()  # the first of each digit
    chosen = [*one_per_digit[: 4 - len(wrong)], *wrong]
    parameters = sum(p.numel() for p in model.parameters())
    train = pq.read_table(output / "digits.parquet", columns=["split"]).num_rows - len(images)
    return Outcome(
        report=evaluation.evaluate(model, images, probabilities, MODEL, batch_size=360),
        calibration=evaluation.draw_calibration(probabilities, images.labels, classes),
        maps=draw_explanation(model, images.select(chosen), classes, across=True),
        facts={
            "source": "UCI optical recognition of handwritten digits, as scikit-learn ships it",
            "images": f"{train:,} to train and validate on, {len(images):,} to test (every {TEST_EVERY}th)",
            "parameters": f"{parameters:,}",
        },
    )


def write_digits(path: Path) -> None:
    """Write scikit-learn's digits as Parquet: PNG bytes, label and split (every fifth image is a test image).

    Raises:
        InputError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise InputError("expected scikit-learn for its digits, found none: pip install scikit-learn") from error
    digits = load_digits()
    encoded = []
    for image in (digits.images * 255 / 16).round().astype(np.uint8):
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "PNG")
        encoded.append(stream.getvalue())
    split = ["test" if i % TEST_EVERY == TEST_EVERY - 1 else "train" for i in range(len(encoded))]
    table = pa.table({"image": pa.array(encoded, pa.binary()), "label": digits.target.astype(np.int64), "split": split})
    names = json.dumps([str(number) for number in range(10)])
    with atomic_file(path) as file:
        pq.write_table(table.replace_schema_metadata({"classes": names}), file)
