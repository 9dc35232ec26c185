"""Detection of anomalies: false alarms on clean series, and anomalies planted in real ones, with simple detectors.

python benchmarks/detect.py
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from anomalies import DETECTORS, KINDS, plant
from common import ROWS, SEASONS, latest, run, write
from tabulate import tabulate

from tsfm.inference import Detector, load_predictor
from tsfm.weights import registry
from tsfm_data.evaluation import vus_pr
from tsfm_data.evaluation.anomalies import ranges
from tsfm_data.io import SeriesSet
from tsfm_data.synthetic import GENERATORS

MODEL = registry.DEFAULT
RATES = (0.01, 0.05)
CLEAN = ("ecl_excerpt_1000x203", "gefcom2012_wp", "gk_beijing_pm25", "gk_temperature_melbourne", "rt_city_weather",
         "rt_stock_prices", "simbench_load", "rt_wikipedia", "pjm_hourly_regions", "vix")  # fmt: skip
PLANTED = {
    "bench": ("ETTh1", "ETTm2", "weather", "us_births", "saugeen_river"),
    "train": ("ecl_excerpt_1000x203", "gefcom2012_wp", "rt_city_weather", "simbench_load", "rt_wikipedia"),
}
FIRST, BUFFER = 200, 24  # rows before the first anomaly; longest buffer of VUS-PR


def clean(count: int) -> Iterator[tuple[str, SeriesSet]]:
    """Series without planted anomalies: of every synthetic family, and of real sets."""
    for name, generator in GENERATORS.items():
        values = generator(count, ROWS, np.random.default_rng(5)).astype(np.float64)
        yield f"family {name}", SeriesSet.from_arrays(name, list(values), "h")
    for name in CLEAN:
        yield name, latest(name, count)


def false_alarms(model: str, count: int) -> list[dict[str, Any]]:
    """Share of flagged values in clean series, one row per set and rate."""
    rows, predictor = [], load_predictor(model)
    for name, series in clean(count):
        for rate in RATES:
            found = Detector(predictor, series, rate)
            flagged = sum(int(track.flags.sum()) for track in found.tracks)
            place = {"set": name, "series": len(series), "rate": rate, "judged": found.judged}
            rows.append({"part": "clean", "model": model, **place, "flagged": flagged / found.judged})
    return rows


def planted(models: list[str], names: tuple[str, ...], count: int) -> list[dict[str, Any]]:
    """VUS-PR of every detector for every kind of anomaly, one row per set, kind and detector."""
    rows, predictors = [], {name: load_predictor(name) for name in models}
    for name in names:
        series = latest(name, count)
        season = SEASONS.get(series.freqs[0], 1)
        for k, kind in enumerate(KINDS):
            pairs = [
                plant(series.item(i)[:, 0], kind, season, FIRST, np.random.default_rng([i, k]))
                for i in range(len(series))
            ]
            values, labels = [x for x, _ in pairs], [y[FIRST:] for _, y in pairs]
            scores: dict[str, list[np.ndarray]] = {}
            flags: dict[str, list[np.ndarray]] = {}
            seconds: dict[str, float] = {}
            for model, predictor in predictors.items():
                begin = time.process_time()
                found = Detector(predictor, SeriesSet.from_arrays(name, values, series.freqs[0]))
                seconds[model] = time.process_time() - begin
                scores[model] = [track.fields[FIRST:, 0, 3] for track in found.tracks]
                flags[model] = [track.flags[FIRST:, 0] for track in found.tracks]
            for peer, detector in DETECTORS.items():
                begin = time.process_time()
                scores[peer] = [detector(x, season)[FIRST:] for x in values]
                seconds[peer] = time.process_time() - begin
            for detector_name, of in scores.items():
                row: dict[str, Any] = {"part": "planted", "set": name, "kind": kind, "detector": detector_name}
                row["VUS-PR"] = float(np.mean([vus_pr(y, s, BUFFER) for y, s in zip(labels, of, strict=True)]))
                row["seconds"] = seconds[detector_name]
                if detector_name in flags:
                    both = list(zip(labels, flags[detector_name], strict=True))
                    hits = [f[begin:end].any() for y, f in both for begin, end in ranges(y)]
                    row["found"] = float(np.mean(hits))
                    row["false alarms"] = float(np.mean([f[~y].mean() for y, f in both]))
                rows.append(row)
    return rows


def page(rows: list[dict[str, Any]], role: str, command: str) -> str:
    """The tables as Markdown."""
    quiet = [row for row in rows if row["part"] == "clean"]
    sets = list(dict.fromkeys(row["set"] for row in quiet))
    ratio = {(row["set"], row["rate"]): row["flagged"] / row["rate"] for row in quiet}
    within = {rate: sum(abs(ratio[name, rate] - 1) <= 0.2 for name in sets) for rate in RATES}
    table = [[name, *(f"{ratio[name, rate] * rate:.4f}" for rate in RATES)] for name in sets]
    cases = [row for row in rows if row["part"] == "planted"]
    detectors = list(dict.fromkeys(row["detector"] for row in cases))

    def mean(detector: str, kind: str | None, what: str) -> float:
        return float(np.mean([r[what] for r in cases if r["detector"] == detector and kind in (None, r["kind"])]))

    scores = [[d, *(f"{mean(d, kind, 'VUS-PR'):.3f}" for kind in (*KINDS, None))] for d in detectors]
    for row, d in zip(scores, detectors, strict=True):
        row.append(f"{sum(r['seconds'] for r in cases if r['detector'] == d):.1f}")
    ours = [d for d in detectors if any("found" in r for r in cases if r["detector"] == d)]
    found = [
        [d, *(f"{mean(d, kind, 'found'):.2f}" for kind in KINDS), f"{mean(d, None, 'false alarms'):.4f}"] for d in ours
    ]
    head = {"tablefmt": "github", "disable_numparse": True}
    return "\n\n".join(
        [
            "# Detection of anomalies",
            f"Measured by `{command}`. Series have their latest {ROWS} rows.",
            "## False alarms on clean series",
            "Share of flagged values. Real series may contain anomalies of their own. Within 20 % of the rate: "
            + ", ".join(f"{within[rate]} of {len(sets)} sets at {rate:g}" for rate in RATES)
            + ". " + "Mean ratio to the rate: "
            + ", ".join(f"{np.mean([ratio[n, rate] for n in sets]):.2f} at {rate:g}" for rate in RATES) + ".",
            tabulate(table, ["set", *(f"rate {rate:g}" for rate in RATES)], **head),
            "## Planted anomalies",
            f"Four anomalies of one kind in each series of {', '.join(dict.fromkeys(r['set'] for r in cases))} "
            f"({'evaluation' if role == 'bench' else 'training'} sets). VUS-PR with buffers of 0 to {BUFFER} steps, "
            "mean over sets; CPU seconds in total. Our detectors and the seasonal z-score see only earlier values; STL "
            "and Isolation Forest see the whole series.",
            tabulate(scores, ["detector", *KINDS, "mean", "seconds"], **head),
            "Share of anomalies with at least one flagged value, and of flagged values elsewhere, at a rate of 0.01:",
            tabulate(found, ["detector", *KINDS, "false alarms"], **head),
        ]
    ) + "\n"  # fmt: skip


def main(
    role: Literal["bench", "train"] = "bench", clean_series: int = 8, series: int = 2, output: Path | None = None
) -> None:
    """Measure false alarms and planted anomalies, and write detect.md and detect.json.

    Args:
        role: sets in which anomalies are planted: evaluation sets, or training sets, by which choices are made.
        clean_series: series of each clean set.
        series: series of each set with planted anomalies.
        output: folder of the page; for training sets, it is only printed by default.
    """
    torch.set_num_threads(1)
    rows = false_alarms(MODEL, clean_series) if clean_series else []
    rows += planted([MODEL, "seasonal-naive"], PLANTED[role], series)
    words = [*(["--role", role] if role != "bench" else []), "--clean-series", clean_series, "--series", series]
    command = " ".join(["python benchmarks/detect.py", *map(str, words)])
    text = page(rows, role, command)
    if output is None and role == "train":
        print(text)
    else:
        write(output or Path(__file__).parent, "detect", rows, {"command": command}, text)


if __name__ == "__main__":
    run(main)
