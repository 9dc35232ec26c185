"""The regular grid of the timestamps of many series at once: their steps, and the position of every row."""

from collections import Counter
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Int64, Shaped

from tsfm_data.io.calendars import describe_slots, holidays, split_pattern, usual_slots, week_position, week_slots
from tsfm_data.io.frequency import DAY, Step, anchor_month, step_of
from tsfm_data.io.snap import snap
from tsfm_data.io.steps import BUSINESS, END, KINDS, START, TICK, SeriesStamps, StepCounts

SHORT = 5  # series with fewer rows first try the step of the other series
SPARSE = 20  # more grid steps per row than this mean that a date is wrong


class BadTime(ValueError):
    """A timestamp that does not fit a grid.

    ``row`` counts from 0, ``text`` says what is wrong, and ``problems`` has one error for each bad series.
    """

    def __init__(self, row: int | np.integer, text: str) -> None:
        super().__init__(text)
        self.row = int(row)
        self.text = text
        self.problems: dict[int, BadTime] = {}


class Grid(NamedTuple):
    """Positions of rows on the regular grids of their series.

    Attributes:
        position: step of each row within its series, from 0.
        length: steps from the first to the last row of each series.
        starts: timestamp of each series' first step.
        freqs: frequency of each series.
        moved: rows of each series whose timestamps were moved onto the grid.
    """

    position: Int64[np.ndarray, " rows"]
    length: Int64[np.ndarray, " items"]
    starts: Shaped[np.ndarray, " items"]
    freqs: tuple[str, ...]
    moved: Int64[np.ndarray, " items"]


def regular_grid(
    ns: Int64[np.ndarray, " rows"],
    bounds: Int64[np.ndarray, " borders"],
    freq: str | None = None,
    own_hours: bool = True,
    usual: StepCounts | None = None,
) -> Grid:
    """The regular grid of ascending timestamps.

    Args:
        ns: nanoseconds since 1970 of all series, one after the other.
        bounds: series ``i`` is ``ns[bounds[i]:bounds[i + 1]]``; none is empty.
        freq: pandas alias of all series; None takes the most common step of each series. With a monthly, quarterly or
            yearly alias, any day of a period means that period.
        own_hours: whether series with values only at some hours or weekdays have steps only there.
        usual: receives the steps of the series, and may give the most common one.

    Raises:
        BadTime: timestamps repeat, descend, are not on one grid, or mix frequencies.
        InputError: ``freq`` is unknown or not a regular grid.
    """
    stamps = SeriesStamps.of(ns, bounds)
    _check_order(stamps)
    if freq is not None:
        try:
            return _given(stamps, freq)
        except BadTime:
            near, moved = _moved(ns, bounds)
            if not moved.any() or step_of(freq)[0].kind != "tick":
                raise
        return _given(SeriesStamps.of(near, bounds), freq)._replace(moved=moved)
    usual = usual or StepCounts()
    kind, size, problems = _infer(stamps, usual)
    moved = np.zeros(len(bounds) - 1, dtype=np.int64)
    days: dict[int, int] = {}
    if problems:
        ns = ns.copy()
        daily = [i for i in problems if own_hours and _keeps_to_days(ns[bounds[i] : bounds[i + 1]])]
        kind[daily], size[daily] = TICK, DAY
        problems = {item: problem for item, problem in problems.items() if item not in daily}
    if problems:
        for item in problems:
            rows = slice(bounds[item], bounds[item + 1])
            snapped = snap(ns[rows])
            if snapped is not None:
                moved[item] = 0 if snapped.day else (snapped.ns != ns[rows]).sum()
                ns[rows] = snapped.ns
                if snapped.day:
                    days[item] = snapped.day
        stamps = SeriesStamps.of(ns, bounds) if moved.any() or days else stamps
        if moved.any() or days:
            kind, size, problems = _infer(stamps, usual)
            kind[daily], size[daily] = TICK, DAY
            problems = {item: problem for item, problem in problems.items() if item not in daily}
        if problems:
            first = next(iter(problems.values()))
            first.problems = problems
            raise first
    relative = stamps.relative(kind)
    position, patterns = relative // size[stamps.item], None
    if own_hours:
        position, patterns = _patterns(stamps, kind, size, position, bounds)
    grid = _grid(stamps, kind, size, position, stamps.ns[stamps.first], patterns)
    for item, day in days.items():
        grid.starts[item] += np.timedelta64(day - 1, "D")
    freqs = tuple(f"{name}@{days[i]}" if i in days else name for i, name in enumerate(grid.freqs))
    return grid._replace(moved=moved, freqs=freqs)


