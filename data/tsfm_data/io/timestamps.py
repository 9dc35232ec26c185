"""A column of dates in any usual spelling to nanoseconds since 1970."""

from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Int64

from tsfm_data.errors import InputError
from tsfm_data.io.columns import MISSING, Table

UNITS: tuple[tuple[float, Literal["s", "ms", "us", "ns"]], ...] = (
    (1e11, "s"),
    (1e14, "ms"),
    (1e17, "us"),
    (np.inf, "ns"),
)  # a number below the bound counts these since 1970

YEARS = (1678, 2261)  # what nanoseconds in 64 bits can tell


def nanoseconds(table: Table, name: str) -> Int64[np.ndarray, " rows"]:
    """The time column as nanoseconds since 1970, without time zone.

    Timestamps with a zone become UTC; where all are at local midnight (daily data) they keep their local date, since
    days of 23 and 25 hours would break the grid. Integers are years, YYYYMMDD, or seconds, ms, us, ns since 1970.

    Raises:
        InputError: a cell is empty or no date, or days and months cannot be told apart.
    """
    column = table.frame[name]
    if isinstance(column.dtype, pd.PeriodDtype):
        column = column.dt.start_time
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.cat.categories.dtype)
    if pd.api.types.is_bool_dtype(column):
        raise InputError(
            f"{table.where(0, name)}: expected a date, found {column.iloc[0]}; name the time column with time_column"
        )
    if pd.api.types.is_numeric_dtype(column):
        stamps = _from_numbers(table, name, column)
    elif pd.api.types.is_datetime64_any_dtype(column):
        stamps = column
    else:
        stamps = _from_text(table, name, column)
    lost = np.flatnonzero((stamps.isna() | (stamps.dt.year < YEARS[0]) | (stamps.dt.year > YEARS[1])).to_numpy())
    if len(lost):
        raise InputError(
            f"{table.where(int(lost[0]), name)}: expected a date, found {_shown(column.iloc[lost[0]])}; "
            "write dates of 1678 to 2261 as YYYY-MM-DD HH:MM:SS, or drop the row"
        )
    if stamps.dt.tz is not None:
        local = stamps.dt.tz_localize(None)
        stamps = local if (local == local.dt.normalize()).all() else stamps.dt.tz_convert("UTC").dt.tz_localize(None)
    return stamps.to_numpy(dtype="datetime64[ns]").astype(np.int64)


def _shown(value: Any) -> str:
    return "an empty cell" if pd.isna(value) or str(value).strip().lower() in MISSING else repr(str(value)[:40])


def _from_numbers(table: Table, name: str, column: pd.Series) -> pd.Series:
    values = column.to_numpy(dtype=np.float64, na_value=np.nan)
    known = values[~np.isnan(values)]
    if len(known) and (known == np.floor(known)).all():
        low, high = known.min(), known.max()
        if low >= 1600 and high <= 2261:
            return pd.to_datetime(column.astype("Int64").astype("string"), format="%Y", errors="coerce")
        if low >= 16000101 and high <= 22611231:
            return pd.to_datetime(column.astype("Int64").astype("string"), format="%Y%m%d", errors="coerce")
        if low > 1e8:
            unit = next(unit for bound, unit in UNITS if high < bound)
            return pd.to_datetime(column, unit=unit, errors="coerce")
    raise InputError(
        f"{table.where(0, name)}: expected dates, found the number {column.iloc[0]}; write dates as YYYY-MM-DD "
        "HH:MM:SS, or name the time column with time_column"
    )


def _from_text(table: Table, name: str, column: pd.Series) -> pd.Series:
    text = column.astype("string").str.strip()
    text = text.mask(text.str.lower().isin(MISSING))
    first = text.dropna()
    if len(first) == 0:
        return pd.to_datetime(text, errors="coerce")
    if first.iloc[0][:2].isdigit() and not first.iloc[0][:4].isdigit():
        return _day_or_month_first(table, name, text)
    quarter = text.str.fullmatch(r"\d{4}-?[qQ][1-4]").fillna(False)
    if quarter.iloc[first.index[0]] if isinstance(first.index[0], int) else bool(quarter.any()):
        periods = pd.PeriodIndex(text.where(quarter), freq="Q")
        return pd.Series(periods.start_time, index=text.index)
    zone = text.str.contains(r"(?:[+-]\d{2}:?\d{2}|Z)$", regex=True).fillna(False).any() and first.str.len().max() > 10
    if zone:
        wall = text.str.replace(r"\s*(?:[+-]\d{2}:?\d{2}|Z)$", "", regex=True)
        bare = pd.to_datetime(wall, format="ISO8601", utc=True, errors="coerce").dt.tz_localize(None)
        if (bare == bare.dt.normalize()).all():
            return bare
    return pd.to_datetime(text, format="ISO8601", utc=True, errors="coerce").dt.tz_localize(None)


def _day_or_month_first(table: Table, name: str, text: pd.Series) -> pd.Series:
    """Dates such as 31/01/2020: whichever order every row allows; both is an error unless they agree."""
    plain = text.str.replace(r"^(\d{1,2})[./-](\d{1,2})[./-](\d{4})", r"\1/\2/\3", regex=True)
    tail = (
        ""
        if plain.dropna().str.len().max() <= 10
        else (" %H:%M:%S" if plain.dropna().str.count(":").max() > 1 else " %H:%M")
    )
    readings = [pd.to_datetime(plain, format=f"{order}{tail}", errors="coerce") for order in ("%d/%m/%Y", "%m/%d/%Y")]
    lost = [int(reading.isna().sum()) for reading in readings]
    if lost[0] == lost[1] == int(text.isna().sum()) and not readings[0].equals(readings[1]):
        raise InputError(
            f"{table.where(0, name)}: expected dates that can be read in one way, found {text.iloc[0]!r} "
            "and no day above 12 in any row (day or month first?); write dates as YYYY-MM-DD"
        )
    return readings[0] if lost[0] <= lost[1] else readings[1]
