"""The report of a fit: ``report.html`` for readers, ``fit.json`` for programs, figures as SVG and PDF."""

import json
from collections.abc import Callable
from pathlib import Path

from tsfm.reports import Image, Section, page, save_figure, save_page
from tsfm.scaling.analysis import Analysis
from tsfm.scaling.comparisons import group_parts, metric_parts, published_parts
from tsfm.scaling.figures.trust import NAMES_OF_FIGURES, draw_all
from tsfm.scaling.record import Record
from tsfm.scaling.sections import (
    TWO_INTERVALS,
    Part,
    data_table,
    interval,
    joint_parts,
    named,
    next_parts,
    optimal_table,
    repetition_parts,
    route_parts,
    sentence,
    shown_laws,
    single_note,
    single_table,
    trust_parts,
)
from tsfm_data.io import atomic_file

METHOD = (
    "The joint law is L(N, D) = E + A / N^alpha + B / D^beta. It is fitted to log loss with a Huber loss (width 1e-3 "
    "unless the table gives another) summed over runs: variable projection on a grid of exponents gives starting "
    "points, and a damped Newton method minimises from the best of them. E lies between 0 and the largest loss. "
    "Intervals hold the values for which the best law with that value fits hardly worse than the best of all: the "
    "profile of a Huber loss whose width is 1.345 standard deviations of the noise, with critical values of the F "
    "distribution; if runs share a training, the rise of the profile is corrected for that. Compute is 6 N D unless "
    "the table of runs gives it."
)


def write_report(analysis: Analysis, folder: Path) -> None:
    """Write ``fit.json``, ``report.html`` and the folder ``figures``.

    Args:
        analysis: the results.
        folder: output folder; files of an earlier report are replaced.
    """
    figures = draw_all(analysis)
    for name in set(NAMES_OF_FIGURES) - set(figures):  # of an earlier fit
        for suffix in ("svg", "pdf"):
            (folder / "figures" / f"{name}.{suffix}").unlink(missing_ok=True)
    for name, (figure, _, _) in figures.items():
        for suffix in ("svg", "pdf"):
            save_figure(figure, folder / "figures" / f"{name}.{suffix}")
    images = {name: Image(figure, alt, caption) for name, (figure, alt, caption) in figures.items()}
    save_page(build_page(analysis.record, images), folder / "report.html")
    with atomic_file(folder / "fit.json") as file:
        file.write_text(json.dumps(analysis.record, indent=1, allow_nan=False) + "\n")


def build_page(record: Record, images: dict[str, Image]) -> str:
    """The HTML text of the report.

    Args:
        record: results of the analysis.
        images: figures by name.
    """
    laws = shown_laws(record)

    def each(parts_of: Callable[[Record], list[Part]]) -> list[Part]:
        return [part for label, law in laws.items() for part in named(label, parts_of(law))]

    def drawn(*names: str) -> list[Part]:
        return [images[name] for name in names if name in images]

    has_law = any(law["joint"]["identifiable"] for law in laws.values())
    groups: list[Part] = [] if record["groups"] is None else group_parts(record)
    sections = [
        Section("Warnings", [f"{sentence(text)}." for text in all_warnings(record)]),
        Section("Joint law", [*each(joint_parts), *([TWO_INTERVALS] if has_law else []), *drawn("surface")]),
        Section("Do the groups differ?", groups),
        Section("Training curves", drawn("curves")),
        Section("Loss in one variable", [*drawn("loss"), *each(_single_parts)]),
        Section("Compute-optimal size by three routes", [*each(route_parts), *drawn("isoflop", "frontier")]),
        Section("Compute-optimal plans", each(_optimal_parts)),
        Section("Next best runs", each(next_parts)),
        Section(
            "How far to trust it",
            [*drawn("residuals"), *each(trust_parts), *drawn("draws", "extrapolation")],
        ),
        Section("Other metrics", each(metric_parts)),
        Section("Repeated data", each(repetition_parts)),
        Section("Published laws", published_parts(record)),
        Section("Data and method", [data_table(record), METHOD]),
    ]
    return page("Scaling law", [section for section in sections if section.parts], lead(record))


def _single_parts(record: Record) -> list[Part]:
    return [single_table(record), single_note(record)] if record["single"] else []


def _optimal_parts(record: Record) -> list[Part]:
    return [optimal_table(record)] if record["optimal"] else []


def lead(record: Record) -> str:
    """The main result in a sentence or two, for each group if there are groups."""
    groups = record["groups"]
    if groups is None:
        return law_sentence(record, f"{record['data']['runs']:,} runs of {record['data']['file']}")
    sentences = [
        law_sentence(law, f"{law['data']['runs']:,} runs of {label!r} in {record['data']['file']}")
        for label, law in groups["laws"].items()
    ]
    if not record["joint"]["identifiable"]:
        sentences.append(f"No law holds for all groups: {'; '.join(record['joint']['not_identifiable'])}.")
    return "\n".join(sentences)


def law_sentence(record: Record, runs: str) -> str:
    """The law of some runs in a sentence or two."""
    joint = record["joint"]
    if not joint["identifiable"]:
        return f"The joint law is not identifiable from {runs}: {'; '.join(joint['not_identifiable'])}."
    return (
        f"L(N, D) = {joint['E']:.4g} + {joint['A']:.4g} / N^{joint['alpha']:.4f} + {joint['B']:.4g} / "
        f"D^{joint['beta']:.4f}, from {runs}. The compute-optimal size grows as C^{joint['a']:.3f} "
        f"({interval(joint['ci95']['a'])})."
    )


def law_warnings(record: Record) -> list[str]:
    """The warnings of a law, with the constants that are hardly determined."""
    joint = record["joint"]
    return [*record["warnings"], *(joint["not_identifiable"] if joint["identifiable"] else [])]


def all_warnings(record: Record) -> list[str]:
    """All warnings, those of the law of a group with its name."""
    groups = (record["groups"] or {"laws": {}})["laws"]
    return law_warnings(record) + [f"{label}: {text}" for label, law in groups.items() for text in law_warnings(law)]
