"""Files to tables: CSV with any usual delimiter and encoding, Parquet, Arrow, Feather and Excel."""

import contextlib
import csv
import difflib
import io
import itertools
import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv

from tsfm_data.errors import InputError
from tsfm_data.io import numerals
from tsfm_data.io.columns import ITEM_NAMES, Table
from tsfm_data.io.foreign import KINDS, guarded, read_bytes, read_columns, read_sheets, to_frame
from tsfm_data.io.numerals import MISSING

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "|"}
SAMPLE = 1 << 16
LINE_END = re.compile(rb"\r\n|\r|\n")
LARGE = 64 << 20  # bytes of a text that is not kept in memory for messages
LOOKED_AT = 200  # lines that are used to find the header
EXCEL = (".xlsx", ".xlsm")


def read_table(path: Path, item_column: str | None = None, decimal: str | None = None) -> Table:
    """The table in a CSV (comma, semicolon, tab or |; .gz too), Parquet, Arrow, Feather or Excel file.

    Args:
        path: the file; "-" is standard input, read as delimited text.
        item_column: a column that is read as text, like columns with usual names of ids.
        decimal: "," keeps numbers as text, since a point in them does not mark decimals.

    Raises:
        InputError: no such file, a folder, an empty or unreadable file, or one that is not a table.
    """
    if str(path) == "-":
        return read_text(sys.stdin.buffer.read(), "standard input", "table", item_column, decimal)
    _check_file(path)
    suffix = (Path(path.stem).suffix if path.suffix == ".gz" else path.suffix).lower()
    name = path.name.split(".")[0]
    try:
        if suffix in KINDS:
            frame, notes = to_frame(read_columns(path, suffix), str(path), KINDS[suffix])
            return Table(frame, str(path), name, notes=notes)
        if suffix in EXCEL:
            return _read_excel(path, name)
        if suffix in (".xls", ".xlsb", ".ods"):
            raise InputError(f"{path}: expected CSV, Parquet, Arrow or .xlsx, found {suffix}: save it as .xlsx or CSV")
        table = read_text(data := read_bytes(path), str(path), name, item_column, decimal)
        # Messages need the text to count lines; that of a large file is read again if there is one.
        large = table.text is data and len(data) > LARGE and path.suffix != ".gz"
        return replace(table, text=path) if large else table
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def _check_file(path: Path) -> None:
    if path.is_fifo() or path.is_char_device() or path.is_block_device():
        raise InputError(f"{path}: expected a file, found a pipe or device; give - to read standard input")
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


def _read_excel(path: Path, name: str) -> Table:
    """The first sheet of a workbook with a table, starting at its header."""
    sheets = read_sheets(path)
    filled = {title: rows for title, rows in sheets.items() if any(rows)}
    if not filled:
        raise InputError(f"{path}: expected a table, found only empty sheets")
    title, rows = next(iter(filled.items()))
    widths = [sum(value is not None for value in row) for row in rows]
    below = [*itertools.accumulate(reversed(widths), max)][::-1]  # the widest row from each row on
    top = next((i for i, width in enumerate(widths) if width >= max(2, below[i] - 1)), widths.index(max(widths)))
    size = max(map(len, rows))
    header = ["" if value is None else str(value).strip() for value in rows[top]]
    header += [""] * (size - len(header))
    body = [row + [None] * (size - len(row)) for row in rows[top + 1 :] if row]
    frame = pd.DataFrame(body, columns=range(size))
    kept = [i for i, cell in enumerate(header) if cell or frame[i].notna().any()]
    if header[0] == "" and list(frame[0]) == list(range(len(frame))):
        kept = [i for i in kept if i]  # the row numbers that DataFrame.to_excel writes
    frame = frame[kept].infer_objects().set_axis([header[i] for i in kept], axis="columns")
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise InputError(f"{path}: expected different column names, found {twice[0]!r} more than once")
    notes = [f"{top} rows above the header skipped"] if top else []
    if len(filled) > 1:
        notes.append(f"read sheet {title!r}, the first of {len(filled)}")
    return Table(frame, str(path), name, header=top + 1, notes=tuple(notes))


