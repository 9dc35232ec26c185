"""What the scaling-law encoder and decoder share: sizes, Transformer, mixture head, packed rows
(Yao et al., "Towards Neural Scaling Laws for Time Series Foundation Models", ICLR 2025).

Shapes: B rows, N tokens, P steps of a patch, C channels, T context, S horizon, V variates, K levels or components.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tsfm.attention import Mask
from tsfm.models.base import Forecaster
from tsfm.models.packing import Packed, append_future, known_future, pack_window
from tsfm.nn import DEFAULT_LEVELS, Distribution, Mixture, Stack, StudentT, check_levels, masked_mean, mean_pinball_loss
from tsfm_data.corpus import PackedRows
from tsfm_data.errors import InputError, check_model_sizes, reason_of, unknown_name
from tsfm_data.windows import Batch

COMPONENTS = 4
# Default levels of ``forward``: with these, the tails are the mixture's own and not interpolated ones.
MIXTURE_LEVELS = (0.01, 0.05, *DEFAULT_LEVELS, 0.95, 0.99)


@dataclass(frozen=True)
class TrunkConfig:
    """Sizes of an encoder or decoder.

    Attributes:
        d_model: channels of a token.
        layers: Transformer blocks.
        heads: attention heads; ``d_model / heads`` must be a multiple of 4.
        patch_size: steps of a token.
        scaling: whether every series is normalised by its history.
        levels: quantile levels of ``forward``; others are interpolated.
    """

    d_model: int = 64
    layers: int = 2
    heads: int = 1
    patch_size: int = 32
    scaling: bool = True
    levels: tuple[float, ...] = MIXTURE_LEVELS

    def __post_init__(self) -> None:
        check_model_sizes(self, "d_model", "layers", "heads", "patch_size")
        check_levels(self.levels)

    @classmethod
    def tiny(cls) -> "TrunkConfig":
        """Sizes for tests and first tries."""
        return cls(d_model=16, patch_size=4)


# The published sizes; the name is about the number of parameters of the Transformer.
SIZES = {
    "1K": TrunkConfig(8, 1, 1),
    "10K": TrunkConfig(24, 2, 1),
    "100K": TrunkConfig(64, 2, 1),
    "300K": TrunkConfig(64, 6, 1),
    "1M": TrunkConfig(192, 4, 3),
    "3M": TrunkConfig(256, 6, 4),
    "10M": TrunkConfig(384, 8, 6),
    "30M": TrunkConfig(512, 12, 8),
    "100M": TrunkConfig(768, 18, 12),
    "300M": TrunkConfig(1024, 24, 16),
    "1B": TrunkConfig(1536, 36, 24),
}
# The largest decoder has four blocks fewer.
DECODER_SIZES = {**SIZES, "1B": TrunkConfig(1536, 32, 24)}
Size = Literal["1K", "10K", "100K", "300K", "1M", "3M", "10M", "30M", "100M", "300M", "1B"]


class MixtureHead(nn.Module):
    """One projection per parameter of every component, and one to the weights of the mixture.

    Args:
        families: distributions of the components.
        linear: creates a projection to the given number of outputs per step, ordered by component.
    """

    def __init__(self, families: Sequence[type[Distribution]], linear: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.families = tuple(families)
        components = (nn.ModuleDict({name: linear(1) for name in family.parameters}) for family in families)
        self.proj = nn.ModuleDict(
            {"weights_logits": linear(len(self.families)), "components": nn.ModuleList(components)}
        )

    def forward(
        self, x_BNC: Float[Tensor, "B N C"], loc: Float[Tensor, "B N 1"], scale: Float[Tensor, "B N 1"], *size: Tensor
    ) -> Mixture:
        """The distribution of every step, on the scale of the data; ``size`` is passed on to the projections."""

        def at_least_float32(x: Tensor) -> Tensor:  # likelihoods need more than the half precision of autocast
            return x.to(torch.promote_types(x.dtype, torch.float32))

        logits = at_least_float32(self.proj["weights_logits"](x_BNC, *size))
        logits = logits.unflatten(-1, (len(self.families), -1)).transpose(-1, -2)
        components = []
        for family, layers in zip(self.families, self.proj["components"], strict=True):  # type: ignore[call-overload]
            components.append(
                family.of({name: at_least_float32(layer(x_BNC, *size)) for name, layer in layers.items()})
            )
        return Mixture(logits.log_softmax(-1), tuple(components), loc, scale)


class PackedForecaster(Forecaster):
    """A univariate patch model with a mixture of four Student-T distributions per step.

    Trained on the likelihood of packed rows (``packed_loss``); windows are forecast one variate at a time.

    Args:
        context: steps of history.
        horizon: steps to forecast in one pass.
        config: sizes, or the name of a published size.
    """

    config_type: ClassVar[type] = TrunkConfig
    sizes: ClassVar[dict[str, TrunkConfig]] = SIZES
    config: TrunkConfig

    def __init__(self, context: int, horizon: int, config: TrunkConfig | Size = TrunkConfig()) -> None:
        if isinstance(config, str):
            if config not in self.sizes:
                raise unknown_name("size", config, self.sizes)
            config = self.sizes[config]
        super().__init__(context, horizon, config)
        width, patch = config.d_model, config.patch_size
        self.levels = check_levels(config.levels)
        self.in_proj = nn.Linear(patch, width)
        self.encoder = Stack(width, config.layers, config.heads)
        self.param_proj = MixtureHead([StudentT] * COMPONENTS, lambda count: nn.Linear(width, count * patch))

    @property
    def joint(self) -> bool:
        """Variates are forecast one at a time."""
        return False

    def scale(self, packed: Packed) -> tuple[Float[Tensor, "B N 1"], Float[Tensor, "B N 1"]]:
        """Location and scale of every token's series."""
        if self.config.scaling:
            return packed.scale()
        loc = torch.zeros_like(packed.target[..., :1])
        return loc, torch.ones_like(loc)

    @abstractmethod
    def represent(
        self, packed: Packed, loc: Float[Tensor, "B N 1"], scale: Float[Tensor, "B N 1"]
    ) -> Float[Tensor, "B N C"]:
        """The tokens after the Transformer."""

    @abstractmethod
    def packed_loss(self, packed: Packed) -> Float[Tensor, ""]:
        """Mean negative log likelihood of the patches to predict, in the units of the data."""

    def nll(
        self, packed: Packed, label: Float[Tensor, "B N P"], is_used: Bool[Tensor, "B N"]
    ) -> Float[Tensor, "B N P"]:
        """Negative log likelihood of the labels under the mixtures of the used tokens; 0 at the other tokens.

        The mixture takes 16 numbers per step, more than all layers of a small model: it is computed for used tokens
        only.
        """
        loc, scale = self.scale(packed)
        x_BNC = self.represent(packed, loc, scale)
        index = is_used.flatten().nonzero()[:, 0]
        x, loc, scale, target = (x.flatten(0, 1).index_select(0, index)[None] for x in (x_BNC, loc, scale, label))
        nll = -self.param_proj(x, loc, scale).log_prob(target)[0]
        return nll.new_zeros(is_used.numel(), nll.shape[-1]).index_copy(0, index, nll).view_as(label)

    def distribution(self, packed: Packed) -> Mixture:
        """The predictive distribution of every token: of its own values (encoder) or of the next patch (decoder)."""
        loc, scale = self.scale(packed)
        return self.param_proj(self.represent(packed, loc, scale), loc, scale)

    def pack(self, batch: Batch) -> Packed:
        """One row per window and variate; patches before the first observed step are padding."""
        past, observed = (x.transpose(1, 2).flatten(0, 1)[..., None] for x in (batch.past, batch.past_observed))
        before = observed[..., 0].cumsum(1) == 0
        return pack_window(past, observed, before, self.config.patch_size)

    def pack_known(self, batch: Batch) -> Packed:
        """As ``pack``, followed by the known future as patches to predict.

        Raises:
            InputError: the batch holds no such future.
        """
        future, observed = (x.transpose(1, 2).flatten(0, 1)[..., None] for x in known_future(batch, self.horizon))
        return append_future(self.pack(batch), future, observed, self.config.patch_size)

    def by_variate(self, patches: Float[Tensor, "R N P K"], variates: int) -> Float[Tensor, "B S V K"]:
        """Predicted patches of every window and variate as steps of the horizon."""
        return patches.flatten(1, 2)[:, : self.horizon].unflatten(0, (-1, variates)).transpose(1, 2)

    def loss(self, batch: Batch | PackedRows) -> Float[Tensor, ""]:
        """Mean negative log likelihood of a batch whose future is known, or of packed rows."""
        packed = Packed.of(batch) if isinstance(batch, PackedRows) else self.pack_known(batch)
        return self.packed_loss(packed.compact())

    def loss_of(self, output: Float[Tensor, "B S V K"], batch: Batch) -> Float[Tensor, ""]:
        """Twice the mean pinball loss of the quantiles, for validation; comparable across models."""
        return quantile_loss(output, batch, self.levels)


