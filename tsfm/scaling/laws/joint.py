"""The parametric fit of the joint law (approach 3 of Hoffmann et al. 2022)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from tsfm.scaling.laws.form import NAMES
from tsfm.scaling.laws.minimise import DELTA, EXPONENTS, LARGEST_EXPONENT, STARTS, Problem, Solution, solve

# theta = (E, log A', alpha, log B', beta): E, A' and B' in units of the mean loss, A' and B' at the centre of the data.
TINY = 1e-3  # starting value of a term that the linear fit makes negative, as share of the mean loss
MOST_LOG = 15.0  # range of log A' and log B' on either side of the mean loss


@dataclass(frozen=True)
class JointProblem:
    """The joint law on a set of runs.

    Attributes:
        problem: the problem in the form of the solver.
        center: log size and log tokens at which the terms are measured, so that the problem is well conditioned.
        unit: mean log loss, the unit of the terms.
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

    def starts(self, count: int = STARTS) -> Float64[np.ndarray, "S 5"]:
        """Starting points: the best of a grid over the exponents, with E, A' and B' by linear least squares."""
        size, tokens = (-term[:, 1] for term in self.problem.terms)
        alpha, beta = (grid.ravel() for grid in np.meshgrid(EXPONENTS, EXPONENTS, indexing="ij"))
        columns = np.stack(
            [np.ones((len(alpha), len(size))), np.exp(-alpha[:, None] * size), np.exp(-beta[:, None] * tokens)], axis=2
        )
        # Divided by the loss: least squares on L / loss - 1, which is log L - log loss to first order.
        relative = columns / np.exp(self.problem.log_loss)[:, None]
        scale = np.linalg.norm(relative, axis=1)
        unit = relative / scale[:, None, :]
        matrix = unit.transpose(0, 2, 1) @ unit + 1e-12 * np.eye(3)
        linear = np.linalg.solve(matrix, unit.sum(axis=1)[..., None])[..., 0] / scale
        E, A, B = np.maximum(linear, [0.0, TINY, TINY]).T
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
    zero_E: bool = False,
) -> JointProblem:
    """The optimisation problem of the joint law on a set of runs.

    E lies between 0 and the largest loss: noise can put a loss below the floor.

    Args:
        params: size of each run.
        tokens: data of each run.
        loss: final loss of each run.
        delta: width of the Huber loss.
        zero_E: fix E at 0, for comparison.
    """
    x, z, y = np.log(params), np.log(tokens), np.log(loss)
    center, unit = (float(x.mean()), float(z.mean())), float(y.mean())
    one = np.ones_like(x)
    terms = (np.stack([one, center[0] - x], axis=1), np.stack([one, center[1] - z], axis=1))
    room = LARGEST_EXPONENT * np.array([abs(x - center[0]).max(), abs(z - center[1]).max()])
    top = 0.0 if zero_E else float(np.exp(y.max() - unit))
    low = np.array([0.0, -MOST_LOG, 0.0, -MOST_LOG, 0.0])
    high = np.array([top, MOST_LOG + room[0], LARGEST_EXPONENT, MOST_LOG + room[1], LARGEST_EXPONENT])
    return JointProblem(Problem(terms, y - unit, low, high, delta), center, unit)


def as_dict(law: Float64[np.ndarray, " 5"]) -> dict[str, float]:
    """Constants by name."""
    return dict(zip(NAMES, map(float, law), strict=True))
