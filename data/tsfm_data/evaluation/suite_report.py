"""What a suite's evaluation found: rows, and per protocol the geometric mean relative to seasonal naive."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tsfm_data.evaluation import published as anchors
from tsfm_data.evaluation import relative
from tsfm_data.evaluation.relative import HEADLINE
from tsfm_data.evaluation.report import Report, save_report
from tsfm_data.evaluation.suite_sets import SuiteSet
from tsfm_data.evaluation.suite_tables import markdown


@dataclass
class SuiteReport:
    """Scores of one model on a suite, beside baselines and published results.

    Attributes:
        model: its name.
        suite: name of the suite.
        report: rows of the model and the baselines.
        published: results of others on the sets where the work is the same.
        notes: lines for the reader.
    """

    model: str
    suite: str
    report: Report
    published: anchors.Published = field(default_factory=anchors.Published)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def build(cls, model: str, suite: str, sets: Sequence[SuiteSet], report: Report) -> "SuiteReport":
        """From the rows of an evaluation; published results are added where the work is the same."""
        found = anchors.published(report, sets)
        made = cls(model, suite, report, found, [*report.notes, *found.notes])
        for profile, models in made.summary.items():
            for name, summary in models.items():
                for metric, lost in summary["without_ratio"].items():
                    made.notes.append(
                        f"{name}, {profile}: no {metric} relative to seasonal naive on {', '.join(lost)} (undefined, "
                        "or an error of zero); left out of the geometric mean."
                    )
        return made

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
        """Profile -> model -> relative errors (``Report.summary``), calibration, and the sets without a ratio.

        ``model_over_it`` are this report's model's errors over the other's, on the sets that have both.
        """
        summary, values = self.report.summary, relative.cells(self.report.rows)
        for profile, models in summary.items():
            for model, found in models.items():
                found |= relative.calibration(values, profile, model)
                found["model_over_it"] = relative.between(values, profile, self.model, model)
                found["without_ratio"] = relative.undefined(values, profile, model)
        return summary

    @property
    def same_work(self) -> dict[str, Any]:
        """Profile -> the sets whose published results are comparable, and the geometric means over just these sets.

        Models that are not published on all of these sets are left out. Sets on whose other series the published models
        were trained form a group of their own, "chronos in-domain".
        """
        rows = [*self.report.rows, *anchors.rows(self.published, self.report)]
        values, found = relative.cells(rows), {}
        ours = list(dict.fromkeys(row["model"] for row in self.report.rows))
        for group, names in self.published.sets.items():
            profile = group.split()[0]
            models = [*ours, *self.published.complete(group)]
            means = {
                model: {
                    metric: relative.geometric_mean(
                        [relative.ratio(values, profile, name, model, metric) for name in names]
                    )
                    for metric in HEADLINE
                }
                for model in models
                if all((profile, name, model, "MASE") in values for name in names)
            }
            found[group] = {"sets": list(names), "models": means}
        return found

    def to_json(self) -> str:
        """``{"rows": [...], "summary": {...}, "same_work": {...}, "notes": [...]}``; what is undefined is null.

        Published results are rows with a ``source``.
        """
        whole = {
            "model": self.model,
            "suite": self.suite,
            "rows": [*self.report.rows, *anchors.rows(self.published, self.report)],
            "summary": self.summary,
            "same_work": self.same_work,
            "notes": self.notes,
        }
        return json.dumps(whole, indent=1, allow_nan=False)

    def save(self, path: str | Path) -> None:
        """Write in the form that the suffix names: .json, .md or .parquet (rows alone).

        Raises:
            InputError: another suffix.
        """
        save_report(self, self.report.rows, path)

    def to_markdown(self) -> str:
        """Headline, per-set tables, published results and notes."""
        return markdown(self)
