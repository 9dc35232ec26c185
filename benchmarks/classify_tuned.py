"""Does fine-tuning help a classifier of series? For ``classify.md``: prints means over the UCR excerpts.

python benchmarks/classify_tuned.py --method lora

The model reads each series as a whole, stretched or averaged to one window. A linear head on its pooled tokens and the
statistics of the series is trained with it. Shapes: N series, T steps, D numbers of a vector, K classes.
"""

import copy
from collections import defaultdict
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from classify import sets_of
from common import run
from torch import Tensor, nn
from torch.nn import functional as F

from tsfm.inference import Probe, embed, embedding, group_weights, load_model
from tsfm.models import Forecaster, hidden_states, window_steps
from tsfm.training import add_updates
from tsfm.training.finetuning import LARGEST_GRADIENT, WEIGHT_DECAY, is_head
from tsfm_data.images import log_loss

BATCH_SIZE, CHECKS, HEAD_LR = 16, 6, 2e-2
RATES = {"lora": 4e-3, "full": 1e-3}
Part = tuple[Tensor, Tensor, np.ndarray]  # windows [N, T], statistics [N, D], classes [N]


def held_out(labels: np.ndarray) -> np.ndarray:
    """Which series choose: a quarter of each class, one of three, none of a class of one."""
    rng, held = np.random.default_rng(0), np.zeros(len(labels), bool)
    for label in np.unique(labels):
        of = rng.permutation(np.flatnonzero(labels == label))
        held[of[: len(of) // 4 or (len(of) > 2)]] = len(of) > 1
    return held


def pooled(model: nn.Module, x: Tensor) -> Tensor:
    """Means and maxima of the tokens."""
    tokens, _ = hidden_states(model, x, torch.ones_like(x, dtype=torch.bool))  # type: ignore[arg-type]
    return torch.cat([tokens.mean(1), tokens.amax(1)], 1)


def train(
    base: Forecaster, method: str, steps: int, fit: Part, held: Part | None, classes: int
) -> tuple[Callable[[Tensor, Tensor], np.ndarray], float]:
    """Train a copy of a model; returns its probabilities as a function, and the log loss of the held-out series.

    The checkpoint is that with the least log loss of those series or, without any, the last.
    """
    torch.manual_seed(0)
    rng, model = np.random.default_rng(0), copy.deepcopy(base)
    if method == "lora":
        add_updates(model, 8, is_head)
    for name, weight in model.named_parameters():
        weight.requires_grad_("lora_" in name if method == "lora" else not is_head(name))
    x, statistics, labels = fit[0], fit[1], torch.from_numpy(fit[2])
    with torch.no_grad():
        start = torch.cat([pooled(model.eval(), part) for part in x.split(64)])
    centre, spread = start.mean(0), start.std(0).clamp(min=1e-4)
    groups = [start.shape[1], *embedding.STATISTICS]
    weights = torch.cat([torch.full((group,), 4 * group**-0.5) for group in groups])
    head = nn.Linear(len(weights), classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)

    def logits(x: Tensor, statistics: Tensor) -> Tensor:
        tokens = ((pooled(model, x) - centre) / spread).clamp(-5, 5)
        return head(torch.cat([tokens, statistics], 1) * weights)

    @torch.no_grad()
    def predict(x: Tensor, statistics: Tensor) -> np.ndarray:
        model.eval()
        parts = zip(x.split(64), statistics.split(64), strict=True)
        return torch.cat([logits(*part).softmax(1) for part in parts]).double().numpy()

    body = [weight for weight in model.parameters() if weight.requires_grad]
    rates = [{"params": body, "lr": RATES[method]}, {"params": head.parameters(), "lr": HEAD_LR}]
    optimizer = torch.optim.AdamW(rates, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min(1, (i + 1) / (steps / 10)) * 0.5 * (1 + np.cos(np.pi * i / steps))
    )
    both, best, least, order = nn.ModuleList([model, head]), {}, np.inf, list[int]()
    for step in range(1, steps + 1):
        model.train()
        while len(order) < BATCH_SIZE:
            order += rng.permutation(len(x)).tolist()
        now, order = order[:BATCH_SIZE], order[BATCH_SIZE:]
        varied = x[now] * (1 + 0.1 * torch.randn(BATCH_SIZE, 1))
        varied = varied + 0.03 * torch.randn_like(varied)
        loss = F.cross_entropy(logits(varied, statistics[now]), labels[now], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(body, LARGEST_GRADIENT)
        optimizer.step()
        schedule.step()
        if held is not None and step % max(1, steps // CHECKS) == 0:
            error = log_loss(predict(*held[:2]), held[2])
            if error < least:
                least, best = error, {key: value.clone() for key, value in both.state_dict().items()}
    if best:
        both.load_state_dict(best)
    return predict, least


def main(model: str = "tsfm-encoder-small", method: Literal["lora", "full"] = "lora", steps: int = 60) -> None:
    """Print mean accuracies on the test parts: of the probe, of the fine-tuned model, of the one that would be kept.

    Args:
        model: a zero-shot model.
        method: what is trained in addition to the head: low-rank updates, or all weights.
        steps: optimiser steps.
    """
    torch.set_num_threads(1)
    base, found = load_model(model), defaultdict[str, list[float]](list)
    size = sum(embedding.STATISTICS)
    for key, (series, names, of_train) in sets_of("ucr_sample").items():
        vectors = embed(base, series)
        groups = group_weights(vectors.shape[1])
        classes, labels = np.unique(names[of_train], return_inverse=True)
        truth = np.array([list(classes).index(name) if name in classes else -1 for name in names[~of_train]])
        whole = [
            embedding.resample(embedding.filled(*pair), window_steps(base)) for pair in embedding.standardised(series)
        ]
        x = torch.from_numpy(np.stack(whole)).float()
        statistics = vectors[:, -size:] / groups[-size:]
        centre, spread = statistics[of_train].mean(0), statistics[of_train].std(0)
        scaled = np.clip((statistics - centre) / np.where(spread > 1e-6, spread, np.inf), -5, 5)
        statistics_ND = torch.from_numpy(scaled).float()

        def part(rows: np.ndarray, labels: np.ndarray, x: Tensor = x, numbers: Tensor = statistics_ND) -> Part:
            return x[rows], numbers[rows], labels

        probe = Probe.fit(vectors[of_train], labels, groups).probabilities(vectors[~of_train], groups)
        test = x[~of_train], statistics_ND[~of_train]
        tuned = train(base, method, steps, part(of_train, labels), None, len(classes))[0](*test)
        kept, held = probe, held_out(labels)
        if held.any():
            rows = np.flatnonzero(of_train)
            fit, choose = part(rows[~held], labels[~held]), part(rows[held], labels[held])
            predict, error = train(base, method, steps, fit, choose, len(classes))
            known = Probe.fit(vectors[rows[~held]], labels[~held], groups).probabilities(vectors[rows[held]], groups)
            hits = [float((p.argmax(1) == labels[held]).mean()) for p in (predict(*choose[:2]), known)]
            if (hits[0], -error) > (hits[1], -log_loss(known, labels[held])):
                kept = predict(*test)
        answers = {"probe": probe, "tuned": tuned, "kept": kept, "mean of probe and tuned": probe + tuned}
        for name, likely in answers.items():
            found[name].append(float((likely.argmax(1) == truth).mean()))
        print(key, {name: round(values[-1], 3) for name, values in found.items()}, flush=True)
    for name, values in found.items():
        apart = np.array(values) - found["probe"]
        error = apart.std(ddof=1) / len(apart) ** 0.5
        print(
            f"{name}: {np.mean(values):.4f}, compared with the probe {apart.mean():+.4f} (standard error {error:.4f})"
        )


if __name__ == "__main__":
    run(main)
