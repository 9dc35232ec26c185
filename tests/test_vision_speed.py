"""The speed table of the image backbones: both sides give the same outputs, and the rows are the requested ones."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from command import script
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import vision as speed
from tsfm_vision.backbones import cpu, soft_mask

# Those of an operator's registration; one more warns of its own tensors.
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")
TINY: dict[str, Any] = {
    "poolformer": (64, {}),
    "poolformer-channels-last": (64, {}),
    "tnt": (32, {"depth": 2, "embed_dim": 24, "inner_dim": 8, "num_heads_outer": 2}),
    "illama": (64, {"depth": 2, "embed_dim": 24}),
    "illama-attention": (64, {"embed_dim": 24}),
    "biformer": (224, {"depths": (1, 1, 1, 1), "dims": (32, 32, 64, 64)}),
    "illama-memory": (256, {"depth": 2, "embed_dim": 24}),
    "biformer-memory": (256, {"depths": (1, 1, 1, 1), "dims": (32, 32, 64, 64), "n_win": 8}),
}


@pytest.mark.parametrize("name", TINY)
def test_when_a_case_is_made_then_both_sides_give_equal_outputs_and_gradients(name: str) -> None:
    torch.manual_seed(0)
    side, sizes = TINY[name]
    holder, ours, other, x = speed.CASES[name].make(side, 2, sizes)
    for parameter in holder.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    if isinstance(holder, torch.nn.ModuleList):
        holder[1].load_state_dict(holder[0].state_dict())
    results: list[tuple[Tensor, Tensor]] = []
    for run in (ours, other):
        holder.zero_grad()
        inputs = x.clone().requires_grad_()
        out = run(inputs)
        out.square().mean().backward()
        assert inputs.grad is not None
        results.append((out.detach(), inputs.grad))
    for one, two in zip(*results, strict=True):
        assert torch.allclose(one, two, rtol=0, atol=5e-5 * float(two.abs().max()))


@pytest.mark.parametrize("name", ["illama-memory", "biformer-memory"])
def test_when_images_are_large_then_less_than_half_of_the_references_memory_is_needed_in_training(name: str) -> None:
    side, sizes = TINY[name]
    rows = speed.run(speed.CASES[name]._replace(side=side, batch=1, sizes=sizes), 1, 1)
    assert [row["mode"] for row in rows] == ["inference", "training"]
    assert rows[1]["ratio"] > 2


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_when_attention_is_soft_masked_in_parts_then_its_gradient_is_right(
    rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soft_mask, "PART", 3)  # 7 tokens make three parts
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, 7, 3, 2, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    turns = torch.randn(7, 2, generator=generator, dtype=torch.float64)
    turns_2NR = torch.stack([turns.cos(), turns.sin()])
    assert torch.autograd.gradcheck(lambda y: soft_mask.in_parts(y, turns_2NR, rate), qkv)
    assert torch.autograd.gradgradcheck(lambda y: soft_mask.in_parts(y, turns_2NR, rate), qkv)
    torch.testing.assert_close(soft_mask.in_parts(qkv, turns_2NR, rate), soft_mask.plain(qkv, turns_2NR, rate))
    torch.library.opcheck(soft_mask.in_parts, (qkv, turns_2NR, rate), test_utils=CHECKS)


@pytest.mark.parametrize("short", [0, 256])
def test_when_illama_trains_in_bfloat16_then_its_gradients_are_about_those_in_float32(
    short: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soft_mask, "SHORT", short)
    side, sizes = TINY["illama"]
    _, ours, _, x = speed.CASES["illama"].make(side, 2, sizes)
    ours.soft_mask_rate = 0.3
    gradients = []
    for low in (False, True):
        ours.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            loss = ours(x).float().square().mean()
        loss.backward()
        gradients.append({name: weight.grad.clone() for name, weight in ours.named_parameters()})
    for name, exact in gradients[0].items():
        if exact.abs().amax() > 1e-6:
            assert torch.cosine_similarity(exact.flatten(), gradients[1][name].flatten(), 0) > 0.99, name


@pytest.mark.slow
def test_when_regions_are_gathered_in_parts_then_the_gradient_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "GATHERED", 200)
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, 4, 6, 12, generator=generator, dtype=torch.float64, requires_grad=True)
    index = torch.stack([torch.randperm(4, generator=generator)[:2] for _ in range(8)]).view(2, 4, 2)
    assert torch.autograd.gradcheck(lambda y: cpu.routed(y, index, 2, 2, 3, 0.5), qkv)
    torch.testing.assert_close(cpu.routed(qkv, index, 2, 2, 3, 0.5), cpu.plain_routed(qkv, index, 2, 2, 3, 0.5))
    torch.library.opcheck(cpu.routed, (qkv, index, 2, 2, 3, 0.5), test_utils=CHECKS)


def test_when_norm_and_gate_are_differentiated_then_the_gradients_are_right() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight = torch.randn(4, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: cpu.rms_norm(x, w, 1e-6), (x, weight))
    assert torch.autograd.gradcheck(cpu.gated_silu, (x, y))
    torch.library.opcheck(cpu.rms_norm, (x, weight, 1e-6), test_utils=CHECKS)
    torch.library.opcheck(cpu.gated_silu, (x, y), test_utils=CHECKS)


def test_when_operations_are_counted_then_those_of_our_operators_are_those_of_the_plain_arithmetic() -> None:
    qkv, index = torch.randn(1, 4, 6, 12), torch.tensor([[[0, 1], [1, 2], [2, 3], [3, 0]]])
    turned, turns = torch.randn(2, 7, 3, 2, 4), torch.randn(2, 7, 2)
    for ours, plain, given in (
        (cpu.routed, cpu.plain_routed, (qkv, index, 2, 2, 3, 0.5)),
        (soft_mask.in_parts, soft_mask.plain, (turned, turns, 0.5)),
    ):
        counts = []
        for run in (ours, plain):
            with FlopCounterMode(display=False) as counter:
                run(*given)
            counts.append(counter.get_total_flops())
        assert counts[0] == counts[1] > 0


@pytest.mark.slow
def test_when_the_command_runs_then_its_page_names_it_and_shows_ranges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    side, sizes = TINY["illama"]
    monkeypatch.setitem(speed.CASES, "illama", speed.CASES["illama"]._replace(side=side, batch=1, sizes=sizes))
    assert script(capsys, speed.main, "--cases", "illama", "--output", str(tmp_path), "--repeats", "2").status == 0
    text = (tmp_path / "vision.md").read_text()
    assert "python benchmarks/vision.py --cases illama --repeats 2 --threads 1" in text
    assert len(re.findall(r"\(\d+\.\d\d to \d+\.\d\d\)", text)) == 8  # two columns of two passes in two types
    for wrong, message in ((["--cases", "ilama"], "illama"), (["--repeats", "0"], "at least 1, found 0")):
        result = script(capsys, speed.main, *wrong)
        assert result.status == 2
        assert message in result.err
