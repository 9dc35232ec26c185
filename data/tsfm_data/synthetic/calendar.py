"""Series of a real calendar: hours, weekdays, months and holidays whose effects fall where dates put them."""

from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int

from tsfm_data.synthetic.sampling import (
    TABLE,
    chance,
    choose,
    choose_blocks,
    finish,
    log_uniform,
    noise,
    normal,
    profiles,
    uniform,
)
from tsfm_data.synthetic.trend_season import trends

WEIGHT = 0.14
ABOUT = "dates and holidays"
ERA = 146_097  # days after which the Gregorian calendar repeats, weekdays included
DAY = 1440  # minutes
MINUTES = np.array([60, 60, 60, 60, 30, 15])  # in one step of a series that is finer than a day
STEPS = ("hours", "days", "weeks", "months")
STEP_WEIGHTS = (42, 36, 10, 12)


class Almanac(NamedTuple):
    """What every day of an era is, by days since 1970-01-01."""

    weekday: Int[np.ndarray, "era"]  # 0 is Monday
    year: Int[np.ndarray, "era"]
    of_year: Int[np.ndarray, "era"]  # 0 on the first of January
    to_end: Int[np.ndarray, "era"]  # days to the end of the month, 1 on its last day


@cache
def almanac() -> Almanac:
    """The tables of one era."""
    day = np.arange(ERA)
    month = day.astype("datetime64[D]").astype("datetime64[M]")
    year = month.astype("datetime64[Y]")
    start, end = (m.astype("datetime64[D]").astype(np.int64) for m in (year, month + 1))
    columns = ((day + 3) % 7, year.astype(np.int64) + 1970, day - start, end - day)  # the first day was a Thursday
    return Almanac(*(column.astype(np.int32) for column in columns))


def calendar(count: int, length: int, rng: np.random.Generator) -> Float[np.ndarray, "count length"]:
    """Series of a random start date and frequency, with the effects that this frequency shows.

    Args:
        count: series.
        length: steps of each.
        rng: source of randomness.
    """
    out = np.empty((count, length), np.float32)
    kind = choose_blocks(rng, STEP_WEIGHTS, count)
    for k, effects in enumerate((hourly, daily, weekly, monthly)):
        rows = np.flatnonzero(kind == k)
        if len(rows):
            # Days since 1970-01-01; from 1980 on, so that what lies before a start exists.
            first = rng.integers(3653, 21915, (len(rows), 1), dtype=np.int32)
            out[rows] = effects(first, length, rng)
    grown = np.where(chance(rng, 0.6, count), log_uniform(rng, 0.05, 1.5, count), 0)
    out += grown * trends(count, length, rng)
    out += log_uniform(rng, 0.02, 0.5, count) * noise(rng, count, length)
    product = np.flatnonzero(rng.random(count) < 0.5)
    reach = np.maximum(np.abs(out[product]).max(1, keepdims=True) / 3, 1)
    out[product] = np.exp(out[product] / reach * uniform(rng, 0.2, 1, len(product)))
    return finish(out)


