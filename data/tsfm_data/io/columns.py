"""A table as read, and the checks of every value in it.

Each check that fails raises ``InputError`` with the file, the column and the row as the user sees it: the line of a
text file (the header is line 1), the row of any other table (counted from 1).
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Int64

from tsfm_data.errors import InputError
from tsfm_data.io import numerals

ITEM_NAMES = ("item_id", "unique_id", "series_id", "ts_id", "series", "item", "id")
CATEGORIES = 30  # most categories of a covariate; each becomes a column
YES = ("yes", "true", "on", "y", "t", "ja", "oui", "si", "sí", "1", "open", "high")


@dataclass(frozen=True)
class Table:
    """A table as read, with the facts that messages need.

    Attributes:
        frame: the columns, in file order.
        source: name of the table in messages, such as its file.
        name: short name, the stem of the file.
        text: the delimited text that it was read from, starting at the header, or its file, which then starts with the
            header; None for other tables.
        delimiter: separator of the fields of the text.
        header: line of the header in a text file or sheet; 0 for other tables, whose rows are counted from 1.
        notes: how it was read, if that is not obvious.
        later: a second table, whose rows follow those of the first in ``frame``.
        decimal: decimal mark of numbers in text, if the user gave one.
        first: number of rows left out at the beginning.
        rows: place of each row in the whole table, if ``frame`` is a part of it.
    """

    frame: pd.DataFrame
    source: str
    name: str
    text: bytes | Path | None = None
    delimiter: str | None = None
    header: int = 0
    notes: tuple[str, ...] = ()
    later: "Table | None" = None
    decimal: str | None = None
    first: int = 0
    rows: Int64[np.ndarray, " rows"] | None = None

    def where(self, row: int | None = None, column: str | None = None) -> str:
        """The place of an error as the user sees it; ``row`` counts from 0 in ``frame``."""
        if row is not None and self.later is not None:
            own = len(self.frame) - len(self.later.frame)
            if row >= own:
                return self.later.where(row - own, column)
        parts = [self.source]
        if column is not None:
            parts.append(f"column {column!r}")
        if row is not None:
            row = self.first + (row if self.rows is None else int(self.rows[row]))
            parts.append(f"row {self.header + (row + 1 if self.text is None else _line(self.text, row))}")
        return ", ".join(parts)


def _line(text: bytes | Path, row: int) -> int:
    """Line of data row ``row``, counted from the header; blank lines contain no row."""
    seen = -2
    with io.BytesIO(text) if isinstance(text, bytes) else text.open("rb") as lines:
        for number, line in enumerate(lines):
            seen += bool(line.strip())
            if seen == row:
                return number
    return row + 1


def numbers(
    table: Table, columns: Sequence[str], need_values: bool = True, wrong: dict[int, str] | None = None
) -> Float64[np.ndarray, "rows columns"]:
    """Columns as numbers, NaN where missing.

    Args:
        table: where they are.
        columns: their names.
        need_values: whether a column without any value is an error.
        wrong: receives error messages by row, and the values become missing; None raises instead.

    Raises:
        InputError: text in a column, an infinite value, or a column without any value.
    """
    result = np.empty((len(table.frame), len(columns)))
    for i, name in enumerate(columns):
        result[:, i] = _number(table, name, wrong)
    check_finite(table, columns, result, wrong)
    if need_values and len(result):
        check_values(table, columns, np.all(np.isnan(result), axis=0))
    return result


def check_finite(
    table: Table, columns: Sequence[str], result: Float64[np.ndarray, "rows columns"], wrong: dict[int, str] | None
) -> None:
    """Make infinite values missing.

    Args:
        table: where the columns are.
        columns: their names.
        result: their values.
        wrong: receives error messages by row; None raises instead.

    Raises:
        InputError: an infinite value.
    """
    infinite = np.isinf(result)
    if infinite.any():
        for row, i in np.argwhere(infinite)[: None if wrong is not None else 1].tolist():
            text = (
                f"{table.where(row, columns[i])}: expected a finite number, found {result[row, i]}; leave the cell "
                "empty if the value is missing"
            )
            if wrong is None:
                raise InputError(text)
            wrong.setdefault(row, text)
        result[infinite] = np.nan


def check_values(table: Table, columns: Sequence[str], empty: Bool[np.ndarray, " columns"]) -> None:
    """Check that no column is empty.

    Raises:
        InputError: one is.
    """
    if empty.any():
        others = "" if len(columns) == 1 else ": name the others with target (--target), or give --on-bad-series skip"
        raise InputError(
            f"{table.where(None, columns[int(empty.argmax())])}: expected numbers, found no value in any row; "
            f"leave the column out{others}"
        )


def _number(table: Table, name: str, every: dict[int, str] | None = None) -> Float64[np.ndarray, " rows"]:
    column = table.frame[name]
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.cat.categories.dtype)
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_complex_dtype(column):
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    if pd.api.types.is_datetime64_any_dtype(column):
        raise InputError(
            f"{table.where(0, name)}: expected numbers, found dates; name the time column with time_column "
            "(--time-column)"
        )
    text = column.astype("string").str.strip()
    missing = numerals.missing_cells(text)
    text = text.mask(missing)
    values = _parsed(table, text, missing)
    for row in np.flatnonzero(np.isnan(values) & ~missing).tolist():
        cell = str(text.iloc[row])[:40]
        advice = (
            "correct the cell, leave it empty if the value is missing, or name the value columns with target (--target)"
        )
        if re.fullmatch(r"[+-]?\d*,\d+", cell):
            advice = "write decimals with a point, as in other cells"
        message = f"{table.where(row, name)}: expected a number, found {cell!r}; {advice}"
        if every is None:
            raise InputError(message)
        every.setdefault(row, message)
    return values


def _parsed(table: Table, text: pd.Series, missing: np.ndarray) -> Float64[np.ndarray, " rows"]:
    """Stripped text as numbers, NaN if missing or invalid. The decimal mark is inferred from the column, then from
    other columns, then from the delimiter of the file: with semicolons, it is usually a comma."""
    plain = numerals.plain(text)
    if table.decimal is None and not plain.str.contains(",", regex=False).fillna(False).any():
        values = numerals.floats(plain)
        doubt = table.delimiter == ";" or plain.str.fullmatch(r"[+-]?\d{1,3}\.\d{3}").any()
        if (np.isnan(values) == missing).all() and not doubt:
            return values
    return numerals.parse(plain, table.decimal or numerals.decimal_mark([plain]) or usual_mark(table))


def usual_mark(table: Table) -> str:
    """The decimal mark of all text columns of a table; if they do not show it, the usual one for its delimiter."""
    if table.decimal is not None:
        return table.decimal
    texts = [c for c in table.frame.columns if table.frame[c].dtype == object]
    cells = [numerals.plain(table.frame[c].dropna().astype("string").str.strip()) for c in texts]
    return numerals.decimal_mark(cells) or ("," if table.delimiter == ";" else ".")


def doubtful(table: Table, columns: Sequence[str]) -> list[str]:
    """Notes about columns whose point or comma may mark decimals or thousands: every number has three digits after it,
    the delimiter is no comma, and no other text column shows the decimal mark."""
    notes = []
    for name in columns if table.delimiter in (";", "\t", "|") and table.decimal is None else ():
        column = table.frame[name]
        if pd.api.types.is_float_dtype(column):
            known = column.dropna().to_numpy()
            known = known[known != np.floor(known)]
            three = len(known) and (np.abs(known * 1000 - np.round(known * 1000)) < 1e-6).all() and known.max() < 1000
            if not three or (np.abs(known * 100 - np.round(known * 100)) < 1e-6).mean() > 0.5:
                continue
            mark, shown = ".", f"{known[0]:.3f}"
        elif column.dtype == object:
            cells = numerals.plain(column.dropna().astype("string").str.strip())
            if not cells.str.fullmatch(r"[+-]?\d{1,3}[.,]\d{3}").any() or numerals.decimal_mark([cells]) is not None:
                continue
            mark, shown = usual_mark(table), str(cells.iloc[0])
        else:
            continue
        other = "," if mark == "." else "."
        role = "as decimals" if mark in shown else "as thousands"
        notes.append(
            f"column {name!r}: the last three digits of {shown} are read {role}; if this is wrong, give decimal "
            f"(--decimal {other})"
        )
    return notes


def is_numeric(table: Table, name: str, share: float = 0.0) -> bool:
    """Whether more than a share of the non-missing values of a column are numbers."""
    column = table.frame[name]
    if pd.api.types.is_numeric_dtype(column):
        return True
    if pd.api.types.is_datetime64_any_dtype(column):
        return False
    if isinstance(column.dtype, pd.CategoricalDtype):
        return pd.api.types.is_numeric_dtype(column.cat.categories)
    text = column.astype("string").str.strip()
    missing = numerals.missing_cells(text)
    if missing.all():
        return True
    values = _parsed(table, text.mask(missing), missing)
    return bool(np.isfinite(values[~missing]).mean() > share)


def encoded(
    table: Table, columns: Sequence[str], need_values: bool = True
) -> tuple[Float64[np.ndarray, "rows C"], tuple[str, ...]]:
    """Covariates as numbers, and their names. Two categories become 0 and 1; more give a column each, "column=word".

    ``need_values`` is that of ``numbers``.

    Raises:
        InputError: an infinite value, or too many categories.
    """
    blocks: list[np.ndarray] = []
    names: list[str] = []
    for name in columns:
        if is_numeric(table, name, 0.5):
            blocks.append(numbers(table, (name,), need_values)[:, 0])
            names.append(name)
            continue
        text = table.frame[name].astype("string").str.strip()
        missing = numerals.missing_cells(text)
        words = sorted(text[~missing].unique(), key=lambda word: (word.lower() in YES, word))
        if len(words) > CATEGORIES:
            raise InputError(
                f"{table.where(None, name)}: expected numbers or at most {CATEGORIES} categories in a covariate, "
                f"found {len(words)}; leave it out"
            )
        for word in words[1:] if len(words) == 2 else words:
            blocks.append(np.where(missing, np.nan, (text == word).fillna(False).to_numpy(dtype=np.float64)))
            names.append(name if len(words) == 2 else f"{name}={word}")
    rows = len(table.frame)
    return (np.stack(blocks, axis=1) if blocks else np.zeros((rows, 0))), tuple(names)


def item_codes(table: Table, name: str) -> tuple[Int64[np.ndarray, " rows"], pd.Series]:
    """Number of the series of each row, in order of first appearance, and the ids with the type that they have there.

    Raises:
        InputError: a row has no id.
    """
    column = table.frame[name]
    codes, values = pd.factorize(column)
    lost = np.flatnonzero(codes < 0)
    if len(lost):
        raise InputError(
            f"{table.where(int(lost[0]), name)}: expected the id of a series, found an empty cell; "
            "fill it in, or drop the row"
        )
    return codes.astype(np.int64), pd.Series(values, name=name)
