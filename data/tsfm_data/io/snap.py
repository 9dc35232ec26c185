"""Timestamps that are slightly late or early, moved onto a regular grid."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from tsfm_data.io.calendars import DAY

SECOND = 1_000_000_000
STEPS = np.array(
    [
        *(n * SECOND for n in (1, 2, 5, 10, 15, 20, 30)),
        *(n * 60 * SECOND for n in (1, 2, 3, 5, 6, 10, 12, 15, 20, 30)),
        *(n * 3600 * SECOND for n in (1, 2, 3, 4, 6, 8, 12)),
        DAY,
        7 * DAY,
        14 * DAY,
    ]
)
MONTHS = {1: (27.5, 31.6), 3: (88.0, 93.6), 6: (180.0, 185.0), 12: (363.0, 368.0)}  # range of days in so many months
NEAR = 0.12  # largest relative distance of the median step from one of ``STEPS``
FAR = 0.25  # largest distance of a timestamp from the grid, in steps
FEW = 8  # with fewer rows, timestamps are close to a grid by chance


class Snapped(NamedTuple):
    """Timestamps on a grid; ``day`` is the common day of the month of the original ones, 0 if there is none."""

    ns: Int64[np.ndarray, " rows"]
    day: int = 0


def snap(ns: Int64[np.ndarray, " rows"]) -> Snapped | None:
    """Ascending timestamps of one series, moved by at most a quarter of a step onto a grid.

    None if there is no such grid, or if two timestamps would become equal.
    """
    if len(ns) < 3:
        return None
    usual = float(np.median(np.diff(ns)))
    for size, (low, high) in MONTHS.items():
        if low * DAY <= usual <= high * DAY:
            return _months(ns, size)
    step = int(STEPS[np.abs(np.log(STEPS / usual)).argmin()])
    mean = (float(ns[-1]) - float(ns[0])) / (len(ns) - 1)
    if min(abs(usual / step - 1), abs(mean / step - 1)) > NEAR:
        return None
    week = step % (7 * DAY) == 0
    phase = _phase(ns, step)
    if phase is None:  # days at any time of the day
        place = ns // DAY
        return Snapped(place * DAY) if (np.diff(place) > 0).all() else None
    place = np.round((ns - phase) / step).astype(np.int64)
    snapped = place * step + phase
    off = np.abs(ns - snapped) / step
    if (np.diff(place) <= 0).any() or off.max() > (0.5 if week else FAR):
        return None
    whole = len(ns) >= 0.8 * (place[-1] - place[0] + 1)  # few weeks without a row
    if (np.mean(off <= NEAR) < 0.5 and not (week and whole)) or (len(ns) < FEW and off.max() > NEAR):
        return None
    return Snapped(snapped)


def _phase(ns: Int64[np.ndarray, " rows"], step: int) -> int | None:
    """Offset of the grid within a step: 0 if all timestamps are close to it, else that of at least half of them."""
    rest = ns % step
    if step < DAY and np.minimum(rest, step - rest).max() <= FAR * step:
        return 0
    values, counts = np.unique(rest, return_counts=True)
    if counts.max() >= 0.5 * len(ns):
        return int(values[counts.argmax()])
    if step == DAY:
        return None
    if step > DAY:  # weeks whose weekday moved: the usual weekday, at midnight
        days, counts = np.unique(rest // DAY, return_counts=True)
        return int(days[counts.argmax()]) * DAY
    angle = np.angle(np.exp(2j * np.pi * rest / step).mean()) / (2 * np.pi)
    return round(float(angle) * step) % step


def _months(ns: Int64[np.ndarray, " rows"], size: int) -> Snapped | None:
    """Dates moved to the first or last day of months, quarters or years; a common day of every month is kept."""
    stamps = ns.view("datetime64[ns]")
    month = stamps.astype("datetime64[M]")
    day = (stamps.astype("datetime64[D]") - month.astype("datetime64[D]")).astype(np.int64) + 1
    late = day >= 16
    if (day == day[0]).all() and 1 < day[0] <= 28 and size == 1 and not (ns % DAY).any():
        near, kept = month, int(day[0])
    elif late.all() or (~late).all():
        near, kept = month, 0
    else:  # around the first of a month
        near, kept = month + late.astype(np.int64), 0
    place = near.astype(np.int64)
    if (np.diff(place) <= 0).any() or ((place - place[0]) % size).any():
        return None
    if late.all() and not kept and day.min() >= 20:
        dates = (near + 1).astype("datetime64[D]") - 1
    else:
        dates = near.astype("datetime64[D]")
    return Snapped(dates.astype("datetime64[ns]").astype(np.int64), kept)
