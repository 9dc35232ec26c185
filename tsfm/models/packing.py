"""Packed rows: patches of several series in one row, with their scales and their loss per series.

Shapes: B rows, N tokens, P steps of a patch, T context, H horizon, S forecast steps, V variates, K levels,
G groups (a variate of a sample).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from tsfm.nn import masked_mean, mean_pinball_loss, packed_scale, window_scale
from tsfm_data.corpus import PackedRows
from tsfm_data.errors import InputError
from tsfm_data.windows import Batch


@dataclass(frozen=True, eq=False)
class Packed(PackedRows):
    """Packed rows, with the computations that several models share.

    Attributes:
        patch_size: steps of every token, for a model with several patch sizes; the rest of the patch is 0.
    """

    patch_size: Int[Tensor, "B N"] | None = None

    @classmethod
    def of(cls, rows: PackedRows) -> "Packed":
        """The rows of a loader."""
        return rows if isinstance(rows, cls) else cls(**{f.name: getattr(rows, f.name) for f in fields(PackedRows)})

    @cached_property
    def groups(self) -> "VariateGroups":
        """Index of the variate of every token, unique over all samples and rows."""
        row = torch.arange(len(self.sample_id), device=self.sample_id.device)[:, None]
        samples, variates = (int(x.max()) + 1 if x.numel() else 1 for x in (self.sample_id, self.variate_id))
        index = (row * samples + self.sample_id) * variates + self.variate_id
        return VariateGroups(index, len(self.sample_id) * samples * variates)

    def compact(self) -> "Packed":
        """All tokens except padding in one row, which saves time; the loss is the same."""
        row = torch.arange(len(self.sample_id), device=self.sample_id.device)[:, None]
        index = (self.sample_id.flatten() > 0).nonzero()[:, 0]
        parts = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        parts["sample_id"] = self.sample_id + row * (self.sample_id.max() + 1)
        return replace(self, **{name: x.flatten(0, 1).index_select(0, index)[None] for name, x in parts.items()})

    def scale(self) -> tuple[Float[Tensor, "B N 1"], Float[Tensor, "B N 1"]]:
        """Location and scale of every token's series, over the values that are observed and not to be predicted."""
        seen = self.observed & ~self.is_predicted[..., None]
        loc, scale = packed_scale(self.target, seen, self.groups.index, self.groups.count)
        padding = (self.sample_id == 0)[..., None]
        return loc.masked_fill(padding, 0.0), scale.masked_fill(padding, 1.0)

    def next_patch(self) -> tuple[Float[Tensor, "B N P"], Bool[Tensor, "B N P"]]:
        """The patch that follows every token within its sample, and where it is observed: the labels of a decoder."""
        label, observed = (F.pad(x[:, 1:], (0, 0, 0, 1)) for x in (self.target, self.observed))
        follows = F.pad(self.sample_id[:, 1:] == self.sample_id[:, :-1], (0, 1))[..., None]
        return label.masked_fill(~follows, 0.0), observed & follows

    def loss(self, nll: Float[Tensor, "B N P"], observed: Bool[Tensor, "B N P"]) -> Float[Tensor, ""]:
        """Mean loss over the observed steps to predict: per variate first, then over all variates of all samples.

        Args:
            nll: negative log likelihood of every step.
            observed: steps that have a label.
        """
        counts = observed & self.is_predicted[..., None]
        total = self.groups.sum(torch.where(counts, nll, 0.0).sum(-1))
        number = self.groups.sum(counts.sum(-1).to(nll.dtype))
        return (total / number.clamp(min=1)).sum() / (number > 0).sum().clamp(min=1)


@dataclass(frozen=True, eq=False)
class VariateGroups:
    """The variate of every token, and the number of variates; some may have no token."""

    index: Int[Tensor, "B N"]
    count: int

    def sum(self, x_BN: Float[Tensor, "B N"]) -> Float[Tensor, " G"]:
        """Sum over the tokens of every variate."""
        return x_BN.new_zeros(self.count).index_add(0, self.index.flatten(), x_BN.flatten())


