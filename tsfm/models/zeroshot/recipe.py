"""What the zero-shot encoder and decoder share: config, scaling, tokens from patches, quantiles from tokens.

Shapes: B windows, V variates, R rows (a variate of a window), T known steps, L all steps, N tokens, P steps of a patch,
W of them wanted, S steps that one token forecasts, D seasonal-naive features, C channels, K levels, G token inputs.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from tsfm.attention import Mask
from tsfm.models.base import Forecaster, negated, roll_out_paths
from tsfm.models.packing import scaled_quantile_loss
from tsfm.models.zeroshot.covariates import add_covariates
from tsfm.models.zeroshot.periods import find_periods, length_of
from tsfm.models.zeroshot.seasonal_features import ScaledRows, measure_changes, seasonal_naive_features
from tsfm.nn import (
    DEFAULT_LEVELS,
    ResidualMLP,
    Stack,
    asinh,
    check_levels,
    sinh,
    softplus,
)
from tsfm_data.errors import InputError, check_model_sizes
from tsfm_data.windows import Batch

CHANGE_LAG = 4  # steps over which the change of a series is measured, seasons aside
MIN_ERROR_SCALE = 0.02  # on the model's scale
MAX_ASINH = 20.0  # a value 2e8 scales away; keeps sinh finite


@dataclass(frozen=True)
class ZeroShotConfig:
    """Sizes of a zero-shot model and the options of its recipe, each of which can be switched off.

    Attributes:
        d_model: channels of a token.
        hidden: channels of the layer that turns a token and its seasonal-naive features into quantiles.
        layers: Transformer blocks.
        heads: attention heads; ``d_model / heads`` must be a multiple of 4.
        patch_size: steps of a token.
        predict_patches: patches that one token of the decoder forecasts at once.
        levels: trained quantile levels; others are interpolated.
        residual_mlp: patches become tokens, and tokens quantiles, through a hidden layer with a residual connection;
            otherwise through one linear layer.
        scale: "robust" (median and interquartile range) or "standard" (mean and standard deviation).
        arcsinh: whether scaled values go through asinh, which limits the effect of outliers.
        periods: how many periods found in the spectrum are given to the model as phases; 0, 1 or 2.
        lags: how many earlier periods the seasonal-naive features use; 0 uses none.
        drift: whether there are features that continue the mean change so far.
        naive_unit: whether quantiles and losses are in units of the in-sample error of a naive forecast, so that a
            series that repeats itself closely is also learnt closely. The encoder is better with it, the decoder
            without (``python benchmarks/ablation.py``).
        copy: whether the median starts from a learnt mixture of the seasonal-naive features.
        span_masking: share of the training batches in which spans of the history are hidden and must be filled in, too.
        random_horizon: whether the encoder is trained on random horizons, uniform on a logarithmic scale, so that long
            ones are learnt without taking most of the training.
        any_variate: whether the variates and covariates of a window attend to each other.
        flip_average: whether a forecast is averaged with the negated forecast of the negated history.
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
        check_model_sizes(self, "d_model", "hidden", "layers", "heads", "patch_size", "predict_patches")
        for name, most in (("periods", 2), ("lags", 16), ("span_masking", 1)):
            if not 0 <= getattr(self, name) <= most:
                raise InputError(f"expected {name} from 0 to {most}, found {getattr(self, name)}: change it")
        if self.scale not in ("robust", "standard"):
            raise InputError(f"expected scale 'robust' or 'standard', found {self.scale!r}: change it in the config")
        check_levels(self.levels)

    @property
    def feature_count(self) -> int:
        """Number of seasonal-naive features per step."""
        seasonal = self.periods if self.lags else 0
        return 1 + 3 * seasonal + (1 + seasonal if self.drift else 0)

    @classmethod
    def tiny(cls) -> "ZeroShotConfig":
        """Sizes for tests and first tries."""
        return cls(d_model=16, layers=1, heads=2, patch_size=4, predict_patches=2)


class Normaliser(NamedTuple):
    """Location and scale of every row, and the transformation to the model's scale and back."""

    loc: Float[Tensor, "R 1"]
    scale: Float[Tensor, "R 1"]
    arcsinh: bool

    def __call__(self, x: Float[Tensor, "R L"]) -> Float[Tensor, "R L"]:
        x = (x - self.loc) / self.scale
        return asinh(x) if self.arcsinh else x

    def restore(self, x: Float[Tensor, "R S K"]) -> Float[Tensor, "R S K"]:
        """Forecasts in the units of the rows."""
        x = sinh(x.clamp(-MAX_ASINH, MAX_ASINH)) if self.arcsinh else x
        return x * self.scale[..., None] + self.loc[..., None]


