"""Moirai 1.x: any number of variates in one row, patches of several sizes, a mixture of four families
(Woo et al., "Unified Training of Universal Time Series Forecasting Transformers", ICML 2024, and uni2ts).

Shapes: B rows, N tokens, P steps of the largest patch, C channels, Z patch sizes, S horizon, V variates, K levels.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from tsfm.distributions import LogNormal, Mixture, NarrowNormal, NegativeBinomial, StudentT
from tsfm.forecaster import Forecaster
from tsfm.heads import check_levels
from tsfm.packed import Packed, append_future, known_future, pack_window
from tsfm.transformer import Stack
from tsfm.trunk import MIXTURE_LEVELS, MixtureHead, mask_of, quantile_loss
from tsfm_data.batch import Batch
from tsfm_data.errors import InputError

FAMILIES = (StudentT, NarrowNormal, NegativeBinomial, LogNormal)
# What the published config.json calls them.
FAMILY_NAMES = ("StudentTOutput", "NormalFixedScaleOutput", "NegativeBinomialOutput", "LogNormalOutput")


@dataclass(frozen=True)
class MoiraiConfig:
    """Sizes of a Moirai.

    Attributes:
        d_model: channels of a token.
        layers: Transformer blocks.
        heads: attention heads; ``d_model / heads`` must be a multiple of 4.
        patch_sizes: sizes that the model has projections for, ascending.
        patch_size: the one of them that windows are cut into.
        levels: quantile levels that ``forward`` answers; any other is interpolated.
    """

    d_model: int = 384
    layers: int = 6
    heads: int = 6
    patch_sizes: tuple[int, ...] = (8, 16, 32, 64, 128)
    patch_size: int = 32
    levels: tuple[float, ...] = MIXTURE_LEVELS

    def __post_init__(self) -> None:
        for name in ("d_model", "layers", "heads"):
            if getattr(self, name) < 1:
                raise InputError(f"expected {name} of at least 1, found {getattr(self, name)}: change it in the config")
        if not self.patch_sizes or list(self.patch_sizes) != sorted(set(self.patch_sizes)) or self.patch_sizes[0] < 1:
            raise InputError(f"expected ascending patch_sizes, found {self.patch_sizes}: change them in the config")
        if self.patch_size not in self.patch_sizes:
            raise InputError(f"expected a patch_size out of {self.patch_sizes}, found {self.patch_size}: choose one")
        check_levels(self.levels)


class SizedLinear(nn.Module):
    """One linear layer a patch size; every token goes through that of its own, and a token of size 0 gives 0.

    Args:
        sizes: the patch sizes.
        inputs: channels that come in; None: the steps of a patch, of which a smaller one uses the first.
        outputs: channels that go out; None: ``per_step`` numbers a step of the largest patch. A smaller patch of ``p``
            steps has weights for the first ``per_step * p`` alone, the others are their biases (uni2ts).
        per_step: numbers a step.
    """

    def __init__(
        self, sizes: tuple[int, ...], inputs: int | None = None, outputs: int | None = None, per_step: int = 1
    ) -> None:
        super().__init__()
        self.sizes = sizes
        self.used = [(inputs or size, outputs or per_step * size) for size in sizes]
        width, height = self.used[-1]
        self.weight = nn.Parameter(torch.zeros(len(sizes), height, width))
        self.bias = nn.Parameter(torch.empty(len(sizes), height))
        for number, (columns, rows) in enumerate(self.used):
            bound = 1 / math.sqrt(columns)
            nn.init.uniform_(self.weight.data[number, :rows, :columns], -bound, bound)
            nn.init.uniform_(self.bias.data[number], -bound, bound)

    def forward(self, x_BNC: Float[Tensor, "B N C"], size_BN: Int[Tensor, "B N"]) -> Float[Tensor, "B N _"]:
        height = self.weight.shape[1]
        out = x_BNC.new_zeros(*x_BNC.shape[:2], height)
        for number, (columns, rows) in enumerate(self.used):
            chosen = size_BN == self.sizes[number]
            found = F.linear(x_BNC[chosen][:, :columns], self.weight[number, :rows, :columns])
            out[chosen] = (F.pad(found, (0, height - rows)) + self.bias[number]).to(out.dtype)
        return out


class Moirai(Forecaster):
    """Masked encoder over the patches of all variates.

    Args:
        context: steps of history.
        horizon: steps to forecast in one pass.
        config: sizes.
    """

    model_type: ClassVar[str] = "moirai"
    config_type: ClassVar[type] = MoiraiConfig

    def __init__(self, context: int, horizon: int, config: MoiraiConfig = MoiraiConfig()) -> None:
        super().__init__(context, horizon, config)
        self.levels = check_levels(config.levels)
        width, sizes = config.d_model, config.patch_sizes
        self.in_proj = SizedLinear(sizes, outputs=width)
        self.mask_encoding = nn.Embedding(1, width)
        self.encoder = Stack(width, config.layers, config.heads, any_variate=True)
        self.param_proj = MixtureHead(FAMILIES, lambda count: SizedLinear(sizes, inputs=width, per_step=count))

    def embed(
        self, packed: Packed, loc: Float[Tensor, "B N 1"], scale: Float[Tensor, "B N 1"]
    ) -> Float[Tensor, "B N C"]:
        """Tokens of the scaled patches, before those to predict are replaced."""
        return self.in_proj((packed.target - loc) / scale, packed.patch_size)

    def represent(
        self, packed: Packed, loc: Float[Tensor, "B N 1"], scale: Float[Tensor, "B N 1"]
    ) -> Float[Tensor, "B N C"]:
        """The tokens after the stack; what is to be predicted is not looked at."""
        x_BNC = torch.where(packed.prediction[..., None], self.mask_encoding.weight, self.embed(packed, loc, scale))
        return self.encoder(x_BNC, mask_of(packed), packed.time_id, packed.variate_id)

    def distribution(self, packed: Packed) -> Mixture:
        """What the model says of every token's own values."""
        loc, scale = packed.scale()
        return self.param_proj(self.represent(packed, loc, scale), loc, scale, packed.patch_size)

    def packed_loss(self, packed: Packed) -> Float[Tensor, ""]:
        """Mean negative log likelihood of the patches to predict, in the units of the data."""
        return packed.loss(-self.distribution(packed).log_prob(packed.target), packed.observed)

    def pack(self, batch: Batch) -> Packed:
        """Every window as a row with all of its variates; patches before the first observed step are padding."""
        before = batch.past_observed.any(-1).cumsum(1) == 0
        return pack_window(batch.past, batch.past_observed, before, self.config.patch_size)

    def sized(self, packed: Packed) -> Packed:
        """Rows of patches of ``config.patch_size`` in the layout of all sizes."""
        fill = (0, self.config.patch_sizes[-1] - packed.target.shape[2])
        size = torch.where(packed.sample_id > 0, self.config.patch_size, 0)
        return replace(
            packed, target=F.pad(packed.target, fill), observed=F.pad(packed.observed, fill), patch_size=size
        )

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Mean negative log likelihood of a batch whose future is known."""
        future, observed = known_future(batch, self.horizon)
        return self.packed_loss(self.sized(append_future(self.pack(batch), future, observed, self.config.patch_size)))

    def loss_of(self, output: Float[Tensor, "B S V K"], batch: Batch) -> Float[Tensor, ""]:
        """Twice the mean pinball loss of the quantiles: what validation watches, comparable over kinds of models."""
        return quantile_loss(output, batch, self.levels)

    def forward(self, batch: Batch) -> Float[Tensor, "B S V K"]:
        """Quantiles of the model's own horizon at its levels, in the batch's units."""
        patch, variates = self.config.patch_size, batch.past.shape[2]
        future = batch.past.new_zeros(len(batch), self.horizon, variates)
        unknown = torch.zeros_like(future, dtype=torch.bool)
        packed = self.sized(append_future(self.pack(batch), future, unknown, patch))
        loc, scale = packed.scale()
        tokens = variates * -(-self.horizon // patch)
        assert packed.patch_size is not None
        x_BNC = self.represent(packed, loc, scale)
        last = (x[:, -tokens:] for x in (x_BNC, loc, scale, packed.patch_size))
        found = self.param_proj(*last).quantiles(self.levels)[:, :, :patch]
        return found.unflatten(1, (variates, -1)).flatten(2, 3)[:, :, : self.horizon].transpose(1, 2)


def from_reference(
    config: dict[str, Any], state: dict[str, Tensor], context: int, horizon: int, patch_size: int = 32
) -> Moirai:
    """A model with the weights of a published Moirai 1.x, loaded strictly.

    Args:
        config: its ``config.json``; the classes it names are compared, never imported.
        state: its state dict.
        context: steps of history to use.
        horizon: steps to forecast in one pass.
        patch_size: the size that windows are cut into.

    Raises:
        InputError: another mixture, or keys and shapes that do not fit.
    """
    try:
        parts = [part["_target_"].rsplit(".", 1)[-1] for part in config["distr_output"]["components"]]
        width, head = config["d_model"], state["encoder.layers.0.self_attn.q_norm.weight"].shape[0]
        sizes = MoiraiConfig(width, config["num_layers"], width // head, tuple(config["patch_sizes"]), patch_size)
    except KeyError as error:
        raise InputError(f"expected the config.json and weights of a Moirai 1.x, found no key {error}") from error
    if tuple(parts) != FAMILY_NAMES:
        raise InputError(f"expected a mixture of {', '.join(FAMILY_NAMES)}, found {', '.join(parts)}")
    model = Moirai(context, horizon, sizes)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"expected the state dict of a Moirai 1.x: {' '.join(str(error).split()):.300}") from error
    return model
