"""``tsfm image embed``: a column of image files becomes covariates that help a forecast; bad files are counted."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command import done, run
from PIL import Image

from tsfm_data.images import open_images

DAYS, AHEAD = 210, 14


def save(folder: Path, name: str, level: int) -> str:
    """A picture of one brightness, with noise of its own."""
    noise = np.random.default_rng(sum(map(ord, name))).integers(0, 40, (48, 48, 3))
    Image.fromarray((noise + level).astype(np.uint8)).save(folder / name)
    return name


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten days, whose pictures are dark or bright; two share one."""
    monkeypatch.chdir(tmp_path)
    photos = [save(tmp_path, f"{day}.png", 200 * (day % 2)) for day in range(9)] + ["3.png"]
    days = pd.date_range("2024-01-01", periods=10)
    pd.DataFrame({"day": days, "photo": photos, "sales": range(10)}).to_csv(tmp_path / "table.csv", index=False)
    return tmp_path / "table.csv"


def embedded(capsys: pytest.CaptureFixture[str], *words: str) -> pd.DataFrame:
    done(capsys, "image", "embed", "table.csv", "--column", "photo", "--output", "out.csv", "--overwrite", *words)
    return pd.read_csv("out.csv")


def test_when_pictures_are_of_two_kinds_then_the_first_column_tells_them_apart(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = embedded(capsys, "--components", "2")
    assert list(found.columns) == ["day", "photo_1", "photo_2", "sales"]
    first = found["photo_1"].to_numpy()
    bright = np.isin(np.arange(10), [1, 3, 5, 7, 9])
    assert min(first[bright].min() - first[~bright].max(), first[~bright].min() - first[bright].max()) < 0
    assert max(first[bright].min() - first[~bright].max(), first[~bright].min() - first[bright].max()) > 1
    assert first[3] == first[9]
    pd.testing.assert_frame_equal(embedded(capsys, "--components", "2", "--batch-size", "3"), found, rtol=1e-4)


def test_when_pictures_are_missing_or_broken_then_that_is_one_line_or_they_are_left_empty_and_counted(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("3.png").write_bytes(b"no picture")
    Path("4.png").unlink()
    frame = pd.read_csv(table)
    frame.loc[0, "photo"] = None
    frame.to_csv(table, index=False)
    words = ("image", "embed", "table.csv", "--column", "photo", "--output", "out.csv")
    said = run(capsys, *words)
    assert said.status == 2
    assert "3.png: expected an image, found something else" in said.err
    assert "(2 such in all)" in said.err
    assert not Path("out.csv").exists()
    said = run(capsys, *words, "--on-bad", "skip")
    assert "2 images cannot be read, 3 rows have none; the first: 3.png" in said.err
    assert pd.read_csv("out.csv")["photo_1"].isna().tolist() == [k in (0, 3, 4, 9) for k in range(10)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--column", "picture"), "expected the column picture, found day, photo, sales"),
        (("--column", "sales"), "expected at least two different images, found 0"),
        (("--column", "photo", "--components", "0"), "expected components of at least 1, found 0"),
    ],
)
def test_when_the_column_is_wrong_then_one_line_says_so(
    table: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    said = run(capsys, "image", "embed", "table.csv", "--output", "out.csv", *words)
    assert said.status == 2
    assert message in said.err


@pytest.mark.slow
def test_when_photos_of_the_future_show_what_raises_sales_then_the_forecast_gains_much(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Photos that the image model knows the kind of but has not seen; one kind raises the sales of its day, by plan."""
    monkeypatch.chdir(tmp_path)
    images = open_images(data_folder / "images/cifar10.parquet")["test"]
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 2, DAYS)
    by_kind = [rng.permutation(np.flatnonzero(images.labels == label)) for label in (5, 8)]  # dogs and ships
    photos = []
    for day in range(DAYS):
        item = images.items[int(by_kind[kind[day]][day])]
        assert isinstance(item, bytes)
        Image.open(io.BytesIO(item)).save(f"{day}.png")
        photos.append(f"{day}.png")
    sales = 20 + 3 * np.sin(2 * np.pi * np.arange(DAYS) / 7) + 8 * kind + rng.normal(0, 1, DAYS)
    frame = pd.DataFrame({"day": pd.date_range("2024-01-01", periods=DAYS), "photo": photos, "sales": sales})
    frame.loc[DAYS - AHEAD :, "sales"] = np.nan
    frame.to_csv("table.csv", index=False)
    embedded(capsys)
    pd.read_csv("out.csv")[["day", "sales"]].dropna().to_csv("plain.csv", index=False)
    names = [f"photo_{k}" for k in range(1, 5)]
    error = {}
    for name, words in {"with": ("--known-covariates", *names), "without": ()}.items():
        said = ("--target", "sales", "--horizon", str(AHEAD), "--levels", "0.5", "--output", f"{name}.csv")
        done(capsys, "forecast", "out.csv" if words else "plain.csv", *said, *words)
        error[name] = float(np.abs(pd.read_csv(f"{name}.csv")["0.5"].to_numpy() - sales[-AHEAD:]).mean())
    assert error["with"] < 0.5 * error["without"]
