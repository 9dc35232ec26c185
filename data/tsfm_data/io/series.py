"""A set of time series in one contiguous array, regular in time."""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64, Shaped

from tsfm_data.errors import InputError
from tsfm_data.io.frequency import calendar_seasons, dates, natural_season, normalise, period_alias, season_length


@dataclass(frozen=True)
class Labels:
    """Names and time zone of a table, so that forecasts can be joined with it.

    Attributes:
        time: name of its time column.
        item: name of its column of ids; None if it has none.
        zone: time zone of its timestamps; None if they have none.
        clock: time zone of ``SeriesSet.timestamps``; None if it is that of the table.
        integer: whether its time column contains integer steps; ``SeriesSet.timestamps`` then has as many nanoseconds.
        rows: its number of rows.
    """

    time: str = "timestamp"
    item: str | None = None
    zone: str | None = None
    clock: str | None = None
    integer: bool = False
    rows: int = 0

    def show(self, index: pd.DatetimeIndex) -> pd.Index:
        """Timestamps of a ``SeriesSet`` in the time zone and type of the table."""
        if self.integer:
            return pd.Index(index.as_unit("ns").asi8)
        if self.clock is None:
            return index
        first = np.ones(len(index), dtype=bool)
        aware = index.tz_localize(self.clock, ambiguous=first, nonexistent="shift_forward")
        return aware.tz_convert("UTC").tz_localize(None) if self.zone is None else aware.tz_convert(self.zone)


@dataclass(frozen=True)
class SeriesSet:
    """Series of one table, one after the other along the rows, regular in time.

    Attributes:
        name: data-set name or file stem.
        source: where it was read from, for messages.
        values: targets; NaN if missing, also in gaps.
        offsets: item ``i`` is rows ``offsets[i]:offsets[i + 1]``.
        item_ids: names of the items.
        variates: names of the V target columns.
        starts: datetime64[ns] of each item's first row.
        freqs: pandas alias of each item.
        past: covariates known only up to the present.
        past_names: their names.
        known: covariates whose future is known, too.
        known_names: their names.
        future_rows: number of rows at the end of each item with only known covariates.
        static: one row per item, or None.
        labels: names and time zone of the table.
        keys: ids of the items with the type that they have in the table; None if these are ``item_ids``.
        season: season length in steps as given by the user; None takes that of the frequency.
        natural: whether the season of a frequency is that of the calendar (7 for days) rather than GluonTS's (1).
        notes: how the table was read, if that is not obvious.
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
    labels: Labels = Labels()
    keys: pd.Series | None = None
    season: int | None = None
    natural: bool = False
    notes: tuple[str, ...] = ()

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
        return dates(self.starts[i], self.length(i) + extra, self.freqs[i])

    def season_of(self, freq: str) -> int:
        """Steps in one season of the series of a frequency."""
        return self.season or (natural_season if self.natural else season_length)(freq)

    def seasons_of(self, freq: str) -> tuple[int, ...]:
        """All seasons in steps: the one that the user gave first, then those of the calendar for a frequency."""
        given = () if self.season is None else (self.season,)
        return tuple(dict.fromkeys((*given, *calendar_seasons(freq))))

    def present(self, frame: pd.DataFrame) -> pd.DataFrame:
        """A forecast with the column names, type of ids and time zone (or integer steps) of the input.

        Ids or times keep our name if another column already has that of the input.

        Args:
            frame: a table with the column ``item_id``, and ``timestamp`` if it has times.
        """
        frame = frame.copy()
        if self.keys is not None and len(self.variates) == 1:
            place = pd.Index(self.item_ids).get_indexer(pd.Index(frame["item_id"]))
            frame["item_id"] = (
                self.keys.iloc[place].to_numpy() if self.keys.dtype == object else self.keys.iloc[place].array
            )
        if "timestamp" in frame:
            frame["timestamp"] = self.labels.show(pd.DatetimeIndex(frame["timestamp"]))
        for ours, theirs in (("item_id", self.labels.item), ("timestamp", self.labels.time)):
            if theirs is not None and theirs not in frame.columns:
                frame = frame.rename(columns={ours: theirs})
        return frame

    def unobserved(self) -> list[str]:
        """Names of the series, one per variate, that have rows but no value."""
        single = self.univariate()
        names = enumerate(single.item_ids)
        return [name for i, name in names if single.length(i) and np.isnan(single.item(i)).all()]

    def univariate(self) -> "SeriesSet":
        """Every variate as an item of its own, named "item/variate", or by the variate if there is only one item.

        The covariates of an item are repeated for each of its variates.
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
            offsets=item_offsets(lengths),
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
            keys=None,
        )

    def select(self, items: Sequence[int]) -> "SeriesSet":
        """The items of the given numbers, in the given order."""
        chosen = np.asarray(items, dtype=np.int64)
        lengths = np.diff(self.offsets)[chosen]
        offsets = item_offsets(lengths)
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
            keys=None if self.keys is None else self.keys.iloc[chosen].reset_index(drop=True),
        )

    def sha256(self) -> str:
        """SHA-256 of the values, times and names, independent of the format of the table."""
        names = (self.item_ids, self.variates, self.past_names, self.known_names, self.freqs)
        digest = hashlib.sha256(repr(names).encode())
        for array in (self.starts, self.offsets, self.future_rows):
            digest.update(array.tobytes())
        for block in (self.values, self.past, self.known):
            digest.update(np.where(np.isnan(block), np.nan, block).tobytes())  # one bit pattern for all NaN
        return digest.hexdigest()

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
        ``feat_dynamic_real`` / ``past_feat_dynamic_real`` if there are covariates."""
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
        static: Mapping[str, Sequence[Any]] | None = None,
    ) -> "SeriesSet":
        """Series of plain arrays.

        Args:
            name: name of the set.
            values: one array ([T] or [T, V]) for a single item, or a list of such arrays; NaN where missing.
            freq: pandas alias, of all or of each.
            start: first timestamp, of all or of each; moved to the next one that ``freq`` allows.
            variates: names of the V columns; "target", or "0", "1", ... by default.
            item_ids: names of the items; "0", "1", ... by default.
            static: columns with one value per item.

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
        first = functools.cache(lambda start, freq: dates(start, 1, freq)[0])
        starts = [first(s, f) for s, f in zip(begins, freqs, strict=True)]
        return cls(
            name=name,
            source=name,
            values=np.concatenate(arrays) if arrays else np.zeros((0, width)),
            offsets=item_offsets(np.array([len(a) for a in arrays], dtype=np.int64)),
            item_ids=ids,
            variates=names,
            starts=np.array(starts, dtype="datetime64[ns]"),
            freqs=freqs,
            past=np.zeros((sum(map(len, arrays)), 0)),
            past_names=(),
            known=np.zeros((sum(map(len, arrays)), 0)),
            known_names=(),
            future_rows=np.zeros(count, dtype=np.int64),
            static=None if static is None else pd.DataFrame(dict(static)),
        )


def item_offsets(lengths: Int64[np.ndarray, " items"]) -> Int64[np.ndarray, " borders"]:
    """Where each item's rows start, and where the last one's end."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
