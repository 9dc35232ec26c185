"""Simple forecasts (seasonal naive, means of cycles, levels, lines), and their errors on the end of the history.

An origin is the first step that a forecast does not know. Values are on the model's scale, after asinh.

On a CPU, choosing elements by a boolean mask takes ten times as long as arithmetic. So the large arrays here have
weights of 0 and 1 instead, and indices of 32 bits into flattened tables.

Shapes: R rows, L steps, E = L + 1 places in a table, O origins, N forecasts, P periods of a row at most, K pairs of a
row and one of its periods, J cycles, D candidates (simple forecasts of the same step).
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from tsfm.nn import asinh, sinh

MAX_ASINH = 40.0  # keeps sinh finite
MOST = math.sinh(MAX_ASINH)
LEAST, LARGE = 1e-6, 1e9  # below any count, and what turns the smallest excess of a count into 1
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
    """Simple forecasts of every step, and how far the seasonal ones can be trusted.

    Attributes:
        plain: the simple forecasts without seasons, the last value first.
        seasonal: those of each pair of a row and a period.
        spread: gives the mean absolute deviation of the earlier cycles from their mean; 0 without any.
    """

    plain: Float[Tensor, "_ R N"]
    seasonal: Float[Tensor, "_ K N"]
    spread: Callable[[], Float[Tensor, "P R N"]]


class Sums(NamedTuple):
    """What is known of the first steps of a row.

    Attributes:
        total: sum of the values before asinh.
        seen: how many are observed.
        least: half of the share that is observed since the first value.
    """

    total: Float[Tensor, "..."]
    seen: Float[Tensor, "..."]
    least: Float[Tensor, "..."]


class History:
    """Tables of rows, from which values and means before any step are read.

    A table has one place more than there are steps. The value of step l is at place l + 1, and place 0 stands for all
    steps before the first. A sum at place l is that of the first l steps.

    Args:
        x_RL: values on the model's scale, 0 where not seen.
        plain_RL: the same before asinh.
        seen_RL: where there is a value.
        period_RP: periods in steps, 0 for none.
    """

    def __init__(
        self,
        x_RL: Float[Tensor, "R L"],
        plain_RL: Float[Tensor, "R L"],
        seen_RL: Bool[Tensor, "R L"],
        period_RP: Int[Tensor, "R P"],
    ) -> None:
        rows, self.places = len(x_RL), x_RL.shape[1] + 1
        is_eager = not torch.compiler.is_compiling()  # else the graph is for any number of rows
        self.index = (
            torch.int32 if is_eager and rows * max(1, period_RP.shape[1]) * self.places < 2**31 else torch.int64
        )
        self.x_RE, self.plain_RE, self.seen_RE = (
            F.pad(x, (1, 0)) for x in (x_RL, plain_RL.clamp(-MOST, MOST), seen_RL.to(x_RL.dtype))
        )
        self.place_E = torch.arange(self.places, dtype=self.index, device=x_RL.device)
        count_RE = self.seen_RE.cumsum(1)
        since_RE = (count_RE > 0).cumsum(1).clamp(min=1)
        self.latest_RE = torch.where(self.seen_RE > 0, self.place_E, 0).cummax(1).values
        self.sums = Sums(self.plain_RE.cumsum(1), count_RE, count_RE / (2 * since_RE))
        # Most rows have fewer periods than P. On a GPU, looking for them would take longer than it saves.
        self.is_sparse = is_eager and x_RL.device.type == "cpu"
        self.periods, period_M = period_RP.shape[1], period_RP.T.flatten()
        self.row_R = torch.arange(rows, device=x_RL.device)
        self.pair_K = torch.arange(len(period_M), device=x_RL.device)
        if self.is_sparse:
            self.pair_K = self.pair_K[period_M > 0]
        self.row_K = self.row_R.repeat(self.periods)[self.pair_K]
        self.length_K1 = period_M.where(period_M > 0, ENDLESS)[self.pair_K, None].to(self.index)
        now = Sums(*(table[self.row_K] for table in self.sums))
        self.levels = level(now, self.at(self.row_K, self.place_E - self.length_K1, *self.sums[:2]), self.length_K1)

    def at(
        self, row_K: Int[Tensor, " K"], place: Int[Tensor, "*B K N"], *tables: Float[Tensor, "_ E"]
    ) -> list[Float[Tensor, "*B K N"]]:
        """The entries of tables at some places of some rows, at place 0 for those before it."""
        start_K1 = (row_K * self.places).to(self.index)[:, None]
        flat = torch.maximum(place + start_K1, start_K1)
        return [table.flatten().index_select(0, flat.flatten()).view(flat.shape) for table in tables]

    def of_rows(self, x: Float[Tensor, "*B K N"], default_RN: Float[Tensor, "R N"]) -> Float[Tensor, "*B P R N"]:
        """What is known of pairs as tables of rows and their periods."""
        if not self.is_sparse:
            return x.unflatten(-2, (self.periods, len(self.row_R)))
        whole = default_RN.repeat(*x.shape[:-2], self.periods, 1)
        return whole.index_copy(-2, self.pair_K, x).unflatten(-2, (self.periods, len(self.row_R)))

    def candidates(self, plain: Float[Tensor, "_ R N"], seasonal: Float[Tensor, "_ K N"]) -> Float[Tensor, "D R N"]:
        """What is known of all candidates, from that of ``Folds``; one without a period is the last value."""
        return torch.cat([plain, self.of_rows(seasonal, plain[0]).transpose(0, 1).flatten(0, 1)])

    def last(self, origin_O: Int[Tensor, " O"]) -> Float[Tensor, "R O"]:
        """The last value before each origin; 0 if there is none."""
        return self.x_RE.gather(1, self.latest_RE.index_select(1, origin_O).long())

    def change_spread(self, row_K: Int[Tensor, " K"], lag_K1: Int[Tensor, "K 1"], known: int) -> Float[Tensor, "K 1"]:
        """Mean absolute deviation of the changes over a lag from their mean; infinite with fewer than two changes.

        Args:
            row_K: rows.
            lag_K1: a lag in steps for each of them.
            known: steps of the history.
        """
        place_T = self.place_E[1 : known + 1]
        before_KT, seen_KT = self.at(row_K, place_T - lag_K1, self.x_RE, self.seen_RE)
        both_KT = self.seen_RE[row_K, 1 : known + 1] * seen_KT
        change_KT = (self.x_RE[row_K, 1 : known + 1] - before_KT) * both_KT
        pairs_K1 = both_KT.sum(1, keepdim=True)
        count_K1 = pairs_K1.clamp(min=1)
        mean_K1 = change_KT.sum(1, keepdim=True) / count_K1
        spread_K1 = ((change_KT - mean_K1) * both_KT).abs().sum(1, keepdim=True) / count_K1
        return torch.where(pairs_K1 > 1, spread_K1, math.inf)


def level(
    now: Sums, before: Sequence[Float[Tensor, "..."]], length: int | Int[Tensor, "..."]
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """The mean before asinh of the latest values, and whether it counts (1 or 0).

    It counts if the share of observed steps is at least half of that in the row so far, which is low if all nights are
    missing.

    Args:
        now: sums.
        before: total and count ``length`` steps earlier.
        length: number of the latest values.
    """
    count = now.seen - before[1]
    short = (length * now.least).clamp(min=LEAST) - count
    return (now.total - before[0]) / count.clamp(min=1), (1 - short * LARGE).clamp(0, 1)


def fold(history: History, origin_O: Int[Tensor, " O"], of_N: Int[Tensor, " N"], step_N: Int[Tensor, " N"]) -> Folds:
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
        origin_O: first steps that forecasts do not know.
        of_N: which of these each forecast has.
        step_N: the steps to forecast, none before its origin.
    """
    rows, origins = len(history.x_RE), len(origin_O)
    flat = (of_N + torch.arange(rows, device=of_N.device)[:, None] * origins).flatten()

    def each(x_RO: Float[Tensor, "R O"]) -> Float[Tensor, "R N"]:
        return x_RO.flatten().index_select(0, flat).view(rows, -1)

    ahead_N = step_N - origin_O[of_N]
    last_RO = history.last(origin_O)
    last_RN = each(last_RO)
    candidates = [last_RN]
    for span in SPANS:
        place_3O = (origin_O - span * torch.arange(3, device=origin_O.device)[:, None]).clamp(min=0)
        sums = [table.index_select(1, place_3O.flatten()).unflatten(1, (3, -1)).unbind(1) for table in history.sums]
        now, before, oldest = (Sums(*x) for x in zip(*sums, strict=True))
        (mean_RO, is_mean_RO), (mean_before_RO, is_before_RO) = level(now, before, span), level(before, oldest, span)
        mean_RN, slope_RN = each(mean_RO), each((mean_RO - mean_before_RO) / span)
        line_RN = mean_RN + slope_RN * (ahead_N + (span + 1) / 2)
        candidates += [
            each(torch.lerp(last_RO, asinh(mean_RO), is_mean_RO)),
            torch.lerp(last_RN, asinh(line_RN), each(is_mean_RO * is_before_RO)),
        ]
    origin_N, ahead_N = (x.to(history.index) for x in (origin_O[of_N], ahead_N))
    row_K, length_K1 = history.row_K, history.length_K1
    pair_K = torch.arange(len(row_K), device=of_N.device)
    last_KN = last_RN[row_K]
    # Division is faster in floating point than in integers, and exact for numbers as small as these.
    end_KN = origin_N - length_K1 * ((ahead_N / length_K1).floor().to(history.index) + 1)
    end_JKN = end_KN - length_K1 * torch.arange(CYCLES, dtype=history.index, device=of_N.device)[:, None, None]
    level_JKN, is_level_JKN = history.at(pair_K, end_JKN, *history.levels)
    x_JKN, plain_JKN, seen_JKN = history.at(
        row_K, end_JKN + (ahead_N + 1), history.x_RE, history.plain_RE, history.seen_RE
    )
    before_KN, is_before_KN = history.at(row_K, end_KN, history.plain_RE, history.seen_RE)
    now_KN, is_now_KN = history.at(pair_K, origin_N.expand_as(end_KN), *history.levels)
    count_KN, few_KN = seen_JKN.sum(0), seen_JKN[:FEW].sum(0)
    mean_KN = torch.lerp(last_KN, x_JKN.sum(0) / count_KN.clamp(min=1), count_KN.clamp(max=1))
    both_JKN = seen_JKN * is_level_JKN
    pairs_KN = both_JKN.sum(0)
    above_KN = ((plain_JKN - level_JKN) * both_JKN).sum(0) / pairs_KN.clamp(min=1)
    changed_KN = sinh(last_KN.clamp(-MAX_ASINH, MAX_ASINH)) + (plain_JKN[0] - before_KN)
    seasonal = [
        torch.lerp(mean_KN, x_JKN[0], seen_JKN[0]),
        torch.lerp(last_KN, x_JKN[:FEW].sum(0) / few_KN.clamp(min=1), few_KN.clamp(max=1)),
        torch.lerp(last_KN, asinh(now_KN + above_KN), is_now_KN * pairs_KN.clamp(max=1)),
        torch.lerp(last_KN, asinh(changed_KN), seen_JKN[0] * is_before_KN),
    ]

    def spread() -> Float[Tensor, "P R N"]:
        away_KN = ((x_JKN - mean_KN) * seen_JKN).abs().sum(0) / count_KN.clamp(min=1)
        return history.of_rows(away_KN, torch.zeros_like(last_RN))

    return Folds(torch.stack(candidates), torch.stack(seasonal), spread)


