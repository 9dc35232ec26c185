"""Figures of the scaling report, in colours that colour-blind readers can distinguish (Okabe and Ito 2008)."""

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from tsfm.reports import new_figure
from tsfm.scaling.analysis import Analysis
from tsfm.scaling.laws.estimate import Fit
from tsfm.scaling.laws.form import NAMES, PUBLISHED, JointLaw

POINTS, LAW, OTHER, THIRD = "#4d4d4d", "#0072b2", "#d55e00", "#009e73"
BAND = 0.25
SHOWN_DRAWS = 1000
VARIABLES = {"params": "parameters N", "tokens": "tokens D", "flops": "training compute C (FLOP)"}
FIGURE_WIDTH = 9.0
NAMES_OF_FIGURES = ("loss", "isoflop", "frontier", "residuals", "draws", "extrapolation")


def draw_all(analysis: Analysis) -> dict[str, tuple[Figure, str, str]]:
    """All figures that the data allow, by name: the figure, its alternative text, and its caption."""
    figures = {"loss": (loss_figure(analysis), *LOSS)}
    if analysis.profiles:
        figures["isoflop"] = (isoflop_figure(analysis), *ISOFLOP)
    if analysis.fit is not None:
        fit = analysis.fit
        figures["frontier"] = (frontier_figure(analysis, fit), *FRONTIER)
        figures["residuals"] = (residual_figure(fit), *RESIDUALS)
        if len(fit.draws):
            figures["draws"] = (draws_figure(fit), *DRAWS)
        if analysis.record["extrapolation"] is not None:
            figures["extrapolation"] = (extrapolation_figure(analysis), *EXTRAPOLATION)
    for figure, _, _ in figures.values():
        figure.draw_without_rendering()
        figure.set_layout_engine(
            "none"
        )  # so that the layout is computed once although each figure is written three times
    return figures


