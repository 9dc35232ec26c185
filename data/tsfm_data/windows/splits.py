"""Split of rows into training, validation and test, and the scaler fitted on the training rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from tsfm_data.errors import InputError
from tsfm_data.io import Borders

Part = Literal["train", "val", "test"]
FRACTIONS = (0.7, 0.1, 0.2)


@dataclass(frozen=True, eq=False)
class Split:
    """Row ranges ``[first, last)`` of the target values of each part, one range per item.

    A window belongs to a part if all values to be forecast do. Its context may reach back into the previous part
    (the published protocol of the long-horizon benchmarks) unless ``overlap`` is off.

    Attributes:
        train: rows on which models and scalers are fitted.
        val: rows for model selection: early stopping, best checkpoint, conformal residuals.
        test: rows used for the final score only.
        origin: where the borders come from, for ``describe``.
        overlap: whether a context may begin before its part does.
    """

    train: Int[np.ndarray, "items 2"]
    val: Int[np.ndarray, "items 2"]
    test: Int[np.ndarray, "items 2"]
    origin: str
    overlap: bool = True

    @classmethod
    def from_rows(
        cls, lengths: ArrayLike, train: int, val: int, test: int, *, overlap: bool = True, origin: str = "rows"
    ) -> "Split":
        """Split every item into ``train``, ``val`` and ``test`` rows in this order; later rows are unused.

        Args:
            lengths: rows of each item, [items].
            train: training rows.
            val: validation rows.
            test: test rows.
            overlap: whether contexts may reach back into the previous part.
            origin: where the numbers come from, for messages.

        Raises:
            InputError: a count is negative, there are no training rows, or an item has fewer rows than the sum.
        """
        rows = np.asarray(lengths, dtype=np.int64)
        if train < 1 or val < 0 or test < 0:
            raise InputError(f"split: expected train >= 1, val >= 0, test >= 0 rows, found {train}/{val}/{test}")
        if rows.min() < train + val + test:
            raise InputError(
                f"split {train}/{val}/{test} ({origin}) needs {train + val + test} rows, found {rows.min()} in series "
                f"number {rows.argmin()}: give smaller counts or fractions such as [0.7, 0.1, 0.2]"
            )
        borders = np.cumsum([0, train, val, test])
        return cls._from_borders(np.broadcast_to(borders, (len(rows), 4)), origin, overlap)

    @classmethod
    def from_fractions(
        cls,
        lengths: ArrayLike,
        train: float = FRACTIONS[0],
        test: float = FRACTIONS[2],
        *,
        overlap: bool = True,
        origin: str = "fractions",
    ) -> "Split":
        """Split every item: the first ``int(train * rows)`` train, the last ``int(test * rows)`` test, others validate.

        This is the published rounding (iTransformer, Autoformer: "custom" data sets).

        Args:
            lengths: rows of each item, [items].
            train: fraction of training rows.
            test: fraction of test rows.
            overlap: whether contexts may reach back into the previous part.
            origin: where the numbers come from, for messages.

        Raises:
            InputError: a fraction lies outside [0, 1], or the two together exceed 1.
        """
        if not (0 < train <= 1 and 0 <= test < 1 and train + test <= 1 + 1e-9):
            raise InputError(f"split: expected fractions with 0 < train, train + test <= 1, found {train} and {test}")
        rows = np.asarray(lengths, dtype=np.int64)
        first = (rows * train).astype(np.int64)
        last = rows - (rows * test).astype(np.int64)
        return cls._from_borders(np.stack([0 * rows, first, last, rows], axis=1), origin, overlap)

    @classmethod
    def from_spec(cls, lengths: ArrayLike, borders: Borders, *, origin: str) -> "Split":
        """The published split of a data set, from the catalogue.

        Args:
            lengths: rows of each item, [items].
            borders: the three shares; ``unit`` is "rows" or "fraction".
            origin: name of the data set and the protocol, for messages.

        Raises:
            InputError: an item has fewer rows than the borders need.
        """
        if borders.unit == "fraction":
            return cls.from_fractions(lengths, borders.train, borders.test, overlap=borders.overlap, origin=origin)
        train, val, test = int(borders.train), int(borders.val), int(borders.test)
        return cls.from_rows(lengths, train, val, test, overlap=borders.overlap, origin=origin)

    @classmethod
    def infer(cls, lengths: ArrayLike, context: int, horizon: int) -> "Split":
        """The default split, 70/10/20, stretched so that validation and test contain at least one window.

        Items too short for one window in each part (``context + 3 * horizon`` rows) are left out of all parts.

        Args:
            lengths: rows of each item, [items].
            context: context steps of a window.
            horizon: steps to forecast.

        Raises:
            InputError: every item is too short.
        """
        rows = np.asarray(lengths, dtype=np.int64)
        test = np.maximum((rows * FRACTIONS[2]).astype(np.int64), horizon)
        train = np.minimum((rows * FRACTIONS[0]).astype(np.int64), rows - test - horizon)
        fits = train >= context + horizon
        if not fits.any():
            raise InputError(
                f"too short to train on: found {rows.max(initial=0)} rows in the longest series, expected at least "
                f"{context + 3 * horizon} (context {context} + 3 x horizon {horizon}, one window each to train, "
                f"validate and test; about {_rows_needed(context, horizon)} for the usual 70/10/20): give a smaller "
                "context or horizon, or more rows"
            )
        borders = np.stack([0 * rows, train, rows - test, rows], axis=1) * fits[:, None]
        origin = "70/10/20 % of the rows, inferred"
        if not fits.all():
            origin += f"; {int((~fits).sum())} of {len(rows)} series left out: too short for one window in each part"
        return cls._from_borders(borders, origin, True)

    @classmethod
    def _from_borders(cls, borders: Int[np.ndarray, "items 4"], origin: str, overlap: bool) -> "Split":
        parts = [np.ascontiguousarray(borders[:, i : i + 2], dtype=np.int64) for i in range(3)]
        return cls(parts[0], parts[1], parts[2], origin, overlap)

    def part(self, name: Part) -> Int[np.ndarray, "items 2"]:
        """The row ranges of one part."""
        ranges: dict[str, np.ndarray] = {"train": self.train, "val": self.val, "test": self.test}
        return ranges[name]

    def cuts(
        self, name: Part, context: int, horizon: int
    ) -> tuple[Int[np.ndarray, " items"], Int[np.ndarray, " items"]]:
        """First and last cut (inclusive) of every item's windows with a full context; last < first if there is none.

        Raises:
            InputError: no item has a window in this part.
        """
        begin, end = self.part(name).T
        reach = begin if name == "train" or not self.overlap else np.zeros_like(begin)
        first = np.maximum(begin, reach + context)
        last = np.where(end > begin, end - horizon, first - 1)
        if not (last >= first).any():
            rows = int((end - (reach if name == "train" or not self.overlap else begin)).max(initial=0))
            needed = context + horizon if name == "train" or not self.overlap else horizon
            what = "context + horizon" if needed > horizon else "horizon"
            raise InputError(
                f"no {name} window: expected at least {needed} {name} rows ({what}; context {context}, horizon "
                f"{horizon}), found {rows} ({self.origin}): give a smaller context or horizon, more rows, or another "
                "split"
            )
        return first, last

    def describe(self) -> str:
        """One line for the user: the rows of each part, and where the borders come from."""
        names = ("train", "validate", "test")
        if len(self.train) == 1:
            spans = [f"{n} rows {a + 1}-{b}" for n, (a, b) in zip(names, self._first_ranges(), strict=True)]
        else:
            totals = [int((r[:, 1] - r[:, 0]).sum()) for r in (self.train, self.val, self.test)]
            spans = [f"{n} {t} rows" for n, t in zip(names, totals, strict=True)]
            spans[0] += f" (of {len(self.train)} series)"
        return f"split: {', '.join(spans)} ({self.origin})"

    def _first_ranges(self) -> list[tuple[int, int]]:
        return [(int(r[0, 0]), int(r[0, 1])) for r in (self.train, self.val, self.test)]


def _rows_needed(context: int, horizon: int) -> int:
    """Rows that an item needs for one window in each part of the exact 70/10/20 split."""
    return int(np.ceil(max((context + horizon) / FRACTIONS[0], horizon / FRACTIONS[1])))


@dataclass(frozen=True, eq=False)
class StandardScaler:
    """Scales each variate to mean 0 and population standard deviation 1 on the rows on which it was fitted.

    Attributes:
        mean: mean of each variate; 0 if nothing was observed.
        std: population standard deviation of each variate; 1 if it is constant or unobserved.
    """

    mean: Float[np.ndarray, " V"]
    std: Float[np.ndarray, " V"]

    @classmethod
    def fit(cls, rows: Float[np.ndarray, "rows V"]) -> "StandardScaler":
        """Fit on the observed (not NaN) values of each column."""
        values = np.asarray(rows, dtype=np.float64)
        observed = ~np.isnan(values)
        # Divided by an exact power of two, so that neither sums nor squares overflow or vanish.
        size = np.ldexp(1.0, np.frexp(np.where(observed, np.abs(values), 0.0).max(axis=0, initial=0.0))[1] - 1)
        values = values / size
        count = np.maximum(observed.sum(axis=0), 1)
        mean = np.where(observed, values, 0.0).sum(axis=0) / count
        centred = np.where(observed, values - mean, 0.0)
        std = np.sqrt((centred**2).sum(axis=0) / count)
        # Rounding can give a constant column a tiny deviation, so constant columns are detected by their range.
        low = np.where(observed, values, np.inf).min(axis=0, initial=np.inf)
        high = np.where(observed, values, -np.inf).max(axis=0, initial=-np.inf)
        return cls(mean * size, np.where((low >= high) | (std == 0), 1.0, std * size))

    @classmethod
    def fit_split(
        cls, values: Float[np.ndarray, "rows V"], offsets: Int[np.ndarray, " items_1"], split: Split
    ) -> "StandardScaler":
        """Fit on the training rows of every item.

        Args:
            values: all items one after the other.
            offsets: item i is ``values[offsets[i]:offsets[i + 1]]``.
            split: the borders; only ``split.train`` is read.
        """
        ranges = split.train + np.asarray(offsets)[:-1, None]
        if len(ranges) == 1:
            return cls.fit(values[ranges[0, 0] : ranges[0, 1]])
        change = np.zeros(len(values) + 1, dtype=np.int64)
        np.add.at(change, ranges[:, 0], 1)
        np.add.at(change, ranges[:, 1], -1)
        return cls.fit(values[np.cumsum(change[:-1]) > 0])

    def transform(self, values: Any, axis: int = -1) -> Any:
        """Standardise ``values`` (NumPy array or tensor) whose ``axis`` runs over the variates."""
        mean, std = self._broadcast(values, axis)
        return (values - mean) / std

    def inverse(self, values: Any, axis: int = -1) -> Any:
        """Restore the units of standardised ``values`` (NumPy array or tensor)."""
        mean, std = self._broadcast(values, axis)
        return values * std + mean

    def _broadcast(self, values: Any, axis: int) -> tuple[Any, Any]:
        """Mean and deviation as the type of ``values``, shaped to broadcast along ``axis``."""
        shape = [1] * values.ndim
        shape[axis] = len(self.mean)
        mean, std = self.mean.reshape(shape), self.std.reshape(shape)
        if isinstance(values, np.ndarray):
            return mean, std
        return values.new_tensor(mean), values.new_tensor(std)

    def select(self, variates: Sequence[int]) -> "StandardScaler":
        """The scaler of some of the variates."""
        index = np.asarray(variates, dtype=np.int64)
        return StandardScaler(self.mean[index], self.std[index])
