"""What a suite's evaluation found: rows, and per protocol the geometric mean relative to seasonal naive."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tsfm_data.errors import InputError
from tsfm_data.files import atomic_file
from tsfm_data.report import Report
from tsfm_data.suite_sets import SuiteSet

HEADLINE = ("MASE", "WQL")
CALIBRATION = ("coverage80", "coverage_error")


@dataclass
class SuiteReport:
    """Scores of one model on a suite, beside baselines and published results.

    Attributes:
        model: its name.
        suite: name of the suite.
        report: rows of the model and the baselines.
        notes: lines for the reader.
    """

    model: str
    suite: str
    report: Report
    notes: list[str] = field(default_factory=list)

    @classmethod
    def build(cls, model: str, suite: str, sets: Sequence[SuiteSet], report: Report) -> "SuiteReport":
        """From the rows of an evaluation; published results are added where the work is the same."""
        return cls(model, suite, report, list(report.notes))

    def relative(self, metric: str = "MASE", profile: str = "gift", model: str | None = None) -> float | None:
        """Geometric mean over sets of a metric relative to seasonal naive's; None where nothing could be compared.

        Args:
            metric: MASE, WQL, MSE or MAE.
            profile: the protocol.
            model: a baseline; None is the model itself.

        Raises:
            KeyError: it was not evaluated.
        """
        found = self.summary[profile][model or self.model][metric]["relative"]
        return None if found is None else float(found)

    @property
    def summary(self) -> dict[str, Any]:
        """Profile -> model -> relative errors (``Report.summary``) and the mean over sets of the calibration."""
        summary = self.report.summary
        for profile, models in summary.items():
            for model, found in models.items():
                for metric in CALIBRATION:
                    values = [
                        row["value"]
                        for row in self.report.rows
                        if (row["profile"], row["model"], row["metric"]) == (profile, model, metric)
                        and row["value"] is not None
                    ]
                    found[metric] = sum(values) / len(values) if values else None
        return summary

    def to_json(self) -> str:
        """``{"rows": [...], "summary": {...}, "notes": [...]}``; what is undefined is null."""
        whole = {"model": self.model, "suite": self.suite, "rows": self.report.rows, "summary": self.summary}
        return json.dumps({**whole, "notes": self.notes}, indent=1, allow_nan=False)

    def save(self, path: str | Path) -> None:
        """Write in the form that the suffix names: .json or .parquet.

        Raises:
            InputError: another suffix.
        """
        if Path(path).suffix == ".parquet":
            return self.report.to_parquet(path)
        if Path(path).suffix != ".json":
            raise InputError(f"{path}: expected a name that ends in .json or .parquet, found another: rename it")
        with atomic_file(path) as temporary:
            temporary.write_text(self.to_json() + "\n", encoding="utf-8")
