"""Speed and memory of the backbones compared with timm's, or with the reference arithmetic.

    python benchmarks/vision.py --repeats 7 --threads 1

All sides have the same weights, run in their own processes and take turns. The result is the median over rounds of the
ratio of their CPU times, which other work on the machine disturbs less than wall times. Ours runs as in this suite's
commands, which keep freed memory (``tsfm.nn.memory``). The other side runs with PyTorch's defaults, and once more with
that setting. Memory is the peak of PyTorch's tensors during one call, beyond what was there before, as its profiler
records it. Memory inside libraries is not recorded.
"""

import multiprocessing
import statistics
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import vision_references
from common import run as run_script
from common import write
from tabulate import tabulate
from torch import Tensor, nn

from tsfm.nn import keep_large_blocks
from tsfm_data.errors import InputError, unknown_name
from tsfm_vision.backbones import TNT, BiFormer, ILlama, PoolFormer, rotary_table

Sizes = dict[str, Any]
Pair = tuple[nn.Module, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Tensor]
MODES = ("inference", "training")
BFLOAT16 = " in bfloat16"  # of a mode: under autocast, as the configs train
CONVOLUTIONS = ("mkldnn_convolution", "convolution_backward", "_slow_conv2d_forward", "_slow_conv2d_backward")
PRODUCTS = {
    *(f"aten::{name}" for name in ("mm", "addmm", "bmm", "baddbmm", *CONVOLUTIONS)),
}
TNT_S: Sizes = {"embed_dim": 384, "inner_dim": 24, "num_heads_outer": 6, "depth": 12}


def poolformer(side: int, batch: int, sizes: Sizes) -> Pair:
    """PoolFormer-S12 with timm's head, and timm's."""
    model = PoolFormer(norm_first=False, **sizes)
    return with_timm(model, timm.models.metaformer.poolformer_s12(**sizes), side, batch)


def poolformer_channels_last(side: int, batch: int, sizes: Sizes) -> Pair:
    """The same on images in the memory format that ours gives its images."""
    holder, ours, other, x = poolformer(side, batch, sizes)
    return holder, ours, other, x.contiguous(memory_format=torch.channels_last)


def tnt(side: int, batch: int, sizes: Sizes) -> Pair:
    """TNT-S, and timm's."""
    sizes = {**TNT_S, **sizes, "img_size": side}
    return with_timm(TNT(**sizes), timm.models.tnt.TNT(**sizes), side, batch)


def with_timm(model: nn.Module, other: nn.Module, side: int, batch: int) -> Pair:
    """Two models with the same weights."""
    other.load_state_dict(model.state_dict())
    return nn.ModuleList([model, other]), model, other, torch.randn(batch, 3, side, side)


def illama(side: int, batch: int, sizes: Sizes) -> Pair:
    """iLLaMA-T, and the same with a dense mask after the softmax."""
    model = ILlama(img_size=side, **sizes)
    return model, model, partial(vision_references.illama, model), torch.randn(batch, 3, side, side)


def illama_attention(side: int, batch: int, sizes: Sizes) -> Pair:
    """The attention of one block of iLLaMA-T by itself."""
    model = ILlama(img_size=side, depth=1, **sizes)
    block: Any = model.blocks[0]
    tokens = torch.randn(batch, model.pos_embed.shape[1], model.num_features)
    table = rotary_table(tokens.shape[1], model.head_channels, tokens)
    angles = vision_references.angles_of(model, tokens.shape[1])

    def ours(x: Tensor) -> Tensor:
        return block.attn(x, table, 0.0)

    return block.attn, ours, lambda x: vision_references.dense_attention(block.attn, x, angles, 0.0), tokens


def biformer(side: int, batch: int, sizes: Sizes) -> Pair:
    """BiFormer-T, and the same by gathering and matrix products; 8 regions per side if 7 do not divide the maps."""
    model = BiFormer(**{"n_win": 8 if side % 224 else 7, **sizes})
    return model, model, partial(vision_references.biformer, model), torch.randn(batch, 3, side, side)


class Case(NamedTuple):
    """What is measured.

    Attributes:
        name: first column of the table.
        make: builds the two sides.
        side: height and width of the images, in pixels.
        batch: images per call.
        memory: whether memory is measured, and not time.
        sizes: sizes of the models, if they differ from the published ones.
    """

    name: str
    make: Callable[[int, int, Sizes], Pair]
    side: int
    batch: int
    memory: bool = False
    sizes: Sizes | None = None

    def pair(self) -> Pair:
        """The two sides, with the same weights in every process."""
        torch.manual_seed(0)
        return self.make(self.side, self.batch, self.sizes or {})


