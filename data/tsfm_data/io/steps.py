"""Timestamps of many series in the units of each kind of step, and the steps that the series have."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Int64

from tsfm_data.io.frequency import DAY, Kind

KINDS: tuple[Kind, ...] = ("tick", "start", "end", "business")
TICK, START, END, BUSINESS = range(4)


@dataclass
class StepCounts:
    """How many series of a table have each step: a kind (its place in ``KINDS``) and a size. Short series take one.

    Attributes:
        pair: the step that short series take; None takes the most common one of the series that are read.
        long: how many series with enough rows have each step.
        every: how many series have each step.
    """

    pair: tuple[int, int] | None = None
    long: Counter[tuple[int, int]] = field(default_factory=Counter)
    every: Counter[tuple[int, int]] = field(default_factory=Counter)

    def most_common(self) -> tuple[int, int] | None:
        """The step of most long series, else of most series; None if there are none."""
        counts = self.long or self.every
        return max(sorted(counts), key=counts.__getitem__) if counts else None


@dataclass(frozen=True)
class SeriesStamps:
    """Timestamps of series, one series after the other.

    Attributes:
        ns: nanoseconds since 1970.
        first: row of each series' first timestamp.
        item: series of each row.
        allowed: [4, items], whether all timestamps of a series are possible with each of ``KINDS``.
    """

    ns: Int64[np.ndarray, " rows"]
    first: Int64[np.ndarray, " items"]
    item: Int64[np.ndarray, " rows"]
    allowed: Bool[np.ndarray, "4 items"]

    @classmethod
    def of(cls, ns: Int64[np.ndarray, " rows"], bounds: Int64[np.ndarray, " borders"]) -> "SeriesStamps":
        """The timestamps of series, and the kinds of steps that each can have.

        Args:
            ns: nanoseconds since 1970, one series after the other, in ascending order inside each.
            bounds: first row of each series, and the number of rows.
        """
        first, last = bounds[:-1], bounds[1:] - 1
        midnight = ns % DAY == 0
        whole_days = np.logical_and.reduceat(midnight, first)
        midnight &= (ns // DAY + 3) % 7 < 5
        weekdays = np.logical_and.reduceat(midnight, first)
        item = np.repeat(np.arange(len(first)), np.diff(bounds))
        ends = [whole_days & at(ns[first]) & at(ns[last]) for at in (_begins_month, _ends_month)]
        for i, at in enumerate((_begins_month, _ends_month)):  # all rows only of series whose first and last rows pass
            rows = np.flatnonzero(ends[i][item])
            off = item[rows[~at(ns[rows])]]
            ends[i][off] = False
        return cls(ns, first, item, np.stack([np.ones_like(whole_days), *ends, weekdays]))

    def unit(self, kind: int) -> Int64[np.ndarray, " rows"]:
        """The timestamps in units of a kind of step: nanoseconds, months or business days."""
        if kind == TICK:
            return self.ns
        stamps = self.ns.view("datetime64[ns]")
        if kind == BUSINESS:
            return np.busday_count(np.datetime64("1970-01-01", "D"), stamps.astype("datetime64[D]")).astype(np.int64)
        return stamps.astype("datetime64[M]").astype(np.int64)

    def relative(self, kind: Int64[np.ndarray, " items"]) -> Int64[np.ndarray, " rows"]:
        """Units from the first row of each row's series."""
        different = np.unique(kind).tolist()
        unit = self.unit(different[0])
        if len(different) > 1:
            unit, own = unit.copy(), kind[self.item]
            for other in different[1:]:
                chosen = own == other
                unit[chosen] = self.unit(other)[chosen]
        return unit - (unit[self.first][self.item] if len(self.first) > 1 else unit[0])


def _begins_month(ns: Int64[np.ndarray, " rows"]) -> Bool[np.ndarray, " rows"]:
    """Which midnights begin a month."""
    day = ns.view("datetime64[ns]").astype("datetime64[D]")
    return day == day.astype("datetime64[M]").astype("datetime64[D]")


def _ends_month(ns: Int64[np.ndarray, " rows"]) -> Bool[np.ndarray, " rows"]:
    """Which midnights begin the last day of a month."""
    return _begins_month(ns + DAY)
