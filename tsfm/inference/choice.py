"""Results of a backtest: scores, choices made on some windows and scored on later ones, and choices as models.

Axes: M members, N windows from the oldest to the latest, J scored windows, H horizon steps, S series (every variate of
every item), L levels of ``tsfm_data.evaluation.LEVELS``, K = 1 + L: the mean, then the quantiles.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from tsfm import training
from tsfm.inference.selection import Member, Selection, combine, stretch, stretch_factors
from tsfm.models import Forecaster
from tsfm_data.errors import InputError
from tsfm_data.evaluation import LEVELS, Accumulator, Elements, get_metric
from tsfm_data.io import SeriesSet

BEST, PER_SERIES, ENSEMBLE = CHOICES = ("best", "best-per-series", "ensemble")
# Column -> metric. Choices minimise the first: mean pinball loss, times two, divided by the seasonal error.
METRICS = {"scaled loss": "SQL", "MASE": "MASE[0.5]", "WQL": "WQL", "80 % coverage": "interval_coverage[0.8]"}
LOSS = next(iter(METRICS))
LEAST_SCORES = 9  # fewest true values per step for calibration of the levels 0.1 and 0.9
ROUNDS = 10  # rounds of ensemble selection


@dataclass(frozen=True, eq=False)
class Backtest:
    """Forecasts of several models for the windows of a table, and the true values.

    Attributes:
        series: the table.
        horizon: steps of each window.
        step: steps from one window to the next.
        members: the models.
        label: true values, NaN if not observed.
        scale: seasonal error of the history before each window.
        forecasts: forecasts of each model.
        seconds: time that each model took.
        refit: whether pretrained models were fine-tuned before each window.
        remarks: further notes.
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
        """Names of the members."""
        return [member.name for member in self.members]

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the series."""
        return self.series.univariate().item_ids

    def known(self, window: int) -> slice:
        """The windows whose true values were known when a window began."""
        return slice(0, max(0, window + 1 - -(-self.horizon // self.step)))

    @property
    def judged(self) -> range:
        """The windows that are scored: those of the later half with at least one known window before them."""
        count = len(self.label)
        return range(next((k for k in range(count - count // 2, count) if self.known(k).stop), count), count)

    @property
    def judging(self) -> slice:
        """The scored windows as a slice; all windows if ``judged`` is empty."""
        return slice(self.judged.start, None) if self.judged else slice(None)

    def scores(
        self,
        values: Float64[np.ndarray, "n H S K"],
        windows: slice,
        by: str | None = None,
        columns: Sequence[str] = tuple(METRICS),
    ) -> dict[str, Float64[np.ndarray, " groups"]]:
        """Scores of forecasts of some windows: of all, by "series" or by "step"; NaN if nothing can be scored."""
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
        """The scores that choices minimise: scaled loss, or WQL if the history repeats exactly, or infinity."""
        scores = self.scores(values, windows, by, (LOSS, "WQL"))
        return np.nan_to_num(np.where(np.isfinite(scores[LOSS]), scores[LOSS], scores["WQL"]), nan=np.inf)

    @cached_property
    def final(self) -> dict[str, Float64[np.ndarray, "M S"]]:
        """Member or choice -> weights of the members, by the scores of all windows."""
        return {name: self.weights(name, slice(None)) for name in (*CHOICES, *self.names)}

    def weights(self, model: str, windows: slice) -> Float64[np.ndarray, "M S"]:
        """Weights of the members in a choice made on some windows, or in a single member."""
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
        """Ensemble selection (Caruana et al. 2004): repeatedly add the model that improves the mean most."""
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
        """Forecasts of the scored windows, plain and calibrated, by choices made on the windows known before each.

        None if no window is scored, or if there are too few values for calibration.
        """
        plain, stretched = [], []
        for window in self.judged:
            known = self.known(window)
            weights = self.weights(model, known)
            plain.append(combine(weights[..., None], self.forecasts[:, window]))
            factors = stretch_factors(combine(weights[..., None], self.forecasts[:, known])[..., 1:], self.label[known])
            if not np.isnan(factors).any():
                stretched.append(plain[-1].copy())
                stretched[-1][..., 1:] = np.sort(stretch(plain[-1][..., 1:], LEVELS, factors), axis=-1)
        whole = plain and len(stretched) == len(plain)
        return np.stack(plain) if plain else None, np.stack(stretched) if whole else None

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
        """One row per model and choice: scores, two of them after calibration, seconds; the best first."""
        rows = []
        for name, (plain, calibrated) in self.judgements.items():
            row: dict[str, Any] = {"model": name} | number(self.scores(plain, self.judging))
            after = {} if calibrated is None else number(self.scores(calibrated, self.judging))
            row |= {"calibrated coverage": after.get("80 % coverage"), "calibrated loss": after.get(LOSS)}
            used = self.final[name].any(axis=1)
            rows.append(row | {"seconds": float(np.array(self.seconds)[used].sum())})
        return sorted(rows, key=_loss)

    def rows(self) -> list[dict[str, Any]]:
        """One row per score of each model and choice, plain and calibrated, in total, by series and by step."""
        rows: list[dict[str, Any]] = []
        groups: list[tuple[str | None, list[dict[str, Any]]]] = [
            (None, [{}]),
            ("series", [{"item_id": name} for name in self.ids]),
            ("step", [{"step": step} for step in range(1, self.horizon + 1)]),
        ]
        place = {"dataset": self.series.name, "horizon": self.horizon, "windows": len(self.label[self.judging])}
        for name, (plain, calibrated) in self.judgements.items():
            for values in (plain,) if calibrated is None else (plain, calibrated):
                row = {**place, "model": name, "calibrated": values is calibrated, "item_id": None, "step": None}
                for by, keys in groups:
                    for metric, scores in self.scores(values, self.judging, by).items():
                        known = [score if math.isfinite(score) else None for score in scores.tolist()]
                        rows += (row | key | {"metric": metric, "value": x} for key, x in zip(keys, known, strict=True))
        return rows

    def to_json(self) -> str:
        """``{"rows": [...], "summary": {...}}``: the rows, the choices on all windows, and which windows are scored."""
        windows = {"count": len(self.label), "step": self.step, "judge": [window + 1 for window in self.judged]}
        summary: dict[str, Any] = {"models": self.names, "refit": self.refit, "windows": windows}
        summary |= {"choice": {choice: self.chosen(choice) for choice in CHOICES}, "notes": self.notes()}
        summary["seconds"] = {name: round(took, 3) for name, took in zip(self.names, self.seconds, strict=True)}
        return json.dumps({"rows": self.rows(), "summary": summary}, indent=1, allow_nan=False)

    def chosen(self, choice: str) -> Any:
        """The choice on all windows: the name of the best model, names by series, or weights by name."""
        weights = self.final[choice]
        if choice == PER_SERIES:
            return {name: self.names[m] for name, m in zip(self.ids, weights.argmax(axis=0), strict=True)}
        shares = {name: float(share) for name, share in zip(self.names, weights[:, 0], strict=True) if share}
        return shares if choice == ENSEMBLE else next(iter(shares))

    def selection(self, choice: str = BEST, calibrated: bool = False) -> Selection:
        """The choice on all windows, as a model.

        Args:
            choice: "best", "best-per-series", "ensemble", or the name of a member.
            calibrated: whether intervals are calibrated on all windows.

        Raises:
            InputError: too few values for calibration, or an unknown choice.
        """
        if choice not in self.final:
            raise InputError(f"expected one of {', '.join(self.final)}, found {choice!r}: choose one")
        weights = self.final[choice]
        factors = None
        if calibrated:
            factors = stretch_factors(combine(weights[..., None], self.forecasts)[..., 1:], self.label)
            if np.isnan(factors).any():
                raise InputError(
                    f"expected at least {LEAST_SCORES} true values per step for calibration, found fewer in "
                    f"{len(self.label)} windows of {len(self.ids)} series: give more windows, or leave calibration out"
                )
        common = self.final[BEST] if choice == PER_SERIES else weights  # for new series
        used = np.flatnonzero((weights + common).any(axis=1))
        each = dict(zip(self.ids, map(tuple, weights[used].T.tolist()), strict=True)) if choice == PER_SERIES else {}
        members = tuple(self._final(self.members[m]) for m in used)
        given = bool(self.series.past_names or self.series.known_names)
        facts = {"choice": choice, "source": self.series.source, "horizon": self.horizon}
        facts |= {"windows": len(self.label), "step": self.step, "refit": self.refit}
        covariates = given and any(member.predictor.covariates for member in members)
        return Selection(members, tuple(common[used, 0].tolist()), each, factors, covariates, facts, choice)

    def _final(self, member: Member) -> Member:
        """A member for new forecasts: fine-tuned on all rows if ``refit``."""
        if not self.refit or not isinstance(member.predictor, Forecaster):
            return member
        return Member(member.name, training.finetune(member.predictor, self.series, self.horizon).model)

    def notes(self) -> list[str]:
        """Notes, one line each: which windows are scored, and what was not possible."""
        count, begin = len(self.label), self.judged.start + 1
        if not self.judged:
            lines = [f"scores: all {count} windows; too few to score choices on later windows: give more windows"]
        else:
            lines = [f"scores: windows {begin} to {count} of {count}; choices for each use only earlier windows"]
            if self.judgements[self.names[0]][1] is None:
                needed = f"{LEAST_SCORES} true values per step before window {begin}"
                lines.append(f"calibration: not available, it needs {needed}: give more windows")
        for member in self.members:
            data = member.predictor.training_data if isinstance(member.predictor, Forecaster) else None
            if data is not None and Path(data.source).name == Path(self.series.source).name:
                lines.append(f"{member.name} was trained on {data.source}, so its scores may be too optimistic")
        return [*lines, *self.remarks]


def _loss(row: dict[str, Any]) -> float:
    """Sort key of the leaderboard."""
    return next((row[name] for name in (LOSS, "WQL") if row[name] is not None), math.inf)


def number(scores: dict[str, np.ndarray]) -> dict[str, float | None]:
    """Scores of one group as plain numbers; None if not finite."""
    return {name: float(value[0]) if np.isfinite(value[0]) else None for name, value in scores.items()}
