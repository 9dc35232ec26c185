"""Scores of anomaly detectors: VUS-PR, and precision and recall of ranges. No point adjustment.

VUS-PR (Paparrizos et al., Volume Under the Surface, VLDB 2022) is the area under the precision-recall curve, averaged
over tolerances. Labels get a buffer on both sides of each anomaly that falls from 1 with the square root of the
distance, so a score near an anomaly counts in part. Recall is multiplied by the share of anomalies that are found at
all. Ranges: Tatbul et al., Precision and Recall for Time Series, NeurIPS 2018, with a flat bias, no reward for mere
existence, and overlaps divided by the number of ranges that share them.

Axes: T steps, R ranges.
"""

import numpy as np
from jaxtyping import Bool, Float64, Int64

from tsfm_data.errors import InputError


def ranges(flags: Bool[np.ndarray, " T"]) -> Int64[np.ndarray, "R 2"]:
    """First step of each run of true values, and the step after its end."""
    edges = np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8))
    return np.stack([np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)], axis=1)


def soft_labels(labels: Bool[np.ndarray, " T"], buffer: int) -> Float64[np.ndarray, " T"]:
    """Labels with buffers of ``buffer // 2`` steps on both sides of each anomaly; at most 1 where buffers overlap."""
    soft = labels.astype(np.float64)
    reach = np.arange(1, buffer // 2 + 1)
    slope = np.sqrt(1 - reach / max(buffer, 1))
    for begin, end in ranges(labels):
        left = reach[begin - reach >= 0]
        soft[begin - left] += slope[: len(left)]
        right = reach[end - 1 + reach < len(soft)]
        soft[end - 1 + right] += slope[: len(right)]
    return np.minimum(soft, 1)


def range_auc_pr(labels: Bool[np.ndarray, " T"], scores: Float64[np.ndarray, " T"], buffer: int) -> float:
    """Area under the precision-recall curve for labels with buffers, a step for each different score.

    Args:
        labels: which steps are anomalies.
        scores: the higher, the more anomalous; NaN where there is none, which ranks last.
        buffer: steps of the buffers of an anomaly, both sides together.
    """
    soft = soft_labels(labels, buffer)
    scores = np.where(np.isnan(scores), -np.inf, scores)
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))  # the last of each group of equal scores
    hits = np.cumsum(soft[order])[last]
    total = (labels.sum() + soft.sum()) / 2
    highest = np.array([scores[begin:end].max() for begin, end in ranges(soft > 0)])
    found = (highest[:, None] >= ordered[last]).mean(axis=0)
    recall = np.minimum(hits / total, 1) * found
    precision = hits / (last + 1)
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def vus_pr(labels: Bool[np.ndarray, " T"], scores: Float64[np.ndarray, " T"], longest: int) -> float:
    """Mean of ``range_auc_pr`` over the buffers 0, 1, ... ``longest``; 1 for a perfect detector.

    Args:
        labels: which steps are anomalies.
        scores: the higher, the more anomalous; NaN where there is none.
        longest: the longest buffer in steps, such as the length of a season or of an anomaly.

    Raises:
        InputError: no anomaly among the labels.
    """
    check_labels(labels)
    return float(np.mean([range_auc_pr(labels, scores, buffer) for buffer in range(longest + 1)]))


def range_precision_recall(labels: Bool[np.ndarray, " T"], flags: Bool[np.ndarray, " T"]) -> tuple[float, float]:
    """Precision and recall of ranges; precision is NaN if nothing is flagged.

    Args:
        labels: which steps are anomalies.
        flags: which steps a detector flags.

    Raises:
        InputError: no anomaly among the labels.
    """
    check_labels(labels)
    return _covered(flags, labels), _covered(labels, flags)


def _covered(of: Bool[np.ndarray, " T"], by: Bool[np.ndarray, " T"]) -> float:
    """Mean over the ranges of ``of`` of the share that ``by`` covers, divided by its number of ranges in there."""
    shares = []
    for begin, end in ranges(of):
        pieces = len(ranges(by[begin:end]))
        shares.append(by[begin:end].mean() / max(pieces, 1))
    return float(np.mean(shares)) if shares else float("nan")


def check_labels(labels: Bool[np.ndarray, " T"]) -> None:
    """Check that there is something to find.

    Raises:
        InputError: no anomaly among the labels.
    """
    if not labels.any():
        raise InputError(f"expected at least one anomaly among {len(labels)} labels, found none: leave the series out")
