"""The parts of the report of a fit: what the record of a law says, in tables and sentences."""

from dataclasses import replace

from tsfm.reports import Image, Table, Value
from tsfm.scaling.laws.estimate import CONSTANTS
from tsfm.scaling.record import Record

Part = str | Table | Image
TWO_INTERVALS = (
    "Plans and warnings use the interval of the profile, which holds the true constant in 93 to 97 of 100 simulated "
    "tables with 8 to 300 runs. The draws of the bootstrap over whole runs are given for comparison with published "
    "fits: each leaves out a third of the runs, so with few runs they scatter too far or, if constants are at a bound, "
    "not far enough."
)
FAR = "The intervals assume the law: they do not cover a law that bends beyond the data."
MOST_SIZES = 24  # rows of the table of data


def shown_laws(record: Record) -> dict[str, Record]:
    """The laws that the report shows: of each group if there is none for all of them, else of all runs."""
    if record["groups"] is None or record["joint"]["identifiable"]:
        return {"": record}
    laws: dict[str, Record] = record["groups"]["laws"]
    return laws


def named(label: str, parts: list[Part]) -> list[Part]:
    """The parts about the law of a group, with its name before each."""
    if not label:
        return parts
    words: list[Part] = []
    for part in parts:
        if isinstance(part, Table):
            words.append(replace(part, caption=f"{label}: {part.caption}"))
        else:
            words.append(f"{label}: {part}" if isinstance(part, str) else part)
    return words


def joint_parts(record: Record) -> list[Part]:
    """The constants of the joint law with two kinds of intervals, and why these differ."""
    joint = record["joint"]
    if not joint["identifiable"]:
        return [f"Not identifiable: {'; '.join(joint['not_identifiable'])}."]
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
        f"{joint['measured']} {joint['rms_log_error']:.2g}; noise {joint['noise']:.2g}; "
        f"{joint['unconverged_draws']:,} draws of the bootstrap have not converged and are left out."
    )
    notes = joint["interval_notes"]
    return [
        Table(rows, caption),
        *([f"The two intervals differ here. {'. '.join(map(sentence, notes))}."] if notes else []),
    ]


def sentence(text: str) -> str:
    """A text that begins with a capital letter."""
    return f"{text[0].upper()}{text[1:]}"


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
        "Least squares on log loss, or on loss if losses may be negative, fitted to the best loss in each tenth of a "
        "decade. Residual: root mean squared error. Held out: the same on the quarter of the points with the largest "
        "x, by the law fitted to the others."
    )
    return Table(rows, caption)


def single_note(record: Record) -> str:
    """What the laws in one variable show, in words."""
    notes = []
    for law in record["single"]:
        if "not_identifiable" in law:
            notes.append(f"In {law['variable']} there are {law['points']} points: not identifiable.")
        elif "saturating" in law and not law["saturating"]["E_identifiable"]:
            notes.append(
                f"In {law['variable']} E is not identifiable: its interval begins at 0, or far below the losses."
            )
    names = {"power": "the pure power law", "saturating": "the saturating law", "broken": "the smoothly broken law"}
    chosen = [f"{names[law['preferred']]} in {law['variable']}" for law in record["single"] if "preferred" in law]
    if chosen:
        notes.append(f"Held-out error prefers {', '.join(chosen)}.")
    notes.append(
        "If the other quantity is neither fixed nor large, E of a law in one variable includes the loss that it "
        "causes; the law in compute describes the efficient frontier."
    )
    return " ".join(notes)


def route_parts(record: Record) -> list[Part]:
    """The exponent of the best size by three approaches."""
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
    parts: list[Part] = [Table(rows, "Exponent a of the compute-optimal size, N_opt ~ C^a.")]
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
    return parts


def optimal_table(record: Record) -> Table:
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
    return Table(rows, f"95 % intervals in brackets. {beyond}{FAR}")


def trust_parts(record: Record) -> list[Part]:
    """Tests of the joint law, other laws, other choices of the fit, and extrapolation."""
    if not record["joint"]["identifiable"]:
        return []
    rows: list[dict[str, Value]] = [
        {key.replace("_", " "): number(value) if isinstance(value, float) else value for key, value in row.items()}
        for row in record["sensitivity"]
    ]
    parts: list[Part] = [_misfit_text(record["misfit"])]
    if record["laws"]:
        parts.append(laws_table(record))
    parts.append(Table(rows, "The fit under other choices; a is the exponent of the compute-optimal size."))
    ahead = record["extrapolation"]
    if ahead is None:
        parts.append("There are too few runs to test the extrapolation to the largest compute.")
    else:
        parts.append(
            f"Extrapolation: fitted without the {ahead['held_out_rows']} runs of the largest compute (above "
            f"{ahead['largest_flops_seen']:.2e} FLOPs), the law misses their log loss by {ahead['rms_log_error']:.4f} "
            f"(root mean square; mean {ahead['mean_log_error']:+.4f}) against {ahead['rms_log_error_seen']:.4f} on the "
            "runs it saw."
        )
    return parts


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


def repetition_parts(record: Record) -> list[Part]:
    """The law of repeated data."""
    repetition = record["repetition"]
    if repetition is None:
        return []
    if "not_identifiable" in repetition:
        return [f"Not identifiable: {repetition['not_identifiable']}."]
    excess = ""
    if repetition["R_params"] is not None:
        excess = (
            f" Parameters beyond the compute-optimal size for U tokens are worth less in the same way, with R_N* = "
            f"{number(repetition['R_params'], 3)} ({interval(repetition['R_params_ci95'], 3)})."
        )
    text = (
        f"U different tokens seen 1 + R times are worth U + U R* (1 - exp(-R / R*)) new ones, with R* = "
        f"{number(repetition['R_star'], 3)} ({interval(repetition['ci95'], 3)}, by profile), from "
        f"{repetition['runs_with_repeated_data']} runs with repeated data.{excess} Root mean squared errors in "
        "cross-validation: "
        + ", ".join(f"{number(error, 3)} ({form})" for form, error in repetition["held_out_rms"].items())
        + "."
    )
    rows: list[dict[str, Value]] = [
        {"law": "in effective tokens", **{n: number(v) for n, v in repetition["law"].items()}}
    ]
    verdict = "Held-out error prefers it." if repetition["preferred"] else "Held-out error does not prefer it."
    return [text, verdict, Table(rows)]


def next_parts(record: Record) -> list[Part]:
    """The runs that would narrow the planned size most."""
    plan = record["next_runs"]
    if plan is None or not plan["runs"]:
        return []
    rows: list[dict[str, Value]] = [
        {
            "run": k + 1,
            "parameters": number(row["params"], 3),
            "tokens": number(row["tokens"], 3),
            "compute (FLOP)": f"{row['flops']:.2e}",
            "width of the interval": f"{100 * row['width']:.0f} %",
        }
        for k, row in enumerate(plan["runs"])
    ]
    caption = (
        f"Runs that would narrow the interval of the best size for {plan['flops']:.2e} FLOPs most, for at most as much "
        f"compute as all runs so far, {plan['budget']:.2e} FLOPs. Each is the best one after those before it; the last "
        "column is the expected width, as a share of the width now. It assumes that the law holds at these runs, too."
    )
    return [Table(rows, caption)]


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
