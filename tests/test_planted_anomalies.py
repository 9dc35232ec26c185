"""The anomalies that ``benchmarks/detect.py`` plants."""

import numpy as np
import pytest

from tsfm_data.evaluation.anomalies import ranges

pytest.importorskip("sklearn")
pytest.importorskip("statsmodels")

import anomalies


@pytest.mark.parametrize("kind", anomalies.KINDS)
def test_when_the_benchmark_plants_anomalies_then_labels_say_where_values_changed(kind: str) -> None:
    values = 3 * np.sin(2 * np.pi * np.arange(1000) / 24) + np.random.default_rng(0).normal(0, 0.3, 1000)
    planted, labels = anomalies.plant(values, kind, 24, 200, np.random.default_rng(0))
    assert not labels[:200].any()
    assert len(ranges(labels)) == 4
    assert not (planted != values)[~labels].any()
    assert (planted != values)[labels].mean() > 0.9
