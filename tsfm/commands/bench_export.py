"""``tsfm bench export``: exported models beside eager PyTorch, and what smaller weights cost."""

import os
from pathlib import Path
from typing import Any

REPEATS, MOST_SERIES = 9, 100


def export(
    models: list[str] | None = None,
    batches: list[int] | None = None,
    sets: list[str] | None = None,
    repeats: int = REPEATS,
    threads: int = 1,
    series: int = MOST_SERIES,
    horizon: int | None = None,
    output: Path = Path("benchmarks"),
) -> None:
    """Time ONNX files beside the models themselves, compare their outputs, and score weights of fewer bytes.

    Args:
        models: names of tsfm weights list, or model folders; by default the forecasters that ship with the package.
        batches: numbers of series forecast at once; 1, 32 and 256 by default.
        sets: of the suite bench, to score smaller weights on; a few small ones by default.
        repeats: rounds of both sides in turn; the median of the ratios counts.
        threads: CPU threads.
        series: most series of a set.
        horizon: steps that the files forecast; each model's own by default.
        output: folder for export.md and export.json.
    """
    from tsfm.bench.export import BATCHES, SETS, run, to_markdown
    from tsfm.commands.bench import write
    from tsfm.inference.api import load_model
    from tsfm.weights.registry import released
    from tsfm_data.errors import InputError

    numbers = {"repeats": repeats, "threads": threads, "series": series, "horizon": horizon or 1}
    for name, value in {**numbers, "batches": min(batches or [1])}.items():
        if value < 1:
            raise InputError(f"expected {name} of at least 1, found {value}: change it")
    busy = os.getloadavg()[0] > threads
    speeds, rows = [], []
    for name in models or [name for name, entry in released().items() if entry.task == "forecast"]:
        found = run(load_model(name), batches or BATCHES, repeats, threads, sets or SETS, series, horizon)
        speeds += found[0]
        rows += found[1]
    given: dict[str, list[Any] | None] = {"models": models, "batches": batches, "sets": sets}
    given["repeats"] = [repeats] if repeats != REPEATS else None
    given["threads"] = [threads] if threads != 1 else None
    given["series"] = [series] if series != MOST_SERIES else None
    given["horizon"] = [horizon] if horizon else None
    words = [f"--{name} {' '.join(map(str, values))}" for name, values in given.items() if values]
    command = " ".join(["tsfm bench export", *words])
    write(
        output,
        "export",
        [*speeds, *rows],
        {"command": command, "busy": busy},
        to_markdown(speeds, rows, threads, series, busy, command),
    )
