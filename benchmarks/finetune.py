"""Fine-tuned forecasts compared with zero-shot ones on sets of the suite, over several seeds.

Fine-tuning sees only the history before the first test window of each series. Finished runs are kept in one file each,
so an interrupted table continues where it stopped. Another model or recipe has other files.

    python benchmarks/finetune.py
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from common import run, write
from tabulate import tabulate

from tsfm.inference import load_model
from tsfm.models import Forecaster
from tsfm.training import LEARNING_RATES, Recipe, finetune, until
from tsfm_data.errors import unknown_name
from tsfm_data.evaluation import SuiteSet, choose, evaluate_series, suite_profile
from tsfm_data.io import SeriesSet, atomic_file
from tsfm_data.windows import item_lengths

METHODS = ("head", "lora", "full")
METRICS = ("MASE", "WQL")
PROFILE = "gift"
# Sets with enough history to learn from are chosen by length alone, before any fine-tuned score was known.
LEAST_HORIZONS = 50  # horizons of history before the test windows, in the median series
LEAST_POINTS = 5000  # in all series together
STEPS = 200


def measure(
    model: Forecaster,
    sets: Sequence[str] | None,
    methods: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    folder: Path,
    progress: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """One row per set, method and seed, and one per set for the zero-shot model.

    Args:
        model: the pretrained model.
        sets: names of sets of the suite "bench"; None takes all with enough history.
        methods: names of fine-tuning methods.
        seeds: seeds of fine-tuning.
        steps: largest number of optimiser steps.
        folder: where finished rows are kept.
        progress: called with one line of text per row.
    """
    rows: list[dict[str, Any]] = []
    weights = digest(model)
    for one in choose("bench", (PROFILE,), sets):
        series = one.load()
        history, horizon = history_of(one.name, series)
        if sets is None and not enough(history, horizon):
            continue
        work = (weights, one.digest(suite_profile(PROFILE), series.freqs[0]))
        with once(folder, f"{one.name}_zero-shot", work) as before:
            if not before:
                before |= scores(model, one, series)
        rows.append({"set": one.name, "method": "zero-shot", "seed": None, **before, "seconds": 0.0, "kept": False})
        for method in methods:
            for seed in seeds:
                recipe = Recipe(method, steps, seed=seed, lr=LEARNING_RATES[method])  # type: ignore[arg-type, index]
                with once(folder, f"{one.name}_{method}_{seed}", (*work, recipe)) as row:
                    if not row:
                        row |= outcome(model, one, series, history, horizon, recipe, before)
                rows.append({"set": one.name, "method": method, "seed": seed, **row})
                if progress is not None:
                    change = ", ".join(f"{name} {row[name] / before[name]:.3f}" for name in METRICS)
                    progress(f"{one.name} {method} seed {seed}: {change} of zero-shot, {row['seconds']:.0f} s")
    return rows


def outcome(
    model: Forecaster,
    one: SuiteSet,
    series: SeriesSet,
    history: SeriesSet,
    horizon: int,
    recipe: Recipe,
    before: dict[str, Any],
) -> dict[str, Any]:
    """Fine-tune on the history and score on the test windows; `seconds` is the CPU time of fine-tuning."""
    begin = time.process_time()
    result = finetune(model, history, horizon, recipe)
    seconds = time.process_time() - begin
    after = scores(result.model, one, series) if result.improved else {name: before[name] for name in METRICS}
    return {**after, "seconds": seconds, "kept": result.improved}


def enough(history: SeriesSet, horizon: int) -> bool:
    """Whether there is enough history to learn from."""
    lengths = item_lengths(history)
    return bool(np.median(lengths) >= LEAST_HORIZONS * horizon and lengths.sum() >= LEAST_POINTS)


def digest(model: Forecaster) -> str:
    """A hash of a model's kind, sizes and weights."""
    digested = hashlib.sha256(repr((model.model_type, model.context, model.horizon, model.config)).encode())
    for key, value in sorted(model.state_dict().items()):
        digested.update(key.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digested.hexdigest()[:16]


@contextmanager
def once(folder: Path, name: str, work: Any) -> Iterator[dict[str, Any]]:
    """A row that is computed once: read from its file, or an empty one that the caller fills and that is then written.

    Args:
        folder: where rows are kept.
        name: of the row.
        work: everything that the row depends on; its ``repr`` becomes part of the file's name.
    """
    file = folder / f"{name}_{hashlib.sha256(repr(work).encode()).hexdigest()[:12]}.json"
    if file.is_file():
        yield json.loads(file.read_text())
        return
    row: dict[str, Any] = {}
    yield row
    with atomic_file(file) as temporary:
        temporary.write_text(json.dumps(row) + "\n")


def history_of(name: str, series: SeriesSet, horizon: int | None = None) -> tuple[SeriesSet, int]:
    """What lies before the first test window of every series, and the horizon: by default the protocol's."""
    profile = suite_profile(PROFILE)
    horizon = horizon or profile.horizon(name, series.freqs[0])
    lengths = item_lengths(series)
    items, cuts = profile.cuts(name, series.item_ids, lengths, horizon)
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

    sample = np.asarray(values)
    if len(sample) < 2:
        return float(sample.mean()), math.nan
    half = stats.t.ppf(0.975, len(sample) - 1) * sample.std(ddof=1) / math.sqrt(len(sample))
    return float(sample.mean()), float(half)


def table(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per set and method: relative scores with intervals over seeds, how often the result was kept, seconds."""
    lines = []
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
            lines.append(line | {"CPU s": round(float(np.mean([row["seconds"] for row in runs])))})
    return lines


def summarise(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per method: geometric mean over sets of the scores relative to zero-shot, and the worst set."""
    lines = []
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
        lines.append(line)
    return lines


def to_markdown(rows: Sequence[dict[str, Any]], model: str, command: str) -> str:
    """The page ``benchmarks/finetune.md``."""
    return "\n".join(
        [
            "# Fine-tuning",
            "",
            f"{model} is scored zero-shot and after `tsfm finetune`, on the test windows of the protocol `{PROFILE}`.",
            "Fine-tuning sees only the history before those windows.",
            "",
            f"    {command}",
            "",
            "Errors relative to zero-shot, below 1 is better: geometric mean over the sets, and the worst set.",
            "The aims were a mean of 0.97 or less and no set above 1.01.",
            "",
            tabulate(summarise(rows), headers="keys", tablefmt="github", floatfmt=".3f"),
            "",
            "The next table shows each set:",
            "",
            "- MASE, WQL: errors of the zero-shot model.",
            "- relative: error of the result divided by the zero-shot error. It is the mean over seeds with its 95 %",
            "  interval (Student's t).",
            "- kept: how often a backtest preferred the fine-tuned model. Otherwise the result is the zero-shot model,",
            "  and the ratio is 1.",
            "- CPU s: CPU seconds of one run, backtests included.",
            "",
            f"By default, the sets are those whose median series has at least {LEAST_HORIZONS} horizons",
            f"of history and whose series have at least {LEAST_POINTS:,} points together. This was decided before any",
            "fine-tuned score was known. Learning rates were chosen on other data sets, which are in neither the suite",
            "nor the training corpus ([finetune_rates.md](finetune_rates.md)).",
            "Among those that made no set worse by more than 1 %, the one with the best mean was taken.",
            "",
            tabulate(table(rows), headers="keys", tablefmt="github", floatfmt=".3f"),
            "",
        ]
    )


def main(
    model: str | None = None,
    sets: list[str] | None = None,
    methods: list[str] | None = None,
    seeds: list[int] | None = None,
    steps: int = STEPS,
    runs: Path = Path("runs/finetune_bench"),
    output: Path = Path("benchmarks"),
) -> None:
    """Score a model zero-shot and fine-tuned on sets of the suite, with intervals over seeds and the CPU time.

    Finished runs are kept in the runs folder, so an interrupted table continues where it stopped.

    Args:
        model: a name from tsfm weights list, or a model folder; by default the forecaster that tsfm forecast uses.
        sets: sets of the suite, for instance ETTh1; by default all with enough history.
        methods: one or more of head, lora and full; all by default.
        seeds: seeds of fine-tuning; 0, 1 and 2 by default.
        steps: largest number of optimiser steps.
        runs: folder of finished runs; it may hold those of other models and recipes.
        output: folder for finetune.md and finetune.json.
    """
    for name in methods or []:
        if name not in METHODS:
            raise unknown_name("method", name, METHODS)
    start = load_model(model)
    rows = measure(start, sets, methods or METHODS, seeds or [0, 1, 2], steps, runs, print)
    words: dict[str, list[Any]] = {
        "model": [model] if model else [],
        "sets": sets or [],
        "methods": methods or [],
        "seeds": seeds or [],
    }
    words["steps"] = [] if steps == STEPS else [steps]
    given = (f" --{name} {' '.join(map(str, values))}" for name, values in words.items() if values)
    command = "python benchmarks/finetune.py" + "".join(given)
    summary = {"model": start.name, "command": command, "methods": summarise(rows)}
    write(output, "finetune", rows, summary, to_markdown(rows, start.name, command))


if __name__ == "__main__":
    run(main)
