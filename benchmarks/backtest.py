"""The choice of a backtest compared with each single model: the tables of the demo and some benchmark sets.

python benchmarks/backtest.py
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import run, write
from tabulate import tabulate

from tsfm.commands.demo import EXAMPLES
from tsfm.inference import CHOICES, backtest
from tsfm_data.errors import unknown_name
from tsfm_data.io import SeriesSet, catalog, read_series

DEMO = {example.name: example for example in EXAMPLES}
# Steps to forecast: the demo's own, and those of the benchmarks.
HORIZONS = {example.name: example.horizon for example in EXAMPLES}
HORIZONS |= {"national_illness": 8, "us_births": 30, "nn5": 56}
METRICS = ("scaled loss", "MASE", "WQL", "80 % coverage", "calibrated coverage", "calibrated loss")
MODELS = ["tsfm-long-small", "tsfm-decoder-small", "seasonal-naive", "naive"]
STATISTICAL, QUICK = ["auto-ets", "auto-theta"], (*DEMO, "national_illness")  # sets on which they take only minutes


def load(name: str) -> SeriesSet:
    """A table by its name, with the seasons of the calendar, as for a user's table."""
    if name in DEMO:
        return read_series(DEMO[name].read(), name=name)
    return replace(catalog.load(name), natural=True)


def measure(name: str, models: list[str] | None) -> list[dict[str, Any]]:
    """The leaderboard of one table."""
    series = load(name)
    result = backtest(series, HORIZONS[name], models or MODELS + STATISTICAL * (name in QUICK))
    place = {"set": name, "series": len(result.ids), "horizon": result.horizon, "windows": len(result.judged)}
    return [{**place, **row} for row in result.leaderboard()]


def page(rows: list[dict[str, Any]], command: str) -> str:
    """The tables as Markdown, one for each metric."""
    sets = list(dict.fromkeys(row["set"] for row in rows))
    measured = [row["model"] for row in rows if row["model"] not in CHOICES]
    models = [name for name in dict.fromkeys([*MODELS, *STATISTICAL, *measured]) if name in measured] + list(CHOICES)
    cell = {(row["set"], row["model"]): row for row in rows}
    parts = [
        "# The choice of a backtest compared with each single model",
        f"Measured by `{command}`. Scores are those of the later half of the windows. For each of them, models were "
        "chosen, ensembles built and intervals calibrated only on earlier windows. Scaled loss: mean pinball loss over "
        "the levels 0.1 to 0.9, times two, divided by the error of seasonal naive within the history. The smallest "
        "error of each set is in bold. A dash means not measured.",
    ]
    for metric in METRICS:
        table = []
        for name in sets:
            values = [cell[name, model][metric] if (name, model) in cell else None for model in models]
            least = min((v for v in values if v is not None), default=math.inf) if metric in METRICS[:3] else None
            place = cell[name, CHOICES[0]]
            facts = [name, place["series"], place["horizon"], place["windows"]]
            table.append([*facts, *(show(value, value is not None and value == least) for value in values)])
        heads = ["set", "series", "horizon", "scored windows", *models]
        parts += [
            f"## {metric[0].upper()}{metric[1:]}",
            tabulate(table, heads, tablefmt="github", disable_numparse=True),
        ]
    whole = [model for model in models if all((name, model) in cell for name in sets)]
    means = ", ".join(f"{model} {mean_ratio(cell, sets, model):.3f}" for model in whole)
    compared = "Scaled loss divided by that of the best single model of each set, known only in hindsight"
    parts += [f"{compared} (geometric mean over sets): {means}."]
    return "\n\n".join(parts) + "\n"


def show(value: float | None, strong: bool) -> str:
    """A number of a table."""
    text = "–" if value is None else f"{value:.3f}"
    return f"**{text}**" if strong else text


def mean_ratio(cell: dict[tuple[str, str], dict[str, Any]], sets: list[str], model: str) -> float:
    """Geometric mean over sets of a model's scaled loss over the least one of a single model."""
    least = {
        name: min(row["scaled loss"] for (s, m), row in cell.items() if s == name and m not in CHOICES) for name in sets
    }
    return math.exp(sum(math.log(cell[name, model]["scaled loss"] / least[name]) for name in sets) / len(sets))


def main(sets: list[str] | None = None, models: list[str] | None = None, output: Path = Path("benchmarks")) -> None:
    """Backtest several models on every table and write backtest.md and backtest.json.

    Args:
        sets: which of the tables; all by default.
        models: what to compare; by default the two zero-shot models, both naive forecasts, and AutoETS and
            AutoTheta if these take only minutes.
        output: folder of the page.
    """
    for name in sets or ():
        if name not in HORIZONS:
            raise unknown_name("set", name, HORIZONS)
    rows = [row for name in sets or HORIZONS for row in measure(name, models)]
    words = [*(["--sets", *sets] if sets else []), *(["--models", *models] if models else [])]
    command = " ".join(["python benchmarks/backtest.py", *words])
    write(output, "backtest", rows, {"command": command}, page(rows, command))


if __name__ == "__main__":
    run(main)
