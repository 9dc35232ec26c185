"""Batch and Forecast: the input of a predictor, and its output.

Axes: B windows, T context steps, H horizon steps, V variates, M calendar features, P covariates known up to the
present, K covariates known in the future too, Q quantile levels.
"""

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Windows of equal shape, gathered from one ``SeriesSet``.

    Attributes:
        past: context values; 0 where not observed (missing, or before the series begins).
        past_observed: where ``past`` is observed.
        horizon: number of steps to forecast, H.
        season: steps in one season of the series (24 for hourly data), for scaled metrics and naive forecasts.
        future: values to forecast, 0 where not observed; None if they are not known.
        future_observed: where ``future`` is observed.
        past_marks: calendar features of the context steps, each in [-0.5, 0.5]; None if the model uses none.
        future_marks: the same for the horizon.
        item: index of each window's series in its ``SeriesSet``.
        cut: row of the first step to forecast in that series.
        past_covariates: covariates known up to the present, 0 where not observed. Covariate fields are None if the
            series or the model have none.
        past_covariates_observed: where ``past_covariates`` is observed.
        known_past: context of the covariates that are known in the future too.
        known_past_observed: where ``known_past`` is observed.
        known_future: the same covariates over the horizon.
        known_future_observed: where ``known_future`` is observed.
        seasons: all seasons in steps that the calendar or the user suggests (24, 168 and 8766 for hourly data), for
            models that look for seasons; empty if none is known.
    """

    past: Float[Tensor, "B T V"]
    past_observed: Bool[Tensor, "B T V"]
    horizon: int
    season: int = 1
    future: Float[Tensor, "B H V"] | None = None
    future_observed: Bool[Tensor, "B H V"] | None = None
    past_marks: Float[Tensor, "B T M"] | None = None
    future_marks: Float[Tensor, "B H M"] | None = None
    item: Int[Tensor, " B"] | None = None
    cut: Int[Tensor, " B"] | None = None
    past_covariates: Float[Tensor, "B T P"] | None = None
    past_covariates_observed: Bool[Tensor, "B T P"] | None = None
    known_past: Float[Tensor, "B T K"] | None = None
    known_past_observed: Bool[Tensor, "B T K"] | None = None
    known_future: Float[Tensor, "B H K"] | None = None
    known_future_observed: Bool[Tensor, "B H K"] | None = None
    seasons: tuple[int, ...] = ()

    def to(self, target: torch.device | str | torch.dtype) -> "Batch":
        """A copy on another device, or with its floating-point tensors in another type."""
        moved: dict[str, Any] = {}
        for name in (f.name for f in fields(self)):
            value = getattr(self, name)
            if isinstance(value, Tensor) and (value.is_floating_point() or not isinstance(target, torch.dtype)):
                moved[name] = value.to(target)
        return replace(self, **moved)

    def __len__(self) -> int:
        return self.past.shape[0]


@dataclass(frozen=True)
class Forecast:
    """Probabilistic forecasts of one batch, in the units of ``Batch.past``.

    Quantiles that cross are put in order, and what lies beyond the numbers of the type becomes the last of them.

    Attributes:
        mean: the mean of the distribution that is forecast.
        quantiles: one value per level, non-decreasing along the last axis.
        levels: the quantile levels, ascending, each in (0, 1).
    """

    mean: Float[Tensor, "B H V"]
    quantiles: Float[Tensor, "B H V Q"]
    levels: tuple[float, ...]

    def __post_init__(self) -> None:
        most = torch.finfo(self.quantiles.dtype).max
        object.__setattr__(self, "mean", self.mean.clamp(-most, most))
        object.__setattr__(self, "quantiles", self.quantiles.clamp(-most, most).sort(dim=-1).values)


def binary_size(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The power of two at or just below each number, 1 for 0: dividing by it loses no digit.

    Args:
        x: sizes, not negative.
    """
    return torch.where(x > 0, x, 1.0).log2().floor().clamp(max=math.frexp(torch.finfo(x.dtype).max)[1] - 1).exp2()
