"""Counts of the rows and series of a table, for its notes; the counts of its parts add up."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from tsfm_data.io.frequency import normalise

MOST_NAMES = 5  # that a note lists


def first_names(names: Iterable[str]) -> str:
    """The first different names, and how many there are."""
    names = list(dict.fromkeys(names))
    return ", ".join(names[:MOST_NAMES]) + (f", ... ({len(names)})" if len(names) > MOST_NAMES else "")


@dataclass
class RowCounts:
    """Counts of the rows and series of a table.

    Attributes:
        series: series in the table.
        inner: rows that follow another row of their series.
        back: rows older than the row before them in their series.
        unfinished: rows left out of sums, as their period is incomplete.
        resampled: rows before and steps after resampling.
        duplicates: rows that repeat another one.
        bad: names of series that are skipped or fixed.
        step: frequency to which some of them are resampled; "" if none are.
        lost: names of series without a valid row.
        moved: timestamps moved onto the grid.
        rows: rows on the grid.
        steps: steps of the grid.
        freqs: series of each frequency.
    """

    series: int = 0
    inner: int = 0
    back: int = 0
    unfinished: int = 0
    resampled: tuple[int, int] = (0, 0)
    duplicates: int = 0
    bad: list[str] = field(default_factory=list)
    step: str = ""
    lost: list[str] = field(default_factory=list)
    moved: int = 0
    rows: int = 0
    steps: int = 0
    freqs: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: "RowCounts") -> "RowCounts":
        """The counts of both."""
        pair = self.resampled[0] + other.resampled[0], self.resampled[1] + other.resampled[1]
        sums = {name: getattr(self, name) + value for name, value in vars(other).items() if name != "resampled"}
        return RowCounts(**sums | {"resampled": pair, "step": self.step or other.step})

    def notes(self, resample: str | None, aggregate: str, fixed: bool, sparse: bool) -> list[str]:
        """Notes about the rows.

        Args:
            resample: frequency to which they were resampled.
            aggregate: how.
            fixed: whether bad series were fixed; else they were skipped.
            sparse: whether many missing steps are worth a note.
        """
        notes = []
        if self.back:
            newest = self.back > 0.9 * self.inner
            count = f"{self.back:,} were out of order"
            notes.append("rows were newest first: sorted by time" if newest else f"rows sorted by time ({count})")
        if self.unfinished:
            notes.append(
                f"the last period of {resample} is incomplete: its {self.unfinished:,} rows are left out of the sums"
            )
        if resample is not None:
            rows, steps = self.resampled
            notes.append(f"{rows:,} rows resampled to {steps:,} steps of {normalise(resample)} ({aggregate})")
        if self.duplicates:
            count = f"{self.duplicates:,} duplicate rows" if self.duplicates > 1 else "1 duplicate row"
            notes.append(f"{count} left out")
        of = f"of {self.series:,} series"
        if self.bad:
            how = f"resampled to {self.step}" if self.step else "invalid numbers taken as missing"
            what = f"fixed ({how})" if fixed else "skipped"
            notes.append(f"{len(self.bad):,} {of} {what}: {first_names(self.bad)}")
        if self.lost:
            notes.append(f"{len(self.lost):,} {of} left out, which have no valid row: {first_names(self.lost)}")
        if self.moved:
            notes.append(
                f"{self.moved:,} of {self.rows:,} timestamps moved onto the regular grid of {first_names(self.freqs)}"
            )
        absent = self.steps - self.rows
        if absent > self.rows and sparse:
            notes.append(
                f"{absent:,} of {self.steps:,} steps of {first_names(self.freqs)} have no row and count as missing; if "
                "the step is another, give freq (--freq)"
            )
        return notes
