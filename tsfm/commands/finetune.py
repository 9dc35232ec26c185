"""``tsfm finetune``: adapt a model to a table, and keep the result if a backtest prefers it."""

import json
import sys
import time
from pathlib import Path
from typing import Literal

from tsfm import inference, reports, training, weights
from tsfm.commands.arguments import Columns
from tsfm.commands.pieces import say_notes
from tsfm_data import io
from tsfm_data.errors import InputError
from tsfm_data.output import say


def finetune(
    input: str,
    *,
    horizon: int,
    output: Path,
    model: str | None = None,
    method: Literal["full", "lora", "head"] = "full",
    steps: int = 200,
    batch_size: int = 32,
    lr: float | None = None,
    rank: int = 8,
    seed: int = 0,
    overwrite: bool = False,
    columns: Columns = Columns(),  # noqa: B008 - it is frozen
) -> None:
    """Fine-tune a model on the series of a table, and keep the result only if it is better.

    The models are compared on windows held out at the ends of the series. Unless the fine-tuned model is better by
    more than chance, the original model is written. The output folder holds model/ (for tsfm forecast --model),
    report.html and result.json.

    Args:
        input: CSV, Excel, Parquet or Arrow file ("-" for standard input), or a data set of the catalogue.
        horizon: steps to forecast.
        output: folder to write.
        model: a name of tsfm weights list, or a model folder; by default the model that ships with the package.
        method: what to train: full (all weights), lora (low-rank updates of the weights) or head (the output layer).
        steps: largest number of optimiser steps.
        batch_size: windows per optimiser step.
        lr: peak learning rate; by default that of the method.
        rank: rank of the LoRA updates.
        seed: random seed.
        overwrite: replace an existing output.
        columns: how the table is read.
    """
    recipe = training.Recipe(method, steps, batch_size, lr, rank=rank, seed=seed)
    io.check_new([output], overwrite, [input, model, columns.future], sign="result.json")
    if model is not None and weights.is_image_model(model):
        raise InputError(f"expected a forecasting model, found the image model {model}: tsfm image finetune adapts it")
    start = inference.load_model(model)
    series = io.open_source(input, **columns.given())
    with io.atomic_folder(output) as temporary:
        begin = time.perf_counter()
        result = training.finetune(start, series, horizon, recipe)
        seconds = time.perf_counter() - begin
        say_notes(series)
        weights.save(result.model, temporary / "model")
        (temporary / "result.json").write_text(json.dumps(training.summary(result), indent=1) + "\n")
        page = reports.build_page(result, start, ["tsfm", *sys.argv[1:]], output)
        reports.save_page(page, temporary / "report.html")
    say(f"{reports.verdict(result)} Trained {result.trained:,} numbers in {seconds:.0f} s.")
    say(f"{output}: model, report.html, result.json; forecast with tsfm forecast --model {output}")
