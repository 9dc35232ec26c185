"""Later rows of the series of a table, for data that arrive while they are used."""

from dataclasses import replace
from itertools import chain

import numpy as np
import pandas as pd

from tsfm_data.errors import LONGEST_HORIZON, InputError
from tsfm_data.io.frequency import dates
from tsfm_data.io.series import SeriesSet, item_offsets


def append_rows(series: SeriesSet, later: SeriesSet) -> SeriesSet:
    """The series with later rows at their ends. Steps between are missing values; new items come last.

    Args:
        series: the series so far.
        later: rows of any of their items, or of new ones, with the same columns. Rows with only known covariates
            replace those of ``series``.

    Raises:
        InputError: other columns or another frequency, or rows that are not later.
    """
    for what in ("variates", "past_names", "known_names"):
        if getattr(series, what) != getattr(later, what):
            expected, found = (", ".join(getattr(s, what)) or "none" for s in (series, later))
            raise InputError(f"expected new rows with the columns {expected} of {series.source}, found {found}")
    place = {name: j for j, name in enumerate(later.item_ids)}
    new = [j for name, j in place.items() if name not in series.item_ids]
    pieces: list[list[tuple[SeriesSet, int, int]]] = []  # of each item: set, first row, row after the last; -1: gap
    future = []
    for i, name in enumerate(series.item_ids):
        first, end = int(series.offsets[i]), int(series.offsets[i + 1])
        if name not in place:
            pieces.append([(series, first, end)])
            future.append(int(series.future_rows[i]))
            continue
        j = place[name]
        gap = steps_between(series, i, later, j)
        pieces.append([(series, first, first + series.length(i)), (series, -1, gap - 1), whole(later, j)])
        future.append(int(later.future_rows[j]))
    pieces += [[whole(later, j)] for j in new]
    rows = {field: join(field, list(chain.from_iterable(pieces))) for field in ("values", "past", "known")}
    keys = series.keys
    if keys is not None and later.keys is not None and new:
        keys = keys.iloc[[*range(len(keys)), *[0] * len(new)]].reset_index(drop=True)
        keys.iloc[len(series) :] = later.keys.iloc[new].array
    return replace(
        series,
        values=rows["values"],
        past=rows["past"],
        known=rows["known"],
        offsets=item_offsets(np.array([sum(end - begin for _, begin, end in item) for item in pieces], np.int64)),
        item_ids=(*series.item_ids, *(later.item_ids[j] for j in new)),
        starts=np.concatenate([series.starts, later.starts[new]]),
        freqs=(*series.freqs, *(later.freqs[j] for j in new)),
        future_rows=np.array([*future, *(int(later.future_rows[j]) for j in new)], np.int64),
        static=None if new else series.static,
        keys=keys,
    )


def whole(series: SeriesSet, i: int) -> tuple[SeriesSet, int, int]:
    """All rows of an item."""
    return series, int(series.offsets[i]), int(series.offsets[i + 1])


def join(field: str, pieces: list[tuple[SeriesSet, int, int]]) -> np.ndarray:
    """The rows of an array of the pieces; NaN in gaps."""
    width = getattr(pieces[0][0], field).shape[1]
    return np.concatenate([getattr(s, field)[a:b] if a >= 0 else np.full((b - a, width), np.nan) for s, a, b in pieces])


def steps_between(series: SeriesSet, i: int, later: SeriesSet, j: int) -> int:
    """Steps between the last row of an item and the first of its later rows.

    Raises:
        InputError: another frequency, rows that are not later, or times off the grid.
    """
    if series.freqs[i] != later.freqs[j]:
        raise InputError(
            f"expected new rows of frequency {series.freqs[i]} in series {series.item_ids[i]!r}, found {later.freqs[j]}"
        )
    length, start, extra = series.length(i), later.starts[j], 64
    ahead = dates(series.starts[i], length + extra, series.freqs[i]).to_numpy()
    while ahead[-1] < start and extra < LONGEST_HORIZON:
        extra *= 4
        ahead = dates(series.starts[i], length + extra, series.freqs[i]).to_numpy()
    row = int(np.searchsorted(ahead, start))
    if row < length or row == len(ahead) or ahead[row] != start:
        last, found = (series.labels.show(pd.DatetimeIndex([t]))[0] for t in (ahead[length - 1], start))
        raise InputError(
            f"expected new rows of series {series.item_ids[i]!r} at times of its frequency {series.freqs[i]} after "
            f"{last}, found {found}: give only the rows that came since"
        )
    return row - length
