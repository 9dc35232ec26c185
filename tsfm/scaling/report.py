"""The report of a fit: ``report.html`` for readers, ``fit.json`` for programs, figures as SVG and PDF."""

import json
from pathlib import Path

from tsfm.reports import Image, Section, Table, Value, page, save_figure, save_page
from tsfm.scaling.analysis import Analysis
from tsfm.scaling.figures import NAMES_OF_FIGURES, draw_all
from tsfm.scaling.laws.estimate import CONSTANTS
from tsfm.scaling.laws.form import NAMES
from tsfm.scaling.record import Record
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
TWO_INTERVALS = (
    "Plans and warnings use the interval of the profile, which holds the true constant in 93 to 97 of 100 simulated "
    "tables with 8 to 300 runs. The draws of the bootstrap over whole runs are given for comparison with published "
    "fits: each leaves out a third of the runs, so with few runs they scatter too far or, if constants are at a bound, "
    "not far enough. Where the two differ, few runs decide."
)
FAR = "The intervals assume the law: they do not cover a law that bends beyond the data."
MOST_SIZES = 24  # rows of the table of data


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
    sections = [
        _warning_section(record),
        _joint_section(record),
        Section("Loss in one variable", [images["loss"], single_table(record), _single_note(record)]),
        _route_section(record, images),
        _optimal_section(record),
        _trust_section(record, images),
        _repetition_section(record),
        _group_section(record),
        _published_section(record),
        Section("Data and method", [data_table(record), METHOD]),
    ]
    return page("Scaling law", [section for section in sections if section.parts], lead(record))


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


def interval(ends: list[float | None] | None, digits: int = 4) -> str:
    """An interval as text, such as "0.3 to 0.4" or "0.3 to open"."""
    if not ends:
        return "–"
    low, high = ("open" if end is None else number(end, digits) for end in ends)
    return f"{low} to {high}"


def number(value: float | None, digits: int = 4) -> str:
    """A number as text, with an exponent if it is very large or small; a dash for None."""
    if value is None:
        return "–"
    return f"{value:.{digits}g}" if 1e-3 <= abs(value) < 1e6 or not value else f"{value:.{digits - 1}e}"


def law_warnings(record: Record) -> list[str]:
    """The warnings of a law, with the constants that are hardly determined."""
    joint = record["joint"]
    return [*record["warnings"], *(joint["not_identifiable"] if joint["identifiable"] else [])]


def all_warnings(record: Record) -> list[str]:
    """All warnings, those of the law of a group with its name."""
    groups = (record["groups"] or {"laws": {}})["laws"]
    return law_warnings(record) + [f"{label}: {text}" for label, law in groups.items() for text in law_warnings(law)]


def _warning_section(record: Record) -> Section:
    parts = all_warnings(record)
    return Section("Warnings" if parts else "", [f"{part[0].upper()}{part[1:]}." for part in parts])


def _joint_section(record: Record) -> Section:
    joint = record["joint"]
    if not joint["identifiable"]:
        return Section("Joint law", [f"Not identifiable: {'; '.join(joint['not_identifiable'])}."])
    rows: list[dict[str, Value]] = [
        {
            "constant": name,
            "fit": number(joint[name], 5),
            "95 % interval": interval(joint["ci95"][name]),
            "95 % of bootstrap draws": interval(joint["bootstrap_ci95"][name]),
        }
        for name in CONSTANTS
    ]
    caption = (
        f"Huber objective {joint['objective']:.6g} at width {joint['huber_delta']:g}; root mean squared residual of "
        f"log loss {joint['rms_log_error']:.2g}; noise {joint['noise']:.2g}; {record['settings']['draws']:,} draws, of "
        f"which {joint['unconverged_draws']:,} have not converged and are left out."
    )
    return Section("Joint law", [Table(rows, caption), TWO_INTERVALS])


