"""1-NN-DTW and ROCKET of aeon on the UCR excerpts, for ``classify.py``. aeon needs an environment of its own.

pip install aeon pyarrow
python benchmarks/classify_peers.py ucr_sample.parquet benchmarks/classify_peers.json
"""

import json
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
from aeon.classification.convolution_based import RocketClassifier
from aeon.classification.distance_based import KNeighborsTimeSeriesClassifier


def main(table: str, output: str) -> None:
    """Fit the train part of each set, score its test part, and write accuracy and seconds.

    Gaps are interpolated; ROCKET takes series of one length, so they are stretched to the longest.
    """
    sets: dict[str, dict[str, list]] = defaultdict(lambda: {"train": [], "test": []})
    for item, part in pd.read_parquet(table).groupby("item_id", observed=True):
        name, split, _ = str(item).split("/")
        y = part["target"].to_numpy(dtype=float)
        seen = np.flatnonzero(np.isfinite(y))
        sets[name][split].append((np.interp(np.arange(len(y)), seen, y[seen]), str(part["label"].iloc[0])))
    rows = []
    for name, parts in sets.items():
        labels = {part: np.array([label for _, label in pairs]) for part, pairs in parts.items()}
        if len(set(labels["train"])) < 2:
            continue
        raw = {part: [y[None] for y, _ in pairs] for part, pairs in parts.items()}
        length = max(y.shape[1] for y in raw["train"])
        grid = np.linspace(0, 1, max(9, length))
        even = {
            k: np.stack([[np.interp(grid, np.linspace(0, 1, y.shape[1]), y[0])] for y in v]) for k, v in raw.items()
        }
        peers = (
            ("1-NN-DTW", KNeighborsTimeSeriesClassifier(distance="dtw", n_neighbors=1), raw),
            ("ROCKET", RocketClassifier(random_state=0), even),
        )
        for model, peer, x in peers:
            start = time.process_time()
            found = peer.fit(x["train"], labels["train"]).predict(x["test"])
            seconds = round(time.process_time() - start, 2)
            rows.append(
                {"set": name, "model": model, "top1": float((found == labels["test"]).mean()), "seconds": seconds}
            )
    Path(output).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
