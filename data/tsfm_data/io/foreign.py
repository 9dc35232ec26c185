"""Files of others: unpacked in bounded size, read inside a guard, and turned into columns of plain types.

A library that reads a damaged file may raise anything, and Arrow may end the process. Nothing behind this module meets
such a file: it gets text, or a table whose buffers are checked and whose columns are numbers, dates, text or categories.
"""

import contextlib
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute
import pyarrow.feather
import pyarrow.parquet

from tsfm_data.errors import InputError
from tsfm_data.io.memory import free_memory

KINDS = {".pq": "a Parquet", ".parquet": "a Parquet", ".arrow": "an Arrow", ".feather": "an Arrow", ".ipc": "an Arrow"}
BLOCK = 1 << 20  # bytes that are unpacked at a time
RATIO, ALWAYS = 100, 64 << 20  # a file may unpack to so many times its size, and always to so many bytes
SHARE = 4  # a table takes several times the memory of its text, so text may have this part of what is free
WIDTH = 8  # bytes of a number
NULLABLE = {
    str(dtype): dtype
    for dtype in (
        *(pd.api.types.pandas_dtype(f"{sign}Int{bits}") for sign in ("", "U") for bits in (8, 16, 32, 64)),
        *(pd.api.types.pandas_dtype(name) for name in ("Float32", "Float64", "boolean", "string")),
    )
}  # types of pandas that Arrow does not know


@contextlib.contextmanager
def guarded(source: str, kind: str) -> Iterator[None]:
    """Turn whatever a library raises about a foreign file into one line.

    Args:
        source: name of the file in the message.
        kind: what it should be, such as "a Parquet".

    Raises:
        InputError: the block raised an error other than of memory.
    """
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{source}: expected {kind} file, found something else ({reason:.200})") from error


def read_bytes(path: Path) -> bytes:
    """The content of a text file, unpacked if its name ends in .gz.

    Raises:
        InputError: no gzip file, or one that unpacks to more than fits.
    """
    if path.suffix != ".gz":
        return path.read_bytes()
    packed = path.stat().st_size
    most = min(max(RATIO * packed, ALWAYS), free_memory() // SHARE)
    parts, size = [], 0
    with guarded(str(path), "a gzip"), gzip.open(path) as file:
        while part := file.read(BLOCK):
            parts.append(part)
            size += len(part)
            if size > most:
                raise InputError(
                    f"{path}: expected a table of at most {most >> 20:,} MiB, found {packed:,} packed bytes that unpack "
                    "to more: unpack it, check it, and save it as Parquet"
                )
    return b"".join(parts)


def read_columns(path: Path, suffix: str) -> pa.Table:
    """The table of a Parquet, Arrow or Feather file, with all its buffers checked.

    Raises:
        InputError: it is none, is damaged, or does not fit into memory.
    """
    with guarded(str(path), KINDS[suffix]):
        if suffix in (".parquet", ".pq"):
            file = pyarrow.parquet.ParquetFile(path)
            cells = file.metadata.num_rows * file.metadata.num_columns
            if cells * WIDTH > max(free_memory(), 0):
                raise InputError(
                    f"{path}: expected a table that fits into memory, found {file.metadata.num_rows:,} rows of "
                    f"{file.metadata.num_columns:,} columns: leave columns out, or split it"
                )
            table = file.read()
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
        return (pa.ipc.open_file if start == b"ARROW1" else pa.ipc.open_stream)(source).read_all()


def to_frame(table: pa.Table, source: str, kind: str) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """A checked table as columns of plain types, and notes about those left out.

    Bytes are read as UTF-8. Columns of lists or records are left out. What pandas wrote about its index is only used
    to leave out an index of numbers, and to keep numbers with gaps whole.

    Args:
        table: the table.
        source: its name in messages.
        kind: what its file should be, such as "a Parquet".

    Raises:
        InputError: two columns with one name, or bytes that are not UTF-8.
    """
    with guarded(source, kind):
        names = table.column_names
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(
            f"{source}: expected different column names, found {twice[0]!r} more than once; rename one of them"
        )
    table, nullable = _without_pandas(table)
    nested = []
    for at, field in reversed(list(enumerate(table.schema))):
        if pa.types.is_extension_type if False else False:
            continue
        made = _plain(table.column(at), f"{source}, column {field.name!r}")
        if made is None:
            nested.append(field.name)
            table = table.remove_column(at)
        elif made is not table.column(at):
            table = table.set_column(at, field.name, made)
    notes = (f"columns of lists or records left out: {', '.join(reversed(nested))}",) if nested else ()
    with guarded(source, kind):
        if not nullable.keys() & {*table.column_names}:
            return table.to_pandas(date_as_object=False), notes
        columns = zip(table.column_names, table.columns, strict=True)
        return pd.DataFrame(
            {n: nullable[n].__from_arrow__(c) if n in nullable else c.to_pandas(date_as_object=False) for n, c in columns}
        ), notes
