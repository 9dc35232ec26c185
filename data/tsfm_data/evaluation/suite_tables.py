"""The tables of a suite's report, as rows for a page and as Markdown."""

from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from tsfm_data.evaluation import relative
from tsfm_data.evaluation.report import BASELINE
from tsfm_data.evaluation.suite_sets import coverage, suite_profile

if TYPE_CHECKING:
    from tsfm_data.evaluation.suite_report import SuiteReport

Row = dict[str, Any]


def summary_rows(report: "SuiteReport") -> list[Row]:
    """One row per profile and model: geometric means relative to seasonal naive, and calibration."""
    lines = []
    for profile, models in report.summary.items():
        ordered = sorted(models, key=lambda name: (name != report.model, models[name]["WQL"]["relative"] or 0))
        for model in ordered:
            scores = models[model]
            comparison = scores["model_over_it"] if model != report.model else {}
            lines.append(
                {
                    "profile": profile,
                    "model": model,
                    "relative MASE": scores["MASE"]["relative"],
                    "relative WQL": scores["WQL"]["relative"],
                    "sets": scores["MASE"]["datasets"],
                    "MASE over its": comparison.get("MASE"),
                    "WQL over its": comparison.get("WQL"),
                    "80 % coverage": scores["coverage80"],
                    "coverage error": scores["coverage_error"],
                }
            )
    return lines


def set_rows(report: "SuiteReport", profile: str) -> list[Row]:
    """One row per set: its windows, the model's errors and coverage, and every model's ratio to seasonal naive."""
    rows = report.report.rows
    values = relative.cells(rows)
    others = [m for m in dict.fromkeys(row["model"] for row in rows) if m not in (report.model, BASELINE)]
    lines = []
    for name, set_row in {row["dataset"]: row for row in rows if row["profile"] == profile}.items():
        line = {key: set_row[key] for key in ("dataset", "freq", "horizon", "windows")}
        for metric in relative.HEADLINE:
            line[metric] = values.get((profile, name, report.model, metric))
        for metric in relative.HEADLINE:
            line[f"relative {metric}"] = relative.ratio(values, profile, name, report.model, metric)
            for model in others:
                line[f"{model} {metric}"] = relative.ratio(values, profile, name, model, metric)
        line["80 % coverage"] = values.get((profile, name, report.model, "coverage80"))
        lines.append(line)
    return lines


def coverage_points(report: "SuiteReport", profile: str, model: str) -> list[tuple[float, float]]:
    """Each quantile level and the share of true values below its quantile, averaged over sets."""
    points = []
    for level in suite_profile(profile).levels:
        shares = [
            row["value"]
            for row in report.report.rows
            if (row["profile"], row["model"], row["metric"]) == (profile, model, coverage(level))
            and row["value"] is not None
        ]
        if shares:
            points.append((level, sum(shares) / len(shares)))
    return points


def published_rows(report: "SuiteReport", group: str) -> list[Row]:
    """One row per model: geometric means over the comparable sets, best WQL first."""
    models = report.same_work[group]["models"]
    scored_here = {row["model"] for row in report.report.rows}
    lines = [
        {
            "model": model,
            "relative MASE": means["MASE"],
            "relative WQL": means["WQL"],
            "scored": "here" if model in scored_here else "published",
        }
        for model, means in models.items()
    ]
    return sorted(lines, key=lambda line: (line["relative WQL"] is None, line["relative WQL"] or 0))


def markdown(report: "SuiteReport") -> str:
    """Headline, per-set tables, published results and notes."""

    def table(rows: list[Row]) -> str:
        cells = [list(row.values()) for row in rows]
        return tabulate(cells, list(rows[0]), tablefmt="github", floatfmt=".3f", missingval="–")

    parts = [f"# {report.model} on suite {report.suite}", table(summary_rows(report))]
    for profile in report.summary:
        parts += [f"## {profile}", table(set_rows(report, profile))]
        for group, same in report.same_work.items():
            if group.split()[0] == profile:
                parts += [f"### Published: {group}", f"On {', '.join(same['sets'])}:"]
                parts.append(table(published_rows(report, group)))
    if report.notes:
        parts += ["## Notes", "\n".join(f"- {note}" for note in report.notes)]
    return "\n\n".join(parts) + "\n"
