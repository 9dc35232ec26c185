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
    output: Path = Path("benchmarks"),
) -> None:
    """Score a model zero-shot and fine-tuned on sets of the suite, with intervals over seeds and the time taken.

    Args:
        model: a name of tsfm weights list, or a model folder; by default the model that ships with the package.
        sets: which, for instance ETTh1; ten by default.
        methods: of head, lora and full; all by default.
        seeds: of fine-tuning; 0, 1 and 2 by default.
        steps: most optimiser steps.
        output: folder for finetune.md and finetune.json.
    """
    from tsfm.api import load_model
    from tsfm.bench.finetune import METHODS, SETS, run, summarise, to_markdown
    from tsfm.commands.bench import write
    from tsfm_data.errors import unknown_name

    for name in methods or []:
        if name not in METHODS:
            raise unknown_name("method", name, METHODS)
    start = load_model(model)
    rows = run(start, sets or SETS, methods or METHODS, seeds or [0, 1, 2], steps, print)
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
