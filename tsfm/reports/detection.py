"""What a detector of anomalies found: the flagged rows as text, a figure, and a page."""

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tabulate import tabulate

from tsfm.inference import Detector
from tsfm.reports.figures import FORECAST, HISTORY, MOST_PANELS, TRUTH, format_axes, new_figure
from tsfm.reports.html import Code, Image, Section, Table, page

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

MOST_ROWS = 40  # of the table of anomalies
WEEK = 7 * 86400.0  # seconds
MOST_LISTED = 200  # of that of a page
SHOWN = ["value", "expected", "low", "high", "p_value", "kind"]
HOW = (
    "Every value is compared with a forecast from the values before it. Its p-value is the rank of its error among "
    "earlier errors: a value is an anomaly if that is at most the rate. Values within the interval are not flagged."
)
KINDS = "Kinds: a single value, a drift of several, or values that are frozen."


def detection_text(found: Detector, frame: "pd.DataFrame") -> str:
    """The flagged rows as a table, the latest last, and how many false alarms there should be.

    Args:
        found: the detector.
        frame: its table, with ids and times as in the input.
    """
    rows = frame[frame["anomaly"]]
    lines = []
    if len(rows):
        shown = rows.tail(MOST_ROWS) if len(frame.iloc[:, 0].unique()) == 1 else rows.head(MOST_ROWS)
        names = [*frame.columns[:2], *SHOWN]
        cells = [
            [str(row[0]), str(row[1]), *(x if isinstance(x, str) else f"{x:.4g}" for x in row[2:])]
            for row in shown[names].to_numpy().tolist()
        ]
        lines.append(tabulate(cells, names, tablefmt="github", disable_numparse=True))
        if len(shown) < len(rows):
            lines.append(f"{len(shown)} of {len(rows)} anomalies shown; --output has all")
        lines += ["", KINDS]
    return "\n".join([*lines, verdict(found, len(rows))])


def verdict(found: Detector, count: int) -> str:
    """How many values are anomalies, and how many false alarms there should be.

    Args:
        found: the detector.
        count: flagged values.
    """
    if not found.judged:
        return "no value could be judged: there is too little history for this rate of false alarms"
    return (
        f"{count:,} of {found.judged:,} judged values are anomalies ({count / found.judged:.2%}); about "
        f"{found.rate * found.judged:,.0f} would be false alarms if all were clean (rate {found.rate:g}{weekly(found)})"
    )


def detection_page(found: Detector, frame: "pd.DataFrame", answer: "pd.DataFrame", command: Sequence[str]) -> str:
    """The HTML page of a detection.

    Args:
        found: the detector.
        frame: its table.
        answer: the same with ids and times as in the input.
        command: words of the command line.
    """
    ids, times = answer.columns[:2]
    rows = answer[answer["anomaly"]].sort_values("p_value", kind="stable").head(MOST_LISTED)
    listed = [{str(ids): str(r[0]), str(times): str(r[1])} | dict(zip(SHOWN, r[2:], strict=True))
              for r in rows[[ids, times, *SHOWN]].to_numpy().tolist()]  # fmt: skip
    counts = answer.groupby(ids, sort=False, observed=True)["anomaly"].agg(["size", "sum"])
    most = counts.sort_values("sum", ascending=False, kind="stable").head(MOST_LISTED)
    by_series: list[dict[str, Any]] = [
        {str(ids): str(r[0]), "rows": int(r[1]), "anomalies": int(r[2])} for r in most.itertuples()
    ]
    total = int(answer["anomaly"].sum())
    picture = Image(plot_anomalies(found, frame), "Values, expected intervals and anomalies of each series")
    caption = f"The {len(listed):,} least probable of {total:,}."
    sections = [
        Section("Values and expected intervals", [picture, f"{HOW} {KINDS}"]),
        Section("Anomalies", [Table(listed, caption) if listed else "None."]),
        Section("By series", [Table(by_series, f"{len(by_series):,} of {len(counts):,} series.")]),
        Section("This page again", [Code(shlex.join(command))]),
    ]
    lead = f"{verdict(found, total)}. Model {found.predictor.name}."
    return page(f"Anomalies of {found.series.name}", sections, lead)


def weekly(found: Detector) -> str:
    """False alarms per series and week, if the series have times and one frequency."""
    series = found.series
    if series.labels.integer or len(set(series.freqs)) > 1 or series.length(0) < 2:
        return ""
    stamps = series.timestamps(0)
    steps = WEEK / ((stamps[-1] - stamps[0]).total_seconds() / (len(stamps) - 1))
    return f": {found.rate * steps:,.2g} per series and week"


def plot_anomalies(found: Detector, frame: "pd.DataFrame") -> "Figure":
    """Values, expected intervals and anomalies, one panel per series; those with anomalies come first.

    Args:
        found: the detector.
        frame: its table.
    """
    groups = dict(tuple(frame.groupby("item_id", sort=False, observed=True)))
    order = sorted(groups, key=lambda name: not groups[name]["anomaly"].any())[:MOST_PANELS]
    columns = 1 if len(order) < 4 else 2
    figure, axes = new_figure(len(order), columns, width=9.0 if columns == 1 else 10.0)
    for axis, name in zip(axes, order, strict=True):
        part = groups[name]
        times, values, flags = (part[column].to_numpy() for column in ("timestamp", "value", "anomaly"))
        low, high = part["low"].to_numpy(), part["high"].to_numpy()
        axis.fill_between(times, low, high, color=FORECAST, alpha=0.25, linewidth=0, label="expected interval")
        axis.plot(times, values, color=HISTORY, linewidth=1.0, label="value")
        axis.plot(times[flags], values[flags], "o", color=TRUTH, markersize=4, label="anomaly")
        span = values[np.isfinite(values)]
        if len(span):  # a few wide intervals must not hide the values
            room = 0.25 * (span.max() - span.min()) or 1.0
            axis.set_ylim(span.min() - room, span.max() + room)
        format_axes(axis)
        axis.set_title(str(name), loc="left", fontsize=10)
    lines, _ = axes[0].get_legend_handles_labels()
    figure.legend(handles=lines, loc="outside upper right", fontsize=9, frameon=False, ncols=len(lines))
    if len(groups) > len(order):
        figure.supxlabel(f"{len(order)} of {len(groups)} series shown", fontsize=8)
    return figure
