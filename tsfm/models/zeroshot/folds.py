"""Simple forecasts (seasonal naive, means of cycles, levels, lines), and their errors on the end of the history.

An origin is the first step that a forecast does not know. Values are on the model's scale, after asinh.

On a CPU, choosing elements by a boolean mask takes ten times as long as arithmetic. So the large arrays here have
weights of 0 and 1 instead, and indices of 32 bits into flattened tables.

Shapes: R rows, L steps, E = L + 1 places in a table, Q origins, S steps to forecast from each, P periods, J cycles,
D candidates (simple forecasts of the same step).
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from tsfm.nn import asinh, sinh

MAX_ASINH = 40.0  # keeps sinh finite
MOST = math.sinh(MAX_ASINH)
MAX_ASINH = 40.0  # keeps sinh finite
MOST = math.sinh(MAX_ASINH)
ENDLESS = 2**24  # stands for no period: one cycle back is before the first step
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

    candidates: Float[Tensor, "D R Q S"]
    spread: Float[Tensor, "P R Q S"]


class History:
    """Tables of rows, from which values and means before any step are read.

    A table has one place more than there are steps. The value of step l is at place l + 1, and place 0 stands for all
    steps before the first. A sum at place l is that of the first l steps.

    Args:
        x_RL: values on the model's scale, 0 where not seen.
        plain_RL: the same before asinh.
        seen_RL: where there is a value.
    """

    def __init__(
        self, x_RL: Float[Tensor, "R L"], plain_RL: Float[Tensor, "R L"], seen_RL: Bool[Tensor, "R L"]
    ) -> None:
        rows, steps = x_RL.shape
        plain_RL = plain_RL.clamp(-MOST, MOST)
        # An exported graph is for any number of rows.
        short = not torch.compiler.is_compiling() and rows * (steps + 1) < 2**31
        self.index = torch.int32 if short else torch.int64
        self.row_R11 = torch.arange(rows, dtype=self.index, device=x_RL.device)[:, None, None] * (steps + 1)
        known_RL = torch.where(seen_RL, x_RL, math.nan)
        self.x_RE = F.pad(known_RL, (1, 0), value=math.nan)  # NaN where not seen
        self.plain_RE = F.pad(plain_RL, (1, 0))
        self.total_RE, self.count_RE = (F.pad(x.cumsum(1), (1, 0)) for x in (plain_RL, observed(known_RL)))
        self.first_R11 = (self.count_RE == 0).sum(1)[:, None, None].to(self.index) - 1

    def at(self, place: Int[Tensor, "*B R Q S"], *tables: Float[Tensor, "R E"]) -> list[Float[Tensor, "*B R Q S"]]:
        """The entries of tables at some places of every row, those of place 0 for negative places."""
        flat = (place.clamp(min=0) + self.row_R11).flatten()
        return [table.flatten().index_select(0, flat).view(place.shape) for table in tables]

    def last(self, origin_Q: Int[Tensor, " Q"]) -> Float[Tensor, "R Q"]:
        """The last value before each origin; 0 if there is none."""
        place_E = torch.arange(self.x_RE.shape[1], device=origin_Q.device)
        latest_RE = torch.where(self.x_RE.isnan(), 0, place_E).cummax(1).values
        return self.x_RE.gather(1, latest_RE[:, origin_Q]).nan_to_num()

    def levels(
        self, place: Int[Tensor, "J *B R Q S"], length: Int[Tensor, "*B _ 1 1"]
    ) -> tuple[Float[Tensor, "j *B R Q S"], Float[Tensor, "j *B R Q S"]]:
        """Means of the values before asinh over j = J - 1 consecutive spans, recent first, and which count (1 or 0).

        A span counts if the share of its steps that are observed is at least half of that in the row so far, which is
        low if all nights are missing.

        Args:
            place: the ends of the spans, and the beginning of the oldest.
            length: steps of a span.
        """
        total, count = self.at(place, self.total_RE, self.count_RE)
        seen = count[:-1] - count[1:]
        elapsed = (place[:-1] - self.first_R11).to(total.dtype)
        enough = (2 * seen * elapsed - length * count[:-1]).sign().add(1).clamp(max=1) * seen.clamp(max=1)
        return (total[:-1] - total[1:]) / seen.clamp(min=1), enough


def observed(x: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """1 where there is a value, 0 where it is NaN; in a quarter of the time of ``isnan`` and a conversion."""
    return (x - x + 1).nan_to_num(0.0)


def fold(
    history: History, period_RP: Int[Tensor, "R P"], origin_Q: Int[Tensor, " Q"], step_QS: Int[Tensor, "Q S"]
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
        history: the values, which may go on after an origin.
        period_RP: periods in steps, 0 for none.
        origin_Q: the first step that each forecast does not know.
        step_QS: the steps to forecast, none before its origin.
    """
    last_RQ1 = history.last(origin_Q)[..., None]
    origin_Q1 = origin_Q[:, None].to(history.index)
    ahead_QS = step_QS.to(history.index) - origin_Q1
    plain = lines(history, last_RQ1, origin_Q1, ahead_QS)
    if not period_RP.shape[1]:
        return Folds(plain, plain[:0])
    length_PR11 = torch.where(period_RP > 0, period_RP, ENDLESS).T[..., None, None].to(history.index)
    # Division is faster in floating point than in integers, and exact for numbers as small as these.
    first_PRQS = (ahead_QS / length_PR11).floor().to(history.index) + 1
    cycle_J = torch.arange(CYCLES + 1, dtype=history.index, device=step_QS.device)[:, None, None, None, None]
    place = origin_Q1 - length_PR11 * (first_PRQS + cycle_J)
    level, enough = history.levels(place, length_PR11)
    x, value = history.at(place[:-1] + (ahead_QS + 1), history.x_RE, history.plain_RE)
    x_before, before = history.at(place[0], history.x_RE, history.plain_RE)
    now, is_now = history.levels(origin_Q1 - length_PR11 * cycle_J[:2], length_PR11)
    weight, x = observed(x), x.nan_to_num()
    count = weight.sum(0)
    mean = torch.lerp(last_RQ1, x.sum(0) / count.clamp(min=1), count.clamp(max=1))
    few = weight[:FEW].sum(0)
    both = weight * enough
    pairs = both.sum(0)
    drifted = asinh(now[0] + ((value - level) * both).sum(0) / pairs.clamp(min=1))
    changed = asinh(sinh(last_RQ1.clamp(-MAX_ASINH, MAX_ASINH)) + (value[0] - before))
    seasonal = torch.stack(
        [
            torch.lerp(mean, x[0], weight[0]),
            torch.lerp(last_RQ1, x[:FEW].sum(0) / few.clamp(min=1), few.clamp(max=1)),
            torch.lerp(last_RQ1, drifted, is_now[0] * pairs.clamp(max=1)),
            torch.lerp(last_RQ1, changed, weight[0] * observed(x_before)),
        ],
        1,
    )
    spread = ((x - mean) * weight).abs().sum(0) / count.clamp(min=1)
    return Folds(torch.cat([plain, seasonal.flatten(0, 1)]), spread)


