"""Rows of a large table on disk, grouped by series."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int, Int64, Shaped

SERIES_PER_FILE = 512
READ_ROWS = 1 << 20


class Spill:
    """Rows of many series in a folder: a file for every 512 series, with its rows in the order of the table.

    Args:
        folder: a new folder.
        columns: number of values in a row.

    Attributes:
        counts: rows of each series.
    """

    def __init__(self, folder: Path, columns: int) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.dtype = np.dtype([("row", "i8"), ("code", "i4"), ("time", "i8"), ("cells", "f8", (columns,))])
        self.counts = np.zeros(0, dtype=np.int64)
        self._split: set[int] = set()  # numbers of files that were split into one file per series

    def append(
        self,
        first: int,
        codes: Int64[np.ndarray, " rows"],
        time: Int64[np.ndarray, " rows"],
        cells: Float64[np.ndarray, "rows columns"],
    ) -> None:
        """Add rows.

        Args:
            first: place of the first of these rows in the table.
            codes: series of each row.
            time: time of each row, in any unit.
            cells: values.
        """
        records = np.empty(len(codes), self.dtype)
        records["row"] = np.arange(first, first + len(codes))
        records["code"], records["time"], records["cells"] = codes, time, cells
        if len(codes):
            more = np.bincount(codes, minlength=len(self.counts))
            more[: len(self.counts)] += self.counts
            self.counts = more
        for number, part in _grouped(records, codes // SERIES_PER_FILE):
            with self._file(number).open("ab") as file:
                part.tofile(file)

    def _file(self, number: int, code: int | None = None) -> Path:
        return self.folder / (f"{number:06d}" if code is None else f"{number:06d}-{code}")

    def split(self, most: int) -> None:
        """Give each series a file of its own if its file has more than ``most`` rows."""
        for number, begin in enumerate(range(0, len(self.counts), SERIES_PER_FILE)):
            counts = self.counts[begin : begin + SERIES_PER_FILE]
            if counts.sum() <= most or len(counts) == 1:
                continue
            for records in self._chunks(self._file(number)):
                for code, part in _grouped(records, records["code"]):
                    with self._file(number, code).open("ab") as file:
                        part.tofile(file)
            self._file(number).unlink()
            self._split.add(number)

    def read(self, begin: int, end: int) -> Shaped[np.ndarray, " rows"]:
        """The rows of series ``begin`` to ``end`` (exclusive): fields row, code, time and cells."""
        parts = [np.empty(0, self.dtype)]
        for number in range(begin // SERIES_PER_FILE, (end - 1) // SERIES_PER_FILE + 1):
            first = max(begin, number * SERIES_PER_FILE)
            last = min(end, (number + 1) * SERIES_PER_FILE, len(self.counts))
            if number in self._split:
                parts += [np.fromfile(self._file(number, code), self.dtype) for code in range(first, last)]
                continue
            for records in self._chunks(self._file(number)):
                wanted = (records["code"] >= first) & (records["code"] < last)
                parts.append(records if wanted.all() else records[wanted])
        return np.concatenate(parts)

    def _chunks(self, path: Path) -> Iterator[Shaped[np.ndarray, " rows"]]:
        with path.open("rb") as file:
            while len(records := np.fromfile(file, self.dtype, READ_ROWS)):
                yield records

    def remove(self) -> None:
        """Delete the files."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _grouped(
    records: Shaped[np.ndarray, " rows"], group: Int[np.ndarray, " rows"]
) -> Iterator[tuple[int, Shaped[np.ndarray, " rows"]]]:
    """Records by group, in the given order inside each."""
    if not (group[1:] >= group[:-1]).all():
        order = np.argsort(group, kind="stable")
        records, group = records[order], group[order]
    begins = np.flatnonzero(np.diff(group, prepend=-1))
    for begin, end in zip(begins.tolist(), [*begins[1:].tolist(), len(group)], strict=True):
        yield int(group[begin]), records[begin:end]
