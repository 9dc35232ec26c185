"""The scaling-law decoder: causal attention; every token predicts the next patch.

Shapes: B rows or windows, N tokens, C channels, P steps of a patch, S horizon, V variates, K levels.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from tsfm.models.packing import Packed, append_future
from tsfm.models.scaling_law.trunk import DECODER_SIZES, PackedForecaster, TrunkConfig, mask_of
from tsfm.nn import Mixture
from tsfm_data.windows import Batch


class Decoder(PackedForecaster):
    """Causal decoder; forecasts patch by patch with its own median as history. Arguments as for its base."""

    model_type: ClassVar[str] = "decoder"
    sizes: ClassVar[dict[str, TrunkConfig]] = DECODER_SIZES

    def represent(
        self, packed: Packed, loc: Float[Tensor, "B N 1"], scale: Float[Tensor, "B N 1"]
    ) -> Float[Tensor, "B N C"]:
        """The tokens after the Transformer."""
        return self.encoder(self.in_proj((packed.target - loc) / scale), mask_of(packed, causal=True), packed.time_id)

    def packed_loss(self, packed: Packed) -> Float[Tensor, ""]:
        """Mean negative log likelihood of the patches to predict, each predicted by the token before it."""
        label, observed = packed.next_patch()
        is_used = F.pad(packed.is_predicted[:, 1:], (0, 1))
        return replace(packed, is_predicted=is_used).loss(self.nll(packed, label, is_used), observed)

    def forward(self, batch: Batch) -> Float[Tensor, "B S V K"]:
        """Quantiles of the model's own horizon at its levels, in the batch's units."""
        steps = -(-self.horizon // self.config.patch_size)
        patches = self.decode(self.pack(batch), steps, lambda patch: patch.quantiles((0.5,))[..., 0])
        return self.by_variate(torch.cat([patch.quantiles(self.levels) for patch in patches], 1), batch.past.shape[2])

    def decode(self, packed: Packed, patches: int, point: Callable[[Mixture], Tensor]) -> list[Mixture]:
        """The distributions of the next patches, forecast autoregressively.

        Args:
            packed: rows of one series each, padded on the left.
            patches: number of patches.
            point: point forecast from a distribution, which becomes history.
        """
        distributions: list[Mixture] = []
        for _ in range(patches):
            if distributions:
                value = point(distributions[-1]).transpose(1, 2)
                seen = torch.ones_like(value, dtype=torch.bool)
                packed = append_future(packed, value, seen, self.config.patch_size)
            loc, scale = self.scale(packed)
            last = self.represent(packed, loc, scale)[:, -1:]
            distributions.append(self.param_proj(last, loc[:, -1:], scale[:, -1:]))
        return distributions
