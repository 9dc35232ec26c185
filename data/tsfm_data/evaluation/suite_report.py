"""The report of a suite: rows, and per profile geometric means of errors relative to seasonal naive."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tsfm_data.evaluation import relative
from tsfm_data.evaluation.published import Published, load_published, published_results
from tsfm_data.evaluation.relative import HEADLINE
from tsfm_data.evaluation.report import Report, save_report
from tsfm_data.evaluation.suite_sets import SuiteSet
from tsfm_data.evaluation.suite_tables import markdown


@dataclass
class SuiteReport:
    """Scores of one model on a suite, with those of baselines and published results.

    Attributes:
        model: name of the model.
        suite: name of the suite.
        report: rows of the model and the baselines.
        published: results of others on the comparable sets.
        notes: lines for the reader.
    """

    model: str
    suite: str
    report: Report
    published: Published = field(default_factory=Published)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def build(cls, model: str, suite: str, sets: Sequence[SuiteSet], report: Report) -> "SuiteReport":
        """Build a report from the rows of an evaluation; published results are added for comparable sets."""
        results = load_published(report, sets)
        suite_report = cls(model, suite, report, results, [*report.notes, *results.notes])
        for profile, models in suite_report.summary.items():
            for name, summary in models.items():
                for metric, sets_left_out in summary["without_ratio"].items():
                    suite_report.notes.append(
                        f"{name}, {profile}: no {metric} relative to seasonal naive on {', '.join(sets_left_out)} "
                        "(undefined, or an error of zero); left out of the geometric mean."
                    )
        return suite_report

    def relative(self, metric: str = "MASE", profile: str = "gift", model: str | None = None) -> float | None:
        """Geometric mean over sets of a metric relative to seasonal naive; None if there is no such set.

        Args:
            metric: MASE, WQL, MSE or MAE.
            profile: the protocol.
            model: a baseline; None means the model of this report.

        Raises:
            KeyError: the profile or model was not evaluated.
        """
        value = self.summary[profile][model or self.model][metric]["relative"]
        return None if value is None else float(value)

    @property
    def summary(self) -> dict[str, Any]:
        """Profile -> model -> relative errors (``Report.summary``), calibration, and the sets without a ratio.

        ``model_over_it`` are the errors of this report's model divided by the other's, on the sets with both.
        """
        summary, values = self.report.summary, relative.cells(self.report.rows)
        for profile, models in summary.items():
            for model, scores in models.items():
                scores |= relative.mean_calibration(values, profile, model)
                scores["model_over_it"] = relative.compare_models(values, profile, self.model, model)
                scores["without_ratio"] = relative.sets_without_ratio(values, profile, model)
        return summary

    @property
    def same_work(self) -> dict[str, Any]:
        """Group -> the sets with comparable published results, and geometric means over these sets.

        Models without published results on all of these sets are left out. Sets of which the published models were
        trained on other series form a separate group, "chronos in-domain".
        """
        rows = [*self.report.rows, *published_results(self.published, self.report)]
        values, groups = relative.cells(rows), {}
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
            groups[group] = {"sets": list(names), "models": means}
        return groups

    def to_json(self) -> str:
        """``{"rows": [...], "summary": {...}, "same_work": {...}, "notes": [...]}``; undefined values are null.

        Published results are rows with a ``source``.
        """
        whole = {
            "model": self.model,
            "suite": self.suite,
            "rows": [*self.report.rows, *published_results(self.published, self.report)],
            "summary": self.summary,
            "same_work": self.same_work,
            "notes": self.notes,
        }
        return json.dumps(whole, indent=1, allow_nan=False)

    def save(self, path: str | Path) -> None:
        """Write the report in the format of the suffix: .json, .md or .parquet (rows only).

        Raises:
            InputError: another suffix.
        """
        save_report(self, self.report.rows, path)

    def to_markdown(self) -> str:
        """Headline, per-set tables, published results and notes."""
        return markdown(self)