def single_table(record: Record) -> Table:
    """Table of the laws in one variable."""
    rows: list[dict[str, Value]] = []
    for law in record["single"]:
        row: dict[str, Value] = {"variable": law["variable"], "points": law["points"]}
        for form in ("power", "saturating"):
            if form in law:
                part, held = law[form], law["held_out_rms"]
                E = f"{number(part['E'])} ({interval(part['E_ci95'])})" if form == "saturating" else "0"
                rows.append(
                    row
                    | {
                        "law": "E + (x0/x)^a" if form == "saturating" else "(x0/x)^a",
                        "E": E,
                        "a": f"{number(part['exponent'])} ({interval(part['ci95'])})",
                        "x0": number(part["x0"], 3),
                        "residual": part["rms"],
                        "held out": held[form] if held else None,
                    }
                )
        if "broken" in law:
            part = law["broken"]
            rows.append(
                row
                | {
                    "law": "smoothly broken",
                    "E": number(part["E"]),
                    "a": f"{number(part['first'], 3)}, then {number(part['second'], 3)}",
                    "x0": f"break {number(part['break_at'], 3)}",
                    "residual": part["rms"],
                    "held out": law["held_out_rms"]["broken"],
                }
            )
    caption = (
        "Least squares on log loss, fitted to the best loss in each tenth of a decade. Residual: root mean squared "
        "error of log loss. Held out: the same on the quarter of the points with the largest x, by the law fitted to "
        "the others."
    )
    return Table(rows, caption)


def _single_note(record: Record) -> str:
    notes = []
    for law in record["single"]:
        if "not_identifiable" in law:
            notes.append(f"In {law['variable']} there are {law['points']} points: not identifiable.")
        elif "saturating" in law and not law["saturating"]["E_identifiable"]:
            notes.append(f"In {law['variable']} E is not identifiable: its interval begins at 0.")
    names = {"power": "the pure power law", "saturating": "the saturating law", "broken": "the smoothly broken law"}
    chosen = [f"{names[law['preferred']]} in {law['variable']}" for law in record["single"] if "preferred" in law]
    if chosen:
        notes.append(f"Held-out error prefers {', '.join(chosen)}.")
    notes.append(
        "If the other quantity is neither fixed nor large, E of a law in one variable includes the loss that it "
        "causes; the law in compute describes the efficient frontier."
    )
    return " ".join(notes)


def _route_section(record: Record, images: dict[str, Image]) -> Section:
    routes, joint = record["routes"], record["joint"]
    rows: list[dict[str, Value]] = []
    for key, name in (("curves", "1: minima over training curves"), ("isoflop", "2: IsoFLOP profiles")):
        route = routes[key]
        if route is None:
            rows.append({"approach": name, "a": "not identifiable", "95 % interval": "–"})
        else:
            rows.append(
                {"approach": name, "a": number(route["exponent"], 3), "95 % interval": interval(route["ci95"], 3)}
            )
    a = joint["a"]
    rows.append(
        {
            "approach": "3: parametric fit",
            "a": "not identifiable" if a is None else number(a, 3),
            "95 % interval": interval(joint["ci95"]["a"], 3),
        }
    )
    parts: list[str | Table | Image] = [Table(rows, "Exponent a of the compute-optimal size, N_opt ~ C^a.")]
    if routes["curves"] is None:
        parts.append("Approach 1 needs training curves: ten or more rows per run, and a column that names the run.")
    if routes["isoflop"] is None:
        parts.append("Approach 2 needs three budgets with five sizes each around their minimum.")
    bias = routes["isoflop_bias"]
    if bias is not None:
        parts.append(
            f"Bias of approach 2: applied to the noise-free losses of the joint law above for the same runs, it gives "
            f"a = {bias['exponent_found']:.3f} instead of {bias['exponent_true']:.3f}, and sizes "
            f"{bias['size_ratio_smallest_budget']:.2f} (smallest budget) to {bias['size_ratio_largest_budget']:.2f} "
            "(largest) times the optimal ones."
        )
    parts += [images[name] for name in ("isoflop", "frontier") if name in images]
    return Section("Compute-optimal size by three routes", parts)


