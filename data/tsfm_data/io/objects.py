"""Tables from objects in memory: data frames of any library, arrays, lists and tensors; and forecasts as tables of the
same library.

Axes: N series, V variates, T steps.
"""

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from tsfm_data.errors import InputError

KINDS = (
    "a path, a data frame (pandas, polars, Arrow), a pandas Series, an array, list or tensor of numbers, or a GluonTS "
    "data set"
)
SHAPES = "expected numbers of shape [T], [N, T] or [N, V, T] (N series, V variates, T steps)"


@dataclass(frozen=True)
class Held:
    """A table from an object in memory.

    Attributes:
        frame: its columns.
        source: its name in messages.
        roles: arguments of ``read_series`` for its columns, if they are known.
        notes: how it was read, if that is not obvious.
    """

    frame: pd.DataFrame
    source: str = "the table"
    roles: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()


def from_memory(source: Any) -> Held | None:
    """The table in an object: a pandas frame or Series; anything with the Arrow or the data-frame interchange protocol
    (polars, duckdb, pyarrow); an array or tensor [T], [N, T] or [N, V, T], or a list of arrays [T] or [V, T] of
    different lengths, or of Series. None if it may be a GluonTS data set.

    Raises:
        InputError: it is none of these.
    """
    if isinstance(source, pd.DataFrame):
        return Held(source)
    if isinstance(source, pd.Series):
        return _from_series(source)
    if isinstance(source, pa.Table) or hasattr(source, "__arrow_c_stream__"):
        try:
            return Held(pa.table(source).to_pandas(date_as_object=False))
        except (TypeError, ValueError):  # one column without a name, such as a polars Series
            return _from_arrays(source)
    if hasattr(source, "__dataframe__"):
        return Held(pd.api.interchange.from_dataframe(source))
    if hasattr(source, "__array__") or (
        isinstance(source, list | tuple) and source and not isinstance(source[0], dict)
    ):
        return _from_arrays(source)
    if source is None or isinstance(source, bool | int | float | bytes | dict) or not hasattr(source, "__iter__"):
        raise InputError(f"expected {KINDS}, found {type(source).__name__}: give one of these")
    return None


def like(source: Any, answer: pd.DataFrame) -> Any:
    """A table of the library of ``source``: polars for polars, pyarrow for other Arrow data, a pandas frame indexed by
    time for a Series, and otherwise a pandas frame.

    Args:
        source: the data that were forecast.
        answer: columns of ids and times, then values.
    """
    item, time = answer.columns[:2]
    if isinstance(source, pd.Series):
        if isinstance(source.index, pd.MultiIndex):
            return answer.set_index([item, time])
        indexed = answer.drop(columns=item).set_index(time)
        return indexed.to_period(source.index.freqstr) if isinstance(source.index, pd.PeriodIndex) else indexed
    if isinstance(source, pd.DataFrame) or not (isinstance(source, pa.Table) or hasattr(source, "__arrow_c_stream__")):
        return answer
    table = pa.Table.from_pandas(answer, preserve_index=False)
    if type(source).__module__.partition(".")[0] == "polars":
        return sys.modules["polars"].from_arrow(table)  # imported already, by whoever made the frame
    return table


def _from_series(series: pd.Series) -> Held:
    name = "target" if series.name is None else str(series.name)
    index = series.index
    if isinstance(index, pd.MultiIndex):
        return Held(series.to_frame(name), roles={"target": name})
    step = pd.api.types.is_integer_dtype(index.dtype)
    time = str(index.name) if index.name is not None else "step" if step else "timestamp"
    if time == name:
        raise InputError(f"expected different names of a Series and its index, found {name!r} for both: rename one")
    frame = pd.DataFrame({time: index, name: series.array})
    return Held(frame, "the Series", {"time_column": time, "item_column": "", "target": name})


