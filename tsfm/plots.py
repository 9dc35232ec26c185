"""Figures. Colours are told apart by colour-blind readers (Okabe and Ito 2008)."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tsfm_data.errors import InputError
from tsfm_data.files import atomic_file
from tsfm_data.series import SeriesSet

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HISTORY, TRUTH, FORECAST = "#4d4d4d", "#000000", "#0072b2"
MOST_PANELS = 12


def new_figure(panels: int, columns: int = 1, width: float = 9.0, height: float = 2.6) -> "tuple[Figure, list[Axes]]":
    """A figure with a grid of panels, drawn without a screen."""
    from matplotlib.figure import Figure

    rows = -(-panels // columns)
    figure = Figure(figsize=(width, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for spare in axes[panels:]:
        spare.set_visible(False)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    return figure, axes[:panels]


def save_figure(figure: "Figure", path: str | Path) -> None:
    """Write a figure by the suffix of the path, whole or not at all.

    Raises:
        InputError: a suffix that is not .png, .svg or .pdf.
    """
    target = Path(path)
    if target.suffix not in (".png", ".svg", ".pdf"):
        raise InputError(f"expected a plot that ends in .png, .svg or .pdf, found {path}: rename it")
    # Without a date in it the same figure gives the same file.
    metadata = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}[target.suffix]
    with atomic_file(target) as file:
        figure.savefig(file, dpi=120, metadata=metadata)


def draw_forecast(
    axis: "Axes",
    history: "tuple[np.ndarray, np.ndarray]",
    times: np.ndarray,
    middle: np.ndarray,
    bands: "list[tuple[np.ndarray, np.ndarray, str]]",
    truth: np.ndarray | None = None,
) -> None:
    """History, truth, median and intervals on one panel.

    Args:
        axis: where to draw.
        history: timestamps and values before the forecast.
        times: timestamps of the forecast.
        middle: the median or point forecast.
        bands: low, high and name of each central interval, the widest first.
        truth: what came, where it is known.
    """
    for k, (low, high, name) in enumerate(bands):
        axis.fill_between(times, low, high, color=FORECAST, alpha=0.16 + 0.12 * k, linewidth=0, label=name)
    axis.plot(*history, color=HISTORY, linewidth=1.0, label="history")
    if truth is not None:
        axis.plot(times, truth, color=TRUTH, linewidth=1.2, linestyle=(0, (4, 2)), label="truth")
    axis.plot(times, middle, color=FORECAST, linewidth=1.5, label="median")


def central_bands(frame: "pd.DataFrame") -> "list[tuple[np.ndarray, np.ndarray, str]]":
    """The widest and the next central interval among the quantile columns of a forecast table."""
    levels = sorted(float(c) for c in frame.columns if c not in ("item_id", "timestamp", "mean"))
    pairs = [level for level in levels if level < 0.5 and any(abs(1 - level - other) < 1e-9 for other in levels)]
    chosen = pairs[:1] + pairs[len(pairs) // 2 : len(pairs) // 2 + 1] if len(pairs) > 1 else pairs
    return [
        (frame[f"{low:g}"].to_numpy(), frame[f"{1 - low:g}"].to_numpy(), f"{100 * (1 - 2 * low):.0f} % interval")
        for low in dict.fromkeys(chosen)
    ]


def plot_forecast(series: SeriesSet, frame: "pd.DataFrame") -> "Figure":
    """History and forecast of every series, a panel each, at most twelve.

    Args:
        series: the histories.
        frame: what ``forecast_frame`` made of them.
    """
    single = series.univariate()
    names = list(single.item_ids)
    shown = names[:MOST_PANELS]
    figure, axes = new_figure(len(shown), columns=1 if len(shown) < 4 else 2, width=9 if len(shown) < 4 else 13)
    groups = dict(tuple(frame.groupby("item_id", sort=False, observed=True)))
    for k, (axis, name) in enumerate(zip(axes, shown, strict=True)):
        part = groups[name]
        keep = min(single.length(k), max(3 * len(part), 60))
        values = single.item(k)[: single.length(k), 0][-keep:]
        times = single.timestamps(k)[-keep:].to_numpy()
        middle = part["0.5"] if "0.5" in part else part["mean"]
        draw_forecast(axis, (times, values), part["timestamp"].to_numpy(), middle.to_numpy(), central_bands(part))
        axis.set_title(str(name), loc="left", fontsize=10)
    axes[0].legend(loc="upper left", fontsize=8, frameon=False, ncols=4)
    if len(names) > len(shown):
        figure.supxlabel(f"{len(shown)} of {len(names)} series shown", fontsize=8)
    return figure
