"""Metrics equal GluonTS's, count what is undefined, and do not depend on how the stream is cut."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.conftest import golden_cases
from tsfm_data.errors import InputError
from tsfm_data.evaluation.elements import Elements, quantile_at, sample_quantiles, seasonal_error
from tsfm_data.evaluation.metrics import LEVELS, Accumulator, get_metric, needed_levels


def golden(tensor: str = "out/metrics") -> pytest.MarkDecorator:
    """One test for every golden case that holds ``tensor``; a skip where there is none."""
    cases = [c for c in golden_cases("timeseries/metrics") if tensor in json.loads(c.read_text())["tensors"]]
    absent = pytest.param(Path("absent"), marks=pytest.mark.skip(reason="no golden metric cases (set TSFM_GOLDEN)"))
    return pytest.mark.parametrize("case", cases or [absent], ids=lambda path: path.stem)


def read(case: Path) -> tuple[dict, dict[str, np.ndarray]]:
    return json.loads(case.read_text()), load_file(case.with_suffix(".safetensors"))


def golden_elements(tensors: dict[str, np.ndarray], levels: tuple[float, ...]) -> Elements:
    """The case's forecasts, whatever form they have: quantiles, samples, or one point repeated."""
    label = tensors["in/label"][..., None]
    scale = tensors["out/seasonal_error"][:, None, None]
    if "in/quantiles" in tensors:
        known = tuple(tensors["in/quantile_levels"].tolist())
        mean = tensors["in/mean"][..., None] if "in/mean" in tensors else None
        return Elements(label, np.moveaxis(tensors["in/quantiles"], 1, 2)[:, :, None], known, mean, scale)
    if "in/samples" in tensors:
        samples = np.moveaxis(tensors["in/samples"], 1, 2)[:, :, None]
        return Elements(label, sample_quantiles(samples, levels), levels, samples.mean(-1), scale)
    point = tensors["out/seasonal_naive"].astype(np.float64)[..., None]
    return Elements(label, np.repeat(point[..., None], len(levels), -1), levels, point, scale)


