"""A batch of windows equals the same windows cut one by one; the loader is seeded, resumable, and loses nothing."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from tsfm_data.errors import InputError
from tsfm_data.io.frequency import calendar_features
from tsfm_data.io.series import SeriesSet
from tsfm_data.windows.batch import Batch
from tsfm_data.windows.loader import WindowLoader, Windows
from tsfm_data.windows.splits import StandardScaler

T, H = 8, 3


def many(missing: bool = False, lengths: tuple[int, ...] = (30, 5, 17, 41)) -> SeriesSet:
    rng = np.random.default_rng(0)
    values = [rng.normal(size=(n, 2)) for n in lengths]
    if missing:
        for v in values:
            v[rng.random(v.shape) < 0.2] = np.nan
    return SeriesSet.from_arrays("many", values, "h", start="2021-03-01 05:00")


def wide(rows: int = 60, variates: int = 5) -> SeriesSet:
    values = np.random.default_rng(1).normal(size=(rows, variates))
    return SeriesSet.from_arrays("wide", [values], "h", start="2021-03-01")


def one_by_one(series: SeriesSet, item: int, cut: int, scaler: StandardScaler | None) -> tuple[np.ndarray, np.ndarray]:
    """Values and mask of one window [T + H, V], cut in the plainest way."""
    values = series.item(item)
    values = values if scaler is None else scaler.transform(values)
    window = np.full((T + H, values.shape[1]), np.nan)
    for step in range(T + H):
        row = cut - T + step
        if 0 <= row < len(values):
            window[step] = values[row]
    return np.nan_to_num(window), ~np.isnan(window)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_batch_equals_its_windows_cut_one_by_one(missing: bool, scaled: bool) -> None:
    series = many(missing)
    scaler = StandardScaler(np.array([0.3, -2.0]), np.array([2.0, 0.1])) if scaled else None
    items, cuts = map(list, zip(*[(i, c) for i in range(4) for c in range(1, series.length(i) + 1)], strict=True))
    windows = Windows(series, T, H, items, cuts, scaler=scaler, marks="h", dtype=torch.float64)
    batch = windows.batch(range(len(windows)))
    assert batch.future is not None
    assert batch.future_observed is not None
    for w, (item, cut) in enumerate(zip(items, cuts, strict=True)):
        values, observed = one_by_one(series, item, cut, scaler)
        np.testing.assert_allclose(torch.cat([batch.past[w], batch.future[w]]), values, rtol=1e-12)
        np.testing.assert_array_equal(torch.cat([batch.past_observed[w], batch.future_observed[w]]), observed)
    assert batch.item is not None
    assert batch.item.tolist() == items
    assert batch.cut is not None
    assert batch.cut.tolist() == cuts


def test_marks_are_the_calendar_features_of_the_window_also_past_the_end() -> None:
    series = many()
    items, cuts = map(list, zip(*[(i, c) for i in range(4) for c in range(1, series.length(i) + 1)], strict=True))
    batch = Windows(series, T, H, items, cuts, marks="h").batch(range(len(items)))
    assert batch.past_marks is not None
    assert batch.future_marks is not None
    for w, (item, cut) in enumerate(zip(items, cuts, strict=True)):
        features = calendar_features(series.timestamps(item, extra=H), "h")
        np.testing.assert_array_equal(batch.future_marks[w], features[cut : cut + H])
        begun = min(cut, T)
        np.testing.assert_array_equal(batch.past_marks[w, T - begun :], features[cut - begun : cut])
        assert not batch.past_marks[w, : T - begun].any()


def test_marks_follow_each_items_own_start_and_frequency() -> None:
    from dataclasses import replace

    series = many(lengths=(30, 20))
    starts = np.array(["2021-03-01T05", "2020-11-30T21"], dtype="datetime64[ns]")
    series = replace(series, starts=starts)
    batch = Windows(series, T, H, [0, 1], [20, 20], marks="h").batch([0, 1])
    assert batch.past_marks is not None
    for i in range(2):
        np.testing.assert_array_equal(batch.past_marks[i], calendar_features(series.timestamps(i), "h")[20 - T : 20])


def test_at_the_end_of_the_data_the_future_is_unknown_and_its_marks_known() -> None:
    series = many()
    batch = Windows(series, T, H, [0, 1, 2, 3], [30, 5, 17, 41], marks="h").batch([3, 1])
    assert batch.future is None
    assert batch.future_observed is None
    assert batch.horizon == H
    assert batch.future_marks is not None
    assert batch.future_marks.shape == (2, H, 4)
    np.testing.assert_allclose(batch.past[0], series.item(3)[-T:].astype(np.float32))
    np.testing.assert_array_equal(batch.past_observed[1, :, 0], [False] * 3 + [True] * 5)


def test_rows_known_only_for_covariates_are_not_observed() -> None:
    from dataclasses import replace

    series = wide(40, 2)
    values = series.values.copy()
    values[-4:] = 1e9
    series = replace(series, values=values, future_rows=np.array([4]))
    batch = Windows(series, T, H, [0, 0], [36, 34]).batch([0, 1])
    assert batch.future is not None
    assert batch.future_observed is not None
    assert batch.future.abs().max() < 1e3
    np.testing.assert_array_equal(batch.future_observed[:, :, 0], [[False] * 3, [True, True, False]])


def test_when_nothing_is_missing_the_masks_cost_no_memory() -> None:
    batch = Windows.rolling(wide(), T, H).batch([0, 1, 2])
    assert batch.past_observed.all()
    assert batch.past_observed.untyped_storage().nbytes() == 1
    assert batch.past_observed.shape == batch.past.shape


def test_a_variates_history_lies_in_one_run_of_memory() -> None:
    past = Windows.rolling(wide(), T, H).batch([0, 1]).past
    assert past.stride(1) == 1


def test_batches_never_share_memory_with_the_data() -> None:
    windows = Windows.rolling(wide(), T, H)
    before = windows.batch([0]).past.clone()
    windows.batch([0]).past.zero_()
    torch.testing.assert_close(windows.batch([0]).past, before, rtol=0, atol=0)


def test_a_window_is_the_same_alone_and_in_any_batch() -> None:
    windows = Windows(many(missing=True), T, H, [0, 1, 2, 3], [10, 2, 17, 30], marks="h")
    together = windows.batch([3, 1, 0, 2])
    for place, w in enumerate([3, 1, 0, 2]):
        alone = windows.batch([w])
        torch.testing.assert_close(alone.past[0], together.past[place], rtol=0, atol=0)


def rolled(windows: Windows) -> list[tuple[int, int]]:
    return list(zip(windows.items.tolist(), windows.cuts.tolist(), strict=True))


def test_rolling_windows_are_every_cut_with_full_context_and_horizon() -> None:
    windows = Windows.rolling(many(), T, H)
    expected = [(i, c) for i, n in enumerate((30, 5, 17, 41)) for c in range(T, n - H + 1)]
    assert rolled(windows) == expected
    assert len(windows) == len(expected)


def test_count_keeps_the_last_windows_of_each_item_and_allows_short_histories() -> None:
    windows = Windows.rolling(many(), T, H, stride=H, count=2)
    assert rolled(windows) == [(0, 24), (0, 27), (1, 2), (2, 11), (2, 14), (3, 35), (3, 38)]


def test_first_last_and_stride_may_differ_by_item() -> None:
    windows = Windows.rolling(many(), T, H, first=[10, 9, 9, 30], last=[20, 2, 14, 38], stride=4)
    assert rolled(windows) == [(0, 10), (0, 14), (0, 18), (2, 9), (2, 13), (3, 30), (3, 34), (3, 38)]


def test_batches_score_every_window_once() -> None:
    windows = Windows.rolling(many(), T, H)
    seen = [(int(i), int(c)) for b in windows.batches(7) for i, c in zip(b.item, b.cut, strict=True)]  # type: ignore[arg-type]
    assert seen == rolled(windows)


def test_windows_out_of_range_or_impossible_are_refused_in_one_line() -> None:
    for make in (
        lambda: Windows(many(), 0, H, [0], [5]),
        lambda: Windows(many(), T, 0, [0], [5]),
        lambda: Windows(many(), T, H, [0], [0]),
        lambda: Windows(many(), T, H, [0], [31]),
        lambda: Windows.rolling(many(), 50, H),
        lambda: Windows.rolling(many(), T, H, stride=0),
        lambda: WindowLoader(Windows.rolling(many(), T, H), 0),
        lambda: WindowLoader(Windows.rolling(many(), T, H), 4, variates_per_batch=3),
        lambda: WindowLoader(Windows.rolling(many(), T, H), 4, variates_per_batch=0.0),
    ):
        with pytest.raises(InputError) as caught:
            make()
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"at least 53 rows .* found 41"):
        Windows.rolling(many(), 50, H)


def cuts_of(batches: list[Batch]) -> list[int]:
    return [int(c) for b in batches if b.cut is not None for c in b.cut]


def test_an_epoch_shows_every_window_once_in_an_order_of_seed_and_epoch() -> None:
    windows = Windows.rolling(wide(), T, H)
    loader = WindowLoader(windows, 7, shuffle=True, seed=5)
    first, second = cuts_of(list(loader)), cuts_of(list(loader))
    assert sorted(first) == sorted(second) == windows.cuts.tolist()
    assert first != second != windows.cuts.tolist()
    again = WindowLoader(windows, 7, shuffle=True, seed=5)
    again.set_epoch(1)
    assert cuts_of(list(again)) == second
    other = WindowLoader(windows, 7, shuffle=True, seed=6)
    assert cuts_of(list(other)) != first


def test_only_when_asked_the_last_incomplete_batch_is_dropped() -> None:
    windows = Windows.rolling(wide(), T, H)  # 50 windows
    assert len(windows) == 50
    for drop, expected in ((False, [16, 16, 16, 2]), (True, [16, 16, 16])):
        loader = WindowLoader(windows, 16, shuffle=True, drop_last=drop)
        assert [len(b) for b in loader] == expected
        assert len(loader) == len(expected)
    assert [len(b) for b in WindowLoader(windows, 64, drop_last=True)] == [50]  # better one small batch than none


@pytest.mark.parametrize("taken", range(9))
def test_a_resumed_loader_hands_out_exactly_the_rest(taken: int) -> None:
    def new() -> WindowLoader:
        return WindowLoader(Windows.rolling(wide(), T, H), 7, shuffle=True, seed=1, variates_per_batch=2)

    loader = new()
    list(loader)
    whole = [b.past for b in loader]
    after = [b.past for b in loader]
    loader = new()
    loader.set_epoch(1)
    list(itertools.islice(loader, taken))
    resumed = new()
    resumed.load_state_dict(loader.state_dict())
    rest = [b.past for b in resumed]
    assert len(rest) == len(whole) - min(taken, len(whole))
    for a, b in zip(rest + [b.past for b in resumed], whole[taken:] + after, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_state_of_an_earlier_epoch_does_not_shorten_a_later_one() -> None:
    windows = Windows.rolling(wide(), T, H)
    loader = WindowLoader(windows, 7)
    loader.load_state_dict({"epoch": 0, "batch": 5})
    loader.set_epoch(1)
    assert len(list(loader)) == len(loader)


@pytest.mark.parametrize("world", [2, 3, 7])
def test_ranks_evaluate_every_window_once_and_train_on_equal_numbers(world: int) -> None:
    windows = Windows.rolling(wide(), T, H)
    scored = [c for r in range(world) for c in cuts_of(list(WindowLoader(windows, 4, rank=r, world=world)))]
    assert sorted(scored) == windows.cuts.tolist()
    shares = [cuts_of(list(WindowLoader(windows, 4, shuffle=True, rank=r, world=world))) for r in range(world)]
    assert {len(share) for share in shares} == {50 // world}
    assert len(set(itertools.chain(*shares))) == 50 - 50 % world
    assert (
        len({len(WindowLoader(windows, 4, shuffle=True, drop_last=True, rank=r, world=world)) for r in range(world)})
        == 1
    )


def test_variates_per_batch_shows_a_fresh_random_subset_with_all_marks() -> None:
    series = wide(60, 5)
    loader = WindowLoader(Windows.rolling(series, T, H, marks="h"), 2, shuffle=True, variates_per_batch=0.4)
    subsets = set()
    for batch in loader:
        assert batch.past.shape == (2, T, 2)
        assert batch.past_marks is not None
        assert batch.past_marks.shape == (2, T, 4)
        assert batch.cut is not None
        step = series.values[int(batch.cut[0]) - 1].astype(np.float32)
        subsets.add(frozenset(int(np.flatnonzero(step == v)[0]) for v in batch.past[0, -1].numpy()))
    assert len(subsets) > 5  # of 10 subsets of 2 among 5, in 25 batches
    assert frozenset.union(*subsets) == set(range(5))


def test_windows_of_other_variates_share_the_memory() -> None:
    series = wide(60, 5)
    windows = Windows.rolling(series, T, H)
    some = windows.at([0], [20], variates=[3, 1])
    np.testing.assert_allclose(some.batch([0]).past[0], series.values[12:20, [3, 1]].astype(np.float32))
    assert some._values.data_ptr() == windows._values.data_ptr()


def test_mixed_seasons_are_refused_unless_one_is_given() -> None:
    series = replace(many(lengths=(30, 30)), freqs=("h", "D"))
    with pytest.raises(InputError, match="one season"):
        Windows.rolling(series, T, H)
    batch = Windows.rolling(series, T, H, season=7).batch([0])
    assert (batch.season, batch.seasons) == (7, ())


def test_when_windows_are_gathered_then_they_tell_the_seasons_of_the_calendar_and_of_the_user() -> None:
    series = wide()
    assert Windows.rolling(replace(series, freqs=("h",)), T, H, season=7).batch([0]).seasons == (24, 168, 8766)
    assert Windows.rolling(replace(series, freqs=("D",), season=9), T, H).batch([0]).seasons == (7, 9, 365)
