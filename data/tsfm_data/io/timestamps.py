"""Columns of dates to nanoseconds since 1970. The format is inferred from the whole column."""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int64, Shaped

from tsfm_data.errors import InputError
from tsfm_data.io import zones
from tsfm_data.io.calendars import DAY
from tsfm_data.io.columns import Table
from tsfm_data.io.numerals import MISSING, floats

UNITS: tuple[tuple[float, Literal["s", "ms", "us", "ns"]], ...] = (
    (1e11, "s"),
    (1e14, "ms"),
    (1e17, "us"),
    (np.inf, "ns"),
)  # unit of numbers below each bound, since 1970

LARGEST = 2.0**63  # no number of nanoseconds, and no step
YEARS = (np.datetime64("1678", "s"), np.datetime64("2262", "s"))  # range of nanoseconds in 64 bits
EXCEL = (10_000, 80_000)  # days since 1899-12-30 that are read as dates of Excel: 1927 to 2119
DATE_WORDS = ("date", "datum", "fecha", "data", "dato", "jour", "tag", "day")
ZONE = r"\s*(Z|UTC|GMT|[+-]\d{2}(?::?\d{2})?)(?:\s*UTC|\[[\w/+-]+\])?$"
SPAN = r"^(\d\S*(?: \d{1,2}:\S+)?)\s+(?:-|–|/|to|bis)\s+\d\S*(?: \S+)?$"
ZONED = (
    r"\d\s*(?:Z|UTC|GMT)(?:\[[\w/+-]+\])?$|:\d{2}(?:[.,]\d+)?\s*[+-]\d{2}(?::?\d{2})?(?:\s*UTC|\[[\w/+-]+\])?$"
    r"|^\d{4}-\d{2}-\d{2}[+-]\d{2}:\d{2}$"
)
CLOCK = r"(\d{1,2})[:.](\d{2})(?:[:.](\d{2})(?:[.,](\d{1,9}))?)?\s*(?:([AaPp])\.?[Mm]\.?)?"
NUMERIC = rf"^(\d{{1,4}})[./-](\d{{1,2}})[./-](\d{{1,4}})\.?(?:[T ,]+{CLOCK})?$"
_DAYNAME, _MONTH, _END = r"^(?:[^\W\d]{2,10}\.?,?\s+)?", r"(?P<m>[^\W\d]{3,10})\.?", rf"(?:[T ,]+{CLOCK})?$"
_DAY = r"(?P<d>\d{1,2})(?:st|nd|rd|th|\.)?"
NAMED = (
    rf"{_DAYNAME}{_DAY}[\s.-]*{_MONTH}[\s.,'-]*(?P<y>\d{{4}}|\d{{2}}){_END}",
    rf"{_DAYNAME}{_MONTH}[\s.-]+{_DAY},?\s+(?P<y>\d{{4}}){_END}",
    rf"^(?P<y>\d{{4}})[\s-]+{_MONTH}[\s-]+{_DAY}{_END}",
    rf"^{_MONTH}[\s.,'/-]*(?P<y>\d{{4}}|\d{{2}})$",
    rf"^(?P<y>\d{{4}})[\s/-]*{_MONTH}$",
)
PERIODS = {  # a period without days -> months in one
    r"^(?P<y>\d{4})[-/ ]{0,3}[Qq](?P<n>[1-4])$": 3,
    r"^[Qq](?P<n>[1-4])[-/ ]{0,3}'?(?P<y>\d{4})$": 3,
    r"^[Qq](?P<n>[1-4])[-/ ]?'?(?P<y>\d{2})$": 3,
    r"^(?P<n>[1-4])[Qq][-/ ]?'?(?P<y>\d{4}|\d{2})$": 3,
    r"^(?P<y>\d{4})[-/ ]?[HhSs](?P<n>[12])$": 6,
    r"^(?P<y>\d{4})(?:[-/ ]?[Mm]|[-/.])(?P<n>0?[1-9]|1[0-2])$": 1,
    r"^(?P<n>0?[1-9]|1[0-2])[-/.](?P<y>\d{4})$": 1,
}
FISCAL = r"^(?:[Ff][Yy]\s?)?(?P<y>\d{4})(?:\s?[-/–]\s?(?P<n>\d{4}|\d{2}))?$"  # a year, perhaps with the next one
IDEOGRAPHS = r"^(\d{4})\s?[年년]\s?(\d{1,2})\s?[月월](?:\s?(\d{1,2})\s?[日일])?"
WEEK_NAMES = ("week", "woche", "kw", "semaine", "semana", "wk")
WEEK = r"^(\d{4})[-/ ]{0,3}(?:[Ww]|KW)\s?(\d{1,2})$"
WEEK_FIRST = r"^(?:[Ww]|KW)\s?(\d{1,2})[-/ ]{0,3}(\d{4})$"
MONTH_WORDS = {  # the beginnings of the names of months in English and, where they differ, in other languages
    **{name: i + 1 for i, name in enumerate(("jan", "feb", "mar", "apr", "may", "jun"))},
    **{name: i + 7 for i, name in enumerate(("jul", "aug", "sep", "oct", "nov", "dec"))},
    **{"mär": 3, "mrz": 3, "mae": 3, "mai": 5, "okt": 10, "dez": 12},
    **{"janv": 1, "fév": 2, "fev": 2, "avr": 4, "juin": 6, "juil": 7, "aoû": 8, "aou": 8, "déc": 12},
    **{"ene": 1, "abr": 4, "ago": 8, "set": 9, "dic": 12, "gen": 1, "mag": 5, "giu": 6, "lug": 7, "ott": 10},
    **{"out": 10, "maa": 3, "mrt": 3, "mei": 5, "maj": 5, "jui": 6},
}


