"""Learning rates of fine-tuning, tried on data sets that are in neither the training corpus nor the suite.

Run it by ``python benchmarks/finetune_rates.py``.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ablation import HORIZONS, held_out_sets
from common import run, write
from finetune import METHODS, METRICS, PROFILE, STEPS, digest, enough, history_of, once
from tabulate import tabulate

from tsfm.inference import load_model
from tsfm.models import Forecaster
from tsfm.training import LEARNING_RATES, Recipe, finetune
from tsfm_data.errors import InputError, unknown_name
from tsfm_data.evaluation import evaluate_series, get_profile
from tsfm_data.io import SeriesSet


def measure(
    model: Forecaster, recipes: Sequence[Recipe], folder: Path, progress: Callable[[str], None] | None = None
) -> list[dict[str, Any]]:
    """One row per set and recipe: scores relative to zero-shot, and whether the backtest kept the result.

    Args:
        model: the pretrained model.
        recipes: recipes to try.
        folder: where finished rows are kept.
        progress: called with one line of text per row.
    """
    rows = []
    weights = digest(model)
    for name, series in held_out_sets():
        horizon = HORIZONS.get(series.freqs[0][0])
        try:
            history, steps = history_of(name, series, horizon)
            if not enough(history, steps):
                continue
            with once(folder, f"{name}_zero-shot", weights) as before:
                if not before:
                    before |= scores(model, name, series, horizon)
        except InputError:  # too short for the protocol
            continue
        for recipe in recipes:
            with once(folder, f"{name}_{recipe.method}", (weights, recipe)) as row:
                if not row:
                    result = finetune(model, history, steps, recipe)
                    row |= scores(result.model, name, series, horizon) if result.improved else before
                    row["kept"] = result.improved
            change = {metric: row[metric] / before[metric] for metric in METRICS}
            rows.append({"set": name, **asdict(recipe), **change, "kept": row["kept"]})
            if progress is not None:
                errors = ", ".join(f"{metric} {value:.3f}" for metric, value in change.items())
                progress(f"{name} {recipe.method} {recipe.lr:g} {recipe.share:g}: {errors} of zero-shot")
    return rows


def scores(model: Forecaster, name: str, series: SeriesSet, horizon: int | None) -> dict[str, Any]:
    """The metrics of a model on the test windows of a set."""
    rows = evaluate_series(model, series, get_profile(PROFILE), name, horizon=horizon).rows
    return {row["metric"]: float(row["value"]) for row in rows if row["metric"] in METRICS}


def summarise(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per method, rate and share: geometric mean over sets of errors relative to zero-shot, and the worst."""
    lines = []
    for method, rate, share in dict.fromkeys((row["method"], row["lr"], row["share"]) for row in rows):
        runs = [row for row in rows if (row["method"], row["lr"], row["share"]) == (method, rate, share)]
        line = {"method": method, "rate": f"{rate:g}", "share": f"{share:g}", "sets": len({row["set"] for row in runs})}
        for metric in METRICS:
            line[f"{metric} mean"] = f"{math.exp(sum(math.log(row[metric]) for row in runs) / len(runs)):.3f}"
            line[f"{metric} worst"] = f"{max(row[metric] for row in runs):.3f}"
        lines.append(line | {"kept": f"{sum(row['kept'] for row in runs)} of {len(runs)}"})
    return lines


def to_markdown(rows: Sequence[dict[str, Any]], model: str, command: str) -> str:
    """The page ``benchmarks/finetune_rates.md``."""
    lines = [
        "# Learning rates of fine-tuning",
        "",
        f"Errors of {model} after `tsfm finetune`, relative to zero-shot: below 1 is better.",
        "The sets are in neither the training corpus nor the suite, and have as much history as those of",
        "[finetune.md](finetune.md). The table shows the geometric mean over sets and the worst set.",
        "",
        "- rate: peak learning rate.",
        "- share: the result has weights `start + share * (trained - start)`.",
        "- kept: how often a backtest preferred the fine-tuned model. Otherwise the result is the zero-shot model.",
        "",
        f"    {command}",
        "",
        tabulate(summarise(rows), headers="keys", tablefmt="github", disable_numparse=True),
        "",
    ]
    return "\n".join(lines)


def main(
    methods: list[str] | None = None,
    rates: list[float] | None = None,
    shares: list[float] | None = None,
    model: str | None = None,
    seeds: list[int] | None = None,
    steps: int = STEPS,
    runs: Path = Path("runs/finetune_rates"),
    output: Path = Path("benchmarks"),
) -> None:
    """Try learning rates of fine-tuning on data sets that are in neither the training corpus nor the suite.

    Finished runs are kept in the runs folder, so an interrupted table continues where it stopped.

    Args:
        methods: one or more of head, lora and full; all by default.
        rates: peak learning rates; by default 0.5, 1 and 2 times that of the method.
        shares: shares s of the result, whose weights are start + s * (trained - start); 0.75 by default.
        model: a name from tsfm weights list, or a model folder; by default the forecaster that tsfm forecast uses.
        seeds: seeds of fine-tuning; 0 by default.
        steps: largest number of optimiser steps.
        runs: folder of finished runs; it may hold those of other models and recipes.
        output: folder for finetune_rates.md and finetune_rates.json.
    """
    for name in methods or []:
        if name not in METHODS:
            raise unknown_name("method", name, METHODS)
    recipes = [
        Recipe(method, steps, lr=rate, share=share, seed=seed)  # type: ignore[arg-type]
        for method in methods or METHODS
        for rate in rates or [factor * LEARNING_RATES[method] for factor in (0.5, 1, 2)]
        for share in shares or [Recipe.share]
        for seed in seeds or [0]
    ]
    start = load_model(model)
    rows = measure(start, recipes, runs, print)
    words: dict[str, list[Any]] = {
        "methods": methods or [],
        "rates": rates or [],
        "shares": shares or [],
        "model": [model] if model else [],
        "seeds": seeds or [],
        "steps": [] if steps == STEPS else [steps],
    }
    command = "python benchmarks/finetune_rates.py" + "".join(
        f" --{name} {' '.join(map(str, values))}" for name, values in words.items() if values
    )
    summary = {"model": start.name, "command": command, "recipes": summarise(rows)}
    write(output, "finetune_rates", rows, summary, to_markdown(rows, start.name, command))


if __name__ == "__main__":
    run(main)
