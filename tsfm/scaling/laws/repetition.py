"""The value of repeated data: the law of Muennighoff et al. 2023 (arXiv 2305.16264, equations 5 and 6).

    D' = U + U R_D* (1 - exp(-R_D / R_D*)),          R_D = D / U - 1
    N' = U_N + U_N R_N* (1 - exp(-R_N / R_N*)),      R_N = N / U_N - 1

U is the number of different tokens, U_N the compute-optimal size for so many. Tokens seen again, and parameters beyond
U_N, are worth less and less; the joint law holds in D' and N' instead of D and N. R_D* near 0 means that repeated
tokens are worth nothing, a large one that they are worth as much as new ones.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from scipy import optimize, stats

from tsfm.scaling.laws.estimate import Fit, why_not_identifiable
from tsfm.scaling.laws.form import NAMES, JointLaw, at_least_tiny
from tsfm.scaling.laws.profile import LEVEL, huber_unit
from tsfm.scaling.record import Record
from tsfm.scaling.runs.ledger import Runs

PUBLISHED = (15.387756, 5.309743)  # R_D* and R_N* of the paper
SMALLEST, LARGEST = 0.05, 1000.0  # range of both that is searched
STARTS = ((1.0, 2.0), (5.0, 50.0), (30.0, 5.0), (300.0, 300.0))
TOLERANCE = 1e-3  # of log R*
FOLDS = 5
FEWEST = 5  # runs with repeated data that are needed
REPEATED = 1.5  # epochs from which a run counts as repeating data
FORMS = ("all tokens new", "repeated tokens", "repeated tokens and excess parameters")


@dataclass(frozen=True)
class Repetition:
    """How much repeated tokens and excess parameters are worth.

    Attributes:
        unique: number of different tokens.
        tokens_scale: R_D*; infinite if repeated tokens are worth as much as new ones.
        params_scale: R_N*; infinite if excess parameters are worth as much as others.
    """

    unique: float | Float64[np.ndarray, " N"]
    tokens_scale: float
    params_scale: float

    @classmethod
    def of_record(cls, unique: float, record: Record) -> "Repetition":
        """The value that a fit has found; that of the paper if it has found none."""
        if not record.get("R_star"):
            return cls(unique, *PUBLISHED)
        return cls(unique, record["R_star"], record["R_params"] or float("inf"))

    def effective_tokens(self, tokens: np.ndarray) -> np.ndarray:
        """The number of new tokens that would be worth as much."""
        return saturate(tokens, self.unique, self.tokens_scale)

    def effective(self, law: JointLaw, params: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The size and the number of new tokens that would be worth as much."""
        if not np.isfinite(self.params_scale):
            return params, self.effective_tokens(tokens)
        ratio = law.alpha * law.A / (law.beta * law.B)
        best = (ratio * self.unique**law.beta) ** (1 / law.alpha)
        return saturate(params, best, self.params_scale), self.effective_tokens(tokens)

    def tokens_for(self, law: JointLaw, params: np.ndarray, loss: float) -> np.ndarray:
        """Tokens with which a size reaches a loss; infinite if it never does."""
        size, _ = self.effective(law, params, np.asarray(self.unique))
        needed = np.asarray(law.tokens_for(size, loss))
        with np.errstate(all="ignore"):
            share = (needed / self.unique - 1) / self.tokens_scale
            again = -self.tokens_scale * np.log1p(-np.minimum(share, 1.0))
            return np.where(needed > self.unique, self.unique * (1 + again), needed)


def saturate(amount: np.ndarray, base: float | np.ndarray, scale: float) -> np.ndarray:
    """What an amount is worth of which only ``base`` counts fully; smaller amounts are worth themselves."""
    if not np.isfinite(scale):
        return np.asarray(amount)
    return np.where(amount > base, base + base * scale * -np.expm1(-(amount / base - 1) / scale), amount)


def repetition(fit: Fit) -> Record | None:
    """Fit the law of repeated data; None if the table has no column of different tokens.

    Args:
        fit: the joint law that counts every token as new.
    """
    runs = fit.runs
    if runs.unique is None:
        return None
    repeated = int((runs.tokens > REPEATED * runs.unique).sum())
    if repeated < FEWEST:
        return {"not_identifiable": f"{repeated} runs with repeated data; at least {FEWEST} are needed"}
    held = {form: _held_out(fit, form) for form in FORMS}
    # The simplest law whose held-out error is hardly larger than the least.
    best = next(form for form in FORMS if held[form] <= 1.05 * min(held.values()))
    shown = FORMS[1] if best == FORMS[0] else best
    solver = _Solver(runs, fit, shown)
    solution = solver.fit()
    values = solver.values(solution.x)
    ends = [solver.interval(solution, k) for k in range(5, len(solution.x))]
    return {
        "law_form": shown,
        "R_star": values[5],
        "ci95": ends[0],
        "R_params": values[6] if len(ends) > 1 else None,
        "R_params_ci95": ends[1] if len(ends) > 1 else None,
        "runs_with_repeated_data": repeated,
        "law": dict(zip(NAMES, values[:5], strict=True)),
        "held_out_rms": held,
        "preferred": best != FORMS[0],
    }


