"""Series with effects of the real calendar: hours, weekdays, months and holidays of true dates."""

from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int

from tsfm_data.synthetic.sampling import (
    TABLE,
    chance,
    choose,
    choose_blocks,
    log_uniform,
    noise,
    normal,
    profiles,
    to_float32,
    uniform,
)
from tsfm_data.synthetic.trend_season import trends

WEIGHT = 0.14
ABOUT = "dates and holidays"
ERA = 146_097  # days after which the Gregorian calendar repeats, weekdays included
DAY = 1440  # minutes
MINUTES = np.array([60, 30, 15, 10, 5, 1])  # in one step of a series that is finer than a day
MINUTE_WEIGHTS = (40, 15, 18, 10, 12, 5)
STEPS = ("hours", "days", "weeks", "months")
STEP_WEIGHTS = (42, 36, 10, 12)


class Almanac(NamedTuple):
    """Calendar fields of every day of an era, indexed by days since 1970-01-01."""

    weekday: Int[np.ndarray, " era"]  # 0 is Monday
    year: Int[np.ndarray, " era"]
    of_year: Int[np.ndarray, " era"]  # 0 on the first of January
    to_end: Int[np.ndarray, " era"]  # days to the end of the month, 1 on its last day


@cache
def almanac() -> Almanac:
    """Compute the tables of one era."""
    day = np.arange(ERA)
    month = day.astype("datetime64[D]").astype("datetime64[M]")
    year = month.astype("datetime64[Y]")
    start, end = (m.astype("datetime64[D]").astype(np.int64) for m in (year, month + 1))
    columns = ((day + 3) % 7, year.astype(np.int64) + 1970, day - start, end - day)  # the first day was a Thursday
    return Almanac(*(column.astype(np.int32) for column in columns))