def read_text(data: bytes, source: str, name: str, item_column: str | None = None, decimal: str | None = None) -> Table:
    """The table in delimited text: numbers and ISO dates with their types, everything else as text.

    Raises:
        InputError: it is no text, or no table.
    """
    data, notes = _decode(data, source)
    # Quoted cells may contain line breaks, but the header and the lines above it do not.
    begin = data[: end.end() if (end := LINE_END.search(data, SAMPLE)) else None]
    lines = [line.decode("utf-8", errors="ignore") for line in LINE_END.split(begin)]
    if not any(line.strip() for line in lines):
        raise InputError(f"{source}: expected a table, found only blank lines")
    delimiter, top = find_layout(source, lines)
    above = sum(bool(line.strip()) for line in lines[:top])
    if above:
        notes.append(f"{above} line{'s' * (above > 1)} above the header skipped")
    alone = len(begin) == len(data) and not any(line.strip() for line in lines[top + 1 :])
    ends = LINE_END.finditer(data)
    for end in itertools.islice(ends, top - 1, top) if top else ():
        data = data[end.end() :]
    header = split_line(lines[top], delimiter)
    check_header(source, top + 1, header)
    if alone:
        raise InputError(f"{source}: expected rows of values, found only a header")
    if len(header) == 1:
        data = b"\n".join(line.strip() for line in data.splitlines() if line.strip())
    texts = set(header) if decimal == "," else {n for n in header if is_id(n, item_column)}
    table = _parse(source, data, delimiter, header, texts, top, notes)
    floats = {f.name for f in table.schema if pa.types.is_floating(f.type)}
    # By position, because several columns may have no name.
    words = [column for column in table.columns if pa.types.is_string(column.type)]
    words = words if floats and decimal is None and delimiter != "," else []
    words = [column for column in words if pa.compute.any(pa.compute.match_substring(column, ",")).as_py()]
    if words:
        cells = (numerals.plain(column.to_pandas().astype("string").str.strip()) for column in words)
        if numerals.decimal_mark(cells) == ",":  # then a point may group, as in 1.010
            table = _parse(source, data, delimiter, header, texts | floats, top, [])
    table = table.rename_columns([cell.strip() for cell in table.column_names])
    names = table.column_names
    dropped = {i for i, column in enumerate(names) if column == "" and _empty(table.column(i))}  # trailing delimiters
    if names[0] == "" and pa.types.is_integer(table.schema.types[0]):
        dropped.add(0)  # the row numbers that DataFrame.to_csv writes
    if dropped:
        table = table.select([i for i in range(len(names)) if i not in dropped])
    frame, _ = to_frame(table, source, "a text")
    return Table(frame, source, name, data, delimiter, top + 1, tuple(notes))


def _empty(column: pa.ChunkedArray) -> bool:
    if pa.types.is_string(column.type):
        return not any((value or "").strip() for value in column.to_pylist())
    return column.null_count == len(column)