def optimal_table(record: Record, caption: str) -> Table:
    """Compute-optimal plans of a law."""
    rows: list[dict[str, Value]] = [
        {
            "compute (FLOP)": f"{row['flops']:.2e}" + (" *" if row["beyond_data"] else ""),
            "parameters": f"{row['params']:.3g} ({interval(row['params_ci95'], 3)})",
            "tokens": f"{row['tokens']:.3g} ({interval(row['tokens_ci95'], 3)})",
            "loss": f"{row['loss']:.4g} ({interval(row['loss_ci95'], 4)})",
        }
        for row in record["optimal"]
    ]
    beyond = (
        "* beyond the data: more compute than any run, or a size or number of tokens outside the range of the runs. "
    )
    return Table(rows, caption + beyond + FAR)


def _optimal_section(record: Record) -> Section:
    if not record["optimal"]:
        return Section("", [])
    return Section("Compute-optimal plans", [optimal_table(record, "95 % intervals in brackets. ")])


def _trust_section(record: Record, images: dict[str, Image]) -> Section:
    if not record["joint"]["identifiable"]:
        return Section("", [])
    rows: list[dict[str, Value]] = [
        {key.replace("_", " "): number(value) if isinstance(value, float) else value for key, value in row.items()}
        for row in record["sensitivity"]
    ]
    parts: list[str | Table | Image] = [images["residuals"], _misfit_text(record["misfit"])]
    if record["laws"]:
        parts.append(laws_table(record))
    parts += [images[name] for name in ("draws",) if name in images]
    parts.append(Table(rows, "The fit under other choices; a is the exponent of the compute-optimal size."))
    ahead = record["extrapolation"]
    if ahead is None:
        parts.append("There are too few runs to test the extrapolation to the largest compute.")
    else:
        parts.append(
            f"Extrapolation: fitted without the {ahead['held_out_rows']} runs of the largest compute (above "
            f"{ahead['largest_flops_seen']:.2e} FLOP), the law misses their log loss by {ahead['rms_log_error']:.4f} "
            f"(root mean square; mean {ahead['mean_log_error']:+.4f}) against {ahead['rms_log_error_seen']:.4f} on the "
            "runs it saw."
        )
        parts.append(images["extrapolation"])
    return Section("How far to trust it", parts)


def _misfit_text(record: Record) -> str:
    """The tests of the joint law in words."""
    words = []
    if record["pattern_p"] is not None:
        words.append(
            f"A quadratic surface in log size and log data explains {100 * record['pattern_share']:.0f} % of the "
            f"variance of the residuals (p = {record['pattern_p']:.2g})."
        )
    if record["lack_of_fit_p"] is not None:
        words.append(
            f"Compared with the scatter of runs of the same size and data, the law misses its runs with p = "
            f"{record['lack_of_fit_p']:.2g}."
        )
    for name, trend in record["noise_trend"].items():
        words.append(f"Scatter against {name}: rank correlation {trend['correlation']:+.2f} (p = {trend['p']:.2g}).")
    return " ".join(words) or "There are too few runs to test the law."


def laws_table(record: Record) -> Table:
    """Other forms of the law, by their error on held-out runs."""
    rows: list[dict[str, Value]] = [
        {
            "law": row["law"],
            "constants": row["constants"],
            "fitted": number(row["rms_log_error"], 3),
            "cross-validation": number(row["cross_validation"], 3),
            "largest runs": number(row["largest_runs"], 3),
            "plan: parameters": number(row["plan"]["params"], 3),
            "plan: loss": number(row["plan"]["loss"]),
        }
        for row in record["laws"]
    ]
    chosen = next(k for k, row in enumerate(record["laws"]) if row["preferred"])
    caption = (
        "Other laws in size and data: root mean squared error of log loss on the runs fitted, in cross-validation over "
        "runs, and on the fifth of the runs with the largest compute, fitted without them. The plans are for "
        f"{record['laws'][0]['plan']['flops']:.2g} FLOPs; their spread shows how much the form of the law matters. "
        f"Cross-validation prefers {rows[chosen]['law']}."
    )
    return Table(rows, caption, [chosen])


