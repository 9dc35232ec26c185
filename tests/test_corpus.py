"""The corpus loader: whole windows of the right series, its shares, nothing of the held-out tail, exact resume."""

from typing import Any

import numpy as np
import pytest
import torch
from corpora import Noise, coded, make_source, make_store

from tsfm_data.corpus.augmentation import AugmentConfig
from tsfm_data.corpus.loader import CorpusLoader
from tsfm_data.corpus.sampler import WindowPositions, WindowSampler
from tsfm_data.corpus.store import Store
from tsfm_data.errors import InputError
from tsfm_data.windows.batch import Batch

OPTIONS: dict[str, Any] = {"context": 32, "horizon": 8, "batch_size": 64, "batches": 6}
LENGTHS = (10, 60, 500)


def store() -> Store:
    sources = [make_source(f"s{n}", coded(5, length, first=10 * n), weight=n + 1.0) for n, length in enumerate(LENGTHS)]
    return make_store(*sources)


def window(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    assert batch.future is not None
    assert batch.future_observed is not None
    values = torch.cat([batch.past, batch.future], dim=1)[..., 0].numpy()
    return values, torch.cat([batch.past_observed, batch.future_observed], dim=1)[..., 0].numpy()


def same(a: Batch, b: Batch) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(window(a), window(b), strict=True))


