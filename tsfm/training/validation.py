"""Scale-free errors of forecasts, so that windows of different series can be averaged.

Shapes: B windows, T context, H horizon, V variates, Q quantile levels.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tsfm.nn import interpolate_quantiles, mean_pinball_loss
from tsfm_data.windows import Batch, Forecast

# Scaled errors are clipped here, so that single windows do not dominate the mean.
WORST = 10.0


def seasonal_scale(past: Float[Tensor, "B T V"], observed: Bool[Tensor, "B T V"], season: int) -> Float[Tensor, "B V"]:
    """Mean absolute seasonal difference of every history, as in MASE; NaN if it is undefined or 0.

    Args:
        past: values.
        observed: True for observed values.
        season: time steps in a season; for shorter histories 1 is used.
    """

    def error(lag: int) -> Tensor:
        pair = observed[:, lag:] & observed[:, :-lag]
        change = torch.where(pair, (past[:, lag:] - past[:, :-lag]).abs(), 0.0)
        return change.sum(1) / pair.sum(1)

    seasonal = error(season) if 1 < season < past.shape[1] else error(1)
    scale = torch.where(seasonal.isnan(), error(1), seasonal)
    # Differences of a constant history are rounding errors and no scale.
    return torch.where(scale > 1e-6 * past.abs().amax(1), scale, torch.nan)


def scaled_errors(batch: Batch, forecast: Forecast) -> tuple[dict[str, Float[Tensor, ""]], int]:
    """Mean errors over windows and variates, each divided by the seasonal-naive error within the history.

    ``mae`` is that of the median, ``wql`` twice the mean pinball loss over the levels; both are clipped to 10 per
    window and variate. Those without a seasonal error or an observed future are left out.

    Args:
        batch: windows with their future, in any unit.
        forecast: their forecasts, in the same unit.

    Returns:
        The mean errors, and the number of windows and variates in the mean.
    """
    if batch.future is None or batch.future_observed is None:
        raise ValueError("expected a batch with its future, found none")
    scale_BV = seasonal_scale(batch.past.double().cpu(), batch.past_observed.cpu(), batch.season)
    future, observed = batch.future.double().cpu(), batch.future_observed.cpu()
    errors = {
        "mae": (future - interpolate_quantiles(forecast.quantiles, forecast.levels, (0.5,))[..., 0]).abs(),
        "wql": mean_pinball_loss(forecast.quantiles, future, forecast.levels),
    }
    count = observed.sum(1)
    counts = (count > 0) & scale_BV.isfinite()
    number = int(counts.sum())
    means = {}
    for name, value in errors.items():
        mean = torch.where(observed, value, 0.0).sum(1) / count
        means[name] = (mean / scale_BV)[counts].clamp(max=WORST).sum() / max(number, 1)
    return means, number
