"""Errors that have no unit, so that windows of any series can be averaged.

Shapes: B windows, T context, H horizon, V variates, Q quantile levels.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tsfm.nn import interpolate_quantiles, mean_pinball_loss
from tsfm_data.windows import Batch, Forecast

# No single window decides a mean: beyond so many seasonal-naive errors a forecast is as bad as can be.
WORST = 10.0


def seasonal_scale(past: Float[Tensor, "B T V"], observed: Bool[Tensor, "B T V"], season: int) -> Float[Tensor, "B V"]:
    """Mean absolute seasonal difference of every history, as in MASE; NaN where there is none, or where it is 0.

    Args:
        past: values.
        observed: where there is one.
        season: steps in a season; 1 is taken where a history is not longer.
    """

    def error(lag: int) -> Tensor:
        pair = observed[:, lag:] & observed[:, :-lag]
        change = torch.where(pair, (past[:, lag:] - past[:, :-lag]).abs(), 0.0)
        return change.sum(1) / pair.sum(1)

    seasonal = error(season) if 1 < season < past.shape[1] else error(1)
    found = torch.where(seasonal.isnan(), error(1), seasonal)
    # What rounding leaves of a constant history is no error of a forecast.
    return torch.where(found > 1e-6 * past.abs().amax(1), found, torch.nan)


def scaled_errors(batch: Batch, forecast: Forecast) -> tuple[dict[str, Float[Tensor, ""]], int]:
    """Mean over windows and variates of their errors in units of the seasonal-naive error over their history.

    ``mae`` is that of the median, ``wql`` twice the mean pinball loss over the levels; each window's is cut at 10. A
    window without a seasonal error or without an observed future does not count.

    Args:
        batch: windows with their future, in any unit.
        forecast: in the units of the batch, of the batch's own horizon.

    Returns:
        The errors, and how many windows and variates they are means of.
    """
    if batch.future is None or batch.future_observed is None:
        raise ValueError("expected a batch with its future, found none")
    scale_BV = seasonal_scale(batch.past.double().cpu(), batch.past_observed.cpu(), batch.season)
    future, seen = batch.future.double().cpu(), batch.future_observed.cpu()
    errors = {
        "mae": (future - interpolate_quantiles(forecast.quantiles, forecast.levels, (0.5,))[..., 0]).abs(),
        "wql": mean_pinball_loss(forecast.quantiles, future, forecast.levels),
    }
    count = seen.sum(1)
    counts = (count > 0) & scale_BV.isfinite()
    number = int(counts.sum())
    found = {}
    for name, value in errors.items():
        mean = torch.where(seen, value, 0.0).sum(1) / count
        found[name] = (mean / scale_BV)[counts].clamp(max=WORST).sum() / max(number, 1)
    return found, number
