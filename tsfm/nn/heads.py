"""Forecast heads: point forecasts, quantiles that do not cross, split-conformal intervals around a point forecast.

Shapes: B batch, H horizon, V variates, N rows, C channels, Q requested levels, K trained levels, S steps with scores.
"""

import bisect
import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from tsfm.nn.quantiles import DEFAULT_LEVELS, check_levels, mean_pinball_loss
from tsfm.nn.scaler import is_complete
from tsfm_data.errors import InputError


class PointHead(nn.Linear):
    """One linear layer from a variate's token to its horizon: a point forecast, trained on MSE."""

    levels: tuple[float, ...] = (0.5,)

    def forward(self, x_BVC: Float[Tensor, "B V C"]) -> Float[Tensor, "B H V 1"]:
        return super().forward(x_BVC).transpose(1, 2).unsqueeze(-1)

    @staticmethod
    def loss(
        output: Float[Tensor, "B H V 1"], target: Float[Tensor, "B H V"], observed: Bool[Tensor, "B H V"]
    ) -> Float[Tensor, ""]:
        """Mean squared error over the observed values."""
        return masked_mean((output.squeeze(-1) - target).square(), observed)


class QuantileHead(nn.Module):
    """Quantiles that cannot cross: the middle level plus positive increments outwards.

    Args:
        width: channels of a token.
        horizon: steps to forecast.
        levels: ascending levels to train; others are interpolated.
    """

    def __init__(self, width: int, horizon: int, levels: Sequence[float] = DEFAULT_LEVELS) -> None:
        super().__init__()
        self.levels = check_levels(levels)
        self.horizon = horizon
        self.middle = len(self.levels) // 2
        self.projection = nn.Linear(width, horizon * len(self.levels))

    def forward(self, x_BVC: Float[Tensor, "B V C"]) -> Float[Tensor, "B H V K"]:
        raw = self.projection(x_BVC).unflatten(-1, (self.horizon, len(self.levels))).transpose(1, 2)
        m = self.middle
        centre = raw[..., m : m + 1]
        down = centre - F.softplus(raw[..., :m]).flip(-1).cumsum(-1).flip(-1)
        up = centre + F.softplus(raw[..., m + 1 :]).cumsum(-1)
        return torch.cat([down, centre, up], dim=-1)

    def loss(
        self, output: Float[Tensor, "B H V K"], target: Float[Tensor, "B H V"], observed: Bool[Tensor, "B H V"]
    ) -> Float[Tensor, ""]:
        """Twice the mean pinball loss over observed values and levels; at the median, the absolute error."""
        return masked_mean(mean_pinball_loss(output, target, self.levels), observed)


def masked_mean(x: Float[Tensor, "*shape"], observed: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Mean of the observed elements of ``x``; 0 if there are none."""
    if is_complete(observed):
        return x.mean()
    return torch.where(observed, x, 0.0).sum() / observed.sum().clamp(min=1)


# Coverages with stored scores; scores are interpolated between them and constant beyond the last.
COVERAGES = (*(round(0.02 * k, 2) for k in range(1, 50)), 0.99, 0.995, 0.999)


class ConformalIntervals(nn.Module):
    """Split-conformal intervals around a point forecast, with one width per step ahead.

    The score of a residual is its absolute value in units of the forecast's own scale. The interval of coverage c is
    the point plus and minus the ``ceil((n + 1) c)``-th smallest of the n validation scores, so a new window that is
    exchangeable with them is covered with probability at least c (Vovk et al. 2005; Lei et al. 2018, section 2.2).
    Rolling windows overlap and series drift, so the guarantee is approximate; evaluations report the measured coverage.

    Args:
        horizon: steps with their own width; beyond, the last width grows with the square root of time.
    """

    scores: Tensor

    def __init__(self, horizon: int) -> None:
        super().__init__()
        self.register_buffer("scores", torch.full((len(COVERAGES), horizon), math.nan))

    @property
    def calibrated(self) -> bool:
        """Whether ``calibrate`` was called, here or before the weights were saved."""
        return not bool(self.scores.isnan().any())

    def calibrate(self, residuals: Float[Tensor, "N S"], observed: Bool[Tensor, "N S"]) -> None:
        """Set the scores from validation residuals.

        Args:
            residuals: forecast minus truth, one row per window and variate, in units of the forecast's scale.
            observed: where the truth was observed.

        Raises:
            InputError: no validation value was observed at some step.
        """
        for step in range(self.scores.shape[1]):
            sizes = residuals[observed[:, step], step].abs().sort().values
            if not len(sizes):
                raise InputError(
                    f"expected validation values to calibrate intervals on, found none at step {step + 1}: "
                    "give a longer validation part"
                )
            for row, coverage in enumerate(COVERAGES):
                rank = min(math.ceil((len(sizes) + 1) * coverage), len(sizes))
                self.scores[row, step] = sizes[rank - 1]

    def quantiles(self, point: Float[Tensor, "B H V"], levels: Sequence[float]) -> Float[Tensor, "B H V Q"]:
        """Quantiles around a point forecast: level t is one end of the central interval of coverage ``|2t - 1|``."""
        trained = self.scores.shape[1]
        steps = torch.arange(1, point.shape[1] + 1, device=point.device)
        growth = (steps / trained).clamp(min=1).sqrt()
        table = torch.cat([torch.zeros_like(self.scores[:1]), self.scores]).T  # [S, coverages], from coverage 0 on
        table = table[(steps - 1).clamp(max=trained - 1)] * growth[:, None]
        coverages = [0.0, *COVERAGES]
        columns = []
        for level in levels:
            coverage = abs(2 * level - 1)
            right = min(bisect.bisect_left(coverages, coverage), len(coverages) - 1)
            left = max(right - 1, 0)
            span = coverages[right] - coverages[left]
            weight = min((coverage - coverages[left]) / span, 1.0) if span else 0.0
            width = torch.lerp(table[:, left], table[:, right], weight)
            columns.append(point + math.copysign(1.0, level - 0.5) * width[None, :, None])
        return torch.stack(columns, dim=-1)
