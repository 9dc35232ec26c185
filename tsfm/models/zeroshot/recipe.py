"""What the zero-shot encoder and decoder share: their choices, how steps become tokens, how tokens become quantiles.

Shapes: B windows, V variates, R rows (a variate of a window), T known steps, L all steps, N tokens, P steps of a patch,
W of them wanted, S steps that one token forecasts, D drafts, C channels, K levels, G inputs of a token.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from tsfm.attention import Mask
from tsfm.models.base import Forecaster, roll_out_paths
from tsfm.models.packing import known_future
from tsfm.models.zeroshot.periods import find_periods, length_of
from tsfm.models.zeroshot.seasonal_features import Rows, changes, draft_steps
from tsfm.nn import (
    DEFAULT_LEVELS,
    ResidualMLP,
    Stack,
    asinh,
    check_levels,
    masked_mean,
    mean_pinball_loss,
    sinh,
    window_scale,
)
from tsfm_data.errors import InputError, check_positive
from tsfm_data.windows import Batch

PLAIN_LAG = 4  # steps over which the change of a series without season is measured
LEAST_UNIT = 0.02  # of errors, on the model's scale
VALUES = ("past", "future", "past_covariates", "known_past", "known_future")  # of a batch
FARTHEST = 20.0  # asinh of a value: 2e8 scales away; keeps sinh finite


@dataclass(frozen=True)
class ZeroShotConfig:
    """Sizes of a zero-shot model and the choices of its recipe, each of which can be taken back.

    Attributes:
        d_model: channels of a token.
        hidden: channels of the layer that turns a token and its drafts into quantiles.
        layers: Transformer blocks.
        heads: attention heads; ``d_model / heads`` must be a multiple of 4.
        patch_size: steps of a token.
        predict_patches: patches that one token of the decoder forecasts at once.
        levels: trained quantile levels; any other is interpolated.
        residual_mlp: patches become tokens, and tokens quantiles, through a hidden layer and a linear path around it;
            otherwise through one linear map.
        scale: "robust" (median and interquartile range) or "standard" (mean and standard deviation).
        arcsinh: whether scaled values go through asinh, which tames outliers.
        periods: how many periods, found by the spectrum, are given as coordinates; 0, 1 or 2.
        lags: how many earlier periods a token is shown at its own phase; 0 shows none.
        drift: whether drafts that go on with the mean change so far are among them.
        naive_unit: whether quantiles and losses are counted in units of the error of a naive forecast within the
            history, so that a series that repeats itself closely is learnt as closely. The encoder is better with it,
            the decoder without (``python benchmarks/ablation.py``).
        copy: whether quantiles start from a learnt mixture of the drafts.
        span_masking: share of the training batches in which spans of the history are hidden, too, and to be filled in.
        random_horizon: whether training batches of the encoder ask for random horizons, even on a logarithmic scale,
            so that long ones are learnt without spending most of the training on them.
        any_variate: whether the variates of a window, its covariates among them, see each other.
        flip_average: whether a forecast is averaged with the mirrored one of the mirrored history.
    """

    d_model: int = 128
    hidden: int = 512
    layers: int = 2
    heads: int = 4
    patch_size: int = 32
    predict_patches: int = 2
    levels: tuple[float, ...] = DEFAULT_LEVELS
    residual_mlp: bool = True
    scale: Literal["robust", "standard"] = "standard"
    arcsinh: bool = True
    periods: int = 2
    lags: int = 3
    drift: bool = False
    naive_unit: bool = True
    copy: bool = True
    span_masking: float = 0.0
    random_horizon: bool = True
    any_variate: bool = False
    flip_average: bool = False

    def __post_init__(self) -> None:
        check_positive(self, "d_model", "hidden", "layers", "heads", "patch_size", "predict_patches")
        for name, most in (("periods", 2), ("lags", 16), ("span_masking", 1)):
            if not 0 <= getattr(self, name) <= most:
                raise InputError(f"expected {name} from 0 to {most}, found {getattr(self, name)}: change it")
        if self.scale not in ("robust", "standard"):
            raise InputError(f"expected scale 'robust' or 'standard', found {self.scale!r}: change it in the config")
        check_levels(self.levels)

    @property
    def drafts(self) -> int:
        """Drafts of every step: the last value; of every period the last one, the mean of the last ``lags``, and the
        last one on the present level; and the last value and the last period with drift.
        """
        seasonal = self.periods if self.lags else 0
        return 1 + 3 * seasonal + (1 + seasonal if self.drift else 0)

    @classmethod
    def tiny(cls) -> "ZeroShotConfig":
        """Sizes for a test, or for a first try."""
        return cls(d_model=16, layers=1, heads=2, patch_size=4, predict_patches=2)


class Normaliser(NamedTuple):
    """The model's own scale of every row, and back."""

    loc: Float[Tensor, "R 1"]
    scale: Float[Tensor, "R 1"]
    arcsinh: bool

    def __call__(self, x: Float[Tensor, "R L"]) -> Float[Tensor, "R L"]:
        x = (x - self.loc) / self.scale
        return asinh(x) if self.arcsinh else x

    def restore(self, x: Float[Tensor, "R S K"]) -> Float[Tensor, "R S K"]:
        """Forecasts in the units of the rows."""
        x = sinh(x.clamp(-FARTHEST, FARTHEST)) if self.arcsinh else x
        return x * self.scale[..., None] + self.loc[..., None]


