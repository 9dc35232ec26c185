"""Memory layout of windows: contiguous arrays of values, calendar features and covariates, one copy per batch.

Values are stored variate by variate ([V, R], all items one after the other), so a batch is one indexed copy of B x V
runs of memory. A model that reads each variate's history as one token needs no transposing copy, and a random subset of
the variates copies only these. R: rows, L: steps of a window; other letters as in ``tsfm_data.windows.batch``.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from tsfm_data.errors import InputError
from tsfm_data.io import SeriesSet, calendar_features
from tsfm_data.windows.splits import StandardScaler


def gather(
    table_VR: Float[Tensor, "V R"] | Bool[Tensor, "V R"],
    begin_B: Int[np.ndarray, " B"],
    steps: int,
    shown_V: Int[np.ndarray, " v"],
) -> Float[Tensor, "B L v"] | Bool[Tensor, "B L v"]:
    """Copy rows ``begin ... begin + steps`` of the shown variates, B x v runs. Memory order is [B, v, L]."""
    rows = table_VR.shape[1]
    runs = table_VR.view(-1).as_strided((table_VR.numel() - steps + 1, steps), (1, 1))
    start_Bv = (begin_B[:, None] + shown_V * rows).reshape(-1)
    return runs.index_select(0, torch.from_numpy(start_Bv)).view(len(begin_B), len(shown_V), steps).transpose(1, 2)


def lay_out(
    values: Float64[np.ndarray, "rows V"], context: int, horizon: int, scaler: StandardScaler | None, dtype: torch.dtype
) -> tuple[Float[Tensor, "V R"], Bool[Tensor, "V R"] | None]:
    """Values and, if any is missing, the observed mask, padded by a context before and a horizon after them."""
    rows, variates = values.shape
    values_VR = torch.zeros((variates, context + rows + horizon), dtype=dtype)
    missing = bool(np.isnan(values).any())
    observed_VR = torch.zeros(values_VR.shape, dtype=torch.bool) if missing else None
    for v in range(variates):  # one variate at a time, to avoid a second copy of the whole set
        column = np.asarray(values[:, v], dtype=np.float64)
        if scaler is not None:
            column = (column - scaler.mean[v]) / scaler.std[v]
        if observed_VR is not None:
            observed = ~np.isnan(column)
            observed_VR[v, context : context + rows] = torch.from_numpy(observed)
            column = np.where(observed, column, 0.0)
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
    """Calendar features of every item to ``horizon`` steps past its end, and the offset of each item in them.

    Items with the same first timestamp and frequency share one table with the length of the longest.
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


class Covariates:
    """The covariates of a set of series, in the same memory layout as its values.

    Args:
        series: the series.
        lengths: rows of each item whose target may be known.
        context: context steps of a window.
        horizon: steps to forecast.
        past_scaler: standardises the covariates known up to the present; None leaves them in their own units.
        known_scaler: the same for those known in the future too.
        dtype: floating-point type of the batches.
    """

    def __init__(
        self,
        series: SeriesSet,
        lengths: Int[np.ndarray, " items"],
        context: int,
        horizon: int,
        past_scaler: StandardScaler | None,
        known_scaler: StandardScaler | None,
        dtype: torch.dtype,
    ) -> None:
        self.series, self.lengths, self.context, self.horizon = series, lengths, context, horizon
        self._past = lay_out(series.past, context, horizon, past_scaler, dtype) if series.past_names else None
        self._known = lay_out(series.known, context, horizon, known_scaler, dtype) if series.known_names else None
        self._offsets = np.asarray(series.offsets, dtype=np.int64)

    def check(self, items: Int[np.ndarray, " W"], cuts: Int[np.ndarray, " W"]) -> None:
        """Check that known covariates exist for every horizon that reaches past the target.

        Raises:
            InputError: there are too few rows, or a value is missing.
        """
        if self._known is None:
            return
        series, end, rows = self.series, self.lengths[items], np.diff(self._offsets)[items]
        names = ", ".join(series.known_names)
        short = np.flatnonzero(cuts + self.horizon > rows)
        if len(short):
            w = short[0]
            found = rows[w] - cuts[w]
            fewer = f", or give a horizon of at most {found}" if found else ""
            item, lacking = int(items[w]), int(self.horizon - found)
            if np.isnan(series.values[self._offsets[item] : self._offsets[item + 1]]).all():
                raise InputError(
                    f"{series.source}, series {series.item_ids[item]!r}: expected values of the target before the "
                    f"future of the known covariates ({names}), found none: leave the series out"
                )
            ahead = series.timestamps(item, extra=int(cuts[w] + self.horizon) - series.length(item))
            first, last = series.labels.show(ahead[[-lacking, -1]])
            add = f"{lacking} rows, {first} to {last}," if lacking > 1 else f"1 row, {first},"
            raise InputError(
                f"{series.source}, series {series.item_ids[items[w]]!r}: expected {self.horizon} rows of the known "
                f"covariates ({names}) after its last value, found {found}: add {add} with an "
                f"empty target{fewer}"
            )
        missing = np.concatenate([[0], np.cumsum(np.isnan(series.known).any(axis=1))])
        begin = self._offsets[items]
        gaps = np.flatnonzero(missing[begin + np.maximum(cuts + self.horizon, end)] > missing[begin + end])
        if len(gaps):
            w = gaps[0]
            ahead = np.isnan(series.known[begin[w] + end[w] : begin[w] + cuts[w] + self.horizon])
            row, column = np.argwhere(ahead)[0]
            time = series.labels.show(series.timestamps(int(items[w]), extra=int(row) + 1)[-1:])[0]
            raise InputError(
                f"{series.source}, column {series.known_names[column]!r}, series {series.item_ids[items[w]]!r}, row "
                f"{row + 1} after the end of the target ({time}): expected a value of the known covariate, found none: "
                "fill it in, or name the column as a past covariate"
            )

    def gather(self, item_B: Int[np.ndarray, " B"], cut_B: Int[np.ndarray, " B"]) -> dict[str, Tensor]:
        """The covariate fields of a ``Batch``."""
        T = self.context
        fields: dict[str, Tensor] = {}
        begin_B = self._offsets[item_B] + cut_B  # the tables begin with ``context`` rows of padding
        rows_B = np.diff(self._offsets)[item_B]
        for name, table, steps in (("past", self._past, T), ("known", self._known, T + self.horizon)):
            if table is None:
                continue
            shown = np.arange(len(table[0]))
            values = gather(table[0], begin_B, steps, shown)
            row_BL = cut_B[:, None] + np.arange(-T, steps - T)
            observed = torch.from_numpy((row_BL >= 0) & (row_BL < rows_B[:, None]))[..., None].expand(values.shape)
            values = values.masked_fill_(~observed, 0.0)
            if table[1] is not None:
                observed = observed & gather(table[1], begin_B, steps, shown)
            if name == "past":
                fields |= {"past_covariates": values, "past_covariates_observed": observed}
            else:
                fields |= {"known_past": values[:, :T], "known_past_observed": observed[:, :T]}
                fields |= {"known_future": values[:, T:], "known_future_observed": observed[:, T:]}
        return fields
