"""Moirai 1.x: any number of variates in one row, patches of several sizes, a mixture of four families
(Woo et al., "Unified Training of Universal Time Series Forecasting Transformers", ICML 2024, and uni2ts).

Shapes: B rows, N tokens, P steps of the largest patch, C channels, Z patch sizes, S horizon, V variates, K levels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from tsfm.models.base import HISTORY, KNOWN, Forecaster, roll_out, select
from tsfm.models.covariates import with_covariates
from tsfm.models.packing import Packed, append_future, known_future, pack_window
from tsfm.models.scaling_law.trunk import MIXTURE_LEVELS, MixtureHead, mask_of, quantile_loss
from tsfm.nn import LogNormal, Mixture, NarrowNormal, NegativeBinomial, Stack, StudentT, check_levels
from tsfm_data.errors import InputError, check_model_sizes, reason_of
from tsfm_data.windows import Batch

Future = tuple[Tensor, Tensor]  # values of the variates [B, H, V], and where they are known
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
        patch_sizes: ascending patch sizes for which the model has projections.
        patch_size: the patch size to use; "auto" chooses, per window, the size under which the end of the history is
            most likely, and in training a random one.
        levels: quantile levels of ``forward``; others are interpolated.
    """

    d_model: int = 384
    layers: int = 6
    heads: int = 6
    patch_sizes: tuple[int, ...] = (8, 16, 32, 64, 128)
    patch_size: int | Literal["auto"] = 32
    levels: tuple[float, ...] = MIXTURE_LEVELS

    def __post_init__(self) -> None:
        check_model_sizes(self, "d_model", "layers", "heads")
        if not self.patch_sizes or list(self.patch_sizes) != sorted(set(self.patch_sizes)) or self.patch_sizes[0] < 1:
            raise InputError(f"expected ascending patch_sizes, found {self.patch_sizes}: change them in the config")
        if self.patch_size != "auto" and self.patch_size not in self.patch_sizes:
            raise InputError(
                f"expected a patch_size out of {self.patch_sizes} or 'auto', found {self.patch_size!r}: choose one"
            )
        check_levels(self.levels)

    @classmethod
    def tiny(cls) -> "MoiraiConfig":
        """Sizes for tests and first tries."""
        return cls(d_model=16, layers=1, heads=2, patch_sizes=(4, 8), patch_size=4)


