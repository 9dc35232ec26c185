"""Forecasts kept within what their series can be: not below a bound, whole numbers."""

from typing import TYPE_CHECKING, Literal

import numpy as np

from tsfm_data.errors import InputError
from tsfm_data.io import SeriesSet

if TYPE_CHECKING:
    import pandas as pd

Auto = Literal["auto"]


def check_lower(lower: float | str | None) -> float | Auto | None:
    """A least value as it was given: a number, "auto" or None.

    Raises:
        InputError: another word.
    """
    if lower is None or lower == "auto":
        return lower  # type: ignore[return-value]
    try:
        value = float(lower)
    except (TypeError, ValueError):
        value = np.nan
    if not np.isfinite(value):
        raise InputError(f"expected a number or auto as the least value, found {lower!r}: give lower (--lower 0)")
    return value


def limit(
    frame: "pd.DataFrame",
    series: SeriesSet,
    lower: float | Auto | None = None,
    integer: Literal["true", "false", "auto"] = "false",
) -> "pd.DataFrame":
    """A forecast clipped from below, and its quantiles rounded to whole numbers; the mean is not rounded.

    Args:
        frame: columns item_id, timestamp, mean and one a level, series by series.
        series: what was forecast; "auto" looks at each history.
        lower: least value; "auto" takes 0 for series that were never below it.
        integer: whether quantiles are rounded; "auto" rounds those of series that hold nothing but whole numbers.
    """
    if lower is None and integer == "false":
        return frame
    single = series.univariate()
    histories = [single.item(i)[:, 0] for i in range(len(single))]
    known = [values[np.isfinite(values)] for values in histories]
    place = {name: i for i, name in enumerate(single.item_ids)}
    rows = frame["item_id"].map(place).to_numpy()
    values = frame.columns[2:]
    quantiles = values.drop("mean")
    frame = frame.copy()
    if integer != "false":
        whole = np.array([integer == "true" or bool((v == np.round(v)).all()) for v in known])[rows]
        frame.loc[whole, quantiles] = frame.loc[whole, quantiles].round()
    if lower is not None:
        least = [(0.0 if len(v) and v.min() >= 0 else -np.inf) if lower == "auto" else float(lower) for v in known]
        frame[values] = np.maximum(frame[values].to_numpy(), np.array(least)[rows][:, None])
    return frame
