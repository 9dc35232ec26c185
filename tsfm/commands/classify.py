"""The commands ``tsfm classify fit | predict | evaluate``: what kind a series is."""

from pathlib import Path

import numpy as np
from tabulate import tabulate

from tsfm import inference
from tsfm.commands.arguments import Columns
from tsfm.commands.forecast import TABLES, frame_without_formulas, write_frame
from tsfm_data import io
from tsfm_data.evaluation import Report
from tsfm_data.images import confusion, score
from tsfm_data.output import note, say

MOST_ROWS, MOST_CLASSES = 20, 12  # of printed predictions; of a printed confusion matrix


def fit(
    data: str,
    *,
    output: Path,
    label: str = "label",
    model: str | None = None,
    overwrite: bool = False,
    columns: Columns = Columns(),  # noqa: B008 - it is frozen
    batch_size: int = 256,
    seed: int = 0,
) -> None:
    """Fit a classifier to labelled series: a probe on embeddings of a zero-shot model, in seconds.

    The printed accuracy is that of series left out one at a time.

    Args:
        data: a long table, with the class of each series in a column, or a data set of the catalogue.
        output: the model folder to write.
        label: column of the classes, constant within each series.
        model: a zero-shot model: a name of tsfm weights list, or a model folder; by default the one that ships with
            the package.
        overwrite: replace an existing output.
        columns: how the table is read.
        batch_size: largest number of windows per batch.
        seed: random seed of the choice of 4,000 series, if there are more.
    """
    io.check_new([output], overwrite, [data, model], sign="config.json")
    encoder = inference.load_model(model)
    series = read(data, columns, label)
    found = inference.SeriesClassifier.fit(encoder, series, label, batch_size, seed)
    for text in found.notes:
        note(f"note: {text}")
    found.save(output)
    right = found.probe.left_out
    fitted = inference.labels_of(series, label)
    say(f"{output}: {len(found.classes)} classes, {len(right)} series, model {encoder.name}")
    if len(fitted) == len(right):
        labels = np.array([found.classes.index(name) for name in fitted])
        report = score(right, labels, found.classes, series.name, "left out one at a time", "series")
        say(Report([row for row in report.rows if row.get("item_id") is None]).to_markdown())


def predict(
    data: str,
    *,
    model: str,
    output: Path | None = None,
    overwrite: bool = False,
    safe_csv: bool = False,
    columns: Columns = Columns(),  # noqa: B008 - it is frozen
    batch_size: int = 256,
) -> None:
    """Print the most probable class of each series.

    Args:
        data: CSV, Excel, Parquet or Arrow file ("-" for standard input), or a data set of the catalogue.
        model: the folder that tsfm classify fit wrote.
        output: file for all probabilities (.csv, .parquet or .json).
        overwrite: replace an existing output.
        safe_csv: in CSV, put an apostrophe before ids and names of columns that a spreadsheet would run as a formula.
        columns: how the table is read.
        batch_size: largest number of windows per batch.
    """
    io.check_suffix(output, TABLES)
    io.check_new([output], overwrite, [data, model])
    classifier = inference.SeriesClassifier.load(model)
    series = read(data, columns, classifier.label)
    frame = series.present(classifier.predict(series, batch_size))
    for item, best, likely in frame.iloc[:MOST_ROWS, :3].itertuples(index=False):
        say(f"{item}: {best} {likely:.1%}")
    if len(frame) > MOST_ROWS:
        say(f"... {len(frame):,} series in all; give --output FILE.csv for the others")
    if output is not None:
        write_frame(frame_without_formulas(frame) if safe_csv and output.suffix == ".csv" else frame, output)
        say(f"{output}: {len(frame):,} series")


def evaluate(
    data: str,
    *,
    model: str,
    label: str | None = None,
    json: Path | None = None,
    overwrite: bool = False,
    columns: Columns = Columns(),  # noqa: B008 - it is frozen
    batch_size: int = 256,
) -> None:
    """Score a classifier on labelled series: accuracy, log loss, calibration and the confusion matrix.

    Args:
        data: a long table, with the class of each series in a column.
        model: the folder that tsfm classify fit wrote.
        label: column of the classes; by default that of the table that was fitted.
        json: file for the scores (.json, .md or .parquet).
        overwrite: replace an existing output.
        columns: how the table is read.
        batch_size: largest number of windows per batch.
    """
    io.check_suffix(json, io.REPORTS)
    io.check_new([json], overwrite, [data, model])
    classifier = inference.SeriesClassifier.load(model)
    series = read(data, columns, label or classifier.label)
    report, probabilities, labels, classes = classifier.evaluate(series, label, batch_size)
    say(report.to_markdown())
    if len(classes) <= MOST_CLASSES:
        counts = [[name, *row] for name, row in zip(classes, confusion(probabilities, labels).tolist(), strict=True)]
        say(tabulate(counts, ["true class, by predicted class", *classes], tablefmt="github"))
    if json is not None:
        report.save(json)
        say(f"{json}: {len(report.rows)} rows")


def read(data: str, columns: Columns, label: str) -> io.SeriesSet:
    """The series of a table; the notes about it go to standard error, except the one about the column of classes."""
    series = io.open_source(data, **columns.given())
    for text in series.notes:
        if text != f"columns not used as target or covariate: {label}":
            note(f"note: {text}")
    return series
