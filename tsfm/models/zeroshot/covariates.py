"""The effect of covariates, learnt from each history alone: forecasts of what they leave, plus their effect ahead.

A linear filter takes from the target what its own past explains, and the same from every covariate (Frisch and Waugh,
Cochrane and Orcutt), so shared seasons and trends are no relation. The few features that then explain the target best
give the effect. It is used if it also improves forecasts of the end of the history, from which it was not learnt.

Shapes: B windows, V variates, R rows (a variate of a window), T steps of history, H horizon, S = T + H steps,
C covariates, F features of them, L lags, J lags of the series itself, M chosen features, D values, K quantile levels.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from tsfm.models.covariates import with_covariates
from tsfm.models.zeroshot.periods import find_periods, length_of
from tsfm.nn import mean_pinball_loss
from tsfm_data.windows import Batch

HISTORY = 2048  # latest steps from which effects are learnt
COLUMNS = 16  # covariates of a row that are looked at closely: those that correlate most
FEW_VALUES = 8  # a covariate with at most as many values has a feature for each
KNOTS = (0.25, 0.5, 0.75)  # quantiles of the other covariates where their effect may bend
LEAD, DELAY = 2, 24  # most steps by which an effect may lead (known covariates only) and follow
OWN_LAGS = (1, 2, 3)  # of the autoregression, next to the periods
CHOSEN = 6  # most features of an effect
LEAST_EVENTS = 4.0  # steps on which a feature must rest, as a participation ratio
SURE = 8.0  # by how much the squared t-value of a feature must exceed the largest one of noise features
CLIP = 3.0  # residuals count as at most so many standard deviations
RIDGE = 1e-3  # relative to the variance of a feature
BEYOND = 0.5  # how far a covariate may leave the range of its history, in units of this range
LEAST_STEPS = 24  # shortest history from which an effect is learnt
TRIAL = 48  # held-out steps, if the horizon is not longer
WEIGHTS = (0.5, 1.0)  # of an effect that is used
CELLS = 2**22  # most numbers in the arrays of covariates and features, each

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
    """

    y: Float[Tensor, "R S"]
    seen: Bool[Tensor, "R S"]
    features: Float[Tensor, "R F S"]
    known: Bool[Tensor, "R F"]
    lag: Int[Tensor, "R J"]


class Effect(NamedTuple):
    """What covariates add to rows.

    Attributes:
        value: at every step, as far as it is known at the end of the history.
        share: how much of the variance of the effect is known at each step of the horizon; 0 if there is no effect.
        whole: its value with all covariates of the table.
        phi: coefficients of the autoregression of the rest.
    """

    value: Float[Tensor, "R S"]
    share: Float[Tensor, "R H"]
    whole: Float[Tensor, "R S"]
    phi: Float[Tensor, "R J"]


Rows = TypeVar("Rows", Table, Design, Effect)


