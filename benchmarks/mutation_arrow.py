"""Odd Arrow tables, as Parquet or Arrow files: other types, values, names and metadata."""

import contextlib
import datetime
import decimal
import io
import json
import random
from collections.abc import Callable

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet

ZONES = ("UTC", "Europe/Berlin", "+05:30", "Nowhere/Land", "+99:99", "", "\x1b[31m")
NAMES = (
    "",
    "date",
    "id",
    "target",
    "\x1b[31m",
    "x" * 5000,
    "a/b",
    "=1+1",
    "None",
    "__index_level_0__",
    " ",
    "2024-01-01",
)
REFUSALS = (pa.ArrowException, ValueError, TypeError, OverflowError, OSError, RecursionError)  # of so odd a table
TYPES: tuple[Callable[[random.Random], pa.DataType], ...] = (
    lambda rng: rng.choice((pa.string(), pa.large_string(), pa.string_view())),
    lambda rng: rng.choice((pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(4))),
    lambda rng: rng.choice((pa.int8(), pa.uint8(), pa.int32(), pa.uint64(), pa.float16(), pa.float32(), pa.bool_())),
    lambda rng: rng.choice((pa.decimal128(38, 10), pa.decimal256(76, 30), pa.decimal128(5, -3), pa.null())),
    lambda rng: rng.choice((pa.date32(), pa.date64(), pa.time32("s"), pa.time64("ns"), pa.duration("us"))),
    lambda rng: pa.timestamp(rng.choice(("s", "ms", "us", "ns")), rng.choice((None, None, *ZONES))),
    lambda rng: pa.list_(rng.choice((pa.int64(), pa.string(), pa.list_(pa.float64())))),
    lambda rng: pa.struct([("a", pa.int64()), ("a" if rng.random() < 0.2 else "b", pa.string())]),
    lambda rng: pa.map_(pa.string(), pa.float64()),
    lambda rng: pa.dictionary(pa.int8(), rng.choice((pa.string(), pa.int64(), pa.binary(), pa.timestamp("ns")))),
    lambda rng: pa.run_end_encoded(pa.int32(), rng.choice((pa.string(), pa.float64()))),
    lambda rng: pa.month_day_nano_interval(),
)
VALUES = (
    None, True, 0, 1, -1, 2**63 - 1, -(2**63), 2**64 - 1, 0.5, float("nan"), float("inf"), 1e308, "", "x", "12,5",
    "1E4041751706", "2024-01-01", "nan", "\x1b[31m", "x" * 5000, b"\xff\xfe", b"12", [], [1, None], {"a": 1},
    datetime.date(1, 1, 1),
    datetime.date(9999, 12, 31), datetime.datetime(2024, 1, 1), datetime.timedelta(days=10**8), datetime.time(1),
    decimal.Decimal("1e20"),
)  # fmt: skip


