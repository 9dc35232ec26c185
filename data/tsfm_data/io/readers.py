"""Files to tables: CSV with any usual delimiter, Parquet, Arrow and Feather; each recognised or refused in one line."""

import csv
import difflib
import io
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet

from tsfm_data.errors import InputError
from tsfm_data.io.columns import ITEM_NAMES, Table, open_bytes

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "|"}
SAMPLE = 1 << 16


def read_table(path: Path, item_column: str | None = None) -> Table:
    """The table in a CSV (comma, semicolon, tab or |; .gz too), Parquet, Arrow or Feather file.

    Args:
        path: the file.
        item_column: a column that is text whatever its cells look like, as those with the usual names of ids are.

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
            return Table(_from_arrow(_read_text(path, item_column), path), str(path), path.name.split(".")[0], path)
    except (pa.ArrowException, OSError, EOFError) as error:
        reason = str(error).splitlines()[0]
        kind = {
            ".pq": "a Parquet",
            ".parquet": "a Parquet",
            ".arrow": "an Arrow",
            ".feather": "an Arrow",
            ".ipc": "an Arrow",
        }
        raise InputError(
            f"{path}: expected {kind.get(suffix, 'a text')} file, found something else ({reason})"
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


def _read_text(path: Path, item_column: str | None) -> pa.Table:
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
    with open_bytes(path) as handle:
        data = handle.read()
    table = _parse(path, data, delimiter, header, item_column)
    table = table.rename_columns([name.strip() for name in table.column_names])
    if table.column_names[0] == "" and pa.types.is_integer(table.schema.types[0]):
        table = table.remove_column(0)  # the row numbers that DataFrame.to_csv writes
    return table


def _parse(path: Path, data: bytes, delimiter: str, header: list[str], item_column: str | None) -> pa.Table:
    """The columns with the types that their cells show; as text where cells differ, so that we find the odd one."""
    options = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=b'"' in data)
    ids = {name for name in header if name.strip() == item_column or name.strip().lower() in ITEM_NAMES}
    types = dict.fromkeys(ids, pa.string())  # "007" is not 7

    def read() -> pa.Table:
        convert = pyarrow.csv.ConvertOptions(column_types=types)
        return pyarrow.csv.read_csv(io.BytesIO(data), parse_options=options, convert_options=convert)

    try:
        table = read()
    except pa.ArrowInvalid as error:
        if "conversion error" not in str(error):
            raise _wrong_width(path, data, delimiter, len(header), error) from error
        types = dict.fromkeys(header, pa.string())
        table = read()
    zoned = [f.name for f in table.schema if pa.types.is_timestamp(f.type) and f.type.tz is not None]
    if zoned:  # Arrow keeps the instant alone; the local time tells whether the data are daily
        types |= dict.fromkeys(zoned, pa.string())
        table = read()
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
    lines = io.StringIO(data.decode("utf-8-sig", errors="replace"), newline="")
    reader = csv.reader(lines, delimiter=delimiter)
    for row in reader:
        if row and len(row) != width:
            return InputError(
                f"{path}, row {reader.line_num}: expected {width} fields separated by {DELIMITERS[delimiter]}, "
                f"as in the header, found {len(row)}; quote values that contain the separator, "
                "or check that the file is whole"
            )
    return InputError(f"{path}: expected delimited text, found something else ({str(error).splitlines()[0]})")