def _moved(
    ns: Int64[np.ndarray, " rows"], bounds: Int64[np.ndarray, " borders"]
) -> tuple[Int64[np.ndarray, " rows"], Int64[np.ndarray, " items"]]:
    """Timestamps moved onto grids close to them, and the number of moved ones of each series."""
    ns, moved = ns.copy(), np.zeros(len(bounds) - 1, dtype=np.int64)
    for item, (a, b) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)):
        snapped = snap(ns[a:b])
        if snapped is not None and not snapped.day:
            moved[item] = (snapped.ns != ns[a:b]).sum()
            ns[a:b] = snapped.ns
    return ns, moved


def _keeps_to_days(ns: Int64[np.ndarray, " rows"]) -> bool:
    """Whether a series has values only on some weekdays, at one time of day."""
    return len(ns) >= SHORT and bool((ns % DAY == ns[0] % DAY).all()) and usual_slots(ns, DAY) is not None


def _patterns(
    stamps: SeriesStamps,
    kind: Int64[np.ndarray, " items"],
    size: Int64[np.ndarray, " items"],
    position: Int64[np.ndarray, " rows"],
    bounds: Int64[np.ndarray, " borders"],
) -> tuple[Int64[np.ndarray, " rows"], dict[int, str]]:
    """Positions that count only the steps of weekly patterns, and the pattern of each series that has one."""
    rows = np.diff(bounds)
    length = position[bounds[1:] - 1] + 1
    patterns: dict[int, str] = {}
    for item in np.flatnonzero((kind == TICK) & (size <= DAY) & (length > 1.1 * rows) & (rows >= 8)):
        part = slice(bounds[item], bounds[item + 1])
        slots = usual_slots(stamps.ns[part], int(size[item]))
        if slots is not None:
            place = week_position(stamps.ns[part], slots)
            position[part] = place - place[0]
            patterns[int(item)] = describe_slots(slots, int(size[item]))
    return position, patterns


def _check_order(stamps: SeriesStamps) -> None:
    step = np.diff(stamps.ns)
    wrong = np.flatnonzero((step <= 0) & (np.diff(stamps.item) == 0))
    if len(wrong) == 0:
        return
    row = wrong[0] + 1
    if stamps.ns[row] > stamps.ns[row - 1]:  # more nanoseconds than an integer has
        raise BadTime(row, f"{_gap(stamps, row)}, centuries later; correct the date, or drop the row")
    if step[row - 1] == 0:
        raise BadTime(
            row,
            f"expected each timestamp once in a series, found {_time(stamps, row)} again; drop or average the "
            "repeats, or name the column with the ids of the series with item_column (--item-column)",
        )
    raise BadTime(
        row,
        f"expected ascending timestamps, found {_time(stamps, row)} after {_time(stamps, row - 1)}; "
        "sort the rows of each series by time, oldest first",
    )


def _gap(stamps: SeriesStamps, row: int | np.integer) -> str:
    return f"expected a series without large gaps, found {_time(stamps, row)} after {_time(stamps, row - 1)}"


def _time(stamps: SeriesStamps, row: int | np.integer) -> str:
    return str(pd.Timestamp(int(stamps.ns[row])))


