"""Fine-tune a forecaster on series of one's own: head alone, low-rank updates or all weights; never worse than before.

The zero-shot model is the first checkpoint. Windows held out at the ends of the series choose a checkpoint, and others
say whether it is better than the zero-shot model by more than chance; if not, the zero-shot model stays.
"""

import copy
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from tsfm.models import Forecaster, TrainingData, ZeroShotForecaster
from tsfm.training.holdout import Comparison, Errors, Holdout, compare, errors_of, hold_out, until
from tsfm.training.optim import OptimConfig, lr_factor
from tsfm_data.errors import InputError, check_horizon, check_positive
from tsfm_data.io import SeriesSet
from tsfm_data.windows import Batch, Windows, item_lengths

Method = Literal["full", "lora", "head"]
LEARNING_RATES = {"full": 2e-3, "lora": 4e-3, "head": 1e-3}  # chosen by python benchmarks/finetune_rates.py
HEADS = ("trunk.head", "head", "param_proj", "out_proj", "output_patch_embedding")  # of the models of the suite
LARGEST_GRADIENT = 1.0  # norm
WEIGHT_DECAY = 0.01
ZERO_SHOT = "zero-shot"


@dataclass(frozen=True)
class Recipe:
    """How a model is fine-tuned.

    Attributes:
        method: "head" trains what turns tokens into forecasts, "lora" low-rank updates of the linear layers of the
            blocks, "full" everything.
        steps: most optimiser steps.
        batch_size: windows of a step.
        lr: peak learning rate of the topmost weights; None takes the method's.
        depth_decay: factor on the rate from each block to the one below.
        rank: of the updates of "lora".
        share: of the way from the weights at the start to the trained ones that is gone in the end: a little less than
            all of it keeps what the zero-shot model knew (Wortsman et al. 2022).
        checks: times that the held-out windows are looked at.
        patience: checks without a better one after which training ends.
        seed: of windows, low-rank updates and whatever a model draws.
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
        check_positive(self, "steps", "batch_size", "rank", "checks", "patience", hint="change it")
        if (self.lr is not None and not self.lr > 0) or not 0 < self.depth_decay <= 1:
            raise InputError("expected lr above 0, and depth_decay above 0 and at most 1: change them")
        if not 0 < self.share <= 1:
            raise InputError(f"expected a share above 0 and at most 1, found {self.share}: change it")
        if self.seed < 0:
            raise InputError(f"expected a seed of at least 0, found {self.seed}: change it")


@dataclass(frozen=True)
class Candidate:
    """A model that stood to be chosen.

    Attributes:
        name: "zero-shot" or "fine-tuned", and whether with covariates.
        errors: on the windows that judge.
        curve: optimiser steps and the error on the windows that choose, from step 0 on.
        steps: optimiser steps of the checkpoint.
        against: its comparison with the model that stood before it; None for the first.
    """

    name: str
    errors: Errors
    curve: tuple[tuple[int, float], ...]
    steps: int
    against: Comparison | None


@dataclass(frozen=True)
class Finetuned:
    """What fine-tuning came to.

    Attributes:
        model: the winner, in evaluation mode.
        winner: its name.
        candidates: in the order in which they challenged.
        trained: numbers that were trained.
        horizon: steps of the windows.
        recipe: how it was trained.
        series: what it was trained on, as the model is shown it.
        covariates: names of the covariates that the winner looks at.
        ignored: names of given covariates that it does not look at.
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
        """Whether a fine-tuned model won."""
        return not self.winner.startswith(ZERO_SHOT)

    def candidate(self, name: str) -> Candidate:
        """The candidate of a name."""
        return next(found for found in self.candidates if found.name == name)


