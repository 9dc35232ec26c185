"""Files from outside: unpacked in bounded size, read inside a guard, and turned into columns of plain types.

A library that reads a damaged file may raise anything, and Arrow may end the process. Code behind this module never
meets such a file: it gets text, or a table of numbers, dates, text or categories whose buffers are checked.
"""

import contextlib
import gzip
import importlib.util
import json
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute
import pyarrow.feather
import pyarrow.parquet

from tsfm_data.errors import InputError, reason_of
from tsfm_data.io.columns import ITEM_NAMES
from tsfm_data.io.memory import free_memory, release_memory

KINDS = {".pq": "a Parquet", ".parquet": "a Parquet", ".arrow": "an Arrow", ".feather": "an Arrow", ".ipc": "an Arrow"}
BLOCK = 1 << 20  # bytes that are unpacked at a time
MOST_RATIO = 100  # of the unpacked size to that of the file; files that unpack to less than ALWAYS_FITS may exceed it
ALWAYS_FITS = 64 << 20  # bytes
MEMORY_RATIO = 4  # of the memory of a table to that of its text
NUMBER_BYTES = 8
NULLABLE = {
    str(dtype): dtype
    for dtype in (
        *(pd.api.types.pandas_dtype(f"{sign}Int{bits}") for sign in ("", "U") for bits in (8, 16, 32, 64)),
        *(pd.api.types.pandas_dtype(name) for name in ("Float32", "Float64", "boolean", "string")),
    )
}  # types of pandas that Arrow does not know
OTHER = {"halffloat": pa.float32(), "string_view": pa.string()}


@contextlib.contextmanager
def guarded(source: str, kind: str) -> Iterator[None]:
    """Turn whatever a library raises about a foreign file into one line.

    Args:
        source: name of the file in the message.
        kind: what it should be, such as "a Parquet".

    Raises:
        InputError: the block raised an error. A ``MemoryError`` is passed on.
    """
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        raise InputError(f"{source}: expected {kind} file, found something else ({reason_of(error)})") from error


def read_bytes(path: Path) -> bytes:
    """The content of a text file, unpacked if its name ends in .gz.

    Raises:
        InputError: it is no gzip file, or unpacks to more than fits.
    """
    if path.suffix != ".gz":
        return path.read_bytes()
    parts, size = [], 0
    with guarded(str(path), "a text"), gzip.open(path) as file:
        while part := file.read(BLOCK):
            parts.append(part)
            size += len(part)
            check_unpacked(path, size)
    return b"".join(parts)


