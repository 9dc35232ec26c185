"""Fine-tunes a forecaster on the user's series: only the head, low-rank updates or all weights.

Some windows held out at the ends of the series choose a checkpoint, and others judge whether it is better than the
zero-shot model by more than chance; if not, the zero-shot model is kept.
"""

import copy
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from tsfm.models import FineTuning, Forecaster, TrainingData, ZeroShotForecaster
from tsfm.training.holdout import Comparison, Errors, Holdout, compare, errors_of, hold_out, truncate
from tsfm.training.lora import add_updates, merge
from tsfm.training.optim import OptimConfig, lr_factor
from tsfm_data.errors import InputError, check_horizon, check_seed, check_sizes
from tsfm_data.io import SeriesSet
from tsfm_data.progress import progress
from tsfm_data.windows import Batch, Windows, item_lengths

Method = Literal["full", "lora", "head"]
LEARNING_RATES = {"full": 2e-3, "lora": 4e-3, "head": 1e-3}  # chosen by python benchmarks/finetune_rates.py
HEADS = (
    "trunk.head",
    "head",
    "param_proj",
    "out_proj",
    "output_patch_embedding",
)  # parameter names of heads in the models of the suite
LARGEST_GRADIENT = 1.0  # norm to which gradients are clipped
WEIGHT_DECAY = 0.01
ZERO_SHOT = "zero-shot"


@dataclass(frozen=True)
class Recipe:
    """Settings of fine-tuning.

    Attributes:
        method: "head" trains the layers after the blocks, "lora" low-rank updates of the linear layers of the blocks,
            "full" all weights.
        steps: largest number of optimiser steps.
        batch_size: windows per step.
        lr: peak learning rate of the last layers; by default that of the method.
        depth_decay: factor on the learning rate from each block to the one before.
        rank: rank of the updates of "lora".
        share: weight of the trained weights when they are averaged with those of the zero-shot model, which keeps more
            of what that model has learned (Wortsman et al. 2022).
        checks: number of evaluations on the held-out windows.
        patience: evaluations without improvement after which training ends.
        seed: random seed of windows, low-rank updates and dropout.
    """

    method: Method = "full"
    steps: int = 200
    batch_size: int = 32
    lr: float | None = None
    depth_decay: float = 0.8
    rank: int = 8
    share: float = 0.75
    checks: int = 10
    patience: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise InputError(f"expected method full, lora or head, found {self.method!r}: choose one of them")
        names = ("steps", "batch_size", "rank", "checks", "patience")
        check_sizes("change it", **{name: getattr(self, name) for name in names})
        if (self.lr is not None and not self.lr > 0) or not 0 < self.depth_decay <= 1:
            raise InputError("expected lr above 0, and depth_decay above 0 and at most 1: change them")
        if not 0 < self.share <= 1:
            raise InputError(f"expected a share above 0 and at most 1, found {self.share}: change it")
        check_seed(self.seed)


@dataclass(frozen=True)
class Candidate:
    """A model that may be kept.

    Attributes:
        name: "zero-shot" or "fine-tuned", and " with covariates" if it uses them.
        errors: errors on the judging windows.
        curve: optimiser steps and the error on the choosing windows, from step 0.
        steps: optimiser steps of the checkpoint.
        against: its comparison with the best candidate before it; None for the first.
    """

    name: str
    errors: Errors
    curve: tuple[tuple[int, float], ...]
    steps: int
    against: Comparison | None


@dataclass(frozen=True)
class Finetuned:
    """The result of fine-tuning.

    Attributes:
        model: the model that is kept, in evaluation mode.
        winner: name of its candidate.
        candidates: all candidates in the order of their comparison.
        trained: number of trained parameters.
        horizon: time steps to forecast in the windows.
        recipe: settings of the training.
        series: the series in the form that the kept model uses.
        covariates: names of the covariates that the kept model uses.
        ignored: names of given covariates that it does not use.
    """

    model: Forecaster
    winner: str
    candidates: tuple[Candidate, ...]
    trained: int
    horizon: int
    recipe: Recipe
    series: SeriesSet
    covariates: tuple[str, ...]
    ignored: tuple[str, ...]

    @property
    def improved(self) -> bool:
        """Whether a fine-tuned model is kept."""
        return not self.winner.startswith(ZERO_SHOT)

    def candidate(self, name: str) -> Candidate:
        """The candidate with a name."""
        return next(candidate for candidate in self.candidates if candidate.name == name)


