"""Quantiles: their levels, the pinball loss that trains them, and one set of quantiles made from another.

Shapes: K known levels, Q asked levels, N values.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from tsfm_data.errors import InputError

DEFAULT_LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def check_levels(levels: Sequence[float]) -> tuple[float, ...]:
    """Quantile levels as an ascending tuple.

    Raises:
        InputError: no list of numbers, no level, a level outside (0, 1), or one given twice.
    """
    try:
        asked = tuple(sorted(float(level) for level in levels))
    except (TypeError, ValueError):
        raise InputError(f"expected a list of quantile levels, found {levels!r:.60}: try [0.1, 0.5, 0.9]") from None
    if not asked or not all(0 < level < 1 for level in asked) or len(set(asked)) != len(asked):
        raise InputError(f"expected distinct quantile levels between 0 and 1, found {tuple(levels)}: try 0.1 0.5 0.9")
    return asked


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
    asked = error.new_tensor(levels)
    return torch.maximum(asked * error, (asked - 1) * error)


def mean_pinball_loss(
    quantiles: Float[Tensor, "*shape K"], target: Float[Tensor, "*shape"], levels: Sequence[float]
) -> Float[Tensor, "*shape"]:
    """Twice the mean of the pinball loss over the levels; at the median alone this is the absolute error."""
    return 2 * pinball_loss(quantiles, target, levels).mean(-1)


def interpolate_quantiles(
    values: Float[Tensor, "*shape K"], known: Sequence[float], asked: Sequence[float]
) -> Float[Tensor, "*shape Q"]:
    """Quantiles at any level from quantiles at some: linear between known levels, exponential tails beyond them.

    The tails continue the two outermost known quantiles, so the result is monotone if ``values`` is. This is the rule
    behind every published score; ``tsfm_data.evaluation.elements.quantile_at`` is the same for arrays.

    Args:
        values: quantiles at the known levels, non-decreasing along the last axis.
        known: ascending known levels.
        asked: ascending levels to answer.
    """
    if len(known) == 1:
        return values.expand(*values.shape[:-1], len(asked))
    columns = []
    for level in asked:
        # Not by bisect, which PyTorch's exporter cannot follow.
        right = min(max(sum(one < level for one in known), 1), len(known) - 1)
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
    """The mean of the distribution whose quantiles at any level are those of ``interpolate_quantiles``: their integral.

    Args:
        values: quantiles at the known levels, non-decreasing along the last axis.
        known: ascending known levels.
    """
    if len(known) == 1:
        return values[..., 0]
    low, high = known[0], 1 - known[-1]
    # Trapeziums between the levels, the outermost quantiles on to 0 and 1 ...
    weights = [(right - left) / 2 for left, right in zip((-low, *known[:-1]), (*known[1:], 1 + high), strict=True)]
    # ... and from there the mean of an exponential: what a tail gains until e times less is left of it.
    below, above = low / math.log(known[1] / low), high / math.log((1 - known[-2]) / high)
    weights[0], weights[1] = weights[0] + below, weights[1] - below
    weights[-1], weights[-2] = weights[-1] + above, weights[-2] - above
    return (values * values.new_tensor(weights)).sum(-1)


def pooled_quantiles(values: Float[Tensor, "*shape N"], levels: Float[Tensor, " Q"]) -> Float[Tensor, "*shape Q"]:
    """Quantiles of equally likely values, linear between them: ``torch.quantile`` without its limit of 2^24 values.

    Args:
        values: in any order along the last axis.
        levels: from 0 to 1.
    """
    ordered = values.sort(dim=-1).values
    place = levels * (values.shape[-1] - 1)
    below = place.floor()
    left, right = ordered[..., below.long()], ordered[..., place.ceil().long()]
    return torch.lerp(left, right, place - below)


def weighted_quantiles(
    values: Float[Tensor, "*shape N"], weights: Float[Tensor, " N"], levels: Float[Tensor, " Q"]
) -> Float[Tensor, "*shape Q"]:
    """Quantiles of values of different probability, linear between the levels up to which each of them reaches.

    Args:
        values: in any order along the last axis.
        weights: the probability of each; together 1.
        levels: from 0 to 1.
    """
    ordered, order = values.sort(dim=-1)
    reached = weights[order].cumsum(-1).clamp(max=1.0)
    reached = F.pad(F.pad(reached, (1, 0)), (0, 1), value=1.0)
    ordered = torch.cat([ordered[..., :1], ordered, ordered[..., -1:]], dim=-1)
    asked = levels.expand(*values.shape[:-1], -1).contiguous()
    above = torch.searchsorted(reached, asked, right=True).clamp(max=reached.shape[-1] - 1)
    low, high = reached.gather(-1, above - 1), reached.gather(-1, above)
    share = torch.where(high > low, (asked - low) / (high - low).clamp(min=1e-30), 0.0)
    return torch.lerp(ordered.gather(-1, above - 1), ordered.gather(-1, above), share)
