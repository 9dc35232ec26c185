"""Gaussian processes with composed kernels, after KernelSynth (Ansari et al. 2024, appendix A), sampled by FFT.

The process is defined on a circle of M points, at least twice as long as the series. Kernels are functions of the chord
``(p / pi) |sin(pi h / p)|`` of lag h, with p the period of a periodic kernel and p = M otherwise. If M is a multiple of
p, which need not be whole, they are exactly positive definite on the circle (kernels of the plane, restricted to a
circle), and so are their sums and products. The discrete Fourier transform of the composed kernel then gives the
variances of independent modes, so no covariance matrix is factorised.
"""

import numpy as np
from jaxtyping import Float, Float64, Int
from scipy import fft

from tsfm_data.synthetic.sampling import chance, choose, choose_blocks, log_uniform, normal, to_float32, uniform

WEIGHT = 0.16
ABOUT = "Gaussian processes"
# Base length of a circle -> periods that divide it.
CIRCLES: dict[int, tuple[int, ...]] = {
    1344: (4, 6, 7, 12, 12, 14, 24, 24, 48, 96, 168, 336, 672),  # months, weeks, days by hours and parts of them
    1440: (6, 10, 12, 24, 30, 60, 96, 144, 288, 720, 1440),  # minutes, ten minutes
    1460: (4, 5, 10, 20, 73, 146, 365, 365),  # years by days
    1300: (4, 10, 13, 26, 52, 52, 65, 130),  # years by weeks
}
SHARES = (55, 20, 12, 13)
OTHER = (24, 1500)  # range in steps of the quarter of periods that follow no calendar
MAX_KERNELS = 5
KINDS = ("periodic", "rbf", "rational quadratic", "matern 1/2", "matern 3/2", "matern 5/2", "white")
KIND_WEIGHTS = (45, 12, 8, 6, 6, 6, 9)


def gp(count: int, length: int, rng: np.random.Generator) -> Float[np.ndarray, "count length"]:
    """Gaussian processes whose kernels are sums and products of up to five base kernels, some with a linear trend.

    Args:
        count: series.
        length: steps of each.
        rng: source of randomness.
    """
    share = choose_blocks(rng, SHARES, count)
    out = np.empty((count, length), np.float32)
    for k, (base, periods) in enumerate(CIRCLES.items()):
        rows = np.flatnonzero(share == k)
        if not len(rows):
            continue
        circle = base * -(-2 * length // base)
        out[rows] = sample(kernels(len(rows), circle, periods, rng), length, rng)
    time = np.linspace(0, 1, length, dtype=np.float32)
    # Adding a linear kernel adds a random line; multiplying by one gives a linear envelope.
    envelope = np.where(chance(rng, 0.15, count), uniform(rng, 0, 2, count), 0)
    out *= 1 + envelope * (time if rng.random() < 0.5 else time[::-1])
    slope = np.where(chance(rng, 0.4, count), normal(rng, count, 1) * log_uniform(rng, 0.3, 10, count), 0)
    out += slope * time
    skewed = np.flatnonzero(rng.random(count) < 0.15)
    out[skewed] = np.exp(0.6 * np.clip(out[skewed], -6, 6))
    return to_float32(out)


def kernels(
    count: int, circle: int, periods: tuple[int, ...], rng: np.random.Generator
) -> Float64[np.ndarray, "count half"]:
    """Random composed kernels at the lags 0 .. circle / 2; 1 at lag 0.

    Args:
        count: kernels.
        circle: points on the circle, even.
        periods: periods to choose from; they divide ``circle``.
        rng: source of randomness.
    """
    number = rng.integers(1, MAX_KERNELS + 1, count)
    total = _sample_kernels(count, circle, periods, rng)
    for k in range(1, MAX_KERNELS):
        rows = np.flatnonzero(number > k)
        if not len(rows):
            break
        operand = _sample_kernels(len(rows), circle, periods, rng)
        multiplies = rng.random((len(rows), 1)) < 0.5
        weight = log_uniform(rng, 0.2, 5, len(rows))
        total[rows] = np.where(multiplies, total[rows] * operand, (total[rows] + weight * operand) / (1 + weight))
    return total


def _sample_kernels(
    count: int, circle: int, periods: tuple[int, ...], rng: np.random.Generator
) -> Float64[np.ndarray, "count half"]:
    """Random base kernels, one per row, at the lags 0 .. circle / 2."""
    kind = choose(rng, KIND_WEIGHTS, count)
    other = np.maximum(np.round(circle / log_uniform(rng, *OTHER, count)[:, 0]), 1).astype(np.int64)
    turns = np.where(rng.random(count) < 0.25, other, circle // rng.choice(np.array(periods), count))
    # A short length scale makes a periodic kernel rough within its cycle; others span five steps to half the circle.
    length = np.where(kind == 0, log_uniform(rng, 0.3, 2, count)[:, 0], log_uniform(rng, 5 / circle, 0.5, count)[:, 0])
    return kernel(kind, np.where(kind == 0, turns, 1), length, circle)


def kernel(
    kind: Int[np.ndarray, " count"],
    turns: Int[np.ndarray, " count"],
    length: Float[np.ndarray, " count"],
    circle: int,
) -> Float64[np.ndarray, "count half"]:
    """Evaluate base kernels at the lags 0 .. circle / 2.

    Args:
        kind: index into ``KINDS``.
        turns: how many periods of the chord the circle holds.
        length: length scale, for a periodic kernel as in ``exp(-2 sin^2 / length^2)``, else as a share of the circle.
        circle: points on the circle.
    """
    lag = np.arange(circle // 2 + 1)
    sines = np.abs(np.sin(np.pi * np.arange(circle) / circle))
    angle_index = lag * turns[:, None] % circle
    # The chord in units of the length scale.
    scale = np.where(kind == 0, 2.0, 1 / np.pi) / length
    d = sines[angle_index] * scale[:, None]
    out = np.ones_like(d)
    for k, function in enumerate(
        (
            lambda x: np.exp(-0.5 * x * x),
            lambda x: np.exp(-0.5 * x * x),
            lambda x: 1 / (1 + 0.5 * x * x),
            lambda x: np.exp(-x),
            lambda x: (1 + np.sqrt(3) * x) * np.exp(-np.sqrt(3) * x),
            lambda x: (1 + np.sqrt(5) * x + 5 / 3 * x * x) * np.exp(-np.sqrt(5) * x),
            lambda x: x == 0,
        )
    ):
        rows = np.flatnonzero(kind == k)
        if len(rows):
            out[rows] = function(d[rows])
    return out


def sample(
    kernel: Float64[np.ndarray, "count half"], length: int, rng: np.random.Generator
) -> Float64[np.ndarray, "count length"]:
    """Sample one path per row of the process on the circle, cut to ``length`` steps.

    Args:
        kernel: covariances at the lags 0 .. M / 2 of a circle of M points.
        length: steps to keep, at most M / 2.
        rng: source of randomness.
    """
    circle = 2 * (kernel.shape[1] - 1)
    variances = np.maximum(fft.dct(kernel, type=1, axis=1), 0)  # of the modes; negative only by rounding
    white = rng.standard_normal((len(kernel), circle), dtype=np.float32)
    modes = fft.rfft(white, axis=1) * np.sqrt(variances)
    return fft.irfft(modes, circle, axis=1)[:, :length]
