"""``tsfm scaling``: fit laws to a table of training runs, train a grid of runs, and plan a training with a law."""

import json as json_module
from functools import partial
from pathlib import Path
from typing import Literal

from tabulate import tabulate

from tsfm import models, scaling
from tsfm.configs import config_path
from tsfm_data import io
from tsfm_data.errors import InputError, check_sizes
from tsfm_data.output import say


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
    only: str | None = None,
    params_unit: str = "1",
    tokens_unit: str = "1",
    every_row: bool = False,
    draws: int = 10_000,
    delta: float = 1e-3,
    floor: float | None = None,
    noise: Literal["even", "compute"] = "even",
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Fit scaling laws to a table of runs, and write report.html, fit.json and figures.

    Args:
        ledger: CSV, Excel, Parquet, Arrow, JSON or JSON-lines table with one row per run or per point of a training
            curve.
        output: folder to write to.
        params: column of model sizes.
        tokens: column of data seen.
        loss: column of losses; if some are at or below 0, laws are fitted to them, else to their logarithm.
        flops: column of training compute; by default "flops" if there is one, else 6 times params times tokens.
        run: column that names the run of each row; by default "run", "name" or the like, else every row is a run.
        group: column of groups, for example encoder and decoder: each gets a law, and a test tells whether they differ.
        exclude: column that is true for rows to leave out.
        unique: column of the number of different tokens; if given, the value of repeated data is fitted, too.
        only: COLUMN=VALUE of the rows to read; by default those whose state or status is that of a finished run.
        params_unit: K, M or B if sizes are in thousands, millions or billions, or another factor.
        tokens_unit: the same for tokens; for a column of steps the number of tokens of a step.
        every_row: every row is a finished training, although several have the same run: branches of one training.
        draws: resamples of the bootstrap.
        delta: threshold of the Huber loss on log loss.
        floor: irreducible loss E, if it is known; the report compares this law with that of a free E.
        noise: what to do if a test says that the noise depends on compute: "compute" weights runs by it, so that
            noisier ones count less; "even" only corrects the intervals and warns.
        seed: random seed of the bootstrap.
        overwrite: replace an existing output.
    """
    io.check_new([output / "report.html", output / "fit.json"], overwrite, [ledger])
    columns = (params, tokens, loss, flops, run, group, exclude, unique)
    rows = scaling.read_runs(ledger, *columns, only, params_unit, tokens_unit, every_row)
    analysis = scaling.analyse(rows, draws, seed, delta, floor, noise == "compute")
    scaling.write_report(analysis, output)
    say(scaling.lead(analysis.record))
    for warning in scaling.all_warnings(analysis.record):
        say(f"warning: {warning}")
    say(f"report: {output / 'report.html'}   numbers: {output / 'fit.json'}")


def sweep(
    grid: Path,
    *,
    output: Path,
    jobs: int = 1,
    backend: Literal["local", "ray", "slurm"] = "local",
    index: int | None = None,
) -> int:
    """Train a grid of models, and write one row per model and budget to ledger.csv.

    If it was interrupted, start it again: finished runs are kept, others resume from their last checkpoint. A run that
    fails is tried once more, and the ledger gives the reason; the exit status is 1 if a run failed twice.

    Args:
        grid: YAML file, or the name of a config: "tsfm configs show scaling/grid" explains its keys.
        output: folder for the runs and the ledger.
        jobs: number of trainings at once, one thread each.
        backend: "local" for processes on this machine, "ray" for a Ray cluster with the same file system (needs the
            extra "ray"), or "slurm" to write array jobs for sbatch.
        index: number of the one training to run in this process, as array jobs do.
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
            say(f"sbatch {file}" + (" --dependency=afterany:JOB_ID_OF_THE_FIRST" if number else ""))
        return 0
    start = scaling.start_ray if backend == "ray" else scaling.start_local
    say(f"{len(scaling.cells(plan))} cells; ledger: {output / scaling.LEDGER}")
    with io.lock_folder(output):
        failed = scaling.sweep(plan, grid, output, jobs, start, lambda line: say(line, flush=True))
    for warning in scaling.learning_rate_warnings(plan, output):
        say(f"warning: {warning}")
    say(f"{len(scaling.read_rows(output))} runs done, {len(failed)} cells failed; ledger: {output / scaling.LEDGER}")
    say(f"to fit laws: tsfm scaling fit {output / scaling.LEDGER} --output {output / 'report'} --exclude scan")
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
    """Count parameters and training FLOPs of the architectures exactly, and compare them with the rule 6 N D.

    Args:
        archs: architectures; encoder and decoder by default.
        sizes: names of sizes; all by default.
        context: history of a window in time steps.
        horizon: time steps to forecast.
        json: file to write the table to.
        overwrite: replace an existing output.
    """
    io.check_new([json], overwrite)
    rows = models.counts_table(archs or ["encoder", "decoder"], context, horizon, sizes)
    head = {
        "arch": "architecture",
        "size": "size",
        "params": "parameters",
        "non_embedding": "non-embedding",
        "flops": "FLOPs per window",
        "times_6ND": "/ 6 N D",
        "times_6ND_trunk": "/ 6 N D, N non-embedding",
    }
    say(tabulate([[row[key] for key in head] for row in rows], list(head.values()), intfmt=",", floatfmt=".3f"))
    tokens = {row["tokens"] for row in rows}
    say(f"a window of {context} + {horizon} steps, {' or '.join(map(str, sorted(tokens)))} tokens; forward + backward")
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
    unique_tokens: float | None = None,
    group: str | None = None,
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
    """Plan size, data and expected loss for a budget, with 95 % intervals, and show the command for the nearest model.

    Give one quantity for the compute-optimal plan, or two of which one is params or tokens.

    Args:
        fit: a fit.json written by "tsfm scaling fit".
        flops: compute in FLOPs, of training and, with --inference-tokens, of inference.
        params: size of the model in parameters.
        tokens: training data in tokens.
        loss: loss to reach.
        inference_tokens: tokens that the model will process after training; the best model is then smaller.
        unique_tokens: number of different tokens that are available; more are repetitions, which are worth less.
        group: group whose law is used, if the fit has groups.
        arch: architecture of the model to train.
        context: history of a window in time steps.
        horizon: time steps to forecast.
        batch_size: windows per optimiser step.
        corpus: corpus folder for the command that is shown.
        ledger: table of a sweep on the same machine, to estimate the training time.
        throughput: FLOPs per second of a training, to estimate its time without a ledger.
        machine: name of that machine in the output.
        json: file to write the plan to.
        overwrite: replace an existing output.
    """
    if throughput is not None and not throughput > 0:
        raise InputError(f"expected a throughput above 0 FLOPs per second, found {throughput:g}")
    check_sizes(context=context, horizon=horizon, batch_size=batch_size)
    io.check_new([json], overwrite, [fit, ledger])
    speed = None if ledger is None else scaling.machine_of(ledger)
    if throughput is not None:
        speed = scaling.Machine(0.0, 1 / throughput, f"{throughput:.3g} FLOPs per second")

    law = scaling.read_fit(fit, group).with_unique(unique_tokens)
    proposal = scaling.make_plan(law, flops, params, tokens, loss, inference_tokens)
    shown = [name for name in scaling.QUANTITIES if inference_tokens or name != "inference_flops"]
    ends = {
        name: ["open" if end == float("inf") else f"{end:.4g}" for end in proposal.intervals[name]] for name in shown
    }
    rows = [[name, f"{proposal.values[name]:.4g}", f"{ends[name][0]} to {ends[name][1]}"] for name in shown]
    mark = "plan, beyond the data" if proposal.beyond_data else "plan"
    say(tabulate(rows, ["", mark, "95 % interval"], disable_numparse=True, colalign=["left", "right", "left"]))
    budget = None
    if flops is not None and params is None and tokens is None:
        budget = scaling.Budget(flops, inference_tokens, law.expected_loss)
    nearest = scaling.find_nearest_model(
        arch, proposal.values["params"], proposal.values["tokens"], context, horizon, batch_size, corpus, budget
    )
    size = float(nearest.counts.params)
    loss_there, ends_there = law.prediction(size, nearest.tokens)
    facts = {"params": size, "tokens": nearest.tokens, "flops": nearest.flops}
    beyond = scaling.beyond_data(law.record, facts)
    say(
        f"nearest: {arch} {nearest.size}, {nearest.counts.params:,} parameters; {nearest.steps:,} steps of "
        f"{batch_size} windows, {nearest.tokens:.4g} tokens, {nearest.flops:.4g} FLOPs ({nearest.flops_over_6ND:.2f} "
        f"times 6 N D); expected loss {loss_there:.4g}, 95 % prediction interval {ends_there[0]:.4g} to "
        f"{ends_there[1]:.4g}{' (beyond the data)' if beyond else ''}"
    )
    seconds = None if speed is None else speed.seconds(nearest.steps, nearest.flops)
    if speed is not None and seconds is not None:
        say(f"time on {machine}: about {scaling.format_duration(seconds)}, by {speed.source}")
    say(nearest.command)
    if proposal.next_runs:
        say(f"runs that would narrow the interval of {proposal.narrowed} most, at the cost of all runs so far or less:")
        columns = {"params": ".4g", "tokens": ".4g", "flops": ".4g", "width": ".0%"}
        cells = [[f"{run[name]:{form}}" for name, form in columns.items()] for run in proposal.next_runs]
        heads = ["params", "tokens", "flops", "width of the interval after it"]
        say(tabulate(cells, heads, disable_numparse=True, colalign=["right"] * 4))
    warnings = [*proposal.warnings, *nearest.warnings]
    for warning in warnings:
        say(f"warning: {warning}")
    if json is not None:
        ci95 = {n: [None if end == float("inf") else end for end in proposal.intervals[n]] for n in scaling.QUANTITIES}
        nearest_facts = {"arch": arch, "size": nearest.size, "steps": nearest.steps, "seconds": seconds}
        nearest_facts |= facts | {"loss": loss_there, "loss_prediction95": list(ends_there), "beyond_data": beyond}
        nearest_facts["command"] = nearest.command
        more = {"ci95": ci95, "beyond_data": proposal.beyond_data, "warnings": warnings, "nearest": nearest_facts}
        more["next_runs"] = {"narrowed": proposal.narrowed, "runs": proposal.next_runs}
        with io.atomic_file(json) as file:
            file.write_text(json_module.dumps(proposal.values | more, indent=1) + "\n")


