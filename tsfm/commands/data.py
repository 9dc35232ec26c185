"""``tsfm data list | pull | inspect``: the catalogue of data sets, and how a table is read."""

import json as json_format
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from tabulate import tabulate

from tsfm.commands.arguments import Columns
from tsfm_data import io
from tsfm_data.errors import unknown_name
from tsfm_data.output import note, say

if TYPE_CHECKING:
    from tsfm_data.io import SeriesSet

SHOWN = 8  # most names of a list that are printed


def list_(role: str | None = None, json: Path | None = None, *, overwrite: bool = False) -> None:
    """List the data sets of the catalogue.

    Args:
        role: only sets for evaluation ("bench") or for training ("train"); by default both.
        json: file to write the list to; "-" writes to standard output instead of the table.
        overwrite: replace an existing output.

    Raises:
        InputError: an unknown role.
    """
    if role not in (None, "bench", "train"):
        raise unknown_name("role", str(role), ("bench", "train"))
    io.check_new([json], overwrite)
    rows = []
    for name in io.catalog.names():
        spec = io.catalog.get(name)
        if role not in (None, spec.role):
            continue
        path = io.catalog.local_file(spec)
        rows.append(
            {
                "name": name,
                "role": spec.role,
                "frequency": spec.freq,
                "series": spec.series,
                "points": spec.points,
                "licence": spec.licence_class,
                "at_hand": path is not None,
                "path": None if path is None else str(path),
                "url": spec.url,
                "domain": spec.domain,
            }
        )
    present = sum(bool(row["at_hand"]) for row in rows)
    summary = {"datasets": len(rows), "at_hand": present}
    if json is not None:
        write_json(json, rows, summary)
    if json is None or str(json) != "-":
        columns = ("name", "role", "frequency", "series", "points", "licence")
        table = [[*(row[c] for c in columns), _place(row)] for row in rows]
        say(tabulate(table, [*columns, "available"], intfmt=",", disable_numparse=[0, 1, 2, 5, 6]))
        say(f"{len(rows)} data sets, {present} available (in the folder TSFM_DATA or the cache)")


def _place(row: dict[str, Any]) -> str:
    return "yes" if row["at_hand"] else "by URL" if row["url"] else "no"


def pull(name: str) -> None:
    """Download a data set, verify it and print its path.

    Args:
        name: a name of tsfm data list.

    Raises:
        InputError: unknown name, wrong content, neither present nor downloadable, or a failed download.
    """
    path = io.catalog.pull(name)
    spec = io.catalog.get(name)
    say(path)
    if spec.licence_class != "open":
        note(f"{name}: licence {spec.licence} ({spec.licence_class}); check that your use is allowed")
    if not spec.verified:
        note(f"{name}: no checksum is known for this file, so its content was not verified")


