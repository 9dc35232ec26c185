"""Resampling: all rows of a period become one."""

from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Int64

from tsfm_data.io.calendars import DAY, MONDAY
from tsfm_data.io.frequency import anchor_month, step_of

Aggregate = Literal["mean", "sum", "last", "max"]


def periods(ns: Int64[np.ndarray, " rows"], freq: str) -> Int64[np.ndarray, " rows"]:
    """The timestamp of the period that contains each row: its start, or its end for "ME", "QE", "YE" and weeks, as in
    pandas.

    Raises:
        InputError: ``freq`` is no frequency.
    """
    step, period = step_of(freq)
    if step.kind == "business":
        day = ns.view("datetime64[ns]").astype("datetime64[D]")
        return np.busday_offset(day, 0, roll="backward").astype("datetime64[ns]").astype(np.int64)
    if step.kind == "tick":
        from pandas.tseries.frequencies import to_offset

        offset = to_offset(freq)
        weekday = getattr(offset, "weekday", None)
        if weekday is None:
            return ns // step.size * step.size
        last = (int(weekday) * DAY - MONDAY) % (7 * DAY)
        return -((last - ns // DAY * DAY) // step.size) * step.size + last
    month = ns.view("datetime64[ns]").astype("datetime64[M]").astype(np.int64)
    phase = (anchor_month(freq) - (0 if step.kind == "start" else period - 1)) % period
    begin = (month - phase) // step.size * step.size + phase
    if step.kind == "start":
        return begin.astype("datetime64[M]").astype("datetime64[ns]").astype(np.int64)
    end = (begin + step.size).astype("datetime64[M]").astype("datetime64[D]") - 1
    return end.astype("datetime64[ns]").astype(np.int64)


def regroup(
    codes: Int64[np.ndarray, " rows"],
    ns: Int64[np.ndarray, " rows"],
    blocks: list[np.ndarray],
    aggregates: list[Aggregate],
) -> tuple[Int64[np.ndarray, " groups"], Int64[np.ndarray, " groups"], Int64[np.ndarray, " groups"], list[np.ndarray]]:
    """Combine rows with the same series and timestamp.

    Args:
        codes: series of each row.
        ns: period of each row.
        blocks: columns to combine, [rows, columns] each.
        aggregates: how to combine each block. Missing values are ignored; without any value, the result is missing.

    Returns:
        Series and timestamp of each group, in order; the first row of each; the blocks.
    """
    order = np.lexsort((ns, codes))
    new = np.flatnonzero(np.r_[True, (np.diff(codes[order]) != 0) | (np.diff(ns[order]) != 0)][: len(order)])
    group = np.zeros(len(order), dtype=np.int64)
    group[new[1:]] = 1
    group = np.cumsum(group)
    result = []
    for block, how in zip(blocks, aggregates, strict=True):
        grouped = pd.DataFrame(block[order]).groupby(group)
        made = grouped.sum(min_count=1) if how == "sum" else getattr(grouped, how)()
        result.append(made.to_numpy(dtype=np.float64).reshape(len(new), block.shape[1]))
    rows = order[new]
    return codes[rows], ns[rows], rows, result