def _repetition_section(record: Record) -> Section:
    repetition = record["repetition"]
    if repetition is None:
        return Section("", [])
    if "not_identifiable" in repetition:
        return Section("Repeated data", [f"Not identifiable: {repetition['not_identifiable']}."])
    excess = ""
    if repetition["R_params"] is not None:
        excess = (
            f" Parameters beyond the compute-optimal size for U tokens are worth less in the same way, with R_N* = "
            f"{number(repetition['R_params'], 3)} ({interval(repetition['R_params_ci95'], 3)})."
        )
    text = (
        f"U different tokens seen 1 + R times are worth U + U R* (1 - exp(-R / R*)) new ones, with R* = "
        f"{number(repetition['R_star'], 3)} ({interval(repetition['ci95'], 3)}, by profile), from "
        f"{repetition['runs_with_repeated_data']} runs with repeated data.{excess} Root mean squared errors of log "
        "loss in cross-validation: "
        + ", ".join(f"{number(error, 3)} ({form})" for form, error in repetition["held_out_rms"].items())
        + "."
    )
    rows: list[dict[str, Value]] = [
        {"law": "in effective tokens", **{n: number(v) for n, v in repetition["law"].items()}}
    ]
    verdict = "Held-out error prefers it." if repetition["preferred"] else "Held-out error does not prefer it."
    return Section("Repeated data", [text, verdict, Table(rows)])


def _group_section(record: Record) -> Section:
    groups = record["groups"]
    if groups is None:
        return Section("", [])
    parts: list[str | Table | Image] = []
    rows: list[dict[str, Value]] = []
    for label, law in groups["laws"].items():
        joint = law["joint"]
        if joint["identifiable"]:
            ends = joint["ci95"]
            rows.append({"group": label} | {n: f"{number(joint[n])} ({interval(ends[n], 3)})" for n in CONSTANTS})
        else:
            parts.append(f"{label}: not identifiable: {'; '.join(joint['not_identifiable'])}.")
    if rows:
        parts.append(Table(rows, "Joint law of each group, with 95 % intervals."))
    for label, law in groups["laws"].items():
        if law["optimal"]:
            parts.append(optimal_table(law, f"{label}: compute-optimal plans, 95 % intervals in brackets. "))
    for pair in groups["pairs"]:
        verdict = "differ" if pair["p_one_law"] < 0.05 else "cannot be told apart"
        single = ", ".join(f"{n} {pair['constants'][n]['p']:.2g}" for n in NAMES)
        parts.append(
            f"{pair['first']} and {pair['second']} {verdict}: p = {pair['p_one_law']:.2g} for one law for both; "
            f"p of no difference, for each constant: {single}."
        )
    return Section("Do the groups differ?", parts)


def _published_section(record: Record) -> Section:
    joint = record["joint"]
    rows: list[dict[str, Value]] = [
        {"law": name, **{key: number(value) for key, value in law.items()}} for name, law in record["published"].items()
    ]
    if joint["identifiable"]:
        rows.insert(0, {"law": "this fit", **{name: number(joint[name]) for name in NAMES}})
    note = "The constants are comparable only if loss, tokens and sizes are counted alike; the exponents more widely."
    return Section("Published laws", [Table(rows, note, [0] if joint["identifiable"] else [])])


def data_table(record: Record) -> Table:
    """Facts about the fitted data, and the hash of the file."""
    data = record["data"]
    rows: list[dict[str, Value]] = [{"": "file", "value": data["file"]}, {"": "SHA-256", "value": data["sha256"]}]
    rows += [
        {"": key.replace("_", " "), "value": f"{data[key]:,}"} for key in ("rows", "runs", "sizes", "amounts_of_data")
    ]
    rows += [{"": key, "value": interval(data[key])} for key in ("params", "tokens", "flops", "loss")]
    rows.append({"": "seed of the bootstrap", "value": str(record["settings"]["seed"])})
    rows += [
        {"": f"compute over 6 N D at {row['params']:,.0f} parameters", "value": f"{row['ratio']:.3f}"}
        for row in data["flops_over_6ND"][:: max(1, -(-len(data["flops_over_6ND"]) // MOST_SIZES))]
    ]
    return Table(rows)
