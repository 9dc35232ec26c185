"""Normalisation of each window by the location and scale of its own history."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tsfm_data.windows import binary_size


def is_complete(observed: Bool[Tensor, "*shape"]) -> bool:
    """Whether ``observed`` is a single True that is broadcast, as in batches of series without gaps.

    Read from the strides, without checking all elements; False for any other mask, even if all its elements are True.
    """
    return observed.numel() > 0 and not any(observed.stride()) and bool(observed[(0,) * observed.ndim])


class WindowScale(NamedTuple):
    """Location and scale of each window and variate, broadcast along time; a constant has scale 0."""

    loc: Float[Tensor, "B 1 V"]
    scale: Float[Tensor, "B 1 V"]

    @property
    def error_scale(self) -> Float[Tensor, "B 1 V"]:
        """Unit of errors: the scale; 1 for a constant."""
        return torch.where(self.scale > 0, self.scale, 1.0)

    def normalise(self, x: Float[Tensor, "B T V"], observed: Bool[Tensor, "B T V"]) -> Float[Tensor, "B T V"]:
        """``(x - loc) / scale`` where observed, 0 (the mean) elsewhere."""
        normal = (x - self.loc) / self.scale
        return normal if is_complete(observed) else torch.where(observed, normal, 0.0)

    def restore(self, x: Float[Tensor, "B H V"]) -> Float[Tensor, "B H V"]:
        """The inverse of ``normalise``."""
        return x * self.scale + self.loc


def standardise_windows(
    x: Float[Tensor, "B T V"], observed: Bool[Tensor, "B T V"]
) -> tuple[Float[Tensor, "B T V"], WindowScale]:
    """Every window and variate with mean 0 and standard deviation 1 over its observed steps, and the scale to undo it.

    In float64 and for numbers of any size: neither sums nor squares overflow or underflow, and a signal that is small
    compared with its offset keeps its digits. A constant becomes 0 with scale 0, so that any forecast of it is restored
    to the constant. Without observed values, location is 0 and scale 1.

    Args:
        x: values.
        observed: where ``x`` holds a value.
    """
    x = torch.where(observed, x.double(), 0.0)
    size = binary_size(x.abs().amax(dim=1, keepdim=True))
    x = x / size
    low = torch.where(observed, x, math.inf).amin(dim=1, keepdim=True)
    high = torch.where(observed, x, -math.inf).amax(dim=1, keepdim=True)
    seen = observed.any(dim=1, keepdim=True)
    middle = torch.where(seen, 0.5 * (low + high), 0.0)
    count = observed.sum(dim=1, keepdim=True).clamp(min=1)
    deviation = torch.where(observed, x - middle, 0.0)
    shift = deviation.sum(dim=1, keepdim=True) / count
    deviation = torch.where(observed, deviation - shift, 0.0)
    std = deviation.square().sum(dim=1, keepdim=True).div(count).sqrt()
    changes = (high > low) & (std > 0)
    normal = torch.where(changes, deviation / torch.where(changes, std, 1.0), 0.0)
    scale = torch.where(changes, std * size, torch.where(seen, 0.0, 1.0))
    return normal, WindowScale(torch.where(changes, middle + shift, middle) * size, scale)


def window_scale(
    x: Float[Tensor, "B T V"], observed: Bool[Tensor, "B T V"], eps: float = 1e-5, detach: bool = True
) -> WindowScale:
    """Mean and biased standard deviation ``sqrt(var + eps)`` over the observed steps of each window and variate.

    A variate without observed values gets location 0 and scale ``sqrt(eps)``.

    Args:
        x: values, 0 where not observed.
        observed: where ``x`` holds a value.
        eps: added to the variance; iTransformer uses 1e-5.
        detach: whether the gradient stops at the statistics.
    """
    complete = is_complete(observed)
    count = x.shape[1] if complete else observed.sum(dim=1, keepdim=True).clamp(min=1)
    loc = x.sum(dim=1, keepdim=True) / count
    deviation = x - loc if complete else torch.where(observed, x - loc, 0.0)
    scale = torch.sqrt(deviation.square().sum(dim=1, keepdim=True) / count + eps)
    return WindowScale(loc.detach(), scale.detach()) if detach else WindowScale(loc, scale)


def packed_scale(
    target: Float[Tensor, "B N P"],
    seen: Bool[Tensor, "B N P"],
    group: Int[Tensor, "B N"],
    groups: int,
    eps: float = 1e-5,
) -> tuple[Float[Tensor, "B N 1"], Float[Tensor, "B N 1"]]:
    """Mean and standard deviation ``sqrt(var + eps)`` of every group of patches, returned for every patch.

    Computed in float64, without gradient; the variance divides by one less than the number of values (uni2ts). A group
    without any value gets location 0 and scale ``sqrt(eps)``.

    Args:
        target: patches.
        seen: the values to use.
        group: group of every patch, from 0.
        groups: number of groups.
        eps: added to the variance.
    """
    index = group.flatten()

    def total(x: Tensor) -> Tensor:
        return x.new_zeros(groups).index_add(0, index, x.sum(-1).flatten())[group][..., None]

    values = torch.where(seen, target.detach().double(), 0.0)
    count = total(seen.double())
    loc = total(values) / count.clamp(min=1)
    deviation = torch.where(seen, values - loc, 0.0)
    scale = torch.sqrt(total(deviation.square()) / (count - 1).clamp(min=1) + eps)
    return loc.to(target.dtype), scale.to(target.dtype)
