"""The search for the ends of intervals on profiles; many ends are found at once."""

from dataclasses import dataclass, fields, replace

import numpy as np
from jaxtyping import Bool, Float64, Int64

from tsfm.scaling.laws.minimise import Problem, Quantities, Spring, solve

PULL = 100.0  # stiffness of the springs compared with the profile
ROUNDS = 30  # of the search for an end
STEPS = 150  # Newton steps of a fit in the search
EXPANSION = 2.0  # how much farther than before a search goes at most
CLOSE = 2e-3  # relative error of the square root of the rise at an end
STUCK = 1e-9  # relative movement below which a quantity has reached the end of its range
TINY = 1e-9  # least root of the rise that is extrapolated


@dataclass(frozen=True)
class Search:
    """Search for the values at which the square root of the rise of a profile reaches a goal.

    Each row is a quantity of a law; the laws have the same form and runs, but may have other losses. The root is nearly
    linear in the value, so the next trial extrapolates it, at most to twice the distance, or interpolates it between a
    value inside the interval and one outside.

    Attributes:
        problem: form of the law, and the runs.
        quantities: values of all quantities from the parameters.
        which: number of the quantity of each row.
        theta: the best law of each row.
        least: its objective.
        unit: rise of the objective that corresponds to an F of 1.
        measured: (log) losses to which the law was fitted.
        delta: Huber width.
        spread: standard error of the quantity.
        path: change of the law that changes the quantity by a standard error at the least rise.
        goal: square root of the rise at an end.
    """

    problem: Problem
    quantities: Quantities
    which: Int64[np.ndarray, " R"]
    theta: Float64[np.ndarray, "R P"]
    least: Float64[np.ndarray, " R"]
    unit: Float64[np.ndarray, " R"]
    measured: Float64[np.ndarray, "R N"]
    delta: Float64[np.ndarray, " R"]
    spread: Float64[np.ndarray, " R"]
    path: Float64[np.ndarray, "R P"]
    goal: Float64[np.ndarray, " R"]

    @classmethod
    def join(cls, searches: "list[Search]") -> "Search":
        """One search for the rows of several."""
        columns = {f.name: [getattr(search, f.name) for search in searches] for f in fields(cls)[2:]}
        return cls(
            searches[0].problem, searches[0].quantities, **{name: np.concatenate(c) for name, c in columns.items()}
        )

    def rows(self, chosen: np.ndarray) -> "Search":
        """Some of the rows."""
        return replace(self, **{f.name: getattr(self, f.name)[chosen] for f in fields(self)[2:]})

    def values(self, theta: Float64[np.ndarray, "R P"]) -> Float64[np.ndarray, " R"]:
        """The quantity of each row."""
        return self.quantities(theta)[np.arange(len(theta)), self.which]

    def ends(self) -> Float64[np.ndarray, "2 R"]:
        """The lower and upper end of each row; infinite where no value of the quantity is excluded."""
        count = len(self.which)
        both, sign = self.rows(np.tile(np.arange(count), 2)), np.repeat([-1.0, 1.0], count)
        theta = both.theta.copy()
        middle = both.values(theta)
        inside, inside_root = middle.copy(), np.zeros(2 * count)
        outside, outside_root = np.full(2 * count, np.nan), np.full(2 * count, np.nan)
        reach = both.goal / np.sqrt(both.unit) * both.spread
        lag = np.zeros(2 * count)  # how far a spring is from its target
        end, done = sign * np.inf, np.zeros(2 * count, bool)
        for _ in range(ROUNDS):
            k = np.flatnonzero(~done)
            if not len(k):
                break
            part = both.rows(k)
            goal = part.goal
            share = np.clip((goal - inside_root[k]) / (outside_root[k] - inside_root[k]), 0.02, 0.98)
            between = inside[k] + share * (outside[k] - inside[k])
            open_ = np.isnan(outside[k])
            target = np.where(open_, inside[k] + sign[k] * reach[k], between) + lag[k]
            found, root = part.fits(target, inside[k], theta[k])
            value = part.values(found)
            over, close = root > goal, np.abs(root - goal) <= CLOSE * goal
            moved = np.abs(value - inside[k]) > STUCK * (part.spread + np.abs(value))
            end[k[close]] = value[close]
            done[k] = close | (~over & ~moved & open_)  # one that moves no further has reached the end of its range
            lag[k] = np.where(over | ~open_, target - value, 0.0)
            outside[k[over]], outside_root[k[over]] = value[over], root[over]
            inside[k[~over]], inside_root[k[~over]], theta[k[~over]] = value[~over], root[~over], found[~over]
            factor = np.clip(goal / np.maximum(root, TINY) - 1, 0.05, EXPANSION - 1)
            reach[k] = np.maximum(np.abs(value - middle[k]) * factor, reach[k] / 2)
        bracketed = ~done & np.isfinite(outside)
        end[bracketed] = outside[bracketed]
        return end.reshape(2, count)

    def contain(self, values: Float64[np.ndarray, " R"]) -> Bool[np.ndarray, " R"]:
        """Whether the interval of each row contains a value; much faster than the ends."""
        theta, target = self.theta, values
        start = self.values(theta)
        for _ in range(3):
            theta, root = self.fits(target, start, theta)
            start = self.values(theta)
            target = target + values - start
        return root <= self.goal

    def fits(
        self, target: Float64[np.ndarray, " R"], value: Float64[np.ndarray, " R"], theta: Float64[np.ndarray, "R P"]
    ) -> tuple[Float64[np.ndarray, "R P"], Float64[np.ndarray, " R"]]:
        """The best laws near each target, and the square roots of the rise of the objective.

        Args:
            target: value of each quantity to aim at.
            value: value of the last law.
            theta: the last law; fits start there and at the law moved along the path.
        """
        problem, count = self.problem, len(self.which)
        moved = theta + self.path * ((target - value) / self.spread)[:, None]
        start = np.concatenate([np.clip(moved, problem.low, problem.high), theta])
        twice = self.rows(np.tile(np.arange(count), 2))
        spring = Spring(self.quantities, twice.which, np.tile(target, 2), PULL * twice.unit / twice.spread**2)
        solution = solve(problem, start, measured=twice.measured, delta=twice.delta, spring=spring, steps=STEPS)
        energy = solution.objective + spring.energy(solution.theta)
        best = np.where(energy[:count] <= energy[count:], 0, count) + np.arange(count)
        rise = solution.objective[best] - self.least
        return solution.theta[best], np.sqrt(np.maximum(rise, 0.0))