def lines(
    history: History, last_RQ1: Float[Tensor, "R Q 1"], origin_Q1: Int[Tensor, "Q 1"], ahead_QS: Int[Tensor, "Q S"]
) -> Float[Tensor, "_ R Q S"]:
    """The candidates without seasons, see ``fold``."""
    span_X111 = torch.tensor(SPANS, dtype=history.index, device=ahead_QS.device)[:, None, None, None]
    back_J = torch.arange(3, dtype=history.index, device=ahead_QS.device)[:, None, None, None, None]
    place = (origin_Q1 - span_X111 * back_J).expand(-1, -1, len(last_RQ1), -1, -1)
    (level, before), (is_level, is_before) = history.levels(place, span_X111)
    line = level + (level - before) / span_X111 * (ahead_QS + (span_X111 + 1) / 2)
    line = torch.lerp(last_RQ1, asinh(line), is_level * is_before)
    level = torch.lerp(last_RQ1, asinh(level), is_level).expand_as(line)
    last = last_RQ1.expand_as(line[0])[None]
    return torch.cat([last, torch.stack([level, line], 1).flatten(0, 1)])


def trial_errors(
    history: History, period_RP: Int[Tensor, "R P"], known: int
) -> Float[Tensor, "R D 3"]:
    """Mean absolute error of every candidate on the end of the history, in three ranges of steps ahead.

    The ranges are up to ``NEAR``, up to ``FAR``, and beyond. One without observed steps has the error of the range
    before it, or NaN if it is the first.

    Args:
        history: the values.
        period_RP: periods in steps, 0 for none.
        known: steps of the history; later ones are not looked at.
    """
    pairs = [(known - back, ahead) for back in TRIALS if back < known for ahead in range(back)]
    pairs += [(known - back, ahead) for back in LONG_TRIALS if back < known for ahead in range(0, back, back // PARTS)]
    origin_Q, ahead_Q = torch.tensor(pairs, dtype=torch.long, device=period_RP.device).reshape(-1, 2).unbind(1)
    step_Q = origin_Q + ahead_Q
    error_DRQ = (fold(history, period_RP, origin_Q, step_Q[:, None]).candidates[..., 0] - history.x_RE[:, step_Q + 1]).abs()
    near, beyond = ahead_Q < NEAR, ahead_Q >= FAR
    means = [error_DRQ[..., part].nanmean(-1) for part in (near, ~near & ~beyond, beyond)]
    for i in (1, 2):
        means[i] = torch.where(means[i].isnan(), means[i - 1], means[i])
    return torch.stack(means, -1).transpose(0, 1)
