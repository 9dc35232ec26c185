"""Several processes train as one: the same losses, every window once, exact metrics, checkpoints for any number."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from command import waves
from corpora import coded, make_source, make_store
from processes import together
from safetensors.torch import load_file
from torch import Tensor
from trainings import STRATEGIES, TASKS, fit

from tsfm.models import Encoder, PackedForecaster
from tsfm.models.scaling_law.trunk import TrunkConfig
from tsfm_data.corpus import PackedLoader
from tsfm_data.corpus.datamodule import ValidationWindows
from tsfm_data.errors import InputError
from tsfm_data.windows import ForecastDataModule, even_batch_size
from tsfm_vision.training import InOrder, Shuffled

# Lightning 2.6 asks PyTorch a question that PyTorch 2.15 has renamed.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings(
        "ignore:.*(transfer_batch_to_device|does not have many workers|Checkpoint directory|dirpath has changed).*"
    ),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A table of which some later values are missing."""
    table = waves(rows=230, variates=3)
    table.iloc[170:178, 1] = np.nan
    table.to_csv(tmp_path / "table.csv", index=False)
    return tmp_path


def assert_same(actual: dict[str, Any], wanted: dict[str, Any]) -> None:
    np.testing.assert_allclose(actual["train"], wanted["train"], rtol=2e-5)
    assert actual["val"].keys() == wanted["val"].keys()
    for name, value in wanted["val"].items():
        assert actual["val"][name] == pytest.approx(value, rel=2e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_when_two_processes_train_then_losses_are_those_of_one_with_twice_the_batch(
    kind: str, strategy: str, folder: Path
) -> None:
    one = fit(kind, folder, 16, None)
    first, second = together(2, fit, kind, folder, 8, strategy)
    assert len(one["train"]) == 6
    assert len(set(one["train"])) == 6
    assert_same(first, one)
    assert_same(second, one)
    ours, theirs = (load_file(folder / name / "model" / "model.safetensors") for name in (strategy, "None"))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        # A bias of keys changes no attention: its gradient is rounding error, which Adam makes as large as any other.
        if value.ndim > 1:
            torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4)


def saved(folder: Path, name: str, step: int) -> str:
    return str(folder / name / f"step={step}.ckpt")