def finetune(model: Forecaster, series: SeriesSet, horizon: int, recipe: Recipe = Recipe()) -> Finetuned:
    """Fine-tune a model, and keep the result where a backtest prefers it.

    Args:
        model: where to start from; it is left as it is.
        series: what to train on, of one frequency; covariates are tried where the model looks at them.
        horizon: steps that shall be forecast.
        recipe: method and numbers.

    Raises:
        InputError: no series is long enough, horizon below 1, or the series do not fit the model.
    """
    check_horizon(horizon)
    given = (*series.past_names, *series.known_names)
    plain = without_covariates(series)
    arms = [("", plain), (" with covariates", series)] if given and model.covariates else [("", plain)]
    if isinstance(model, ZeroShotForecaster) and not model.config.any_variate:
        arms = [(name, one.univariate()) for name, one in arms]  # such a model sees one series at a time anyway
    candidates: list[Candidate] = []
    kept: dict[str, tuple[Forecaster, SeriesSet]] = {}
    winner, trained = "", 0
    for suffix, one in arms:
        held = hold_out(one, model, horizon, recipe.seed)
        best, curve, steps, trained = train(model, one, held, horizon, recipe)
        pair = [(ZERO_SHOT + suffix, model, 0), (f"fine-tuned{suffix}", best, steps)]
        for name, challenger, at in pair if steps else pair[:1]:
            errors = errors_of(challenger, held.judge)
            against = compare(next(c.errors for c in candidates if c.name == winner), errors) if winner else None
            candidates.append(Candidate(name, errors, curve if at or not steps else curve[:1], at, against))
            kept[name] = (challenger, one)
            if against is None or against.wins:
                winner = name
    best, shown = kept[winner]
    best = copy.deepcopy(best).eval()
    used = (*shown.past_names, *shown.known_names)
    if not winner.startswith(ZERO_SHOT):
        best.training_data = training_data(shown, best)
        best.name = f"{model.name}-{recipe.method}"
    ignored = tuple(name for name in given if name not in used)
    return Finetuned(best, winner, tuple(candidates), trained, horizon, recipe, shown, used, ignored)


def without_covariates(series: SeriesSet) -> SeriesSet:
    """The same series with their targets alone; rows that held known covariates only are no more."""
    rows = len(series.values)
    plain = replace(series, past=np.empty((rows, 0)), past_names=(), known=np.empty((rows, 0)), known_names=())
    return until(plain, item_lengths(series)) if series.future_rows.any() else plain


def train(
    model: Forecaster, series: SeriesSet, held: Holdout, horizon: int, recipe: Recipe
) -> tuple[Forecaster, tuple[tuple[int, float], ...], int, int]:
    """Train a copy of a model on what lies before the windows held out.

    Returns:
        The checkpoint with the least error on the windows that choose; steps and errors on the way; the steps of that
        checkpoint (0: none is better than the model itself); how many numbers were trained.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        tuned = copy.deepcopy(model)
        groups = trainable(tuned, recipe)
        weights = [weight for group in groups for weight in group["params"]]
        optimizer = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.98))
        factor = lr_factor(OptimConfig(schedule="cosine", warmup_steps=recipe.steps // 10), 1, recipe.steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        batches = training_batches(model, until(series, held.ends), horizon, recipe)
        curve = [(0, errors_of(tuned.eval(), held.select).score)]
        best, best_step = [weight.detach().clone() for weight in weights], 0
        every = max(1, recipe.steps // recipe.checks)
        for step in range(1, recipe.steps + 1):
            tuned.train()
            optimizer.zero_grad()
            loss = tuned.loss(next(batches))
            if not torch.isfinite(loss):
                raise InputError(
                    f"training diverged: expected a finite loss, found none in step {step} at a learning rate of "
                    f"{recipe.lr or LEARNING_RATES[recipe.method]:g}; give a smaller --lr"
                )
            loss.backward()
            nn.utils.clip_grad_norm_(weights, LARGEST_GRADIENT)
            optimizer.step()
            schedule.step()
            if step % every and step < recipe.steps:
                continue
            score = errors_of(tuned.eval(), held.select).score
            if score < min(found for _, found in curve):
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


def trainable(model: Forecaster, recipe: Recipe) -> list[dict[str, Any]]:
    """The parameters that a method trains, in groups of one depth, with their learning rates.

    Raises:
        InputError: the model has no part of that kind.
    """
    if recipe.method == "lora":
        add_updates(model, recipe.rank)
    names = dict(model.named_parameters())
    blocks = [int(found[1]) for name in names if (found := re.search(r"\.(\d+)\.", name))]
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
    """Whether a parameter belongs to what turns tokens into forecasts."""
    return name.startswith(tuple(f"{head}." for head in HEADS))


def add_updates(model: Forecaster, rank: int) -> None:
    """Low-rank updates (Hu et al. 2021) of the linear layers of attention and feed-forward parts, 0 at first.

    Raises:
        InputError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model  # an extra, and slow
    except ImportError as error:
        raise InputError("expected peft for method lora, found none: pip install peft, or use full or head") from error
    linear = [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    inside = [name for name in linear if re.search(r"\.\d+\.", name) and not is_head(name)]
    if not inside:
        raise InputError(f"expected a model of blocks for method lora, found none in {model.name}: use full or head")
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=inside), model)


