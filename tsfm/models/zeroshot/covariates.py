"""Forecasts with the effect of covariates, as far as it improves forecasts of the end of each history.

Shapes: B windows, V variates, R rows (a variate of a window), T steps of history, H horizon, S = T + H steps,
C covariates, K levels.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from tsfm.models.covariates import with_covariates
from tsfm.models.zeroshot.covariate_features import moved
from tsfm.models.zeroshot.effects import LEAST_STEPS, Design, Effect, Table, filtered, learn, pick
from tsfm.models.zeroshot.periods import length_of
from tsfm.nn import mean_pinball_loss
from tsfm_data.windows import Batch

TRIAL = 48  # fewest held-out steps, if the history is long enough
CLEAR = 0.1  # share by which losses must fall for full trust in an effect
ERRORS = 0.5  # standard errors that are taken from the gain in a trial
LEAST_WEIGHT = 0.02  # effects trusted no more than this are left out
CELLS = 2**20  # most values of covariates that are looked at together

Predict = Callable[[Batch], Float[Tensor, "B H V K"]]


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
