"""The long-history decoder: recent steps one by one, distant ones as averages; every token forecasts any patch ahead.

Candidates are the simple forecasts of ``folds.py``.

Shapes: B windows, V variates, R rows (a variate of a window), T steps of history, L all steps, N tokens, W tokens to
forecast from, Q patches to forecast, P steps of a patch, E periods, D candidates, K levels, C channels, G token inputs,
H horizon, S the model's own horizon.
"""

import math
from dataclasses import replace
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from tsfm.attention import Mask
from tsfm.models.base import Forecaster, fit_context, roll_out_paths
from tsfm.models.packing import known_future, scaled_quantile_loss
from tsfm.models.zeroshot.covariates import add_covariates
from tsfm.models.zeroshot.folds import History, fold, trial_errors
from tsfm.models.zeroshot.history_tokens import Layout, LongHistoryConfig, fit, make_layout, token_values
from tsfm.models.zeroshot.mixture_head import QuantileHead
from tsfm.models.zeroshot.periods import find_periods, length_of
from tsfm.models.zeroshot.recipe import CHANGE_LAG, MAX_ASINH
from tsfm.nn import (
    ResidualMLP,
    Stack,
    asinh,
    check_levels,
    masked_mean,
    mean_pinball_loss,
    sinh,
)
from tsfm_data.windows import Batch

MIN_UNIT = 0.01  # on the model's scale
LEAST_ERROR = 0.05  # added to the errors of candidates, in units of ``error_unit``
LEAST_SEEN = 16  # observed recent steps that give a scale; with fewer, the whole history does


class Rows(NamedTuple):
    """Rows on the model's scale, with what is known of their history.

    Attributes:
        x: values, 0 where not seen.
        seen: where there is a value that may be looked at.
        loc: location that was subtracted.
        scale: scale that values were divided by.
        period: seasonal periods in steps, 0 for none.
        score: how clear each is, see ``find_periods``.
        length: steps from the first observed one to the end of the history.
        history: tables of the values.
        unit: the unit of errors, see ``error_unit``.
        trial: logarithm of the errors of ``trial_errors`` in this unit; 0 where they could not be measured.
    """

    x: Float[Tensor, "R L"]
    seen: Bool[Tensor, "R L"]
    loc: Float[Tensor, "R 1"]
    scale: Float[Tensor, "R 1"]
    period: Int[Tensor, "R E"]
    score: Float[Tensor, "R E"]
    length: Int[Tensor, " R"]
    history: History
    unit: Float[Tensor, " R"]
    trial: Float[Tensor, "R D 3"]


