"""Published results beside ours, where the work is the same.

The table (``anchors.csv``: dataset, freq, horizon, model, metric, value, source) holds results of GIFT-Eval, fev and
the Chronos benchmarks. A set of a suite names the entry that should be the same work; it counts as the same only where
our seasonal naive reproduces the published one in MASE and WQL to 1e-4: other data, windows or seasons do not do that.
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
    """Published results of the sets where the work is the same.

    Attributes:
        values: profile, set and model -> metric -> value.
        sources: profile, set and model -> where the results stand.
        sets: group -> the sets that could be compared. A group is the profile, or the profile and "in-domain" where
            the publishing models were trained on other series of the same sets.
        notes: lines for the reader: what could not be compared, and why.
    """

    values: Mapping[Key, Mapping[str, float]] = field(default_factory=dict)
    sources: Mapping[Key, str] = field(default_factory=dict)
    sets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def complete(self, group: str) -> list[str]:
        """The models that have results on every set of a group."""
        wanted = set(self.sets.get(group, ()))
        have: dict[str, set[str]] = {}
        for profile, name, model in self.values:
            if profile == group.split()[0] and name in wanted:
                have.setdefault(model, set()).add(name)
        return [model for model, names in have.items() if names == wanted]


def anchors_file() -> Path | None:
    """The table that TSFM_ANCHORS names, else ``anchors.csv`` beside or in the folder TSFM_DATA; None: there is none.

    Raises:
        InputError: TSFM_ANCHORS names a file that is not there.
    """
    named = os.environ.get("TSFM_ANCHORS")
    if named:
        path = Path(named).expanduser()
        if not path.is_file():
            raise InputError(f"TSFM_ANCHORS: expected a table of published results, found no file at {path}")
        return path
    folder = data_folder()
    places = [] if folder is None else [folder.resolve().parent / "anchors.csv", folder / "anchors.csv"]
    return next((path for path in places if path.is_file()), None)


def published(report: Report, sets: Iterable[SuiteSet], file: Path | None = None) -> Published:
    """The published results of the sets whose seasonal naive is reproduced.

    Args:
        report: rows of an evaluation, seasonal naive among them.
        sets: the sets evaluated.
        file: the table; None looks for it (``anchors_file``).

    Raises:
        InputError: the table has other columns or a value that is no number.
    """
    file = file or anchors_file()
    if file is None:
        return Published(notes=["No table of published results is at hand (set TSFM_ANCHORS=FILE): none are shown."])
    claims = {(profile, one.name): entry for one in sets for profile, entry in one.published.items()}
    table, sources = _read(file, set(claims.values()))
    values, origins, notes = {}, {}, []
    same: dict[str, list[str]] = {}
    for (profile, name), entry in claims.items():
        if profile not in {row["profile"] for row in report.rows if row["dataset"] == name}:
            continue
        why = _differs(report, profile, name, table.get(entry, {}))
        if why:
            notes.append(f"{name} ({profile}) is not {entry} as published: {why}; its published results are not shown.")
            continue
        trained_on = any("in-domain" in source for (other, _), source in sources.items() if other == entry)
        same.setdefault(f"{profile} in-domain" if trained_on else profile, []).append(name)
        for model, found in table[entry].items():
            if model != BASELINE and len(found) == 2:
                # Other baselines may be scored here, too.
                key = (profile, name, f"{model} (published)" if model in BASELINES else model)
                values[key], origins[key] = found, sources[entry, model]
    return Published(values, origins, {profile: tuple(names) for profile, names in same.items()}, notes)


def _differs(report: Report, profile: str, name: str, entry: Mapping[str, Mapping[str, float]]) -> str:
    """Why the work is not the same; empty where it is."""
    if not entry:
        return "the table has no such entry"
    if BASELINE not in entry:
        return "no seasonal naive is published to compare with"
    for metric, there in entry[BASELINE].items():
        ours = report.value(metric, dataset=name, profile=profile, model=BASELINE)
        if ours is None or abs(ours - there) > TOLERANCE * abs(there):
            return f"seasonal naive has {metric} {there:.6f} there and {'none' if ours is None else f'{ours:.6f}'} here"
    return ""


def _read(file: Path, wanted: set[str]) -> tuple[dict[str, dict[str, dict[str, float]]], dict[tuple[str, str], str]]:
    """Entry -> model -> metric -> value, and the source of each entry's model; the first line of a model counts."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    sources: dict[tuple[str, str], str] = {}
    with file.open(newline="", encoding="utf-8") as lines:
        rows = csv.DictReader(lines)
        if rows.fieldnames is None or not set(COLUMNS) <= set(rows.fieldnames):
            raise InputError(f"{file}: expected the columns {', '.join(COLUMNS)}, found {rows.fieldnames}")
        for number, row in enumerate(rows, 2):
            if row["dataset"] not in wanted or row["metric"] not in METRICS:
                continue
            model = row["model"].lower().replace("_", "-")
            metric = METRICS[row["metric"]]
            found = table.setdefault(row["dataset"], {}).setdefault(model, {})
            if metric not in found:
                found[metric] = _number(row["value"], file, number)
                sources[row["dataset"], model] = row["source"]
    return table, sources


def _number(text: str, file: Path, line: int) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"{file}, line {line}: expected a number in column value, found {text!r}") from error


def rows(found: Published, report: Report) -> list[dict[str, Any]]:
    """Published results as rows, one a set, model and metric, with their ``source``."""
    places = {(row["profile"], row["dataset"]): row for row in report.rows}
    return [
        {
            **{key: places[profile, name][key] for key in ("dataset", "profile", "freq", "horizon", "season")},
            "model": model,
            "metric": metric,
            "value": value,
            "source": found.sources[profile, name, model],
        }
        for (profile, name, model), metrics in found.values.items()
        for metric, value in metrics.items()
    ]
