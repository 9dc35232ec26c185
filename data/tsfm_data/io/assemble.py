"""From the columns of a table to series: rows sorted, repeats and bad series handled, put on a regular grid."""

from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from jaxtyping import Float, Float64, Int64

from tsfm_data.errors import InputError
from tsfm_data.io import zones
from tsfm_data.io.bad_series import BadSeries, OnBad
from tsfm_data.io.calendars import DAY, split_pattern
from tsfm_data.io.columns import Table, doubtful, encoded, item_codes, numbers
from tsfm_data.io.frequency import step_of
from tsfm_data.io.grid import BadTime, Grid, regular_grid
from tsfm_data.io.regroup import Aggregate
from tsfm_data.io.roles import Roles
from tsfm_data.io.row_counts import RowCounts
from tsfm_data.io.rows import Rows, dense_bounds, drop_repeats, resample_rows, sort_rows
from tsfm_data.io.series import Labels, SeriesSet, item_offsets
from tsfm_data.io.steps import StepCounts
from tsfm_data.io.timestamps import Stamps, read_stamps


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
    later: bool = False


@dataclass
class Cells:
    """The columns of a table as numbers.

    Attributes:
        blocks: targets, past and known covariates, [rows, columns] each.
        past_names, known_names: names of the covariates.
        stamps: times.
        codes: series of each row.
        ids: names of the series.
        keys: ids with the type that they have in the table; None in a wide table.
        problems: errors of rows with invalid numbers.
        dateless: errors of rows without a valid time.
        notes: how the columns were read.
    """

    blocks: list[np.ndarray]
    past_names: tuple[str, ...]
    known_names: tuple[str, ...]
    stamps: Stamps
    codes: Int64[np.ndarray, " rows"]
    ids: tuple[str, ...]
    keys: pd.Series | None
    problems: dict[int, str] = field(default_factory=dict)
    dateless: dict[int, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass
class Common:
    """What the parts of a table have in common, if it is read in parts.

    Attributes:
        wall: zone in whose local time the series are regular; None if that is the time of the table.
        clock: zone of the timestamps of the series.
        usual: the most common step.
        step: the most common frequency, to which bad series are resampled.
    """

    wall: str | None = None
    clock: str | None = None
    usual: StepCounts = field(default_factory=StepCounts)
    step: str | None = None


@dataclass(frozen=True)
class Assembled:
    """The series of a table or of a part of it, its counts, and its bad series.

    The series are None for a part without a good one, or if its bad series wait for what the other parts say.
    """

    series: SeriesSet | None
    counts: RowCounts
    bad: BadSeries


def assemble(table: Table, roles: Roles, reading: Reading, name: str) -> SeriesSet:
    """The series of a table: rows sorted by item and time, on a regular grid."""
    roles, cells = _cells(table, roles, reading, name)
    assembled = build(table, roles, reading, name, cells)
    assert assembled.series is not None  # a table without a good series is an error
    return replace(assembled.series, notes=(*cells.notes, *notes_of(assembled.counts, reading)))


def notes_of(counts: RowCounts, reading: Reading) -> list[str]:
    """Notes about the rows of a table."""
    sparse = reading.own_hours and reading.order != "rows"
    return counts.notes(reading.resample, reading.aggregate, reading.on_bad_series == "fix", sparse)


def _cells(table: Table, roles: Roles, reading: Reading, name: str) -> tuple[Roles, Cells]:
    """The roles of the columns that can be read, and these columns as numbers."""
    problems: dict[int, str] = {}  # rows with invalid numbers
    sequence = reading.order == "rows"  # the grid of the first timestamps: no series can be left out or fixed
    lenient = problems if roles.item is not None and not sequence else None
    skipped: list[str] = []
    if roles.item is None and reading.on_bad_series != "error" and len(roles.target) > 1:
        lenient = problems if reading.on_bad_series == "fix" else None
        roles, skipped = _readable(table, roles, lenient)
    values = numbers(table, roles.target, not reading.later, lenient)
    past, past_names = encoded(table, roles.past, not reading.later)
    known, known_names = encoded(table, roles.known, not reading.later)
    dateless: dict[int, str] | None = {} if roles.item is not None and not sequence else None
    stamps = read_stamps(table, roles.time, reading.dayfirst, reading.timezone, dateless)
    notes = [*table.notes, *stamps.notes, *doubtful(table, (*roles.target, *roles.past, *roles.known))]
    notes += skipped
    if roles.item is None and problems:
        notes.append(f"{len(problems)} rows with cells that are no numbers, which count as missing")
        problems.clear()
    notes += roles.notes
    keys: pd.Series | None = None
    if roles.item is None:
        codes = np.zeros(len(stamps.ns), dtype=np.int64)
        ids: tuple[str, ...] = roles.target if len(roles.target) == 1 else (name,)
    else:
        codes, keys = item_codes(table, roles.item)
        ids = tuple(str(key) for key in keys)
        if len(ids) == len(codes) > 2 and not reading.later:
            raise InputError(
                f"{table.where(None, roles.item)}: expected ids of series, found a different value in every row; "
                "name the id column with item_column (--item-column), or give --no-item-column"
            )
    blocks = [values, past, known]
    return roles, Cells(blocks, past_names, known_names, stamps, codes, ids, keys, problems, dateless or {}, notes)


def build(
    table: Table, roles: Roles, reading: Reading, name: str, cells: Cells, common: Common | None = None
) -> Assembled:
    """The series of the columns of a table, or of a part of a table with what its parts have in common.

    Raises:
        InputError: the series cannot be read. Bad series of a part are not raised.
    """
    stamps, ids, keys, sequence = cells.stamps, cells.ids, cells.keys, reading.order == "rows"
    counts = RowCounts(len(ids))
    ns, clock = _clock(stamps, cells.codes, len(ids)) if common is None else _given_clock(stamps, common)
    rows = Rows(np.arange(len(ns)), cells.codes, ns, cells.blocks)
    if cells.dateless:
        rows = rows.take(np.setdiff1d(rows.row, list(cells.dateless)))
    rows = rows.take(np.argsort(rows.code, kind="stable")) if sequence else sort_rows(rows, len(ids), counts)
    bad = BadSeries(table, roles, ids, reading.on_bad_series, stamps.integer)
    bad.rows({**cells.problems, **cells.dateless}, cells.codes)
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
        step, _ = step_of(reading.resample)
        whole = step.kind != "tick" or step.size % DAY == 0  # days, weeks and months are those of local time
        zone = stamps.zone if clock == "UTC" and whole else None
        rows = resample_rows(rows, reading.resample, reading.aggregate, counts, zone or "UTC")
        clock = zone or clock
    elif not sequence:
        rows = drop_repeats(rows, bad, stamps, counts)
    fitted = _on_grid(rows, bad, reading, counts, common)
    if fitted is None:
        return Assembled(None, counts, bad)
    grid, rows, kept = fitted
    if len(kept) < len(ids):
        ids = tuple(ids[i] for i in kept)
        keys = None if keys is None else keys.iloc[kept].reset_index(drop=True)
    offsets = item_offsets(grid.length)
    place = offsets[rows.code] + grid.position
    columns = [_spread(block, place, int(offsets[-1])) for block in rows.blocks]
    counts.moved, counts.rows, counts.steps = int(grid.moved.sum()), len(rows.ns), int(offsets[-1])
    counts.freqs = Counter(grid.freqs)
    future = np.zeros(len(ids), dtype=np.int64)
    if roles.known:
        seen = np.isfinite(columns[0]).any(axis=1)
        last = np.maximum.reduceat(np.where(seen, np.arange(len(seen)) + 1, 0), offsets[:-1])
        future = np.where(last > 0, offsets[1:] - last, 0)  # an item without any value has no visible end
    series = SeriesSet(
        name=name,
        source=table.source,
        values=columns[0],
        offsets=offsets,
        item_ids=ids,
        variates=roles.target,
        starts=grid.starts,
        freqs=grid.freqs,
        past=columns[1],
        past_names=cells.past_names,
        known=columns[2],
        known_names=cells.known_names,
        future_rows=future,
        static=_static(table, roles, rows, ids),
        labels=Labels(roles.time, roles.item, stamps.zone, clock, stamps.integer, len(table.frame)),
        keys=keys,
        season=reading.season,
        natural=True,
    )
    return Assembled(series, counts, bad)


def _readable(table: Table, roles: Roles, wrong: dict[int, str] | None) -> tuple[Roles, list[str]]:
    """The roles without the targets of a wide table that cannot be read, and what was wrong with them."""
    good, notes = [], []
    for column in roles.target:
        try:
            numbers(table, (column,), wrong=wrong)
            good.append(column)
        except InputError as error:
            notes.append(f"column {column!r} left out: {str(error).split(': ', 1)[-1]}")
    return (replace(roles, target=tuple(good)) if good else roles), notes


def _static(table: Table, roles: Roles, rows: Rows, ids: tuple[str, ...]) -> pd.DataFrame | None:
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
        if one_time_of_day(wall, codes, items):
            return wall, stamps.zone
        return ns, "UTC"
    some = ns[:: max(1, len(ns) // 1000)]  # enough to see changes of the clock
    if (some % DAY != some[0] % DAY).any() and not one_time_of_day(ns, codes, items):
        zone = zones.midnight_zone(ns)
        if zone is not None:
            return zones.to_wall(ns, zone), zone
    return ns, stamps.zone


def _given_clock(stamps: Stamps, common: Common) -> tuple[Int64[np.ndarray, " rows"], str | None]:
    """As ``_clock``, for a part of a table in the zone that all parts have in common."""
    return (stamps.ns if common.wall is None else zones.to_wall(stamps.ns, common.wall)), common.clock


def one_time_of_day(ns: Int64[np.ndarray, " rows"], codes: Int64[np.ndarray, " rows"], items: int) -> bool:
    """Whether each series has one time of day.

    Args:
        ns: timestamps, nanoseconds.
        codes: series of each row.
        items: number of series.
    """
    time = ns % DAY
    if (time == time[0]).all():
        return True
    if items == 1:
        return False
    usual = np.zeros(items, dtype=np.int64)
    usual[codes] = time
    return bool((time == usual[codes]).all())


def _on_grid(
    rows: Rows, bad: BadSeries, reading: Reading, counts: RowCounts, common: Common | None
) -> tuple[Grid, Rows, list[int]] | None:
    """The regular grid of the good series, their rows, and the numbers of these series. None for a part without a good
    series, or whose bad series cannot be fixed before all parts are known."""
    items = len(bad.ids)
    freq = reading.resample if reading.resample is not None else reading.freq
    if reading.order == "rows":
        bad.check()
        return _sequence(rows.ns, rows.bounds(items), freq), rows, list(range(items))
    usual = StepCounts() if common is None else common.usual
    repeated = [code for code in bad.texts if code not in bad.cells]
    good = rows.take(~np.isin(rows.code, repeated)) if repeated else rows
    grid = _find_bad_times(good, bad, reading, freq, usual) if len(good.ns) else None
    if common is None:
        bad.check()
    if grid is not None and good is rows and not bad.texts:
        return grid, rows, list(range(items))
    if reading.on_bad_series == "error":
        return None
    counts.bad = [bad.ids[i] for i in bad.texts]
    broken = [code for code in bad.texts if code not in bad.cells]
    if reading.on_bad_series == "skip":
        rows = rows.take(~np.isin(rows.code, list(bad.texts)))
    elif broken:
        sound = rows.take(~np.isin(rows.code, broken))
        if freq is None and len(sound.ns):
            counts.freqs = Counter(regular_grid(sound.ns, dense_bounds(sound), None, reading.own_hours, usual).freqs)
        step = freq or (counts.freqs.most_common(1)[0][0] if common is None else common.step)
        if step is None:
            return None
        counts.step = split_pattern(step)[0]
        part = resample_rows(rows.take(np.isin(rows.code, broken)), counts.step, reading.aggregate, RowCounts())
        rows = Rows(
            np.concatenate([sound.row, part.row]),
            np.concatenate([sound.code, part.code]),
            np.concatenate([sound.ns, part.ns]),
            [np.concatenate(pair) for pair in zip(sound.blocks, part.blocks, strict=True)],
        )
        rows = rows.take(np.lexsort((rows.ns, rows.code)))
    kept = np.unique(rows.code).tolist()
    if reading.on_bad_series == "fix":
        counts.lost = [bad.ids[i] for i in sorted({*range(items)} - {*kept})]
    if len(kept) < items:
        rows = Rows(rows.row, np.searchsorted(kept, rows.code), rows.ns, rows.blocks)
    if not kept:
        return None
    return regular_grid(rows.ns, rows.bounds(len(kept)), freq, reading.own_hours, usual), rows, kept


def _find_bad_times(rows: Rows, bad: BadSeries, reading: Reading, freq: str | None, usual: StepCounts) -> Grid | None:
    """The grid of all rows, or None after recording one error for each series that is not regular."""
    bounds = dense_bounds(rows)
    try:
        return regular_grid(rows.ns, bounds, freq, reading.own_hours, usual)
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