def check_unpacked(path: Path, size: int) -> None:
    """Check that a packed file does not unpack to more than fits.

    Raises:
        InputError: it does.
    """
    packed = path.stat().st_size
    most = max(MOST_RATIO * packed, ALWAYS_FITS)
    if size > ALWAYS_FITS // 4:  # finding out what is free takes a millisecond
        most = min(most, free_memory() // MEMORY_RATIO)
    if size > most:
        raise InputError(
            f"{path}: expected a table of at most {most >> 20:,} MiB, found {packed:,} packed bytes that unpack to "
            "more: unpack it, check it, and save it as Parquet"
        )


def read_sheets(path: Path) -> dict[str, list[list[Any]]]:
    """The rows of each sheet of an Excel workbook, without the empty cells at their ends.

    Raises:
        InputError: it is no workbook, or unpacks to more than fits, or openpyxl is not installed.
    """
    if importlib.util.find_spec("openpyxl") is None:
        raise InputError(
            f"{path}: Excel needs openpyxl, which is not installed: pip install 'tsfm-suite[excel]', or save as CSV"
        )
    import openpyxl

    sheets = {}
    with guarded(str(path), "an Excel"), warnings.catch_warnings(action="ignore"):
        with zipfile.ZipFile(path) as archive:
            check_unpacked(path, sum(member.file_size for member in archive.infolist()))
        with contextlib.closing(openpyxl.load_workbook(path, read_only=True, data_only=True)) as book:
            for sheet in book.worksheets:
                sheet.reset_dimensions()  # else every row has the width that the file claims
                sheets[sheet.title] = [_without_empty_end(row) for row in sheet.iter_rows(values_only=True)]
    return sheets


def _without_empty_end(row: Sequence[Any]) -> list[Any]:
    """The cells of a row up to the last one that is filled."""
    cells = list(row)
    while cells and cells[-1] is None:
        cells.pop()
    return cells


def read_columns(path: Path, suffix: str) -> pa.Table:
    """The table of a Parquet, Arrow or Feather file, with all its buffers checked.

    Raises:
        InputError: it is none, is damaged, or does not fit into memory.
    """
    with guarded(str(path), KINDS[suffix]):
        if suffix in (".parquet", ".pq"):
            file = pyarrow.parquet.ParquetFile(path)
            cells = file.metadata.num_rows * file.metadata.num_columns
            if cells * NUMBER_BYTES > free_memory():
                raise InputError(
                    f"{path}: expected a table that fits into memory, found {file.metadata.num_rows:,} rows of "
                    f"{file.metadata.num_columns:,} columns: leave columns out, or split it"
                )
            table = file.read()
            del file  # the metadata of many columns take more memory than their values
            release_memory()
        else:
            table = _read_arrow(path)
        table.validate(full=True)
        return table


def _read_arrow(path: Path) -> pa.Table:
    with path.open("rb") as handle:
        start = handle.read(6)
    if start == b"FEA1\x00\x00":
        return pyarrow.feather.read_table(path)
    with pa.memory_map(str(path)) as source:
        if start == b"ARROW1":
            return pa.ipc.open_file(source).read_all()
        table = pa.ipc.open_stream(source).read_all()
        if source.tell() < source.size():
            raise InputError(
                f"{path}: expected one Arrow stream, found {source.size() - source.tell():,} bytes after its end: "
                "write the tables into one stream"
            )
        return table


def to_frame(table: pa.Table, source: str, kind: str) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """A checked table as columns of plain types, and notes about those left out.

    Lists, records, and bytes that are no text are left out. Of what pandas wrote about its index and types, only names
    of columns and types of ``NULLABLE`` are used.

    Args:
        table: the table.
        source: its name in messages.
        kind: what its file should be, such as "a Parquet".

    Raises:
        InputError: two columns with one name, or a time zone that does not exist.
    """
    with guarded(source, kind):
        twice = [name for name, count in Counter(table.column_names).items() if count > 1]
        if twice:
            raise InputError(
                f"{source}: expected different column names, found {twice[0]!r} more than once; rename one of them"
            )
        table, nullable = _without_notes(table)
        pairs = zip(table.column_names, table.columns, strict=True)
        columns = {name: _plain(column, f"{source}, column {name!r}") for name, column in pairs}
        left = [name for name, column in columns.items() if column is None]
        notes = (f"columns of lists, records or bytes left out: {', '.join(left)}",) if left else ()
        plain = {name: column for name, column in columns.items() if column is not None}
        if not nullable:
            return pa.table(plain).to_pandas(date_as_object=False), notes
        frames = {n: nullable[n].__from_arrow__(c) if n in nullable else _series(c) for n, c in plain.items()}
        return pd.DataFrame(frames), notes


def _series(column: pa.ChunkedArray) -> pd.Series:
    return column.to_pandas(date_as_object=False)


def _without_notes(table: pa.Table) -> tuple[pa.Table, dict[str, Any]]:
    """The table without what pandas wrote about it and without an index of numbers, and the columns with a type of
    ``NULLABLE``. Dates and ids in the index become columns."""
    text = (table.schema.metadata or {}).get(b"pandas")
    table = table.replace_schema_metadata(None)
    try:
        notes = json.loads(text or b"{}")
        index = [name for name in notes.get("index_columns", ()) if name in table.column_names]
        types = {note["field_name"]: NULLABLE.get(note["numpy_type"]) for note in notes.get("columns", ())}
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
        return table, {}  # not written by pandas
    dropped, names = [], {name: name for name in table.column_names}
    for name in index:
        kind, unnamed = table.schema.field(name).type, name.startswith("__index_level_")
        number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
        if unnamed and (pa.types.is_timestamp(kind) or pa.types.is_date(kind)) and "timestamp" not in names:
            names[name] = "timestamp"
        elif unnamed or (number and len(index) == 1 and name.lower() not in ITEM_NAMES):
            dropped.append(name)
    table = table.rename_columns([*names.values()]).drop_columns(dropped)
    kept = [f for f in table.schema if types.get(f.name) is not None and _suits(f.type, str(types[f.name]))]
    return table, {field.name: types[field.name] for field in kept}


def _suits(kind: pa.DataType, name: str) -> bool:
    """Whether a column of Arrow may have a type of ``NULLABLE``."""
    if name == "string":
        return pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if name == "boolean":
        return pa.types.is_boolean(kind)
    return pa.types.is_integer(kind) if "Int" in name else pa.types.is_floating(kind)


def _plain(column: pa.ChunkedArray, where: str) -> pa.ChunkedArray | None:
    """A column as numbers, dates, times, text or categories; None for lists, records, and bytes that are no text."""
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        if kind.extension_name == "pandas.period":
            return column
        if kind.extension_name == "arrow.uuid":
            return pa.chunked_array([[value and str(value) for value in column.to_pylist()]], pa.string())
        return _plain(pa.chunked_array([chunk.storage for chunk in column.chunks], kind.storage_type), where)
    if pa.types.is_dictionary(kind):
        column = column.unify_dictionaries()
        words = column.chunk(0).dictionary if column.num_chunks else None
        if words is None or not (words.null_count or len(words.unique()) < len(words) or words.type != pa.string()):
            return column
        return _plain(pa.chunked_array([chunk.dictionary_decode() for chunk in column.chunks]), where)
    if pa.types.is_run_end_encoded(kind):
        return _plain(pa.chunked_array(map(pa.compute.run_end_decode, column.chunks), kind.value_type), where)
    if pa.types.is_nested(kind) or pa.types.is_interval(kind):
        return None
    if pa.types.is_fixed_size_binary(kind) or pa.types.is_binary_view(kind):
        column = column.cast(pa.binary())
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        try:
            return column.cast(pa.string())
        except pa.ArrowInvalid:
            return None
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        _check_zone(kind.tz, where)
    other = OTHER.get(str(kind))
    return column if other is None else column.cast(other)


def _check_zone(name: str, where: str) -> None:
    try:
        pa.lib.string_to_tzinfo(name)
    except Exception as error:
        raise InputError(f"{where}: expected a time zone, found {name!r}, which is none: convert it to UTC") from error
