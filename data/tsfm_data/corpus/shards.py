"""Writing the arrays of one corpus source, series by series; constant and empty series are left out."""

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
# Largest rounding error of float32, in standard deviations of a series; if it would be larger, the median is subtracted
# first. That loses nothing for training, because models normalise each window.
ROUNDING = 1e-4


class GrowingArray:
    """A one-dimensional .npy file that is appended to without holding it in memory.

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
        """Close the file as it is; does nothing if it is closed."""
        with contextlib.suppress(OSError):  # the write that met a full disk has reported it
            self._file.close()

    def _header(self) -> None:
        # NumPy pads this header so that the length may grow in place.
        shape = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self._file, shape)


class ShardWriter:
    """Writes the arrays of one source.

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

    def add(self, series: SeriesSet, excluded: Collection[str] = ()) -> None:
        """Append every variate of every item.

        Args:
            series: what to append.
            excluded: series to leave out, named as by ``SeriesSet.univariate``.

        Raises:
            InputError: a value that float32 cannot represent.
        """
        for i, (item, freq) in enumerate(zip(series.item_ids, series.freqs, strict=True)):
            written = 0
            for variate, column in zip(series.variates, series.item(i).T, strict=True):
                name = item if len(series.variates) == 1 else variate if len(series) == 1 else f"{item}/{variate}"
                if name in excluded:
                    self.dropped["in evaluation sets"] += 1
                else:
                    written += self._append_series(
                        np.ascontiguousarray(column), f"{series.source}, series {name!r}", freq
                    )
            self.items += written > 0

    def _append_series(self, column: Float64[np.ndarray, " T"], where: str, freq: str) -> bool:
        observed = column[np.isfinite(column)]
        if len(observed) < 2 or np.ptp(observed) == 0:
            self.dropped["empty" if len(observed) == 0 else "one point" if len(observed) == 1 else "constant"] += 1
            return False
        values, shifted = to_float32(column, where)
        self.shifted += shifted
        self.missing += len(column) - len(observed)
        index = list(self.frequencies).index(freq) if freq in self.frequencies else len(self.frequencies)
        self.frequencies[freq] += 1
        self.arrays["values"].append(values)
        self.arrays["offsets"].append(np.array([self.arrays["values"].length]))
        self.arrays["items"].append(np.array([self.items]))
        self.arrays["freqs"].append(np.array([index]))
        self.arrays["overlap"].append(
            fingerprints(column)
        )  # before rounding, because copies in other units round differently
        return True

    def finish(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Close the arrays and write ``source.json``.

        Args:
            inputs: what the source is built from; part of the result.

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
    """Convert a series to single precision; its median is subtracted if rounding would lose too much of its variation.

    Args:
        column: values; NaN where missing; not constant.
        where: names the series in messages.

    Returns:
        The values, and whether the median was subtracted.

    Raises:
        InputError: values too large for float32, or differences too small for it.
    """
    observed = column[np.isfinite(column)]
    low, high = observed.min(), observed.max()
    largest = max(abs(low), abs(high))
    if largest > LIMIT:
        raise InputError(
            f"{where}: expected values of at most {LIMIT:.2e} (float32), found {largest:.3e}; rescale the series"
        )
    spread = (observed / (high - low)).std() * (high - low)  # divided first, to avoid overflow
    values = column.astype(np.float32)
    shifted = bool(np.abs(observed.astype(np.float32) - observed).max() > ROUNDING * spread)
    if shifted:
        values = (column - np.median(observed)).astype(np.float32)
    if high - low < TINY:
        raise InputError(
            f"{where}: expected a range of at least {TINY:.2e} (float32), found {high - low:.3e}; rescale the series"
        )
    return values, shifted
