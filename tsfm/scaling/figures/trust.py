"""Figures that show how far to trust a law: residuals, draws of the bootstrap, and extrapolation."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from tsfm.reports import new_figure
from tsfm.scaling.analysis import Analysis, Law
from tsfm.scaling.figures.laws import (
    CURVES,
    FIGURE_WIDTH,
    FRONTIER,
    ISOFLOP,
    LAW,
    LOSS,
    MANY,
    OTHER,
    POINTS,
    SURFACE,
    VARIABLES,
    colored,
    curves_figure,
    frontier_figure,
    isoflop_figure,
    loss_figure,
    plain_log,
    scatter,
    surface_figure,
)
from tsfm.scaling.laws.estimate import Fit
from tsfm.scaling.laws.form import NAMES, JointLaw

SHOWN_DRAWS = 1000
NAMES_OF_FIGURES = ("loss", "surface", "curves", "isoflop", "frontier", "residuals", "draws", "extrapolation")
RESIDUALS = (
    "Residuals of log loss against size, tokens and compute",
    "log predicted loss minus log measured loss. A trend here means that the joint law does not hold.",
)
DRAWS = (
    "Pairs of constants in the draws of the bootstrap",
    "Each point is one draw; the cross is the fit. A long narrow cloud means that only a combination is determined.",
)
EXTRAPOLATION = (
    "Loss of the largest runs as predicted by a law fitted to the smaller ones",
    "Circles: runs to which the law was fitted. Triangles: the runs with the largest compute, which were held out.",
)
Drawn = tuple[Figure, str, str]


def draw_all(analysis: Analysis) -> dict[str, Drawn]:
    """All figures that the data allow, by name: the figure, its alternative text, and its caption."""
    every: dict[str, tuple[Figure | None, tuple[str, str]]] = {
        "loss": (loss_figure(analysis), LOSS),
        "surface": (surface_figure(analysis), SURFACE),
        "curves": (curves_figure(analysis) if analysis.whole.rows.has_curves else None, CURVES),
        "isoflop": (isoflop_figure(analysis), ISOFLOP),
        "frontier": (frontier_figure(analysis), FRONTIER),
        "residuals": (residual_figure(analysis), RESIDUALS),
        "draws": (draws_figure(analysis), DRAWS),
        "extrapolation": (extrapolation_figure(analysis), EXTRAPOLATION),
    }
    figures = {name: (figure, *texts) for name, (figure, texts) in every.items() if figure is not None}
    for figure, _, _ in figures.values():
        figure.draw_without_rendering()
        figure.set_layout_engine(
            "none"
        )  # so that the layout is computed once although each figure is written three times
    return figures


def _fits(analysis: Analysis) -> list[tuple[str, str, Law, Fit]]:
    """Label, colour, law and fit of every law that is shown and identifiable."""
    return [(label, color, law, law.fit) for label, color, law in colored(analysis) if law.fit is not None]


def residual_figure(analysis: Analysis) -> Figure | None:
    """Residuals against N, D and C; None without a law."""
    laws = _fits(analysis)
    if not laws:
        return None
    figure, axes = new_figure(3, 3, FIGURE_WIDTH, 2.8)
    for axis, (name, label) in zip(axes, VARIABLES.items(), strict=True):
        axis.axhline(0.0, color=POINTS, linewidth=0.8)
        for word, color, _, fit in laws:
            residual, x = fit.problem.step * fit.problem.problem.residuals(fit.theta), getattr(fit.runs, name)
            if not word and analysis.groups:
                scatter(axis, analysis, fit.runs, x, residual)
            else:
                axis.scatter(x, residual, s=9, color=color, linewidths=0, label=word, rasterized=len(x) > MANY)
        axis.set_xscale("log")
        plain_log(axis.xaxis)
        axis.set_xlabel(label, fontsize=9)
        axis.tick_params(labelsize=8)
    axes[0].set_ylabel(f"residual of {laws[0][3].measured}", fontsize=9)
    if len(laws) > 1:
        axes[0].legend(fontsize=8, frameon=False)
    return figure


def draws_figure(analysis: Analysis) -> Figure | None:
    """Scatter plots of pairs of constants over the draws; None without draws."""
    laws = [(word, color, fit) for word, color, _, fit in _fits(analysis) if len(fit.draws)]
    if not laws:
        return None
    figure, axes = new_figure(3, 3, FIGURE_WIDTH, 3.0)
    for axis, (first, second) in zip(axes, (("alpha", "A"), ("beta", "B"), ("E", "alpha")), strict=True):
        i, j = NAMES.index(first), NAMES.index(second)
        every = np.concatenate([fit.draws[:, [i, j]] for _, _, fit in laws])
        low, high = np.quantile(every, [0.002, 0.998], axis=0)
        for word, color, fit in laws:
            draws = fit.draws[:SHOWN_DRAWS]
            axis.scatter(
                *(draws[:, i], draws[:, j]), s=4, color=color, alpha=0.35, linewidths=0, label=word, rasterized=True
            )
            axis.scatter([fit.law[i]], [fit.law[j]], s=60, marker="+", color="black", zorder=4)
        axis.set_xlim(low[0], max(high[0], low[0] * 1.001, low[0] + 1e-9))  # E of all draws may be 0
        if second in ("A", "B"):
            axis.set_yscale("log")
            plain_log(axis.yaxis)
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_xlabel(first, fontsize=9)
        axis.set_ylabel(second, fontsize=9)
        axis.tick_params(labelsize=8, which="both")
    if len(laws) > 1:
        axes[0].legend(fontsize=8, frameon=False)
    return figure


def extrapolation_figure(analysis: Analysis) -> Figure | None:
    """Predicted against measured loss, seen and held out; None if no law could be tested so."""
    laws = [(word, color, law) for word, color, law, _ in _fits(analysis) if law.record["extrapolation"] is not None]
    if not laws:
        return None
    figure, (axis, right) = new_figure(2, 2, FIGURE_WIDTH, 3.4)
    right.axhline(0.0, color=POINTS, linewidth=0.8)
    measured = "log loss" if analysis.whole.runs.loss.min() > 0 else "loss"
    for word, color, law in laws:
        record, runs = law.record["extrapolation"], law.runs
        joint = JointLaw(*(record["law"][name] for name in NAMES))
        predicted = np.asarray(joint.loss(runs.params, runs.tokens))
        held = np.zeros(len(runs), bool)
        held[np.argsort(runs.flops, kind="stable")[-record["held_out_rows"] :]] = True
        ends = [min(predicted.min(), runs.loss.min()), max(predicted.max(), runs.loss.max())]
        axis.plot(ends, ends, color=POINTS, linewidth=0.8)
        other = color if word else OTHER
        kinds = ((~held, color if word else LAW, "o", "fitted"), (held, other, "^", "held out"))
        for rows, shade, marker, name in kinds:
            label = f"{word}: {name}" if word else name
            log = runs.loss.min() > 0
            ratio = np.log(predicted[rows] / runs.loss[rows]) if log else predicted[rows] - runs.loss[rows]
            for panel, x, y in ((axis, runs.loss[rows], predicted[rows]), (right, runs.flops[rows], ratio)):
                panel.plot(x, y, marker, markersize=3.7, markeredgewidth=0, color=shade, label=label)
    axis.set_xlabel("measured loss", fontsize=9)
    axis.set_ylabel("predicted loss", fontsize=9)
    right.set_xscale("log")
    plain_log(right.xaxis)
    right.set_xlabel(VARIABLES["flops"], fontsize=9)
    right.set_ylabel(f"residual of {measured}", fontsize=9)
    right.tick_params(labelsize=8)
    axis.tick_params(labelsize=8)
    axis.legend(fontsize=8, frameon=False)
    return figure