def quantile_loss(output: Float[Tensor, "B S V K"], batch: Batch, levels: tuple[float, ...]) -> Float[Tensor, ""]:
    """Twice the mean pinball loss over the observed future values and levels."""
    future, observed = known_future(batch, output.shape[1])
    return masked_mean(mean_pinball_loss(output, future, levels), observed)


def mask_of(packed: Packed, causal: bool = False) -> Mask:
    """Every token sees its own sample; if ``causal``, only the tokens up to itself."""
    return Mask.segments(packed.sample_id, causal=causal)


def from_reference_state(
    kind: type[PackedForecaster], state: dict[str, Tensor], context: int, horizon: int, scaling: bool = True
) -> PackedForecaster:
    """An encoder or decoder with the weights of the scaling-law code, loaded strictly.

    Args:
        kind: ``Encoder`` or ``Decoder``.
        state: its state dict; the prefix ``module.`` of the released checkpoints is taken off.
        context: steps of history to use.
        horizon: steps to forecast in one pass.
        scaling: whether series are normalised, which leaves no trace in a state dict.

    Raises:
        InputError: a key is missing or left over, or shapes contradict each other.
    """
    state = {key.removeprefix("module."): value for key, value in state.items()}
    try:
        width, patch = state["in_proj.weight"].shape
        width_of_head = state["encoder.layers.0.self_attn.q_norm.weight"].shape[0]
    except KeyError as error:
        raise InputError(f"expected the keys of a {kind.__name__.lower()} state dict, found no {error}") from error
    layers = len({key.split(".")[2] for key in state if key.startswith("encoder.layers.")})
    config = TrunkConfig(width, layers, width // width_of_head, patch, scaling)
    model = kind(context, horizon, config)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"expected the state dict of a {kind.__name__.lower()}: {reason_of(error, 300)}") from error
    return model
