"""The columns of a table of runs as numbers: words for missing losses, suffixes such as 70M, units, and filters."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64

from tsfm_data.errors import InputError, unknown_name
from tsfm_data.io import Table, numbers, read_table

MIXED = 1000.0  # ratio of neighbouring values from which units must be mixed
SUFFIXES = {"k": 1e3, "m": 1e6, "b": 1e9, "bn": 1e9, "g": 1e9, "t": 1e12}
FAILED = (
    *("inf", "-inf", "+inf", "infinity", "-infinity", "nan", "n/a", "na", "none", "null", "-", ""),
    *("diverged", "failed", "crashed"),
)  # losses of runs without one
STATES = ("state", "status")  # columns that tell which runs have ended
ENDED = ("finished", "done", "completed", "complete", "success", "succeeded")
RUN_NAMES = ("run", "run_name", "run name", "name", "run_id", "run id", "id")
STEPS = ("_step", "step", "global_step", "trainer/global_step")
# Tokens per parameter of any serious training lie between these; beyond them a unit is doubtful.
TOKENS_PER_PARAMETER = (1e-2, 1e4)
SMALLEST = 100  # parameters of any model
# Words in the names of columns that hold a metric of forecasts; the smaller, the better.
METRICS = frozenset(
    [
        "loss",
        "nll",
        "mase",
        "wql",
        "crps",
        "mae",
        "mse",
        "rmse",
        "nrmse",
        "mape",
        "smape",
        "nd",
        "owa",
        "ql",
        "pinball",
        "perplexity",
    ]
)
MOST_METRICS = 12
EXTREMES = ("__MIN", "__MAX")  # endings of columns of W&B
BY_RUN = "a column for each run"


def open_ledger(path: Path) -> Table:
    """The table in a file, also of JSON objects, or of a chart of W&B with a column for each run.

    Raises:
        InputError: no such file, or not a table.
    """
    if path.suffix.lower() not in (".json", ".jsonl", ".ndjson") or not path.is_file():
        return by_run(read_table(path))
    try:
        with path.open("rb") as file:
            is_array = file.read(1024).lstrip().startswith(b"[")
        frame = pd.read_json(path, lines=not is_array, dtype=False, convert_dates=False)
    except ValueError as error:
        raise InputError(
            f"{path}: expected an array of JSON objects, or one object in each line, found something else ({error})"
        ) from error
    return Table(frame, str(path), path.stem)


def by_run(table: Table) -> Table:
    """A table with columns such as "run-1 - eval/loss" as one with a row for each run and step; others as they are.

    Columns of the smallest and largest value of a group of runs (``__MIN``, ``__MAX``) are left out. A metric with one
    value in a run, such as its size, holds for all rows of the run.
    """
    frame = table.frame.set_axis(table.frame.columns.astype(str), axis=1)
    wide = [name for name in frame.columns if " - " in name]
    if len(wide) <= len(frame.columns) / 2:
        return table
    shared = frame.drop(columns=wide)
    of_run: dict[str, dict[str, pd.Series]] = {}
    for name in wide:
        run, _, metric = name.rpartition(" - ")
        if not metric.endswith(EXTREMES):
            of_run.setdefault(run, {})[metric] = frame[name]
    parts = []
    for run, metrics in of_run.items():
        part = pd.DataFrame(metrics)
        part = part[part.notna().any(axis=1)]
        for name in metrics:
            if part[name].nunique() == 1:
                part[name] = part[name].ffill().bfill()
        parts.append(shared.loc[part.index].join(part).assign(Name=run))
    rows = np.concatenate([part.index.to_numpy(dtype=np.int64) for part in parts])
    return replace(table, frame=pd.concat(parts, ignore_index=True), rows=rows, notes=(*table.notes, BY_RUN))


def check_column(table: Table, name: str | None, role: str) -> None:
    """Refuse a column that the table does not have.

    Raises:
        InputError: its name, near names, and the option that names it.
    """
    columns = [str(column) for column in table.frame.columns]
    if name is None or name in columns:
        return
    if BY_RUN in table.notes:
        found = ", ".join(columns[:5])
        raise InputError(
            f"{table.source}: expected the size, tokens and loss of each run, found an export of a chart with a column "
            f"for each run that gives {found}, but no {name!r}; add columns 'RUN - {name}', or export the table of runs"
        )
    raise InputError(f"{table.source}: {unknown_name('column', name, columns)} (name it with --{role} COLUMN)")


def values(table: Table, name: str, missing: bool = False) -> Float64[np.ndarray, " N"]:
    """A column as numbers; infinite values become NaN.

    Args:
        table: where it is.
        name: of the column.
        missing: whether words such as "diverged" are missing values.
    """
    column = table.frame[name]
    if pd.api.types.is_float_dtype(column):
        result = column.to_numpy(dtype=np.float64, na_value=np.nan)
        return np.where(np.isinf(result), np.nan, result)
    if not pd.api.types.is_numeric_dtype(column):
        words = column.astype("string").str.strip().str.lower()
        if missing:
            column = column.mask(words.isin(FAILED).fillna(True).to_numpy(dtype=bool))
        suffix = words.str.extract(r"^[-+\d.,e]+\s*([kmbgt]n?)$")[0]
        if (suffix.notna() | words.isna()).all() and suffix.notna().any():
            plain = words.str.replace(r"\s*[kmbgt]n?$", "", regex=True)
            factor = suffix.map(SUFFIXES).to_numpy(dtype=np.float64, na_value=np.nan)
            return factor * numbers(replace(table, frame=pd.DataFrame({name: plain})), [name])[:, 0]
    try:
        return numbers(replace(table, frame=pd.DataFrame({name: column})), [name])[:, 0]
    except InputError as error:
        reason = str(error).split(";")[0]  # the rest is advice about series
        raise InputError(f"{reason}; write plain numbers such as 7e7, all in one unit") from error


def other_metrics(
    table: Table, taken: set[str | None], keep: Bool[np.ndarray, " N"]
) -> dict[str, Float64[np.ndarray, " K"]]:
    """The columns of other metrics, such as MASE and WQL, found by the words in their names.

    Args:
        table: where they are.
        taken: columns that have another role.
        keep: rows that are read.
    """
    found: dict[str, np.ndarray] = {}
    for name in map(str, table.frame.columns):
        known = METRICS & set(re.findall("[a-z]+", name.lower())) and not name.endswith(EXTREMES)
        if known and name not in taken and pd.api.types.is_numeric_dtype(table.frame[name]):
            column = values(table, name)[keep]
            if np.isfinite(column).any() and len(found) < MOST_METRICS:
                found[name] = column
    return found


def truth(table: Table, name: str) -> Bool[np.ndarray, " N"]:
    """A column of true and false.

    Raises:
        InputError: another value.
    """
    words = table.frame[name].astype("string").str.strip().str.lower()
    known = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
    wrong = np.flatnonzero(~words.isin(list(known)).to_numpy(dtype=bool))
    if len(wrong):
        raise InputError(
            f"{table.where(int(wrong[0]), name)}: expected true or false, found {str(words.iloc[wrong[0]])[:40]!r}; "
            "name a column that marks the rows to leave out"
        )
    return words.map(known).to_numpy(dtype=bool)


def chosen(table: Table, only: str | None, warnings: list[str]) -> Bool[np.ndarray, " N"]:
    """The rows with a value, given as COLUMN=VALUE; without it those whose state or status says that they have ended.

    Raises:
        InputError: no such column, or no row with the value.
    """
    frame = table.frame
    if only is not None:
        name, _, value = only.partition("=")
        check_column(table, name, "only")
        keep = (frame[name].astype("string").str.strip() == value).fillna(False).to_numpy(dtype=bool)
        if not keep.any():
            found = ", ".join(map(str, frame[name].unique()[:5]))
            raise InputError(f"{table.source}, column {name!r}: expected rows with {value!r}, found {found}")
        warnings.append(f"{int((~keep).sum())} of {len(keep)} rows left out by {only}")
        return keep
    state = next((str(c) for c in frame.columns if str(c).strip().lower() in STATES), None)
    if state is None:
        return np.ones(len(frame), bool)
    words = frame[state].astype("string").str.strip().str.lower()
    keep = words.isin(ENDED).fillna(False).to_numpy(dtype=bool)
    if keep.all() or not keep.any():
        return np.ones(len(frame), bool)
    others = ", ".join(sorted(set(words[~keep].dropna())))
    warnings.append(f"{int((~keep).sum())} of {len(keep)} rows left out because {state!r} is {others}")
    return keep


def run_column(table: Table, given: str | None, sizes: Float64[np.ndarray, " N"], warnings: list[str]) -> str | None:
    """The column that names the run of each row: the one given, or one with a usual name; None if each row is a run.

    Raises:
        InputError: the rows look like checkpoints, but no column names their runs.
    """
    if given is not None:
        return given
    names = {str(column).strip().lower(): str(column) for column in table.frame.columns}
    found = next((names[word] for word in RUN_NAMES if word in names), None)
    if found is not None:
        if found != "run" and table.frame[found].nunique() < len(table.frame):
            warnings.append(f"rows with the same {found!r} are taken as one run; name another column with --run")
        return found
    step = next((names[word] for word in STEPS if word in names), None)
    if step is not None and len(table.frame) >= 5 * len(np.unique(sizes)) and table.frame[step].nunique() > 1:
        raise InputError(
            f"{table.source}: expected a column that names the run of each row, found none, but the steps {step!r} of "
            "training curves; name it with --run COLUMN"
        )
    return None


def check_units(table: Table, name: str, amounts: np.ndarray, keep: Bool[np.ndarray, " N"], role: str) -> None:
    """Refuse a column in which small and large values have nothing between them.

    Raises:
        InputError: the place.
    """
    order = np.flatnonzero(keep)
    order = order[np.argsort(amounts[order], kind="stable")]
    gaps = amounts[order[1:]] / amounts[order[:-1]]
    if len(gaps) and gaps.max() >= MIXED:
        row = int(order[int(np.argmax(gaps))])
        raise InputError(
            f"{table.where(row, name)}: expected one unit, found {amounts[row]:g} and next "
            f"{amounts[row] * gaps.max():g} with nothing between; write plain numbers of {role} in every row, not "
            "millions or billions"
        )


def unit_warnings(params: np.ndarray, tokens: np.ndarray, names: tuple[str, str]) -> list[str]:
    """A warning if tokens per parameter, or a size, cannot be right: one column or both are in another unit."""
    ratio = float(np.median(tokens / params))
    low, high = TOKENS_PER_PARAMETER
    if low <= ratio <= high and params.min() >= SMALLEST:
        return []
    if low <= ratio <= high:
        return [
            f"the smallest model has {params.min():.3g} parameters: {names[0]!r} and {names[1]!r} look like millions "
            "or billions. Constants, compute and plans are in these units; give --params-unit and --tokens-unit"
        ]
    wrong = names[0] if ratio > high else names[1]
    unit = "thousands or millions" if ratio > high else "millions or billions"
    return [
        f"there are {ratio:.2g} tokens per parameter (median): {wrong!r} looks like {unit}. Constants, compute and "
        f"plans are in that unit; give --{'params' if ratio > high else 'tokens'}-unit, such as M"
    ]
