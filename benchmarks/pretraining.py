"""Training steps of the packed encoder, compared with the same architecture in plain PyTorch with padded series.

The plain version follows the description of the scaling-law encoder (Yao et al., ICLR 2025) in ordinary PyTorch: linear
layers, ``scaled_dot_product_attention`` with a boolean padding mask, and the likelihood of every token. Both versions
have the same weights and the same crops. The script checks that their losses are equal.

Shapes: B rows, N tokens, P steps of a patch, C channels, H heads, D channels of a head, K components.

    python benchmarks/pretraining.py CORPUS
"""

import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import run, write
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn import functional as F

from tsfm.models import Encoder, Packed
from tsfm.models.scaling_law.trunk import SIZES
from tsfm_data.errors import InputError, unknown_name

TOLERANCE = 1e-4  # relative, of the two losses in float32


class PlainNorm(nn.Module):
    """Root-mean-square norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-5)
        return (x.float() * scale).type_as(x) * self.weight


class PlainLayer(nn.Module):
    """A pre-norm block: attention with normed queries and keys, half of them rotated, and SwiGLU."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        hidden = (int(8 * width / 3) + 7) // 8 * 8
        self.heads = heads
        self.self_attn = nn.ModuleDict(
            {name: nn.Linear(width, width, bias=False) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
            | {name: PlainNorm(width // heads) for name in ("q_norm", "k_norm")}
        )
        self.ffn = nn.ModuleDict(
            {
                "fc1": nn.Linear(width, hidden, bias=False),
                "fc2": nn.Linear(hidden, width, bias=False),
                "fc_gate": nn.Linear(width, hidden, bias=False),
            }
        )
        self.norm1, self.norm2 = PlainNorm(width), PlainNorm(width)

    def forward(self, x_BNC: Tensor, mask_B11N: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        part = self.self_attn
        y = self.norm1(x_BNC)
        q, k, v = (part[f"{n}_proj"](y).unflatten(2, (self.heads, -1)).transpose(1, 2) for n in "qkv")
        q, k = rotate(part["q_norm"](q), cos, sin).type_as(v), rotate(part["k_norm"](k), cos, sin).type_as(v)
        mixed = F.scaled_dot_product_attention(q, k, v, mask_B11N)
        x_BNC = x_BNC + part["out_proj"](mixed.transpose(1, 2).flatten(2))
        y = self.norm2(x_BNC)
        return x_BNC + self.ffn["fc2"](F.silu(self.ffn["fc_gate"](y)) * self.ffn["fc1"](y))


def rotate(x_BHND: Tensor, cos_NR: Tensor, sin_NR: Tensor) -> Tensor:
    """Turn pairs of neighbouring channels in the first half of every head."""
    half = x_BHND.shape[-1] // 2
    pair = x_BHND[..., :half].unflatten(-1, (-1, 2))
    turned = torch.stack(
        [pair[..., 0] * cos_NR - pair[..., 1] * sin_NR, pair[..., 1] * cos_NR + pair[..., 0] * sin_NR], -1
    )
    return torch.cat([turned.flatten(-2), x_BHND[..., half:]], -1)


class PlainStudentT(nn.Module):
    """Log density of every step under one component."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.df, self.loc, self.scale = (nn.Linear(width, patch) for _ in range(3))

    def forward(self, h_BNC: Tensor, z_BNP: Tensor) -> Tensor:
        scale = F.softplus(self.scale(h_BNC).float()).clamp(min=torch.finfo(torch.float32).eps)
        df = 2 + F.softplus(self.df(h_BNC).float())
        return torch.distributions.StudentT(df, self.loc(h_BNC).float(), scale).log_prob(z_BNP)


class PlainMixture(nn.Module):
    """Negative log likelihood of every step under its mixture."""

    def __init__(self, width: int, patch: int, components: int) -> None:
        super().__init__()
        self.weights_logits = nn.Linear(width, components * patch)
        self.components = nn.ModuleList(PlainStudentT(width, patch) for _ in range(components))

    def forward(self, h_BNC: Tensor, z_BNP: Tensor) -> Tensor:
        logits = self.weights_logits(h_BNC).float().unflatten(-1, (len(self.components), -1)).transpose(-1, -2)
        parts = torch.stack([component(h_BNC, z_BNP) for component in self.components], -1)
        return -torch.logsumexp(logits.log_softmax(-1) + parts, -1)


class PlainStack(nn.Module):
    """All layers and a norm."""

    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(PlainLayer(width, heads) for _ in range(layers))
        self.norm = PlainNorm(width)
        self.rotated = width // heads // 2

    def forward(self, h_BNC: Tensor, mask_B11N: Tensor) -> Tensor:
        exponent = -torch.arange(0, self.rotated, 2) / self.rotated
        angle = torch.arange(h_BNC.shape[1])[:, None] * 10_000.0**exponent
        for layer in self.layers:
            h_BNC = layer(h_BNC, mask_B11N, angle.cos(), angle.sin())
        return self.norm(h_BNC)


class PlainEncoder(nn.Module):
    """The scaling-law encoder on padded rows of one series; the names of its weights are those of ``Encoder``."""

    def __init__(self, width: int, layers: int, heads: int, patch: int) -> None:
        super().__init__()
        self.in_proj = nn.Linear(patch, width)
        self.mask_encoding = nn.Embedding(1, width)
        self.encoder = PlainStack(width, layers, heads)
        self.param_proj = nn.ModuleDict({"proj": PlainMixture(width, patch, 4)})

    def loss(self, x_BNP: Tensor, observed_BNP: Tensor, real_BN: Tensor, masked_BN: Tensor) -> Tensor:
        """Mean over the series of the mean negative log likelihood of their masked patches."""
        seen = (observed_BNP & ~masked_BN[..., None]).double()
        values = x_BNP.double()
        count = seen.sum((1, 2), keepdim=True)
        mean = (values * seen).sum((1, 2), keepdim=True) / count.clamp(min=1)
        var = ((values - mean).square() * seen).sum((1, 2), keepdim=True) / (count - 1).clamp(min=1)
        loc, scale = mean.float(), (var + 1e-5).sqrt().float()
        z_BNP = (x_BNP - loc) / scale
        h_BNC = torch.where(masked_BN[..., None], self.mask_encoding.weight, self.in_proj(z_BNP))
        h_BNC = self.encoder(h_BNC, real_BN[:, None, None, :])
        nll = self.param_proj["proj"](h_BNC, z_BNP) + scale.log()
        counts = (observed_BNP & masked_BN[..., None]).float()
        return ((nll * counts).sum((1, 2)) / counts.sum((1, 2)).clamp(min=1)).mean()


def padded(rows: Packed) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Packed series, one per row and padded to the longest: values, observed, real tokens, masked tokens."""
    ids = rows.sample_id
    where = [(r, ids[r] == k) for r in range(len(ids)) for k in range(1, int(ids[r].max()) + 1)]
    longest = max(int(at.sum()) for _, at in where)

    def fill(x: Tensor) -> Tensor:
        out = x.new_zeros(len(where), longest, *x.shape[2:])
        for line, (r, at) in zip(out, where, strict=True):
            line[: int(at.sum())] = x[r][at]
        return out

    return fill(rows.target), fill(rows.observed), fill(ids) > 0, fill(rows.is_predicted)


def time_case(size: str, rows: Packed, threads: int, half: bool, repeats: int) -> dict[str, Any]:
    """Time steps (loss, gradients, update) of both sides in turn.

    Raises:
        InputError: the losses of the two sides differ.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    ours = Encoder(512, 96, size)  # type: ignore[arg-type]
    config = ours.config
    plain = PlainEncoder(config.d_model, config.layers, config.heads, config.patch_size)
    plain.load_state_dict(ours.state_dict())
    batch = padded(rows)
    losses: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: ours.loss(rows),
        "plain": lambda: plain.loss(*batch),
    }
    with torch.no_grad():
        values = {name: float(loss()) for name, loss in losses.items()}
    if not math.isclose(values["ours"], values["plain"], rel_tol=TOLERANCE):
        raise InputError(f"expected the same loss on both sides, found {values}: the comparison is not valid")
    steps = {name: make_step(model, losses[name], half) for name, model in (("ours", ours), ("plain", plain))}
    clock = time.process_time if threads == 1 else time.perf_counter  # CPU time is not affected by other work
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 1):
        for name in steps if repeat % 2 == 0 else reversed(steps):
            begun = clock()
            steps[name]()
            if repeat:  # the first one warms up
                times[name].append(clock() - begun)
    ratios = [b / a for a, b in zip(times["ours"], times["plain"], strict=True)]
    observations = int(rows.observed.sum())
    return {
        "size": size,
        "threads": threads,
        "precision": "bf16" if half else "fp32",
        "series": len(batch[0]),
        "tokens": int((rows.sample_id > 0).sum()),
        "packed_tokens": rows.sample_id.numel(),
        "padded_tokens": batch[2].numel(),
        "loss": values["ours"],
        "plain_over_ours": statistics.median(ratios),
        "range": [min(ratios), max(ratios)],
        "observations_per_s": observations / statistics.median(times["ours"]),
        "plain_observations_per_s": observations / statistics.median(times["plain"]),
    }


def make_step(model: nn.Module, loss: Callable[[], Tensor], half: bool) -> Callable[[], None]:
    """One training step with the recipe's optimiser."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), eps=1e-6, fused=True)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def run_table(corpus: str, sizes: list[str], threads: list[int], series: int, repeats: int) -> list[dict[str, Any]]:
    """Time every size, number of threads and precision on one batch of training crops of a corpus."""
    from tsfm.nn import keep_large_blocks
    from tsfm_data.corpus import PackedLoader, Store

    keep_large_blocks()
    loader = PackedLoader(Store(corpus), patch_size=32, tokens=512, batch_size=series, batches=1, seed=0)
    rows = Packed.of(loader.make_batch(np.random.Generator(np.random.Philox(0))))
    table = []
    for size in sizes:
        for count in threads:
            for half in (False, True):
                table.append(time_case(size, rows, count, half, repeats))
                print(json.dumps(table[-1]), file=sys.stderr)
    return table


def to_markdown(rows: list[dict[str, Any]], command: str) -> str:
    """The page ``benchmarks/pretraining.md``."""
    first = rows[0]
    table = [
        [
            row["size"],
            row["threads"],
            row["precision"],
            f"{row['plain_over_ours']:.2f} ({row['range'][0]:.2f} to {row['range'][1]:.2f})",
            f"{row['observations_per_s']:,.0f}",
            f"{row['plain_observations_per_s']:,.0f}",
        ]
        for row in rows
    ]
    head = ["encoder", "threads", "precision", "plain / ours (range)", "ours, observations/s", "plain, observations/s"]
    text = [
        "# Training steps of the packed encoder",
        "",
        "A training step (loss, gradients, clipping, AdamW) of the scaling-law encoder on CPU. Our version packs",
        "several series into a row. It is compared with the same architecture and weights in plain PyTorch, with one",
        "padded series per row. Both have the same loss.",
        "",
        "The ratio is the plain version's time divided by ours: above 1, ours is faster. It is the median over steps",
        "in turn: of CPU time on one thread, of wall time on several.",
        "",
        f"The batch has {first['series']} crops of a corpus with {first['tokens']:,} tokens of 32 steps. These are",
        f"{first['packed_tokens']:,} tokens with packing and {first['padded_tokens']:,} with padding.",
        "uni2ts itself is not compared: it requires gluonts~=0.14.3, and this suite GluonTS 0.17.",
        "",
        f"    {command}",
        "",
        tabulate(table, head, tablefmt="github", disable_numparse=True),
        "",
    ]
    return "\n".join(text)


def main(
    corpus: Path,
    sizes: list[str] | None = None,
    threads: list[int] | None = None,
    output: Path = Path("benchmarks"),
    series: int = 48,
    repeats: int = 5,
) -> None:
    """Compare training steps of the packed encoder with the same architecture in plain PyTorch with padding.

    Args:
        corpus: folder that tsfm data build wrote.
        sizes: sizes of the encoder; 1M and 3M by default.
        threads: numbers of CPU threads; 1 and 2 by default.
        output: folder for pretraining.md and pretraining.json.
        series: crops per batch.
        repeats: rounds in which both sides take turns; the median of their ratios is reported.
    """
    for name in sizes or []:
        if name not in SIZES:
            raise unknown_name("size", name, SIZES)
    rows = run_table(str(corpus), sizes or ["1M", "3M"], threads or [1, 2], series, repeats)
    command = f"python benchmarks/pretraining.py CORPUS --series {series} --repeats {repeats}"
    least = min(row["plain_over_ours"] for row in rows)
    write(output, "pretraining", rows, {"least_ratio": least, "command": command}, to_markdown(rows, command))


if __name__ == "__main__":
    run(main)
