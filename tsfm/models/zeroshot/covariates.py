"""The effect of covariates, learnt from each history alone: forecasts of what they leave, plus their effect ahead.

Shapes: R rows (a series each), T context steps, H horizon steps, S all steps (T + H), C covariates, F features of them,
L lags, M chosen features, K quantile levels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from tsfm.models.base import select
from tsfm.models.covariates import with_covariates
from tsfm.models.zeroshot.periods import find_periods, length_of
from tsfm.nn import mean_pinball_loss
from tsfm_data.evaluation import shift_back, univariate
from tsfm_data.windows import Batch

COLUMNS = 16  # covariates per row that are looked at closely: those that correlate most
FEW_VALUES = 8  # a covariate with at most as many values gets a feature for each
KNOTS = (0.25, 0.5, 0.75)  # quantiles of other covariates where the effect may bend
LAGS = (-2, 24)  # steps by which an effect may lead (known covariates only) and follow
CHOSEN = 6  # most features in an effect
LEAST_EVENTS = 4.0  # steps on which a feature must rest, as a participation ratio
SURE = 8.0  # by how much the squared t-value of a feature must exceed that of the best of so many noise features
CLIP = 3.0  # residuals count as at most so many robust standard deviations
RIDGE = 1e-3  # relative to the variance of a feature
BEYOND = 0.5  # how far a covariate may leave the range of its history, in units of the range
LEAST_STEPS = 24  # shortest history from which an effect is learnt
TRIAL = 48  # held-out steps on which an effect is tried, if the horizon is not longer
CELLS = 2**23  # most numbers in one array of features
ROUNDS = 2


class Effect(NamedTuple):
    """What the covariates add to a row.

    Attributes:
        value: over the history and the horizon; 0 where no covariate is known.
        share: how much of the variance of the effect is known at each step of the horizon.
    """

    value: Float[Tensor, "R S"]
    share: Float[Tensor, "R H"]


def add_covariates(
    batch: Batch,
    forecast: Callable[[Batch], Float[Tensor, "B H V K"]],
    levels: Sequence[float],
) -> Float[Tensor, "B H V K"]:
    """Forecasts of windows, with the effect of their covariates where it has proved itself on the end of the history.

    Args:
        batch: windows.
        forecast: forecasts windows without covariates; it treats variates independently.
        levels: quantile levels of the forecasts.
    """
    plain = forecast(bare(batch))
    if batch.past_covariates is None and batch.known_past is None:
        return plain
    variates = batch.past.shape[2]
    rows = univariate(batch)
    quantiles = plain.transpose(1, 2).flatten(0, 1)
    size = max(1, CELLS // (rows.past.shape[1] * (columns_of(rows) + 12 * min(COLUMNS, columns_of(rows)))))
    for index in torch.arange(len(rows), device=quantiles.device).split(size):
        quantiles[index] = add_effect(select(rows, index), quantiles[index], forecast, levels)
    return quantiles.unflatten(0, (-1, variates)).transpose(1, 2)


def columns_of(batch: Batch) -> int:
    return sum(x.shape[2] for x in (batch.past_covariates, batch.known_past) if x is not None)


def bare(batch: Batch) -> Batch:
    """The batch without covariates."""
    names = [f.name for f in fields(batch) if "covariates" in f.name or f.name.startswith("known_")]
    return replace(batch, future=None, future_observed=None, **dict.fromkeys(names))


def add_effect(
    rows: Batch,
    plain: Float[Tensor, "R H K"],
    forecast: Callable[[Batch], Float[Tensor, "R H 1 K"]],
    levels: Sequence[float],
) -> Float[Tensor, "R H K"]:
    length_R = length_of(rows.past_observed[..., 0])
    steps = max(rows.horizon, TRIAL)
    cut_R = (length_R // 3).clamp(max=steps)
    everything = torch.arange(len(rows), device=plain.device)
    before = shift_back(rows, everything, cut_R, steps)
    effect = estimate(before)
    tried = (effect.share.amax(1) > 0).nonzero()[:, 0]
    if len(tried):
        with_it, without = corrected(select(before, tried), Effect(*(x[tried] for x in effect)), forecast)
        gather_RH = rows.past.shape[1] - cut_R[tried, None] + torch.arange(steps, device=plain.device)
        counts = gather_RH < rows.past.shape[1]
        gather_RH = gather_RH.clamp(max=rows.past.shape[1] - 1)
        truth = rows.past[tried, :, 0].gather(1, gather_RH)
        counts = counts & rows.past_observed[tried, :, 0].gather(1, gather_RH)
        weight_R = weigh(with_it, without, truth, counts, levels)
        tried, weight_R = tried[weight_R > 0], weight_R[weight_R > 0]
    if not len(tried):
        return plain
    part = select(rows, tried)
    effect = estimate(part)
    plain = plain.clone()
    with_it, _ = corrected(part, effect, forecast, plain[tried])
    plain[tried] = torch.lerp(plain[tried], with_it, weight_R[:, None, None].to(plain.dtype))
    return plain


def corrected(rows, effect, forecast, plain=None):
    """Forecasts with and without the effect."""
    steps = rows.past.shape[1]
    value = effect.value[..., None].to(rows.past.dtype)
    less = bare(replace(rows, past=torch.where(rows.past_observed, rows.past - value[:, :steps], 0.0)))
    if plain is None:
        both = Batch(
            torch.cat([rows.past, less.past]),
            torch.cat([rows.past_observed] * 2),
            rows.horizon,
            rows.season,
        )
        plain, rest = forecast(both)[:, :, 0].unflatten(0, (2, -1))
    else:
        rest = forecast(less)[:, :, 0]
    return torch.lerp(plain, rest + value[:, steps:], effect.share[..., None].to(plain.dtype)), plain


def weigh(with_it, without, truth, counts, levels):
    weights = torch.tensor([0.5, 1.0])
    losses = [mean_pinball_loss(torch.lerp(without, with_it, float(w)), truth, levels) for w in (0.0, *weights)]
    n = counts.sum(1).clamp(min=1)
    gains = []
    for loss in losses[1:]:
        d = torch.where(counts, losses[0] - loss, 0.0)
        mean = d.sum(1) / n
        se = (torch.where(counts, d - mean[:, None], 0.0).square().sum(1) / n / n).sqrt()
        gains.append(mean - GUARD * se)
    base = torch.where(counts, losses[0], 0.0).sum(1) / n
    best, which = torch.stack(gains, -1).max(-1)
    return torch.where(best > LEAST_GAIN * base, weights[which], 0.0)


GUARD, LEAST_GAIN = 1.0, 0.01


def estimate(rows: Batch) -> Effect:
    """The effect of the covariates of every row, as far as its history shows one."""
    wide = with_covariates(rows)
    T, H = rows.past.shape[1], rows.horizon
    x_RCS = torch.cat([wide.past, wide.future], 1)[..., 1:].transpose(1, 2).double()
    seen_RCS = torch.cat([wide.past_observed, wide.future_observed], 1)[..., 1:].transpose(1, 2)
    y_RT, seen_RT = rows.past[..., 0].double(), rows.past_observed[..., 0]
    known = 0 if rows.known_past is None else rows.known_past.shape[2]
    known_C = torch.arange(x_RCS.shape[1], device=y_RT.device) >= x_RCS.shape[1] - known
    period_RP, _ = find_periods(y_RT * seen_RT, seen_RT, 2)
    enough_R = length_of(seen_RT) >= 3 * period_RP[:, 0]
    cycle_R = torch.where(enough_R, period_RP[:, 0], 0).clamp(min=1)
    y_RT = deviations(y_RT[:, None], seen_RT[:, None], cycle_R, T)[:, 0]
    x_RCS = within_range(x_RCS, seen_RCS, T)
    lag_RJ = torch.cat([torch.tensor([[1, 2, 3]], device=y_RT.device).expand(len(y_RT), -1), period_RP], 1)
    # Filtered columns choose the covariates that are looked at closely.
    linear_RCS = deviations(x_RCS, seen_RCS, cycle_R, T)
    if x_RCS.shape[1] > COLUMNS:
        phi_RJ = autoregression(y_RT, seen_RT, lag_RJ)
        rest = clip(filtered(y_RT[:, None], seen_RT, lag_RJ, phi_RJ)[:, 0], seen_RT)
        c, norm, ok = correlations(rest, filtered_plain(linear_RCS[..., :T], lag_RJ, phi_RJ), seen_RT, known_C[None].expand(len(y_RT), -1))
        strength = torch.where(ok, c.square() / norm.clamp(min=1e-12), 0.0).amax(2)
        top = strength.topk(COLUMNS, 1).indices
        x_RCS, seen_RCS = (v.gather(1, top[..., None].expand(-1, -1, T + H)) for v in (x_RCS, seen_RCS))
        known_RC = known_C[top]
        candidates = len(known_C)
    else:
        known_RC = known_C[None].expand(len(y_RT), -1)
        candidates = x_RCS.shape[1]
    feature_RFS = features(x_RCS, seen_RCS, T)
    per = feature_RFS.shape[1] // x_RCS.shape[1]
    seen_RFS = seen_RCS.repeat_interleave(per, 1)
    known_RF = known_RC.repeat_interleave(per, 1)
    feature_RFS = deviations(feature_RFS, seen_RFS, cycle_R, T)
    size_RF1 = feature_RFS[..., :T].square().mean(2, keepdim=True).sqrt()
    feature_RFS = torch.where(size_RF1 > 1e-6, feature_RFS / size_RF1.clamp(min=1e-6), 0.0)
    total = candidates * per * (LAGS[1] - LAGS[0] + 1)
    value = torch.zeros_like(feature_RFS[:, 0])
    for _ in range(ROUNDS):
        phi_RJ = autoregression(y_RT - value[:, :T], seen_RT, lag_RJ)
        chosen_RM, lag_RM, coef_RM = pursue(y_RT, seen_RT, feature_RFS, known_RF, lag_RJ, phi_RJ, total)
        part_RMS = shifted(feature_RFS, chosen_RM, lag_RM) * coef_RM[..., None]
        value = part_RMS.sum(1)
    part_RMT = part_RMS[..., :T]
    cov = part_RMT @ part_RMT.transpose(1, 2)
    ahead = torch.arange(H, device=y_RT.device)
    known_RHM = (known_RF.gather(1, chosen_RM)[:, None] | (ahead[:, None] < lag_RM[:, None])).double()
    var = (known_RHM @ cov * known_RHM).sum(-1)
    whole = cov.sum((1, 2))[:, None]
    share = torch.where(whole > 0, (var / whole.clamp(min=1e-12)).clamp(0, 1), 0.0)
    long = (seen_RT.sum(1) >= LEAST_STEPS)[:, None]
    return Effect(torch.where(long, value, 0.0), torch.where(long, share, 0.0))


def within_range(x_RCS, seen_RCS, T):
    past, seen = x_RCS[..., :T], seen_RCS[..., :T]
    high = torch.where(seen, past, -math.inf).amax(2, keepdim=True)
    low = torch.where(seen, past, math.inf).amin(2, keepdim=True)
    room = BEYOND * (high - low)
    out = torch.minimum(torch.maximum(x_RCS, low - room), high + room)
    return torch.where(seen.any(2, keepdim=True), out, 0.0)


def features(x_RCS, seen_RCS, T):
    """[R, C * per, S] raw features."""
    past = torch.where(seen_RCS[..., :T], x_RCS[..., :T], math.nan)
    ordered = past.sort(2).values  # NaN last
    count = (~ordered.isnan()).sum(2)
    new = torch.cat([~ordered[..., :1].isnan(), ordered[..., 1:] > ordered[..., :-1]], 2)
    distinct = new.sum(2)
    few = distinct <= FEW_VALUES
    rank = new.cumsum(2)
    out = [x_RCS]
    for k, q in enumerate(KNOTS):
        at = ((count - 1).clamp(min=0) * q).round().long()
        knot = ordered.gather(2, at[..., None]).nan_to_num()
        hinge = (x_RCS - knot).clamp(min=0)
        out.append(torch.where(few[..., None], 0.0, hinge))
    for v in range(FEW_VALUES):
        # the v-th distinct value
        first = (rank == v + 1).double().argmax(2, keepdim=True)
        value = ordered.gather(2, first).nan_to_num()
        is_v = (x_RCS == value).double()
        out.append(torch.where((few & (distinct > v) & (distinct > 2))[..., None], is_v, 0.0))
    return torch.stack(out, 2).flatten(1, 2)


def deviations(x_RFS, seen_RFS, cycle_R, T):
    """Distance from the mean at the same phase in the history; 0 where not seen."""
    phase_RS = torch.arange(x_RFS.shape[2], device=x_RFS.device) % cycle_R[:, None]
    index = phase_RS[:, None].expand_as(x_RFS)
    past, seen = torch.where(seen_RFS, x_RFS, 0.0)[..., :T], seen_RFS[..., :T].double()
    zero = x_RFS.new_zeros(*x_RFS.shape[:2], int(cycle_R.max()))
    total = zero.scatter_add(2, index[..., :T], past)
    count = zero.scatter_add(2, index[..., :T], seen)
    whole = past.sum(2, keepdim=True) / seen.sum(2, keepdim=True).clamp(min=1)
    mean = torch.where(count > 0, total / count.clamp(min=1), whole)
    return torch.where(seen_RFS, x_RFS - mean.gather(2, index), 0.0)


def lagged(x_RFT, lag_R):
    """x(t - lag), 0 before the first."""
    index = torch.arange(x_RFT.shape[2], device=x_RFT.device) - lag_R[:, None]
    inside = (index >= 0) & (index < x_RFT.shape[2])
    values = x_RFT.gather(2, index.clamp(0, x_RFT.shape[2] - 1)[:, None].expand_as(x_RFT))
    return torch.where(inside[:, None], values, 0.0)


def autoregression(y_RT, seen_RT, lag_RJ):
    y_RT = torch.where(seen_RT, y_RT, 0.0)
    past = torch.stack([torch.where((l > 0)[:, None], lagged(y_RT[:, None], l)[:, 0], 0.0) for l in lag_RJ.unbind(1)], 2)
    past = past * seen_RT[..., None]
    return solve(past, y_RT, RIDGE)


def solve(x_RTM, y_RT, ridge):
    gram = x_RTM.transpose(1, 2) @ x_RTM
    diagonal = gram.diagonal(dim1=1, dim2=2)
    gram = gram + torch.diag_embed(ridge * diagonal + (diagonal <= 0) + 1e-9 * diagonal.amax(1, keepdim=True))
    return torch.linalg.solve(gram, (x_RTM.transpose(1, 2) @ y_RT[..., None]))[..., 0]


def filtered(x_RFT, seen_RT, lag_RJ, phi_RJ):
    masked = x_RFT * seen_RT[:, None]
    out = x_RFT.clone()
    for l, phi in zip(lag_RJ.unbind(1), phi_RJ.unbind(1), strict=True):
        out -= phi[:, None, None] * lagged(masked, l)
    return out


def filtered_plain(x_RFT, lag_RJ, phi_RJ):
    return filtered(x_RFT, torch.ones_like(x_RFT[:, 0], dtype=torch.bool), lag_RJ, phi_RJ)


def clip(rest_RT, used_RT):
    size = torch.where(used_RT, rest_RT.abs(), math.nan).nanmedian(1, keepdim=True).values.nan_to_num() * 1.4826
    # A series that hardly moves on most days has no median change.
    mean = (torch.where(used_RT, rest_RT, 0.0).abs().sum(1, keepdim=True) / used_RT.sum(1, keepdim=True).clamp(min=1)) * 1.25
    limit = CLIP * torch.maximum(size, mean)
    return torch.where(used_RT, torch.minimum(torch.maximum(rest_RT, -limit), limit), 0.0)


def correlations(rest_RT, x_RFT, used_RT, known_RF):
    """Products of residuals and features at every lag, squared sizes of these, and where they may be used."""
    lead, most = -LAGS[0], LAGS[1]
    count = lead + most + 1
    # rest[l, t] = rest(t + lag): windows of the padded residual
    def windows(v):
        return F.pad(v, (lead, most)).unfold(1, v.shape[1], 1)  # [R, L, T], lag = index - lead

    c = x_RFT @ windows(rest_RT).transpose(1, 2)
    square = x_RFT.square()
    weight = windows(used_RT.to(x_RFT.dtype)).transpose(1, 2)
    norm = square @ weight
    events = norm.square() / (square.square() @ weight).clamp(min=1e-30)
    lag_L = torch.arange(count, device=rest_RT.device) - lead
    ok = (events >= LEAST_EVENTS) & (norm > 1e-9) & (known_RF[..., None] | (lag_L > 0))
    return c, norm, ok


def shifted(feature_RFS, chosen_RM, lag_RM):
    if not lag_RM.shape[1]:
        return feature_RFS[:, :0]
    picked = feature_RFS.gather(1, chosen_RM[..., None].expand(-1, -1, feature_RFS.shape[2]))
    return torch.stack([lagged(picked[:, m : m + 1], lag_RM[:, m])[:, 0] for m in range(lag_RM.shape[1])], 1)


def pursue(y_RT, seen_RT, feature_RFS, known_RF, lag_RJ, phi_RJ, candidates):
    """Orthogonal matching pursuit."""
    T = y_RT.shape[1]
    target = filtered(y_RT[:, None], seen_RT, lag_RJ, phi_RJ)[:, 0]
    ahead = feature_RFS[..., : T]
    x_RFT = filtered_plain(ahead, lag_RJ, phi_RJ)
    fit = torch.zeros_like(target)
    chosen = torch.zeros(len(y_RT), 0, dtype=torch.long, device=y_RT.device)
    lags = chosen.clone()
    coef = torch.zeros_like(chosen, dtype=y_RT.dtype)
    active = torch.zeros_like(chosen, dtype=torch.bool)
    going = torch.ones(len(y_RT), dtype=torch.bool, device=y_RT.device)
    n = seen_RT.sum(1)
    for m in range(CHOSEN):
        rest = clip(target - fit, seen_RT)
        c, norm, ok = correlations(rest, x_RFT, seen_RT, known_RF)
        gain = torch.where(ok, c.square() / norm.clamp(min=1e-12), 0.0).flatten(1)
        best, where = gain.max(1)
        rss = rest.square().sum(1)
        t2 = best / ((rss - best).clamp(min=1e-12) / (n - 2 * (m + 1) - 5).clamp(min=1))
        going = going & (t2 > 2 * math.log(candidates) + SURE) & (n >= LEAST_STEPS)
        if not going.any():
            break
        chosen = torch.cat([chosen, (where // c.shape[2])[:, None]], 1)
        lags = torch.cat([lags, (where % c.shape[2] + LAGS[0])[:, None]], 1)
        active = torch.cat([active, going[:, None]], 1)
        design = filtered(shifted(feature_RFS, chosen, lags)[..., :T], seen_RT, lag_RJ, phi_RJ) * active[..., None]
        design = (design * seen_RT[:, None]).transpose(1, 2)
        for _ in range(3):
            pseudo = fit + clip(target - fit, seen_RT)
            coef = solve(design, pseudo * seen_RT, RIDGE) * active
            fit = (design @ coef[..., None])[..., 0]
    return chosen, lags, coef
