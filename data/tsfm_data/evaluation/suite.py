"""Evaluation of a model and baselines on every set of a suite: ``evaluate_suite(predictor) -> SuiteReport``."""

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tsfm_data.errors import InputError, check_sizes, unknown_name
from tsfm_data.evaluation import kept_baselines
from tsfm_data.evaluation.baselines import BASELINES, Predictor, get_baseline
from tsfm_data.evaluation.evaluator import evaluate_series
from tsfm_data.evaluation.kept_baselines import FILE
from tsfm_data.evaluation.profiles import Profile
from tsfm_data.evaluation.report import BASELINE, Report
from tsfm_data.evaluation.suite_report import SuiteReport
from tsfm_data.evaluation.suite_sets import SHORT, SuiteSet, choose, suite_profile
from tsfm_data.io import SeriesSet
from tsfm_data.windows import item_lengths

SHOWN = ("auto-ets", "auto-theta")


def evaluate_suite(
    predictor: Predictor,
    suite: str = "bench",
    profiles: Sequence[str] = SHORT,
    sets: Sequence[str] | None = None,
    *,
    baselines: Sequence[str] = SHOWN,
    batch_size: int = 256,
    jobs: int = 1,
    progress: Callable[[str], None] | None = None,
) -> SuiteReport:
    """Score a predictor on the sets of a suite, zero-shot.

    Scores of seasonal naive are added on every set, stored (``kept_baselines``) or computed here. Scores of the other
    baselines are added if they are stored, because fitting them takes most of an hour.

    Args:
        predictor: a model or a baseline.
        suite: name of the suite.
        profiles: the protocols.
        sets: names of sets; None means all whose files are available.
        baselines: names of baselines to show in addition to seasonal naive.
        batch_size: maximum number of windows in a batch.
        jobs: processes, each with one thread; the predictor is copied into each.
        progress: called with the name of each finished set.

    Raises:
        InputError: an unknown suite, set, profile or baseline; or no set is available.
    """
    for name in baselines:
        if name not in BASELINES:
            raise unknown_name("baseline", name, BASELINES)
    check_sizes(jobs=jobs)
    chosen, notes = available_sets(suite, choose(suite, profiles, sets))
    report = Report(notes=notes)
    for suite_set, rows, _ in score_sets(predictor, chosen, batch_size=batch_size, jobs=jobs):
        report.rows += rows
        for name in dict.fromkeys((BASELINE, *baselines)):
            if name != predictor.name:
                report += _baseline_rows(name, suite_set, batch_size)
        if progress is not None:
            progress(suite_set.name)
    report.notes += _missing_baselines(report, baselines)
    order = {suite_set.name: number for number, suite_set in enumerate(chosen)}
    report.rows.sort(key=lambda row: order[row["dataset"]])  # processes end in any order
    return SuiteReport.build(predictor.name, suite, chosen, report)


def available_sets(suite: str, chosen: Sequence[SuiteSet]) -> tuple[list[SuiteSet], list[str]]:
    """The sets whose files are available, and a note that names the others.

    Raises:
        InputError: none is available.
    """
    available = [suite_set for suite_set in chosen if not suite_set.missing()]
    unavailable = [suite_set.name for suite_set in chosen if suite_set not in available]
    if not available:
        raise InputError(
            f"suite {suite!r}: expected data sets in the folder TSFM_DATA, found none of "
            f"{', '.join(unavailable)}: set TSFM_DATA=FOLDER (tsfm data list shows its files)"
        )
    return available, [f"Not available and left out: {', '.join(unavailable)}."] if unavailable else []


def score_set(
    predictor: Predictor, suite_set: SuiteSet, batch_size: int = 256, file: Path = FILE
) -> list[dict[str, Any]]:
    """The rows of one set under all of its profiles; windows shared by two profiles are forecast once."""
    rows: list[dict[str, Any]] = []
    scored: list[tuple[Profile, Any, list[dict[str, Any]]]] = []
    series = None
    for profile in map(suite_profile, suite_set.profiles):
        profile_rows = kept_baselines.load_rows(predictor, suite_set, profile, file)
        if profile_rows is None or len(profile_rows) < len(profile.metrics):
            series = series or suite_set.load()
            setup = _setup(profile, series)
            same = [rows for other, earlier, rows in scored if _are_same(predictor, profile, other, setup, earlier)]
            if same:
                profile_rows = [{**row, "profile": profile.name} for row in same[0]]
            else:
                profile_rows = evaluate_series(predictor, series, profile, suite_set.name, batch_size=batch_size).rows
            scored.append((profile, setup, profile_rows))
        rows += profile_rows
    return rows


