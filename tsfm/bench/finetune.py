"""Zero-shot beside fine-tuned on sets of the suite, over seeds: scores on the protocol's own test windows.

Of every series, what lies before its first test window is all that fine-tuning sees.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tsfm.finetune import Recipe, finetune
from tsfm.forecaster import Forecaster
from tsfm.holdout import until
from tsfm_data.evaluate import evaluate_series
from tsfm_data.series import SeriesSet
from tsfm_data.suite_sets import SuiteSet, choose, suite_profile
from tsfm_data.windows import item_lengths

SETS = (
    "ETTh1",
    "exchange_rate",
    "hospital",
    "m4_weekly",
    "national_illness",
    "nn5",
    "solar_weekly",
    "vehicle_trips",
    "weather",
    "m3_monthly",
)
METHODS = ("head", "lora", "full")
METRICS = ("MASE", "WQL")
PROFILE = "gift"


def run(
    model: Forecaster,
    sets: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    progress: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """A row a set, method and seed, and one a set for the model itself.

    Args:
        model: to start from.
        sets: names of sets of the suite "bench".
        methods: of fine-tuning.
        seeds: of fine-tuning.
        steps: most optimiser steps.
        progress: called with a line for each row.
    """
    rows: list[dict[str, Any]] = []
    for one in choose("bench", (PROFILE,), sets):
        series = one.load()
        before = scores(model, one, series)
        rows.append({"set": one.name, "method": "zero-shot", "seed": None, **before, "seconds": 0.0, "kept": False})
        history, horizon = history_of(one, series)
        for method in methods:
            for seed in seeds:
                begin = time.process_time()
                recipe = Recipe(method=method, steps=steps, seed=seed)  # type: ignore[arg-type]
                result = finetune(model, history, horizon, recipe)
                seconds = time.process_time() - begin
                after = scores(result.model, one, series) if result.improved else before
                row = {"set": one.name, "method": method, "seed": seed, **after, "seconds": seconds}
                rows.append(row | {"kept": result.improved})
                if progress is not None:
                    change = ", ".join(f"{name} {after[name] / before[name]:.3f}" for name in METRICS)
                    progress(f"{one.name} {method} seed {seed}: {change} of zero-shot, {seconds:.0f} s")
    return rows


def history_of(one: SuiteSet, series: SeriesSet) -> tuple[SeriesSet, int]:
    """What lies before the first test window of every series, and the protocol's horizon."""
    profile = suite_profile(PROFILE)
    horizon = profile.horizon(one.name, series.freqs[0])
    lengths = item_lengths(series)
    items, cuts = profile.cuts(one.name, series.item_ids, lengths, horizon)
    ends = lengths.copy()
    np.minimum.at(ends, items, cuts)
    return until(series, ends), horizon


def scores(model: Forecaster, one: SuiteSet, series: SeriesSet) -> dict[str, float]:
    """The metrics of a model on the test windows of a set."""
    report = evaluate_series(model, series, suite_profile(PROFILE), one.name)
    return {row["metric"]: float(row["value"]) for row in report.rows if row["metric"] in METRICS}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval (Student's t); NaN for a single value."""
    from scipy import stats

    found = np.asarray(values)
    if len(found) < 2:
        return float(found.mean()), math.nan
    half = stats.t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / math.sqrt(len(found))
    return float(found.mean()), float(half)


def table(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a set and method: relative scores with intervals over seeds, how often the result was kept, seconds."""
    found = []
    for name in dict.fromkeys(row["set"] for row in rows):
        before = next(row for row in rows if row["set"] == name and row["method"] == "zero-shot")
        for method in dict.fromkeys(row["method"] for row in rows if row["method"] != "zero-shot"):
            runs = [row for row in rows if row["set"] == name and row["method"] == method]
            line: dict[str, Any] = {"set": name, "method": method}
            for metric in METRICS:
                mean, half = interval([row[metric] / before[metric] for row in runs])
                line[metric] = f"{before[metric]:.3f}"
                line[f"{metric} relative"] = f"{mean:.3f}" + ("" if math.isnan(half) else f" ± {half:.3f}")
            line["kept"] = f"{sum(row['kept'] for row in runs)} of {len(runs)}"
            found.append(line | {"CPU s": round(float(np.mean([row["seconds"] for row in runs])))})
    return found


def summarise(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a method: geometric mean over sets of the scores relative to zero-shot, and the worst set."""
    found = []
    zero = {row["set"]: row for row in rows if row["method"] == "zero-shot"}
    for method in dict.fromkeys(row["method"] for row in rows if row["method"] != "zero-shot"):
        line: dict[str, Any] = {"method": method}
        for metric in METRICS:
            logs = []
            for name, first in zero.items():
                runs = [row for row in rows if row["set"] == name and row["method"] == method]
                logs.append(float(np.mean([math.log(row[metric] / first[metric]) for row in runs])))
            line[f"{metric} mean"] = round(math.exp(np.mean(logs)), 3)
            line[f"{metric} worst"] = round(math.exp(max(logs)), 3)
        found.append(line)
    return found


def to_markdown(rows: Sequence[dict[str, Any]], model: str, command: str) -> str:
    """The table as it stands in ``benchmarks/finetune.md``."""
    from tabulate import tabulate

    return "\n".join(
        [
            "# Fine-tuning",
            "",
            f"The model {model}, zero-shot and after `tsfm finetune` on what lies before the test windows of",
            f"`{PROFILE}`; scores on those. MASE and WQL are zero-shot's; relative: the result over it,",
            "with 95 % intervals of the mean over seeds (Student's t); below 1 is better. Kept: how often the backtest",
            "preferred the fine-tuned model; otherwise the result is the zero-shot model. CPU seconds of one run.",
            "",
            f"    {command}",
            "",
            tabulate(summarise(rows), headers="keys", tablefmt="github"),
            "",
            tabulate(table(rows), headers="keys", tablefmt="github"),
            "",
        ]
    )
