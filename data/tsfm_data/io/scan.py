"""One pass over a large long table: it writes the rows to disk by series, and finds what depends on all of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.types
from jaxtyping import Bool, Float64, Int64, Shaped

from tsfm_data.errors import InputError
from tsfm_data.io.blocks import Blocks, ReadAtOnce
from tsfm_data.io.calendars import DAY
from tsfm_data.io.columns import Table
from tsfm_data.io.numerals import MISSING
from tsfm_data.io.roles import TOTALS, Roles
from tsfm_data.io.spill import Spill
from tsfm_data.io.timestamps import in_calendar, read_stamps

MOST_TIMES = 4_000_000  # different times, if they are text or numbers


@dataclass
class DistinctValues:
    """The different values of a column, numbered in order of appearance.

    Attributes:
        numbers: number of each value.
        rows: first row of each.
    """

    numbers: dict[object, int] = field(default_factory=dict)
    rows: list[int] = field(default_factory=list)

    def codes(self, column: pa.ChunkedArray, first: int) -> Int64[np.ndarray, " rows"]:
        """Number of each value of a block that starts at row ``first``; -1 for missing values."""
        encoded = column.combine_chunks().dictionary_encode()
        index = encoded.indices.fill_null(len(encoded.dictionary)).to_numpy(zero_copy_only=False)
        values, before = encoded.dictionary.to_pylist(), len(self.numbers)
        codes = [self.numbers.setdefault(value, len(self.numbers)) for value in values]
        result = np.array([*codes, -1], dtype=np.int64)[index]
        if len(self.numbers) > before:
            places = np.unique(index, return_index=True)[1] + first
            self.rows += [int(place) for place, code in zip(places, codes, strict=False) if code >= before]
        return result


@dataclass
class Times:
    """Times of a large table.

    Attributes:
        distinct: different values of a column of text or numbers; None if the column has a type of times.
        dtype: type of the column in pandas.
        zone, integer, notes: as ``Stamps``.
        ns: nanoseconds since 1970 of each of ``distinct``.
        known: which of them are times.
        any_time: a time of the table, for rows without one.
        of_day: nanoseconds of the day, as long as there are few different ones.
    """

    distinct: DistinctValues | None
    dtype: np.dtype
    zone: str | None = None
    integer: bool = False
    notes: tuple[str, ...] = ()
    ns: Int64[np.ndarray, " distinct"] = field(default_factory=lambda: np.zeros(0, np.int64))
    known: Bool[np.ndarray, " distinct"] = field(default_factory=lambda: np.zeros(0, bool))
    any_time: int | None = None
    of_day: set[int] = field(default_factory=set)

    def encode(self, column: pa.ChunkedArray, first: int) -> Int64[np.ndarray, " rows"]:
        """Times as integers: their numbers in ``distinct``, or units since 1970."""
        if self.distinct is not None:
            codes = self.distinct.codes(column, first)
            if len(self.distinct.numbers) > MOST_TIMES or (self.dtype != object and (codes < 0).any()):
                raise ReadAtOnce
            return codes
        cells = column.to_pandas(date_as_object=False)
        if cells.dt.tz is not None:
            cells = cells.dt.tz_convert("UTC").dt.tz_localize(None)
        values = cells.to_numpy()
        if values.dtype != self.dtype:
            raise ReadAtOnce
        ns, known = self._converted(values)
        if len(self.of_day) < 3:
            self.of_day |= set(np.unique(ns[known] % DAY)[:3].tolist())
        if self.any_time is None and known.any():
            self.any_time = int(ns[known.argmax()])
        return values.view(np.int64)

    @staticmethod
    def _converted(
        cells: Shaped[np.ndarray, " rows"],
    ) -> tuple[Int64[np.ndarray, " rows"], Bool[np.ndarray, " rows"]]:
        known = in_calendar(cells)
        return np.where(known, cells, np.datetime64(0, "s")).astype("datetime64[ns]").astype(np.int64), known

    def finish(self, table: Table, name: str, dayfirst: bool | None, timezone: str | None) -> None:
        """Read the different values, once all are known.

        Raises:
            InputError: as ``read_stamps``.
        """
        if self.distinct is not None:
            column = pd.Series(
                list(self.distinct.numbers), dtype=None if self.dtype == object else self.dtype, name=name
            )
            rows = np.array(self.distinct.rows, dtype=np.int64)
            own = Table(column.to_frame(), table.source, table.name, table.text, header=table.header, rows=rows)
            wrong: dict[int, str] = {}
            stamps = read_stamps(own, name, dayfirst, timezone, wrong)
            self.ns, self.zone, self.integer, self.notes = stamps.ns, stamps.zone, stamps.integer, stamps.notes
            self.known = ~np.isin(np.arange(len(self.ns)), list(wrong))
            if timezone is not None and read_stamps(own, name, dayfirst, None, {}).zone is None:
                raise ReadAtOnce  # the order of the rows tells which hour is meant when clocks are set back
            self.any_time = int(self.ns[self.known.argmax()])
            self.of_day = set(np.unique(self.ns[self.known] % DAY)[:3].tolist())
        if self.any_time is None:
            raise ReadAtOnce

    def decode(self, time: Int64[np.ndarray, " rows"]) -> tuple[Int64[np.ndarray, " rows"], Bool[np.ndarray, " rows"]]:
        """Nanoseconds since 1970 of encoded times, and which of them are times; the others get any time."""
        if self.distinct is None:
            ns, known = self._converted(time.view(self.dtype))
        else:
            ns, known = np.append(self.ns, 0)[time], np.append(self.known, False)[time]
        return np.where(known, ns, self.any_time or 0), known

    def shown(self, time: int) -> object:
        """The cell of an encoded time."""
        if self.distinct is None:
            return pd.Series(np.array([time]).view(self.dtype)).iloc[0]
        return list(self.distinct.numbers)[time] if time >= 0 else None


@dataclass
class Scanned:
    """A large table after one pass.

    Attributes:
        head: its first rows.
        roles: of its columns.
        rows: number of its rows.
        ids: ids of its series.
        times: its times.
        spill: its rows on disk.
    """

    head: Table
    roles: Roles
    rows: int
    ids: list[object]
    times: Times
    spill: Spill


def scan(blocks: Blocks, roles: Roles, folder: Path, dayfirst: bool | None, timezone: str | None) -> Scanned:
    """Read a long table once.

    Args:
        blocks: the table.
        roles: of its columns.
        folder: a new folder for its rows.
        dayfirst, timezone: as for ``read_series``.

    Raises:
        ReadAtOnce: it has to be read at once.
        InputError: a row without an id, or a time column that cannot be read.
    """
    assert roles.item is not None
    values = (*roles.target, *roles.past, *roles.known)
    times = _times(blocks.head, roles.time, dayfirst, timezone)
    ids, rows, seen, spill = DistinctValues(), 0, np.zeros(len(values), dtype=bool), Spill(folder, len(values))
    last: object = None
    for table in blocks.read([*dict.fromkeys((roles.item, roles.time, *values))]):
        column = _plain_ids(table.column(roles.item))
        codes = ids.codes(column, rows)
        if (codes < 0).any():
            raise InputError(
                f"{blocks.head.where(rows + int((codes < 0).argmax()), roles.item)}: expected the id of a series, "
                "found an empty cell; fill it in, or drop the row"
            )
        cells = _numbers(table, values)
        seen |= np.isfinite(cells).any(axis=0)
        spill.append(rows, codes, times.encode(table.column(roles.time), rows), cells)
        rows += len(codes)
        last = table.column(roles.time)[-1].as_py() if len(codes) else last
    footer = last is None or str(last).strip().lower().rstrip(":") in {*TOTALS, *MISSING}
    if footer or len(ids.numbers) == rows or not seen.all():
        raise ReadAtOnce
    times.finish(blocks.head, roles.time, dayfirst, timezone)
    head = replace(blocks.head, frame=blocks.head.frame.head(0))
    return Scanned(head, roles, rows, list(ids.numbers), times, spill)


def _plain_ids(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)):
        raise ReadAtOnce
    return column


def _numbers(table: pa.Table, names: Sequence[str]) -> Float64[np.ndarray, "rows columns"]:
    result = np.empty((len(table), len(names)))
    for i, name in enumerate(names):
        column = table.column(name)
        kind = column.type
        if not (pa.types.is_integer(kind) or pa.types.is_float32(kind) or pa.types.is_float64(kind)):
            if not pa.types.is_null(kind):
                raise ReadAtOnce
            result[:, i] = np.nan
            continue
        result[:, i] = column.to_pandas().to_numpy(dtype=np.float64, na_value=np.nan)
    return result


def _times(head: Table, name: str, dayfirst: bool | None, timezone: str | None) -> Times:
    """The time column, as far as its type tells how to read it."""
    cells = head.frame[name]
    if pd.api.types.is_datetime64_any_dtype(cells):
        zone = read_stamps(head, name, dayfirst, timezone, {}).zone
        if cells.dt.tz is not None:
            cells = cells.dt.tz_convert("UTC").dt.tz_localize(None)
        elif timezone is not None:
            raise ReadAtOnce  # the order of the rows tells which hour is meant when clocks are set back
        return Times(None, cells.to_numpy().dtype, zone)
    if cells.dtype == object or (pd.api.types.is_integer_dtype(cells) and isinstance(cells.dtype, np.dtype)):
        return Times(DistinctValues(), np.dtype(cells.dtype))
    raise ReadAtOnce
