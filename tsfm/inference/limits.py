"""Lower bounds of forecasts, and rounding to whole numbers."""

from typing import TYPE_CHECKING, Literal

import numpy as np

from tsfm_data.errors import InputError
from tsfm_data.io import SeriesSet

if TYPE_CHECKING:
    import pandas as pd

Auto = Literal["auto"]


def check_lower(lower: float | str | None) -> float | Auto | None:
    """A lower bound as given by the user: a number, "auto" or None.

    Raises:
        InputError: anything else.
    """
    if lower is None or lower == "auto":
        return lower  # type: ignore[return-value]
    try:
        value = float(lower)
    except (TypeError, ValueError):
        value = np.nan
    if not np.isfinite(value):
        raise InputError(f"expected a number or auto as the lower bound, found {lower!r}: give lower (--lower 0)")
    return value


def limit(
    frame: "pd.DataFrame",
    series: SeriesSet,
    lower: float | Auto | None = None,
    integer: Literal["true", "false", "auto"] = "false",
) -> "pd.DataFrame":
    """A forecast clipped at a lower bound, with quantiles rounded to whole numbers; the mean is not rounded.

    Args:
        frame: columns item_id, timestamp, mean and one per level, series by series.
        series: the series that were forecast; "auto" depends on their histories.
        lower: lower bound; "auto" uses 0 for series that were never negative.
        integer: whether quantiles are rounded; "auto" rounds those of series of whole numbers.
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
