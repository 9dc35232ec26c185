"""Gaps planted in series and filled, compared with interpolation along a line and along the season.

python benchmarks/impute.py
"""

import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from common import ROWS, SEASONS, latest, run, write
from tabulate import tabulate

from tsfm.inference import impute, load_predictor
from tsfm.weights import registry
from tsfm_data.io import SeriesSet

SETS = {
    "bench": ("ETTh1", "ETTm2", "weather", "m4_hourly", "us_births", "nn5", "saugeen_river", "exchange_rate"),
    "train": ("ecl_excerpt_1000x203", "gefcom2012_wp", "rt_city_weather", "pedestrian_melbourne_2016",
              "gk_temperature_melbourne", "rt_wikipedia", "simbench_load", "vix"),
}  # fmt: skip
GAPS = {1: 24, 8: 8, 48: 4, 200: 1}  # steps of a gap, and how many in a series
MODELS = (registry.DEFAULT, "seasonal-naive")


def plant(values: np.ndarray, size: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """A copy of a series [T] with gaps, one in each of ``count`` equal parts, with values on both sides."""
    x, part = values.copy(), len(values) // count
    for k in range(count):
        begin = k * part + 1 + int(rng.integers(0, part - size - 1))
        x[begin : begin + size] = np.nan
    return x


def interpolate(values: np.ndarray, season: int) -> np.ndarray:
    """Linear interpolation of the values of each phase of a season, by pandas; of all values for a season of 1."""
    series = pd.Series(values)
    by_phase = series.groupby(np.arange(len(values)) % season)
    return by_phase.transform(lambda x: x.interpolate(limit_direction="both")).to_numpy()


def measure(name: str, count: int, models: tuple[str, ...]) -> list[dict[str, Any]]:
    """Errors in the gaps of a set, one row per length, in standard deviations of the series."""
    series, rows = latest(name, count), []
    season, predictors = SEASONS.get(series.freqs[0], 1), [load_predictor(model) for model in models]
    for size, gaps in GAPS.items():
        rng = np.random.default_rng(size)
        truth = [series.item(i)[:, 0] for i in range(len(series))]
        holes = [plant(x, size, gaps, rng) for x in truth]
        missing = [np.isnan(x) for x in holes]
        row: dict[str, Any] = {"set": name, "season": season, "gap": size, "series": len(series)}

        def error(filled: list[np.ndarray], truth: list = truth, missing: list = missing) -> float:
            return float(np.mean([np.abs(f - x)[m].mean() / x.std() for f, x, m in zip(filled, truth, missing,
                                                                                       strict=True)]))  # fmt: skip

        row["line"] = error([interpolate(x, 1) for x in holes])
        row["season line"] = error([interpolate(x, season) for x in holes])
        for predictor in predictors:
            begin = time.process_time()
            found = impute(predictor, SeriesSet.from_arrays(name, holes, series.freqs[0]), bar=False)
            row[f"{predictor.name}: seconds"] = time.process_time() - begin
            parts = [slice(a, b) for a, b in zip(found.series.offsets[:-1], found.series.offsets[1:], strict=True)]
            row[predictor.name] = error([found.values[part, 0] for part in parts])
            inside = [
                ((found.low[part, 0] <= x) & (x <= found.high[part, 0]))[m].mean()
                for part, x, m in zip(parts, truth, missing, strict=True)
            ]
            row[f"{predictor.name}: coverage"] = float(np.mean(inside))
        rows.append(row)
    return rows


def better(row: dict[str, Any]) -> float:
    """The smaller error of the two interpolations."""
    return min(row["line"], row["season line"])


def page(rows: list[dict[str, Any]], role: str, command: str) -> str:
    """The tables as Markdown."""
    sets = list(dict.fromkeys(row["set"] for row in rows))
    models = [name.removesuffix(": coverage") for name in rows[0] if name.endswith(": coverage")]
    ratios = []
    for model in models:
        for name in sets:
            own = [row for row in rows if row["set"] == name]
            each = [row[model] / better(row) for row in own]
            total = sum(row[model] for row in own) / min(
                sum(r["line"] for r in own), sum(r["season line"] for r in own)
            )
            inside = float(np.mean([row[f"{model}: coverage"] for row in own]))
            ratios.append([model, name, own[0]["season"], *(f"{x:.2f}" for x in each), f"{total:.2f}", f"{inside:.2f}"])
    errors = [
        [row["set"], row["gap"], *(f"{row[name]:.3f}" for name in ("line", "season line", *models)),
         *(f"{row[f'{model}: coverage']:.2f}" for model in models)]
        for row in rows
    ]  # fmt: skip
    seconds = ", ".join(f"{model} {sum(row[f'{model}: seconds'] for row in rows):.0f} s" for model in models)
    head = {"tablefmt": "github", "disable_numparse": True}
    kind = "evaluation" if role == "bench" else "training"
    return "\n\n".join(
        [
            "# Filling of gaps",
            f"Measured by `{command}`. Gaps of {', '.join(map(str, GAPS))} steps in the latest {ROWS} rows of "
            f"{rows[0]['series']} series of each of {len(sets)} {kind} sets; "
            + ", ".join(f"{count} of {size} steps" for size, count in GAPS.items())
            + f" in a series. CPU time: {seconds}.",
            "## Error compared with interpolation",
            "Mean absolute error of the median, divided by that of the better of two interpolations: a line between "
            "the ends of the gap, and a line through the values of the same phase of the season. `all`: the sum over "
            "lengths, compared with the interpolation that is better by it. The last column is the share of true "
            "values in the 80 % interval.",
            tabulate(ratios, ["model", "set", "season", *map(str, GAPS), "all", "in 80 %"], **head),
            "## Errors",
            "In standard deviations of the series, and the share of true values in the 80 % interval.",
            tabulate(errors, ["set", "gap", "line", "season line", *models, *(f"{m} in 80 %" for m in models)], **head),
        ]
    ) + "\n"  # fmt: skip


def main(role: Literal["bench", "train"] = "bench", series: int = 3, output: Path | None = None) -> None:
    """Fill planted gaps, and write impute.md and impute.json.

    Args:
        role: evaluation sets, or training sets, by which choices are made.
        series: series of each set.
        output: folder of the page; for training sets, it is only printed by default.
    """
    torch.set_num_threads(1)
    rows = [row for name in SETS[role] for row in measure(name, series, MODELS)]
    words = [*(["--role", role] if role != "bench" else []), "--series", series]
    command = " ".join(["python benchmarks/impute.py", *map(str, words)])
    text = page(rows, role, command)
    if output is None and role == "train":
        print(text)
    else:
        write(output or Path(__file__).parent, "impute", rows, {"command": command}, text)


if __name__ == "__main__":
    run(main)
