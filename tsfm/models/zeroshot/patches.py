"""Batches as rows of whole patches, the input of the zero-shot models, and the way back.

Shapes: B windows, V variates, R rows (a variate of a window), L steps, K levels.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from tsfm.models.covariates import WithCovariates, with_covariates
from tsfm_data.windows import Batch


class Window(NamedTuple):
    """Windows as rows of whole patches: one row per variate and, for a model that uses them, per covariate.

    Attributes:
        x: values, 0 where not seen.
        seen: what the model may look at: the history, and the future of known covariates.
        target: values with the future of the variates filled in where it is known.
        known: where ``target`` holds a value.
        history: number of tokens of the history; the others are the future.
        columns: number of variates and covariates per window.
    """

    x: Float[Tensor, "R L"]
    seen: Bool[Tensor, "R L"]
    target: Float[Tensor, "R L"]
    known: Bool[Tensor, "R L"]
    history: int
    columns: int


def pad_to_patches(batch: Batch, horizon: int, patch: int, covariates: bool) -> Window:
    """The rows of a batch, padded to whole patches before the history and after the future.

    Args:
        batch: windows.
        horizon: steps of the future.
        patch: steps of a token.
        covariates: whether to add the covariates as rows.
    """
    if covariates:
        wide = with_covariates(batch, horizon)
    else:
        empty = batch.past.new_zeros(len(batch), horizon, batch.past.shape[2])
        wide = WithCovariates(batch.past, batch.past_observed, empty, empty.bool())
    future, known = wide.future, wide.future_observed
    if batch.future is not None and batch.future_observed is not None:
        unknown = (0, wide.past.shape[2] - batch.past.shape[2])
        future = future + F.pad(batch.future[:, :horizon].to(future.dtype), unknown)
        known = known | F.pad(batch.future_observed[:, :horizon], unknown)
    pad = (0, 0, -wide.past.shape[1] % patch, 0), (0, 0, 0, -horizon % patch)

    def rows(past: Tensor, later: Tensor) -> Tensor:
        return torch.cat([F.pad(past, pad[0]), F.pad(later, pad[1])], 1).transpose(1, 2).flatten(0, 1)

    return Window(
        rows(wide.past, wide.future),
        rows(wide.past_observed, wide.future_observed),
        rows(wide.past, future),
        rows(wide.past_observed, known),
        -(-wide.past.shape[1] // patch),
        wide.past.shape[2],
    )


def group_by_window(
    quantiles_RLK: Float[Tensor, "R L K"], columns: int, variates: int, horizon: int
) -> Float[Tensor, "B H V K"]:
    """The first ``horizon`` steps of the variates of every window."""
    return quantiles_RLK[:, :horizon].unflatten(0, (-1, columns))[:, :variates].transpose(1, 2)
