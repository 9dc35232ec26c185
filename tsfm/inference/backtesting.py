"""Backtests: several models forecast rolling windows of a table, a choice is made on some and judged on later ones.

Axes: M members, N windows from the oldest to the latest, J judged windows, H horizon steps, S series (every variate of
every item), L levels of ``tsfm_data.evaluation.LEVELS``, K = 1 + L: the mean, then the quantiles.
"""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64

from tsfm import training
from tsfm.inference.predictors import load_predictor
from tsfm.inference.selection import Member, Selection, stretch, stretch_factors
from tsfm.models import Forecaster
from tsfm.weights import default, local_folder
from tsfm_data.errors import InputError, check_horizon, check_sizes
from tsfm_data.evaluation import (
    BASELINES,
    BATCH_VALUES,
    LEVELS,
    Accumulator,
    Elements,
    Predictor,
    bind,
    forecast_elements,
    get_metric,
    window_scale,
)
from tsfm_data.io import SeriesSet
from tsfm_data.windows import Windows, item_lengths

BEST, PER_SERIES, ENSEMBLE = CHOICES = ("best", "best-per-series", "ensemble")
# Column -> metric. The first chooses: the mean pinball loss, times two, in units of the seasonal error of the history.
METRICS = {"scaled loss": "SQL", "MASE": "MASE[0.5]", "WQL": "WQL", "80 % coverage": "interval_coverage[0.8]"}
LOSS = next(iter(METRICS))
LEAST_HISTORY = 2  # rows before the first window, so that it has a seasonal error
LEAST_SCORES = 9  # true values at each step that a factor for the levels 0.1 and 0.9 needs
FEW_WINDOWS, VALUES = 4, 20  # by default: windows of many series, and of few series windows times series
MOST_FITTED = 40_000  # rows in all windows; statistical models, fitted to every window anew, are no default beyond
ROUNDS = 20  # of ensemble selection: shares are multiples of at least 1/20


