"""Synthetic series: seeded, finite, of the statistics that each family promises, and mixed by weight."""

import datetime
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from tsfm_data import synthetic
from tsfm_data.errors import InputError
from tsfm_data.synthetic import (
    GENERATORS,
    WEIGHTS,
    SyntheticMixture,
    arma,
    calendar,
    chaos,
    ets,
    gp,
    intermittent,
    macro,
    nested,
    regime,
    sampling,
    spikes,
    telemetry,
)
from tsfm_data.synthetic.trend_season import TRENDS, seasonal, trends


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("shape", [(0, 8), (1, 1), (5, 2), (9, 64), (40, 640), (3, 3000)], ids=str)
def test_when_series_are_drawn_then_they_are_finite_and_of_the_shape_asked_for(
    name: str, shape: tuple[int, int]
) -> None:
    x = GENERATORS[name](*shape, rng())
    assert x.shape == shape
    assert x.dtype == np.float32
    assert np.isfinite(x).all()


@pytest.mark.parametrize("name", GENERATORS)
def test_when_the_seed_is_the_same_then_so_are_the_series_and_else_they_differ(name: str) -> None:
    first, again, other = (GENERATORS[name](24, 200, rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any(1).all()
    assert len(np.unique(first, axis=0)) == 24, "no series is drawn twice"


@pytest.mark.parametrize("name", [name for name in GENERATORS if name != "intermittent"])
def test_when_series_are_drawn_then_hardly_one_is_constant(name: str) -> None:
    assert (np.ptp(GENERATORS[name](300, 256, rng(3)), axis=1) == 0).mean() < 0.01


def test_when_a_mixture_is_drawn_then_families_come_by_weight() -> None:
    mixture = SyntheticMixture({"intermittent": 3, "gp": 1, "arma": 0})
    x = mixture.sample(2000, 32, rng())
    whole = (x == x.round()).all(1).mean()
    assert abs(whole - 0.75) < 0.04
    np.testing.assert_array_equal(x, mixture.sample(2000, 32, rng()))
    assert mixture.weights == {"intermittent": 0.75, "gp": 0.25}
    assert list(WEIGHTS) == list(GENERATORS) == list(SyntheticMixture().weights)
    assert sum(SyntheticMixture().weights.values()) == pytest.approx(1)


WALK = """
import numpy as np
WEIGHT = 0.15
ABOUT = "random walks"
def walk(count, length, rng):
    return rng.normal(size=(count, length)).cumsum(1).astype(np.float32)
"""


def test_when_a_file_with_a_family_is_there_then_the_mixture_draws_it(tmp_path: Path) -> None:
    folder = Path(synthetic.__path__[0])
    shutil.copytree(folder.parent, tmp_path / "tsfm_data", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tsfm_data/synthetic/walk.py").write_text(WALK)
    code = (
        "import numpy as np; from tsfm_data.synthetic import *; mixture = SyntheticMixture(); print(*mixture.weights);"
        "print(ABOUT['walk'], GENERATORS['walk'](3, 4, np.random.default_rng()).shape);"
        "print(np.isfinite(mixture.sample(50, 32, np.random.default_rng())).all())"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, text=True, capture_output=True, check=True
    )
    order = sorted({**WEIGHTS, "walk": 0.15}.items(), key=lambda family: (-family[1], family[0]))
    assert done.stdout.splitlines() == [" ".join(name for name, _ in order), "random walks (3, 4)", "True"]


def test_when_families_are_listed_then_they_are_in_the_order_in_which_released_models_drew_them() -> None:
    order = [
        "trend_season",
        "gp",
        "calendar",
        "macro",
        "arma",
        "ets",
        "regime",
        "events",
        "intermittent",
        "spikes",
        "chaos",
    ]
    assert [name for name in WEIGHTS if name in order] == order


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"trend_seasons": 1.0}, "did you mean trend_season"),
        ({"gp": -1.0}, "expected a number of at least 0 for gp, found -1.0"),
        ({"gp": float("nan")}, "found nan"),
        ({"gp": 0.0}, "expected one above 0"),
        ({}, "expected one above 0"),
    ],
    ids=str,
)
def test_when_weights_are_wrong_then_one_line_says_so(weights: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        SyntheticMixture(weights)


@pytest.mark.parametrize("width", [1, 50])
def test_when_a_recurrence_is_doubled_then_it_equals_the_loop(width: int) -> None:
    keep = rng().uniform(-0.99, 0.99, (6, width))
    drive = rng(1).standard_normal((6, 50))
    expected, x = np.zeros((6, 50)), np.zeros(6)
    for t in range(50):
        x = keep[:, t if width > 1 else 0] * x + drive[:, t]
        expected[:, t] = x
    np.testing.assert_allclose(sampling.recurrence(keep, drive), expected, rtol=1e-9, atol=1e-9)


def test_when_noise_is_drawn_then_its_variance_is_one_and_some_of_it_has_heavy_tails() -> None:
    x = sampling.noise(rng(), 2000, 2000).astype(float)
    kurtosis = (x**4).mean(1) / (x**2).mean(1) ** 2
    assert abs(np.median(x.var(1)) - 1) < 0.01
    assert 0.5 < (np.abs(kurtosis - 3) < 0.5).mean() < 0.7, "normal in six rows of ten"
    assert (kurtosis > 4.5).mean() > 0.3, "Laplace has 6, Student with four degrees of freedom more"


@pytest.mark.parametrize("period", [2.0, 7.0, 24.0, 168.0, 52.18, 365.25])
def test_when_a_season_is_drawn_then_it_repeats_with_its_period(period: float) -> None:
    x = sampling.season(rng(), np.full((64, 1), period, np.float32), np.full(64, round(period)), 2922)
    later = round(4 * period)  # 365.25 and 52.18 are close to whole after four turns, the others exact
    same = np.abs(x[:, later:] - x[:, :-later]).mean(1)
    limit = 1e-6 if float(period).is_integer() else 0.2
    assert np.median(same) <= limit
    power = np.abs(np.fft.rfft(x - x.mean(1, keepdims=True), axis=1)) ** 2
    turns = np.arange(power.shape[1]) * period / 2922  # a harmonic's order
    harmonic = np.abs(turns - turns.round()) < 2.5 * period / 2922 + 1e-9
    assert (power * harmonic).sum() > 0.9 * power.sum()


def test_when_a_profile_has_a_value_a_step_then_every_step_of_a_cycle_shows_its_own() -> None:
    x = sampling.season(rng(), np.full((400, 1), 7, np.float32), np.full(400, 7), 7)
    distinct = np.array([len(np.unique(row)) for row in x])
    assert (distinct == 7).mean() > 0.6, "smooth and stepped profiles; plateaus and flat ones have ties"
    assert distinct.min() >= 2


@pytest.mark.parametrize("kind", range(len(gp.KINDS)), ids=gp.KINDS)
def test_when_a_process_is_sampled_then_its_covariance_is_its_kernel(kind: int) -> None:
    circle, length, count = 1344, 300, 4000
    turns = circle // 24 if kind == 0 else 1
    scale = 0.8 if kind == 0 else 0.03
    row = gp.kernel(np.array([kind]), np.array([turns]), np.array([scale]), circle)
    x = gp.sample(np.repeat(row, count, 0), length, rng(kind))
    for lag in (0, 1, 3, 12, 24, 100, 250):
        expected = row[0, lag]
        covariance = (x[:, 0] * x[:, lag]).mean()
        assert abs(covariance - expected) < 4 * np.sqrt((1 + expected**2) / count), (lag, covariance, expected)
    lags = np.arange(0, circle // 2)
    chord = circle / np.pi * np.sin(np.pi * lags / circle) / (scale * circle)
    if gp.KINDS[kind] == "rbf":
        np.testing.assert_allclose(row[0, :-1], np.exp(-0.5 * chord**2), rtol=1e-9, atol=1e-12)
    if gp.KINDS[kind] == "matern 1/2":
        np.testing.assert_allclose(row[0, :-1], np.exp(-chord), rtol=1e-9)


def test_when_kernels_are_composed_then_they_are_positive_definite_and_one_at_lag_zero() -> None:
    for circle, periods in gp.CIRCLES.items():
        assert all(circle % period == 0 for period in periods)
        rows = gp.kernels(200, circle, periods, rng())
        np.testing.assert_allclose(rows[:, 0], 1)
        power = np.fft.rfft(np.concatenate([rows, rows[:, -2:0:-1]], 1), axis=1).real
        assert power.min() > -1e-9 * circle


def test_when_roots_are_given_then_the_autoregression_is_recovered() -> None:
    pair = 0.9 * np.exp(1j * np.array([0.6, -0.6]))
    coefficients = -np.poly(pair).real[1:]  # x[t] = c0 x[t-1] + c1 x[t-2] + e[t]
    drive = rng().standard_normal((400, 1344), dtype=np.float32)
    one = np.zeros((400, 1), np.float32)
    x = arma.filtered(drive, np.tile(pair, (400, 1)).astype(np.complex64), one, np.full(400, 12), one)
    past = np.stack([x[:, 1:-1].ravel(), x[:, :-2].ravel()], 1)
    estimate = np.linalg.lstsq(past, x[:, 2:].ravel(), rcond=None)[0]
    np.testing.assert_allclose(estimate, coefficients, atol=0.005)
    seasonal = arma.filtered(drive, np.zeros((400, 1), np.complex64), one, np.full(400, 12), one + np.float32(0.8))
    slope = (seasonal[:, 12:] * seasonal[:, :-12]).sum() / (seasonal[:, :-12] ** 2).sum()
    assert abs(slope - 0.8) < 0.005


def test_when_noise_is_made_restless_then_squares_are_correlated_and_the_variance_stays() -> None:
    x = arma.garch(rng().standard_normal((500, 2000), dtype=np.float32), np.full((500, 1), 0.15, np.float32), rng(1))
    assert abs(x.var() - 1) < 0.06
    assert abs((x[:, 1:] * x[:, :-1]).mean()) < 0.01
    calm = np.clip(x, -5, 5) ** 2
    centred = calm - calm.mean(1, keepdims=True)
    assert (centred[:, 1:] * centred[:, :-1]).mean() / centred.var() > 0.1


def test_when_errors_are_smoothed_then_the_states_follow_the_published_recursion() -> None:
    error = rng().standard_normal((5, 40), dtype=np.float32)
    alpha, beta, phi = (np.full((5, 1), value, np.float32) for value in (0.4, 0.1, 0.9))
    slope = rng(1).standard_normal((5, 1), dtype=np.float32)
    level, trend, expected = np.zeros(5), slope[:, 0].astype(float), []
    for t in range(40):
        expected.append(level + 0.9 * trend + error[:, t])
        level, trend = level + 0.9 * trend + 0.4 * error[:, t], 0.9 * trend + 0.1 * error[:, t]
    np.testing.assert_allclose(ets.smoothed(error, alpha, beta, phi, slope), np.stack(expected, 1), atol=1e-4)
    walk = ets.seasonal_walk(error, 7)
    np.testing.assert_allclose(walk[:, :7], 0)
    np.testing.assert_allclose(walk[:, 7:], walk[:, :-7] + error[:, :-7], atol=1e-5)


def test_when_two_regimes_switch_then_they_last_as_long_as_asked() -> None:
    stay = np.tile(np.array([[0.95, 0.8]], np.float32), (200, 1))
    state = regime.switching(stay, 2000, rng())
    before, after = state[:, :-1], state[:, 1:]
    assert abs((~after[~before]).mean() - 0.95) < 0.003
    assert abs(after[before].mean() - 0.8) < 0.006
    assert abs(state[:, 0].mean() - 0.2) < 0.09, "starts in the stationary distribution, 0.05 / (0.05 + 0.2)"
    assert abs(state.mean() - 0.2) < 0.01


def test_when_a_process_reverts_then_its_memory_and_spread_are_those_asked_for() -> None:
    rate, one = np.full((500, 1000), 0.1), np.ones((500, 1000), np.float32)
    white = rng().standard_normal((500, 1000), dtype=np.float32)
    x = regime.reverting(rate, 3 * one, 2 * one, white) - 3
    assert abs(x.std() - 2) < 0.03
    assert abs((x[:, 5:] * x[:, :-5]).mean() / x.var() - np.exp(-0.5)) < 0.01


def test_when_demand_is_intermittent_then_it_counts_and_is_often_zero() -> None:
    x = intermittent.intermittent(500, 400, rng())
    assert (x >= 0).all()
    assert (x == x.round()).all()
    zeros = (x == 0).mean(1)
    assert np.median(zeros) > 0.4
    assert (zeros > 0.8).mean() > 0.15
    mean, shape = np.full((200, 2000), 3, np.float32), np.full((200, 1), 1.5, np.float32)
    counts = intermittent.negative_binomial(mean, shape, rng())
    assert abs(counts.mean() - 3) < 0.02
    assert abs(counts.var() - (3 + 9 / 1.5)) < 0.2


def test_when_a_trapezoid_is_drawn_then_it_covers_its_share_of_the_turn() -> None:
    phase = (np.arange(1000, dtype=np.float32) / 1000)[None]
    x = spikes.trapezoid(phase, np.array([[0.4]], np.float32), np.array([[0.25]]))
    assert x.max() == 1
    assert abs((x > 0).mean() - 0.4) < 0.005
    assert abs((x == 1).mean() - 0.2) < 0.03


def test_when_spikes_return_then_the_spectrum_has_their_period() -> None:
    x = spikes.spikes(200, 1024, rng())
    power = np.abs(np.fft.rfft(sampling.standardise(x), axis=1)) ** 2
    assert np.median(power.max(1) / power.sum(1)) > 0.05, "lines, where noise would leave 1 in 500"


def test_when_days_are_looked_up_then_they_are_those_of_the_calendar() -> None:
    tables = calendar.almanac()
    for text in ("1970-01-01", "1999-12-31", "2000-02-29", "2024-02-29", "2100-03-01", "2369-12-31"):
        date = datetime.date.fromisoformat(text)
        day = (date - datetime.date(1970, 1, 1)).days
        tomorrow = date + datetime.timedelta(1)
        assert tables.weekday[day] == date.weekday()
        assert tables.year[day] == date.year
        assert tables.of_year[day] == date.timetuple().tm_yday - 1
        assert (tables.to_end[day] == 1) == (tomorrow.month != date.month)


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_when_holidays_come_then_once_a_year_on_their_date_or_weekday(kind: int) -> None:
    years = 20
    day = np.tile(np.arange(7305, 7305 + 7305, dtype=np.int32), (30, 1))  # from 1990-01-01
    near = calendar.holiday(day, 1, np.full((30, 1), kind), rng())
    for row in range(30):
        events = day[row][near[row] == 1]
        assert abs(len(events) - years) <= 1
        tables = calendar.almanac()
        if kind == 0:
            assert len(set(tables.of_year[events])) == 1
        else:
            assert len(set(tables.weekday[events])) == 1
            assert np.ptp(tables.of_year[events]) <= (7 if kind == 1 else 37)
    assert (near > 0).mean() > 1.5 / 365


def test_when_only_business_days_count_then_weekends_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []
    monkeypatch.setattr(calendar, "day_effects", lambda day, free, rng: seen.append(day) or day.astype(np.float32))
    calendar.daily(np.arange(4000, 4100, dtype=np.int32)[:, None], 50, rng())
    weekday = calendar.almanac().weekday[seen[0]]
    gap = np.diff(seen[0], axis=1)
    business = (weekday < 5).all(1)
    assert 0.05 < business.mean() < 0.4
    assert set(np.unique(gap[business])) == {1, 3}
    assert set(np.unique(gap[~business])) == {1}


def test_when_the_lorenz_system_is_solved_then_it_is_as_exact_as_an_adaptive_solver() -> None:
    state, rho = np.array([[1.0], [2.0], [20.0]]), np.array([28.0])
    expected = solve_ivp(lambda _, s: chaos.lorenz_slope(s[:, None], rho)[:, 0], (0, 0.4), state[:, 0], rtol=1e-9)
    for _ in range(10):
        state = chaos.runge_kutta(state, rho, 0.04)
    np.testing.assert_allclose(state[:, 0], expected.y[:, -1], rtol=0.01)


def test_when_chaotic_maps_run_then_they_fill_their_attractors() -> None:
    x = chaos.logistic(50, 500, rng())
    assert x.min() > 0
    assert 0.85 < x.max() <= 1
    y = chaos.henon(50, 500, rng())
    assert np.abs(y).max() < 2
    z = chaos.mackey_glass(50, 1500, rng())
    assert z.min() > 0.1
    assert z.max() < 1.6
    assert (z.std(1) > 0.1).mean() > 0.9


def test_when_series_are_macroeconomic_then_they_are_smooth_and_trend() -> None:
    x = sampling.standardise(macro.macro(300, 120, rng()))
    memory = (x[:, 1:] * x[:, :-1]).mean(1)
    assert np.median(memory) > 0.85
    time = sampling.standardise(np.arange(120.0)[None])
    assert np.median(np.abs((x * time).mean(1))) > 0.6


def test_when_trends_and_seasons_are_drawn_then_each_has_its_spread_and_period() -> None:
    x = trends(600, 300, rng())
    spread = x.std(1)
    assert np.isclose(spread[spread > 0], 1, atol=1e-3).all()
    assert abs((spread == 0).mean() - 0.22) < 0.06
    assert len(TRENDS) == 7
    waves = seasonal(600, 672, rng())
    power = np.abs(np.fft.rfft(waves - waves.mean(1, keepdims=True), axis=1)) ** 2
    strongest = power.max(1) / np.maximum(power.sum(1), 1e-9)
    assert np.median(strongest) > 0.3
    peaks = power.argmax(1)
    for period in (24, 7, 12):  # the commonest cycles are the commonest peaks (or their harmonics)
        assert (np.abs(peaks - 672 / period) < 1).mean() > 0.02


def test_when_growth_goes_on_for_thousands_of_steps_then_series_stay_as_lively_as_at_first() -> None:
    x = macro.macro(400, 5120, rng())
    early, late = (np.diff(part, axis=1).std(1) for part in (x[:, 640:1920], x[:, -1280:]))
    assert ((late > 0.2 * early) & (late < 5 * early)).mean() > 0.75


@pytest.mark.parametrize("k", range(len(calendar.MINUTES)), ids=calendar.MINUTES.tolist())
def test_when_steps_are_finer_than_a_day_then_days_repeat(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calendar, "MINUTE_WEIGHTS", np.eye(len(calendar.MINUTES))[k].tolist())
    day = 1440 // int(calendar.MINUTES[k])
    x = calendar.hourly(np.arange(4000, 4040)[:, None], 4 * day, rng())
    within = sampling.standardise(x - np.repeat(x.reshape(40, 4, day).mean(2), day, 1))
    assert np.median((within[:, day:] * within[:, :-day]).mean(1)) > 0.6


def test_when_seasons_nest_then_periods_fit_twice_and_many_are_days() -> None:
    for length, longest in ((5120, 2048), (600, 300), (10, 25)):
        period = nested.base_periods(1000, length, rng())
        assert period.min() >= 24
        assert period.max() <= longest
    common = np.isin(nested.base_periods(2000, 5120, rng()), nested.DAYS).mean()
    assert 0.6 < common < 0.75


@pytest.mark.parametrize("period", [24, 300])
def test_when_seasons_nest_then_cycles_repeat_and_most_of_all_after_a_week(
    period: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nested, "base_periods", lambda count, length, rng: np.full((count, 1), period, np.float32))
    monkeypatch.setattr(nested, "WEEK_WEIGHTS", (1, 0, 0))
    x = sampling.standardise(nested.nested(300, 21 * period, rng()))
    after = {days: (x[:, days * period :] * x[:, : -days * period]).mean(1) / (1 - days / 21) for days in (1, 3, 6, 7)}
    half = (x[:, period // 2 :] * x[:, : -period // 2]).mean(1)
    assert np.median(after[1]) > 0.5
    assert (after[1] > half).mean() > 0.95
    assert (after[7] > after[6]).mean() > 0.7
    assert np.median(after[7] - after[3]) > 0.02


def test_when_doors_close_at_night_then_series_are_zero_at_the_same_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nested, "base_periods", lambda count, length, rng: np.full((count, 1), 48, np.float32))
    monkeypatch.setattr(nested, "COMBINATIONS", (0, 0, 1))
    x = nested.nested(200, 48 * 40, rng())
    assert x.min() == 0
    dark = (x.reshape(200, 40, 48) == 0).all(1).mean(1)
    assert np.mean((dark > 0.2) & (dark < 0.75)) > 0.8, "apart from cycles that shift"
    tables = nested.day_tables(np.ones(200, bool), rng())
    night = (tables[:, : sampling.TABLE] == 0).mean(1)
    assert tables.min() == 0
    assert night.min() >= 0.25


def test_when_steps_are_averaged_then_the_first_means_are_of_what_was_seen() -> None:
    x = rng().standard_normal((3, 40), dtype=np.float32)
    means = telemetry.moving_average(x, np.array([[1], [4], [9]]))
    for row, mean, width in zip(x, means, (1, 4, 9), strict=True):
        expected = [row[max(t - width + 1, 0) : t + 1].mean() for t in range(40)]
        np.testing.assert_allclose(mean, expected, atol=1e-5)


def test_when_machines_report_then_many_series_rest_repeat_values_or_meet_a_limit() -> None:
    x = telemetry.telemetry(400, 3000, rng())
    same = np.diff(x, axis=1) == 0
    assert 0.3 < (same.mean(1) > 0.2).mean() < 0.8
    limited = np.maximum((x == x.max(1, keepdims=True)).mean(1), (x == x.min(1, keepdims=True)).mean(1))
    assert (limited > 0.05).mean() > 0.3
    few = np.array([len(np.unique(row)) < 100 for row in x])
    assert 0.15 < few.mean() < 0.6
    covered = telemetry.runs(400, 3000, rng()).mean(1)
    assert 0.1 < covered.mean() < 0.35
