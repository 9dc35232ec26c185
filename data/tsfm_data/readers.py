"""Files to tables: CSV with any usual delimiter, Parquet, Arrow and Feather; each recognised or refused in one line."""

import csv
import difflib
import io
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet

from tsfm_data.errors import InputError
from tsfm_data.table import Table, open_bytes

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "|"}
SAMPLE = 1 << 16


def read_table(path: Path) -> Table:
    """The table in a CSV (comma, semicolon, tab or |; .gz too), Parquet, Arrow or Feather file.

    Raises:
        InputError: no such file, a folder, an empty or unreadable file, or one that is not a table.
    """
    _check_file(path)
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    try:
        if suffix in (".parquet", ".pq"):
            frame = _from_arrow(pyarrow.parquet.read_table(path), path)
        elif suffix in (".arrow", ".feather", ".ipc"):
            frame = _from_arrow(_read_arrow(path), path)
        else:
            return Table(_from_arrow(_read_text(path), path), str(path), path.name.split(".")[0], path)
    except (pa.ArrowException, OSError, EOFError) as error:
        reason = str(error).splitlines()[0]
        kind = {".pq": "Parquet", ".parquet": "Parquet", ".arrow": "Arrow", ".feather": "Arrow", ".ipc": "Arrow"}
        raise InputError(
            f"{path}: expected a {kind.get(suffix, 'text')} file, found something else ({reason})"
        ) from error
    return Table(frame, str(path), path.name.split(".")[0])


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


def _from_arrow(table: pa.Table, path: Path) -> pd.DataFrame:
    names = table.column_names
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InputError(
            f"{path}: expected different column names, found {twice[0]!r} more than once; rename one of them"
        )
    return table.to_pandas(date_as_object=False)


def _read_text(path: Path) -> pa.Table:
    """A delimited text file: numbers and ISO dates as such, everything else as text."""
    with open_bytes(path) as handle:
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
                f"{path}, row {number}: expected UTF-8 text, found byte 0x{sample[error.start]:02x}; "
                "save the file as UTF-8"
            ) from error
    if not head.strip():
        raise InputError(f"{path}: expected a table, found only blank lines")
    lines = [line for line in head.splitlines() if line.strip()]
    delimiter = _delimiter(path, lines)
    header = next(csv.reader(lines[:1], delimiter=delimiter))
    _check_header(path, header)
    parse = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values='"' in head)
    options: dict[str, Any] = {"strings_can_be_null": False}
    with open_bytes(path) as handle:
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
            f"{path}, row 1: expected a time column and at least one value column, separated by comma, semicolon, "
            f"tab or |, found the single column {header.strip()[:60]!r}"
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
            return InputError(
                f"{path}, row {reader.line_num}: expected {width} fields separated by {DELIMITERS[delimiter]}, "
                f"as in the header, found {len(row)}; quote values that contain the separator, or check that the file is whole"
            )
    return InputError(f"{path}: expected delimited text, found something else ({str(error).splitlines()[0]})")