class Side(NamedTuple):
    """One process: which of the pair it runs, and whether it keeps freed memory."""

    member: int
    keeps: bool


SIDES = (Side(0, True), Side(1, False), Side(1, True))
CASES = {
    "poolformer": Case("PoolFormer-S12 / timm's", poolformer, 224, 4),
    "poolformer-channels-last": Case("PoolFormer-S12 / timm's in channels_last", poolformer_channels_last, 224, 4),
    "tnt": Case("TNT-S / timm's", tnt, 224, 4),
    "illama": Case("iLLaMA-T / reference", illama, 224, 4),
    "illama-attention": Case("iLLaMA-T, attention of a block / reference", illama_attention, 224, 16),
    "biformer": Case("BiFormer-T / reference", biformer, 224, 4),
    "illama-memory": Case("iLLaMA-T / reference", illama, 384, 2, True),
    "biformer-memory": Case("BiFormer-T / reference", biformer, 512, 1, True),
}


def call(side: Callable[[Tensor], Tensor], x: Tensor, mode: str) -> None:
    """One inference, or one forward and backward pass."""
    with torch.autocast("cpu", torch.bfloat16, enabled=mode.endswith(BFLOAT16)):
        if mode.startswith("inference"):
            with torch.inference_mode():
                side(x)
            return
        loss = side(x).square().mean()
    loss.backward()


def serve(connection: Connection, case: Case, side: Side, threads: int) -> None:
    """The process of one side: run each requested mode and send its CPU time, until None comes."""
    torch.set_num_threads(threads)
    if side.keeps:
        keep_large_blocks()
    holder, *sides, x = case.pair()
    connection.send(None)
    while (mode := connection.recv()) is not None:
        holder.train(mode.startswith("training"))
        holder.zero_grad()
        start = time.process_time()
        call(sides[side.member], x, mode)
        connection.send(time.process_time() - start)


def seconds(case: Case, repeats: int, threads: int) -> dict[str, list[list[float]]]:
    """CPU times of all sides by mode, round by round, without a first round that does not count."""
    context = multiprocessing.get_context("spawn")
    times_by_mode: dict[str, list[list[float]]] = {mode: [] for mode in (*MODES, *(mode + BFLOAT16 for mode in MODES))}
    pipes, processes = [], []
    try:
        for side in SIDES:
            here, there = context.Pipe()
            processes.append(context.Process(target=serve, args=(there, case, side, threads), daemon=True))
            processes[-1].start()
            there.close()
            pipes.append(here)
        for pipe in pipes:
            pipe.recv()
        for mode, rounds in times_by_mode.items():
            for _ in range(repeats + 1):
                times = []
                for pipe in pipes:
                    pipe.send(mode)
                    times.append(pipe.recv())
                rounds.append(times)
        for pipe in pipes:
            pipe.send(None)
    finally:
        for process in processes:
            process.join(10)
            process.terminate()
    return {mode: times[1:] for mode, times in times_by_mode.items()}


def peak_mib(holder: nn.Module, side: Callable[[Tensor], Tensor], x: Tensor, mode: str) -> float:
    """Peak memory of tensors during a call, in MiB, beyond the weights and the input."""
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


def share_of_products(holder: nn.Module, side: Callable[[Tensor], Tensor], x: Tensor, mode: str) -> float:
    """Share of a call's CPU time in matrix products and convolutions of libraries."""
    from torch.profiler import ProfilerActivity, profile

    holder.train(mode.startswith("training"))
    call(side, x, mode)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        call(side, x, mode)
    taken = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    return sum(taken.get(name, 0.0) for name in PRODUCTS) / sum(taken.values())


