"""``tsfm scaling``: laws with intervals from a table of runs, and plans from a law."""

import json as json_module
from functools import partial
from pathlib import Path
from typing import Literal

from tabulate import tabulate

from tsfm import models, scaling
from tsfm.configs import config_path
from tsfm_data import io
from tsfm_data.errors import InputError, check_sizes


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
    overwrite: bool = False,
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
        overwrite: replace an output that is there.
    """
    io.check_new([output / "report.html", output / "fit.json"], overwrite, [ledger])
    rows = scaling.read_runs(ledger, params, tokens, loss, flops, run, group, exclude, unique)
    analysis = scaling.analyse(rows, draws, seed, delta)
    scaling.write_report(analysis, output)
    print(scaling.lead(analysis.record))
    joint = analysis.record["joint"]
    for warning in analysis.record["warnings"] + (joint["not_identifiable"] if joint["identifiable"] else []):
        print(f"warning: {warning}")
    print(f"report: {output / 'report.html'}   numbers: {output / 'fit.json'}")


def sweep(
    grid: Path,
    *,
    output: Path,
    jobs: int = 1,
    backend: Literal["local", "ray", "slurm"] = "local",
    index: int | None = None,
) -> int:
    """Train a grid of models, and write one row a model and budget to ledger.csv.

    Started again after a kill, it goes on where it stopped: runs that are done are kept, others resume from their last
    checkpoint. A run that fails is tried once more, and why is in the ledger; exit status 1 where one failed twice.

    Args:
        grid: YAML file, or the name of a config: "tsfm configs show scaling/grid" explains its keys.
        output: folder of runs and ledger.
        jobs: cells (trainings) at once, one thread each.
        backend: "local" processes, a "ray" cluster that sees the same folder (the extra "ray"), or "slurm", which
            writes the files of array jobs for sbatch.
        index: run this cell alone, in this process: what an array job does.
    """
    grid = config_path(grid)
    plan = scaling.read_grid(grid)
    check_sizes(jobs=jobs)
    if index is not None:
        from tsfm.commands.train import run  # Lightning takes seconds

        scaling.run_index(plan, index, output, partial(run, finite=False))
        return 0
    if backend == "slurm":
        for number, file in enumerate(scaling.slurm_files(plan, grid, output)):
            print(f"sbatch {file}" + (" --dependency=afterany:JOB_ID_OF_THE_FIRST" if number else ""))
        return 0
    start = scaling.start_ray if backend == "ray" else scaling.start_local
    print(f"{len(scaling.cells(plan))} cells; ledger: {output / scaling.LEDGER}")
    failed = scaling.sweep(plan, grid, output, jobs, start, lambda line: print(line, flush=True))
    for warning in scaling.edges(plan, output):
        print(f"warning: {warning}")
    print(f"{len(scaling.read_rows(output))} runs done, {len(failed)} cells failed; ledger: {output / scaling.LEDGER}")
    print(f"to fit laws: tsfm scaling fit {output / scaling.LEDGER} --output {output / 'report'} --exclude scan")
    return 1 if failed else 0


def counts(
    archs: list[str] | None = None,
    sizes: list[str] | None = None,
    context: int = 512,
    horizon: int = 64,
    json: Path | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Parameters and training FLOPs of the architectures, exactly, and how far 6 N D is from them.

    Args:
        archs: architectures; encoder and decoder by default.
        sizes: names of sizes; all by default.
        context: steps of history of a window.
        horizon: steps to forecast.
        json: file to write the table to.
        overwrite: replace an output that is there.
    """
    io.check_new([json], overwrite)
    rows = models.counts_table(archs or ["encoder", "decoder"], context, horizon, sizes)
    head = {
        "arch": "architecture",
        "size": "size",
        "params": "parameters",
        "non_embedding": "non-embedding",
        "flops": "FLOPs a window",
        "times_6ND": "/ 6 N D",
        "times_6ND_trunk": "/ 6 N D, N non-embedding",
    }
    print(tabulate([[row[key] for key in head] for row in rows], list(head.values()), intfmt=",", floatfmt=".3f"))
    tokens = {row["tokens"] for row in rows}
    print(
        f"a window of {context} + {horizon} steps, {' or '.join(map(str, sorted(tokens)))} tokens; forward + backward"
    )
    if json is not None:
        with io.atomic_file(json) as file:
            file.write_text(json_module.dumps({"rows": rows}, indent=1) + "\n")