@dataclass(frozen=True, eq=False)
class Backtest:
    """What several models forecast for the windows of a table, and what came.

    Attributes:
        series: the table.
        horizon: steps of a window.
        step: rows from one window to the next.
        members: the models.
        label: what came, NaN where not observed.
        scale: seasonal error of the history before each window.
        forecasts: of each model.
        seconds: that each model took.
        refit: whether models with weights were fine-tuned before each window.
        remarks: what else to know.
    """

    series: SeriesSet
    horizon: int
    step: int
    members: tuple[Member, ...]
    label: Float64[np.ndarray, "N H S"]
    scale: Float64[np.ndarray, "N 1 S"]
    forecasts: Float64[np.ndarray, "M N H S K"]
    seconds: tuple[float, ...]
    refit: bool = False
    remarks: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """Of the members."""
        return [member.name for member in self.members]

    @property
    def ids(self) -> tuple[str, ...]:
        """Of the series."""
        return self.series.univariate().item_ids

    @property
    def judged(self) -> range:
        """The windows that judge: the later half, as far as the truth of an earlier window was known before."""
        count = len(self.label)
        return range(max(self.known_after, count - count // 2), count)

    @property
    def known_after(self) -> int:
        """Windows until the truth of one is known."""
        return -(-self.horizon // self.step)

    def known(self, window: int) -> slice:
        """The windows whose truth was known when a window began."""
        return slice(0, window - self.known_after + 1)

    def scores(
        self,
        values: Float64[np.ndarray, "n H S K"],
        windows: slice,
        by: str | None = None,
        columns: Sequence[str] = tuple(METRICS),
    ) -> dict[str, Float64[np.ndarray, " groups"]]:
        """Scores of forecasts of some windows: together, by "series" or by "step"; NaN where nothing can be scored."""
        label = self.label[windows]
        groups, group = 1, None
        if by is not None:
            axis = {"step": 1, "series": 2}[by]
            groups = label.shape[axis]
            group = np.arange(groups).reshape([-1 if k == axis else 1 for k in range(3)])
        accumulator = Accumulator([get_metric(METRICS[name], LEVELS) for name in columns], groups)
        elements = Elements(label, values[..., 1:], LEVELS, values[..., 0], self.scale[windows])
        accumulator.update(elements, group)
        return dict(zip(columns, accumulator.values().values(), strict=True))

    def losses(self, values: Float64[np.ndarray, "n H S K"], windows: slice, by: str | None = None) -> np.ndarray:
        """The scores that choose; infinite where there is none."""
        return np.nan_to_num(self.scores(values, windows, by, (LOSS,))[LOSS], nan=np.inf)

    def weights(self, model: str, windows: slice = slice(None)) -> Float64[np.ndarray, "M S"]:
        """The share of each member in a choice, made by the scores of some windows; or that of a member itself."""
        one = np.eye(len(self.members))
        if model in self.names:
            return np.repeat(one[:, [self.names.index(model)]], len(self.ids), axis=1)
        forecasts = self.forecasts[:, windows]
        if model == ENSEMBLE:
            return np.repeat(self._shares(forecasts, windows)[:, None], len(self.ids), axis=1)
        whole = np.array([self.losses(values, windows)[0] for values in forecasts])
        best = np.repeat(whole.argmin(), len(self.ids))
        if model == PER_SERIES:
            each = np.stack([self.losses(values, windows, "series") for values in forecasts])
            best = np.where(np.isfinite(each).any(axis=0), each.argmin(axis=0), best)
        return one[:, best]

    def _shares(self, forecasts: Float64[np.ndarray, "M n H S K"], windows: slice) -> Float64[np.ndarray, " M"]:
        """Ensemble selection (Caruana et al. 2004): the model that improves the mean most joins, again and again."""
        counts, total = np.zeros(len(forecasts)), np.zeros_like(forecasts[0])
        best, shares = np.inf, np.eye(len(forecasts))[0]
        for size in range(1, ROUNDS + 1):
            losses = [self.losses((total + values) / size, windows)[0] for values in forecasts]
            winner = int(np.argmin(losses))
            counts[winner] += 1
            total += forecasts[winner]
            if losses[winner] < best * (1 - 1e-9):
                best, shares = losses[winner], counts / size
        return shares

    def rolling(
        self, model: str
    ) -> tuple[Float64[np.ndarray, "J H S K"] | None, Float64[np.ndarray, "J H S K"] | None]:
        """Forecasts of the judged windows, plain and calibrated: each by what the windows known before it chose.

        None where no window is judged, or where there are too few values to calibrate on.
        """
        plain, stretched = [], []
        for window in self.judged:
            known = self.known(window)
            weights = self.weights(model, known)
            plain.append(combine(weights, self.forecasts[:, window]))
            factors = stretch_factors(combine(weights, self.forecasts[:, known])[..., 1:], self.label[known])
            if not np.isnan(factors).any():
                stretched.append(plain[-1].copy())
                stretched[-1][..., 1:] = np.sort(stretch(plain[-1][..., 1:], LEVELS, factors), axis=-1)
        whole = plain and len(stretched) == len(plain)
        return np.stack(plain) if plain else None, np.stack(stretched) if whole else None

    @property
    def judging(self) -> slice:
        """The windows that scores are of: those that judge; all where none does."""
        return slice(self.judged.start, None) if self.judged else slice(None)

    @cached_property
    def judgements(self) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
        """Member or choice -> its forecasts and calibrated forecasts [J, H, S, K] of the windows of ``judging``."""
        choices = CHOICES if len(self.members) > 1 and self.judged else ()
        rolled = {name: self.rolling(name) for name in (*self.names, *choices)}
        return {
            name: (self.forecasts[self.names.index(name)] if plain is None else plain, calibrated)
            for name, (plain, calibrated) in rolled.items()
        }

    def leaderboard(self) -> list[dict[str, Any]]:
        """A row for each model and choice: its scores, coverage after calibration, seconds; the best first."""
        rows = []
        for name, (plain, calibrated) in self.judgements.items():
            row: dict[str, Any] = {"model": name} | number(self.scores(plain, self.judging))
            held = None if calibrated is None else number(self.scores(calibrated, self.judging))["80 % coverage"]
            used = self.weights(name).any(axis=1)
            rows.append(row | {"calibrated": held, "seconds": float(np.array(self.seconds)[used].sum())})
        return sorted(rows, key=lambda row: math.inf if row[LOSS] is None else row[LOSS])

    def rows(self) -> list[dict[str, Any]]:
        """A row for each score: of each model and choice, plain and calibrated, in all, by series and by step."""
        place = {"dataset": self.series.name, "horizon": self.horizon, "windows": len(self.label[self.judging])}
        keys = {"series": list(self.ids), "step": list(range(1, self.horizon + 1)), None: [None]}
        found = []
        for name, both in self.judgements.items():
            for calibrated, values in enumerate(both):
                for by, names in keys.items() if values is not None else ():
                    for metric, scores in self.scores(values, self.judging, by).items():
                        for key, score in zip(names, scores.tolist(), strict=True):
                            where = {"item_id": key if by == "series" else None, "step": key if by == "step" else None}
                            row = {"model": name, "calibrated": bool(calibrated), **where, "metric": metric}
                            found.append({**place, **row, "value": score if math.isfinite(score) else None})
        return found

    def to_json(self) -> str:
        """``{"rows": [...], "summary": {...}}``: the rows, what all windows chose, and which windows judged."""
        windows = {"count": len(self.label), "step": self.step, "judge": [window + 1 for window in self.judged]}
        summary: dict[str, Any] = {"models": self.names, "refit": self.refit, "windows": windows}
        summary |= {"choice": {choice: self.chosen(choice) for choice in CHOICES}, "notes": self.notes()}
        summary["seconds"] = {name: round(took, 3) for name, took in zip(self.names, self.seconds, strict=True)}
        return json.dumps({"rows": self.rows(), "summary": summary}, indent=1, allow_nan=False)

    def chosen(self, choice: str) -> str | dict[str, str] | dict[str, float]:
        """What all windows together choose: the best model, that of each series, or shares of the ensemble."""
        weights = self.weights(choice)
        if choice == PER_SERIES:
            return {name: self.names[m] for name, m in zip(self.ids, weights.argmax(axis=0), strict=True)}
        shares = {name: float(share) for name, share in zip(self.names, weights[:, 0], strict=True) if share}
        return shares if choice == ENSEMBLE else next(iter(shares))

    def selection(self, choice: str = BEST, calibrated: bool = False) -> Selection:
        """The choice that all windows together make, as a model.

        Args:
            choice: "best", "best-per-series", "ensemble", or the name of a member.
            calibrated: whether intervals are stretched by what the windows say.

        Raises:
            InputError: too few values to calibrate on, or an unknown choice.
        """
        if choice not in (*CHOICES, *self.names):
            raise InputError(f"expected one of {', '.join((*CHOICES, *self.names))}, found {choice!r}: choose one")
        weights = self.weights(choice)
        factors = None
        if calibrated:
            factors = stretch_factors(combine(weights, self.forecasts)[..., 1:], self.label)
            if np.isnan(factors).any():
                raise InputError(
                    f"expected at least {LEAST_SCORES} true values at each step to calibrate on, found fewer in "
                    f"{len(self.label)} windows of {len(self.ids)} series: give more windows, or leave calibration out"
                )
        used = np.flatnonzero(weights.any(axis=1))
        rows = {name: tuple(row) for name, row in zip(self.ids, weights[used].T.tolist(), strict=True)}
        common = self.weights(BEST)[used, 0] if choice == PER_SERIES else weights[used, 0]
        if not common.any():  # the best of all series together is the best of none
            common = weights[used].mean(axis=1)
        facts = {"choice": choice, "source": self.series.source, "horizon": self.horizon}
        facts |= {"windows": len(self.label), "step": self.step, "refit": self.refit}
        return Selection(
            tuple(self._final(self.members[m]) for m in used),
            tuple(common.tolist()),
            rows if choice == PER_SERIES else {},
            factors,
            bool(self.series.past_names or self.series.known_names)
            and any(self.members[m].predictor.covariates for m in used),
            facts,
            choice,
        )

    def _final(self, member: Member) -> Member:
        """A member as it forecasts from now on: fine-tuned to all rows if it was so before each window."""
        if not self.refit or not isinstance(member.predictor, Forecaster):
            return member
        return Member(member.name, training.finetune(member.predictor, self.series, self.horizon).model)

    def notes(self) -> list[str]:
        """What chose, what judged, and what could not be done, a line each."""
        count, judged = len(self.label), self.judged
        if judged:
            lines = [
                f"scores: windows {judged.start + 1} to {count} of {count}; for each of them, best and ensemble were "
                "chosen by earlier windows whose truth was known by then"
            ]
            if self.judgements[self.names[0]][1] is None:
                lines.append(
                    f"calibration: not available, it needs {LEAST_SCORES} true values at each step before window "
                    f"{judged.start + 1}: give more windows"
                )
        else:
            lines = [f"scores: all {count} windows; no window can judge a choice by earlier ones: give more windows"]
        for member in self.members:
            data = member.predictor.training_data if isinstance(member.predictor, Forecaster) else None
            if data is not None and data.source == self.series.source:
                lines.append(f"{member.name} was trained on {data.source}: its scores are not those of new data")
        return [*lines, *self.remarks]


def combine(
    weights: Float64[np.ndarray, "M S"], forecasts: Float64[np.ndarray, "M *windows H S K"]
) -> Float64[np.ndarray, "*windows H S K"]:
    """Weighted means of forecasts, series by series."""
    mean: np.ndarray = np.einsum("ms,m...sk->...sk", weights, forecasts)
    return mean


def number(scores: dict[str, np.ndarray]) -> dict[str, float | None]:
    """Scores of one group as plain numbers; None where there is none."""
    return {name: float(value[0]) if np.isfinite(value[0]) else None for name, value in scores.items()}


def backtest(
    series: SeriesSet,
    horizon: int,
    models: Sequence[str | Path | Predictor] | None = None,
    windows: int | None = None,
    step: int | None = None,
    refit: bool = False,
    batch_size: int = 256,
) -> Backtest:
    """Forecast the last windows of every series with several models.

    Args:
        series: a table.
        horizon: steps of a window.
        models: names, folders, or predictors; by default the zero-shot model that ships, naive and seasonal naive, and
            AutoETS and AutoTheta if they are installed and would not be fitted to more than ``MOST_FITTED`` rows.
        windows: their number, the last of which ends with the series; by default enough to choose, judge and calibrate
            if half of the shortest series holds them.
        step: rows from one window to the next; by default the horizon.
        refit: fine-tune models with weights before each window on the rows before it; without covariates. Baselines
            are fitted to each window in any case.
        batch_size: most windows forecast at once.

    Raises:
        InputError: a number below 1, an unknown model, or a series too short.
    """
    check_horizon(horizon, option="--horizon")
    check_sizes(windows=windows, step=step, batch_size=batch_size)
    step = step or horizon
    if refit:
        series = training.without_covariates(series)
    count, names = count_windows(series, horizon, windows, step), len(series.univariate())
    asked, notes = (
        (models, ()) if models is not None else default_models(count * names, int(item_lengths(series).max()))
    )
    members = [member_of(model) for model in asked]
    for member in members:
        if member.name in CHOICES or sum(other.name == member.name for other in members) > 1:
            raise InputError(f"expected models with names of their own, found {member.name} twice: leave one out")
    label, scale = np.empty((count, horizon, names)), np.empty((count, 1, names))
    forecasts, seconds = np.empty((len(members), *label.shape, 1 + len(LEVELS))), []
    for m, member in enumerate(members):
        begin = time.perf_counter()
        for freq in dict.fromkeys(series.freqs):  # a batch has one season and one set of calendar features
            items = np.flatnonzero([other == freq for other in series.freqs])
            part = series.select(items.tolist())
            cuts = item_lengths(part)[:, None] - horizon - step * np.arange(count)[::-1]
            place = (items[:, None] * len(series.variates) + np.arange(len(series.variates))).ravel()
            label[:, :, place], scale[:, :, place], forecasts[m][:, :, place] = forecast_cuts(
                member.predictor, part, horizon, cuts, refit, batch_size
            )
        seconds.append(time.perf_counter() - begin)
    return Backtest(series, horizon, step, tuple(members), label, scale, forecasts, tuple(seconds), refit, notes)


def count_windows(series: SeriesSet, horizon: int, windows: int | None, step: int) -> int:
    """How many windows to forecast.

    Raises:
        InputError: the shortest series does not hold them.
    """
    lengths = item_lengths(series)
    if not len(lengths):
        raise InputError(f"expected at least one series in {series.source}, found none: give a table with rows")
    shortest, needed = int(lengths.argmin()), horizon + LEAST_HISTORY
    rows, name = int(lengths[shortest]), series.item_ids[shortest]
    if rows < needed:
        raise InputError(
            f"expected at least {needed} rows in every series of {series.source} for a horizon of {horizon}, found "
            f"{rows} in {name!r}: give a smaller horizon, or leave the series out"
        )
    fit = 1 + (rows - needed) // step
    if windows is None:
        wanted = max(FEW_WINDOWS, -(-VALUES // len(series.univariate())))
        return min(wanted, fit, max(1, 1 + (rows // 2 - horizon) // step))
    if windows > fit:
        raise InputError(
            f"expected at most {fit} windows, found {windows}: no more windows fit into the {rows} rows of {name!r} "
            f"({horizon} steps each, {step} rows apart): give fewer, a smaller step or a smaller horizon"
        )
    return windows


def default_models(fits: int, rows: int) -> tuple[list[str], tuple[str, ...]]:
    """The models that are compared if none are named, and what to know about them.

    Args:
        fits: windows of all series, to each of which a statistical model is fitted.
        rows: of the longest series.
    """
    models = [default(), *(name for name in BASELINES if name in ("naive", "seasonal-naive"))]
    statistical = [name for name in BASELINES if name not in models]
    if find_spec("statsforecast") is None:
        return models, ()
    if fits * rows > MOST_FITTED:
        left = " and ".join(statistical)
        return models, (f"{left} are left out: {fits:,} fits would take long; --models names them",)
    return [*models, *statistical], ()


def member_of(model: str | Path | Predictor) -> Member:
    """A model by its name or folder, or a predictor as it is.

    Raises:
        InputError: no such model.
    """
    if not isinstance(model, str | Path):
        return Member(model.name, model)
    name = str(model)
    return Member(name, load_predictor(name), known=name in BASELINES or local_folder(name) is not None)


def forecast_cuts(
    predictor: Predictor,
    series: SeriesSet,
    horizon: int,
    cuts: Int64[np.ndarray, "items N"],
    refit: bool,
    batch_size: int,
) -> tuple[Float64[np.ndarray, "N H S"], Float64[np.ndarray, "N 1 S"], Float64[np.ndarray, "N H S K"]]:
    """What came in some windows of series of one frequency, the seasonal error before it, and the forecasts.

    Args:
        predictor: a model or a baseline.
        series: of one frequency.
        horizon: steps to forecast.
        cuts: first row of each window of each item.
        refit: fine-tune a model with weights to the rows before each window.
        batch_size: most windows forecast at once.
    """
    if refit and isinstance(predictor, Forecaster):
        parts = []
        for window in cuts.T:
            tuned = training.finetune(predictor, training.until(series, window), horizon).model
            parts.append(forecast_cuts(tuned, series, horizon, window[:, None], False, batch_size))
        label, scale, values = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return label, scale, values
    items = np.repeat(np.arange(len(cuts)), cuts.shape[1])
    context = predictor.context or int(cuts.max())
    options: dict[str, Any] = {"marks": predictor.marks, "covariates": predictor.covariates, "dtype": torch.float64}
    windows = Windows(series, context, horizon, items, cuts.ravel(), **options)
    size = max(1, min(batch_size, BATCH_VALUES // ((context + horizon) * len(series.variates))))
    batches = list(forecast_elements(bind(predictor, series), windows, size, LEVELS))
    label = np.concatenate([batch.label for batch in batches])
    mean = np.concatenate([batch.forecast("mean") for batch in batches])
    values = np.concatenate([mean[..., None], np.concatenate([batch.quantiles for batch in batches])], axis=-1)
    scale = window_scale(series, items, cuts.ravel(), windows.season)[:, None]

    def by_window(rows: np.ndarray) -> np.ndarray:
        """From [items x N, H, V, ...] to [N, H, items x V, ...]."""
        apart = np.moveaxis(rows.reshape(*cuts.shape, *rows.shape[1:]), 0, 2)
        return apart.reshape(*apart.shape[:2], -1, *rows.shape[3:])

    return by_window(label), by_window(scale), by_window(values)
