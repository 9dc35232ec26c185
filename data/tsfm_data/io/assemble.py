"""From the columns of a table to series: rows sorted, repeats and bad series handled, put on a regular grid."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Float64, Int64

from tsfm_data.errors import InputError
from tsfm_data.io import zones
from tsfm_data.io.bad_series import BadSeries, OnBad
from tsfm_data.io.calendars import DAY, split_pattern
from tsfm_data.io.columns import Table, doubtful, encoded, item_codes, numbers
from tsfm_data.io.frequency import normalise
from tsfm_data.io.grid import BadTime, Grid, regular_grid
from tsfm_data.io.regroup import Aggregate, periods, regroup
from tsfm_data.io.roles import Roles
from tsfm_data.io.series import Labels, SeriesSet, item_offsets
from tsfm_data.io.timestamps import Stamps, read_stamps

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


def assemble(table: Table, roles: Roles, reading: Reading, name: str) -> SeriesSet:
    """The series of a table: rows sorted by item and time, on a regular grid."""
    problems: dict[int, str] = {}  # rows with invalid numbers
    sequence = reading.order == "rows"  # the grid of the first timestamps: no series can be left out or fixed
    lenient = problems if roles.item is not None and not sequence else None
    skipped: list[str] = []
    if roles.item is None and reading.on_bad_series != "error" and len(roles.target) > 1:
        lenient = problems if reading.on_bad_series == "fix" else None
        roles, skipped = _readable(table, roles, lenient)
    values = numbers(table, roles.target, wrong=lenient)
    past, past_names = encoded(table, roles.past)
    known, known_names = encoded(table, roles.known)
    dateless: dict[int, str] | None = {} if roles.item is not None and not sequence else None
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
    rows = rows.take(np.argsort(rows.code, kind="stable")) if sequence else _sorted(rows, len(ids), notes)
    bad = BadSeries(table, roles, ids, reading.on_bad_series, stamps.integer)
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


def _once(rows: _Rows, bad: BadSeries, stamps: Stamps, notes: list[str], sequence: bool) -> _Rows:
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


def _on_grid(rows: _Rows, bad: BadSeries, reading: Reading, notes: list[str]) -> tuple[Grid, _Rows, list[int]]:
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
        lost = [bad.ids[i] for i in sorted({*range(items)} - {*kept})]
        notes.append(f"{len(lost):,} of {items:,} series left out, which have no valid row: {_some(lost)}")
        rows = _Rows(rows.row, np.searchsorted(kept, rows.code), rows.ns, rows.blocks)
    return regular_grid(rows.ns, rows.bounds(len(kept)), freq, reading.own_hours), rows, kept


def _usual(freqs: Sequence[str]) -> str:
    return Counter(freqs).most_common(1)[0][0]


def _dense(rows: _Rows) -> Int64[np.ndarray, " borders"]:
    """First row of each series, and the number of rows; series without rows are left out."""
    begins = np.flatnonzero(rows.code[1:] != rows.code[:-1]) + 1
    return np.concatenate([np.zeros(1, np.int64), begins, np.full(1, len(rows.code))])


def _find_bad_times(rows: _Rows, bad: BadSeries, reading: Reading, freq: str | None) -> Grid | None:
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
