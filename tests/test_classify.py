"""Series are classified by a probe on their embeddings; scores are those of images."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command import done, run
from tiny_series import tiny

from tsfm.inference import Probe, SeriesClassifier
from tsfm.weights import verify
from tsfm_data.errors import InputError
from tsfm_data.images import log_loss
from tsfm_data.io import read_series


def table(count: int = 8, seed: int = 0, variates: tuple[str, ...] = ("target",)) -> pd.DataFrame:
    """Sines, saw teeth and noise of unequal lengths, in a long table."""
    rng, parts = np.random.default_rng(seed), []
    for i in range(3 * count):
        kind = ("sine", "saw", "noise")[i % 3]
        t = np.arange(rng.integers(60, 120)) / 20 + rng.uniform()
        y = {"sine": np.sin(2 * np.pi * t), "saw": t % 1, "noise": rng.normal(size=len(t))}[kind]
        times = pd.date_range("2024-01-01", periods=len(t), freq="h")
        values = {name: y + 0.05 * rng.normal(size=len(t)) for name in variates}
        parts.append(pd.DataFrame({"item_id": f"s{i}", "timestamp": times, **values, "kind": kind}))
    return pd.concat(parts)


def fitted(frame: pd.DataFrame, **columns: object) -> SeriesClassifier:
    return SeriesClassifier.fit(tiny(), read_series(frame, **columns), "kind")


def test_when_one_series_is_left_out_then_its_score_is_that_of_a_probe_without_it() -> None:
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(20, 5)), np.arange(20) % 2
    x[:, 0] += labels
    found = Probe.fit(x, labels, np.ones(5))
    kernel = np.exp(-((found.support[:, None] - found.support) ** 2).sum(-1) / found.width) + 4
    errors = []
    for penalty in 10.0 ** (np.arange(-6, 7) / 2):  # by hand, for the penalty that gives its weights
        weights = np.linalg.solve(kernel + penalty * np.eye(20), np.where(labels[:, None] == [0, 1], 1.0, -1.0))
        errors.append(np.abs(weights - found.weights).max())
    penalty = 10.0 ** (np.arange(-6, 7) / 2)[int(np.argmin(errors))]
    others = np.arange(1, 20)
    target = np.where(labels[others][:, None] == [0, 1], 1.0, -1.0)
    weights = np.linalg.solve(kernel[np.ix_(others, others)] + penalty * np.eye(19), target)
    scores = kernel[:1, 1:] @ weights / found.temperature
    np.testing.assert_allclose(found.left_out[:1], np.exp(scores) / np.exp(scores).sum(), atol=1e-6)


def test_when_labels_are_noise_then_left_out_probabilities_are_no_better_than_chance() -> None:
    rng = np.random.default_rng(1)
    labels = np.arange(60) % 3
    found = Probe.fit(rng.normal(size=(60, 200)), labels, np.ones(200))
    assert (found.left_out.argmax(1) == labels).mean() < 0.5
    assert log_loss(found.left_out, labels) < np.log(3) + 0.15


@pytest.mark.parametrize("variates", [("target",), ("a", "b")])
def test_when_series_of_known_kinds_come_then_they_are_classified(variates: tuple[str, ...]) -> None:
    columns = {} if len(variates) == 1 else {"target": list(variates)}
    model = fitted(table(variates=variates), **columns)
    report, *_ = model.evaluate(read_series(table(6, 1, variates), **columns))
    assert report.rows[0]["value"] >= 0.85
    assert {row["metric"] for row in report.rows} == {"top1", "log_loss", "ECE"}
    assert {row.get("item_id") for row in report.rows} == {None, "sine", "saw", "noise"}


def test_when_a_classifier_is_fitted_by_command_then_it_predicts_and_is_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table().to_csv("train.csv", index=False)
    table(3, 1).to_csv("test.csv", index=False)
    said = done(capsys, "classify", "fit", "train.csv", "--label", "kind", "--output", "kinds")
    assert "3 classes, 24 series" in said
    assert "top1" in said
    said = done(capsys, "classify", "predict", "test.csv", "--model", "kinds", "--output", "found.csv")
    assert "s0: sine" in said
    frame = pd.read_csv("found.csv")
    assert len(frame) == 9
    np.testing.assert_allclose(frame.filter(like="p(").sum(axis=1), 1)
    said = done(capsys, "classify", "evaluate", "test.csv", "--model", "kinds", "--json", "scores.json")
    assert "ECE" in said
    assert "true class" in said
    (tmp_path / "kinds/model.safetensors").write_bytes(b"damaged")
    assert "model.safetensors" in run(capsys, "classify", "predict", "test.csv", "--model", "kinds").err


def test_when_a_classifier_is_saved_then_the_folder_gives_the_same_probabilities(tmp_path: Path) -> None:
    model, other = fitted(table()), read_series(table(2, 1))
    model.save(tmp_path / "kinds")
    np.testing.assert_array_equal(
        SeriesClassifier.load(tmp_path / "kinds").probabilities(other), model.probabilities(other)
    )
    found = verify(tmp_path / "kinds")
    assert [checked.kind for checked in found] == ["series-classifier", "zeroshot-encoder"]
    (tmp_path / "kinds/encoder/model.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"encoder/model\.safetensors"):
        verify(tmp_path / "kinds")


def test_when_a_class_was_not_fitted_then_its_series_count_as_errors() -> None:
    model, other = fitted(table()), table(2, 1)
    report, *_ = model.evaluate(read_series(other.assign(kind=other["kind"].replace("saw", "new"))))
    assert report.rows[0]["value"] <= 4 / 6
    assert "2 series are of classes that were not fitted, so errors: new" in report.notes[0]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda t: t.assign(kind="same"), "at least two classes in column 'kind', found 'same' alone"),
        (lambda t: t.drop(columns="kind"), "expected a column 'kind'"),
        (lambda t: t.assign(kind=t["kind"].where(t["item_id"] != "s2")), "found none in 1, the first 's2'"),
        (lambda t: t.assign(target=t["target"].where(t["item_id"] != "s3")), "series 's3' has no value at all"),
    ],
)
def test_when_labels_are_wrong_then_one_line_says_so(change: object, part: str) -> None:
    with pytest.raises(InputError, match=part):
        fitted(change(table(2)))  # type: ignore[operator]


def test_when_a_class_has_one_series_then_a_note_names_it() -> None:
    frame = table(3)
    lonely = frame.assign(kind=frame["kind"].where(frame["item_id"] != "s0", "lonely"))
    assert "1 classes have one series, which cannot be checked: lonely" in fitted(lonely).notes[0]
