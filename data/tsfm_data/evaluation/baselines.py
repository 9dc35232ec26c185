"""Baselines: naive, seasonal naive, and AutoETS and AutoTheta of statsforecast; the ``Predictor`` protocol.

Axes: B windows, T context steps, H horizon steps, V variates, Q quantile levels.
"""

import contextlib
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tsfm_data.errors import InputError
from tsfm_data.io import SeriesSet
from tsfm_data.progress import progress
from tsfm_data.windows import Batch, Forecast, binary_size

# A series is scaled if the exponent of its largest value is outside PLAIN, and shifted if its distance from 0 is more
# than FAR times half of its range; then the distance becomes NEAR times that.
PLAIN = range(-16, 24)
NEAR, FAR = 2.0**9, 2.0**16


@runtime_checkable
class Predictor(Protocol):
    """Anything that forecasts batches of windows: a baseline or a model.

    Attributes:
        name: name in reports.
        context: the longest history it can use; None: any length.
        marks: the calendar features that it needs in its batches, or None.
        dtype: floating-point type of its batches.
        covariates: whether it uses covariates.

    A predictor that forecasts every variate independently may set ``joint = False``, which makes series that end at
    different times cheaper. One that copes with gaps of up to three seasons may set ``handles_gaps = True``; longer
    ones, and all of other predictors, are filled (see ``forecast_windows``). One that treats series by their names has
    a method ``bind(series) -> Predictor``.
    """

    @property
    def name(self) -> str: ...

    @property
    def context(self) -> int | None: ...

    @property
    def marks(self) -> str | None: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def covariates(self) -> bool: ...

    def predict(self, batch: Batch, levels: Sequence[float]) -> Forecast:
        """Forecast ``batch.horizon`` steps at the quantile ``levels``, in the units of ``batch.past``."""
        ...


def bind(predictor: Predictor, series: SeriesSet) -> Predictor:
    """The predictor as it is for the items of these series, whose numbers its batches hold."""
    bound: Predictor = predictor.bind(series) if hasattr(predictor, "bind") else predictor
    return bound


@dataclass(frozen=True)
class SeasonalNaive:
    """Repeats the last season; a missing value takes the last observed one before it.

    Intervals are normal, from the root mean square of the in-sample seasonal differences, and grow with the square
    root of the number of seasons ahead (Hyndman & Athanasopoulos, Forecasting: Principles and Practice, 5.5;
    statsforecast's ``SeasonalNaive``), as in GIFT-Eval. The Chronos benchmark repeats the point forecast at every level
    (``intervals=False``). A history shorter than a season is forecast by its last value, and a window without any
    observed value by 0.

    Attributes:
        intervals: False repeats the point forecast at every level.
    """

    intervals: bool = True

    name = "seasonal-naive"
    context: int | None = None
    marks: str | None = None
    dtype = torch.float64
    covariates = False
    joint = False

    def predict(self, batch: Batch, levels: Sequence[float]) -> Forecast:
        """Forecast with the season of the batch."""
        return _seasonal(batch, levels, batch.season, self.intervals)


@dataclass(frozen=True)
class Naive(SeasonalNaive):
    """Repeats the last observed value: seasonal naive with a season of one step."""

    name = "naive"

    def predict(self, batch: Batch, levels: Sequence[float]) -> Forecast:
        """Forecast whatever the season of the batch is."""
        return _seasonal(batch, levels, 1, self.intervals)


def _seasonal(batch: Batch, levels: Sequence[float], season: int, intervals: bool) -> Forecast:
    filled, first = forward_fill(batch.past, batch.past_observed)
    mean, sigma = _season_forecast(filled, first, 1, batch.horizon)
    if season > 1:
        length = filled.shape[1] - first
        seasonal_mean, seasonal_sigma = _season_forecast(filled, first, season, batch.horizon)
        mean = torch.where((length >= season)[:, None], seasonal_mean, mean)
        # With exactly one season there is a point forecast, but no seasonal difference to estimate its error.
        sigma = torch.where((length > season)[:, None], seasonal_sigma, sigma)
    z_Q = torch.special.ndtri(torch.as_tensor(levels, dtype=mean.dtype, device=mean.device))
    spread = sigma[..., None] * z_Q if intervals else torch.zeros_like(z_Q)
    return Forecast(mean=mean, quantiles=mean[..., None] + spread, levels=tuple(levels))


def forward_fill(
    past: Float[Tensor, "B T V"], observed: Bool[Tensor, "B T V"]
) -> tuple[Float[Tensor, "B T V"], Int[Tensor, "B V"]]:
    """Fill missing values with the last observed one.

    Returns:
        The filled values (0 before the first observed one), and the step of the first observed value (T if none is).
    """
    steps = past.shape[1]
    if bool(observed.all()):
        return past, torch.zeros_like(past[:, 0], dtype=torch.int64)
    index = torch.arange(steps, device=past.device)[None, :, None]
    last = torch.where(observed, index, -1).cummax(dim=1).values
    filled = past.gather(1, last.clamp(min=0)) * (last >= 0)
    first = torch.where(observed.any(dim=1), observed.int().argmax(dim=1), steps)
    return filled, first


