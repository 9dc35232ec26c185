"""The parametric fit of the joint law (approach 3 of Hoffmann et al. 2022)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from tsfm.scaling.laws.form import NAMES
from tsfm.scaling.laws.minimise import DELTA, EXPONENTS, LARGEST_EXPONENT, STARTS, Problem, Solution, solve

# theta = (log E, log A', alpha, log B', beta) with A' and B' at the centre of the data.
COLUMNS = {"E": 0, "A": 1, "alpha": 2, "B": 3, "beta": 4}
TINY = 1e-3  # starting value, as share of the mean loss, of a term that the linear fit makes negative


@dataclass(frozen=True)
class JointProblem:
    """The joint law on a set of runs.

    Attributes:
        problem: the problem in the form of the solver.
        center: log size and log tokens at which the terms are measured, so that the problem is well conditioned.
    """

    problem: Problem
    center: tuple[float, float]

    def to_laws(self, theta: Float64[np.ndarray, "S 5"]) -> Float64[np.ndarray, "S 5"]:
        """Solver parameters as constants in the order of ``NAMES``."""
        e, a, alpha, b, beta = theta.T
        with np.errstate(over="ignore"):
            A, B = np.exp(a + alpha * self.center[0]), np.exp(b + beta * self.center[1])
        return np.stack([np.exp(e), A, B, alpha, beta], axis=1)

    def to_theta(self, laws: Float64[np.ndarray, "S 5"]) -> Float64[np.ndarray, "S 5"]:
        """The inverse of ``to_laws``."""
        E, A, B, alpha, beta = laws.T
        e, a, b = (np.log(np.maximum(part, 1e-300)) for part in (E, A, B))
        return np.stack([e, a - alpha * self.center[0], alpha, b - beta * self.center[1], beta], axis=1)

    def starts(self, count: int = STARTS) -> Float64[np.ndarray, "S 5"]:
        """Starting points: the best of a grid over the exponents, with E, A' and B' by linear least squares."""
        size, tokens = (-term[:, 1] for term in self.problem.terms[1:])
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
        logs = np.log(np.maximum(linear, TINY * np.exp(self.problem.log_loss.mean())))
        theta = np.stack([logs[:, 0], logs[:, 1], alpha, logs[:, 2], beta], axis=1)
        theta = np.clip(theta, self.problem.low, self.problem.high)
        residual = self.problem.parts(theta)[1]
        order = np.argsort(self.problem.objective(residual, np.ones_like(residual)), kind="stable")
        spread = order[: 4 * count : 4]  # neighbours on the grid lead to the same minimum
        return theta[spread]

    def fit(self, start: Float64[np.ndarray, "S 5"] | None = None) -> Solution:
        """The best solution over all starting points, as a batch of one."""
        solution = solve(self.problem, self.starts() if start is None else start)
        best = int(np.argmin(solution.objective))
        return Solution(solution.theta[best : best + 1], solution.objective[best : best + 1])


def joint_problem(
    params: Float64[np.ndarray, " N"],
    tokens: Float64[np.ndarray, " N"],
    loss: Float64[np.ndarray, " N"],
    delta: float = DELTA,
    zero_E: bool = False,
    centered: bool = True,
) -> JointProblem:
    """The optimisation problem of the joint law on a set of runs.

    Args:
        params: size of each run.
        tokens: data of each run.
        loss: final loss of each run.
        delta: width of the Huber loss.
        zero_E: fix E at (almost) 0, for comparison.
        centered: measure the terms at the centre of the data; otherwise at a size and tokens of 1, as the profiles of
            A and B need it.
    """
    x, z, y = np.log(params), np.log(tokens), np.log(loss)
    center = (float(x.mean()), float(z.mean())) if centered else (0.0, 0.0)
    one = np.ones_like(x)
    terms = (one[:, None], np.stack([one, center[0] - x], axis=1), np.stack([one, center[1] - z], axis=1))
    bottom, top = float(y.min()), float(y.max())
    room = LARGEST_EXPONENT * np.array([abs(x - center[0]).max(), abs(z - center[1]).max()])
    low = np.array([bottom - 12, bottom - 15, 0.0, bottom - 15, 0.0])
    high = np.array([bottom, top + room[0], LARGEST_EXPONENT, top + room[1], LARGEST_EXPONENT])
    if zero_E:
        high[0] = low[0]
    return JointProblem(Problem(terms, y, low, high, delta), center)


def as_dict(law: Float64[np.ndarray, " 5"]) -> dict[str, float]:
    """Constants by name."""
    return dict(zip(NAMES, map(float, law), strict=True))