def plain_log(axis: Axis) -> None:
    """Plain labels such as 1e9 on a logarithmic axis."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value < 1e4 else power_of_ten(value)))
    axis.set_minor_formatter(NullFormatter())


def power_of_ten(value: float) -> str:
    """A large number as short text, such as 3e9."""
    return f"{value:.0e}".replace("e+0", "e").replace("e+", "e")


LOSS = (
    "Loss against parameters, tokens and compute, with the laws in one variable",
    "Grey: all rows. Black: the best loss in each tenth of a decade, to which the laws in one variable are fitted. "
    "Orange: the pure power law. Blue: the saturating law.",
)
ISOFLOP = (
    "Loss against size at each compute budget, with parabolas and their minima",
    "Approach 2: for the runs of each budget, a parabola in log size and its minimum. The dashed line is the optimum "
    "by the joint law.",
)
FRONTIER = (
    "Compute-optimal size against compute by each route, with published laws",
    "The band is the 95 % interval of the joint law. There are no runs to the right of the dashed line.",
)
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
    "Blue: runs to which the law was fitted. Orange: the runs with the largest compute, which were held out.",
)


def loss_figure(analysis: Analysis) -> Figure:
    """Loss against N, D and C."""
    runs, fits = analysis.runs, analysis.single
    figure, axes = new_figure(3, 3, FIGURE_WIDTH, 3.2)
    for axis, (name, label) in zip(axes, VARIABLES.items(), strict=True):
        x = np.asarray(getattr(runs, name))
        room = max((x.max() / x.min()) ** 0.05, 1.1)
        axis.set_xlim(x.min() / room, x.max() * room)
        axis.scatter(x, runs.loss, s=8, color="#b0b0b0", linewidths=0)
        if name in fits:
            best, pure, full = fits[name]
            line = np.geomspace(x.min(), x.max(), 200)
            axis.scatter(x[best], runs.loss[best], s=12, color="black", linewidths=0, zorder=3)
            axis.plot(line, pure.loss(line), color=OTHER, linewidth=1.2, label="power law")
            if full is not None:
                axis.plot(line, full.loss(line), color=LAW, linewidth=1.6, label="E + power law")
            axis.legend(fontsize=8, frameon=False)
        log_axes(axis, runs.loss)
        axis.set_xlabel(label, fontsize=9)
    axes[0].set_ylabel("loss", fontsize=9)
    return figure


def log_axes(axis: Axes, loss: np.ndarray) -> None:
    """Log-log, with plain numbers on the loss axis even if it spans less than a decade."""
    axis.set_xscale("log")
    axis.set_yscale("log")
    plain_log(axis.xaxis)
    axis.yaxis.set_major_locator(MaxNLocator(5) if loss.max() < 10 * loss.min() else axis.yaxis.get_major_locator())
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axis.set_ylim(loss.min() * 0.97, loss.max() * 1.03)
    axis.tick_params(labelsize=8)


def isoflop_figure(analysis: Analysis) -> Figure:
    """Parabolas, their minima and the optimum of the joint law."""
    runs = analysis.runs
    figure, (axis,) = new_figure(1, 1, FIGURE_WIDTH, 4.2)
    colors = matplotlib.colormaps["viridis"](np.linspace(0.05, 0.9, len(analysis.profiles)))
    for color, profile in zip(colors, analysis.profiles, strict=True):
        size = runs.params[profile.rows]
        line = np.geomspace(size.min(), size.max(), 100)
        u = np.log(line) - profile.center
        c = profile.coefficients
        vertex = -c[1] / (2 * c[2])
        axis.scatter(size, runs.loss[profile.rows], s=10, color=color, linewidths=0)
        axis.plot(line, c[0] + c[1] * u + c[2] * u * u, color=color, linewidth=1.2, label=f"{profile.flops:.2g} FLOP")
        axis.scatter(
            [np.exp(profile.center + vertex)], [c[0] - c[1] ** 2 / (4 * c[2])], s=46, marker="*", color=OTHER, zorder=4
        )
    if analysis.fit is not None:
        law = JointLaw(*analysis.fit.law)
        flops = np.geomspace(analysis.profiles[0].flops, analysis.profiles[-1].flops, 50)
        params = np.asarray(law.optimal_params(flops))
        axis.plot(
            params, law.loss(params, flops / 6 / params), color=POINTS, linewidth=1.2, linestyle="--", label="joint law"
        )
    used = np.concatenate([profile.rows for profile in analysis.profiles])
    log_axes(axis, runs.loss[used])
    axis.set_xlabel(VARIABLES["params"], fontsize=9)
    axis.set_ylabel("loss", fontsize=9)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


def frontier_figure(analysis: Analysis, fit: Fit) -> Figure:
    """Optimal size against compute: joint law with its band, the other routes, published laws."""
    runs = analysis.runs
    figure, (axis,) = new_figure(1, 1, FIGURE_WIDTH, 4.2)
    flops = np.geomspace(runs.flops.min(), 100 * runs.flops.max(), 60)
    axis.scatter(runs.flops, runs.params, s=6, color="#b0b0b0", linewidths=0, label="runs")
    rows = analysis.record["optimal"]
    ends = [[np.nan if end is None else end for end in row["params_ci95"]] for row in rows]
    if rows:
        axis.fill_between([row["flops"] for row in rows], *zip(*ends, strict=True), color=LAW, alpha=BAND, linewidth=0)
    axis.plot(flops, JointLaw(*fit.law).optimal_params(flops), color=LAW, linewidth=1.8, label="joint law (approach 3)")
    for route, marker, name in (
        (analysis.isoflop, "*", "IsoFLOP minima (2)"),
        (analysis.curves, "^", "curve minima (1)"),
    ):
        if route is not None:
            axis.scatter(route.flops, route.params, s=36, marker=marker, color=OTHER, zorder=4, label=name)
    for style, (name, law) in zip((":", "-."), PUBLISHED.items(), strict=True):
        axis.plot(flops, JointLaw(*law).optimal_params(flops), color=THIRD, linestyle=style, linewidth=1.2, label=name)
    axis.axvline(runs.flops.max(), color=POINTS, linestyle="--", linewidth=0.8)
    axis.set_xscale("log")
    axis.set_yscale("log")
    plain_log(axis.xaxis)
    plain_log(axis.yaxis)
    axis.set_ylim(runs.params.min() / 3, 3 * float(JointLaw(*fit.law).optimal_params(flops[-1])))
    axis.set_xlabel(VARIABLES["flops"], fontsize=9)
    axis.set_ylabel("compute-optimal parameters", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.legend(fontsize=8, frameon=False)
    return figure


def residual_figure(fit: Fit) -> Figure:
    """Residuals against N, D and C."""
    residual = fit.problem.problem.residuals(fit.theta)
    figure, axes = new_figure(3, 3, FIGURE_WIDTH, 2.8)
    for axis, (name, label) in zip(axes, VARIABLES.items(), strict=True):
        axis.axhline(0.0, color=POINTS, linewidth=0.8)
        axis.scatter(getattr(fit.runs, name), residual, s=9, color=LAW, linewidths=0)
        axis.set_xscale("log")
        plain_log(axis.xaxis)
        axis.set_xlabel(label, fontsize=9)
        axis.tick_params(labelsize=8)
    axes[0].set_ylabel("residual of log loss", fontsize=9)
    return figure


def draws_figure(fit: Fit) -> Figure:
    """Scatter plots of pairs of constants over the draws."""
    figure, axes = new_figure(3, 3, FIGURE_WIDTH, 3.0)
    draws = fit.draws[:SHOWN_DRAWS]
    for axis, (first, second) in zip(axes, (("alpha", "A"), ("beta", "B"), ("E", "alpha")), strict=True):
        i, j = NAMES.index(first), NAMES.index(second)
        low, high = np.quantile(fit.draws[:, [i, j]], [0.002, 0.998], axis=0)
        axis.scatter(draws[:, i], draws[:, j], s=4, color=LAW, alpha=0.35, linewidths=0)
        axis.scatter([fit.law[i]], [fit.law[j]], s=60, marker="+", color=OTHER, zorder=4)
        axis.set_xlim(low[0], max(high[0], low[0] * 1.001))
        if second in ("A", "B"):
            axis.set_yscale("log")
            plain_log(axis.yaxis)
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_xlabel(first, fontsize=9)
        axis.set_ylabel(second, fontsize=9)
        axis.tick_params(labelsize=8, which="both")
    return figure


def extrapolation_figure(analysis: Analysis) -> Figure:
    """Predicted against measured loss, seen and held out."""
    record, runs = analysis.record["extrapolation"], analysis.runs
    law = JointLaw(*(record["law"][name] for name in NAMES))
    figure, (axis, right) = new_figure(2, 2, FIGURE_WIDTH, 3.4)
    predicted = np.asarray(law.loss(runs.params, runs.tokens))
    held = np.zeros(len(runs), bool)
    held[np.argsort(runs.flops, kind="stable")[-record["held_out_rows"] :]] = True
    ends = [min(predicted.min(), runs.loss.min()), max(predicted.max(), runs.loss.max())]
    axis.plot(ends, ends, color=POINTS, linewidth=0.8)
    right.axhline(0.0, color=POINTS, linewidth=0.8)
    for rows, color, name in ((~held, LAW, "fitted"), (held, OTHER, "held out")):
        axis.scatter(runs.loss[rows], predicted[rows], s=10, color=color, linewidths=0, label=name)
        right.scatter(runs.flops[rows], np.log(predicted[rows] / runs.loss[rows]), s=10, color=color, linewidths=0)
    axis.set_xlabel("measured loss", fontsize=9)
    axis.set_ylabel("predicted loss", fontsize=9)
    right.set_xscale("log")
    plain_log(right.xaxis)
    right.set_xlabel(VARIABLES["flops"], fontsize=9)
    right.set_ylabel("residual of log loss", fontsize=9)
    right.tick_params(labelsize=8)
    axis.tick_params(labelsize=8)
    axis.legend(fontsize=8, frameon=False)
    return figure
