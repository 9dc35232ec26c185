"""Interpolation of the values in a gap from those around it.

Axes: T rows of a series, G steps of a gap.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

SHORTEST_HORIZON = 8  # steps of a forecast; longer ones are powers of two, so that there are few kinds of batches
NEAREST = 3  # values of the same phase on each side that a mean is made of


@dataclass(frozen=True)
class Gap:
    """A run of missing values, or of values that are hidden for a trial.

    Attributes:
        item: its item.
        variate: its variate.
        begin: its first row.
        end: the row after it.
    """

    item: int
    variate: int
    begin: int
    end: int

    @property
    def size(self) -> int:
        """Its number of rows."""
        return self.end - self.begin

    @property
    def horizon(self) -> int:
        """Steps of a forecast that reaches to its other end."""
        return max(SHORTEST_HORIZON, 1 << self.size.bit_length())


def by_line(column: Float64[np.ndarray, " T"], gap: Gap) -> Float64[np.ndarray, " G"]:
    """A straight line between the values at both ends."""
    return np.interp(np.arange(gap.begin, gap.end), (gap.begin - 1, gap.end), (column[gap.begin - 1], column[gap.end]))


def by_season(column: Float64[np.ndarray, " T"], gap: Gap, season: int) -> Float64[np.ndarray, " G"]:
    """A straight line through the values of each phase of the season; NaN for a phase without a value."""
    result = np.full(gap.size, np.nan)
    for phase in range(min(season, gap.size)):
        rows = np.arange((gap.begin + phase) % season, len(column), season)
        known = rows[np.isfinite(column[rows]) & ((rows < gap.begin) | (rows >= gap.end))]
        if len(known):
            result[phase::season] = np.interp(np.arange(gap.begin + phase, gap.end, season), known, column[known])
    return result


def by_means(column: Float64[np.ndarray, " T"], gap: Gap, season: int) -> Float64[np.ndarray, " G"]:
    """The mean of the nearest values of the same phase of the season on both sides; NaN for a phase without one."""
    rows, values = np.arange(gap.begin, gap.end), []
    before, after = -(-(rows - gap.begin + 1) // season), -(-(gap.end - rows) // season)  # seasons to leave the gap
    for k in range(NEAREST):
        for place in (rows - season * (before + k), rows + season * (after + k)):
            inside = (place >= 0) & (place < len(column))
            values.append(np.where(inside, column[np.clip(place, 0, len(column) - 1)], np.nan))
    seen = np.isfinite(values)
    count = seen.sum(axis=0)
    sums = np.where(seen, np.array(values) / (2 * NEAREST), 0.0).sum(axis=0)  # divided first: no overflow
    return np.where(count > 0, sums * (2 * NEAREST / np.maximum(count, 1)), np.nan)


def by_moved_means(column: Float64[np.ndarray, " T"], gap: Gap, season: int) -> Float64[np.ndarray, " G"]:
    """Those means, and the line between what they miss at both ends."""
    wider = Gap(gap.item, gap.variate, gap.begin - 1, gap.end + 1)
    means = by_means(column, wider, season)
    misses = column[gap.begin - 1] - means[0], column[gap.end] - means[-1]
    return means[1:-1] + np.interp(np.arange(1, gap.size + 1), (0, gap.size + 1), misses)