def _setup(profile: Profile, series: SeriesSet) -> tuple[int, int, bytes]:
    """Horizon, season and cuts of the windows."""
    horizon = profile.horizon(series.name, series.freqs[0])
    _, cuts = profile.cuts(series.name, series.item_ids, item_lengths(series), horizon)
    return horizon, profile.season(series.name, series.freqs[0]), np.ascontiguousarray(cuts).tobytes()


def _are_same(predictor: Predictor, profile: Profile, other: Profile, setup: Any, other_setup: Any) -> bool:
    """Whether a predictor gets the same scores under two profiles."""
    if profile.naive_intervals != other.naive_intervals and predictor.name in ("naive", BASELINE):
        return False
    renamed = replace(profile, name=other.name, windows=other.windows, multiplier=other.multiplier)
    return setup == other_setup and replace(renamed, naive_intervals=other.naive_intervals) == other


def _baseline_rows(name: str, suite_set: SuiteSet, batch_size: int) -> Report:
    """The rows of a baseline, stored or quickly computed; else none."""
    baseline = get_baseline(name)
    if baseline is None:
        raise RuntimeError(f"expected a baseline, found {name!r}")
    if name in ("naive", BASELINE):
        return Report(score_set(baseline, suite_set, batch_size))
    stored = [kept_baselines.load_rows(baseline, suite_set, suite_profile(profile)) for profile in suite_set.profiles]
    return Report([row for rows in stored for row in rows or []])


def _missing_baselines(report: Report, baselines: Sequence[str]) -> list[str]:
    """A note for each baseline without scores on some sets, because its means are then over fewer sets."""
    pairs = {(row["profile"], row["dataset"]) for row in report.rows}
    metrics = {row["metric"] for row in report.rows}
    notes = []
    for name in baselines:
        scored = {(row["profile"], row["dataset"]) for row in report.rows if row["model"] == name}
        lacking_sets = [f"{name_of_set} ({profile})" for profile, name_of_set in sorted(pairs - scored)]
        if lacking_sets:
            which = (
                ", ".join(lacking_sets)
                if len(lacking_sets) <= 8
                else f"{len(lacking_sets)} of {len(pairs)} pairs of set and profile"
            )
            notes.append(f"No scores of {name} are stored for {which}: python benchmarks/baselines.py computes them.")
        lacking_metrics = sorted(metrics - {row["metric"] for row in report.rows if row["model"] == name})
        if scored and lacking_metrics:
            notes.append(
                f"No {', '.join(lacking_metrics)} of {name} is stored: python benchmarks/baselines.py computes it."
            )
    return notes


def score_sets(
    predictor: Predictor,
    chosen: Sequence[SuiteSet],
    *,
    batch_size: int = 256,
    jobs: int = 1,
    baseline_file: Path = FILE,
) -> Iterator[tuple[SuiteSet, list[dict[str, Any]], float]]:
    """Score sets; yields each set with its rows and the seconds they took, in order of completion.

    Args:
        predictor: a model or a baseline.
        chosen: the sets.
        batch_size: maximum number of windows in a batch.
        jobs: processes, each with one thread.
        baseline_file: stored scores of baselines, which are not computed again.
    """
    if jobs == 1:
        yield from (_timed(predictor, suite_set, batch_size, baseline_file) for suite_set in chosen)
        return
    context = multiprocessing.get_context("spawn")  # thread pools do not survive a fork
    with ProcessPoolExecutor(min(jobs, len(chosen)), context, torch.set_num_threads, (1,)) as pool:
        futures = [pool.submit(_timed, predictor, suite_set, batch_size, baseline_file) for suite_set in chosen]
        yield from (future.result() for future in as_completed(futures))


def _timed(
    predictor: Predictor, suite_set: SuiteSet, batch_size: int, baseline_file: Path
) -> tuple[SuiteSet, list[dict[str, Any]], float]:
    start = time.perf_counter()
    return suite_set, score_set(predictor, suite_set, batch_size, baseline_file), time.perf_counter() - start
