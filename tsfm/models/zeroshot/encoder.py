"""The zero-shot encoder: tokens of the future attend to the whole history and give the quantiles of their patches.

Shapes: B windows, V variates, R rows (a variate of a window), L steps, N tokens, P steps of a patch, K levels.
"""

from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tsfm.models.zeroshot.patches import group_by_window, pad_to_patches
from tsfm.models.zeroshot.recipe import ZeroShotForecaster, fit_normaliser
from tsfm.models.zeroshot.seasonal_features import ScaledRows
from tsfm.nn import masked_mean, mean_pinball_loss
from tsfm_data.windows import Batch

SPAN_COUNT, LONGEST_SPAN = 2, 4  # hidden spans per history, and the longest span in patches


class ZeroShotEncoder(ZeroShotForecaster):
    """Masked patches; the whole horizon in one pass. A token of the future sees the history and itself."""

    model_type: ClassVar[str] = "zeroshot-encoder"

    @property
    def steps_per_token(self) -> int:
        """A token forecasts its own patch."""
        return self.config.patch_size

    @property
    def steps_per_pass(self) -> int:
        """The model's own horizon."""
        return self.horizon

    def tokens(self, rows: ScaledRows, history: int, columns: int, first: int) -> Float[Tensor, "R N P K"]:
        """Quantiles of the tokens' own patches, on the model's scale.

        Args:
            rows: the series.
            history: number of tokens of the history; the others are the future.
            columns: rows per window.
            first: the first token to forecast from.
        """
        patch = self.config.patch_size
        count = rows.x.shape[1] // patch
        token_N = torch.arange(count, device=rows.x.device)
        step_NP = token_N[first:, None] * patch + torch.arange(patch, device=rows.x.device)
        known_N = (token_N[first:] * patch).clamp(min=1, max=history * patch)
        features = self.trunk.seasonal_naive_features(rows, step_NP, known_N)
        visible_RN = rows.seen.unflatten(1, (count, patch)).any(-1)
        if self.config.any_variate:
            visible_RN = visible_RN.unflatten(0, (-1, columns)).flatten(1)
        wanted = slice(first, None)
        return self.trunk.forecast(rows, features, token_N >= history, visible_RN[:, None], columns, wanted)

    def quantiles(self, batch: Batch, horizon: int) -> Float[Tensor, "B H V K"]:
        """Quantiles of ``horizon`` steps in the batch's units."""
        window = pad_to_patches(batch, horizon, self.config.patch_size, self.config.any_variate)
        normalise = fit_normaliser(window.x, window.seen, self.config)
        rows = self.trunk.describe_rows(normalise(window.x), window.seen, window.history)
        tokens = self.tokens(rows, window.history, window.columns, window.history)
        return group_by_window(normalise.restore(tokens.flatten(1, 2)), window.columns, batch.past.shape[2], horizon)

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Twice the mean pinball loss in error scales of each row, over the future and hidden spans of the history."""
        patch = self.config.patch_size
        horizon = batch.horizon
        if self.config.random_horizon:
            most = -(-horizon // patch)
            horizon = min(horizon, patch * int((most + 1) ** torch.rand(()).item()))
        window = pad_to_patches(batch, horizon, patch, self.config.any_variate)
        seen_RL = window.seen
        first = window.history
        if torch.rand(()) < self.config.span_masking:
            hidden_RN = self.sample_spans(len(seen_RL), window.history, seen_RL.shape[1] // patch, seen_RL.device)
            seen_RL = seen_RL & ~hidden_RN.repeat_interleave(patch, 1)
            first = 0
        normalise = fit_normaliser(window.x, seen_RL, self.config)
        target_RL = normalise(window.target)
        rows = self.trunk.describe_rows(target_RL, seen_RL, window.history)
        quantiles = self.tokens(rows, window.history, window.columns, first).flatten(1, 2)
        # A row without any seen value has no scale.
        counts = window.known & ~seen_RL & seen_RL.any(1, keepdim=True)
        error = mean_pinball_loss(quantiles, target_RL[:, first * patch :], self.levels)
        return masked_mean(error / rows.error_scale[:, None], counts[:, first * patch :])

    def sample_spans(self, rows: int, history: int, tokens: int, device: torch.device) -> Bool[Tensor, "R N"]:
        """Random spans of the history of every row."""
        token_N = torch.arange(tokens, device=device)
        start_SR1 = torch.randint(1, max(2, history), (SPAN_COUNT, rows, 1), device=device)
        length_SR1 = torch.randint(1, LONGEST_SPAN + 1, (SPAN_COUNT, rows, 1), device=device)
        return ((token_N >= start_SR1) & (token_N < start_SR1 + length_SR1)).any(0) & (token_N < history)
