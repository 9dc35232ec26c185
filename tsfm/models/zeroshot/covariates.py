"""Forecasts with the effect of covariates, as far as it explains the end of each history.

Shapes: B windows, V variates, R rows (a variate of a window), T steps of history, H horizon, S = T + H steps,
C covariates, K levels.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from tsfm.models.covariates import with_covariates
from tsfm.models.zeroshot.effects import LEAST_STEPS, Effect, Learnt, Table, learn, pick
from tsfm.models.zeroshot.periods import length_of
from tsfm_data.windows import Batch

CELLS = 2**20  # most values of covariates that are looked at together
TRIALS = 3  # earlier origins, a horizon apart, from which the model itself tries an effect
SURE_GAIN = 0.05  # share by which its errors must fall there for full trust

Predict = Callable[[Batch], Float[Tensor, "B H V K"]]


def add_covariates(batch: Batch, forecast: Predict) -> Float[Tensor, "B H V K"]:
    """Quantiles of windows, with the effect of covariates as far as it explains the end of the history.

    Args:
        batch: windows; without covariates, the forecast is that of ``forecast``.
        forecast: gives the quantiles of windows without covariates, each variate by itself.
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
        parts.append(add_effects(table, known_C, plain_RHK[index], alone, batch.seasons))
    return torch.cat(parts).unflatten(0, (-1, variates)).transpose(1, 2)


def add_effects(
    table: Table,
    known_C: Bool[Tensor, " C"],
    plain: Float[Tensor, "R H K"],
    forecast: Predict,
    seasons: tuple[int, ...],
) -> Float[Tensor, "R H K"]:
    """The forecasts ``plain`` with the effect of covariates.

    Args:
        table: the rows.
        known_C: which covariates are known over the horizon.
        plain: forecasts without covariates.
        forecast: as for ``add_covariates``.
        seasons: see ``Batch``.
    """
    steps = table.y.shape[1] - plain.shape[1]
    learnt = learn(table, known_C, steps, seasons)
    if not len(learnt.rows):
        return plain
    trust_R = learnt.trust * confirmed(pick(table, learnt.rows), learnt, steps, forecast)
    useful = (trust_R > 0).nonzero()[:, 0]
    if not len(useful):
        return plain
    learnt, trust_R11 = learnt.pick(useful), trust_R[useful, None, None].to(plain.dtype)
    index, effect = learnt.rows, learnt.effect
    rest = forecast(history(table.y[index] - effect.value, table.y_seen[index], steps))[:, :, 0]
    return plain.index_copy(0, index, torch.lerp(plain[index], combined(plain[index], rest, effect), trust_R11))


def confirmed(table: Table, learnt: Learnt, steps: int, forecast: Predict) -> Float[Tensor, " R"]:
    """How far forecasts of the end of the history confirm effects, 0 to 1; 1 if the history is too short for that.

    An effect explains what an autoregression leaves. The model may know better: its errors must fall as well.

    Args:
        table: the rows of ``learnt``.
        learnt: the effects.
        steps: T.
        forecast: as for ``add_covariates``.
    """
    horizon = table.y.shape[1] - steps
    errors_2R = table.y.new_zeros(2, len(table.y))
    for trial in range(1, TRIALS + 1):
        origin = steps - trial * horizon
        long_enough = length_of(table.y_seen[:, : max(origin, 1)]) >= LEAST_STEPS
        # The first trial counts even where a part of it was learnt from: short histories have no other.
        index = (long_enough & ((trial == 1) | (learnt.held >= trial * horizon))).nonzero()[:, 0]
        if not len(index):
            break
        y_RS, seen_RS = (x[index, : origin + horizon] for x in (table.y, table.y_seen))
        effect = learnt.pick(index).before(origin, horizon)
        plain, rest = (forecast(history(y, seen_RS, origin))[:, :, 0] for y in (y_RS, y_RS - effect.value))
        median = plain.shape[2] // 2
        for total_R, quantiles in zip(errors_2R, (plain, combined(plain, rest, effect)), strict=True):
            error_RH = (quantiles[..., median] - y_RS[:, origin:]).abs() * seen_RS[:, origin:]
            total_R.index_add_(0, index, error_RH.sum(1).to(total_R.dtype))
    without_R, with_R = errors_2R
    return ((1 - with_R / without_R.clamp(min=1e-9)) / SURE_GAIN).clamp(0, 1)


def history(y_RS: Float[Tensor, "R S"], seen_RS: Bool[Tensor, "R S"], steps: int) -> Batch:
    """Windows of one variate, from the first ``steps`` steps of rows."""
    past, seen = y_RS[:, :steps, None], seen_RS[:, :steps, None]
    return Batch(torch.where(seen, past, 0.0), seen, y_RS.shape[1] - steps)


def combined(plain: Float[Tensor, "R H K"], rest: Float[Tensor, "R H K"], effect: Effect) -> Float[Tensor, "R H K"]:
    """Forecasts ``rest`` of what the effect leaves, plus the effect; ``plain`` as far as the effect is not known."""
    value_RH1 = effect.value[:, -plain.shape[1] :, None]
    return torch.lerp(plain, rest + value_RH1, effect.share[..., None])