class SizedLinear(nn.Module):
    """One linear layer per patch size; every token uses that of its own size, and a token of size 0 gives 0.

    Args:
        sizes: the patch sizes.
        inputs: input channels; None: the steps of a patch.
        outputs: output channels; None: ``per_step`` numbers per step of the largest patch. A smaller patch of ``p``
            steps has weights for the first ``per_step * p`` of them only, the others equal their biases (uni2ts).
        per_step: outputs per step.
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
            projected = F.linear(x_BNC[chosen][:, :columns], self.weight[number, :rows, :columns])
            out[chosen] = (F.pad(projected, (0, height - rows)) + self.bias[number]).to(out.dtype)
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

    @property
    def covariates(self) -> bool:
        """Covariates are further variates."""
        return True

    def embed(
        self, packed: Packed, loc: Float[Tensor, "B N 1"], scale: Float[Tensor, "B N 1"]
    ) -> Float[Tensor, "B N C"]:
        """Tokens of the scaled patches, before those to predict are masked."""
        return self.in_proj((packed.target - loc) / scale, packed.patch_size)

    def represent(
        self, packed: Packed, loc: Float[Tensor, "B N 1"], scale: Float[Tensor, "B N 1"]
    ) -> Float[Tensor, "B N C"]:
        """The tokens after the Transformer; patches to predict are masked."""
        x_BNC = torch.where(packed.is_predicted[..., None], self.mask_encoding.weight, self.embed(packed, loc, scale))
        return self.encoder(x_BNC, mask_of(packed), packed.time_id, packed.variate_id)

    def distribution(self, packed: Packed) -> Mixture:
        """The predictive distribution of every token's own values."""
        loc, scale = packed.scale()
        return self.param_proj(self.represent(packed, loc, scale), loc, scale, packed.patch_size)

    def packed_loss(self, packed: Packed) -> Float[Tensor, ""]:
        """Mean negative log likelihood of the patches to predict, in the units of the data."""
        return packed.loss(-self.distribution(packed).log_prob(packed.target), packed.observed)

    def pack(self, batch: Batch, patch: int, future: Future | None = None) -> Packed:
        """One row per window: the past of all variates and covariates, then their future.

        Patches before the first observed step are padding. The future of the variates is to be predicted, that of the
        known covariates is seen; past covariates have no future.

        Args:
            batch: windows.
            patch: steps of a token.
            future: values of the variates and where they are known; None: unknown, over the model's own horizon.
        """
        variates = batch.past.shape[2]
        if future is None:
            unknown = batch.past.new_zeros(len(batch), self.horizon, variates)
            future = unknown, torch.zeros_like(unknown, dtype=torch.bool)
        columns = with_covariates(batch, future[0].shape[1])
        known = 0 if batch.known_past is None else batch.known_past.shape[2]
        first = columns.past.shape[2] - known  # of the known covariates
        before = columns.past_observed.any(-1).cumsum(1) == 0
        rows = pack_window(columns.past, columns.past_observed, before, patch)
        ahead = torch.cat([future[0], columns.future[..., first:]], dim=2)
        seen = torch.cat([future[1], columns.future_observed[..., first:]], dim=2)
        packed = append_future(rows, ahead, seen, patch)
        covariate = packed.is_predicted & (packed.variate_id >= variates)
        variate_id = torch.where(covariate, packed.variate_id + first - variates, packed.variate_id)
        packed = replace(packed, variate_id=variate_id, is_predicted=packed.is_predicted & ~covariate)
        return self.sized(packed, patch)

    def sized(self, packed: Packed, patch: int) -> Packed:
        """Pad patches of one size to the largest size."""
        fill = (0, self.config.patch_sizes[-1] - packed.target.shape[2])
        size = torch.where(packed.sample_id > 0, patch, 0)
        return replace(
            packed, target=F.pad(packed.target, fill), observed=F.pad(packed.observed, fill), patch_size=size
        )

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Mean negative log likelihood of a batch with a known future, one patch size at a time."""
        future, observed = known_future(batch, self.horizon)
        total = batch.past.new_zeros(())
        for patch, rows in self.by_patch_size(batch):
            part = select(batch, rows)
            packed = self.pack(part, patch, (future[rows], observed[rows]))
            total = total + self.packed_loss(packed) * len(part) / len(batch)
        return total

    def by_patch_size(self, batch: Batch) -> list[tuple[int, Tensor]]:
        """The patch sizes in use, with the windows that use each."""
        all_rows = torch.arange(len(batch), device=batch.past.device)
        size = self.config.patch_size
        if size != "auto":
            return [(size, all_rows)]
        sizes = [size for size in self.config.patch_sizes if 2 * size <= batch.past.shape[1]]
        sizes = sizes or [self.config.patch_sizes[0]]
        if self.training:
            return [(sizes[int(torch.randint(len(sizes), ()))], all_rows)]
        best = torch.stack([self.recent_loss(batch, size) for size in sizes]).argmin(0)
        chosen = [(size, all_rows[best == number]) for number, size in enumerate(sizes)]
        return [(size, rows) for size, rows in chosen if len(rows)]

    @torch.no_grad()
    def recent_loss(self, batch: Batch, patch: int) -> Float[Tensor, " B"]:
        """Negative log likelihood of the end of every history (a horizon, at most half) given the rest.

        The original holds out a horizon after the context and needs a longer history; here it is in the context.
        """
        steps = min(self.horizon, batch.past.shape[1] // 2)
        return self.window_loss(*hold_out(batch, steps), patch)

    def window_loss(self, batch: Batch, future: Future, patch: int) -> Float[Tensor, " B"]:
        """Negative log likelihood of the future of every window: mean over time, sum over variates."""
        packed = self.pack(batch, patch, future)
        counts = packed.observed & packed.is_predicted[..., None]
        nll = torch.where(counts, -self.distribution(packed).log_prob(packed.target), 0.0)
        return nll.sum((1, 2)) / future[0].shape[1]

    def loss_of(self, output: Float[Tensor, "B S V K"], batch: Batch) -> Float[Tensor, ""]:
        """Twice the mean pinball loss of the quantiles, for validation; comparable across models."""
        return quantile_loss(output, batch, self.levels)

    def forward(self, batch: Batch) -> Float[Tensor, "B S V K"]:
        """Quantiles of the model's own horizon at its levels, in the batch's units."""
        return self.each_size(batch, self.quantiles)

    def rollout(self, batch: Batch) -> Float[Tensor, "B H V K"]:
        """As for every forecaster; the patch size is chosen once, from the observed history."""
        return self.each_size(
            batch, lambda part, patch: roll_out(part, lambda b: self.quantiles(b, patch), self.centre)
        )

    def each_size(self, batch: Batch, forecast: Callable[[Batch, int], Tensor]) -> Float[Tensor, "B _ V K"]:
        """The forecasts of all windows, each with its own patch size."""
        sizes = self.by_patch_size(batch)
        if len(sizes) == 1:
            return forecast(batch, sizes[0][0])
        forecasts = torch.cat([forecast(select(batch, rows), patch) for patch, rows in sizes])
        return forecasts[torch.cat([rows for _, rows in sizes]).argsort()]

    def quantiles(self, batch: Batch, patch: int) -> Float[Tensor, "B S V K"]:
        """Quantiles of the model's own horizon, with one patch size."""
        packed, variates = self.pack(batch, patch), batch.past.shape[2]
        loc, scale = packed.scale()
        x_BNC = self.represent(packed, loc, scale)
        assert packed.patch_size is not None
        tokens, known = -(-self.horizon // patch), 0 if batch.known_past is None else batch.known_past.shape[2]
        begin = x_BNC.shape[1] - (variates + known) * tokens  # after the past
        ahead = slice(begin, begin + variates * tokens)
        mixture = self.param_proj(*(x[:, ahead] for x in (x_BNC, loc, scale, packed.patch_size)))
        steps = mixture.quantiles(self.levels)[:, :, :patch].unflatten(1, (variates, -1)).flatten(2, 3)
        return steps[:, :, : self.horizon].transpose(1, 2)


def hold_out(batch: Batch, steps: int) -> tuple[Batch, Future]:
    """The windows without their last steps, and these steps of the variates as the future."""
    past = {name: getattr(batch, name) for name in HISTORY}
    cut: dict[str, Any] = {"horizon": steps, "future": None, "future_observed": None}
    cut |= {name: x[:, :-steps] for name, x in past.items() if x is not None}
    cut |= {KNOWN[name]: past[name][:, -steps:] for name in KNOWN if past[name] is not None}
    return replace(batch, **cut), (batch.past[:, -steps:], batch.past_observed[:, -steps:])


def from_reference(
    config: dict[str, Any], state: dict[str, Tensor], context: int, horizon: int, patch_size: int | Literal["auto"] = 32
) -> Moirai:
    """A model with the weights of a published Moirai 1.x, loaded strictly.

    Args:
        config: its ``config.json``; the classes it names are compared, never imported.
        state: its state dict.
        context: steps of history to use.
        horizon: steps to forecast in one pass.
        patch_size: the patch size to use, or "auto".

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
        raise InputError(f"expected the state dict of a Moirai 1.x: {reason_of(error, 300)}") from error
    return model
