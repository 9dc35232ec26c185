"""Quantiles: levels, pinball loss, interpolation between levels, means and pooling.

Shapes: K known levels, Q requested levels, N values.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from tsfm_data.errors import InputError

DEFAULT_LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def check_levels(levels: Sequence[float]) -> tuple[float, ...]:
    """Quantile levels as an ascending tuple.

    Raises:
        InputError: no list of numbers, no level, a level outside (0, 1), or two with one name (six digits).
    """
    try:
        ascending = tuple(sorted(float(level) for level in levels))
    except (TypeError, ValueError):
        raise InputError(f"expected a list of quantile levels, found {levels!r:.60}: try [0.1, 0.5, 0.9]") from None
    names = {float(f"{level:g}") for level in ascending}  # of the columns of a forecast
    if not ascending or not all(0 < name < 1 for name in names) or len(names) != len(ascending):
        raise InputError(f"expected distinct quantile levels between 0 and 1, found {tuple(levels)}: try 0.1 0.5 0.9")
    return ascending


def pinball_loss(
    quantiles: Float[Tensor, "*shape K"], target: Float[Tensor, "*shape"], levels: Sequence[float]
) -> Float[Tensor, "*shape K"]:
    """The pinball loss of every quantile.

    Args:
        quantiles: predicted quantiles along the last axis.
        target: true values, in the same units.
        levels: the levels of the quantiles, in their order.
    """
    error = target.unsqueeze(-1) - quantiles
    level = error.new_tensor(levels)
    return torch.maximum(level * error, (level - 1) * error)


def mean_pinball_loss(
    quantiles: Float[Tensor, "*shape K"], target: Float[Tensor, "*shape"], levels: Sequence[float]
) -> Float[Tensor, "*shape"]:
    """Twice the mean pinball loss over the levels; with the median as the only level, the absolute error."""
    return 2 * pinball_loss(quantiles, target, levels).mean(-1)


def interpolate_quantiles(
    values: Float[Tensor, "*shape K"], known: Sequence[float], requested: Sequence[float]
) -> Float[Tensor, "*shape Q"]:
    """Quantiles at any levels from those at known levels: linear in between, exponential tails beyond.

    The tails continue the two outermost known quantiles, so the result is monotone if ``values`` is. All published
    scores use this rule; ``tsfm_data.evaluation.elements.quantile_at`` is the same for arrays.

    Args:
        values: quantiles at the known levels, non-decreasing along the last axis.
        known: ascending known levels.
        requested: ascending levels of the result.
    """
    if len(known) == 1:
        return values.expand(*values.shape[:-1], len(requested))
    if tuple(requested) == tuple(known):
        return values
    columns = []
    for level in requested:
        # Not with bisect, which PyTorch's exporter cannot trace.
        right = min(max(sum(lower < level for lower in known), 1), len(known) - 1)
        low, high = known[right - 1], known[right]
        if level < low:
            weight = math.log(level / low) / math.log(high / low)
        elif level > high:
            weight = 1 + math.log((1 - high) / (1 - level)) / math.log((1 - low) / (1 - high))
        else:
            weight = (level - low) / (high - low)
        columns.append(values[..., right - 1] + weight * (values[..., right] - values[..., right - 1]))
    return torch.stack(columns, dim=-1)


def mean_of_quantiles(values: Float[Tensor, "*shape K"], known: Sequence[float]) -> Float[Tensor, "*shape"]:
    """The mean of the distribution with the quantile function of ``interpolate_quantiles``, by integration.

    Args:
        values: quantiles at the known levels, non-decreasing along the last axis.
        known: ascending known levels.
    """
    if len(known) == 1:
        return values[..., 0]
    low, high = known[0], 1 - known[-1]
    # Trapezoidal rule between the levels, the outermost quantiles constant up to 0 and 1 ...
    weights = [(right - left) / 2 for left, right in zip((-low, *known[:-1]), (*known[1:], 1 + high), strict=True)]
    # ... plus the mean excess of the exponential tails.
    below, above = low / math.log(known[1] / low), high / math.log((1 - known[-2]) / high)
    weights[0], weights[1] = weights[0] + below, weights[1] - below
    weights[-1], weights[-2] = weights[-1] + above, weights[-2] - above
    return (values * values.new_tensor(weights)).sum(-1)


def median_in_time(values: Float[Tensor, "B T V"]) -> Float[Tensor, "B 1 V"]:
    """The median over time of what is not NaN, the lower one of two; NaN if there is nothing.

    NumPy sorts in a tenth of the time that PyTorch takes for ``nanmedian`` on a CPU.
    """
    series = values.transpose(1, 2)
    ordered = torch.from_numpy(np.sort(series.numpy())) if values.device.type == "cpu" else series.sort().values
    last = (~series.isnan()).sum(-1, keepdim=True).sub(1).clamp(min=0)
    return ordered.gather(-1, last // 2).transpose(1, 2)


def pooled_quantiles(values: Float[Tensor, "*shape N"], levels: Float[Tensor, " Q"]) -> Float[Tensor, "*shape Q"]:
    """Quantiles of equally likely values, as ``torch.quantile`` without its limit of 2^24 values.

    Args:
        values: values along the last axis, in any order.
        levels: from 0 to 1.
    """
    ordered = values.sort(dim=-1).values
    position = levels * (values.shape[-1] - 1)
    below = position.floor()
    left, right = ordered[..., below.long()], ordered[..., position.ceil().long()]
    return torch.lerp(left, right, position - below)


def weighted_quantiles(
    values: Float[Tensor, "*shape N"], weights: Float[Tensor, " N"], levels: Float[Tensor, " Q"]
) -> Float[Tensor, "*shape Q"]:
    """Quantiles of values with different probabilities, linear between their cumulative probabilities.

    Args:
        values: values along the last axis, in any order.
        weights: probability of each value; the sum is 1.
        levels: from 0 to 1.
    """
    ordered, order = values.sort(dim=-1)
    cumulative = weights[order].cumsum(-1).clamp(max=1.0)
    cumulative = F.pad(F.pad(cumulative, (1, 0)), (0, 1), value=1.0)
    ordered = torch.cat([ordered[..., :1], ordered, ordered[..., -1:]], dim=-1)
    requested = levels.expand(*values.shape[:-1], -1).contiguous()
    above = torch.searchsorted(cumulative, requested, right=True).clamp(max=cumulative.shape[-1] - 1)
    low, high = cumulative.gather(-1, above - 1), cumulative.gather(-1, above)
    share = torch.where(high > low, (requested - low) / (high - low).clamp(min=1e-30), 0.0)
    return torch.lerp(ordered.gather(-1, above - 1), ordered.gather(-1, above), share)