@dataclass(frozen=True)
class Stamps:
    """A time column as read.

    Attributes:
        ns: nanoseconds since 1970, in UTC if ``zone`` is given, else in local time. Integer steps are unchanged.
        zone: time zone of the column; None for times without one.
        integer: whether the column contains integer steps.
        notes: how the column was read, if that is not obvious.
    """

    ns: Int64[np.ndarray, " rows"]
    zone: str | None = None
    integer: bool = False
    notes: tuple[str, ...] = ()


def read_stamps(
    table: Table,
    name: str,
    dayfirst: bool | None = None,
    timezone: str | None = None,
    wrong: dict[int, str] | None = None,
) -> Stamps:
    """The time column of a table.

    Integers are years, YYYYMM, YYYYMMDD, seconds, ms, us or ns since 1970, or else steps.

    Args:
        table: the table.
        name: name of the column.
        dayfirst: whether 01/02/2024 is 1 February; None infers it from the column.
        timezone: zone of times without one; other times are converted to it.
        wrong: receives error messages by row, and these rows get an arbitrary date; None raises instead.

    Raises:
        InputError: a cell is empty or no date, or the order of day and month is ambiguous.
    """
    column = table.frame[name]
    if isinstance(column.dtype, pd.PeriodDtype):
        column = column.where(column.dt.year.between(1678, 2261)).dt.start_time
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.cat.categories.dtype)
    if pd.api.types.is_bool_dtype(column):
        raise InputError(
            f"{table.where(0, name)}: expected a date, found {column.iloc[0]}; name the time column with time_column"
        )
    zone: str | None = None
    offsets: Int64[np.ndarray, " rows"] | None = None
    notes: tuple[str, ...] = ()
    if pd.api.types.is_numeric_dtype(column):
        stamps = _from_numbers(table, name, column)
        if isinstance(stamps, Stamps):
            return stamps
    elif pd.api.types.is_datetime64_any_dtype(column):
        stamps = column
        if column.dt.tz is not None:
            zone, stamps = _zone_name(column.dt.tz), column.dt.tz_convert("UTC").dt.tz_localize(None)
            column = stamps
    else:
        column = column.astype("string").str.strip()
        stamps, offsets, notes = _from_text(table, name, column, dayfirst)
    cells = stamps.to_numpy()
    known = in_calendar(cells)
    for row in np.flatnonzero(~known).tolist():
        message = no_date(table, name, row, column.iloc[row])
        if wrong is None or not known.any():
            raise InputError(message)
        wrong.setdefault(row, message)
    if not known.all():
        first = int(known.argmax())
        stamps = stamps.mask(~known, stamps.iloc[first])
        if offsets is not None:
            offsets = np.where(known, offsets, offsets[first])
    ns = stamps.to_numpy(dtype="datetime64[ns]").astype(np.int64)
    if timezone is not None:
        asked = zones.check_zone(timezone)
        aware = zone is not None or offsets is not None
        return Stamps(ns if aware else zones.to_instants(ns, asked, table.where(None, name)), asked, notes=notes)
    if offsets is not None:
        zone = zones.zone_of_offsets(ns, offsets)
    return Stamps(ns, zone, notes=notes)


