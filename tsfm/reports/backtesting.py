"""The page of a backtest: leaderboard, choice, errors by series and step, calibration, forecasts."""

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tabulate import tabulate

from tsfm.inference import Backtest, forecast_table
from tsfm.reports.figures import FORECAST, HISTORY, TRUTH, new_figure, plot_forecast
from tsfm.reports.html import Code, Image, Section, Table, Value, page
from tsfm_data.evaluation import LEVELS
from tsfm_data.windows import Forecast

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = (FORECAST, TRUTH, HISTORY, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442")
MOST_SERIES, SHOWN = 100, 3  # rows of the table of series; series whose forecasts are drawn
HOW = (
    "Scaled loss: mean pinball loss over the levels 0.1 to 0.9, times two, divided by the error of seasonal naive "
    "within the history. Choices minimise it. MASE: mean absolute error of the median, divided by the same error. WQL: "
    "sum of the pinball losses, divided by the sum of the absolute true values. For all three, smaller is better. 80 % "
    "coverage: share of true values inside the 80 % interval. Calibrated: the same after calibration. Both should be "
    "0.8. Seconds: time to forecast all windows."
)
CALIBRATION = (
    "Calibration multiplies the distance of each quantile from the median by a factor for each step ahead. With this "
    "factor, the quantile would have had its nominal coverage on earlier windows (split-conformal prediction)."
)


def terminal_board(result: Backtest) -> str:
    """The leaderboard, the choices and the notes as text."""
    rows = result.leaderboard()
    table = [[row["model"], *(_cell(value) for value in list(row.values())[1:])] for row in rows]
    text = tabulate(table, list(rows[0]), tablefmt="github", disable_numparse=True)
    return "\n".join([text, "", *chosen_lines(result), *result.notes()])


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def choices_in_words(result: Backtest) -> dict[str, str]:
    """The choices on all windows, by kind of choice."""
    counts = Counter(result.chosen("best-per-series").values()).most_common()
    return {
        "best": result.chosen("best"),
        "best-per-series": ", ".join(f"{name} for {count}" for name, count in counts),
        "ensemble": " + ".join(f"{share:.2f} {name}" for name, share in result.chosen("ensemble").items()),
    }


def chosen_lines(result: Backtest) -> list[str]:
    """The choices on all windows, one line each."""
    return [f"{choice}: {what}" for choice, what in choices_in_words(result).items()]


def backtest_page(result: Backtest, choice: str, command: Sequence[str], folder: Path) -> str:
    """The HTML page of a backtest.

    Args:
        result: the backtest.
        choice: the choice that is saved.
        command: words of the command line.
        folder: folder of the result.
    """
    rows = result.leaderboard()
    words = ["tsfm", "forecast", "INPUT", "--horizon", str(result.horizon), "--model", str(folder)]
    strong = [index for index, row in enumerate(rows) if row["model"] == choice]
    sections = [
        Section("Leaderboard", [Table(rows, strong=strong), *result.notes(), HOW, CALIBRATION]),
        Section("Choices on all windows", chosen_lines(result)),
        Section("By step", [Image(step_figure(result), "Scaled loss of each model by steps ahead")]),
        Section("By series", [series_table(result)]),
        Section("The last window", [forecast_image(result, choice)]),
        Section("Use it", [Code(shlex.join(words))]),
        Section("This page again", [Code(shlex.join(command))]),
    ]
    lead = f"{rows[0]['model']} has the smallest scaled loss over {len(result.label[result.judging])} windows of "
    return page(f"Backtest on {result.series.name}", sections, f"{lead}{len(result.ids)} series.")


def step_figure(result: Backtest) -> "Figure":
    """Scaled loss by steps ahead, one line per model and choice."""
    figure, (axis,) = new_figure(1, height=3.4)
    for number, (name, (values, _)) in enumerate(result.judgements.items()):
        steps = result.scores(values, result.judging, "step")["scaled loss"]
        colour, line = COLOURS[number % len(COLOURS)], "-" if name in result.names else "--"
        axis.plot(np.arange(1, len(steps) + 1), steps, line, color=colour, marker=".", linewidth=1.4, label=name)
    axis.set_xlabel("steps ahead", fontsize=9)
    axis.set_ylabel("scaled loss", fontsize=9)
    figure.legend(loc="outside right upper", fontsize=9, frameon=False)
    return figure


def series_table(result: Backtest) -> Table:
    """Scaled loss of every model for each series, and the model that is chosen for it on all windows."""
    each = result.chosen("best-per-series")
    losses = {
        name: result.scores(values, result.judging, "series")["scaled loss"]
        for name, (values, _) in result.judgements.items()
    }
    rows: list[dict[str, Value]] = [
        {"series": series, "chosen": each[series]}
        | {name: float(loss[k]) if np.isfinite(loss[k]) else None for name, loss in losses.items()}
        for k, series in enumerate(result.ids[:MOST_SERIES])
    ]
    more = f"; {len(rows)} of {len(result.ids)} series shown" if len(rows) < len(result.ids) else ""
    return Table(rows, f"Scaled loss by series{more}.")


def forecast_image(result: Backtest, choice: str) -> Image:
    """The last window, forecast by the choice on earlier windows, or else by the best model."""
    name = choice if choice in result.judgements else result.chosen("best")
    values = torch.from_numpy(result.judgements[name][0][-1].transpose(1, 0, 2)[:, :, None])
    truth = result.series.univariate()
    history = replace(truth, future_rows=truth.future_rows + result.horizon)
    frame = forecast_table(history, result.horizon, [Forecast(values[..., 0], values[..., 1:], LEVELS)])
    items = list(result.ids[:SHOWN])
    figure = plot_forecast(history, frame, truth=truth, items=items)
    caption = f"The last {result.horizon} steps, forecast by {name}. Choices use only earlier windows."
    return Image(figure, f"History, truth and forecast of {', '.join(items)}", caption)