def relative(values: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference relative to the expected value; NaN and infinity must be at the same positions."""
    np.testing.assert_array_equal(np.isfinite(values), np.isfinite(expected))
    finite = np.isfinite(expected)
    error = np.abs(values[finite] - expected[finite]) / np.maximum(np.abs(expected[finite]), 1e-12)
    return float(error.max(initial=0.0))


@golden()
@pytest.mark.parametrize("axis", ["all", "window", "step"])
def test_golden_metrics_equal_gluonts(case: Path, axis: str) -> None:
    config, tensors = read(case)
    masked = config.get("mask_invalid_label", True)
    metrics = [get_metric(name) for name in config["metric_names"]]
    elements = golden_elements(tensors, needed_levels(metrics))
    windows, steps, _ = elements.label.shape
    group = {"all": None, "window": np.arange(windows)[:, None, None], "step": np.arange(steps)[None, :, None]}[axis]
    groups = {"all": 1, "window": windows, "step": steps}[axis]
    accumulator = Accumulator(metrics, groups, "mask" if masked else ("nan" if axis == "window" else "keep"))
    accumulator.update(elements, group)
    reference = {"all": "out/metrics", "window": "out/metrics_per_window", "step": "out/metrics_per_step"}[axis]
    expected = tensors[reference].reshape(groups, len(metrics))
    skip = config["skip_per_window"] if axis == "window" else {}
    for column, (name, values) in enumerate(accumulator.values().items()):
        rows = np.setdiff1d(np.arange(groups), skip.get(name, []))
        assert relative(values[rows], expected[rows, column]) < 1e-9, name


@golden()
def test_golden_seasonal_errors_equal_gluonts(case: Path) -> None:
    config, tensors = read(case)
    offsets = tensors["in/context_offsets"]
    season = config["config"]["seasonality"]
    expected = tensors["out/seasonal_error"]
    if season is None:  # left to the frequency: hours where the start has a time of day, else days of a calendar
        season = 24 if ":" in config["windows"][0]["forecast_start"] else 1
    errors = np.array(
        [
            seasonal_error(history[:, None], season, np.array([len(history)]), config["mask_invalid_label"])[0, 0]
            for history in np.split(tensors["in/context"], offsets[1:-1])
        ]
    )
    assert relative(errors, expected) < 1e-9


@golden("out/extrapolated_quantiles")
def test_golden_missing_levels_equal_gluonts(case: Path) -> None:
    config, tensors = read(case)
    words = config["tensors"]["out/extrapolated_quantiles"]["meaning"].split(" at ")[1].split(" from ")[0].split()
    known = np.moveaxis(tensors["in/quantiles"], 1, 2)
    levels = tensors["in/quantile_levels"].tolist()
    for expected, level in zip(
        np.moveaxis(tensors["out/extrapolated_quantiles"], 1, 0), map(float, words), strict=True
    ):
        assert relative(quantile_at(known, levels, level), expected) < 1e-9


@golden("out/sample_quantiles")
def test_golden_sample_quantiles_equal_gluonts(case: Path) -> None:
    config, tensors = read(case)
    levels = golden_sample_levels(config["tensors"]["out/sample_quantiles"]["meaning"])
    quantiles = sample_quantiles(np.moveaxis(tensors["in/samples"], 1, 2), levels)
    assert relative(np.moveaxis(quantiles, 2, 1), tensors["out/sample_quantiles"]) < 1e-9


def golden_sample_levels(meaning: str) -> list[float]:
    """The levels that the description of a golden tensor lists; "0.1..0.9" stands for tenths."""
    levels: list[float] = []
    for word in meaning.split(" at ")[1].split(" [")[0].split(", "):
        first, _, last = word.partition("..")
        levels += [float(first)] if not last else np.round(np.arange(float(first), float(last) + 0.05, 0.1), 9).tolist()
    return levels


def random_elements(windows: int = 12, seed: int = 0) -> Elements:
    rng = np.random.default_rng(seed)
    label = rng.normal(size=(windows, 6, 2))
    quantiles = np.sort(rng.normal(size=(windows, 6, 2, len(LEVELS))), axis=-1)
    return Elements(label, quantiles, LEVELS, rng.normal(size=label.shape), rng.uniform(0.5, 2, size=(windows, 1, 2)))


def part(e: Elements, rows: slice) -> Elements:
    assert e.mean is not None
    assert e.scale is not None
    return Elements(e.label[rows], e.quantiles[rows], e.levels, e.mean[rows], e.scale[rows])


def score(elements: Elements, *names: str) -> dict[str, float]:
    accumulator = Accumulator([get_metric(name) for name in names])
    accumulator.update(elements)
    return {name: float(value[0]) for name, value in accumulator.values().items()}


def test_when_the_stream_is_cut_differently_then_metrics_stay() -> None:
    names = ("MSE", "MASE", "ND", "NRMSE", "WQL", "MSIS", "coverage_error", "sMAPE")
    elements = random_elements()
    whole = score(elements, *names)
    stream = Accumulator([get_metric(name) for name in names])
    for start in (0, 1, 5):
        stream.update(part(elements, slice(start, {0: 1, 1: 5, 5: 12}[start])))
    for name, value in stream.values().items():
        assert value[0] == pytest.approx(whole[name], rel=1e-12)


def test_when_a_series_is_constant_then_mase_skips_and_counts_it() -> None:
    elements = random_elements(windows=3)
    assert elements.scale is not None
    elements.scale[1] = 0.0
    elements.label[0, 0, 0] = np.nan
    accumulator = Accumulator([get_metric("MASE"), get_metric("MAE")])
    accumulator.update(elements)
    kept = [elements.label[w] - elements.quantiles[w, :, :, 4] for w in (0, 2)]
    scaled = np.concatenate([np.abs(error) / elements.scale[w] for w, error in zip((0, 2), kept, strict=True)])
    assert accumulator.values()["MASE"][0] == pytest.approx(np.nanmean(scaled), rel=1e-12)
    assert accumulator.undefined()["MASE"][0] == 12
    assert accumulator.undefined()["MAE"][0] == 0


def test_when_nothing_can_be_scored_then_the_metric_is_nan_not_zero() -> None:
    elements = random_elements(windows=2)
    elements.label[:] = 0.0
    assert elements.scale is not None
    elements.scale[:] = 0.0
    values = score(elements, "MASE", "ND", "WQL", "MAPE")
    assert all(np.isnan(value) for value in values.values()), values


def test_when_quantiles_are_true_then_coverage_is_nominal() -> None:
    label = np.linspace(0.0005, 0.9995, 1000).reshape(10, 100, 1)
    quantiles = np.broadcast_to(np.array(LEVELS), (*label.shape, len(LEVELS))).copy()
    elements = Elements(label, quantiles, LEVELS)
    values = score(elements, "coverage[0.3]", "interval_coverage[0.8]", "coverage_error")
    assert values["coverage[0.3]"] == pytest.approx(0.3, abs=1e-9)
    assert values["interval_coverage[0.8]"] == pytest.approx(0.8, abs=1e-9)
    assert values["coverage_error"] == pytest.approx(0.0, abs=1e-9)


def test_when_groups_are_asked_for_then_each_has_its_own_value() -> None:
    elements = random_elements(windows=4)
    grouped = Accumulator([get_metric("MAE"), get_metric("WQL")], groups=4)
    grouped.update(elements, np.arange(4)[:, None, None])
    for w in range(4):
        alone = score(part(elements, slice(w, w + 1)), "MAE", "WQL")
        for name in alone:
            assert grouped.values()[name][w] == pytest.approx(alone[name], rel=1e-12)


def test_when_the_history_is_cut_then_the_seasonal_error_sees_only_what_came_before() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(size=(50, 2))
    values[7, 0] = np.nan
    errors = seasonal_error(values, 12, np.array([50, 30, 12, 5, 1]))
    assert errors[0, 1] == pytest.approx(np.abs(values[12:, 1] - values[:-12, 1]).mean(), rel=1e-12)
    assert errors[1, 0] == pytest.approx(np.nanmean(np.abs(values[12:30, 0] - values[:18, 0])), rel=1e-12)
    assert errors[3, 1] == pytest.approx(np.abs(np.diff(values[:5, 1])).mean(), rel=1e-12)
    assert np.isnan(errors[2]).all()  # exactly one season: no difference exists (GluonTS falls back only below)
    assert np.isnan(errors[4]).all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("MESA", "unknown metric 'MESA': did you mean"),
        ("coverage", "expected a quantile level in brackets"),
        ("WQL[1.5]", "a number between 0 and 1"),
        ("MASE[x]", "expected 'mean' or a number"),
        ("WQL[mean]", "expected a quantile level"),
    ],
)
def test_when_a_metric_name_is_wrong_then_one_line_says_so(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("[", r"\[")) as error:
        get_metric(name)
    assert "\n" not in str(error.value)
