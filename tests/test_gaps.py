"""Missing ends and long gaps: the error grows smoothly with the number of missing steps, for every forecaster."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_series import CONTEXT, HORIZON, KINDS, VARIATES, make, make_batch, with_known

import tsfm
from tsfm.inference.predictors import WithoutCovariates, load_predictor
from tsfm.inference.selection import Member, Selection
from tsfm_data.evaluation import SeasonalNaive
from tsfm_data.evaluation.gaps import forecast_windows, history_needed, history_of, latest_gap
from tsfm_data.io import read_series
from tsfm_data.windows.batch import Batch, Forecast

WEEK = np.array([10.0, 20, 30, 40, 50, 70, 5])
LEVELS = (0.1, 0.5, 0.9)
FITTED = [pytest.param(name, marks=pytest.mark.slow) for name in ("auto-theta", "auto-ets")]
FORECASTERS = ["tsfm-encoder-small", "tsfm-decoder-small", "tsfm-long-small", "seasonal-naive", *FITTED]


def weekly(steps: int, gap: int, after: int) -> pd.DataFrame:
    """Clean weeks with a gap that so many steps follow."""
    values = WEEK[np.arange(steps) % 7]
    values[steps - after - gap : steps - after] = np.nan
    return pd.DataFrame({"ds": pd.date_range("2022-01-03", periods=steps), "y": values})


def forecasts(name: str, tables: list[pd.DataFrame], horizon: int = 14) -> tuple[np.ndarray, np.ndarray]:
    """Mean error of the median and mean width of the 80 % interval of each table, whose season is a week."""
    errors, widths = [], []
    for table in tables:
        steps = len(table)
        past = torch.tensor(table["y"].to_numpy())[None, :, None]
        batch = Batch(past.nan_to_num(0.0), ~past.isnan(), horizon, season=7)
        found = forecast_windows(load_predictor(name), batch, LEVELS).quantiles[0, :, 0].numpy()
        errors.append(np.abs(found[:, 1] - WEEK[np.arange(steps, steps + horizon) % 7]).mean())
        widths.append((found[:, 2] - found[:, 0]).mean())
    return np.array(errors), np.array(widths)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORECASTERS)
@pytest.mark.parametrize("after", [0, 1, 3])
def test_when_more_and_more_steps_are_missing_then_the_error_grows_without_a_cliff(name: str, after: int) -> None:
    if name.startswith("auto"):
        pytest.importorskip("statsforecast", reason="extra 'stats' is not installed")
    gaps = [0, 8, 12, 15, 16, 20, 21, 30, 40, 60]
    errors, widths = forecasts(name, [weekly(140, gap, after) for gap in gaps])
    assert errors.max() < 2.5, errors  # of a week between 5 and 70
    assert np.diff(errors).max() < 1.0, errors
    assert widths.max() < 2.5 * widths[0] + 6, widths


def test_when_the_end_of_a_series_is_missing_then_its_forecast_is_the_later_part_of_a_longer_one() -> None:
    table = weekly(160, 23, 0)
    model = tsfm.load("tsfm-encoder-small")
    whole = model.forecast(table[:-23], horizon=14 + 23)
    forecast = model.forecast(table, horizon=14)
    assert forecast["ds"].tolist() == whole["ds"].tolist()[23:]
    np.testing.assert_allclose(forecast.iloc[:, 2:], whole.iloc[23:, 2:], rtol=1e-5, atol=1e-5)


def test_when_the_columns_of_a_wide_table_end_unevenly_then_each_goes_on_from_its_own_end() -> None:
    table = pd.concat([weekly(160, gap, 0).set_index("ds")["y"].rename(f"c{gap}") for gap in (0, 1, 17, 40)], axis=1)
    model = tsfm.load("tsfm-encoder-small")
    together = model.forecast(table.reset_index(), horizon=9)
    for gap in (0, 1, 17, 40):
        single = model.forecast(table[f"c{gap}"].reset_index(), horizon=9)
        column = together[together["item_id"] == f"c{gap}"].reset_index(drop=True)
        np.testing.assert_allclose(column.iloc[:, 2:], single.iloc[:, 2:], rtol=1e-4, atol=1e-4)


def test_when_a_gap_is_longer_than_the_context_then_the_season_stays() -> None:
    model = tsfm.load("tsfm-encoder-small")
    context = model.predictor.context
    assert context is not None
    for after in (0, 2, 3):
        table = weekly(2 * context + 100, context + 30, after)
        found = model.forecast(table, horizon=7)
        expected = WEEK[np.arange(len(table), len(table) + 7) % 7]
        assert np.abs(found["0.5"] - expected).mean() < 2.5


@pytest.mark.parametrize(("name", "kind"), KINDS, ids=lambda value: value)
def test_when_ends_are_missing_then_every_model_forecasts_from_its_last_values(name: str, kind: str) -> None:
    """Windows of more steps than the context, two of which end early; the second in one variate alone."""
    model = make(name, kind)
    batch = with_known(replace(make_batch(4, horizon=HORIZON, context=CONTEXT + 5), past_marks=None, future_marks=None))
    batch = replace(batch, future=None, future_observed=None)
    observed = batch.past_observed.clone()
    observed[1, -5:] = False
    observed[2, -3:, 1] = False
    holed = replace(batch, past=torch.where(observed, batch.past, 0.0), past_observed=observed)
    found = forecast_windows(model, holed, LEVELS).quantiles
    tolerance = {"rtol": 1e-4, "atol": 1e-4}
    untouched = model.predict(batch, LEVELS).quantiles
    torch.testing.assert_close(found[[0, 3]], untouched[[0, 3]], **tolerance)
    assert found.isfinite().all()
    assert (found.diff(dim=-1) >= 0).all()
    assert not torch.allclose(found[2, :, 1], untouched[2, :, 1])
    if not model.joint:
        torch.testing.assert_close(found[2, :, [0, 2]], untouched[2, :, [0, 2]], **tolerance)
    if model.covariates or name == "chronos2":
        return  # all that is asked for at once, and the covariates, see each other
    short = Batch(batch.past[1:2, :-5], batch.past_observed[1:2, :-5], HORIZON + 5)
    expected = model.predict(short, LEVELS).quantiles[0, 5:]
    torch.testing.assert_close(found[1], expected, **tolerance)


def test_when_a_gap_is_longer_than_all_that_follows_it_then_it_is_the_one_to_fill() -> None:
    observed = torch.ones(3, 60, 1, dtype=torch.bool)
    observed[0, 20:40] = False  # as long as what follows
    observed[1, 20:41] = False
    observed[2, 5:45], observed[2, 50:52] = False, False  # the second is short
    begin, length = latest_gap(observed)
    assert begin[:, 0].tolist() == [0, 20, 5]
    assert length[:, 0].tolist() == [0, 21, 40]


@dataclass(frozen=True)
class Asked(SeasonalNaive):
    """A baseline that notes which batches it gets."""

    handles_gaps: bool = False
    batches: list[Batch] = field(default_factory=list)

    def predict(self, batch: Batch, levels: Sequence[float]) -> Forecast:
        self.batches.append(batch)
        return super().predict(batch, levels)


def nightly(days: int, missing_end: int) -> Batch:
    """Days of 24 steps of which 10 are observed."""
    observed = (torch.arange(24 * days + 10 + missing_end) % 24 < 10)[None, :, None]
    return Batch(torch.where(observed, 1.0, 0.0), observed, HORIZON, season=24)


@pytest.mark.parametrize("missing_end", [0, 5])
def test_when_a_predictor_handles_gaps_then_it_is_asked_once_with_all_of_them(missing_end: int) -> None:
    batch, filling, handling = nightly(5, missing_end), Asked(), Asked(handles_gaps=True)
    for predictor in (filling, handling):
        forecast_windows(predictor, batch, LEVELS)
    assert len(filling.batches) > 1
    assert filling.batches[-1].past_observed.sum() > batch.past_observed.sum()
    (given,) = handling.batches
    assert given.past_observed.sum() == batch.past_observed.sum()
    assert given.past_observed[:, -1].all()
    assert given.horizon >= HORIZON + missing_end


def test_when_a_gap_has_more_than_three_seasons_then_it_is_filled_for_every_predictor() -> None:
    for gap, asked in ((3 * 24, 1), (3 * 24 + 1, 2)):
        observed = torch.ones(1, 500, 1, dtype=torch.bool)
        observed[:, 490 - gap : 490] = False
        predictor = Asked(handles_gaps=True)
        forecast_windows(predictor, Batch(observed.double(), observed, HORIZON, season=24), LEVELS)
        assert len(predictor.batches) == asked


def test_when_all_members_of_a_choice_handle_gaps_then_so_does_the_choice() -> None:
    members = [Member("a", Asked(handles_gaps=True)), Member("b", Asked())]
    assert Selection((members[0],), (1.0,)).handles_gaps
    assert not Selection(tuple(members), (0.5, 0.5)).handles_gaps
    assert WithoutCovariates(members[0].predictor).handles_gaps


def test_when_gaps_are_filled_then_the_history_reaches_back_as_many_steps_as_without() -> None:
    values = np.ones(1000)
    assert history_needed(values, 100) == 100
    values[-7:] = np.nan
    assert history_needed(values, 100) == 107
    values[-60:-20] = np.nan
    assert history_needed(values, 100) == 147
    values[:500] = np.nan  # before the series begins
    assert history_needed(values, 100) == 147
    assert history_needed(values, 100, filled=False) == 107


def test_when_nothing_is_observed_then_the_predictor_says_what_it_did() -> None:
    batch = replace(make_batch(2), future=None, future_observed=None)
    empty = replace(batch, past=torch.zeros_like(batch.past), past_observed=torch.zeros_like(batch.past_observed))
    found = forecast_windows(make("zeroshot-encoder", "quantile"), empty, LEVELS)
    assert found.quantiles.shape == (2, HORIZON, VARIATES, 3)
    assert found.quantiles.isfinite().all()


def test_when_all_series_are_shorter_than_the_context_then_windows_are_not_padded_to_it() -> None:
    index = pd.date_range("2024-01-01", periods=40)
    gappy = read_series(pd.DataFrame({"date": index, "y": np.where(np.arange(40) < 35, np.arange(40.0), np.nan)}))
    model = load_predictor("tsfm-long-small")
    assert model.context is not None
    assert model.context > 40
    assert history_of(model, gappy) == 40
