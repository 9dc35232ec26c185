"""The page of a fine-tuning: what won and why, the way there, and forecasts before and after."""

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
METHODS = {"full": "all weights", "lora": "low-rank updates of the blocks", "head": "the head alone"}
RULE = (
    "Scaled loss: mean pinball loss over the levels 0.1 to 0.9, times two, in units of the error of seasonal naive "
    "forecasts within the history; WQL: the same losses over the sum of the absolute true values. For both less is "
    "better. Some of the windows held out at the ends of the series choose the checkpoint; the others, which neither "
    f"trained nor chose anything, judge it. It replaces the model that stands if it saves at least {LEAST_GAIN:.0%} of "
    f"the scaled loss ({LEAST_GAIN_AT_ONCE:.0%} where those windows begin at fewer than {FEW_TIMES} times), by at "
    f"least {LEAST_SIGMAS} standard errors of the paired differences, and no WQL is lost."
)


def build_page(result: Finetuned, start: Forecaster, command: Sequence[str], folder: Path) -> str:
    """The page.

    Args:
        result: of the fine-tuning.
        start: the model that it began with.
        command: words of the command line.
        folder: of the result.
    """
    recipe, words = result.recipe, ["tsfm", "forecast", "INPUT", "--horizon", str(result.horizon)]
    facts: list[dict[str, Value]] = [
        {"": "start", "value": start.name},
        {"": "method", "value": f"{recipe.method}: {METHODS[recipe.method]}"},
        {"": "numbers trained", "value": result.trained},
        {"": "numbers in the model", "value": sum(p.numel() for p in result.model.parameters())},
        {"": "most steps", "value": recipe.steps},
        {"": "windows a step", "value": recipe.batch_size},
        {"": "seed", "value": recipe.seed},
    ]
    curves = Image(curve_figure(result.candidates), "Error on the windows that choose, by optimiser steps")
    sections = [
        Section("The backtest", [RULE, score_table(result), *covariate_lines(result)]),
        Section("Forecasts before and after", forecast_images(result, start)),
        Section("Training", [curves, Table([{key: show_value(value) for key, value in row.items()} for row in facts])]),
        Section("Use it", [Code(shlex.join([*words, "--model", str(folder)]))]),
        Section("This page again", [Code(shlex.join(command))]),
    ]
    return page(f"Fine-tuning on {result.series.name}", sections, verdict(result))


def verdict(result: Finetuned) -> str:
    """What came out, in a sentence."""
    final, first = result.candidate(result.winner), result.candidates[0]
    if final is first:
        tried = [found for found in result.candidates if not found.name.startswith(ZERO_SHOT)]
        if not tried:
            return "The zero-shot model stays: no checkpoint was better on the windows that choose."
        return f"The zero-shot model stays: {reason(tried[-1])}."
    saved = 1 - final.errors.score / first.errors.score
    windows = f"{len(final.errors.scaled)} windows that chose nothing"
    return f"Kept: {result.winner}, with {saved:.1%} less scaled loss than the zero-shot model on {windows}."


def reason(found: Candidate) -> str:
    """Why a challenger did not win."""
    against = found.against
    if against is None:
        return "nothing stood against it"
    if against.gain < against.least:
        change = f"saves {against.gain:.1%}" if against.gain >= 0 else f"adds {-against.gain:.1%}"
        return f"the {found.name} one {change} of the scaled loss, which is less than the margin of {against.least:.0%}"
    if not against.sigmas >= LEAST_SIGMAS:
        of = "a single window or series says nothing of chance" if np.isnan(against.sigmas) else "it may be chance"
        return f"the {found.name} one saves {against.gain:.1%} of the scaled loss, but {of}"
    return f"the {found.name} one adds {-against.wql_gain:.1%} of the WQL"


def score_table(result: Finetuned) -> Table:
    """A row a candidate."""
    rows: list[dict[str, Value]] = []
    for found in result.candidates:
        row: dict[str, Value] = {"model": found.name, "scaled loss": found.errors.score, "WQL": found.errors.wql}
        row |= {"steps": found.steps}
        if found.against is not None:
            row["saved"] = f"{found.against.gain:.1%}"
            row["standard errors"] = None if np.isnan(found.against.sigmas) else float(found.against.sigmas)
        rows.append(row)
    windows = len(result.candidates[0].errors.scaled)
    strong = [k for k, found in enumerate(result.candidates) if found.name == result.winner]
    caption = (
        f"{windows} windows of {result.horizon} steps that judge; in bold what is kept. Saved: of the scaled loss of "
    )
    return Table(rows, caption + "the model that stood before.", strong)


def covariate_lines(result: Finetuned) -> list[str]:
    """Whether the covariates are used, where there are some."""
    lines = []
    if result.covariates:
        lines.append(
            f"The backtest prefers forecasts with the covariates {', '.join(result.covariates)}: keep giving them."
        )
    if result.ignored:
        tried = any("covariates" in found.name for found in result.candidates)
        why = "the backtest does not prefer forecasts with them" if tried else "this model takes none"
        lines.append(f"The covariates {', '.join(result.ignored)} are left out: {why}. Leave them out of forecasts.")
    return lines


def forecast_images(result: Finetuned, start: Forecaster) -> list[str | Table | Image | Code]:
    """Forecasts of the last window of some series by the model before, and by the one that is kept."""
    some = np.unique(result.candidates[0].errors.item)[:SHOWN]
    series = result.series.select(some.tolist())
    history = replace(series, future_rows=series.future_rows + result.horizon)
    items = list(series.univariate().item_ids)[:SHOWN]
    images: list[str | Table | Image | Code] = []
    models = {"before": start, "after": result.model} if result.improved else {"kept": result.model}
    for when, model in models.items():
        frame = forecast_frame(model, history, result.horizon, DEFAULT_LEVELS)
        figure = plot_forecast(history, frame, truth=series, items=items)
        caption = f"{when.capitalize()}: the last {result.horizon} steps, which no training saw."
        images.append(Image(figure, f"History, truth and forecast of {', '.join(items)}", caption))
    return images


def curve_figure(candidates: Sequence[Candidate]) -> "Figure":
    """Error on the windows that choose, by optimiser steps."""
    figure, (axis,) = new_figure(1)
    tuned = [found for found in candidates if len(found.curve) > 1] or [candidates[0]]
    for found, colour in zip(tuned, (FORECAST, HISTORY), strict=False):
        steps, scores = zip(*found.curve, strict=True)
        axis.plot(steps, scores, color=colour, marker="o", markersize=3, linewidth=1.4, label=found.name)
        axis.axhline(scores[0], color=colour, linewidth=0.8, linestyle=":")
    axis.set_xlabel("optimiser steps", fontsize=9)
    axis.set_ylabel("scaled loss", fontsize=9)
    axis.legend(fontsize=9, frameon=False)
    return figure
