"""Pictures of forecasts: what is drawn is what was forecast, and the same figure gives the same file."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tsfm.inference.predictors import forecast_frame
from tsfm.reports.figures import MOST_PANELS, central_bands, plot_forecast, save_figure
from tsfm_data.errors import InputError
from tsfm_data.evaluation.baselines import SeasonalNaive
from tsfm_data.io.series import SeriesSet

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def waves(variates: int, rows: int = 60, freq: str = "D") -> SeriesSet:
    """Different sine waves."""
    steps = np.arange(rows)[:, None] + np.arange(variates)
    return SeriesSet.from_arrays(
        "waves", [np.sin(steps) * (1 + np.arange(variates))], freq, variates=[f"v{k}" for k in range(variates)]
    )


def forecast_of(series: SeriesSet, horizon: int = 4) -> pd.DataFrame:
    """A table with nine levels."""
    return forecast_frame(SeasonalNaive(), series, horizon, LEVELS)


def lines(axis: object) -> dict[str, np.ndarray]:
    """The values of each line of a panel."""
    return {line.get_label(): np.asarray(line.get_ydata()) for line in axis.lines}  # type: ignore[attr-defined]


def test_panel_shows_history_median_and_truth_joined_at_the_last_known_point() -> None:
    whole = waves(2)
    known = SeriesSet.from_arrays("waves", [whole.values[:-4]], "D", variates=whole.variates)
    frame = forecast_of(known)
    figure = plot_forecast(known, frame, whole, history=10)
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["v0", "v1"]
    for k, axis in enumerate(figure.axes):
        drawn = lines(axis)
        np.testing.assert_array_equal(drawn["history"], known.values[-10:, k])
        np.testing.assert_array_equal(drawn["truth"], whole.values[-5:, k])
        median = frame.loc[frame["item_id"] == f"v{k}", "0.5"].to_numpy()
        np.testing.assert_array_equal(drawn["median"], [known.values[-1, k], *median])
    labels = [text.get_text() for text in figure.legends[0].texts]
    assert labels == ["history", "truth", "median", "80 % interval", "40 % interval"]


def test_more_series_than_panels_are_said_to_be_left_out() -> None:
    series = waves(20)
    figure = plot_forecast(series, forecast_of(series))
    assert sum(axis.get_visible() for axis in figure.axes) == MOST_PANELS == 12
    assert figure.get_supxlabel() == "12 of 20 series shown"


def test_named_series_are_drawn_in_their_order() -> None:
    series = waves(5)
    figure = plot_forecast(series, forecast_of(series), items=("v3", "v1"), unit="m")
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["v3", "v1"]
    assert {axis.get_ylabel() for axis in figure.axes} == {"m"}


@pytest.mark.parametrize(
    ("levels", "names"),
    [
        (LEVELS, ["80 % interval", "40 % interval"]),
        ((0.1, 0.5, 0.9), ["80 % interval"]),
        ((0.05, 0.25, 0.5, 0.75, 0.95), ["90 % interval", "50 % interval"]),
        ((0.5,), []),
        ((0.1, 0.5), []),
    ],
)
def test_intervals_are_the_pairs_of_levels_around_the_median(levels: tuple[float, ...], names: list[str]) -> None:
    frame = forecast_frame(SeasonalNaive(), waves(1), 4, levels)
    bands = central_bands(frame)
    assert [name for _, _, name in bands] == names
    assert all((low <= high).all() for low, high, _ in bands)


@pytest.mark.parametrize("freq", ["h", "D", "W-SUN", "MS", "15min", "YS"])
@pytest.mark.parametrize("rows", [1, 2, 31, 60])
def test_any_frequency_and_length_can_be_drawn(freq: str, rows: int, tmp_path: Path) -> None:
    series = waves(1, rows, freq)
    save_figure(plot_forecast(series, forecast_of(series, 1)), tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_missing_values_leave_a_gap_in_the_history() -> None:
    series = waves(1)
    series.values[-1] = np.nan
    drawn = lines(plot_forecast(series, forecast_of(series)).axes[0])
    assert np.isnan(drawn["history"][-1])
    assert np.isfinite(drawn["median"][1:]).all()


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_same_figure_gives_the_same_bytes(suffix: str, tmp_path: Path) -> None:
    series = waves(1)
    for name in ("a", "b"):
        save_figure(plot_forecast(series, forecast_of(series)), tmp_path / f"{name}{suffix}")
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_when_the_suffix_is_no_picture_then_an_input_error_and_no_file(tmp_path: Path) -> None:
    series = waves(1)
    with pytest.raises(InputError, match=r"\.png, \.svg or \.pdf"):
        save_figure(plot_forecast(series, forecast_of(series)), tmp_path / "x.docx")
    assert not list(tmp_path.iterdir())
