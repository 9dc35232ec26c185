"""Chronos-Bolt: a T5 encoder over patches and one decoder token that gives all quantiles of the horizon at once
(Ansari et al., "Chronos: Learning the Language of Time Series", TMLR 2024, and chronos-forecasting).

Module names are those of the published weights. Variates are forecast one at a time.

Shapes: R series, T context, N patches and the register token, M keys, H heads, C channels, P steps of a patch,
S the model's own horizon, F requested horizon, K levels, V variates.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from tsfm.models.base import Forecaster
from tsfm.nn import (
    DEFAULT_LEVELS,
    NORM_EPS,
    ResidualMLP,
    RMSNorm,
    T5Attention,
    T5FeedForward,
    check_levels,
    mean_pinball_loss,
    pooled_quantiles,
    t5_block,
)
from tsfm_data.errors import InputError, check_model_sizes, reason_of
from tsfm_data.windows import Batch

SCALE_EPS = 1e-5
START, REGISTER = 0, 1  # rows of the table of learnt tokens


@dataclass(frozen=True)
class ChronosBoltConfig:
    """Sizes of a Chronos-Bolt.

    Attributes:
        d_model: channels of a token.
        d_ff: channels inside the feed-forward parts.
        d_kv: channels of an attention head.
        heads: attention heads.
        layers: encoder blocks.
        decoder_layers: decoder blocks.
        patch_size: steps of a token.
        buckets: number of buckets of relative positions in the attention bias.
        max_distance: distance in patches from which on all positions are in one bucket.
        levels: trained quantile levels.
    """

    d_model: int = 256
    d_ff: int = 1024
    d_kv: int = 64
    heads: int = 4
    layers: int = 4
    decoder_layers: int = 4
    patch_size: int = 16
    buckets: int = 32
    max_distance: int = 128
    levels: tuple[float, ...] = DEFAULT_LEVELS

    def __post_init__(self) -> None:
        check_model_sizes(self, "d_model", "d_ff", "d_kv", "heads", "layers", "decoder_layers", "patch_size")
        if self.buckets < 4 or self.buckets % 4 or self.max_distance <= self.buckets // 2:
            raise InputError(
                f"expected buckets a multiple of 4 and max_distance above half of it, found {self.buckets} and "
                f"{self.max_distance}: change them in the config"
            )
        check_levels(self.levels)

    @classmethod
    def tiny(cls) -> "ChronosBoltConfig":
        """Sizes for tests and first tries."""
        return cls(d_model=16, d_ff=16, d_kv=8, heads=2, layers=1, decoder_layers=1, patch_size=8)


def bucket(distance: Int[Tensor, "N M"], buckets: int, max_distance: int, both_ways: bool) -> Int[Tensor, "N M"]:
    """T5's buckets of relative positions (key minus query): one each for near ones, logarithmic for far ones.

    Args:
        distance: in tokens.
        buckets: number of buckets.
        max_distance: distance from which on all are in one bucket.
        both_ways: half of the buckets are for keys after the query; otherwise these count as distance 0.
    """
    offset = torch.zeros_like(distance)
    if both_ways:
        buckets //= 2
        offset = (distance > 0) * buckets
        distance = distance.abs()
    else:
        distance = (-distance).clamp(min=0)
    near = buckets // 2
    ratio = (distance.clamp(min=1) / near).log() / math.log(max_distance / near)
    far = (near + (ratio * (buckets - near)).long()).clamp(max=buckets - 1)
    return offset + torch.where(distance < near, distance, far)


class T5Stack(nn.Module):
    """Pre-norm blocks of self-attention, cross-attention (decoder only) and feed-forward; then a norm.

    Args:
        config: sizes.
        layers: number of blocks.
        is_decoder: whether blocks have cross-attention, and relative positions are causal.
    """

    def __init__(self, config: ChronosBoltConfig, layers: int, is_decoder: bool) -> None:
        super().__init__()
        self.is_decoder = is_decoder
        self.bucket_sizes = config.buckets, config.max_distance
        self.names = ["SelfAttention", *(["EncDecAttention"] if is_decoder else []), "DenseReluDense"]
        self.block = nn.ModuleList()
        for number in range(layers):
            parts: list[nn.Module] = [
                T5Attention(config.d_model, config.heads, config.d_kv) for _ in range(1 + is_decoder)
            ]
            if number == 0:  # all blocks use the position bias of the first
                parts[0].relative_attention_bias = nn.Embedding(config.buckets, config.heads)
            parts.append(T5FeedForward(config.d_model, config.d_ff))
            self.block.append(t5_block(config.d_model, self.names, parts))
        self.final_layer_norm = RMSNorm(config.d_model, eps=NORM_EPS)

    def position_bias(self, tokens: int, device: torch.device) -> Float[Tensor, "1 H N N"]:
        """Bias on the scores of the self-attention by relative position."""
        position = torch.arange(tokens, device=device)
        buckets = bucket(position - position[:, None], *self.bucket_sizes, both_ways=not self.is_decoder)
        table = self.block[0]["layer"][0]["SelfAttention"].relative_attention_bias  # type: ignore[index, union-attr]
        return table(buckets).movedim(-1, 0).unsqueeze(0)  # type: ignore[operator]

    def forward(
        self,
        x_RNC: Float[Tensor, "R N C"],
        seen_RM: Bool[Tensor, "R M"],
        source_RMC: Float[Tensor, "R M C"] | None = None,
    ) -> Float[Tensor, "R N C"]:
        """The tokens after all blocks.

        Args:
            x_RNC: tokens; a decoder takes one, which sees itself.
            seen_RM: which tokens of the encoder are not masked.
            source_RMC: the encoder's output, for a decoder.
        """
        hidden = torch.zeros_like(seen_RM, dtype=x_RNC.dtype).masked_fill(~seen_RM, -math.inf)[:, None, None]
        bias = self.position_bias(x_RNC.shape[1], x_RNC.device)
        biases = {"SelfAttention": bias if self.is_decoder else bias + hidden, "EncDecAttention": hidden}
        for block in self.block:
            for name, layer in zip(self.names, block["layer"], strict=True):  # type: ignore[index, call-overload]
                normed = layer["layer_norm"](x_RNC)
                if name == "DenseReluDense":
                    x_RNC = x_RNC + layer[name](normed)
                    continue
                source = source_RMC if name == "EncDecAttention" else normed
                x_RNC = x_RNC + layer[name](normed, source, biases[name])
        return self.final_layer_norm(x_RNC)


class ChronosBolt(Forecaster):
    """Direct quantile forecasts of one series at a time.

    The quantiles of ``forward`` may cross, as in the original; ``rollout`` and ``predict`` sort them.

    Args:
        context: longest history ("context_length").
        horizon: steps forecast in one pass ("prediction_length").
        config: sizes.
    """

    model_type: ClassVar[str] = "chronos-bolt"
    config_type: ClassVar[type] = ChronosBoltConfig

    def __init__(self, context: int, horizon: int, config: ChronosBoltConfig = ChronosBoltConfig()) -> None:
        super().__init__(context, horizon, config)
        self.levels = check_levels(config.levels)
        self.shared = nn.Embedding(2, config.d_model)
        self.input_patch_embedding = ResidualMLP(2 * config.patch_size, config.d_ff, config.d_model)
        self.encoder = T5Stack(config, config.layers, is_decoder=False)
        self.decoder = T5Stack(config, config.decoder_layers, is_decoder=True)
        self.output_patch_embedding = ResidualMLP(config.d_model, config.d_ff, horizon * len(self.levels))

    @property
    def joint(self) -> bool:
        """Variates are forecast one at a time."""
        return False

    @staticmethod
    def scale(
        x_RT: Float[Tensor, "R T"], observed_RT: Bool[Tensor, "R T"]
    ) -> tuple[Float[Tensor, "R 1"], Float[Tensor, "R 1"]]:
        """Mean and deviation of observed values; a constant has deviation 1e-5, an unobserved series has 0 and 1."""
        count = observed_RT.sum(1, keepdim=True)
        loc = torch.where(observed_RT, x_RT, 0.0).sum(1, keepdim=True) / count.clamp(min=1)
        square = torch.where(observed_RT, x_RT - loc, 0.0).square().sum(1, keepdim=True)
        scale = (square / count.clamp(min=1)).sqrt()
        return loc, torch.where(count == 0, 1.0, torch.where(scale == 0, SCALE_EPS, scale))

    def embed(
        self, x_RT: Float[Tensor, "R T"], observed_RT: Bool[Tensor, "R T"]
    ) -> tuple[Float[Tensor, "R N C"], Bool[Tensor, "R N"]]:
        """Tokens of the patches of a scaled series and the register token; and which of them are not empty."""
        missing = -x_RT.shape[1] % self.config.patch_size
        values, seen = (F.pad(x, (missing, 0)).unflatten(1, (-1, self.config.patch_size)) for x in (x_RT, observed_RT))
        values = torch.where(seen, values, 0.0)
        x_RNC = self.input_patch_embedding(torch.cat([values, seen.to(values.dtype)], dim=-1))
        register = self.shared.weight[REGISTER].expand(len(x_RNC), 1, -1)
        return torch.cat([x_RNC, register], dim=1), F.pad(seen.any(-1), (0, 1), value=True)

    def scaled_quantiles(self, x_RT: Float[Tensor, "R T"], observed_RT: Bool[Tensor, "R T"]) -> "Scaled":
        """Quantiles of the next S steps on the scale of the network."""
        x_RT, observed_RT = x_RT[:, -self.context :], observed_RT[:, -self.context :]
        loc, scale = self.scale(x_RT, observed_RT)
        tokens, seen = self.embed((x_RT - loc) / scale, observed_RT)
        start = self.shared.weight[START].expand(len(tokens), 1, -1)
        decoded = self.decoder(start, seen, self.encoder(tokens, seen))
        quantiles = self.output_patch_embedding(decoded).unflatten(-1, (len(self.levels), self.horizon))
        return Scaled(quantiles.squeeze(1).transpose(1, 2), loc, scale)

    def quantiles(self, x_RT: Float[Tensor, "R T"], observed_RT: Bool[Tensor, "R T"]) -> Float[Tensor, "R S K"]:
        """Quantiles of the next S steps in the units of ``x_RT``; they may cross."""
        quantiles, loc, scale = self.scaled_quantiles(x_RT, observed_RT)
        return quantiles * scale[..., None] + loc[..., None]

    def unroll(
        self, x_RT: Float[Tensor, "R T"], observed_RT: Bool[Tensor, "R T"], horizon: int
    ) -> Float[Tensor, "R F K"]:
        """Quantiles of any horizon: each quantile becomes a history, and the forecasts from all of them are pooled."""
        count, levels = len(self.levels), x_RT.new_tensor(self.levels)
        chunks = [self.quantiles(x_RT, observed_RT)]
        paths, seen = (x[:, None].expand(-1, count, -1) for x in (x_RT, observed_RT))
        for _ in range(1, -(-horizon // self.horizon)):
            paths = torch.cat([paths, chunks[-1].transpose(1, 2)], dim=-1)[..., -self.context :]
            seen = F.pad(seen, (0, self.horizon), value=True)[..., -self.context :]
            by_path = self.quantiles(paths.flatten(0, 1), seen.flatten(0, 1)).unflatten(0, (-1, count))
            chunks.append(pooled_quantiles(by_path.transpose(1, 2).flatten(2), levels))
        return torch.cat(chunks, dim=1)[:, :horizon]

    def forward(self, batch: Batch) -> Float[Tensor, "B S V K"]:
        """Quantiles of the model's own horizon at its levels, in the batch's units."""
        quantiles = self.quantiles(*by_series(batch.past, batch.past_observed))
        return quantiles.unflatten(0, (-1, batch.past.shape[2])).transpose(1, 2)

    def rollout(self, batch: Batch) -> Float[Tensor, "B F V K"]:
        """Quantiles of ``batch.horizon`` steps, in ascending order."""
        quantiles = self.unroll(*by_series(batch.past, batch.past_observed), batch.horizon).sort(dim=-1).values
        return quantiles.unflatten(0, (-1, batch.past.shape[2])).transpose(1, 2)

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """As ``loss_of``, without the rounding errors of a change of units."""
        return self.pinball(self.scaled_quantiles(*by_series(batch.past, batch.past_observed)), batch)

    def loss_of(self, output: Float[Tensor, "B S V K"], batch: Batch) -> Float[Tensor, ""]:
        """Twice the pinball loss on the scale of each window: mean over levels and series, sum over steps."""
        loc, scale = self.scale(*(x[:, -self.context :] for x in by_series(batch.past, batch.past_observed)))
        quantiles = output.transpose(1, 2).flatten(0, 1)
        return self.pinball(Scaled((quantiles - loc[..., None]) / scale[..., None], loc, scale), batch)

    def pinball(self, scaled: "Scaled", batch: Batch) -> Float[Tensor, ""]:
        """The loss of scaled quantiles.

        Raises:
            InputError: the batch holds no future, or a longer one than the model's horizon.
        """
        if batch.future is None or batch.future_observed is None or batch.future.shape[1] > self.horizon:
            length = "none" if batch.future is None else f"{batch.future.shape[1]} steps"
            raise InputError(f"expected a future of at most {self.horizon} steps in the batch, found {length}")
        future, observed = by_series(batch.future, batch.future_observed)
        target = (future - scaled.loc) / scaled.scale
        loss = mean_pinball_loss(scaled.quantiles[:, : target.shape[1]], target, self.levels)
        return torch.where(observed, loss, 0.0).sum(1).mean()


class Scaled(NamedTuple):
    """Quantiles on the scale of each series, with this scale."""

    quantiles: Float[Tensor, "R S K"]
    loc: Float[Tensor, "R 1"]
    scale: Float[Tensor, "R 1"]


def by_series(
    values_BTV: Float[Tensor, "B T V"], observed_BTV: Bool[Tensor, "B T V"]
) -> tuple[Float[Tensor, "R T"], Bool[Tensor, "R T"]]:
    """Every window and variate as a series of its own."""
    return values_BTV.transpose(1, 2).flatten(0, 1), observed_BTV.transpose(1, 2).flatten(0, 1)


def from_reference(config: dict[str, Any], state: dict[str, Tensor]) -> ChronosBolt:
    """A model with the weights of a published Chronos-Bolt, loaded strictly.

    Args:
        config: its ``config.json``.
        state: its state dict, with or without the embeddings tied to ``shared.weight``.

    Raises:
        InputError: not a Chronos-Bolt, an unpublished variant, or keys and shapes that do not fit.
    """
    try:
        own = config["chronos_config"]
        variant = {"use_reg_token": own["use_reg_token"], "feed_forward_proj": config["feed_forward_proj"]}
        sizes = ChronosBoltConfig(
            d_model=config["d_model"],
            d_ff=config["d_ff"],
            d_kv=config["d_kv"],
            heads=config["num_heads"],
            layers=config["num_layers"],
            decoder_layers=config["num_decoder_layers"],
            patch_size=own["input_patch_size"],
            buckets=config["relative_attention_num_buckets"],
            max_distance=config["relative_attention_max_distance"],
            levels=tuple(own["quantiles"]),
        )
        model = ChronosBolt(own["context_length"], own["prediction_length"], sizes)
    except KeyError as error:
        raise InputError(f"expected the config.json of a Chronos-Bolt, found no key {error}") from error
    if variant != {"use_reg_token": True, "feed_forward_proj": "relu"} or own["input_patch_stride"] != sizes.patch_size:
        raise InputError(f"expected a Chronos-Bolt with register token, ReLU and separate patches, found {variant}")
    tied = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    try:
        model.load_state_dict({key: value for key, value in state.items() if key not in tied})
    except RuntimeError as error:
        raise InputError(f"expected the state dict of a Chronos-Bolt: {reason_of(error, 300)}") from error
    return model
