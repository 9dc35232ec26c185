"""Plans from a fitted joint law: size, data, loss and compute from one or two of them, with intervals."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt, Len
from jaxtyping import Float64
from typing_extensions import TypedDict

from tsfm.scaling.laws.bootstrap import percentile_interval
from tsfm.scaling.laws.form import FLOPS_PER_INFERENCE_TOKEN, FLOPS_PER_TOKEN, NAMES, JointLaw, training_flops
from tsfm_data.errors import InputError
from tsfm_data.io import read_record

FAR, TOO_FAR = 10.0, 1000.0  # factors beyond the range of the runs
STEPS = 200  # of the search for the best size if inference counts
QUANTITIES = ("params", "tokens", "loss", "flops", "inference_flops")


Positive = Annotated[float, Gt(0)]
Range = Annotated[list[Positive], Len(2, 2)]


class Intervals(TypedDict):
    """The 95 % intervals of the constants, of which a message shows one."""

    E: Annotated[list[float], Len(2, 2)]


class Joint(TypedDict):
    """The joint law in a fit.json, if it is identifiable."""

    E: Annotated[float, Ge(0)]
    A: Positive
    B: Positive
    alpha: Positive
    beta: Positive
    ci95: Intervals
    identifiable: Literal[True]
    not_identifiable: list[str]


class Ranges(TypedDict):
    """The smallest and largest run that a law was fitted to."""

    params: Range
    tokens: Range
    flops: Range


class FitRecord(TypedDict):
    """The part of a fit.json that a plan needs; a number that is not finite is stored as None."""

    joint: Joint
    data: Ranges
    draws: Annotated[list[Annotated[list[float | None], Len(5, 5)]], Len(1, 10**6)]


class JointStatus(TypedDict):
    """Whether the joint law in a fit.json is identifiable, and if not, why."""

    identifiable: bool
    not_identifiable: list[str]


class AnyFit(TypedDict):
    """A fit.json, whether or not its law is identifiable."""

    joint: JointStatus


@dataclass(frozen=True)
class Plan:
    """What to train.

    Attributes:
        values: value of each of ``QUANTITIES``.
        intervals: 95 % interval of each; an end is infinite if the goal is out of reach in too many draws.
        warnings: texts for the user.
    """

    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    warnings: tuple[str, ...]


def read_fit(path: str | Path) -> dict[str, Any]:
    """The record in a fit.json of ``tsfm scaling fit``.

    Raises:
        InputError: no such file, a file of another kind, or a joint law that is not identifiable.
    """
    if not Path(path).is_file():
        raise InputError(
            f"{path}: expected a fit.json, found no such file; tsfm scaling fit LEDGER --output DIR writes one"
        )
    what, hint = "a fit.json of tsfm scaling fit", "run tsfm scaling fit LEDGER"
    joint = read_record(path, AnyFit, what, hint=hint)["joint"]
    if not joint["identifiable"]:
        raise InputError(
            f"{path}: expected a joint law to plan with, found one that is not identifiable: "
            f"{'; '.join(joint['not_identifiable']):.300}"
        )
    return dict(read_record(path, FitRecord, what, hint=hint))


def make_plan(
    record: dict[str, Any],
    flops: float | None = None,
    params: float | None = None,
    tokens: float | None = None,
    loss: float | None = None,
    inference_tokens: float = 0.0,
) -> Plan:
    """The compute-optimal plan for one given quantity, or the plan that two given quantities determine.

    Args:
        record: the content of fit.json.
        flops: compute of training and, if ``inference_tokens`` is given, of inference.
        params: size of the model.
        tokens: data to train on.
        loss: loss to reach.
        inference_tokens: tokens that the model will process after training.

    Raises:
        InputError: none or more than two quantities, one that is not above 0, or a loss that is out of reach.
    """
    given = {"flops": flops, "params": params, "tokens": tokens, "loss": loss}
    known = {name: float(value) for name, value in given.items() if value is not None}
    for name, value in (known | {"inference_tokens": inference_tokens}).items():
        if not np.isfinite(value) or value < 0 or (value == 0 and name in known):
            raise InputError(f"expected {name} above 0, found {value:g}")
    if not 1 <= len(known) <= 2 or set(known) == {"flops", "loss"}:
        raise InputError(
            f"expected one of flops, params, tokens and loss, or two of which one is params or tokens, found "
            f"{' and '.join(known) or 'none'}; the rest follows from the law"
        )
    center = np.array([[record["joint"][name] for name in NAMES]])
    laws = np.concatenate([center, np.array(record["draws"], dtype=np.float64)])
    with np.errstate(all="ignore"):
        table = _solve(JointLaw.from_rows(laws), known, inference_tokens)
        ends = _interval(np.where(np.isnan(table[1:]), np.inf, table[1:]))
    if not np.isfinite(table[0]).all():
        joint = record["joint"]
        raise InputError(
            f"expected a goal that the law can reach, found {', '.join(f'{k} {v:g}' for k, v in known.items())}; its "
            f"irreducible loss is {joint['E']:.4g} ({joint['ci95']['E'][0]:.4g} to {joint['ci95']['E'][1]:.4g})"
        )
    values = dict(zip(QUANTITIES, map(float, table[0]), strict=True))
    intervals = {name: (float(ends[0, k]), float(ends[1, k])) for k, name in enumerate(QUANTITIES)}
    return Plan(values, intervals, tuple(_warnings(record, values)))


def _interval(draws: Float64[np.ndarray, "S P"]) -> Float64[np.ndarray, "2 P"]:
    """95 % intervals by column; infinite values count as the largest."""
    top = np.nanmax(np.where(np.isfinite(draws), draws, 0.0), axis=0) * 1e6 + 1.0
    ends = percentile_interval(np.minimum(draws, top))
    finite = np.where(np.isfinite(draws), draws, -np.inf).max(axis=0)
    return np.where(ends > finite, np.inf, ends)


def _solve(law: JointLaw, known: dict[str, float], inference: float) -> Float64[np.ndarray, "S 5"]:
    """Size, tokens, loss, training and inference compute for every draw of the law."""
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
        tokens = np.asarray(law.tokens_for(params, known["loss"]))
    elif names == {"tokens", "loss"}:
        tokens = known["tokens"] * like
        params = np.asarray(law.params_for(tokens, known["loss"]))
    else:
        params, tokens = _optimum(law, known, inference)
    loss = np.asarray(law.loss(params, tokens))
    spent = np.asarray(training_flops(params, tokens))
    table = np.stack([params, tokens, loss, spent, FLOPS_PER_INFERENCE_TOKEN * inference * params], axis=1)
    return np.where(tokens[:, None] > 0, table, np.nan)


def _optimum(law: JointLaw, known: dict[str, float], inference: float) -> tuple[np.ndarray, np.ndarray]:
    """The compute-optimal pair for one known quantity."""
    like = np.ones_like(np.asarray(law.E))
    ratio = law.alpha * law.A / (law.beta * law.B)  # at the optimum alpha A / N^alpha = beta B / D^beta
    if "params" in known:
        params = known["params"] * like
        return params, (params**law.alpha / ratio) ** (1 / law.beta)
    if "tokens" in known:
        tokens = known["tokens"] * like
        return (ratio * tokens**law.beta) ** (1 / law.alpha), tokens
    if "flops" in known:
        budget = known["flops"]
        params = np.asarray(law.optimal_params(budget)) * like
        if not inference:
            return params, budget / FLOPS_PER_TOKEN / params
        params = _search(lambda size: np.asarray(law.loss(size, _tokens_left(size, budget, inference))), params)
        return params, _tokens_left(params, budget, inference)
    left = known["loss"] - np.asarray(law.E)
    share = np.where(left > 0, left, np.nan)
    params = (law.A * (1 + law.alpha / law.beta) / share) ** (1 / np.asarray(law.alpha))
    if inference:
        goal = known["loss"]

        def total(size: np.ndarray) -> np.ndarray:
            return size * (
                FLOPS_PER_TOKEN * np.asarray(law.tokens_for(size, goal)) + FLOPS_PER_INFERENCE_TOKEN * inference
            )

        params = _search(total, params)
    return params, np.asarray(law.tokens_for(params, known["loss"]))


def _tokens_left(params: np.ndarray, flops: float, inference: float) -> np.ndarray:
    """Training tokens that a budget leaves after inference; a negligible number if it leaves none."""
    left = (flops - FLOPS_PER_INFERENCE_TOKEN * inference * params) / (FLOPS_PER_TOKEN * params)
    return np.maximum(left, 1e-30)


def _search(cost: Callable[[np.ndarray], np.ndarray], start: np.ndarray) -> np.ndarray:
    """The size of least cost up to ``start``: with inference the best model is smaller and trained for longer."""
    low, high = np.log(start) - 20.0, np.log(start)
    for _ in range(STEPS):
        first, second = low + (high - low) / 3, high - (high - low) / 3
        worse = cost(np.exp(first)) >= cost(np.exp(second))  # both are infinite if no amount of data suffices
        low, high = np.where(worse, first, low), np.where(worse, high, second)
    return np.exp((low + high) / 2)


def _warnings(record: dict[str, Any], values: dict[str, float]) -> list[str]:
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
