"""``tsfm backtest``: compare models on rolling windows of a table, and save the choice as a model."""

import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from tsfm import inference, reports, weights
from tsfm.commands.arguments import Columns
from tsfm.commands.partitioned import Partitions
from tsfm.commands.pieces import say_notes
from tsfm_data import io
from tsfm_data.errors import check_horizon, check_sizes
from tsfm_data.output import say


def backtest(
    input: str,
    *,
    horizon: int,
    models: list[str] | None = None,
    windows: int | None = None,
    step: int | None = None,
    refit: bool = False,
    model: Literal["best", "best-per-series", "ensemble"] = "best",
    calibrate: bool = False,
    output: Path | None = None,
    overwrite: bool = False,
    columns: Columns = Columns(),  # noqa: B008 - it is frozen
    partitions: Partitions = Partitions(),  # noqa: B008
    batch_size: int = 256,
) -> int:
    """Compare models on the last windows of a table, and save the best one or an ensemble.

    Scores are those of the later half of the windows. Choices and calibration for each of them use only earlier
    windows. The output folder holds model/ (for tsfm forecast --model), report.html and backtest.json.

    For a folder, pattern or URL, it holds one table per file instead, with the scores of each model on each series.

    Args:
        input: CSV, Excel, Parquet or Arrow file ("-" for standard input), a data set of the catalogue, or a folder,
            pattern or URL, as for tsfm forecast.
        horizon: steps to forecast in each window.
        models: models to compare, as for tsfm forecast. By default the zero-shot model, naive and seasonal-naive, and
            auto-ets and auto-theta if they are installed and the table is not too large for them.
        windows: number of windows; by default up to 8 (more for few series), within the later half of the rows.
        step: steps from one window to the next; by default the horizon.
        refit: fine-tune pretrained models before each window, without covariates. Baselines are always refitted.
        model: what to save: the best model, the best model of each series, or an ensemble (weighted mean of quantiles).
        calibrate: calibrate the intervals of the saved model on all windows.
        output: folder to write; without it, nothing is saved.
        overwrite: replace an existing folder.
        columns: how the table is read.
        partitions: how a table in many files is processed.
        batch_size: largest number of windows per batch.
    """
    check_horizon(horizon, option="--horizon")
    check_sizes(windows=windows, step=step, batch_size=batch_size)
    if partitions.are_asked_for(input, output):
        names = models or [weights.default(), "seasonal-naive", "naive"]
        compared = [inference.load_predictor(name) for name in names]
        keys = [inference.model_key(found, name) for found, name in zip(compared, names, strict=True)]
        asked = {"models": keys, "horizon": horizon, "windows": windows, "step": step, "refit": refit}
        answer = partial(
            backtest_part,
            horizon=horizon,
            models=compared,
            windows=windows,
            step=step,
            refit=refit,
            batch_size=batch_size,
            skip=columns.on_bad_series == "skip",
        )
        return partitions.run("backtest", input, output, columns, answer, asked, overwrite, calibrate=calibrate)
    io.check_new([output], overwrite, [input, columns.future], sign="backtest.json")
    series = io.open_source(input, **columns.given())
    if columns.on_bad_series == "skip":
        series = inference.without_short(series, horizon)
    with nullcontext() if output is None else io.atomic_folder(output) as temporary:
        result = inference.backtest(series, horizon, models, windows, step, refit, batch_size)
        say_notes(series)
        chosen = result.selection(model, calibrate) if calibrate or output is not None else None
        say(reports.terminal_board(result))
        if output is not None and temporary is not None and chosen is not None:
            chosen.save(temporary / "model")
            (temporary / "backtest.json").write_text(result.to_json() + "\n")
            page = reports.backtest_page(result, model, ["tsfm", *sys.argv[1:]], output)
            reports.save_page(page, temporary / "report.html")
    if output is not None:
        say(f"\n{output}: model ({model}), report.html, backtest.json; tsfm forecast --model {output} uses it")
    return 0


def backtest_part(
    series: "io.SeriesSet",
    horizon: int,
    models: list[Any],
    windows: int | None,
    step: int | None,
    refit: bool,
    batch_size: int,
    skip: bool,
) -> "pd.DataFrame":
    """One row per series of a part and model, with its scores; series that are too short may be left out."""
    kept = inference.without_short(series, horizon) if skip else series
    result = inference.backtest(kept, horizon, models, windows, step, refit, batch_size)
    scores = pd.DataFrame([row for row in result.rows() if row["item_id"] is not None and not row["calibrated"]])
    keys = ["item_id", "model", "horizon", "windows"]
    wide = scores.pivot_table("value", keys, "metric", sort=False, dropna=False, observed=True).reset_index()
    return kept.present(wide.rename_axis(columns=None))
