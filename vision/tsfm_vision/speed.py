"""``tsfm bench vision``: speed and memory of the backbones beside timm's, or beside the reference arithmetic.

Both sides hold the same weights, live in one process and take turns, the first one changing from round to round; what
counts is the median over the rounds of the ratio of their CPU times, which other work on the machine disturbs less than
those of the clock. Memory is what PyTorch's tensors occupy at the peak of one call beyond what was there before it, as
its profiler sees every allocation; that inside libraries is not seen.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import timm
import torch
from tabulate import tabulate
from torch import Tensor, nn

from tsfm_vision import references
from tsfm_vision.biformer import BiFormer
from tsfm_vision.illama import ILlama, rotary_table
from tsfm_vision.poolformer import PoolFormer
from tsfm_vision.soft_mask import parts
from tsfm_vision.tnt import TNT

Sizes = dict[str, Any]
Pair = tuple[nn.Module, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Tensor]
MODES = ("inference", "training")
TNT_S: Sizes = {"embed_dim": 384, "inner_dim": 24, "num_heads_outer": 6, "depth": 12}


def poolformer(side: int, batch: int, sizes: Sizes) -> Pair:
    """PoolFormer-S12 with timm's head, and timm's."""
    model = PoolFormer(norm_first=False, **sizes)
    return beside_timm(model, timm.models.metaformer.poolformer_s12(**sizes), side, batch)


def tnt(side: int, batch: int, sizes: Sizes) -> Pair:
    """TNT-S, and timm's."""
    sizes = {**TNT_S, **sizes, "img_size": side}
    return beside_timm(TNT(**sizes), timm.models.tnt.TNT(**sizes), side, batch)


def beside_timm(model: nn.Module, other: nn.Module, side: int, batch: int) -> Pair:
    """Two models with the weights of the first."""
    other.load_state_dict(model.state_dict())
    return nn.ModuleList([model, other]), model, other, torch.randn(batch, 3, side, side)


def illama(side: int, batch: int, sizes: Sizes) -> Pair:
    """iLLaMA-T, and the dense mask after the softmax."""
    model = ILlama(img_size=side, **sizes)
    return model, model, partial(references.illama, model), torch.randn(batch, 3, side, side)


def illama_attention(side: int, batch: int, sizes: Sizes) -> Pair:
    """The attention of one block of iLLaMA-T by itself."""
    model = ILlama(img_size=side, depth=1, **sizes)
    block: Any = model.blocks[0]
    tokens = torch.randn(batch, model.pos_embed.shape[1], model.num_features)
    table = rotary_table(tokens.shape[1], model.head_channels, tokens)
    angles, masks = references.angles_of(model, tokens.shape[1]), parts(tokens.shape[1], tokens)

    def ours(x: Tensor) -> Tensor:
        return block.attn(x, table, 0.0, masks)

    return block.attn, ours, lambda x: references.dense_attention(block.attn, x, angles, 0.0), tokens


def biformer(side: int, batch: int, sizes: Sizes) -> Pair:
    """BiFormer-T, and gather and products; 8 regions along a side where 7 do not divide the maps."""
    model = BiFormer(**{"n_win": 8 if side % 224 else 7, **sizes})
    return model, model, partial(references.biformer, model), torch.randn(batch, 3, side, side)


class Case(NamedTuple):
    """What is measured.

    Attributes:
        name: as it stands in the table.
        make: the two sides.
        side: of the images, in pixels.
        batch: images.
        memory: whether memory is measured, and not time.
    """

    name: str
    make: Callable[[int, int, Sizes], Pair]
    side: int
    batch: int
    memory: bool = False


CASES = {
    "poolformer": Case("PoolFormer-S12 / timm's", poolformer, 224, 4),
    "tnt": Case("TNT-S / timm's", tnt, 224, 4),
    "illama": Case("iLLaMA-T / reference", illama, 224, 4),
    "illama-attention": Case("iLLaMA-T, attention of a block / reference", illama_attention, 224, 16),
    "biformer": Case("BiFormer-T / reference", biformer, 224, 4),
    "illama-memory": Case("iLLaMA-T / reference", illama, 384, 2, True),
    "biformer-memory": Case("BiFormer-T / reference", biformer, 512, 1, True),
}


