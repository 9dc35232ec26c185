"""Simple forecasts (seasonal naive, means of cycles, levels, lines), and their errors on the end of the history.

An origin is the first step that a forecast does not know. Values are on the model's scale, after asinh.

Shapes: R rows, T steps of history, L all steps, E = L + 1 ends (0 to L steps), Q origins, S steps to forecast from
each, P periods, J cycles, D candidates (simple forecasts of the same step).
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from tsfm.nn import asinh, sinh

MAX_ASINH = 40.0  # keeps sinh finite
CYCLES = 8  # how many earlier cycles are used
FEW = 3  # the mean over so few cycles is a candidate of its own
CANDIDATES = 4  # of each period, see ``fold``
SPANS = (4, 16, 64)  # steps whose mean is the level of a forecast without seasons
PLAIN = 1 + 2 * len(SPANS)  # candidates without seasons
# How many steps before the end of the history candidates are tried from: on every later step, or on twelve of them.
TRIALS, LONG_TRIALS, PARTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32), (48, 96, 192, 384), 12
NEAR, FAR = 6, 48  # steps ahead: the borders between the three ranges for which errors are measured


class Folds(NamedTuple):
    """Simple forecasts of every step, and how far they can be trusted.

    Attributes:
        candidates: the simple forecasts.
        spread: mean absolute deviation of the earlier cycles from their mean; 0 without any.
    """

    candidates: Float[Tensor, "R Q S D"]
    spread: Float[Tensor, "R Q S P"]


def fold(
    x_RL: Float[Tensor, "R L"],
    period_RP: Int[Tensor, "R P"],
    origin_Q: Int[Tensor, " Q"],
    step_QS: Int[Tensor, "Q S"],
) -> Folds:
    """Forecast every step from the values before its origin.

    The candidates without seasons are the last value and, over each of three spans, the mean (level) and the line
    through it and the mean of the span before. Each period adds four, from the same phase of earlier cycles:

    - the latest value (seasonal naive);
    - the mean of the latest three values;
    - the mean of the latest cycle, plus the average of up to eight values less the means of a cycle as far before them;
    - the last value, plus the change that followed one cycle earlier.

    A candidate without values is the last value. Sums and differences are taken before asinh, which would bend a line.

    Args:
        x_RL: values, NaN where not seen.
        period_RP: periods in steps, 0 for none.
        origin_Q: the first step that each forecast does not know.
        step_QS: the steps to forecast, none before its origin.
    """
    seen_RL = ~x_RL.isnan()
    position_L = torch.arange(x_RL.shape[1], device=x_RL.device)
    latest_RL = torch.where(seen_RL, position_L, 0).cummax(1).values
    last_RQ = x_RL.gather(1, latest_RL[:, (origin_Q - 1).clamp(min=0)]).nan_to_num()
    last_RQS = last_RQ[..., None].expand(-1, -1, step_QS.shape[1])
    plain_RL = sinh(x_RL.clamp(-MAX_ASINH, MAX_ASINH))
    last_plain_RQS = sinh(last_RQS.clamp(-MAX_ASINH, MAX_ASINH))
    means = TrailingMeans(plain_RL)
    candidates, spreads = [last_RQS, *(asinh(line) for line in lines(means, origin_Q, step_QS))], []
    for period_R in period_RP.unbind(1):
        period_R11 = period_R.clamp(min=1)[:, None, None]
        ahead_QS = step_QS - origin_Q[:, None]
        # Division is faster in floating point than in integers, and exact for numbers as small as these.
        first_RQS = (ahead_QS / period_R11).floor().to(torch.long) + 1
        cycle_J = torch.arange(CYCLES, device=x_RL.device)
        back_RQSJ = period_R11[..., None] * (first_RQS[..., None] + cycle_J)
        value_RQSJ = take(x_RL, step_QS[..., None] - back_RQSJ)
        has_period = (period_R > 0)[:, None, None, None]
        value_RQSJ = torch.where(has_period, value_RQSJ, math.nan)
        newest_RQS = value_RQSJ[..., 0]
        plain_RQSJ, level_RL = sinh(value_RQSJ.clamp(-MAX_ASINH, MAX_ASINH)), means.over(period_R)
        level_RQSJ = take(level_RL, origin_Q[:, None, None] - back_RQSJ)
        now_RQ1 = level_RL[:, origin_Q][..., None]
        before_RQS = take(plain_RL, origin_Q[:, None] - 1 - back_RQSJ[..., 0])
        mean_RQS = value_RQSJ.nanmean(-1)
        candidates += [
            newest_RQS.where(~newest_RQS.isnan(), mean_RQS),
            value_RQSJ[..., :FEW].nanmean(-1),
            asinh(now_RQ1 + (plain_RQSJ - level_RQSJ).nanmean(-1)),
            asinh(last_plain_RQS + (plain_RQSJ[..., 0] - before_RQS)),
        ]
        spreads.append((value_RQSJ - mean_RQS[..., None]).abs().nanmean(-1))
    whole = torch.stack(candidates, -1)
    spread = torch.stack(spreads, -1).nan_to_num() if spreads else whole[..., :0]
    return Folds(torch.where(whole.isnan(), last_RQS[..., None], whole), spread)


def trial_errors(x_RT: Float[Tensor, "R T"], period_RP: Int[Tensor, "R P"]) -> Float[Tensor, "R D 3"]:
    """Mean absolute error of every candidate on the end of the history, in three ranges of steps ahead.

    The ranges are up to ``NEAR``, up to ``FAR``, and beyond. One without observed steps has the error of the range
    before it, or NaN if it is the first.

    Args:
        x_RT: the history, NaN where not seen.
        period_RP: periods in steps, 0 for none.
    """
    known = x_RT.shape[1]
    pairs = [(known - back, ahead) for back in TRIALS if back < known for ahead in range(back)]
    pairs += [(known - back, ahead) for back in LONG_TRIALS if back < known for ahead in range(0, back, back // PARTS)]
    origin_Q, ahead_Q = torch.tensor(pairs, dtype=torch.long, device=x_RT.device).reshape(-1, 2).unbind(1)
    step_Q = origin_Q + ahead_Q
    error_RQD = (fold(x_RT, period_RP, origin_Q, step_Q[:, None]).candidates[:, :, 0] - x_RT[:, step_Q, None]).abs()
    near, beyond = ahead_Q < NEAR, ahead_Q >= FAR
    means = [error_RQD[:, part].nanmean(1) for part in (near, ~near & ~beyond, beyond)]
    for i in (1, 2):
        means[i] = torch.where(means[i].isnan(), means[i - 1], means[i])
    return torch.stack(means, -1)


def lines(
    means: "TrailingMeans", origin_Q: Int[Tensor, " Q"], step_QS: Int[Tensor, "Q S"]
) -> list[Float[Tensor, "R Q S"]]:
    """Two forecasts per span: the mean over it (level), and the line through this mean and that of the span before.

    Args:
        means: of the values before asinh; so are the forecasts.
        origin_Q: the first step that each forecast does not know.
        step_QS: the steps to forecast.
    """
    forecasts, rows = [], len(means.total_RE)
    for span in SPANS:
        level_RL = means.over(torch.full((rows,), span, device=origin_Q.device))
        earlier_RQ = (origin_Q - span).expand(rows, -1)
        level_RQ1, before_RQ1 = level_RL[:, origin_Q, None], take(level_RL, earlier_RQ)[..., None]
        ahead_QS = step_QS - origin_Q[:, None] + (span + 1) / 2
        forecasts += [
            level_RQ1.expand(-1, -1, step_QS.shape[1]),
            level_RQ1 + (level_RQ1 - before_RQ1) / span * ahead_QS,
        ]
    return forecasts


def take(x_RL: Float[Tensor, "R L"], index: Int[Tensor, "R ..."]) -> Float[Tensor, "R ..."]:
    """Values at the steps ``index``, NaN before the first step."""
    flat = index.flatten(1)
    values = x_RL.gather(1, flat.clamp(min=0))
    return values.masked_fill(flat < 0, math.nan).view(index.shape)


class TrailingMeans:
    """Means over the last steps before any step of a row, for spans of any length.

    Args:
        x_RL: values, NaN where not seen.
    """

    def __init__(self, x_RL: Float[Tensor, "R L"]) -> None:
        seen_RL = ~x_RL.isnan()
        self.total_RE, self.seen_RE = (
            F.pad(values.cumsum(1), (1, 0)) for values in (x_RL.nan_to_num(), seen_RL.to(x_RL.dtype))
        )
        # Half of the share that is observed since the first value.
        self.least_RE = self.seen_RE / (2 * (self.seen_RE > 0).cumsum(1).clamp(min=1))

    def over(self, length_R: Int[Tensor, " R"]) -> Float[Tensor, "R E"]:
        """For the first 0 to L steps, the mean of the last ``length`` of them.

        NaN if the share of observed steps is less than half of that in the row so far, which is low if all nights are
        missing.
        """
        end_E = torch.arange(self.total_RE.shape[1], device=length_R.device)
        start_RE = (end_E - length_R[:, None]).clamp(min=0)
        count_RE = self.seen_RE - self.seen_RE.gather(1, start_RE)
        enough_RE = (count_RE >= length_R[:, None] * self.least_RE) & (count_RE > 0)
        return torch.where(enough_RE, (self.total_RE - self.total_RE.gather(1, start_RE)) / count_RE, math.nan)