@pytest.mark.slow
@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_when_another_number_of_processes_resumes_then_training_goes_on_as_it_would_have(
    kind: str, strategy: str, folder: Path
) -> None:
    whole, _ = together(2, fit, kind, folder, 8, strategy, 4)
    one = fit(kind, folder, 8, None, 4, saved(folder, f"{strategy}-8", 2), accumulate=2)
    np.testing.assert_allclose(np.mean(np.reshape(one["train"], (2, 2)), 1), whole["train"][2:], rtol=2e-5)
    fit(kind, folder, 8, None, 4, accumulate=2)
    two, _ = together(2, fit, kind, folder, 8, strategy, 4, saved(folder, "None-8", 2))
    assert_same(two, {**whole, "train": whole["train"][2:]})


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 4), (4, 2)])
def test_when_another_number_of_ranks_resumes_then_each_window_of_the_epoch_is_used_once(
    before: int, after: int, folder: Path
) -> None:
    def loader(rank: int, world: int) -> Any:
        data = ForecastDataModule(str(folder / "table.csv"), 24, 6, batch_size=4)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=world)  # type: ignore[assignment]
        return data.train_dataloader()

    used: list[int] = []
    for rank in range(before):
        first = loader(rank, before)
        batches = iter(first)
        for _ in range(4 // before):
            used += next(batches).cut.tolist()
        state = first.state_dict()
    assert state == {"epoch": 0, "batch": 4}
    for rank in range(after):
        rest = loader(rank, after)
        rest.load_state_dict(state)
        used += [cut for batch in rest for cut in batch.cut.tolist()]
    total = len(loader(0, 1).windows)
    assert len(used) == len(set(used))
    assert total - 4 * 4 < len(used) <= total


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [9, 16, 17, 33])
def test_when_windows_are_validated_then_each_is_scored_once_in_as_many_batches_on_all_ranks(
    count: int, world: int
) -> None:
    season = np.array([24, 7, 24, 24])[np.arange(count) % 4]
    values = np.arange(count, dtype=np.float32)[:, None].repeat(3, axis=1)
    ranks = [list(ValidationWindows(values, season, 2, 4, rank, world)) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    scored = [value for batches in ranks for batch in batches for value in batch.past[:, 0, 0].tolist()]
    assert sorted(scored) == list(range(count))
    size = even_batch_size(count, world, 4)
    assert len({-(-len(range(rank, count, world)) // size) for rank in range(world)}) == 1
    assert size <= 5


def test_when_there_are_fewer_windows_than_processes_then_one_line_says_so() -> None:
    with pytest.raises(InputError, match="expected at least 3 to evaluate, one per process, found 2"):
        even_batch_size(2, 3, 4)
    with pytest.raises(InputError, match="found 3: give more windows or fewer devices"):
        ValidationWindows(np.zeros((3, 3), np.float32), np.array([1, 7, 24]), 2, 4, 0, 2)


@pytest.mark.parametrize("count", [50, 51])
def test_when_images_are_shared_out_then_none_comes_twice(count: int) -> None:
    one = list(Shuffled(count, 3, 1, 0, 1))
    shares = [list(Shuffled(count, 3, 1, rank, 2)) for rank in range(2)]
    assert sorted(key for share in shares for key in share) == one[: count - count % 2]
    assert sorted(i for rank in range(2) for i in InOrder(count, rank, 2)) == list(range(count))


def tokens(rows: Any) -> int:
    return int((rows.sample_id > 0).sum())


def packed(rank: int, world: int, **options: Any) -> PackedLoader:
    """Crops of a few long series and many short ones."""
    lengths = [2000] * 4 + [40] * 60
    series = [values for n, length in enumerate(lengths) for values in coded(1, length, first=n)]
    chosen = {"patch_size": 8, "tokens": 128, "batch_size": 16, "batches": 20, "seed": 1, **options}
    return PackedLoader(make_store(make_source("s", series)), rank=rank, world=world, **chosen)


@pytest.mark.parametrize("world", [2, 3, 8])
def test_when_rows_are_packed_then_ranks_have_as_many_crops_and_almost_as_many_tokens(world: int) -> None:
    ranks = [[packed(rank, world).batch(0, n) for n in range(5)] for rank in range(world)]
    alone = [[packed(0, 1).batch(0, n * world + rank) for n in range(5)] for rank in range(world)]
    for n in range(5):
        batches = [batches[n] for batches in ranks]
        counts = [sum(int(row.max()) for row in batch.sample_id) for batch in batches]
        assert counts == [16] * world
        shared, apart = [tokens(batch) for batch in batches], [tokens(batches[n]) for batches in alone]
        assert sum(shared) == sum(apart)
        values = [np.sort(torch.cat([x.target[x.observed] for x in part]).numpy()) for part in
                  (batches, [batches[n] for batches in alone])]  # fmt: skip
        np.testing.assert_array_equal(*values)
        assert max(shared) < 1.1 * np.mean(shared)
    assert max(max(map(tokens, parts)) / np.mean([*map(tokens, parts)]) for parts in zip(*alone, strict=True)) > 1.15


def gradient(model: PackedForecaster, batches: list[Any]) -> tuple[float, list[Tensor]]:
    losses = [model.loss(batch) for batch in batches]
    mean = torch.stack(losses).mean()
    return float(mean.detach()), list(torch.autograd.grad(mean, list(model.parameters()), allow_unused=True))


def test_when_ranks_share_crops_then_the_mean_gradient_is_that_of_one_process_that_accumulates() -> None:
    torch.manual_seed(0)
    model = Encoder(64, 16, TrunkConfig(16, 2, 1, patch_size=8)).double()

    def double(rows: Any) -> Any:
        return type(rows)(**{**vars(rows), "target": rows.target.double()})

    shared = gradient(model, [double(packed(rank, 2).batch(0, 3)) for rank in range(2)])
    alone = gradient(model, [double(packed(0, 1).batch(0, 6 + rank)) for rank in range(2)])
    assert shared[0] == pytest.approx(alone[0], rel=1e-9)
    for ours, theirs in zip(shared[1], alone[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("kind", TASKS)
def test_when_activations_are_checkpointed_then_losses_are_the_same_to_the_bit(kind: str, folder: Path) -> None:
    plain = fit(kind, folder, 8, None, steps=3)
    assert fit(kind, folder, 8, None, steps=3, activation_checkpointing=True) == plain
