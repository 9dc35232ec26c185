"""Figures of image models: attention maps, calibration and confusion of classes."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int, UInt8

from tsfm_data.images import calibration_error, confusion, reliability
from tsfm_data.io import PICTURES, atomic_file, check_suffix

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#999999"


def draw_maps(
    pixels: Sequence[UInt8[np.ndarray, "H W C"]],
    columns: Sequence[tuple[str, Float[np.ndarray, "N H W"]]],
    captions: Sequence[str],
    across: bool = False,
) -> "Figure":
    """Each image next to its maps, which are drawn over it; one row per image.

    Args:
        pixels: the images as the model sees them.
        columns: a title and the maps of all images, 0 to 1, for each column.
        captions: one line per image.
        across: one column per image, for wide pages.
    """
    from matplotlib.figure import Figure

    rows, width = len(pixels), 1 + len(columns)
    figure = Figure(figsize=(2.3 * rows, 2.5 * width) if across else (2.9 * width, 3.0 * rows), layout="constrained")
    axes = figure.subplots(width, rows, squeeze=False).T if across else figure.subplots(rows, width, squeeze=False)
    for row, image in enumerate(pixels):
        grey = image.mean(2) / 255
        shown = image if image.shape[2] == 3 else np.repeat(image, 3, 2)
        axes[row, 0].imshow(shown)
        axes[row, 0].set_title(captions[row], fontsize=9)
        for column, (title, maps) in enumerate(columns, start=1):
            axes[row, column].imshow(grey, cmap="gray", vmin=0, vmax=1)
            axes[row, column].imshow(maps[row], cmap="inferno", alpha=0.6, vmin=0, vmax=1)
            if row == 0:
                axes[row, column].set_title(title, fontsize=9, loc="left")
    for axis in axes.ravel():
        axis.set_axis_off()
    return figure


def draw_calibration(
    probabilities: Float[np.ndarray, "N K"], labels: Int[np.ndarray, " N"], classes: Sequence[str]
) -> "Figure":
    """A reliability plot (Guo et al., ICML 2017) and the confusion matrix, whose rows sum to 1."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    share, confidence, accuracy = reliability(probabilities, labels).T
    edges = np.arange(len(share)) / len(share)
    left.bar(edges, accuracy, 1 / len(share), align="edge", color=BLUE, edgecolor="white", label="accuracy")
    left.bar(edges, share, 1 / len(share), align="edge", color="none", edgecolor=GREY, label="share of the images")
    left.plot(confidence, accuracy, "o", color=ORANGE, markersize=4, label="mean confidence of the bin")
    left.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle="--")
    left.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy")
    left.set_title(f"calibration error {calibration_error(probabilities, labels):.3f}", fontsize=10)
    left.legend(fontsize=8, loc="upper left", framealpha=0.9)
    left.spines[["top", "right"]].set_visible(False)
    counts = confusion(probabilities, labels)
    rates = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    drawn = right.imshow(rates, cmap="Blues", vmin=0, vmax=1)
    right.set_title("predicted class, by true class", fontsize=10)
    if len(classes) <= 30:
        right.set_xticks(range(len(classes)), classes, rotation=60, ha="right", fontsize=8)
        right.set_yticks(range(len(classes)), classes, fontsize=8)
    if len(classes) <= 12:
        for (i, j), value in np.ndenumerate(rates):
            if value >= 0.005:
                colour = "white" if value > 0.5 else "black"
                right.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(drawn, ax=right, shrink=0.8)
    return figure


def save_figure(figure: "Figure", path: str | Path) -> None:
    """Write a figure, whole or not at all; the same one always gives the same bytes.

    Raises:
        InputError: a suffix other than .png, .svg and .pdf.
    """
    import matplotlib

    target = Path(path)
    check_suffix(target, PICTURES)
    dates: dict[str, str | None] = {".png": "Software", ".svg": "Date", ".pdf": "CreationDate"}  # type: ignore[assignment]
    with matplotlib.rc_context({"svg.hashsalt": "tsfm"}), atomic_file(target) as file:
        figure.savefig(file, format=target.suffix[1:], dpi=110, metadata={str(dates[target.suffix]): None})
