"""Zero-shot models on training sets outside the corpus: the scores by which choices are made.

Those are the sets that the open corpus leaves out because of their licences, and four sources that the training of
long-history models holds out (the released decoder and encoder were trained on them). No benchmark set is among them.

    python benchmarks/heldout.py --models tsfm-decoder-small
"""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ablation import HORIZONS, held_out_sets
from common import run, write
from tabulate import tabulate

from tsfm.inference import load_predictor
from tsfm_data.errors import InputError
from tsfm_data.evaluation import Predictor, evaluate_series, get_profile
from tsfm_data.evaluation.report import BASELINE
from tsfm_data.io import SeriesSet, atomic_file, catalog

HELD_OUT = ("np_yosemite_temps", "gk_parking_birmingham", "gk_bikesharing_dc", "seattle_trail")
MOST_SERIES = 12  # of each of these sets
MEDIUM = (*HELD_OUT, "wind_power", "pedestrian_melbourne_2016", "beijing_prsa_12sites", "ecl_excerpt_1000x203",
          "gefcom2012_wp")  # fmt: skip
RELEASED = ("tsfm-long-small", "tsfm-decoder-small", "tsfm-encoder-small")
SHORT = 40  # steps: less than two days of hours, three years of months
COLUMNS = ("group", "sets", "model", "MASE", "WQL", "80 % coverage")
METRICS = ("MASE", "WQL", "coverage80")
GROUPS = {"Y": "years and quarters", "Q": "years and quarters", "M": "months", "W": "weeks", "D": "days", "B": "days"}


def sets() -> Iterator[tuple[str, SeriesSet]]:
    """Name and series of every set."""
    yield from held_out_sets()
    for name in HELD_OUT:
        series = catalog.load(name).univariate()
        yield name, series.select(range(min(len(series), MOST_SERIES)))


def score(predictor: Predictor, file: Path | None) -> list[dict[str, Any]]:
    """Scores of a predictor, one row per set and term; read from ``file`` if it exists, else kept there."""
    if file is not None and file.is_file():
        return list(json.loads(file.read_text()))
    rows = []
    for name, series in sets():
        freq = series.freqs[0]
        for term in ("gift", "gift-medium") if name in MEDIUM else ("gift",):
            horizon = HORIZONS.get(freq[0]) if term == "gift" else None
            try:
                found = evaluate_series(predictor, series, get_profile(term), name, horizon=horizon).rows
            except InputError:  # too short for the protocol
                continue
            row: dict[str, Any] = {"set": name, "term": term, "freq": freq, "windows": found[0]["windows"]}
            rows.append(row | {r["metric"]: r["value"] for r in found if r["metric"] in METRICS})
    if file is not None:
        with atomic_file(file) as part:
            part.write_text(json.dumps(rows) + "\n")
    return rows


def group_of(row: dict[str, Any]) -> str:
    """Group of sets of similar frequency and term."""
    short = GROUPS.get(row["freq"][0], "minutes" if "min" in row["freq"] else "hours")
    return short if row["term"] == "gift" else "medium term"


def relative(scores: dict[str, dict[Any, dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row per group of sets and model: errors relative to seasonal naive, and coverage."""
    naive = {key: row for key, row in scores[BASELINE].items() if row["MASE"] > 0 and row["WQL"] > 0}
    groups = {key: group_of(row) for key, row in naive.items()}
    rows = []
    for group in ("all", *dict.fromkeys(groups.values())):
        keys = [key for key in naive if group in ("all", groups[key])]
        for name, of_model in scores.items():
            row: dict[str, Any] = {"group": group, "sets": len(keys), "model": name}
            for metric in ("MASE", "WQL"):
                ratios = [max(of_model[key][metric], 1e-9) / naive[key][metric] for key in keys]
                row[metric] = float(np.exp(np.mean(np.log(ratios))))
            row["coverage80"] = float(np.mean([of_model[key]["coverage80"] for key in keys]))
            rows.append(row)
    return rows


def main(
    models: list[str] | None = None,
    kept: Path | None = None,
    output: Path = Path(__file__).parent,
    detail: bool = False,
) -> None:
    """Score models and write heldout.md.

    Args:
        models: names or folders; the released zero-shot models by default.
        kept: folder for the scores of each model; a model with a file there is not scored again.
        output: folder for heldout.md and heldout.json.
        detail: print MASE, relative to seasonal naive, and coverage of every set.
    """
    torch.set_num_threads(1)
    scores: dict[int | None, dict[str, dict[Any, dict[str, Any]]]] = {None: {}, SHORT: {}}
    for longest, name in itertools.product(scores, (BASELINE, *(models or RELEASED))):
        predictor, part = load_predictor(name), name.strip("/").replace("/", "_")
        if longest is not None and name != BASELINE:
            predictor.context = longest  # type: ignore[misc]
            part += f"_{longest}"
        rows = score(predictor, None if kept is None else kept / f"{part}.json")
        scores[longest][name] = {(r["set"], r["term"]): r for r in rows}
    if detail:
        for key, of_naive in scores[None][BASELINE].items():
            found = [m[key] for m in scores[None].values()]
            print(*key, *(f"{r['MASE'] / max(of_naive['MASE'], 1e-9):.3f} {r['coverage80']:.2f}" for r in found))
    lines = [
        "# Sets outside the training corpus",
        "",
        f"The released decoder and encoder were trained on {', '.join(HELD_OUT)}; long-history models were not. "
        "Choices among models are made by such sets, never by the benchmarks.",
        "",
        "    python benchmarks/heldout.py",
        "",
        "MASE and WQL divided by those of seasonal naive, as geometric means over pairs of set and term; the mean "
        "share of true values inside the 80 % interval.",
    ]
    rows = []
    for longest, by_model in scores.items():
        part = relative(by_model)
        rows += [{"longest": longest, **row} for row in part]
        table = tabulate([list(row.values()) for row in part], COLUMNS, "github", floatfmt=".3f")
        heading = "All the history" if longest is None else f"At most {longest} steps of history (naive: all of it)"
        lines += ["", f"## {heading}", "", table]
    write(output, "heldout", rows, {}, "\n".join([*lines, ""]))


if __name__ == "__main__":
    run(main)
