"""``tsfm impute``: fill the gaps of the series of a table."""

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


def impute(
    input: str,
    *,
    model: str | None = None,
    interval: float = inference.INTERVAL,
    output: Path | None = None,
    plot: Path | None = None,
    page: Path | None = None,
    overwrite: bool = False,
    safe_csv: bool = False,
    columns: Columns = Columns(),  # noqa: B008 - it is frozen
    partitions: Partitions = Partitions(),  # noqa: B008
    batch_size: int = 256,
) -> int:
    """Fill the gaps of every series of a table.

    A gap is filled by forecasts from the left and, of the series backwards, from the right, and by interpolation,
    weighted by their errors on artificial gaps in the same series. The result has the id and time columns of the table;
    value, with the median in the gaps; low and high, the interval there; and filled. Observed values stay as they are.

    Args:
        input: CSV, Excel, Parquet or Arrow file ("-" for standard input), a data set of the catalogue, or a folder,
            pattern or URL, as for tsfm forecast.
        model: as for tsfm forecast; by default the zero-shot model that ships with the package.
        interval: percent of the true values that should lie between low and high.
        output: file for all rows (.csv, .parquet or .json), or folder for those of a folder, pattern or URL; standard
            output by default.
        plot: file for a plot of values, filled gaps and intervals (.png, .svg or .pdf).
        page: file for a page with that plot and tables (.html).
        overwrite: replace an existing output.
        safe_csv: in CSV, put an apostrophe before ids and names of columns that a spreadsheet would run as a formula.
        columns: how the table is read.
        partitions: how a table in many files is processed.
        batch_size: largest number of windows per batch.
    """
    inference.check_interval(interval)
    check_sizes(batch_size=batch_size)
    io.check_suffix(plot, io.PICTURES)
    io.check_suffix(page, PAGES)
    parted = partitions.are_asked_for(input, output)
    if not parted:
        io.check_suffix(output, TABLES)
        io.check_new([output, plot, page], overwrite, [input, model, columns.future])
    predictor = inference.load_predictor(weights.default() if model is None else model)
    if parted:
        asked = {"model": inference.model_key(predictor, model), "interval": interval}
        work = partial(impute_part, predictor=predictor, interval=interval, batch_size=batch_size)
        return partitions.run(
            "impute", input, output, columns, work, asked, overwrite, plot=plot, page=page, safe_csv=safe_csv
        )
    series = io.open_source(input, **columns.given())
    warning = inference.check_covariates(predictor, series)
    if warning is not None:
        note(f"warning: {warning}")
    result = inference.impute(predictor, series, interval, batch_size)
    say_notes(series)
    for line in result.notes():
        note(f"note: {line}")
    frame = result.table()
    answer = series.present(frame)
    if safe_csv and (output is None or output.suffix == ".csv"):
        answer = frame_without_formulas(answer)
    if output is None:
        answer.to_csv(sys.stdout, index=False)
    else:
        write_frame(answer, output)
        say(
            f"{output}: {result.filled.sum():,} of {len(answer):,} values filled, {len(result.gaps):,} gaps, model "
            f"{predictor.name}"
        )
    if plot is not None:
        reports.save_figure(reports.plot_gaps(frame, interval), plot)
        say(f"{plot}: values, filled gaps and intervals")
    if page is not None:
        reports.save_page(
            reports.imputation_page(result, frame, interval, predictor.name, ["tsfm", *sys.argv[1:]]), page
        )
        say(f"{page}: open it in a browser")
    return 0


def impute_part(series: "io.SeriesSet", predictor: "Predictor", interval: float, batch_size: int) -> "pandas.DataFrame":
    """All rows of some series of a part, with their gaps filled; what is odd about them is a warning."""
    result = inference.impute(predictor, series, interval, batch_size)
    for text in result.notes():
        warnings.warn(text, stacklevel=2)
    return series.present(result.table())
