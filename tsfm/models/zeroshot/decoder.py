"""The zero-shot decoder: every token attends to the tokens before it and gives the quantiles of the next patches.

Shapes: B windows, V variates, R rows (a variate of a window), L steps, N tokens, S steps that a token forecasts,
K levels.
"""

from dataclasses import replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from tsfm.models.zeroshot.patches import Window, group_by_window, pad_to_patches
from tsfm.models.zeroshot.recipe import ZeroShotForecaster, fit_normaliser
from tsfm.models.zeroshot.seasonal_features import ScaledRows
from tsfm.nn import masked_mean, mean_pinball_loss
from tsfm_data.windows import Batch

MIN_HISTORY_PATCHES = 2  # shortest history, in patches, from which forecasts are trained


class ZeroShotDecoder(ZeroShotForecaster):
    """Causal attention over patches; several patches in one pass. Scale and periods come from the history alone."""

    model_type: ClassVar[str] = "zeroshot-decoder"
    causal: ClassVar[bool] = True

    @property
    def steps_per_token(self) -> int:
        """A token forecasts the next patches."""
        return self.config.predict_patches * self.config.patch_size

    @property
    def steps_per_pass(self) -> int:
        """One pass forecasts as far as one token."""
        return self.steps_per_token

    def tokens(
        self, rows: ScaledRows, window: Window, variates: int, first: int, last: int
    ) -> Float[Tensor, "R N S K"]:
        """Quantiles of the steps after the tokens from ``first`` to before ``last``, on the model's scale.

        Args:
            rows: the series.
            window: the windows they come from.
            variates: rows of a window that are forecast; its covariates follow them.
            first: the first token to forecast from.
            last: the end of these tokens (exclusive).
        """
        patch = self.config.patch_size
        count = rows.x.shape[1] // patch
        token_N = torch.arange(count, device=rows.x.device)
        known_N = (token_N + 1) * patch
        wanted = slice(first, last)
        step_NS = known_N[wanted, None] + torch.arange(self.steps_per_token, device=rows.x.device)
        features = self.trunk.seasonal_naive_features(rows, step_NS, known_N[wanted])
        visible_RN = rows.seen.unflatten(1, (count, patch)).any(-1)
        before = token_N[None, :] <= token_N[:, None]
        if self.config.any_variate:
            visible_RN = visible_RN.unflatten(0, (-1, window.columns)).flatten(1)
            # A target may also look at covariates that are known over the steps it forecasts.
            covered = token_N[None, :] <= token_N[:, None] + self.config.predict_patches
            target = torch.arange(window.columns, device=rows.x.device) < variates
            ahead = (target[:, None] & ~target).repeat_interleave(count, 0).repeat_interleave(count, 1)
            before = torch.where(ahead, covered.repeat(2 * (window.columns,)), before.repeat(2 * (window.columns,)))
        future, allowed = torch.zeros_like(token_N, dtype=torch.bool), visible_RN[:, None] & before
        return self.trunk.forecast(rows, features, future, allowed, window.columns, wanted)

    def quantiles(self, batch: Batch, horizon: int) -> Float[Tensor, "B H V K"]:
        """Quantiles of ``horizon`` steps in the batch's units."""
        variates = batch.past.shape[2]
        known = self.config.any_variate and batch.known_future is not None
        window = pad_to_patches(
            replace(batch, future=None), horizon if known else 0, self.config.patch_size, self.config.any_variate
        )
        normalise = fit_normaliser(window.x, window.seen, self.config)
        rows = self.trunk.describe_rows(normalise(window.x), window.seen, window.history)
        tokens = self.tokens(rows, window, variates, window.history - 1, window.history)
        return group_by_window(normalise.restore(tokens[:, 0]), window.columns, variates, horizon)

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Twice the mean pinball loss in error scales of each row, over the forecasts from all tokens after a random
        history.
        """
        patch, variates = self.config.patch_size, batch.past.shape[2]
        window = pad_to_patches(batch, batch.horizon, patch, self.config.any_variate)
        x_RL, seen_RL = window.target, window.known
        count = x_RL.shape[1] // patch
        history = int(torch.randint(min(MIN_HISTORY_PATCHES, count - 1), count, ()))
        before_RT = seen_RL[:, : history * patch]
        normalise = fit_normaliser(x_RL[:, : history * patch], before_RT, self.config)
        target_RL = normalise(x_RL)
        rows = self.trunk.describe_rows(target_RL, seen_RL, history)
        quantiles = self.tokens(rows, window, variates, history - 1, count - 1)
        # The forecast of token n begins at step (n + 1) * patch; after the window nothing is observed.
        follows = [
            F.pad(x, (0, self.steps_per_token)).unfold(1, self.steps_per_token, patch) for x in (target_RL, seen_RL)
        ]
        target, counts = (x[:, history:count] for x in follows)
        counts = counts & before_RT.any(1)[:, None, None]
        is_target = torch.arange(window.columns, device=x_RL.device) < variates
        counts = counts & is_target.repeat(len(x_RL) // window.columns)[:, None, None]
        return masked_mean(mean_pinball_loss(quantiles, target, self.levels) / rows.error_scale[:, None, None], counts)
