"""``tsfm scaling``: laws with intervals from a table of runs, and plans from a law."""

import json as json_module
from pathlib import Path

from tsfm_data.errors import InputError


def fit(
    ledger: Path,
    *,
    output: Path,
    params: str = "params",
    tokens: str = "tokens",
    loss: str = "loss",
    flops: str | None = None,
    run: str | None = None,
    group: str | None = None,
    exclude: str | None = None,
    unique: str | None = None,
    draws: int = 10_000,
    delta: float = 1e-3,
    seed: int = 0,
) -> None:
    """Fit scaling laws to a table of runs, and write report.html, fit.json and figures.

    Args:
        ledger: CSV, Parquet or Arrow table with one row a run, or one a point of a training curve.
        output: folder to write to.
        params: column of model sizes.
        tokens: column of data seen.
        loss: column of losses, above 0.
        flops: column of training compute; "flops" where there is one, else 6 times params times tokens.
        run: column that names the run of each row; "run" where there is one, else every row is a run.
        group: column whose groups (encoder and decoder, say) get a law each, and a test whether they differ.
        exclude: column that is true where a row shall be left out.
        unique: column of the tokens that differ, where data were repeated: what repeated data are worth is then fitted.
        draws: of the bootstrap.
        delta: width of the Huber loss on log loss.
        seed: of the bootstrap.
    """
    from tsfm.scaling.analysis import analyse
    from tsfm.scaling.ledger import read_runs
    from tsfm.scaling.report import lead, write_report

    rows = read_runs(ledger, params, tokens, loss, flops, run, group, exclude, unique)
    analysis = analyse(rows, draws, seed, delta)
    write_report(analysis, output)
    print(lead(analysis.record))
    joint = analysis.record["joint"]
    for warning in analysis.record["warnings"] + (joint["not_identifiable"] if joint["identifiable"] else []):
        print(f"warning: {warning}")
    print(f"report: {output / 'report.html'}   numbers: {output / 'fit.json'}")


def plan(
    fit: Path,
    *,
    flops: float | None = None,
    params: float | None = None,
    tokens: float | None = None,
    loss: float | None = None,
    inference_tokens: float = 0.0,
    json: Path | None = None,
) -> None:
    """Size, data and expected loss for a budget, with 95 % intervals.

    Give one quantity for the compute-optimal plan, or two of which one is params or tokens.

    Args:
        fit: the fit.json that "tsfm scaling fit" wrote.
        flops: compute to spend, on training and on inference where that counts.
        params: size of the model.
        tokens: data to train on.
        loss: loss to reach.
        inference_tokens: tokens that the model will process after training; the best model is then smaller.
        json: file to write the plan to.
    """
    from tabulate import tabulate

    from tsfm.scaling.plan import QUANTITIES, make_plan, read_fit
    from tsfm_data.files import atomic_file

    found = make_plan(read_fit(fit), flops, params, tokens, loss, inference_tokens)
    shown = [name for name in QUANTITIES if inference_tokens or name != "inference_flops"]
    ends = {name: ["open" if end == float("inf") else f"{end:.4g}" for end in found.intervals[name]] for name in shown}
    rows = [[name, f"{found.values[name]:.4g}", f"{ends[name][0]} to {ends[name][1]}"] for name in shown]
    print(tabulate(rows, ["", "plan", "95 % interval"], disable_numparse=True, colalign=["left", "right", "left"]))
    for warning in found.warnings:
        print(f"warning: {warning}")
    if json is not None:
        ci95 = {n: [None if end == float("inf") else end for end in found.intervals[n]] for n in QUANTITIES}
        with atomic_file(json) as file:
            file.write_text(
                json_module.dumps(found.values | {"ci95": ci95, "warnings": list(found.warnings)}, indent=1) + "\n"
            )


def selftest(data: Path | None = None, draws: int = 4000, coverage: int = 0) -> int:
    """Reproduce published fits: the Chinchilla runs, and the exponents of the time-series scaling paper.

    Args:
        data: folder of data sets; the one that TSFM_DATA names by default.
        draws: of the bootstrap.
        coverage: repeats of each planted law, to count how often it is inside its interval; 0 for none.
    """
    from tabulate import tabulate

    from tsfm.scaling import selftest as tests
    from tsfm.scaling.laws import NAMES

    if draws < 100 or coverage < 0:
        raise InputError(f"expected at least 100 draws and coverage of 0 or more, found {draws} and {coverage}")
    checks = tests.selftest(data, draws)
    rows = [
        [c.name, f"{c.expected:.6g}", f"{c.found:.6g}", f"{c.tolerance:.2g}", "ok" if c.ok else "FAILED"]
        for c in checks
    ]
    print(tabulate(rows, ["", "known", "found", "tolerance", ""], disable_numparse=True))
    if coverage:
        table = [
            [f"{design}, {count} runs, noise {noise:g}", *tests.coverage(design, count, noise, coverage)]
            for design, count, noise in tests.STUDY
        ]
        print("\n" + tabulate(table, [f"inside, of {coverage}", *NAMES], floatfmt=".3f"))
    failed = sum(not check.ok for check in checks)
    print(f"\n{len(checks) - failed} of {len(checks)} known answers reproduced")
    return 1 if failed else 0
