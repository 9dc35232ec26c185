"""The page of our own scaling laws, from the ledger that ``law_sweep.py`` writes.

python benchmarks/scaling_law.py
"""

from pathlib import Path
from typing import Any

import pandas as pd
from common import run
from tabulate import tabulate

from tsfm.scaling import analyse, read_runs
from tsfm.scaling.laws.form import PUBLISHED_EXPONENTS
from tsfm.scaling.record import Record
from tsfm_data.io import atomic_file

HERE = Path(__file__).parent
LOSSES = {
    "val_in_wql": "WQL, in",
    "val_out_wql": "WQL, out",
    "val_in_loss": "training loss, in",
    "val_out_loss": "training loss, out",
}
MAIN = "val_in_wql"
VARIABLES = {"params": "parameters", "tokens": "tokens", "flops": "compute"}
LETTERS = {"params": "N", "tokens": "D", "flops": "C"}
LARGE = 10  # factors of compute of the plans, compared with the largest run
DRAWS = 2000
HEAD = """\
# Scaling laws of the encoder, the decoder and the zero-shot model

Three architectures were trained at five sizes each: the encoder and the decoder of Yao et al. (ICLR 2025) with a
history of 256 steps, and the recipe of the released zero-shot model (`zeroshot-long`) with up to 6,144. Each training
gives a model at four budgets, from {least:,} to {most:,} steps, a factor of {factor:.0f}. The two smallest sizes
were trained with {seeds} seeds, the others with one. Learning rates are the best of three or four at 500 steps, and
warm-up takes 6. Half of the series come from all training sets of the catalogue, half are synthetic.

Losses are measured on held-out ends of the training series (in) and on seven sets that were not trained on (out).
WQL is the weighted quantile loss divided by the seasonal-naive error of each window: it has no unit. The training
loss of the encoder and the decoder is a negative log-likelihood of scaled values, so that its level and its exponents
depend on the scale; that of the zero-shot model is a pinball loss. Only WQL compares architectures, and only roughly:
the zero-shot model is measured on other windows, with longer histories and horizons.

[Ledger](scaling_law/ledger.csv), one row per model and budget. Brackets hold 95 % intervals.

    tsfm data build corpus/all --output corpus/all
    python benchmarks/law_sweep.py --output runs/law --jobs 2
    python benchmarks/scaling_law.py --ledger runs/law/ledger.csv
"""


