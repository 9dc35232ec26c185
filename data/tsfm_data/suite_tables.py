"""The tables of a suite's report, as rows for a page and as Markdown."""

from typing import TYPE_CHECKING, Any

from tsfm_data.relative import HEADLINE
from tsfm_data.report import BASELINE

if TYPE_CHECKING:
    from tsfm_data.suite_report import SuiteReport

Row = dict[str, Any]


def summary_rows(report: "SuiteReport") -> list[Row]:
    """A line a profile and model: geometric means relative to seasonal naive, and calibration."""
    lines = []
    for profile, models in report.summary.items():
        ordered = sorted(models, key=lambda name: (name != report.model, models[name]["WQL"]["relative"] or 0))
        for model in ordered:
            found = models[model]
            lines.append(
                {
                    "profile": profile,
                    "model": model,
                    "relative MASE": found["MASE"]["relative"],
                    "relative WQL": found["WQL"]["relative"],
                    "sets": found["MASE"]["datasets"],
                    "80 % coverage": found["coverage80"],
                    "coverage error": found["coverage_error"],
                }
            )
    return lines


def published_rows(report: "SuiteReport", profile: str) -> list[Row]:
    """A line a model: geometric means over the sets where the work is the same, the best WQL first."""
    models = report.same_work[profile]["models"]
    own = {row["model"] for row in report.report.rows}
    lines = [
        {
            "model": model,
            "relative MASE": found["MASE"],
            "relative WQL": found["WQL"],
            "scored": "here" if model in own else "published",
        }
        for model, found in models.items()
    ]
    return sorted(lines, key=lambda line: (line["relative WQL"] is None, line["relative WQL"] or 0))


def markdown(report: "SuiteReport") -> str:
    """Headline, per-set tables, published results and notes."""
    from tabulate import tabulate

    def table(rows: list[Row]) -> str:
        cells = [["–" if value is None else value for value in row.values()] for row in rows]
        return tabulate(cells, list(rows[0]), tablefmt="github", floatfmt=".3f")

    parts = [f"# {report.model} on suite {report.suite}", table(summary_rows(report))]
    for profile in report.summary:
        parts += [f"## {profile}", table(report.set_rows(profile))]
        same = report.same_work.get(profile)
        if same:
            parts += [f"Published results on {', '.join(same['sets'])}:", table(published_rows(report, profile))]
    if report.notes:
        parts += ["## Notes", "\n".join(f"- {note}" for note in report.notes)]
    return "\n\n".join(parts) + "\n"


__all__ = ["BASELINE", "HEADLINE", "markdown", "published_rows", "summary_rows"]
