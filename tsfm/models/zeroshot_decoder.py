"""The zero-shot decoder: every token says the quantiles of the next patches after looking at what came before.

Shapes: B windows, V variates, R rows (a variate of a window), L steps, N tokens, S steps that a token forecasts,
K levels.
"""

from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from tsfm.heads import masked_mean
from tsfm.packed import known_future
from tsfm.zeroshot import Rows, ZeroShotForecaster, by_window, fit_normaliser, pinball, whole_patches
from tsfm_data.batch import Batch

SHORTEST = 2  # patches of history before the first token that is trained


class ZeroShotDecoder(ZeroShotForecaster):
    """Causal patches; several patches in one pass. Scale and periods come from the history before the forecast."""

    model_type: ClassVar[str] = "zeroshot-decoder"

    @property
    def ahead(self) -> int:
        """A token says the next patches."""
        return self.config.predict_patches * self.config.patch_size

    @property
    def reach(self) -> int:
        """The patches that one token says."""
        return self.ahead

    def tokens(self, rows: Rows, variates: int, first: int = 0) -> Float[Tensor, "R N S K"]:
        """Quantiles of the steps after every token, on the model's scale.

        Args:
            rows: what is seen.
            variates: V.
            first: the first token that forecasts.
        """
        patch, ahead = self.config.patch_size, self.ahead
        count = rows.x.shape[1] // patch
        token_N = torch.arange(count, device=rows.x.device)
        known_N = (token_N + 1) * patch
        step_NS = known_N[:, None] + torch.arange(ahead, device=rows.x.device)
        drafts = self.trunk.drafts(rows, step_NS, known_N)
        inputs = self.trunk.inputs(rows, drafts, torch.zeros_like(token_N, dtype=torch.bool))
        visible_RN = rows.seen.unflatten(1, (count, patch)).any(-1)
        time_N: Int[Tensor, " N"] = token_N
        if self.config.any_variate:
            visible_RN, time_N = visible_RN.unflatten(0, (-1, variates)).flatten(1), token_N.repeat(variates)
        before: Bool[Tensor, "N N"] = time_N[None, :] <= time_N[:, None]
        x_RNC = self.trunk.mix(inputs, visible_RN[:, None] & before, variates)
        return self.trunk.head(x_RNC[:, first:], drafts[:, first:])

    def quantiles(self, batch: Batch, horizon: int) -> Float[Tensor, "B H V K"]:
        """Quantiles of ``horizon`` steps in the batch's units."""
        variates = batch.past.shape[2]
        x_RL, seen_RL = whole_patches(batch.past, batch.past_observed, self.config.patch_size)
        normalise = fit_normaliser(x_RL, seen_RL, self.config)
        rows = self.trunk.rows(normalise(x_RL), seen_RL)
        found = self.tokens(rows, variates, first=x_RL.shape[1] // self.config.patch_size - 1)
        return by_window(normalise.restore(found[:, 0]), variates, horizon)

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Twice the mean pinball loss on the model's scale, of what follows every token after a random history."""
        patch, variates = self.config.patch_size, batch.past.shape[2]
        future, observed = known_future(batch, batch.horizon)
        past, future = batch.past, future
        missing = -batch.horizon % patch
        x_RL, seen_RL = whole_patches(
            torch.cat([past, F.pad(future, (0, 0, 0, missing))], 1),
            torch.cat([batch.past_observed, F.pad(observed, (0, 0, 0, missing))], 1),
            patch,
        )
        count = x_RL.shape[1] // patch
        history = int(torch.randint(min(SHORTEST, count - 1), count, ()))
        before_RT = seen_RL[:, : history * patch]
        normalise = fit_normaliser(x_RL[:, : history * patch], before_RT, self.config)
        target_RL = normalise(x_RL)
        period, score = self.trunk.rows(target_RL[:, : history * patch], before_RT)[2:]
        rows = Rows(torch.where(seen_RL, target_RL, 0.0), seen_RL, period, score)
        found = self.tokens(rows, variates, first=history - 1)[:, :-1]
        # What follows token n begins at step (n + 1) * patch; behind the window nothing is observed.
        follows = [F.pad(x, (0, self.ahead)).unfold(1, self.ahead, patch) for x in (target_RL, seen_RL)]
        target, counts = (x[:, history:count] for x in follows)
        counts = counts & before_RT.any(1)[:, None, None]
        return masked_mean(pinball(found, target, self.levels), counts)
