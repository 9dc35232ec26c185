"""Tables of any kind to columns: file formats, delimiters, the roles of columns, and the checks of every value.

Each check that fails raises ``InputError`` with the file, the column and the row as the user sees it: the line of a text
file (the header is line 1), the row of any other table (counted from 1).
"""

import csv
import difflib
import gzip
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet
from jaxtyping import Float64, Int64

from tsfm_data.errors import InputError, unknown_name

TIME_NAMES = ("timestamp", "ds", "datetime", "date_time", "date", "time", "period", "month", "week", "day", "year")
ITEM_NAMES = ("item_id", "unique_id", "series_id", "ts_id", "series", "item", "id")
TARGET_NAMES = ("target", "y", "value", "values")
DELIMITERS = (",", ";", "\t", "|")
MISSING = frozenset({"", "na", "n/a", "#n/a", "#na", "nan", "-nan", "null", "none", "<na>", "nat"})
SAMPLE = 1 << 16


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
    with _open(path) as handle:
        for number, line in enumerate(io.TextIOWrapper(handle, "utf-8-sig", errors="replace"), start=1):
            seen += bool(line.strip())
            if seen == row:
                return number
    return row + 2


def _open(path: Path) -> Any:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def read_table(path: Path) -> Table:
    """The table in a CSV (comma, semicolon, tab or |; .gz too), Parquet, Arrow or Feather file.

    Raises:
        InputError: no such file, a folder, an empty or unreadable file, or one that is not a table.
    """
    _check_file(path)
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    try:
        if suffix in (".parquet", ".pq"):
            table = pyarrow.parquet.read_table(path)
        elif suffix in (".arrow", ".feather", ".ipc"):
            table = _read_arrow(path)
        else:
            return Table(_from_arrow(_read_text(path)), str(path), path.name.split(".")[0], path)
    except (pa.ArrowException, OSError, EOFError) as error:
        reason = str(error).splitlines()[0]
        kind = {".pq": "Parquet", ".parquet": "Parquet", ".arrow": "Arrow", ".feather": "Arrow", ".ipc": "Arrow"}
        raise InputError(
            f"{path}: expected a {kind.get(suffix, 'text')} file, found something else ({reason})"
        ) from error
    return Table(_from_arrow(table), str(path), path.name.split(".")[0])


def _check_file(path: Path) -> None:
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if p.is_file())[:3]
        hint = f"; name one of its files, such as {', '.join(inside)}" if inside else ""
        raise InputError(f"{path}: expected a file, found a folder{hint}")
    if not path.exists():
        folder = path.parent
        if not folder.is_dir():
            raise InputError(f"{path}: no such file, nor the folder {folder}")
        names = sorted(p.name for p in folder.iterdir() if p.is_file())
        near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
        raise InputError(f"{path}: no such file" + (f"; near names there: {', '.join(near)}" if near else ""))
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path}: expected a table, found an empty file")
        path.open("rb").close()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def _read_arrow(path: Path) -> pa.Table:
    with path.open("rb") as handle:
        if handle.read(6) in (b"ARROW1", b"FEA1\x00\x00"):
            return pyarrow.feather.read_table(path)
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_stream(source).read_all()


def _from_arrow(table: pa.Table) -> pd.DataFrame:
    names = table.column_names
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InputError(f"expected different column names, found {twice[0]!r} more than once; rename one of them")
    return table.to_pandas(date_as_object=False)


def _read_text(path: Path) -> pa.Table:
    """A delimited text file: numbers and ISO dates as such, everything else as text."""
    with _open(path) as handle:
        sample = handle.read(SAMPLE)
    if sample[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(f"{path}: expected UTF-8 text, found UTF-16; save the file as UTF-8")
    if b"\0" in sample:
        raise InputError(f"{path}: expected a CSV, Parquet or Arrow file, found binary data")
    try:
        head = sample.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if len(sample) == SAMPLE and error.start > SAMPLE - 4:
            head = sample[: error.start].decode("utf-8-sig")  # the sample cuts a character in two
        else:
            number = sample[: error.start].count(b"\n") + 1
            raise InputError(
                f"{path}, row {number}: expected UTF-8 text, found byte 0x{sample[error.start]:02x}; save the file as UTF-8"
            ) from error
    if not head.strip():
        raise InputError(f"{path}: expected a table, found only blank lines")
    lines = [line for line in head.splitlines() if line.strip()]
    delimiter = _delimiter(path, lines)
    header = next(csv.reader(lines[:1], delimiter=delimiter))
    _check_header(path, header)
    parse = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values='"' in head)
    options: dict[str, Any] = {"strings_can_be_null": False}
    with _open(path) as handle:
        data = handle.read()
    try:
        table = pyarrow.csv.read_csv(
            io.BytesIO(data), parse_options=parse, convert_options=pyarrow.csv.ConvertOptions(**options)
        )
    except pa.ArrowInvalid as error:
        if "CSV conversion" not in str(error) and "conversion error" not in str(error):
            raise _wrong_width(path, data, delimiter, len(header), error) from error
        options["column_types"] = {name: pa.string() for name in header}  # a late value of another type: we look for it
        table = pyarrow.csv.read_csv(
            io.BytesIO(data), parse_options=parse, convert_options=pyarrow.csv.ConvertOptions(**options)
        )
    names = [name.strip() for name in table.column_names]
    table = table.rename_columns(names)
    if names and names[0] == "" and pa.types.is_integer(table.schema.types[0]):
        table = table.remove_column(0)  # the row numbers that DataFrame.to_csv writes
    return table


def _delimiter(path: Path, lines: list[str]) -> str:
    """The delimiter that splits the header into most columns."""
    header = lines[0]
    counts = {mark: len(next(csv.reader([header], delimiter=mark))) for mark in DELIMITERS}
    best = max(counts, key=lambda mark: counts[mark])
    if counts[best] == 1:
        raise InputError(
            f"{path}, row 1: expected a time column and at least one value column, separated by comma, semicolon, tab or |, "
            f"found the single column {header.strip()[:60]!r}"
        )
    return best


def _check_header(path: Path, header: list[str]) -> None:
    def is_value(cell: str) -> bool:
        try:
            float(cell)
        except ValueError:
            return len(cell) >= 8 and cell[:4].isdigit() and pd.notna(pd.to_datetime(cell, errors="coerce"))
        return True

    if all(is_value(cell.strip()) for cell in header):
        raise InputError(
            f"{path}, row 1: expected a header with the names of the columns, found values ({', '.join(header)[:60]}); "
            "put a line such as date,target above them"
        )
    names = [name.strip() for name in header]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InputError(f"{path}, row 1: expected different column names, found {twice[0]!r} more than once")


def _wrong_width(path: Path, data: bytes, delimiter: str, width: int, error: Exception) -> InputError:
    """The first row that has another number of fields than the header."""
    lines = io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", errors="replace", newline="")
    reader = csv.reader(lines, delimiter=delimiter)
    for row in reader:
        if row and len(row) != width:
            shown = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "|"}[delimiter]
            return InputError(
                f"{path}, row {reader.line_num}: expected {width} fields separated by {shown}, as in the header, "
                f"found {len(row)}; quote values that contain the separator, or check that the file is whole"
            )
    return InputError(f"{path}: expected delimited text, found something else ({str(error).splitlines()[0]})")


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
            f"{table.source}: expected a column named target, y or value, found {', '.join(free)[:200]}; name it with target"
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
            f"{table.where(int(row), columns[i])}: expected a finite number, found {result[row, i]}; leave the cell empty where "
            "the value is not known"
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
