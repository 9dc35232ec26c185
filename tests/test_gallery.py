"""The gallery of synthetic series: statistics that are right, and a picture."""

from pathlib import Path

import numpy as np
import pytest

from tsfm.commands.data_gallery import gallery
from tsfm_data.corpus.spectra import autocorrelation, catalogue_sources, power_spectrum, real_windows
from tsfm_data.errors import InputError


def test_when_a_series_is_a_wave_then_its_power_and_correlation_are_the_waves() -> None:
    wave = np.sin(2 * np.pi * np.arange(240) / 24)[None]
    share = power_spectrum(wave)
    assert share.argmax() == 240 // 24 - 1
    assert share.sum() == pytest.approx(1)
    actual = autocorrelation(wave, 48)[0]
    expected = np.cos(2 * np.pi * np.arange(1, 49) / 24) * (1 - np.arange(1, 49) / 240)
    np.testing.assert_allclose(actual, expected, atol=0.02)
    constant = np.ones((1, 64))
    assert not autocorrelation(constant, 8).any()
    assert not power_spectrum(constant).any()


def test_when_windows_are_drawn_then_gaps_are_filled_and_useless_ones_left_out() -> None:
    rising = np.arange(100.0)
    rising[10::40] = np.nan
    sources = [(1.0, [rising, np.zeros(5)]), (1.0, [np.ones(100)]), (1.0, [np.full(100, np.nan)])]
    windows = real_windows(sources, 300, 50, np.random.default_rng(0))
    assert 60 < len(windows) < 140, "one source in three can be used"
    inside = np.diff(windows[:, 1:-1], axis=1)
    np.testing.assert_allclose(inside, 1, err_msg="a straight line, its gaps filled")
    with pytest.raises(InputError, match="at least 101 steps"):
        real_windows(sources, 10, 101, np.random.default_rng(0))


def test_when_the_gallery_is_drawn_twice_then_it_is_the_same_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TSFM_DATA", str(tmp_path / "none"))
    assert list(catalogue_sources()) == []
    first, second = tmp_path / "first.png", tmp_path / "second.png"
    for file in (first, second):
        gallery(file, length=64, windows=40)
    assert first.read_bytes() == second.read_bytes()
    assert "13 families, 40 series of the mixture, no real series" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"length": 8}, "a length from 64 to 8,192"),
        ({"length": 10_000_000}, "found 10000000"),
        ({"windows": 0}, "at least 1 window"),
        ({"corpus": Path("nowhere")}, "nowhere"),
        ({"output": Path("x.gif"), "length": 64, "windows": 2}, "ends in .png"),
    ],
    ids=str,
)
def test_when_the_gallery_cannot_be_drawn_then_one_line_says_why(
    options: dict[str, object], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TSFM_DATA", str(tmp_path / "none"))
    with pytest.raises(InputError, match=words):
        gallery(**{"output": tmp_path / "x.png", **options})  # type: ignore[arg-type]