def calendar(count: int, length: int, rng: np.random.Generator) -> Float[np.ndarray, "count length"]:
    """Series with a random start date and frequency, and the calendar effects visible at that frequency.

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
            # Days since 1970-01-01; from 1980 on, so that days before the start have tables, too.
            first = rng.integers(3653, 21915, (len(rows), 1), dtype=np.int32)
            out[rows] = effects(first, length, rng)
    trend_size = np.where(chance(rng, 0.6, count), log_uniform(rng, 0.05, 1.5, count), 0)
    out += trend_size * trends(count, length, rng)
    out += log_uniform(rng, 0.02, 0.5, count) * noise(rng, count, length)
    product = np.flatnonzero(rng.random(count) < 0.5)
    reach = np.maximum(np.abs(out[product]).max(1, keepdims=True) / 3, 1)
    out[product] = np.exp(out[product] / reach * uniform(rng, 0.2, 1, len(product)))
    return to_float32(out)


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
    step = MINUTES[choose(rng, MINUTE_WEIGHTS, count)][:, None]
    minute = (rng.integers(0, DAY, (count, 1)) // step + np.arange(length)) * step
    day_index = minute // DAY
    day = first + np.arange(day_index.max(initial=0) + 1)
    free = free_days(count, rng)
    out = np.take_along_axis(day_effects(day, free, rng), day_index, 1)
    profile = profiles(rng, np.full(count, 24))
    free_profile = 0.6 * (profile + profiles(rng, np.full(count, 24)))
    resting = np.take_along_axis(free & chance(rng, 0.5, count), almanac().weekday[day % ERA], 1)
    # Both profiles side by side in one table, so that a step reads one value.
    index = (minute + 1) % DAY * TABLE // DAY + TABLE * np.take_along_axis(resting, day_index, 1)
    return out + log_uniform(rng, 0.3, 3, count) * np.take_along_axis(
        np.concatenate([profile, free_profile], 1), index, 1
    )


def daily(
    first: Int[np.ndarray, "count 1"], length: int, rng: np.random.Generator
) -> Float32[np.ndarray, "count length"]:
    """Daily steps, or Monday to Friday only in a fifth of the series; arguments as for ``hourly``."""
    n = np.arange(length, dtype=np.int32)
    weekday = almanac().weekday[first % ERA]
    position = n + np.minimum(weekday, 4)
    business = first - weekday + position // 5 * 7 + position % 5
    day = np.where(chance(rng, 0.2, len(first)), business, first + n)
    return day_effects(day, free_days(len(first), rng), rng)


def weekly(
    first: Int[np.ndarray, "count 1"], length: int, rng: np.random.Generator
) -> Float32[np.ndarray, "count length"]:
    """Weekly steps, each with its holidays; arguments as for ``hourly``."""
    day = first + 7 * np.arange(length, dtype=np.int32)
    return year_profile(day, rng) + holidays(day, 7, rng)


def monthly(
    first: Int[np.ndarray, "count 1"], length: int, rng: np.random.Generator
) -> Float32[np.ndarray, "count length"]:
    """Monthly steps, with effects of their lengths and weekdays; arguments as for ``hourly``."""
    months = (first // 30 + np.arange(length)).astype("datetime64[M]")
    start, end = (m.astype("datetime64[D]").astype(np.int64) for m in (months, months + 1))
    return year_profile(start, rng) + trading_days(start, end - start, rng)


def free_days(count: int, rng: np.random.Generator) -> np.ndarray:
    """Booleans [count, 7] of the free weekdays: Saturday and Sunday, in some series Friday and Saturday."""
    first = np.where(chance(rng, 0.85, count), 5, 4)
    return (np.arange(7) >= first) & (np.arange(7) < first + 2)


def day_effects(
    day: Int[np.ndarray, "count days"], free: np.ndarray, rng: np.random.Generator
) -> Float32[np.ndarray, "count days"]:
    """Sum of yearly cycle, weekday levels, ends of months, paydays and holidays, each of about unit size.

    Args:
        day: days since 1970-01-01.
        free: booleans of the free weekdays, [count, 7].
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
    """A yearly cycle, in most of the series."""
    count = len(day)
    table = profiles(rng, np.full(count, 12))
    table *= np.where(chance(rng, 0.7, count), log_uniform(rng, 0.1, 2, count), 0)
    return np.take_along_axis(table, almanac().of_year[day % ERA] * TABLE // 366, 1)


def holidays(
    day: Int[np.ndarray, "count days"], width: int, rng: np.random.Generator
) -> Float32[np.ndarray, "count days"]:
    """Up to three yearly events of random size, in three fifths of the series.

    Args:
        day: days since 1970-01-01.
        width: days in one step.
        rng: source of randomness.
    """
    out = np.zeros(day.shape, np.float32)
    rows = np.flatnonzero(rng.random(len(day)) < 0.6)
    for _ in range(3):
        kind = choose(rng, (5, 3, 3), len(rows))[:, None]
        out[rows] += uniform(rng, -2.5, 2, len(rows)) * holiday(day[rows], width, kind, rng)
    return out


def holiday(
    day: Int[np.ndarray, "count days"], width: int, kind: Int[np.ndarray, "count 1"], rng: np.random.Generator
) -> Float32[np.ndarray, "count days"]:
    """1 at a yearly event, falling to 0 within some days before and after it.

    Args:
        day: days since 1970-01-01.
        width: days in one step; a step of several days is 1 if it contains the event.
        kind: 0 for a fixed date, 1 for a fixed weekday near a date, 2 for a date that moves like Easter: eleven
            days earlier every year, within a month, and then to a fixed weekday.
        rng: source of randomness.
    """
    count, tables, today = len(day), almanac(), day % ERA
    date = rng.integers(0, 335, (count, 1), dtype=np.int32)
    of_year = tables.of_year[today]
    event = date + np.where(kind == 2, (-11 * tables.year[today]) % 30, 0)
    # Days from that date to the weekday of the event.
    late = (rng.integers(0, 7, (count, 1), dtype=np.int32) - tables.weekday[today] - (event - of_year)) % 7
    since = of_year - event - np.where(kind > 0, late, 0)
    since = (since + 182) % 366 - 182  # to the nearest event, possibly of another year
    if width > 1:
        return ((since <= 0) & (since > -width)).astype(np.float32)
    before, after = rng.integers(1, 9, (count, 1)), rng.integers(1, 5, (count, 1))
    ramp = np.where(since <= 0, since / before.astype(np.float32), -since / after.astype(np.float32))
    return np.maximum(1 + ramp, 0).astype(np.float32)


def trading_days(
    start: Int[np.ndarray, "count length"], days: Int[np.ndarray, "count length"], rng: np.random.Generator
) -> Float32[np.ndarray, "count length"]:
    """Effects of the weekdays that occur five times in a month, and of its length.

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