def fit_normaliser(x_RL: Float[Tensor, "R L"], seen_RL: Bool[Tensor, "R L"], config: ZeroShotConfig) -> Normaliser:
    """Location and scale of what is seen of every row; a row that never changes keeps its units."""
    count = seen_RL.sum(1, keepdim=True).clamp(min=1)
    mean = torch.where(seen_RL, x_RL, 0.0).sum(1, keepdim=True) / count
    std = torch.where(seen_RL, x_RL - mean, 0.0).square().sum(1, keepdim=True).div(count).sqrt()
    loc, scale = mean, std
    if config.scale == "robust":
        values = torch.where(seen_RL, x_RL, math.nan)
        low, loc, high = torch.nanquantile(values, x_RL.new_tensor([0.25, 0.5, 0.75]), dim=1).nan_to_num()[..., None]
        # Where half of the values are equal, as in intermittent demand, the quartiles say nothing of the spread.
        scale = torch.maximum((high - low) / 1.349, 0.25 * std)
    flat = scale <= 1e-6 * loc.abs()
    return Normaliser(loc, torch.where(flat | (scale == 0), 1.0, scale), config.arcsinh)


class QuantilePatches(nn.Module):
    """Quantiles of the steps that a token forecasts: in order by construction, around a mixture of drafts.

    Drafts come in here and not with the tokens: what is not forecast needs none.

    Args:
        config: levels, and the width of a token.
        steps: steps that a token forecasts.
    """

    def __init__(self, config: ZeroShotConfig, steps: int) -> None:
        super().__init__()
        self.middle = len(config.levels) // 2
        self.sizes = [len(config.levels), config.drafts if config.copy else 0]
        inputs, outputs = config.d_model + config.drafts * steps, steps * sum(self.sizes)
        self.projection = (
            ResidualMLP(inputs, config.hidden, outputs, F.silu) if config.residual_mlp else nn.Linear(inputs, outputs)
        )
        self.steps = steps

    def forward(
        self,
        x_RNC: Float[Tensor, "R N C"],
        drafts_RNSD: Float[Tensor, "R N S D"],
        near_RNSD: Float[Tensor, "R N S D"],
        unit_R: Float[Tensor, " R"],
    ) -> Float[Tensor, "R N S K"]:
        """Quantiles on the model's scale.

        Args:
            x_RNC: tokens.
            drafts_RNSD: the drafts of every step.
            near_RNSD: how far they are from the present, as the model is shown it.
            unit_R: what distances from the drafts are counted in.
        """
        raw = self.projection(torch.cat([x_RNC, near_RNSD.flatten(2)], -1))
        # A level after the other, each in one piece of memory: three times as fast as levels side by side.
        raw = raw.unflatten(-1, (self.steps, sum(self.sizes))).float().movedim(-1, 0).contiguous()
        raw, weight = raw.split(self.sizes)
        m = self.middle
        unit = unit_R[:, None, None]
        centre = raw[m : m + 1] * unit
        if len(weight):
            centre = centre + (weight.softmax(0) * drafts_RNSD.movedim(-1, 0)).sum(0, keepdim=True)
        down = centre - unit * F.softplus(raw[:m]).flip(0).cumsum(0).flip(0)
        up = centre + unit * F.softplus(raw[m + 1 :]).cumsum(0)
        return torch.cat([down, centre, up]).movedim(0, -1)


