"""The page of scores on one's own tables: errors of a model and of simple methods, and its forecasts of the end."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tsfm.inference import forecast_frame
from tsfm.nn import DEFAULT_LEVELS
from tsfm.reports.figures import plot_forecast
from tsfm.reports.html import Code, Image, Section, Table, Value, page, save_page
from tsfm_data.evaluation import Predictor, Report
from tsfm_data.io import SeriesSet

SHOWN = 3  # series
NAMES = {"coverage80": "80 % coverage"}
HEADLINE = ("MASE", "WQL", "MAE", "MSE", "RMSE", "sMAPE", "coverage80")
PLACE = ("dataset", "freq", "horizon", "season", "windows", "model")
EXPLAINED = {
    "MASE": "MASE: mean absolute error of the median divided by that of seasonal naive within the history.",
    "WQL": "WQL: weighted quantile loss at the levels 0.1 to 0.9.",
    "coverage80": "The coverage of the 80 % interval, the share of true values inside it, should be 0.8.",
}


def write_scores(
    report: Report, tables: Sequence[SeriesSet], predictor: Predictor, folder: Path, command: Sequence[str]
) -> None:
    """Write report.html, report.md and report.json.

    Args:
        report: scores of the predictor and of others.
        tables: what it was scored on.
        predictor: whose forecasts are drawn.
        folder: where.
        command: words of the command line.
    """
    rows = score_rows(report)
    strong = [index for index, row in enumerate(rows) if row["model"] == predictor.name]
    caption = "The evaluated model is in bold. report.json holds every metric."
    sections = [
        Section("Scores", [how_to_read(report), Table(rows, caption, strong)]),
        Section("Forecasts of the end", [forecast_image(series, predictor, report) for series in tables]),
        Section("This page again", [*report.notes, Code(shlex.join(command))]),
    ]
    save_page(
        page(f"{predictor.name} on {', '.join(series.name for series in tables)}", sections), folder / "report.html"
    )
    report.save(folder / "report.md")
    report.save(folder / "report.json")


def how_to_read(report: Report) -> str:
    """What the main metrics of a report mean."""
    metrics = {row["metric"] for row in report.rows}
    return " ".join([*(text for name, text in EXPLAINED.items() if name in metrics), "Smaller errors are better."])


def score_rows(report: Report) -> list[dict[str, Value]]:
    """A row for each table and model, a column for each error."""
    rows: dict[tuple[Value, ...], dict[str, Value]] = {}
    for row in report.rows:
        place = {key: row[key] for key in PLACE}
        line = rows.setdefault(tuple(place.values()), place)
        if row["metric"] in HEADLINE:
            line[NAMES.get(row["metric"], row["metric"])] = row["value"]
    return list(rows.values())


def forecast_image(series: SeriesSet, predictor: Predictor, report: Report) -> Image:
    """History, truth and forecast of the last window of the first series of a table."""
    freq = series.freqs[0]
    horizon = next(row["horizon"] for row in report.rows if row["dataset"] == series.name and row["freq"] == freq)
    some = series.select([i for i, other in enumerate(series.freqs) if other == freq][:SHOWN])
    history = replace(some, future_rows=some.future_rows + horizon)
    items = list(some.univariate().item_ids)[:SHOWN]
    frame = forecast_frame(predictor, some, horizon, DEFAULT_LEVELS, held_out=True)
    figure = plot_forecast(history, frame, truth=some, items=items)
    caption = f"{series.name}: the last {horizon} steps, forecast from the values before them."
    return Image(figure, f"History, truth and forecast of {', '.join(items)}", caption)
