"""Splits are the published ones, the scaler sees training rows alone, and too short series are refused in one line."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tsfm_data.errors import InputError
from tsfm_data.windows.splits import Split, StandardScaler


def ranges(split: Split, item: int = 0) -> list[list[int]]:
    return [r[item].tolist() for r in (split.train, split.val, split.test)]


def test_published_row_counts_give_the_published_numbers_of_windows() -> None:
    split = Split.from_rows([17420], 8640, 2880, 2880)
    assert ranges(split) == [[0, 8640], [8640, 11520], [11520, 14400]]
    counts = []
    for part in ("train", "val", "test"):
        first, last = split.cuts(part, 96, 96)
        counts.append(int(last[0] - first[0] + 1))
    assert counts == [8449, 2785, 2785]


def test_custom_sets_are_cut_70_10_20_with_the_published_rounding() -> None:
    assert ranges(Split.from_fractions([7588])) == [[0, 5311], [5311, 6071], [6071, 7588]]  # Exchange
    assert ranges(Split.from_fractions([52696])) == [[0, 36887], [36887, 42157], [42157, 52696]]  # Weather
    assert ranges(Split.from_fractions([26304])) == [[0, 18412], [18412, 21044], [21044, 26304]]  # Electricity


def test_every_item_of_many_is_cut_by_its_own_length() -> None:
    split = Split.from_fractions([100, 50])
    assert ranges(split, 0) == [[0, 70], [70, 80], [80, 100]]
    assert ranges(split, 1) == [[0, 35], [35, 40], [40, 50]]


def test_validation_contexts_reach_back_unless_overlap_is_off() -> None:
    first, last = Split.from_rows([100], 60, 20, 20).cuts("val", 12, 5)
    assert (first[0], last[0]) == (60, 75)
    first, last = Split.from_rows([100], 60, 20, 20, overlap=False).cuts("val", 12, 5)
    assert (first[0], last[0]) == (72, 75)


def test_inferred_splits_leave_room_for_one_window_in_every_part() -> None:
    split = Split.infer([200], context=96, horizon=30)  # a tenth of 200 rows holds no window of 30
    assert ranges(split) == [[0, 130], [130, 160], [160, 200]]
    for part in ("train", "val", "test"):
        first, last = split.cuts(part, 96, 30)
        assert last[0] >= first[0]


@pytest.mark.parametrize("rows", [130, 131, 200, 1000, 10_000])
@pytest.mark.parametrize("horizon", [1, 7, 30])
def test_whenever_a_split_is_inferred_the_parts_are_disjoint_and_hold_windows(rows: int, horizon: int) -> None:
    context = 40
    split = Split.infer([rows], context, horizon)
    (a, b), (c, d), (e, f) = ranges(split)
    assert a == 0
    assert b == c
    assert d == e
    assert f == rows
    for part in ("train", "val", "test"):
        first, last = split.cuts(part, context, horizon)
        assert last[0] >= first[0]


def test_series_too_short_are_left_out_and_counted() -> None:
    split = Split.infer([400, 20], context=24, horizon=12)
    assert ranges(split, 1) == [[0, 0], [0, 0], [0, 0]]
    assert "1 of 2 series left out" in split.describe()
    for part in ("train", "val", "test"):
        first, last = split.cuts(part, 24, 12)
        assert last[1] < first[1]


def test_when_all_series_are_too_short_the_error_names_found_and_needed() -> None:
    with pytest.raises(InputError, match=r"found 150 rows in the longest series, expected at least 384") as caught:
        Split.infer([100, 150], context=96, horizon=96)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"no val window: expected at least 96 val rows .* found 10"):
        Split.from_rows([1000], 900, 10, 90).cuts("val", 96, 96)
    with pytest.raises(InputError, match=r"no train window: expected at least 192 train rows .* found 100"):
        Split.from_rows([1000], 100, 400, 500).cuts("train", 96, 96)
    with pytest.raises(InputError, match=r"needs 14400 rows, found 9000"):
        Split.from_rows([9000], 8640, 2880, 2880)


@pytest.mark.parametrize(("train", "test"), [(0.0, 0.2), (0.9, 0.2), (-0.1, 0.2), (0.7, -0.2), (1.2, 0.0)])
def test_impossible_fractions_are_refused(train: float, test: float) -> None:
    with pytest.raises(InputError, match="expected fractions"):
        Split.from_fractions([100], train, test)


def test_the_description_is_one_line_with_the_rows_of_each_part() -> None:
    line = Split.from_rows([17420], 8640, 2880, 2880, origin="published").describe()
    assert line == "split: train rows 1-8640, validate rows 8641-11520, test rows 11521-14400 (published)"


def test_the_scaler_takes_training_rows_to_mean_0_and_population_deviation_1() -> None:
    values = np.random.default_rng(0).normal(7.0, 3.0, (100, 3))
    split = Split.from_fractions([60, 40])
    scaler = StandardScaler.fit_split(values, np.array([0, 60, 100]), split)
    train = scaler.transform(np.concatenate([values[:42], values[60:88]]))
    np.testing.assert_allclose(train.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(train.std(axis=0, ddof=0), 1, rtol=1e-12)


def test_whatever_stands_in_validation_and_test_rows_the_scaler_is_the_same() -> None:
    values = np.random.default_rng(1).normal(size=(100, 2))
    split, offsets = Split.from_fractions([100]), np.array([0, 100])
    before = StandardScaler.fit_split(values, offsets, split)
    values[70:] = np.random.default_rng(2).choice([np.nan, 1e30, -1e30], size=(30, 2))
    after = StandardScaler.fit_split(values, offsets, split)
    assert np.array_equal(before.mean, after.mean)
    assert np.array_equal(before.std, after.std)


def test_constant_and_unobserved_variates_keep_their_scale() -> None:
    rows = np.stack([np.full(1000, 0.1), np.full(1000, np.nan), np.arange(1000.0)], axis=1)
    scaler = StandardScaler.fit(rows)
    assert scaler.std[:2].tolist() == [1.0, 1.0]
    assert scaler.mean[1] == 0
    assert scaler.std[2] == pytest.approx(np.std(np.arange(1000)))


def test_missing_values_do_not_count_in_the_scaler() -> None:
    values = np.array([[1.0], [np.nan], [3.0]])
    scaler = StandardScaler.fit(values)
    assert (scaler.mean[0], scaler.std[0]) == (2.0, 1.0)


def test_inverse_undoes_transform_for_arrays_and_tensors_along_any_axis() -> None:
    scaler = StandardScaler(np.array([1.0, -5.0]), np.array([2.0, 0.5]))
    x = np.random.default_rng(0).normal(size=(4, 6, 2))
    np.testing.assert_allclose(scaler.inverse(scaler.transform(x)), x, rtol=1e-12, atol=1e-12)
    quantiles_BHVQ = torch.randn(4, 6, 2, 9, dtype=torch.float64)
    undone = scaler.inverse(quantiles_BHVQ, axis=2)
    torch.testing.assert_close(undone[:, :, 1], quantiles_BHVQ[:, :, 1] * 0.5 - 5.0)


def test_the_scaler_of_etth1_is_that_of_its_first_8640_rows(data_folder: Path) -> None:
    import pandas as pd

    frame = pd.read_parquet(data_folder / "bench" / "ETTh1.parquet").iloc[:, 1:]
    values = frame.to_numpy(np.float64)
    scaler = StandardScaler.fit_split(
        values, np.array([0, len(values)]), Split.from_rows([len(values)], 8640, 2880, 2880)
    )
    np.testing.assert_allclose(scaler.mean, values[:8640].mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(scaler.std, values[:8640].std(axis=0), rtol=1e-12)
