"""``tsfm bench finetune``: what fine-tuning gains on sets of the suite."""

from pathlib import Path
from typing import Any

STEPS = 200


def finetune(
    model: str | None = None,
    sets: list[str] | None = None,
    methods: list[str] | None = None,
    seeds: list[int] | None = None,
    steps: int = STEPS,
    runs: Path = Path("runs/finetune_bench"),
    output: Path = Path("benchmarks"),
) -> None:
    """Score a model zero-shot and fine-tuned on sets of the suite, with intervals over seeds and the time taken.

    Finished runs are kept in the runs folder, so an interrupted table goes on where it stopped.

    Args:
        model: a name of tsfm weights list, or a model folder; by default the model that ships with the package.
        sets: which, for instance ETTh1; all with enough history by default.
        methods: of head, lora and full; all by default.
        seeds: of fine-tuning; 0, 1 and 2 by default.
        steps: most optimiser steps.
        runs: folder of finished runs, of whatever model and recipe.
        output: folder for finetune.md and finetune.json.
    """
    from tsfm.bench.finetune import METHODS, run, summarise, to_markdown
    from tsfm.commands.bench import write
    from tsfm.inference.api import load_model
    from tsfm_data.errors import unknown_name

    for name in methods or []:
        if name not in METHODS:
            raise unknown_name("method", name, METHODS)
    start = load_model(model)
    rows = run(start, sets, methods or METHODS, seeds or [0, 1, 2], steps, runs, print)
    words: dict[str, list[Any]] = {
        "model": [model] if model else [],
        "sets": sets or [],
        "methods": methods or [],
        "seeds": seeds or [],
    }
    words["steps"] = [] if steps == STEPS else [steps]
    given = (f" --{name} {' '.join(map(str, values))}" for name, values in words.items() if values)
    command = "tsfm bench finetune" + "".join(given)
    summary = {"model": start.name, "command": command, "methods": summarise(rows)}
    write(output, "finetune", rows, summary, to_markdown(rows, start.name, command))


def rates(
    methods: list[str] | None = None,
    rates: list[float] | None = None,
    shares: list[float] | None = None,
    model: str | None = None,
    seeds: list[int] | None = None,
    steps: int = STEPS,
    runs: Path = Path("runs/finetune_rates"),
    output: Path = Path("benchmarks"),
) -> None:
    """Try learning rates of fine-tuning on training sets that neither the released models nor the suite hold.

    Finished runs are kept in the runs folder, so an interrupted table goes on where it stopped.

    Args:
        methods: of head, lora and full; all by default.
        rates: peak learning rates; by default half, once and twice the one that the method has.
        shares: of the way to the trained weights; 0.75 by default.
        model: a name of tsfm weights list, or a model folder; by default the model that ships with the package.
        seeds: of fine-tuning; 0 by default.
        steps: most optimiser steps.
        runs: folder of finished runs, of whatever model and recipe.
        output: folder for finetune_rates.md and finetune_rates.json.
    """
    from tsfm.bench.finetune import METHODS
    from tsfm.bench.finetune_rates import run, summarise, to_markdown
    from tsfm.commands.bench import write
    from tsfm.inference.api import load_model
    from tsfm.training.finetuning import LEARNING_RATES, Recipe
    from tsfm_data.errors import unknown_name

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
    rows = run(start, recipes, runs, print)
    words: dict[str, list[Any]] = {
        "methods": methods or [],
        "rates": rates or [],
        "shares": shares or [],
        "model": [model] if model else [],
        "seeds": seeds or [],
        "steps": [] if steps == STEPS else [steps],
    }
    command = "tsfm bench finetune-rates" + "".join(
        f" --{name} {' '.join(map(str, values))}" for name, values in words.items() if values
    )
    summary = {"model": start.name, "command": command, "recipes": summarise(rows)}
    write(output, "finetune_rates", rows, summary, to_markdown(rows, start.name, command))
