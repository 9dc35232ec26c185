"""Augmentation of batches of training windows.

Each augmentation changes a random share of the rows of ``x``, in place; NaN means not observed. Letters: B rows,
L steps, R chosen rows, K knots. Sources: TSMixup (Ansari et al., "Chronos", 2024, section 4.1); censoring, amplitude
modulation and spikes (Auer et al., "TiRex", 2025, section 3.3).
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Float32, Int

from tsfm_data.errors import InputError

Windows = Float32[np.ndarray, "B L"]
DAYS = np.array([24, 24, 24, 48, 96, 96, 144, 288])  # steps in a day, for hourly to five-minute data
MIN_OPEN = 8  # observed steps of history that ``closed`` leaves at least


@dataclass(frozen=True)
class AugmentConfig:
    """The share of the windows that each augmentation changes; 0, the default, turns it off.

    Attributes:
        resample: a coarser series (every 2nd to 6th step) or a finer one (2 to 4 for 1, interpolated linearly).
        average: means over 2 to 48 steps, of windows that are not resampled.
        mixup: a convex combination of one to four windows of the batch, each scaled by its mean absolute deviation.
        scale: multiply by a log-normal factor (standard deviation 1 of the logarithm).
        modulate: multiply by a piecewise linear curve with random values at its knots.
        flip_sign: multiply by -1.
        flip_time: reverse the order of the steps.
        censor: clip at a quantile, from above or from below.
        spikes: add periodic spikes; the period is random for each window.
        quantise: round to 3 to 50 levels.
        missing: make a block of the history missing.
        closed: make the same part of every day missing, and in some windows two days of seven, future included.
    """

    resample: float = 0.0
    average: float = 0.0
    mixup: float = 0.0
    scale: float = 0.0
    modulate: float = 0.0
    flip_sign: float = 0.0
    flip_time: float = 0.0
    censor: float = 0.0
    spikes: float = 0.0
    quantise: float = 0.0
    missing: float = 0.0
    closed: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 0 <= getattr(self, field.name) <= 1:
                raise InputError(f"augment.{field.name}: expected a share in [0, 1], found {getattr(self, field.name)}")


def augment(x: Windows, context: int, config: AugmentConfig, rng: np.random.Generator) -> None:
    """Apply every augmentation except resampling and averaging, which happen when windows are sampled.

    Args:
        x: windows, NaN where nothing is observed; changed in place.
        context: steps of history; the rest is the future.
        config: the share of windows for each augmentation.
        rng: source of randomness.
    """
    if config == AugmentConfig(resample=config.resample, average=config.average):
        return
    with np.errstate(over="ignore", invalid="ignore"):  # values near the limit of float32 may overflow
        rows = choose(len(x), config.mixup, rng)
        if len(rows):
            x[rows] = mixup(x, rows, rng)
        for name, function in AUGMENTATIONS.items():
            rows = choose(len(x), getattr(config, name), rng)
            if len(rows):
                x[rows] = function(x[rows], rng)
    rows = choose(len(x), config.missing, rng)
    if len(rows):
        x[rows, :context] = missing(x[rows, :context], rng)
    rows = choose(len(x), config.closed, rng)
    if len(rows):
        x[rows] = closed(x[rows], context, rng)
    np.copyto(x, np.float32(np.nan), where=np.isinf(x))


def choose(count: int, share: float, rng: np.random.Generator) -> Int[np.ndarray, " R"]:
    """Indices of the chosen rows: each of ``count`` is chosen with probability ``share``."""
    return np.flatnonzero(rng.random(count) < share) if share else np.zeros(0, dtype=np.int64)


def mean_deviation(x: Windows) -> Float32[np.ndarray, "B 1"]:
    """Mean absolute deviation of each window; 1 if it is zero or not finite."""
    observed = ~np.isnan(x)
    count = np.maximum(observed.sum(axis=1, keepdims=True), 1).astype(np.float32)
    mean = np.where(observed, x, 0).sum(axis=1, keepdims=True) / count
    deviation = np.where(observed, np.abs(x - mean), 0).sum(axis=1, keepdims=True) / count
    return np.where((deviation > 0) & np.isfinite(deviation), deviation, 1).astype(np.float32)


def mixup(x: Windows, rows: Int[np.ndarray, " R"], rng: np.random.Generator) -> Float32[np.ndarray, "R L"]:
    """Convex combinations of 1 to 4 windows, with weights of a Dirichlet distribution of concentration 1.5.

    A step of a combination is observed if it is observed in all its parts. A window that would lose more than half of
    its observed steps stays as it is.

    Args:
        x: all windows of the batch.
        rows: those to change.
        rng: source of randomness.
    """
    parts = rng.integers(0, len(x), (len(rows), 4))
    parts[:, 0] = rows
    weights = rng.gamma(1.5, size=parts.shape) * (np.arange(4) < rng.integers(1, 5, (len(rows), 1)))
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    unit = x / mean_deviation(x)
    mixed = weights[:, :1] * unit[rows]
    for k in range(1, 4):
        used = np.flatnonzero(weights[:, k])
        mixed[used] += weights[used, k, None] * unit[parts[used, k]]
    enough = (~np.isnan(mixed)).sum(axis=1) * 2 >= (~np.isnan(x[rows])).sum(axis=1)
    return np.where(enough[:, None], mixed, x[rows])


def scale(x: Windows, rng: np.random.Generator) -> Windows:
    """Multiply each window by a random factor."""
    return x * rng.lognormal(size=(len(x), 1)).astype(np.float32)


def modulate(x: Windows, rng: np.random.Generator) -> Windows:
    """Multiply by a piecewise linear curve through 3 to 6 evenly spaced knots with values from N(1, 0.5)."""
    knots = int(rng.integers(3, 7))
    position = np.linspace(0, knots - 1, x.shape[1])
    hat_KL = np.maximum(1 - np.abs(position - np.arange(knots)[:, None]), 0).astype(np.float32)
    return x * (rng.normal(1, 0.5, (len(x), knots)).astype(np.float32) @ hat_KL)


def flip_sign(x: Windows, rng: np.random.Generator) -> Windows:
    """Multiply by -1."""
    return -x


def flip_time(x: Windows, rng: np.random.Generator) -> Windows:
    """Reverse the steps between the first and the last observed one; padding outside them stays in place."""
    observed = ~np.isnan(x)
    first, last = observed.argmax(axis=1), x.shape[1] - 1 - observed[:, ::-1].argmax(axis=1)
    step = np.arange(x.shape[1])
    source = np.where((step >= first[:, None]) & (step <= last[:, None]), (first + last)[:, None] - step, step)
    return np.take_along_axis(x, source, axis=1)


def censor(x: Windows, rng: np.random.Generator) -> Windows:
    """Clip at a random quantile: from below in half of the windows, from above in the others."""
    count = (~np.isnan(x)).sum(axis=1)
    rank = (rng.random(len(x)) * 0.5 * np.maximum(count - 1, 0)).astype(np.int64)
    low = rng.random(len(x)) < 0.5
    ordered = np.sort(x, axis=1)  # NaN last
    limit = ordered[np.arange(len(x)), np.where(low, rank, np.maximum(count - 1, 0) - rank)][:, None]
    return np.where(low[:, None], np.maximum(x, limit), np.minimum(x, limit))


def spikes(x: Windows, rng: np.random.Generator) -> Windows:
    """Add periodic spikes of one height and width: flat or pointed, up or down."""
    length, count = x.shape[1], len(x)
    period = np.exp(rng.uniform(np.log(8), np.log(max(length, 9)), (count, 1))).astype(np.int64)
    width = 1 + (rng.random((count, 1)) * 0.1 * period).astype(np.int64)
    since = (np.arange(length) + (rng.random((count, 1)) * period).astype(np.int64)) % period
    shape = np.where(rng.random((count, 1)) < 0.5, 1.0, 1 - since / width)
    height = rng.normal(scale=5, size=(count, 1)) * mean_deviation(x)
    return x + np.where(since < width, shape * height, 0).astype(np.float32)


def quantise(x: Windows, rng: np.random.Generator) -> Windows:
    """Round to 3 to 50 equally spaced levels between the smallest and the largest value."""
    low, high = np.fmin.reduce(x, axis=1, keepdims=True), np.fmax.reduce(x, axis=1, keepdims=True)
    width = (high - low) / rng.integers(2, 50, (len(x), 1)).astype(np.float32)
    width = np.where((width > 0) & np.isfinite(width), width, 1).astype(np.float32)
    return np.where(high > low, np.round((x - low) / width) * width + low, x)


def missing(x: Windows, rng: np.random.Generator) -> Windows:
    """Open a gap of up to a quarter of the history, unless that would hide more than half of the observed steps."""
    length = x.shape[1]
    width = (rng.random((len(x), 1)) * 0.25 * length).astype(np.int64)
    begin = (rng.random((len(x), 1)) * (length - width)).astype(np.int64)
    step = np.arange(length)
    gap = (step >= begin) & (step < begin + width)
    observed = ~np.isnan(x)
    gap &= (2 * (observed & ~gap).sum(axis=1) >= observed.sum(axis=1))[:, None]
    return np.where(gap, np.float32(np.nan), x)


def closed(x: Windows, context: int, rng: np.random.Generator) -> Windows:
    """Make the hours missing at which a shop, a car park or an exchange would be closed.

    A day is a common number of steps or a random one from 12 to 300. 15 to 65 % of it are hidden, and in two fifths of
    the windows also two days of seven. A window stays as it is if this would leave fewer than ``MIN_OPEN`` observed
    steps of its history, or hide all observed steps of its future.

    Args:
        x: windows to change.
        context: steps of history.
        rng: source of randomness.
    """
    count, length = x.shape
    other = np.exp(rng.uniform(np.log(12), np.log(301), count)).astype(np.int64)
    day = np.where(rng.random(count) < 0.6, rng.choice(DAYS, count), other)[:, None]
    hidden = np.maximum(day * rng.uniform(0.15, 0.65, (count, 1)), 1).astype(np.int64)
    step = np.arange(length) + (rng.random((count, 1)) * 7 * day).astype(np.int64)
    rests = (step // day % 7 < 2) & (rng.random((count, 1)) < 0.4)
    observed = ~np.isnan(x)
    left = observed & (step % day >= hidden) & ~rests
    enough = left[:, :context].sum(axis=1) >= MIN_OPEN
    enough &= left[:, context:].any(axis=1) | ~observed[:, context:].any(axis=1)
    return np.where(observed & ~left & enough[:, None], np.float32(np.nan), x)


def resampling_rates(
    count: int, share: float, rng: np.random.Generator
) -> tuple[Int[np.ndarray, " B"], Int[np.ndarray, " B"]]:
    """``stride`` and ``refinement`` of windows, of which a share is resampled: half coarser and half finer."""
    stride, refinement = np.ones((2, count), dtype=np.int64)
    rows = choose(count, share, rng)
    coarser = rng.random(len(rows)) < 0.5
    stride[rows] = np.where(coarser, rng.integers(2, 7, len(rows)), 1)
    refinement[rows] = np.where(coarser, 1, rng.integers(2, 5, len(rows)))
    return stride, refinement


def averaging_widths(most: Int[np.ndarray, " B"], share: float, rng: np.random.Generator) -> Int[np.ndarray, " B"]:
    """Steps per mean, log-uniform from 2 to 48 and at most ``most``, for a share of the windows; 1 for the others."""
    width = np.ones(len(most), dtype=np.int64)
    rows = choose(len(most), share, rng)
    drawn = np.exp(rng.uniform(np.log(2), np.log(49), len(rows))).astype(np.int64)
    width[rows] = np.clip(drawn, 1, np.maximum(most[rows], 1))
    return width


# Applied in this order, after mixup and before missing.
AUGMENTATIONS: dict[str, Callable[[Windows, np.random.Generator], Windows]] = {
    "flip_time": flip_time,
    "modulate": modulate,
    "censor": censor,
    "spikes": spikes,
    "quantise": quantise,
    "flip_sign": flip_sign,
    "scale": scale,
}
