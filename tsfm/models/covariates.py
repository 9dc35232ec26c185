"""Covariates as further variates of a window, and their standardisation.

Shapes: B windows, T context, H horizon, V variates, P covariates known up to the present, K known in the future too,
W = V + P + K columns, S = T + H, C covariates.
"""

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from tsfm.nn import standardise_windows
from tsfm_data.windows import Batch

FAR = 5.0  # standard deviations; only windows with such a value are searched for wild ones
FEW = 3  # most wild values on either side
WILD = 2.0  # widths of the range of the other values


class WithCovariates(NamedTuple):
    """Windows whose columns are the variates, the past covariates and the known covariates, in this order.

    Attributes:
        past: values of the context; 0 where not observed.
        past_observed: where ``past`` holds a value.
        future: values of the known covariates over the horizon; 0 for all other columns.
        future_observed: where ``future`` holds a value.
    """

    past: Float[Tensor, "B T W"]
    past_observed: Bool[Tensor, "B T W"]
    future: Float[Tensor, "B H W"]
    future_observed: Bool[Tensor, "B H W"]


def with_covariates(batch: Batch, horizon: int | None = None) -> WithCovariates:
    """The variates of a batch, followed by its covariates, if there are any.

    Args:
        batch: windows.
        horizon: steps of the future; None takes the batch's. Known values beyond it are left out, and missing ones are
            marked as not observed.
    """
    steps = batch.horizon if horizon is None else horizon
    past, observed = [batch.past], [batch.past_observed]
    for values, seen in (
        (batch.past_covariates, batch.past_covariates_observed),
        (batch.known_past, batch.known_past_observed),
    ):
        if values is not None and seen is not None:
            past.append(values.to(batch.past.dtype))
            observed.append(seen)
    columns = sum(x.shape[2] for x in past)
    if batch.known_future is None or batch.known_future_observed is None:
        future = batch.past.new_zeros(len(batch), steps, columns)
        future_observed = torch.zeros_like(future, dtype=torch.bool)
    else:
        fill = (columns - batch.known_future.shape[2], 0, 0, max(0, steps - batch.known_future.shape[1]))
        future = F.pad(batch.known_future[:, :steps].to(batch.past.dtype), fill)
        future_observed = F.pad(batch.known_future_observed[:, :steps], fill)
    return WithCovariates(torch.cat(past, dim=2), torch.cat(observed, dim=2), future, future_observed)


def standardise_covariates(batch: Batch) -> Batch:
    """Bring each covariate of each window to mean 0 and standard deviation 1 over its observed values.

    These are the past ones, and for a known covariate the future ones, too. Computed in float64; constants become 0. A
    few wild values, such as -999 for a missing one, are marked as not observed: next to them all others would be equal.
    """
    if batch.past_covariates is not None and batch.past_covariates_observed is not None:
        values, seen = standardise_tame(batch.past_covariates, batch.past_covariates_observed)
        batch = replace(batch, past_covariates=values, past_covariates_observed=seen)
    if batch.known_past is not None and batch.known_past_observed is not None:
        values, seen, context = batch.known_past, batch.known_past_observed, batch.known_past.shape[1]
        if batch.known_future is not None and batch.known_future_observed is not None:
            values = torch.cat([values, batch.known_future], dim=1)
            seen = torch.cat([seen, batch.known_future_observed], dim=1)
        values, seen = standardise_tame(values, seen)
        batch = replace(batch, known_past=values[:, :context], known_past_observed=seen[:, :context])
        if batch.known_future is not None:
            batch = replace(batch, known_future=values[:, context:], known_future_observed=seen[:, context:])
    return batch


def standardise_tame(
    x: Float[Tensor, "B S C"], seen: Bool[Tensor, "B S C"]
) -> tuple[Float[Tensor, "B S C"], Bool[Tensor, "B S C"]]:
    """Standardised values, and where they are observed and not wild.

    A value is wild if it is ``WILD`` times as far from the range of the others as this is wide. The range leaves out
    the ``FEW`` largest and smallest values; if it is a point, nothing is wild: an event may be rare.
    """
    standard, _ = standardise_windows(x, seen)
    far = (standard.abs() > FAR).flatten(1).any(1).nonzero()[:, 0]
    if not len(far) or x.shape[1] <= 2 * FEW:
        return standard, seen
    values, known = x[far].double(), seen[far]
    low = torch.where(known, values, math.inf).topk(FEW + 1, dim=1, largest=False).values[:, -1:]
    high = torch.where(known, values, -math.inf).topk(FEW + 1, dim=1).values[:, -1:]
    room = torch.where(high > low, WILD * (high - low), math.inf)
    known = known & (values >= low - room) & (values <= high + room)
    return standard.index_copy(0, far, standardise_windows(x[far], known)[0]), seen.index_copy(0, far, known)
