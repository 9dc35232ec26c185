"""Moirai 2: a decoder over the patches of all variates that gives quantiles of the next patches (uni2ts).

Shapes: B rows, N tokens, P steps of a patch, J patches predicted at once, C channels, V variates, K levels,
S steps of J patches, F requested horizon.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from tsfm.attention import Mask
from tsfm.models.base import Forecaster
from tsfm.models.packing import Packed, append_future, pack_window, scaled_quantile_loss
from tsfm.nn import DEFAULT_LEVELS, ResidualMLP, Stack, check_levels, pooled_quantiles
from tsfm_data.errors import InputError, check_model_sizes, reason_of
from tsfm_data.windows import Batch

MAX_SCORES = 2**24  # attention scores per batch of forecasts


@dataclass(frozen=True)
class Moirai2Config:
    """Sizes of a Moirai 2; the defaults are those of the published small one.

    Attributes:
        d_model: channels of a token.
        d_ff: channels inside the feed-forward parts.
        layers: Transformer blocks.
        heads: attention heads; ``d_model / heads`` must be a multiple of 4.
        patch_size: steps of a token.
        predict_tokens: patches predicted at once.
        levels: trained quantile levels.
    """

    d_model: int = 384
    d_ff: int = 1024
    layers: int = 6
    heads: int = 6
    patch_size: int = 16
    predict_tokens: int = 4
    levels: tuple[float, ...] = DEFAULT_LEVELS

    def __post_init__(self) -> None:
        check_model_sizes(self, "d_model", "d_ff", "layers", "heads", "patch_size", "predict_tokens")
        check_levels(self.levels)

    @classmethod
    def tiny(cls) -> "Moirai2Config":
        """Sizes for tests and first tries."""
        return cls(d_model=16, d_ff=16, layers=1, heads=2, patch_size=4, predict_tokens=1)


class Moirai2(Forecaster):
    """Attention over all variates, causal in time.

    The quantiles of ``forward`` may cross, as in the original; ``rollout`` and ``predict`` sort them.

    Args:
        context: steps of history.
        horizon: steps of ``forward``; beyond ``predict_tokens`` patches, every quantile becomes a history.
        config: sizes.
    """

    model_type: ClassVar[str] = "moirai2"
    config_type: ClassVar[type] = Moirai2Config

    def __init__(self, context: int, horizon: int, config: Moirai2Config = Moirai2Config()) -> None:
        super().__init__(context, horizon, config)
        self.levels = check_levels(config.levels)
        width, patch = config.d_model, config.patch_size
        self.in_proj = ResidualMLP(2 * patch, width, width, F.silu)
        self.encoder = Stack(width, config.layers, config.heads, any_variate=True, hidden=config.d_ff)
        self.out_proj = ResidualMLP(width, width, config.predict_tokens * len(self.levels) * patch, F.silu)

    def embed(
        self, packed: Packed, loc: Float[Tensor, "B N 1"], scale: Float[Tensor, "B N 1"]
    ) -> Float[Tensor, "B N C"]:
        """Tokens of the scaled patches and their masks."""
        return self.in_proj(torch.cat([(packed.target - loc) / scale, packed.observed.to(loc.dtype)], dim=-1))

    def represent(
        self, packed: Packed, loc: Float[Tensor, "B N 1"], scale: Float[Tensor, "B N 1"]
    ) -> Float[Tensor, "B N C"]:
        """The tokens after the Transformer; a token sees all variates of its sample up to its own time."""
        later = packed.time_id[:, None, None, :] > packed.time_id[:, None, :, None]
        bias = torch.zeros_like(later, dtype=loc.dtype).masked_fill(later, -math.inf)
        mask = Mask(segment_ids=packed.sample_id, bias=bias)
        return self.encoder(self.embed(packed, loc, scale), mask, packed.time_id, packed.variate_id)

    def next_quantiles(self, packed: Packed) -> Float[Tensor, "B N K S"]:
        """Quantiles of the J patches after every token, in the units of the data."""
        loc, scale = packed.scale()
        output = self.out_proj(self.represent(packed, loc, scale))
        sizes = (self.config.predict_tokens, len(self.levels), self.config.patch_size)
        steps = output.unflatten(-1, sizes).transpose(2, 3).flatten(3)
        return steps * scale[..., None] + loc[..., None]

    def pack(self, batch: Batch) -> Packed:
        """One row per window with all of its variates; patches before the first observed step are padding."""
        before = batch.past_observed.any(-1).cumsum(1) == 0
        return pack_window(batch.past, batch.past_observed, before, self.config.patch_size)

    def unroll(self, packed: Packed, horizon: int, variates: int) -> Float[Tensor, "B F V K"]:
        """Quantiles of any horizon: each quantile becomes a history, and the forecasts from all of them are pooled.

        A history grows to twice the window; then its oldest patches are dropped, which bounds the memory.

        Args:
            packed: windows of ``variates`` variates, from ``pack``.
            horizon: steps to forecast.
            variates: variates per row.
        """
        count, levels = len(self.levels), packed.target.new_tensor(self.levels)
        tokens, step = packed.target.shape[1] // variates, self.config.predict_tokens
        longest = max(2 * tokens, tokens + step)
        chunks = [self.next_quantiles(packed)[:, tokens - 1 :: tokens]]  # [B, V, K, S]
        rows = replace(packed, **{name: x.repeat_interleave(count, 0) for name, x in tensors(packed)})
        position = torch.arange(tokens, device=packed.target.device).repeat(variates)  # of every token in time
        missing = horizon - chunks[0].shape[3]
        while missing > 0:
            paths = chunks[-1].permute(0, 2, 3, 1).flatten(0, 1)  # [B K, S, V]
            rows = append_future(rows, paths, torch.ones_like(paths, dtype=torch.bool), self.config.patch_size)
            rows = replace(rows, is_predicted=torch.zeros_like(rows.is_predicted))  # the scaler sees them as history
            ahead = torch.arange(tokens, tokens + step, device=position.device).repeat(variates)
            position, tokens = torch.cat([position, ahead]), tokens + step
            recent = position >= tokens - longest
            if tokens > longest:
                position, rows = position[recent], replace(rows, **{name: x[:, recent] for name, x in tensors(rows)})
            by_path = self.next_quantiles(rows)[:, -variates * step :][:, step - 1 :: step]
            pooled = by_path.unflatten(0, (-1, count)).movedim(1, 2).flatten(2, 3)  # [B, V, K K, S]
            chunks.append(pooled_quantiles(pooled.movedim(2, -1), levels).movedim(-1, 2))
            missing -= chunks[-1].shape[3]
        return torch.cat(chunks, dim=3)[..., :horizon].permute(0, 3, 1, 2)

    def forward(self, batch: Batch) -> Float[Tensor, "B _ V K"]:
        """Quantiles of the model's own horizon at its levels, in the batch's units."""
        return self.unroll(self.pack(batch), self.horizon, batch.past.shape[2])

    def rollout(self, batch: Batch) -> Float[Tensor, "B F V K"]:
        """Quantiles of ``batch.horizon`` steps, in ascending order."""
        packed, variates = self.pack(batch), batch.past.shape[2]
        paths = 1 if batch.horizon <= self.config.predict_tokens * self.config.patch_size else len(self.levels)
        size = max(1, MAX_SCORES // (paths * (2 * packed.target.shape[1]) ** 2))
        parts = [
            replace(packed, **{name: x[i : i + size] for name, x in tensors(packed)})
            for i in range(0, len(batch), size)
        ]
        return torch.cat([self.unroll(part, batch.horizon, variates) for part in parts]).sort(dim=-1).values

    def loss_of(self, output: Float[Tensor, "B _ V K"], batch: Batch) -> Float[Tensor, ""]:
        """Twice the mean pinball loss on the scale of each window."""
        return scaled_quantile_loss(output, batch, self.levels)


def tensors(packed: Packed) -> list[tuple[str, Tensor]]:
    """The tensors of packed rows, by name."""
    names = ("target", "observed", "sample_id", "time_id", "variate_id", "is_predicted")
    return [(name, getattr(packed, name)) for name in names]


def from_reference(config: dict[str, Any], state: dict[str, Tensor], context: int, horizon: int) -> Moirai2:
    """A model with the weights of a published Moirai 2, loaded strictly.

    Args:
        config: its ``config.json``.
        state: its state dict.
        context: steps of history to use.
        horizon: steps of ``forward``.

    Raises:
        InputError: keys and shapes that do not fit.
    """
    try:
        sizes = Moirai2Config(
            d_model=config["d_model"],
            d_ff=config["d_ff"],
            layers=config["num_layers"],
            heads=config["d_model"] // state["encoder.layers.0.self_attn.q_norm.weight"].shape[0],
            patch_size=config["patch_size"],
            predict_tokens=config["num_predict_token"],
            levels=tuple(config["quantile_levels"]),
        )
    except KeyError as error:
        raise InputError(f"expected the config.json and weights of a Moirai 2, found no key {error}") from error
    model = Moirai2(context, horizon, sizes)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"expected the state dict of a Moirai 2: {reason_of(error, 300)}") from error
    return model
