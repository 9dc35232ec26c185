"""Classification of series: probes on embeddings and on pictures read by image models, 1-NN-DTW and ROCKET.

python benchmarks/classify.py
"""

import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from common import run, write
from tabulate import tabulate

from tsfm.inference import Probe, embed, embedding, group_weights, labels_of, load_model
from tsfm.weights import image_folder
from tsfm_data.images import calibration_error, render, top_k
from tsfm_data.io import SeriesSet, catalog
from tsfm_vision.weights import data_config, load

MODELS = ("tsfm-decoder-small", "tsfm-encoder-small")
SIZE, STEPS, KINDS = 64, 256, ("line", "recurrence", "spectrogram")  # of the pictures
# Sizes of random backbones: about those of the released BiFormer.
BACKBONES: dict[str, dict[str, Any]] = {
    "tsfm_poolformer_s12": {"depths": (1, 1, 3, 1), "dims": (32, 64, 96, 128)},
    "tsfm_tnt_s_patch16_224": {"depth": 4, "embed_dim": 128, "inner_dim": 16, "num_heads_outer": 4},
    "illama_tiny": {"depth": 4, "embed_dim": 128, "num_heads": 4},
    "biformer_tiny": {"depths": (1, 1, 3, 1), "dims": (32, 64, 96, 128), "head_dim": 16},
}
OURS = "statistics + decoder + encoder"


def sets_of(name: str) -> dict[str, tuple[SeriesSet, np.ndarray, np.ndarray]]:
    """Series of each data set in a table of UCR excerpts: series, labels, and which are of the train part.

    Sets without two classes in their train part are left out.
    """
    whole, groups = catalog.load(name), defaultdict(list)
    for i, item in enumerate(whole.item_ids):
        groups[item.split("/")[0]].append(i)
    found = {}
    for key, items in groups.items():
        part = whole.select(items)
        labels, train = labels_of(part, "label"), np.array(["/train/" in item for item in part.item_ids])
        if len(set(labels[train])) > 1:
            found[key] = (part, labels, train)
    return found


@torch.inference_mode()
def picture_features(net: torch.nn.Module, pictures: torch.Tensor) -> np.ndarray:
    """What the head of an image model reads, for pictures [N, 3, S, S]."""
    config = data_config(net)
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
    chunks = ((part - mean) / std for part in pictures.split(64))
    return torch.cat([net.forward_head(net.forward_features(x), pre_logits=True) for x in chunks]).numpy()


def backbones() -> dict[str, torch.nn.Module]:
    """The released image model, and one of random weights of each family."""
    nets = {"biformer (CIFAR-10)": load(image_folder(None))[0].eval()}
    for name, sizes in BACKBONES.items():
        torch.manual_seed(0)
        nets[f"{name.removeprefix('tsfm_').split('_')[0]} (random)"] = timm.create_model(
            name, num_classes=10, img_size=SIZE, **sizes
        ).eval()
    return nets


def judged(x: np.ndarray, weights: np.ndarray, labels: np.ndarray, train: np.ndarray) -> dict[str, float]:
    """Scores of a probe that is fitted to the train part, on the test part and left out one at a time."""
    classes, of_train = np.unique(labels[train], return_inverse=True)
    probe = Probe.fit(x[train], of_train, weights)
    place = {name: i for i, name in enumerate(dict.fromkeys([*classes, *labels]))}
    truth = np.array([place[name] for name in labels[~train]])
    found = np.pad(probe.probabilities(x[~train], weights), ((0, 0), (0, len(place) - len(classes))))
    left_out = float((probe.left_out.argmax(1) == of_train).mean())
    return {"top1": top_k(found, truth, 1), "ECE": calibration_error(found, truth), "left_out": left_out}


def main(data: str = "ucr_sample", output: Path = Path("benchmarks")) -> None:
    """Score every classifier on the test part of each set, and write classify.md and classify.json.

    Args:
        data: UCR excerpts: a long table whose ids are SET/train/NUMBER or SET/test/NUMBER, with a column label.
        output: folder of the page; it also has classify_peers.json.
    """
    rows: list[dict[str, Any]] = []
    models, nets, seconds = {name: load_model(name) for name in MODELS}, backbones(), defaultdict(float)
    sizes = embedding.STATISTICS
    for key, (series, labels, train) in sets_of(data).items():
        inputs, start = {}, time.process_time()
        for name, model in models.items():
            inputs[name] = embed(model, series)
            seconds[name] += time.process_time() - start
            start = time.process_time()
        statistics = inputs[MODELS[0]][:, -sum(sizes) :]
        tokens = {name: x[:, : -sum(sizes)] for name, x in inputs.items()}
        inputs |= {"statistics": statistics, **{f"{name}, tokens": x for name, x in tokens.items()}}
        inputs[OURS] = np.concatenate([*tokens.values(), statistics], 1)
        filled = [embedding.filled(z, seen) for z, seen in embedding.standardised(series)]
        pictures = torch.from_numpy(np.stack([embedding.resample(z, STEPS) for z in filled])).float()
        pictures = render(pictures, KINDS, SIZE)
        for name, net in nets.items():
            start = time.process_time()
            inputs[name] = picture_features(net, pictures)
            seconds[name] += time.process_time() - start
        inputs["statistics + biformer (CIFAR-10)"] = np.concatenate([inputs["biformer (CIFAR-10)"], statistics], 1)
        of_statistics = np.concatenate([np.full(size, size**-0.5) for size in sizes])
        for name, x in inputs.items():
            weights = np.full(x.shape[1], x.shape[1] ** -0.5)
            if name in MODELS:
                weights = group_weights(x.shape[1])
            elif "statistics" in name:
                rest = x.shape[1] - sum(sizes)
                weights = np.concatenate([np.full(rest, max(rest, 1) ** -0.5), of_statistics])
            rows.append({"set": key, "model": name, **judged(x, weights, labels, train)})
        print(key, {row["model"]: round(row["top1"], 3) for row in rows if row["set"] == key}, flush=True)
    peers = json.loads((output / "classify_peers.json").read_text())
    rows += [row for row in peers if row["set"] in {row["set"] for row in rows}]
    by_set = {row["set"]: {"set": row["set"]} for row in rows}
    for row in rows:
        by_set[row["set"]][row["model"]] = round(row["top1"], 4)
    write(output, "classify", list(by_set.values()), dict(seconds), page(rows, seconds))


