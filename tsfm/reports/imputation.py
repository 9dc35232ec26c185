"""Series whose gaps were filled: a figure and a page."""

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tsfm.inference import Imputed
from tsfm.reports.figures import FORECAST, HISTORY, MOST_PANELS, format_axes, new_figure
from tsfm.reports.html import Code, Image, Section, Table, page

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

LEAST_SHOWN = 120  # steps before the first gap and after the last one
AROUND = 3  # or this part of the steps between the two, if it is more
MOST_LISTED = 200  # series of a page
HOW = (
    "A gap is filled by forecasts from the left and, of the series backwards, from the right, and by interpolation, "
    "weighted by their errors on artificial gaps in the same series. Observed values stay as they are."
)


def plot_gaps(frame: "pd.DataFrame", interval: float) -> "Figure":
    """Values, filled gaps and their intervals, one panel per series; those with gaps come first.

    Args:
        frame: the table of an ``Imputed``.
        interval: its interval in percent.
    """
    groups = dict(tuple(frame.groupby("item_id", sort=False, observed=True)))
    order = sorted(groups, key=lambda name: not groups[name]["filled"].any())[:MOST_PANELS]
    columns = 1 if len(order) < 4 else 2
    figure, axes = new_figure(len(order), columns, width=9.0 if columns == 1 else 10.0)
    for axis, name in zip(axes, order, strict=True):
        part = groups[name].iloc[shown_rows(groups[name]["filled"].to_numpy())]
        times, values, filled = (part[column].to_numpy() for column in ("timestamp", "value", "filled"))
        joined = filled.copy()  # the median and the interval are joined to the values at both ends of a gap
        joined[:-1] |= filled[1:]
        joined[1:] |= filled[:-1]
        low, high = (
            np.where(filled, part[end].to_numpy(), np.where(joined, values, np.nan)) for end in ("low", "high")
        )
        axis.fill_between(
            times, low, high, where=joined, color=FORECAST, alpha=0.25, linewidth=0, label=f"{interval:g} % interval"
        )
        axis.plot(times, np.where(filled, np.nan, values), color=HISTORY, linewidth=1.0, label="value")
        alone = filled & ~np.convolve(filled, [1, 0, 1], "same").astype(bool)
        axis.plot(times, np.where(joined, values, np.nan), color=FORECAST, linewidth=1.6, label="filled")
        axis.plot(times[alone], values[alone], "o", color=FORECAST, markersize=3)
        format_axes(axis)
        axis.set_title(str(name), loc="left", fontsize=10)
    lines, _ = axes[0].get_legend_handles_labels()
    lines.sort(key=lambda artist: artist in axes[0].collections)  # lines first, then the interval
    figure.legend(handles=lines, loc="outside upper right", fontsize=9, frameon=False, ncols=len(lines))
    if len(groups) > len(order):
        figure.supxlabel(f"{len(order)} of {len(groups)} series shown", fontsize=8)
    return figure


def shown_rows(filled: np.ndarray) -> slice:
    """The rows from some before the first gap to some after the last one; all rows if there is none."""
    rows = np.flatnonzero(filled)
    if not len(rows):
        return slice(None)
    room = max(LEAST_SHOWN, (rows[-1] - rows[0]) // AROUND)
    return slice(max(0, rows[0] - room), rows[-1] + room + 1)


def imputation_page(result: Imputed, frame: "pd.DataFrame", interval: float, model: str, command: Sequence[str]) -> str:
    """The HTML page of series whose gaps were filled.

    Args:
        result: what was filled.
        frame: its table.
        interval: its interval in percent.
        model: name of the model.
        command: words of the command line.
    """
    sizes: dict[str, list[int]] = {}
    single = result.series.univariate().item_ids
    for gap in result.gaps:
        sizes.setdefault(single[gap.item * len(result.series.variates) + gap.variate], []).append(gap.size)
    rows: list[dict[str, str | int]] = [
        {"series": name, "gaps": len(found), "filled values": sum(found), "longest gap": max(found)}
        for name, found in list(sizes.items())[:MOST_LISTED]
    ]
    picture = Image(plot_gaps(frame, interval), "Values, filled gaps and their intervals")
    caption = f"{len(rows):,} of {len(sizes):,} series with gaps."
    sections = [
        Section("Filled gaps", [picture, HOW, *result.notes()]),
        Section("By series", [Table(rows, caption) if rows else "No gaps."]),
        Section("This page again", [Code(shlex.join(command))]),
    ]
    lead = f"{result.filled.sum():,} of {len(frame):,} values were filled, {len(result.gaps):,} gaps. Model {model}."
    return page(f"Gaps of {result.series.name}", sections, lead)
