"""Series as images: line, heat map folded by the season, recurrence plot, spectrogram.

Every image is square with values from 0 to 1, time runs to the right, and only operations of PyTorch are used, so that
gradients reach the series and batches are fast. Scale and offset of a series change nothing.

Shapes: B series, T steps, S pixels of a side, K pictures.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from tsfm_data.errors import InputError, check_sizes, unknown_name

POINTS = 4  # least number of a line in a column of pixels
FLOOR = 1e-4  # of the power of a spectrogram, as a share of its maximum: 40 dB
TINY = 1e-12


def unit(x_BT: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Every series with minimum 0 and maximum 1; a constant becomes 0.5."""
    low, high = x_BT.amin(1, keepdim=True), x_BT.amax(1, keepdim=True)
    return torch.where(high > low, (x_BT - low) / (high - low).clamp(min=torch.finfo(x_BT.dtype).tiny), 0.5)


def resample(x_BT: Float[Tensor, "B T"], steps: int) -> Float[Tensor, "B _"]:
    """Every series with ``steps`` steps: straight lines between few, averages of many."""
    if x_BT.shape[1] > steps:
        return F.adaptive_avg_pool1d(x_BT[:, None], steps)[:, 0]
    return F.interpolate(x_BT[:, None], steps, mode="linear", align_corners=True)[:, 0]


def line(x_BT: Float[Tensor, "B T"], size: int) -> Float[Tensor, "B S S"]:
    """A line plot, bright on dark, with high values at the top; a pixel is as bright as the line covers it."""
    y_BT = unit(x_BT) if x_BT.shape[1] > size * POINTS else resample(unit(x_BT), size * POINTS)
    # One step more than whole columns: neighbouring columns share a step, so the line has no gaps.
    y_BT = F.pad(y_BT, (0, 1), mode="replicate")[:, : y_BT.shape[1] + (y_BT.shape[1] % size == 0)] * (size - 1)
    low_BS, high_BS = -F.adaptive_max_pool1d(-y_BT[:, None], size), F.adaptive_max_pool1d(y_BT[:, None], size)
    high_BS = high_BS + 1  # one pixel thick
    row_S1 = torch.arange(size - 1, -1, -1, device=x_BT.device, dtype=x_BT.dtype)[:, None]
    return (torch.minimum(high_BS, row_S1 + 1) - torch.maximum(low_BS, row_S1)).clamp(0, 1)


def fold(x_BT: Float[Tensor, "B T"], size: int, season: int) -> Float[Tensor, "B S S"]:
    """A heat map: one cycle of the season per row, the latest at the bottom; the phase runs to the right.

    Steps before the first whole cycle are left out, unless there are no others: these are stretched to one cycle.
    """
    cycles = x_BT.shape[1] // season
    part_BT = x_BT[:, x_BT.shape[1] - cycles * season :] if cycles else resample(x_BT, season)
    table = unit(part_BT).unflatten(1, (-1, season))[:, None]
    if min(table.shape[2:]) > size:
        return F.adaptive_avg_pool2d(table, size)[:, 0]
    return F.interpolate(table, (size, size), mode="bilinear", align_corners=True)[:, 0]


def recurrence(x_BT: Float[Tensor, "B T"], size: int) -> Float[Tensor, "B S S"]:
    """How near the values of two times are, 1 if equal; the first times meet at the top left."""
    y_BS = unit(resample(x_BT, size))
    return 1 - (y_BS[:, :, None] - y_BS[:, None]).abs()


def spectrogram(x_BT: Float[Tensor, "B T"], size: int) -> Float[Tensor, "B S S"]:
    """Power by time and frequency on a logarithmic scale of 40 dB; low frequencies at the bottom."""
    y_BT = resample(unit(x_BT), max(2 * size, x_BT.shape[1]))
    window = min(2 * size, y_BT.shape[1]) // 2 * 2
    y_BT = y_BT - y_BT.mean(1, keepdim=True)
    shape = torch.hann_window(window, device=x_BT.device, dtype=x_BT.dtype)
    hop = max(1, (y_BT.shape[1]) // size)
    found = torch.stft(y_BT, window, hop, window=shape, pad_mode="constant", return_complex=True)
    power_BFT = found.abs().square()
    most = power_BFT.amax((1, 2), keepdim=True).clamp(min=TINY)
    decibel = 1 - (power_BFT / most).clamp(min=FLOOR).log10() / torch.tensor(FLOOR).log10()
    return F.interpolate(decibel.flip(1)[:, None], (size, size), mode="bilinear", align_corners=True)[:, 0]


PICTURES: dict[str, Callable[..., Tensor]] = {"line": line, "recurrence": recurrence, "spectrogram": spectrogram}


def render(
    x_BT: Float[Tensor, "B T"], kinds: Sequence[str], size: int = 64, season: int | None = None
) -> Float[Tensor, "B K S S"]:
    """Images of series, one channel per kind of picture.

    Args:
        x_BT: series without missing values.
        kinds: "line", "fold", "recurrence" or "spectrogram", one per channel.
        size: pixels of a side.
        season: steps of a cycle of "fold".

    Raises:
        InputError: no such kind, values that are not finite, or no season to fold by.
    """
    check_sizes(size=size, season=season)
    for kind in kinds:
        if kind not in (*PICTURES, "fold"):
            raise unknown_name("picture", kind, (*PICTURES, "fold"))
    if not x_BT.isfinite().all():
        raise InputError("expected series without missing values to draw, found some: fill them first")
    if "fold" in kinds and season is None:
        raise InputError("expected a season to fold the series by, found none: give season=24, for instance")
    drawn = [fold(x_BT, size, season or 1) if kind == "fold" else PICTURES[kind](x_BT, size) for kind in kinds]
    return torch.stack(drawn, 1)
