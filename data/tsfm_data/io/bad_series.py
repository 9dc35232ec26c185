"""Series of a table that cannot be read: recorded with their first error, and reported together."""

from typing import Literal

import numpy as np
from jaxtyping import Int64

from tsfm_data.errors import InputError
from tsfm_data.io.columns import Table
from tsfm_data.io.roles import Roles

OnBad = Literal["error", "skip", "fix"]


class BadSeries:
    """Series of a table that cannot be read, and what to do with them."""

    def __init__(self, table: Table, roles: Roles, ids: tuple[str, ...], what: OnBad, integer: bool) -> None:
        self.integer = integer
        self.table, self.roles, self.ids, self.what = table, roles, ids, what
        self.texts: dict[int, str] = {}  # series -> its first error, with the place
        self.cells: set[int] = set()  # series with only invalid numbers
        # Series -> place of its error in messages: invalid numbers by row, then repeats and other timestamps by series.
        self.order: dict[int, tuple[int, int]] = {}

    def rows(self, problems: dict[int, str], codes: Int64[np.ndarray, " rows"]) -> None:
        """Record invalid numbers, by row."""
        for row, text in sorted(problems.items()):
            code = int(codes[row])
            self._add(code, text, (0, row if self.table.rows is None else int(self.table.rows[row])))
            self.cells.add(code)

    def time(self, row: int, code: int, text: str, repeat: bool = False) -> None:
        """Record a timestamp that makes a series irregular; ``repeat`` if it is one that occurs twice."""
        if self.integer and "1970-01-01" in text:
            text = "expected equal steps from row to row, found others; correct them, or name another time column"
            text += " (--time-column)"
        series = "" if self.roles.item is None else f", series {self.ids[code]!r}"
        self.cells.discard(code)
        self._add(code, f"{self.table.where(row, self.roles.time)}{series}: {text}", (1 if repeat else 2, code))

    def _add(self, code: int, text: str, order: tuple[int, int]) -> None:
        self.texts.setdefault(code, text)
        self.order.setdefault(code, order)

    def add_part(self, part: "BadSeries", first: int) -> None:
        """Add the bad series of a part of the table whose first series has the given number."""
        for code, text in part.texts.items():
            kind, place = part.order[code]
            self._add(code + first, text, (kind, place if kind == 0 else place + first))
        self.cells |= {code + first for code in part.cells}
        self.texts = dict(sorted(self.texts.items(), key=lambda pair: self.order[pair[0]]))

    def check(self) -> None:
        """Raise if there are bad series that are neither skipped nor fixed.

        Raises:
            InputError: names every bad series.
        """
        if not self.texts or (self.what != "error" and len(self.ids) > 1 and len(self.texts) < len(self.ids)):
            return
        first = next(iter(self.texts.values()))
        if len(self.ids) == 1:
            raise InputError(first)
        names = [repr(self.ids[code]) for code in self.texts]
        good = len(self.ids) - len(names)
        others = (
            "" if len(names) == 1 else f"; also bad: {', '.join(names[1:50])}" + (", ..." if len(names) > 50 else "")
        )
        way = "" if not good else "; to continue, give on_bad_series (--on-bad-series skip or fix)"
        raise InputError(f"{first}{others}; {good:,} of {len(self.ids):,} series are good{way}")
