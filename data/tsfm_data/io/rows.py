"""Rows of a table by series and time: sorted, without repeats, resampled."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int64

from tsfm_data.io import zones
from tsfm_data.io.bad_series import BadSeries
from tsfm_data.io.calendars import DAY
from tsfm_data.io.regroup import Aggregate, periods, regroup
from tsfm_data.io.row_counts import RowCounts
from tsfm_data.io.series import item_offsets
from tsfm_data.io.timestamps import Stamps


@dataclass
class Rows:
    """Rows of a table by series and time, as they are brought into shape.

    Attributes:
        row: place in the table.
        code: series.
        ns: timestamp.
        blocks: targets, past and known covariates.
    """

    row: Int64[np.ndarray, " rows"]
    code: Int64[np.ndarray, " rows"]
    ns: Int64[np.ndarray, " rows"]
    blocks: list[np.ndarray]

    def take(self, chosen: np.ndarray) -> "Rows":
        """Some of the rows, in the order given."""
        return Rows(self.row[chosen], self.code[chosen], self.ns[chosen], [block[chosen] for block in self.blocks])

    def bounds(self, items: int) -> Int64[np.ndarray, " borders"]:
        """Where the rows of each series begin, if they are in order of series."""
        return item_offsets(np.bincount(self.code, minlength=items))


def sort_rows(rows: Rows, items: int, counts: RowCounts) -> Rows:
    """Rows sorted by series, then time; counts those that were not."""
    if items > 1:
        rows = rows if (rows.code[1:] >= rows.code[:-1]).all() else rows.take(np.argsort(rows.code, kind="stable"))
    back = np.flatnonzero(rows.ns[1:] < rows.ns[:-1])
    back = back[rows.code[back] == rows.code[back + 1]]
    counts.inner, counts.back = len(rows.ns) - items, len(back)
    return rows.take(np.lexsort((rows.ns, rows.code))) if len(back) else rows


def drop_repeats(rows: Rows, bad: BadSeries, stamps: Stamps, counts: RowCounts) -> Rows:
    """Rows without repeated timestamps: identical repeats are dropped and counted; others are errors."""
    again = np.flatnonzero(rows.ns[1:] == rows.ns[:-1]) + 1
    again = again[rows.code[again] == rows.code[again - 1]]
    if not len(again):
        return rows
    cells = np.concatenate(rows.blocks, axis=1)
    same = ((cells[again] == cells[again - 1]) | (np.isnan(cells[again]) & np.isnan(cells[again - 1]))).all(axis=1)
    for i in again[~same]:
        shown = pd.Timestamp(int(rows.ns[i])) if not stamps.integer else int(rows.ns[i])
        change = None if stamps.zone or stamps.integer or not rows.ns[i] % DAY else zones.clock_change(int(rows.ns[i]))
        advice = (
            "drop or average the repeats (--resample), or name the column with the ids of the series with item_column "
            "(--item-column)"
            if change is None
            else f"clocks are set back then, so the hour occurs twice; give timezone (--timezone {change})"
        )
        bad.time(
            int(rows.row[i]),
            int(rows.code[i]),
            f"expected each timestamp once in a series, found {shown} again with other values; {advice}",
            repeat=True,
        )
    if same.any():
        counts.duplicates = int(same.sum())
        keep = np.ones(len(rows.ns), dtype=bool)
        keep[again[same]] = False
        rows = rows.take(keep)
    return rows


def resample_rows(rows: Rows, freq: str, aggregate: Aggregate, counts: RowCounts, zone: str = "UTC") -> Rows:
    """Rows resampled to ``freq``; covariates by their mean. The periods are those of the local time of a zone."""
    if aggregate == "sum":
        kept = ~_unfinished(rows, freq, zone)
        counts.unfinished = int((~kept).sum())
        rows = rows.take(kept) if counts.unfinished else rows
    code, ns, first, blocks = regroup(
        rows.code, periods(zones.to_wall(rows.ns, zone), freq), rows.blocks, [aggregate, "mean", "mean"]
    )
    counts.resampled = len(rows.ns), len(ns)
    return Rows(rows.row[first], code, ns, blocks)


def _unfinished(rows: Rows, freq: str, zone: str) -> Bool[np.ndarray, " rows"]:
    """Rows in the last period of a regular series, if its next step would be in the same period."""
    bounds, period = dense_bounds(rows), periods(zones.to_wall(rows.ns, zone), freq)
    result = np.zeros(len(rows.ns), dtype=bool)
    for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        step = np.diff(rows.ns[a:b])
        if b - a > 2 and (step == step[0]).all():
            following = periods(zones.to_wall(rows.ns[b - 1 : b] + step[0], zone), freq)
            result[a:b] = (period[a:b] == period[b - 1]) & (following == period[b - 1])
    return result


def dense_bounds(rows: Rows) -> Int64[np.ndarray, " borders"]:
    """First row of each series, and the number of rows; series without rows are left out."""
    begins = np.flatnonzero(rows.code[1:] != rows.code[:-1]) + 1
    return np.concatenate([np.zeros(1, np.int64), begins, np.full(1, len(rows.code))])
