"""Figures of laws and their runs, in colours that colour-blind readers can distinguish (Okabe and Ito 2008)."""

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from tsfm.reports import new_figure
from tsfm.scaling.analysis import Analysis, Law
from tsfm.scaling.laws.form import PUBLISHED, JointLaw
from tsfm.scaling.laws.single import PowerLaw
from tsfm.scaling.runs.ledger import Runs

GRAY, POINTS, LAW, OTHER, THIRD = "#b0b0b0", "#4d4d4d", "#0072b2", "#d55e00", "#009e73"
GROUPS = (LAW, OTHER, THIRD, "#cc79a7", "#e69f00", "#56b4e9", "#000000")
BAND, WIDE_BAND = 0.25, 0.1  # opacity of the interval of a curve, and of that of new runs
VARIABLES = {"params": "parameters N", "tokens": "tokens D", "flops": "training compute C (FLOP)"}
FIGURE_WIDTH = 9.0
MOST_PANELS = 4
LINES = 4  # sizes whose curves are drawn
LINE_POINTS = 14  # of a curve with bands
MANY = 400  # points from which they are drawn as an image, which is smaller
AHEAD = 3.0  # how far curves go beyond the largest run

LOSS = (
    "Loss against parameters, tokens and compute, with the laws in one variable",
    "Faint: all rows. Full: the best loss in each tenth of a decade, to which the laws in one variable are fitted. "
    "Dashed: the pure power law. Full line: the saturating law. Bands hold the expected loss and, the light ones, the "
    "losses of new points, with 95 % confidence.",
)
SURFACE = (
    "Loss against tokens at several sizes, with the joint law and its bands",
    "Points: runs, coloured by size. Lines: the joint law at some sizes. Bands hold the expected loss and, the light "
    "ones, the loss of a new run, with 95 % confidence. There are no runs to the right of the dashed line.",
)
CURVES = (
    "Training curves: loss against compute, and the lowest of them",
    "Each line is a run, coloured by size. Black: the lowest loss at each compute, from which approach 1 takes the "
    "best sizes.",
)
ISOFLOP = (
    "Loss against size at each compute budget, with parabolas and their minima",
    "Approach 2: for the runs of each budget, a parabola in log size and its minimum. The dashed line is the optimum "
    "by the joint law.",
)
FRONTIER = (
    "Compute-optimal size against compute by each route, with published laws",
    "Bands are 95 % intervals of the joint law. There are no runs to the right of the dashed line.",
)


def palette(analysis: Analysis) -> dict[str, str]:
    """The colour of each group; that of the only law without groups."""
    return {label: GROUPS[k % len(GROUPS)] for k, label in enumerate(analysis.groups)} or {"": LAW}


def colored(analysis: Analysis) -> list[tuple[str, str, Law]]:
    """Label, colour and law of everything that is shown."""
    colors = palette(analysis)
    return [(label, colors.get(label, POINTS), law) for label, law in analysis.shown.items()]


def scatter(
    axis: Axes, analysis: Analysis, runs: Runs, x: np.ndarray, y: np.ndarray, size: float = 9.0, named: bool = False
) -> None:
    """Points of runs in the colours of their groups.

    Args:
        axis: the panel.
        analysis: has the groups.
        runs: which runs they are.
        x: horizontal values.
        y: vertical values.
        size: area of a point.
        named: whether the groups appear in the legend.
    """
    labels = np.array(runs.groups or ("",) * len(runs))
    for label, color in palette(analysis).items():
        rows = labels == label
        axis.scatter(
            *(x[rows], y[rows]),
            s=size,
            color=color if analysis.groups else GRAY,
            alpha=0.45 if analysis.groups else None,
            linewidths=0,
            rasterized=len(x) > MANY,
            label=label if named and label else None,
        )


