"""What the columns of a table are for, and the checks of every value in them.

Each check that fails raises ``InputError`` with the file, the column and the row as the user sees it: the line of a
text file (the header is line 1), the row of any other table (counted from 1).
"""

import gzip
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64

from tsfm_data.errors import InputError, unknown_name

TIME_NAMES = ("timestamp", "ds", "datetime", "date_time", "date", "time", "period", "month", "week", "day", "year")
ITEM_NAMES = ("item_id", "unique_id", "series_id", "ts_id", "series", "item", "id")
TARGET_NAMES = ("target", "y", "value", "values")
MISSING = frozenset({"", "na", "n/a", "#n/a", "#na", "nan", "-nan", "null", "none", "<na>", "nat"})


@dataclass(frozen=True)
class Table:
    """A table as read, with what messages need.

    Attributes:
        frame: the columns, in file order.
        source: file or other name of the table.
        name: short name, the stem of the file.
        text: path of the delimited text file it came from, None for other tables.
    """

    frame: pd.DataFrame
    source: str
    name: str
    text: Path | None = None

    def where(self, row: int | None = None, column: str | None = None) -> str:
        """The place of a mistake: ``row`` counts from 0 in the frame, the result as the user sees it."""
        parts = [self.source]
        if column is not None:
            parts.append(f"column {column!r}")
        if row is not None:
            parts.append(f"row {_line(self.text, row) if self.text else row + 1}")
        return ", ".join(parts)


@dataclass(frozen=True)
class Roles:
    """Names of the columns by what they are for; ``item`` is None in a wide table."""

    time: str
    item: str | None
    target: tuple[str, ...]
    past: tuple[str, ...]
    known: tuple[str, ...]


def _line(path: Path, row: int) -> int:
    """Line of a text file that holds data row ``row``: blank lines hold none."""
    seen = -2
    with open_bytes(path) as handle, io.TextIOWrapper(handle, "utf-8-sig", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            seen += bool(line.strip())
            if seen == row:
                return number
    return row + 2


def open_bytes(path: Path) -> gzip.GzipFile | io.BufferedReader:
    """The bytes of a file, unpacked where its name ends in .gz."""
    return gzip.GzipFile(path, "rb") if path.suffix == ".gz" else path.open("rb")


def find_roles(
    table: Table,
    *,
    time_column: str | None,
    item_column: str | None,
    target: str | Sequence[str] | None,
    past: Sequence[str],
    known: Sequence[str],
) -> Roles:
    """Which column is what: as named, else by the usual names.

    Raises:
        InputError: a named column is absent, or a role cannot be told.
    """
    columns = [str(name) for name in table.frame.columns]
    named = [n for n in (time_column, item_column, *past, *known) if n is not None]
    targets = () if target is None else (target,) if isinstance(target, str) else tuple(target)
    for name in (*named, *targets):
        if name not in columns:
            raise InputError(f"{table.source}: {unknown_name('column', name, columns)}")
    both = [n for n in (*named, *targets) if (*named, *targets).count(n) > 1]
    if both:
        raise InputError(f"{table.source}: expected one role a column, found column {both[0]!r} named for two")
    time = time_column or _find_time(table, [c for c in columns if c not in (*named, *targets)])
    free = [c for c in columns if c != time and c not in named and c not in targets]
    item = item_column or _by_name(free, ITEM_NAMES)
    free = [c for c in free if c != item]
    if not targets:
        targets = _find_target(table, free, item is not None)
    return Roles(time, item, targets, tuple(past), tuple(known))


def _by_name(columns: list[str], names: Sequence[str]) -> str | None:
    folded = {column.strip().lower(): column for column in reversed(columns)}
    return next((folded[name] for name in names if name in folded), None)


def _find_time(table: Table, columns: list[str]) -> str:
    found = _by_name(columns, TIME_NAMES)
    if found is None:
        dates = [c for c in columns if pd.api.types.is_datetime64_any_dtype(table.frame[c])]
        found = dates[0] if len(dates) == 1 else None
    if found is None:
        shown = ", ".join(columns[:8]) + (", ..." if len(columns) > 8 else "")
        raise InputError(
            f"{table.source}: expected a time column (such as timestamp, date or ds), found columns {shown}; "
            "name it with time_column"
        )
    return found


def _find_target(table: Table, free: list[str], long: bool) -> tuple[str, ...]:
    if not free:
        raise InputError(f"{table.source}: expected a column of values, found none beside time and item")
    if not long:
        return tuple(free)
    found = _by_name(free, TARGET_NAMES)
    if found is None:
        numeric = [c for c in free if pd.api.types.is_numeric_dtype(table.frame[c])]
        if len(numeric) == 1:
            return (numeric[0],)
        raise InputError(
            f"{table.source}: expected a column named target, y or value, found {', '.join(free)[:200]}; "
            "name it with target"
        )
    return (found,)


def numbers(table: Table, columns: Sequence[str], need_values: bool = True) -> Float64[np.ndarray, "rows columns"]:
    """Columns as numbers, NaN where missing.

    Args:
        table: where they are.
        columns: their names.
        need_values: whether a column without any value is a mistake.

    Raises:
        InputError: text in a column, an infinite value, or a column without any value.
    """
    result = np.empty((len(table.frame), len(columns)))
    for i, name in enumerate(columns):
        result[:, i] = _number(table, name)
    infinite = np.isinf(result)
    if infinite.any():
        row, i = np.argwhere(infinite)[0]
        raise InputError(
            f"{table.where(int(row), columns[i])}: expected a finite number, found {result[row, i]}; leave the cell "
            "empty where the value is not known"
        )
    if need_values and len(result):
        empty = np.flatnonzero(np.isnan(result).all(axis=0))
        if len(empty):
            raise InputError(
                f"{table.where(None, columns[empty[0]])}: expected numbers, found no value in any row; leave it out"
            )
    return result


def _number(table: Table, name: str) -> Float64[np.ndarray, " rows"]:
    column = table.frame[name]
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.cat.categories.dtype)
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_complex_dtype(column):
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    if pd.api.types.is_datetime64_any_dtype(column):
        raise InputError(
            f"{table.where(0, name)}: expected numbers, found dates; name the time column with time_column"
        )
    text = column.astype("string").str.strip()
    missing = (text.isna() | text.str.lower().isin(MISSING)).to_numpy(dtype=bool)
    values = pd.to_numeric(text.mask(missing), errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    wrong = np.flatnonzero(np.isnan(values) & ~missing)
    if len(wrong):
        found = str(text.iloc[wrong[0]])
        raise InputError(
            f"{table.where(int(wrong[0]), name)}: expected a number, found {found[:40]!r}; {_advice(found)}"
        )
    return values


def _advice(found: str) -> str:
    plain = found.replace(" ", "").replace("\u00a0", "")
    if plain.count(",") == 1 and _is_number(plain.replace(".", "").replace(",", ".")):
        return "write decimals with a point, not a comma"
    if _is_number(plain.replace(",", "")):
        return "write numbers without thousands separators"
    return "correct the cell, leave it empty if the value is missing, or name the value columns with target"


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def item_codes(table: Table, name: str) -> tuple[Int64[np.ndarray, " rows"], tuple[str, ...]]:
    """Series of each row, counted in order of first appearance, and their names.

    Raises:
        InputError: a row names no series.
    """
    column = table.frame[name]
    codes, values = pd.factorize(column)
    lost = np.flatnonzero(codes < 0)
    if len(lost):
        raise InputError(f"{table.where(int(lost[0]), name)}: expected the name of a series, found an empty cell")
    return codes.astype(np.int64), tuple(str(value) for value in values)