def in_calendar(cells: Shaped[np.ndarray, " rows"]) -> Bool[np.ndarray, " rows"]:
    """Which values of a column of datetime64 can be nanoseconds since 1970; missing ones cannot."""
    return (cells >= YEARS[0]) & (cells < YEARS[1])  # NaT is neither


def no_date(table: Table, name: str, row: int, value: Any) -> str:
    """The error message for a cell that is no date."""
    return (
        f"{table.where(row, name)}: expected a date, found {_shown(value)}; "
        "write dates of 1678 to 2261 as YYYY-MM-DD HH:MM:SS, or drop the row"
    )


def _zone_name(tz: Any) -> str:
    """The name of a zone of pandas, or its constant offset."""
    fixed = None if getattr(tz, "key", None) or getattr(tz, "zone", None) else tz.utcoffset(None)
    if fixed is not None:
        return zones.fixed(round(fixed.total_seconds()) * 1_000_000_000)
    name = str(getattr(tz, "key", None) or getattr(tz, "zone", None) or tz)
    if name.startswith("UTC") and len(name) > 3:
        return name[3:]
    return "UTC" if name in ("UTC", "Z", "GMT") else name


def _shown(value: Any) -> str:
    return "an empty cell" if pd.isna(value) or str(value).strip().lower() in MISSING else repr(str(value)[:40])


def _from_numbers(table: Table, name: str, column: pd.Series) -> "pd.Series | Stamps":
    values = column.to_numpy(dtype=np.float64, na_value=np.nan)
    lost = np.flatnonzero(~(np.abs(values) < LARGEST))
    if len(lost):
        cell = values[lost[0]]
        found = "an empty cell" if np.isnan(cell) else f"the number {cell:g}"
        raise InputError(f"{table.where(int(lost[0]), name)}: expected a date, found {found}; drop the row")
    low, high = values.min(), values.max()
    whole = bool((values == np.floor(values)).all())
    if low > 1e8:
        unit = next(unit for bound, unit in UNITS if high < bound)
        if whole:
            return pd.to_datetime(column, unit=unit, errors="coerce")
        scale = {"s": 1e9, "ms": 1e6, "us": 1e3, "ns": 1.0}[unit]
        if high * scale >= LARGEST:  # the caller says which dates are none
            return pd.to_datetime(pd.Series(np.where(values * scale < LARGEST, np.floor(values), np.nan)), unit=unit)
        base = np.floor(values)  # separately, since floats are too coarse for nanoseconds since 1970
        ns = base.astype(np.int64) * int(scale) + np.round((values - base) * scale, -3).astype(np.int64)
        return pd.Series(ns.view("datetime64[ns]"), index=column.index)
    if whole:
        text = pd.Series(values.astype(np.int64), index=column.index).astype("string")
        if low >= 16000101 and high <= 22611231:
            return pd.to_datetime(text, format="%Y%m%d", errors="coerce")
        months = values % 100
        weeks = low >= 160001 and high <= 226153 and months.min() >= 1 and 12 < months.max() <= 53
        if weeks and (high - low >= 100 or any(word in name.lower() for word in WEEK_NAMES)):
            return _week(text.str[:4], text.str[4:])
        if low >= 160001 and high <= 226112 and months.min() >= 1 and months.max() <= 12:
            return pd.to_datetime(text, format="%Y%m", errors="coerce")
        if low >= 1600 and high <= 2261:
            return pd.to_datetime(text, format="%Y", errors="coerce")
    if low >= EXCEL[0] and high <= EXCEL[1] and name.strip().lower() in DATE_WORDS:
        ns = np.round(values * (DAY / 1e9)).astype(np.int64) * 1_000_000_000 - 25_569 * DAY  # days since 1899-12-30
        return Stamps(ns, notes=(f"column {name!r}: numbers read as days of Excel since 1899-12-30",))
    if not whole:
        raise InputError(
            f"{table.where(0, name)}: expected dates, found the number {column.iloc[0]}; write dates as YYYY-MM-DD "
            "HH:MM:SS, or name the time column with time_column"
        )
    folded = name.strip().lower()
    if folded in ("month", "monat", "mois", "mes") and low >= 1 and high <= 12:
        raise InputError(
            f"{table.where(0, name)}: expected dates, found months 1 to 12 without a year: add a column with the year, "
            "or write months as YYYY-MM"
        )
    if max(abs(low), abs(high)) >= LARGEST / 2:
        row = int(np.abs(values).argmax())
        raise InputError(f"{table.where(row, name)}: expected a date or a step, found {values[row]:g}; drop the row")
    return Stamps(values.astype(np.int64), integer=True)


