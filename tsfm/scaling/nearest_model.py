"""The named model size nearest to a plan, its training command, and its training time on a machine."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from scipy.optimize import nnls

from tsfm.models import MODELS, Counts, count_forecaster, model_class, parameters, sizes_of
from tsfm.scaling.laws.form import FLOPS_PER_INFERENCE_TOKEN, training_flops
from tsfm_data.errors import InputError
from tsfm_data.io import read_table

WIDELY_OFF = 3.0  # ratio of the planned size and the nearest one from which there is a warning


@dataclass(frozen=True)
class NearestModel:
    """The named size nearest to a plan, and how to train it.

    Attributes:
        size: name of the size.
        counts: parameters, and FLOPs and tokens per window.
        steps: optimiser steps.
        tokens: tokens that they see.
        flops: exact training compute.
        flops_over_6ND: ``flops`` divided by 6 N D.
        command: command that trains the model.
        warnings: texts for the user.
    """

    size: str
    counts: Counts
    steps: int
    tokens: float
    flops: float
    flops_over_6ND: float
    command: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Budget:
    """Compute of a training, and the loss to expect.

    Attributes:
        flops: of training and inference.
        inference_tokens: tokens that the model will process after training.
        expected_loss: the expected loss of a size and number of tokens.
    """

    flops: float
    inference_tokens: float
    expected_loss: Callable[[float, float], float]

    def steps(self, counts: Counts, batch_size: int) -> int:
        """Optimiser steps that it pays for; 0 if none."""
        serving = FLOPS_PER_INFERENCE_TOKEN * self.inference_tokens * counts.params
        return max(0, int((self.flops - serving) / (batch_size * counts.flops)))


def find_nearest_model(
    arch: str,
    params: float,
    tokens: float,
    context: int,
    horizon: int,
    batch_size: int,
    corpus: str | None = None,
    budget: Budget | None = None,
) -> NearestModel:
    """The named size nearest to a plan, or the one of least expected loss for a budget.

    Args:
        arch: architecture with named sizes.
        params: planned size, all parameters.
        tokens: planned data; with a budget each size gets the tokens that the budget pays for, by its exact compute.
        context: history of a window in time steps.
        horizon: time steps to forecast.
        batch_size: windows per optimiser step.
        corpus: folder to train on; None writes the placeholder CORPUS into the command.
        budget: compute of the training.

    Raises:
        InputError: the architecture has no named sizes, or the budget does not pay for a step of any.
    """
    known = sizes_of(arch)
    if not known:
        raise InputError(f"expected an architecture with named sizes (encoder, decoder), found {arch}")
    with torch.device("meta"):
        totals = {name: parameters(model_class(arch)(context, horizon, sizes))[0] for name, sizes in known.items()}
    if budget is None:
        name = min(totals, key=lambda key: abs(np.log(totals[key] / params)))
        counts = count_forecaster(arch, known[name], context, horizon)
        steps = max(1, round(tokens / (batch_size * counts.tokens)))
    else:
        every = {name: count_forecaster(arch, known[name], context, horizon) for name in known}
        paid = {name: budget.steps(each, batch_size) for name, each in every.items()}
        possible = [name for name in known if paid[name] >= 1]
        if not possible:
            least = min(batch_size * each.flops for each in every.values())
            raise InputError(
                f"expected a budget for one step of the smallest {arch} or more, {least:.3g} FLOPs at {batch_size} "
                f"windows per step, found {budget.flops:.3g}; give more compute or a smaller --batch-size"
            )
        seen = {name: float(paid[name]) * batch_size * every[name].tokens for name in possible}
        name = min(possible, key=lambda key: budget.expected_loss(float(every[key].params), seen[key]))
        counts, steps = every[name], paid[name]
    warnings = []
    off = max(counts.params / params, params / counts.params)
    if off > WIDELY_OFF:
        warnings.append(f"the nearest size, {name} with {counts.params:,} parameters, is {off:.3g} times off the plan")
    flops = float(steps) * batch_size * counts.flops
    exact = float(steps) * batch_size * counts.tokens
    return NearestModel(
        name,
        counts,
        steps,
        exact,
        flops,
        flops / float(training_flops(float(counts.params), exact)),
        command(arch, name, context, horizon, batch_size, steps, corpus),
        tuple(warnings),
    )


def command(
    arch: str, size: str, context: int, horizon: int, batch_size: int, steps: int, corpus: str | None = None
) -> str:
    """The ``tsfm fit`` command that trains a model for ``steps`` optimiser steps."""
    module = MODELS[arch].replace(":", ".")
    words = [
        "tsfm fit --config pretrain/base",
        f"--model.forecaster {module} --model.forecaster.config {size}",
        f"--data.corpus {corpus or 'CORPUS'} --data.context {context} --data.horizon {horizon}",
        f"--data.batch_size {batch_size} --trainer.max_epochs -1 --trainer.max_steps {steps}",
    ]
    return " ".join(words)


@dataclass(frozen=True)
class Machine:
    """Speed of a machine: a training takes ``per_step * steps + per_flop * FLOPs`` seconds.

    Attributes:
        per_step: seconds per optimiser step.
        per_flop: seconds per FLOP.
        source: description of the measurement.
    """

    per_step: float
    per_flop: float
    source: str

    def seconds(self, steps: int, flops: float) -> float:
        """Seconds that a training takes."""
        return self.per_step * steps + self.per_flop * flops


def fit_time(
    steps: Float64[np.ndarray, " N"], flops: Float64[np.ndarray, " N"], wall: Float64[np.ndarray, " N"]
) -> tuple[float, float]:
    """Seconds per step and per FLOP, not below 0, by least squares on the relative error of the measured times."""
    cost = np.stack([steps, flops / 1e9], axis=1) / wall[:, None]
    rate, _ = nnls(cost, np.ones(len(wall)))
    return float(rate[0]), float(rate[1] / 1e9)


def machine_of(ledger: Path) -> Machine:
    """The speed of the machine on which a ledger of ``tsfm scaling sweep`` was made.

    Raises:
        InputError: it has no columns ``steps``, ``flops`` and ``wall_s``, or no row with all three.
    """
    frame = read_table(ledger).frame
    missing = [name for name in ("steps", "flops", "wall_s") if name not in frame.columns]
    if missing:
        raise InputError(
            f"{ledger}: expected the columns steps, flops and wall_s of tsfm scaling sweep, found no {missing[0]!r}: "
            "give --throughput FLOPS_PER_SECOND instead"
        )
    table = frame[["steps", "flops", "wall_s"]].apply(pd.to_numeric, errors="coerce").dropna()
    table = table[table["wall_s"] > 0]
    if not len(table):
        raise InputError(f"{ledger}: expected rows with steps, flops and wall_s, found none")
    columns = [table[name].to_numpy(dtype=np.float64) for name in ("steps", "flops", "wall_s")]
    return Machine(*fit_time(*columns), source=f"{len(table)} runs in {ledger.name}")
