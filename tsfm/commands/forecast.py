"""``tsfm forecast``: forecast the series of a table past their ends."""

import json
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tsfm import inference, nn, reports, weights
from tsfm.commands.arguments import Columns
from tsfm.commands.partitioned import TABLES, Partitions
from tsfm.commands.pieces import forecast_parts, most_series, say_notes, warn, warnings_about
from tsfm_data import io
from tsfm_data.errors import InputError, check_horizon, check_sizes
from tsfm_data.output import note, say, without_formulas

if TYPE_CHECKING:
    import pandas

    from tsfm_data.evaluation import Predictor

PAGES = (".html",)


def forecast(
    input: str,
    *,
    horizon: int,
    model: str | None = None,
    levels: list[float] | None = None,
    interval: list[float] | None = None,
    lower: str | None = None,
    integer: Literal["true", "false", "auto"] | None = None,
    effort: Literal["fast", "best"] = "fast",
    output: Path | None = None,
    plot: Path | None = None,
    overwrite: bool = False,
    safe_csv: bool = False,
    columns: Columns = Columns(),  # noqa: B008 - it is frozen
    partitions: Partitions = Partitions(),  # noqa: B008
    batch_size: int = 256,
) -> int:
    """Forecast every series of a table past its end.

    The table may be wide (a time column and one column per series) or long (item_id, timestamp, target). The forecast
    has the id and time columns of the table, mean, and one column per quantile level, in the units of the table.

    A table may also be in many files, each with all rows of its series: a folder, a pattern such as "sales/*.parquet",
    or a URL such as s3://bucket/sales. The output is then a folder (or URL) with one Parquet file for each of them, and
    manifest.json. If the command is stopped, the same command goes on. A file that cannot be read is reported, and the
    exit status is 1.

    Args:
        input: CSV, Excel, Parquet or Arrow file ("-" for standard input), a data set of the catalogue, or a folder,
            pattern or URL.
        horizon: steps to forecast.
        model: a name of tsfm weights list, a model folder, or naive, seasonal-naive, auto-ets, auto-theta; by default
            the zero-shot model that ships with the package. best and ensemble run a backtest first and use its choice.
        levels: quantile levels, each between 0 and 1; 0.1, 0.2, ... 0.9 by default.
        interval: central intervals in percent, such as 80 95; the output has their bounds and the median.
        lower: lower bound of the forecasts, such as 0; auto uses 0 for series that were never negative.
        integer: round quantiles to whole numbers; auto does so for series of whole numbers.
        effort: fast, or best: zero-shot models average two forecasts, which takes twice as long.
        output: file for the forecast (.csv, .parquet or .json), or folder for that of a folder, pattern or URL;
            standard output by default.
        plot: file for a plot of history, median and interval (.png, .svg or .pdf).
        overwrite: replace an existing output.
        safe_csv: in CSV, put an apostrophe before ids and names of columns that a spreadsheet would run as a formula.
        columns: how the table is read.
        partitions: how a table in many files is processed.
        batch_size: largest number of windows per batch.
    """
    check_horizon(horizon, option="--horizon")
    check_sizes(batch_size=batch_size)
    io.check_suffix(plot, io.PICTURES)
    parted = partitions.are_asked_for(input, output)
    if not parted:
        io.check_suffix(output, TABLES)
        io.check_new([output, plot], overwrite, [input, model, columns.future])
    asked = nn.check_levels(asked_levels(levels, interval))
    bound = inference.check_lower(lower)
    choose = model in inference.CHOICES
    predictor = None if choose else inference.load_predictor(weights.default() if model is None else model, effort)
    forecasts = partial(
        limited, horizon=horizon, levels=asked, batch_size=batch_size, lower=bound, integer=integer or "false"
    )
    key = {"columns": columns.given(), "horizon": horizon, "levels": asked, "lower": bound, "integer": integer}
    key |= {"batch_size": batch_size, "model": model, "effort": effort, "safe_csv": safe_csv}
    if parted:
        if predictor is None:
            raise InputError(
                f"expected one model for all parts, found --model {model}: run tsfm backtest on one of them, and give "
                "its output as --model"
            )
        return partitions.run(
            "forecast",
            input,
            output,
            columns,
            partial(forecast_part, predictor=predictor, forecasts=forecasts),
            key | {"model": inference.model_key(predictor, model)},
            overwrite,
            most_series(horizon, asked),
            plot=plot,
            safe_csv=safe_csv,
        )

    def presented(series: "io.SeriesSet", frame: "pandas.DataFrame") -> "pandas.DataFrame":
        answer = series.present(frame)
        return frame_without_formulas(answer) if safe_csv and (output is None or output.suffix == ".csv") else answer

    if predictor is not None and plot is None and (output is None or output.suffix != ".json"):
        used: Predictor = predictor
        count = forecast_parts(input, output, key, used, lambda part: presented(part, forecasts(part, used, bar=False)))
        if count is not None:
            if output is not None:
                say(f"{output}: {count} series, {horizon} steps each, model {predictor.name}")
            return 0
    series = io.open_source(input, **columns.given())
    if predictor is None:
        result = inference.backtest(series, horizon, batch_size=batch_size)
        words = reports.choices_in_words(result)[str(model)]
        note(f"note: a backtest of {len(result.label)} windows chose {words}")
        predictor = result.selection(str(model))
        inference.set_effort(predictor, effort)
    warn(predictor, series)
    frame = forecasts(series, predictor)
    say_notes(series)
    answer = presented(series, frame)
    if output is None:
        answer.to_csv(sys.stdout, index=False)
    else:
        write_frame(answer, output)
        say(f"{output}: {frame['item_id'].nunique()} series, {horizon} steps each, model {predictor.name}")
    if plot is not None:
        reports.save_figure(reports.plot_forecast(series, frame), plot)
        say(f"{plot}: history, median and interval")
    return 0