def _offsets(column: pd.Series) -> Int64[np.ndarray, " rows"]:
    """Offset from UTC of each cell of aware text, in nanoseconds."""
    signed = column.str.extract(ZONE, expand=False).str.extract(r"([+-])(\d{2}):?(\d{2})?")
    hours, minutes = (np.nan_to_num(floats(signed[i])).astype(np.int64) for i in (1, 2))
    sign = np.where(signed[0].fillna("+") == "-", -1, 1)
    return sign * (hours * 60 + minutes) * 60_000_000_000


def _from_text(
    table: Table, name: str, column: pd.Series, dayfirst: bool | None
) -> tuple[pd.Series, Int64[np.ndarray, " rows"] | None, tuple[str, ...]]:
    """Text as timestamps (NaT if it is no date), offsets from UTC (None if there are none), and notes on the format.

    With offsets, the timestamps are in UTC, otherwise in local time.
    """
    codes, unique = pd.factorize(column)
    if not len(unique):  # no cell is filled
        return pd.Series(pd.NaT, index=column.index, dtype="datetime64[ns]"), None, ()
    text = pd.Series(unique, dtype="string")
    text = text.mask(text.str.lower().isin(MISSING))
    if not all(map(str.isascii, text.dropna())):  # digits of other scripts
        text = text.str.replace(r"[^\x00-\x7f]", lambda m: str(unicodedata.decimal(m[0], m[0])), regex=True)
    if text.str.contains("[月월]", regex=True).any():
        text = text.str.replace(IDEOGRAPHS, lambda m: "-".join(filter(None, m.groups())), regex=True)
    span = text.str.extract(SPAN, expand=False)
    if span.notna().sum() > 0.5 * text.notna().sum():  # begin and end of each step
        text = span.fillna(text)
    zoned = text.str.contains(ZONED, regex=True).fillna(False).astype(bool)
    bare = np.flatnonzero((~zoned & text.notna()).to_numpy())
    if zoned.any() and len(bare):
        raise InputError(
            f"{table.where(int(np.argmax(codes == bare[0])), name)}: expected a time with its zone, as in other rows, "
            f"found {text.iloc[bare[0]]!r}; write all of them with a zone or none"
        )
    wall = text.mask(zoned, text.str.replace(ZONE, "", regex=True)) if zoned.any() else text
    if (fiscal := _fiscal(wall)) is not None:
        return pd.Series(fiscal[0].to_numpy()[codes], index=column.index).mask(codes < 0), None, fiscal[1]
    notes: tuple[str, ...] = ()
    parsed = _iso(wall)
    if parsed.isna().sum() > text.isna().sum():
        spelt, notes = _spelt(wall, dayfirst, lambda i: table.where(int(np.argmax(codes == i)), name))
        parsed = spelt if spelt.isna().sum() < parsed.isna().sum() else parsed
    offsets = None
    if zoned.any():
        offsets = _offsets(text.where(zoned))
        parsed = parsed.mask(np.abs(offsets) >= DAY)  # no zone is that far away
        parsed = parsed - pd.Series(offsets.view("timedelta64[ns]"))
        offsets = offsets[codes]
    result = pd.Series(parsed.to_numpy()[codes], index=column.index).mask(codes < 0)
    return result, offsets, notes


