"""The released weights, on series whose future is known."""

import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import tsfm
from tsfm.weights import registry

ROWS, HORIZON, NOISE = 24 * 30, 48, 0.1
RELEASED = ["tsfm-encoder-small", "tsfm-decoder-small", "tsfm-long-small"]


@cache
def profile(noise: float) -> pd.DataFrame:
    """Twenty series with a range of about 1, each of which repeats its own daily pattern."""
    rng = np.random.default_rng(0)
    days = rng.normal(size=(24, 20)).cumsum(0)
    days = (days - np.linspace(0, 1, 24)[:, None] * days[-1]) / np.ptp(days, 0)
    values = np.tile(days, (ROWS // 24, 1)) + noise * rng.normal(size=(ROWS, 20))
    date = pd.date_range("2024-01-01", periods=ROWS, freq="h")
    return pd.DataFrame(values, columns=[f"s{k}" for k in range(20)]).assign(date=date)


@cache
def forecast(name: str, noise: float) -> tuple[float, float, float]:
    """Mean error of the median, mean width of the 80 % interval, share of true values inside it."""
    table = profile(noise)
    predicted = tsfm.load(name).forecast(table[:-HORIZON], horizon=HORIZON)
    truth = table[-HORIZON:].melt("date", var_name="item_id")
    both = predicted.merge(truth, on=["item_id", "date"], validate="one_to_one")
    assert len(both) == 20 * HORIZON
    width = both["0.9"] - both["0.1"]
    held = both["value"].between(both["0.1"], both["0.9"])
    return float((both["0.5"] - both["value"]).abs().mean()), float(width.mean()), float(held.mean())


@pytest.mark.parametrize("name", RELEASED)
def test_when_a_series_repeats_itself_then_so_does_the_forecast(name: str) -> None:
    error, width, inside = forecast(name, 0.0)
    assert error < 0.02
    assert width < 0.15
    assert inside > 0.9


@pytest.mark.parametrize(("name", "held"), list(zip(RELEASED, (0.79, 0.66, 0.8), strict=True)))
def test_when_a_repeated_day_is_noisy_then_the_interval_holds_what_the_readme_says(name: str, held: float) -> None:
    error, width, inside = forecast(name, NOISE)
    assert error < NOISE
    assert inside == pytest.approx(held, abs=0.02)
    assert 0.75 < width / (2 * 1.28 * NOISE) < 1.5


def test_when_a_series_repeats_itself_exactly_then_the_encoder_is_the_sharper_one() -> None:
    """A fifth as wide, as README.md says."""
    encoder, decoder = (forecast(name, 0.0)[1] for name in RELEASED[:2])
    assert encoder / decoder == pytest.approx(0.2, abs=0.03)


def test_when_no_model_is_named_then_it_is_the_one_that_sees_the_longest_history() -> None:
    """README.md says so."""
    assert registry.default() == "tsfm-long-small"


SKEWED = {"poisson": (0.3, 0.2), "log-normal": (np.exp(1.5**2 / 2), 0.25), "normal": (10.0, 0.02)}


@pytest.mark.parametrize("name", RELEASED)
@pytest.mark.parametrize("kind", SKEWED)
def test_when_a_series_is_noise_then_the_mean_is_that_of_the_noise_however_skewed(name: str, kind: str) -> None:
    rng = np.random.default_rng(1)
    shape = (400, 24)
    draws = {
        "poisson": rng.poisson(0.3, shape),
        "log-normal": rng.lognormal(0, 1.5, shape),
        "normal": rng.normal(10, 1, shape),
    }
    table = pd.DataFrame(draws[kind].astype(float)).add_prefix("s")
    table.insert(0, "date", pd.date_range("2024-01-01", periods=400))
    truth, share = SKEWED[kind]
    assert tsfm.load(name).forecast(table, horizon=28)["mean"].mean() == pytest.approx(truth, rel=share)


@pytest.mark.parametrize("name", RELEASED)
def test_when_a_skewed_series_is_clean_then_the_mean_is_where_the_median_is(name: str) -> None:
    """Most of the values of the week lie below their mean, and nothing is left to doubt."""
    week = np.array([1.0, 1, 1, 1, 2, 9, 4])[np.arange(210) % 7]
    table = pd.DataFrame({"date": pd.date_range("2024-01-01", periods=210), "y": week})
    found = tsfm.load(name).forecast(table, horizon=14)
    assert (found["mean"] - found["0.5"]).abs().max() < 0.15


def calendar_gain(freq: str, steps: int, season: int, amplitude: float) -> float:
    """Pinball loss of the default model with the true frequency, divided by that with one that has no seasons."""
    rng, rows, horizon = np.random.default_rng(2), 60, 12
    wave = np.sin(2 * np.pi * (np.arange(steps + horizon)[:, None] / season + rng.uniform(size=rows)))
    values = amplitude * wave + rng.normal(size=(steps + horizon, rows)).cumsum(0)
    losses = []
    for index in (pd.date_range("2020-01-01", periods=len(values), freq=name) for name in (freq, "YS")):
        table = pd.DataFrame(values, columns=[f"s{k}" for k in range(rows)]).assign(date=index)
        found = tsfm.load().forecast(table[:steps], horizon=horizon)
        truth = table[steps:].melt("date", var_name="item_id")["value"].to_numpy()
        error = truth[:, None] - found[["0.1", "0.5", "0.9"]].to_numpy()
        losses.append(np.maximum(np.array([0.1, 0.5, 0.9]) * error, np.array([-0.9, -0.5, -0.1]) * error).mean())
    return float(losses[0] / losses[1])


@pytest.mark.parametrize(("freq", "steps", "season"), [("MS", 15, 12), ("MS", 30, 12), ("h", 30, 24), ("h", 40, 24)])
def test_when_a_history_is_short_then_the_calendar_tells_the_season(freq: str, steps: int, season: int) -> None:
    assert calendar_gain(freq, steps, season, 10.0) < 0.8


@pytest.mark.parametrize(("freq", "season"), [("MS", 12), ("h", 24), ("D", 7)])
def test_when_a_series_has_no_season_then_its_calendar_costs_little(freq: str, season: int) -> None:
    assert calendar_gain(freq, round(1.3 * season), season, 0.0) < 1.12
    assert calendar_gain(freq, 4 * season, season, 0.0) < 1.03


def test_when_the_figure_of_the_readme_is_drawn_then_there_is_one(tmp_path: Path) -> None:
    pytest.importorskip("vega_datasets")
    script = Path(__file__).resolve().parent.parent / "docs/forecast.py"
    subprocess.run([sys.executable, str(script), str(tmp_path / "a.png")], check=True, cwd=tmp_path)
    assert (tmp_path / "a.png").stat().st_size > 10_000
