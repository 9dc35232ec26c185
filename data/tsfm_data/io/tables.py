"""Tables of any kind to series with regular time steps.

``read_series`` reads CSV, Parquet, Arrow, Feather and Excel files, data frames, arrays and GluonTS data sets. All
checks of user input are here and in the modules that it calls; other code can rely on a ``SeriesSet``.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from tsfm_data.errors import InputError, check_sizes
from tsfm_data.io.assemble import Reading, assemble
from tsfm_data.io.bad_series import OnBad
from tsfm_data.io.columns import Table
from tsfm_data.io.frequency import natural_season, normalise
from tsfm_data.io.gluonts import read_gluonts
from tsfm_data.io.objects import Held, from_memory
from tsfm_data.io.readers import read_table
from tsfm_data.io.regroup import Aggregate
from tsfm_data.io.roles import find_roles, joined_time, turned, without_footer, without_units
from tsfm_data.io.series import SeriesSet
from tsfm_data.io.timestamps import read_stamps


def read_series(
    source: Any,
    *,
    time_column: str | None = None,
    item_column: str | None = None,
    target: str | Sequence[str] | None = None,
    past_covariates: str | Sequence[str] = (),
    known_covariates: str | Sequence[str] = (),
    freq: str | pd.offsets.BaseOffset | None = None,
    order: Literal["time", "rows"] = "time",
    name: str | None = None,
    future: Any = None,
    season: int | None = None,
    resample: str | pd.offsets.BaseOffset | None = None,
    aggregate: Aggregate = "mean",
    on_bad_series: OnBad = "error",
    timezone: str | None = None,
    dayfirst: bool | None = None,
    decimal: Literal[".", ","] | None = None,
    holidays: Sequence[str] = (),
    own_hours: bool = True,
    later: bool = False,
) -> SeriesSet:
    """Series of a table.

    A long table (with a column such as ``item_id`` or ``unique_id``) gives one item per id, with ``target`` (or ``y``,
    ``value``) as its variate. A wide table (a date column and one numeric column per variate) gives one item. Gaps in
    time are filled with missing values. The ``notes`` of the result say how the table was read.

    Args:
        source: CSV, Parquet, Arrow, Feather or Excel file ("-" is standard input); a data frame of pandas or of any
            library with the Arrow or the data-frame interchange protocol; a pandas Series; an array, list or tensor
            of shape [T], [N, T] or [N, V, T] (N series, V variates, T steps), or a list of arrays [T] or [V, T]; a
            GluonTS data set.
        time_column: name of the time column; None infers it.
        item_column: name of the column with the ids of the series; None infers it, "" means that there is none.
        target: name or names of the value columns; None infers them.
        past_covariates: columns known only up to the present.
        known_covariates: columns whose future is known, too; rows at the end without any target are then the future.
        freq: frequency of all series; None takes the most common step of each series. Timestamps that are late or early
            by less than a quarter of a step are moved onto the grid. A weekly pattern may follow an "@"
            (``15min@MON-FRI 09:30-15:45``); None infers it. For an array, which has no timestamps, it sets the season.
        order: "time" checks the timestamps. "rows" uses only the first one and takes the rows as equally spaced, as the
            long-horizon literature does.
        name: name of the set; None takes the stem of the file.
        future: a second table with future rows: times, ids and known covariates (all its other columns, unless
            ``known_covariates`` names some).
        season: season length in steps; None takes that of the frequency.
        resample: frequency to resample to first.
        aggregate: how resampling combines the targets of a period.
        on_bad_series: what to do if some series of a long table cannot be read: "error" raises and names them, "skip"
            leaves them out, "fix" resamples them to the step of the others and treats invalid numbers as missing.
        timezone: time zone of timestamps without one; other timestamps are converted to it.
        dayfirst: whether 01/02/2024 is 1 February; None infers it from the column.
        decimal: decimal mark of numbers in text; None infers it from the column.
        holidays: dates that are not business days, or a file with one per line (with ``freq`` "B" or "C").
        own_hours: whether series with values only at some hours or weekdays have steps only there; if not, all other
            times are gaps.
        later: whether the rows continue a table that was read before: each series may then have a single row, and a
            column no value.

    Raises:
        InputError: the table cannot be read; one line says what is wrong and where.
    """
    time_column, item_column = _name("time_column", time_column), _name("item_column", item_column)
    freq = _word("freq", getattr(freq, "freqstr", freq), "D")
    resample = _word("resample", getattr(resample, "freqstr", resample), "D")
    target = None if target is None else _names("target", target)
    past_covariates = _names("past_covariates", past_covariates)
    known_covariates = _names("known_covariates", known_covariates)
    timezone = _word("timezone", timezone, "Europe/Berlin")
    _check_choice("order", order, ("time", "rows"))
    _check_choice("aggregate", aggregate, get_args(Aggregate))
    _check_choice("on_bad_series", on_bad_series, get_args(OnBad))
    _check_choice("dayfirst", dayfirst, (None, True, False))
    _check_choice("decimal", decimal, (None, ".", ","))
    check_sizes("give season (--season 7)", season=season)
    known_roles: dict[str, Any] = {}
    if isinstance(source, str | Path):
        table = read_table(Path(source), item_column, decimal)
    else:
        held = from_memory(source)
        if held is None:
            return read_gluonts(source, freq=freq, name=name or "dataset")
        table, known_roles = _plain(held, "table"), held.roles or {}
        if freq is not None and known_roles.get("time_column") == "step":
            freq, season = None, season or natural_season(freq)
    if len(table.frame) == 0:
        raise InputError(f"{table.source}: expected rows of values, found only a header")
    if holidays:
        freq = with_holidays(freq, holidays)
    reading = Reading(freq, order, resample, aggregate, on_bad_series, dayfirst, timezone, season, own_hours, later)
    table = prepare(table, time_column or known_roles.get("time_column"), decimal)
    roles_given: dict[str, Any] = {"time_column": time_column, "item_column": item_column, "target": target}
    roles_given = {role: known_roles.get(role) if value is None else value for role, value in roles_given.items()}
    if future is not None:
        table, known_covariates = _with_future(table, future, roles_given, past_covariates, known_covariates)
    roles = find_roles(table, **roles_given, past=past_covariates, known=known_covariates)
    table = without_units(without_footer(table, roles.time), roles.time)
    return assemble(table, roles, reading, name or table.name)


def prepare(table: Table, time_column: str | None = None, decimal: str | None = None) -> Table:
    """The table with one time column: transposed if dates are its columns, joined if date and hour are two columns, and
    the row numbers if it has only one column."""
    table = replace(table, decimal=decimal)
    if table.frame.shape[1] == 1 and pd.api.types.is_numeric_dtype(table.frame.iloc[:, 0]) and time_column is None:
        frame = table.frame.copy()
        frame.insert(0, "step", np.arange(len(frame)))
        note = f"one column and no time column: rows are taken as steps 0 to {len(frame) - 1}"
        return replace(table, frame=frame, notes=(*table.notes, note))
    return joined_time(turned(table), time_column)


def with_holidays(freq: str | None, holidays: Sequence[str]) -> str:
    """The frequency of business days without holidays.

    Raises:
        InputError: the holidays are no dates, or the frequency is no business day.
    """
    try:
        given = [holidays] if isinstance(holidays, str) else list(holidays)
        if len(given) == 1 and isinstance(given[0], str | Path) and Path(given[0]).is_file():
            given = Path(given[0]).read_text(encoding="utf-8").split()
        days = sorted({str(pd.Timestamp(day).date()) for day in given})
    except (TypeError, ValueError) as error:
        raise InputError(
            f"holidays: expected dates such as 2024-12-25, or a file with one per line, found {error}"
        ) from error
    if freq is not None and normalise(freq) not in ("B", "C"):
        raise InputError(f"expected frequency B or C with holidays, found {freq!r}: give freq (--freq B)")
    return f"B@-{'-'.join(days)}"


def _with_future(
    table: Table, future: Any, given: dict[str, Any], past: Sequence[str], known: Sequence[str]
) -> tuple[Table, Sequence[str]]:
    """The table with the rows of the future appended, and the names of the known covariates."""
    if isinstance(future, str | Path):
        later = read_table(Path(future), given["item_column"])
    else:
        held = from_memory(future)
        if held is None:
            raise InputError(
                f"expected a second table with the rows of the future, found {type(future).__name__}: give a data frame"
            )
        later = _plain(replace(held, source="the future table"), "future")
    later = prepare(later, given["time_column"])
    roles = find_roles(table, **given, past=past, known=known)
    needed = [roles.time, *([roles.item] if roles.item else []), *known]
    for column in needed:
        if column not in later.frame.columns:
            raise InputError(
                f"{later.source}: expected the columns {', '.join(needed)} of the first table, found no {column!r}"
            )
    if not known:
        others = [c for c in later.frame.columns if c not in (*needed, *roles.target)]
        known = [c for c in others if c in table.frame.columns]
        if not known and given["target"] is None:  # what the future holds is no target
            known = [c for c in roles.target if c in later.frame.columns and later.frame[c].notna().any()]
            given["target"] = tuple(c for c in roles.target if c not in known)
        if not known or given["target"] == ():
            raise InputError(
                f"{later.source}: expected a column of the first table that is known in the future, found "
                f"{', '.join(map(str, others)) or 'none'}; name it with known_covariates (--known-covariates)"
            )
    columns = [roles.time, *([roles.item] if roles.item else []), *known]
    rows = later.frame[columns].copy()
    if rows[roles.time].dtype != table.frame[roles.time].dtype:
        stamps = [read_stamps(t, roles.time) for t in (table, later)]
        if stamps[0].zone == stamps[1].zone:
            frames = [table.frame.copy(), rows]
            for frame, stamp in zip(frames, stamps, strict=True):
                frame[roles.time] = stamp.ns if stamp.integer else stamp.ns.view("datetime64[ns]")
            table, rows = replace(table, frame=frames[0]), frames[1]
    if roles.item and rows[roles.item].dtype != table.frame[roles.item].dtype:
        rows[roles.item] = rows[roles.item].astype(table.frame[roles.item].dtype)
    frame = pd.concat([table.frame, rows], ignore_index=True)
    history, rows = frame.iloc[: len(table.frame)], frame.iloc[len(table.frame) :][columns]
    # Rows that repeat the history become its rows, so that they are left out as duplicates.
    rows = rows.merge(history.drop_duplicates(columns), how="left", on=columns)
    frame = pd.concat([history, rows], ignore_index=True)
    given.update(time_column=roles.time, item_column=roles.item or "", target=given["target"] or roles.target)
    return replace(table, frame=frame, later=replace(later, frame=rows)), known


def _plain(held: Held, name: str) -> Table:
    """The table with dates and item ids of its index as columns."""
    frame, index = held.frame, held.frame.index
    if isinstance(index, pd.DatetimeIndex | pd.PeriodIndex):
        frame = frame.rename_axis(index=str(index.name or "timestamp")).reset_index()
    else:
        frame = frame.reset_index(drop=not isinstance(index, pd.MultiIndex))
    frame = frame.set_axis([str(name) for name in frame.columns], axis="columns")
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise InputError(f"{held.source}: expected different column names, found {twice[0]!r} more than once")
    return Table(frame, held.source, name, notes=held.notes)


def _name(what: str, value: Any) -> str | None:
    """One name that was given, or None."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # the columns of a frame made from an array
    return _word(what, value, "name")


def _word(what: str, value: Any, example: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise InputError(f"expected one name as {what}, found {value!r:.60}: give {what}={example!r}")


def _names(what: str, value: Any) -> tuple[str, ...]:
    """Names that were given, one or several."""
    several = isinstance(value, Sequence | pd.Index | np.ndarray) and not isinstance(value, str | bytes)
    names = [_name(what, part) for part in (value if several else [value])]
    if None in names:
        raise InputError(f"expected names as {what}, found {value!r:.60}: give {what}=['a', 'b']")
    return tuple(str(name) for name in names)


def _check_choice(what: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        known = ", ".join(map(repr, choices))
        raise InputError(f"expected {what} to be one of {known}, found {value!r:.60}: choose one of these")