def pack_window(
    past_BTV: Float[Tensor, "B T V"], observed_BTV: Bool[Tensor, "B T V"], pad_BT: Bool[Tensor, "B T"], patch: int
) -> Packed:
    """Cut windows into patches, one variate after the other; a window is padded on the left to whole patches.

    Args:
        past_BTV: values, 0 where not observed.
        observed_BTV: where there is a value.
        pad_BT: steps before the series began; patches of such steps only are padding.
        patch: steps of a patch.
    """
    variates, missing = past_BTV.shape[2], -past_BTV.shape[1] % patch
    target, observed = (
        F.pad(x, (0, 0, missing, 0)).unflatten(1, (-1, patch)).movedim(3, 1).flatten(1, 2)
        for x in (past_BTV, observed_BTV)
    )
    real = ~F.pad(pad_BT, (missing, 0), value=True).unflatten(1, (-1, patch)).all(-1)
    time_id = (real.cumsum(1) - 1).clamp(min=0)
    variate_id = torch.arange(variates, device=past_BTV.device).repeat_interleave(real.shape[1])
    sample_id = real.long().repeat(1, variates)
    not_predicted = torch.zeros_like(sample_id, dtype=torch.bool)
    return Packed(
        target, observed, sample_id, time_id.repeat(1, variates), variate_id.expand_as(sample_id), not_predicted
    )


def append_future(
    packed: Packed,
    future_BHV: Float[Tensor, "B H V"],
    observed_BHV: Bool[Tensor, "B H V"],
    patch: int,
) -> Packed:
    """Append the patches of a horizon, which are to be predicted, to those of a window; padded on the right.

    Args:
        packed: the window, from ``pack_window``; all of its variates end at the same time.
        future_BHV: values, 0 where not known.
        observed_BHV: where a value is known.
        patch: steps of a patch.
    """
    variates, missing = future_BHV.shape[2], -future_BHV.shape[1] % patch
    target, observed = (
        F.pad(x, (0, 0, 0, missing)).unflatten(1, (-1, patch)).movedim(3, 1).flatten(1, 2)
        for x in (future_BHV, observed_BHV)
    )
    tokens = target.shape[1] // variates
    steps = torch.arange(1, tokens + 1, device=target.device).repeat(variates)
    # A window of padding only ends before its first patch.
    last = torch.where(packed.sample_id.amax(1) > 0, packed.time_id.amax(1), -1)[:, None]
    variate = torch.arange(variates, device=target.device).repeat_interleave(tokens)
    time_id = last + steps
    horizon = Packed(
        target,
        observed,
        torch.ones_like(time_id),
        time_id,
        variate.expand_as(time_id),
        torch.ones_like(time_id, dtype=torch.bool),
    )
    return join(packed, horizon)


def known_future(batch: Batch, horizon: int) -> tuple[Float[Tensor, "B H V"], Bool[Tensor, "B H V"]]:
    """The future of a batch, and where it is observed.

    Raises:
        InputError: the batch holds no future of that many steps.
    """
    if batch.future is None or batch.future_observed is None or batch.future.shape[1] != horizon:
        length = "none" if batch.future is None else f"{batch.future.shape[1]} steps"
        raise InputError(f"expected a future of {horizon} steps in the batch, found {length}")
    return batch.future, batch.future_observed


def scaled_quantile_loss(output: Float[Tensor, "B S V K"], batch: Batch, levels: Sequence[float]) -> Float[Tensor, ""]:
    """Twice the mean pinball loss over the observed future values and levels, on the scale of each window.

    Raises:
        InputError: the batch holds no future of S steps.
    """
    scale = window_scale(batch.past, batch.past_observed).scale
    future, observed = known_future(batch, output.shape[1])
    return masked_mean(mean_pinball_loss(output / scale[..., None], future / scale, levels), observed)


def join(*parts: Packed) -> Packed:
    """Concatenate rows along the tokens."""
    names = [f.name for f in fields(Packed) if getattr(parts[0], f.name) is not None]
    return replace(parts[0], **{name: torch.cat([getattr(part, name) for part in parts], dim=1) for name in names})
