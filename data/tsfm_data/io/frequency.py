"""Frequencies of series: their names, their seasons and their calendar features.

A frequency is a pandas alias ("h", "15min", "D", "B", "W-SUN", "MS", "QE", "YS", ...), with a pattern after an "@" if
the series has one (``calendars``). Internally it is a ``Step``: a number of nanoseconds, of months counted from their
first or last day, or of business days.
"""

import warnings
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float32
from pandas.tseries import offsets as po

from tsfm_data.errors import InputError
from tsfm_data.io.calendars import DAY, WEEKDAYS, holidays, split_pattern, week_dates, week_slots

MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
SHORT_MARKS = {"t": "min", "m": "MS", "q": "QS", "y": "YS"}  # lower-case names of the long-horizon literature
Kind = Literal["tick", "start", "end", "business"]


@dataclass(frozen=True)
class Step:
    """One step of a regular series.

    Attributes:
        kind: ``tick`` counts nanoseconds, ``start`` and ``end`` count months from their first or last day, ``business``
            counts weekdays.
        size: how many of those make one step.
    """

    kind: Kind
    size: int

    def alias(self, first: np.datetime64) -> str:
        """The pandas alias of a series of this step whose first timestamp is ``first``."""
        if self.kind == "tick":
            days = self.size // DAY
            nanoseconds = int(first.astype("datetime64[ns]").astype(np.int64))
            if self.size % (7 * DAY) == 0 and nanoseconds % DAY == 0:
                return f"{_count(days // 7)}W-{WEEKDAYS[(nanoseconds // DAY + 3) % 7]}"
            return pd.tseries.frequencies.to_offset(pd.Timedelta(self.size, unit="ns")).freqstr
        if self.kind == "business":
            return f"{_count(self.size)}B"
        month = int(first.astype("datetime64[M]").astype(np.int64)) % 12
        letter = "S" if self.kind == "start" else "E"
        usual = 0 if self.kind == "start" else 11
        if self.size % 12 == 0:
            return f"{_count(self.size // 12)}Y{letter}" + ("" if month == usual else f"-{MONTHS[month]}")
        if self.size % 3 == 0:
            same = month % 3 == usual % 3
            return f"{_count(self.size // 3)}Q{letter}" + ("" if same else f"-{MONTHS[month % 3]}")
        return f"{_count(self.size)}M{letter}"


def _count(n: int) -> str:
    return "" if n == 1 else str(n)


def _offset(freq: str) -> po.BaseOffset:
    """The pandas offset of an alias, old spellings ("H", "M", "T") included; a pattern is left out."""
    freq = split_pattern(freq)[0] if isinstance(freq, str) else freq
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # old spellings still work
            offset = pd.tseries.frequencies.to_offset(freq)
        if offset.n >= 1:
            return offset
        cause = None
    except (AttributeError, OverflowError, TypeError, ValueError) as error:
        cause = error
    raise InputError(
        f"unknown frequency {freq!r:.60}: expected a pandas alias such as h, 15min, D, B, W, MS, QS or YS"
    ) from cause


@cache
def normalise(freq: str) -> str:
    """The present pandas spelling of a frequency, usual anchors left out: "H" gives "h", "M" "ME", "QS-JAN" "QS".

    Raises:
        InputError: ``freq`` is no pandas frequency.
    """
    pattern = split_pattern(freq)[1]
    if pattern:
        return f"{normalise(split_pattern(freq)[0])}@{pattern}"
    name = str(_offset(freq).freqstr)
    base, _, anchor = name.partition("-")
    usual = {"QS": "JAN", "YS": "JAN", "QE": "DEC", "YE": "DEC"}.get(base.lstrip("0123456789"))
    return base if anchor and anchor == usual else name


def time_feature() -> ModuleType:
    """GluonTS's calendar, imported when a season or a mark is asked for: it takes a tenth of a second."""
    import gluonts.time_feature

    return gluonts.time_feature


@cache
def season_length(freq: str) -> int:
    """Steps in one season, as GluonTS counts them: 24 for "h", 96 for "15min", 12 for "MS", 1 for "D".

    Raises:
        InputError: ``freq`` is no pandas frequency.
    """
    offset = _offset(freq)
    try:
        season = time_feature().get_seasonality(offset.base.freqstr)
    except (KeyError, ValueError):
        return 1  # no usual season, for example milliseconds
    return season // offset.n if season % offset.n == 0 else 1


