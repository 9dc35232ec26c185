"""Evaluation gives the published numbers, scores every window once, and never shows a predictor its future."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tsfm_data.errors import InputError
from tsfm_data.evaluation.baselines import Naive, SeasonalNaive
from tsfm_data.evaluation.evaluator import evaluate, evaluate_series
from tsfm_data.evaluation.profiles import get_profile
from tsfm_data.evaluation.report import Report
from tsfm_data.io import catalog
from tsfm_data.io.series import SeriesSet
from tsfm_data.windows.batch import Batch, Forecast
from tsfm_data.windows.splits import Split

# Seasonal naive as published: fev's benchmarks/chronos_zeroshot/results/seasonal_naive.csv, chronos-forecasting's
# scripts/evaluation/results/seasonal-naive-in-domain.csv (M4) and gift-eval's results/seasonal_naive/all_results.csv.
PUBLISHED = [
    ("chronos", ["ETTh1", "ETTh2"], 0.9316203197158572, 0.1220896593925999),
    ("chronos", ["exchange_rate"], 1.7401816112146946, 0.0129841369512117),
    ("chronos", ["hospital"], 0.9205278258071788, 0.0726263373268254),
    ("chronos", ["car_parts"], 1.2014638389450194, 1.5999522703457196),
    ("chronos", ["nn5"], 1.2917285839957813, 0.424620797864533),
    ("chronos", ["m4_hourly"], 1.1932105781333862, 0.0483091941403194),
    ("chronos", ["m4_weekly"], 2.777295109814942, 0.0633986476090776),
    ("gift", ["m4_hourly"], 1.1932101877276544, 0.03757255147212195),
    ("gift", ["m4_weekly"], 2.777295047362158, 0.06087039452311706),
    ("gift", ["hospital"], 0.9205278264826, 0.06248817651596496),
    ("gift", ["us_births"], 1.8648391912491094, 0.11952686561898423),
    ("gift", ["car_parts"], 1.2014638390969912, 1.7217438941460104),
]


@pytest.mark.parametrize(
    ("profile", "names", "mase", "wql"), PUBLISHED, ids=lambda v: "+".join(v) if isinstance(v, list) else None
)
def test_seasonal_naive_gives_the_published_values(
    data_folder: Path, profile: str, names: list[str], mase: float, wql: float
) -> None:
    report = evaluate(SeasonalNaive(), names, profile)
    assert report.value("MASE") == pytest.approx(mase, rel=1e-6)
    assert report.value("WQL") == pytest.approx(wql, rel=1e-6)


# The row "Repeat" of Zeng et al., Are Transformers Effective for Time Series Forecasting?, table 2, horizon 96.
@pytest.mark.parametrize(
    ("name", "mse", "mae", "windows"),
    [("ETTh1", 1.295, 0.713, 2785), ("ETTh2", 0.432, 0.422, 2785), ("exchange_rate", 0.081, 0.196, 1422)],
)
def test_naive_gives_the_published_values_of_the_long_horizon_protocol(
    data_folder: Path, name: str, mse: float, mae: float, windows: int
) -> None:
    report = evaluate(Naive(), name, "lsf")
    assert report.value("MSE") == pytest.approx(mse, abs=0.001)
    assert report.value("MAE") == pytest.approx(mae, abs=0.001)
    assert {row["windows"] for row in report.rows} == {windows}
    assert {row["horizon"] for row in report.rows} == {96}
    assert f"lsf borders of {name}" in report.notes[0]


def value_of(report: Report, metric: str, **where: str) -> float:
    """A value that must be there."""
    value = report.value(metric, **where)
    assert value is not None
    return value


def some_series(items: int = 5, seed: int = 0, variates: int = 1, missing: float = 0.1) -> SeriesSet:
    rng = np.random.default_rng(seed)
    values = [10 + rng.normal(size=(150 + 20 * i, variates)).cumsum(axis=0) for i in range(items)]
    for item in values:
        item[rng.random(item.shape) < missing] = np.nan
    return SeriesSet.from_arrays("walks", values, "h")


@dataclass(frozen=True)
class Spy:
    """Forecasts the mean of what it sees, and keeps the batches."""

    seen: list[Batch] = field(default_factory=list)
    context: int | None = 24
    marks: str | None = "h"
    value: float | None = None
    name = "spy"
    dtype = torch.float32
    covariates = False

    def predict(self, batch: Batch, levels: Sequence[float]) -> Forecast:
        self.seen.append(batch)
        mean = batch.past.sum(dim=1) / batch.past_observed.sum(dim=1).clamp(min=1)
        mean = mean[:, None].expand(-1, batch.horizon, -1) if self.value is None else batch.past[:, :1] + self.value
        mean = mean.expand(len(batch), batch.horizon, batch.past.shape[2])
        return Forecast(mean, mean[..., None].expand(*mean.shape, len(levels)), tuple(levels))


@pytest.mark.parametrize("profile", ["gift", "chronos", "lsf"])
def test_when_a_predictor_forecasts_then_it_sees_its_context_and_nothing_of_the_future(profile: str) -> None:
    series = some_series(missing=0.0)
    spy = Spy()
    evaluate(spy, series, profile, horizon=12)
    for batch in spy.seen:
        assert batch.future is None
        assert batch.future_observed is None
        assert batch.past.dtype == torch.float32
        assert batch.past.shape[1:] == (24, 1)
        assert batch.season == 24
        assert batch.past_marks is not None
        assert batch.item is not None
        assert batch.cut is not None
        for row, (item, cut) in enumerate(zip(batch.item.tolist(), batch.cut.tolist(), strict=True)):
            expected = series.item(item)[cut - 24 : cut]
            np.testing.assert_allclose(batch.past[row].numpy(), expected, rtol=1e-6)


def test_when_batches_are_small_or_large_then_the_report_stays() -> None:
    series = some_series(variates=2)
    for profile in ("gift", "chronos", "lsf"):
        large = evaluate(SeasonalNaive(), series, profile, horizon=6)
        small = evaluate(SeasonalNaive(), series, profile, horizon=6, batch_size=3)
        for a, b in zip(large.rows, small.rows, strict=True):
            assert b["value"] == pytest.approx(a["value"], rel=1e-10)
            assert {k: a[k] for k in a if k != "value"} == {k: b[k] for k in b if k != "value"}


def test_when_mase_is_computed_by_hand_then_the_report_agrees() -> None:
    series = some_series()
    report = evaluate(Naive(), series, "gift", horizon=4)
    errors = []
    count = 4  # the shortest series has 150 rows: a tenth of it are 15 steps, four windows of 4
    for i in range(len(series)):
        values = series.item(i)[:, 0]
        for cut in (len(values) - 4 * k for k in range(count, 0, -1)):
            history = values[:cut]
            last = history[np.isfinite(history)][-1]
            errors.append(np.abs(values[cut : cut + 4] - last) / np.nanmean(np.abs(history[24:] - history[:-24])))
    assert report.rows[0]["windows"] == len(errors) == 20
    assert report.value("MASE") == pytest.approx(np.nanmean(np.concatenate(errors)), rel=1e-9)
    assert report.rows[0]["points"] == np.isfinite(np.concatenate(errors)).sum()


def test_when_series_are_reported_apart_then_their_points_add_up() -> None:
    report = evaluate(SeasonalNaive(), some_series(), "gift", horizon=4, per_series=True)
    whole = [row for row in report.rows if "item_id" not in row]
    each = [row for row in report.rows if row["metric"] == "MAE" and "item_id" in row]
    assert len(each) == 5
    assert sum(row["points"] for row in each) == whole[0]["points"]
    assert sum(row["windows"] for row in each) == whole[0]["windows"]
    mean = sum(row["value"] * row["points"] for row in each) / whole[0]["points"]
    assert mean == pytest.approx(next(row["value"] for row in whole if row["metric"] == "MAE"), rel=1e-10)


def test_when_a_series_is_constant_then_mase_counts_it_and_stays_finite() -> None:
    flat = np.full((100, 1), 7.0)
    moving = np.random.default_rng(0).normal(size=(100, 1))
    alone = evaluate(Naive(), SeriesSet.from_arrays("x", [moving], "h"), "chronos", horizon=8)
    both = evaluate(Naive(), SeriesSet.from_arrays("x", [moving, flat], "h"), "chronos", horizon=8)
    assert both.value("MASE") == pytest.approx(alone.value("MASE"), rel=1e-12)
    row = next(row for row in both.rows if row["metric"] == "MASE")
    assert (row["windows"], row["points"], row["undefined"]) == (2, 16, 8)
    only = evaluate(Naive(), SeriesSet.from_arrays("x", [flat], "h"), "chronos", horizon=8)
    assert only.value("MASE") is None
    assert json.loads(only.to_json())["rows"][0]["value"] is None


def test_when_frequencies_differ_then_each_has_its_own_season_and_rows() -> None:
    hourly, daily = some_series(2), SeriesSet.from_arrays("d", [np.arange(200.0)[:, None]], "D")
    report = evaluate(SeasonalNaive(), [hourly, daily], "gift")
    found = {(row["freq"], row["horizon"], row["season"]) for row in report.rows}
    assert found == {("h", 48, 24), ("D", 30, 1)}


def test_when_values_are_scaled_then_the_long_horizon_errors_stay() -> None:
    series = some_series(1, variates=3, missing=0.0)
    other = SeriesSet.from_arrays("walks", [series.item(0) * np.array([3.0, 0.1, 40.0]) + 5], "h")
    for metric in ("MSE", "MAE"):
        found = [evaluate(Naive(), one, "lsf", horizon=8).value(metric) for one in (series, other)]
        assert found[1] == pytest.approx(found[0], rel=1e-9)


def test_when_test_rows_change_then_the_scale_of_the_scores_does_not() -> None:
    values = some_series(1, missing=0.0).item(0)
    split = Split.from_rows([len(values)], 80, 30, 40)
    wild = values.copy()
    wild[80:] = 1000 * wild[80:]
    profile = get_profile("lsf")
    calm, far = (
        value_of(evaluate_series(Naive(), SeriesSet.from_arrays("x", [v], "h"), profile, "x", 8, split=split), "MAE")
        for v in (values, wild)
    )
    assert far == pytest.approx(1000 * calm, rel=1e-9)


def test_when_a_model_forecasts_nan_then_there_is_no_report() -> None:
    with pytest.raises(InputError, match="expected finite forecasts, found nan or infinity from spy"):
        evaluate(Spy(value=float("nan")), some_series(), "gift", horizon=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": 0}, "expected a horizon of at least 1 step, found 0"),
        ({"horizon": 500}, "needs at least 501 rows per series"),
        ({"profile": "lsff"}, "unknown profile 'lsff': did you mean lsf"),
    ],
)
def test_when_the_options_are_wrong_then_one_line_says_so(options: dict, message: str) -> None:
    arguments = {"profile": "gift", **options}
    with pytest.raises(InputError, match=message) as error:
        evaluate(Naive(), some_series(), **arguments)
    assert "\n" not in str(error.value)


def two_models() -> Report:
    report = Report()
    for name, seed in (("a", 1), ("b", 2)):
        for predictor in (SeasonalNaive(), Naive()):
            report += evaluate(predictor, some_series(seed=seed), "gift", horizon=6, dataset=name)
    return report


def test_the_summary_is_the_geometric_mean_relative_to_seasonal_naive() -> None:
    report = two_models()
    ratios = [
        value_of(report, "MASE", dataset=d, model="naive") / value_of(report, "MASE", dataset=d, model="seasonal-naive")
        for d in ("a", "b")
    ]
    found = report.summary["gift"]["naive"]["MASE"]
    assert found["relative"] == pytest.approx(np.sqrt(ratios[0] * ratios[1]), rel=1e-12)
    assert (found["datasets"], found["undefined"]) == (2, 0)
    assert report.summary["gift"]["seasonal-naive"]["WQL"]["relative"] == pytest.approx(1.0)


def test_a_report_is_saved_in_the_form_that_the_suffix_names(tmp_path: Path) -> None:
    report = two_models()
    for suffix in ("json", "md", "parquet"):
        report.save(tmp_path / f"report.{suffix}")
    read = json.loads((tmp_path / "report.json").read_text())
    assert set(read) == {"rows", "summary", "notes"}
    assert read["rows"] == report.rows
    assert {"dataset", "model", "profile", "horizon", "metric", "value", "windows", "undefined"} <= set(read["rows"][0])
    assert pq.read_table(tmp_path / "report.parquet").to_pylist() == report.rows
    table = (tmp_path / "report.md").read_text().splitlines()
    assert len([line for line in table if line.startswith("| a") or line.startswith("| b")]) == 4
    assert "MASE" in table[0]
    with pytest.raises(InputError, match=r"ends in .json, .md or .parquet, found .*txt"):
        report.save(tmp_path / "report.txt")


def test_every_data_set_at_hand_is_scored_by_its_name(data_folder: Path) -> None:
    report = evaluate(Naive(), "exchange_rate", "gift", horizon=30)
    assert "exchange_rate" in catalog.names()
    assert {row["dataset"] for row in report.rows} == {"exchange_rate"}
    assert report.rows[0]["windows"] == 8 * 20
