"""Series as images to complete: one cycle of the season per column, its phases from top to bottom.

Shapes: R rows (a variate of a window), T steps of history, S pixels of a side, C columns of the history, F columns of
the future, H steps to forecast, K levels.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tsfm.models import measure_changes
from tsfm.nn import asinh

LEAST_SCALE = 0.01  # of an image, in units of the window's standard deviation
LEAST_UNIT = 0.01  # of errors, in units of the image's scale
LEAST_SHARE = 1e-6  # of a pixel that must be observed


class Folded(NamedTuple):
    """Images, and what turns deviations from the last cycle into values.

    Attributes:
        image: three channels. Values on a logarithmic scale; their distance from the last cycle; whether they are
            observed. In the future: the last cycle; the mean cycle's distance from it; 0.
        loc: mean of the image's history.
        scale: its standard deviation.
        last: the last cycle on this scale, a value for every row of pixels.
        unit: mean change from cycle to cycle on this scale.
        period: steps of a column.
        repeats: whether the series has a season. If not, its last value takes the place of the last cycle.
    """

    image: Float[Tensor, "R 3 S S"]
    loc: Float[Tensor, "R 1"]
    scale: Float[Tensor, "R 1"]
    last: Float[Tensor, "R S"]
    unit: Float[Tensor, " R"]
    period: Int[Tensor, " R"]
    repeats: Bool[Tensor, " R"]


def fold(
    x_RT: Float[Tensor, "R T"],
    seen_RT: Bool[Tensor, "R T"],
    season_R: Int[Tensor, " R"],
    size: int,
    future: int,
    reach: int,
) -> Folded:
    """Draw the latest cycles of series, and leave room for the future.

    Args:
        x_RT: values with a standard deviation of about 1, 0 where not seen.
        seen_RT: where there is a value.
        season_R: steps of a season, 0 for none.
        size: S.
        future: F.
        reach: steps that the future must hold. Seasons that are too short for it are repeated in a column.
    """
    repeats_R = season_R > 0
    shortest = -(-reach // future)
    period_R = season_R.clamp(min=1)
    period_R = period_R * -(-shortest // period_R)
    x_RSC, share_RSC = draw(x_RT, seen_RT, period_R, size, size - future)
    is_seen_RSC = share_RSC > LEAST_SHARE
    count_R11 = is_seen_RSC.sum((1, 2), keepdim=True).clamp(min=1)
    loc = (x_RSC * is_seen_RSC).sum((1, 2), keepdim=True) / count_R11
    away_RSC = (x_RSC - loc) * is_seen_RSC
    scale = (away_RSC.square().sum((1, 2), keepdim=True) / count_R11).sqrt().clamp(min=LEAST_SCALE)
    y_RSC = away_RSC / scale
    place_C = torch.arange(1, size - future + 1, device=x_RT.device)
    latest_RS = (is_seen_RSC * place_C).amax(2)  # 0 if the phase was never seen
    last_RS = y_RSC.gather(2, (latest_RS - 1).clamp(min=0)[..., None])[..., 0]
    time_RS = torch.where(latest_RS > 0, latest_RS * size + torch.arange(size, device=x_RT.device), -1)
    end_R1 = last_RS.gather(1, time_RS.argmax(1, keepdim=True))
    last_RS = torch.where(repeats_R[:, None] & (latest_RS > 0), last_RS, end_R1)
    _, change_R = measure_changes(x_RT, seen_RT, torch.where(repeats_R, period_R, 1))
    unit_R = torch.where(change_R.isfinite(), change_R / scale[:, 0, 0], 1.0).clamp(min=LEAST_UNIT)
    mean_RS = y_RSC.sum(2) / is_seen_RSC.sum(2).clamp(min=1)
    mean_RS = torch.where(latest_RS > 0, mean_RS, last_RS)

    def distance(y: Tensor) -> Tensor:
        return asinh((y - last_RS[..., None]) / unit_R[:, None, None])

    ahead = (asinh(last_RS[..., None]), distance(mean_RS[..., None]), torch.zeros_like(last_RS[..., None]))
    past = (asinh(y_RSC), distance(y_RSC) * is_seen_RSC, share_RSC)
    image = torch.stack([torch.cat([a, b.expand(-1, -1, future)], 2) for a, b in zip(past, ahead, strict=True)], 1)
    return Folded(image, loc[:, 0], scale[:, 0], last_RS, unit_R, period_R, repeats_R)


def draw(
    x_RT: Float[Tensor, "R T"], seen_RT: Bool[Tensor, "R T"], period_R: Int[Tensor, " R"], size: int, columns: int
) -> tuple[Float[Tensor, "R S C"], Float[Tensor, "R S C"]]:
    """Means of the steps behind every pixel, 0 if none is seen, and the share that is seen; the last column is latest.

    A pixel may hold a part of a step, or several steps: means are differences of cumulative sums.
    """
    steps = x_RT.shape[1]
    ticks_RE = torch.arange(columns * size + 1, device=x_RT.device) * period_R[:, None]  # of size per step
    before_RE = steps - columns * period_R[:, None] + ticks_RE // size
    part_RE = (ticks_RE % size).double() / size
    table = torch.stack([torch.where(seen_RT, x_RT, 0.0), seen_RT.to(x_RT.dtype)]).double().cumsum(2)
    table = torch.nn.functional.pad(table, (1, 0))
    lower, upper = (table.gather(2, (before_RE + i).clamp(0, steps).expand(2, -1, -1)) for i in (0, 1))
    total, seen = torch.lerp(lower, upper, part_RE).diff(dim=2).unflatten(2, (columns, size)).transpose(2, 3)
    share = seen * (size / period_R.double())[:, None, None]
    is_seen = share > LEAST_SHARE
    return torch.where(is_seen, total / torch.where(is_seen, seen, 1.0), 0.0).to(x_RT.dtype), share.to(x_RT.dtype)


def read(
    folded: Folded, deviation: Float[Tensor, "K R S F"], x_RT: Float[Tensor, "R T"], seen_RT: Bool[Tensor, "R T"],
    steps: int,
) -> Float[Tensor, "R H K"]:  # fmt: skip
    """Values of the next steps, from the deviations from the last cycle in the right part of the image.

    Args:
        folded: the images.
        deviation: what to add to the last cycle, on the scale of the image; any number of values per pixel.
        x_RT: the history.
        seen_RT: where there is a value.
        steps: H.
    """
    size = deviation.shape[2]
    step_H, period_R1 = torch.arange(steps, device=x_RT.device), folded.period[:, None]
    phase_RH = step_H % period_R1
    row_RH = ((phase_RH + 0.5) * (size / period_R1) - 0.5).clamp(0, size - 1)
    above_RH = row_RH.floor().long()
    below_RH = (above_RH + 1).clamp(max=size - 1)
    part_RH = (row_RH - above_RH).to(deviation.dtype)

    def between(image: Tensor, column: Tensor | int, columns: int) -> Tensor:
        flat = image.flatten(-2)
        index = (row * columns + column for row in (above_RH, below_RH))
        above, below = (flat.gather(-1, i.expand(*flat.shape[:-1], -1)) for i in index)
        return torch.lerp(above, below, part_RH)

    back_RH = x_RT.shape[1] - period_R1 + phase_RH
    known_RH = folded.repeats[:, None] & (back_RH >= 0) & seen_RT.gather(1, back_RH.clamp(min=0))
    exact_RH = (x_RT.gather(1, back_RH.clamp(min=0)) - folded.loc) / folded.scale
    last_RH = torch.where(known_RH, exact_RH, between(folded.last[..., None], 0, 1))
    columns = deviation.shape[3]
    y_KRH = last_RH + between(deviation, (step_H // period_R1).clamp(max=columns - 1), columns)
    return (y_KRH * folded.scale + folded.loc).movedim(0, -1)
