"""The effect of covariates on a series, estimated from its history.

An autoregression takes from the target what its own past explains, and the same filter is applied to every covariate
(Frisch and Waugh, Cochrane and Orcutt), so shared seasons and trends do not count as a relation. The few features of
covariates that then explain the target best give the effect.

Shapes: R rows (a variate of a window), T steps of history, H horizon, S = T + H steps, C covariates, F features of all,
L lags, J lags of the series itself, M chosen features.
"""

import math
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from tsfm.models.zeroshot.covariate_features import FEW_VALUES, deviations, features, moved, within_range
from tsfm.models.zeroshot.periods import find_periods, length_of

HISTORY = 1024  # latest steps from which effects are learnt: they change in time
COLUMNS = 16  # covariates of a row that are looked at closely: those that correlate most
LEAD, DELAY = 2, 24  # most steps by which an effect may lead (known covariates only) and follow
OWN_LAGS = (1, 2, 3)  # of the autoregression, next to the periods
CHOSEN = 6  # most features of an effect
LEAST_EVENTS = 4.0  # steps on which a feature must rest, as a participation ratio
SURE = 6.0  # by how much the squared t-value of a feature must exceed the largest one of noise features
CLIP = 3.0  # residuals count as at most so many standard deviations
REFITS = 3  # with residuals clipped around the fit before
RIDGE = 1e-3  # relative to the sum of squares of a feature
LEAST_STEPS = 24  # fewest observed steps from which an effect is learnt


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


def pick(rows: Rows, index: Int[Tensor, " r"]) -> Rows:
    """Some of the rows."""
    return type(rows)(*(x[index] for x in rows))


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