def selftest(data: Path | None = None, draws: int = 4000, coverage: int = 0) -> int:
    """Reproduce published fits: the Chinchilla runs, and the exponents of the time-series scaling paper.

    Args:
        data: folder of data sets; by default the one named by TSFM_DATA.
        draws: resamples of the bootstrap.
        coverage: number of simulated tables per known law, to count how often the intervals contain it; 0 for none.
    """
    if draws < 100 or coverage < 0:
        raise InputError(f"expected at least 100 draws and coverage of 0 or more, found {draws} and {coverage}")
    checks = scaling.selftest.selftest(data, draws)
    rows = [
        [c.name, f"{c.expected:.6g}", f"{c.actual:.6g}", f"{c.tolerance:.2g}", "ok" if c.ok else "FAILED"]
        for c in checks
    ]
    say(tabulate(rows, ["", "known", "found", "tolerance", ""], disable_numparse=True))
    if coverage:
        table = []
        for design, count, noise, tails in scaling.STUDY:
            shares = scaling.coverage(design, count, noise, tails, coverage)
            table.append({"design": f"{design}, {count} runs, noise {noise:g}, {tails}"} | shares)
        say("\n" + tabulate(table, "keys", floatfmt=".3f"))
    failed = sum(not check.ok for check in checks)
    say(f"\n{len(checks) - failed} of {len(checks)} known answers reproduced")
    return 1 if failed else 0
