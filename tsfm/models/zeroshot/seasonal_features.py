"""Seasonal-naive features: simple forecasts that are given to the model, which learns how far to trust each of them.

Shapes: R rows, L steps, T of them in the history, M steps to forecast, D features.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class ScaledRows(NamedTuple):
    """Series on the model's own scale, and statistics of their history.

    Attributes:
        x: values, 0 where not seen.
        seen: the steps that the model may look at.
        period: length in steps of the periods found in the history, 0 if there is none.
        score: how clear each period is.
        length: steps from the first observed one to the end of the history.
        change: mean change over one step, and over each period.
        error_scale: unit of errors, on the model's scale.
        last_value: the last observed value of the history.
    """

    x: Float[Tensor, "R L"]
    seen: Bool[Tensor, "R L"]
    period: Int[Tensor, "R _"]
    score: Float[Tensor, "R _"]
    length: Int[Tensor, " R"]
    change: Float[Tensor, "R _"]
    error_scale: Float[Tensor, " R"]
    last_value: Float[Tensor, " R"]


def seasonal_naive_features(
    rows: ScaledRows, step_M: Int[Tensor, " M"], known_M: Int[Tensor, " M"], lags: int, drift: bool
) -> Float[Tensor, "R M D"]:
    """Naive and seasonal-naive forecasts of some steps from the values before them.

    The last value; and for every period the value one period earlier (seasonal naive), the mean of the last ``lags``
    such values, and the last value plus the change that followed one period earlier. With ``drift`` also the last value
    and the seasonal-naive one plus the mean change so far. For steps further ahead, "one period" is the fewest periods
    that lead to a step before ``known_M``. If no value is observed there, the last value is used.

    Args:
        rows: the series.
        step_M: steps to forecast.
        known_M: for each of them, the first step that is not known; a step before it looks one period back.
        lags: how many earlier periods are used; with 0 there are no seasonal features.
        drift: whether to add the forecasts with drift.
    """
    latest_RL = torch.where(rows.seen, torch.arange(rows.x.shape[1], device=rows.x.device), 0).cummax(1).values
    latest_RM = latest_RL[:, known_M.clamp(min=1) - 1]
    last_RM = rows.x.gather(1, latest_RM)
    features = [last_RM]
    if drift:
        features.append(last_RM + (step_M - latest_RM).clamp(min=0) * rows.change[:, :1])
    if not lags:
        return torch.stack(features, -1)
    known_RL = torch.where(rows.seen, rows.x, math.nan)
    for i, period_R in enumerate(rows.period.unbind(1)):
        length_R1 = period_R.clamp(min=1)[:, None]
        # Division is faster in floating point than in integers, and exact for numbers as small as these.
        first_RM = ((step_M - known_M + length_R1) / length_R1).floor().clamp(min=1).to(step_M.dtype)
        newest_RM, mean_RM, periods_RM = look_back(known_RL, step_M, period_R[:, None], first_RM, lags)
        is_seasonal_RM = periods_RM > 0
        newest_RM, mean_RM = (
            torch.where(is_seasonal_RM, newest_RM, last_RM),
            torch.where(is_seasonal_RM, mean_RM, last_RM),
        )
        origin_RM = latest_RM - length_R1 * periods_RM
        has_origin_RM = is_seasonal_RM & (origin_RM >= 0)
        origin_RM = origin_RM.clamp(min=0)
        has_origin_RM = has_origin_RM & rows.seen.gather(1, origin_RM)
        followed_RM = torch.where(has_origin_RM, newest_RM - rows.x.gather(1, origin_RM), 0.0)
        features += [newest_RM, mean_RM, last_RM + followed_RM]
        if drift:
            features.append(newest_RM + periods_RM * rows.change[:, i + 1, None])
    return torch.stack(features, -1)


def look_back(
    known_RL: Float[Tensor, "R L"],
    step_M: Int[Tensor, " M"],
    period_R1: Int[Tensor, "R 1"],
    first_RM: Int[Tensor, "R M"],
    lags: int,
) -> tuple[Float[Tensor, "R M"], Float[Tensor, "R M"], Int[Tensor, "R M"]]:
    """The latest of the values at the same phase, their mean, and how many periods back the latest is.

    Args:
        known_RL: values, NaN where not seen.
        step_M: the steps.
        period_R1: length of the period in steps; 0 if there is none.
        first_RM: how many periods back to begin.
        lags: how many values to use, one period apart.

    Returns:
        All three are 0 if no value is seen.
    """
    newest_RM = total_RM = torch.zeros(first_RM.shape, dtype=known_RL.dtype, device=known_RL.device)
    count_RM = periods_RM = torch.zeros_like(first_RM)
    for lag in reversed(range(lags)):
        back_RM = first_RM + lag
        index_RM = step_M - period_R1 * back_RM
        value_RM = known_RL.gather(1, index_RM.clamp(min=0, max=known_RL.shape[1] - 1))
        seen_RM = (index_RM >= 0) & (period_R1 > 0) & ~value_RM.isnan()
        newest_RM = torch.where(seen_RM, value_RM, newest_RM)
        periods_RM = torch.where(seen_RM, back_RM, periods_RM)
        total_RM = total_RM + torch.where(seen_RM, value_RM, 0.0)
        count_RM = count_RM + seen_RM
    return newest_RM, total_RM / count_RM.clamp(min=1), periods_RM


def measure_changes(
    x_RT: Float[Tensor, "R T"], seen_RT: Bool[Tensor, "R T"], lag_R: Int[Tensor, " R"]
) -> tuple[Float[Tensor, " R"], Float[Tensor, " R"]]:
    """Mean change over a lag, and the mean absolute deviation from it; 0 and infinite if there are too few pairs."""
    step_T = torch.arange(x_RT.shape[1], device=x_RT.device)
    before_RT = (step_T - lag_R[:, None]).clamp(min=0)
    both_RT = seen_RT & seen_RT.gather(1, before_RT) & (step_T >= lag_R[:, None]) & (lag_R[:, None] > 0)
    count_R = both_RT.sum(1)
    change_RT = torch.where(both_RT, x_RT - x_RT.gather(1, before_RT), 0.0)
    mean_R = change_RT.sum(1) / count_R.clamp(min=1)
    spread_R = torch.where(both_RT, (change_RT - mean_R[:, None]).abs(), 0.0).sum(1) / count_R.clamp(min=1)
    return mean_R, torch.where(count_R > 1, spread_R, math.inf)