def limited(
    series: "io.SeriesSet",
    predictor: "Predictor",
    *,
    horizon: int,
    levels: Sequence[float],
    batch_size: int,
    lower: float | Literal["auto"] | None,
    integer: Literal["true", "false", "auto"],
    bar: bool = True,
) -> "pandas.DataFrame":
    """The forecasts of some series, within their limits, as ``inference.forecast_frame`` and ``inference.limit``."""
    frame = inference.forecast_frame(predictor, series, horizon, levels, batch_size, bar)
    return inference.limit(frame, series, lower, integer)


def forecast_part(
    series: "io.SeriesSet", predictor: "Predictor", forecasts: "Callable[..., pandas.DataFrame]"
) -> "pandas.DataFrame":
    """The forecasts of some series of a part, with the columns of the table; warnings say what is odd about it."""
    for text in warnings_about(predictor, series):
        warnings.warn(text, stacklevel=2)
    return series.present(forecasts(series, predictor, bar=False))


def asked_levels(levels: list[float] | None, interval: list[float] | None) -> list[float]:
    """Quantile levels, given as such or as the bounds of central intervals in percent.

    Raises:
        InputError: an interval that is not between 0 and 100 percent.
    """
    if interval is None:
        return list(nn.DEFAULT_LEVELS) if levels is None else levels
    wrong = [percent for percent in interval if not 0 < percent < 100]
    if wrong:
        raise InputError(f"expected intervals between 0 and 100 percent, found {wrong[0]:g}: give --interval 80 95")
    ends = [round(0.5 + sign * percent / 200, 6) for percent in interval for sign in (-1, 1)]
    return sorted({*(levels or ()), 0.5, *ends})


def frame_without_formulas(frame: "pandas.DataFrame") -> "pandas.DataFrame":
    """A table without ids and names of columns that a spreadsheet would run as a formula; numbers stay."""
    ids = frame.columns[0]
    frame = frame.assign(**{ids: [without_formulas(i) if isinstance(i, str) else i for i in frame[ids]]})
    return frame.rename(columns=without_formulas)


def write_frame(frame: "pandas.DataFrame", path: Path) -> None:
    """Write a table in the format of the suffix, whole or not at all.

    Raises:
        InputError: a suffix that is not .csv, .parquet or .json.
    """
    io.check_suffix(path, TABLES)

    with io.atomic_file(path) as file:
        if path.suffix == ".csv":
            frame.to_csv(file, index=False)
        elif path.suffix == ".parquet":
            frame.to_parquet(file, index=False)
        else:
            ids, times = frame.columns[:2]
            rows = frame.astype({times: str}).to_dict("records")
            summary = {"series": int(frame[ids].nunique()), "rows": len(frame)}
            file.write_text(json.dumps({"rows": rows, "summary": summary}, indent=1) + "\n")
