"""Zero-shot beside fine-tuned on sets of the suite, over seeds: scores on the protocol's own test windows.

Of every series, what lies before its first test window is all that fine-tuning sees. Finished runs are kept, each in a
file of its own, so an interrupted table goes on where it stopped; another model or recipe has other files.

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
from tsfm.training import LEARNING_RATES, Recipe, finetune, truncate
from tsfm_data.errors import unknown_name
from tsfm_data.evaluation import SuiteSet, choose, evaluate_series, suite_profile
from tsfm_data.io import SeriesSet, atomic_file
from tsfm_data.windows import item_lengths

METHODS = ("head", "lora", "full")
METRICS = ("MASE", "WQL")
PROFILE = "gift"
# Which sets: those with enough history to learn from, by length alone, decided before any fine-tuned score was seen.
LEAST_HORIZONS = 50  # of history before the test windows, in the median series
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
    """A row a set, method and seed, and one a set for the model itself.

    Args:
        model: to start from.
        sets: names of sets of the suite "bench"; None takes all with enough history.
        methods: of fine-tuning.
        seeds: of fine-tuning.
        steps: most optimiser steps.
        folder: where finished rows are kept.
        progress: called with a line for each row.
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
    """Fine-tune on the history and score on the test windows; CPU seconds of the former."""
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
    """What identifies a model: its kind, sizes and weights."""
    found = hashlib.sha256(repr((model.model_type, model.context, model.horizon, model.config)).encode())
    for key, value in sorted(model.state_dict().items()):
        found.update(key.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


@contextmanager
def once(folder: Path, name: str, work: Any) -> Iterator[dict[str, Any]]:
    """A row that is computed once: what its file holds, or an empty one to fill, which is then kept.

    Args:
        folder: of the rows.
        name: of the row.
        work: what it depends on, told apart by its text.
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
    """What lies before the first test window of every series, and the horizon: the protocol's where none is given."""
    profile = suite_profile(PROFILE)
    horizon = horizon or profile.horizon(name, series.freqs[0])
    lengths = item_lengths(series)
    items, cuts = profile.cuts(name, series.item_ids, lengths, horizon)
    ends = lengths.copy()
    np.minimum.at(ends, items, cuts)
    return truncate(series, ends), horizon


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
    return "\n".join(
        [
            "# Fine-tuning",
            "",
            f"The model {model}, zero-shot and after `tsfm finetune` on what lies before the test windows of",
            f"`{PROFILE}`; scores on those. MASE and WQL are zero-shot's; relative: the result over it,",
            "with 95 % intervals of the mean over seeds (Student's t); below 1 is better. Kept: how often the backtest",
            "preferred the fine-tuned model; otherwise the result is the zero-shot model. CPU seconds of one run,",
            "backtests included.",
            "",
            f"Sets: all of the suite whose median series has {LEAST_HORIZONS} horizons of history or more before the",
            f"test windows, and all series together {LEAST_POINTS:,} points, unless the command names others; chosen",
            "by length, before any fine-tuned score was seen. Learning rates were chosen on training sets, none of",
            "the suite (`finetune_rates.py`): the one that saved most in the mean among those that made no set",
            "worse by more than 1 %.",
            "Aims: no method worse than zero-shot by more than 1 % on any set, and 3 % better in the mean.",
            "",
            f"    {command}",
            "",
            tabulate(summarise(rows), headers="keys", tablefmt="github"),
            "",
            tabulate(table(rows), headers="keys", tablefmt="github"),
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
    """Score a model zero-shot and fine-tuned on sets of the suite, with intervals over seeds and the time taken.

    Finished runs are kept in the runs folder, so an interrupted table goes on where it stopped.

    Args:
        model: a name of tsfm weights list, or a model folder; by default the model that ships with the package.
        sets: which, for instance ETTh1; all with enough history by default.
        methods: of head, lora and full; all by default.
        seeds: of fine-tuning; 0, 1 and 2 by default.
        steps: most optimiser steps.
        runs: folder of finished runs, of whatever model and recipe.
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