class PatchTrunk(nn.Module):
    """Tokens of patches, the stack over them, and quantiles.

    Args:
        config: sizes and choices.
        ahead: steps that a token forecasts.
    """

    def __init__(self, config: ZeroShotConfig, ahead: int) -> None:
        super().__init__()
        self.config = config
        width, patch = config.d_model, config.patch_size
        inputs = 3 * patch + 4 * config.periods + 3
        self.embed = ResidualMLP(inputs, width, width, F.silu) if config.residual_mlp else nn.Linear(inputs, width)
        self.stack = Stack(width, config.layers, config.heads, config.any_variate)
        self.head = QuantilePatches(config, ahead)

    def rows(self, x_RL: Float[Tensor, "R L"], seen_RL: Bool[Tensor, "R L"], history: int) -> Rows:
        """What is seen of rows on the model's own scale, with the periods of the first ``history`` tokens."""
        x_RL = torch.where(seen_RL, x_RL, 0.0)
        x_RT, seen_RT = (x[:, : history * self.config.patch_size] for x in (x_RL, seen_RL))
        if self.config.periods:
            period_RP, score_RP = find_periods(x_RT, seen_RT, self.config.periods)
        else:
            period_RP = torch.zeros(len(x_RL), 0, dtype=torch.long, device=x_RL.device)
            score_RP = period_RP.float()
        plain_R = (length_of(seen_RT) // 3).clamp(min=1, max=PLAIN_LAG)
        found = [changes(x_RT, seen_RT, lag_R) for lag_R in (plain_R, *period_RP.unbind(1))]
        change_RQ = torch.stack([found[0][0] / plain_R, *(mean for mean, _ in found[1:])], 1)
        least_R = torch.stack([spread for _, spread in found]).amin(0)
        # Where there are no two changes to compare, the scale itself is the unit.
        unit_R = torch.where(least_R.isfinite(), least_R.clamp(min=LEAST_UNIT), 1.0)
        if not self.config.naive_unit:
            unit_R = torch.ones_like(unit_R)
        latest_R1 = torch.where(seen_RT, torch.arange(x_RT.shape[1], device=x_RT.device), 0).amax(1, keepdim=True)
        level_R = x_RT.gather(1, latest_R1)[:, 0]
        return Rows(x_RL, seen_RL, period_RP, score_RP, length_of(seen_RT), change_RQ, unit_R, level_R)

    def drafts(self, rows: Rows, step_NS: Int[Tensor, "N S"], known_N: Int[Tensor, " N"]) -> Float[Tensor, "R N S D"]:
        """The drafts of the steps that every token forecasts, from before ``known``."""
        known = known_N[:, None].expand_as(step_NS).flatten()
        return draft_steps(rows, step_NS.flatten(), known, self.config.lags, self.config.drift).unflatten(
            1, step_NS.shape
        )

    def inputs(self, rows: Rows, future_N: Bool[Tensor, " N"]) -> Float[Tensor, "R N G"]:
        """Everything that a token is made of: its patch and where it is seen, phases, periods, length."""
        patch, tokens = self.config.patch_size, len(future_N)
        x_RNP, seen_RNP = (x.unflatten(1, (tokens, patch)) for x in (rows.x, rows.seen.to(rows.x.dtype)))
        start_N1 = torch.arange(tokens, device=rows.x.device)[:, None] * patch
        period_R1 = rows.period[:, None]
        turn = 2 * math.pi * (start_N1 % period_R1.clamp(min=1)) / period_R1.clamp(min=1)
        phases = torch.cat([turn.sin(), turn.cos()], -1) * (period_R1 > 0).repeat(1, 1, 2)
        length_R1 = rows.length[:, None].clamp(min=1).to(rows.x.dtype)
        length_unit = torch.cat([length_R1.log2() / 8, rows.unit[:, None].log()], -1)
        row = torch.cat([rows.period.clamp(min=1).log2() / 8, rows.score, length_unit], -1)
        near_RNP = near(rows, x_RNP) * seen_RNP
        future = future_N.to(rows.x.dtype)[None, :, None].expand(len(rows.x), -1, 1)
        shared = row[:, None].expand(-1, tokens, -1)
        return torch.cat([x_RNP, near_RNP, seen_RNP, phases, shared, future], -1)

    def forecast(
        self,
        rows: Rows,
        drafts_RWSD: Float[Tensor, "R W S D"],
        future_N: Bool[Tensor, " N"],
        allowed: Bool[Tensor, "B #M M"],
        variates: int,
        wanted: slice,
    ) -> Float[Tensor, "R W S K"]:
        """Quantiles on the model's scale of what some tokens forecast.

        Args:
            rows: what is seen.
            drafts_RWSD: the drafts of the wanted tokens.
            future_N: which tokens are the future.
            allowed: which tokens a token sees, over all variates of a window if these see each other.
            variates: V.
            wanted: tokens whose forecasts are asked for.
        """
        x_RWC = self.mix(self.inputs(rows, future_N), allowed, variates, wanted)
        return self.head(x_RWC, drafts_RWSD, near(rows, drafts_RWSD), rows.unit)

    def mix(
        self, inputs_RNG: Float[Tensor, "R N G"], allowed: Bool[Tensor, "B #M M"], variates: int, wanted: slice
    ) -> Float[Tensor, "R _ C"]:
        """The wanted tokens after the stack; a token always sees itself.

        Args:
            inputs_RNG: from ``inputs``; rows are windows, and variates within a window.
            allowed: which tokens a token sees, over all variates of a window if these see each other.
            variates: V.
            wanted: tokens to return.
        """
        x_RNC = self.embed(inputs_RNG)
        tokens = x_RNC.shape[1]
        time_N = torch.arange(tokens, device=x_RNC.device)
        wanted_M = time_N[wanted]
        variate = None
        if self.config.any_variate:
            x_RNC = x_RNC.unflatten(0, (-1, variates)).flatten(1, 2)
            column_V1 = torch.arange(variates, device=x_RNC.device)[:, None]
            wanted_M = (wanted_M + tokens * column_V1).flatten()
            time_N = time_N.repeat(variates)
            variate = column_V1.expand(-1, tokens).reshape(1, -1)
        itself = torch.eye(x_RNC.shape[1], dtype=torch.bool, device=x_RNC.device)
        bias = torch.zeros((), device=x_RNC.device).where(allowed | itself, -math.inf)[:, None]
        x_RNC = self.stack(x_RNC, Mask(bias=bias), time_N[None], variate, wanted_M)
        return x_RNC.unflatten(1, (variates, -1)).flatten(0, 1) if self.config.any_variate else x_RNC


def near(rows: Rows, x: Float[Tensor, "R ..."]) -> Float[Tensor, "R ..."]:
    """Distances from the present in units of the row's own noise, tamed: they show what its whole scale hides."""
    level, unit = (v.view(-1, *(1,) * (x.ndim - 1)) for v in (rows.level, rows.unit))
    return asinh((x - level) / unit)


class ZeroShotForecaster(Forecaster):
    """What the zero-shot encoder and decoder have in common as forecasters.

    Args:
        context: steps of history.
        horizon: steps that ``forward`` gives.
        config: sizes and choices.
    """

    config_type: ClassVar[type] = ZeroShotConfig
    piece: ClassVar[int | None] = 256
    config: ZeroShotConfig

    def __init__(self, context: int, horizon: int, config: ZeroShotConfig = ZeroShotConfig()) -> None:
        super().__init__(context, horizon, config)
        self.levels = check_levels(config.levels)
        self.trunk = PatchTrunk(config, self.ahead)

    @property
    def covariates(self) -> bool:
        """Whether the model looks at covariates: where variates see each other, as further variates."""
        return self.config.any_variate

    @property
    def joint(self) -> bool:
        """Whether variates see each other."""
        return self.config.any_variate

    @property
    @abstractmethod
    def ahead(self) -> int:
        """Steps that one token forecasts."""

    @property
    @abstractmethod
    def reach(self) -> int:
        """Steps that one pass forecasts."""

    @abstractmethod
    def quantiles(self, batch: Batch, horizon: int) -> Float[Tensor, "B H V K"]:
        """Quantiles of ``horizon`` steps, at most ``reach``, in the batch's units."""

    def forward(self, batch: Batch) -> Float[Tensor, "B S V K"]:
        """Quantiles of the model's own horizon at its levels, in the batch's units."""
        return self.unroll(replace(batch, horizon=self.horizon))

    def unroll(self, batch: Batch) -> Float[Tensor, "B H V K"]:
        """Quantiles of ``batch.horizon`` steps; beyond ``reach`` the model goes on from its own quantiles."""
        return roll_out_paths(batch, lambda part: self.quantiles(part, min(part.horizon, self.reach)), self.levels)

    def rollout(self, batch: Batch) -> Float[Tensor, "B H V K"]:
        """As ``unroll``; the mirrored history has its say where ``flip_average`` is on."""
        found = self.unroll(batch)
        return (found - self.unroll(mirrored(batch)).flip(-1)) / 2 if self.config.flip_average else found

    def loss_of(self, output: Float[Tensor, "B S V K"], batch: Batch) -> Float[Tensor, ""]:
        """Twice the mean pinball loss on the scale of each window: what validation watches."""
        scale = window_scale(batch.past, batch.past_observed).scale
        future, observed = known_future(batch, output.shape[1])
        return masked_mean(mean_pinball_loss(output / scale[..., None], future / scale, self.levels), observed)


def mirrored(batch: Batch) -> Batch:
    """The batch with every value below zero that was above it, and the other way round."""
    turned: Any = {name: -x for name in VALUES if (x := getattr(batch, name)) is not None}
    return replace(batch, **turned)
