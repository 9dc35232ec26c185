"""``tsfm detect``: find values of a table that forecasts from earlier values did not expect."""

import sys
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tsfm import inference, reports, weights
from tsfm.commands.arguments import Columns
from tsfm.commands.forecast import PAGES, frame_without_formulas, write_frame
from tsfm.commands.partitioned import TABLES, Partitions
from tsfm.commands.pieces import say_notes
from tsfm_data import io
from tsfm_data.errors import check_sizes
from tsfm_data.output import note, say

if TYPE_CHECKING:
    import pandas

    from tsfm_data.evaluation import Predictor


def detect(
    input: str,
    *,
    model: str | None = None,
    rate: float = inference.RATE,
    ahead: int = inference.AHEAD,
    output: Path | None = None,
    plot: Path | None = None,
    page: Path | None = None,
    overwrite: bool = False,
    safe_csv: bool = False,
    columns: Columns = Columns(),  # noqa: B008 - it is frozen
    partitions: Partitions = Partitions(),  # noqa: B008
    batch_size: int = 256,
) -> int:
    """Find anomalies in every series of a table, and print them.

    Each value is compared with a forecast from the values before it. It is an anomaly if its p-value, the rank of its
    error among earlier errors, is at most the rate. An anomaly does not enter the history of later forecasts, unless
    half of the latest values are anomalies: then they are the new normal.

    Args:
        input: CSV, Excel, Parquet or Arrow file ("-" for standard input), a data set of the catalogue, or a folder,
            pattern or URL, as for tsfm forecast.
        model: as for tsfm forecast; by default the zero-shot model that ships with the package.
        rate: rate of false alarms: the share of the values of a series without anomalies that is flagged. The first
            flag takes as many earlier values as one false alarm, 99 for a rate of 0.01.
        ahead: most steps ahead that a value is forecast; more take less time.
        output: file for all rows: value, expected, low, high, score, p_value, anomaly, kind (.csv, .parquet or .json),
            or folder for those of a folder, pattern or URL.
        plot: file for a plot of values, expected intervals and anomalies (.png, .svg or .pdf).
        page: file for a page with that plot and tables (.html).
        overwrite: replace an existing output.
        safe_csv: in CSV, put an apostrophe before ids and names of columns that a spreadsheet would run as a formula.
        columns: how the table is read.
        partitions: how a table in many files is processed.
        batch_size: largest number of windows per batch.
    """
    inference.check_rate(rate)
    check_sizes(ahead=ahead, batch_size=batch_size)
    io.check_suffix(plot, io.PICTURES)
    io.check_suffix(page, PAGES)
    parted = partitions.are_asked_for(input, output)
    if not parted:
        io.check_suffix(output, TABLES)
        io.check_new([output, plot, page], overwrite, [input, model, columns.future])
    predictor = inference.load_predictor(weights.default() if model is None else model)
    if parted:
        asked = {"model": inference.model_key(predictor, model), "rate": rate, "ahead": ahead}
        work = partial(detect_part, predictor=predictor, rate=rate, ahead=ahead, batch_size=batch_size)
        return partitions.run(
            "detect", input, output, columns, work, asked, overwrite, plot=plot, page=page, safe_csv=safe_csv
        )
    series = io.open_source(input, **columns.given())
    warning = inference.check_covariates(predictor, series)
    if warning is not None:
        note(f"warning: {warning}")
    found = inference.Detector(predictor, series, rate, ahead, batch_size)
    say_notes(series)
    for line in found.notes():
        note(f"note: {line}")
    frame = found.table()
    answer = series.present(frame)
    say(reports.detection_text(found, answer))
    if output is not None:
        safe = safe_csv and output.suffix == ".csv"
        write_frame(frame_without_formulas(answer) if safe else answer, output)
        say(f"{output}: {len(answer):,} rows, model {predictor.name}")
    if plot is not None:
        reports.save_figure(reports.plot_anomalies(found, frame), plot)
        say(f"{plot}: values, expected intervals and anomalies")
    if page is not None:
        reports.save_page(reports.detection_page(found, frame, answer, ["tsfm", *sys.argv[1:]]), page)
        say(f"{page}: open it in a browser")
    return 0


def detect_part(
    series: "io.SeriesSet", predictor: "Predictor", rate: float, ahead: int, batch_size: int
) -> "pandas.DataFrame":
    """All rows of some series of a part, judged; what is odd about them is a warning."""
    found = inference.Detector(predictor, series, rate, ahead, batch_size)
    for text in found.notes():
        warnings.warn(text, stacklevel=2)
    return series.present(found.table())
