"""The parametric fit of the joint law (approach 3 of Hoffmann et al. 2022)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from tsfm.scaling.laws.form import NAMES
from tsfm.scaling.laws.minimise import DELTA, EXPONENTS, LARGEST_EXPONENT, STARTS, Problem, Solution, solve

# theta = (E, log A', alpha, log B', beta): E, A' and B' in units of the mean loss, A' and B' at the centre of the data.
TINY = 1e-3  # starting value of a term that the linear fit makes negative, as share of the mean loss
DEEPEST = 100.0  # how far below the least loss E may be, in ranges of the losses, if losses may be negative
MOST_LOG = 15.0  # range of log A' and log B' on either side of the mean loss


@dataclass(frozen=True)
class JointProblem:
    """The joint law on a set of runs.

    Attributes:
        problem: the problem in the form of the solver.
        center: log size and log tokens at which the terms are measured, so that the problem is well conditioned.
        unit: logarithm of the unit of the terms: mean log loss, or log of the standard deviation of the losses if some
            are at or below 0.
    """

    problem: Problem
    center: tuple[float, float]
    unit: float

    def to_laws(self, theta: Float64[np.ndarray, "S 5"]) -> Float64[np.ndarray, "S 5"]:
        """Solver parameters as constants in the order of ``NAMES``."""
        e, a, alpha, b, beta = theta.T
        with np.errstate(over="ignore"):
            A, B = np.exp(self.unit + a + alpha * self.center[0]), np.exp(self.unit + b + beta * self.center[1])
        return np.stack([np.exp(self.unit) * e, A, B, alpha, beta], axis=1)

    def to_theta(self, laws: Float64[np.ndarray, "S 5"]) -> Float64[np.ndarray, "S 5"]:
        """The inverse of ``to_laws``."""
        E, A, B, alpha, beta = laws.T
        a, b = (np.log(np.maximum(part, 1e-300)) - self.unit for part in (A, B))
        e = E * np.exp(-self.unit)
        return np.stack([e, a - alpha * self.center[0], alpha, b - beta * self.center[1], beta], axis=1)

    def terms_at(
        self, params: Float64[np.ndarray, " N"], tokens: Float64[np.ndarray, " N"]
    ) -> tuple[Float64[np.ndarray, "N 2"], Float64[np.ndarray, "N 2"]]:
        """The terms of the law at other sizes and tokens."""
        return _terms(self.center, params, tokens)

    def measure(self, loss: np.ndarray) -> np.ndarray:
        """What the law is fitted to: log loss, or the loss if some are at or below 0, in its unit."""
        return np.log(loss) - self.unit if self.problem.log else np.asarray(loss) * np.exp(-self.unit)

    def loss_at(self, measured: np.ndarray) -> np.ndarray:
        """The inverse of ``measure``."""
        return np.exp(measured + self.unit) if self.problem.log else measured * np.exp(self.unit)

    def positive(self, loss: np.ndarray) -> np.ndarray:
        """Numbers above 0 whose logarithm is measured: the losses themselves, or exp(loss / unit)."""
        if self.problem.log:
            return loss
        with np.errstate(over="ignore"):
            return np.exp(loss * np.exp(-self.unit))

    def loss_of(self, positive: np.ndarray) -> np.ndarray:
        """The inverse of ``positive``."""
        if self.problem.log:
            return positive
        with np.errstate(divide="ignore"):
            return np.log(positive) * np.exp(self.unit)

    @property
    def step(self) -> float:
        """The unit of residuals: 1 of log loss, or a number of loss."""
        return 1.0 if self.problem.log else float(np.exp(self.unit))

    def starts(self, count: int = STARTS) -> Float64[np.ndarray, "S 5"]:
        """Starting points: the best of a grid over the exponents, with E, A' and B' by linear least squares."""
        size, tokens = (-term[:, 1] for term in self.problem.terms)
        alpha, beta = (grid.ravel() for grid in np.meshgrid(EXPONENTS, EXPONENTS, indexing="ij"))
        columns = np.stack(
            [np.ones((len(alpha), len(size))), np.exp(-alpha[:, None] * size), np.exp(-beta[:, None] * tokens)], axis=2
        )
        # Divided by the loss: least squares on L / loss - 1, which is log L - log loss to first order.
        measured = self.problem.measured
        goal = np.ones_like(measured) if self.problem.log else measured
        relative = columns / np.exp(measured)[:, None] if self.problem.log else columns
        scale = np.linalg.norm(relative, axis=1)
        unit = relative / scale[:, None, :]
        matrix = unit.transpose(0, 2, 1) @ unit + 1e-12 * np.eye(3)
        linear = np.linalg.solve(matrix, (unit * goal[:, None]).sum(axis=1)[..., None])[..., 0] / scale
        E, A, B = np.maximum(linear, [self.problem.low[0], TINY, TINY]).T
        theta = np.clip(np.stack([E, np.log(A), alpha, np.log(B), beta], axis=1), self.problem.low, self.problem.high)
        residual = self.problem.parts(theta)[1]
        order = np.argsort(self.problem.objective(residual, np.ones_like(residual)), kind="stable")
        spread = order[: 4 * count : 4]  # neighbours on the grid lead to the same minimum
        return theta[spread]

    def fit(self, start: Float64[np.ndarray, "S 5"] | None = None) -> Solution:
        """The best solution over all starting points, as a batch of one."""
        return solve(self.problem, self.starts() if start is None else start).best()


def joint_problem(
    params: Float64[np.ndarray, " N"],
    tokens: Float64[np.ndarray, " N"],
    loss: Float64[np.ndarray, " N"],
    delta: float = DELTA,
    floor: float | None = None,
    unit: float | None = None,
    trend: tuple[float, ...] = (),
) -> JointProblem:
    """The optimisation problem of the joint law on a set of runs.

    E lies between 0 and the largest loss: noise can put a loss below the floor. If there are losses at or below 0,
    which have no logarithm, the law is fitted to the losses themselves, and E may be negative, too.

    Args:
        params: size of each run.
        tokens: data of each run.
        loss: final loss of each run.
        delta: width of the Huber loss, of log loss or in standard deviations of the losses.
        floor: fixes E.
        unit: logarithm of the unit of the terms, if it is not that of these losses.
        trend: exponents of the noise in size and data.
    """
    x, z, log = np.log(params), np.log(tokens), bool(loss.min() > 0)
    center = (float(x.mean()), float(z.mean()))
    y, unit, ends = measured_loss(loss, unit)
    terms = _terms(center, params, tokens)
    room = LARGEST_EXPONENT * np.array([abs(x - center[0]).max(), abs(z - center[1]).max()])
    bottom, top = ends if floor is None else (floor * float(np.exp(-unit)),) * 2
    low = np.array([bottom, -MOST_LOG, 0.0, -MOST_LOG, 0.0])
    high = np.array([top, MOST_LOG + room[0], LARGEST_EXPONENT, MOST_LOG + room[1], LARGEST_EXPONENT])
    return JointProblem(Problem(terms, y, low, high, delta, log, trend), center, unit)


def measured_loss(
    loss: Float64[np.ndarray, " N"], unit: float | None = None
) -> tuple[Float64[np.ndarray, " N"], float, tuple[float, float]]:
    """What a law is fitted to, log loss or, if losses may be negative, loss; the logarithm of its unit; the range of E.

    Args:
        loss: of each run.
        unit: logarithm of the unit, if it is not that of these losses.
    """
    log = bool(loss.min() > 0)
    if unit is None:
        unit = float(np.log(loss).mean()) if log else float(np.log(max(loss.std(), 1e-300)))
    y = np.log(loss) - unit if log else loss * np.exp(-unit)
    return y, unit, (0.0, float(np.exp(y.max()))) if log else (float(y.min() - DEEPEST * np.ptp(y)), float(y.max()))


def _terms(
    center: tuple[float, float], params: Float64[np.ndarray, " N"], tokens: Float64[np.ndarray, " N"]
) -> tuple[Float64[np.ndarray, "N 2"], Float64[np.ndarray, "N 2"]]:
    first, second = (
        np.stack([np.ones(len(values)), middle - np.log(values)], axis=1)
        for middle, values in zip(center, (params, tokens), strict=True)
    )
    return first, second


def as_dict(law: Float64[np.ndarray, " 5"]) -> dict[str, float]:
    """Constants by name."""
    return dict(zip(NAMES, map(float, law), strict=True))
