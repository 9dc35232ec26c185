"""Packed rows: every crop lies in one row in one piece, shows the right steps, and predicts its end."""

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from corpora import Noise, coded, make_source, make_store

from tsfm.models.packing import Packed
from tsfm.models.scaling_law.encoder import Encoder
from tsfm.models.scaling_law.trunk import TrunkConfig
from tsfm_data.corpus.augmentation import AugmentConfig
from tsfm_data.corpus.packing import PackedLoader, PackedRows, first_fit_decreasing
from tsfm_data.corpus.store import Store
from tsfm_data.errors import InputError

OPTIONS: dict[str, Any] = {"patch_size": 8, "tokens": 16, "batch_size": 48, "batches": 5}
LENGTHS = (5, 13, 40, 100, 600)
EVERYTHING = AugmentConfig(**dict.fromkeys((field.name for field in fields(AugmentConfig)), 0.3))


def store() -> Store:
    return make_store(*(make_source(f"s{n}", coded(4, length, first=10 * n)) for n, length in enumerate(LENGTHS)))


def crops(rows: PackedRows) -> list[dict[str, np.ndarray]]:
    """Every sample of every row."""
    all_crops = []
    for row in range(len(rows)):
        for number in range(1, int(rows.sample_id[row].max()) + 1):
            place = np.flatnonzero(rows.sample_id[row].numpy() == number)
            assert np.all(np.diff(place) == 1)
            parts = {name: getattr(rows, name)[row].numpy()[place] for name in ("target", "observed", "is_predicted")}
            all_crops.append({**parts, "time_id": rows.time_id[row].numpy()[place]})
    return all_crops


def test_when_crops_are_packed_then_each_is_whole_and_in_the_order_of_time() -> None:
    for rows in PackedLoader(store(), **OPTIONS):
        all_crops = crops(rows)
        assert len(all_crops) == 48
        padding = rows.sample_id == 0
        assert not rows.observed[padding].any()
        assert not rows.is_predicted[padding].any()
        for crop in all_crops:
            tokens = len(crop["time_id"])
            np.testing.assert_array_equal(crop["time_id"], np.arange(tokens))
            values = crop["target"].reshape(-1)[crop["observed"].reshape(-1)]
            assert np.all(np.diff(values) == 1)
            assert np.all(crop["target"][~crop["observed"]] == 0)
            length = LENGTHS[int(values[0]) // 100_000]
            assert values[-1] % 10_000 < length - int(0.1 * length)
            predicted = crop["is_predicted"]
            assert np.all(np.diff(predicted.astype(int)) >= 0)
            assert predicted[-1]
            assert not predicted[0]
            assert crop["observed"][predicted].any()
            assert crop["observed"][~predicted].any()


def test_when_means_are_packed_then_crops_show_as_many_as_the_series_has() -> None:
    lengths = set()
    for rows in PackedLoader(store(), **OPTIONS, augment=AugmentConfig(average=1.0)):
        for crop in crops(rows):
            values = crop["target"].reshape(-1)[crop["observed"].reshape(-1)]
            width = np.diff(values)
            assert np.ptp(width) == 0
            assert crop["observed"][crop["is_predicted"]].any()
            lengths.add((int(values[0]) // 100_000, round(width[0])))
    assert {width for source, width in lengths if source < 2} == {1}, "too short for means"
    assert {width for source, width in lengths if source == 4} >= {2, 18}, "up to a 32nd of the 600 steps"


def test_when_series_are_long_then_crops_and_masks_follow_the_recipe() -> None:
    loader = PackedLoader(make_store(make_source("a", coded(4, 5000))), **{**OPTIONS, "tokens": 100, "batches": 20})
    all_crops = [crop for rows in loader for crop in crops(rows)]
    shown = np.array([len(crop["time_id"]) for crop in all_crops])
    share = np.array([crop["is_predicted"].mean() for crop in all_crops])
    assert (shown.min(), shown.max()) == (51, 100)
    assert shown.mean() == pytest.approx(75.5, abs=3)
    assert share.min() >= 0.14
    assert share.max() <= 0.51
    assert share.mean() == pytest.approx(0.325, abs=0.02)
    assert all(crop["observed"].all() for crop in all_crops)


def test_when_pieces_are_fitted_then_none_overlap_and_few_rows_are_needed() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        sizes = rng.integers(1, 33, 200)
        row, begin = first_fit_decreasing(sizes, 32)
        taken = np.zeros((row.max() + 1, 32), dtype=int)
        for r, b, size in zip(row, begin, sizes, strict=True):
            taken[r, b : b + size] += 1
        assert taken.max() == 1
        assert len(taken) <= 11 / 9 * np.ceil(sizes.sum() / 32) + 1


def test_when_a_loader_resumes_then_rows_are_the_same() -> None:
    def loader() -> PackedLoader:
        return PackedLoader(store(), Noise(), **OPTIONS, augment=EVERYTHING, prefetch=2, seed=5)

    whole, resumed = list(loader()), loader()
    resumed.load_state_dict({"epoch": 0, "batch": 2})
    for ours, theirs in zip(resumed, whole[2:], strict=True):
        for name in ("target", "observed", "sample_id", "time_id", "variate_id", "is_predicted"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name))


def test_when_everything_is_augmented_then_values_stay_finite_and_a_model_learns_from_the_rows() -> None:
    model = Encoder(64, 16, TrunkConfig(16, 1, 2, patch_size=8))
    for rows in PackedLoader(store(), Noise(), **OPTIONS, augment=EVERYTHING):
        assert rows.target.isfinite().all()
        loss = model.packed_loss(Packed.of(rows))
        loss.backward()
        assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_when_only_synthetic_series_are_there_then_rows_hold_them() -> None:
    for rows in PackedLoader(None, Noise(), **OPTIONS):
        assert (rows.target[rows.observed] < -9e5).all()
        assert len(crops(rows)) == 48


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 0}, "patch_size"),
        ({"tokens": 1}, "tokens: expected at least 2"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_when_a_size_is_wrong_then_one_line_says_so(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PackedLoader(store(), **{**OPTIONS, **options})
