"""One model on every set of a suite, beside the baselines: ``evaluate_suite(predictor) -> SuiteReport``."""

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
from tsfm_data.evaluation import kept_baselines as reference
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

    Seasonal naive's scores stand beside it wherever they are, kept ones (``reference``) or computed here; those of the
    other baselines are shown where they are kept, because fitting them takes the better part of an hour.

    Args:
        predictor: a model or a baseline.
        suite: name of the suite.
        profiles: the protocols.
        sets: names of sets; None takes all whose files are at hand.
        baselines: names of baselines to show beside seasonal naive.
        batch_size: most windows in a batch.
        jobs: processes, each with one thread; the predictor is copied into each.
        progress: called with the name of each set that is done.

    Raises:
        InputError: an unknown suite, set, profile or baseline; or no set is at hand.
    """
    for name in baselines:
        if name not in BASELINES:
            raise unknown_name("baseline", name, BASELINES)
    check_sizes(jobs=jobs)
    chosen, notes = at_hand(suite, choose(suite, profiles, sets))
    report = Report(notes=notes)
    for one, rows, _ in score_sets(predictor, chosen, batch_size=batch_size, jobs=jobs):
        report.rows += rows
        for name in dict.fromkeys((BASELINE, *baselines)):
            if name != predictor.name:
                report += _beside(name, one, batch_size)
        if progress is not None:
            progress(one.name)
    report.notes += _not_kept(report, baselines)
    order = {one.name: place for place, one in enumerate(chosen)}
    report.rows.sort(key=lambda row: order[row["dataset"]])  # whichever process ended first
    return SuiteReport.build(predictor.name, suite, chosen, report)


def at_hand(suite: str, chosen: Sequence[SuiteSet]) -> tuple[list[SuiteSet], list[str]]:
    """The sets whose files are here, and a line that names the others.

    Raises:
        InputError: none is.
    """
    found = [one for one in chosen if not one.missing()]
    lost = [one.name for one in chosen if one not in found]
    if not found:
        raise InputError(
            f"suite {suite!r}: expected data sets in the folder that TSFM_DATA names, found none of "
            f"{', '.join(lost)}: set TSFM_DATA=FOLDER (tsfm data list says which files belong there)"
        )
    return found, [f"Not at hand and left out: {', '.join(lost)}."] if lost else []


def score_set(predictor: Predictor, one: SuiteSet, batch_size: int = 256, file: Path = FILE) -> list[dict[str, Any]]:
    """The rows of one set under all of its profiles; windows that two protocols share are forecast once."""
    rows: list[dict[str, Any]] = []
    done: list[tuple[Profile, Any, list[dict[str, Any]]]] = []
    series = None
    for profile in map(suite_profile, one.profiles):
        found = reference.rows(predictor, one, profile, file)
        if found is None:
            series = series or one.load()
            work = _work(profile, series)
            same = [rows for other, before, rows in done if _alike(predictor, profile, other, work, before)]
            if same:
                found = [{**row, "profile": profile.name} for row in same[0]]
            else:
                found = evaluate_series(predictor, series, profile, one.name, batch_size=batch_size).rows
            done.append((profile, work, found))
        rows += found
    return rows


def _work(profile: Profile, series: SeriesSet) -> tuple[int, int, bytes]:
    """Horizon, season and windows."""
    horizon = profile.horizon(series.name, series.freqs[0])
    _, cuts = profile.cuts(series.name, series.item_ids, item_lengths(series), horizon)
    return horizon, profile.season(series.name, series.freqs[0]), np.ascontiguousarray(cuts).tobytes()


def _alike(predictor: Predictor, profile: Profile, other: Profile, work: Any, before: Any) -> bool:
    """Whether a predictor gets the same scores under two protocols."""
    if profile.naive_intervals != other.naive_intervals and predictor.name in ("naive", BASELINE):
        return False
    alone = replace(profile, name=other.name, windows=other.windows, multiplier=other.multiplier)
    return work == before and replace(alone, naive_intervals=other.naive_intervals) == other


def _beside(name: str, one: SuiteSet, batch_size: int) -> Report:
    """The rows of a baseline; none where they are neither kept nor quick to compute."""
    baseline = get_baseline(name)
    if baseline is None:
        raise RuntimeError(f"expected a baseline, found {name!r}")
    if name in ("naive", BASELINE):
        return Report(score_set(baseline, one, batch_size))
    found = [reference.rows(baseline, one, suite_profile(profile)) for profile in one.profiles]
    return Report([row for rows in found for row in rows or []])


def _not_kept(report: Report, baselines: Sequence[str]) -> list[str]:
    """A line for each baseline that lacks scores somewhere: its means are over other sets than the model's."""
    places = {(row["profile"], row["dataset"]) for row in report.rows}
    notes = []
    for name in baselines:
        have = {(row["profile"], row["dataset"]) for row in report.rows if row["model"] == name}
        lost = [f"{one} ({profile})" for profile, one in sorted(places - have)]
        if lost:
            which = ", ".join(lost) if len(lost) <= 8 else f"{len(lost)} of {len(places)} pairs of set and profile"
            notes.append(f"No scores of {name} are kept for {which}: python benchmarks/baselines.py computes them.")
    return notes


def score_sets(
    predictor: Predictor, chosen: Sequence[SuiteSet], *, batch_size: int = 256, jobs: int = 1, kept: Path = FILE
) -> Iterator[tuple[SuiteSet, list[dict[str, Any]], float]]:
    """Each set with the predictor's rows and the seconds they took, as they get done.

    Args:
        predictor: a model or a baseline.
        chosen: the sets.
        batch_size: most windows in a batch.
        jobs: processes, each with one thread.
        kept: the file of baselines' scores, which are not computed again.
    """
    if jobs == 1:
        yield from (_timed(predictor, one, batch_size, kept) for one in chosen)
        return
    context = multiprocessing.get_context("spawn")  # a forked child would share the parent's broken thread pools
    with ProcessPoolExecutor(min(jobs, len(chosen)), context, torch.set_num_threads, (1,)) as pool:
        waiting = [pool.submit(_timed, predictor, one, batch_size, kept) for one in chosen]
        yield from (future.result() for future in as_completed(waiting))


def _timed(
    predictor: Predictor, one: SuiteSet, batch_size: int, kept: Path
) -> tuple[SuiteSet, list[dict[str, Any]], float]:
    start = time.perf_counter()
    return one, score_set(predictor, one, batch_size, kept), time.perf_counter() - start
