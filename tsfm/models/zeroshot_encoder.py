"""The zero-shot encoder: tokens of the future say their quantiles after looking at all of the history.

Shapes: B windows, V variates, R rows (a variate of a window), L steps, N tokens, P steps of a patch, K levels.
"""

from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from tsfm.heads import masked_mean
from tsfm.packed import known_future
from tsfm.zeroshot import ZeroShotForecaster, by_window, fit_normaliser, pinball, whole_patches
from tsfm_data.batch import Batch

SPAN = 4  # longest hidden span of the history, in patches


class ZeroShotEncoder(ZeroShotForecaster):
    """Masked patches; the whole horizon in one pass. A token of the future sees the history and itself."""

    model_type: ClassVar[str] = "zeroshot-encoder"

    @property
    def ahead(self) -> int:
        """A token says its own patch."""
        return self.config.patch_size

    @property
    def reach(self) -> int:
        """The model's own horizon."""
        return self.horizon

    def tokens(
        self, x_RL: Float[Tensor, "R L"], seen_RL: Bool[Tensor, "R L"], history: int, variates: int
    ) -> Float[Tensor, "R N P K"]:
        """Quantiles of every token's own patch, on the model's scale.

        Args:
            x_RL: values on the model's scale.
            seen_RL: which of them the model may look at.
            history: tokens of the history; the others are the future.
            variates: V.
        """
        patch = self.config.patch_size
        count = x_RL.shape[1] // patch
        rows = self.trunk.rows(x_RL, seen_RL)
        token_N = torch.arange(count, device=x_RL.device)
        step_NP = token_N[:, None] * patch + torch.arange(patch, device=x_RL.device)
        known_N = (token_N * patch).clamp(min=1, max=history * patch)
        drafts = self.trunk.drafts(rows, step_NP, known_N)
        inputs = self.trunk.inputs(rows, drafts, token_N >= history)
        visible_RN = seen_RL.unflatten(1, (count, patch)).any(-1)
        if self.config.any_variate:
            visible_RN = visible_RN.unflatten(0, (-1, variates)).flatten(1)
        return self.trunk.head(self.trunk.mix(inputs, visible_RN[:, None], variates), drafts)

    def quantiles(self, batch: Batch, horizon: int) -> Float[Tensor, "B H V K"]:
        """Quantiles of ``horizon`` steps in the batch's units."""
        patch, variates = self.config.patch_size, batch.past.shape[2]
        x_RL, seen_RL = whole_patches(batch.past, batch.past_observed, patch)
        history, future = x_RL.shape[1] // patch, -(-horizon // patch)
        normalise = fit_normaliser(x_RL, seen_RL, self.config)
        x_RL, seen_RL = (F.pad(x, (0, future * patch)) for x in (normalise(x_RL), seen_RL))
        found = self.tokens(x_RL, seen_RL, history, variates)[:, history:]
        return by_window(normalise.restore(found.flatten(1, 2)), variates, horizon)

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Twice the mean pinball loss on the model's scale, of the future and of the hidden spans of the history."""
        patch, variates = self.config.patch_size, batch.past.shape[2]
        future, observed = known_future(batch, batch.horizon)
        x_RL, known_RL = whole_patches(batch.past, batch.past_observed, patch)
        history = x_RL.shape[1] // patch
        missing = -batch.horizon % patch
        future, observed = (F.pad(x.transpose(1, 2).flatten(0, 1), (0, missing)) for x in (future, observed))
        x_RL, known_RL = torch.cat([x_RL, future], 1), torch.cat([known_RL, observed], 1)
        hidden_RN = self.hidden(x_RL.shape[0], history, x_RL.shape[1] // patch, x_RL.device)
        hidden_RL = hidden_RN.repeat_interleave(patch, 1)
        seen_RL = known_RL & ~hidden_RL
        normalise = fit_normaliser(x_RL, seen_RL, self.config)
        target_RL = normalise(x_RL)
        found = self.tokens(target_RL, seen_RL, history, variates)
        first = 0 if self.config.span_masking else history
        counts = (known_RL & hidden_RL & seen_RL.any(1, keepdim=True))[:, first * patch :]
        error = pinball(found[:, first:].flatten(1, 2), target_RL[:, first * patch :], self.levels)
        return masked_mean(error, counts)

    def hidden(self, rows: int, history: int, tokens: int, device: torch.device) -> Bool[Tensor, "R N"]:
        """The tokens to predict: the future, and in some batches random spans of the history."""
        token_N = torch.arange(tokens, device=device)
        hidden_RN = (token_N >= history).expand(rows, -1)
        if torch.rand(()) < self.config.span_masking:
            for _ in range(2):
                start_R1 = torch.randint(1, max(2, history), (rows, 1), device=device)
                length_R1: Int[Tensor, "R 1"] = torch.randint(1, SPAN + 1, (rows, 1), device=device)
                hidden_RN = hidden_RN | ((token_N >= start_R1) & (token_N < start_R1 + length_R1))
        return hidden_RN
