"""Figures of series and forecasts, in colours that colour-blind readers can distinguish (Okabe and Ito 2008)."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.dates import HOURLY, MINUTELY, MONTHLY, SECONDLY, AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from tsfm_data.io import PICTURES, SeriesSet, atomic_file, check_suffix

if TYPE_CHECKING:
    import pandas as pd

HISTORY, TRUTH, FORECAST = "#4d4d4d", "#d55e00", "#0072b2"
MOST_PANELS = 12


def new_figure(panels: int, columns: int = 1, width: float = 9.0, height: float = 2.6) -> tuple[Figure, list[Axes]]:
    """A figure with a grid of panels; needs no screen."""
    rows = -(-panels // columns)
    figure = Figure(figsize=(width, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for spare in axes[panels:]:
        spare.set_visible(False)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#e6e6e6", linewidth=0.6)
        axis.set_axisbelow(True)
    return figure, axes[:panels]


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure atomically, in the format given by the suffix of the path.

    Raises:
        InputError: the suffix is not .png, .svg or .pdf.
    """
    target = Path(path)
    check_suffix(target, PICTURES)
    with atomic_file(target) as file:
        write_figure(figure, file, target.suffix[1:])


def write_figure(figure: Figure, file: Path | io.BytesIO, kind: str) -> None:
    """Write a figure without dates and random identifiers, so that equal figures give equal bytes.

    Args:
        figure: the figure.
        file: a path or an open file in memory.
        kind: "png", "svg" or "pdf".
    """
    metadata = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
    # Text of an SVG stays text: paths of its letters would be two thirds of the file.
    with matplotlib.rc_context({"svg.hashsalt": "tsfm", "svg.fonttype": "none"}):
        figure.savefig(file, format=kind, dpi=120, metadata=metadata)


def draw_forecast(
    axis: Axes,
    history: tuple[np.ndarray, np.ndarray],
    times: np.ndarray,
    middle: np.ndarray,
    bands: list[tuple[np.ndarray, np.ndarray, str]],
    truth: np.ndarray | None = None,
) -> None:
    """Draw history, truth, median and intervals on one panel, joined to the last point of the history.

    Args:
        axis: the panel.
        history: timestamps and values before the forecast.
        times: timestamps of the forecast.
        middle: the median or point forecast.
        bands: low, high and name of each central interval, the widest first.
        truth: true values, if known.
    """
    start, last = history[0][-1:], history[1][-1:]
    joined = np.concatenate([start, times])
    for k, (low, high, name) in enumerate(bands):
        bottom, top = (np.concatenate([last, edge]) for edge in (low, high))
        axis.fill_between(joined, bottom, top, color=FORECAST, alpha=0.16 + 0.14 * k, linewidth=0, label=name)
    axis.plot(*history, color=HISTORY, linewidth=1.1, label="history")
    if truth is not None:
        axis.plot(joined, np.concatenate([last, truth]), color=TRUTH, linewidth=1.4, label="truth")
    axis.plot(joined, np.concatenate([last, middle]), color=FORECAST, linewidth=1.8, label="median")
    format_axes(axis)


def format_axes(axis: Axes) -> None:
    """Set few date labels, each readable without its neighbours, and numbers with separated thousands."""
    locator = AutoDateLocator(minticks=3, maxticks=6)
    # Without these intervals the locator finds no ticks for some spans, such as 61 hours or 31 months.
    for unit, whole in ((MONTHLY, 12), (HOURLY, 24), (MINUTELY, 60), (SECONDLY, 60)):
        locator.intervald[unit] = [*locator.intervald[unit], whole]
    formatter = ConciseDateFormatter(
        locator,
        formats=["%Y", "%b %Y", "%d %b", "%H:%M", "%H:%M", "%S"],
        zero_formats=["", "%Y", "%b %Y", "%d %b", "%H:%M", "%H:%M"],
        show_offset=False,
    )
    axis.xaxis.set_major_locator(locator)
    axis.xaxis.set_major_formatter(formatter)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.tick_params(labelsize=9)
    axis.margins(x=0.01)


def central_bands(frame: "pd.DataFrame") -> list[tuple[np.ndarray, np.ndarray, str]]:
    """The widest and the middle central interval among the quantile columns of a forecast table."""
    levels = sorted(float(c) for c in frame.columns if c not in ("item_id", "timestamp", "mean"))
    pairs = [level for level in levels if level < 0.5 and any(abs(1 - level - upper) < 1e-9 for upper in levels)]
    chosen = [pairs[0], pairs[len(pairs) // 2]] if len(pairs) > 2 else pairs
    return [
        (frame[f"{low:g}"].to_numpy(), frame[f"{1 - low:g}"].to_numpy(), f"{100 * (1 - 2 * low):.0f} % interval")
        for low in chosen
    ]


def plot_forecast(
    series: SeriesSet,
    frame: "pd.DataFrame",
    truth: SeriesSet | None = None,
    items: Sequence[str] | None = None,
    unit: str = "",
    history: int | None = None,
) -> Figure:
    """Plot history and forecast, one panel per series, at most twelve panels.

    Args:
        series: the histories.
        frame: their forecasts, as ``forecast_frame`` gives them.
        truth: the same series with the true values of the horizon.
        items: names of the series to show, as in the table; by default the first ones.
        unit: label of the vertical axes.
        history: steps of history to show; by default three times the horizon, and at least 60.
    """
    single = series.univariate()
    names = list(single.item_ids)
    shown = list(items) if items is not None else names[:MOST_PANELS]
    columns = 1 if len(shown) < 4 else 2
    figure, axes = new_figure(len(shown), columns, width=9.0 if columns == 1 else 10.0)
    groups = dict(tuple(frame.groupby("item_id", sort=False, observed=True)))
    truth_series = truth.univariate() if truth is not None else None
    for axis, name in zip(axes, shown, strict=True):
        part, k = groups[name], names.index(name)
        length = single.length(k)
        shown_steps = min(length, history or max(3 * len(part), 60))
        past = (single.timestamps(k)[:length][-shown_steps:].to_numpy(), single.item(k)[:length, 0][-shown_steps:])
        true_values = None if truth_series is None else truth_series.item(k)[length : length + len(part), 0]
        middle = part["0.5"] if "0.5" in part else part["mean"]
        draw_forecast(axis, past, part["timestamp"].to_numpy(), middle.to_numpy(), central_bands(part), true_values)
        axis.set_title(str(name), loc="left", fontsize=10)
        axis.set_ylabel(unit, fontsize=9)
    lines, _ = axes[0].get_legend_handles_labels()
    lines.sort(key=lambda artist: artist in axes[0].collections)  # lines first, then the intervals
    figure.legend(handles=lines, loc="outside upper right", fontsize=9, frameon=False, ncols=len(lines))
    if len(names) > len(shown) and items is None:
        figure.supxlabel(f"{len(shown)} of {len(names)} series shown", fontsize=8)
    return figure
