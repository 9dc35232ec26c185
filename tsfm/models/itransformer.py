"""iTransformer: one token per variate (Liu et al., "iTransformer: Inverted Transformers Are Effective for Time Series
Forecasting", ICLR 2024).

Shapes: B batch, T context, S horizon, V variates, M calendar features, N = V + M tokens, C channels, K levels.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tsfm.attention import Dropout
from tsfm.models.base import Forecaster
from tsfm.nn import (
    Activation,
    ConformalIntervals,
    PointHead,
    PostNormBlock,
    QuantileHead,
    WindowScale,
    check_levels,
    window_scale,
)
from tsfm_data.errors import InputError, check_model_sizes
from tsfm_data.windows import Batch


@dataclass(frozen=True)
class ITransformerConfig:
    """Sizes of an iTransformer.

    Attributes:
        d_model: channels of a token.
        d_ff: channels inside the feed-forward part.
        layers: Transformer blocks.
        heads: attention heads; must divide ``d_model``.
        dropout: probability of dropping a value in training (tokens, attention weights, feed-forward).
        activation: of the feed-forward part, "gelu" or "relu".
        window_norm: normalise each variate by the mean and standard deviation of its own window ("use_norm").
        levels: quantile levels to train with the pinball loss; empty for a point forecast trained on MSE.
    """

    d_model: int = 512
    d_ff: int = 512
    layers: int = 2
    heads: int = 8
    dropout: float = 0.1
    activation: Activation = "gelu"
    window_norm: bool = True
    levels: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_model_sizes(self, "d_model", "d_ff", "layers", "heads")
        if not 0 <= self.dropout < 1:
            raise InputError(f"expected dropout in [0, 1), found {self.dropout}: change it in the config")
        if self.levels:
            check_levels(self.levels)

    @classmethod
    def tiny(cls) -> "ITransformerConfig":
        """Sizes for tests and first tries."""
        return cls(d_model=16, d_ff=16, heads=2)


class ITransformer(Forecaster):
    """Attention across variates, each a token of its whole window; calendar features are tokens, too.

    Args:
        context: steps of history, T ("seq_len").
        horizon: steps to forecast, S ("pred_len").
        config: sizes.
    """

    model_type: ClassVar[str] = "itransformer"
    config_type: ClassVar[type] = ITransformerConfig

    def __init__(self, context: int, horizon: int, config: ITransformerConfig = ITransformerConfig()) -> None:
        super().__init__(context, horizon, config)
        width = config.d_model
        self.embedding = nn.Linear(context, width)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            PostNormBlock(width, config.heads, config.d_ff, config.activation, config.dropout)
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head: PointHead | QuantileHead
        if config.levels:
            self.head = QuantileHead(width, horizon, config.levels)
        else:
            self.head = PointHead(width, horizon)
            self.conformal = ConformalIntervals(horizon)
        self.levels = self.head.levels

    def embed(self, batch: Batch) -> tuple[Float[Tensor, "B N C"], WindowScale | None]:
        """Tokens of the variates and, after them, of the calendar features; the scale to undo, if there is one."""
        scale = window_scale(batch.past, batch.past_observed) if self.config.window_norm else None
        past_BTV = scale.normalise(batch.past, batch.past_observed) if scale else batch.past
        tokens_BNT = past_BTV.transpose(1, 2)
        if batch.past_marks is not None:
            tokens_BNT = torch.cat([tokens_BNT, batch.past_marks.transpose(1, 2)], dim=1)
        return self.dropout(self.embedding(tokens_BNT)), scale

    def encode(self, x_BNC: Float[Tensor, "B N C"], variates: int) -> Float[Tensor, "B V C"]:
        """The variates' tokens after all blocks and the final norm; the last block leaves out the calendar tokens."""
        *blocks, last = self.blocks
        for block in blocks:
            x_BNC = block(x_BNC)
        return self.norm(last(x_BNC, first=variates))

    def forward(self, batch: Batch) -> Float[Tensor, "B S V K"]:
        """Forecasts of the model's own horizon at its trained levels, in the batch's units."""
        x_BNC, scale = self.embed(batch)
        output_BSVK = self.head(self.encode(x_BNC, batch.past.shape[2]))
        if scale is None:
            return output_BSVK
        return output_BSVK * scale.scale.unsqueeze(-1) + scale.loc.unsqueeze(-1)

    def loss_of(self, output: Float[Tensor, "B S V K"], batch: Batch) -> Float[Tensor, ""]:
        """MSE of the point forecast, or pinball loss of the quantiles, over the observed future values.

        Raises:
            InputError: the batch holds no future of the model's horizon.
        """
        if batch.future is None or batch.future_observed is None or batch.future.shape[1] != self.horizon:
            length = "none" if batch.future is None else f"{batch.future.shape[1]} steps"
            raise InputError(f"expected a future of {self.horizon} steps in the batch, found {length}")
        return self.head.loss(output, batch.future, batch.future_observed)

    def standardise(self, batch: Batch) -> tuple[Batch, WindowScale]:
        """As for every forecaster; without window normalisation, by the mean and deviation of the training rows.

        Raises:
            InputError: such a model is given another number of variates than it was trained on.
        """
        if self.config.window_norm or self.training_data is None:
            return super().standardise(batch)
        mean, std = (batch.past.new_tensor(x).double() for x in (self.training_data.mean, self.training_data.std))
        if len(mean) != batch.past.shape[2]:
            raise InputError(
                f"expected the {len(mean)} variates that this model was trained on without window normalisation "
                f"({', '.join(self.training_data.variates[:5])}, ...), found {batch.past.shape[2]}: "
                "give those columns, or train with window_norm: true"
            )
        scale = WindowScale(mean.view(1, 1, -1), std.view(1, 1, -1))
        past = scale.normalise(batch.past.double(), batch.past_observed)
        return replace(batch, past=past).to(self.embedding.weight.dtype), scale

    def on_training_scale(self, batch: Batch) -> tuple[Batch, WindowScale]:
        """As for every forecaster; without window normalisation, the batch is on the right scale already."""
        if self.config.window_norm:
            return super().on_training_scale(batch)
        unit = batch.past.new_ones((1, 1, 1), dtype=torch.float64)
        return batch.to(self.embedding.weight.dtype), WindowScale(0 * unit, unit)


