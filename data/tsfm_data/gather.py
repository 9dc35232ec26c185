"""The memory behind ``tsfm_data.windows``: one contiguous array of values, one of calendar features, one copy a batch.

The values lie variate by variate ([V, R], all items one after the other), so that a batch is one indexed copy of
B x V runs of memory, a model that reads each variate's history as one token gets it without a transposing copy, and
a random subset of the variates costs only what it holds. R: rows, L: steps of a window; other letters as in
``tsfm_data.batch``.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tsfm_data.frequency import calendar_features
from tsfm_data.series import SeriesSet
from tsfm_data.splits import StandardScaler


def gather(
    table_VR: Float[Tensor, "V R"] | Bool[Tensor, "V R"],
    begin_B: Int[np.ndarray, " B"],
    steps: int,
    shown_V: Int[np.ndarray, " v"],
) -> Float[Tensor, "B L v"] | Bool[Tensor, "B L v"]:
    """Rows ``begin ... begin + steps`` of the shown variates: one copy of B x v runs. Memory order is [B, v, L]."""
    rows = table_VR.shape[1]
    runs = table_VR.view(-1).as_strided((table_VR.numel() - steps + 1, steps), (1, 1))
    start_Bv = (begin_B[:, None] + shown_V * rows).reshape(-1)
    return runs.index_select(0, torch.from_numpy(start_Bv)).view(len(begin_B), len(shown_V), steps).transpose(1, 2)


def lay_out(
    series: SeriesSet, context: int, horizon: int, scaler: StandardScaler | None, dtype: torch.dtype
) -> tuple[Float[Tensor, "V R"], Bool[Tensor, "V R"] | None]:
    """Values and, where any is missing, the observed mask, with room for a context before and a horizon behind."""
    rows, variates = series.values.shape
    values_VR = torch.zeros((variates, context + rows + horizon), dtype=dtype)
    missing = bool(np.isnan(series.values).any())
    observed_VR = torch.zeros(values_VR.shape, dtype=torch.bool) if missing else None
    for v in range(variates):  # a variate at a time: no second copy of the whole set
        column = np.asarray(series.values[:, v], dtype=np.float64)
        if scaler is not None:
            column = (column - scaler.mean[v]) / scaler.std[v]
        if observed_VR is not None:
            seen = ~np.isnan(column)
            observed_VR[v, context : context + rows] = torch.from_numpy(seen)
            column = np.where(seen, column, 0.0)
        values_VR[v, context : context + rows] = torch.from_numpy(column)
    return values_VR, observed_VR


def mark_tables(
    series: SeriesSet,
    lengths: Int[np.ndarray, " items"],
    context: int,
    horizon: int,
    marks: str | None,
    dtype: torch.dtype,
) -> tuple[Float[Tensor, "M R"] | None, Int[np.ndarray, " items"]]:
    """Calendar features of every item to ``horizon`` steps past its end, and where each item's begin.

    Items with the same first timestamp and frequency share one table, as long as the longest of them.
    """
    offsets = np.zeros(len(lengths), dtype=np.int64)
    if marks is None:
        return None, offsets
    longest: dict[tuple[np.datetime64, str], int] = {}
    keys = list(zip(series.starts, series.freqs, strict=True))
    for i, key in enumerate(keys):
        if key not in longest or lengths[i] > lengths[longest[key]]:
            longest[key] = i
    tables, begins, rows = [], {}, 0
    for key, i in longest.items():
        index = series.timestamps(i, extra=horizon)[: lengths[i] + horizon]
        tables.append(np.asarray(calendar_features(index, marks)))
        begins[key], rows = rows, rows + len(index)
    offsets[:] = [begins[key] for key in keys]
    stacked = torch.from_numpy(np.concatenate(tables).T.astype(np.float64)).to(dtype)
    table_MR = torch.cat([stacked.new_zeros(len(stacked), context), stacked], dim=1).contiguous()
    return table_MR, offsets
