"""Sections of the GPU lab about attention: the machine, exactness, operators by name, and kernels side by side.

Shapes: B rows, N tokens, H heads, D channels of a head.
"""

import importlib.metadata
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.profiler import ProfilerActivity, profile

from tsfm.attention import Mask, attend, attend_reference, kernel_name, load_library

Row = dict[str, Any]
TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 4e-2}
CHECKED = 3  # segments that are compared with float64
DISTRIBUTIONS = ("xformers", "mslk-cuda", "flash-attn-3", "triton", "timm", "pytorch-lightning")


def synchronise(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(call: Callable[[], Any], device: str, repeats: int) -> float:
    """Median time of a call, after two that do not count."""
    times = []
    for number in range(repeats + 2):
        synchronise(device)
        started = time.perf_counter()
        call()
        synchronise(device)
        if number >= 2:
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def name_of(dtype: torch.dtype) -> str:
    """A type's short name."""
    return str(dtype).removeprefix("torch.")


def machine(device: str, tiny: bool) -> Iterator[Row]:
    """Device and versions, a row each."""
    if device == "cuda":
        found, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        yield {"device": found, "version": f"capability {major}.{minor}, {memory:.0f} GiB"}
    else:
        yield {"device": "cpu", "version": f"{torch.get_num_threads()} threads"}
    yield {"device": "torch", "version": f"{torch.__version__}, CUDA {torch.version.cuda}"}
    for name in DISTRIBUTIONS:
        try:
            yield {"device": name, "version": importlib.metadata.version(name)}
        except importlib.metadata.PackageNotFoundError:
            yield {"device": name, "version": "absent"}
    library = load_library() if device == "cuda" else None
    yield {"device": "library of attention", "version": library.name if library else "none"}


def masks(n: int) -> dict[str, tuple[int, Mask | None]]:
    """Masks over ``n`` tokens, and the number of rows of each."""
    cuts = sorted({0, n // 5, n // 4, n // 2, n})
    lengths = tuple(b - a for a, b in itertools.pairwise(cuts))
    ids = torch.repeat_interleave(torch.arange(1, len(lengths) + 1), torch.tensor(lengths)).repeat(2, 1)
    ids[0, n - n // 3 :] = 0
    bias = torch.linspace(-2, 2, 3 * n).view(1, 3, 1, n)
    return {
        "none": (2, None),
        "causal": (2, Mask.causal()),
        "packed rows": (1, Mask.packed(lengths)),
        "packed causal": (1, Mask.packed(lengths, causal=True)),
        "packed causal local": (1, Mask(lengths=lengths, is_causal=True, window=(3, 0))),
        "packed local": (1, Mask(lengths=lengths, window=(2, 3))),
        "padded rows": (2, Mask.segments(ids)),
        "padded causal": (2, Mask.segments(ids, causal=True)),
        "local": (2, Mask.local(4, 2)),
        "bias": (2, Mask(bias=bias)),
        "bias of segments": (2, Mask(bias=bias, segment_ids=ids)),
    }


def exact(device: str, tiny: bool) -> Iterator[Row]:
    """Largest errors of ``attend``, by mask, type and width of a head."""
    n = 20 if tiny else 200
    for name, (b, mask) in masks(n).items():
        for dtype, d in itertools.product(TOLERANCE, (12,) if tiny else (5, 12, 64, 128, 264)):
            torch.manual_seed(0)
            inputs = [torch.randn(b, n, 3, d, dtype=dtype, device=device, requires_grad=True) for _ in range(3)]
            wide = [x.detach().double().requires_grad_() for x in inputs]
            out, wanted = attend(*inputs, mask), attend_reference(*wide, mask)
            weight = torch.linspace(-1, 1, out.numel(), dtype=torch.float64, device=device).view_as(wanted)
            gradients = torch.autograd.grad((out.double() * weight).sum(), inputs)
            right = torch.autograd.grad((wanted * weight).sum(), wide)
            error = float((out.double() - wanted).abs().max().detach())
            of_gradients = max(float((x.double() - y).abs().max()) for x, y in zip(gradients, right, strict=True))
            allowed = TOLERANCE[dtype]
            yield {
                "mask": name, "type": name_of(dtype), "channels": d, "kernel": kernel_name(*inputs, mask),
                "error": error, "error of gradients": of_gradients, "allowed": allowed,
                "right": error <= allowed and of_gradients <= 2 * allowed,
            }  # fmt: skip


def operators(device: str, tiny: bool) -> Iterator[Row]:
    """What ran, by name, in one forward and backward pass."""
    n = 32 if tiny else 1024
    for name, (b, mask) in masks(n).items():
        for dtype in TOLERANCE:
            x = torch.randn(b, n, 3, 64, dtype=dtype, device=device, requires_grad=True)
            attend(x, x, x, mask).sum().backward()
            synchronise(device)
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
            with profile(activities=activities) as profiler:
                attend(x, x, x, mask).sum().backward()
                synchronise(device)
            averages = profiler.key_averages()
            # Without the steps of autograd, whose time on a CPU includes waiting.
            own = [event for event in averages if "autograd::" not in event.key and "Backward" not in event.key]
            ran = sorted(own, key=lambda e: -(e.self_device_time_total if device == "cuda" else e.self_cpu_time_total))
            attention = [
                e.key for e in averages if "attention" in e.key and e.key.startswith(("aten::", "torch_attn::"))
            ]
            yield {
                "mask": name, "type": name_of(dtype), "named by tsfm doctor": kernel_name(x, x, x, mask),
                "attention operators": ", ".join(sorted(set(attention))) or "none",
                "took longest": ", ".join(event.key[:60] for event in ran[:2]),
            }  # fmt: skip


def uneven(tiny: bool) -> list[int]:
    """Lengths of segments as the pretraining of the scaling-law models crops them, short series among them."""
    rng = np.random.default_rng(0)
    count, most = (5, 24) if tiny else (128, 512)
    whole = np.where(rng.random(count) < 0.5, most, rng.integers(4, most, count))
    return np.maximum(2, (whole * rng.uniform(0.5, 1, count))).astype(int).tolist()


class Layer:
    """Inputs of one layer's attention: segments of uneven lengths, packed in one row and padded to the longest."""

    def __init__(self, device: str, tiny: bool) -> None:
        self.device, self.lengths = device, uneven(tiny)
        shape = (2, 16) if tiny else (12, 64)
        longest, total, dtype = max(self.lengths), sum(self.lengths), torch.bfloat16
        torch.manual_seed(0)
        self.packed = [torch.randn(1, total, *shape, dtype=dtype, device=device, requires_grad=True) for _ in range(3)]
        self.real = (torch.arange(longest) < torch.tensor(self.lengths)[:, None]).to(device)
        self.padded = [torch.zeros(len(self.lengths), longest, *shape, dtype=dtype, device=device) for _ in range(3)]
        for dense, row in zip(self.padded, self.packed, strict=True):
            dense[self.real] = row.detach()[0]
            dense.requires_grad_()

    def candidates(self, causal: bool) -> dict[str, tuple[list[Tensor], Callable[..., Tensor]]]:
        """Inputs and function of each kernel; the output has the real tokens, [1, T, H, D]."""
        within = Mask.packed(self.lengths, causal=causal)
        of_rows = Mask.segments(self.real.long().cpu(), causal=causal)
        seen = self.real[:, None, None]
        if causal:
            seen = seen & torch.ones(*seen.shape[-1:] * 2, dtype=torch.bool, device=self.device).tril()
        return {
            "padded": (self.padded, lambda q, k, v: dense_attention(q, k, v, seen)[self.real][None]),
            "packed": (self.packed, lambda q, k, v: attend(q, k, v, within)),
            "padded, by attend": (self.padded, lambda q, k, v: attend(q, k, v, of_rows)[self.real][None]),
            "flash, padding seen": (self.padded, lambda q, k, v: flash(q, k, v, causal)[self.real][None]),
            "flex on packed": (self.packed, flex(self.lengths, causal, self.device)),
        }


def kernels(device: str, tiny: bool) -> Iterator[Row]:
    """Times of one layer's attention, by kernel, causal and not, forward alone and with backward."""
    layer, repeats = Layer(device, tiny), 2 if tiny else 15
    both = {causal: layer.candidates(causal) for causal in (False, True)}
    total, times = sum(layer.lengths), dict[tuple[bool, str], float]()
    for name, causal in itertools.product(both[False], both):
        inputs, function = both[causal][name]
        row: Row = {"kernel": name, "causal": causal}
        try:
            row["error"] = "" if name.startswith("flash") and not causal else worst(function(*inputs), layer, causal)
            for mode, took in timed(name, inputs, function, device, repeats).items():
                if name == "padded":
                    times[causal, mode] = took
                ratio = {"times padded": times[causal, mode] / took} if (causal, mode) in times else {}
                yield {**row, "pass": mode, "ms": 1e3 * took, "tokens/s": total / took, **ratio}
        except (RuntimeError, NotImplementedError) as error:
            yield {**row, "problem": " ".join(str(error).split())[:120]}


def timed(
    name: str, inputs: list[Tensor], function: Callable[..., Tensor], device: str, repeats: int
) -> dict[str, float]:
    """Seconds by pass; on a CPU, flex has only the first."""
    with torch.no_grad():
        found = {"forward": seconds(lambda: function(*inputs), device, repeats)}
    if not name.startswith("flex") or device == "cuda":
        both = seconds(lambda: torch.autograd.grad(function(*inputs).sum(), inputs), device, repeats)
        found["forward and backward"] = both
    return found


def worst(out_1THD: Tensor, layer: Layer, causal: bool) -> float:
    """Largest error of the first segments against float64."""
    errors, first = [], 0
    for length in layer.lengths[:CHECKED]:
        inputs = [x[:, first : first + length].detach().double() for x in layer.packed]
        wanted = attend_reference(*inputs, Mask.causal() if causal else None)
        errors.append(float((out_1THD[:, first : first + length].double() - wanted).abs().max().detach()))
        first += length
    return max(errors)


def dense_attention(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """PyTorch's attention with a boolean mask, as padded rows are usually computed."""
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), seen).transpose(1, 2)


def flash(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """PyTorch's flash attention, which takes no mask: padding at the end is seen, unless it is causal."""
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        out = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=causal)
    return out.transpose(1, 2)


def flex(lengths: list[int], causal: bool, device: str) -> Callable[..., Tensor]:
    """PyTorch's FlexAttention on packed rows, compiled on CUDA."""
    segment = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(device)

    def visible(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same = segment[query] == segment[key]
        return same & (query >= key) if causal else same

    tokens, function = len(segment), torch.compile(flex_attention) if device == "cuda" else flex_attention
    blocks: list[Any] = []

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not blocks:  # where a failure is caught
            blocks.append(create_block_mask(visible, None, None, tokens, tokens, device=device))
        if device == "cpu":  # without gradients, which it does not have there
            q, k, v = (x.detach() for x in (q, k, v))
        return function(*(x.transpose(1, 2) for x in (q, k, v)), block_mask=blocks[0]).transpose(1, 2)

    return call
