"""Gaussian processes with composed kernels, after KernelSynth (Ansari et al. 2024, appendix A), sampled by FFT.

The process lives on a circle of M points, at least twice as long as the series. A kernel there is a function of the
chord, ``(p / pi) |sin(pi h / p)|`` for lag h, with p the period of a periodic kernel and M for every other. Where p
divides M all of them are exactly positive definite on the circle (a kernel of the plane, restricted to a circle), and
so are their sums and products: the discrete Fourier transform of the composed kernel gives the variances of independent
modes, and nothing has to be factorised.
"""

import numpy as np
from jaxtyping import Float, Float64, Int
from scipy import fft

from tsfm_data.synthetic.sampling import chance, choose, choose_blocks, finish, log_uniform, normal, uniform

WEIGHT = 0.16
ABOUT = "Gaussian processes"
# Length of a circle (times a whole number) -> periods that divide it, so that each is met exactly.
CIRCLES: dict[int, tuple[int, ...]] = {
    1344: (4, 6, 7, 12, 12, 14, 24, 24, 48, 96, 168, 336),  # months, weeks, days by hours and parts of them
    1440: (6, 10, 12, 24, 30, 60, 96, 144, 288, 720),  # minutes, ten minutes
    1460: (4, 5, 10, 20, 73, 146, 365, 365),  # years by days
    1300: (4, 10, 13, 26, 52, 52, 65, 130),  # years by weeks
}
SHARES = (55, 20, 12, 13)
MOST_KERNELS = 5
KINDS = ("periodic", "rbf", "rational quadratic", "matern 1/2", "matern 3/2", "matern 5/2", "white")
KIND_WEIGHTS = (45, 12, 8, 6, 6, 6, 9)


def gp(count: int, length: int, rng: np.random.Generator) -> Float[np.ndarray, "count length"]:
    """Series of Gaussian processes whose kernels are sums and products of up to five of a bank, some with a line.

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
    # A linear kernel that is added is a random line, one that multiplies a random line as envelope.
    envelope = np.where(chance(rng, 0.15, count), uniform(rng, 0, 2, count), 0)
    out *= 1 + envelope * (time if rng.random() < 0.5 else time[::-1])
    slope = np.where(chance(rng, 0.4, count), normal(rng, count, 1) * log_uniform(rng, 0.3, 10, count), 0)
    out += slope * time
    skewed = np.flatnonzero(rng.random(count) < 0.15)
    out[skewed] = np.exp(0.6 * np.clip(out[skewed], -6, 6))
    return finish(out)


def kernels(
    count: int, circle: int, periods: tuple[int, ...], rng: np.random.Generator
) -> Float64[np.ndarray, "count half"]:
    """Composed kernels at the lags 0 .. circle / 2, each with 1 at lag 0.

    Args:
        count: kernels.
        circle: points on the circle, even.
        periods: periods to draw from; they divide ``circle``.
        rng: source of randomness.
    """
    number = rng.integers(1, MOST_KERNELS + 1, count)
    total = _bank(count, circle, periods, rng)
    for k in range(1, MOST_KERNELS):
        rows = np.flatnonzero(number > k)
        if not len(rows):
            break
        other = _bank(len(rows), circle, periods, rng)
        times = rng.random((len(rows), 1)) < 0.5
        weight = log_uniform(rng, 0.2, 5, len(rows))
        total[rows] = np.where(times, total[rows] * other, (total[rows] + weight * other) / (1 + weight))
    return total


def _bank(
    count: int, circle: int, periods: tuple[int, ...], rng: np.random.Generator
) -> Float64[np.ndarray, "count half"]:
    """One kernel of the bank a row, at the lags 0 .. circle / 2."""
    kind = choose(rng, KIND_WEIGHTS, count)
    period = np.where(kind == 0, rng.choice(np.array(periods), count), circle)
    # A short length makes a periodic kernel rough within its cycle; others reach from a few steps to all of them.
    length = np.where(kind == 0, log_uniform(rng, 0.3, 2, count)[:, 0], log_uniform(rng, 0.004, 0.5, count)[:, 0])
    return kernel(kind, period, length, circle)


def kernel(
    kind: Int[np.ndarray, "count"],
    period: Int[np.ndarray, "count"],
    length: Float[np.ndarray, "count"],
    circle: int,
) -> Float64[np.ndarray, "count half"]:
    """Kernels at the lags 0 .. circle / 2.

    Args:
        kind: number in ``KINDS``.
        period: of the chord, in steps; it divides ``circle``.
        length: length scale; of a periodic kernel as in ``exp(-2 sin^2 / length^2)``, else in circumferences.
        circle: points on the circle.
    """
    lag = np.arange(circle // 2 + 1)
    sines = np.abs(np.sin(np.pi * np.arange(circle) / circle))
    turn = lag[None] * (circle // period)[:, None] % circle
    # |sin| over the length: the chord in units of the length scale, up to the constant below.
    scale = np.where(kind == 0, 2.0, 1 / np.pi) / length
    d = sines[turn] * scale[:, None]
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
    """One path a row of the process on the circle, cut to ``length`` steps.

    Args:
        kernel: covariances at the lags 0 .. M / 2 of a circle of M points.
        length: steps to keep, at most M / 2.
        rng: source of randomness.
    """
    circle = 2 * (kernel.shape[1] - 1)
    variances = np.maximum(fft.dct(kernel, type=1, axis=1), 0)  # of the modes; below zero by rounding alone
    white = rng.standard_normal((len(kernel), circle), dtype=np.float32)
    modes = fft.rfft(white, axis=1) * np.sqrt(variances)
    return fft.irfft(modes, circle, axis=1)[:, :length]
