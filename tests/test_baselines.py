"""Baselines repeat what they should, cope with holes and short histories, and equal the reference implementations."""

import builtins
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from tests.conftest import golden_cases
from tsfm_data.errors import InputError
from tsfm_data.evaluation.baselines import BASELINES, Naive, SeasonalNaive, get_baseline
from tsfm_data.windows.batch import Batch

LEVELS = (0.1, 0.5, 0.9)
CASES = [
    case
    for case in golden_cases("timeseries/metrics")
    if "out/seasonal_naive" in json.loads(case.read_text())["tensors"]
]


def batch_of(past: np.ndarray, horizon: int, season: int) -> Batch:
    """A batch of windows [B, T] or [B, T, V]; NaN is not observed."""
    values = torch.as_tensor(past, dtype=torch.float64)
    values = values[..., None] if values.ndim == 2 else values
    return Batch(values.nan_to_num(0.0), ~values.isnan(), horizon, season)


def right_aligned(series: list[np.ndarray]) -> np.ndarray:
    """Histories of unlike length, filled with NaN on the left."""
    past = np.full((len(series), max(map(len, series))), np.nan)
    for row, values in zip(past, series, strict=True):
        row[len(row) - len(values) :] = values
    return past


@pytest.mark.parametrize(
    "case",
    CASES or [pytest.param(Path("absent"), marks=pytest.mark.skip(reason="no golden case"))],
    ids=lambda p: p.stem,
)
def test_golden_seasonal_naive_equals_gluonts(case: Path) -> None:
    config, tensors = json.loads(case.read_text())["config"], load_file(case.with_suffix(".safetensors"))
    histories = np.split(tensors["in/context"], tensors["in/context_offsets"][1:-1])
    forecast = SeasonalNaive().predict(
        batch_of(right_aligned(histories), config["horizon"], config["seasonality"]), LEVELS
    )
    expected = tensors["out/seasonal_naive"].astype(np.float64)
    difference = np.abs(forecast.mean[..., 0].numpy() - expected) / np.maximum(np.abs(expected), 1e-12)
    assert difference.max() < 1e-6  # the reference computes in float32


def test_when_a_season_repeats_then_seasonal_naive_is_exact_and_certain() -> None:
    past = np.tile([1.0, 2.0, 3.0], 4)[None]
    forecast = SeasonalNaive().predict(batch_of(past, 5, 3), LEVELS)
    assert forecast.mean[0, :, 0].tolist() == [1, 2, 3, 1, 2]
    assert torch.equal(forecast.quantiles, forecast.mean[..., None].expand(-1, -1, -1, 3))


def test_when_the_horizon_passes_a_season_then_intervals_grow_with_its_square_root() -> None:
    past = np.random.default_rng(0).normal(size=(2, 40))
    forecast = SeasonalNaive().predict(batch_of(past, 12, 4), LEVELS)
    width = (forecast.quantiles[..., 2] - forecast.quantiles[..., 0])[:, :, 0]
    sigma = np.sqrt(((past[:, 4:] - past[:, :-4]) ** 2).mean(axis=1))
    for step, seasons in ((0, 1), (3, 1), (4, 2), (11, 3)):
        expected = 2 * 1.2815515655446004 * sigma * math.sqrt(seasons)
        np.testing.assert_allclose(width[:, step], expected, rtol=1e-9)


def test_when_values_are_missing_then_the_last_observed_one_stands_in() -> None:
    past = np.array([[5.0, 1.0, 2.0, 3.0, 4.0, np.nan, np.nan]])
    assert Naive().predict(batch_of(past, 3, 1), LEVELS).mean[0, :, 0].tolist() == [4, 4, 4]
    assert SeasonalNaive().predict(batch_of(past, 4, 4), LEVELS).mean[0, :, 0].tolist() == [3, 4, 4, 4]


