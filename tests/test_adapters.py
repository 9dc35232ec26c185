"""Our models run unchanged in GluonTS's evaluation and in fev, with the numbers of our own."""

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tsfm.inference.adapters import GluonTSPredictor, fev_predictions, fev_summary
from tsfm.models.scaling_law.encoder import Encoder
from tsfm_data.errors import InputError
from tsfm_data.evaluation.baselines import Predictor, SeasonalNaive
from tsfm_data.evaluation.evaluator import evaluate
from tsfm_data.io import catalog
from tsfm_data.io.series import SeriesSet

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from gluonts.dataset.split import split
    from gluonts.ev.metrics import MAE, MASE, MSE, MeanWeightedSumQuantileLoss
    from gluonts.model.evaluation import evaluate_model

LEVELS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


def walks(items: int = 3, variates: int = 1, freq: str = "h") -> SeriesSet:
    rng = np.random.default_rng(0)
    values = [10 + rng.normal(size=(300 + 10 * i, variates)).cumsum(axis=0) for i in range(items)]
    return SeriesSet.from_arrays("walks", values, freq)


def gluonts_scores(predictor: Predictor, series: SeriesSet, horizon: int, windows: int) -> dict[str, float]:
    """As GIFT-Eval's notebooks do it."""
    entries = series.to_gluonts()
    _, template = split(entries, offset=-horizon * windows)
    data = template.generate_instances(prediction_length=horizon, windows=windows, distance=horizon)
    metrics = [MASE(), MeanWeightedSumQuantileLoss(quantile_levels=LEVELS), MAE(), MSE()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = evaluate_model(GluonTSPredictor(predictor, horizon, batch_size=7), test_data=data, metrics=metrics)
    found = table.iloc[0]
    names = {"MASE": "MASE[0.5]", "WQL": "mean_weighted_sum_quantile_loss", "MAE": "MAE[0.5]", "MSE": "MSE[mean]"}
    return {name: float(found[column]) for name, column in names.items()}


def small_encoder() -> Encoder:
    import torch

    torch.manual_seed(0)
    return Encoder(context=64, horizon=12, config=Encoder.config_type(d_model=16, layers=1, heads=1, patch_size=16))


@pytest.mark.parametrize("which", ["seasonal-naive", "encoder"])
def test_when_gluonts_evaluates_a_model_then_the_numbers_are_those_of_the_gift_profile(which: str) -> None:
    predictor: Predictor = SeasonalNaive() if which == "seasonal-naive" else small_encoder()
    series = walks()
    report = evaluate(predictor, series, "gift", horizon=10)
    assert report.rows[0]["windows"] == 9
    for metric, value in gluonts_scores(predictor, series, 10, 3).items():
        assert value == pytest.approx(report.value(metric), rel=1e-6), metric


def test_when_gluonts_evaluates_seasonal_naive_on_us_births_then_the_published_numbers_come_out(
    data_folder: Path,
) -> None:
    found = gluonts_scores(SeasonalNaive(), catalog.load("us_births"), 30, 20)
    # gift-eval's results/seasonal_naive/all_results.csv
    assert found["MASE"] == pytest.approx(1.8648391912491094, rel=1e-6)
    assert found["WQL"] == pytest.approx(0.11952686561898423, rel=1e-6)


def test_when_entries_are_multivariate_then_forecasts_have_a_column_a_variate_in_order() -> None:
    series = walks(variates=2)
    entries = series.to_gluonts()
    forecasts = list(GluonTSPredictor(SeasonalNaive(), 5, batch_size=2).predict(entries))
    assert [forecast.item_id for forecast in forecasts] == list(series.item_ids)
    for entry, forecast in zip(entries, forecasts, strict=True):
        assert forecast.mean.shape == (5, 2)
        np.testing.assert_allclose(forecast.mean, entry["target"][:, -24:-19].T, rtol=1e-12)
        assert forecast.start_date == entry["start"] + entry["target"].shape[1]


def test_when_frequencies_are_mixed_then_each_entry_has_its_own_season() -> None:
    hourly, monthly = (walks(1, freq=freq).to_gluonts()[0] for freq in ("h", "MS"))
    found = list(GluonTSPredictor(SeasonalNaive(), 4).predict([hourly, monthly, hourly]))
    for entry, forecast, season in zip([hourly, monthly, hourly], found, [24, 12, 24], strict=True):
        target = entry["target"][-season:][:4]
        np.testing.assert_allclose(forecast.quantile(0.5), target, rtol=1e-12)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"target": np.zeros(3)}, "entries with start and target"),
        ({"start": pd.Period("2024", "D"), "target": np.zeros(0)}, "at least one value in every series"),
        ({"start": pd.Period("2024", "D"), "target": np.array([1.0, np.inf])}, "infinite one at step 2"),
    ],
)
def test_when_an_entry_is_wrong_then_one_line_says_so(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(GluonTSPredictor(SeasonalNaive(), 4).predict([entry]))
    with pytest.raises(InputError, match="expected prediction_length of at least 1, found 0"):
        GluonTSPredictor(SeasonalNaive(), 0)


needs_fev = pytest.mark.skipif(importlib.util.find_spec("fev") is None, reason="fev is not installed")


def fev_task(folder: Path, **options: Any) -> Any:
    """A task on a table of its own: hourly walks of 300, 310 and 320 steps, with two targets and a covariate."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import datasets
        import fev

        datasets.disable_progress_bars()
        series = walks(variates=2)
        rows = [
            {
                "id": name,
                "timestamp": series.timestamps(i).to_numpy().astype("datetime64[ms]"),
                "a": series.item(i)[:, 0],
                "b": series.item(i)[:, 1],
                "x": np.arange(series.length(i), dtype=float),
            }
            for i, name in enumerate(series.item_ids)
        ]
        pq.write_table(pa.Table.from_pylist(rows), folder / "data.parquet")
        return fev.Task(dataset_path=str(folder / "data.parquet"), horizon=8, seasonality=24, **options)


@needs_fev
@pytest.mark.filterwarnings("ignore")
def test_when_fev_scores_seasonal_naive_then_the_numbers_are_those_of_the_chronos_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    task = fev_task(
        tmp_path,
        target="a",
        quantile_levels=LEVELS,
        eval_metric="MASE",
        extra_metrics=["WQL"],
        known_dynamic_columns=["x"],
    )
    summary = fev_summary(SeasonalNaive(intervals=False), task)
    series = SeriesSet.from_arrays("a", [walks(variates=2).item(i)[:, :1] for i in range(3)], "h")
    report = evaluate(SeasonalNaive(), series, "chronos", horizon=8)
    assert summary["test_error"] == pytest.approx(report.value("MASE"), rel=1e-6)
    assert summary["WQL"] == pytest.approx(report.value("WQL"), rel=1e-6)
    assert summary["model_name"] == "seasonal-naive"


@needs_fev
@pytest.mark.filterwarnings("ignore")
def test_when_a_fev_task_has_several_targets_and_windows_then_all_are_forecast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    task = fev_task(tmp_path, target=["a", "b"], num_windows=2, quantile_levels=[0.1, 0.9], eval_metric="SQL")
    found = fev_predictions(small_encoder(), task)
    assert [set(window) for window in found] == [{"a", "b"}] * 2
    assert [len(window["a"]) for window in found] == [3, 3]
    assert all(len(item["0.1"]) == 8 for window in found for item in window["b"])
    assert np.isfinite(task.evaluation_summary(found, model_name="encoder")["test_error"])