class LongHistoryDecoder(Forecaster):
    """Causal attention over patches, longer ones for older steps; the head mixes simple forecasts.

    Scale, seasonal periods and errors of the simple forecasts come from the history alone.

    Args:
        context: steps of history, cut to what the tokens can hold.
        horizon: steps that ``forward`` forecasts.
        config: sizes.
    """

    model_type: ClassVar[str] = "zeroshot-long"
    config_type: ClassVar[type] = LongHistoryConfig
    chunk_size: ClassVar[int | None] = 256
    any_length: ClassVar[bool] = True
    mirrors: ClassVar[bool] = True
    handles_gaps: ClassVar[bool] = True
    config: LongHistoryConfig

    def __init__(
        self,
        context: int,
        horizon: int,
        config: LongHistoryConfig = LongHistoryConfig(),  # noqa: B008 - it is frozen
    ) -> None:
        super().__init__(min(context, config.longest), horizon, config)
        self.levels = check_levels(config.levels)
        width, patch = config.d_model, config.patch_size
        self.embed = ResidualMLP(3 * patch + 4 * config.periods + 3, width, width, F.silu)
        self.stack = Stack(width, config.layers, config.heads)
        self.head = QuantileHead(config)

    @property
    def joint(self) -> bool:
        """Whether variates see each other: they do not."""
        return False

    def describe(
        self,
        x_RL: Float[Tensor, "R L"],
        seen_RL: Bool[Tensor, "R L"],
        known: int,
        target_RL: Float[Tensor, "R L"],
        seasons: tuple[int, ...],
    ) -> tuple[Rows, Float[Tensor, "R L"]]:
        """Rows on the model's scale from their first ``known`` steps, and the targets on the same scale.

        Args:
            x_RL: values, 0 where not seen.
            seen_RL: where there is a value.
            known: T.
            target_RL: values to bring to that scale.
            seasons: see ``Batch``.
        """
        before_RT = seen_RL[:, :known]
        loc, scale = recent_scale(x_RL[:, :known], before_RT, self.config.detail)
        plain_RL = (target_RL - loc) / scale
        scaled_RL = asinh(plain_RL)
        shown_RL = torch.where(seen_RL, scaled_RL, 0.0)
        if self.config.periods:
            period_RE, score_RE = find_periods(shown_RL[:, :known], before_RT, self.config.periods, seasons)
        else:
            period_RE = torch.zeros(len(x_RL), 0, dtype=torch.long, device=x_RL.device)
            score_RE = period_RE.float()
        history = History(shown_RL, torch.where(seen_RL, plain_RL, 0.0), seen_RL, period_RE)
        length_R = length_of(before_RT)
        unit_R = error_unit(history, known, length_R)
        trial_RD3 = (trial_errors(history, known) / unit_R[:, None, None] + LEAST_ERROR).log().nan_to_num()
        rows = Rows(shown_RL, seen_RL, loc, scale, period_RE, score_RE, length_R, history, unit_R, trial_RD3)
        return rows, scaled_RL

    def token_inputs(
        self, rows: Rows, layout: Layout, known: int
    ) -> tuple[Float[Tensor, "R N G"], Bool[Tensor, "R N"]]:
        """Inputs of every token, and whether it holds any value.

        ``known``: steps from whose end distances and phases are measured, so that padding does not change them.
        """
        patch = self.config.patch_size
        x_RNP, share_RNP = token_values(rows.x, rows.seen, layout, patch)
        last_R = rows.history.last(layout.end.new_tensor([known]))[:, 0]
        distance_RNP = asinh((x_RNP - last_R[:, None, None]) / rows.unit[:, None, None]) * (share_RNP > 0)
        start_N1 = (layout.end - layout.rate * patch - known)[:, None]
        period_R1 = rows.period[:, None]
        turn = 2 * math.pi * (start_N1 % period_R1.clamp(min=1)) / period_R1.clamp(min=1)
        phases = torch.cat([turn.sin(), turn.cos()], -1) * (period_R1 > 0).repeat(1, 1, 2)
        length_R1 = rows.length[:, None].clamp(min=1).to(rows.x.dtype)
        row = torch.cat(
            [rows.period.clamp(min=1).log2() / 8, rows.score, length_R1.log2() / 8, rows.unit[:, None].log()], 1
        )
        shared = row[:, None].expand(-1, len(layout.end), -1)
        rate = (layout.rate.to(rows.x.dtype).log2() / 4)[None, :, None].expand(len(rows.x), -1, 1)
        inputs = torch.cat([x_RNP, distance_RNP, share_RNP, phases, shared, rate], -1)
        return inputs, (share_RNP > 0).any(-1)

    def tokens(self, rows: Rows, layout: Layout, known: int, first: int) -> Float[Tensor, "R W C"]:
        """The tokens from ``first`` on, after the Transformer; a token sees itself and those before it.

        ``known``: see ``token_inputs``.
        """
        inputs, visible_RN = self.token_inputs(rows, layout, known)
        if not torch.compiler.is_compiling() and rows.x.device.type == "cpu" and bool(visible_RN.all()):
            visible_RN = visible_RN[:1]  # one mask for all rows, which is faster
        order = torch.arange(len(layout.end), device=rows.x.device)
        allowed = visible_RN[:, None] & (order[None] <= order[:, None])
        itself = torch.eye(len(order), dtype=torch.bool, device=rows.x.device)
        bias = torch.zeros((), device=rows.x.device).where(allowed | itself, -math.inf)[:, None]
        position = layout.end // self.config.patch_size
        return self.stack(self.embed(inputs), Mask(bias=bias), position[None], None, order[first:])

    def decode(
        self, x_RQC: Float[Tensor, "R Q C"], rows: Rows, origin_Q: Int[Tensor, " Q"], ahead_Q: Int[Tensor, " Q"]
    ) -> Float[Tensor, "R Q P K"]:
        """Quantiles, on the model's scale, of the patch that begins ``ahead`` patches after each origin."""
        patch = self.config.patch_size
        step_QP = (origin_Q + ahead_Q * patch)[:, None] + torch.arange(patch, device=x_RQC.device)
        of_QP = torch.arange(len(origin_Q), device=x_RQC.device)[:, None].expand_as(step_QP)
        folds = fold(rows.history, origin_Q, of_QP.flatten(), step_QP.flatten())
        candidates = rows.history.candidates(folds.plain, folds.seasonal)
        candidates_DRQP, spread_ERQP = (x.unflatten(2, step_QP.shape) for x in (candidates, folds.spread()))
        return self.head(x_RQC, ahead_Q, candidates_DRQP, spread_ERQP, rows.unit, rows.trial)

    def quantiles(self, batch: Batch, horizon: int) -> Float[Tensor, "B H V K"]:
        """Quantiles of ``horizon`` steps, at most ``reach`` patches, in the batch's units."""
        past_RT, seen_RT = (x.transpose(1, 2).flatten(0, 1) for x in (batch.past, batch.past_observed))
        if not torch.compiler.is_exporting():  # a graph has the same tokens for all histories
            blank = int((~seen_RT.any(0)).long().cumprod(0).sum())
            past_RT, seen_RT = (x[:, min(blank, x.shape[1] - 1) :] for x in (past_RT, seen_RT))
        layout = make_layout(self.config, past_RT.shape[1], 0, past_RT.device)
        x_RL, seen_RL = (fit(x, layout.steps) for x in (past_RT, seen_RT))
        x_RL = torch.where(seen_RL, x_RL, 0.0)
        rows, _ = self.describe(x_RL, seen_RL, layout.steps, x_RL, batch.seasons)
        count = -(-horizon // self.config.patch_size)
        x_RWC = self.tokens(rows, layout, layout.steps, len(layout.end) - 1)
        ahead_Q = torch.arange(count, device=x_RL.device)
        origin_Q = torch.full_like(ahead_Q, layout.steps)
        scaled = self.decode(x_RWC.expand(-1, count, -1), rows, origin_Q, ahead_Q).flatten(1, 2)
        restored = sinh(scaled.clamp(-MAX_ASINH, MAX_ASINH)) * rows.scale[..., None] + rows.loc[..., None]
        return restored[:, :horizon].unflatten(0, (len(batch), -1)).transpose(1, 2)

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Twice the mean pinball loss on the model's scale, over forecasts from all tokens after a random cut.

        Every token forecasts the next patch and one at a random distance.
        """
        patch, reach = self.config.patch_size, self.config.reach
        future, observed = known_future(batch, batch.horizon)
        keep = draw_context(batch.past.shape[1], self.config.detail)
        past = [x[:, -keep:].transpose(1, 2).flatten(0, 1) for x in (batch.past, batch.past_observed)]
        later = [x.transpose(1, 2).flatten(0, 1) for x in (future, observed)]
        layout = make_layout(self.config, past[0].shape[1], batch.horizon, past[0].device)
        ahead_steps = -(-batch.horizon // patch) * patch
        x_RL, seen_RL = (
            torch.cat([fit(before, layout.steps - ahead_steps), F.pad(after, (0, ahead_steps - after.shape[1]))], 1)
            for before, after in zip(past, later, strict=True)
        )
        count = len(layout.end)
        fine = layout.groups[-1][1]
        first = count - fine + int(torch.randint(min(1, fine - 1), fine - 1, ()))  # token to forecast from
        known = int(layout.end[first])
        x_RL = torch.where(seen_RL, x_RL, 0.0)
        rows, target_RL = self.describe(x_RL, seen_RL, known, x_RL, batch.seasons)
        x_RWC = self.tokens(rows, layout, known, first)[:, :-1]
        origin_W = layout.end[first:-1]
        room_W = torch.arange(count - first - 1, 0, -1, device=x_RL.device).clamp(max=reach)
        far_W = (torch.rand(len(room_W), device=x_RL.device) * room_W).long()
        origin_Q, ahead_Q = origin_W.repeat(2), torch.cat([torch.zeros_like(far_W), far_W])
        quantiles = self.decode(x_RWC.repeat(1, 2, 1), rows, origin_Q, ahead_Q)
        step_QP = (origin_Q + ahead_Q * patch)[:, None] + torch.arange(patch, device=x_RL.device)
        counts = seen_RL[:, step_QP] & seen_RL[:, :known].any(1)[:, None, None]
        loss = mean_pinball_loss(quantiles, target_RL[:, step_QP], self.levels)
        return masked_mean(loss / rows.unit[:, None, None].sqrt(), counts)

    def forward(self, batch: Batch) -> Float[Tensor, "B S V K"]:
        """Quantiles of the model's own horizon at its levels, in the batch's units."""
        return self.unroll(replace(batch, horizon=self.horizon))

    def unroll(self, batch: Batch) -> Float[Tensor, "B H V K"]:
        """Quantiles of ``batch.horizon`` steps; beyond ``reach`` patches it forecasts from its own quantiles."""
        most = self.config.reach * self.config.patch_size
        if batch.horizon > most:
            batch = fit_context(batch, self.context)  # room for the forecasts that become history
        return roll_out_paths(batch, lambda part: self.quantiles(part, min(part.horizon, most)), self.levels)

    @property
    def covariates(self) -> bool:
        """Whether the model uses covariates: their effect is learnt from each history, see ``add_covariates``."""
        return True

    def rollout(self, batch: Batch) -> Float[Tensor, "B H V K"]:
        """As ``unroll``, with the effect of covariates."""
        return add_covariates(batch, self.unroll)

    def loss_of(self, output: Float[Tensor, "B S V K"], batch: Batch) -> Float[Tensor, ""]:
        """Twice the mean pinball loss on the scale of each window, for validation."""
        return scaled_quantile_loss(output, batch, self.levels)


def error_unit(history: History, known: int, length_R: Int[Tensor, " R"]) -> Float[Tensor, " R"]:
    """The unit of errors: the least mean error of naive and seasonal-naive forecasts, drift aside.

    It is at least ``MIN_UNIT``, and 1 if there are too few values.
    """
    plain_R1 = (length_R // 3).clamp(min=1, max=CHANGE_LAG).to(history.index)[:, None]
    naive_R1 = history.change_spread(history.row_R, plain_R1, known)
    seasonal_PR1 = history.of_rows(history.change_spread(history.row_K, history.length_K1, known), naive_R1)
    least_R = torch.cat([naive_R1[None], seasonal_PR1]).amin((0, 2))
    return torch.where(least_R.isfinite(), least_R.clamp(min=MIN_UNIT), 1.0)


def draw_context(most: int, detail: int) -> int:
    """Steps of history to train on: all ``most`` in half of the batches, else log-uniform from ``detail`` steps on."""
    if most <= detail or float(torch.rand(())) < 0.5:
        return most
    return int(detail * (most / detail) ** float(torch.rand(())))


def recent_scale(
    x_RT: Float[Tensor, "R T"], seen_RT: Bool[Tensor, "R T"], detail: int
) -> tuple[Float[Tensor, "R 1"], Float[Tensor, "R 1"]]:
    """Mean and standard deviation of the last ``detail`` steps, or of all if these do not show them."""
    seen_RT = seen_RT.to(x_RT.dtype)
    old_RT, recent_RT = seen_RT[:, :-detail], seen_RT[:, -detail:]
    used_RT = torch.cat([old_RT * (recent_RT.sum(1, keepdim=True) < LEAST_SEEN), recent_RT], 1)
    count, whole = (x.sum(1, keepdim=True).clamp(min=1) for x in (used_RT, seen_RT))
    loc = (x_RT * used_RT).sum(1, keepdim=True) / count
    away_RT = x_RT - loc
    scale, wide = (
        (away_RT * weight).square().sum(1, keepdim=True).div(total).sqrt()
        for weight, total in ((used_RT, count), (seen_RT, whole))
    )
    scale = torch.where(scale <= 1e-6 * loc.abs(), wide, scale)
    return loc, torch.where((scale <= 1e-6 * loc.abs()) | (scale == 0), 1.0, scale)
