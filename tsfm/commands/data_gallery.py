"""``tsfm data gallery``: draws synthetic series, and compares their statistics with those of real ones."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tsfm import reports
from tsfm_data import corpus as corpora
from tsfm_data import synthetic
from tsfm_data.errors import InputError
from tsfm_data.io import PICTURES, check_new, check_suffix
from tsfm_data.output import say

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EXAMPLES, LAGS, POINTS = 5, 192, 600
LONGEST = 8192  # longest example in steps
SYNTHETIC, REAL = "#0072b2", "#d55e00"
PERIODS = (2, 4, 7, 12, 24, 48, 96, 168)


def gallery(
    output: Path,
    corpus: Path | None = None,
    length: int = 512,
    windows: int = 3000,
    seed: int = 0,
    *,
    overwrite: bool = False,
) -> None:
    """Draw examples of every family of synthetic series, and compare spectra and autocorrelations with real series.

    Args:
        output: picture to write (.png, .svg or .pdf).
        corpus: folder of a corpus (tsfm data build) to compare with; by default the training sets that are available.
        length: time steps per series.
        windows: number of synthetic series and of real windows for the statistics.
        seed: random seed of the series and windows.
        overwrite: replace an existing output.

    Raises:
        InputError: no corpus, a number out of range, another suffix, or no real series of this length.
    """
    if not 64 <= length <= LONGEST or windows < 1:
        raise InputError(
            f"expected a length from 64 to {LONGEST:,} and at least 1 window, found {length} and {windows}"
        )
    check_suffix(output, PICTURES)
    check_new([output], overwrite, [corpus])
    sources = corpora.store_sources(corpora.Store(corpus)) if corpus is not None else list(corpora.catalogue_sources())
    sets = {"synthetic": synthetic.SyntheticMixture().sample(windows, length, np.random.default_rng([seed, 0]))}
    if sources:
        sets["real"] = corpora.real_windows(sources, windows, length, np.random.default_rng([seed, 1]))
    reports.save_figure(draw(sets, length, seed), output)
    against = f"compared with {len(sets['real']):,} windows of {len(sources)} sources" if sources else "no real series"
    say(f"{output}: {len(synthetic.GENERATORS)} families, {windows:,} series of the mixture, {against}")


def draw(sets: dict[str, np.ndarray], length: int, seed: int) -> "Figure":
    """The figure.

    Args:
        sets: "synthetic" and perhaps "real" windows, [count, length], for the statistics.
        length: time steps of the examples.
        seed: random seed of the examples.
    """
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(10.6, 6.9), layout="constrained", facecolor="white")
    grid = figure.add_gridspec(3, 2, width_ratios=[2.5, 1])
    _examples(figure.add_subplot(grid[:, 0]), length, seed)
    spectrum, correlation, plane = (figure.add_subplot(grid[row, 1]) for row in range(3))
    for axis in (spectrum, correlation, plane):
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=7.5)
    _spectra(spectrum, sets)
    _correlations(correlation, sets)
    _plane(plane, sets)
    return figure


def _examples(axis: "Axes", length: int, seed: int) -> None:
    """One row per family: its name and some of its series, each scaled to the height of the row."""
    axis.axis("off")
    axis.set_title(f"Synthetic series of {length} steps", loc="left", fontsize=12)
    across = np.linspace(0, 0.94, length)  # an example is one unit wide and high, with a margin
    total = sum(synthetic.WEIGHTS.values())
    for row, (name, family) in enumerate(synthetic.GENERATORS.items()):
        base = -1.3 * row
        axis.text(-1.25, base + 0.72, name, fontsize=10, weight="bold", va="center")
        share = f"{100 * synthetic.WEIGHTS[name] / total:.0f} % of the mixture"
        for height, text in ((0.4, synthetic.ABOUT[name]), (0.12, share)):
            axis.text(-1.25, base + height, text, fontsize=7.5, color="#555555", va="center")
        # Neighbouring series may be of one kind: show every eighth.
        series = family(EXAMPLES * 8, length, np.random.default_rng(seed))[::8]
        low, spread = series.min(1, keepdims=True), np.maximum(np.ptp(series, axis=1, keepdims=True), 1e-9)
        for column, x in enumerate((series - low) / spread):
            axis.plot(column + across, base + x, color=SYNTHETIC, linewidth=0.5)
    axis.margins(x=0, y=0.01)


def _spectra(axis: "Axes", sets: dict[str, np.ndarray]) -> None:
    """Median and 80 % band of the power spectra, by period."""
    for name, colour in (("real", REAL), ("synthetic", SYNTHETIC)):
        if name in sets:
            low, middle, high = np.quantile(corpora.power_spectrum(sets[name]), (0.1, 0.5, 0.9), axis=0)
            periods = sets[name].shape[1] / np.arange(1, len(middle) + 1)
            axis.fill_between(periods, low, high, color=colour, alpha=0.16, linewidth=0)
            axis.plot(periods, middle, color=colour, linewidth=1.2, label=name)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_ylim(1e-7, 1)
    axis.invert_xaxis()
    axis.set_xticks(PERIODS, [str(p) for p in PERIODS])
    axis.minorticks_off()
    axis.set_xlabel("period, steps", fontsize=8)
    axis.set_title("Power spectrum, middle 80 %", loc="left", fontsize=9.5)
    axis.legend(fontsize=8, frameon=False, loc="lower left")


def _correlations(axis: "Axes", sets: dict[str, np.ndarray]) -> None:
    """Median and 50 % band of the autocorrelations, by lag."""
    for name, colour in (("real", REAL), ("synthetic", SYNTHETIC)):
        if name in sets:
            lags = min(LAGS, sets[name].shape[1] // 2)
            low, middle, high = np.quantile(corpora.autocorrelation(sets[name], lags), (0.25, 0.5, 0.75), axis=0)
            axis.fill_between(np.arange(1, lags + 1), low, high, color=colour, alpha=0.16, linewidth=0)
            axis.plot(np.arange(1, lags + 1), middle, color=colour, linewidth=1.2)
    axis.axhline(0, color="#999999", linewidth=0.6)
    axis.set_xticks(range(0, lags + 1, 24))
    axis.margins(x=0.01)
    axis.set_xlabel("lag, steps", fontsize=8)
    axis.set_title("Autocorrelation, middle half", loc="left", fontsize=9.5)


def _plane(axis: "Axes", sets: dict[str, np.ndarray]) -> None:
    """Every window as a point: autocorrelation at lag 1 against spectral entropy."""
    for name, colour in (("synthetic", SYNTHETIC), ("real", REAL)):
        if name in sets:
            windows = sets[name][:POINTS]
            share = corpora.power_spectrum(windows)
            entropy = -(share * np.log(np.maximum(share, 1e-300))).sum(1) / np.log(share.shape[1])
            smooth = corpora.autocorrelation(windows, 1)[:, 0]
            axis.scatter(smooth, entropy, s=3, color=colour, alpha=0.3, linewidths=0, rasterized=True)
    axis.set_xlabel("autocorrelation at lag 1 (smooth →)", fontsize=8)
    axis.set_ylabel("spectral entropy (← regular)", fontsize=8)
    axis.set_title("One point per window", loc="left", fontsize=9.5)
