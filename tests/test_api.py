"""The suite from Python: three lines, the estimator, and that ``import tsfm`` stays light."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from command import waves

import tsfm
from tsfm.inference.estimator import TSFMForecaster
from tsfm.models.zeroshot.encoder import ZeroShotEncoder
from tsfm.models.zeroshot.recipe import ZeroShotConfig
from tsfm.weights.pretrained import save
from tsfm_data.errors import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    config = ZeroShotConfig(d_model=16, layers=1, heads=2, patch_size=8, flip_average=False)
    path = tmp_path_factory.mktemp("model") / "tiny"
    save(ZeroShotEncoder(48, 16, config), path)
    return str(path)


@pytest.mark.slow
def test_when_tsfm_is_imported_then_torch_is_not_until_a_name_is_asked_for() -> None:
    code = "import sys, tsfm; assert 'torch' not in sys.modules; tsfm.load; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="lod"):
        tsfm.lod  # noqa: B018


def test_when_a_table_is_forecast_in_two_lines_then_it_is_as_by_the_command(folder: str) -> None:
    table = waves(100, 2)
    found = tsfm.load(folder).forecast(table, horizon=6, levels=(0.1, 0.5, 0.9))
    assert list(found.columns) == ["item_id", "date", "mean", "0.1", "0.5", "0.9"]
    assert len(found) == 2 * 6
    assert found["date"].min() == table["date"].max() + pd.Timedelta("1h")


def test_when_a_table_is_fine_tuned_on_in_three_lines_then_the_winner_forecasts_and_is_saved(
    folder: str, tmp_path: Path
) -> None:
    tuned = tsfm.load(folder).finetune(waves(160, 2), horizon=6, method="head", steps=3, checks=1)
    assert tuned.history is not None
    assert len(tuned.forecast(waves(160, 2), 6)) == 12
    tuned.save(tmp_path / "mine")
    pd.testing.assert_frame_equal(
        tsfm.load(tmp_path / "mine").forecast(waves(100, 1), 6), tuned.forecast(waves(100, 1), 6)
    )


def test_when_the_estimator_is_fitted_then_it_predicts_as_the_model(folder: str) -> None:
    table = waves(100, 2)
    estimator = TSFMForecaster(folder).fit(table)
    pd.testing.assert_frame_equal(estimator.predict(6), tsfm.load(folder).forecast(table, 6))
    with pytest.raises(InputError, match="expected a horizon"):
        estimator.predict()


def test_when_the_estimator_is_cloned_then_its_parameters_go_along(folder: str) -> None:
    base = pytest.importorskip("sklearn.base")
    estimator = TSFMForecaster(folder, method="head", horizon=6, options={"steps": 2, "checks": 1})
    other = base.clone(estimator).set_params(levels=(0.5,))
    assert other.get_params() == estimator.get_params() | {"levels": (0.5,)}
    assert list(other.fit(waves(160, 1)).predict().columns) == ["item_id", "date", "mean", "0.5"]


def test_when_the_estimator_is_misused_then_one_line_says_how(folder: str) -> None:
    with pytest.raises(InputError, match="call fit"):
        TSFMForecaster(folder).predict(3)
    with pytest.raises(InputError, match="horizon to fine-tune for"):
        TSFMForecaster(folder, method="head").fit(waves(100, 1))
    with pytest.raises(InputError, match="'levls'"):
        TSFMForecaster(folder).set_params(levls=(0.5,))
    with pytest.raises(TypeError, match="'sesaon'"):
        tsfm.load(folder).forecast(waves(100, 1), 6, sesaon=3)  # type: ignore[call-arg]
    with pytest.raises(InputError, match="baseline"):
        tsfm.load("naive").finetune(waves(100, 1), 6)
    with pytest.raises(InputError, match="horizon of at least 1"):
        tsfm.load("naive").forecast(waves(100, 1), 0)


def test_when_a_baseline_is_loaded_then_it_forecasts_too() -> None:
    assert len(tsfm.load("seasonal-naive").forecast(waves(100, 2), 5)) == 10