def finetune(model: Forecaster, series: SeriesSet, horizon: int, recipe: Recipe = Recipe()) -> Finetuned:
    """Fine-tune a model, and keep the result if a backtest prefers it.

    Args:
        model: the model to fine-tune; it is not changed.
        series: series to train on, of one frequency; covariates are tried if the model can use them.
        horizon: time steps to forecast.
        recipe: settings of the training.

    Raises:
        InputError: no series is long enough, horizon below 1, or the series do not fit the model.
    """
    check_horizon(horizon)
    given = (*series.past_names, *series.known_names)
    plain = without_covariates(series)
    arms = [("", plain), (" with covariates", series)] if given and model.covariates else [("", plain)]
    if isinstance(model, ZeroShotForecaster) and not model.config.any_variate:
        # The model processes one variate at a time.
        arms = [(suffix, arm_series.univariate()) for suffix, arm_series in arms]
    candidates: list[Candidate] = []
    models_by_name: dict[str, tuple[Forecaster, SeriesSet]] = {}
    winner, trained = "", 0
    for suffix, arm_series in arms:
        held = hold_out(arm_series, model, horizon, recipe.seed)
        if not suffix or model.joint:  # others learn effects in context: the weights of the first arm serve both
            best, curve, steps, trained = train(model, arm_series, held, horizon, recipe)
        challengers = [(ZERO_SHOT + suffix, model, 0), (f"fine-tuned{suffix}", best, steps)]
        for name, challenger, checkpoint_steps in challengers if steps else challengers[:1]:
            errors = errors_of(challenger, held.judge)
            comparison = compare(next(c.errors for c in candidates if c.name == winner), errors) if winner else None
            own_curve = curve if checkpoint_steps or not steps else curve[:1]
            candidates.append(Candidate(name, errors, own_curve, checkpoint_steps, comparison))
            models_by_name[name] = (challenger, arm_series)
            if comparison is None or comparison.wins:
                winner = name
    best, kept_series = models_by_name[winner]
    best = copy.deepcopy(best).eval()
    used = (*kept_series.past_names, *kept_series.known_names)
    if not winner.startswith(ZERO_SHOT):
        best.training_data = training_data(kept_series, best)
        steps = next(candidate.steps for candidate in candidates if candidate.name == winner)
        best.finetuning = FineTuning(model.name, recipe.method, steps, kept_series.sha256())
        best.name = f"{model.name}-{recipe.method}"
    ignored = tuple(name for name in given if name not in used)
    return Finetuned(best, winner, tuple(candidates), trained, horizon, recipe, kept_series, used, ignored)


def without_covariates(series: SeriesSet) -> SeriesSet:
    """The same series with only their targets, without rows that only have known covariates."""
    rows = len(series.values)
    plain = replace(series, past=np.empty((rows, 0)), past_names=(), known=np.empty((rows, 0)), known_names=())
    return truncate(plain, item_lengths(series)) if series.future_rows.any() else plain


