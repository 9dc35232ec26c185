"""The effect of covariates, learnt from each history alone: forecasts of what they leave, plus their effect ahead.

An autoregression takes from the target what its own past explains, and the same filter is applied to every covariate
(Frisch and Waugh, Cochrane and Orcutt), so shared seasons and trends do not count as a relation. The few features of
covariates that then explain the target best give the effect. It is used as far as it also improves forecasts of the end
of the history, from which it was not learnt.

Shapes: B windows, V variates, R rows (a variate of a window), T steps of history, H horizon, S = T + H steps,
C covariates, D features of each, F features of all, L lags, J lags of the series itself, M chosen features, K levels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from tsfm.models.covariates import with_covariates
from tsfm.models.zeroshot.periods import find_periods, length_of
from tsfm.nn import mean_pinball_loss
from tsfm_data.windows import Batch

HISTORY = 1024  # latest steps from which effects are learnt: they change in time
COLUMNS = 16  # covariates of a row that are looked at closely: those that correlate most
FEW_VALUES = 8  # a covariate with at most so many different values has a feature for each
KNOTS = (0.25, 0.5, 0.75)  # quantiles of the other covariates where their effect may bend
LEAD, DELAY = 2, 24  # most steps by which an effect may lead (known covariates only) and follow
OWN_LAGS = (1, 2, 3)  # of the autoregression, next to the periods
CHOSEN = 6  # most features of an effect
LEAST_EVENTS = 4.0  # steps on which a feature must rest, as a participation ratio
SURE = 6.0  # by how much the squared t-value of a feature must exceed the largest one of noise features
CLIP = 3.0  # residuals count as at most so many standard deviations
REFITS = 3  # with residuals clipped around the fit before
RIDGE = 1e-3  # relative to the sum of squares of a feature
BEYOND = 0.5  # how far a covariate may leave the range of its history, in units of this range
LEAST_STEPS = 24  # fewest observed steps from which an effect is learnt
TRIAL = 48  # fewest held-out steps, if the history is long enough
CLEAR = 0.1  # share by which losses must fall for full trust in an effect
ERRORS = 0.5  # standard errors that are taken from the gain in a trial
LEAST_WEIGHT = 0.02  # effects trusted no more than this are left out
CELLS = 2**20  # most values of covariates that are looked at together

Predict = Callable[[Batch], Float[Tensor, "B H V K"]]


class Table(NamedTuple):
    """Rows and their covariates over history and horizon, 0 where not seen.

    Attributes:
        y: the series.
        y_seen: where it is observed.
        x: covariates; all rows have the same ones.
        x_seen: where they are observed.
    """

    y: Float[Tensor, "R S"]
    y_seen: Bool[Tensor, "R S"]
    x: Float[Tensor, "R C S"]
    x_seen: Bool[Tensor, "R C S"]


class Design(NamedTuple):
    """What an effect is estimated from.

    Attributes:
        y: the series as distances from seasonal means.
        seen: where it is observed.
        features: of the covariates, as distances from seasonal means, with standard deviation 1.
        known: which of them are known over the horizon.
        lag: lags of the autoregression, 0 for none.
        least: squared t-value from which on a feature is significant.
    """

    y: Float[Tensor, "R S"]
    seen: Bool[Tensor, "R S"]
    features: Float[Tensor, "R F S"]
    known: Bool[Tensor, "R F"]
    lag: Int[Tensor, "R J"]
    least: Float[Tensor, " R"]


class Effect(NamedTuple):
    """What covariates add to rows, in units of the series.

    Attributes:
        value: at every step, of the covariates that are known there at the end of the history.
        share: share of the variance of the effect that is known at each step of the horizon; 0 if there is no effect.
        whole: at every step, of all covariates, also those that the horizon hides.
        phi: coefficients of the autoregression of the series without the effect.
    """

    value: Float[Tensor, "R S"]
    share: Float[Tensor, "R H"]
    whole: Float[Tensor, "R S"]
    phi: Float[Tensor, "R J"]


class Chosen(NamedTuple):
    """The chosen features of each row.

    Attributes:
        feature: index into the features.
        lag: by how many steps the effect follows it.
        coefficient: its coefficient.
        active: false where a row has fewer features.
    """

    feature: Int[Tensor, "R M"]
    lag: Int[Tensor, "R M"]
    coefficient: Float[Tensor, "R M"]
    active: Bool[Tensor, "R M"]


Rows = TypeVar("Rows", Table, Design, Chosen, Effect)


def add_covariates(batch: Batch, forecast: Predict, levels: Sequence[float]) -> Float[Tensor, "B H V K"]:
    """Quantiles of windows, with the effect of covariates as far as it improves forecasts of the end of the history.

    Args:
        batch: windows; without covariates, the forecast is that of ``forecast``.
        forecast: gives the quantiles of windows without covariates, each variate by itself.
        levels: quantile levels of the forecasts.
    """

    def alone(part: Batch) -> Float[Tensor, "b h v K"]:
        return forecast(replace(part, season=batch.season, seasons=batch.seasons))

    plain = alone(Batch(batch.past, batch.past_observed, batch.horizon))
    if (batch.past_covariates is None and batch.known_past is None) or batch.past.shape[1] < LEAST_STEPS:
        return plain
    wide, variates = with_covariates(batch), batch.past.shape[2]
    x_BCS, x_seen_BCS = (
        torch.cat(parts, 1)[..., variates:].transpose(1, 2)
        for parts in ((wide.past, wide.future), (wide.past_observed, wide.future_observed))
    )
    y_RS, y_seen_RS = (
        F.pad(v.transpose(1, 2).flatten(0, 1), (0, batch.horizon)) for v in (batch.past, batch.past_observed)
    )
    known = 0 if batch.known_past is None else batch.known_past.shape[2]
    known_C = torch.arange(x_BCS.shape[1], device=y_RS.device) >= x_BCS.shape[1] - known
    plain_RHK, parts = plain.transpose(1, 2).flatten(0, 1), []
    size = max(1, CELLS // (y_RS.shape[1] * x_BCS.shape[1]))
    for index in torch.arange(len(y_RS), device=y_RS.device).split(size):
        window = index // variates
        table = Table(y_RS[index], y_seen_RS[index], x_BCS[window], x_seen_BCS[window])
        parts.append(add_effects(table, known_C, plain_RHK[index], alone, levels))
    return torch.cat(parts).unflatten(0, (-1, variates)).transpose(1, 2)


def add_effects(
    table: Table, known_C: Bool[Tensor, " C"], plain: Float[Tensor, "R H K"], forecast: Predict, levels: Sequence[float]
) -> Float[Tensor, "R H K"]:
    """The forecasts ``plain`` with the effect of covariates.

    Args:
        table: the rows.
        known_C: which covariates are known over the horizon.
        plain: forecasts without covariates.
        forecast: as for ``add_covariates``.
        levels: quantile levels of the forecasts.
    """
    horizon = plain.shape[1]
    steps = table.y.shape[1] - horizon
    held = min(max(horizon, TRIAL), max(1, steps // 3))
    length_R = length_of(table.y_seen[:, :steps])
    cut_R = (length_R // 3).clamp(max=held)
    earlier = Table(*(moved(v, cut_R, steps + held) for v in table))
    design, effect = learn(earlier, known_C, steps)
    tried = (effect.share.amax(1) > 0).nonzero()[:, 0]
    if not len(tried):
        return plain
    earlier, design, effect = pick(earlier, tried), pick(design, tried), pick(effect, tried)
    both = history(torch.cat([earlier.y, earlier.y - effect.value]), earlier.y_seen.repeat(2, 1), steps)
    without, rest = forecast(both)[:, :, 0].unflatten(0, (2, -1))
    counts = (torch.arange(held, device=plain.device) < cut_R[tried, None]) & earlier.y_seen[:, steps:]
    using = combined(without, rest, effect)
    weight_R = weigh(design, effect, without, using, earlier.y[:, steps:], counts, levels)
    tried, weight_R = tried[weight_R > LEAST_WEIGHT], weight_R[weight_R > LEAST_WEIGHT]
    if not len(tried):
        return plain
    part = pick(table, tried)
    _, effect = learn(part, known_C, steps)
    rest = forecast(history(part.y - effect.value, part.y_seen, steps))[:, :, 0]
    weight_R11 = weight_R[:, None, None].to(plain.dtype)
    return plain.index_copy(0, tried, torch.lerp(plain[tried], combined(plain[tried], rest, effect), weight_R11))


def pick(rows: Rows, index: Int[Tensor, " r"]) -> Rows:
    """Some of the rows."""
    return type(rows)(*(x[index] for x in rows))


def moved(x: Tensor, cut_R: Int[Tensor, " R"], steps: int) -> Tensor:
    """Rows moved ``cut`` steps to the right and cut or padded to ``steps``; 0 where there is nothing."""
    index_RS = torch.arange(steps, device=x.device) - cut_R[:, None]
    inside_RS = (index_RS >= 0) & (index_RS < x.shape[-1])
    index_RS = index_RS.clamp(0, x.shape[-1] - 1)
    if x.ndim == 3:
        index_RS, inside_RS = index_RS[:, None].expand(-1, x.shape[1], -1), inside_RS[:, None]
    return torch.where(inside_RS, x.gather(-1, index_RS), torch.zeros((), dtype=x.dtype, device=x.device))


def history(y_RS: Float[Tensor, "R S"], seen_RS: Bool[Tensor, "R S"], steps: int) -> Batch:
    """Windows of one variate, from the first ``steps`` steps of rows."""
    past, seen = y_RS[:, :steps, None], seen_RS[:, :steps, None]
    return Batch(torch.where(seen, past, 0.0), seen, y_RS.shape[1] - steps)


def combined(plain: Float[Tensor, "R H K"], rest: Float[Tensor, "R H K"], effect: Effect) -> Float[Tensor, "R H K"]:
    """Forecasts ``rest`` of what the effect leaves, plus the effect; ``plain`` as far as the effect is not known."""
    value_RH1 = effect.value[:, -plain.shape[1] :, None]
    return torch.lerp(plain, rest + value_RH1, effect.share[..., None])


def weigh(
    design: Design,
    effect: Effect,
    without: Float[Tensor, "R H K"],
    using: Float[Tensor, "R H K"],
    truth: Float[Tensor, "R H"],
    counts: Bool[Tensor, "R H"],
    levels: Sequence[float],
) -> Float[Tensor, " R"]:
    """How far effects are trusted, 0 to 1: the mean of two trials on steps from which they were not learnt.

    One compares the losses of forecasts without the effect and halfway to those with it. The other compares errors one
    step ahead, and so also tries effects of covariates that are not known over the horizon.

    Args:
        design: what the effects were learnt from.
        effect: the effects.
        without: forecasts of the held-out steps without covariates.
        using: forecasts of these steps with them.
        truth: the true values.
        counts: where these are observed.
        levels: quantile levels of the forecasts.
    """
    halfway = mean_pinball_loss(torch.lerp(without, using, 0.5), truth, levels)
    of_forecasts_R = trial(mean_pinball_loss(without, truth, levels), halfway, counts * effect.share)
    rest_RS = torch.stack([design.y, design.y - effect.whole], 1)
    before, after = filtered(rest_RS, design.lag, effect.phi, design.seen)[..., -truth.shape[1] :].abs().unbind(1)
    return (of_forecasts_R + trial(before, after, counts.to(truth.dtype))) / 2


def trial(
    before: Float[Tensor, "R H"], after: Float[Tensor, "R H"], weight_RH: Float[Tensor, "R H"]
) -> Float[Tensor, " R"]:
    """How clearly losses fall, 0 to 1: 1 if they fall by the share ``CLEAR`` and half a standard error of the mean.

    Args:
        before: losses of each step.
        after: losses to compare with them.
        weight_RH: weight of each step.
    """
    total_R1 = weight_RH.sum(1, keepdim=True).clamp(min=1e-6)
    gain_RH = before - after
    mean_R1 = (weight_RH * gain_RH).sum(1, keepdim=True) / total_R1
    error_R = (weight_RH * (gain_RH - mean_R1)).square().sum(1).sqrt() / total_R1[:, 0]
    base_R = (weight_RH * before).sum(1) / total_R1[:, 0]
    share_R = (mean_R1[:, 0] - ERRORS * error_R) / base_R.clamp(min=1e-9)
    return (share_R / CLEAR).clamp(0, 1)


def learn(table: Table, known_C: Bool[Tensor, " C"], steps: int) -> tuple[Design, Effect]:
    """The effect of the covariates, and what it was estimated from.

    Args:
        table: the rows.
        known_C: which covariates are known over the horizon.
        steps: T.
    """
    with torch.autocast(table.y.device.type, enabled=False):
        design = prepare(table, known_C, steps)
        return design, estimate(design, steps)


def prepare(table: Table, known_C: Bool[Tensor, " C"], steps: int) -> Design:
    """What effects are estimated from, of the ``COLUMNS`` best covariates; arguments as for ``learn``."""
    seen_RT = table.y_seen[:, :steps]
    period_RP, _ = find_periods(table.y[:, :steps], seen_RT)
    cycle_R = torch.where(length_of(seen_RT) >= 3 * period_RP[:, 0], period_RP[:, 0], 1).clamp(min=1)
    y_RS = deviations(table.y[:, None], table.y_seen[:, None], cycle_R, steps)[:, 0]
    own_lags = torch.tensor(OWN_LAGS, device=table.y.device).expand(len(table.y), -1)
    lag_RJ = torch.cat([own_lags, period_RP], 1)
    x_RCS, x_seen_RCS, known_RC = table.x, table.x_seen, known_C.expand(len(table.y), -1)
    # The largest of N squared normal variables is about 2 log N.
    candidates = len(known_C) * (1 + FEW_VALUES) * (LEAD + DELAY + 1)
    least_R = torch.full_like(y_RS[:, 0], 2 * math.log(candidates) + SURE)
    if x_RCS.shape[1] > COLUMNS:
        linear_RCS = deviations(x_RCS, x_seen_RCS, cycle_R, steps)
        used = recent(Design(y_RS, table.y_seen, linear_RCS, known_RC, lag_RJ, least_R), steps)
        phi_RJ = autoregression(used, torch.zeros_like(used.y))
        gain_RCL = Search(used, phi_RJ).gains(clipped(innovations(used, phi_RJ), used.seen))
        best_RC = gain_RCL.amax(2).topk(COLUMNS, 1).indices
        known_RC = known_RC.gather(1, best_RC)
        x_RCS, x_seen_RCS = (x.gather(1, best_RC[..., None].expand(-1, -1, x.shape[2])) for x in (x_RCS, x_seen_RCS))
    features_RCDS = features(within_range(x_RCS, x_seen_RCS, steps), x_seen_RCS, steps)
    count = features_RCDS.shape[2]
    features_RFS = features_RCDS.flatten(1, 2)
    features_RFS = deviations(features_RFS, x_seen_RCS.repeat_interleave(count, 1), cycle_R, steps)
    size_RF1 = features_RFS[..., :steps].square().mean(2, keepdim=True).sqrt()
    features_RFS = torch.where(size_RF1 > 1e-6, features_RFS / size_RF1.clamp(min=1e-6), 0.0)
    return Design(y_RS, table.y_seen, features_RFS, known_RC.repeat_interleave(count, 1), lag_RJ, least_R)


def within_range(x_RCS: Float[Tensor, "R C S"], seen_RCS: Bool[Tensor, "R C S"], steps: int) -> Float[Tensor, "R C S"]:
    """Covariates limited to a little more than the range of their history; 0 without a history."""
    past_RCT, seen_RCT = x_RCS[..., :steps], seen_RCS[..., :steps]
    high_RC1 = torch.where(seen_RCT, past_RCT, -math.inf).amax(2, keepdim=True)
    low_RC1 = torch.where(seen_RCT, past_RCT, math.inf).amin(2, keepdim=True)
    room_RC1 = BEYOND * (high_RC1 - low_RC1)
    limited_RCS = torch.minimum(torch.maximum(x_RCS, low_RC1 - room_RC1), high_RC1 + room_RC1)
    return torch.where(seen_RCT.any(2, keepdim=True), limited_RCS, 0.0)


def features(x_RCS: Float[Tensor, "R C S"], seen_RCS: Bool[Tensor, "R C S"], steps: int) -> Float[Tensor, "R C D S"]:
    """Every covariate itself, and what its effect may be made of.

    A covariate with many values has hinges, ``max(0, x - knot)``, so an effect may saturate or turn around. One with a
    few values, but more than two, has a column for each of them, which is 1 where it has this value. Columns that do
    not apply to a covariate are 0.
    """
    past_RCT = torch.where(seen_RCS[..., :steps], x_RCS[..., :steps], math.nan)
    ordered_RCT = past_RCT.sort(2).values  # NaN comes last
    is_new_RCT = torch.cat([~ordered_RCT[..., :1].isnan(), ordered_RCT[..., 1:] > ordered_RCT[..., :-1]], 2)
    values_RC1 = is_new_RCT.sum(2, keepdim=True)
    few_RC1 = values_RC1 <= FEW_VALUES
    columns = [x_RCS]
    if not bool(few_RC1.all()):
        last_RC1 = (seen_RCS[..., :steps].sum(2, keepdim=True) - 1).clamp(min=0)
        for share in KNOTS:
            knot_RC1 = ordered_RCT.gather(2, (last_RC1 * share).round().long()).nan_to_num()
            columns.append(torch.where(few_RC1, 0.0, (x_RCS - knot_RC1).clamp(min=0)))
    if bool((few_RC1 & (values_RC1 > 2)).any()):
        rank_RCT = is_new_RCT.cumsum(2)
        for number in range(FEW_VALUES):
            first_RC1 = (rank_RCT > number).float().argmax(2, keepdim=True)
            is_equal_RCS = x_RCS == ordered_RCT.gather(2, first_RC1)
            columns.append((is_equal_RCS & few_RC1 & (values_RC1 > max(2, number))).to(x_RCS.dtype))
    return torch.stack(columns, 2)


def deviations(
    x_RFS: Float[Tensor, "R F S"], seen_RFS: Bool[Tensor, "R F S"], cycle_R: Int[Tensor, " R"], steps: int
) -> Float[Tensor, "R F S"]:
    """Distances from the mean at the same phase of the cycle in the history; 0 where not seen."""
    phase_RFS = (torch.arange(x_RFS.shape[2], device=x_RFS.device) % cycle_R[:, None])[:, None].expand_as(x_RFS)
    past_RFT = torch.where(seen_RFS, x_RFS, 0.0)[..., :steps]
    seen_RFT = seen_RFS[..., :steps].to(x_RFS.dtype)
    empty = x_RFS.new_zeros(*x_RFS.shape[:2], int(cycle_R.max()))
    total, count = (empty.scatter_add(2, phase_RFS[..., :steps], x) for x in (past_RFT, seen_RFT))
    overall_RF1 = past_RFT.sum(2, keepdim=True) / seen_RFT.sum(2, keepdim=True).clamp(min=1)
    mean = torch.where(count > 0, total / count.clamp(min=1), overall_RF1)
    return torch.where(seen_RFS, x_RFS - mean.gather(2, phase_RFS), 0.0)


def recent(design: Design, steps: int) -> Design:
    """The end of the history, from which effects are learnt."""
    used = slice(max(0, steps - HISTORY), steps)
    return design._replace(y=design.y[:, used], seen=design.seen[:, used], features=design.features[..., used])


def autoregression(design: Design, effect_RT: Float[Tensor, "R T"]) -> Float[Tensor, "R J"]:
    """Coefficients with which the series, without the effect, depends on its own past."""
    y_RT = torch.where(design.seen, design.y - effect_RT, 0.0)
    past = [moved(y_RT, lag_R, y_RT.shape[1]) * (lag_R > 0)[:, None] for lag_R in design.lag.unbind(1)]
    return solve(torch.stack(past, 2) * design.seen[..., None], y_RT)


def filtered(
    x_RFS: Float[Tensor, "R F S"],
    lag_RJ: Int[Tensor, "R J"],
    phi_RJ: Float[Tensor, "R J"],
    seen_RS: Bool[Tensor, "R S"] | None = None,
) -> Float[Tensor, "R F S"]:
    """What an autoregression with coefficients ``phi`` does not explain; past steps that are not seen count as 0."""
    past_RFS = x_RFS if seen_RS is None else x_RFS * seen_RS[:, None]
    rest_RFS = x_RFS.clone()
    phi_JR11 = phi_RJ.to(x_RFS.dtype).T[..., None, None]
    for lag, phi_R11 in zip(OWN_LAGS, phi_JR11, strict=False):
        rest_RFS[..., lag:] -= phi_R11 * past_RFS[..., :-lag]
    for lag_R, phi_R11 in zip(lag_RJ.T[len(OWN_LAGS) :], phi_JR11[len(OWN_LAGS) :], strict=True):
        if bool(lag_R.any()):
            rest_RFS -= phi_R11 * moved(past_RFS, lag_R, x_RFS.shape[2])
    return rest_RFS


def clipped(rest_RT: Float[Tensor, "R T"], seen_RT: Bool[Tensor, "R T"]) -> Float[Tensor, "R T"]:
    """Residuals limited to ``CLIP`` robust standard deviations; 0 where not seen."""
    size_RT = rest_RT.abs()
    median_R1 = torch.where(seen_RT, size_RT, math.nan).nanmedian(1, keepdim=True).values.nan_to_num()
    mean_R1 = torch.where(seen_RT, size_RT, 0.0).sum(1, keepdim=True) / seen_RT.sum(1, keepdim=True).clamp(min=1)
    # The factors are those of a normal distribution. Where most residuals are 0, the median says nothing.
    limit_R1 = CLIP * torch.maximum(1.483 * median_R1, 1.253 * mean_R1)
    return torch.where(seen_RT, torch.minimum(torch.maximum(rest_RT, -limit_R1), limit_R1), 0.0)


def solve(x_RTM: Float[Tensor, "R T M"], y_RT: Float[Tensor, "R T"]) -> Float[Tensor, "R M"]:
    """Coefficients of a ridge regression; 0 for a column of zeros."""
    gram_RMM, products_RM1 = (x_RTM.transpose(1, 2) @ x for x in (x_RTM, y_RT[..., None]))
    gram_RMM = gram_RMM.double()
    own_RM = gram_RMM.diagonal(dim1=1, dim2=2)
    ridge_RM = RIDGE * own_RM + 1e-9 * own_RM.amax(1, keepdim=True) + (own_RM <= 0)
    solution_RM1 = torch.linalg.solve(gram_RMM + torch.diag_embed(ridge_RM), products_RM1.double())
    return solution_RM1[..., 0].to(y_RT.dtype)


class Search:
    """Which feature at which lag explains residuals best.

    Args:
        design: series and features, without a future.
        phi_RJ: coefficients of the autoregression.
    """

    def __init__(self, design: Design, phi_RJ: Float[Tensor, "R J"]) -> None:
        self.x_RFT = filtered(design.features, design.lag, phi_RJ)
        seen_RTL = self.at_lags(design.seen.to(phi_RJ.dtype))
        square_RFT = self.x_RFT.square()
        size_RFL = square_RFT @ seen_RTL
        events_RFL = size_RFL.square() / (square_RFT.square() @ seen_RTL).clamp(min=1e-30)
        lag_L = torch.arange(-LEAD, DELAY + 1, device=phi_RJ.device)
        usable_RFL = (events_RFL >= LEAST_EVENTS) & (size_RFL > 1e-6) & (design.known[..., None] | (lag_L > 0))
        self.weight_RFL = torch.where(usable_RFL, 1 / size_RFL.clamp(min=1e-6), 0.0)

    def at_lags(self, x_RT: Float[Tensor, "R T"]) -> Float[Tensor, "R T L"]:
        """The values that follow every step by each lag."""
        return F.pad(x_RT, (LEAD, DELAY)).unfold(1, x_RT.shape[1], 1).transpose(1, 2).contiguous()

    def gains(self, rest_RT: Float[Tensor, "R T"]) -> Float[Tensor, "R F L"]:
        """By how much each feature at each lag would reduce the sum of squares."""
        return (self.x_RFT @ self.at_lags(rest_RT)).square() * self.weight_RFL


def innovations(design: Design, phi_RJ: Float[Tensor, "R J"]) -> Float[Tensor, "R T"]:
    """What the autoregression does not explain of the series."""
    return filtered(design.y[:, None], design.lag, phi_RJ, design.seen)[:, 0]


def choose(design: Design, phi_RJ: Float[Tensor, "R J"]) -> Chosen:
    """Add the best feature as long as it is significant, at most ``CHOSEN`` times (orthogonal matching pursuit).

    All coefficients are fitted anew each time, with residuals clipped (Huber's estimate).

    Args:
        design: series and features, without a future.
        phi_RJ: coefficients of the autoregression.
    """
    search, seen_RT = Search(design, phi_RJ), design.seen
    target_RT, count_R = innovations(design, phi_RJ), seen_RT.sum(1)
    fit_RT = torch.zeros_like(target_RT)
    none_RM = torch.zeros(len(count_R), 0, dtype=torch.long, device=phi_RJ.device)
    chosen = Chosen(none_RM, none_RM, none_RM.to(phi_RJ.dtype), none_RM.bool())
    going_R = count_R >= LEAST_STEPS
    for number in range(CHOSEN):
        rest_RT = clipped(target_RT - fit_RT, seen_RT)
        gain_RFL = search.gains(rest_RT)
        best_R, where_R = gain_RFL.flatten(1).max(1)
        free_R = (count_R - len(OWN_LAGS) - 2 * (number + 2)).clamp(min=1)
        squared_t_R = best_R * free_R / (rest_RT.square().sum(1) - best_R).clamp(min=1e-12)
        going_R = going_R & (squared_t_R > design.least)
        if not bool(going_R.any()):
            break
        feature_RM = torch.cat([chosen.feature, (where_R // gain_RFL.shape[2])[:, None]], 1)
        lag_RM = torch.cat([chosen.lag, (where_R % gain_RFL.shape[2] - LEAD)[:, None]], 1)
        active_RM = torch.cat([chosen.active, going_R[:, None]], 1)
        chosen = Chosen(feature_RM, lag_RM, active_RM.to(phi_RJ.dtype), active_RM)
        x_RMT = filtered(contributions(design, chosen), design.lag, phi_RJ, seen_RT) * seen_RT[:, None]
        for _ in range(REFITS):
            pseudo_RT = torch.where(seen_RT, fit_RT + clipped(target_RT - fit_RT, seen_RT), 0.0)
            coefficient_RM = solve(x_RMT.transpose(1, 2), pseudo_RT)
            fit_RT = (coefficient_RM[:, None] @ x_RMT)[:, 0]
        chosen = chosen._replace(coefficient=coefficient_RM * active_RM)
    return chosen


def contributions(design: Design, chosen: Chosen) -> Float[Tensor, "R M S"]:
    """What each chosen feature adds to every step: the feature moved by its lag, times its coefficient."""
    index_RMS = chosen.feature[..., None].expand(-1, -1, design.features.shape[2])
    x_RMS = design.features.gather(1, index_RMS).flatten(0, 1)
    return moved(x_RMS, chosen.lag.flatten(), x_RMS.shape[1]).view(index_RMS.shape) * chosen.coefficient[..., None]


def estimate(design: Design, steps: int) -> Effect:
    """The effect of the covariates, 0 for rows without a significant feature; ``steps``: T."""
    used, nothing_RS = recent(design, steps), torch.zeros_like(design.y)
    phi_RJ = autoregression(used, torch.zeros_like(used.y))
    effect = Effect(nothing_RS, nothing_RS[:, steps:], nothing_RS, phi_RJ)
    first = choose(used, phi_RJ)
    found = first.active.any(1).nonzero()[:, 0]
    if not len(found):
        return effect
    design, used = pick(design, found), pick(used, found)
    # The autoregression of the series itself was partly that of the effect.
    phi_RJ = autoregression(used, contributions(used, pick(first, found)).sum(1))
    refined = sum_up(design, phi_RJ, choose(used, phi_RJ), steps)
    return Effect(*(x.index_copy(0, found, new) for x, new in zip(effect, refined, strict=True)))


def sum_up(design: Design, phi_RJ: Float[Tensor, "R J"], chosen: Chosen, steps: int) -> Effect:
    """The effect of chosen features, and how much of it is known over the horizon; ``steps``: T."""
    parts_RMS = contributions(design, chosen)
    step_S = torch.arange(parts_RMS.shape[2], device=parts_RMS.device)
    known_RM1 = design.known.gather(1, chosen.feature)[..., None]
    known_RMS = known_RM1 | (step_S < steps + chosen.lag[..., None])
    history_RMT = parts_RMS[..., :steps]
    covariance_RMM = history_RMT @ history_RMT.transpose(1, 2)
    known_RHM = known_RMS[..., steps:].transpose(1, 2).to(parts_RMS.dtype)
    known_RH = (known_RHM @ covariance_RMM * known_RHM).sum(-1)
    total_R1 = covariance_RMM.sum((1, 2))[:, None]
    share_RH = torch.where(total_R1 > 1e-12, known_RH / total_R1.clamp(min=1e-12), 0.0).clamp(0, 1)
    return Effect((parts_RMS * known_RMS).sum(1), share_RH, parts_RMS.sum(1), phi_RJ)
