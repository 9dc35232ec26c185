"""Augmentation: each step does what it says to the rows it chose, and leaves the others and what is missing alone."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from tsfm_data.corpus import augmentation as steps
from tsfm_data.corpus.augmentation import AugmentConfig, augment
from tsfm_data.errors import InputError

NAMES = [f.name for f in fields(AugmentConfig) if f.name not in ("resample", "average")]
CONTEXT, ROWS, LENGTH = 192, 64, 256


def windows(seed: int = 0) -> np.ndarray:
    """Walks of various sizes, an eighth of them with histories that begin late, a few values missing."""
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(ROWS, LENGTH)).cumsum(axis=1) * 10.0 ** rng.integers(-2, 4, (ROWS, 1))).astype(np.float32)
    x[: ROWS // 8, :150] = np.nan
    x[rng.random(x.shape) < 0.02] = np.nan
    return x


def changed(name: str, share: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    before = windows()
    after = before.copy()
    augment(after, CONTEXT, replace(AugmentConfig(), **{name: share}), np.random.default_rng(seed))
    return before, after


def test_when_nothing_is_asked_for_then_nothing_changes() -> None:
    x = windows()
    augment(x, CONTEXT, AugmentConfig(), np.random.default_rng(0))
    np.testing.assert_array_equal(x, windows())


@pytest.mark.parametrize("name", NAMES)
def test_when_a_share_is_asked_for_then_about_so_many_rows_change(name: str) -> None:
    before, after = changed(name, 0.5)
    different = np.sum(~np.all((before == after) | (np.isnan(before) & np.isnan(after)), axis=1))
    assert 12 <= different <= 46
    again = changed(name, 0.5)[1]
    np.testing.assert_array_equal(after, again)
    assert after.dtype == np.float32
    assert not np.isinf(after).any()


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("mixup", "flip_time", "missing", "closed")])
def test_when_values_change_then_what_is_missing_stays_missing(name: str) -> None:
    before, after = changed(name)
    np.testing.assert_array_equal(np.isnan(before), np.isnan(after))


def test_when_windows_are_mixed_then_they_are_convex_combinations_of_unit_windows() -> None:
    x = windows()[ROWS // 8 :]
    rows = np.arange(len(x))
    mixed = steps.mixup(x, rows, np.random.default_rng(0))
    unit = np.nan_to_num(x / steps.mean_deviation(x))
    seen = ~np.isnan(mixed)
    counts = []
    for row in range(len(x)):
        weights = np.linalg.lstsq(unit[:, seen[row]].T.astype(np.float64), mixed[row, seen[row]], rcond=None)[0]
        assert weights.sum() == pytest.approx(1, abs=1e-3)
        assert weights.min() > -1e-3
        counts.append(np.sum(weights > 1e-3))
    assert set(counts) == {1, 2, 3, 4}


def test_when_signs_flip_then_twice_gives_the_original() -> None:
    x = windows()
    np.testing.assert_array_equal(steps.flip_sign(steps.flip_sign(x, RNG), RNG), x)


def test_when_time_flips_then_values_are_reversed_and_padding_stays() -> None:
    x = windows()
    flipped = steps.flip_time(x, RNG)
    np.testing.assert_array_equal(np.isnan(flipped[0, :140]), True)
    for row, back in zip(x, flipped, strict=True):
        np.testing.assert_array_equal(back[~np.isnan(back)], row[~np.isnan(row)][::-1])


def test_when_a_sensor_is_censored_then_one_end_is_flat_and_the_rest_as_it_was() -> None:
    before, after = changed("censor")
    for row, cut in zip(before, after, strict=True):
        altered = np.flatnonzero(~np.isnan(row) & (row != cut))
        assert len(np.unique(cut[altered])) <= 1
        assert len(altered) <= 0.5 * np.sum(~np.isnan(row))
        side = np.sign(cut[altered] - row[altered])
        assert len(np.unique(side)) <= 1


def test_when_values_are_quantised_then_few_are_left_and_none_moves_by_more_than_half_a_level() -> None:
    before, after = changed("quantise")
    for row, levels in zip(before, after, strict=True):
        distinct = np.unique(levels[~np.isnan(levels)])
        width = np.diff(distinct).min()
        assert len(distinct) <= 50
        assert np.nanmax(np.abs(row - levels)) <= 0.51 * width


def test_when_spikes_are_added_then_they_are_evenly_spaced() -> None:
    flat = np.arange(40 * 512, dtype=np.float32).reshape(40, 512) % 2  # of size 0.5
    added = steps.spikes(flat, np.random.default_rng(0)) - flat
    for row in added:
        begins = np.flatnonzero((row != 0) & (np.roll(row, 1) == 0))
        gaps = np.diff(begins[begins > 0])
        assert len(set(gaps.tolist())) <= 1


def test_when_values_go_missing_then_half_of_the_history_and_the_whole_future_are_left() -> None:
    before, after = changed("missing")
    np.testing.assert_array_equal(before[:, CONTEXT:], after[:, CONTEXT:])
    left, had = (np.sum(~np.isnan(x[:, :CONTEXT]), axis=1) for x in (after, before))
    assert np.all(2 * left >= had)
    assert np.mean(left < had) > 0.7


def test_when_hours_are_closed_then_they_are_so_every_week_and_enough_is_left() -> None:
    x = np.ones((48, 4608), np.float32)
    gone = np.isnan(steps.closed(x, 4096, np.random.default_rng(0)))
    for row in gone:
        assert any(np.array_equal(row[7 * day :], row[: -7 * day]) for day in range(12, 301))
    assert (gone.mean(axis=1) > 0.1).all()
    assert (gone.mean(axis=1) < 0.8).all()
    weekly = np.array([np.diff(np.flatnonzero(np.diff(row.astype(int)) > 0)).std() > 1 for row in gone])
    assert 0.2 < weekly.mean() < 0.6, "in two fifths, two days of seven are closed"
    few = np.full((48, 512), np.nan, np.float32)
    few[:, 400:410] = few[:, 480:] = 1
    left = ~np.isnan(steps.closed(few, 448, np.random.default_rng(0)))
    assert (left[:, :448].sum(axis=1) >= steps.MIN_OPEN).all()
    assert left[:, 448:].any(axis=1).all()


def test_when_amplitudes_are_modulated_or_scaled_then_the_factor_is_smooth_or_constant() -> None:
    before, after = changed("scale")
    factor = after / before
    np.testing.assert_allclose(np.nanmax(factor, axis=1), np.nanmin(factor, axis=1), rtol=1e-5)
    ones = np.ones((ROWS, LENGTH), np.float32)
    bends = np.abs(np.diff(steps.modulate(ones, np.random.default_rng(0)), n=2)) > 1e-5
    assert bends.sum(axis=1).max() <= 2 * 4


def test_when_values_are_near_the_limit_of_float32_then_none_is_infinite() -> None:
    x = windows() / np.float32(1e4) * np.float32(1e38)
    x = np.where(np.isinf(x), np.float32(3e38), x)
    augment(x, CONTEXT, AugmentConfig(**dict.fromkeys(NAMES, 1.0)), np.random.default_rng(0))
    assert not np.isinf(x).any()


@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan")])
def test_when_a_share_is_no_share_then_one_line_says_so(wrong: Any) -> None:
    with pytest.raises(InputError, match=r"augment.censor: expected a share in \[0, 1\]"):
        AugmentConfig(censor=wrong)


RNG = np.random.default_rng(0)