def _decode(data: bytes, source: str) -> tuple[bytes, list[str]]:
    """The bytes as UTF-8 without byte-order mark, and a note if they had another encoding."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or data[:4] == b"\0\0\xfe\xff":
        kind = "UTF-32" if b"\0\0" in data[:4] else "UTF-16"
        try:
            return data.decode(kind).encode(), []
        except UnicodeDecodeError as error:
            raise InputError(
                f"{source}: expected {kind} text after its byte-order mark, found something else ({error})"
            ) from error
    if b"\0" in data[:SAMPLE]:
        even, odd = data[:SAMPLE:2].count(0), data[1:SAMPLE:2].count(0)
        for encoding, zeros, others in (("utf-16-le", odd, even), ("utf-16-be", even, odd)):
            if zeros > 0.4 * len(data[:SAMPLE:2]) and not others:
                return data.decode(encoding, errors="replace").encode(), []
        raise InputError(f"{source}: expected a CSV, Parquet or Arrow file, found binary data")
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        if not data.isascii():
            data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("cp1252", errors="replace")
        if any(ord(mark) < 32 and mark not in "\t\r\n\f" for mark in text[:SAMPLE]):
            raise InputError(f"{source}: expected a CSV, Parquet or Arrow file, found binary data") from None
        return text.encode(), ["not UTF-8, read as Latin-1 (Windows-1252)"]
    return data, []


def find_layout(source: str, lines: list[str]) -> tuple[str, int]:
    """The delimiter, and the line of the header, from 0.

    The header is the first line with as many fields as most lines. Lines above it have fewer.
    """
    filled = [i for i, line in enumerate(lines) if line.strip()][:LOOKED_AT]
    first = lines[filled[0]]
    if len(filled) > 1 and first.strip().lower()[:4] == "sep=" and first.strip()[4:] in DELIMITERS:
        return first.strip()[4:], filled[1]  # what Excel writes above a table
    if len(filled) > 1 and all(_is_number(lines[i]) or lines[i].strip().lower() in MISSING for i in filled[1:]):
        mark = next((mark for mark in DELIMITERS if mark in first), None)
        if mark is None:
            return ",", filled[0]  # one column of numbers
    widths = {mark: [len(split_line(lines[i], mark)) for i in filled] for mark in DELIMITERS}
    best = max(widths, key=lambda mark: widths[mark][0])
    usual = {mark: Counter(w).most_common(1)[0] for mark, w in widths.items()}
    if widths[best][0] > 1 and widths[best][0] >= usual[best][0]:
        titles = 0  # lines with text only in the first field
        while titles < len(filled) - 2 and _is_title(lines[filled[titles]], best):
            titles += 1
        return best, filled[titles]
    mark = max(usual, key=lambda mark: (usual[mark][0] > 1, usual[mark][1], usual[mark][0]))
    width, count = usual[mark]
    if width > 1 and count > max(2, len(filled) // 2):
        top = widths[mark].index(width)
        if not _holds_values(lines[filled[top]], mark):
            return mark, filled[top]
    if widths[best][0] > 1:
        return best, filled[0]
    raise InputError(
        f"{source}, row {filled[0] + 1}: expected a time column and at least one value column, separated by comma, "
        f"semicolon, tab or |, found the single column {first.strip()[:60]!r}"
    )


def _is_title(line: str, delimiter: str) -> bool:
    cells = [cell.strip() for cell in split_line(line, delimiter)]
    return len(cells) > 1 and not any(cells[1:])


def _holds_values(line: str, delimiter: str) -> bool:
    """Whether a line contains numbers other than years, so that it is no header below lines of text."""
    cells = split_line(line, delimiter)
    return any(_is_number(cell.strip()) and not re.fullmatch(r"(1[6-9]|2[0-2])\d\d", cell.strip()) for cell in cells)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _parse(
    source: str,
    data: bytes,
    delimiter: str,
    header: list[str],
    texts: set[str],
    top: int,
    notes: list[str],
    mend: bool = True,
) -> pa.Table:
    """The columns with inferred types; as text if values differ in type, so that we can find the wrong one."""
    types, refused = dict.fromkeys(texts, pa.string()), None
    with guarded(source, "a text"):
        try:
            table = _read_csv(data, delimiter, types)
        except pa.ArrowInvalid as error:
            refused = error
    if refused is not None and "conversion error" not in str(refused):
        mended = _mend_ends(data, delimiter, len(header), notes) if mend else None
        if mended is None:
            raise _wrong_width(source, data, delimiter, len(header), top, refused) from refused
        return _parse(source, mended, delimiter, header, texts, top, notes, mend=False)
    with guarded(source, "a text"):
        if refused is not None:
            types = dict.fromkeys(header, pa.string())
            table = _read_csv(data, delimiter, types)
        zoned = [f.name for f in table.schema if pa.types.is_timestamp(f.type) and f.type.tz is not None]
        if zoned:  # Arrow keeps only UTC, but local times show whether data are daily
            table = _read_csv(data, delimiter, types | dict.fromkeys(zoned, pa.string()))
        return table


def _read_csv(data: bytes, delimiter: str, types: dict[str, pa.DataType]) -> pa.Table:
    """Delimited text as Arrow reads it; rows longer than a block in one block."""
    parse = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=b'"' in data)
    convert = pyarrow.csv.ConvertOptions(column_types=types)

    def read(block: int | None) -> pa.Table:
        # Not a file of Python's, which threads may still read when the interpreter ends after an error.
        with pa.BufferReader(data) as file:
            return pyarrow.csv.read_csv(file, pyarrow.csv.ReadOptions(block_size=block), parse, convert)

    try:
        return read(None)
    except pa.ArrowInvalid as error:
        if "straddl" not in str(error):
            raise
    return read(min(len(data) + 1, 2**31 - 1))


def is_id(name: str, item_column: str | None) -> bool:
    """Whether a column contains ids, which are text: "007" is not 7."""
    return name.strip() == item_column or name.strip().lower() in ITEM_NAMES


def _mend_ends(data: bytes, delimiter: str, width: int, notes: list[str]) -> bytes | None:
    """The text without extra delimiters at the ends of lines, or without lines of text below the table; None if it has
    neither."""
    lines = data.splitlines()
    mark = delimiter.encode()
    counts = [line.count(mark) + 1 for line in lines]
    if all(
        n == width + 1 and line.rstrip().endswith(mark) for n, line in zip(counts[1:], lines[1:], strict=True) if line
    ):
        return b"\n".join([lines[0], *(line.rstrip()[: -len(mark)] for line in lines[1:])])
    last = len(lines) - 1
    while last > 1 and (not lines[last].strip() or len(split_line(lines[last].decode(), delimiter)) == 1):
        last -= 1
    cut = [line for line in lines[last + 1 :] if line.strip()]
    if width > 1 and 0 < len(cut) <= 5 and not any(character.isdigit() for character in cut[0].decode()[:4]):
        notes.append(f"text below the table left out: {cut[0].decode(errors='replace').strip()[:60]!r}")
        return b"\n".join(lines[: last + 1])
    return None


def split_line(line: str, delimiter: str) -> list[str]:
    """The cells of one line; quotes are not respected if a cell is longer than the csv module allows."""
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return line.split(delimiter)


def check_header(source: str, line: int, header: list[str]) -> None:
    """Check that a header has names, and no name twice.

    Args:
        source: name of the table in messages.
        line: of the header, from 1.
        header: its cells.

    Raises:
        InputError: it has not.
    """

    def is_value(cell: str) -> bool:
        try:
            float(cell)
        except ValueError:
            return len(cell) >= 8 and cell[:4].isdigit() and pd.notna(pd.to_datetime(cell, errors="coerce"))
        return True

    if all(is_value(cell.strip()) for cell in header):
        raise InputError(
            f"{source}, row {line}: expected a header with the names of the columns, found values "
            f"({', '.join(header)[:60]}); add a first line such as date,target"
        )
    names = [name.strip() for name in header]
    twice = [name for name in names if name and names.count(name) > 1]
    if twice:
        raise InputError(f"{source}, row {line}: expected different column names, found {twice[0]!r} more than once")


def _wrong_width(source: str, data: bytes, delimiter: str, width: int, top: int, error: Exception) -> InputError:
    """The error for the first row with another number of fields than the header."""
    lines = io.StringIO(data.decode("utf-8", errors="replace"), newline="")
    reader = csv.reader(lines, delimiter=delimiter)
    with contextlib.suppress(csv.Error):  # a cell that is too long for it
        for row in reader:
            if row and len(row) != width:
                return InputError(
                    f"{source}, row {reader.line_num + top}: expected {width} fields separated by "
                    f"{DELIMITERS[delimiter]}, as in the header, found {len(row)}; quote values that contain the "
                    "separator, or check that the file is complete"
                )
    return InputError(f"{source}: expected delimited text, found something else ({str(error).splitlines()[0]})")
