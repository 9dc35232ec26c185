"""``tsfm evaluate``: score a model on held-out windows of a data set or of one's own file."""

from pathlib import Path
from typing import Any

from tsfm.commands.forecast import check_batch_size, check_suffix
from tsfm_data.errors import InputError

BASELINES_SHOWN = ("naive", "seasonal-naive")


def evaluate(
    *,
    model: str,
    data: list[str],
    horizon: int | None = None,
    profile: str = "gift",
    json: Path | None = None,
    baselines: bool = True,
    time_column: str | None = None,
    item_column: str | None = None,
    target: list[str] | None = None,
    freq: str | None = None,
    batch_size: int = 256,
) -> None:
    """Score a model on held-out windows, beside naive and seasonal-naive forecasts.

    Args:
        model: naive, seasonal-naive, auto-ets, auto-theta, or a model folder written by tsfm fit.
        data: data sets of the catalogue, or CSV, Parquet or Arrow files; each gives its own rows.
        horizon: steps to forecast; by default the protocol's own for the data's frequency.
        profile: the protocol: lsf (standardised MSE and MAE over all test windows), gift (GIFT-Eval) or chronos.
        json: where to write {"rows": [...], "summary": {...}}.
        baselines: whether naive and seasonal naive are scored beside the model.
        time_column: the column of timestamps; found by itself where its name or type tells.
        item_column: the column that names the series of a long table.
        target: the column or columns to forecast.
        freq: pandas frequency of the series; inferred by default.
        batch_size: windows forecast at once.
    """
    from tsfm.forecasting import load_predictor
    from tsfm_data.catalog import open_source
    from tsfm_data.evaluate import evaluate as score
    from tsfm_data.report import Report

    if horizon is not None and horizon < 1:
        raise InputError(f"expected a horizon of at least 1 step, found {horizon}: give --horizon 24, for instance")
    check_batch_size(batch_size)
    check_suffix(json, (".json", ".md", ".parquet"))
    columns: dict[str, Any] = {"time_column": time_column, "item_column": item_column, "target": target, "freq": freq}
    names = [model, *(name for name in BASELINES_SHOWN if baselines and name != model)]
    predictors = [load_predictor(name) for name in names]
    report = Report()
    for source in data:
        series = open_source(source, **columns)
        for predictor in predictors:
            report += score(
                predictor, series, profile, horizon=horizon, batch_size=batch_size, context=predictors[0].context
            )
    print(report.to_markdown())
    if json is not None:
        report.save(json)
        print(f"\n{json}: {len(report.rows)} rows")
