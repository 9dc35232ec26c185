"""What effects of covariates are made of: their columns, with wild values left out, on the scale of the history.

Shapes: R rows (a variate of a window), T steps of history, S = T + H steps, C covariates, D columns of each, F features
of all.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

FEW_VALUES = 8  # a covariate with at most so many different values has a feature for each
SAMPLE = 256  # values of a history that are sorted, for these quantiles
KNOTS = (0.3, 0.7)  # quantiles of the other covariates where their effect may bend
BEYOND = 0.5  # how far a covariate may leave the range of its history, in units of this range


def within_range(x_RCS: Float[Tensor, "R C S"], seen_RCS: Bool[Tensor, "R C S"], steps: int) -> Float[Tensor, "R C S"]:
    """Covariates limited to a little more than the range of their history; 0 without a history."""
    past_RCT, seen_RCT = x_RCS[..., :steps], seen_RCS[..., :steps]
    high_RC1 = torch.where(seen_RCT, past_RCT, -math.inf).amax(2, keepdim=True)
    low_RC1 = torch.where(seen_RCT, past_RCT, math.inf).amin(2, keepdim=True)
    room_RC1 = BEYOND * (high_RC1 - low_RC1)
    limited_RCS = torch.minimum(torch.maximum(x_RCS, low_RC1 - room_RC1), high_RC1 + room_RC1)
    return torch.where(seen_RCT.any(2, keepdim=True), limited_RCS, 0.0)


def features(x_RCS: Float[Tensor, "R C S"], seen_RCS: Bool[Tensor, "R C S"], steps: int) -> Float[Tensor, "R C D S"]:
    """Every covariate itself, and what its effect may be made of.

    A covariate with many values has hinges, ``max(0, x - knot)``, so an effect may saturate or turn around. One with a
    few values, but more than two, has a column for each of them, which is 1 where it has this value. Columns that do
    not apply to a covariate are 0.
    """
    sample = slice(None, steps, max(1, steps // SAMPLE))
    past_RCT = torch.where(seen_RCS[..., sample], x_RCS[..., sample], math.nan)
    ordered_RCT = past_RCT.sort(2).values  # NaN comes last
    is_new_RCT = torch.cat([~ordered_RCT[..., :1].isnan(), ordered_RCT[..., 1:] > ordered_RCT[..., :-1]], 2)
    values_RC1 = is_new_RCT.sum(2, keepdim=True)
    few_RC1 = values_RC1 <= FEW_VALUES
    columns = [x_RCS]
    if not bool(few_RC1.all()):
        last_RC1 = (seen_RCS[..., sample].sum(2, keepdim=True) - 1).clamp(min=0)
        for share in KNOTS:
            knot_RC1 = ordered_RCT.gather(2, (last_RC1 * share).round().long()).nan_to_num()
            columns.append(torch.where(few_RC1, 0.0, (x_RCS - knot_RC1).clamp(min=0)))
    if bool((few_RC1 & (values_RC1 > 2)).any()):
        rank_RCT = is_new_RCT.cumsum(2)
        for number in range(FEW_VALUES):
            first_RC1 = (rank_RCT > number).float().argmax(2, keepdim=True)
            is_equal_RCS = x_RCS == ordered_RCT.gather(2, first_RC1)
            columns.append((is_equal_RCS & few_RC1 & (values_RC1 > max(2, number))).to(x_RCS.dtype))
    return torch.stack(columns, 2)


def deviations(
    x_RFS: Float[Tensor, "R F S"], seen_RFS: Bool[Tensor, "R F S"], cycle_R: Int[Tensor, " R"], steps: int
) -> Float[Tensor, "R F S"]:
    """Distances from the mean at the same phase of the cycle in the history; 0 where not seen."""
    phase_RFS = (torch.arange(x_RFS.shape[2], device=x_RFS.device) % cycle_R[:, None])[:, None].expand_as(x_RFS)
    past_RFT = torch.where(seen_RFS, x_RFS, 0.0)[..., :steps]
    seen_RFT = seen_RFS[..., :steps].to(x_RFS.dtype)
    empty = x_RFS.new_zeros(*x_RFS.shape[:2], int(cycle_R.max()))
    total, count = (empty.scatter_add(2, phase_RFS[..., :steps], x) for x in (past_RFT, seen_RFT))
    overall_RF1 = past_RFT.sum(2, keepdim=True) / seen_RFT.sum(2, keepdim=True).clamp(min=1)
    mean = torch.where(count > 0, total / count.clamp(min=1), overall_RF1)
    return torch.where(seen_RFS, x_RFS - mean.gather(2, phase_RFS), 0.0)


def moved(x: Tensor, cut_R: Int[Tensor, " R"], steps: int) -> Tensor:
    """Rows moved ``cut`` steps to the right and cut or padded to ``steps``; 0 where there is nothing."""
    index_RS = torch.arange(steps, device=x.device) - cut_R[:, None]
    inside_RS = (index_RS >= 0) & (index_RS < x.shape[-1])
    index_RS = index_RS.clamp(0, x.shape[-1] - 1)
    if x.ndim == 3:
        index_RS, inside_RS = index_RS[:, None].expand(-1, x.shape[1], -1), inside_RS[:, None]
    return torch.where(inside_RS, x.gather(-1, index_RS), torch.zeros((), dtype=x.dtype, device=x.device))
