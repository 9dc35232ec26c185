"""Learning-rate schedules: where they rise, stay and fall, and what they refuse."""

import math

import pytest
import torch
from torch import nn

from tsfm.training.optim import OptimConfig, Schedule, build_optimizer, lr_factor
from tsfm_data.errors import InputError


def rates(steps: int, per_epoch: int = 10, **options: object) -> list[float]:
    factor = lr_factor(OptimConfig(**options), per_epoch, steps)  # type: ignore[arg-type]
    return [factor(step) for step in range(steps + 1)]


def test_when_the_schedule_is_wsd_then_the_rate_rises_stays_and_falls_as_one_minus_a_square_root() -> None:
    factors = rates(100, schedule="wsd", warmup_steps=10, decay=0.25)
    assert factors[:10] == pytest.approx([(k + 1) / 10 for k in range(10)])
    assert factors[10:76] == [1.0] * 66  # the decay begins from the peak, at step 75
    assert factors[75:] == pytest.approx([1 - math.sqrt(k / 25) for k in range(26)])
    assert factors[100] == 0.0
    assert factors[99] == pytest.approx(0.0202, abs=1e-4)


def test_when_wsd_has_no_decay_then_only_the_very_last_step_would_be_zero() -> None:
    assert rates(50, schedule="wsd", decay=0.0)[:50] == [1.0] * 50


@pytest.mark.parametrize("schedule", ["constant", "halving", "cosine", "wsd"])
def test_when_there_is_a_warm_up_then_every_schedule_rises_by_it(schedule: Schedule) -> None:
    factors = rates(40, schedule=schedule, warmup_steps=4)
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0


def test_when_the_schedule_is_halving_then_two_epochs_keep_the_rate() -> None:
    assert rates(40, schedule="halving")[:40:10] == [1.0, 1.0, 0.5, 0.25]


def test_when_the_schedule_is_cosine_then_the_middle_is_half() -> None:
    factors = rates(110, schedule="cosine", warmup_steps=10)
    assert factors[60] == pytest.approx(0.5)
    assert factors[110] == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "learning rate above 0, found 0.0"),
        ({"warmup_steps": -1}, "warmup_steps of 0 or more"),
        ({"decay": 1.5}, "decay from 0 to 1"),
        ({"betas": (0.9, 1.0)}, "betas of at least 0 and below 1"),
    ],
)
def test_when_an_option_is_out_of_range_then_one_line_says_so(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        OptimConfig(**options)  # type: ignore[arg-type]


def test_when_the_optimiser_is_built_then_matrices_alone_decay() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Embedding(5, 4))
    optimizer = build_optimizer(OptimConfig("adamw", betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1), model)
    decay, rest = optimizer.param_groups
    assert [p.shape for p in decay["params"]] == [torch.Size([4, 3])]
    assert (decay["weight_decay"], rest["weight_decay"], decay["betas"], decay["eps"]) == (0.1, 0.0, (0.9, 0.98), 1e-6)
    assert len(rest["params"]) == 4
