"""Sections of the GPU lab about models: training of forecasters and image models, memory, zero-shot inference."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from gpu_sections import Row, seconds, synchronise
from torch import Tensor, nn

from tsfm.models import Decoder, Encoder, PackedForecaster, model_classes
from tsfm.training.callbacks import device_peak
from tsfm.weights import load
from tsfm_data.corpus import PackedLoader, PackedRows
from tsfm_data.windows import Batch
from vision import CASES

SIZES = ("1M", "3M", "10M", "30M", "100M", "300M")
SERIES = {"1M": 512, "3M": 512, "10M": 256, "30M": 256, "100M": 128, "300M": 64}  # in a batch, 192 to 512 tokens each
FAMILIES = {"poolformer": "timm", "tnt": "timm", "illama": "reference", "biformer": "reference"}
TINY_IMAGES: dict[str, tuple[int, dict[str, Any]]] = {
    "poolformer": (64, {}),
    "tnt": (32, {"depth": 2, "embed_dim": 24, "inner_dim": 8, "num_heads_outer": 2}),
    "illama": (64, {"depth": 2, "embed_dim": 24}),
    "biformer": (224, {"depths": (1, 1, 1, 1), "dims": (32, 32, 64, 64)}),
}
RELEASED = ("tsfm-long-small", "tsfm-decoder-small", "tsfm-encoder-small")
LEVELS = (0.1, 0.5, 0.9)


def half(device: str) -> Any:
    """Matrix products in bfloat16."""
    return torch.autocast(device, torch.bfloat16)


def reason(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def peak_memory(device: str) -> float | str:
    """GiB of tensors at the peak since it was reset."""
    return torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else ""


def reset_memory(device: str) -> None:
    """Free what is not in use, and measure the peak from here."""
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def walks(count: int, steps: int, rng: np.random.Generator) -> np.ndarray:
    """Random walks, [series, steps]."""
    return rng.normal(size=(count, steps)).cumsum(1).astype(np.float32)


class Walks:
    """Random walks as synthetic series."""

    def sample(self, count: int, length: int, rng: np.random.Generator) -> np.ndarray:
        """``count`` of them, of ``length`` steps."""
        return walks(count, length, rng)


def windows(count: int, context: int, horizon: int, variates: int, device: str) -> Batch:
    """Windows of random walks, with the calendar features of some models."""
    rng = np.random.default_rng(0)
    values = torch.from_numpy(walks(count * variates, context + horizon, rng)).view(count, variates, -1).transpose(1, 2)
    seen = torch.ones_like(values, dtype=torch.bool)
    marks = torch.from_numpy(rng.random((count, context + horizon, 4), dtype=np.float32) - 0.5)
    return Batch(
        past=values[:, :context], past_observed=seen[:, :context], horizon=horizon,
        future=values[:, context:], future_observed=seen[:, context:],
        past_marks=marks[:, :context], future_marks=marks[:, context:],
    ).to(device)  # fmt: skip


def models(device: str, tiny: bool) -> Iterator[Row]:
    """Loss and gradients of every forecaster, in both types."""
    batch = windows(4, 24, 6, 3, device)
    for name, kind in model_classes().items():
        if hasattr(kind, "bind"):  # it takes only windows of series that it has been bound to
            continue
        try:
            torch.manual_seed(0)
            model: Any = kind(24, 6, kind.config_type.tiny()).to(device)  # type: ignore[attr-defined]
            losses, finite = [], True
            for context in (nullcontext(), half(device)):
                model.zero_grad()
                torch.manual_seed(1)  # some losses draw what they hide
                with context:
                    loss = model.loss(batch)
                loss.backward()
                losses.append(float(loss.detach()))
                finite &= all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)
            gap = abs(losses[1] - losses[0]) / max(abs(losses[0]), 1e-6)
            yield {
                "model": name, "loss": losses[0], "loss in bfloat16": losses[1], "gap": gap,
                "right": finite and gap < 0.05,
            }  # fmt: skip
        except Exception as error:
            yield {"model": name, "right": False, "problem": reason(error)}


def operations(model: PackedForecaster, rows: PackedRows) -> float:
    """Of a training step: 6 for each weight and token, and 12 for each channel and pair of tokens in attention.

    The head is computed for the tokens to predict only. A causal model needs half of the pairs.
    """
    lengths = torch.cat([torch.bincount(row)[1:] for row in rows.sample_id]).double()
    head = sum(p.numel() for p in model.param_proj.parameters())
    body = sum(p.numel() for p in model.parameters()) - head
    pairs = float(lengths.square().sum()) * (0.5 if isinstance(model, Decoder) else 1.0)
    in_attention = 12 * model.config.layers * model.config.d_model * pairs
    return 6.0 * (body * float(lengths.sum()) + head * float(rows.is_predicted.sum())) + in_attention


def training(device: str, tiny: bool) -> Iterator[Row]:
    """Training steps of the scaling-law models at their published sizes."""
    peak = device_peak(torch.device(device), torch.bfloat16)
    for size in ("1K",) if tiny else SIZES:
        count = 4 if tiny else SERIES[size]
        options: dict[str, Any] = {"patch_size": 32, "tokens": 16 if tiny else 512, "batch_size": count, "batches": 1}
        rows = PackedLoader(None, Walks(), **options).batch(0, 0)
        for kind in (Encoder, Decoder):
            row: Row = {"model": kind.model_type, "size": size}
            try:
                yield row | train(kind(512, 64, size), rows, device, peak, 2 if tiny else 8)  # type: ignore[arg-type]
            except Exception as error:
                yield row | {"problem": reason(error)}


def train(model: PackedForecaster, rows: PackedRows, device: str, peak: float, repeats: int) -> Row:
    """Time, utilisation and memory of a training step."""
    reset_memory(device)
    flops, tokens = operations(model, rows), int((rows.sample_id > 0).sum())
    model, batch = model.to(device), rows.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with half(device):
            loss = model.loss(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    took = seconds(step, device, repeats)
    return {
        "parameters": sum(p.numel() for p in model.parameters()), "tokens": tokens, "ms": 1e3 * took,
        "tokens/s": tokens / took, "utilisation": flops / took / peak, "memory, GiB": peak_memory(device),
    }  # fmt: skip


def vision(device: str, tiny: bool) -> Iterator[Row]:
    """The four families of image models compared with their counterparts."""
    for name, reference in FAMILIES.items():
        side, sizes = TINY_IMAGES[name] if tiny else (224, {})
        row: Row = {"model": name, "compared with": reference}
        try:
            torch.manual_seed(0)
            holder, ours, other, x = CASES[name].make(side, 1 if tiny else 64, sizes)
            holder, x = holder.to(device), x.to(device)
            for mode in ("inference", "training"):
                yield row | {"pass": mode} | compare(holder, (ours, other), x, mode, device, 1 if tiny else 7)
        except Exception as error:
            yield row | {"problem": reason(error)}


def compare(
    holder: nn.Module, sides: tuple[Callable[[Tensor], Tensor], ...], x: Tensor, mode: str, device: str, repeats: int
) -> Row:
    """Images per second of both sides, which take turns, and their memory."""
    holder.train(mode == "training")
    times: list[list[float]] = [[], []]
    memory: list[float | str] = ["", ""]

    def call(side: Callable[[Tensor], Tensor]) -> None:
        with half(device), torch.set_grad_enabled(mode == "training"):
            loss = side(x).square().mean()
        if mode == "training":
            loss.backward()

    for turn in range(repeats + 1):
        for number, side in enumerate(sides):
            holder.zero_grad()
            reset_memory(device)
            synchronise(device)
            started = time.perf_counter()
            call(side)
            synchronise(device)
            if turn:  # the first does not count
                times[number].append(time.perf_counter() - started)
                memory[number] = peak_memory(device)
    finite = all(bool(torch.isfinite(p.grad).all()) for p in holder.parameters() if p.grad is not None)
    ratios = [other / ours for ours, other in zip(*times, strict=True)]
    return {
        "images/s": len(x) / statistics.median(times[0]), "ratio": statistics.median(ratios),
        "memory, GiB": memory[0], "memory of the other, GiB": memory[1], "finite": finite,
    }  # fmt: skip


def inference(device: str, tiny: bool) -> Iterator[Row]:
    """Forecasts of the released models from random walks of 512 steps."""
    for name in RELEASED:
        model = load(name).to(device)
        for count in (8,) if tiny else (64, 1024, 8192):
            row: Row = {"model": name, "series": count}
            try:
                reset_memory(device)
                batch = windows(count, 96 if tiny else 512, 64, 1, device)
                took = seconds(lambda model=model, batch=batch: model.predict(batch, LEVELS), device, 1 if tiny else 3)
                yield row | {"ms": 1e3 * took, "series/s": count / took, "memory, GiB": peak_memory(device)}
            except Exception as error:
                yield row | {"problem": reason(error)}