def damage_table(suffix: str, data: bytes, rng: random.Random) -> bytes:
    """A valid file with an odd table in it.

    Args:
        suffix: "parquet", "arrow" (a stream or a file) or "feather".
        data: a valid file of this format; a damaged one may end the process.
        rng: random numbers.
    """
    table = _read(suffix, data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        with contextlib.suppress(*REFUSALS):
            table = rng.choice((_other_type, _other_type, _other_values, _other_values, _other_shape, _other_metadata))(
                table, rng
            )
    with contextlib.suppress(*REFUSALS):
        return _write(suffix, table, rng)
    return data


def _read(suffix: str, data: bytes) -> pa.Table:
    if suffix == "parquet":
        return pyarrow.parquet.ParquetFile(io.BytesIO(data)).read()
    if data[:6] == b"ARROW1":
        return pa.ipc.open_file(data).read_all()
    return pa.ipc.open_stream(data).read_all()


def _write(suffix: str, table: pa.Table, rng: random.Random) -> bytes:
    made = io.BytesIO()
    if suffix == "parquet":
        pyarrow.parquet.write_table(
            table,
            made,
            row_group_size=rng.choice((None, 1, 3)),
            version=rng.choice(("1.0", "2.4", "2.6")),
            compression=rng.choice(("none", "snappy", "zstd", "gzip")),
            use_dictionary=rng.random() < 0.5,
            store_schema=rng.random() < 0.7,
        )
    elif suffix == "feather" and rng.random() < 0.5:
        pyarrow.feather.write_feather(table, made, compression=rng.choice(("uncompressed", "lz4", "zstd")))
    else:
        make = rng.choice((pa.ipc.new_file, pa.ipc.new_stream))
        with make(made, table.schema) as writer:
            writer.write_table(table, max_chunksize=rng.choice((None, 1, 5)))
    return made.getvalue()


def _other_type(table: pa.Table, rng: random.Random) -> pa.Table:
    """A column with another type, its values kept if they have one in it."""
    at, kind = rng.randrange(table.num_columns), rng.choice(TYPES)(rng)
    column = table.column(at)
    try:
        other = column.cast(kind)
    except REFUSALS:
        some = pa.array([rng.choice(VALUES)] * 3 + [None], from_pandas=False).cast(kind, safe=False)
        other = some.take(pa.array([rng.randrange(4) for _ in range(len(column))]))
    return table.set_column(at, pa.field(table.field(at).name, other.type), other)


def _other_values(table: pa.Table, rng: random.Random) -> pa.Table:
    """A column with one odd value, or some, or nothing else; or text that is not UTF-8; or categories with a null."""
    at, rows = rng.randrange(table.num_columns), table.num_rows
    name, value = table.field(at).name, rng.choice(VALUES)
    match rng.randrange(4):
        case 0:
            made = pa.array([value] * rows)
        case 1:
            cells = table.column(at).to_pylist()
            for _ in range(rng.choice((1, 3))):
                cells[rng.randrange(rows)] = value
            made = pa.array(cells)
        case 2:
            offsets = pa.array(range(0, rows + 1), pa.int32()).buffers()[1]
            made = pa.Array.from_buffers(pa.string(), rows, [None, offsets, pa.py_buffer(b"\xff" * rows)])
        case _:
            words = pa.array(["a", None] if rng.random() < 0.5 else ["a", "a"])
            made = pa.DictionaryArray.from_arrays(pa.array([i % 2 for i in range(rows)], pa.int8()), words)
    return table.set_column(at, name, made)


def _other_shape(table: pa.Table, rng: random.Random) -> pa.Table:
    """Other names, order, number of columns or number of rows."""
    names = list(table.column_names)
    match rng.randrange(6):
        case 0 | 1:
            names[rng.randrange(len(names))] = rng.choice((*NAMES, *names))
            return table.rename_columns(names)
        case 2:
            return table.append_column(rng.choice((*NAMES, *names)), table.column(rng.randrange(len(names))))
        case 3:
            return table.select(rng.sample(range(len(names)), rng.randrange(len(names))))
        case 4:
            return table.slice(rng.randrange(table.num_rows), rng.choice((0, 1, 2, 5)))
        case _:
            return pa.concat_tables([table.slice(0, 0), table, table])


def _other_metadata(table: pa.Table, rng: random.Random) -> pa.Table:
    """What pandas notes about its index and types, made wrong."""
    from mutation import SCALARS, other_tree

    notes = json.loads((table.schema.metadata or {}).get(b"pandas", b'{"index_columns": [], "columns": []}'))
    match rng.randrange(5):
        case 0:
            text = rng.choice((b"", b"{", b"null", b"\xff", b"[" * 5000, b"[]", b'"x"'))
        case 1:
            notes["index_columns"] = rng.choice(
                (
                    ["absent"],
                    [None],
                    [[]],
                    table.column_names,
                    [{"kind": "range", "start": 0, "stop": 2**62, "step": 0}],
                )
            )
            text = json.dumps(notes).encode()
        case 2:
            for column in notes["columns"]:
                column[rng.choice(("pandas_type", "numpy_type", "name", "metadata"))] = rng.choice(
                    (
                        "period[M]",
                        "Sparse[int]",
                        "category",
                        "interval[int64, right]",
                        "datetimetz",
                        "object",
                        "x",
                        None,
                    )
                )
            text = json.dumps(notes).encode()
        case 3:
            notes["column_indexes"] = rng.choice(SCALARS)
            text = json.dumps(notes).encode()
        case _:
            text = json.dumps(other_tree(notes, rng)).encode()
    return table.replace_schema_metadata({b"pandas": text})