def _iso(text: pd.Series) -> pd.Series:
    """ISO 8601 and variants with other separators or without zeros, such as 2024/1/5 or 2024.01.05 9:30."""
    text = text.str.replace(r"^(\d{4}-\d{2}-\d{2})\s*/\s*\d{4}-\d{2}-\d{2}$", r"\1", regex=True)
    text = text.mask(text.str.contains(r"[T ]\s*\d.*[Zz+-]"))  # pandas takes what follows a time for a zone
    parsed = _parsed_iso(text)
    if parsed.isna().sum() == text.isna().sum():
        return parsed
    padded = text.str.replace(r"^(\d{4})[./-](\d{1,2})[./-](\d{1,2})(?!\d)", _pad, regex=True)
    padded = padded.str.replace(r"^(\S{10})[ T](\d)(?=:|$)", r"\1 0\2", regex=True)
    again = _parsed_iso(padded)
    return again if again.isna().sum() < parsed.isna().sum() else parsed


def _parsed_iso(text: pd.Series) -> pd.Series:
    return pd.to_datetime(text, format="ISO8601", errors="coerce", utc=True).dt.tz_localize(None)


def _pad(match: "re.Match[str]") -> str:
    year, month, day = match.groups()
    return f"{year}-{month:>02}-{day:>02}"


def _spelt(text: pd.Series, dayfirst: bool | None, where: Callable[[int], str]) -> tuple[pd.Series, tuple[str, ...]]:
    """Dates with slashes or points, names of months, or periods: the format that fits most values."""
    parts = text.str.extract(NUMERIC)
    numeric = parts[0].notna()
    if numeric.sum() > 0.5 * text.notna().sum():
        return _numeric(text, parts, dayfirst, where)
    best = pd.Series(pd.NaT, index=text.index, dtype="datetime64[ns]")
    for pattern in NAMED:
        parsed = _named(text.str.extract(pattern), where)
        best = parsed if parsed.notna().sum() > best.notna().sum() else best
    for pattern, months in PERIODS.items():
        part = text.str.extract(pattern)
        month = (_floats(part["n"]) - 1) * months + 1
        parsed = _build(_floats(part["y"]), month, pd.Series(1.0, index=text.index))
        best = parsed if parsed.notna().sum() > best.notna().sum() else best
    for pattern, order in ((WEEK, (0, 1)), (WEEK_FIRST, (1, 0))):
        part = text.str.extract(pattern)
        parsed = _week(part[order[0]], part[order[1]])
        best = parsed if parsed.notna().sum() > best.notna().sum() else best
    return best, ()


def _week(year: pd.Series, week: pd.Series) -> pd.Series:
    """The Mondays of weeks of ISO 8601, given as text."""
    spelt = year + "-" + week.str.zfill(2) + "-1"
    return pd.to_datetime(spelt, format="%G-%V-%u", errors="coerce").astype("datetime64[ns]")


def _fiscal(text: pd.Series) -> tuple[pd.Series, tuple[str, ...]] | None:
    """Years written as FY2001, 2001/02 or 2001-2002, the first of which counts; None if cells are something else."""
    if not text.dropna().head(1).str.match(FISCAL).any():
        return None
    part = text.str.extract(FISCAL)
    year, end = _floats(part["y"]), _floats(part["n"])
    follows = (end == year + 1) | ((end == (year + 1) % 100) & (part["n"].str.len() == 2).fillna(False))
    plain = end.isna() & text.str.match("[Ff]").fillna(False).astype(bool)
    if text.notna().sum() < 2 or not (follows | plain)[text.notna().to_numpy(dtype=bool)].all():
        return None
    dates = _build(year, pd.Series(1.0, index=text.index), pd.Series(1.0, index=text.index))
    shown = text.dropna().iloc[0]
    return dates, (f"periods such as {shown} read as years by the first year ({dates.dropna().iloc[0]:%Y})",)


def _floats(cells: pd.Series) -> pd.Series:
    """Text of digits as floats, NaN where missing."""
    numbers = pd.to_numeric(cells, errors="coerce")  # safe for these: no exponents
    return pd.Series(numbers.to_numpy(dtype=np.float64, na_value=np.nan), index=cells.index)


def _build(year: pd.Series, month: pd.Series, day: pd.Series) -> pd.Series:
    """Dates from numbers, NaT if there is no such day; two-digit years mean 1970 to 2069."""
    year = year + np.where(year < 70, 2000, np.where(year < 100, 1900, 0))
    return pd.to_datetime(pd.DataFrame({"year": year, "month": month, "day": day}), errors="coerce")