def add_covariates(batch: Batch, forecast: Predict, levels: Sequence[float]) -> Float[Tensor, "B H V K"]:
    """Forecasts of windows that use covariates where these have improved forecasts of the end of the history.

    Args:
        batch: windows.
        forecast: forecasts windows without covariates, each variate by itself.
        levels: quantile levels of the forecasts.
    """
    plain = forecast(batch)
    wide, variates = with_covariates(batch), batch.past.shape[2]
    x_BCS, x_seen_BCS = (
        torch.cat(parts, 1)[..., variates:].transpose(1, 2)
        for parts in ((wide.past, wide.future), (wide.past_observed, wide.future_observed))
    )
    if not x_BCS.shape[1]:
        return plain
    y_RS, y_seen_RS = (
        F.pad(v.transpose(1, 2).flatten(0, 1), (0, batch.horizon)) for v in (batch.past, batch.past_observed)
    )
    known = 0 if batch.known_past is None else batch.known_past.shape[2]
    known_C = torch.arange(x_BCS.shape[1], device=y_RS.device) >= x_BCS.shape[1] - known
    quantiles_RHK = plain.transpose(1, 2).flatten(0, 1)
    size = max(1, CELLS // (y_RS.shape[1] * x_BCS.shape[1]))
    for index in torch.arange(len(y_RS), device=y_RS.device).split(size):
        window = index // variates
        table = Table(y_RS[index], y_seen_RS[index], x_BCS[window], x_seen_BCS[window])
        quantiles_RHK[index] = add_effects(table, known_C, quantiles_RHK[index], forecast, levels)
    return quantiles_RHK.unflatten(0, (-1, variates)).transpose(1, 2)


def add_effects(
    table: Table, known_C: Bool[Tensor, " C"], plain: Float[Tensor, "R H K"], forecast: Predict, levels: Sequence[float]
) -> Float[Tensor, "R H K"]:
    """The forecasts ``plain`` with the effect of covariates.

    Args:
        table: the rows.
        known_C: which covariates are known over the horizon.
        plain: forecasts without covariates.
        forecast: forecasts windows without covariates.
        levels: quantile levels of the forecasts.
    """
    horizon = plain.shape[1]
    steps, trial = table.y.shape[1] - horizon, max(horizon, TRIAL)
    length_R = length_of(table.y_seen[:, :steps])
    cut_R = (length_R // 3).clamp(max=trial)
    earlier = Table(*(moved(v, cut_R, steps + trial) for v in table))
    design = prepare(earlier, known_C, steps)
    effect = estimate(design, steps)
    tried = (effect.share.amax(1) > 0).nonzero()[:, 0]
    if not len(tried):
        return plain
    earlier, design, effect = pick(earlier, tried), pick(design, tried), pick(effect, tried)
    both = history(torch.cat([earlier.y, earlier.y - effect.value]), earlier.y_seen.repeat(2, 1), steps)
    without, rest = forecast(both)[:, :, 0].unflatten(0, (2, -1))
    counts = (torch.arange(trial, device=plain.device) < cut_R[tried, None]) & earlier.y_seen[:, steps:]
    using = combined(without, rest, effect)
    weight_R = weigh(design, effect, without, using, earlier.y[:, steps:], counts, levels)
    tried, weight_R = tried[weight_R > 0], weight_R[weight_R > 0]
    if not len(tried):
        return plain
    part = pick(table, tried)
    effect = estimate(prepare(part, known_C, steps), steps)
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
    """Windows of rows."""
    past, seen = y_RS[:, :steps, None], seen_RS[:, :steps, None]
    return Batch(torch.where(seen, past, 0.0), seen, y_RS.shape[1] - steps)


def combined(
    plain: Float[Tensor, "R H K"], rest: Float[Tensor, "R H K"], effect: Effect
) -> Float[Tensor, "R H K"]:
    """Forecasts of the rest plus the effect; where the effect is not known, those without it."""
    value_RH1 = effect.value[:, -plain.shape[1] :, None]
    return torch.lerp(plain, rest + value_RH1, effect.share[..., None])


def weigh(design, effect, without, using, truth, counts, levels):
    steps = design.y.shape[1] - truth.shape[1]
    losses = [mean_pinball_loss(torch.lerp(without, using, w), truth, levels) for w in (0.0, *WEIGHTS)]
    n = counts.sum(1).clamp(min=1)
    gains = []
    for loss in losses[1:]:
        d = torch.where(counts, losses[0] - loss, 0.0)
        mean = d.sum(1) / n
        se = (torch.where(counts, d - mean[:, None], 0.0).square().sum(1) / n / n).sqrt()
        gains.append(mean - 1.0 * se)
    base = torch.where(counts, losses[0], 0.0).sum(1) / n
    best, which = torch.stack(gains, -1).max(-1)
    return torch.where(best > 0.01 * base, torch.tensor(WEIGHTS)[which], 0.0)


def prepare(table: Table, known_C: Bool[Tensor, " C"], steps: int) -> Design:
    """Features of the covariates, and all else that does not depend on the effect.

    Args:
        table: the rows.
        known_C: which covariates are known over the horizon.
        steps: T.
    """
    skipped = max(0, steps - HISTORY)
    table = Table(*(v[..., skipped:] for v in table))
    steps -= skipped
    seen_RT = table.y_seen[:, :steps]
    period_RP, _ = find_periods(table.y[:, :steps], seen_RT)
    cycle_R = torch.where(length_of(seen_RT) >= 3 * period_RP[:, 0], period_RP[:, 0], 1).clamp(min=1)
    own = torch.tensor(OWN_LAGS, device=table.y.device).expand(len(table.y), -1)
    y_RS = deviations(table.y[:, None], table.y_seen[:, None], cycle_R, steps)[:, 0]
    lag_RJ = torch.cat([own, period_RP], 1)
    x_RCS, x_seen_RCS, known_RC = table.x, table.x_seen, known_C.expand(len(table.y), -1)
    if x_RCS.shape[1] > COLUMNS:
        x_RCS = deviations(x_RCS, x_seen_RCS, cycle_R, steps)
        plain = Design(y_RS, table.y_seen, x_RCS, known_RC, lag_RJ)
        phi_RJ = autoregression(plain, torch.zeros_like(y_RS), steps)
        rest_RT = clipped(filtered(y_RS[:, None], lag_RJ, phi_RJ, table.y_seen)[:, 0, :steps], seen_RT)
        gain_RCL = Search(plain, phi_RJ, steps).gains(rest_RT)
        top_RC = gain_RCL.amax(2).topk(COLUMNS, 1).indices
        known_RC = known_RC.gather(1, top_RC)
        index = top_RC[..., None].expand(-1, -1, x_RCS.shape[2])
        x_RCS, x_seen_RCS = table.x.gather(1, index), x_seen_RCS.gather(1, index)
    features_RCDS = features(within_range(x_RCS, x_seen_RCS, steps), x_seen_RCS, steps)
    count = features_RCDS.shape[2]
    features_RFS = deviations(
        features_RCDS.flatten(1, 2), x_seen_RCS.repeat_interleave(count, 1), cycle_R, steps
    )
    size_RF1 = features_RFS[..., :steps].square().mean(2, keepdim=True).sqrt()
    features_RFS = torch.where(size_RF1 > 1e-6, features_RFS / size_RF1.clamp(min=1e-6), 0.0)
    return Design(y_RS, table.y_seen, features_RFS, known_RC.repeat_interleave(count, 1), lag_RJ)


def estimate(design: Design, steps: int) -> Effect:
    """The effect of the covariates, as far as the first ``steps`` show one."""
    horizon = design.y.shape[1] - min(steps, HISTORY)
    skipped = max(0, steps - HISTORY)
    steps -= skipped
    rows, dtype = len(design.y), design.y.dtype
    whole_RS = torch.zeros_like(design.y)
    value_RS = torch.zeros_like(design.y)
    share_RH = whole_RS.new_zeros(rows, horizon)
    phi_RJ = autoregression(design, whole_RS, steps)
    enough_R = design.seen[:, :steps].sum(1) >= LEAST_STEPS
    chosen = pursue(design, phi_RJ, steps, enough_R)
    found = chosen.active.any(1).nonzero()[:, 0]
    if len(found):
        part = pick(design, found)
        first_RS = contributions(part, pick_chosen(chosen, found)).sum(1)
        phi = autoregression(part, first_RS, steps)
        again = pursue(part, phi, steps, torch.ones_like(found, dtype=torch.bool))
        parts_RMS = contributions(part, again)
        known_RM1 = part.known.gather(1, again.feature)[..., None]
        step_S = torch.arange(design.y.shape[1], device=found.device)
        visible_RMS = known_RM1 | (step_S < steps + again.lag[..., None])
        cov_RMM = parts_RMS[..., :steps] @ parts_RMS[..., :steps].transpose(1, 2)
        known_RHM = visible_RMS[..., steps:].transpose(1, 2).to(cov_RMM.dtype)
        variance_RH = (known_RHM @ cov_RMM * known_RHM).sum(-1)
        total_R1 = cov_RMM.sum((1, 2))[:, None]
        share = torch.where(total_R1 > 0, (variance_RH / total_R1.clamp(min=1e-12)).clamp(0, 1), 0.0)
        whole_RS = whole_RS.index_copy(0, found, parts_RMS.sum(1).to(dtype))
        value_RS = value_RS.index_copy(0, found, (parts_RMS * visible_RMS).sum(1).to(dtype))
        share_RH = share_RH.index_copy(0, found, share.to(dtype))
        phi_RJ = phi_RJ.index_copy(0, found, phi)
    value_RS, whole_RS = (F.pad(v, (skipped, 0)) for v in (value_RS, whole_RS))
    return Effect(value_RS, share_RH, whole_RS, phi_RJ)


class Chosen(NamedTuple):
    """Features of an effect.

    Attributes:
        feature: which.
        lag: by how many steps the effect follows.
        coefficient: of each.
        active: whether it takes part.
    """

    feature: Int[Tensor, "R M"]
    lag: Int[Tensor, "R M"]
    coefficient: Float[Tensor, "R M"]
    active: Bool[Tensor, "R M"]


def pick_chosen(chosen, index):
    return Chosen(*(x[index] for x in chosen))


class Search:
    """Products of residuals with every feature at every lag."""

    def __init__(self, design: Design, phi_RJ, steps: int) -> None:
        self.steps = steps
        self.x_RFT = filtered(design.features[..., :steps].float(), design.lag, phi_RJ.float())
        seen_RTL = self.windows(design.seen[:, :steps].float())
        square_RFT = self.x_RFT.square()
        self.norm_RFL = square_RFT @ seen_RTL
        events_RFL = self.norm_RFL.square() / (square_RFT.square() @ seen_RTL).clamp(min=1e-30)
        lag_L = torch.arange(-LEAD, DELAY + 1, device=phi_RJ.device)
        usable = (events_RFL >= LEAST_EVENTS) & (self.norm_RFL > 1e-6) & (design.known[..., None] | (lag_L > 0))
        self.weight_RFL = torch.where(usable, 1 / self.norm_RFL.clamp(min=1e-6), 0.0)

    def windows(self, v_RT):
        return F.pad(v_RT, (LEAD, DELAY)).unfold(1, self.steps, 1).transpose(1, 2).contiguous()

    def gains(self, rest_RT):
        return (self.x_RFT @ self.windows(rest_RT.float())).square() * self.weight_RFL


def pursue(design: Design, phi_RJ, steps: int, going_R) -> Chosen:
    """Orthogonal matching pursuit with robust refits, until no feature is significant."""
    seen_RT = design.seen[:, :steps]
    target_RT = filtered(design.y[:, None], design.lag, phi_RJ, design.seen)[:, 0, :steps].double()
    search = Search(design, phi_RJ, steps)
    fit_RT = torch.zeros_like(target_RT)
    feature_RM = torch.zeros(len(going_R), 0, dtype=torch.long, device=going_R.device)
    chosen = Chosen(feature_RM, feature_RM, feature_RM.double(), feature_RM.bool())
    count_R = seen_RT.sum(1)
    for m in range(CHOSEN):
        rest_RT = clipped(target_RT - fit_RT, seen_RT)
        gain_RFL = search.gains(rest_RT)
        best_R, where_R = gain_RFL.flatten(1).max(1)
        left_R = (rest_RT.square().sum(1) - best_R).clamp(min=1e-12)
        squared_t_R = best_R / left_R * (count_R - len(OWN_LAGS) - 2 * m - 4).clamp(min=1)
        going_R = going_R & (squared_t_R > 2 * math.log(gain_RFL[0].numel()) + SURE)
        if not going_R.any():
            break
        lags = gain_RFL.shape[2]
        feature_RM = torch.cat([chosen.feature, (where_R // lags)[:, None]], 1)
        lag_RM = torch.cat([chosen.lag, (where_R % lags - LEAD)[:, None]], 1)
        active_RM = torch.cat([chosen.active, going_R[:, None]], 1)
        chosen = Chosen(feature_RM, lag_RM, active_RM.double(), active_RM)
        x_RMT = filtered(contributions(design, chosen), design.lag, phi_RJ.double(), design.seen)[..., :steps]
        x_RTM = (x_RMT * seen_RT[:, None]).transpose(1, 2)
        for _ in range(3):  # Huber's estimate, by pseudo-values
            pseudo_RT = (fit_RT + clipped(target_RT - fit_RT, seen_RT)) * seen_RT
            coefficient_RM = solve(x_RTM, pseudo_RT)
            fit_RT = (x_RTM @ coefficient_RM[..., None])[..., 0]
        chosen = chosen._replace(coefficient=coefficient_RM * active_RM)
    return chosen


def contributions(design: Design, chosen: Chosen) -> Float[Tensor, "R M S"]:
    """The parts of an effect."""
    index = chosen.feature[..., None].expand(-1, -1, design.features.shape[2])
    picked_RMS = design.features.gather(1, index).double()
    parts = [moved(picked_RMS[:, m], chosen.lag[:, m], picked_RMS.shape[2]) for m in range(chosen.lag.shape[1])]
    return torch.stack(parts, 1) * chosen.coefficient[..., None] if parts else picked_RMS


def within_range(x_RCS, seen_RCS, steps):
    past, seen = x_RCS[..., :steps], seen_RCS[..., :steps]
    high = torch.where(seen, past, -math.inf).amax(2, keepdim=True)
    low = torch.where(seen, past, math.inf).amin(2, keepdim=True)
    room = BEYOND * (high - low)
    limited = torch.minimum(torch.maximum(x_RCS, low - room), high + room)
    return torch.where(seen.any(2, keepdim=True), limited, 0.0)


def features(x_RCS, seen_RCS, steps):
    """The covariate itself; where its effect may bend; or whether it has each of a few values."""
    past = torch.where(seen_RCS[..., :steps], x_RCS[..., :steps], math.nan)
    ordered_RCT = past.sort(2).values  # NaN last
    is_new_RCT = torch.cat([~ordered_RCT[..., :1].isnan(), ordered_RCT[..., 1:] > ordered_RCT[..., :-1]], 2)
    values_RC1 = is_new_RCT.sum(2, keepdim=True)
    few_RC1 = values_RC1 <= FEW_VALUES
    columns = [x_RCS]
    if not few_RC1.all():
        last_RC1 = (seen_RCS[..., :steps].sum(2, keepdim=True) - 1).clamp(min=0)
        for share in KNOTS:
            knot_RC1 = ordered_RCT.gather(2, (last_RC1 * share).round().long()).nan_to_num()
            columns.append(torch.where(few_RC1, 0.0, (x_RCS - knot_RC1).clamp(min=0)))
    if (few_RC1 & (values_RC1 > 2)).any():
        rank_RCT = is_new_RCT.cumsum(2)
        for number in range(FEW_VALUES):
            first_RC1 = (rank_RCT == number + 1).float().argmax(2, keepdim=True)
            equal_RCS = x_RCS == ordered_RCT.gather(2, first_RC1)
            columns.append((equal_RCS & few_RC1 & (values_RC1 > max(2, number))).to(x_RCS.dtype))
    return torch.stack(columns, 2)


def deviations(x_RFS, seen_RFS, cycle_R, steps):
    """Distance from the mean at the same phase in the history; 0 where not seen."""
    phase_RFS = (torch.arange(x_RFS.shape[2], device=x_RFS.device) % cycle_R[:, None])[:, None].expand_as(x_RFS)
    past, seen = torch.where(seen_RFS, x_RFS, 0.0)[..., :steps], seen_RFS[..., :steps].to(x_RFS.dtype)
    nothing = x_RFS.new_zeros(*x_RFS.shape[:2], int(cycle_R.max()))
    total = nothing.scatter_add(2, phase_RFS[..., :steps], past)
    count = nothing.scatter_add(2, phase_RFS[..., :steps], seen)
    overall = past.sum(2, keepdim=True) / seen.sum(2, keepdim=True).clamp(min=1)
    mean = torch.where(count > 0, total / count.clamp(min=1), overall)
    return torch.where(seen_RFS, x_RFS - mean.gather(2, phase_RFS), 0.0)


def autoregression(design: Design, effect_RS, steps):
    """Coefficients with which the series without the effect depends on its own past."""
    y_RT = torch.where(design.seen, design.y - effect_RS, 0.0)[:, :steps].double()
    past = [moved(y_RT, lag_R, steps) * (lag_R > 0)[:, None] for lag_R in design.lag.unbind(1)]
    return solve(torch.stack(past, 2) * design.seen[:, :steps, None], y_RT).to(design.y.dtype)


def filtered(x_RFS, lag_RJ, phi_RJ, seen_RS=None):
    """What the autoregression does not explain, with unseen steps as 0."""
    shown_RFS = x_RFS if seen_RS is None else x_RFS * seen_RS[:, None]
    rest_RFS = x_RFS.clone()
    for lag_R, phi_R in zip(lag_RJ.unbind(1), phi_RJ.unbind(1), strict=True):
        if (lag_R == lag_R[0]).all():
            lag = int(lag_R[0])
            if 0 < lag < x_RFS.shape[2]:
                rest_RFS[..., lag:] -= phi_R[:, None, None] * shown_RFS[..., :-lag]
        else:
            rest_RFS -= phi_R[:, None, None] * moved(shown_RFS, lag_R, x_RFS.shape[2])
    return rest_RFS


def clipped(rest_RT, seen_RT):
    """Residuals limited to a few robust standard deviations; 0 where not seen."""
    size_RT = rest_RT.abs()
    median_R1 = torch.where(seen_RT, size_RT, math.nan).nanmedian(1, keepdim=True).values.nan_to_num()
    mean_R1 = torch.where(seen_RT, size_RT, 0.0).sum(1, keepdim=True) / seen_RT.sum(1, keepdim=True).clamp(min=1)
    # Most residuals of a series with rare events are about 0, and so is their median.
    limit_R1 = CLIP * torch.maximum(1.483 * median_R1, 1.253 * mean_R1)
    return torch.where(seen_RT, torch.minimum(torch.maximum(rest_RT, -limit_R1), limit_R1), 0.0)


def solve(x_RTM, y_RT):
    """Coefficients of a ridge regression."""
    gram = x_RTM.transpose(1, 2) @ x_RTM
    diagonal = gram.diagonal(dim1=1, dim2=2)
    gram = gram + torch.diag_embed(RIDGE * diagonal + 1e-9 * diagonal.amax(1, keepdim=True) + (diagonal <= 0))
    return torch.linalg.solve(gram, x_RTM.transpose(1, 2) @ y_RT[..., None])[..., 0]