def plan(
    fit: Path,
    *,
    flops: float | None = None,
    params: float | None = None,
    tokens: float | None = None,
    loss: float | None = None,
    inference_tokens: float = 0.0,
    arch: str = "encoder",
    context: int = 256,
    horizon: int = 64,
    batch_size: int = 64,
    corpus: str | None = None,
    ledger: Path | None = None,
    throughput: float | None = None,
    machine: str = "this machine",
    json: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Size, data and expected loss for a budget, with 95 % intervals; the nearest model of the suite, and its command.

    Give one quantity for the compute-optimal plan, or two of which one is params or tokens.

    Args:
        fit: the fit.json that "tsfm scaling fit" wrote.
        flops: compute to spend, on training and on inference where that counts.
        params: size of the model.
        tokens: data to train on.
        loss: loss to reach.
        inference_tokens: tokens that the model will process after training; the best model is then smaller.
        arch: architecture whose named sizes are looked at.
        context: steps of history of a window.
        horizon: steps to forecast.
        batch_size: windows of an optimiser step.
        corpus: folder to train on, for the command.
        ledger: of a sweep on the machine, from whose times that of the training is told.
        throughput: FLOPs a second that training reaches, in place of a ledger.
        machine: what to call it.
        json: file to write the plan to.
        overwrite: replace an output that is there.
    """
    if throughput is not None and not throughput > 0:
        raise InputError(f"expected a throughput above 0 FLOPs a second, found {throughput:g}")
    check_sizes(context=context, horizon=horizon, batch_size=batch_size)
    io.check_new([json], overwrite, [fit, ledger])
    speed = None if ledger is None else scaling.machine_of(ledger)
    if throughput is not None:
        speed = scaling.Machine(0.0, 1 / throughput, f"{throughput:.3g} FLOPs a second")

    found = scaling.make_plan(scaling.read_fit(fit), flops, params, tokens, loss, inference_tokens)
    shown = [name for name in scaling.QUANTITIES if inference_tokens or name != "inference_flops"]
    ends = {name: ["open" if end == float("inf") else f"{end:.4g}" for end in found.intervals[name]] for name in shown}
    rows = [[name, f"{found.values[name]:.4g}", f"{ends[name][0]} to {ends[name][1]}"] for name in shown]
    print(tabulate(rows, ["", "plan", "95 % interval"], disable_numparse=True, colalign=["left", "right", "left"]))
    near = scaling.realise(arch, found.values["params"], found.values["tokens"], context, horizon, batch_size, corpus)
    print(
        f"nearest: {arch} {near.size}, {near.counts.params:,} parameters; {near.steps:,} steps of {batch_size} "
        f"windows, {near.flops:.4g} FLOPs ({near.times_rule:.2f} times 6 N D)"
    )
    took = None if speed is None else speed.seconds(near.steps, near.flops)
    if speed is not None and took is not None:
        print(f"time on {machine}: about {scaling.spoken(took)}, by {speed.source}")
    print(near.command)
    warnings = [*found.warnings, *near.warnings]
    for warning in warnings:
        print(f"warning: {warning}")
    if json is not None:
        ci95 = {n: [None if end == float("inf") else end for end in found.intervals[n]] for n in scaling.QUANTITIES}
        nearest = {"arch": arch, "size": near.size, "params": near.counts.params, "steps": near.steps}
        nearest |= {"flops": near.flops, "seconds": took, "command": near.command}
        more = {"ci95": ci95, "warnings": warnings, "nearest": nearest}
        with io.atomic_file(json) as file:
            file.write_text(json_module.dumps(found.values | more, indent=1) + "\n")


def selftest(data: Path | None = None, draws: int = 4000, coverage: int = 0) -> int:
    """Reproduce published fits: the Chinchilla runs, and the exponents of the time-series scaling paper.

    Args:
        data: folder of data sets; the one that TSFM_DATA names by default.
        draws: of the bootstrap.
        coverage: repeats of each planted law, to count how often it is inside its interval; 0 for none.
    """
    if draws < 100 or coverage < 0:
        raise InputError(f"expected at least 100 draws and coverage of 0 or more, found {draws} and {coverage}")
    checks = scaling.selftest.selftest(data, draws)
    rows = [
        [c.name, f"{c.expected:.6g}", f"{c.found:.6g}", f"{c.tolerance:.2g}", "ok" if c.ok else "FAILED"]
        for c in checks
    ]
    print(tabulate(rows, ["", "known", "found", "tolerance", ""], disable_numparse=True))
    if coverage:
        table = [
            [f"{design}, {count} runs, noise {noise:g}", *scaling.coverage(design, count, noise, coverage)]
            for design, count, noise in scaling.STUDY
        ]
        print("\n" + tabulate(table, [f"inside, of {coverage}", *scaling.NAMES], floatfmt=".3f"))
    failed = sum(not check.ok for check in checks)
    print(f"\n{len(checks) - failed} of {len(checks)} known answers reproduced")
    return 1 if failed else 0
