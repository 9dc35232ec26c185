"""Writing one source of a corpus: series by series into files that grow, what cannot be learnt from left out."""

import contextlib
import json
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Shaped

from tsfm_data.corpus.overlap import fingerprints
from tsfm_data.corpus.store import ARRAYS, SOURCE_ENTRY, file_digest
from tsfm_data.errors import InputError
from tsfm_data.io import SeriesSet, season_length

LIMIT, TINY = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)
# Rounding to float32 may cost so much of a series' standard deviation; where it would cost more, its median is taken
# off. Models look at windows in units of their own, so where a series lies is not what they learn.
ROUNDING = 1e-4


class GrowingArray:
    """A one-dimensional .npy file that is appended to; nothing of it is kept in memory.

    Args:
        path: the file to write.
        dtype: of its elements.
    """

    def __init__(self, path: Path, dtype: str) -> None:
        self.path, self.dtype, self.length = path, np.dtype(dtype), 0
        self._file = path.open("wb")
        self._header()

    def append(self, values: Shaped[np.ndarray, " n"]) -> None:
        """Add elements at the end."""
        self._file.write(np.ascontiguousarray(values, dtype=self.dtype).data)
        self.length += len(values)

    def close(self) -> None:
        """Write the final length into the header."""
        if not self._file.closed:
            self._file.seek(0)
            self._header()
            self._file.close()

    def abandon(self) -> None:
        """Close the file as it is; nothing happens to one that is closed."""
        with contextlib.suppress(OSError):  # a full disk was reported where it was met first
            self._file.close()

    def _header(self) -> None:
        # NumPy pads this header so that the length may grow in place.
        shape = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self._file, shape)


class ShardWriter:
    """The arrays of one source.

    Args:
        folder: an empty folder.
        name: of the source, for messages.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.arrays = {key: GrowingArray(folder / f"{key}.npy", dtype) for key, dtype in ARRAYS.items()}
        self.dropped: Counter[str] = Counter()
        self.frequencies: Counter[str] = Counter()  # in order of appearance
        self.missing = self.shifted = self.items = 0
        self.arrays["offsets"].append(np.zeros(1, np.int64))

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for array in self.arrays.values():
            array.abandon()

    def add(self, series: SeriesSet, without: Collection[str] = ()) -> None:
        """Append every variate of every item.

        Args:
            series: what to append.
            without: series to leave out, named as ``SeriesSet.univariate`` does.

        Raises:
            InputError: a value that float32 does not hold.
        """
        for i, (item, freq) in enumerate(zip(series.item_ids, series.freqs, strict=True)):
            kept = 0
            for variate, column in zip(series.variates, series.item(i).T, strict=True):
                name = item if len(series.variates) == 1 else variate if len(series) == 1 else f"{item}/{variate}"
                if name in without:
                    self.dropped["in evaluation sets"] += 1
                else:
                    kept += self._one(np.ascontiguousarray(column), f"{series.source}, series {name!r}", freq)
            self.items += kept > 0

    def _one(self, column: Float64[np.ndarray, " T"], where: str, freq: str) -> bool:
        seen = column[np.isfinite(column)]
        if len(seen) < 2 or np.ptp(seen) == 0:
            self.dropped["empty" if len(seen) == 0 else "one point" if len(seen) == 1 else "constant"] += 1
            return False
        values, shifted = to_float32(column, where)
        self.shifted += shifted
        self.missing += len(column) - len(seen)
        index = list(self.frequencies).index(freq) if freq in self.frequencies else len(self.frequencies)
        self.frequencies[freq] += 1
        self.arrays["values"].append(values)
        self.arrays["offsets"].append(np.array([self.arrays["values"].length]))
        self.arrays["items"].append(np.array([self.items]))
        self.arrays["freqs"].append(np.array([index]))
        self.arrays["overlap"].append(fingerprints(column))  # before rounding, which copies in other units do not share
        return True

    def finish(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Close the arrays and write ``source.json``.

        Args:
            inputs: what the source was made of; part of the result.

        Returns:
            Inputs, counts, frequencies, and size and digest of each array.

        Raises:
            InputError: no series is left.
        """
        for array in self.arrays.values():
            array.close()
        series = self.arrays["items"].length
        if series == 0:
            counts = ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.dropped.items())) or "none at all"
            raise InputError(
                f"source {self.name!r}: expected at least one series whose values change, found none ({counts}); "
                "leave the source out"
            )
        entry = {
            **inputs,
            "series": series,
            "items": self.items,
            "points": self.arrays["values"].length,
            "missing": self.missing,
            "shifted": self.shifted,
            "dropped": dict(sorted(self.dropped.items())),
            "frequencies": [
                {"freq": freq, "season": season_length(freq), "series": count}
                for freq, count in self.frequencies.items()
            ],
            "arrays": {
                array.path.name: {"bytes": array.path.stat().st_size, "sha256": file_digest(array.path)}
                for array in self.arrays.values()
            },
        }
        (self.folder / SOURCE_ENTRY).write_text(json.dumps(entry, indent=1) + "\n", encoding="utf-8")
        return entry


def to_float32(column: Float64[np.ndarray, " T"], where: str) -> tuple[Float32[np.ndarray, " T"], bool]:
    """A series in single precision, its median taken off where rounding would destroy what happens around it.

    Args:
        column: values; NaN where missing; not constant.
        where: names the series in messages.

    Returns:
        The values, and whether the median was taken off.

    Raises:
        InputError: values too large for float32, or differences too small for it.
    """
    seen = column[np.isfinite(column)]
    low, high = seen.min(), seen.max()
    largest = max(abs(low), abs(high))
    if largest > LIMIT:
        raise InputError(
            f"{where}: expected values that float32 holds (up to {LIMIT:.2e}), found {largest:.3e}; rescale the series"
        )
    spread = (seen / (high - low)).std() * (high - low)  # no overflow on the way
    values = column.astype(np.float32)
    shifted = bool(np.abs(seen.astype(np.float32) - seen).max() > ROUNDING * spread)
    if shifted:
        values = (column - np.median(seen)).astype(np.float32)
    if high - low < TINY:
        raise InputError(
            f"{where}: expected values that float32 tells apart, found a range of {high - low:.3e}; rescale the series"
        )
    return values, shifted