class _Solver:
    """Fits one form of the law by least squares with a Huber loss on what the joint law is fitted to."""

    def __init__(self, runs: Runs, fit: Fit, form: str) -> None:
        self.runs, self.form = runs, form
        self.problem = fit.problem
        self.width = fit.profile.problem.delta
        self.start = fit.problem.to_theta(fit.law[None])[0]
        self.scales = FORMS.index(form)
        free = np.log([SMALLEST, LARGEST])
        self.low = np.append(fit.problem.problem.low, np.full(self.scales, free[0]))
        self.high = np.append(fit.problem.problem.high, np.full(self.scales, free[1]))

    def values(self, theta: np.ndarray) -> list[float]:
        """Constants of the law, then R_D* and R_N*."""
        return [*map(float, self.problem.to_laws(theta[None, :5])[0]), *map(float, np.exp(theta[5:]))]

    def errors(self, theta: np.ndarray, runs: Runs) -> np.ndarray:
        """Prediction minus truth of what is measured: log loss, or loss in its unit."""
        return self.problem.measure(self.predict(theta, runs)) - self.problem.measure(runs.loss)

    def predict(self, theta: np.ndarray, runs: Runs) -> np.ndarray:
        """The expected loss of runs."""
        values = self.values(theta)
        scales = [*values[5:], np.inf, np.inf][:2]
        law = JointLaw(*at_least_tiny(np.array(values[:5])[None])[0])
        repeated = Repetition(runs.tokens if runs.unique is None else runs.unique, *scales)
        return np.asarray(law.loss(*repeated.effective(law, runs.params, runs.tokens)))

    def fit(self, start: np.ndarray | None = None, fixed: dict[int, float] | None = None) -> optimize.OptimizeResult:
        """The best fit, from a start or from several.

        Args:
            start: starting point.
            fixed: values of parameters that do not move.
        """
        starts = [start] if start is not None else [np.append(self.start, np.log(s[: self.scales])) for s in STARTS]
        held = fixed or {}
        free = np.array([k for k in range(len(self.low)) if k not in held])

        def whole(part: np.ndarray) -> np.ndarray:
            theta = np.empty(len(self.low))
            theta[free] = part
            for k, value in held.items():
                theta[k] = value
            return theta

        results = []
        for begin in starts[: 1 if self.scales == 0 else None]:
            inside = np.clip(begin[free], self.low[free] + 1e-9, self.high[free] - 1e-9)
            ends = (self.low[free], self.high[free])
            results.append(
                optimize.least_squares(
                    lambda part: self.errors(whole(part), self.runs),
                    inside,
                    bounds=ends,
                    loss="huber",
                    f_scale=self.width,
                    x_scale="jac",
                )
            )
        best = min(results, key=lambda result: float(result.cost))
        best.x = whole(best.x)
        return best

    def interval(self, solution: optimize.OptimizeResult, column: int) -> list[float | None]:
        """The 95 % interval of R_D* or R_N* by the profile; None for an open side."""
        freedom = max(self.runs.runs - len(solution.x), 1)
        unit = huber_unit(self.errors(solution.x, self.runs), self.width, len(solution.x))
        goal = unit * float(stats.f.ppf(LEVEL, 1, freedom))

        def rise(log: float) -> float:
            return float(self.fit(solution.x, {column: log}).cost - solution.cost) - goal

        return [_crossing(rise, float(solution.x[column]), float(end[column])) for end in (self.low, self.high)]


def _crossing(rise: Callable[[float], float], start: float, end: float) -> float | None:
    """exp of the point between start and end at which the profile crosses its critical value; None if there is none."""
    if abs(start - end) < TOLERANCE or rise(end) <= 0:
        return None
    return float(np.exp(optimize.brentq(rise, start, end, xtol=TOLERANCE)))


def _held_out(fit: Fit, form: str) -> float:
    """Root mean squared error in cross-validation over runs."""
    runs, squared = fit.runs, np.zeros(len(fit.runs))
    order = np.random.default_rng(0).permutation(runs.runs)  # the folds do not follow the order of the table
    fold_of = order[runs.clusters] % FOLDS
    for fold in range(FOLDS):
        out = fold_of == fold
        if why_not_identifiable(runs.select(~out)):
            return float("inf")
        solver = _Solver(runs.select(~out), fit, form)
        squared[out] = solver.errors(solver.fit().x, runs.select(out)) ** 2
    return fit.problem.step * float(np.sqrt(squared.mean()))