def fit_normaliser(x_RL: Float[Tensor, "R L"], seen_RL: Bool[Tensor, "R L"], config: ZeroShotConfig) -> Normaliser:
    """Location and scale of the seen values of every row; a constant row keeps its units."""
    count = seen_RL.sum(1, keepdim=True).clamp(min=1)
    mean = torch.where(seen_RL, x_RL, 0.0).sum(1, keepdim=True) / count
    std = torch.where(seen_RL, x_RL - mean, 0.0).square().sum(1, keepdim=True).div(count).sqrt()
    loc, scale = mean, std
    if config.scale == "robust":
        values = torch.where(seen_RL, x_RL, math.nan)
        low, loc, high = torch.nanquantile(values, x_RL.new_tensor([0.25, 0.5, 0.75]), dim=1).nan_to_num()[..., None]
        # If half of the values are equal, as in intermittent demand, the quartiles do not measure the spread.
        scale = torch.maximum((high - low) / 1.349, 0.25 * std)
    flat = scale <= 1e-6 * loc.abs()
    return Normaliser(loc, torch.where(flat | (scale == 0), 1.0, scale), config.arcsinh)


class QuantilePatches(nn.Module):
    """Quantiles of the steps that a token forecasts, ascending by construction, around a mixture of naive forecasts.

    The seasonal-naive features enter here and not with the tokens, because only forecast steps need them.

    Args:
        config: sizes and options.
        steps: steps that a token forecasts.
    """

    def __init__(self, config: ZeroShotConfig, steps: int) -> None:
        super().__init__()
        self.middle = len(config.levels) // 2
        self.sizes = [len(config.levels), config.feature_count if config.copy else 0]
        inputs, outputs = config.d_model + config.feature_count * steps, steps * sum(self.sizes)
        self.projection = (
            ResidualMLP(inputs, config.hidden, outputs, F.silu) if config.residual_mlp else nn.Linear(inputs, outputs)
        )
        self.steps = steps

    def forward(
        self,
        x_RNC: Float[Tensor, "R N C"],
        features_RNSD: Float[Tensor, "R N S D"],
        distance_RNSD: Float[Tensor, "R N S D"],
        error_scale_R: Float[Tensor, " R"],
    ) -> Float[Tensor, "R N S K"]:
        """Quantiles on the model's scale.

        Args:
            x_RNC: tokens.
            features_RNSD: seasonal-naive features of every step.
            distance_RNSD: their distances from the last value, from ``asinh_distance``.
            error_scale_R: unit of the distances of quantiles from the features.
        """
        raw = self.projection(torch.cat([x_RNC, distance_RNSD.flatten(2)], -1))
        # Levels first, so that each is contiguous in memory: three times as fast as levels last.
        raw = raw.unflatten(-1, (self.steps, sum(self.sizes))).float().movedim(-1, 0).contiguous()
        raw, weight = raw.split(self.sizes)
        m = self.middle
        unit = error_scale_R[:, None, None]
        centre = raw[m : m + 1] * unit
        if len(weight):
            centre = centre + (weight.softmax(0) * features_RNSD.movedim(-1, 0)).sum(0, keepdim=True)
        return ascending(centre, raw, unit).movedim(0, -1)


def ascending(
    centre: Float[Tensor, "1 R N S"], raw: Float[Tensor, "K R N S"], unit: Float[Tensor, "R 1 1"]
) -> Float[Tensor, "K R N S"]:
    """Quantiles that ascend from level to level by positive distances, with the middle one at ``centre``.

    Args:
        centre: the middle quantile.
        raw: outputs of a network; those of the other levels give the distances.
        unit: unit of the distances.
    """
    m = len(raw) // 2
    down = centre - unit * softplus(raw[:m]).flip(0).cumsum(0).flip(0)
    up = centre + unit * softplus(raw[m + 1 :]).cumsum(0)
    return torch.cat([down, centre, up])


