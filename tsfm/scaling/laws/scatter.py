"""Is the scatter of the runs as intervals assume: independent, and of one width?"""

from typing import TypedDict

import numpy as np
from jaxtyping import Float64, Int64
from scipy import stats

SURE = 0.01  # p below which runs of one size and data are taken to be more alike than the law fits them
SURE_OF_ONE = 0.003  # the same for each of three tests of the noise against size, data and compute
USUAL = 0.3  # largest usual exponent of noise in compute: a factor of 60 over six decades
SCORING, CUT = 30, 4.0  # steps to the exponent of the noise, and the largest residual that counts, in mean ones
FEWEST_REPEATS = 3  # degrees of freedom of the pure error that a test needs


class Trend(TypedDict):
    """Rank correlation of the size of the residuals with a variable, and its p."""

    correlation: float
    p: float


def noise_exponent(values: Float64[np.ndarray, " N"], residual: Float64[np.ndarray, " N"]) -> float:
    """The exponent g of noise that grows as exp(g * value), most likely if residuals are double exponential.

    That is nearly as efficient as for a normal distribution, and hardly moved by outliers, whose size is cut off.
    Before the runs are seen, g is normal about 0 with a standard deviation of ``USUAL``.
    """
    X = np.stack([np.ones(len(values)), values - values.mean()], axis=1)
    size = np.maximum(np.abs(residual), 1e-300)
    scale, prior = np.array([np.log(size.mean()), 0.0]), np.array([0.0, 1 / USUAL**2])
    for _ in range(SCORING):
        slope = X.T @ (np.minimum(size * np.exp(-X @ scale), CUT) - 1) - prior * scale
        scale = scale + np.linalg.solve(X.T @ X + np.diag(prior), slope)
    return float(scale[1])


def same_points(first: Float64[np.ndarray, " N"], second: Float64[np.ndarray, " N"]) -> Int64[np.ndarray, " N"]:
    """The number of the pair of values of each run, from 0."""
    pairs = np.stack([first, second], axis=1)
    return np.unique(pairs, axis=0, return_inverse=True)[1].ravel().astype(np.int64)


def lack_of_fit_p(points: Int64[np.ndarray, " N"], residual: Float64[np.ndarray, " N"], constants: int) -> float | None:
    """p of an F test of the error about the law against that between runs of the same size and data.

    Args:
        points: number of the size and data of each run.
        residual: residuals of the law.
        constants: number of constants of the law.
    """
    counts = np.bincount(points)
    freedom, rest = len(residual) - len(counts), len(counts) - constants
    if freedom < FEWEST_REPEATS or rest < 1:
        return None
    means = np.bincount(points, residual) / counts
    pure = float(((residual - means[points]) ** 2).sum()) / freedom
    lack = float((counts * means**2).sum()) / rest
    return float(stats.f.sf(lack / max(pure, 1e-300), rest, freedom))


def noise_trend(values: Float64[np.ndarray, " N"], residual: Float64[np.ndarray, " N"]) -> Trend:
    """Whether the size of the residuals depends on a variable; no correlation if either is constant."""
    if not np.ptp(values) or not np.ptp(np.abs(residual)):
        return {"correlation": 0.0, "p": 1.0}
    result = stats.spearmanr(values, np.abs(residual))
    correlation, p = float(result.statistic), float(result.pvalue)
    return {"correlation": correlation, "p": p} if np.isfinite(p) else {"correlation": 0.0, "p": 1.0}
