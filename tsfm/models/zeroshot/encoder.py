"""The zero-shot encoder: tokens of the future say their quantiles after looking at all of the history.

Shapes: B windows, V variates, R rows (a variate of a window), L steps, N tokens, P steps of a patch, K levels.
"""

from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tsfm.models.zeroshot.patches import by_window, window_of
from tsfm.models.zeroshot.recipe import ZeroShotForecaster, fit_normaliser
from tsfm.models.zeroshot.seasonal_features import Rows
from tsfm.nn import masked_mean, mean_pinball_loss
from tsfm_data.windows import Batch

SPANS, LONGEST = 2, 4  # hidden spans of a history, and the longest of them in patches


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

    def tokens(self, rows: Rows, history: int, columns: int, first: int) -> Float[Tensor, "R N P K"]:
        """Quantiles of the tokens' own patches, on the model's scale.

        Args:
            rows: what is seen.
            history: tokens of the history; the others are the future.
            columns: rows of a window.
            first: the first token that is asked for.
        """
        patch = self.config.patch_size
        count = rows.x.shape[1] // patch
        token_N = torch.arange(count, device=rows.x.device)
        step_NP = token_N[first:, None] * patch + torch.arange(patch, device=rows.x.device)
        known_N = (token_N[first:] * patch).clamp(min=1, max=history * patch)
        drafts = self.trunk.drafts(rows, step_NP, known_N)
        visible_RN = rows.seen.unflatten(1, (count, patch)).any(-1)
        if self.config.any_variate:
            visible_RN = visible_RN.unflatten(0, (-1, columns)).flatten(1)
        wanted = slice(first, None)
        return self.trunk.forecast(rows, drafts, token_N >= history, visible_RN[:, None], columns, wanted)

    def quantiles(self, batch: Batch, horizon: int) -> Float[Tensor, "B H V K"]:
        """Quantiles of ``horizon`` steps in the batch's units."""
        window = window_of(batch, horizon, self.config.patch_size, self.covariates)
        normalise = fit_normaliser(window.x, window.seen, self.config)
        rows = self.trunk.rows(normalise(window.x), window.seen, window.history)
        found = self.tokens(rows, window.history, window.columns, window.history)
        return by_window(normalise.restore(found.flatten(1, 2)), window.columns, batch.past.shape[2], horizon)

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Twice the mean pinball loss in units of each row, of the future and of the hidden spans of the history."""
        patch = self.config.patch_size
        horizon = batch.horizon
        if self.config.random_horizon:
            most = -(-horizon // patch)
            horizon = min(horizon, patch * int((most + 1) ** torch.rand(()).item()))
        window = window_of(batch, horizon, patch, self.covariates)
        seen_RL = window.seen
        first = window.history
        if torch.rand(()) < self.config.span_masking:
            hidden_RN = self.spans(len(seen_RL), window.history, seen_RL.shape[1] // patch, seen_RL.device)
            seen_RL = seen_RL & ~hidden_RN.repeat_interleave(patch, 1)
            first = 0
        normalise = fit_normaliser(window.x, seen_RL, self.config)
        target_RL = normalise(window.target)
        rows = self.trunk.rows(target_RL, seen_RL, window.history)
        found = self.tokens(rows, window.history, window.columns, first)
        # A row of which nothing is seen has no scale.
        counts = window.known & ~seen_RL & seen_RL.any(1, keepdim=True)
        error = mean_pinball_loss(found.flatten(1, 2), target_RL[:, first * patch :], self.levels)
        return masked_mean(error / rows.unit[:, None], counts[:, first * patch :])

    def spans(self, rows: int, history: int, tokens: int, device: torch.device) -> Bool[Tensor, "R N"]:
        """Two random spans of the history of every row."""
        token_N = torch.arange(tokens, device=device)
        start_SR1 = torch.randint(1, max(2, history), (SPANS, rows, 1), device=device)
        length_SR1 = torch.randint(1, LONGEST + 1, (SPANS, rows, 1), device=device)
        return ((token_N >= start_SR1) & (token_N < start_SR1 + length_SR1)).any(0) & (token_N < history)