def test_when_the_history_is_shorter_than_a_season_then_seasonal_naive_is_naive() -> None:
    past = np.array([[np.nan, np.nan, 7.0, 8.0], [1.0, 2.0, 3.0, 4.0]])
    seasonal = SeasonalNaive().predict(batch_of(past, 2, 3), LEVELS)
    naive = Naive().predict(batch_of(past, 2, 3), LEVELS)
    assert torch.equal(seasonal.mean[0], naive.mean[0])
    assert torch.equal(seasonal.quantiles[0], naive.quantiles[0])
    assert seasonal.mean[1, :, 0].tolist() == [2, 3]


def test_when_nothing_or_little_is_observed_then_forecasts_stay_finite() -> None:
    past = np.array([[np.nan] * 4, [np.nan, np.nan, np.nan, 3.0], [np.nan, 1.0, np.nan, np.nan]])
    for baseline in (Naive(), SeasonalNaive()):
        forecast = baseline.predict(batch_of(past, 6, 2), LEVELS)
        assert torch.isfinite(forecast.quantiles).all()
        assert forecast.mean[:, 0, 0].tolist() == [0, 3, 1]


@pytest.mark.parametrize("baseline", [Naive(), SeasonalNaive(), SeasonalNaive(intervals=False)], ids=str)
def test_when_series_are_forecast_together_or_alone_then_nothing_changes(baseline: Naive | SeasonalNaive) -> None:
    rng = np.random.default_rng(1)
    past = rng.normal(size=(6, 30, 2))
    past[rng.random(past.shape) < 0.2] = np.nan
    batch = batch_of(past, 9, 7)
    together = baseline.predict(batch, LEVELS)
    for w in range(6):
        one = replace(batch, past=batch.past[w : w + 1], past_observed=batch.past_observed[w : w + 1])
        alone = baseline.predict(one, LEVELS)
        torch.testing.assert_close(alone.quantiles[0], together.quantiles[w], rtol=1e-12, atol=1e-12)
    assert (together.quantiles.diff(dim=-1) >= 0).all()


def test_when_history_is_padded_on_the_left_then_the_forecast_stays() -> None:
    past = np.random.default_rng(2).normal(size=(3, 20))
    padded = np.concatenate([np.full((3, 11), np.nan), past], axis=1)
    for baseline in (Naive(), SeasonalNaive()):
        short, long = (baseline.predict(batch_of(p, 8, 5), LEVELS).quantiles for p in (past, padded))
        torch.testing.assert_close(short, long, rtol=1e-12, atol=1e-12)


def test_seasonal_naive_equals_statsforecast() -> None:
    models = pytest.importorskip("statsforecast.models", reason="extra 'stats' is not installed")
    past = np.random.default_rng(3).normal(size=(4, 37))
    for season, baseline in ((7, SeasonalNaive()), (1, Naive())):
        forecast = baseline.predict(batch_of(past, 16, season), LEVELS)
        reference = models.SeasonalNaive(season_length=season) if season > 1 else models.Naive()
        for w, values in enumerate(past):
            expected = reference.forecast(y=values, h=16, level=[80])
            np.testing.assert_allclose(forecast.mean[w, :, 0], expected["mean"], rtol=1e-9)
            np.testing.assert_allclose(forecast.quantiles[w, :, 0, 2], expected["hi-80"], rtol=1e-9)