def cell(value: float | None, ends: list[float | None], digits: int = 2) -> str:
    """A number and its interval."""
    if value is None:
        return "-"
    low, high = ("open" if end is None else f"{end:,.{digits}f}" for end in ends)
    return f"{value:,.{digits}f} ({low} to {high})"


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as a Markdown table."""
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True) + "\n"


def runs_table(frame: pd.DataFrame) -> str:
    """Mean WQL of each size at each budget, in distribution, and its standard deviation over seeds."""
    rows = []
    frame = frame.sort_values(["arch", "params"], kind="stable")
    for (arch, size), part in frame.groupby(["arch", "size"], sort=False):
        row = {"model": arch, "size": size, "parameters": f"{part.params.iloc[0]:,}"}
        row["learning rate"], row["seeds"] = f"{part.lr.iloc[0]:g}", str(part.seed.nunique())
        for steps, found in part.groupby("steps")[MAIN]:
            spread = f" ± {found.std():.3f}" if len(found) > 1 else ""
            row[f"{steps:,} steps"] = f"{found.mean():.3f}{spread}"
        rows.append(row)
    return table(rows)


def of_loss(law: Record, loss: str) -> tuple[Record | None, Record | None, Record]:
    """Constants of the joint law of a loss, their intervals, and the exponents in one variable."""
    if loss == MAIN:
        known = law["joint"]["identifiable"]
        powers = {row["variable"]: row["power"] for row in law["single"] if "power" in row}
        return (law["joint"], law["joint"]["ci95"], powers) if known else (None, None, powers)
    found = next(row for row in law["metrics"] if row["metric"] == loss)
    return found.get("law"), found.get("ci95"), found["exponents"]


def joint_table(laws: dict[str, Record]) -> str:
    """Constants of the joint law of every loss."""
    rows = []
    for loss, name in LOSSES.items():
        for arch, law in laws.items():
            constants, ends, _ = of_loss(law, loss)
            row = {"loss": name, "model": arch}
            for constant in ("E", "alpha", "beta", "a"):
                known = constants is not None and ends is not None
                row[constant] = cell(constants[constant], ends[constant]) if known else "not identifiable"
            rows.append(row)
    return table(rows)


def single_table(laws: dict[str, Record]) -> str:
    """Exponents of pure power laws in one variable, of every loss, and those of Yao et al."""
    rows = []
    for loss, name in LOSSES.items():
        for arch, law in laws.items():
            found = of_loss(law, loss)[2]
            row = {"loss": name, "model": arch}
            for key, variable in VARIABLES.items():
                single = found.get(key)
                row[variable] = cell(single["exponent"], single["ci95"], 3) if single else "-"
            rows.append(row)
    for arch, exponents in PUBLISHED_EXPONENTS.items():
        row = {"loss": "published, likelihood", "model": arch}
        rows.append(row | {VARIABLES[k]: ", ".join(f"{e:.3f}" for e in exponents[LETTERS[k]]) for k in VARIABLES})
    return table(rows)


def forms_table(laws: dict[str, Record]) -> str:
    """Held-out errors of the forms of the law, in percent of the loss."""
    rows: dict[str, dict[str, str]] = {}
    for arch, law in laws.items():
        for form in law["laws"]:
            mark = " (best)" if form["preferred"] else ""
            error = form["cross_validation"]
            row = rows.setdefault(form["law"], {"law": form["law"]})
            row[arch] = "-" if error is None else f"{100 * error:.2f} %{mark}"
    return table(list(rows.values()))


def plan_table(laws: dict[str, Record]) -> str:
    """Compute-optimal sizes at and beyond the compute of the largest run."""
    rows = []
    for arch, law in laws.items():
        top = law["data"]["flops"][1]
        for plan in law["optimal"]:
            if top / LARGE < plan["flops"] <= top * LARGE * LARGE:
                row = {
                    "model": arch,
                    "compute": f"{plan['flops']:.1e}",
                    "best size": cell(
                        plan["params"] / 1e3, [None if end is None else end / 1e3 for end in plan["params_ci95"]], 0
                    ),
                }
                row["WQL, in"] = cell(plan["loss"], plan["loss_ci95"], 3)
                rows.append(row | {"beyond the runs": "yes" if plan["beyond_data"] else ""})
    return table(rows)


def says(laws: dict[str, Record], pairs: list[Record]) -> str:
    """What the fit warns of, and whether two architectures follow one law."""
    lines = []
    for arch, law in laws.items():
        joint = law["joint"]
        known = "" if joint["identifiable"] else "there is no joint law of WQL: "
        lines += [f"- {arch}: {known}{note}." for note in joint["not_identifiable"] + law["warnings"]]
    for pair in pairs:
        lines.append(f"- {pair['first']} and {pair['second']}: p = {pair['p_one_law']:.2g} that both follow one law.")
    return "\n".join(lines) + "\n"


RUNS = """\
## Runs

WQL in distribution: mean, and standard deviation over seeds.

"""
JOINT = """\
## Joint law

`L = E + A / N^alpha + B / D^beta`, with N parameters and D tokens; `a` is the exponent of the compute-optimal size,
`N ~ C^a`. If the interval of E reaches 0, E is not identifiable.

"""
SINGLE = """\
## Power laws in one variable

Each is fitted to the best loss at each value of the variable, without a floor, as usually published. Published values
are those of Yao et al.: in distribution, then on two sets out of distribution.

"""
FORMS = """\
## Forms of the law

Error of WQL on trainings that were left out.

"""
PLANS = """\
## Compute-optimal sizes

In thousands of parameters; compute in FLOPs.

"""


def page(ledger: Path) -> str:
    """The page, from a ledger."""
    record = analyse(read_runs(ledger, loss=MAIN, group="arch"), draws=DRAWS).record
    laws, frame = record["groups"]["laws"], pd.read_csv(ledger)
    least, most = int(frame.steps.min()), int(frame.steps.max())
    seeds = frame.groupby(["arch", "size"]).seed.nunique().max()
    parts = [
        HEAD.format(least=least, most=most, factor=most / least, seeds=seeds),
        RUNS + runs_table(frame),
        JOINT + joint_table(laws),
        SINGLE + single_table(laws),
        FORMS + forms_table(laws),
        PLANS + plan_table(laws),
        "## What the fits warn of\n\n" + says(laws, record["groups"]["pairs"]),
    ]
    return "\n".join(parts)


def main(ledger: Path = HERE / "scaling_law" / "ledger.csv", output: Path = HERE) -> None:
    """Write scaling_law.md from a ledger.

    Args:
        ledger: table of law_sweep.py.
        output: folder of the page.
    """
    with atomic_file(output / "scaling_law.md") as file:
        file.write_text(page(ledger))


if __name__ == "__main__":
    run(main)
