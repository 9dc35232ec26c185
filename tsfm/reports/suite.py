"""The report of a model on an evaluation suite: an HTML page, Markdown, JSON, and a summary for the terminal."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tabulate import tabulate

from tsfm.reports.figures import FORECAST, HISTORY, TRUTH, new_figure
from tsfm.reports.html import Code, Image, Section, Table, page, save_page
from tsfm_data.evaluation import (
    BASELINE,
    SuiteReport,
    coverage_points,
    published_rows,
    relative,
    set_rows,
    summary_rows,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKS = {"auto-ets": (TRUTH, "s"), "auto-theta": ("#009e73", "^"), "naive": (HISTORY, "x")}
LOW, HIGH = 0.2, 5.0  # ratios outside are drawn at the edge
HOW = (
    "Every data set counts once: its error is divided by that of seasonal naive, and the geometric mean is taken over "
    "the sets; below 1 is better than seasonal naive. The columns 'over its': error of the evaluated model divided by "
    "that of the model in this row, on the sets that have both. MASE: mean absolute error of the median divided by "
    "that of seasonal naive within the history. WQL: weighted quantile loss at the levels 0.1 to 0.9."
)
COVERAGE = (
    "80 % coverage is the share of true values inside the 80 % interval and should be 0.8; the coverage error is the "
    "mean absolute difference between the coverage of the quantiles and their levels. Both are means over sets."
)
PROTOCOLS = {
    "gift": "GIFT-Eval's short term: the last tenth of each series in at most 20 windows; competition sets one window.",
    "gift-medium": "GIFT-Eval's medium term: ten times the short horizon.",
    "gift-long": "GIFT-Eval's long term: fifteen times the short horizon.",
    "chronos": "The Chronos benchmark: the last window of each series. Its seasonal naive has no intervals, so that "
    "relative WQL is lower here than under GIFT-Eval.",
}
SAME = (
    "Published results are comparable only on sets where our seasonal naive reproduces the published MASE and WQL of "
    "seasonal naive to 1e-4. The means are over these sets. Models without results on all of them are left out."
)
IN_DOMAIN = "The published models were trained on other series of these sets: not zero-shot for them."


def write(report: SuiteReport, folder: Path, command: str) -> None:
    """Write report.html, report.md and report.json.

    Args:
        report: the scores.
        folder: output folder.
        command: the command that was run.
    """
    save_page(build_page(report, command), folder / "report.html")
    report.save(folder / "report.md")
    report.save(folder / "report.json")


def say(report: SuiteReport) -> str:
    """The summary table and the notes for the terminal."""
    rows = [list(row.values()) for row in summary_rows(report)]
    table = tabulate(rows, list(summary_rows(report)[0]), tablefmt="github", floatfmt=".3f", missingval="–")
    return "\n".join([table, *(f"\n{note}" for note in report.notes)])


def build_page(report: SuiteReport, command: str) -> str:
    """The HTML text of the page."""
    headline = summary_rows(report)
    strong = [index for index, row in enumerate(headline) if row["model"] == report.model]
    held = ("80 % coverage", "coverage error")
    errors = [{name: value for name, value in row.items() if name not in held} for row in headline]
    coverage = [{name: row[name] for name in ("profile", "model", *held)} for row in headline]
    sections = [
        Section("Summary", [Table(errors, strong=strong), HOW]),
        Section("Calibration", [calibration_image(report), Table(coverage, COVERAGE, strong)]),
    ]
    for profile in report.summary:
        sections.append(Section(f"Profile {profile}", [PROTOCOLS[profile], ratio_image(report, profile)]))
        sections[-1] = Section(sections[-1].title, [*sections[-1].parts, *ratio_tables(report, profile)])
    sections += [published_section(report, group) for group in report.same_work]
    sections.append(Section("Notes", [*report.notes, Code(command)]))
    return page(f"{report.model} on suite {report.suite}", sections, lead(report))


def lead(report: SuiteReport) -> str:
    """The main result in a sentence."""
    parts = []
    for profile, models in report.summary.items():
        scores = models[report.model]
        if scores["MASE"]["relative"] is None or scores["WQL"]["relative"] is None:
            continue
        parts.append(
            f"{scores['MASE']['relative']:.3f} in MASE and {scores['WQL']['relative']:.3f} in WQL "
            f"over {scores['MASE']['datasets']} sets ({profile})"
        )
    return f"Error relative to seasonal naive, geometric mean: {'; '.join(parts)}." if parts else ""


def ratio_tables(report: SuiteReport, profile: str) -> list[Table]:
    """Errors of the model per data set, and the ratios of all models to seasonal naive."""
    rows = set_rows(report, profile)
    fixed = ("dataset", "freq", "horizon", "windows", "MASE", "WQL", "80 % coverage")
    tables = [Table([{name: row[name] for name in fixed} for row in rows], f"Errors of {report.model}.")]
    for metric in relative.HEADLINE:
        names = [name for name in rows[0] if name not in fixed and name.endswith(metric)]
        cells = [{name.replace(metric, "").strip(): row[name] for name in names} for row in rows]
        named = [
            {"dataset": row["dataset"], report.model: cell.pop("relative"), **cell}
            for row, cell in zip(rows, cells, strict=True)
        ]
        tables.append(Table(named, f"{metric} relative to seasonal naive."))
    return tables


def published_section(report: SuiteReport, group: str) -> Section:
    """The model compared with published ones."""
    rows = published_rows(report, group)
    strong = [index for index, row in enumerate(rows) if row["model"] == report.model]
    names = ", ".join(report.same_work[group]["sets"])
    parts: list[str | Table] = [SAME, Table(rows, f"Geometric means over {names}.", strong)]
    return Section(
        f"Comparison with published results: {group}", [*([IN_DOMAIN] if "in-domain" in group else []), *parts]
    )


def ratio_image(report: SuiteReport, profile: str) -> Image:
    """Ratios to seasonal naive, one line per data set, for the model and the baselines."""
    values = relative.cells(report.report.rows)
    rows = report.report.rows
    models = [m for m in dict.fromkeys(row["model"] for row in rows) if m not in (report.model, BASELINE)]
    names = list(dict.fromkeys(row["dataset"] for row in rows if row["profile"] == profile))
    names.sort(key=lambda name: relative.ratio(values, profile, name, report.model, "WQL") or HIGH, reverse=True)
    figure, axes = new_figure(2, 2, width=9.0, height=1.2 + 0.24 * len(names))
    for axis, metric in zip(axes, relative.HEADLINE, strict=True):
        for model in [*models, report.model]:
            ratios = [relative.ratio(values, profile, name, model, metric) for name in names]
            if any(value is not None for value in ratios):
                _dots(axis, ratios, model, strong=model == report.model)
        _ratio_axis(axis, names, metric)
    axes[1].set_yticklabels([])
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), frameon=False, fontsize=9)
    alt = f"Errors of {', '.join([report.model, *models])} relative to seasonal naive on {len(names)} sets"
    caption = f"Errors relative to seasonal naive per data set; left of 1 is better. Clipped to {LOW:g} to {HIGH:g}."
    return Image(figure, alt, caption)


def _dots(axis: "Axes", ratios: Sequence[float | None], model: str, strong: bool) -> None:
    shown = [(min(max(value, LOW), HIGH), row) for row, value in enumerate(ratios) if value is not None]
    colour, mark = (FORECAST, "o") if strong else MARKS.get(model, (HISTORY, "D"))
    x, y = zip(*shown, strict=True)
    axis.scatter(x, y, s=34 if strong else 18, c=colour, marker=mark, label=model, zorder=3 if strong else 2)


def _ratio_axis(axis: "Axes", names: Sequence[str], metric: str) -> None:
    ticks = [0.25, 0.5, 0.7, 1, 1.5, 2, 4]
    axis.set_xscale("log")
    axis.set_xlim(LOW * 0.95, HIGH * 1.05)
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.axvline(1, color=HISTORY, linewidth=1)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(-0.7, len(names) - 0.3)
    axis.tick_params(labelsize=8)
    axis.set_title(f"{metric} relative to seasonal naive", loc="left", fontsize=10)


def calibration_image(report: SuiteReport) -> Image:
    """How often the truth is below each quantile, against its level."""
    figure, axes = _calibration(report)
    for axis in axes:
        axis.set_xlabel("quantile level", fontsize=9)
    axes[0].set_ylabel("share of true values below", fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), frameon=False, fontsize=9)
    alt = "Share of true values below each quantile, against its level"
    return Image(figure, alt, "Calibration, mean over sets: on the diagonal, the quantiles are calibrated.")


def _calibration(report: SuiteReport) -> "tuple[Figure, list[Axes]]":
    profiles = list(report.summary)
    figure, axes = new_figure(len(profiles), len(profiles), width=max(4.4, 3.2 * len(profiles)), height=3.3)
    for axis, profile in zip(axes, profiles, strict=True):
        axis.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=1)
        for model in report.summary[profile]:
            strong = model == report.model
            colour, mark = (FORECAST, "o") if strong else MARKS.get(model, (HISTORY, "D"))
            x, y = zip(*coverage_points(report, profile, model), strict=True)
            width = 1.8 if strong else 0.9
            axis.plot(x, y, color=colour, marker=mark, markersize=5 if strong else 3, linewidth=width, label=model)
        axis.set_xlim(0, 1)
        axis.set_ylim(0, 1)
        axis.set_aspect("equal")
        axis.tick_params(labelsize=8)
        axis.set_title(profile, loc="left", fontsize=10)
    return figure, axes