def _season_forecast(
    filled: Float[Tensor, "B T V"], first: Int[Tensor, "B V"], season: int, horizon: int
) -> tuple[Float[Tensor, "B H V"], Float[Tensor, "B H V"]]:
    """Point forecast and standard error of repeating the last season; valid if the history is long enough."""
    steps = filled.shape[1]
    ahead = torch.arange(horizon, device=filled.device)
    source = steps - min(season, steps) + ahead % min(season, steps)
    size = binary_size(filled.abs().amax(dim=1))  # so that squares neither overflow nor underflow
    scaled = filled / size[:, None]
    difference = scaled[:, season:] - scaled[:, :-season]
    index = torch.arange(difference.shape[1], device=filled.device)[None, :, None]
    square = torch.where(index >= first[:, None], difference.square(), 0.0).sum(dim=1)
    count = (steps - first - season).clamp(min=1)
    growth = (ahead // season + 1).to(filled.dtype).sqrt()
    sigma = ((square / count).sqrt() * size)[:, None] * growth[None, :, None]
    return filled[:, source], sigma.clamp(max=torch.finfo(sigma.dtype).max)


@dataclass(frozen=True)
class Statistical:
    """A model of statsforecast, fitted to every window and variate separately (extra ``stats``).

    If the fit fails, for instance on a short series, the forecast is seasonal naive; a constant is forecast as itself.
    The history is cut to 2,500 steps as in the Chronos benchmark (fev), because the time to fit grows with it. Series
    are fitted one after the other, in this process.

    Attributes:
        name: name of the baseline.
        model: name of a class in ``statsforecast.models``.
    """

    name: str
    model: str

    context: int | None = 2500
    marks: str | None = None
    dtype = torch.float64
    covariates = False
    joint = False

    def predict(self, batch: Batch, levels: Sequence[float]) -> Forecast:
        """Forecast with the season of the batch.

        Raises:
            InputError: statsforecast is not installed.
        """
        naive = _seasonal(batch, levels, batch.season, True)
        filled, first = forward_fill(batch.past, batch.past_observed)
        series = [
            values[start:] if start < len(values) else values[-1:]
            for values, start in zip(
                filled.transpose(1, 2).flatten(0, 1).double().cpu().numpy(), first.flatten().tolist(), strict=True
            )
        ]
        loc, scale = zip(*map(plain_units, series), strict=True)
        plain = [(values - a) / b for values, a, b in zip(series, loc, scale, strict=True)]
        # The mean, then one column per level: [windows x variates, H, 1 + Q].
        fitted = self._fit(plain, batch.horizon, batch.season, levels)
        fitted = fitted * np.array(scale)[:, None, None] + np.array(loc)[:, None, None]
        fitted = fitted.reshape(*first.shape, batch.horizon, 1 + len(levels)).swapaxes(1, 2)
        constant = np.array([values.min() == values.max() for values in series]).reshape(first.shape)
        is_fitted = torch.from_numpy(np.isfinite(fitted).all(axis=(1, 3)) & ~constant).to(filled.device)[:, None]
        values = torch.from_numpy(fitted).to(filled)
        mean = torch.where(is_fitted, values[..., 0], naive.mean)
        return Forecast(mean, torch.where(is_fitted[..., None], values[..., 1:], naive.quantiles), tuple(levels))

    def _fit(
        self, series: list[np.ndarray], horizon: int, season: int, levels: Sequence[float]
    ) -> Float[np.ndarray, "series H columns"]:
        """Mean and quantiles of each series; NaN if the fit fails."""
        model = self._build(season)
        # statsforecast has central intervals by coverage in percent: level 0.9 is the upper end of the 80 % one.
        sizes = [round(abs(level - 0.5) * 200, 6) for level in levels]
        ends = ["hi" if level > 0.5 else "lo" for level in levels]
        columns = [f"{end}-{size}" if size > 0 else "mean" for end, size in zip(ends, sizes, strict=True)]
        wanted = sorted({size for size in sizes if size > 0}) or None
        result = np.full((len(series), horizon, 1 + len(levels)), np.nan)
        for i, values in enumerate(progress(series, self.name)):
            # Not with the class StatsForecast, which mixes up columns if it uses its fallback model.
            with warnings.catch_warnings(), contextlib.suppress(Exception):  # a short series may raise any error
                warnings.simplefilter("ignore")
                forecast = model.forecast(y=values, h=horizon, level=wanted)
                result[i] = np.stack([forecast[column] for column in ("mean", *columns)], axis=1)
        return result

    def _build(self, season: int) -> Any:
        try:
            from statsforecast import models  # an extra, and slow
        except ImportError as error:
            raise InputError(
                f"baseline {self.name!r} needs statsforecast, which is not installed: pip install 'tsfm-suite[stats]'"
            ) from error
        return getattr(models, self.model)(season_length=season)


def plain_units(values: Float[np.ndarray, " T"]) -> tuple[float, float]:
    """Location and scale for numbers that statsforecast, which partly uses single precision, can represent.

    0 and 1 for ordinary series. Otherwise a shift that brings a distant series closer to 0 (not to 0, where other
    models would be fitted), and a power of two.
    """
    low, high = float(values.min()), float(values.max())
    middle, half = 0.5 * low + 0.5 * high, 0.5 * high - 0.5 * low
    loc = middle - math.copysign(NEAR * half, middle) if 0 < FAR * half < abs(middle) else 0.0
    size = float(np.abs(values - loc).max())
    exponent = math.frexp(size)[1] - 1
    return loc, 1.0 if exponent in PLAIN or not size else 2.0**exponent


BASELINES: dict[str, Callable[[], Predictor]] = {
    "naive": Naive,
    "seasonal-naive": SeasonalNaive,
    "auto-ets": lambda: Statistical("auto-ets", "AutoETS"),
    "auto-theta": lambda: Statistical("auto-theta", "AutoTheta"),
}


def get_baseline(name: str) -> Predictor | None:
    """The baseline of this name, or None if there is none (it may be a model's name or folder)."""
    return BASELINES[name]() if name in BASELINES else None
