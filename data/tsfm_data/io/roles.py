"""Roles of the columns of a table: time, ids, targets, covariates, or unused."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from tsfm_data.errors import InputError, unknown_name
from tsfm_data.io import numerals
from tsfm_data.io.columns import ITEM_NAMES, Table, is_numeric
from tsfm_data.io.numerals import MISSING
from tsfm_data.io.timestamps import month_of, read_stamps

TIME_NAMES = ("timestamp", "ds", "datetime", "date_time", "date", "time", "period", "month", "week", "day", "year")
OTHER_TIMES = ("zeit", "datum", "zeitstempel", "fecha", "hora", "data", "date/time", "horodatage", "tidspunkt", "dato")
LATER_NAMES = ("ts", "epoch", "unix", "unixtime", "unix_time", "time_stamp", "yearweek", "year_week", "yearmonth", "fy")
STEP_NAMES = ("t", "step", "time_idx", "timestep", "time_step", "idx", "index", "period_id", "tick")
TARGET_NAMES = ("target", "y", "value", "values")
KEY_NAMES = (
    "id",
    "index",
    "idx",
    "no",
    "nr",
    "#",
    "key",
    "row",
    "rownum",
    "row_id",
    "rowid",
    "record_id",
    "instant",
    "unnamed: 0",
)
HOURS = (
    "hour",
    "hr",
    "hour_of_day",
    "stunde",
    "uhrzeit",
    "zeit",
    "time",
    "heure",
    "hora",
    "ora",
    "uur",
    "interval",
    "settlement_period",
    "hour_ending",
    "he",
    "period",
)
# Columns that only repeat parts of the date -> range of their values.
CALENDAR = {
    "year": (1600, 2300),
    "month": (1, 12),
    "quarter": (1, 4),
    "week": (0, 53),
    "weekofyear": (0, 53),
    "week_of_year": (0, 53),
    "day": (0, 366),
    "day_of_month": (1, 31),
    "dayofyear": (1, 366),
    "day_of_year": (1, 366),
    "weekday": (0, 7),
    "dayofweek": (0, 7),
    "day_of_week": (0, 7),
    "dow": (0, 7),
    "hour": (0, 24),
    "mnth": (1, 12),
    "hr": (0, 24),
    "minute": (0, 59),
}
PARTS = {
    "year": ("year", "jahr", "yr", "año", "année", "annee", "anno", "ano", "jaar"),
    "month": ("month", "monat", "mon", "mes", "mois", "mese", "maand", "mês"),
    "quarter": ("quarter", "quartal", "qtr", "trimester", "trimestre"),
    "week": ("week", "woche", "kw", "semaine", "semana", "settimana"),
    "day": ("day", "tag", "dom", "día", "dia", "jour", "giorno", "dag"),
}
BEGINS = (
    "von",
    "from",
    "start",
    "begin",
    "beginning",
    "anfang",
    "since",
    "desde",
    "début",
)  # the other column is the end
PLACES = ("store", "shop", "product", "site", "sensor", "station", "region", "country", "customer", "meter", "code")
FEW = 0.02  # largest share of duplicate timestamps in a series
TOTALS = frozenset(
    (
        "total",
        "totals",
        "grand total",
        "sum",
        "summe",
        "gesamt",
        "average",
        "mean",
        "avg",
        "mittelwert",
        "somme",
        "totale",
    )
)


@dataclass(frozen=True)
class Roles:
    """Names of the columns by role; ``item`` is None in a wide table, ``unused`` have no role."""

    time: str
    item: str | None
    target: tuple[str, ...]
    past: tuple[str, ...]
    known: tuple[str, ...]
    unused: tuple[str, ...] = ()

    @property
    def notes(self) -> list[str]:
        """A note about the columns without a role, if there are any."""
        return [f"columns not used as target or covariate: {', '.join(self.unused)}"] if self.unused else []


def find_roles(
    table: Table,
    *,
    time_column: str | None,
    item_column: str | None,
    target: str | Sequence[str] | None,
    past: Sequence[str],
    known: Sequence[str],
) -> Roles:
    """The roles of the columns: as given, else inferred from usual names, else from the values.

    ``item_column`` "" means that there is none.

    Raises:
        InputError: a given column is absent, or a role cannot be inferred.
    """
    columns = [str(name) for name in table.frame.columns]
    named = [n for n in (time_column, item_column or None, *past, *known) if n is not None]
    targets = () if target is None else (target,) if isinstance(target, str) else tuple(target)
    for name in (*named, *targets):
        if name not in columns:
            raise InputError(f"{table.source}: {unknown_name('column', name, columns)}")
    both = [n for n in (*named, *targets) if (*named, *targets).count(n) > 1]
    if both:
        raise InputError(
            f"{table.source}: expected one role per column, found two for column {both[0]!r}; name it once"
        )
    time = time_column or _find_time(table, [c for c in columns if c not in (*named, *targets)])
    free = [c for c in columns if c != time and c not in named and c not in targets]
    item = (item_column or None) if item_column is not None else _find_item(table, time, free)
    joined = () if item is None or item in columns else tuple(item.split("/"))
    free = [c for c in free if c != item and c not in joined]
    if not targets:
        targets = _find_target(table, free, item is not None)
    used = {time, item, *joined, *targets, *past, *known}
    return Roles(time, item, targets, tuple(past), tuple(known), tuple(c for c in columns if c not in used))


def usual_column(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """The column with the first of some names, in any case."""
    folded = {column.strip().lower(): column for column in reversed(columns)}
    return next((folded[name] for name in names if name in folded), None)


def _find_time(table: Table, columns: list[str]) -> str:
    for names in (TIME_NAMES, OTHER_TIMES):
        by_name = [c for name in names for c in columns if c.strip().lower() == name]
        for column in by_name:
            if len(by_name) == 1 or _may_be_time(table, column):
                return column
    dates = [c for c in columns if pd.api.types.is_datetime64_any_dtype(table.frame[c])]
    if not dates:
        dates = [c for c in columns if _plainly_dates(table, c)]
    begins = bool(dates) and any(word in dates[0].lower().split() for word in BEGINS)
    if len(dates) == 1 or begins or (dates and not columns[0].strip()):
        return dates[0]
    later = usual_column(columns, LATER_NAMES)
    if not dates and later is not None and _may_be_time(table, later):
        return later
    steps = usual_column(columns, STEP_NAMES)
    if not dates and steps is not None and pd.api.types.is_integer_dtype(table.frame[steps]) and len(columns) > 1:
        return steps
    shown = ", ".join(columns[:8]) + (", ..." if len(columns) > 8 else "")
    several = f" (with dates: {', '.join(dates)})" if dates else ""
    raise InputError(
        f"{table.source}: expected a time column (such as timestamp, date or ds), found columns {shown}{several}; "
        "name it with time_column (--time-column)"
    )


def _may_be_time(table: Table, column: str) -> bool:
    """Whether the values of a column with a usual name of times may be times, not small numbers or words."""
    cells = table.frame[column]
    if pd.api.types.is_numeric_dtype(cells):
        return not pd.api.types.is_bool_dtype(cells) and bool(cells.max() > 366)
    return pd.api.types.is_datetime64_any_dtype(cells) or _plainly_dates(table, column)


def _plainly_dates(table: Table, column: str) -> bool:
    """Whether the first values of a column are clearly dates, not numbers."""
    cells = table.frame[column]
    if pd.api.types.is_numeric_dtype(cells):
        return False
    text = cells.head(1000).dropna().head(20).astype("string").str.strip()
    if not len(text) or text.str.fullmatch(r"[+-]?[\d.,]*").fillna(True).all():
        return bool(len(text)) and bool(text.str.fullmatch(r"\d{1,2}\.\d{1,2}\.(\d{4}|\d{2})").fillna(False).all())
    if not text.str.contains(r"\d").all():
        return False
    try:
        read_stamps(Table(pd.DataFrame({column: text.reset_index(drop=True)}), "", ""), column, dayfirst=True)
    except InputError:
        try:
            read_stamps(Table(pd.DataFrame({column: text.reset_index(drop=True)}), "", ""), column, dayfirst=False)
        except InputError:
            return False
    return True


def _find_item(table: Table, time: str, free: list[str]) -> str | None:
    """The column with the ids of the series: by its name, or because it makes timestamps unique in each series."""
    frame = table.frame
    named = usual_column(free, ITEM_NAMES)
    if named is not None and not _numbers_rows(frame[named]):
        return named
    if _ascends(frame[time]) or not frame.duplicated([time]).any():
        return None
    words = [c for c in free if c != named and not is_numeric(table, c)]
    keys = [c for c in free if c != named and _is_key_name(c) and c not in words]
    repeats = {c: frame.duplicated([time, c]).mean() for c in (*keys, *words)}
    fitting = [c for c, share in repeats.items() if share <= FEW]
    if fitting:
        return min(fitting, key=lambda c: (repeats[c], frame[c].nunique(), list(frame.columns).index(c)))
    if frame.duplicated([time]).mean() <= FEW or not repeats:
        return None  # duplicates, not series
    whole = [c for c in free if pd.api.types.is_integer_dtype(frame[c]) and frame[c].nunique() < 0.2 * len(frame)]
    parts = list(dict.fromkeys(c for c in (*keys, *words, *whole) if frame[c].nunique() > 1))[:8]
    for count in range(2, len(parts) + 1):
        for chosen in itertools.combinations(parts, count):
            if not frame.duplicated([time, *chosen]).any():
                joined = frame[list(chosen)].astype(str).agg("/".join, axis=1)
                frame["/".join(chosen)] = joined.where(frame[list(chosen)].notna().all(axis=1))
                return "/".join(chosen)
    raise InputError(
        f"{table.source}: expected each timestamp once in a series, found {frame[time].iloc[0]} in "
        f"{int((frame[time] == frame[time].iloc[0]).sum())} rows, which {', '.join(repeats)} do not distinguish; name "
        "the id column with item_column (--item-column), or combine the rows (--resample)"
    )


def _ascends(cells: pd.Series) -> bool:
    """Whether typed values ascend strictly, so that none is repeated."""
    if pd.api.types.is_datetime64_any_dtype(cells):
        cells = cells.dt.tz_convert("UTC").dt.tz_localize(None) if cells.dt.tz is not None else cells
    elif not (isinstance(cells.dtype, np.dtype) and cells.dtype.kind in "iu"):
        return False
    values = cells.to_numpy()
    return bool((values[1:] > values[:-1]).all())


def _is_key_name(name: str) -> bool:
    return _is_id_name(name) or name.strip().lower() in PLACES


def _is_id_name(name: str) -> bool:
    """Whether a column has a usual name of ids."""
    folded = name.strip().lower()
    return folded in ITEM_NAMES or folded.endswith(("_id", " id", "_key", "_code", "_no", "_nr", "_nbr", "sku"))


def _numbers_rows(cells: pd.Series) -> bool:
    """Whether values are unique, as the keys of a database table."""
    return len(cells) > 2 and bool(cells.head(1000).is_unique) and bool(cells.is_unique)


def _find_target(table: Table, free: list[str], long: bool) -> tuple[str, ...]:
    if not free:
        raise InputError(f"{table.source}: expected a column of values, found only time and ids; add the values")
    if long:
        named = usual_column(free, TARGET_NAMES)
        if named is not None:
            return (named,)
    values = [c for c in free if is_numeric(table, c)]
    if len(values) > 1:
        values = [c for c in values if not _says_the_calendar(table, c) and not _is_key(table, c, long)] or values
    if not values and not long:
        return tuple(free[:1])  # the check of its values raises
    if long and len(values) != 1:
        raise InputError(
            f"{table.source}: expected a column named target, y or value, found {', '.join(values or free)[:200]}; "
            "name it with target (--target)"
        )
    return tuple(values)


def _says_the_calendar(table: Table, name: str) -> bool:
    bounds = CALENDAR.get(name.strip().lower())
    cells = table.frame[name]
    if bounds is None or not pd.api.types.is_numeric_dtype(cells) or not cells.notna().any():
        return False
    known = cells.dropna().to_numpy(dtype=np.float64)
    return bool((known == np.floor(known)).all() and known.min() >= bounds[0] and known.max() <= bounds[1])


def _is_key(table: Table, name: str, long: bool) -> bool:
    """Whether a column contains ids, row numbers, or (in a long table) yes and no, rather than values to forecast."""
    if long and pd.api.types.is_bool_dtype(table.frame[name]):
        return True
    named = name.strip().lower() in KEY_NAMES
    if not (named or _is_key_name(name)):
        return False
    cells = pd.Series(numerals.floats(table.frame[name]))
    if cells.isna().any() or (cells != cells.round()).any():
        return False
    running = cells.nunique() == 1 or (_numbers_rows(cells) and bool(cells.diff().dropna().nunique() == 1))
    return running or _is_id_name(name)


def without_footer(table: Table, time: str) -> Table:
    """The table without totals at its end: rows without a date, and with a word such as "Total"."""
    frame, cut = table.frame, 0
    cells = frame[time]
    typed = pd.api.types.is_numeric_dtype(cells) or pd.api.types.is_datetime64_any_dtype(cells)
    if typed and not (len(frame) and pd.isna(cells.iloc[-1])):
        return table
    texts = [c for c in frame.columns if frame[c].dtype == object]

    def word(row: int, column: str) -> str:
        return str(frame[column].iloc[row]).strip().lower().rstrip(":")

    while cut < min(5, len(frame) - 2):
        row = len(frame) - 1 - cut
        empty = pd.isna(cells.iloc[row]) or word(row, time) in MISSING
        if word(row, time) not in TOTALS and not (empty and any(word(row, c) in TOTALS for c in texts)):
            break
        cut += 1
    if not cut:
        return table
    rows = f"{cut} rows" if cut > 1 else "1 row"
    place = table.where(len(frame) - cut).removeprefix(f"{table.source}, ")
    note = f"{rows} of totals at the end left out (from {place})"
    return replace(table, frame=frame.iloc[: len(frame) - cut], notes=(*table.notes, note))


def without_units(table: Table, time: str) -> Table:
    """The table without a first row of units: no date in it, and words above numbers."""
    frame = table.frame
    if len(frame) < 3:
        return table
    first = frame.iloc[0]
    if pd.notna(first[time]) and any(character.isdigit() for character in str(first[time])):
        return table
    words = [c for c in frame.columns if c != time and frame[c].dtype == object and isinstance(first[c], str)]
    rest = replace(table, frame=frame.iloc[1:50].reset_index(drop=True))
    units = [c for c in words if not is_numeric(replace(table, frame=frame.iloc[:1]), c) and is_numeric(rest, c)]
    if not units:
        return table
    note = f"row of units below the header left out: {', '.join(str(first[c]) for c in units)}"
    frame = frame.iloc[1:].reset_index(drop=True)
    return replace(table, frame=frame, first=table.first + 1, notes=(*table.notes, note))


def turned(table: Table) -> Table:
    """The long table of a table with one series per row and one column per date; other tables unchanged."""
    names = [str(c) for c in table.frame.columns]
    if (unfolded := _unfolded(table)) is not None:
        return unfolded
    dated = [c for c in names if any(character.isdigit() for character in c)]
    if len(dated) < 3 or len(dated) < 0.5 * len(names):
        return table
    text = pd.DataFrame({"date": dated})
    years = all(re.fullmatch(r"(1[6-9]|2[0-2])\d\d", name) for name in dated)
    if not (years and set(np.diff(np.array(dated, dtype=np.int64))) == {1}) and not (
        text["date"].str.contains(r"\d[-/. ]|[QW]\d|[^\W\d]{3}[-/ .']?\d\d", regex=True).all()
        and _plainly_dates(Table(text, table.source, table.name), "date")
    ):
        return table
    others = [c for c in names if c not in dated]
    if any(c.strip().lower() in PARTS["month"] or _is_date_column(table, c) for c in others):
        return table
    frame = table.frame.set_axis(names, axis="columns")
    keys = [c for c in others if frame[c].is_unique]
    words = [c for c in others if frame[c].dtype == object]
    if not keys and len(words) > 1 and not frame.duplicated(words).any():
        frame = frame.assign(**{"/".join(words): frame[words].astype(str).agg("/".join, axis=1)})
        others = [c for c in others if c not in words]
        keys = ["/".join(words)]
    keys = keys or others
    key = usual_column(keys, ITEM_NAMES) or (keys[0] if keys else None)
    ids = frame[key] if key is not None else pd.Series([str(i) for i in range(len(frame))], dtype=object)
    if len(frame) > 1 and ids.duplicated().any():
        raise InputError(
            f"{table.source}: expected one series per row, as columns are dates, found "
            f"{ids[ids.duplicated()].iloc[0]!r} in two rows of {key!r}; convert it to columns item_id, date, target"
        )
    long = pd.DataFrame(
        {
            key or "item_id": np.repeat(ids.to_numpy(), len(dated)),
            "date": np.tile(np.array(dated, dtype=object), len(frame)),
            "target": frame[dated].to_numpy().reshape(-1),
        }
    )
    note = f"columns {dated[0]} to {dated[-1]} are dates: one series per row"
    left = [c for c in others if c != key]
    note += f"; columns not used: {', '.join(left)}" if left else ""
    return Table(long.infer_objects(), table.source, table.name, notes=(*table.notes, note))


def _unfolded(table: Table) -> Table | None:
    """The table with one row per month or time of day, if those are columns next to a year or date; else None."""
    frame = table.frame
    names = [str(c) for c in frame.columns]
    folded = {name.strip().lower(): name for name in names}
    months = {name: m for name in names if (m := month_of(name)) is not None}
    clocks = {name: name.strip() for name in names if re.fullmatch(r"\d{1,2}:\d{2}(:\d{2})?", name.strip())}
    base = next((folded[word] for word in PARTS["year"] if word in folded), None)
    if base is not None and sorted(months.values()) == list(range(1, 13)):
        if not pd.api.types.is_integer_dtype(frame[base]) or not frame[base].between(1600, 2261).all():
            return None
        ends = {name: f"-{month:02d}" for name, month in months.items()}
        what = "months of the year"
    elif len(clocks) > 3:
        dates = [name for name in names if name not in clocks and _is_date_column(table, name)]
        if len(dates) != 1:
            return None
        base, ends, what = dates[0], {name: f" {clock}" for name, clock in clocks.items()}, "times of the day"
    else:
        return None
    cells = frame[base]
    begins = cells.dt.strftime("%Y-%m-%d") if pd.api.types.is_datetime64_any_dtype(cells) else cells.astype(str)
    kept = [c for c in names if c not in ends and c != base and frame[c].dtype == object]
    left = [c for c in names if c not in ends and c != base and c not in kept]
    size = len(ends)
    long = pd.DataFrame({c: np.repeat(frame[c].to_numpy(), size) for c in kept})
    long.insert(0, "date", [begin + end for begin in begins for end in ends.values()])
    long["target"] = frame[list(ends)].to_numpy().reshape(-1)
    note = f"columns {next(iter(ends))} to {list(ends)[-1]} are {what}: one row each"
    note += f"; columns not used: {', '.join(left)}" if left else ""
    return Table(long.infer_objects(), table.source, table.name, notes=(*table.notes, note))


def joined_time(table: Table, time_column: str | None) -> Table:
    """The table with one time column, joined from date and hour, or from year, month and day, if it has these."""
    names = {str(c).strip().lower(): str(c) for c in table.frame.columns}
    if time_column is not None:
        return table
    frame = table.frame
    parts = {part: next((names[n] for n in words if n in names), None) for part, words in PARTS.items()}
    of_year = next((part for part in ("month", "quarter", "week") if parts[part]), None)
    if not (parts["year"] and of_year) and not any(n in names for n in HOURS):
        return table
    dates = [n for n in names.values() if n not in parts.values() and _is_date_column(table, n)]
    if not dates and parts["year"] and of_year:
        day = parts["day"] if of_year == "month" else None
        used = [c for c in (parts["year"], parts[of_year], day) if c is not None]
        frame = frame.assign(**{used[1]: _part_number(frame[used[1]], of_year)})
        if not all(pd.api.types.is_integer_dtype(frame[name]) for name in used):
            return table
        stamps = _date_of(frame[used[0]], of_year, frame[used[1]], frame[day] if day else None)
        if stamps.isna().any():  # the day is a weekday, or a period does not exist
            return table
    elif len(dates) == 1:
        used, stamps = [dates[0]], None
    else:
        return table
    hour = next((names[n] for n in HOURS if n in names and names[n] not in used), None)
    clock = None if hour is None else _time_of_day(frame[hour])
    if clock is not None and hour is not None and (stamps is None or parts["day"] in used):
        base = stamps
        if base is None:
            if not frame.duplicated([dates[0]]).any():
                return table
            if not pd.api.types.is_datetime64_any_dtype(frame[dates[0]]):
                date = read_stamps(table, dates[0])
                base = pd.Series(date.ns.view("datetime64[ns]"), index=frame.index)
            else:
                base = frame[dates[0]]
            if (base.dt.tz_localize(None) != base.dt.tz_localize(None).dt.normalize()).any():
                return table
        stamps, used = base + clock, [*used, hour]
    if stamps is None:
        return table
    frame = frame.drop(columns=used)
    name = "timestamp" if "timestamp" not in frame.columns else "joined_time"
    frame.insert(0, name, stamps)
    note = f"columns {', '.join(used)} joined into one time column"
    return replace(table, frame=frame, notes=(*table.notes, note))


def _part_number(cells: pd.Series, part: str) -> pd.Series:
    """Months by name and quarters such as Q1 as numbers; anything else as it is."""
    if pd.api.types.is_numeric_dtype(cells) or part == "week":
        return cells
    text = cells.astype("string").str.strip()
    number = text.map(month_of) if part == "month" else text.str.extract(r"^[Qq]([1-4])$", expand=False)
    return cells if number.isna().any() else number.astype(np.int64)


def _date_of(year: pd.Series, part: str, number: pd.Series, day: pd.Series | None) -> pd.Series:
    """The first day of a month, quarter or week, or a day of a month; NaT if it does not exist."""
    if part == "week":
        text = year.astype(str) + "-" + number.astype(str).str.zfill(2) + "-1"
        return pd.to_datetime(text, format="%G-%V-%u", errors="coerce")
    month = (number - 1) * 3 + 1 if part == "quarter" else number
    return pd.to_datetime(
        pd.DataFrame({"year": year, "month": month, "day": 1 if day is None else day}), errors="coerce"
    )


def _is_date_column(table: Table, name: str) -> bool:
    cells = table.frame[name]
    if pd.api.types.is_datetime64_any_dtype(cells):
        return True
    if not pd.api.types.is_numeric_dtype(cells):
        return _plainly_dates(table, name)
    named = name.strip().lower() in (*TIME_NAMES[:6], *OTHER_TIMES)
    return named and bool(cells.notna().all()) and bool((cells > 1600).all())


def _time_of_day(cells: pd.Series) -> pd.Series | None:
    """Time of day from hours 0 to 23, hours 1 to 24 (ends of the hours, so 1 means midnight), half or quarter hours
    counted from 1, or text such as 09:30; None for other columns."""
    if pd.api.types.is_integer_dtype(cells):
        low, high = cells.min(), cells.max()
        if low < 0 or cells.nunique() < 2:
            return None
        if low == 1 and high in (48, 96) and cells.nunique() == high:  # half and quarter hours of the day
            return pd.to_timedelta((cells - 1) * (1440 // high), unit="min")
        if high > 24 or (cells.name in ("period", "interval") and high < 23):
            return None
        return pd.to_timedelta(cells - (1 if high == 24 and low >= 1 else 0), unit="h")
    if pd.api.types.is_numeric_dtype(cells) or pd.api.types.is_datetime64_any_dtype(cells):
        return None
    text = cells.astype("string").str.strip()
    if cells.map(type).astype(str).str.contains("datetime.time").any():
        text = cells.astype(str).astype("string")
    if not text.str.fullmatch(r"\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?(\s*[AaPp][Mm])?").fillna(False).all():
        return None
    stamps = pd.to_datetime("2000-01-01 " + text, format="mixed", errors="coerce")
    return None if stamps.isna().any() else stamps - pd.Timestamp("2000-01-01")