def test_when_windows_are_read_then_every_value_stands_where_it_belongs() -> None:
    for batch in CorpusLoader(store(), **OPTIONS, crop=0.0):
        assert batch.past.shape == (64, 32, 1)
        values, observed = window(batch)
        assert np.all(values[~observed] == 0)
        assert np.all(observed[:, 32])  # the first step to forecast
        assert np.all(observed[:, 29:32])  # at least three steps before it
        for row, seen in zip(values, observed, strict=True):
            shown = row[seen]
            assert np.all(np.diff(shown) == 1)  # one run of one series
            assert seen.sum() == len(np.trim_zeros(seen.astype(int)))
            series, step = divmod(int(shown[0]), 10_000)
            length = LENGTHS[series // 10]
            assert step == 0 or seen[0]  # filled stride only where the series begins
            assert shown[-1] % 10_000 < length - min(int(0.1 * length), 2 * 8)  # nothing of the held-out tail


def test_when_a_series_is_long_enough_then_the_whole_horizon_is_known_and_cuts_are_uniform() -> None:
    source = make_source("a", coded(1, 500))
    sampler = WindowSampler([source], horizon=8)
    positions = sampler.cut_at_random(sampler.sample_series(20_000, np.random.default_rng(0)), np.random.default_rng(1))
    assert (positions.cut.min(), positions.cut.max()) == (3, 500 - 16 - 8)
    assert abs(positions.cut.mean() - (3 + 476) / 2) < 4 * 136 / np.sqrt(20_000)


def test_when_sources_have_weights_then_every_batch_holds_their_share() -> None:
    for batch in CorpusLoader(store(), Noise(), **OPTIONS, synthetic_share=0.25, crop=0.0):
        values, observed = window(batch)
        last = np.where(observed, values, -np.inf).max(axis=1)
        assert np.sum(last < 0) == 16
        number = (last[last >= 0] // 10_000).astype(int) // 10
        for n, weight in enumerate((1 / 6, 2 / 6, 3 / 6)):
            assert abs(np.sum(number == n) - 48 * weight) <= 1


def test_when_series_differ_in_length_then_half_are_drawn_by_length_and_half_evenly() -> None:
    source = make_source("a", [*coded(9, 100), np.arange(9_100.0)])
    positions = WindowSampler([source], horizon=8).sample_series(40_000, np.random.default_rng(0))
    assert np.mean(positions.offset == 900) == pytest.approx(0.5 * 0.91 + 0.5 * 0.1, abs=0.01)


def test_when_histories_are_cropped_then_short_ones_are_as_frequent_as_long_ones() -> None:
    loader = CorpusLoader(make_store(make_source("a", coded(1, 500))), **{**OPTIONS, "context": 128}, crop=1.0)
    lengths = np.concatenate([batch.past_observed.sum(dim=(1, 2)).numpy() for batch in loader])
    assert lengths.min() >= 3
    assert lengths.max() > 100
    assert np.mean(lengths < 32) == pytest.approx(0.5, abs=0.15)


def test_when_values_are_missing_then_they_are_not_observed() -> None:
    holes = np.where(np.arange(400) % 7 == 0, np.nan, np.arange(400.0) + 1)
    for batch in CorpusLoader(make_store(make_source("a", [holes])), **OPTIONS, crop=0.0):
        values, observed = window(batch)
        assert np.all(values[~observed] == 0)
        assert np.all((values[observed] - 1) % 7 != 0)


def test_when_a_loader_resumes_then_it_goes_on_with_the_batches_that_are_left() -> None:
    def loader(**more: Any) -> CorpusLoader:
        return CorpusLoader(store(), Noise(), **OPTIONS, seed=3, **more)

    whole = loader()
    first, second = list(whole), list(whole)
    assert not same(first[0], second[0])
    interrupted = loader(prefetch=2)
    for number, batch in enumerate(interrupted):
        assert same(batch, first[number])
        if number == 2:
            break
    state = interrupted.state_dict()
    assert state == {"epoch": 0, "batch": 3}
    resumed = loader(prefetch=2)
    resumed.load_state_dict(state)
    rest = [*resumed, *resumed]
    assert len(rest) == 3 + 6
    assert all(same(a, b) for a, b in zip(rest, [*first[3:], *second], strict=True))


def test_when_there_are_two_processes_then_they_share_the_stream_of_one() -> None:
    one = list(CorpusLoader(store(), **OPTIONS))
    pair = [list(CorpusLoader(store(), **{**OPTIONS, "batches": 3}, rank=rank, world=2)) for rank in range(2)]
    for number, batch in enumerate(one):
        assert same(batch, pair[number % 2][number // 2])


def test_when_windows_are_coarser_or_finer_then_values_lie_on_the_line_through_the_series() -> None:
    sampler = WindowSampler([make_source("a", coded(2, 300))], horizon=8)
    count = np.array([100, 100, 100, 2]), np.array([3, 1, 1, 1]), np.array([1, 2, 1, 4])
    cut, stride, refinement = (x.astype(np.int64) for x in count)
    zero = np.zeros(4, dtype=np.int64)
    positions = WindowPositions(zero, zero + 300, zero + 270, cut, zero + 1, stride, refinement, zero + 1)
    values = sampler.read(positions, 8, 4)
    np.testing.assert_allclose(values[0], 10_000 + 100 + 3 * np.arange(-8, 4))
    np.testing.assert_allclose(values[1], 10_000 + 100 + 0.5 * np.arange(-8, 4))
    np.testing.assert_allclose(values[2], 10_000 + 100 + np.arange(-8, 4))
    np.testing.assert_allclose(values[3], 10_000 + 2 + 0.25 * np.arange(-8, 4))


def test_when_windows_hold_means_then_of_the_observed_values_if_they_are_half_of_all() -> None:
    values = np.arange(300.0)
    values[101:103] = values[111:114] = values[298] = np.nan  # of 100 to 104: two; of 110 to 114: three
    sampler = WindowSampler([make_source("a", [values])], horizon=8)
    one, zero = np.ones(1, np.int64), np.zeros(1, np.int64)
    at = WindowPositions(zero, zero, zero + 299, zero + 110, zero, one, one, one * 5)
    seen = sampler.read(at, 24, 60)[0]
    assert np.isnan(seen[:2]).all(), "the series has only 22 means before step 110"
    np.testing.assert_allclose(seen[2:22], 5 * np.arange(20) + 2.0)
    np.testing.assert_allclose(seen[[22, 23]], [(100 + 103 + 104) / 3, 107])
    assert np.isnan(seen[24])
    np.testing.assert_allclose(seen[25:61], 5 * np.arange(23, 59) + 2.0)
    assert np.isnan(seen[61:]).all(), "and 37 whole ones after it, before step 299"


def test_when_parts_of_days_are_closed_then_cropped_histories_still_show_something() -> None:
    source = make_source("a", coded(1, 3000))
    options = {**OPTIONS, "context": 512, "horizon": 64}
    for batch in CorpusLoader(make_store(source), **options, crop=1.0, augment=AugmentConfig(closed=1.0)):
        shown = batch.past_observed.sum(dim=(1, 2))
        early = batch.past[:, -1, 0] < 600  # may begin within the window
        assert (shown[~early] >= 8).all()
        assert batch.future_observed is not None
        assert batch.future_observed.any(dim=1).all()


def test_when_a_series_is_as_short_as_can_be_then_something_is_observed_on_both_sides() -> None:
    source = make_source("a", [np.arange(float(n)) for n in range(2, 12)])
    for batch in CorpusLoader(make_store(source), **OPTIONS, crop=0.0):
        assert batch.past_observed[:, -1].all()
        assert batch.future_observed is not None
        assert batch.future_observed[:, 0].all()


def test_when_windows_have_variates_then_they_are_aligned_and_of_one_item() -> None:
    wide = make_source("wide", coded(12, 90), items=[0] * 5 + [1] * 2 + [2] * 5)
    loader = CorpusLoader(
        make_store(make_source("narrow", coded(3, 90, first=50)), wide),
        **OPTIONS,
        variates=3,
        augment=AugmentConfig(resample=0.3, mixup=1.0, flip_time=1.0),
    )
    pairs = set()
    for batch in loader:
        assert batch.past.shape == (64, 32, 3)
        assert torch.equal(batch.past_observed[..., 0], batch.past_observed[..., 2])
        assert batch.past_observed[:, -1].all()
        last = batch.past[:, -1]
        series = (last / 10_000).round().long()
        step = last - 10_000 * series
        torch.testing.assert_close(step, step[:, :1].expand_as(step), atol=0.1, rtol=0)
        assert (series.diff(dim=1) > 0).all()
        assert torch.equal(series[:, 0] < 5, series[:, 2] < 5)
        assert not torch.isin(series, torch.tensor([5, 6])).any()
        pairs |= {tuple(row) for row in series.tolist()}
    assert len(pairs) == 20  # ten choices of three among five variates, of two items


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"store": None}, "found neither"),
        ({"context": 0}, "expected context of at least 1"),
        ({"batches": 0}, "batches"),
        ({"crop": 1.5}, "crop: expected a share"),
        ({"holdout": 1.0}, "holdout: expected a share"),
        ({"seed": -1}, "seed"),
        ({"variates": 0}, "expected variates of at least 1"),
        ({"variates": 2}, "source with items of at least 2 variates"),
        ({"prefetch": -1}, "prefetch"),
        ({"held_out": ["s9"]}, "unknown source in held_out 's9'"),
        ({"held_out": ["s0", "s1", "s2"]}, "at least one source"),
    ],
)
def test_when_an_option_is_wrong_then_one_line_says_so(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        CorpusLoader(**{"store": store(), **OPTIONS, **options})
    assert "\n" not in str(caught.value)
