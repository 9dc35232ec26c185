"""Chronos-2: an encoder with attention along time and, at each patch, across the variates of a window
(Ansari et al., "Chronos-2: From Univariate to Universal Forecasting", 2025, and chronos-forecasting).

Module names are those of the published weights. The columns of a window (variates and covariates) form one group.

Shapes: B windows, W columns, V variates, T context, N tokens, P steps of a patch, C channels, K levels, S the model's
own horizon, F requested horizon, A steps ahead in one pass, U unrolled paths.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from tsfm.models.base import Forecaster
from tsfm.models.covariates import WithCovariates, with_covariates
from tsfm.nn import (
    DEFAULT_LEVELS,
    NORM_EPS,
    ResidualMLP,
    RMSNorm,
    Rotary,
    T5Attention,
    T5FeedForward,
    check_levels,
    interpolate_quantiles,
    pinball_loss,
    t5_block,
    weighted_quantiles,
)
from tsfm_data.errors import InputError, check_model_sizes, reason_of
from tsfm_data.windows import Batch

SCALE_EPS = 1e-5
REGISTER = 1  # row of the register token in the table of learnt tokens; the other row is not used
LEVELS = (0.01, *(k / 20 for k in range(1, 20)), 0.99)
PATHS = DEFAULT_LEVELS  # levels of the quantiles that become histories beyond the first pass
NAMES = ("self_attention", "self_attention", "mlp")  # along time, along the group, feed-forward


@dataclass(frozen=True)
class Chronos2Config:
    """Sizes of a Chronos-2; the defaults are those of the published one.

    Attributes:
        d_model: channels of a token.
        d_ff: channels inside the feed-forward parts.
        d_kv: channels of an attention head, an even number.
        heads: attention heads.
        layers: blocks.
        patch_size: steps of a token.
        time_scale: divisor of the time index, in steps.
        rope_theta: base of the rotations along time.
        arcsinh: whether scaled values are compressed by arcsinh.
        levels: trained quantile levels.
    """

    d_model: int = 768
    d_ff: int = 3072
    d_kv: int = 64
    heads: int = 12
    layers: int = 12
    patch_size: int = 16
    time_scale: int = 8192
    rope_theta: float = 10_000.0
    arcsinh: bool = True
    levels: tuple[float, ...] = LEVELS

    def __post_init__(self) -> None:
        check_model_sizes(self, "d_model", "d_ff", "d_kv", "heads", "layers", "patch_size", "time_scale")
        if self.d_kv % 2 or not self.rope_theta > 0:
            raise InputError(
                f"expected an even d_kv and rope_theta above 0, found {self.d_kv} and {self.rope_theta}: change them"
            )
        check_levels(self.levels)

    @classmethod
    def tiny(cls) -> "Chronos2Config":
        """Sizes for tests and first tries."""
        return cls(d_model=16, d_ff=16, d_kv=8, heads=2, layers=1, patch_size=4, time_scale=24)


class Scale(NamedTuple):
    """Mean and standard deviation of every column."""

    loc: Float[Tensor, "B 1 W"]
    scale: Float[Tensor, "B 1 W"]


class Encoder(nn.Module):
    """Pre-norm blocks: attention along time, attention within the group at each token, feed-forward; then a norm."""

    def __init__(self, config: Chronos2Config) -> None:
        super().__init__()
        self.rotations = config.d_kv, config.rope_theta
        sizes = config.d_model, config.heads, config.d_kv
        self.block = nn.ModuleList(
            t5_block(
                config.d_model,
                NAMES,
                [T5Attention(*sizes), T5Attention(*sizes), T5FeedForward(*sizes[:1], config.d_ff)],
            )
            for _ in range(config.layers)
        )
        self.final_layer_norm = RMSNorm(config.d_model, eps=NORM_EPS)

    def forward(self, x: Float[Tensor, "B W N C"], seen: Bool[Tensor, "B W N"]) -> Float[Tensor, "B W N C"]:
        """The tokens after all blocks; those not ``seen`` are masked."""
        windows, columns, tokens, _ = x.shape
        hidden = torch.zeros_like(seen, dtype=x.dtype).masked_fill(~seen, -math.inf)
        along_time = hidden.flatten(0, 1)[:, None, None]  # [B W, 1, 1, N]
        along_group = hidden.transpose(1, 2).flatten(0, 1)[:, None, None]  # [B N, 1, 1, W]
        rotary = Rotary.at(torch.arange(tokens, device=x.device)[None], *self.rotations)
        for block in self.block:
            time, group, forward = block["layer"]  # type: ignore[index, misc]
            rows = x.flatten(0, 1)
            normed = time["layer_norm"](rows)
            rows = rows + time["self_attention"](normed, normed, along_time, rotary)
            groups = rows.unflatten(0, (windows, columns)).transpose(1, 2).flatten(0, 1)
            normed = group["layer_norm"](groups)
            groups = groups + group["self_attention"](normed, normed, along_group)
            groups = groups + forward["mlp"](forward["layer_norm"](groups))
            x = groups.unflatten(0, (windows, tokens)).transpose(1, 2)
        return self.final_layer_norm(x)


class Chronos2(Forecaster):
    """Quantiles of all variates of a window at once, with past and known covariates.

    The quantiles of ``forward`` may cross, as in the original; ``rollout`` and ``predict`` sort them.

    Args:
        context: longest history ("context_length").
        horizon: steps forecast in one pass ("max_output_patches" patches).
        config: sizes.
    """

    model_type: ClassVar[str] = "chronos2"
    config_type: ClassVar[type] = Chronos2Config

    def __init__(self, context: int, horizon: int, config: Chronos2Config = Chronos2Config()) -> None:
        super().__init__(context, horizon, config)
        self.levels = check_levels(config.levels)
        self.shared = nn.Embedding(2, config.d_model)
        self.input_patch_embedding = ResidualMLP(3 * config.patch_size, config.d_ff, config.d_model)
        self.encoder = Encoder(config)
        self.output_patch_embedding = ResidualMLP(config.d_model, config.d_ff, len(self.levels) * config.patch_size)

    @property
    def covariates(self) -> bool:
        """Covariates are further variates."""
        return True

    @staticmethod
    def scale(x_BTW: Float[Tensor, "B T W"], observed_BTW: Bool[Tensor, "B T W"]) -> Scale:
        """Mean and deviation of observed values; a constant has deviation 1e-5, an unobserved column has 0 and 1."""
        # Sums over contiguous memory round least, so that a constant column gets a deviation of 0.
        x, seen = (part.transpose(1, 2).contiguous() for part in (x_BTW, observed_BTW))
        count = seen.sum(2, keepdim=True)
        loc = torch.where(seen, x, 0.0).sum(2, keepdim=True) / count.clamp(min=1)
        square = torch.where(seen, x - loc, 0.0).square().sum(2, keepdim=True)
        scale = (square / count.clamp(min=1)).sqrt()
        scale = torch.where(count == 0, 1.0, torch.where(scale == 0, SCALE_EPS, scale))
        return Scale(loc.transpose(1, 2), scale.transpose(1, 2))

    def compress(self, x: Float[Tensor, "B T W"], scale: Scale) -> Float[Tensor, "B T W"]:
        """Values on the scale of the network."""
        scaled = (x - scale.loc) / scale.scale
        return scaled.asinh() if self.config.arcsinh else scaled

    def embed(
        self, x: Float[Tensor, "B T W"], observed: Bool[Tensor, "B T W"], start: int
    ) -> tuple[Float[Tensor, "B W N C"], Bool[Tensor, "B W N"]]:
        """Tokens of the patches of scaled columns, and which of them are not empty.

        Args:
            x: a whole number of patches.
            observed: where ``x`` holds a value.
            start: time index of the first step; the first one to forecast has 0.
        """
        size = self.config.patch_size
        values = torch.where(observed, x, 0.0).transpose(1, 2).unflatten(2, (-1, size))
        seen = observed.transpose(1, 2).unflatten(2, (-1, size))
        time = torch.arange(start, start + x.shape[1], device=x.device, dtype=x.dtype) / self.config.time_scale
        time = time.unflatten(0, (-1, size)).expand_as(values)
        return self.input_patch_embedding(torch.cat([time, values, seen.to(x.dtype)], dim=-1)), seen.any(-1)

    def tokens(self, columns: WithCovariates) -> tuple[Float[Tensor, "B W N C"], Bool[Tensor, "B W N"], Scale]:
        """All tokens after the encoder (history, register, future), which of them are not empty, and the scale."""
        size = self.config.patch_size
        past, observed = columns.past[:, -self.context :], columns.past_observed[:, -self.context :]
        scale = self.scale(past, observed)
        seen_steps = observed.any(0).any(-1)
        empty = int(seen_steps.int().argmax()) if bool(seen_steps.any()) else len(seen_steps) - 1
        past, observed = past[:, empty:], observed[:, empty:]  # steps at which no window has a value
        fill = (0, 0, -past.shape[1] % size, 0)
        past, observed = F.pad(self.compress(past, scale), fill), F.pad(observed, fill)
        history, seen = self.embed(past, observed, -past.shape[1])
        fill = (0, 0, 0, -columns.future.shape[1] % size)
        known = F.pad(columns.future_observed, fill)
        ahead, _ = self.embed(F.pad(self.compress(columns.future, scale), fill), known, 0)
        register = self.shared.weight[REGISTER].expand(*history.shape[:2], 1, -1)
        seen = F.pad(seen, (0, 1 + ahead.shape[2]), value=True)
        return self.encoder(torch.cat([history, register, ahead], dim=2), seen), seen, scale

    def compressed_quantiles(self, columns: WithCovariates) -> tuple[Float[Tensor, "B A W K"], Scale]:
        """Quantiles of the steps of ``columns.future``, on the scale of the network."""
        steps = columns.future.shape[1]
        hidden, _, scale = self.tokens(columns)
        ahead = hidden[:, :, hidden.shape[2] - math.ceil(steps / self.config.patch_size) :]
        quantiles = self.output_patch_embedding(ahead).unflatten(-1, (len(self.levels), self.config.patch_size))
        return quantiles.transpose(3, 4).flatten(2, 3).transpose(1, 2)[:, :steps], scale

    def quantiles(self, columns: WithCovariates) -> Float[Tensor, "B A W K"]:
        """Quantiles of the steps of ``columns.future`` in the units of the columns; they may cross."""
        quantiles, scale = self.compressed_quantiles(columns)
        quantiles = quantiles.sinh() if self.config.arcsinh else quantiles
        return quantiles * scale.scale[..., None] + scale.loc[..., None]

    def unroll(self, columns: WithCovariates) -> Float[Tensor, "B F W K"]:
        """Quantiles of all steps of ``columns.future``; beyond the first pass, some quantiles become histories.

        The forecasts from all of them are pooled, weighted by the probability that each represents.
        """
        steps, size = columns.future.shape[1], self.config.patch_size
        most = -(-self.horizon // size) * size
        chunks = [self.quantiles(first(columns, most))]
        weights = torch.outer(probabilities(PATHS), probabilities(self.levels)).flatten().to(columns.past)
        levels = columns.past.new_tensor(self.levels)
        past, observed = (x.repeat_interleave(len(PATHS), 0) for x in columns[:2])
        done = chunks[0].shape[1]
        while done < steps:
            last = chunks[-1].shape[1]
            known, seen = (x[:, done - last :].repeat_interleave(len(PATHS), 0) for x in first(columns, done)[2:])
            ahead = interpolate_quantiles(chunks[-1], self.levels, PATHS).movedim(-1, 1).flatten(0, 1)
            past = torch.cat([past, torch.where(seen, known, ahead)], dim=1)[:, -self.context :]
            observed = torch.cat([observed, torch.ones_like(seen)], dim=1)[:, -self.context :]
            coming = (x[:, done:].repeat_interleave(len(PATHS), 0) for x in first(columns, done + most)[2:])
            by_path = self.quantiles(WithCovariates(past, observed, *coming)).unflatten(0, (-1, len(PATHS)))
            chunks.append(weighted_quantiles(by_path.movedim(1, -2).flatten(-2), weights, levels))  # [B, U, A, W, K]
            done += chunks[-1].shape[1]
        return torch.cat(chunks, dim=1)

    def forward(self, batch: Batch) -> Float[Tensor, "B S V K"]:
        """Quantiles of the model's own horizon at its levels, in the batch's units."""
        return self.quantiles(with_covariates(batch, self.horizon))[:, :, : batch.past.shape[2]]

    def rollout(self, batch: Batch) -> Float[Tensor, "B F V K"]:
        """Quantiles of ``batch.horizon`` steps, in ascending order."""
        return self.unroll(with_covariates(batch))[:, :, : batch.past.shape[2]].sort(dim=-1).values

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """As ``loss_of``, without the rounding errors of a change of units."""
        quantiles, scale = self.compressed_quantiles(with_covariates(batch, self.horizon))
        variates = batch.past.shape[2]
        return self.pinball(quantiles[:, :, :variates], Scale(*(x[..., :variates] for x in scale)), batch)

    def loss_of(self, output: Float[Tensor, "B S V K"], batch: Batch) -> Float[Tensor, ""]:
        """Twice the pinball loss on the scale of the network: sum over levels, mean over observed steps."""
        scale = self.scale(batch.past[:, -self.context :], batch.past_observed[:, -self.context :])
        quantiles = (output - scale.loc[..., None]) / scale.scale[..., None]
        return self.pinball(quantiles.asinh() if self.config.arcsinh else quantiles, scale, batch)

    def pinball(self, quantiles: Float[Tensor, "B S V K"], scale: Scale, batch: Batch) -> Float[Tensor, ""]:
        """The loss of quantiles on the scale of the network.

        Raises:
            InputError: the batch holds no future, or a longer one than the model's horizon.
        """
        if batch.future is None or batch.future_observed is None or batch.future.shape[1] > self.horizon:
            length = "none" if batch.future is None else f"{batch.future.shape[1]} steps"
            raise InputError(f"expected a future of at most {self.horizon} steps in the batch, found {length}")
        target = self.compress(batch.future, scale)
        loss = 2 * pinball_loss(quantiles[:, : target.shape[1]], target, self.levels).sum(-1)
        seen = batch.future_observed
        return torch.where(seen, loss, 0.0).sum() / seen.sum().clamp(min=1)


def first(columns: WithCovariates, steps: int) -> WithCovariates:
    """The columns with only the first steps of their future."""
    return columns._replace(future=columns.future[:, :steps], future_observed=columns.future_observed[:, :steps])


def probabilities(levels: tuple[float, ...]) -> Float[Tensor, " K"]:
    """The probability that each level represents: half of the distance between its neighbours; normalised to sum 1."""
    borders = torch.tensor([0.0, *levels, 1.0])
    widths = (borders[2:] - borders[:-2]) / 2
    return widths / widths.sum()


def from_reference(config: dict[str, Any], state: dict[str, Tensor]) -> Chronos2:
    """A model with the weights of a published Chronos-2, loaded strictly.

    Args:
        config: its ``config.json``.
        state: its state dict.

    Raises:
        InputError: not a Chronos-2, an unpublished variant, or keys and shapes that do not fit.
    """
    try:
        own = config["chronos_config"]
        size = own["input_patch_size"]
        variant = {"use_reg_token": own["use_reg_token"], "feed_forward_proj": config["feed_forward_proj"]}
        variant |= {"strides": own["input_patch_stride"] == size == own["output_patch_size"]}
        sizes = Chronos2Config(
            d_model=config["d_model"],
            d_ff=config["d_ff"],
            d_kv=config["d_kv"],
            heads=config["num_heads"],
            layers=config["num_layers"],
            patch_size=size,
            time_scale=own.get("time_encoding_scale") or own["context_length"],
            rope_theta=float(config.get("rope_theta", 10_000.0)),
            arcsinh=own["use_arcsinh"],
            levels=tuple(own["quantiles"]),
        )
        model = Chronos2(own["context_length"], own["max_output_patches"] * size, sizes)
    except KeyError as error:
        raise InputError(f"expected the config.json of a Chronos-2, found no key {error}") from error
    if variant != {"use_reg_token": True, "feed_forward_proj": "relu", "strides": True}:
        raise InputError(f"expected a Chronos-2 with register token, ReLU and separate patches, found {variant}")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"expected the state dict of a Chronos-2: {reason_of(error, 300)}") from error
    return model
