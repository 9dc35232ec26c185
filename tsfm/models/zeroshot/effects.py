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
TRIAL = 128  # steps on which an effect is tried, or the horizon if that is longer, or a third of a shorter history
ERRORS = 0.5  # standard errors that are taken from the gain in a trial
LEAST_GAIN = 0.03  # share by which errors must fall for an effect to be used at all
FULL_GAIN = 0.1  # share by which they must fall further for full trust
LEAST_TRUST = 0.02  # effects trusted no more than this are left out


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
    """

    value: Float[Tensor, "R S"]
    share: Float[Tensor, "R H"]


class Chosen(NamedTuple):
    """The chosen features of each row.

    Attributes:
        feature: index into the features.
        lag: by how many steps the effect follows it.
        coefficient: its coefficient; 0 if a row has fewer features.
    """

    feature: Int[Tensor, "R M"]
    lag: Int[Tensor, "R M"]
    coefficient: Float[Tensor, "R M"]


class Learnt(NamedTuple):
    """The rows that covariates help, and how.

    Attributes:
        rows: which they are.
        effect: their effects.
        trust: how far these are trusted, above 0 to 1.
        design: what they were estimated from.
        chosen: their features as chosen without the end of the history.
        held: how many steps that end has.
    """

    rows: Int[Tensor, " r"]
    effect: Effect
    trust: Float[Tensor, " r"]
    design: Design
    chosen: Chosen
    held: Int[Tensor, " r"]

    def before(self, origin: int, horizon: int) -> Effect:
        """The effects as they were chosen without the end of the history, with what is known at an origin."""
        end = origin + horizon
        design = self.design._replace(
            y=self.design.y[:, :end], seen=self.design.seen[:, :end], features=self.design.features[..., :end]
        )
        return sum_up(design, self.chosen, origin)

    def pick(self, index: Int[Tensor, " r"]) -> "Learnt":
        """Some of the rows."""
        effect, design, chosen = pick(self.effect, index), pick(self.design, index), pick(self.chosen, index)
        return Learnt(self.rows[index], effect, self.trust[index], design, chosen, self.held[index])


Rows = TypeVar("Rows", Table, Design, Chosen, Effect)


def pick(rows: Rows, index: Int[Tensor, " r"]) -> Rows:
    """Some of the rows."""
    return type(rows)(*(x[index] for x in rows))


def learn(table: Table, known_C: Bool[Tensor, " C"], steps: int, seasons: tuple[int, ...]) -> Learnt:
    """The rows that covariates help, their effects, and how far these are trusted.

    Effects are chosen without the end of the history, tried there, and fitted anew with it.

    Args:
        table: the rows.
        known_C: which covariates are known over the horizon.
        steps: T.
        seasons: see ``Batch``.
    """
    with torch.autocast(table.y.device.type, enabled=False):
        cut_R = (length_of(table.y_seen[:, :steps]) // 3).clamp(max=max(TRIAL, table.y.shape[1] - steps))
        step_S = torch.arange(table.y.shape[1], device=cut_R.device)
        before_RS = table.y_seen & (step_S < steps - cut_R[:, None])
        design = prepare(table, known_C, steps, before_RS, seasons)
        used, training = recent(design, steps), recent(design._replace(seen=before_RS), steps)
        held_RT = used.seen & ~training.seen
        chosen = choose(training, autoregression(training, torch.zeros_like(used.y)))
        found = (chosen.coefficient != 0).any(1).nonzero()[:, 0]
        training, used, chosen = pick(training, found), pick(used, found), pick(chosen, found)
        chosen, phi_RJ = refine(training, chosen)
        trust_R = trial(used, contributions(used, chosen).sum(1), phi_RJ, held_RT[found])
        trusted = (trust_R > LEAST_TRUST).nonzero()[:, 0]
        index, before = found[trusted], pick(chosen, trusted)
        chosen, _ = refine(pick(used, trusted), before)
        design = pick(design, index)
        return Learnt(index, sum_up(design, chosen, steps), trust_R[trusted], design, before, cut_R[index])


def trial(
    design: Design, effect_RT: Float[Tensor, "R T"], phi_RJ: Float[Tensor, "R J"], held_RT: Bool[Tensor, "R T"]
) -> Float[Tensor, " R"]:
    """How far effects are trusted, 0 to 1, by errors one step ahead on steps from which they were not learnt.

    The errors must fall by the share ``LEAST_GAIN`` and by half a standard error more than nothing; ``FULL_GAIN`` more
    gives full trust. These errors are many, so they say more than a single forecast of the same steps.

    Args:
        design: series.
        effect_RT: the effects.
        phi_RJ: coefficients of the autoregression of the series without them.
        held_RT: the steps to compare.
    """
    rest_RST = torch.stack([design.y, design.y - effect_RT], 1)
    before_RT, after_RT = filtered(rest_RST, design.lag, phi_RJ, design.seen).abs().unbind(1)
    held = held_RT.to(before_RT.dtype)
    count_R, gain_RT = held.sum(1).clamp(min=1), before_RT - after_RT
    mean_R = (held * gain_RT).sum(1) / count_R
    error_R = (held * (gain_RT - mean_R[:, None])).square().sum(1).sqrt() / count_R
    base_R = ((held * before_RT).sum(1) / count_R).clamp(min=1e-9)
    return (((mean_R - ERRORS * error_R) / base_R - LEAST_GAIN) / FULL_GAIN).clamp(0, 1)


def prepare(
    table: Table, known_C: Bool[Tensor, " C"], steps: int, before_RS: Bool[Tensor, "R S"], seasons: tuple[int, ...]
) -> Design:
    """What effects are estimated from, of the ``COLUMNS`` best covariates at the steps ``before``.

    Other arguments as for ``learn``.
    """
    seen_RT = table.y_seen[:, :steps]
    period_RP, _ = find_periods(table.y[:, :steps], seen_RT, seasons=seasons)
    cycle_R = torch.where(length_of(seen_RT) >= 3 * period_RP[:, 0], period_RP[:, 0], 1).clamp(min=1)
    y_RS = deviations(table.y[:, None], table.y_seen[:, None], cycle_R, steps)[:, 0]
    own_lags = torch.tensor(OWN_LAGS, device=table.y.device).expand(len(table.y), -1)
    lag_RJ = torch.cat([own_lags, period_RP], 1)
    x_RCS, x_seen_RCS, known_RC = table.x, table.x_seen, known_C.expand(len(table.y), -1)
    # The largest of N squared normal variables is about 2 log N.
    tries = len(known_C) * (1 + FEW_VALUES) * (LEAD + DELAY + 1)
    least_R = torch.full_like(y_RS[:, 0], 2 * math.log(tries) + SURE)
    if x_RCS.shape[1] > COLUMNS:
        linear_RCS = deviations(x_RCS, x_seen_RCS, cycle_R, steps)
        used = recent(Design(y_RS, before_RS, linear_RCS, known_RC, lag_RJ, least_R), steps)
        phi_RJ = autoregression(used, torch.zeros_like(used.y))
        target_RT = filtered(used.y[:, None], used.lag, phi_RJ, used.seen)[:, 0]
        x_RCT, size_RC1 = candidates(used, phi_RJ)
        best_RC = gains(x_RCT, clipped(target_RT, used.seen), size_RC1, known_RC).amax(2).topk(COLUMNS, 1).indices
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


def gains(
    x_RFT: Float[Tensor, "R F T"],
    rest_RT: Float[Tensor, "R T"],
    size_RF1: Float[Tensor, "R F 1"],
    known_RF: Bool[Tensor, "R F"],
) -> Float[Tensor, "R F L"]:
    """By how much each feature at each lag would reduce the sum of squares of residuals.

    Args:
        x_RFT: features after the filter of the autoregression.
        rest_RT: residuals.
        size_RF1: sums of squares of the features.
        known_RF: which features are known over the horizon; others must lead.
    """
    rest_RTL = F.pad(rest_RT, (LEAD, DELAY)).unfold(1, rest_RT.shape[1], 1).transpose(1, 2).contiguous()
    follows_L = torch.arange(-LEAD, DELAY + 1, device=x_RFT.device) > 0
    return (x_RFT @ rest_RTL).square() / size_RF1 * (known_RF[..., None] | follows_L)


def candidates(design: Design, phi_RJ: Float[Tensor, "R J"]) -> tuple[Float[Tensor, "R F T"], Float[Tensor, "R F 1"]]:
    """Features after the filter of the autoregression, and their sums of squares; infinite if few steps bear them."""
    x_RFT = filtered(design.features, design.lag, phi_RJ)
    square_RFT, seen_RT1 = x_RFT.square(), design.seen.to(x_RFT.dtype)[..., None]
    size_RF1 = square_RFT @ seen_RT1
    events_RF1 = size_RF1.square() / (square_RFT.square() @ seen_RT1).clamp(min=1e-30)
    usable_RF1 = (events_RF1 >= LEAST_EVENTS) & (size_RF1 > 1e-6)
    return x_RFT, torch.where(usable_RF1, size_RF1, math.inf)


def choose(design: Design, phi_RJ: Float[Tensor, "R J"]) -> Chosen:
    """Add the best feature as long as it is significant, at most ``CHOSEN`` times (orthogonal matching pursuit).

    Rows without another significant feature are left out of the next search.

    Args:
        design: series and features, without a future.
        phi_RJ: coefficients of the autoregression.
    """
    seen_RT = design.seen
    x_RFT, size_RF1 = candidates(design, phi_RJ)
    target_RT, count_R = filtered(design.y[:, None], design.lag, phi_RJ, seen_RT)[:, 0], seen_RT.sum(1)
    x_RMT = target_RT.new_zeros(len(target_RT), CHOSEN, target_RT.shape[1])
    feature_RM, lag_RM = torch.zeros(2, *x_RMT.shape[:2], dtype=torch.long, device=x_RMT.device)
    coefficient_RM, rest_RT = x_RMT[..., 0].clone(), clipped(target_RT, seen_RT)
    going_r = (count_R >= LEAST_STEPS).nonzero()[:, 0]
    for number in range(CHOSEN):
        gain_rFL = gains(*(x[going_r] for x in (x_RFT, rest_RT, size_RF1, design.known)))
        best_r, where_r = gain_rFL.flatten(1).max(1)
        free_r = (count_R[going_r] - len(OWN_LAGS) - 2 * (number + 2)).clamp(min=1)
        squared_t_r = best_r * free_r / (rest_RT[going_r].square().sum(1) - best_r).clamp(min=1e-12)
        significant_r = squared_t_r > design.least[going_r]
        going_r, where_r = going_r[significant_r], where_r[significant_r]
        if not len(going_r):
            break
        feature_r, lag_r = where_r // gain_rFL.shape[2], where_r % gain_rFL.shape[2] - LEAD
        feature_RM[going_r, number], lag_RM[going_r, number] = feature_r, lag_r
        x_rT = moved(design.features[going_r, feature_r], lag_r, x_RMT.shape[2])
        x_RMT[going_r, number] = regressors(pick(design, going_r), x_rT[:, None], phi_RJ[going_r])[:, 0]
        coefficient_RM[going_r], rest_RT[going_r] = fit(x_RMT[going_r], target_RT[going_r], seen_RT[going_r], 1)
    return Chosen(feature_RM, lag_RM, coefficient_RM)


def regressors(design: Design, x_RMT: Float[Tensor, "R M T"], phi_RJ: Float[Tensor, "R J"]) -> Float[Tensor, "R M T"]:
    """Features after the filter of the autoregression, 0 where the series is not seen."""
    return filtered(x_RMT, design.lag, phi_RJ, design.seen) * design.seen[:, None]


def fit(
    x_RMT: Float[Tensor, "R M T"], target_RT: Float[Tensor, "R T"], seen_RT: Bool[Tensor, "R T"], times: int
) -> tuple[Float[Tensor, "R M"], Float[Tensor, "R T"]]:
    """Coefficients, fitted ``times`` times with residuals clipped (Huber's estimate), and the residuals they leave."""
    fit_RT = torch.zeros_like(target_RT)
    for _ in range(times):
        pseudo_RT = torch.where(seen_RT, fit_RT + clipped(target_RT - fit_RT, seen_RT), 0.0)
        coefficient_RM = solve(x_RMT.transpose(1, 2), pseudo_RT)
        fit_RT = (coefficient_RM[:, None] @ x_RMT)[:, 0]
    return coefficient_RM, clipped(target_RT - fit_RT, seen_RT)


def contributions(design: Design, chosen: Chosen) -> Float[Tensor, "R M S"]:
    """What each chosen feature adds to every step: the feature moved by its lag, times its coefficient."""
    index_RMS = chosen.feature[..., None].expand(-1, -1, design.features.shape[2])
    x_RMS = design.features.gather(1, index_RMS).flatten(0, 1)
    return moved(x_RMS, chosen.lag.flatten(), x_RMS.shape[1]).view(index_RMS.shape) * chosen.coefficient[..., None]


def refine(design: Design, chosen: Chosen) -> tuple[Chosen, Float[Tensor, "R J"]]:
    """The autoregression of the series without the effect, and coefficients of the effect with it.

    The autoregression of the series itself was partly that of the effect.
    """
    x_RMT = contributions(design, chosen._replace(coefficient=(chosen.coefficient != 0).to(design.y.dtype)))
    phi_RJ = autoregression(design, (chosen.coefficient[:, None] @ x_RMT)[:, 0])
    target_RT = filtered(design.y[:, None], design.lag, phi_RJ, design.seen)[:, 0]
    coefficient_RM, _ = fit(regressors(design, x_RMT, phi_RJ), target_RT, design.seen, REFITS)
    return chosen._replace(coefficient=coefficient_RM), phi_RJ


def sum_up(design: Design, chosen: Chosen, steps: int) -> Effect:
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
    # Where several covariates leave their ranges together, the effect stays within its own.
    past_RT, ahead_RH = (parts_RMS * known_RMS).sum(1).split([steps, share_RH.shape[1]], 1)
    low_R1, high_R1 = past_RT.amin(1, keepdim=True), past_RT.amax(1, keepdim=True)
    ahead_RH = torch.minimum(torch.maximum(ahead_RH, low_R1), high_R1)
    return Effect(torch.cat([past_RT, ahead_RH], 1), share_RH)