@cache
def natural_season(freq: str) -> int:
    """Steps in the season that the calendar gives a frequency: 7 for "D", 5 for "B", 24 for "h", 96 for "15min", 52 for
    "W", 12 for "MS", 4 for "QS", 1 for years. With a pattern: its steps of a day, or its days of a week.

    Raises:
        InputError: ``freq`` is no pandas frequency.
    """
    alias, pattern = split_pattern(freq)
    step, _ = step_of(alias)
    if pattern and step.kind == "tick":
        slots = week_slots(pattern, step.size)
        return int(np.bincount(slots // DAY).max()) if step.size < DAY else len(slots)
    if step.kind == "business":
        return max(5 // step.size, 1)
    if step.kind != "tick":
        return max(12 // step.size, 1) if 12 % step.size == 0 else 1
    second, week = 1_000_000_000, 7 * DAY
    if step.size < second:
        return 1  # no season is agreed on
    season = 3600 * second if step.size < 60 * second else DAY if step.size < DAY else week
    season = 52 * week if step.size % week == 0 else season
    return season // step.size if season % step.size == 0 else 1


@cache
def calendar_seasons(freq: str) -> tuple[int, ...]:
    """Steps in each season of the calendar, from short to long: 24, 168 and 8766 for "h", 7 and 365 for "D".

    None for years and for frequencies that are no regular grid. With a pattern: its steps in a day, a week and a year.
    """
    alias, pattern = split_pattern(freq)
    try:
        step, _ = step_of(alias)
    except InputError:
        return ()
    if step.kind == "business":
        found = [5 / step.size, 21 / step.size, 261 / step.size]
    elif step.kind != "tick":
        found = [12 / step.size]
    elif pattern:
        week = len(week_slots(pattern, step.size))
        found = [natural_season(freq), week, week * 365.25 / 7]
    else:
        seconds = step.size / 1_000_000_000
        found = [length / seconds for length in (60, 3600, 86400, 604800) if length % seconds == 0]
        found += [365.25 * 86400 / seconds]
    return tuple(dict.fromkeys(round(steps) for steps in found if steps >= 2))


def dates(start: Any, periods: int, freq: str) -> pd.DatetimeIndex:
    """Timestamps of a frequency, with a pattern or without, from the first that it allows at or after ``start``.

    Raises:
        InputError: ``freq`` is no frequency, or a timestamp lies past the year 2262.
    """
    alias, pattern = split_pattern(freq)
    try:
        if not pattern:
            return pd.date_range(start, periods=periods, freq=alias)
        step, _ = step_of(alias)
        if step.kind == "tick":
            return week_dates(pd.Timestamp(start), periods, week_slots(pattern, step.size))
        if step.kind == "business":
            return pd.date_range(start, periods=periods, freq=po.CustomBusinessDay(holidays=list(holidays(pattern))))
        late = pd.Timedelta(days=int(pattern) - 1)
        return pd.date_range(pd.Timestamp(start) - late, periods=periods, freq=alias) + late
    except (pd.errors.OutOfBoundsDatetime, OverflowError) as error:
        raise InputError(
            f"expected timestamps up to the year 2262, found {periods:,} steps of {freq} from {pd.Timestamp(start)}: "
            "give a smaller horizon"
        ) from error


@cache
def mark_names(marks: str) -> tuple[str, ...]:
    """Names of the calendar features of one set: ``marks`` is a frequency, or "t" (minutes), "m", "q", "y".

    Raises:
        InputError: ``marks`` names no frequency that has calendar features.
    """
    try:
        features = time_feature().time_features_from_frequency_str(normalise(SHORT_MARKS.get(marks, marks)))
    except RuntimeError as error:
        raise InputError(
            f"no calendar features for {marks!r}: expected s, t, h, d, b, w, m or a pandas alias"
        ) from error
    return tuple(feature.__name__ for feature in features)


def calendar_features(index: pd.DatetimeIndex, marks: str) -> Float32[np.ndarray, "T M"]:
    """Calendar features of timestamps, each in [-0.5, 0.5].

    Args:
        index: T timestamps.
        marks: the feature set, named by a frequency: "h" gives hour of day, weekday, day of month and day of year; "t"
            puts the minute before those; "d" leaves the hour out; "w" day of month and week; "m" month.

    Raises:
        InputError: ``marks`` names no feature set.
    """
    columns = [np.asarray(getattr(time_feature(), name)(index), dtype=np.float32) for name in mark_names(marks)]
    return np.stack(columns, axis=1) if columns else np.zeros((len(index), 0), np.float32)


def step_of(freq: str) -> tuple[Step, int]:
    """The step of a pandas alias, and the months of its calendar period (1 month, 3 quarter, 12 year; 0 for others).

    Raises:
        InputError: no frequency, or one that is not a regular grid of ours (for instance "BMS").
    """
    offset = _offset(freq)
    if isinstance(offset, po.Tick):
        return Step("tick", int(offset.nanos)), 0
    if isinstance(offset, po.Week):
        return Step("tick", 7 * DAY * offset.n), 0
    if isinstance(offset, po.BusinessDay):
        return Step("business", offset.n), 0
    months = {po.MonthBegin: 1, po.MonthEnd: 1, po.QuarterBegin: 3, po.QuarterEnd: 3, po.YearBegin: 12, po.YearEnd: 12}
    period = months.get(type(offset))
    if period is None:
        raise InputError(f"frequency {freq!r} is not supported: expected s, min, h, D, B, W, MS, ME, QS, QE, YS or YE")
    kind: Kind = "start" if isinstance(offset, po.MonthBegin | po.QuarterBegin | po.YearBegin) else "end"
    return Step(kind, period * offset.n), period


def anchor_month(freq: str) -> int:
    """The month (0 for January) that a monthly, quarterly or yearly frequency is anchored at; 0 for monthly ones."""
    offset = _offset(freq)
    return int(getattr(offset, "startingMonth", getattr(offset, "month", 1))) - 1


def period_alias(freq: str) -> str:
    """The spelling of a frequency that ``pandas.Period`` takes: "MS" and "ME" give "M"."""
    step, period = step_of(freq)
    if period == 0:
        return normalise(freq)
    n, letter = step.size // period, {1: "M", 3: "Q", 12: "Y"}[period]
    if period == 1:
        return f"{_count(n)}M"
    last = (anchor_month(freq) - (step.kind == "start")) % 12  # a period is named by its last month
    return f"{_count(n)}{letter}-{MONTHS[last]}"