def _clock(parts: pd.DataFrame) -> pd.Series:
    """The time of day from columns of hour, minute, second, fraction and a or p; missing means midnight."""
    hour, minute, second = (_floats(parts.iloc[:, i]).fillna(0.0) for i in range(3))
    half = parts.iloc[:, 4].str.lower()
    late = (half == "p").fillna(False).to_numpy(dtype=bool)
    hour = hour.mask(half.notna().to_numpy(dtype=bool), hour % 12 + 12 * late)
    fraction = _floats("0." + parts.iloc[:, 3].fillna("0"))
    seconds = (hour * 60 + minute) * 60 + second
    return pd.Series(pd.to_timedelta(seconds, unit="s") + pd.to_timedelta(fraction, unit="s"))


def month_of(name: str) -> int | None:
    """The number of the month that a word names in one of the languages known, or None."""
    word = name.strip().rstrip(".").lower()
    return MONTH_WORDS.get(word[:4], MONTH_WORDS.get(word[:3])) if word.isalpha() else None


def _named(parts: pd.DataFrame, where: Callable[[int], str]) -> pd.Series:
    """Dates with the name of a month; ``parts`` holds y, m, perhaps d, and the clock."""
    word = parts["m"].str.lower()
    month = word.str[:4].map(MONTH_WORDS).astype("Float64").fillna(word.str[:3].map(MONTH_WORDS).astype("Float64"))
    month = _floats(month)
    year = _floats(parts["y"])
    if "d" not in parts:
        short = year.where(year < 100).dropna()
        if len(short) and short.nunique() > month[short.index].nunique():
            raise InputError(
                f"{where(int(short.index[0]))}: expected dates, found days without a year: write dates as YYYY-MM-DD"
            )
        return _build(year, month, pd.Series(1.0, index=year.index))
    clock = parts[[name for name in parts.columns if name not in ("y", "m", "d")]]
    return _build(year, month, _floats(parts["d"])) + _clock(clock)


def _numeric(
    text: pd.Series, parts: pd.DataFrame, dayfirst: bool | None, where: Callable[[int], str]
) -> tuple[pd.Series, tuple[str, ...]]:
    """Dates such as 31/01/2020, in the only order that fits every row. If both orders fit and differ, that is an error,
    unless the dates have times and only one order gives equal steps."""
    one, two, three = (_floats(parts[i]) for i in range(3))
    clock = _clock(parts.iloc[:, 3:])
    readings = {"day": _build(three, two, one), "month": _build(three, one, two)}
    year_first = _build(one, two, three)
    lost = {order: int(dates.isna().sum()) for order, dates in readings.items()}
    missing = int(text.isna().sum())
    if int(year_first.isna().sum()) == missing and (min(lost.values()) > missing or one.nunique() < three.nunique()):
        return year_first + clock, ()
    readings = {order: dates + clock for order, dates in readings.items()}
    if dayfirst is None and text.str.match(r"\d{1,2}\.\d{1,2}\.").fillna(True).all() and lost["day"] == missing:
        dayfirst = True  # nobody writes the month first with points
    if dayfirst is not None:
        return readings["day" if dayfirst else "month"], ()
    if max(lost.values()) > missing:
        return readings["day" if lost["day"] <= lost["month"] else "month"], ()
    differ = np.flatnonzero((readings["day"] != readings["month"]).to_numpy() & text.notna().to_numpy())
    if not len(differ):
        return readings["day"], ()
    breaks = {order: _breaks(dates) for order, dates in readings.items()}
    first = int(differ[0])
    shown = {order: dates.iloc[first] for order, dates in readings.items()}
    if (clock > pd.Timedelta(0)).any() and min(breaks.values()) == 0 < max(breaks.values()):
        order = min(breaks, key=breaks.__getitem__)
        return readings[order], (f"dates such as {text.iloc[first]} read with the {order} first ({shown[order]})",)
    raise InputError(
        f"{where(first)}: expected dates with a clear order, found {text.iloc[first]!r} and no day above 12 "
        f"in any row: {shown['day']:%Y-%m-%d} with the day first, {shown['month']:%Y-%m-%d} with the month first; give "
        "dayfirst (--dayfirst true or false), or write dates as YYYY-MM-DD"
    )


def _breaks(dates: pd.Series) -> int:
    """How many steps between sorted dates differ from the smallest one."""
    step = np.diff(np.sort(dates.dropna().to_numpy().astype("datetime64[ns]").astype(np.int64)))
    return int((step != step.min()).sum()) if len(step) else 0
