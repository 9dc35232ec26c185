"""Classification metrics of class probabilities: accuracy, calibration and confusion, as rows of a Report.

Shapes: N images or series, K classes, M bins.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from tsfm_data.errors import InputError
from tsfm_data.evaluation import Report

BINS = 15


def top_k(probabilities: Float[np.ndarray, "N K"], labels: Int[np.ndarray, " N"], k: int) -> float:
    """Share of the images whose class is among the ``k`` most probable; ties count against the class."""
    of_label = np.take_along_axis(probabilities, labels[:, None], 1)
    return float((((probabilities >= of_label).sum(1)) <= k).mean())


def confusion(probabilities: Float[np.ndarray, "N K"], labels: Int[np.ndarray, " N"]) -> Int[np.ndarray, "K K"]:
    """Number of images by true class (rows) and predicted class (columns)."""
    classes = probabilities.shape[1]
    pairs = labels * classes + probabilities.argmax(1)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def reliability(
    probabilities: Float[np.ndarray, "N K"], labels: Int[np.ndarray, " N"], bins: int = BINS
) -> Float[np.ndarray, "M 3"]:
    """Share of the images, mean confidence and accuracy in equally wide bins of the highest probability.

    An empty bin has share 0 and NaN for the others.
    """
    confidence = probabilities.max(1)
    correct = probabilities.argmax(1) == labels
    bin_index = np.minimum((confidence * bins).astype(int), bins - 1)
    count = np.bincount(bin_index, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(bin_index, confidence, bins) / count
        accuracy = np.bincount(bin_index, correct, bins) / count
    return np.stack([count / len(labels), mean, accuracy], 1)


def calibration_error(
    probabilities: Float[np.ndarray, "N K"], labels: Int[np.ndarray, " N"], bins: int = BINS
) -> float:
    """Expected calibration error (Guo et al., ICML 2017): mean over images of |confidence - accuracy| of their bin."""
    share, confidence, accuracy = reliability(probabilities, labels, bins).T
    return float(np.nansum(share * np.abs(confidence - accuracy)))


def log_loss(probabilities: Float[np.ndarray, "N K"], labels: Int[np.ndarray, " N"]) -> float:
    """Mean negative log probability of the true class, in nats."""
    of_label = np.take_along_axis(probabilities.astype(np.float64), labels[:, None], 1)
    return abs(float(np.log(np.maximum(of_label, np.finfo(np.float32).tiny)).mean()))  # no -0 if all are certain


def score(
    probabilities: Float[np.ndarray, "N K"],
    labels: Int[np.ndarray, " N"],
    classes: tuple[str, ...],
    dataset: str,
    model: str,
    profile: str = "images",
) -> Report:
    """Rows for top-1, top-5 (of more than five classes), log loss and calibration error, and top-1 of each class.

    Args:
        probabilities: of each class; each row sums to 1.
        labels: true classes of the images.
        classes: names of the classes, the ``item_id`` of their rows.
        dataset: name of the data set.
        model: name of the model.
        profile: what is classified: images or series.

    Raises:
        InputError: there is nothing to score, the number of classes differs, or labels are missing.
    """
    if not len(labels):
        raise InputError(f"{dataset}: expected {profile} to score, found none: check the part and the source")
    if probabilities.shape[1] != len(classes):
        raise InputError(
            f"{dataset}: expected {profile} of the model's {probabilities.shape[1]} classes, found {len(classes)}: "
            "give the data set that the model is for"
        )
    if labels.min() < 0:
        raise InputError(f"{dataset}: expected labelled images, found images without class folders: sort them")
    whole = {"top1": top_k(probabilities, labels, 1)}
    if len(classes) > 5:
        whole["top5"] = top_k(probabilities, labels, 5)
    whole |= {"log_loss": log_loss(probabilities, labels), "ECE": calibration_error(probabilities, labels)}
    rows = [row(dataset, model, metric, value, len(labels), profile=profile) for metric, value in whole.items()]
    for label, name in enumerate(classes):
        in_class = labels == label
        if in_class.any():
            value = top_k(probabilities[in_class], labels[in_class], 1)
            rows.append(row(dataset, model, "top1", value, int(in_class.sum()), item_id=name, profile=profile))
    return Report(rows)


def row(dataset: str, model: str, metric: str, value: float, images: int, **more: Any) -> dict[str, Any]:
    """A row of a Report on images; ``points`` is their number."""
    source = {"dataset": dataset, "model": model, "profile": "images"}
    return {**source, "metric": metric, "value": value, "points": images, "undefined": 0, **more}
