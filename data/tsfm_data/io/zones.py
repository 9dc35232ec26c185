"""Time zones: conversion between local time and UTC, and detection of the zone of a table."""

import re
import zoneinfo
from functools import cache

import numpy as np
import pandas as pd
from jaxtyping import Int64

from tsfm_data.errors import InputError, unknown_name
from tsfm_data.io.calendars import DAY

OFFSET = re.compile(r"[+-]([01]\d|2[0-3]):?[0-5]\d")
# Tried first, so that the best-known name of a zone is found.
USUAL = (
    "Europe/Berlin",
    "Europe/London",
    "America/New_York",
    "America/Chicago",
    "America/Denver",
    "America/Los_Angeles",
    "Europe/Athens",
    "Australia/Sydney",
    "Australia/Adelaide",
    "Pacific/Auckland",
    "America/Sao_Paulo",
    "Asia/Kolkata",
    "Asia/Shanghai",
    "Asia/Tokyo",
)


@cache
def all_zones() -> tuple[str, ...]:
    """Names of zones, the usual ones first."""
    return (*USUAL, *sorted(name for name in zoneinfo.available_timezones() if "/" in name and name not in USUAL))


def check_zone(name: str) -> str:
    """The name of a zone.

    Raises:
        InputError: there is no such zone.
    """
    if name.upper() in ("UTC", "GMT", "Z"):
        return "UTC"
    if name not in zoneinfo.available_timezones() and not OFFSET.fullmatch(name):
        raise unknown_name("time zone", name, zoneinfo.available_timezones())
    return name


def to_wall(ns: Int64[np.ndarray, " rows"], zone: str) -> Int64[np.ndarray, " rows"]:
    """UTC to local time of a zone, in nanoseconds."""
    if zone == "UTC":
        return ns
    index = pd.DatetimeIndex(ns.view("datetime64[ns]"), tz="UTC").tz_convert(zone).tz_localize(None)
    return index.to_numpy().view(np.int64)


def to_instants(ns: Int64[np.ndarray, " rows"], zone: str, where: str) -> Int64[np.ndarray, " rows"]:
    """Local time of a zone to UTC; times that occur twice, when clocks are set back, are resolved by their order.

    Raises:
        InputError: a local time that does not exist.
    """
    index = pd.DatetimeIndex(ns.view("datetime64[ns]"))
    try:
        return index.tz_localize(zone, ambiguous="infer").tz_convert("UTC").tz_localize(None).to_numpy().view(np.int64)
    except ValueError:
        pass
    late = index.tz_localize(zone, ambiguous=np.zeros(len(index), bool), nonexistent="NaT")
    lost = np.flatnonzero(late.isna())
    if len(lost):
        raise InputError(
            f"{where}: expected local times of {zone}, found {index[lost[0]]}, which does not exist there: give the "
            "time zone of the table with timezone (--timezone)"
        )
    early = index.tz_localize(zone, ambiguous=np.ones(len(index), bool))
    first = pd.Series(index).duplicated(keep="last").to_numpy()  # of two equal times, the first row is the earlier one
    return np.where(first, early.asi8, late.asi8)


def zone_of_offsets(ns: Int64[np.ndarray, " rows"], offset: Int64[np.ndarray, " rows"]) -> str:
    """The time zone of UTC timestamps with these offsets (nanoseconds).

    A single offset is a zone by itself, such as "+01:00". Several give the first zone that had them at these times,
    common zones first; if there is none, the last offset is used.
    """
    if (offset == offset[0]).all():
        return fixed(int(offset[0]))
    for name in all_zones():
        if (to_wall(ns, name) - ns == offset).all():
            return name
    return fixed(int(offset[-1]))


def fixed(offset: int) -> str:
    """The zone of a constant offset in nanoseconds: "UTC", or for example "+05:30"."""
    minutes = abs(offset) // 60_000_000_000
    return "UTC" if minutes == 0 else f"{'-' if offset < 0 else '+'}{minutes // 60:02d}:{minutes % 60:02d}"


def midnight_zone(ns: Int64[np.ndarray, " rows"]) -> str | None:
    """The zone in which all UTC timestamps are at midnight, if they have two times of day in UTC; else None."""
    times = np.unique(ns % DAY)
    if len(times) != 2 or abs(int(times[1] - times[0])) not in (DAY // 24, DAY // 24 * 23):
        return None
    return next((name for name in all_zones() if (to_wall(ns, name) % DAY == 0).all()), None)


def clock_change(ns: int) -> str | None:
    """A common zone in which this local time occurs twice; None if there is none."""
    stamp = pd.Timestamp(ns)
    return next((name for name in USUAL if pd.isna(stamp.tz_localize(name, ambiguous="NaT", nonexistent="NaT"))), None)
