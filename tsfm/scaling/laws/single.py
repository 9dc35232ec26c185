"""Laws in one variable: the pure power law L = (x0 / x)^a and the saturating law L = E + (x0 / x)^a.

The pure law is fitted by ordinary least squares of log L on log x, as in Yao et al. 2025 (arXiv 2410.12360). The
saturating law is fitted by least squares on log L, too, so that the two can be compared. Losses that may be negative
have no logarithm and no pure law: the saturating law is then fitted to the losses themselves.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64, Int64
from scipy import stats

from tsfm.scaling.laws import broken
from tsfm.scaling.laws.broken import BrokenLaw, broken_law
from tsfm.scaling.laws.joint import measured_loss
from tsfm.scaling.laws.minimise import EXPONENTS, LARGEST_EXPONENT, Problem, solve
from tsfm.scaling.laws.profile import LEVEL, Profile, finite_log

BIN = 0.1  # width in decades of x of the bins whose best loss is used
FARTHEST = 690.0  # logarithm of the largest number that is reported
FLAT = 1e-12  # smallest slope, so that constant losses have a law, too
FEWEST = 3  # points needed for a slope
CLEAR = 1.5  # factor on the least held-out error up to which a simpler form is preferred
HELD_OUT = 0.25  # share of the points, those at the largest x, on which the forms are compared

Bands = Callable[[Float64[np.ndarray, " K"]], tuple[Float64[np.ndarray, "2 K"], Float64[np.ndarray, "2 K"]]]


@dataclass(frozen=True)
class PowerLaw:
    """A law in one variable.

    Attributes:
        E: irreducible loss; 0 in the pure law.
        log_x0: logarithm of x0, the x at which the falling part is 1.
        exponent: a.
        exponent_ci: 95 % interval of a.
        E_ci: 95 % interval of E; None in the pure law.
        error: root mean squared residual of log L, or of L if losses may be negative.
        bands: from values of x to the 95 % intervals of the expected loss there, and of the losses of new points.
    """

    E: float
    log_x0: float
    exponent: float
    exponent_ci: tuple[float, float]
    E_ci: tuple[float, float] | None
    error: float
    bands: Bands

    @property
    def x0(self) -> float | None:
        """The x at which the falling part is 1; None if it is too large or small for a number."""
        return float(np.exp(self.log_x0)) if abs(self.log_x0) < FARTHEST else None

    def loss(self, x: Float64[np.ndarray, " N"]) -> Float64[np.ndarray, " N"]:
        """The expected loss."""
        return self.E + np.exp(self.exponent * (self.log_x0 - np.log(x)))


def best_of_bins(
    x: Float64[np.ndarray, " N"], loss: Float64[np.ndarray, " N"], width: float = BIN
) -> Int64[np.ndarray, " K"]:
    """Rows with the least loss in each bin of log10 x, in order of x: the efficient frontier."""
    bins = np.round(np.log10(x) / width).astype(np.int64)
    order = np.lexsort((loss, bins))
    first = np.append(True, bins[order][1:] != bins[order][:-1])
    return order[first].astype(np.int64)


def power_law(x: Float64[np.ndarray, " N"], loss: Float64[np.ndarray, " N"]) -> PowerLaw:
    """Fit the pure power law, with Student's interval for its exponent.

    Args:
        x: parameters, data or compute.
        loss: above 0.
    """
    X, y = np.log10(x), np.log10(loss)
    slope, intercept = np.polyfit(X - X.mean(), y, 1)
    residual = y - intercept - slope * (X - X.mean())
    freedom, squares = len(x) - 2, float(((X - X.mean()) ** 2).sum())
    reach = np.inf  # Student's quantile times the standard deviation of a point about the line
    if freedom > 0:
        reach = float(stats.t.ppf(0.5 + LEVEL / 2, freedom) * np.sqrt((residual**2).sum() / freedom))
    width = reach / np.sqrt(squares)
    slope = slope if abs(slope) > FLAT else -FLAT

    def bands(line: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        apart = np.log10(line) - X.mean()
        center, leverage = intercept + slope * apart, 1 / len(x) + apart**2 / squares
        sides = np.array([[-1.0], [1.0]]) * reach
        return 10 ** (center + sides * np.sqrt(leverage)), 10 ** (center + sides * np.sqrt(1 + leverage))

    log_x0 = float((X.mean() - intercept / slope) * np.log(10))
    error = float(np.sqrt((residual**2).mean()) * np.log(10))
    return PowerLaw(0.0, log_x0, float(-slope), (float(-slope - width), float(-slope + width)), None, error, bands)


def saturating_law(x: Float64[np.ndarray, " N"], loss: Float64[np.ndarray, " N"]) -> PowerLaw:
    """Fit the saturating law, with intervals from the profile of the sum of squares.

    If the interval of E begins at 0, the data cannot distinguish the law from a pure power law.

    Args:
        x: parameters, data or compute.
        loss: if some are at or below 0, the law is fitted to the losses, else to their logarithms.
    """
    X, log = np.log(x), bool(loss.min() > 0)
    y, unit, of_E = measured_loss(loss)
    center, scale = float(X.mean()), float(np.exp(unit))
    term = np.stack([np.ones_like(X), center - X], axis=1)
    room = LARGEST_EXPONENT * float(np.abs(X - center).max())
    low, high = np.array([of_E[0], -15.0, 0.0]), np.array([of_E[1], 15.0 + room, LARGEST_EXPONENT])
    problem = Problem((term,), y, low, high, float("inf"), log)
    floors = (0.02, 0.5, 0.9) if log else y.min() - np.ptp(y) * np.array([0.05, 0.5, 5.0])
    typical = 1.1 if log else float(y.max())
    starts = np.array([[floor, np.log(typical - floor), a] for floor in floors for a in EXPONENTS])
    solution = solve(problem, starts).best()
    theta = solution.theta[0]
    error = float(np.sqrt((problem.residuals(theta) ** 2).mean()))
    profile = Profile(problem, theta, float(solution.objective[0]), error, np.arange(len(x)))
    ends = profile.intervals(lambda theta: theta[:, [0, 2]])
    ends[0] = np.maximum(ends[0], [0.0 if log else -np.inf, 0.0])
    log_x0 = float((theta[1] + unit) / max(theta[2], FLAT) + center)

    def bands(line: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        term = np.stack([np.ones(len(line)), center - np.log(line)], axis=1)
        at_line = replace(problem, terms=(term,), measured=np.zeros(len(line)))

        def measured(theta: np.ndarray) -> np.ndarray:
            totals = at_line.totals(theta)
            return finite_log(totals) if log else totals

        middle, ends = measured(theta[None])[0], profile.intervals(measured)
        curve, new = (np.exp(part) if log else part for part in (ends, profile.with_noise(middle, ends)))
        return scale * curve, scale * new

    (E_low, a_low), (E_high, a_high) = ends.tolist()
    E_ci = (scale * E_low, scale * E_high)
    error *= 1.0 if log else scale
    return PowerLaw(scale * theta[0], log_x0, float(theta[2]), (a_low, a_high), E_ci, error, bands)


def held_out_errors(x: Float64[np.ndarray, " N"], loss: Float64[np.ndarray, " N"]) -> dict[str, float] | None:
    """Root mean squared error at the largest x for each form fitted to the rest; None with too few points.

    Errors are those of log loss, or of loss if some are at or below 0; then only the saturating law is fitted.
    """
    order = np.argsort(x, kind="stable")
    held = max(1, round(HELD_OUT * len(x)))
    seen, rest = order[:-held], order[-held:]
    if len(seen) < FEWEST + 2:
        return None
    forms: dict[str, Callable[..., PowerLaw | BrokenLaw]] = {"power": power_law, "saturating": saturating_law}
    if len(seen) >= broken.FEWEST:
        forms["broken"] = broken_law
    if loss.min() <= 0:
        forms = {"saturating": saturating_law}
    expected = {name: form(x[seen], loss[seen]).loss(x[rest]) for name, form in forms.items()}
    errors = {name: np.log(at / loss[rest]) if loss.min() > 0 else at - loss[rest] for name, at in expected.items()}
    return {name: float(np.sqrt((error**2).mean())) for name, error in errors.items()}


def preferred_form(errors: dict[str, float]) -> str:
    """The simplest form whose held-out error is at most ``CLEAR`` times the least, a difference due to chance.

    Args:
        errors: held-out error of each form, the simplest first.
    """
    return next(form for form, error in errors.items() if error <= CLEAR * min(errors.values()))