def merge(model: Forecaster) -> None:
    """Add low-rank updates to the weights that they belong to: the model is as it was made again."""
    for name, part in list(model.named_modules()):
        if hasattr(part, "get_base_layer"):
            part.merge()
            above, _, own = name.rpartition(".")
            setattr(model.get_submodule(above), own, part.get_base_layer())


@torch.no_grad()
def blend(start: Forecaster, tuned: Forecaster, share: float) -> None:
    """Leave the tuned weights this share of the way from those at the start."""
    before = dict(start.named_parameters())
    for name, weight in tuned.named_parameters():
        weight.copy_(torch.lerp(before[name], weight, share))


def training_batches(model: Forecaster, series: SeriesSet, horizon: int, recipe: Recipe) -> Iterator[Batch]:
    """Random windows without end: a random series, a random cut; as the model is shown them, with their future."""
    steps = min(horizon, model.horizon) if isinstance(model, ZeroShotForecaster) else model.horizon
    lengths = item_lengths(series)
    whole = bool(series.known_names)  # known covariates must cover the future of a window
    items = np.flatnonzero(lengths >= (steps + 2 if whole else 2))
    if not len(items):
        raise InputError(
            f"expected a series of {steps + 2} rows before the windows held out, found {lengths.max(initial=0)}: give "
            "more rows or a smaller horizon"
        )
    last = lengths - steps if whole else np.maximum(lengths - steps, (lengths + 1) // 2)
    first = np.minimum(np.maximum(2, np.minimum(lengths // 4, steps)), last)
    options: dict[str, Any] = {"marks": model.marks, "dtype": torch.float64, "covariates": model.covariates}
    windows = Windows(series, model.context, steps, items[:1], last[items[:1]], **options)
    rng = np.random.default_rng([recipe.seed, 2])
    while True:
        item = rng.choice(items, recipe.batch_size)
        batch = windows.at(item, rng.integers(first[item], last[item] + 1)).batch(np.arange(recipe.batch_size))
        yield standardised(model, batch)


def standardised(model: Forecaster, batch: Batch) -> Batch:
    """A batch with its future on the scale on which a model works."""
    standard, scale = model.standardise(batch)
    if batch.future is None or batch.future_observed is None:
        raise ValueError("expected windows with their future, found none")
    future: Tensor = torch.where(batch.future_observed, (batch.future - scale.loc) / scale.unit, 0.0)
    return replace(standard, future=future.to(standard.past.dtype))


def training_data(series: SeriesSet, model: Forecaster) -> TrainingData:
    """What a model was fine-tuned on, to be kept with its weights."""
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
    """The result as plain numbers, for JSON."""
    rows = []
    for found in result.candidates:
        row: dict[str, Any] = {"name": found.name, "steps": found.steps, "wins": found.name == result.winner}
        row |= {"scaled_loss": found.errors.score, "wql": found.errors.wql, "windows": len(found.errors.scaled)}
        row["against"] = None if found.against is None else asdict(found.against)
        rows.append(row | {"curve": [list(point) for point in found.curve]})
    facts = {"winner": result.winner, "improved": result.improved, "horizon": result.horizon}
    facts |= {"trained": result.trained, "covariates": list(result.covariates), "ignored": list(result.ignored)}
    return {"rows": rows, "summary": facts | {"recipe": asdict(result.recipe)}}
