"""VUS-PR and the precision and recall of ranges are those of their definitions."""

import math

import numpy as np
import pytest

from tsfm_data.errors import InputError
from tsfm_data.evaluation import range_precision_recall, vus_pr
from tsfm_data.evaluation.anomalies import ranges, soft_labels


def literal_vus_pr(labels: list[bool], scores: list[float], longest: int) -> float:
    """The definition step by step: a threshold for each different score, plain loops."""
    count, areas = len(labels), []
    found = [list(map(int, pair)) for pair in ranges(np.array(labels))]
    for buffer in range(longest + 1):
        soft = [1.0 if label else 0.0 for label in labels]
        for begin, end in found:
            for t in range(count):
                distance = begin - t if t < begin else t - (end - 1)
                if 0 < distance <= buffer // 2 and not begin <= t < end:
                    soft[t] = min(1.0, soft[t] + math.sqrt(1 - distance / buffer))
        events, inside = [], False
        for t in range(count):
            if soft[t] > 0 and not inside:
                events.append([])
            inside = soft[t] > 0
            if inside:
                events[-1].append(t)
        area = before = 0.0
        for threshold in sorted(set(scores), reverse=True):
            flagged = [score >= threshold for score in scores]
            hits = sum(value for value, flag in zip(soft, flagged, strict=True) if flag)
            exist = sum(any(flagged[t] for t in event) for event in events) / len(events)
            recall = min(hits / ((sum(labels) + sum(soft)) / 2), 1) * exist
            area += (recall - before) * hits / sum(flagged)
            before = recall
        areas.append(area)
    return sum(areas) / len(areas)


@pytest.mark.parametrize("seed", range(6))
def test_when_vus_pr_is_computed_then_it_is_that_of_the_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.zeros(70, bool)
    for begin in rng.integers(0, 68, 3):
        labels[begin : begin + int(rng.integers(1, 9))] = True
    scores = np.round(rng.normal(size=70) + labels * seed / 2, 1)  # with equal scores
    assert vus_pr(labels, scores, 13) == pytest.approx(literal_vus_pr(labels.tolist(), scores.tolist(), 13), rel=1e-12)


def test_when_the_tolerance_is_0_then_vus_pr_is_average_precision_times_existence() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    labels = np.zeros(200, bool)
    labels[50:60] = True
    scores = rng.normal(size=200) + labels
    scores[55] = 9.0  # the only anomaly is found at the first threshold, so existence is 1 throughout
    assert vus_pr(labels, scores, 0) == pytest.approx(metrics.average_precision_score(labels, scores), rel=1e-12)


def test_when_a_detector_is_perfect_late_or_silent_then_vus_pr_says_so() -> None:
    labels = np.zeros(300, bool)
    labels[100:120] = True
    late = np.roll(labels, 4).astype(float)
    assert vus_pr(labels, labels.astype(float), 0) == 1
    assert vus_pr(labels, late, 0) < vus_pr(labels, late, 16) < vus_pr(labels, labels.astype(float), 16)
    silent = np.where(labels, np.nan, 0.0)
    assert vus_pr(labels, silent, 0) == pytest.approx(20 / 300)


def test_when_buffers_meet_the_ends_then_they_end_there() -> None:
    soft = soft_labels(np.array([False, True, False, False, False, True]), 4)
    np.testing.assert_allclose(soft, [math.sqrt(3 / 4), 1, math.sqrt(3 / 4), 1, math.sqrt(3 / 4), 1], atol=0.3)
    assert soft[0] == soft[2] == math.sqrt(3 / 4)
    assert soft[3] == min(1, 2 * math.sqrt(1 / 2))


def test_when_ranges_are_found_in_part_then_precision_and_recall_are_shares_of_ranges() -> None:
    labels, flags = np.zeros(40, bool), np.zeros(40, bool)
    labels[10:20] = labels[30:34] = True
    flags[15:20] = flags[5:7] = True  # half of the first range in one piece, and a false alarm
    assert range_precision_recall(labels, flags) == (0.5, 0.25)
    flags[11:13] = True  # two pieces of the first range share its reward
    precision, recall = range_precision_recall(labels, flags)
    assert precision == pytest.approx(2 / 3)
    assert recall == pytest.approx(0.7 / 2 / 2)
    nothing = range_precision_recall(labels, np.zeros(40, bool))
    assert math.isnan(nothing[0])
    assert nothing[1] == 0


def test_when_there_is_nothing_to_find_then_one_line_says_so() -> None:
    with pytest.raises(InputError, match="expected at least one anomaly among 5 labels"):
        vus_pr(np.zeros(5, bool), np.zeros(5), 2)