def inspect(
    input: str,
    columns: Columns = Columns(),  # noqa: B008 - it is frozen
    json: Path | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Show how a table is read: layout, series, frequency, time span, missing values and gaps.

    Args:
        input: CSV, Excel, Parquet or Arrow file ("-" for standard input), or a data set of the catalogue.
        columns: how the table is read.
        json: file to write the findings to; "-" writes to standard output instead of the text.
        overwrite: replace an existing output.

    Raises:
        InputError: the table cannot be read.
    """
    io.check_new([json], overwrite, [input, columns.future])
    series = io.open_source(input, **columns.given())
    findings, rows = _findings(series), _frequencies(series)
    findings["warnings"] = [*findings["warnings"], *_warnings(series)]
    if json is not None:
        write_json(json, rows, findings)
    if json is None or str(json) != "-":
        say(_text(findings, rows))


def _findings(series: "SeriesSet") -> dict[str, Any]:
    """Facts about the whole table."""
    labels, total = series.labels, int(series.offsets[-1])
    added = total - labels.rows if labels.rows else 0
    return {
        "source": series.source,
        "layout": "long" if labels.item else "wide",
        "time_column": labels.time if labels.rows else None,
        "item_column": labels.item,
        "items": len(series),
        "item_ids": list(series.item_ids),
        "variates": list(series.variates),
        "past_covariates": list(series.past_names),
        "known_covariates": list(series.known_names),
        "future_rows": int(series.future_rows.sum()),
        "rows": total - added,
        "missing": int(np.isnan(series.values).sum()) - (added + int(series.future_rows.sum())) * len(series.variates),
        "gaps": added,
        "warnings": list(series.notes),
    }


def _frequencies(series: "SeriesSet") -> list[dict[str, Any]]:
    """One row per frequency: number of items, lengths, time span."""
    freqs = np.array(series.freqs)
    lengths = np.diff(series.offsets) - series.future_rows
    rows = []
    for freq in dict.fromkeys(series.freqs):
        items = np.flatnonzero(freqs == freq)
        ends = [series.timestamps(int(i))[[0, -1]] for i in items]
        first, last = min(end[0] for end in ends), max(end[1] for end in ends)
        shown = series.labels.show(pd.DatetimeIndex([first, last]))
        rows.append(
            {
                "frequency": freq,
                "season": series.season_of(freq),
                "items": len(items),
                "shortest": int(lengths[items].min()),
                "median": float(np.median(lengths[items])),
                "longest": int(lengths[items].max()),
                "first": str(shown[0]),
                "last": str(shown[1]),
            }
        )
    return rows


def _warnings(series: "SeriesSet") -> list[str]:
    """Properties of the series that make forecasts less reliable."""
    empty, constant, short = [], [], []
    for i, name in enumerate(series.item_ids):
        values = series.item(i)
        seen = ~np.isnan(values)
        if not seen.any():
            empty.append(name)
        elif (np.where(seen, values, -np.inf).max(0) <= np.where(seen, values, np.inf).min(0)).any():
            constant.append(name)
        if len(values) < 2 * series.season_of(series.freqs[i]):
            short.append(name)
    texts = (
        (empty, "without any value"),
        (constant, "with a constant column"),
        (short, "shorter than two seasons"),
    )
    found = [f"{len(names)} series {text}: {_some(names)}" for names, text in texts if names]
    if len(set(series.freqs)) > 1:
        found.append(f"{len(set(series.freqs))} frequencies in one table")
    return found


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f", ... ({len(names)})" if len(names) > SHOWN else "")


def _text(findings: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    columns = f"time in {findings['time_column']!r}" if findings["time_column"] else "no time column"
    if findings["item_column"]:
        columns += f", ids in {findings['item_column']!r}"
    pairs = [
        ("table", f"{findings['source']} ({findings['layout']}, {columns})"),
        ("series", f"{findings['items']:,}: {_some(findings['item_ids'])}"),
        ("variates", f"{len(findings['variates']):,}: {_some(findings['variates'])}"),
        ("rows", f"{findings['rows']:,}"),
        ("missing", f"{findings['missing']:,} values"),
        ("gaps", f"{findings['gaps']:,} time steps without a row"),
    ]
    for key in ("past_covariates", "known_covariates"):
        if findings[key]:
            pairs.append((key.replace("_", " "), _some(findings[key])))
    if findings["future_rows"]:
        pairs.append(("future rows", f"{findings['future_rows']:,} with only known covariates"))
    pairs += [("warning", text) for text in findings["warnings"]]
    return f"{tabulate(pairs, tablefmt='plain')}\n\n{tabulate(rows, headers='keys', intfmt=',')}"


def write_json(path: Path, rows: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    """Write rows and their summary as JSON, to a file or ("-") to standard output."""
    text = json_format.dumps({"rows": rows, "summary": summary}, indent=1, ensure_ascii=False) + "\n"
    if str(path) == "-":
        sys.stdout.write(text)
        return
    with io.atomic_file(path) as file:
        file.write_text(text, encoding="utf-8")
