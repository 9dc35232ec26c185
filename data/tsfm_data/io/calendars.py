"""Patterns of series within their frequency: trading hours, weekdays, holidays, the 15th of the month.

A frequency with a pattern is written ``alias@pattern``:

- ``15min@MON-FRI 09:30-15:45`` or ``h@MON-FRI 08:00-19:00, SAT 09:00-13:00``: hours of the week, both ends included;
- ``D@MON-SAT`` or ``D@MON-FRI 16:00``: days of the week, with the time of day if it is not midnight;
- ``B@-2024-12-25-2025-01-01``: business days without these holidays;
- ``MS@15``: the 15th of every month.
"""

import re
from functools import cache

import numpy as np
import pandas as pd
from jaxtyping import Int64

from tsfm_data.errors import InputError

DAY = 86_400_000_000_000
WEEK = 7 * DAY
WEEKDAYS = ("MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN")
MONDAY = 3 * DAY  # 1970 began on a Thursday


def split_pattern(freq: str) -> tuple[str, str]:
    """The alias and the pattern of a frequency; the pattern is empty if it has none."""
    alias, _, pattern = freq.partition("@")
    return alias, pattern


@cache
def holidays(pattern: str) -> tuple[str, ...]:
    """The holidays in a pattern of business days."""
    return tuple(re.findall(r"\d{4}-\d{2}-\d{2}", pattern)) if pattern.startswith("-") else ()


@cache
def week_slots(pattern: str, step: int) -> Int64[np.ndarray, " slots"]:
    """The steps of a weekly pattern, in nanoseconds since Monday 00:00.

    Args:
        pattern: such as "MON-FRI 09:30-15:45, SAT 10:00-12:00".
        step: nanoseconds of one step.

    Raises:
        InputError: it cannot be read.
    """
    slots: set[int] = set()
    for part in pattern.split(","):
        words = part.split()
        days = _days(words[0]) if words else []
        if not days or len(words) > 2:
            raise InputError(
                f"expected weekdays and hours such as 15min@MON-FRI 09:30-15:45 in a frequency, found {part.strip()!r}"
            )
        for span in (words[1] if len(words) > 1 else "00:00").split("+"):
            ends = [_time(text) for text in span.split("-")]
            slots |= {day * DAY + t for day in days for t in range(ends[0], ends[-1] + 1, step)}
    return np.array(sorted(slots), dtype=np.int64)


def _days(text: str) -> list[int]:
    days: list[int] = []
    for part in text.upper().split("+"):
        ends = [WEEKDAYS.index(name) if name in WEEKDAYS else -1 for name in part.split("-")]
        if min(ends) < 0 or ends[-1] < ends[0]:
            return []
        days += range(ends[0], ends[-1] + 1)
    return days


def _time(text: str) -> int:
    match = re.fullmatch(r"(\d{1,2}):(\d{2})(?::(\d{2}))?", text)
    if match is None:
        raise InputError(f"expected a time of day such as 09:30 in a frequency, found {text!r}")
    hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((hours * 60 + minutes) * 60 + seconds) * 1_000_000_000


def describe_slots(slots: Int64[np.ndarray, " slots"], step: int) -> str:
    """The pattern of these steps of a week; the inverse of ``week_slots``."""
    by_day = {day: slots[slots // DAY == day] % DAY for day in range(7)}
    spans = {day: _spans(times, step) for day, times in by_day.items() if len(times)}
    groups: list[tuple[list[int], str]] = []
    for day, text in spans.items():
        if groups and groups[-1][1] == text and groups[-1][0][-1] == day - 1:
            groups[-1][0].append(day)
        else:
            groups.append(([day], text))
    parts = []
    for days, text in groups:
        name = WEEKDAYS[days[0]] + (f"-{WEEKDAYS[days[-1]]}" if len(days) > 1 else "")
        parts.append(name if text == "00:00" else f"{name} {text}")
    return ", ".join(parts)


def _spans(times: Int64[np.ndarray, " times"], step: int) -> str:
    breaks = np.flatnonzero(np.diff(times) != step) + 1
    runs = np.split(times, breaks)
    return "+".join(_clock(run[0]) if len(run) == 1 else f"{_clock(run[0])}-{_clock(run[-1])}" for run in runs)


def _clock(ns: np.int64) -> str:
    seconds = int(ns) // 1_000_000_000
    text = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}"
    return text + (f":{seconds % 60:02d}" if seconds % 60 else "")


def week_position(ns: Int64[np.ndarray, " rows"], slots: Int64[np.ndarray, " slots"]) -> Int64[np.ndarray, " rows"]:
    """Number of steps of the pattern before each timestamp; -1 for timestamps outside the pattern."""
    week, inside = np.divmod(ns + MONDAY, WEEK)
    rank = np.searchsorted(slots, inside)
    held = slots[np.minimum(rank, len(slots) - 1)] == inside
    return np.where(held, week * len(slots) + rank, -1)


def week_dates(start: pd.Timestamp, periods: int, slots: Int64[np.ndarray, " slots"]) -> pd.DatetimeIndex:
    """Timestamps of a pattern from its first step at or after ``start``."""
    week, inside = divmod(start.as_unit("ns").value + MONDAY, WEEK)
    first = week * len(slots) + int(np.searchsorted(slots, inside))
    weeks, rank = np.divmod(np.arange(first, first + periods), len(slots))
    return pd.DatetimeIndex((weeks * WEEK - MONDAY + slots[rank]).view("datetime64[ns]"))


def usual_slots(
    ns: Int64[np.ndarray, " rows"], step: int, low: float = 0.5, fill: float = 0.9
) -> Int64[np.ndarray, " slots"] | None:
    """The weekly pattern of a series, or None if it has none.

    Args:
        ns: its timestamps, ascending, on a grid of ``step``.
        step: nanoseconds.
        low: smallest share of weeks in which a step of the pattern has a value.
        fill: smallest share of steps of the pattern that have a value.
    """
    days = np.unique(ns // DAY)
    calendar = np.arange(days[0], days[-1] + 1)
    if DAY % step or len(days) < 4 or (step == DAY and len(calendar) < 21):
        return None
    chances = np.bincount((calendar + 3) % 7, minlength=7)  # days of the calendar by weekday, Monday first
    slots, seen = np.unique((ns + MONDAY) % WEEK, return_counts=True)
    if len(calendar) >= 28:
        slots = slots[seen >= low * chances[slots // DAY]]
    else:  # too few weeks to judge each step of the week: use hours of the day
        hours, worked = np.unique(ns % DAY, return_counts=True)
        hours = hours[worked >= low * len(days)]
        open_days = np.union1d((days + 3) % 7, np.flatnonzero(chances[:5] == 0))
        slots = np.sort((open_days[:, None] * DAY + hours).ravel())
    if not len(slots) or len(slots) > 0.95 * (WEEK // step):
        return None
    position = week_position(ns, slots)
    if position.min() < 0 or len(position) < fill * (position[-1] - position[0] + 1):
        return None
    return slots
