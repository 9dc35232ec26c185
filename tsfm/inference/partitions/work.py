"""What is done with one part of a partitioned table, on this machine or on a worker of a cluster."""

import contextlib
import json
import os
import platform
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from tsfm.inference.partitions.places import Folder, Part, local_copy
from tsfm_data import io
from tsfm_data.errors import InputError, reason_of
from tsfm_data.windows import item_lengths

if TYPE_CHECKING:
    import pandas as pd

STAMP = b"tsfm.part"  # key in the metadata of an output: what it was made of
LONGEST_ERROR = 400  # characters


@dataclass(frozen=True)
class Work:
    """What is done with every part. It is sent to the workers as a whole, with the model.

    Attributes:
        answer: from series to the rows of the output.
        columns: options of ``read_series``.
        output: folder of the outputs, a path or URL.
        most: most series at a time.
        key: digest of everything that the outputs depend on, except the parts.
    """

    answer: "Callable[[io.SeriesSet], pd.DataFrame]"
    columns: dict[str, Any]
    output: str
    most: int = io.PART_SERIES
    key: str = ""

    def do(self, part: Part) -> dict[str, Any]:
        """Write the output of a part.

        Returns:
            What the manifest says of it: "state" is "done" or "failed", with "error" in one line; "stop" if no output
            can be written at all.
        """
        begin, cpu = time.perf_counter(), time.process_time()
        found: dict[str, Any] = {"name": part.name, "size": part.size, "stamp": part.stamp, "output": part.output}
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                counts, notes = self._write(part)
            said = [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
            found |= {"state": "done", **counts, "notes": [*dict.fromkeys([*notes, *said])]}
        except OSError as error:  # what cannot be read is an InputError
            where = f" ({error.filename2 or error.filename or self.output})"
            found |= {"state": "failed", "error": f"cannot be written: {error.strerror or error}{where}", "stop": True}
        except Exception as error:  # a defect in one part does not end a night's run
            kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
            found |= {"state": "failed", "error": kind + reason_of(error, LONGEST_ERROR)}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
        worker = f"{platform.node()}:{os.getpid()}"
        took = {"seconds": round(time.perf_counter() - begin, 3), "cpu_seconds": round(time.process_time() - cpu, 3)}
        return found | took | {"worker": worker, "peak_mib": round(peak)}

    def _write(self, part: Part) -> tuple[dict[str, int], list[str]]:
        """Write the output of a part; returns its numbers of series and rows, and notes about how it was read."""
        notes: list[str] = []
        counts = {"series": 0, "rows": 0}
        stamp = {STAMP: json.dumps(self.stamp_of(part))}
        with (
            local_copy(part.place) as file,
            contextlib.ExitStack() as stack,
        ):
            writer = None
            try:
                for series in self._sets(file, notes):
                    frame = self.answer(series)
                    if writer is None:
                        target = stack.enter_context(Folder(self.output).writing(part.output))
                        schema = pa.Schema.from_pandas(frame, preserve_index=False).with_metadata(stamp)
                        writer = stack.enter_context(pyarrow.parquet.ParquetWriter(target, schema))
                    writer.write_table(pa.Table.from_pandas(frame, schema, preserve_index=False))
                    counts["series"] += int(frame.iloc[:, 0].nunique())
                    counts["rows"] += len(frame)
            except InputError as error:
                raise InputError(str(error).replace(str(file), part.place)) from error
            if writer is None:
                raise InputError(f"{part.place}: expected series that can be read, found none: check the table")
        return counts, [note.replace(str(file), part.place) for note in notes]

    def stamp_of(self, part: Part) -> list[str]:
        """What tells whether an output was made of a part as it is now, by this work."""
        return [self.key, part.name, str(part.size), part.stamp]

    def _sets(self, file: Path, notes: list[str]) -> Iterator["io.SeriesSet"]:
        """The series of a file, some at a time, the shortest first: so those of a batch are about equally long."""
        with tempfile.TemporaryDirectory() as name:
            parts = io.open_parts(file, Path(name) / "rows", most=self.most, **self.columns)
            if parts is not None:
                notes += parts.notes
                yield from (_by_length(series) for series in parts if series is not None)
                return
        series = io.open_source(file, **self.columns)
        notes += series.notes
        if len(series) == 1:
            yield series
            return
        series = _by_length(series)
        for begin in range(0, len(series), self.most):
            yield series.select(range(begin, min(begin + self.most, len(series))))


def _by_length(series: "io.SeriesSet") -> "io.SeriesSet":
    return series.select(np.argsort(item_lengths(series), kind="stable").tolist())


def made_of(folder: Folder, name: str) -> tuple[list[str], dict[str, int]]:
    """What an output says that it was made of, and its numbers of series and rows; nothing if it is none of ours."""
    try:
        with local_copy(folder.at(name)) as file, pyarrow.parquet.ParquetFile(file) as table:
            stamp = json.loads((table.schema_arrow.metadata or {})[STAMP])
            ids = {str(i) for group in table.iter_batches(columns=[table.schema_arrow.names[0]]) for i in group[0]}
            return stamp, {"series": len(ids), "rows": table.metadata.num_rows}
    except Exception:  # a damaged or foreign file: the part is done again
        return [], {}
