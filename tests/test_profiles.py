"""Profiles choose the published windows, horizons and seasons."""

from dataclasses import replace

import numpy as np
import pytest
from gluonts.time_feature import get_seasonality

from tsfm_data.errors import InputError
from tsfm_data.evaluation.metrics import get_metric
from tsfm_data.evaluation.profiles import PROFILES, get_profile
from tsfm_data.windows.splits import Split

GIFT, CHRONOS, LSF = (get_profile(name) for name in ("gift", "chronos", "lsf"))


@pytest.mark.parametrize(
    ("dataset", "freq", "horizon"),
    [
        ("us_births", "D", 30),
        ("solar", "W-FRI", 8),
        ("hospital", "MS", 12),
        ("ett1", "h", 48),
        ("ett1", "15min", 48),
        ("bizitobs", "10s", 60),
        ("m4_yearly", "YE-DEC", 6),
        ("m4_quarterly", "QS-OCT", 8),
        ("m4_monthly", "ME", 18),
        ("m4_weekly", "W-THU", 13),
        ("m4_daily", "D", 14),
        ("m4_hourly", "h", 48),
    ],
)
def test_when_the_frequency_is_known_then_gift_horizons_are_the_published_ones(
    dataset: str, freq: str, horizon: int
) -> None:
    assert GIFT.horizon(dataset, freq) == horizon
    assert get_profile("gift-medium").horizon(dataset, freq) == 10 * horizon
    assert get_profile("gift-long").horizon(dataset, freq) == 15 * horizon


def test_when_a_frequency_has_no_published_horizon_then_one_line_asks_for_it() -> None:
    with pytest.raises(InputError, match=r"no horizon for frequency 'YE'.*give a horizon"):
        GIFT.horizon("my_table", "YE")


@pytest.mark.parametrize(
    ("freq", "horizon"),
    sorted(
        {"YS": 6, "YE-JUN": 6, "QS": 8, "QE": 8, "MS": 12, "ME": 12, "W-SUN": 8, "D": 30, "2D": 30, "B": 30}.items()
        | {"B@-2024-12-25": 30, "C": 30, "h": 48, "15min": 48, "15min@MON-FRI 09:30-15:45": 48}.items()
        | {"s": 60, "ms": 24, "us": 24, "ns": 24}.items()
    ),
)
def test_when_a_table_is_of_any_frequency_then_it_has_a_horizon(freq: str, horizon: int) -> None:
    assert get_profile("table").horizon("my_table", freq) == horizon


@pytest.mark.parametrize(
    ("number", "step", "first"), [(3, None, 100 - 3 * 12), (3, 1, 86), (1, 5, 88), (None, 2, 88), (5, 20, 8)]
)
def test_when_windows_and_step_are_chosen_then_they_end_with_the_series(
    number: int | None, step: int | None, first: int
) -> None:
    profile = replace(GIFT, number=number, step=step)
    items, cuts = profile.cuts("set", ["a"], np.array([100]), 12)
    assert (cuts[0], cuts[-1], len(cuts)) == (first, 88, number or 1)
    assert (np.diff(cuts) == (step or 12)).all()
    assert (items == 0).all()
    with pytest.raises(InputError, match=r"needs at least 113 rows.*or fewer windows"):
        replace(GIFT, number=6, step=20).cuts("set", ["a"], np.array([100]), 12)
    rolled = replace(LSF, number=number, step=step)
    split = Split.from_rows([100], 50, 10, 40)
    found = rolled.cuts("set", ["a"], np.array([100]), 12, split)[1]
    assert found[-1] <= 88
    assert len(found) == min(number or 99, (88 - 60) // (step or 1) + 1)


@pytest.mark.parametrize(
    ("length", "horizon", "count"),
    [(100, 12, 1), (120, 12, 1), (121, 12, 2), (7305, 30, 20), (17420, 48, 20), (17420, 480, 4), (17420, 720, 3)],
)
def test_when_series_are_longer_then_gift_scores_a_tenth_of_them_at_most_twenty_windows(
    length: int, horizon: int, count: int
) -> None:
    items, cuts = GIFT.cuts("set", ["a", "b"], np.array([length + 500, length]), horizon)
    assert GIFT.count("set", np.array([length + 500, length]), horizon) == count
    assert items.tolist() == [0] * count + [1] * count  # the shortest series decides for all
    assert cuts[-1] == length - horizon
    assert (np.diff(cuts[:count]) == horizon).all()
    assert cuts[0] == length + 500 - count * horizon


def test_when_the_set_is_of_m4_then_gift_scores_one_window() -> None:
    items, cuts = GIFT.cuts("m4_daily", ["D1"], np.array([9000]), 14)
    assert (items.tolist(), cuts.tolist()) == ([0], [8986])


def test_when_the_profile_is_chronos_then_the_last_window_is_scored_at_the_published_horizon_and_season() -> None:
    items, cuts = CHRONOS.cuts("exchange_rate", ["a", "b"], np.array([7588, 700]), 30)
    assert (items.tolist(), cuts.tolist()) == ([0, 1], [7558, 670])
    found = {name: (CHRONOS.horizon(name, freq), CHRONOS.season(name, freq)) for name, freq in [
        ("exchange_rate", "D"), ("ETTh1", "h"), ("ETTh1+ETTh2", "h"), ("ETTm1+ETTm2", "15min"), ("nn5", "D"),
        ("hospital", "MS"), ("car_parts", "MS"), ("m4_quarterly", "QS"), ("m4_hourly", "h"), ("my_table", "h"),
    ]}  # fmt: skip
    assert found == {
        "exchange_rate": (30, 5), "ETTh1": (24, 24), "ETTh1+ETTh2": (24, 24), "ETTm1+ETTm2": (24, 96),
        "nn5": (56, 1), "hospital": (12, 12), "car_parts": (12, 12),
        "m4_quarterly": (8, 4), "m4_hourly": (48, 24), "my_table": (24, 24),
    }  # fmt: skip


@pytest.mark.parametrize(("horizon", "windows"), [(96, 2785), (192, 2689), (336, 2545), (720, 2161)])
def test_when_the_profile_is_lsf_then_every_window_of_the_test_rows_is_scored(horizon: int, windows: int) -> None:
    lengths = np.array([17420])
    items, cuts = LSF.cuts("ETTh1", ["ETTh1"], lengths, horizon, Split.from_rows(lengths, 8640, 2880, 2880))
    assert len(items) == windows
    assert (cuts[0], cuts[-1]) == (8640 + 2880, 14400 - horizon)
    assert (np.diff(cuts) == 1).all()


@pytest.mark.parametrize("freq", ["h", "2h", "15min", "10min", "7min", "D", "B", "W-SUN", "MS", "QS", "YS", "s", "10s"])
def test_when_the_profile_is_gift_then_seasons_are_those_of_gluonts(freq: str) -> None:
    assert GIFT.season("set", freq) == get_seasonality(freq)


def test_when_a_series_is_too_short_then_one_line_names_it() -> None:
    with pytest.raises(InputError, match=r"needs at least 25 rows.*found 20 in 'short'.*smaller horizon"):
        CHRONOS.cuts("my_table", ["long", "short"], np.array([500, 20]), 24)


def test_when_a_profile_is_unknown_then_near_ones_are_listed() -> None:
    with pytest.raises(InputError, match="unknown profile 'chronoss': did you mean chronos"):
        get_profile("chronoss")


def test_every_profile_defines_metrics_that_exist() -> None:
    for profile in PROFILES.values():
        for text in profile.metrics.values():
            get_metric(text, profile.levels)
