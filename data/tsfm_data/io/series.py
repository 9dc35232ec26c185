"""A set of time series in one contiguous array, and the door through which every table enters.

``read_series`` takes CSV, Parquet, Arrow and Feather files, pandas and pyarrow tables and GluonTS data sets. All checks
of user input happen here; everything behind works on a ``SeriesSet`` that is regular in time.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from jaxtyping import Float, Float64, Int64, Shaped

from tsfm_data.errors import InputError
from tsfm_data.io.columns import Roles, Table, find_roles, item_codes, numbers
from tsfm_data.io.frequency import normalise, period_alias
from tsfm_data.io.grid import BadTime, Grid, regular_grid
from tsfm_data.io.readers import read_table
from tsfm_data.io.timestamps import nanoseconds


@dataclass(frozen=True)
class SeriesSet:
    """Series of one table, one after the other along the rows, regular in time.

    Attributes:
        name: data-set name or file stem.
        source: where it was read from, for messages.
        values: targets; NaN where missing, gaps in time included.
        offsets: item ``i`` is rows ``offsets[i]:offsets[i + 1]``.
        item_ids: names of the items.
        variates: names of the V target columns.
        starts: datetime64[ns] of each item's first row.
        freqs: pandas alias of each item.
        past: covariates known up to the present only.
        past_names: their names.
        known: covariates known in the future too.
        known_names: their names.
        future_rows: rows at the end of each item that hold known covariates alone, the target being still to come.
        static: one row an item, or None.
    """

    name: str
    source: str
    values: Float64[np.ndarray, "rows V"]
    offsets: Int64[np.ndarray, " borders"]
    item_ids: tuple[str, ...]
    variates: tuple[str, ...]
    starts: Shaped[np.ndarray, " items"]
    freqs: tuple[str, ...]
    past: Float64[np.ndarray, "rows P"]
    past_names: tuple[str, ...]
    known: Float64[np.ndarray, "rows K"]
    known_names: tuple[str, ...]
    future_rows: Int64[np.ndarray, " items"]
    static: pd.DataFrame | None = None

    def __len__(self) -> int:
        return len(self.item_ids)

    def length(self, i: int) -> int:
        """Rows of item ``i`` whose target lies in the past (``future_rows`` not counted)."""
        return int(self.offsets[i + 1] - self.offsets[i] - self.future_rows[i])

    def item(self, i: int) -> Float64[np.ndarray, "T V"]:
        """Targets of item ``i``, ``length(i)`` rows; a view."""
        return self.values[self.offsets[i] : self.offsets[i] + self.length(i)]

    def timestamps(self, i: int, extra: int = 0) -> pd.DatetimeIndex:
        """Timestamps of the ``length(i)`` rows of item ``i`` and of ``extra`` steps past them."""
        return pd.date_range(self.starts[i], periods=self.length(i) + extra, freq=self.freqs[i])

    def univariate(self) -> "SeriesSet":
        """Every variate as an item of its own, named "item/variate", or by the variate where there is one item.

        The covariates of an item go with each of its variates.
        """
        width = len(self.variates)
        if width == 1:
            return self
        rows = np.concatenate([np.tile(np.arange(a, b), width) for a, b in self._bounds()] or [np.zeros(0, np.int64)])
        values = [self.values[a:b].T.reshape(-1) for a, b in self._bounds()]
        lengths = np.repeat(np.diff(self.offsets), width)
        single = len(self) == 1
        return replace(
            self,
            values=np.concatenate(values or [np.zeros(0)])[:, None],
            offsets=_offsets(lengths),
            item_ids=tuple(v if single else f"{item}/{v}" for item in self.item_ids for v in self.variates),
            variates=("target",),
            starts=np.repeat(self.starts, width),
            freqs=tuple(freq for freq in self.freqs for _ in range(width)),
            past=self.past[rows],
            known=self.known[rows],
            future_rows=np.repeat(self.future_rows, width),
            static=None
            if self.static is None
            else self.static.loc[self.static.index.repeat(width)].reset_index(drop=True),
        )

    def select(self, items: Sequence[int]) -> "SeriesSet":
        """The items of the given numbers, in the given order."""
        chosen = np.asarray(items, dtype=np.int64)
        lengths = np.diff(self.offsets)[chosen]
        offsets = _offsets(lengths)
        rows = np.arange(offsets[-1]) + np.repeat(self.offsets[chosen] - offsets[:-1], lengths)
        return replace(
            self,
            values=self.values[rows],
            offsets=offsets,
            item_ids=tuple(self.item_ids[i] for i in chosen),
            starts=self.starts[chosen],
            freqs=tuple(self.freqs[i] for i in chosen),
            past=self.past[rows],
            known=self.known[rows],
            future_rows=self.future_rows[chosen],
            static=None if self.static is None else self.static.iloc[chosen].reset_index(drop=True),
        )

    def to_frame(self) -> pd.DataFrame:
        """A long table: ``item_id``, ``timestamp``, the targets, the covariates. Future rows are part of it."""
        lengths = np.diff(self.offsets)
        stamps = [self.timestamps(i, extra=int(self.future_rows[i])).to_numpy() for i in range(len(self))]
        frame = pd.DataFrame(
            np.concatenate([self.values, self.past, self.known], axis=1),
            columns=[*self.variates, *self.past_names, *self.known_names],
        )
        frame.insert(0, "timestamp", np.concatenate(stamps) if stamps else np.zeros(0, "datetime64[ns]"))
        frame.insert(0, "item_id", np.repeat(np.asarray(self.item_ids, dtype=object), lengths))
        return frame

    def to_gluonts(self) -> list[dict[str, Any]]:
        """A GluonTS data set: entries of ``start``, ``target`` ([T], or [V, T] with many variates), ``item_id`` and
        ``feat_dynamic_real`` / ``past_feat_dynamic_real`` where there are covariates."""
        entries = []
        for i, (a, b) in enumerate(self._bounds()):
            target = self.item(i).T
            start = pd.Period(pd.Timestamp(self.starts[i]), freq=period_alias(self.freqs[i]))
            entry = {"start": start, "target": target[0] if len(target) == 1 else target, "item_id": self.item_ids[i]}
            if self.known_names:
                entry["feat_dynamic_real"] = self.known[a:b].T
            if self.past_names:
                entry["past_feat_dynamic_real"] = self.past[a : a + self.length(i)].T
            entries.append(entry)
        return entries

    def _bounds(self) -> list[tuple[int, int]]:
        return list(zip(self.offsets[:-1].tolist(), self.offsets[1:].tolist(), strict=True))

    @classmethod
    def from_arrays(
        cls,
        name: str,
        values: Sequence[np.ndarray] | np.ndarray,
        freq: str | Sequence[str],
        start: Any = "2000-01-01",
        variates: Sequence[str] | None = None,
        item_ids: Sequence[str] | None = None,
    ) -> "SeriesSet":
        """Series of plain arrays.

        Args:
            name: name of the set.
            values: one array ([T] or [T, V]) for a single item, or a list of such arrays; NaN where missing.
            freq: pandas alias, of all or of each.
            start: first timestamp, of all or of each; moved on to the next that ``freq`` allows.
            variates: names of the V columns; "target", or "0", "1", ... by default.
            item_ids: names of the items; "0", "1", ... by default.

        Raises:
            InputError: shapes differ, a value is infinite, or a count of names is wrong.
        """
        arrays = [values] if isinstance(values, np.ndarray) else list(values)
        arrays = [np.asarray(a, dtype=np.float64) for a in arrays]
        arrays = [a[:, None] if a.ndim == 1 else a for a in arrays]
        width = arrays[0].shape[1] if arrays and arrays[0].ndim == 2 else 1
        for i, array in enumerate(arrays):
            if array.ndim != 2 or array.shape[1] != width:
                raise InputError(
                    f"{name}, item {i}: expected an array of shape [T] or [T, {width}], found {list(array.shape)}"
                )
            if np.isinf(array).any():
                row = int(np.argwhere(np.isinf(array))[0, 0])
                raise InputError(f"{name}, item {i}, row {row + 1}: expected finite values, found an infinite one")
        count = len(arrays)
        names = (
            tuple(variates) if variates is not None else ("target",) if width == 1 else tuple(map(str, range(width)))
        )
        ids = tuple(item_ids) if item_ids is not None else tuple(map(str, range(count)))
        freqs = tuple(normalise(f) for f in ([freq] * count if isinstance(freq, str) else freq))
        begins = [start] * count if isinstance(start, str | pd.Timestamp | np.datetime64) else list(start)
        for what, found, expected in (("variate", names, width), ("item", ids, count), ("frequency", freqs, count)):
            if len(found) != expected:
                raise InputError(f"{name}: expected {expected} {what} names, found {len(found)}")
        first = functools.cache(lambda start, freq: pd.date_range(start, periods=1, freq=freq)[0])
        starts = [first(s, f) for s, f in zip(begins, freqs, strict=True)]
        return cls(
            name=name,
            source=name,
            values=np.concatenate(arrays) if arrays else np.zeros((0, width)),
            offsets=_offsets(np.array([len(a) for a in arrays], dtype=np.int64)),
            item_ids=ids,
            variates=names,
            starts=np.array(starts, dtype="datetime64[ns]"),
            freqs=freqs,
            past=np.zeros((sum(map(len, arrays)), 0)),
            past_names=(),
            known=np.zeros((sum(map(len, arrays)), 0)),
            known_names=(),
            future_rows=np.zeros(count, dtype=np.int64),
        )


def _offsets(lengths: Int64[np.ndarray, " items"]) -> Int64[np.ndarray, " borders"]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def read_series(
    source: str | Path | pd.DataFrame | pa.Table | Iterable[dict[str, Any]],
    *,
    time_column: str | None = None,
    item_column: str | None = None,
    target: str | Sequence[str] | None = None,
    past_covariates: Sequence[str] = (),
    known_covariates: Sequence[str] = (),
    freq: str | None = None,
    order: Literal["time", "rows"] = "time",
    name: str | None = None,
) -> SeriesSet:
    """Series of a table.

    A long table (a column such as ``item_id`` or ``unique_id``) gives one item an id, with ``target`` (or ``y``,
    ``value``) as its variate. A wide table (a date column and one numeric column a variate) gives one item. Gaps in
    time become missing rows.

    Args:
        source: CSV, Parquet, Arrow or Feather file, pandas or pyarrow table, or GluonTS data set.
        time_column: name of the time column; None finds it.
        item_column: name of the column that tells series apart; None finds it.
        target: name or names of the value columns; None finds them.
        past_covariates: columns known up to the present only.
        known_covariates: columns known in the future too; trailing rows without any target are then the future.
        freq: pandas alias of all series; None reads each series' most common step.
        order: "rows" takes the rows as equally spaced from the first timestamp on, whatever the later timestamps say,
            as the long-horizon literature does; "time" checks them.
        name: name of the set; None takes the stem of the file.

    Raises:
        InputError: anything about the table that is not as it should be, in one line with its place.
    """
    if isinstance(source, str | Path):
        table = read_table(Path(source), item_column)
    elif isinstance(source, pd.DataFrame | pa.Table):
        table = Table(_plain(source), "the table", "table")
    else:
        from tsfm_data.io.gluonts import read_gluonts

        return read_gluonts(source, freq=freq, name=name or "dataset")
    if len(table.frame) == 0:
        raise InputError(f"{table.source}: expected rows of values, found a header alone")
    roles = find_roles(
        table,
        time_column=time_column,
        item_column=item_column,
        target=target,
        past=past_covariates,
        known=known_covariates,
    )
    return _assemble(table, roles, freq, order, name or table.name)


def _plain(source: pd.DataFrame | pa.Table) -> pd.DataFrame:
    """A table whose index holds nothing of use: dates and item ids in an index become columns."""
    frame = source.to_pandas(date_as_object=False) if isinstance(source, pa.Table) else source
    index = frame.index
    if isinstance(index, pd.DatetimeIndex | pd.PeriodIndex):
        frame = frame.rename_axis(index=str(index.name or "timestamp")).reset_index()
    else:
        frame = frame.reset_index(drop=not isinstance(index, pd.MultiIndex))
    frame = frame.set_axis([str(name) for name in frame.columns], axis="columns")
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise InputError(f"the table: expected different column names, found {twice[0]!r} more than once")
    return frame


def _assemble(table: Table, roles: Roles, freq: str | None, order: str, name: str) -> SeriesSet:
    """One contiguous set out of columns: rows sorted by item, put on the regular grid."""
    values = numbers(table, roles.target)
    past, known = numbers(table, roles.past), numbers(table, roles.known)
    ns = nanoseconds(table, roles.time)
    if roles.item is None:
        codes = np.zeros(len(ns), dtype=np.int64)
        ids: tuple[str, ...] = roles.target if len(roles.target) == 1 else (name,)
    else:
        codes, ids = item_codes(table, roles.item)
    rows = np.argsort(codes, kind="stable")
    bounds = _offsets(np.bincount(codes, minlength=len(ids)))
    try:
        grid = _sequence(ns[rows], bounds, freq) if order == "rows" else regular_grid(ns[rows], bounds, freq)
    except BadTime as error:
        row = int(rows[error.row])
        series = "" if roles.item is None else f", series {ids[codes[row]]!r}"
        raise InputError(f"{table.where(row, roles.time)}{series}: {error.text}") from error
    offsets = _offsets(grid.length)
    place = offsets[codes[rows]] + grid.position
    columns = [_spread(block, rows, place, int(offsets[-1])) for block in (values, past, known)]
    future = np.zeros(len(ids), dtype=np.int64)
    if roles.known:
        seen = np.isfinite(columns[0]).any(axis=1)
        last = np.maximum.reduceat(np.where(seen, np.arange(len(seen)) + 1, 0), offsets[:-1])
        future = np.where(last > 0, offsets[1:] - last, 0)  # an item without any value has no visible end
    return SeriesSet(
        name=name,
        source=table.source,
        values=columns[0],
        offsets=offsets,
        item_ids=ids,
        variates=roles.target,
        starts=grid.starts,
        freqs=grid.freqs,
        past=columns[1],
        past_names=roles.past,
        known=columns[2],
        known_names=roles.known,
        future_rows=future,
    )


def _spread(
    block: Float[np.ndarray, "rows C"], rows: Int64[np.ndarray, " rows"], place: Int64[np.ndarray, " rows"], total: int
) -> Float64[np.ndarray, "total C"]:
    if total == len(rows) and (rows[:-1] < rows[1:]).all():
        return block  # nothing to move: no gap, and the rows are in order
    result = np.full((total, block.shape[1]), np.nan)
    result[place] = block[rows]
    return result


def _sequence(ns: Int64[np.ndarray, " rows"], bounds: Int64[np.ndarray, " borders"], freq: str | None) -> Grid:
    """Rows as steps, one after the other, whatever their timestamps after the first say."""
    if freq is None:
        raise InputError("expected a frequency with order='rows', found none; give freq")
    first = regular_grid(ns[bounds[:-1]], np.arange(len(bounds)), freq)
    length = np.diff(bounds)
    return Grid(np.arange(len(ns)) - np.repeat(bounds[:-1], length), length, first.starts, first.freqs)
