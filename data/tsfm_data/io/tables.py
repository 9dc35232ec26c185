"""Tables of any kind to series with regular time steps.

``read_series`` reads CSV, Parquet, Arrow, Feather and Excel files, data frames, arrays and GluonTS data sets. All
checks of user input are here and in the modules that it calls; other code can rely on a ``SeriesSet``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Float64, Int64

from tsfm_data.errors import InputError, check_sizes
from tsfm_data.io import zones
from tsfm_data.io.calendars import DAY, split_pattern
from tsfm_data.io.columns import Table, doubtful, encoded, item_codes, numbers
from tsfm_data.io.frequency import natural_season, normalise
from tsfm_data.io.gluonts import read_gluonts
from tsfm_data.io.grid import BadTime, Grid, regular_grid
from tsfm_data.io.objects import Held, from_memory
from tsfm_data.io.readers import read_table
from tsfm_data.io.regroup import Aggregate, periods, regroup
from tsfm_data.io.roles import Roles, find_roles, joined_time, turned, without_footer, without_units
from tsfm_data.io.series import Labels, SeriesSet, item_offsets
from tsfm_data.io.timestamps import Stamps, read_stamps

OnBad = Literal["error", "skip", "fix"]
SHOWN = 5  # names that a note lists


@dataclass(frozen=True)
class Reading:
    """How a table is read, beyond the roles of its columns; the arguments are those of ``read_series``."""

    freq: str | None = None
    order: str = "time"
    resample: str | None = None
    aggregate: Aggregate = "mean"
    on_bad_series: OnBad = "error"
    dayfirst: bool | None = None
    timezone: str | None = None
    season: int | None = None
    own_hours: bool = True


def read_series(
    source: Any,
    *,
    time_column: str | None = None,
    item_column: str | None = None,
    target: str | Sequence[str] | None = None,
    past_covariates: str | Sequence[str] = (),
    known_covariates: str | Sequence[str] = (),
    freq: str | pd.offsets.BaseOffset | None = None,
    order: Literal["time", "rows"] = "time",
    name: str | None = None,
    future: Any = None,
    season: int | None = None,
    resample: str | pd.offsets.BaseOffset | None = None,
    aggregate: Aggregate = "mean",
    on_bad_series: OnBad = "error",
    timezone: str | None = None,
    dayfirst: bool | None = None,
    decimal: Literal[".", ","] | None = None,
    holidays: Sequence[str] = (),
    own_hours: bool = True,
) -> SeriesSet:
    """Series of a table.

    A long table (with a column such as ``item_id`` or ``unique_id``) gives one item per id, with ``target`` (or ``y``,
    ``value``) as its variate. A wide table (a date column and one numeric column per variate) gives one item. Gaps in
    time are filled with missing values. The ``notes`` of the result say how the table was read.

    Args:
        source: CSV, Parquet, Arrow, Feather or Excel file ("-" is standard input); a data frame of pandas or of any
            library with the Arrow or the data-frame interchange protocol; a pandas Series; an array, list or tensor
            of shape [T], [N, T] or [N, V, T] (N series, V variates, T steps), or a list of arrays [T] or [V, T]; a
            GluonTS data set.
        time_column: name of the time column; None infers it.
        item_column: name of the column with the ids of the series; None infers it, "" means that there is none.
        target: name or names of the value columns; None infers them.
        past_covariates: columns known only up to the present.
        known_covariates: columns whose future is known, too; rows at the end without any target are then the future.
        freq: frequency of all series; None takes the most common step of each series. Timestamps that are late or early
            by less than a quarter of a step are moved onto the grid. A weekly pattern may follow an "@"
            (``15min@MON-FRI 09:30-15:45``); None infers it. For an array, which has no timestamps, it sets the season.
        order: "time" checks the timestamps. "rows" uses only the first one and takes the rows as equally spaced, as the
            long-horizon literature does.
        name: name of the set; None takes the stem of the file.
        future: a second table with future rows: times, ids and known covariates (all its other columns, unless
            ``known_covariates`` names some).
        season: season length in steps; None takes that of the frequency.
        resample: frequency to resample to first.
        aggregate: how resampling combines the targets of a period.
        on_bad_series: what to do if some series of a long table cannot be read: "error" raises and names them, "skip"
            leaves them out, "fix" resamples them to the step of the others and treats invalid numbers as missing.
        timezone: time zone of timestamps without one; other timestamps are converted to it.
        dayfirst: whether 01/02/2024 is 1 February; None infers it from the column.
        decimal: decimal mark of numbers in text; None infers it from the column.
        holidays: dates that are not business days, or a file with one per line (with ``freq`` "B" or "C").
        own_hours: whether series with values only at some hours or weekdays have steps only there; if not, all other
            times are gaps.

    Raises:
        InputError: the table cannot be read; one line says what is wrong and where.
    """
    time_column, item_column = _name("time_column", time_column), _name("item_column", item_column)
    freq = _word("freq", getattr(freq, "freqstr", freq), "D")
    resample = _word("resample", getattr(resample, "freqstr", resample), "D")
    target = None if target is None else _names("target", target)
    past_covariates = _names("past_covariates", past_covariates)
    known_covariates = _names("known_covariates", known_covariates)
    timezone = _word("timezone", timezone, "Europe/Berlin")
    _check_choice("order", order, ("time", "rows"))
    _check_choice("aggregate", aggregate, get_args(Aggregate))
    _check_choice("on_bad_series", on_bad_series, get_args(OnBad))
    _check_choice("dayfirst", dayfirst, (None, True, False))
    _check_choice("decimal", decimal, (None, ".", ","))
    check_sizes("give season (--season 7)", season=season)
    known_roles: dict[str, Any] = {}
    if isinstance(source, str | Path):
        table = read_table(Path(source), item_column, decimal)
    else:
        held = from_memory(source)
        if held is None:
            return read_gluonts(source, freq=freq, name=name or "dataset")
        table, known_roles = _plain(held, "table"), held.roles or {}
        if freq is not None and known_roles.get("time_column") == "step":
            freq, season = None, season or natural_season(freq)
    if len(table.frame) == 0:
        raise InputError(f"{table.source}: expected rows of values, found only a header")
    if holidays:
        freq = _with_holidays(freq, holidays)
    reading = Reading(freq, order, resample, aggregate, on_bad_series, dayfirst, timezone, season, own_hours)
    table = prepare(table, time_column or known_roles.get("time_column"), decimal)
    roles_given: dict[str, Any] = {"time_column": time_column, "item_column": item_column, "target": target}
    roles_given = {role: known_roles.get(role) if value is None else value for role, value in roles_given.items()}
    if future is not None:
        table, known_covariates = _with_future(table, future, roles_given, past_covariates, known_covariates)
    roles = find_roles(table, **roles_given, past=past_covariates, known=known_covariates)
    table = without_units(without_footer(table, roles.time), roles.time)
    return _assemble(table, roles, reading, name or table.name)


def prepare(table: Table, time_column: str | None = None, decimal: str | None = None) -> Table:
    """The table with one time column: transposed if dates are its columns, joined if date and hour are two columns, and
    the row numbers if it has only one column."""
    table = replace(table, decimal=decimal)
    if table.frame.shape[1] == 1 and pd.api.types.is_numeric_dtype(table.frame.iloc[:, 0]) and time_column is None:
        frame = table.frame.copy()
        frame.insert(0, "step", np.arange(len(frame)))
        note = f"one column and no time column: rows are taken as steps 0 to {len(frame) - 1}"
        return replace(table, frame=frame, notes=(*table.notes, note))
    return joined_time(turned(table), time_column)


def _with_holidays(freq: str | None, holidays: Sequence[str]) -> str:
    try:
        given = [holidays] if isinstance(holidays, str) else list(holidays)
        if len(given) == 1 and isinstance(given[0], str | Path) and Path(given[0]).is_file():
            given = Path(given[0]).read_text(encoding="utf-8").split()
        days = sorted({str(pd.Timestamp(day).date()) for day in given})
    except (TypeError, ValueError) as error:
        raise InputError(
            f"holidays: expected dates such as 2024-12-25, or a file with one per line, found {error}"
        ) from error
    if freq is not None and normalise(freq) not in ("B", "C"):
        raise InputError(f"expected frequency B or C with holidays, found {freq!r}: give freq (--freq B)")
    return f"B@-{'-'.join(days)}"


def _with_future(
    table: Table, future: Any, given: dict[str, Any], past: Sequence[str], known: Sequence[str]
) -> tuple[Table, Sequence[str]]:
    """The table with the rows of the future appended, and the names of the known covariates."""
    if isinstance(future, str | Path):
        later = read_table(Path(future), given["item_column"])
    else:
        held = from_memory(future)
        if held is None:
            raise InputError(
                f"expected a second table with the rows of the future, found {type(future).__name__}: give a data frame"
            )
        later = _plain(replace(held, source="the future table"), "future")
    later = prepare(later, given["time_column"])
    roles = find_roles(table, **given, past=past, known=known)
    needed = [roles.time, *([roles.item] if roles.item else []), *known]
    for column in needed:
        if column not in later.frame.columns:
            raise InputError(
                f"{later.source}: expected the columns {', '.join(needed)} of the first table, found no {column!r}"
            )
    if not known:
        others = [c for c in later.frame.columns if c not in (*needed, *roles.target)]
        known = [c for c in others if c in table.frame.columns]
        if not known and given["target"] is None:  # what the future holds is no target
            known = [c for c in roles.target if c in later.frame.columns and later.frame[c].notna().any()]
            given["target"] = tuple(c for c in roles.target if c not in known)
        if not known or given["target"] == ():
            raise InputError(
                f"{later.source}: expected a column of the first table that is known in the future, found "
                f"{', '.join(map(str, others)) or 'none'}; name it with known_covariates (--known-covariates)"
            )
    columns = [roles.time, *([roles.item] if roles.item else []), *known]
    rows = later.frame[columns].copy()
    if rows[roles.time].dtype != table.frame[roles.time].dtype:
        stamps = [read_stamps(t, roles.time) for t in (table, later)]
        if stamps[0].zone == stamps[1].zone:
            frames = [table.frame.copy(), rows]
            for frame, stamp in zip(frames, stamps, strict=True):
                frame[roles.time] = stamp.ns if stamp.integer else stamp.ns.view("datetime64[ns]")
            table, rows = replace(table, frame=frames[0]), frames[1]
    if roles.item and rows[roles.item].dtype != table.frame[roles.item].dtype:
        rows[roles.item] = rows[roles.item].astype(table.frame[roles.item].dtype)
    frame = pd.concat([table.frame, rows], ignore_index=True)
    given.update(time_column=roles.time, item_column=roles.item or "", target=given["target"] or roles.target)
    return replace(table, frame=frame, later=replace(later, frame=rows)), known


def _plain(held: Held, name: str) -> Table:
    """The table with dates and item ids of its index as columns."""
    frame, index = held.frame, held.frame.index
    if isinstance(index, pd.DatetimeIndex | pd.PeriodIndex):
        frame = frame.rename_axis(index=str(index.name or "timestamp")).reset_index()
    else:
        frame = frame.reset_index(drop=not isinstance(index, pd.MultiIndex))
    frame = frame.set_axis([str(name) for name in frame.columns], axis="columns")
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise InputError(f"{held.source}: expected different column names, found {twice[0]!r} more than once")
    return Table(frame, held.source, name, notes=held.notes)


def _name(what: str, value: Any) -> str | None:
    """One name that was given, or None."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # the columns of a frame made from an array
    return _word(what, value, "name")


