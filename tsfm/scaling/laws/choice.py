"""Other forms of the law in size and data, compared with the joint law by their error on held-out runs.

    joint             E + A / N^alpha + B / D^beta
    no floor          the same with E = 0
    equal exponents   the same with alpha = beta
    coupled           E + (A / N^(alpha/gamma) + B / D^(beta/gamma))^gamma
    Kaplan            the coupled law with E = 0 (Kaplan et al. 2020, equation 1.5)
    broken in size    A / N^alpha (1 + N / n)^(alpha - alpha2): another exponent above a size n
    broken in data    the same in data
    free floor        the joint law, if the user has fixed E
    linear            the joint law, fitted to the losses instead of their logarithms
    asymmetric        the joint law, in which a loss below the law counts as nine above it: bad training raises losses

Losses that may be negative have no logarithm: all laws are then fitted to the losses themselves, and those without a
floor are left out. Two errors tell them apart: that of cross-validation over runs, and that on the runs of the largest
compute.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize

from tsfm.scaling.laws.estimate import Fit
from tsfm.scaling.laws.form import FLOPS_PER_TOKEN
from tsfm.scaling.laws.joint import joint_problem
from tsfm.scaling.laws.minimise import LARGEST_EXPONENT
from tsfm.scaling.record import Record
from tsfm.scaling.runs.ledger import Runs

FOLDS = 5
HELD_OUT = 0.2  # share of the runs, those with the most compute, that each law predicts from the others
CLEAR = 1.3  # factor on the least error up to which a simpler law is preferred
SPARE = 3  # runs more than constants that a law needs
OUTERMOST = 4.0  # Huber widths of the joint law: residuals beyond count as so many
BEYOND = 10.0  # times the largest compute: the budget for which all laws are asked
LARGEST_LOG = 600.0  # of a term
ASYMMETRY = 3.0  # factor on residuals of losses below the law
Loss = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
Residual = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Form:
    """A form of the law: loss from its parameters, log size and log data, both centred.

    Attributes:
        name: of the form.
        loss: of runs in units of the typical loss.
        ends: smallest and largest value of each parameter; None for those of E in the joint law.
        start: starting points from the joint law (E, log A', alpha, log B', beta).
        error: from the residuals of what is measured, and predicted and true loss, to those that are minimised.
    """

    name: str
    loss: Loss
    ends: tuple[tuple[float, float] | None, ...]
    start: Callable[[np.ndarray], list[np.ndarray]]
    error: Residual | None = None


def _sum(E: float, *logs: np.ndarray) -> np.ndarray:
    return E + np.exp(np.minimum(np.logaddexp.reduce(np.stack(logs), axis=0), LARGEST_LOG))


def _joint(p: np.ndarray, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    return _sum(p[0], p[1] - p[2] * x, p[3] - p[4] * z)


def _coupled(p: np.ndarray, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    gamma = np.exp(p[5])
    return _sum(p[0], gamma * np.logaddexp((p[1] - p[2] * x) / gamma, (p[3] - p[4] * z) / gamma))


def _bend(p: np.ndarray, v: np.ndarray) -> np.ndarray:
    """What a break adds to the logarithm of a term: p is (second exponent - first, log of the place)."""
    return -p[0] * (np.logaddexp(0.0, v - p[1]) - np.logaddexp(0.0, -p[1]))


E_, LOG, EXP = None, (-15.0, 15.0), (0.0, LARGEST_EXPONENT)
GAMMA = (np.log(0.05), np.log(5.0))
FORMS = (
    Form("joint", _joint, (E_, LOG, EXP, LOG, EXP), lambda p: [p]),
    Form(
        "no floor",
        lambda p, x, z: _joint(np.append(0.0, p), x, z),
        (LOG, EXP, LOG, EXP),
        lambda p: [p[1:], np.array([p[1], p[2] / 3, p[3], p[4] / 3])],
    ),
    Form(
        "equal exponents",
        lambda p, x, z: _joint(np.array([p[0], p[1], p[2], p[3], p[2]]), x, z),
        (E_, LOG, EXP, LOG),
        lambda p: [p[:4]],
    ),
    Form(
        "Kaplan",
        lambda p, x, z: _coupled(np.append(0.0, p), x, z),
        (LOG, EXP, LOG, EXP, GAMMA),
        lambda p: [np.array([p[1], p[2] / s, p[3], p[4] / s, g]) for s in (1, 3) for g in (-1.5, 0.0)],
    ),
    Form(
        "coupled",
        _coupled,
        (E_, LOG, EXP, LOG, EXP, GAMMA),
        lambda p: [np.append(p, g) for g in (-1.0, 0.0, 0.7)],
    ),
    Form(
        "broken in size",
        lambda p, x, z: _sum(p[0], p[1] - p[2] * x + _bend(p[5:], x), p[3] - p[4] * z),
        (E_, LOG, EXP, LOG, EXP, (-1.0, 1.0), (-8.0, 8.0)),
        lambda p: [np.append(p, [b, d]) for b in (-0.1, 0.1) for d in (-2.0, 2.0)],
    ),
    Form(
        "broken in data",
        lambda p, x, z: _sum(p[0], p[1] - p[2] * x, p[3] - p[4] * z + _bend(p[5:], z)),
        (E_, LOG, EXP, LOG, EXP, (-1.0, 1.0), (-8.0, 8.0)),
        lambda p: [np.append(p, [b, d]) for b in (-0.1, 0.1) for d in (-2.0, 2.0)],
    ),
    Form("linear", _joint, (E_, LOG, EXP, LOG, EXP), lambda p: [p], lambda _, predicted, true: predicted - true),
    Form(
        "asymmetric",
        _joint,
        (E_, LOG, EXP, LOG, EXP),
        lambda p: [p],
        lambda residual, *_: np.where(residual > 0, ASYMMETRY, 1.0) * residual,
    ),
)
FLOORLESS = ("no floor", "Kaplan")


def forms_for(fit: Fit) -> list[Form]:
    """The forms that can be compared for a fit."""
    log, floor = fit.problem.problem.log, fit.floor
    forms = [form for form in FORMS if log or form.name not in (*FLOORLESS, "linear")]
    if floor is None:
        return forms
    E = floor * np.exp(-fit.problem.unit)
    fixed = Form("joint", lambda p, x, z: _joint(np.append(E, p), x, z), (LOG, EXP, LOG, EXP), lambda p: [p[1:]])
    return [fixed, *(replace(form, name="free floor") if form.name == "joint" else form for form in forms)]


def compare_laws(fit: Fit) -> list[Record]:
    """Every form fitted to the runs: its errors, and its plan for ten times the largest compute.

    The first row with ``preferred`` is the simplest form whose error in cross-validation is hardly larger than the
    least.
    """
    rows: list[Record] = []
    folds = np.random.default_rng(0).permutation(fit.runs.runs)[fit.runs.clusters] % FOLDS
    order = np.argsort(fit.runs.flops, kind="stable")
    largest = np.zeros(len(fit.runs), bool)
    largest[order[-max(3, round(HELD_OUT * len(fit.runs))) :]] = True
    for form in forms_for(fit):
        if fit.runs.runs * (FOLDS - 1) // FOLDS < len(form.ends) + SPARE:
            continue
        fitter = _Fitter(fit, form)
        whole = fitter.fit(fit.runs, fitter.starts)
        parts = [fitter.errors(folds == fold, whole) for fold in range(FOLDS)]
        budget = BEYOND * float(fit.runs.flops.max())
        rows.append(
            {
                "law": form.name,
                "constants": len(form.ends),
                "rms_log_error": fitter.rms(fitter.residuals(whole, fit.runs)),
                "cross_validation": fitter.rms(np.concatenate(parts)),
                "largest_runs": fitter.rms(fitter.errors(largest, whole)),
                "plan": fitter.plan(whole, budget),
                "preferred": False,
            }
        )
    if not any(row["law"] == "joint" for row in rows):
        return []
    limit = CLEAR * min(float(row["cross_validation"]) for row in rows)
    # The joint law comes first, because everything else in the report is about it.
    simple = sorted(rows, key=lambda row: (row["law"] != "joint", int(row["constants"])))
    next(row for row in simple if row["cross_validation"] <= limit)["preferred"] = True
    return rows


class _Fitter:
    """Fits a form by least squares with a Huber loss on log loss, or on loss if losses may be negative."""

    def __init__(self, fit: Fit, form: Form) -> None:
        self.form, self.problem = form, fit.problem
        self.width = max(fit.profile.problem.delta, 1e-6)
        self.starts = form.start(fit.problem.to_theta(fit.law[None])[0])
        self.runs = fit.runs
        free = joint_problem(self.runs.params, self.runs.tokens, self.runs.loss).problem
        of_E = (float(free.low[0]), max(float(free.high[0]), 3.0))
        self.low, self.high = np.array([of_E if ends is None else ends for ends in form.ends]).T

    def residuals(self, theta: np.ndarray, runs: Runs) -> np.ndarray:
        """Prediction minus truth of what is measured, log loss or loss, divided by the noise of each run."""
        error = self.problem.measure(self.predict(theta, runs.params, runs.tokens)) - self.problem.measure(runs.loss)
        return error / self.problem.problem.spread_at(self.problem.terms_at(runs.params, runs.tokens))

    def minimised(self, theta: np.ndarray, runs: Runs) -> np.ndarray:
        """The residuals whose Huber loss is minimised."""
        residual = self.residuals(theta, runs)
        if self.form.error is None:
            return residual
        unit = np.exp(self.problem.unit)
        return self.form.error(residual, self.predict(theta, runs.params, runs.tokens) / unit, runs.loss / unit)

    def predict(self, theta: np.ndarray, params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """The expected loss."""
        x, z = np.log(params) - self.problem.center[0], np.log(tokens) - self.problem.center[1]
        return np.exp(self.problem.unit) * self.form.loss(theta, x, z)

    def fit(self, runs: Runs, starts: list[np.ndarray]) -> np.ndarray:
        """Parameters of the best fit from some starting points."""
        results = [
            optimize.least_squares(
                self.minimised,
                np.clip(start, self.low + 1e-6, self.high - 1e-6),
                bounds=(self.low, self.high),
                loss="huber",
                f_scale=self.width,
                x_scale="jac",
                args=(runs,),
                max_nfev=300,
            )
            for start in starts
        ]
        return min(results, key=lambda result: float(result.cost)).x

    def errors(self, out: np.ndarray, start: np.ndarray) -> np.ndarray:
        """Residuals of some runs by the law fitted to the others."""
        return self.residuals(self.fit(self.runs.select(~out), [start]), self.runs.select(out))

    def rms(self, residual: np.ndarray) -> float:
        """Root mean square, in which an outlier counts as much as the outermost ordinary run."""
        return self.problem.step * float(np.sqrt((np.minimum(np.abs(residual), OUTERMOST * self.width) ** 2).mean()))

    def plan(self, theta: np.ndarray, budget: float) -> Record:
        """The best size for a budget, within a factor of a thousand of the largest run, and its loss."""
        sizes = np.geomspace(self.runs.params.min(), 1e3 * self.runs.params.max(), 2000)
        losses = self.predict(theta, sizes, budget / FLOPS_PER_TOKEN / sizes)
        k = int(np.argmin(losses))
        return {"flops": budget, "params": float(sizes[k]), "loss": float(losses[k])}
