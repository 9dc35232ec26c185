"""From a plan to something that can be run: the nearest model of the suite, its time on a machine, its command."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from scipy.optimize import nnls

from tsfm.models import MODELS, Counts, count_forecaster, model_class, parameters, sizes_of
from tsfm.scaling.laws.form import training_flops
from tsfm_data.errors import InputError
from tsfm_data.io import read_table

WIDELY_OFF = 3.0  # times between the planned size and the nearest one


@dataclass(frozen=True)
class Realisation:
    """The model of the suite that is nearest to a plan.

    Attributes:
        size: its name.
        counts: its parameters, and FLOPs and tokens of a window.
        steps: optimiser steps that show it the planned tokens.
        flops: exact training compute.
        times_rule: ``flops`` over 6 N D.
        command: that trains it.
        warnings: in plain words.
    """

    size: str
    counts: Counts
    steps: int
    flops: float
    times_rule: float
    command: str
    warnings: tuple[str, ...] = ()


def realise(
    arch: str, params: float, tokens: float, context: int, horizon: int, batch_size: int, corpus: str | None = None
) -> Realisation:
    """The named size nearest to a plan, in the ratio of parameters.

    Args:
        arch: architecture with named sizes.
        params: planned size, all parameters.
        tokens: planned data.
        context: steps of history of a window.
        horizon: steps to forecast.
        batch_size: windows of an optimiser step.
        corpus: folder to train on; None leaves the word CORPUS in the command.

    Raises:
        InputError: the architecture has no named sizes.
    """
    known = sizes_of(arch)
    if not known:
        raise InputError(f"expected an architecture with named sizes (encoder, decoder), found {arch}")
    with torch.device("meta"):
        totals = {name: parameters(model_class(arch)(context, horizon, sizes))[0] for name, sizes in known.items()}
    name = min(totals, key=lambda key: abs(np.log(totals[key] / params)))
    found = count_forecaster(arch, known[name], context, horizon)
    steps = max(1, round(tokens / (batch_size * found.tokens)))
    said = []
    off = max(found.params / params, params / found.params)
    if off > WIDELY_OFF:
        said.append(f"the nearest size, {name} with {found.params:,} parameters, is {off:.3g} times off the plan")
    flops = float(steps) * batch_size * found.flops
    exact = float(steps) * batch_size * found.tokens
    return Realisation(
        name,
        found,
        steps,
        flops,
        flops / float(training_flops(float(found.params), exact)),
        command(arch, name, context, horizon, batch_size, steps, corpus),
        tuple(said),
    )


def command(
    arch: str, size: str, context: int, horizon: int, batch_size: int, steps: int, corpus: str | None = None
) -> str:
    """The ``tsfm fit`` command of a training of so many steps."""
    module = MODELS[arch].replace(":", ".")
    words = [
        "tsfm fit --config configs/pretrain/base.yaml",
        f"--model.forecaster {module} --model.forecaster.config {size}",
        f"--data.corpus {corpus or 'CORPUS'} --data.context {context} --data.horizon {horizon}",
        f"--data.batch_size {batch_size} --trainer.max_epochs -1 --trainer.max_steps {steps}",
    ]
    return " ".join(words)


@dataclass(frozen=True)
class Machine:
    """How long a training takes: ``a * steps + b * FLOPs``.

    Attributes:
        per_step: seconds.
        per_flop: seconds.
        source: where the numbers come from, in words.
    """

    per_step: float
    per_flop: float
    source: str

    def seconds(self, steps: int, flops: float) -> float:
        """Time of a training."""
        return self.per_step * steps + self.per_flop * flops


def fit_time(
    steps: Float64[np.ndarray, " N"], flops: Float64[np.ndarray, " N"], wall: Float64[np.ndarray, " N"]
) -> tuple[float, float]:
    """Seconds a step and a FLOP, neither below 0, by least squares on the ratio to the measured times."""
    cost = np.stack([steps, flops / 1e9], axis=1) / wall[:, None]
    rate, _ = nnls(cost, np.ones(len(wall)))
    return float(rate[0]), float(rate[1] / 1e9)


def machine_of(ledger: Path) -> Machine:
    """The machine that a ledger of ``tsfm scaling sweep`` was made on.

    Raises:
        InputError: it has no columns ``steps``, ``flops`` and ``wall_s``, or no row with all three.
    """
    frame = read_table(ledger).frame
    missing = [name for name in ("steps", "flops", "wall_s") if name not in frame.columns]
    if missing:
        raise InputError(
            f"{ledger}: expected the columns steps, flops and wall_s of tsfm scaling sweep, found no {missing[0]!r}: "
            "give --throughput FLOPS_PER_SECOND"
        )
    table = frame[["steps", "flops", "wall_s"]].apply(pd.to_numeric, errors="coerce").dropna()
    table = table[table["wall_s"] > 0]
    if not len(table):
        raise InputError(f"{ledger}: expected rows with steps, flops and wall_s, found none")
    columns = [table[name].to_numpy(dtype=np.float64) for name in ("steps", "flops", "wall_s")]
    return Machine(*fit_time(*columns), source=f"{len(table)} runs in {ledger.name}")