def train(
    model: Forecaster, series: SeriesSet, held: Holdout, horizon: int, recipe: Recipe
) -> tuple[Forecaster, tuple[tuple[int, float], ...], int, int]:
    """Train a copy of a model on the rows before the held-out windows.

    Returns:
        The checkpoint with the least error on the choosing windows; steps and errors of all evaluations; the steps of
        that checkpoint (0: none is better than the model itself); the number of trained parameters.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        tuned = copy.deepcopy(model)
        groups = trainable(tuned, recipe)
        weights = [weight for group in groups for weight in group["params"]]
        optimizer = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.98))
        factor = lr_factor(OptimConfig(schedule="cosine", warmup_steps=recipe.steps // 10), 1, recipe.steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        batches = training_batches(model, truncate(series, held.ends), horizon, recipe)
        curve = [(0, errors_of(tuned.eval(), held.select).score)]
        best, best_step = [weight.detach().clone() for weight in weights], 0
        every = max(1, recipe.steps // recipe.checks)
        for step in progress(range(1, recipe.steps + 1), "fine-tune"):
            tuned.train()
            optimizer.zero_grad()
            loss = tuned.loss(next(batches))
            if not torch.isfinite(loss):
                raise diverged(step, recipe)
            loss.backward()
            nn.utils.clip_grad_norm_(weights, LARGEST_GRADIENT)
            optimizer.step()
            schedule.step()
            if step % every and step < recipe.steps:
                continue
            try:
                score = errors_of(tuned.eval(), held.select).score
            except InputError as error:  # the forecasts of these windows were finite before training
                raise diverged(step, recipe) from error
            if score < min(error for _, error in curve):
                best, best_step = [weight.detach().clone() for weight in weights], step
            curve.append((step, score))
            if step - best_step >= recipe.patience * every:
                break
        with torch.no_grad():
            for weight, value in zip(weights, best, strict=True):
                weight.copy_(value)
    merge(tuned)
    if best_step:
        blend(model, tuned, recipe.share)
    return tuned.requires_grad_(True).eval(), tuple(curve), best_step, sum(w.numel() for w in weights)


def diverged(step: int, recipe: Recipe) -> InputError:
    """The error of a training whose loss or forecasts are not finite."""
    rate = recipe.lr or LEARNING_RATES[recipe.method]
    return InputError(
        f"training diverged: expected finite losses and forecasts, found others in step {step} at a learning rate of "
        f"{rate:g}; give a smaller --lr"
    )


def trainable(model: Forecaster, recipe: Recipe) -> list[dict[str, Any]]:
    """Set which parameters a method trains; returns them in groups by depth, with their learning rates.

    Raises:
        InputError: the model has no such parameters.
    """
    if recipe.method == "lora":
        add_updates(model, recipe.rank, is_head)
    names = dict(model.named_parameters())
    blocks = [int(match[1]) for name in names if (match := re.search(r"\.(\d+)\.", name))]
    top = max(blocks, default=-1) + 2
    base = recipe.lr or LEARNING_RATES[recipe.method]
    depths: dict[int, list[nn.Parameter]] = {}
    for name, parameter in names.items():
        chosen = {"full": True, "lora": "lora_" in name, "head": is_head(name)}[recipe.method]
        parameter.requires_grad_(chosen)
        if chosen:
            block = re.search(r"\.(\d+)\.", name)
            depth = int(block[1]) + 1 if block else top if is_head(name) or ".norm." in name else 0
            depths.setdefault(depth, []).append(parameter)
    if not depths:
        raise InputError(
            f"expected a model with a part for method {recipe.method}, found none in {model.name}: use full"
        )
    return [{"params": group, "lr": base * recipe.depth_decay ** (top - depth)} for depth, group in depths.items()]


def is_head(name: str) -> bool:
    """Whether a parameter belongs to the head: the layers that turn tokens into forecasts."""
    return name.startswith(tuple(f"{head}." for head in HEADS))


@torch.no_grad()
def blend(start: Forecaster, tuned: Forecaster, share: float) -> None:
    """Average the weights: ``share`` of the tuned ones and the rest of those before."""
    before = dict(start.named_parameters())
    for name, weight in tuned.named_parameters():
        weight.copy_(torch.lerp(before[name], weight, share))


def training_batches(model: Forecaster, series: SeriesSet, horizon: int, recipe: Recipe) -> Iterator[Batch]:
    """An endless stream of batches of random windows of random series, scaled as the model needs them.

    Raises:
        InputError: no series is long enough.
    """
    steps = min(horizon, model.horizon) if isinstance(model, ZeroShotForecaster) else model.horizon
    lengths = item_lengths(series)
    needs_future = bool(series.known_names)  # known covariates must cover the future of a window
    items = np.flatnonzero(lengths >= (steps + 2 if needs_future else 2))
    if not len(items):
        raise InputError(
            f"expected a series of {steps + 2} rows before the held-out windows, found {lengths.max(initial=0)}: give "
            "more rows or a smaller horizon"
        )
    last = lengths - steps if needs_future else np.maximum(lengths - steps, (lengths + 1) // 2)
    first = np.minimum(np.maximum(2, np.minimum(lengths // 4, steps)), last)
    options: dict[str, Any] = {"marks": model.marks, "dtype": torch.float64, "covariates": model.covariates}
    windows = Windows(series, model.context, steps, items[:1], last[items[:1]], **options)
    rng = np.random.default_rng([recipe.seed, 2])
    while True:
        item = rng.choice(items, recipe.batch_size)
        batch = windows.at(item, rng.integers(first[item], last[item] + 1)).batch(np.arange(recipe.batch_size))
        yield standardised(model, batch)


def standardised(model: Forecaster, batch: Batch) -> Batch:
    """The batch with history and future on the scale of the model."""
    standard, scale = model.standardise(batch)
    if batch.future is None or batch.future_observed is None:
        raise ValueError("expected windows with their future, found none")
    future: Tensor = torch.where(batch.future_observed, (batch.future - scale.loc) / scale.error_scale, 0.0)
    return replace(standard, future=future.to(standard.past.dtype))


def training_data(series: SeriesSet, model: Forecaster) -> TrainingData:
    """Facts about the series of fine-tuning, which are saved with the weights."""
    count = np.isfinite(series.values).sum(0).clip(min=1)
    mean = np.nansum(series.values, 0) / count
    std = np.sqrt(np.nansum(np.square(series.values - mean), 0) / count)
    return TrainingData(
        source=series.source,
        freq=series.freqs[0],
        marks=model.marks,
        variates=series.variates,
        mean=tuple(map(float, mean)),
        std=tuple(map(float, std)),
        past_covariates=series.past_names,
        known_covariates=series.known_names,
    )


def summary(result: Finetuned) -> dict[str, Any]:
    """The result as plain values for JSON."""
    rows = []
    for candidate in result.candidates:
        row: dict[str, Any] = {
            "name": candidate.name,
            "steps": candidate.steps,
            "wins": candidate.name == result.winner,
        }
        row |= {
            "scaled_loss": candidate.errors.score,
            "wql": candidate.errors.wql,
            "windows": len(candidate.errors.scaled),
        }
        row["against"] = None if candidate.against is None else asdict(candidate.against)
        rows.append(row | {"curve": [list(point) for point in candidate.curve]})
    facts = {"winner": result.winner, "improved": result.improved, "horizon": result.horizon}
    facts |= {"trained": result.trained, "covariates": list(result.covariates), "ignored": list(result.ignored)}
    return {"rows": rows, "summary": facts | {"recipe": asdict(result.recipe)}}