def _word(what: str, value: Any, example: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise InputError(f"expected one name as {what}, found {value!r:.60}: give {what}={example!r}")


def _names(what: str, value: Any) -> tuple[str, ...]:
    """Names that were given, one or several."""
    several = isinstance(value, Sequence | pd.Index | np.ndarray) and not isinstance(value, str | bytes)
    names = [_name(what, part) for part in (value if several else [value])]
    if None in names:
        raise InputError(f"expected names as {what}, found {value!r:.60}: give {what}=['a', 'b']")
    return tuple(str(name) for name in names)


def _check_choice(what: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        known = ", ".join(map(repr, choices))
        raise InputError(f"expected {what} to be one of {known}, found {value!r:.60}: choose one of these")


@dataclass
class _Rows:
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

    def take(self, chosen: np.ndarray) -> "_Rows":
        """Some of the rows, in the order given."""
        return _Rows(self.row[chosen], self.code[chosen], self.ns[chosen], [block[chosen] for block in self.blocks])

    def bounds(self, items: int) -> Int64[np.ndarray, " borders"]:
        """Where the rows of each series begin, if they are in order of series."""
        return item_offsets(np.bincount(self.code, minlength=items))


def _assemble(table: Table, roles: Roles, reading: Reading, name: str) -> SeriesSet:
    """The series of a table: rows sorted by item and time, on a regular grid."""
    problems: dict[int, str] = {}  # rows with invalid numbers
    lenient = problems if roles.item is not None else None
    skipped: list[str] = []
    if roles.item is None and reading.on_bad_series != "error" and len(roles.target) > 1:
        lenient = problems if reading.on_bad_series == "fix" else None
        roles, skipped = _readable(table, roles, lenient)
    values = numbers(table, roles.target, wrong=lenient)
    past, past_names = encoded(table, roles.past)
    known, known_names = encoded(table, roles.known)
    dateless: dict[int, str] | None = {} if roles.item is not None else None
    stamps = read_stamps(table, roles.time, reading.dayfirst, reading.timezone, dateless)
    notes = [*table.notes, *stamps.notes, *doubtful(table, (*roles.target, *roles.past, *roles.known))]
    notes += skipped
    if roles.item is None and problems:
        notes.append(f"{len(problems)} rows with cells that are no numbers, which count as missing")
        problems.clear()
    if roles.unused:
        notes.append(f"columns not used: {', '.join(roles.unused)}")
    keys: pd.Series | None = None
    if roles.item is None:
        codes = np.zeros(len(stamps.ns), dtype=np.int64)
        ids: tuple[str, ...] = roles.target if len(roles.target) == 1 else (name,)
    else:
        codes, keys = item_codes(table, roles.item)
        ids = tuple(str(key) for key in keys)
        if len(ids) == len(codes) > 2:
            raise InputError(
                f"{table.where(None, roles.item)}: expected ids of series, found a different value in every row; "
                "name the id column with item_column (--item-column), or give --no-item-column"
            )
    ns, clock = _clock(stamps, codes, len(ids))
    rows = _Rows(np.arange(len(ns)), codes, ns, [values, past, known])
    if dateless:
        rows = rows.take(np.setdiff1d(rows.row, list(dateless)))
    sequence = reading.order == "rows"
    rows = rows.take(np.argsort(codes, kind="stable")) if sequence else _sorted(rows, len(ids), notes)
    bad = _Bad(table, roles, ids, reading.on_bad_series, stamps.integer)
    bad.rows({**problems, **(dateless or {})}, codes)
    if reading.freq is not None and stamps.integer:
        raise InputError(
            f"{table.source}: expected timestamps with a frequency, found numbers of steps in column {roles.time!r}: "
            "leave freq (--freq) out"
        )
    if reading.resample is not None:
        if stamps.integer:
            raise InputError(
                f"{table.source}: expected timestamps for resampling, found integer steps: leave resample out"
            )
        rows = _regrouped(rows, reading.resample, reading.aggregate, notes)
    else:
        rows = _once(rows, bad, stamps, notes, sequence)
    grid, rows, kept = _on_grid(rows, bad, reading, notes)
    if len(kept) < len(ids):
        ids = tuple(ids[i] for i in kept)
        keys = None if keys is None else keys.iloc[kept].reset_index(drop=True)
    offsets = item_offsets(grid.length)
    place = offsets[rows.code] + grid.position
    columns = [_spread(block, place, int(offsets[-1])) for block in rows.blocks]
    moved = int(grid.moved.sum())
    if moved:
        notes.append(f"{moved:,} of {len(rows.ns):,} timestamps moved onto the regular grid of {_some(grid.freqs)}")
    absent = int(offsets[-1]) - len(rows.ns)
    if absent > len(rows.ns) and reading.own_hours and not sequence:
        notes.append(
            f"{absent:,} of {int(offsets[-1]):,} steps of {_some(grid.freqs)} have no row and count as missing; if "
            "the step is another, give freq (--freq)"
        )
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
        past_names=past_names,
        known=columns[2],
        known_names=known_names,
        future_rows=future,
        static=_static(table, roles, rows, ids),
        labels=Labels(roles.time, roles.item, stamps.zone, clock, stamps.integer, len(table.frame)),
        keys=keys,
        season=reading.season,
        natural=True,
        notes=tuple(notes),
    )


def _readable(table: Table, roles: Roles, wrong: dict[int, str] | None) -> tuple[Roles, list[str]]:
    """The roles without the targets of a wide table that cannot be read, and what was wrong with them."""
    good, said = [], []
    for column in roles.target:
        try:
            numbers(table, (column,), wrong=wrong)
            good.append(column)
        except InputError as error:
            said.append(f"column {column!r} left out: {str(error).split(': ', 1)[-1]}")
    return (replace(roles, target=tuple(good)) if good else roles), said


def _some(names: Sequence[str]) -> str:
    names = list(dict.fromkeys(names))
    return ", ".join(names[:SHOWN]) + (f", ... ({len(names)})" if len(names) > SHOWN else "")


def _static(table: Table, roles: Roles, rows: _Rows, ids: tuple[str, ...]) -> pd.DataFrame | None:
    """Unused columns that are constant within each series, one row per series; None if there are none."""
    if roles.item is None or not roles.unused:
        return None
    codes = rows.code
    first = np.searchsorted(codes, np.arange(len(ids)))
    columns = {}
    for column in roles.unused:
        cells = table.frame[column].iloc[rows.row]
        now, _ = pd.factorize(cells)
        if (now == now[first][codes]).all():
            columns[column] = cells.iloc[first].to_numpy()
    return pd.DataFrame(columns) if columns else None


def _clock(
    stamps: Stamps, codes: Int64[np.ndarray, " rows"], items: int
) -> tuple[Int64[np.ndarray, " rows"], str | None]:
    """Timestamps in the zone in which they are regular, and this zone; None if it is that of the table.

    Series with one time of day in local time (days, weeks, months) are regular in local days, which may have 23 or 25
    hours. Others are regular in UTC.
    """
    ns = stamps.ns
    if stamps.integer:
        return ns, None
    if stamps.zone not in (None, "UTC"):
        wall = zones.to_wall(ns, stamps.zone)
        if _one_time_of_day(wall, codes, items):
            return wall, stamps.zone
        return ns, "UTC"
    some = ns[:: max(1, len(ns) // 1000)]  # enough to see changes of the clock
    if (some % DAY != some[0] % DAY).any() and not _one_time_of_day(ns, codes, items):
        zone = zones.midnight_zone(ns)
        if zone is not None:
            return zones.to_wall(ns, zone), zone
    return ns, stamps.zone


def _one_time_of_day(ns: Int64[np.ndarray, " rows"], codes: Int64[np.ndarray, " rows"], items: int) -> bool:
    time = ns % DAY
    if (time == time[0]).all():
        return True
    if items == 1:
        return False
    usual = np.zeros(items, dtype=np.int64)
    usual[codes] = time
    return bool((time == usual[codes]).all())


def _sorted(rows: _Rows, items: int, notes: list[str]) -> _Rows:
    """Rows sorted by series, then time, with a note if they were not."""
    if items > 1:
        rows = rows if (rows.code[1:] >= rows.code[:-1]).all() else rows.take(np.argsort(rows.code, kind="stable"))
    back = np.flatnonzero(rows.ns[1:] < rows.ns[:-1])
    back = back[rows.code[back] == rows.code[back + 1]]
    if not len(back):
        return rows
    inner = len(rows.ns) - items
    newest = len(back) > 0.9 * inner
    notes.append(
        "rows were newest first: sorted by time" if newest else f"rows sorted by time ({len(back):,} were out of order)"
    )
    return rows.take(np.lexsort((rows.ns, rows.code)))


class _Bad:
    """Series of a table that cannot be read, and what to do with them."""

    def __init__(self, table: Table, roles: Roles, ids: tuple[str, ...], what: OnBad, integer: bool) -> None:
        self.integer = integer
        self.table, self.roles, self.ids, self.what = table, roles, ids, what
        self.texts: dict[int, str] = {}  # series -> its first error, with the place
        self.cells: set[int] = set()  # series with only invalid numbers

    def rows(self, problems: dict[int, str], codes: Int64[np.ndarray, " rows"]) -> None:
        """Record invalid numbers, by row."""
        for row, text in sorted(problems.items()):
            self.texts.setdefault(int(codes[row]), text)
            self.cells.add(int(codes[row]))

    def time(self, row: int, code: int, text: str) -> None:
        """Record a timestamp that makes a series irregular."""
        if self.integer and "1970-01-01" in text:
            text = "expected equal steps from row to row, found others; correct them, or name another time column"
            text += " (--time-column)"
        series = "" if self.roles.item is None else f", series {self.ids[code]!r}"
        self.cells.discard(code)
        self.texts.setdefault(code, f"{self.table.where(row, self.roles.time)}{series}: {text}")

    def check(self) -> None:
        """Raise if there are bad series that are neither skipped nor fixed.

        Raises:
            InputError: names every bad series.
        """
        if not self.texts or (self.what != "error" and len(self.ids) > 1 and len(self.texts) < len(self.ids)):
            return
        first = next(iter(self.texts.values()))
        if len(self.ids) == 1:
            raise InputError(first)
        names = [repr(self.ids[code]) for code in self.texts]
        good = len(self.ids) - len(names)
        others = (
            "" if len(names) == 1 else f"; also bad: {', '.join(names[1:50])}" + (", ..." if len(names) > 50 else "")
        )
        way = "" if not good else "; to continue, give on_bad_series (--on-bad-series skip or fix)"
        raise InputError(f"{first}{others}; {good:,} of {len(self.ids):,} series are good{way}")


def _once(rows: _Rows, bad: _Bad, stamps: Stamps, notes: list[str], sequence: bool) -> _Rows:
    """Rows without repeated timestamps: identical repeats are dropped, with a note; others are errors."""
    again = np.flatnonzero(rows.ns[1:] == rows.ns[:-1]) + 1
    again = again[rows.code[again] == rows.code[again - 1]]
    if sequence or not len(again):
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
        )
    if same.any():
        count = int(same.sum())
        notes.append("1 duplicate row left out" if count == 1 else f"{count:,} duplicate rows left out")
        keep = np.ones(len(rows.ns), dtype=bool)
        keep[again[same]] = False
        rows = rows.take(keep)
    return rows


def _regrouped(rows: _Rows, freq: str, aggregate: Aggregate, notes: list[str]) -> _Rows:
    """Rows resampled to ``freq``; covariates by their mean."""
    if aggregate == "sum":
        kept = ~_unfinished(rows, freq)
        if not kept.all():
            rows = rows.take(kept)
            notes.append(
                f"the last period of {freq} is incomplete: its {int((~kept).sum()):,} rows are left out of the sums"
            )
    code, ns, first, blocks = regroup(rows.code, periods(rows.ns, freq), rows.blocks, [aggregate, "mean", "mean"])
    notes.append(f"{len(rows.ns):,} rows resampled to {len(ns):,} steps of {normalise(freq)} ({aggregate})")
    return _Rows(rows.row[first], code, ns, blocks)


def _unfinished(rows: _Rows, freq: str) -> Bool[np.ndarray, " rows"]:
    """Rows in the last period of a regular series, if its next step would be in the same period."""
    bounds, period = _dense(rows), periods(rows.ns, freq)
    result = np.zeros(len(rows.ns), dtype=bool)
    for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        step = np.diff(rows.ns[a:b])
        if b - a > 2 and (step == step[0]).all() and periods(rows.ns[b - 1 : b] + step[0], freq)[0] == period[b - 1]:
            result[a:b] = period[a:b] == period[b - 1]
    return result


def _on_grid(rows: _Rows, bad: _Bad, reading: Reading, notes: list[str]) -> tuple[Grid, _Rows, list[int]]:
    """The regular grid of the good series, their rows, and the numbers of these series."""
    items = len(bad.ids)
    freq = reading.resample if reading.resample is not None else reading.freq
    if reading.order == "rows":
        bad.check()
        return _sequence(rows.ns, rows.bounds(items), freq), rows, list(range(items))
    repeated = [code for code in bad.texts if code not in bad.cells]
    good = rows.take(~np.isin(rows.code, repeated)) if repeated else rows
    grid = _find_bad_times(good, bad, reading, freq) if len(good.ns) else None
    bad.check()
    if grid is not None and good is rows and not bad.texts:
        return grid, rows, list(range(items))
    broken = [code for code in bad.texts if code not in bad.cells]
    if bad.texts and reading.on_bad_series == "skip":
        kept = [i for i in np.unique(rows.code).tolist() if i not in bad.texts]
        notes.append(f"{len(bad.texts):,} of {items:,} series skipped: {_some([bad.ids[i] for i in bad.texts])}")
        rows = rows.take(np.isin(rows.code, kept))
        rows = _Rows(rows.row, np.searchsorted(kept, rows.code), rows.ns, rows.blocks)
        return regular_grid(rows.ns, rows.bounds(len(kept)), freq, reading.own_hours), rows, kept
    if broken:
        sound = rows.take(~np.isin(rows.code, broken))
        step = split_pattern(freq or _usual(regular_grid(sound.ns, _dense(sound)).freqs))[0]
        part = _regrouped(rows.take(np.isin(rows.code, broken)), step, reading.aggregate, [])
        rows = _Rows(
            np.concatenate([sound.row, part.row]),
            np.concatenate([sound.code, part.code]),
            np.concatenate([sound.ns, part.ns]),
            [np.concatenate(pair) for pair in zip(sound.blocks, part.blocks, strict=True)],
        )
        rows = rows.take(np.lexsort((rows.ns, rows.code)))
    if bad.texts:
        how = f"resampled to {step}" if broken else "invalid numbers taken as missing"
        notes.append(f"{len(bad.texts):,} of {items:,} series fixed ({how}): {_some([bad.ids[i] for i in bad.texts])}")
    kept = np.unique(rows.code).tolist()
    if len(kept) < items:
        lost = [bad.ids[i] for i in range(items) if i not in kept]
        notes.append(f"{len(lost):,} of {items:,} series left out, which have no valid row: {_some(lost)}")
        rows = _Rows(rows.row, np.searchsorted(kept, rows.code), rows.ns, rows.blocks)
    return regular_grid(rows.ns, rows.bounds(len(kept)), freq, reading.own_hours), rows, kept


def _usual(freqs: Sequence[str]) -> str:
    return max(dict.fromkeys(freqs), key=list(freqs).count)


def _dense(rows: _Rows) -> Int64[np.ndarray, " borders"]:
    """First row of each series, and the number of rows; series without rows are left out."""
    begins = np.flatnonzero(rows.code[1:] != rows.code[:-1]) + 1
    return np.concatenate([np.zeros(1, np.int64), begins, np.full(1, len(rows.code))])


def _find_bad_times(rows: _Rows, bad: _Bad, reading: Reading, freq: str | None) -> Grid | None:
    """The grid of all rows, or None after recording one error for each series that is not regular."""
    bounds = _dense(rows)
    try:
        return regular_grid(rows.ns, bounds, freq, reading.own_hours)
    except BadTime as error:
        if error.problems:
            for problem in error.problems.values():
                bad.time(int(rows.row[problem.row]), int(rows.code[problem.row]), problem.text)
            return None
        for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            try:
                if b - a > 1:
                    regular_grid(rows.ns[a:b], np.array([0, b - a]), freq)
            except BadTime as own:
                bad.time(int(rows.row[a + own.row]), int(rows.code[a]), own.text)
        if not bad.texts:
            bad.time(int(rows.row[error.row]), int(rows.code[error.row]), error.text)
    return None


def _spread(
    block: Float[np.ndarray, "rows C"], place: Int64[np.ndarray, " rows"], total: int
) -> Float64[np.ndarray, "total C"]:
    if total == len(place):
        return block  # no gaps, rows in order
    result = np.full((total, block.shape[1]), np.nan)
    result[place] = block
    return result


def _sequence(ns: Int64[np.ndarray, " rows"], bounds: Int64[np.ndarray, " borders"], freq: str | None) -> Grid:
    """Rows as equally spaced steps from the first timestamp of each series."""
    if freq is None:
        raise InputError("expected a frequency with order='rows', found none; give freq")
    first = regular_grid(ns[bounds[:-1]], np.arange(len(bounds)), freq)
    length = np.diff(bounds)
    position = np.arange(len(ns)) - np.repeat(bounds[:-1], length)
    return Grid(position, length, first.starts, first.freqs, np.zeros_like(length))
