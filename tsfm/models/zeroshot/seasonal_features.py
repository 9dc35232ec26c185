"""Drafts of a series: simple forecasts, of which a model needs to learn no more than how far to trust them.

Shapes: R rows, L steps, T of them in the history, M steps to draft, D drafts.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Rows(NamedTuple):
    """Steps of rows on the model's own scale, and what is known of their seasons.

    Attributes:
        x: values, 0 where not seen.
        seen: the steps that the model may look at.
        period: steps of the periods found in the history, 0 where there is none.
        score: how clear each period is.
        length: steps of the history from the first one seen.
        change: mean change over one step, and over each period.
        unit: what errors are counted in, on the model's scale.
        level: the last value of the history.
    """

    x: Float[Tensor, "R L"]
    seen: Bool[Tensor, "R L"]
    period: Int[Tensor, "R _"]
    score: Float[Tensor, "R _"]
    length: Int[Tensor, " R"]
    change: Float[Tensor, "R _"]
    unit: Float[Tensor, " R"]
    level: Float[Tensor, " R"]


def draft_steps(
    rows: Rows, step_M: Int[Tensor, " M"], known_M: Int[Tensor, " M"], lags: int, drift: bool
) -> Float[Tensor, "R M D"]:
    """Simple forecasts of steps from what comes before: values to start from, not to believe.

    The last value; of every period the value one period earlier, the mean of the last ``lags`` such values, and the
    last value plus what followed one period earlier; with ``drift`` the last value and the value one period earlier
    once more, plus the mean change. The reach is as many periods as it takes to come before ``known``; where nothing is
    seen there, the last value stands in.

    Args:
        rows: what is seen.
        step_M: the steps.
        known_M: for each of them, the first step that may not be looked at; a step before it looks one period back.
        lags: how many earlier periods count; without any, no period does.
        drift: whether drafts that go on with the mean change so far are among them.
    """
    latest_RL = torch.where(rows.seen, torch.arange(rows.x.shape[1], device=rows.x.device), 0).cummax(1).values
    latest_RM = latest_RL[:, known_M.clamp(min=1) - 1]
    last_RM = rows.x.gather(1, latest_RM)
    drafts = [last_RM]
    if drift:
        drafts.append(last_RM + (step_M - latest_RM).clamp(min=0) * rows.change[:, :1])
    if not lags:
        return torch.stack(drafts, -1)
    known_RL = torch.where(rows.seen, rows.x, math.nan)
    for i, period_R in enumerate(rows.period.unbind(1)):
        length_R1 = period_R.clamp(min=1)[:, None]
        # Floating-point numbers divide faster than whole ones, and exactly where these are so small.
        first_RM = ((step_M - known_M + length_R1) / length_R1).floor().clamp(min=1).to(step_M.dtype)
        newest_RM, mean_RM, periods_RM = look_back(known_RL, step_M, period_R[:, None], first_RM, lags)
        found_RM = periods_RM > 0
        newest_RM, mean_RM = torch.where(found_RM, newest_RM, last_RM), torch.where(found_RM, mean_RM, last_RM)
        origin_RM = latest_RM - length_R1 * periods_RM
        there_RM = found_RM & (origin_RM >= 0)
        origin_RM = origin_RM.clamp(min=0)
        there_RM = there_RM & rows.seen.gather(1, origin_RM)
        followed_RM = torch.where(there_RM, newest_RM - rows.x.gather(1, origin_RM), 0.0)
        drafts += [newest_RM, mean_RM, last_RM + followed_RM]
        if drift:
            drafts.append(newest_RM + periods_RM * rows.change[:, i + 1, None])
    return torch.stack(drafts, -1)


def look_back(
    known_RL: Float[Tensor, "R L"],
    step_M: Int[Tensor, " M"],
    period_R1: Int[Tensor, "R 1"],
    first_RM: Int[Tensor, "R M"],
    lags: int,
) -> tuple[Float[Tensor, "R M"], Float[Tensor, "R M"], Int[Tensor, "R M"]]:
    """The newest of the values at the same phase, their mean, and how many periods back the newest is.

    Args:
        known_RL: values, NaN where not seen.
        step_M: the steps.
        period_R1: steps of the period; 0 where there is none.
        first_RM: how many periods back the first value is.
        lags: how many values to look at, a period apart.

    Returns:
        All 0 where nothing is seen.
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


def changes(
    x_RT: Float[Tensor, "R T"], seen_RT: Bool[Tensor, "R T"], lag_R: Int[Tensor, " R"]
) -> tuple[Float[Tensor, " R"], Float[Tensor, " R"]]:
    """Mean change over a lag, and the mean absolute deviation from it; 0 and infinite where there is no pair."""
    step_T = torch.arange(x_RT.shape[1], device=x_RT.device)
    before_RT = (step_T - lag_R[:, None]).clamp(min=0)
    both_RT = seen_RT & seen_RT.gather(1, before_RT) & (step_T >= lag_R[:, None]) & (lag_R[:, None] > 0)
    count_R = both_RT.sum(1)
    change_RT = torch.where(both_RT, x_RT - x_RT.gather(1, before_RT), 0.0)
    mean_R = change_RT.sum(1) / count_R.clamp(min=1)
    spread_R = torch.where(both_RT, (change_RT - mean_R[:, None]).abs(), 0.0).sum(1) / count_R.clamp(min=1)
    return mean_R, torch.where(count_R > 1, spread_R, math.inf)
