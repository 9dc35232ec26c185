"""Large files read block by block: Parquet, and delimited text in UTF-8."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet

from tsfm_data.io import readers
from tsfm_data.io.columns import Table
from tsfm_data.io.foreign import to_frame

LEAST_ROWS = 2_000_000  # of a Parquet file; smaller ones are read at once
LEAST_BYTES = 64 << 20  # of a text file; smaller ones are read at once
BLOCK_ROWS = 1 << 18
BLOCK_BYTES = 1 << 24


class ReadAtOnce(Exception):
    """The table is small, or cannot be read in blocks: read it at once."""


@dataclass
class Blocks(ABC):
    """A file that is read block by block.

    Attributes:
        path: the file.
        head: its first rows.
    """

    path: Path
    head: Table

    @abstractmethod
    def read(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The rows of some columns, in order.

        Raises:
            ReadAtOnce: the blocks differ too much in type.
        """

    def refresh(self) -> None:  # noqa: B027 - most formats have nothing to do
        """Read the first rows again."""


@dataclass
class ParquetBlocks(Blocks):
    """A Parquet file."""

    def read(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """As ``Blocks``."""
        with pyarrow.parquet.ParquetFile(self.path) as file:
            for batch in file.iter_batches(BLOCK_ROWS, columns=list(columns)):
                batch.validate(full=True)
                yield pa.Table.from_batches([batch])

    @classmethod
    def of(cls, path: Path, least: int) -> "ParquetBlocks":
        """The blocks of a file with at least ``least`` rows.

        Raises:
            ReadAtOnce: there are fewer, or it has a name twice, or an index of pandas.
        """
        with pyarrow.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            index = (schema.pandas_metadata or {}).get("index_columns", [])
            if file.metadata.num_rows < least or len(set(schema.names)) < len(schema.names):
                raise ReadAtOnce
            if any(isinstance(column, str) for column in index):
                raise ReadAtOnce
            batch = next(file.iter_batches(BLOCK_ROWS), None)
        if batch is None:
            raise ReadAtOnce
        frame = to_frame(pa.Table.from_batches([batch]), str(path), "a Parquet")[0]
        return cls(path, Table(frame, str(path), path.name.split(".")[0]))


@dataclass
class TextBlocks(Blocks):
    """A file of delimited text, whose header is its first line.

    Attributes:
        names: the cells of the header.
        types: type of each column, as far as it has been read.
        texts: columns that are text.
        first: byte at which the rows begin.
    """

    names: list[str] = field(default_factory=list)
    types: dict[str, pa.DataType] = field(default_factory=dict)
    texts: frozenset[str] = frozenset()
    first: int = 0

    def read(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """As ``Blocks``.

        Raises:
            ReadAtOnce: the text is odd, or may have decimal commas.
            TypeChanged: a block has another type than those before.
        """
        for data in _text_blocks(self.path, self.first):
            table = self.parse(data)
            numeric = any(pa.types.is_floating(kind) for kind in table.schema.types)
            if self.head.delimiter != "," and numeric and self.head.decimal is None:
                words = [table.column(f.name) for f in table.schema if pa.types.is_string(f.type)]
                if any(pa.compute.any(pa.compute.match_substring(word, ",")).as_py() for word in words):
                    raise ReadAtOnce  # these may be decimal commas
            yield table.rename_columns([name.strip() for name in table.column_names]).select(list(columns))

    def parse(self, data: bytes) -> pa.Table:
        """The columns of some lines, with the types so far.

        Raises:
            ReadAtOnce: the text is odd.
            TypeChanged: as ``read``.
        """
        if not data.isascii():
            try:
                data.decode("utf-8")
            except UnicodeDecodeError:
                raise ReadAtOnce from None
        known = {name: kind for name, kind in self.types.items() if not pa.types.is_null(kind)}
        try:
            return _parse(data, self.head.delimiter, self.names, known)
        except pa.ArrowInvalid as error:
            if "conversion error" not in str(error):
                raise ReadAtOnce from error
        table = _parse(data, self.head.delimiter, self.names, dict.fromkeys(self.texts, pa.string()))
        self.update_types(table.schema)
        raise TypeChanged

    def update_types(self, schema: pa.Schema) -> None:
        """Take the types of a block into account.

        Raises:
            ReadAtOnce: two blocks differ too much in type.
        """
        for found in schema:
            kind = pa.string() if pa.types.is_timestamp(found.type) and found.type.tz else found.type
            before = self.types.get(found.name, pa.null())
            self.types[found.name] = _common_type(before, kind)

    @classmethod
    def of(cls, path: Path, item_column: str | None, decimal: str | None, least: int) -> "TextBlocks":
        """The blocks of a file with at least ``least`` bytes.

        Raises:
            ReadAtOnce: there are fewer, or the header is not the first line.
        """
        if path.stat().st_size < least or decimal == ",":
            raise ReadAtOnce
        data = next(_text_blocks(path, 0))
        start = data[: readers.SAMPLE]
        if start[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in start or start[:3] == b"\xef\xbb\xbf":
            raise ReadAtOnce
        lines = start.decode("utf-8", errors="ignore").splitlines()
        delimiter, top = readers.find_layout(str(path), lines)
        names = readers.split_line(lines[top], delimiter)
        readers.check_header(str(path), top + 1, names)
        if top or len(names) < 3 or "" in map(str.strip, names):
            raise ReadAtOnce
        source, stem = str(path), path.name.split(".")[0]
        table = Table(pd.DataFrame(), source, stem, path, delimiter, 1, decimal=decimal)
        texts = frozenset(name for name in names if readers.is_id(name, item_column))
        blocks = cls(path, table, names, dict.fromkeys(texts, pa.string()), texts, data.index(b"\n") + 1)
        blocks.refresh()
        return blocks

    def refresh(self) -> None:
        """Read the first rows with the present types."""
        data = next(_text_blocks(self.path, self.first))
        while True:
            with contextlib.suppress(TypeChanged):
                first = self.parse(data)
                self.update_types(first.schema)
                if {found.name: found.type for found in first.schema} == self.types:
                    break
        first = first.rename_columns([name.strip() for name in self.names])
        self.head = replace(self.head, frame=to_frame(first, str(self.path), "a text")[0])


class TypeChanged(Exception):
    """A column has another type in a later block: read all rows again."""


def _common_type(before: pa.DataType, found: pa.DataType) -> pa.DataType:
    """The type of a column that has these two types in blocks of text, as if it were read at once."""
    if before == found or pa.types.is_null(found):
        return before
    if pa.types.is_null(before):
        return found
    pair = {before, found}
    if pair == {pa.int64(), pa.float64()}:
        return pa.float64()
    if pair <= {pa.date32(), pa.timestamp("s"), pa.timestamp("ns")}:
        return pa.timestamp("ns" if pa.timestamp("ns") in pair else "s")
    return pa.string()


def _parse(data: bytes, delimiter: str | None, names: list[str], types: dict[str, pa.DataType]) -> pa.Table:
    with pa.BufferReader(data) as file:  # not a file of Python's, as in readers
        return pyarrow.csv.read_csv(
            file,
            read_options=pyarrow.csv.ReadOptions(column_names=names),
            parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter or ",", newlines_in_values=b'"' in data),
            convert_options=pyarrow.csv.ConvertOptions(column_types=types),
        )


def _text_blocks(path: Path, first: int) -> Iterator[bytes]:
    """The bytes of a file from byte ``first`` on, in blocks of whole lines."""
    with path.open("rb") as file:
        file.seek(first)
        rest = b""
        while data := file.read(BLOCK_BYTES):
            data = rest + data
            end = data.rfind(b"\n") + 1
            quotes = data.count(b'"', 0, end)
            while end and quotes % 2:  # a line break in a quoted cell
                before = data.rfind(b"\n", 0, end - 1) + 1
                quotes -= data.count(b'"', before, end)
                end = before
            if not end and len(data) > 4 * BLOCK_BYTES:
                raise ReadAtOnce
            rest = data[end:]
            if end:
                yield data[:end]
        if rest:
            yield rest


def open_blocks(path: Path, item_column: str | None, decimal: str | None, least: int | None) -> Blocks:
    """A file to be read block by block.

    Args:
        path: the file.
        item_column: a column that is read as text in delimited text.
        decimal: decimal mark of numbers in text.
        least: fewest rows of a Parquet file, or bytes of a text file; by default ``LEAST_ROWS`` and ``LEAST_BYTES``.

    Raises:
        ReadAtOnce: it is small, or cannot be read in blocks.
        InputError: the header of a text file is wrong.
    """
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            return ParquetBlocks.of(path, LEAST_ROWS if least is None else least)
        if path.suffix.lower() in (".csv", ".tsv", ".txt"):
            return TextBlocks.of(path, item_column, decimal, LEAST_BYTES if least is None else least)
    except (pa.ArrowException, OSError) as error:
        raise ReadAtOnce from error
    raise ReadAtOnce