def run(case: Case, repeats: int, threads: int) -> list[dict[str, Any]]:
    """The rows of a case: with ratios above 1, ours is faster or needs less memory."""
    case_row: dict[str, Any] = {"case": case.name, "pixels": case.side, "batch": case.batch}
    rows = []
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        holder, ours, other, x = case.pair()
        if not case.memory:
            for mode, times in seconds(case, repeats, threads).items():
                row = {**case_row, "mode": mode, "products": share_of_products(holder, ours, x, mode)}
                for name, column in (("", 1), ("same_", 2)):
                    ratios = [taken[column] / taken[0] for taken in times]
                    row |= {f"{name}ratio": statistics.median(ratios), f"{name}low": min(ratios)}
                    row[f"{name}high"] = max(ratios)
                rows.append(row)
            return rows
        for mode in MODES:
            row = {**case_row, "mode": mode}
            holder.train(mode == "training")
            mib, mib_other = (peak_mib(holder, run_side, x, mode) for run_side in (ours, other))
            rows.append(row | {"mib": mib, "mib_other": mib_other, "ratio": mib_other / mib})
    finally:
        torch.set_num_threads(before)
    return rows


def table(names: list[str], repeats: int, threads: int) -> list[dict[str, Any]]:
    """The rows of the named cases."""
    return [row for name in names for row in run(CASES[name], repeats, threads)]


def page(rows: list[dict[str, Any]], repeats: int, threads: int, command: str) -> str:
    """The page ``benchmarks/vision.md``."""
    labels = [
        {"compared": row["case"], "pixels": row["pixels"], "batch": row["batch"], "pass": row["mode"]} for row in rows
    ]
    both = list(zip(labels, rows, strict=True))

    def ratio(row: dict[str, Any], kind: str) -> str:
        return f"{row[kind + 'ratio']:.2f} ({row[kind + 'low']:.2f} to {row[kind + 'high']:.2f})"

    speed = [
        {
            **left,
            "times as fast (range)": ratio(row, "same_"),
            "than with PyTorch's defaults": ratio(row, ""),
            "matrix products": f"{row['products']:.0%}",
        }
        for left, row in both
        if "low" in row
    ]
    memory = [
        {
            **left,
            "ours, MiB": f"{row['mib']:.0f}",
            "other, MiB": f"{row['mib_other']:.0f}",
            "ratio": f"{row['ratio']:.2f}",
        }
        for left, row in both
        if "mib" in row
    ]
    lines = [
        "# Speed and memory of the vision backbones",
        "",
        "Both sides have the same weights and run in turns on the CPU, each in its own process. They run in float32,",
        "or under autocast to bfloat16 as in our configs. A ratio is the other side's CPU time divided by ours: above",
        "1, ours is faster. It is the median over the rounds, without the first. Other work may have run at the same",
        "time. Training is forward and backward.",
        "",
        "Freed memory is kept, as under `tsfm fit` and `tsfm image`; in the next column, the other side runs with",
        "PyTorch's defaults, which do not.",
        "The last column is the share of our time in matrix products and convolutions of libraries. Both sides use the",
        "same ones, so a share of 80 % allows at most 1.25 times the speed. Our PoolFormer puts its images into the",
        "memory format channels_last, in which convolutions are faster; one case gives timm's the same.",
        "",
        "The reference is written directly from the paper (`vision_references.py`). Its iLLaMA has a dense mask after",
        "the softmax, and its BiFormer gathers keys and values for all regions.",
        f"PyTorch {torch.__version__}, timm {timm.__version__}. Threads: {threads}. Rounds: {repeats}.",
        "",
        f"    {command}",
        "",
    ]
    if speed:
        lines += [tabulate(speed, headers="keys", tablefmt="github", disable_numparse=True), ""]
    if memory:
        lines += [
            "Peak memory of tensors during a call, without weights and input, but with the gradients of the weights:",
            "",
            tabulate(memory, headers="keys", tablefmt="github", disable_numparse=True),
            "",
        ]
    return "\n".join(lines)


def main(cases: list[str] | None = None, output: Path = Path("benchmarks"), repeats: int = 7, threads: int = 1) -> None:
    """Measure speed and memory of the image backbones and write the page.

    Args:
        cases: names of cases, for instance tnt; all by default.
        output: folder for vision.md and vision.json.
        repeats: rounds in which both sides take turns; the median of their ratios is reported.
        threads: CPU threads.
    """
    for name in cases or []:
        if name not in CASES:
            raise unknown_name("case", name, CASES)
    if repeats < 1 or threads < 1:
        raise InputError(f"expected repeats and threads of at least 1, found {repeats} and {threads}")
    rows = table(cases or list(CASES), repeats, threads)
    chosen = f"--cases {' '.join(cases)} " if cases else ""
    command = f"python benchmarks/vision.py {chosen}--repeats {repeats} --threads {threads}"
    write(output, "vision", rows, {"command": command}, page(rows, repeats, threads, command))


if __name__ == "__main__":
    run_script(main)
