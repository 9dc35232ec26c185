"""An embedding says what kind of series it is: not its units, and nothing about the rest of the batch."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command import done
from tiny_series import make, tiny

import tsfm
from tsfm import weights
from tsfm.inference import embed, load_predictor
from tsfm_data.errors import InputError
from tsfm_data.io import SeriesSet

TINY = tiny()


def kinds(count: int = 6, seed: int = 0) -> tuple[list[np.ndarray], list[str]]:
    """Sines, saw teeth, noise and walks of different lengths, phases and periods."""
    rng, series, names = np.random.default_rng(seed), [], []
    for _ in range(count):
        t = np.arange(rng.integers(150, 250)) / rng.uniform(15, 25) + rng.uniform()
        noise = rng.normal(size=len(t))
        series += [np.sin(2 * np.pi * t) + 0.1 * noise, t % 1 + 0.03 * noise, noise, noise.cumsum()]
        names += ["sine", "saw", "noise", "walk"]
    return series, names


def vectors(*series: np.ndarray, **options: int) -> np.ndarray:
    return embed(TINY, SeriesSet.from_arrays("set", list(series), "D"), **options)


def test_when_a_series_is_scaled_and_moved_then_its_vector_stays() -> None:
    x = kinds(1)[0]
    same = vectors(*(1000 * y - 7 for y in x))
    np.testing.assert_allclose(same, vectors(*x), atol=1e-4)
    assert np.abs(vectors(x[0]) - vectors(x[1])).max() > 0.01
    np.testing.assert_array_equal(vectors(np.full(50, 1e300)), vectors(np.zeros(50)))


def test_when_others_are_in_the_batch_then_the_vector_stays() -> None:
    x = kinds(2)[0]
    together = vectors(*x, batch_size=5)
    for i, y in enumerate(x):
        np.testing.assert_allclose(vectors(y)[0], together[i], atol=1e-5)


def test_when_the_nearest_vector_is_looked_up_then_it_is_one_of_the_same_kind() -> None:
    x, names = kinds()
    found = embed(load_predictor("tsfm-encoder-small"), SeriesSet.from_arrays("set", x, "D"))
    distance = np.linalg.norm(found[:, None] - found[None], axis=-1) + np.diag([np.inf] * len(x))
    nearest = [names[i] for i in distance.argmin(1)]
    assert np.mean([a == b for a, b in zip(nearest, names, strict=True)]) >= 0.9


@pytest.mark.parametrize("name", ["zeroshot-decoder", "zeroshot-long"])
def test_when_values_are_missing_or_few_or_many_then_there_is_a_finite_vector(name: str) -> None:
    gaps = np.where(np.arange(90) % 7 == 0, np.nan, np.arange(90) % 10.0)
    found = embed(make(name, "quantile"), SeriesSet.from_arrays("set", [gaps, np.array([3.0]), np.arange(5000.0)], "D"))
    assert found.shape[0] == 3
    assert np.isfinite(found).all()


def test_when_a_table_is_embedded_then_a_file_has_a_row_per_series_or_patch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights.save(TINY, tmp_path / "model")
    days = pd.date_range("2024-01-01", periods=64, name="date")
    pd.DataFrame({"a": np.arange(64.0), "b": np.arange(64.0) % 7}, index=days).to_csv(tmp_path / "table.csv")
    words = ["embed", str(tmp_path / "table.csv"), "--model", str(tmp_path / "model")]
    assert "2 vectors" in done(capsys, *words, "--output", str(tmp_path / "x.parquet"))
    frame = pd.read_parquet(tmp_path / "x.parquet")
    assert list(frame["item_id"]) == ["a", "b"]
    assert frame.shape[1] > 100
    done(capsys, *words, "--patches", "--output", str(tmp_path / "p.parquet"))
    patches = pd.read_parquet(tmp_path / "p.parquet")
    assert len(patches) == 2 * 8
    assert list(patches["date"][:2]) == [pd.Timestamp("2024-01-01"), pd.Timestamp("2024-01-09")]


@pytest.mark.parametrize(
    ("model", "values", "part"),
    [("naive", [1.0, 2.0], "baseline"), ("tsfm-encoder-small", [np.nan, np.nan], "no value at all")],
)
def test_when_it_cannot_be_embedded_then_one_line_says_why(model: str, values: list[float], part: str) -> None:
    with pytest.raises(InputError, match=part):
        tsfm.load(model).embed(SeriesSet.from_arrays("set", [np.array(values)], "D"))
