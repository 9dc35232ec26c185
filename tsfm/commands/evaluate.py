"""``tsfm evaluate``: score a model on held-out windows of a data set or a file, or on a whole suite."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from tsfm import inference, reports, weights
from tsfm.commands.added import added_function
from tsfm.commands.arguments import Columns
from tsfm.commands.pieces import say_notes
from tsfm_data import evaluation, io
from tsfm_data.errors import InputError, check_horizon, check_sizes
from tsfm_data.output import note, say

BASELINES_SHOWN = ("naive", "seasonal-naive")


def evaluate(
    *,
    model: str | None = None,
    data: list[str] | None = None,
    suite: str | None = None,
    horizon: int | None = None,
    profile: str | None = None,
    profiles: list[str] | None = None,
    sets: list[str] | None = None,
    windows: int | None = None,
    step: int | None = None,
    output: Path | None = None,
    json: Path | None = None,
    overwrite: bool = False,
    baselines: bool = True,
    effort: Literal["fast", "best"] = "fast",
    columns: Columns = Columns(),  # noqa: B008 - it is frozen
    batch_size: int = 256,
    jobs: int = 1,
) -> None:
    """Score a model on held-out windows, compared with naive and seasonal-naive forecasts.

    With --suite bench: on every benchmark set, compared with seasonal naive, AutoETS, AutoTheta and published results.
    The summary is the geometric mean of the errors relative to seasonal naive.

    Args:
        model: a name of tsfm weights list, a model folder, or naive, seasonal-naive, auto-ets, auto-theta; by default
            the zero-shot model that ships with the package.
        data: data sets of the catalogue, or CSV, Excel, Parquet or Arrow files; each is scored separately.
        suite: score on all sets of a suite (bench), instead of --data.
        horizon: steps to forecast; by default those of the protocol for the frequency of the data.
        profile: the protocol: lsf (standardised MSE and MAE over all test windows), gift (GIFT-Eval) or chronos.
            By default, table for your own files (windows as in GIFT-Eval, seasons of the calendar), else gift.
        profiles: with --suite, its protocols: gift, chronos, gift-medium, gift-long; the first two by default.
        sets: with --suite, which of its sets to score; by default all.
        windows: number of windows per series, counted from its end; by default that of the protocol.
        step: steps from one window to the next; by default that of the protocol (the horizon for your own files).
        output: a folder for report.html, report.md and report.json.
        json: file for the scores, as {"rows": [...], "summary": {...}}.
        overwrite: replace an existing output.
        baselines: whether naive and seasonal naive are scored too.
        effort: fast, or best: zero-shot models average two forecasts, which takes twice as long.
        columns: how the table is read.
        batch_size: largest number of windows per batch.
        jobs: with --suite, number of processes, one thread each.
    """
    if horizon is not None:
        check_horizon(horizon, option="--horizon")
    check_sizes(batch_size=batch_size, windows=windows, step=step)
    io.check_suffix(json, io.REPORTS)
    model = weights.default() if model is None else model
    pages = [] if output is None else [output / f"report.{suffix}" for suffix in ("html", "md", "json")]
    io.check_new([json, *pages], overwrite, [*(data or ()), model, columns.future])
    if data is not None and weights.is_image_model(model):
        if len(data) > 1:
            raise InputError(f"expected one image set at a time, found {len(data)}: give each its own command")
        added_function("image evaluate")(data[0], model=model, json=json, overwrite=overwrite, batch_size=batch_size)
        return None
    if (data is None) == (suite is None):
        raise InputError("expected either --data or --suite, found " + ("neither" if data is None else "both"))
    if suite is not None:
        own = {**vars(columns), "horizon": horizon, "profile": profile, "windows": windows, "step": step}
        return _on_suite(model, effort, suite, profiles, sets, output, json, batch_size, jobs, own)
    for name, value in {"profiles": profiles, "sets": sets}.items():
        if value is not None:
            raise InputError(f"expected --{name} only with --suite, found it with --data: leave it out")
    names = [model, *(name for name in BASELINES_SHOWN if baselines and name != model)]
    predictors = [inference.load_predictor(name, effort) for name in names]
    report = evaluation.Report()
    tables: list[io.SeriesSet] = []
    for source in dict.fromkeys(data or ()):
        series = io.open_source(source, **columns.given())
        if any(series.name == other.name for other in tables):  # sales.csv of two folders
            series = replace(series, name=str(source))
        scored = list(predictors)
        warning = inference.check_covariates(predictors[0], series)
        if warning is not None:
            note(f"warning: {warning}")
        elif series.past_names or series.known_names:
            scored.insert(1, inference.WithoutCovariates(predictors[0]))  # to show what covariates gain
        for predictor in scored:
            report += evaluation.evaluate(
                predictor,
                series,
                profile or ("table" if series.natural else "gift"),
                horizon=horizon,
                batch_size=batch_size,
                context=predictors[0].context,
                number=windows,
                step=step,
            )
        say_notes(series)
        tables.append(series)
    shown = [row for row in report.rows if row["metric"] in reports.HEADLINE]  # as wide as a terminal
    say(evaluation.Report(shown, report.notes).to_markdown().rstrip())
    say(f"\n{reports.how_to_read(report)} --json FILE has every metric.")
    if output is not None:
        reports.write_scores(report, tables, predictors[0], output, ["tsfm", *sys.argv[1:]])
        say(f"{output / 'report.html'}: open it in a browser; report.md and report.json are next to it")
    if json is not None:
        report.save(json)
        say(f"{json}: {len(report.rows)} rows")


def _on_suite(
    model: str,
    effort: Literal["fast", "best"],
    suite: str,
    profiles: list[str] | None,
    sets: list[str] | None,
    output: Path | None,
    json: Path | None,
    batch_size: int,
    jobs: int,
    own: dict[str, Any],
) -> None:
    """Score on a suite; ``own`` are the options that only --data takes."""
    for name, value in own.items():
        if value is not None:
            raise InputError(
                f"expected --{name.replace('_', '-')} only with --data, found it with --suite: leave it out"
            )

    def progress(name: str) -> None:
        note(f"{name} done")

    chosen = profiles or list(evaluation.SHORT)
    report = evaluation.evaluate_suite(
        inference.load_predictor(model, effort),
        suite,
        chosen,
        sets,
        batch_size=batch_size,
        jobs=jobs,
        progress=progress,
    )
    say(reports.say(report))
    command = ["tsfm evaluate --model", model, "--suite", suite, "--profiles", *chosen]
    command += ["--sets", *sets] if sets else []
    command += ["--effort", effort] if effort != "fast" else []
    if output is not None:
        reports.write(report, output, " ".join(command))
        say(f"\n{output / 'report.html'}: open it in a browser; report.md and report.json are next to it")
    if json is not None:
        report.save(json)
        say(f"\n{json}: {len(report.report.rows)} rows of scores")