def plain_log(axis: Axis) -> None:
    """Plain labels such as 1e9 on a logarithmic axis."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value < 1e4 else power_of_ten(value)))
    axis.set_minor_formatter(NullFormatter())


def power_of_ten(value: float) -> str:
    """A large number as short text, such as 3e9."""
    return f"{value:.0e}".replace("e+0", "e").replace("e+", "e")


def log_axes(axis: Axes, loss: np.ndarray) -> None:
    """Log-log, with plain numbers on the loss axis even if it spans less than a decade; linear for losses below 0."""
    axis.set_xscale("log")
    plain_log(axis.xaxis)
    axis.tick_params(labelsize=8)
    if loss.min() <= 0:
        room = 0.03 * float(np.ptp(loss))
        axis.set_ylim(loss.min() - room, loss.max() + room)
        return
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(MaxNLocator(5) if loss.max() < 10 * loss.min() else axis.yaxis.get_major_locator())
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axis.set_ylim(loss.min() * 0.97, loss.max() * 1.03)


def loss_figure(analysis: Analysis) -> Figure:
    """Loss against N, D and C."""
    runs = analysis.whole.runs
    figure, axes = new_figure(3, 3, FIGURE_WIDTH, 3.2)
    for axis, (name, label) in zip(axes, VARIABLES.items(), strict=True):
        x = np.asarray(getattr(runs, name))
        room = max((x.max() / x.min()) ** 0.05, 1.1)
        axis.set_xlim(x.min() / room, x.max() * room)
        scatter(axis, analysis, runs, x, runs.loss, 8.0, named=name == "params")
        for _, color, law in colored(analysis):
            if name in law.single:
                best, pure, full = law.single[name]
                seen = np.asarray(getattr(law.runs, name))
                axis.scatter(seen[best], law.runs.loss[best], s=12, color=color, linewidths=0, zorder=3)
                for each, style in ((pure, "--"), (full, "-")):
                    if each is not None:
                        draw_law(axis, each, seen, color, style)
        log_axes(axis, runs.loss)
        axis.set_xlabel(label, fontsize=9)
    axes[0].set_ylabel("loss", fontsize=9)
    if analysis.groups:
        axes[0].legend(fontsize=8, frameon=False)
    return figure


def draw_law(axis: Axes, law: PowerLaw, x: np.ndarray, color: str, style: str) -> None:
    """The line of a law in one variable over the range of some points, with its bands."""
    line = np.geomspace(x.min(), x.max(), LINE_POINTS)
    axis.plot(line, law.loss(line), color=color, linewidth=1.4, linestyle=style)
    draw_bands(axis, line, *law.bands(line), color)


def draw_bands(axis: Axes, x: np.ndarray, curve: np.ndarray, new: np.ndarray, color: object) -> None:
    """The interval of a curve and, lighter, that of new points; nothing where they are open."""
    for (low, high), alpha in ((new, WIDE_BAND), (curve, BAND)):
        known = np.isfinite(low) & np.isfinite(high)
        axis.fill_between(x, low, high, where=known.tolist(), color=color, alpha=alpha, linewidth=0)


def surface_figure(analysis: Analysis) -> Figure | None:
    """The joint law against tokens at some sizes; None if there is no law."""
    laws = [(label, law) for label, _, law in colored(analysis) if law.fit is not None][:MOST_PANELS]
    if not laws:
        return None
    figure, axes = new_figure(len(laws), min(2, len(laws)), FIGURE_WIDTH, 3.8)
    colors = matplotlib.colormaps["viridis"]
    for axis, (label, law) in zip(axes, laws, strict=True):
        runs, fit = law.runs, law.fit
        assert fit is not None
        norm = LogNorm(runs.params.min(), max(runs.params.max(), runs.params.min() * 1.01))
        sizes = np.unique(np.quantile(np.unique(runs.params), np.linspace(0, 1, LINES), method="nearest"))
        line = np.geomspace(runs.tokens.min(), AHEAD * runs.tokens.max(), LINE_POINTS)
        curves = fit.bands(np.repeat(sizes, len(line)), np.tile(line, len(sizes)))
        loss, ends, new = (part.reshape(*part.shape[:-1], len(sizes), len(line)) for part in curves)
        axis.scatter(
            *(runs.tokens, runs.loss),
            s=9,
            c=runs.params,
            cmap=colors,
            norm=norm,
            linewidths=0,
            rasterized=len(runs) > MANY,
        )
        for k, size in enumerate(sizes):
            axis.plot(line, loss[k], color=colors(norm(size)), linewidth=1.3, label=f"N = {size:.3g}")
            draw_bands(axis, line, ends[:, k], new[:, k], colors(norm(size)))
        axis.axvline(runs.tokens.max(), color=POINTS, linestyle="--", linewidth=0.8)
        log_axes(axis, np.append(runs.loss, loss))
        axis.set_title(label, loc="left", fontsize=9)
        axis.set_xlabel(VARIABLES["tokens"], fontsize=9)
        axis.legend(fontsize=7, frameon=False)
    axes[0].set_ylabel("loss", fontsize=9)
    return figure


def curves_figure(analysis: Analysis) -> Figure:
    """The training curves and their lower envelope."""
    rows = analysis.whole.rows
    figure, (axis,) = new_figure(1, 1, FIGURE_WIDTH, 4.0)
    colors, norm = matplotlib.colormaps["viridis"], LogNorm(rows.params.min(), max(rows.params.max(), 2.0))
    for run in range(rows.runs):
        own = np.flatnonzero(rows.clusters == run)
        own = own[np.argsort(rows.flops[own], kind="stable")]
        axis.plot(rows.flops[own], rows.loss[own], color=colors(norm(rows.params[own[0]])), linewidth=0.9, alpha=0.8)
    order = np.argsort(rows.flops, kind="stable")
    least = np.minimum.accumulate(rows.loss[order])
    kept = np.append(True, np.diff(least) < 0)
    axis.plot(rows.flops[order][kept], least[kept], color="black", linewidth=1.6)
    log_axes(axis, rows.loss)
    bar = figure.colorbar(matplotlib.cm.ScalarMappable(norm, colors), ax=axis)
    bar.set_label(VARIABLES["params"], fontsize=9)
    bar.ax.tick_params(labelsize=8)
    axis.set_xlabel(VARIABLES["flops"], fontsize=9)
    axis.set_ylabel("loss", fontsize=9)
    return figure


def isoflop_figure(analysis: Analysis) -> Figure | None:
    """Parabolas, their minima and the optimum of the joint law; None without parabolas."""
    laws = [(label, law) for label, _, law in colored(analysis) if law.profiles][:MOST_PANELS]
    if not laws:
        return None
    figure, axes = new_figure(len(laws), min(2, len(laws)), FIGURE_WIDTH, 4.2)
    for axis, (label, law) in zip(axes, laws, strict=True):
        _draw_parabolas(axis, law)
        axis.set_title(label, loc="left", fontsize=9)
        axis.set_xlabel(VARIABLES["params"], fontsize=9)
    axes[0].set_ylabel("loss", fontsize=9)
    return figure


def _draw_parabolas(axis: Axes, law: Law) -> None:
    runs = law.runs
    colors = matplotlib.colormaps["viridis"](np.linspace(0.05, 0.9, len(law.profiles)))
    for color, profile in zip(colors, law.profiles, strict=True):
        size = runs.params[profile.rows]
        line = np.geomspace(size.min(), size.max(), LINE_POINTS)
        u = np.log(line) - profile.center
        c = profile.coefficients
        vertex = -c[1] / (2 * c[2])
        axis.scatter(size, runs.loss[profile.rows], s=10, color=color, linewidths=0)
        axis.plot(line, c[0] + c[1] * u + c[2] * u * u, color=color, linewidth=1.2, label=f"{profile.flops:.2g} FLOPs")
        axis.scatter(
            [np.exp(profile.center + vertex)], [c[0] - c[1] ** 2 / (4 * c[2])], s=46, marker="*", color=OTHER, zorder=4
        )
    if law.fit is not None:
        joint = JointLaw(*law.fit.law)
        flops = np.geomspace(law.profiles[0].flops, law.profiles[-1].flops, LINE_POINTS)
        params = np.asarray(joint.optimal_params(flops))
        losses = np.asarray(joint.loss(params, flops / 6 / params))
        axis.plot(params, losses, color=POINTS, linewidth=1.2, linestyle="--", label="joint law")
    log_axes(axis, runs.loss[np.concatenate([profile.rows for profile in law.profiles])])
    axis.legend(fontsize=7, frameon=False)


def frontier_figure(analysis: Analysis) -> Figure | None:
    """Optimal size against compute: joint laws with bands, the other routes, published laws; None without a law."""
    laws = [(label, color, law) for label, color, law in colored(analysis) if law.fit is not None]
    if not laws:
        return None
    runs = analysis.whole.runs
    figure, (axis,) = new_figure(1, 1, FIGURE_WIDTH, 4.2)
    flops = np.geomspace(runs.flops.min(), 100 * runs.flops.max(), 2)  # straight lines
    scatter(axis, analysis, runs, runs.flops, runs.params, 6.0)
    highest = 0.0
    for label, color, law in laws:
        rows = [row for row in law.record["optimal"] if None not in row["params_ci95"]]
        if rows:
            low, high = zip(*(row["params_ci95"] for row in rows), strict=True)
            axis.fill_between([row["flops"] for row in rows], low, high, color=color, alpha=BAND, linewidth=0)
        assert law.fit is not None
        sizes = np.asarray(JointLaw(*law.fit.law).optimal_params(flops))
        highest = max(highest, float(sizes[-1]))
        words = f"{label}: " if label else ""
        axis.plot(flops, sizes, color=color, linewidth=1.8, label=f"{words}joint law (approach 3)")
        for route, marker, name in ((law.isoflop, "*", "IsoFLOP minima (2)"), (law.curves, "^", "curve minima (1)")):
            if route is not None:
                shade = color if label else OTHER
                axis.scatter(route.flops, route.params, s=36, marker=marker, color=shade, zorder=4, label=words + name)
    for style, (name, constants) in zip((":", "-."), PUBLISHED.items(), strict=True):
        sizes = np.asarray(JointLaw(*constants).optimal_params(flops))
        axis.plot(flops, sizes, color=POINTS, linestyle=style, linewidth=1.2, label=f"language: {name}")
    axis.axvline(runs.flops.max(), color=POINTS, linestyle="--", linewidth=0.8)
    axis.set_xscale("log")
    axis.set_yscale("log")
    plain_log(axis.xaxis)
    plain_log(axis.yaxis)
    axis.set_ylim(runs.params.min() / 3, 3 * highest)
    axis.set_xlabel(VARIABLES["flops"], fontsize=9)
    axis.set_ylabel("compute-optimal parameters", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.legend(fontsize=8, frameon=False)
    return figure
