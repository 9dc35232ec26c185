"""The scaling-law encoder: patches to predict are replaced by a learnt mask token; attention is bidirectional.

Shapes: B rows or windows, N tokens, C channels, S horizon, V variates, K levels.
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tsfm.models.packing import Packed, append_future
from tsfm.models.scaling_law.trunk import PackedForecaster, Size, TrunkConfig, mask_of
from tsfm_data.windows import Batch


class Encoder(PackedForecaster):
    """Masked encoder; forecasts its whole horizon in one pass. Arguments as for ``PackedForecaster``."""

    model_type: ClassVar[str] = "encoder"

    def __init__(self, context: int, horizon: int, config: TrunkConfig | Size = TrunkConfig()) -> None:  # noqa: B008
        super().__init__(context, horizon, config)
        self.mask_encoding = nn.Embedding(1, self.config.d_model)

    def represent(
        self, packed: Packed, loc: Float[Tensor, "B N 1"], scale: Float[Tensor, "B N 1"]
    ) -> Float[Tensor, "B N C"]:
        """The tokens after the Transformer; patches to predict are masked."""
        x_BNC = self.in_proj((packed.target - loc) / scale)
        x_BNC = torch.where(packed.is_predicted[..., None], self.mask_encoding.weight, x_BNC)
        return self.encoder(x_BNC, mask_of(packed), packed.time_id)

    def packed_loss(self, packed: Packed) -> Float[Tensor, ""]:
        """Mean negative log likelihood of the patches to predict."""
        return packed.loss(self.nll(packed, packed.target, packed.is_predicted), packed.observed)

    def forward(self, batch: Batch) -> Float[Tensor, "B S V K"]:
        """Quantiles of the model's own horizon at its levels, in the batch's units."""
        past = self.pack(batch)
        future = past.target.new_zeros(len(past.target), self.horizon, 1)
        packed = append_future(past, future, torch.zeros_like(future, dtype=torch.bool), self.config.patch_size)
        loc, scale = self.scale(packed)
        tokens = -(-self.horizon // self.config.patch_size)
        x_BNC = self.represent(packed, loc, scale)
        ahead = self.param_proj(x_BNC[:, -tokens:], loc[:, -tokens:], scale[:, -tokens:])
        return self.by_variate(ahead.quantiles(self.levels), batch.past.shape[2])
