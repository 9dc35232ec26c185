"""Plans from a fitted joint law: size, data, loss and compute from one or two of them, with intervals."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from tsfm.scaling.laws.design import best_runs, candidates
from tsfm.scaling.laws.form import (
    FLOPS_PER_INFERENCE_TOKEN,
    FLOPS_PER_TOKEN,
    NAMES,
    JointLaw,
    at_least_tiny,
    training_flops,
)
from tsfm.scaling.laws.joint import JointProblem, joint_problem
from tsfm.scaling.laws.minimise import Quantities
from tsfm.scaling.laws.profile import Profile, finite_log, follow_noise, open_ends
from tsfm.scaling.laws.repetition import Repetition
from tsfm.scaling.record import Record, read_law
from tsfm_data.errors import InputError

FAR, TOO_FAR = 10.0, 1000.0  # factors beyond the range of the runs
ROUNDS, POINTS = 11, 21  # of the search for the best size if inference or repetition counts; a round gains a digit
EXACT = 1e-9  # relative width of the interval of a quantity that is given
QUANTITIES = ("params", "tokens", "loss", "flops", "inference_flops")


@dataclass(frozen=True)
class Plan:
    """What to train.

    Attributes:
        values: value of each of ``QUANTITIES``.
        intervals: 95 % interval of each; an end is infinite if the goal may be out of reach.
        beyond_data: whether size, data or compute lie outside the range of the runs.
        warnings: texts for the user.
        narrowed: the first of size, data and loss that the law does not know exactly.
        next_runs: runs that would narrow its interval most, as in ``best_runs``, for as much compute as all runs.
    """

    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    beyond_data: bool
    warnings: tuple[str, ...]
    narrowed: str
    next_runs: list[Record]


@dataclass(frozen=True)
class FittedLaw:
    """A joint law in a fit.json, and the runs that give the intervals of what it predicts.

    Attributes:
        record: the content of fit.json, or its part about a group.
        repetition: the value of repeated data, if the law is that in effective tokens; its number of different tokens
            is that of the plan.
    """

    record: Record
    repetition: Repetition | None = None

    def with_unique(self, unique_tokens: float | None) -> "FittedLaw":
        """The law for plans with a limited number of different tokens: in effective tokens, if the fit has that law."""
        if unique_tokens is None:
            return self
        return FittedLaw(self.record, Repetition.of_record(unique_tokens, self.record["repetition"] or {}))

    @property
    def counts_repetition(self) -> bool:
        """Whether this fit has a law in effective tokens, and plans need it."""
        return self.repetition is not None and "R_star" in (self.record["repetition"] or {})

    @property
    def constants(self) -> Float64[np.ndarray, " 5"]:
        """In the order of ``NAMES``."""
        law = self.record["repetition"]["law"] if self.counts_repetition else self.record["joint"]
        return np.array([law[name] for name in NAMES])

    @cached_property
    def profile(self) -> tuple[JointProblem, Profile]:
        """The profile of the law on its runs."""
        columns = {name: np.array(values) for name, values in self.record["runs"].items() if values is not None}
        params, tokens = columns["params"], columns["tokens"]
        if self.counts_repetition and self.repetition is not None:
            repeated = replace(self.repetition, unique=columns["unique"])
            params, tokens = repeated.effective(JointLaw(*self.constants), params, tokens)
        joint = self.record["joint"]
        problem = joint_problem(params, tokens, columns["loss"], joint["huber_delta"], joint.get("floor"))
        starts = np.concatenate([problem.to_theta(self.constants[None]), problem.starts()])
        weigh = bool(joint.get("noise_exponent"))
        return problem, follow_noise(problem.problem, starts, columns["clusters"], weigh)

    def logs(self, quantities: Callable[[JointLaw], np.ndarray], loss: int) -> Quantities:
        """Logarithms of quantities of the law, [S, Q], from parameters of the solver.

        Args:
            quantities: their values, above 0 except the loss.
            loss: which of them is a loss.
        """
        problem, _ = self.profile

        def logs(theta: np.ndarray) -> np.ndarray:
            laws = at_least_tiny(problem.to_laws(theta))
            with np.errstate(all="ignore"):
                values = np.array(quantities(JointLaw.from_rows(laws)))
                values[:, loss] = problem.positive(values[:, loss])
            return finite_log(values)

        return logs

    def next_runs(self, quantities: Callable[[JointLaw], np.ndarray], loss: int, which: int) -> list[Record]:
        """The runs that would narrow the interval of one of the quantities most, for as much compute as all runs."""
        problem, profile = self.profile
        logs, runs = self.logs(quantities, loss), self.record["runs"]
        params, tokens = np.array(runs["params"]), np.array(runs["tokens"])
        budget = float(np.asarray(training_flops(params, tokens)).sum())
        possible = candidates(params, tokens)
        return best_runs(problem, profile, lambda theta: logs(theta)[:, [which]], possible, budget)

    def intervals(self, quantities: Callable[[JointLaw], np.ndarray], loss: int) -> Float64[np.ndarray, "2 Q"]:
        """95 % intervals of quantities of the law, [S, Q]; infinite where they are open.

        Args:
            quantities: their values, above 0 except the loss.
            loss: which of them is a loss.
        """
        problem, profile = self.profile
        logs = self.logs(quantities, loss)
        center = logs(problem.to_theta(self.constants[None]))[0]
        ends = profile.intervals(logs)
        ends = open_ends(np.stack([np.minimum(ends[0], center), np.maximum(ends[1], center)]))
        ends[:, loss] = problem.loss_of(ends[:, loss])
        return ends

    def expected_loss(self, params: float, tokens: float) -> float:
        """The expected loss of a new run."""
        goal = Goal({}, 0.0, self.repetition)
        return float(goal.loss(JointLaw(*self.constants), np.array(params), np.array(tokens)))

    def prediction(self, params: float, tokens: float) -> tuple[float, tuple[float, float]]:
        """The expected loss of a new run, and its 95 % prediction interval: of the law and of the noise of a run."""
        goal, loss = Goal({}, 0.0, self.repetition), self.expected_loss(params, tokens)

        def quantity(law: JointLaw) -> np.ndarray:
            like = np.ones_like(np.asarray(law.E))
            return goal.loss(law, params * like, tokens * like)[:, None]

        problem, profile = self.profile
        center, ends = (problem.measure(value) for value in (np.array([loss]), self.intervals(quantity, 0)))
        spread = profile.problem.spread_at(problem.terms_at(np.array([params]), np.array([tokens])))
        low, high = problem.loss_at(profile.with_noise(center, ends, spread))[:, 0]
        return loss, (float(low), float(high))


def read_fit(path: str | Path, group: str | None = None) -> FittedLaw:
    """The joint law in a fit.json of ``tsfm scaling fit``.

    Args:
        path: the file.
        group: group whose law is read, if the fit has groups.

    Raises:
        InputError: no such file or group, a file of another kind, or a joint law that is not identifiable.
    """
    return FittedLaw(read_law(path, group))


@dataclass(frozen=True)
class Goal:
    """What a plan is for.

    Attributes:
        known: the one or two quantities that are given.
        inference: tokens that the model will process after training.
        repetition: the value of repeated data, if the different tokens are limited.
    """

    known: dict[str, float]
    inference: float
    repetition: Repetition | None = None

    def loss(self, law: JointLaw, params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """The expected loss."""
        if self.repetition is None:
            return np.asarray(law.loss(params, tokens))
        return np.asarray(law.loss(*self.repetition.effective(law, params, tokens)))

    def tokens_for(self, law: JointLaw, params: np.ndarray, loss: float) -> np.ndarray:
        """Tokens with which a size reaches a loss; infinite if it never does."""
        if self.repetition is None:
            return np.asarray(law.tokens_for(params, loss))
        return self.repetition.tokens_for(law, params, loss)


def make_plan(
    law: FittedLaw,
    flops: float | None = None,
    params: float | None = None,
    tokens: float | None = None,
    loss: float | None = None,
    inference_tokens: float = 0.0,
) -> Plan:
    """The compute-optimal plan for one given quantity, or the plan that two given quantities determine.

    Args:
        law: the law of a fit.json.
        flops: compute of training and, if ``inference_tokens`` is given, of inference.
        params: size of the model.
        tokens: data to train on.
        loss: loss to reach.
        inference_tokens: tokens that the model will process after training.

    Raises:
        InputError: none or more than two quantities, one that is not above 0, or a goal that is out of reach.
    """
    given = {"flops": flops, "params": params, "tokens": tokens, "loss": loss}
    known = {name: float(value) for name, value in given.items() if value is not None}
    unique = None if law.repetition is None else float(law.repetition.unique)
    check_goal(known, inference_tokens, unique, law.record["data"]["loss"][0])
    goal = Goal(known, inference_tokens, law.repetition)
    with np.errstate(all="ignore"):
        row = _solve(JointLaw.from_rows(law.constants[None]), goal)[0]
    if not np.isfinite(row).all():
        joint = law.record["joint"]
        ends_of_E = ["open" if end is None else f"{end:.4g}" for end in joint["ci95"].get("E") or (None, None)]
        raise InputError(
            f"expected a goal that the law can reach, found {', '.join(f'{k} {v:g}' for k, v in known.items())}; its "
            f"irreducible loss is {joint['E']:.4g} ({' to '.join(ends_of_E)})"
        )

    def planned(laws: JointLaw) -> np.ndarray:
        return _solve(laws, goal)[:, :4]

    ends = law.intervals(planned, QUANTITIES.index("loss"))
    values = dict(zip(QUANTITIES, map(float, row), strict=True))
    intervals = {name: (float(ends[0, k]), float(ends[1, k])) for k, name in enumerate(QUANTITIES[:4])}
    low, high = intervals["params"]
    serving = FLOPS_PER_INFERENCE_TOKEN * inference_tokens
    intervals["inference_flops"] = (serving * low, serving * high if serving else 0.0)
    warnings = _warnings(law.record, values)
    if law.repetition is not None and not law.counts_repetition:
        warnings.append("the fit has no law of repeated data: its value is that of Muennighoff et al. 2023, R* 15.4")
    unsure = next(k for k in range(3) if ends[1, k] - ends[0, k] > EXACT * abs(row[k]) or k == 2)
    runs = law.next_runs(planned, QUANTITIES.index("loss"), unsure)
    return Plan(values, intervals, beyond_data(law.record, values), tuple(warnings), QUANTITIES[unsure], runs)


def check_goal(known: dict[str, float], inference: float, unique: float | None, least_loss: float = 1.0) -> None:
    """Refuse goals that are not positive, too many or too few, or that inference alone exceeds.

    Args:
        known: the quantities that are given.
        inference: tokens that the model will process after training.
        unique: number of different tokens, if it is limited.
        least_loss: of the runs; if it is not above 0, the loss to reach need not be either.

    Raises:
        InputError: one of them.
    """
    for name, value in (
        known | {"inference_tokens": inference, "unique_tokens": 1.0 if unique is None else unique}
    ).items():
        any_sign = name == "loss" and least_loss <= 0
        if not np.isfinite(value) or not (any_sign or value > 0 or (value == 0 and name == "inference_tokens")):
            raise InputError(f"expected {name} above 0, found {value:g}")
    if not 1 <= len(known) <= 2 or set(known) == {"flops", "loss"}:
        raise InputError(
            f"expected one of flops, params, tokens and loss, or two of which one is params or tokens, found "
            f"{' and '.join(known) or 'none'}; the rest follows from the law"
        )
    if unique is not None and set(known) <= {"params", "tokens"} and len(known) == 1:
        raise InputError(f"expected flops or loss with unique_tokens, found {next(iter(known))} alone; give a budget")
    if set(known) == {"flops", "params"}:
        serving = FLOPS_PER_INFERENCE_TOKEN * inference * known["params"]
        if serving >= known["flops"]:
            raise InputError(
                f"expected a budget above the {serving:.3g} FLOPs of inference, found {known['flops']:g}: nothing is "
                "left for training; give a smaller model, fewer inference tokens or more compute"
            )


def _solve(law: JointLaw, goal: Goal) -> Float64[np.ndarray, "S 5"]:
    """Size, tokens, loss, training and inference compute for every law."""
    known, inference = goal.known, goal.inference
    names, like = set(known), np.ones_like(np.asarray(law.E))
    if names == {"params", "tokens"}:
        params, tokens = known["params"] * like, known["tokens"] * like
    elif names == {"flops", "params"}:
        params = known["params"] * like
        tokens = _tokens_left(params, known["flops"], inference)
    elif names == {"flops", "tokens"}:
        tokens = known["tokens"] * like
        params = known["flops"] / (FLOPS_PER_TOKEN * tokens + FLOPS_PER_INFERENCE_TOKEN * inference)
    elif names == {"params", "loss"}:
        params = known["params"] * like
        tokens = goal.tokens_for(law, params, known["loss"])
    elif names == {"tokens", "loss"}:
        tokens = known["tokens"] * like
        seen = tokens if goal.repetition is None else goal.repetition.effective_tokens(tokens)
        params = np.asarray(law.params_for(seen, known["loss"]))
    else:
        params, tokens = _optimum(law, goal)
    loss = goal.loss(law, params, tokens)
    spent = np.asarray(training_flops(params, tokens))
    table = np.stack([params, tokens, loss, spent, FLOPS_PER_INFERENCE_TOKEN * inference * params], axis=1)
    return np.where(tokens[:, None] > 0, table, np.nan)


def _optimum(law: JointLaw, goal: Goal) -> tuple[np.ndarray, np.ndarray]:
    """The compute-optimal pair for one known quantity."""
    known, inference = goal.known, goal.inference
    like = np.ones_like(np.asarray(law.E))
    ratio = law.alpha * law.A / (law.beta * law.B)  # at the optimum alpha A / N^alpha = beta B / D^beta
    if "params" in known:
        params = known["params"] * like
        return params, (params**law.alpha / ratio) ** (1 / law.beta)
    if "tokens" in known:
        tokens = known["tokens"] * like
        return (ratio * tokens**law.beta) ** (1 / law.alpha), tokens
    search = inference or goal.repetition is not None
    if "flops" in known:
        budget = known["flops"]
        params = np.asarray(law.optimal_params(budget)) * like
        if search:
            most = budget / (FLOPS_PER_INFERENCE_TOKEN * inference) if inference else np.inf
            params = _search(lambda size: goal.loss(law, size, _tokens_left(size, budget, inference)), params, most)
        return params, _tokens_left(params, budget, inference)
    aim = known["loss"]
    left = aim - np.asarray(law.E)
    params = (law.A * (1 + law.alpha / law.beta) / np.where(left > 0, left, np.nan)) ** (1 / np.asarray(law.alpha))
    if search:

        def total(size: np.ndarray) -> np.ndarray:
            needed = goal.tokens_for(law, size, aim)
            return size * (FLOPS_PER_TOKEN * needed + FLOPS_PER_INFERENCE_TOKEN * inference)

        params = _search(total, params)
    return params, goal.tokens_for(law, params, aim)


def _tokens_left(params: np.ndarray, flops: float, inference: float) -> np.ndarray:
    """Training tokens that a budget leaves after inference; a negligible number if it leaves none."""
    left = (flops - FLOPS_PER_INFERENCE_TOKEN * inference * params) / (FLOPS_PER_TOKEN * params)
    return np.maximum(left, 1e-30)


def _search(cost: Callable[[np.ndarray], np.ndarray], start: np.ndarray, most: float = np.inf) -> np.ndarray:
    """The size of least cost, at most ``most``, around the best one if neither inference nor repetition counts."""
    low, high = np.log(start) - 20.0, np.minimum(np.log(start) + 5.0, np.log(most) - 1e-6)
    low, rows = np.minimum(low, high - 5.0), np.arange(len(start))
    for _ in range(ROUNDS):
        sizes = np.linspace(low, high, POINTS)
        costs = cost(np.exp(sizes))  # too small a size never reaches a loss: its cost is infinite
        best = np.argmin(np.where(np.isnan(costs), np.inf, costs), axis=0)
        low, high = sizes[np.maximum(best - 1, 0), rows], sizes[np.minimum(best + 1, POINTS - 1), rows]
    return np.exp((low + high) / 2)


def beyond_data(record: Record, values: dict[str, float]) -> bool:
    """Whether a plan lies outside the range of the runs."""
    ends = {name: record["data"][name] for name in ("flops", "params", "tokens")}
    return any(not low * (1 - 1e-9) <= values[name] <= high * (1 + 1e-9) for name, (low, high) in ends.items())


def _warnings(record: Record, values: dict[str, float]) -> list[str]:
    """Warnings about constants that are not identifiable and about extrapolation."""
    warnings = list(record["joint"]["not_identifiable"])
    words = {"flops": "training compute", "params": "size", "tokens": "data"}
    for name, word in words.items():
        low, high = record["data"][name]
        beyond = max(values[name] / high, low / values[name])
        side = "times that of the largest" if values[name] > high else "times below that of the smallest"
        if beyond >= TOO_FAR:
            warnings.append(
                f"the {word} is {beyond:.3g} {side} run: no law is known to hold so far from the data, "
                "and the intervals do not cover that; train larger models first"
            )
        elif beyond >= FAR:
            warnings.append(f"the {word} is {beyond:.3g} {side} run; the intervals assume that the law holds there")
    return warnings
