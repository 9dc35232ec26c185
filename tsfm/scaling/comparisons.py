"""The parts of the report that compare laws: of groups, of other metrics, and published ones."""

from tsfm.reports import Table, Value
from tsfm.scaling.laws.estimate import CONSTANTS
from tsfm.scaling.laws.form import NAMES
from tsfm.scaling.record import Record
from tsfm.scaling.sections import Part, interval, number, shown_laws

VARIABLES = {"params": "N", "tokens": "D", "flops": "C"}  # of the laws in one variable
EVALUATIONS = ("in distribution", "LSF", "Monash")  # of the published exponents of time-series models, in their order


def group_parts(record: Record) -> list[Part]:
    """The constants of the groups, and tests whether two groups differ."""
    parts: list[Part] = []
    rows: list[dict[str, Value]] = []
    for label, law in record["groups"]["laws"].items():
        joint = law["joint"]
        if joint["identifiable"]:
            ends = joint["ci95"]
            rows.append({"group": label} | {n: f"{number(joint[n])} ({interval(ends[n], 3)})" for n in CONSTANTS})
        else:
            parts.append(f"{label}: not identifiable: {'; '.join(joint['not_identifiable'])}.")
    if rows:
        parts.append(Table(rows, "Joint law of each group, with 95 % intervals."))
    for pair in record["groups"]["pairs"]:
        verdict = "differ" if pair["p_one_law"] < 0.05 else "cannot be told apart"
        single = ", ".join(f"{n} {pair['constants'][n]['p']:.2g}" for n in NAMES)
        parts.append(
            f"{pair['first']} and {pair['second']} {verdict}: p = {pair['p_one_law']:.2g} for one law for both; "
            f"p of no difference, for each constant: {single}."
        )
    return parts


def metric_parts(record: Record) -> list[Part]:
    """The joint laws and exponents of the other metrics, with those of the loss."""
    if not record["metrics"]:
        return []
    joint = record["joint"]
    own: Record = {"metric": "the loss", "not_identifiable": joint["not_identifiable"]}
    own["exponents"] = {law["variable"]: law["power"] for law in record["single"] if "power" in law}
    if joint["identifiable"]:
        own |= {"law": {name: joint[name] for name in CONSTANTS}, "ci95": joint["ci95"]}
    rows: list[dict[str, Value]] = []
    slopes: list[dict[str, Value]] = []
    notes: list[Part] = []
    for law in [own, *record["metrics"]]:
        if "law" in law:
            ends = law["ci95"]
            cells = {n: f"{number(law['law'][n], 3)} ({interval(ends[n], 3)})" for n in ("E", "alpha", "beta", "a")}
            rows.append({"metric": law["metric"], **cells})
        else:
            notes.append(f"{law['metric']}: the joint law is not identifiable: {'; '.join(law['not_identifiable'])}.")
        if law["exponents"]:
            slopes.append({"metric": law["metric"], **_slope_cells(law["exponents"])})
    tables: list[Part] = (
        [Table(rows, "Joint laws of the loss and the other metrics, with 95 % intervals.")] if rows else []
    )
    caption = "Exponents of pure power laws in parameters N, data D and compute C, with 95 % intervals."
    return [*tables, *notes, *([Table(slopes, caption)] if slopes else [])]


def _slope_cells(exponents: Record) -> dict[str, Value]:
    """Exponents in N, D and C with their intervals."""
    return {
        VARIABLES[name]: f"{number(part['exponent'], 3)} ({interval(part['ci95'], 2)})"
        for name, part in exponents.items()
    }


def published_parts(record: Record) -> list[Part]:
    """The laws of these runs and published ones: of language models, and of time-series models."""
    rows: list[dict[str, Value]] = []
    slopes: list[dict[str, Value]] = []
    laws = shown_laws(record)
    for label, law in laws.items():
        name = f"this fit, {label}" if label else "this fit"
        if law["joint"]["identifiable"]:
            rows.append({"law": name, **{key: number(law["joint"][key]) for key in NAMES}})
        found = {each["variable"]: each["power"] for each in law["single"] if "power" in each}
        if found:
            slopes.append({"law": name, **_slope_cells(found)})
    own, of_ours = list(range(len(rows))), list(range(len(slopes)))
    rows += [
        {"law": f"language: {name}", **{key: number(value) for key, value in law.items()}}
        for name, law in record["published"].items()
    ]
    slopes += [
        {
            "law": f"time series: Yao et al. 2025, {arch}, {where}",
            **{variable: number(values[k]) for variable, values in exponents.items()},
        }
        for arch, exponents in record["published_exponents"].items()
        for k, where in enumerate(EVALUATIONS)
    ]
    note = (
        "Joint laws. Constants are comparable only if loss, tokens and sizes are counted alike; exponents more widely."
    )
    pure = (
        "Exponents of pure power laws in parameters N, data D and compute C. Those of time-series models (arXiv "
        "2410.12360) are of the negative log-likelihood and have no published intervals; they count data in time steps "
        "and parameters without the layers of input and output."
    )
    return [Table(rows, note, own), Table(slopes, pure, of_ours)]