def _from_arrays(source: Any) -> Held:
    """A long table with integer steps; Series in a list keep their timestamps."""
    if isinstance(source, list | tuple) and any(isinstance(part, pd.Series) for part in source):
        return _from_many(source)
    whole = source if isinstance(source, list | tuple) else _numbers(source, "the array")
    notes: tuple[str, ...] = ()
    if isinstance(whole, np.ndarray) or not hasattr(whole[0], "__len__"):
        whole = _numbers(whole, "the array")
        if whole.ndim == 2 and whole.shape[1] == 1 < whole.shape[0]:
            raise InputError(f"{SHAPES}, found shape {list(whole.shape)}: give array[:, 0] for a single series")
        if whole.ndim == 2 and whole.shape[0] > whole.shape[1]:
            notes = (
                f"an array of shape {list(whole.shape)} is read as {whole.shape[0]} series of {whole.shape[1]} steps",
            )
        if whole.ndim == 1:
            frame = pd.DataFrame({"step": np.arange(len(whole)), "target": whole})
            return Held(frame, "the array", {"time_column": "step", "item_column": "", "target": "target"})
        if whole.ndim != 2 and whole.ndim != 3:
            raise InputError(f"{SHAPES}, found shape {list(whole.shape)}: reshape it")
    parts = [np.atleast_2d(_numbers(part, f"series {i}")) for i, part in enumerate(whole)]
    for i, part in enumerate(parts):
        if part.ndim != 2 or len(part) != len(parts[0]):
            raise InputError(
                f"{SHAPES}, found shape {list(part.shape)} in series {i}: give all series the same number of variates"
            )
    width = len(parts[0])
    names = ["target"] if width == 1 else [str(v) for v in range(width)]
    frame = pd.DataFrame(np.concatenate(parts, axis=1).T, columns=names)
    lengths = [part.shape[1] for part in parts]
    frame.insert(0, "step", np.concatenate([np.arange(length) for length in lengths]))
    frame.insert(0, "item_id", np.repeat(np.arange(len(parts)), lengths))
    roles = {"time_column": "step", "item_column": "item_id", "target": names}
    return Held(frame, "the arrays", roles, notes)


def _from_many(source: Any) -> Held:
    """A list of Series as one long table."""
    if not all(isinstance(part, pd.Series) for part in source):
        other = next(part for part in source if not isinstance(part, pd.Series))
        raise InputError(f"expected only Series in the list, found {type(other).__name__}: give all as Series")
    names = [part.name for part in source]
    ids = names if len({*names} - {None}) == len(names) else list(range(len(names)))
    step = all(pd.api.types.is_integer_dtype(part.index.dtype) for part in source)
    time = "step" if step else "timestamp"
    parts = [
        pd.DataFrame({"item_id": name, time: part.index, "target": part.array})
        for name, part in zip(ids, source, strict=True)
    ]
    roles = {"time_column": time, "item_column": "item_id", "target": "target"}
    return Held(pd.concat(parts, ignore_index=True), "the Series", roles)


def _numbers(values: Any, where: str) -> np.ndarray:
    """An array of float64 from an array, tensor or list of numbers."""
    if isinstance(values, str | dict | pd.DataFrame | pa.Table):
        raise InputError(f"{where}: {SHAPES}, found {type(values).__name__}: put all series into one table")
    if hasattr(values, "detach"):  # a tensor, on any device
        values = values.detach().cpu().double()
    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {SHAPES}, found {str(error).splitlines()[0]}") from error
    if array.dtype == object:
        array = np.array([np.nan if value is None else value for value in array.ravel()]).reshape(array.shape)
    if array.dtype.kind not in "biuf" or array.ndim == 0:
        raise InputError(f"{where}: {SHAPES}, found {array.dtype} of shape {list(array.shape)}: give numbers")
    return np.where(np.ma.getmaskarray(values), np.nan, array) if np.ma.isMA(values) else array.astype(np.float64)
