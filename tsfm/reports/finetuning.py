"""The report page of a fine-tuning: which model is kept and why, training curves, forecasts before and after."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tsfm.inference import forecast_frame
from tsfm.models import Forecaster
from tsfm.nn import DEFAULT_LEVELS
from tsfm.reports.figures import FORECAST, HISTORY, new_figure, plot_forecast
from tsfm.reports.html import Code, Image, Section, Table, Value, page, show_value
from tsfm.training import FEW_TIMES, LEAST_GAIN, LEAST_GAIN_AT_ONCE, LEAST_SIGMAS, ZERO_SHOT, Candidate, Finetuned

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 3  # series
METHODS = {"full": "all weights", "lora": "low-rank updates of the blocks", "head": "only the head"}
RULE = (
    "Scaled loss: mean pinball loss over the levels 0.1 to 0.9, times two, divided by the error of seasonal naive "
    "forecasts within the history. WQL: the same losses divided by the sum of the absolute true values. For both, "
    "lower is better. Some of the windows held out at the ends of the series choose the checkpoint; the others, "
    "which were used for neither training nor this choice, judge it. The checkpoint replaces the current model if "
    f"it reduces the scaled loss by at least {LEAST_GAIN:.0%} ({LEAST_GAIN_AT_ONCE:.0%} if those windows begin at "
    f"fewer than {FEW_TIMES} times) and by at least {LEAST_SIGMAS} standard errors of the paired differences, and "
    "does not increase the WQL."
)


def build_page(result: Finetuned, start: Forecaster, command: Sequence[str], folder: Path) -> str:
    """The HTML text of the page.

    Args:
        result: result of the fine-tuning.
        start: the model before fine-tuning.
        command: arguments of the command line.
        folder: folder of the result.
    """
    recipe, words = result.recipe, ["tsfm", "forecast", "INPUT", "--horizon", str(result.horizon)]
    facts: list[dict[str, Value]] = [
        {"": "start", "value": start.name},
        {"": "method", "value": f"{recipe.method}: {METHODS[recipe.method]}"},
        {"": "trained parameters", "value": result.trained},
        {"": "parameters of the model", "value": sum(p.numel() for p in result.model.parameters())},
        {"": "steps at most", "value": recipe.steps},
        {"": "windows per step", "value": recipe.batch_size},
        {"": "seed", "value": recipe.seed},
    ]
    curves = Image(
        curve_figure(result.candidates), "Error on the windows that choose the checkpoint, by optimiser steps"
    )
    sections = [
        Section("The backtest", [RULE, score_table(result), *covariate_lines(result)]),
        Section("Forecasts before and after" if result.improved else "Forecasts", forecast_images(result, start)),
        Section("Training", [curves, Table([{key: show_value(value) for key, value in row.items()} for row in facts])]),
        Section("Use it", [Code(shlex.join([*words, "--model", str(folder)]))]),
        Section("Reproduce this page", [Code(shlex.join(command))]),
    ]
    return page(f"Fine-tuning on {result.series.name}", sections, verdict(result))


def verdict(result: Finetuned) -> str:
    """The result in a sentence."""
    final, first = result.candidate(result.winner), result.candidates[0]
    if final is first:
        tried = [candidate for candidate in result.candidates if not candidate.name.startswith(ZERO_SHOT)]
        if not tried:
            return "The zero-shot model stays: no checkpoint was better on the windows that choose one."
        return f"The zero-shot model stays: {reason(tried[-1])}."
    saved = 1 - final.errors.score / first.errors.score
    windows = f"{len(final.errors.scaled)} windows not used to choose it"
    return f"Kept: {result.winner}, with {saved:.1%} less scaled loss than the zero-shot model on {windows}."


def reason(candidate: Candidate) -> str:
    """Why a candidate was not kept."""
    against = candidate.against
    if against is None:
        return "it was not compared with another model"
    if against.gain < against.least:
        change = f"reduces the scaled loss by {against.gain:.1%}, less than the margin of {against.least:.0%}"
        if against.gain < 0:
            change = f"increases the scaled loss by {-against.gain:.1%}"
        return f"the {candidate.name} one {change}"
    if not against.sigmas >= LEAST_SIGMAS:
        doubt = "a single window or series cannot rule out chance" if np.isnan(against.sigmas) else "it may be chance"
        return f"the {candidate.name} one reduces the scaled loss by {against.gain:.1%}, but {doubt}"
    return f"the {candidate.name} one increases the WQL by {-against.wql_gain:.1%}"


def score_table(result: Finetuned) -> Table:
    """A table with one row per candidate."""
    rows: list[dict[str, Value]] = []
    for candidate in result.candidates:
        row: dict[str, Value] = {
            "model": candidate.name,
            "scaled loss": candidate.errors.score,
            "WQL": candidate.errors.wql,
        }
        row |= {"steps": candidate.steps}
        if candidate.against is not None:
            row["saved"] = f"{candidate.against.gain:.1%}"
            row["standard errors"] = None if np.isnan(candidate.against.sigmas) else float(candidate.against.sigmas)
        rows.append(row)
    windows = len(result.candidates[0].errors.scaled)
    strong = [k for k, candidate in enumerate(result.candidates) if candidate.name == result.winner]
    caption = f"{windows} windows of {result.horizon} steps that judge; the model that is kept is bold."
    if any("saved" in row for row in rows):
        caption += " Saved: share of the scaled loss of the model kept so far."
    return Table(rows, caption, strong)


def covariate_lines(result: Finetuned) -> list[str]:
    """Sentences on whether the covariates are used; empty without covariates."""
    lines = []
    if result.covariates:
        lines.append(
            f"The backtest prefers forecasts with the covariates {', '.join(result.covariates)}: keep giving them."
        )
    if result.ignored:
        tried = any("covariates" in candidate.name for candidate in result.candidates)
        why = "the backtest does not prefer forecasts with them" if tried else "this model takes no covariates"
        lines.append(f"The covariates {', '.join(result.ignored)} are not used: {why}. Leave them out of forecasts.")
    return lines


def forecast_images(result: Finetuned, start: Forecaster) -> list[str | Table | Image | Code]:
    """Forecasts of the last window of some series, before and after fine-tuning."""
    shown = np.unique(result.candidates[0].errors.item)[:SHOWN]
    series = result.series.select(shown.tolist())
    history = replace(series, future_rows=series.future_rows + result.horizon)
    items = list(series.univariate().item_ids)[:SHOWN]
    images: list[str | Table | Image | Code] = []
    models = {"before": start, "after": result.model} if result.improved else {"kept": result.model}
    for when, model in models.items():
        frame = forecast_frame(model, series, result.horizon, DEFAULT_LEVELS, held_out=True)
        figure = plot_forecast(history, frame, truth=series, items=items)
        caption = f"{when.capitalize()}: the last {result.horizon} steps, which no training saw."
        images.append(Image(figure, f"History, truth and forecast of {', '.join(items)}", caption))
    return images


def curve_figure(candidates: Sequence[Candidate]) -> "Figure":
    """Error on the windows that choose the checkpoint, by optimiser steps."""
    figure, (axis,) = new_figure(1)
    tuned = [candidate for candidate in candidates if len(candidate.curve) > 1] or [candidates[0]]
    for candidate, colour in zip(tuned, (FORECAST, HISTORY), strict=False):
        steps, scores = zip(*candidate.curve, strict=True)
        axis.plot(steps, scores, color=colour, marker="o", markersize=3, linewidth=1.4, label=candidate.name)
        axis.axhline(scores[0], color=colour, linewidth=0.8, linestyle=":")
    axis.set_xlabel("optimiser steps", fontsize=9)
    axis.set_ylabel("scaled loss", fontsize=9)
    axis.legend(fontsize=9, frameon=False)
    return figure
