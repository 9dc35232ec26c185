"""Reports of evaluations: rows, a summary over data sets, and files in JSON, Markdown and Parquet."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tabulate import tabulate

from tsfm_data.io import REPORTS, atomic_file, check_suffix

BASELINE = "seasonal-naive"
RELATIVE = ("MSE", "MAE", "MASE", "WQL")  # errors that are reported relative to the baseline's
COLUMNS = (
    "dataset",
    "model",
    "profile",
    "freq",
    "horizon",
    "season",
    "metric",
    "value",
    "windows",
    "points",
    "undefined",
)


@dataclass
class Report:
    """Rows of an evaluation, one per data set, model and metric.

    Attributes:
        rows: each with the keys in ``COLUMNS`` (and ``item_id`` in rows of single series). ``value`` is None if the
            metric is undefined everywhere; ``points`` counts the observed values, ``undefined`` those for which the
            metric is undefined (a constant history in MASE, a true value of zero in MAPE).
        notes: lines for the reader, for instance how rows were split.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __add__(self, other: "Report") -> "Report":
        return Report(self.rows + other.rows, list(dict.fromkeys(self.notes + other.notes)))

    def value(self, metric: str, **where: Any) -> float | None:
        """The value of the only row with this metric and these keys.

        Raises:
            KeyError: there is no such row, or more than one.
        """
        rows = [r for r in self.rows if r["metric"] == metric and all(r[key] == v for key, v in where.items())]
        if len(rows) != 1:
            raise KeyError(f"{metric} {where}: expected one row, found {len(rows)}")
        return rows[0]["value"]

    @property
    def summary(self) -> dict[str, Any]:
        """Per profile and model, the geometric mean over data sets of each error relative to seasonal naive.

        Empty without rows of the baseline. Ratios with an undefined or zero error are left out and counted.
        """
        whole = [row for row in self.rows if row.get("item_id") is None and row["metric"] in RELATIVE]
        base = {_group(row): row["value"] for row in whole if row["model"] == BASELINE}
        ratios: dict[tuple[str, str, str], list[float | None]] = {}
        for row in whole:
            if _group(row) in base:
                ratios.setdefault((row["profile"], row["model"], row["metric"]), []).append(
                    _quotient(row["value"], base[_group(row)])
                )
        summary: dict[str, Any] = {}
        for (profile, model, metric), values in ratios.items():
            known = [value for value in values if value is not None]
            summary.setdefault(profile, {}).setdefault(model, {})[metric] = {
                "relative": math.exp(sum(map(math.log, known)) / len(known)) if known else None,
                "datasets": len(known),
                "undefined": len(values) - len(known),
            }
        return summary

    def to_json(self) -> str:
        """``{"rows": [...], "summary": {...}, "notes": [...]}``; undefined values are null."""
        return json.dumps({"rows": self.rows, "summary": self.summary, "notes": self.notes}, indent=1, allow_nan=False)

    def to_markdown(self) -> str:
        """A table with one line per data set and model and one column per metric, then the notes."""
        metrics = list(dict.fromkeys(row["metric"] for row in self.rows))
        keys = [
            key
            for key in ("dataset", "item_id", "freq", "model", "profile", "horizon", "season", "windows")
            if any(key in row for row in self.rows)
        ]
        lines: dict[tuple[Any, ...], dict[str, str]] = {}
        for row in self.rows:
            line = lines.setdefault(tuple(row.get(key) for key in keys), {})
            line[row["metric"]] = _cell(row)
        table = [[*values, *(line.get(metric, "") for metric in metrics)] for values, line in lines.items()]
        text = tabulate(table, [*keys, *metrics], tablefmt="github", disable_numparse=True)
        if any(row["undefined"] for row in self.rows):
            text += "\n\n(n) after a value: n observed points are left out because the metric is undefined for them."
        return "\n".join([text, *(f"\n{note}" for note in self.notes)]) + "\n"

    def save(self, path: str | Path) -> None:
        """Write the report as .json, .md or .parquet, by the suffix.

        Raises:
            InputError: another suffix.
        """
        save_report(self, self.rows, path)


def save_report(report: Any, rows: list[dict[str, Any]], path: str | Path) -> None:
    """Write ``report`` as JSON or Markdown, or its rows as Parquet, by the suffix of the path."""
    suffix = Path(path).suffix
    check_suffix(Path(path), REPORTS)
    with atomic_file(path) as temporary:
        if suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), temporary)
        else:
            text = report.to_json() + "\n" if suffix == ".json" else report.to_markdown()
            temporary.write_text(text, encoding="utf-8")


def make_row(labels: Mapping[str, Any], metric: str, value: float, points: int, undefined: int) -> dict[str, Any]:
    """A row of plain Python values in the order of ``COLUMNS``.

    Args:
        labels: the columns that all metrics of one evaluation share.
        metric: name of the metric.
        value: its value; NaN if it is undefined everywhere.
        points: number of observed values.
        undefined: number of those for which the metric is undefined.
    """
    row = {
        **labels,
        "metric": metric,
        "value": value if math.isfinite(value) else None,
        "points": points,
        "undefined": undefined,
    }
    order: Sequence[str] = (*COLUMNS, *(key for key in row if key not in COLUMNS))
    return {key: row[key] for key in order}


def _group(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[key] for key in ("dataset", "profile", "freq", "horizon", "metric"))


def _quotient(value: float | None, base: float | None) -> float | None:
    return None if value is None or base is None or value <= 0 or base <= 0 else value / base


def _cell(row: Mapping[str, Any]) -> str:
    value = "undefined" if row["value"] is None else f"{row['value']:.4g}"
    return f"{value} ({row['undefined']})" if row["undefined"] else value
