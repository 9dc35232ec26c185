"""Published results for the sets of a suite, if they are comparable with ours.

The table (``anchors.csv``: dataset, freq, horizon, model, metric, value, source) contains results of GIFT-Eval, fev and
the Chronos benchmarks. A set of a suite names its entry in the table. The entry counts as comparable only if our
seasonal naive reproduces the published one in MASE and WQL to 1e-4, which fails with other data, windows or seasons.
"""

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tsfm_data.errors import InputError
from tsfm_data.evaluation.baselines import BASELINES
from tsfm_data.evaluation.report import BASELINE, Report
from tsfm_data.evaluation.suite_sets import SuiteSet
from tsfm_data.io import data_folder

COLUMNS = ("dataset", "freq", "horizon", "model", "metric", "value", "source")
METRICS = {"MASE": "MASE", "WQL": "WQL", "CRPS_mean_wQL": "WQL"}
TOLERANCE = 1e-4  # the table has six decimals
Key = tuple[str, str, str]  # profile, set, model


@dataclass(frozen=True)
class Published:
    """Published results of the comparable sets.

    Attributes:
        values: profile, set and model -> metric -> value.
        sources: profile, set and model -> where the results are published.
        sets: group -> the comparable sets. A group is the profile, or the profile and "in-domain" if the published
            models were trained on other series of the same sets.
        notes: lines for the reader: the sets that are not comparable, and why.
    """

    values: Mapping[Key, Mapping[str, float]] = field(default_factory=dict)
    sources: Mapping[Key, str] = field(default_factory=dict)
    sets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def complete(self, group: str) -> list[str]:
        """The models that have results on every set of a group."""
        names_of_group = set(self.sets.get(group, ()))
        names_of_model: dict[str, set[str]] = {}
        for profile, name, model in self.values:
            if profile == group.split()[0] and name in names_of_group:
                names_of_model.setdefault(model, set()).add(name)
        return [model for model, names in names_of_model.items() if names == names_of_group]


def anchors_file() -> Path | None:
    """The table named by TSFM_ANCHORS, else ``anchors.csv`` next to or in the folder TSFM_DATA; None if there is none.

    Raises:
        InputError: TSFM_ANCHORS names a missing file.
    """
    variable = os.environ.get("TSFM_ANCHORS")
    if variable:
        path = Path(variable).expanduser()
        if not path.is_file():
            raise InputError(f"TSFM_ANCHORS: expected a table of published results, found no file at {path}")
        return path
    folder = data_folder()
    candidates = [] if folder is None else [folder.resolve().parent / "anchors.csv", folder / "anchors.csv"]
    return next((path for path in candidates if path.is_file()), None)


def load_published(report: Report, sets: Iterable[SuiteSet]) -> Published:
    """Load the published results of the sets whose seasonal naive is reproduced.

    Args:
        report: rows of an evaluation that includes seasonal naive.
        sets: the evaluated sets.

    Raises:
        InputError: the table has other columns, or a value that is not a number.
    """
    file = anchors_file()
    if file is None:
        return Published(notes=["No table of published results was found (set TSFM_ANCHORS=FILE); none are shown."])
    claims = {(profile, suite_set.name): entry for suite_set in sets for profile, entry in suite_set.published.items()}
    table, sources = _read(file, set(claims.values()))
    values, origins, notes = {}, {}, []
    comparable: dict[str, list[str]] = {}
    for (profile, name), entry in claims.items():
        if profile not in {row["profile"] for row in report.rows if row["dataset"] == name}:
            continue
        difference = _difference(report, profile, name, table.get(entry, {}))
        if difference:
            notes.append(
                f"{name} ({profile}) is not {entry} as published: {difference}; its published results are not shown."
            )
            continue
        trained_on = any("in-domain" in source for (key, _), source in sources.items() if key == entry)
        comparable.setdefault(f"{profile} in-domain" if trained_on else profile, []).append(name)
        for model, metrics in table[entry].items():
            if model != BASELINE and len(metrics) == 2:
                # A baseline may be scored here, too, under its own name.
                key = (profile, name, f"{model} (published)" if model in BASELINES else model)
                values[key], origins[key] = metrics, sources[entry, model]
    return Published(values, origins, {profile: tuple(names) for profile, names in comparable.items()}, notes)


def _difference(report: Report, profile: str, name: str, entry: Mapping[str, Mapping[str, float]]) -> str:
    """Why the published results are not comparable; empty if they are."""
    if not entry:
        return "the table has no such entry"
    if BASELINE not in entry:
        return "no seasonal naive is published to compare with"
    for metric, theirs in entry[BASELINE].items():
        ours = report.value(metric, dataset=name, profile=profile, model=BASELINE)
        if ours is None or abs(ours - theirs) > TOLERANCE * abs(theirs):
            return (
                f"seasonal naive has {metric} {theirs:.6f} there and {'none' if ours is None else f'{ours:.6f}'} here"
            )
    return ""


def _read(file: Path, entries: set[str]) -> tuple[dict[str, dict[str, dict[str, float]]], dict[tuple[str, str], str]]:
    """Entry -> model -> metric -> value, and the source of each entry and model; the first line of a model counts."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    sources: dict[tuple[str, str], str] = {}
    with file.open(newline="", encoding="utf-8") as lines:
        rows = csv.DictReader(lines)
        if rows.fieldnames is None or not set(COLUMNS) <= set(rows.fieldnames):
            raise InputError(f"{file}: expected the columns {', '.join(COLUMNS)}, found {rows.fieldnames}")
        for number, row in enumerate(rows, 2):
            if row["dataset"] not in entries or row["metric"] not in METRICS:
                continue
            model = row["model"].lower().replace("_", "-")
            metric = METRICS[row["metric"]]
            metrics = table.setdefault(row["dataset"], {}).setdefault(model, {})
            if metric not in metrics:
                metrics[metric] = _number(row["value"], file, number)
                sources[row["dataset"], model] = row["source"]
    return table, sources


def _number(text: str, file: Path, line: int) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"{file}, line {line}: expected a number in column value, found {text!r}") from error


def published_results(published: Published, report: Report) -> list[dict[str, Any]]:
    """Published results as rows, one per set, model and metric, with their ``source``."""
    places = {(row["profile"], row["dataset"]): row for row in report.rows}
    return [
        {
            **{key: places[profile, name][key] for key in ("dataset", "profile", "freq", "horizon", "season")},
            "model": model,
            "metric": metric,
            "value": value,
            "source": published.sources[profile, name, model],
        }
        for (profile, name, model), metrics in published.values.items()
        for metric, value in metrics.items()
    ]