class PatchTrunk(nn.Module):
    """Tokens from patches, the Transformer over them, and quantiles.

    Args:
        config: sizes and options.
        steps_per_token: steps that a token forecasts.
    """

    def __init__(self, config: ZeroShotConfig, steps_per_token: int) -> None:
        super().__init__()
        self.config = config
        width, patch = config.d_model, config.patch_size
        inputs = 3 * patch + 4 * config.periods + 3
        self.embed = ResidualMLP(inputs, width, width, F.silu) if config.residual_mlp else nn.Linear(inputs, width)
        self.stack = Stack(width, config.layers, config.heads, config.any_variate)
        self.head = QuantilePatches(config, steps_per_token)

    def describe_rows(self, x_RL: Float[Tensor, "R L"], seen_RL: Bool[Tensor, "R L"], history: int) -> ScaledRows:
        """Rows with statistics of their history, the first ``history`` tokens.

        Args:
            x_RL: values on the model's scale.
            seen_RL: where the model may look.
            history: tokens of the history.
        """
        x_RL = torch.where(seen_RL, x_RL, 0.0)
        x_RT, seen_RT = (x[:, : history * self.config.patch_size] for x in (x_RL, seen_RL))
        if self.config.periods:
            period_RP, score_RP = find_periods(x_RT, seen_RT, self.config.periods)
        else:
            period_RP = torch.zeros(len(x_RL), 0, dtype=torch.long, device=x_RL.device)
            score_RP = period_RP.float()
        plain_R = (length_of(seen_RT) // 3).clamp(min=1, max=CHANGE_LAG)
        changes = [measure_changes(x_RT, seen_RT, lag_R) for lag_R in (plain_R, *period_RP.unbind(1))]
        change_RQ = torch.stack([changes[0][0] / plain_R, *(mean for mean, _ in changes[1:])], 1)
        least_R = torch.stack([spread for _, spread in changes]).amin(0)
        # Without two changes to compare, errors are in units of the model's scale.
        error_scale_R = torch.where(least_R.isfinite(), least_R.clamp(min=MIN_ERROR_SCALE), 1.0)
        if not self.config.naive_unit:
            error_scale_R = torch.ones_like(error_scale_R)
        latest_R1 = torch.where(seen_RT, torch.arange(x_RT.shape[1], device=x_RT.device), 0).amax(1, keepdim=True)
        last_R = x_RT.gather(1, latest_R1)[:, 0]
        return ScaledRows(x_RL, seen_RL, period_RP, score_RP, length_of(seen_RT), change_RQ, error_scale_R, last_R)

    def seasonal_naive_features(
        self, rows: ScaledRows, step_NS: Int[Tensor, "N S"], known_N: Int[Tensor, " N"]
    ) -> Float[Tensor, "R N S D"]:
        """Features of the steps that every token forecasts, from values before step ``known_N``."""
        known = known_N[:, None].expand_as(step_NS).flatten()
        return seasonal_naive_features(rows, step_NS.flatten(), known, self.config.lags, self.config.drift).unflatten(
            1, step_NS.shape
        )

    def token_inputs(self, rows: ScaledRows, future_N: Bool[Tensor, " N"]) -> Float[Tensor, "R N G"]:
        """Input of every token: values, distances, mask, phases, periods, length, error scale, whether it is future."""
        patch, tokens = self.config.patch_size, len(future_N)
        x_RNP, seen_RNP = (x.unflatten(1, (tokens, patch)) for x in (rows.x, rows.seen.to(rows.x.dtype)))
        start_N1 = torch.arange(tokens, device=rows.x.device)[:, None] * patch
        period_R1 = rows.period[:, None]
        turn = 2 * math.pi * (start_N1 % period_R1.clamp(min=1)) / period_R1.clamp(min=1)
        phases = torch.cat([turn.sin(), turn.cos()], -1) * (period_R1 > 0).repeat(1, 1, 2)
        length_R1 = rows.length[:, None].clamp(min=1).to(rows.x.dtype)
        sizes_R2 = torch.cat([length_R1.log2() / 8, rows.error_scale[:, None].log()], -1)
        row = torch.cat([rows.period.clamp(min=1).log2() / 8, rows.score, sizes_R2], -1)
        distance_RNP = asinh_distance(rows, x_RNP) * seen_RNP
        future = future_N.to(rows.x.dtype)[None, :, None].expand(len(rows.x), -1, 1)
        shared = row[:, None].expand(-1, tokens, -1)
        return torch.cat([x_RNP, distance_RNP, seen_RNP, phases, shared, future], -1)

    def forecast(
        self,
        rows: ScaledRows,
        features_RWSD: Float[Tensor, "R W S D"],
        future_N: Bool[Tensor, " N"],
        allowed: Bool[Tensor, " B #M M"],
        variates: int,
        wanted: slice,
    ) -> Float[Tensor, "R W S K"]:
        """Quantiles of the steps that some tokens forecast, on the model's scale.

        Args:
            rows: the series.
            features_RWSD: seasonal-naive features of the wanted tokens.
            future_N: which tokens are the future.
            allowed: which tokens a token sees; over all variates of a window if these see each other.
            variates: V.
            wanted: the tokens to forecast from.
        """
        x_RWC = self.apply_stack(self.token_inputs(rows, future_N), allowed, variates, wanted)
        return self.head(x_RWC, features_RWSD, asinh_distance(rows, features_RWSD), rows.error_scale)

    def apply_stack(
        self, inputs_RNG: Float[Tensor, "R N G"], allowed: Bool[Tensor, " B #M M"], variates: int, wanted: slice
    ) -> Float[Tensor, "R _ C"]:
        """The wanted tokens after the Transformer; a token always sees itself.

        Args:
            inputs_RNG: from ``token_inputs``; rows are ordered by window, then by variate.
            allowed: which tokens a token sees; over all variates of a window if these see each other.
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


def asinh_distance(rows: ScaledRows, x: Float[Tensor, "R ..."]) -> Float[Tensor, "R ..."]:
    """``asinh`` of distances from the last value in error scales: small changes of large series become visible."""
    last_value, error_scale = (v.view(-1, *(1,) * (x.ndim - 1)) for v in (rows.last_value, rows.error_scale))
    return asinh((x - last_value) / error_scale)


class ZeroShotForecaster(Forecaster):
    """What the zero-shot encoder and decoder have in common as forecasters.

    Args:
        context: steps of history.
        horizon: steps that ``forward`` forecasts.
        config: sizes and options.
    """

    config_type: ClassVar[type] = ZeroShotConfig
    chunk_size: ClassVar[int | None] = 256
    mirrors: ClassVar[bool] = True
    causal: ClassVar[bool] = False  # True: a token sees only those before it
    config: ZeroShotConfig

    def __init__(self, context: int, horizon: int, config: ZeroShotConfig = ZeroShotConfig()) -> None:
        super().__init__(context, horizon, config)
        self.levels = check_levels(config.levels)
        self.trunk = PatchTrunk(config, self.steps_per_token)

    @property
    def covariates(self) -> bool:
        """Whether the model uses covariates: as further variates, or their effect is learnt from each history."""
        return True

    @property
    def joint(self) -> bool:
        """Whether variates see each other."""
        return self.config.any_variate

    @property
    @abstractmethod
    def steps_per_token(self) -> int:
        """Steps that one token forecasts."""

    @property
    @abstractmethod
    def steps_per_pass(self) -> int:
        """Steps that one pass forecasts."""

    @abstractmethod
    def quantiles(self, batch: Batch, horizon: int) -> Float[Tensor, "B H V K"]:
        """Quantiles of ``horizon`` steps, at most ``steps_per_pass``, in the batch's units."""

    def forward(self, batch: Batch) -> Float[Tensor, "B S V K"]:
        """Quantiles of the model's own horizon at its levels, in the batch's units."""
        return self.unroll(replace(batch, horizon=self.horizon))

    def unroll(self, batch: Batch) -> Float[Tensor, "B H V K"]:
        """Quantiles of ``batch.horizon`` steps; beyond ``steps_per_pass`` it forecasts from its own quantiles."""
        return roll_out_paths(
            batch, lambda part: self.quantiles(part, min(part.horizon, self.steps_per_pass)), self.levels
        )

    def rollout(self, batch: Batch) -> Float[Tensor, "B H V K"]:
        """As ``averaged``, with the effect of covariates unless these are further variates already."""
        return self.averaged(batch) if self.config.any_variate else add_covariates(batch, self.averaged)

    def averaged(self, batch: Batch) -> Float[Tensor, "B H V K"]:
        """As ``unroll``; with ``flip_average``, averaged with the negated forecast of the negated history."""
        quantiles = self.unroll(batch)
        flip = self.config.flip_average and self.effort == "fast"  # else ``with_effort`` averages
        return (quantiles - self.unroll(negated(batch)).flip(-1)) / 2 if flip else quantiles

    def loss_of(self, output: Float[Tensor, "B S V K"], batch: Batch) -> Float[Tensor, ""]:
        """Twice the mean pinball loss on the scale of each window, for validation."""
        return scaled_quantile_loss(output, batch, self.levels)