def call(side: Callable[[Tensor], Tensor], x: Tensor, mode: str) -> None:
    """One inference, or one forward and backward pass."""
    if mode == "inference":
        with torch.inference_mode():
            side(x)
    else:
        side(x).square().mean().backward()


def seconds(pair: Pair, mode: str, repeats: int) -> list[tuple[float, float]]:
    """CPU times of both sides, round by round, after one that does not count."""
    holder, *sides, x = pair
    found: list[tuple[float, float]] = []
    for turn in range(repeats + 1):
        times = [0.0, 0.0]
        for index in (0, 1) if turn % 2 else (1, 0):
            holder.zero_grad()
            start = time.process_time()
            call(sides[index], x, mode)
            times[index] = time.process_time() - start
        found.append((times[0], times[1]))
    return found[1:]


def peak_mib(holder: nn.Module, side: Callable[[Tensor], Tensor], x: Tensor, mode: str) -> float:
    """Most memory of tensors that exist at once within a call, beyond the weights and the input."""
    from torch.profiler import ProfilerActivity, profile

    holder.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call(side, x, mode)
    assert profiler.profiler is not None
    events: Any = profiler.profiler.kineto_results
    now = peak = 0
    for event in sorted((e for e in events.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak / 2**20


def run(case: Case, repeats: int, sizes: Sizes | None = None) -> list[dict[str, Any]]:
    """The rows of a case: ratios above 1 say that ours is faster, or needs less."""
    torch.manual_seed(0)
    pair = case.make(case.side, case.batch, sizes or {})
    holder, ours, other, x = pair
    rows = []
    for mode in MODES:
        holder.train(mode == "training")
        row: dict[str, Any] = {"case": case.name, "pixels": case.side, "batch": case.batch, "mode": mode}
        if case.memory:
            found = {"mib": peak_mib(holder, ours, x, mode), "mib_other": peak_mib(holder, other, x, mode)}
            rows.append({**row, **found, "ratio": found["mib_other"] / found["mib"]})
        else:
            ratios = [other / ours for ours, other in seconds(pair, mode, repeats)]
            rows.append({**row, "ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)})
    return rows


def table(names: list[str], repeats: int, threads: int) -> list[dict[str, Any]]:
    """The rows of the named cases."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return [row for name in names for row in run(CASES[name], repeats)]
    finally:
        torch.set_num_threads(before)


def page(rows: list[dict[str, Any]], repeats: int, threads: int, command: str) -> str:
    """The tables and what they measure."""
    where = [
        {"beside": row["case"], "pixels": row["pixels"], "batch": row["batch"], "pass": row["mode"]} for row in rows
    ]
    both = list(zip(where, rows, strict=True))
    speed = [
        {**left, "times as fast (range)": f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})"}
        for left, row in both
        if "low" in row
    ]
    memory = [
        {
            **left,
            "ours, MiB": f"{row['mib']:.0f}",
            "other, MiB": f"{row['mib_other']:.0f}",
            "less": f"{row['ratio']:.2f}",
        }
        for left, row in both
        if "mib" in row
    ]
    lines = [
        "# Speed and memory of the vision backbones",
        "",
        "On CPU in float32, at equal weights, both sides in one process by turns; a ratio above 1 says that ours is",
        "the faster one: the median over the rounds of CPU time, after one that does not count; other work may have",
        "run beside it. Training is forward and backward.",
        "The reference is the arithmetic of the publication as it is usually written (`tsfm_vision.references`):",
        "iLLaMA with a dense mask after the softmax, BiFormer with keys and values gathered for all regions.",
        f"PyTorch {torch.__version__}, timm {timm.__version__}. Threads: {threads}. Rounds: {repeats}.",
        "",
        f"    {command}",
        "",
    ]
    if speed:
        lines += [tabulate(speed, headers="keys", tablefmt="github", disable_numparse=True), ""]
    if memory:
        lines += [
            "Memory of tensors at the peak of a call, beyond weights and input (gradients of the weights are counted):",
            "",
            tabulate(memory, headers="keys", tablefmt="github", disable_numparse=True),
            "",
        ]
    return "\n".join(lines)
