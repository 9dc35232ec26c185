"""The smoothly broken power law with one break (Caballero et al. 2023, arXiv 2210.14891, equation 1).

    L = E + b x^(-c0) (1 + (x / d)^(1 / f))^(-c1 f)

Six constants can fit any curve: use the law only if it predicts held-out losses better than the simpler laws.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from scipy import optimize

FEWEST = 10  # points needed for six constants
SHARPNESS = (0.05, 2.0)  # range of f, the sharpness of the break


@dataclass(frozen=True)
class BrokenLaw:
    """The law with one break.

    Attributes:
        E: irreducible loss.
        first: exponent before the break, c0.
        second: exponent after it, c0 + c1.
        break_at: d.
        theta: (log E, log b at the centre, c0, c0 + c1, log d, log f).
        center: log x at which b is measured.
        error: root mean squared residual of log L.
    """

    E: float
    first: float
    second: float
    break_at: float
    theta: tuple[float, ...]
    center: float
    error: float

    def loss(self, x: Float64[np.ndarray, " N"]) -> Float64[np.ndarray, " N"]:
        """The expected loss."""
        return np.exp(_log_loss(np.array(self.theta), np.log(x), self.center))


def broken_law(x: Float64[np.ndarray, " N"], loss: Float64[np.ndarray, " N"]) -> BrokenLaw:
    """Fit the law by least squares on log loss, from several starting points.

    Args:
        x: parameters, data or compute; ten points or more.
        loss: above 0.
    """
    X, y = np.log(x), np.log(loss)
    center = float(X.mean())
    low = np.array([y.min() - 12, y.min() - 15, 0.0, 0.0, X.min(), np.log(SHARPNESS[0])])
    high = np.array([y.max(), y.max() + 15, 4.0, 4.0, X.max(), np.log(SHARPNESS[1])])
    starts = [
        (y.min() + np.log(share), y.mean() + np.log(1.1 - share), first, second, np.quantile(X, quantile), np.log(0.3))
        for share in (0.1, 0.8)
        for first, second in ((0.1, 0.3), (0.3, 0.1))
        for quantile in (0.3, 0.7)
    ]
    fits = [
        optimize.least_squares(
            lambda theta: _log_loss(theta, X, center) - y, np.clip(start, low + 1e-9, high - 1e-9), bounds=(low, high)
        )
        for start in starts
    ]
    best = min(fits, key=lambda fit: float(fit.cost))
    theta = tuple(map(float, best.x))
    error = float(np.sqrt(2 * best.cost / len(x)))
    return BrokenLaw(float(np.exp(theta[0])), theta[2], theta[3], float(np.exp(theta[4])), theta, center, error)


def _log_loss(theta: np.ndarray, X: np.ndarray, center: float) -> np.ndarray:
    log_E, log_b, first, second, log_d, log_f = theta
    f = np.exp(log_f)
    bend = np.logaddexp(0.0, (X - log_d) / f) - np.logaddexp(0.0, (center - log_d) / f)
    falling = log_b - first * (X - center) - (second - first) * f * bend
    return np.logaddexp(log_E, falling)