def from_reference_state(
    state: dict[str, Tensor], *, heads: int = 8, activation: Activation = "gelu", window_norm: bool = True
) -> ITransformer:
    """An ``ITransformer`` with the weights of the original code or of the Time-Series-Library.

    Sizes are read from the shapes. Heads, activation and window normalisation are not part of a state dict, so they are
    arguments, with the defaults of the published scripts.

    Args:
        state: ``Model.state_dict()``; a prefix ``module.`` is removed. The output layer is called ``projector`` in
            the original and ``projection`` in the Time-Series-Library.
        heads: attention heads.
        activation: of the feed-forward part.
        window_norm: "use_norm".

    Raises:
        InputError: a key is missing or left over.
    """
    state = {key.removeprefix("module."): value for key, value in state.items()}
    prefix = "encoder.attn_layers."
    count = len({key.split(".")[2] for key in state if key.startswith(prefix)})
    names: dict[str, list[str]] = {"embedding": ["enc_embedding.value_embedding"], "norm": ["encoder.norm"]}
    names["head"] = ["projector" if "projector.weight" in state else "projection"]
    for k in range(count):
        own, original = f"blocks.{k}.", f"{prefix}{k}."
        names[own + "attention.qkv"] = [f"{original}attention.{part}_projection" for part in ("query", "key", "value")]
        names[own + "attention.out"] = [original + "attention.out_projection"]
        names[own + "feed_forward.up"] = [original + "conv1"]
        names[own + "feed_forward.down"] = [original + "conv2"]
        names[own + "norm1"] = [original + "norm1"]
        names[own + "norm2"] = [original + "norm2"]
    expected = {f"{part}.{kind}" for parts in names.values() for part in parts for kind in ("weight", "bias")}
    wrong = sorted(expected ^ state.keys())
    if wrong:
        raise InputError(
            f"expected the keys of an iTransformer state dict, {len(wrong)} differ, the first {wrong[0]!r}"
        )
    converted = {}
    for own, parts in names.items():
        weight = torch.cat([state[f"{part}.weight"] for part in parts])
        converted[f"{own}.weight"] = weight.squeeze(-1) if weight.ndim == 3 else weight  # 1x1 convolutions
        converted[f"{own}.bias"] = torch.cat([state[f"{part}.bias"] for part in parts])
    width, context = converted["embedding.weight"].shape
    config = ITransformerConfig(
        d_model=width,
        d_ff=converted["blocks.0.feed_forward.up.weight"].shape[0],
        layers=count,
        heads=heads,
        activation=activation,
        window_norm=window_norm,
    )
    model = ITransformer(context, converted["head.weight"].shape[0], config)
    model.load_state_dict({**model.state_dict(), **converted})
    return model
