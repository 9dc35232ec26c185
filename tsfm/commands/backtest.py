"""``tsfm backtest``: which model forecasts a table best, by rolling windows; the choice is saved as a model."""

import sys
from pathlib import Path
from typing import Literal

from tsfm import inference, reports
from tsfm.commands.arguments import Columns
from tsfm.commands.forecast import say_notes
from tsfm_data import io
from tsfm_data.errors import InputError, check_horizon, check_sizes


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
    batch_size: int = 256,
) -> None:
    """Compare models on the last windows of a table, and save the best one or an ensemble.

    The later half of the windows judges; what forecasts each of them was chosen, and calibrated, by windows before it.
    The folder then holds model/ (for tsfm forecast --model), report.html and backtest.json.

    Args:
        input: CSV, Parquet or Arrow file, or a data set of the catalogue.
        horizon: steps of a window.
        models: names or folders, as for tsfm forecast; by default the zero-shot model, naive and seasonal-naive, and
            auto-ets and auto-theta where they are installed and quick enough.
        windows: their number; by default as many as are of use and fit into the later half of the rows.
        step: rows from one window to the next; by default the horizon.
        refit: fine-tune models with weights before each window, without covariates; baselines always are fitted anew.
        model: what is saved, the best model, the best one of each series, or an ensemble, which is a mean of quantiles.
        calibrate: stretch the intervals of what is saved by what all windows say.
        output: folder to write.
        overwrite: replace an existing folder.
        columns: how the table is read.
        batch_size: windows forecast at once.
    """
    check_horizon(horizon, option="--horizon")
    check_sizes(windows=windows, step=step, batch_size=batch_size)
    if output is not None and output.exists() and not overwrite:
        raise InputError(f"expected a new folder, found {output}: give another --output, or --overwrite")
    series = io.open_source(input, **columns.given())
    if columns.on_bad_series == "skip":
        series = inference.without_short(series, horizon)
    result = inference.backtest(series, horizon, models, windows, step, refit, batch_size)
    say_notes(series)
    chosen = result.selection(model, calibrate) if calibrate or output is not None else None
    print(reports.terminal_board(result))
    if output is not None and chosen is not None:
        with io.atomic_folder(output) as temporary:
            chosen.save(temporary / "model")
            (temporary / "backtest.json").write_text(result.to_json() + "\n")
            page = reports.backtest_page(result, model, ["tsfm", *sys.argv[1:]], output)
            reports.save_page(page, temporary / "report.html")
        print(f"\n{output}: model ({model}), report.html, backtest.json; tsfm forecast --model {output} uses it")