def page(rows: list[dict[str, Any]], seconds: dict[str, float]) -> str:
    """The page: a table of means over sets, and one of the sets."""
    by_model: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        by_model[row["model"]][row["set"]] = row
    keys = [key for key in by_model[MODELS[0]] if all(key in found for found in by_model.values())]
    top1 = {name: np.array([found[key]["top1"] for key in keys]) for name, found in by_model.items()}
    order = sorted(top1, key=lambda name: -top1[name].mean())

    def against(name: str, other: str) -> str:
        if other not in top1:
            return ""
        return f"{int((top1[name] > top1[other]).sum())} / {int((top1[name] < top1[other]).sum())}"

    def mean(name: str, metric: str) -> float | None:
        values = [by_model[name][key].get(metric) for key in keys]
        return None if None in values else float(np.mean(values))

    means = [
        [name, top1[name].mean(), mean(name, "left_out"), mean(name, "ECE"), against(name, "1-NN-DTW"),
         against(name, "ROCKET"), seconds.get(name)]
        for name in order
    ]  # fmt: skip
    heads = [
        "classifier",
        "top1",
        "top1, left out",
        "ECE",
        "better / worse than 1-NN-DTW",
        "than ROCKET",
        "CPU seconds",
    ]
    shown = [
        name for name in (OURS, *MODELS, "statistics", "biformer (CIFAR-10)", "1-NN-DTW", "ROCKET") if name in top1
    ]
    each = [[key, *(by_model[name][key]["top1"] for name in shown)] for key in keys]
    rocket = by_model.get("ROCKET", by_model[OURS])
    lost = [key for key in keys if by_model[OURS][key]["top1"] < rocket[key]["top1"] - 0.05]
    return "\n".join(
        [
            "# Classification of series",
            "",
            "`python benchmarks/classify.py`, after `python benchmarks/classify_peers.py` in an environment with aeon",
            "",
            f"Means over {len(keys)} excerpts of the UCR archive (Dau et al. 2018), of at most 150 series each: fitted",
            "to the train part, scored on the test part. They are not comparable with scores on the whole archive. A",
            "class that appears in the test part alone counts as an error. Settings were chosen on these excerpts",
            "by series left out of the train parts; scores of the test parts were seen while choosing.",
            "",
            "Names of models: a probe on their embeddings, which include the statistics. Image models read line,",
            f"recurrence plot and spectrogram as channels of a picture of {SIZE} pixels, and are not trained further.",
            "",
            tabulate(means, heads, tablefmt="github", floatfmt=(*[""], ".3f", ".3f", ".3f", "", "", ".1f")),
            "",
            "No probe reaches ROCKET on average. The statistics alone are about as good as with tokens of the",
            "zero-shot models, perhaps because patches of 32 steps are coarse; tokens alone, and pictures, are worse.",
            f"ROCKET is better than {OURS} by more than 0.05 on {len(lost)} sets: {', '.join(lost)}.",
            "",
            "Fine-tuning does not help with so few labelled series. If a linear head is trained together with",
            "low-rank updates of tsfm-encoder-small, accuracy is 0.587, that of the probe; with all weights it is",
            "0.575. If a quarter of the series is held out, and the fine-tuned model kept only if they prefer it",
            "to the probe, it is 0.574 and 0.585. The mean of both probabilities has 0.600 with low-rank updates,",
            "0.013 more than the probe with a standard error of 0.006, but 0.586 with all weights. So `tsfm classify",
            "fit` fits the probe alone (`python benchmarks/classify_tuned.py --method lora`, `full`). Low-rank updates",
            "of the other models (`--model`) lose accuracy: tsfm-long-small 0.581 (probe 0.593), tsfm-decoder-small",
            "0.565 (0.591).",
            "",
            tabulate(each, ["set", *shown], tablefmt="github", floatfmt=".3f"),
            "",
        ]
    )


if __name__ == "__main__":
    run(main)