@pytest.mark.parametrize("name", ["auto-ets", "auto-theta"])
def test_when_statsforecast_is_there_then_its_models_forecast_like_any_other(name: str) -> None:
    pytest.importorskip("statsforecast", reason="extra 'stats' is not installed")
    rng = np.random.default_rng(4)
    wave = 10 + np.sin(np.arange(48) * 2 * np.pi / 12) + 0.05 * rng.normal(size=48)
    past = np.stack([wave, np.where(np.arange(48) < 46, np.nan, 5.0)])
    predictor = get_baseline(name)
    assert predictor is not None
    forecast = predictor.predict(batch_of(past, 12, 12), (0.025, 0.5, 0.9))
    truth = 10 + np.sin(np.arange(48, 60) * 2 * np.pi / 12)
    assert np.abs(forecast.mean[0, :, 0].numpy() - truth).max() < 0.3
    assert torch.isfinite(forecast.quantiles).all()
    assert (forecast.quantiles.diff(dim=-1) >= 0).all()
    np.testing.assert_allclose(forecast.mean[1, :, 0], 5.0, atol=1e-6)


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize(("scale", "shift"), [(1e-300, 0.0), (1e-6, 0.0), (1e300, 0.0), (1e307, 0.0), (1.0, 1e12)])
def test_when_numbers_are_of_any_size_then_baselines_forecast_the_same(name: str, scale: float, shift: float) -> None:
    pytest.importorskip("statsforecast", reason="extra 'stats' is not installed")
    week = np.array([10.0, 20, 30, 40, 50, 70, 5])[np.arange(120) % 7] / 75
    past = week + 0.02 * np.random.default_rng(5).normal(size=120)
    predictor = get_baseline(name)
    assert predictor is not None
    near = 300.0 if shift else 0.0  # far from 0, statistical models are of another kind
    expected = predictor.predict(batch_of(past[None] + near, 9, 7), LEVELS)
    found = predictor.predict(batch_of(scale * past[None] + shift, 9, 7), LEVELS)
    for one, other in ((found.mean, expected.mean), (found.quantiles, expected.quantiles)):
        assert one.isfinite().all()
        torch.testing.assert_close((one - shift) / scale, other - near, atol=5e-3 if shift else 5e-4, rtol=1e-6)


@pytest.mark.parametrize("name", BASELINES)
def test_when_a_series_is_constant_then_baselines_forecast_it_as_itself(name: str) -> None:
    pytest.importorskip("statsforecast", reason="extra 'stats' is not installed")
    values = np.array([1e-300, 1e-3, 0.0, -7.7, 3e12, 1e300])
    predictor = get_baseline(name)
    assert predictor is not None
    forecast = predictor.predict(batch_of(np.tile(values[:, None], 40), 5, 7), LEVELS)
    assert (forecast.mean[..., 0].numpy() == values[:, None]).all()
    assert (forecast.quantiles[:, :, 0].numpy() == values[:, None, None]).all()


@pytest.mark.parametrize("steps", [5, 6, 8, 12])
@pytest.mark.parametrize("offset", [0.0, 1e7, 1e12])
def test_when_a_library_gives_quantiles_that_cross_then_they_are_put_in_order(steps: int, offset: float) -> None:
    pytest.importorskip("statsforecast", reason="extra 'stats' is not installed")
    past = offset + np.array([10.0, 20, 30, 40, 50, 70, 5])[np.arange(steps) % 7]
    levels = tuple(k / 10 for k in range(1, 10))
    for name in ("auto-theta", "auto-ets"):
        predictor = get_baseline(name)
        assert predictor is not None
        forecast = predictor.predict(batch_of(past[None], 14, 7), levels)
        assert (forecast.quantiles.diff(dim=-1) >= 0).all()


def test_when_statsforecast_is_missing_then_one_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: object, **options: object) -> object:
        if name.split(".")[0] == "statsforecast":
            raise ImportError(name)
        return real(name, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", refuse)
    predictor = get_baseline("auto-ets")
    assert predictor is not None
    with pytest.raises(InputError, match=r"pip install 'tsfm-suite\[stats\]'"):
        predictor.predict(batch_of(np.ones((1, 20)), 2, 1), LEVELS)


def test_every_baseline_is_found_by_its_name_and_other_names_are_not() -> None:
    for name in BASELINES:
        predictor = get_baseline(name)
        assert predictor is not None
        assert predictor.name == name
    assert get_baseline("itransformer") is None
