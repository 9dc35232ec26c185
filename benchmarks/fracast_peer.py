"""Our zero-shot models compared with fracast, whose wheel also contains its weights, on every set of the suite.

pip install fracast
python benchmarks/fracast_peer.py
"""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from common import run, write
from tabulate import tabulate

from tsfm.inference import load_predictor
from tsfm.nn import interpolate_quantiles
from tsfm_data.errors import InputError
from tsfm_data.evaluation import evaluate_suite
from tsfm_data.evaluation.suite_sets import ALL_PROFILES
from tsfm_data.windows import Batch, Forecast

RELEASED = ("tsfm-long-small", "tsfm-decoder-small")
LEAST_VALUES = 8  # observed values of history that fracast needs
ROWS = 32  # forecast at a time: it takes about 10 MB for each


class Fracast:
    """The released weights of fracast as a predictor.

    Histories with fewer than ``LEAST_VALUES`` values are repeated to the left, with zeros if there is no value.

    Raises:
        InputError: fracast is not installed.
    """

    name = "fracast"
    marks = None
    dtype = torch.float64
    covariates = False
    joint = False

    def __init__(self) -> None:
        try:
            from fracast import FracastModel
        except ImportError as error:
            raise InputError("expected the package fracast, found none: pip install fracast") from error
        self.model = FracastModel.from_pretrained()
        self.context: int | None = self.model.context_length

    def predict(self, batch: Batch, levels: Sequence[float]) -> Forecast:
        """As ``Predictor.predict``."""
        past_BVT = torch.where(batch.past_observed, batch.past, torch.nan).transpose(1, 2).numpy()
        rows = past_BVT.reshape(-1, past_BVT.shape[2])
        short = np.isfinite(rows).sum(1) < LEAST_VALUES
        if short.any():
            rows = np.concatenate([np.full((len(rows), LEAST_VALUES), np.nan), rows], 1)
            for row in rows[short]:
                values = row[np.isfinite(row)]
                row[: -len(values) or None] = np.resize(values if len(values) else [0.0], len(row) - len(values))
        parts = [
            self.model.forecast_batch(rows[i : i + ROWS], horizon=batch.horizon) for i in range(0, len(rows), ROWS)
        ]
        quantiles = torch.from_numpy(np.sort(np.concatenate(parts).astype(np.float64), axis=2))
        quantiles = quantiles.unflatten(0, (len(batch), -1)).transpose(1, 2)
        trained = tuple(self.model.quantiles)
        mean = interpolate_quantiles(quantiles, trained, (0.5,))[..., 0]
        return Forecast(mean, interpolate_quantiles(quantiles, trained, tuple(levels)), tuple(levels))


def main(
    models: list[str] | None = None,
    profiles: list[str] | None = None,
    sets: list[str] | None = None,
    output: Path = Path(__file__).parent,
) -> None:
    """Score the models and fracast, and write fracast_peer.md.

    Args:
        models: names or folders of our models; the released ones by default.
        profiles: names of protocols; all by default.
        sets: names of sets; all by default.
        output: folder for fracast_peer.md and fracast_peer.json.
    """
    torch.set_num_threads(1)
    options = {"models": models, "profiles": profiles, "sets": sets}
    words = [f"--{name} {' '.join(values)}" for name, values in options.items() if values]
    command = " ".join(["python benchmarks/fracast_peer.py", *words])
    models, profiles = models or list(RELEASED), profiles or list(ALL_PROFILES)
    rows, table = [], []
    for predictor in (*(load_predictor(name) for name in models), Fracast()):
        start = time.perf_counter()
        report = evaluate_suite(predictor, profiles=profiles, sets=sets, baselines=())
        seconds = time.perf_counter() - start
        for profile in profiles:
            scores = [report.relative(metric, profile) for metric in ("MASE", "WQL")]
            rows.append({"model": predictor.name, "profile": profile, "MASE": scores[0], "WQL": scores[1]})
            table.append([profile, predictor.name, *scores])
        rows.append({"model": predictor.name, "seconds": seconds})
    text = "\n".join(
        [
            "# Compared with fracast",
            "",
            "Errors divided by those of seasonal naive, as geometric means over the sets of the suite.",
            "",
            "    pip install fracast",
            f"    {command}",
            "",
            tabulate(sorted(table, key=lambda row: row[0]), ["protocol", "model", "MASE", "WQL"], "github", ".3f"),
            "",
        ]
    )
    write(output, "fracast_peer", rows, {"command": command}, text)


if __name__ == "__main__":
    run(main)