def trial_errors(history: History, known: int) -> Float[Tensor, "R D 3"]:
    """Mean absolute error of every candidate on the end of the history, in three ranges of steps ahead.

    Forecasts are made from steps before which there is a value. The ranges are up to ``NEAR``, up to ``FAR``, and
    beyond. One without observed steps has the error of the range before it, or NaN if it is the first.

    Args:
        history: the values.
        known: steps of the history; later ones are not looked at.
    """
    backs = [back for back in TRIALS + LONG_TRIALS if back < known]
    trials = [
        (i, ahead)
        for i, back in enumerate(backs)
        for ahead in range(0, back, back // PARTS if back in LONG_TRIALS else 1)
    ]
    trials.sort(key=lambda trial: trial[1])
    ends = [sum(ahead < border for _, ahead in trials) for border in (NEAR, FAR)]
    of_N, ahead_N = torch.tensor(trials, dtype=torch.long, device=history.x_RE.device).reshape(-1, 2).unbind(1)
    origin_O = known - torch.tensor(backs, dtype=torch.long, device=of_N.device)
    step_N = origin_O[of_N] + ahead_N
    x_RN, seen_RN = (table.index_select(1, step_N + 1) for table in (history.x_RE, history.seen_RE))
    # Origins before the first value do not count: how many there are depends on the other rows of a batch.
    seen_RN = seen_RN * history.sums.seen.index_select(1, origin_O).clamp(max=1).index_select(1, of_N)

    def errors(forecasts: Float[Tensor, "_ M N"], row_M: Int[Tensor, " M"]) -> Float[Tensor, "_ M 3"]:
        seen_MN = seen_RN[row_M]
        error = (forecasts - x_RN[row_M]).abs() * seen_MN
        parts = zip(error.tensor_split(ends, -1), seen_MN.tensor_split(ends, -1), strict=True)
        means = [part.sum(-1) / seen.sum(-1) for part, seen in parts]
        for i in (1, 2):
            means[i] = torch.where(means[i].isnan(), means[i - 1], means[i])
        return torch.stack(means, -1)

    folds = fold(history, origin_O, of_N, step_N)
    plain = errors(folds.plain, history.row_R)
    return history.candidates(plain, errors(folds.seasonal, history.row_K)).transpose(0, 1)
