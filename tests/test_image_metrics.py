"""Accuracy, calibration and confusion of class probabilities, by hand-made numbers."""

import numpy as np
import pytest

from tsfm_data.errors import InputError
from tsfm_data.images.metrics import calibration_error, confusion, log_loss, reliability, score, top_k

P = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])
LABELS = np.array([0, 1, 1, 2])


def test_when_classes_are_counted_then_accuracy_and_confusion_are_those_by_hand() -> None:
    assert top_k(P, LABELS, 1) == 0.75
    assert top_k(P, LABELS, 2) == 1.0
    assert confusion(P, LABELS).tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert log_loss(P, LABELS) == pytest.approx(-np.log([0.7, 0.6, 0.3, 0.6]).mean())


def test_when_every_image_is_certain_and_right_then_the_log_loss_is_zero_without_a_sign() -> None:
    assert str(log_loss(np.eye(3), np.arange(3))) == "0.0"


def test_when_all_classes_are_equally_probable_then_no_class_is_found() -> None:
    assert top_k(np.full((4, 3), 1 / 3), LABELS, 1) == 0.0


def test_when_confidence_is_the_accuracy_then_the_calibration_error_is_zero() -> None:
    p = np.tile([0.75, 0.25], (4, 1))
    assert calibration_error(p, np.array([0, 0, 0, 1])) == pytest.approx(0.0, abs=1e-12)
    assert calibration_error(p, np.zeros(4, int)) == pytest.approx(0.25)
    assert reliability(p, np.array([0, 0, 0, 1]), 4)[3].tolist() == [1.0, 0.75, 0.75]


def test_when_a_set_is_scored_then_every_class_has_its_row() -> None:
    report = score(P, LABELS, ("a", "b", "c"), "set", "model")
    rows = {row["item_id"]: row["value"] for row in report.rows if "item_id" in row}
    assert rows == {"a": 1.0, "b": 0.5, "c": 1.0}
    first = report.rows[0]
    assert (first["dataset"], first["model"], first["metric"], first["value"]) == ("set", "model", "top1", 0.75)
    assert (first["points"], first["undefined"]) == (4, 0)
    assert '"metric": "ECE"' in report.to_json()
    assert "0.75" in report.to_markdown()


@pytest.mark.parametrize(
    ("classes", "labels", "message"),
    [(("a", "b"), LABELS, "model's 3 classes, found 2"), (("a", "b", "c"), np.full(4, -1), "without class folders")],
)
def test_when_classes_or_labels_do_not_fit_then_one_line_says_so(classes, labels, message: str) -> None:
    with pytest.raises(InputError, match=message):
        score(P, labels, classes, "set", "model")
