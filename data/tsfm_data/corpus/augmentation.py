"""Augmentation of training windows, a batch at a time.

Every step changes, in place, a random share of the rows of ``x``: windows with NaN where nothing is observed. B rows,
L steps, R chosen rows, K knots or parts. Choices follow what small models of the field were trained with: TSMixup
(Ansari et al., "Chronos", 2024, section 4.1); censoring, amplitude modulation and spikes (Auer et al., "TiRex", 2025,
section 3.3).
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Float32, Int

from tsfm_data.errors import InputError

Windows = Float32[np.ndarray, "B L"]


@dataclass(frozen=True)
class AugmentConfig:
    """How often each augmentation is applied: the share of the windows that it changes; 0, the default, is never.

    Attributes:
        resample: show a series coarser (every 2nd to 6th step) or finer (2 to 4 steps for one, in straight lines).
        mixup: a convex combination of one to four windows of the batch, each in units of its own.
        scale: multiply by a factor around 1 (log-normal, deviation 1).
        modulate: multiply by a line that bends at random steps.
        flip_sign: multiply by -1.
        flip_time: let time run backwards.
        censor: cut off all above, or all below, a quantile.
        spikes: add a spike every so many steps, the steps drawn per window.
        quantise: round to 3 to 50 levels.
        missing: take a block of the history away.
    """

    resample: float = 0.0
    mixup: float = 0.0
    scale: float = 0.0
    modulate: float = 0.0
    flip_sign: float = 0.0
    flip_time: float = 0.0
    censor: float = 0.0
    spikes: float = 0.0
    quantise: float = 0.0
    missing: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 0 <= getattr(self, field.name) <= 1:
                raise InputError(f"augment.{field.name}: expected a share in [0, 1], found {getattr(self, field.name)}")


def augment(x: Windows, context: int, config: AugmentConfig, rng: np.random.Generator) -> None:
    """Apply all but resampling, which is done where windows are drawn.

    Args:
        x: windows, NaN where nothing is observed; changed in place.
        context: steps of history; the rest is to forecast.
        config: how often each is applied.
        rng: source of randomness.
    """
    if config == AugmentConfig(resample=config.resample):
        return
    with np.errstate(over="ignore", invalid="ignore"):  # a value near the limit of float32 may leave it
        rows = choose(len(x), config.mixup, rng)
        if len(rows):
            x[rows] = mixup(x, rows, rng)
        for name, step in STEPS.items():
            rows = choose(len(x), getattr(config, name), rng)
            if len(rows):
                x[rows] = step(x[rows], rng)
    rows = choose(len(x), config.missing, rng)
    if len(rows):
        x[rows, :context] = missing(x[rows, :context], rng)
    np.copyto(x, np.float32(np.nan), where=np.isinf(x))


def choose(count: int, share: float, rng: np.random.Generator) -> Int[np.ndarray, " R"]:
    """Each of ``count`` rows with probability ``share``."""
    return np.flatnonzero(rng.random(count) < share) if share else np.zeros(0, dtype=np.int64)


def size_of(x: Windows) -> Float32[np.ndarray, "B 1"]:
    """Mean distance of each window from its mean; 1 where there is none."""
    seen = ~np.isnan(x)
    count = np.maximum(seen.sum(axis=1, keepdims=True), 1).astype(np.float32)
    mean = np.where(seen, x, 0).sum(axis=1, keepdims=True) / count
    size = np.where(seen, np.abs(x - mean), 0).sum(axis=1, keepdims=True) / count
    return np.where((size > 0) & np.isfinite(size), size, 1).astype(np.float32)


def mixup(x: Windows, rows: Int[np.ndarray, " R"], rng: np.random.Generator) -> Float32[np.ndarray, "R L"]:
    """Convex combinations of 1 to 4 windows, with weights of a Dirichlet distribution of concentration 1.5.

    A combination is observed where all of its parts are; a window stays as it is where that would leave less than half
    of what it shows.

    Args:
        x: all windows of the batch.
        rows: those to change.
        rng: source of randomness.
    """
    parts = rng.integers(0, len(x), (len(rows), 4))
    parts[:, 0] = rows
    weights = rng.gamma(1.5, size=parts.shape) * (np.arange(4) < rng.integers(1, 5, (len(rows), 1)))
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    unit = x / size_of(x)
    mixed = weights[:, :1] * unit[rows]
    for k in range(1, 4):
        some = np.flatnonzero(weights[:, k])
        mixed[some] += weights[some, k, None] * unit[parts[some, k]]
    kept = (~np.isnan(mixed)).sum(axis=1) * 2 >= (~np.isnan(x[rows])).sum(axis=1)
    return np.where(kept[:, None], mixed, x[rows])


def scale(x: Windows, rng: np.random.Generator) -> Windows:
    """Other units."""
    return x * rng.lognormal(size=(len(x), 1)).astype(np.float32)


def modulate(x: Windows, rng: np.random.Generator) -> Windows:
    """An amplitude that changes: a line through 3 to 6 points at even steps, each drawn from N(1, 0.5)."""
    knots = int(rng.integers(3, 7))
    place = np.linspace(0, knots - 1, x.shape[1])
    hat_KL = np.maximum(1 - np.abs(place - np.arange(knots)[:, None]), 0).astype(np.float32)
    return x * (rng.normal(1, 0.5, (len(x), knots)).astype(np.float32) @ hat_KL)


def flip_sign(x: Windows, rng: np.random.Generator) -> Windows:
    """Up is down."""
    return -x


def flip_time(x: Windows, rng: np.random.Generator) -> Windows:
    """Backwards between the first and the last observed step, so that what is filled up stays where it is."""
    seen = ~np.isnan(x)
    first, last = seen.argmax(axis=1), x.shape[1] - 1 - seen[:, ::-1].argmax(axis=1)
    step = np.arange(x.shape[1])
    back = np.where((step >= first[:, None]) & (step <= last[:, None]), (first + last)[:, None] - step, step)
    return np.take_along_axis(x, back, axis=1)


def censor(x: Windows, rng: np.random.Generator) -> Windows:
    """A sensor that reads no more than a limit, or no less, as often one as the other."""
    count = (~np.isnan(x)).sum(axis=1)
    place = (rng.random(len(x)) * 0.5 * np.maximum(count - 1, 0)).astype(np.int64)
    low = rng.random(len(x)) < 0.5
    ordered = np.sort(x, axis=1)  # NaN last
    limit = ordered[np.arange(len(x)), np.where(low, place, np.maximum(count - 1, 0) - place)][:, None]
    return np.where(low[:, None], np.maximum(x, limit), np.minimum(x, limit))


def spikes(x: Windows, rng: np.random.Generator) -> Windows:
    """Spikes of one height and width every so many steps: flat ones or peaks, up or down."""
    length, count = x.shape[1], len(x)
    period = np.exp(rng.uniform(np.log(8), np.log(max(length, 9)), (count, 1))).astype(np.int64)
    width = 1 + (rng.random((count, 1)) * 0.1 * period).astype(np.int64)
    since = (np.arange(length) + (rng.random((count, 1)) * period).astype(np.int64)) % period
    shape = np.where(rng.random((count, 1)) < 0.5, 1.0, 1 - since / width)
    height = rng.normal(scale=5, size=(count, 1)) * size_of(x)
    return x + np.where(since < width, shape * height, 0).astype(np.float32)


def quantise(x: Windows, rng: np.random.Generator) -> Windows:
    """3 to 50 levels between the least and the largest value."""
    low, high = np.fmin.reduce(x, axis=1, keepdims=True), np.fmax.reduce(x, axis=1, keepdims=True)
    width = (high - low) / rng.integers(2, 50, (len(x), 1)).astype(np.float32)
    width = np.where((width > 0) & np.isfinite(width), width, 1).astype(np.float32)
    return np.where(high > low, np.round((x - low) / width) * width + low, x)


def missing(x: Windows, rng: np.random.Generator) -> Windows:
    """A gap of up to a quarter of the history, where that leaves half of what is observed."""
    length = x.shape[1]
    width = (rng.random((len(x), 1)) * 0.25 * length).astype(np.int64)
    begin = (rng.random((len(x), 1)) * (length - width)).astype(np.int64)
    step = np.arange(length)
    gap = (step >= begin) & (step < begin + width)
    seen = ~np.isnan(x)
    gap &= (2 * (seen & ~gap).sum(axis=1) >= seen.sum(axis=1))[:, None]
    return np.where(gap, np.float32(np.nan), x)


def rates(count: int, share: float, rng: np.random.Generator) -> tuple[Int[np.ndarray, " B"], Int[np.ndarray, " B"]]:
    """``Drawn.up`` and ``Drawn.down`` of windows of which a share is resampled, half coarser and half finer."""
    up, down = np.ones((2, count), dtype=np.int64)
    rows = choose(count, share, rng)
    coarser = rng.random(len(rows)) < 0.5
    up[rows] = np.where(coarser, rng.integers(2, 7, len(rows)), 1)
    down[rows] = np.where(coarser, 1, rng.integers(2, 5, len(rows)))
    return up, down


# In this order, after mixup and before gaps.
STEPS: dict[str, Callable[[Windows, np.random.Generator], Windows]] = {
    "flip_time": flip_time,
    "modulate": modulate,
    "censor": censor,
    "spikes": spikes,
    "quantise": quantise,
    "flip_sign": flip_sign,
    "scale": scale,
}