def _given(stamps: SeriesStamps, freq: str) -> Grid:
    """The grid of a frequency that the user gives."""
    step, period = step_of(freq)
    code = KINDS.index(step.kind)
    items = len(stamps.first)
    kind, size = np.full(items, code), np.full(items, step.size)
    pattern = split_pattern(freq)[1]
    if pattern and period == 0:
        return _given_pattern(stamps, freq, step, pattern)
    if period == 0:
        if code == BUSINESS and not stamps.allowed[BUSINESS].all():
            working = (stamps.ns % DAY == 0) & ((stamps.ns // DAY + 3) % 7 < 5)
            row = np.flatnonzero(~working)[0]
            raise BadTime(
                row, f"expected weekdays at midnight (frequency {freq}), found {_time(stamps, row)}; give freq D"
            )
        _check_multiples(stamps, kind, size, freq)
        position = stamps.relative(kind) // step.size
        return _grid(stamps, kind, size, position, stamps.ns[stamps.first])
    phase = (anchor_month(freq) - (0 if code == START else period - 1)) % period
    month = (stamps.unit(START) - phase) // period * period + phase + (0 if code == START else period - 1)
    relative = month - month[stamps.first][stamps.item]
    same = np.flatnonzero((np.diff(relative) == 0) & (np.diff(stamps.item) == 0))
    off = np.flatnonzero(relative % step.size)
    if len(same) or len(off):
        row = same[0] + 1 if len(same) else off[0]
        found = "a second row in the period of" if len(same) else "a row between the periods at"
        raise BadTime(
            row,
            f"expected one row per period (frequency {freq}), found {found} {_time(stamps, row)}; give resample "
            "(--resample)",
        )
    begin = month[stamps.first].astype("datetime64[M]")
    start = begin.astype("datetime64[D]") if code == START else (begin + 1).astype("datetime64[D]") - 1
    starts = start.astype("datetime64[ns]").astype(np.int64)
    grid = _grid(stamps, kind, size, relative // step.size, starts)
    if pattern:
        late = np.timedelta64(int(pattern) - 1, "D")
        return grid._replace(starts=grid.starts + late, freqs=tuple(f"{name}@{pattern}" for name in grid.freqs))
    return grid


def _given_pattern(stamps: SeriesStamps, freq: str, step: Step, pattern: str) -> Grid:
    """The grid of a weekly pattern, or of business days without holidays, that the user gives."""
    if step.kind == "business":
        closed = np.array(holidays(pattern), dtype="datetime64[D]")
        day = stamps.ns.view("datetime64[ns]").astype("datetime64[D]")
        held = np.is_busday(day, holidays=closed) & (stamps.ns % DAY == 0)
        place = np.busday_count(day[stamps.first][stamps.item], day, holidays=closed).astype(np.int64)
    else:
        place = week_position(stamps.ns, week_slots(pattern, step.size))
        held = place >= 0
        place = place - place[stamps.first][stamps.item]
    off = np.flatnonzero(~held)
    if len(off):
        raise BadTime(
            off[0],
            f"expected times of {freq}, found {_time(stamps, off[0])}; widen the pattern, or leave freq (--freq) out",
        )
    last = np.append(stamps.first[1:], len(stamps.ns)) - 1
    starts = stamps.ns[stamps.first].view("datetime64[ns]")
    items = len(starts)
    return Grid(place, place[last] + 1, starts, (freq,) * items, np.zeros(items, dtype=np.int64))


def _check_multiples(
    stamps: SeriesStamps, kind: Int64[np.ndarray, " items"], size: Int64[np.ndarray, " items"], freq: str
) -> None:
    off = np.flatnonzero(stamps.relative(kind) % size[stamps.item])
    if len(off):
        raise BadTime(
            off[0],
            f"expected steps of {freq} from the first timestamp of the series on, found {_time(stamps, off[0])}; "
            "give resample (--resample), or correct freq (--freq)",
        )


def _infer(
    stamps: SeriesStamps, steps: StepCounts
) -> tuple[Int64[np.ndarray, " items"], Int64[np.ndarray, " items"], dict[int, "BadTime"]]:
    """Kind and size of the step of each series, and an error for each series without one. The step is the most common
    one; short series may take that of the other series."""
    rows = np.diff(np.append(stamps.first, len(stamps.ns)))
    kind = np.where(stamps.allowed[START], START, np.where(stamps.allowed[END], END, TICK))
    size = _common_step(stamps, kind)
    week = (stamps.ns // DAY + 3) // 7
    last = stamps.first + rows - 1
    business = (kind == TICK) & (size == DAY) & stamps.allowed[BUSINESS] & (week[stamps.first] < week[last])
    kind, size = np.where(business, BUSINESS, kind), np.where(business, 1, size)

    broken = _first_break(stamps, kind, size)
    good = (broken < 0) & (size > 0)
    steps.long, steps.every = (_counted(kind[chosen], size[chosen]) for chosen in (good & (rows >= SHORT), good))
    pair = steps.pair or steps.most_common()
    if pair is not None:
        usual = np.broadcast_to(np.array(pair)[:, None], (2, len(kind)))
        fits = stamps.allowed[usual[0, 0]] & (_first_break(stamps, usual[0], usual[1], runs=False) < 0)
        unsure = (rows < 3) | (
            (rows < SHORT) & (kind == TICK)
        )  # three months in a row are monthly, not daily with gaps
        take = fits & (~good | unsure)
        kind, size = np.where(take, usual[0], kind), np.where(take, usual[1], size)
        good |= take
    problems = {
        int(i): _unreadable(stamps, int(i), int(rows[i]), int(kind[i]), int(size[i]), int(broken[i]))
        for i in np.flatnonzero(~good)
    }
    return kind, size, problems


def _counted(kind: Int64[np.ndarray, " items"], size: Int64[np.ndarray, " items"]) -> Counter[tuple[int, int]]:
    pairs, counts = np.unique(np.stack([kind, size]), axis=1, return_counts=True)
    return Counter(dict(zip(map(tuple, pairs.T.tolist()), counts.tolist(), strict=True)))


def _unreadable(stamps: SeriesStamps, item: int, rows: int, kind: int, size: int, row: int) -> BadTime:
    """The error for a series without a frequency."""
    if rows == 1:
        return BadTime(
            stamps.first[item], "expected at least two rows to infer the frequency, found one; give freq (--freq)"
        )
    begin = stamps.first[item]
    usual = Step(KINDS[kind], size).alias(stamps.ns[begin].astype("datetime64[ns]"))
    if stamps.ns[row] - float(stamps.ns[begin]) >= 2.0**63:
        return BadTime(
            row,
            f"expected at most 292 years in steps of {usual}, found {_time(stamps, row)} after "
            f"{_time(stamps, begin)}; leave earlier rows out, or give a coarser freq (--freq)",
        )
    return BadTime(
        row,
        f"expected one frequency in a series, found {_time(stamps, row)} after {_time(stamps, row - 1)}, while the "
        f"most common step is {usual} (mixed frequencies); give resample (--resample h, D or another step, with "
        "--aggregate mean, sum, last or max)",
    )


def _common_step(stamps: SeriesStamps, kind: Int64[np.ndarray, " items"]) -> Int64[np.ndarray, " items"]:
    """The most common step of each series in the units of its kind; 0 for a series of one row."""
    inner = np.diff(stamps.item) == 0
    step, owner = np.diff(stamps.relative(kind))[inner], stamps.item[1:][inner]
    size = np.zeros(len(kind), dtype=np.int64)
    if len(step) == 0:
        return size
    begin = np.flatnonzero(np.diff(owner, prepend=-1))
    low, high = np.minimum.reduceat(step, begin), np.maximum.reduceat(step, begin)
    size[owner[begin]] = low
    irregular = np.isin(owner, owner[begin][low != high])
    step, owner = step[irregular], owner[irregular]
    if len(step):
        order = np.lexsort((step, owner))
        step, owner = step[order], owner[order]
        run = np.flatnonzero((np.diff(step, prepend=step[0] - 1) != 0) | (np.diff(owner, prepend=-1) != 0))
        count = np.diff(np.append(run, len(step)))
        best = run[
            np.lexsort((-step[run], count, owner[run]))
        ]  # by series, the largest count last, smaller steps win ties
        size[owner[best]] = step[best]
    return size


def _first_break(
    stamps: SeriesStamps,
    kind: Int64[np.ndarray, " items"],
    size: Int64[np.ndarray, " items"],
    runs: bool = True,
) -> Int64[np.ndarray, " items"]:
    """First row of each series off the grid of its step, or (``runs``) in a long run of another step; -1 for none.

    Missing rows give single larger steps. The same larger step many times in a row is another frequency.
    """
    relative = stamps.relative(kind)
    off = relative % np.maximum(size, 1)[stamps.item] != 0
    if runs and len(relative) > 1:
        step, owner = np.diff(relative), stamps.item[1:]
        inside = np.diff(stamps.item) == 0
        start = np.flatnonzero((np.diff(step, prepend=step[0] - 1) != 0) | (np.diff(owner, prepend=-1) != 0) | ~inside)
        length = np.diff(np.append(start, len(step)))
        steps = np.bincount(owner[inside], minlength=len(kind))
        long = np.minimum(np.maximum(steps // 3, 4), np.maximum(steps // 20, 10))  # for short and for long series
        other = inside[start] & (step[start] != size[owner[start]])
        off[start[other & (length >= long[owner[start]])] + 1] = True
    result = np.full(len(kind), -1)
    rows = np.flatnonzero(off)[::-1]
    result[stamps.item[rows]] = rows  # the first row is assigned last
    return result


def _grid(
    stamps: SeriesStamps,
    kind: Int64[np.ndarray, " items"],
    size: Int64[np.ndarray, " items"],
    position: Int64[np.ndarray, " rows"],
    starts: Int64[np.ndarray, " items"],
    patterns: dict[int, str] | None = None,
) -> Grid:
    last = np.append(stamps.first[1:], len(stamps.ns)) - 1
    length = position[last] + 1
    if length.sum() > SPARSE * len(position) + 100_000:
        jump = np.diff(position)
        jump[stamps.first[1:] - 1] = 0
        row = int(jump.argmax()) + 1
        raise BadTime(
            row,
            f"{_gap(stamps, row)}, {jump[row - 1]:,} steps later; correct the date, or give a coarser freq (--freq)",
        )
    aliases: dict[tuple[int, int, int], str] = {}
    freqs = []
    begins = starts.view("datetime64[ns]")
    month = begins.astype("datetime64[M]").astype(np.int64) % 12
    weekly = (kind == TICK) & (size % (7 * DAY) == 0)
    phase = np.where(kind == TICK, np.where(weekly, starts % (7 * DAY), 0), month)  # what else an alias depends on
    for item, key in enumerate(zip(kind.tolist(), size.tolist(), phase.tolist(), strict=True)):
        if key not in aliases:
            aliases[key] = Step(KINDS[key[0]], key[1]).alias(begins[item])
        pattern = (patterns or {}).get(item)
        freqs.append(aliases[key] if pattern is None else f"{aliases[key]}@{pattern}")
    return Grid(position, length, begins, tuple(freqs), np.zeros(len(starts), dtype=np.int64))