def hourly(
    first: Int[np.ndarray, "count 1"], length: int, rng: np.random.Generator
) -> Float32[np.ndarray, "count length"]:
    """Steps of an hour or less: daily effects, and hourly profiles that differ on free days in half of the series.

    Args:
        first: day of the first step, since 1970-01-01.
        length: steps.
        rng: source of randomness.
    """
    count = len(first)
    step = MINUTES[rng.integers(0, len(MINUTES), (count, 1))]
    minute = (rng.integers(0, DAY, (count, 1)) // step + np.arange(length)) * step
    place = minute // DAY  # days since the first
    day = first + np.arange(place.max(initial=0) + 1)
    free = free_days(count, rng)
    out = np.take_along_axis(day_effects(day, free, rng), place, 1)
    profile = profiles(rng, np.full(count, 24))
    other = 0.6 * (profile + profiles(rng, np.full(count, 24)))
    resting = np.take_along_axis(free & chance(rng, 0.5, count), almanac().weekday[day % ERA], 1)
    # Both profiles side by side in one table, so that a step reads one value.
    index = (minute + 1) % DAY * TABLE // DAY + TABLE * np.take_along_axis(resting, place, 1)
    return out + log_uniform(rng, 0.3, 3, count) * np.take_along_axis(np.concatenate([profile, other], 1), index, 1)


def daily(
    first: Int[np.ndarray, "count 1"], length: int, rng: np.random.Generator
) -> Float32[np.ndarray, "count length"]:
    """Days, or Monday to Friday alone in a fifth of the series; arguments as of ``hourly``."""
    n = np.arange(length, dtype=np.int32)
    weekday = almanac().weekday[first % ERA]
    position = n + np.minimum(weekday, 4)
    business = first - weekday + position // 5 * 7 + position % 5
    day = np.where(chance(rng, 0.2, len(first)), business, first + n)
    return day_effects(day, free_days(len(first), rng), rng)


def weekly(
    first: Int[np.ndarray, "count 1"], length: int, rng: np.random.Generator
) -> Float32[np.ndarray, "count length"]:
    """Weeks, each with the holidays that it holds; arguments as of ``hourly``."""
    day = first + 7 * np.arange(length, dtype=np.int32)
    return year_profile(day, rng) + holidays(day, 7, rng)


def monthly(
    first: Int[np.ndarray, "count 1"], length: int, rng: np.random.Generator
) -> Float32[np.ndarray, "count length"]:
    """Months, with their lengths and weekdays; arguments as of ``hourly``."""
    months = (first // 30 + np.arange(length)).astype("datetime64[M]")
    start, end = (m.astype("datetime64[D]").astype(np.int64) for m in (months, months + 1))
    return year_profile(start, rng) + trading_days(start, end - start, rng)


def free_days(count: int, rng: np.random.Generator) -> np.ndarray:
    """Which weekdays are free, [count, 7]: Saturday and Sunday, in some places Friday and Saturday."""
    first = np.where(chance(rng, 0.85, count), 5, 4)
    return (np.arange(7) >= first) & (np.arange(7) < first + 2)


def day_effects(
    day: Int[np.ndarray, "count days"], free: np.ndarray, rng: np.random.Generator
) -> Float32[np.ndarray, "count days"]:
    """Time of the year, a level for every weekday, ends of months, paydays, holidays; in units of about one.

    Args:
        day: days since 1970-01-01.
        free: which weekdays are free, [count, 7].
        rng: source of randomness.
    """
    count = len(day)
    levels = normal(rng, count, 7) * np.where(chance(rng, 0.5, count), np.float32(0.15), np.float32(0.6))
    levels += free * uniform(rng, -2, 1, count)
    levels *= np.where(chance(rng, 0.85, count), log_uniform(rng, 0.2, 1.5, count), 0)
    out = year_profile(day, rng) + np.take_along_axis(levels, almanac().weekday[day % ERA], 1)
    to_end = almanac().to_end[day % ERA]
    turn = np.where(chance(rng, 0.25, count), rng.integers(1, 4, (count, 1), dtype=np.int32), np.int32(0))
    payday = np.where(chance(rng, 0.15, count), rng.integers(1, 29, (count, 1), dtype=np.int32), np.int32(0))
    out += (to_end <= turn) * normal(rng, count, 1) + (to_end == payday) * normal(rng, count, 1)
    return out + holidays(day, 1, rng)


def year_profile(day: Int[np.ndarray, "count days"], rng: np.random.Generator) -> Float32[np.ndarray, "count days"]:
    """A cycle of the year, in most of the series."""
    count = len(day)
    table = profiles(rng, np.full(count, 12))
    table *= np.where(chance(rng, 0.7, count), log_uniform(rng, 0.1, 2, count), 0)
    return np.take_along_axis(table, almanac().of_year[day % ERA] * TABLE // 366, 1)


def holidays(
    day: Int[np.ndarray, "count days"], width: int, rng: np.random.Generator
) -> Float32[np.ndarray, "count days"]:
    """Up to three yearly events, each with its own size, in three fifths of the series.

    Args:
        day: days since 1970-01-01.
        width: days in one step.
        rng: source of randomness.
    """
    out = np.zeros(day.shape, np.float32)
    busy = np.flatnonzero(rng.random(len(day)) < 0.6)
    for _ in range(3):
        kind = choose(rng, (5, 3, 3), len(busy))[:, None]
        out[busy] += uniform(rng, -2.5, 2, len(busy)) * holiday(day[busy], width, kind, rng)
    return out


def holiday(
    day: Int[np.ndarray, "count days"], width: int, kind: Int[np.ndarray, "count 1"], rng: np.random.Generator
) -> Float32[np.ndarray, "count days"]:
    """1 at a yearly event, less some days before and after it, 0 elsewhere.

    Args:
        day: days since 1970-01-01.
        width: days in one step; a step of several days has 1 where it holds the event.
        kind: 0 for a fixed date, 1 for the same weekday at about the same date, 2 for one that moves with the moon:
            eleven days earlier every year, within a month, and then to a weekday (as Easter does).
        rng: source of randomness.
    """
    count, tables, today = len(day), almanac(), day % ERA
    date = rng.integers(0, 335, (count, 1), dtype=np.int32)
    of_year = tables.of_year[today]
    event = date + np.where(kind == 2, (-11 * tables.year[today]) % 30, 0)
    # Weekday of that date, from today's; then to the one that it is kept on.
    late = (rng.integers(0, 7, (count, 1), dtype=np.int32) - tables.weekday[today] - (event - of_year)) % 7
    since = of_year - event - np.where(kind > 0, late, 0)
    since = (since + 182) % 366 - 182  # to the nearest one, be it in another year
    if width > 1:
        return ((since <= 0) & (since > -width)).astype(np.float32)
    before, after = rng.integers(1, 9, (count, 1)), rng.integers(1, 5, (count, 1))
    ramp = np.where(since <= 0, since / before.astype(np.float32), -since / after.astype(np.float32))
    return np.maximum(1 + ramp, 0).astype(np.float32)


def trading_days(
    start: Int[np.ndarray, "count length"], days: Int[np.ndarray, "count length"], rng: np.random.Generator
) -> Float32[np.ndarray, "count length"]:
    """What the weekdays that a month has five times add to it, and its length.

    Args:
        start: first day of every month.
        days: its length.
        rng: source of randomness.
    """
    count = len(start)
    weights = normal(rng, count, 7) * np.where(chance(rng, 0.4, count), log_uniform(rng, 0.02, 0.3, count), 0)
    out = 0.1 * weights.mean(1, keepdims=True) * (days - 30)
    for extra in range(28, 31):
        out += np.take_along_axis(weights, almanac().weekday[(start + extra) % ERA], 1) * (days > extra)
    return out.astype(np.float32)
