"""The base class of all forecasters, and autoregressive forecasting beyond a model's own horizon.

Shapes: B batch, T context, H requested horizon, S the model's own horizon, V variates, K trained levels, Q requested
levels.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tsfm.models.covariates import standardise_covariates
from tsfm.nn import (
    ConformalIntervals,
    WindowScale,
    check_levels,
    interpolate_quantiles,
    keep_large_blocks,
    mean_of_quantiles,
    median_in_time,
    onednn_products,
    standardise_windows,
)
from tsfm_data.errors import InputError
from tsfm_data.windows import Batch, Forecast

# Levels of the sample paths that continue a forecast beyond the model's own horizon. With more paths, most of them near
# the median, intervals become too narrow: with nine, those of a random walk lose half of their width in 25 passes.
PATHS = (0.1, 0.3, 0.5, 0.7, 0.9)
MOST_GROWTH = 1e6  # of a path, in units of the largest value of the history: passes must not blow each other up
POINTS = tuple((i + 0.5) / 20 for i in range(20))  # levels that represent each forecast in a mixture

# How fast the weight of the history's mean falls if a forecast is narrower than its history. On 72 training sets the
# squared error of the mean, relative to that of the median, is 1.002 (decoder) and 0.990 (encoder); without the
# history's mean it is 1.023 and 0.998.
WIDTH_POWER = 4

# Fields of a batch that are also known in the future: past field -> future field.
KNOWN = {
    "past_marks": "future_marks",
    "known_past": "known_future",
    "known_past_observed": "known_future_observed",
}
VALUE_FIELDS = ("past", "future", "past_covariates", "known_past", "known_future")
# Fields with as many steps as the context.
HISTORY = ("past", "past_observed", "past_covariates", "past_covariates_observed", *KNOWN)


@dataclass(frozen=True)
class TrainingData:
    """What a model was trained on, kept with its weights.

    Attributes:
        source: data-set name or file.
        freq: pandas frequency alias.
        marks: calendar-feature set given with every window, or None.
        variates: names of the training variates.
        mean: mean of each variate over the training rows, in the data's own units.
        std: population standard deviation of each variate over the training rows.
        past_covariates: names of the covariates known up to the present.
        known_covariates: names of those known over the horizon, too.
    """

    source: str
    freq: str
    marks: str | None
    variates: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    past_covariates: tuple[str, ...] = ()
    known_covariates: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pretraining:
    """What a model was pretrained on and for how long, kept with its weights.

    Attributes:
        corpus: name of the corpus; None if all series were generated.
        manifest_sha256: hash of the corpus's ``manifest.json``.
        sources: sources used in training.
        held_out: sources of the corpus that were never used in training.
        seed: seed of the sampler.
        global_seed: seed of the initial weights and everything else; None if none was set.
        steps: optimiser steps.
        batches: batches seen, on all devices together.
        observations: observed values in them; None if they were not counted.
        command: the command line, if there was one.
    """

    corpus: str | None
    manifest_sha256: str | None
    sources: tuple[str, ...]
    held_out: tuple[str, ...]
    seed: int
    global_seed: int | None
    steps: int
    batches: int
    observations: int | None = None
    command: str | None = None


@dataclass(frozen=True)
class FineTuning:
    """What a model was fine-tuned from, how and on what, kept with its weights.

    Attributes:
        base: name of the model it began as.
        method: "full", "lora" or "head".
        steps: optimiser steps of the checkpoint that was kept.
        data_sha256: ``SeriesSet.sha256`` of what it was trained on, whose name stands in ``TrainingData``.
    """

    base: str
    method: str
    steps: int
    data_sha256: str


class Forecaster(nn.Module, ABC):
    """A model that forecasts windows.

    Args:
        context: steps of history.
        horizon: steps to forecast in one pass.
        config: sizes, a frozen dataclass.
    """

    model_type: ClassVar[str]
    config_type: ClassVar[type]
    dtype: ClassVar[torch.dtype] = torch.float64  # of the batches: they are standardised in full precision
    chunk_size: ClassVar[int | None] = None  # series per forward pass of ``predict`` on a CPU; None: the whole batch
    any_length: ClassVar[bool] = False  # True: a short history need not be padded to the context
    mirrors: ClassVar[bool] = False  # True: a forecast may be averaged with the negated one of the negated history
    effort: Literal["fast", "best"] = "fast"  # see ``with_effort``
    handles_gaps: ClassVar[bool] = False  # True: trained with long gaps, so they are not filled
    levels: tuple[float, ...]
    conformal: ConformalIntervals | None

    def __init__(self, context: int, horizon: int, config: Any) -> None:
        super().__init__()
        self.context = context
        self.horizon = horizon
        self.config = config
        self.training_data: TrainingData | None = None
        self.pretraining: Pretraining | None = None
        self.finetuning: FineTuning | None = None
        self.conformal = None
        self.name = self.model_type

    @property
    def marks(self) -> str | None:
        """The calendar-feature set that the model was trained with, or None."""
        return self.training_data.marks if self.training_data else None

    @property
    def covariates(self) -> bool:
        """Whether the model uses covariates; if not, its batches hold none."""
        return False

    @property
    def joint(self) -> bool:
        """Whether the variates of a window affect each other's forecasts."""
        return True

    @abstractmethod
    def forward(self, batch: Batch) -> Float[Tensor, "B S V K"]:
        """Forecasts of the model's own horizon at its trained levels, in the batch's units."""

    @abstractmethod
    def loss_of(self, output: Float[Tensor, "B S V K"], batch: Batch) -> Float[Tensor, ""]:
        """The training loss of the output of ``forward`` for this batch, over the observed future values."""

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """The training loss of a batch with a known future of the model's own horizon."""
        return self.loss_of(self(batch), batch)

    def centre(self, output: Float[Tensor, "B S V K"]) -> Float[Tensor, "B S V"]:
        """The point forecast: the middle level of the output of ``forward``."""
        return output[..., len(self.levels) // 2]

    def standardise(self, batch: Batch) -> tuple[Batch, WindowScale]:
        """Bring each window and variate to mean 0 and standard deviation 1 over its observed history.

        So forecasts do not depend on the units, and a constant is forecast as that constant. Covariates are
        standardised in the same way, including their known future.
        """
        past, scale = standardise_windows(batch.past, batch.past_observed)
        dtype = next(self.parameters()).dtype
        return standardise_covariates(replace(batch, past=past)).to(dtype), scale

    def on_training_scale(self, batch: Batch) -> tuple[Batch, WindowScale]:
        """As ``standardise``, for a batch that the data module has already standardised."""
        return self.standardise(batch)

    @torch.inference_mode()
    def predict(self, batch: Batch, levels: Sequence[float]) -> Forecast:
        """Forecast ``batch.horizon`` steps, in the units of ``batch.past``, whatever the model's own horizon is.

        The model runs in float32. Under ``torch.autocast`` matrix products are in bfloat16, which takes about three
        quarters of the time on a CPU with bfloat16 instructions.

        Args:
            batch: windows of any context length; longer ones are cut, shorter ones padded as unobserved.
            levels: quantile levels.

        Returns:
            The forecast on the CPU, in float64.

        Raises:
            InputError: levels outside (0, 1), or a batch without windows.
        """
        requested = check_levels(levels)
        if not len(batch) or not batch.past.shape[2]:
            raise InputError("expected at least one series in a batch, found none: give windows to forecast")
        was_training = self.training
        self.eval()
        device = next(self.parameters()).device
        if device.type == "cpu":
            keep_large_blocks()
        batch = batch.to(device)
        if batch.past.shape[1] > self.context or not self.any_length:
            batch = fit_context(batch, self.context)
        standard, scale = self.standardise(batch)
        with onednn_products(self):
            trained = torch.cat([self.with_effort(part) for part in self.chunks(standard)]).double()
        centre = self.centre(trained)
        if self.conformal is not None and self.conformal.calibrated:
            quantiles = self.conformal.double().quantiles(centre, requested)
        else:
            quantiles = interpolate_quantiles(trained, self.levels, requested)
        self.train(was_training)
        restored = quantiles * scale.scale.unsqueeze(-1) + scale.loc.unsqueeze(-1)
        mean = centre if len(self.levels) == 1 else forecast_mean(trained, self.levels, standard)
        return Forecast(scale.restore(mean).cpu(), restored.cpu(), requested)

    def chunks(self, batch: Batch) -> list[Batch]:
        """The batch in chunks of at most ``chunk_size`` series (on a CPU), which fit into its caches."""
        count, columns = len(batch), batch.past.shape[2]
        if self.chunk_size is None or batch.past.device.type != "cpu" or count * columns <= self.chunk_size:
            return [batch]
        return [select(batch, rows) for rows in torch.arange(count).split(max(1, self.chunk_size // columns))]

    def with_effort(self, batch: Batch) -> Float[Tensor, "B H V K"]:
        """As ``rollout``; if the effort is "best", averaged with the negated forecast of the negated history.

        That takes twice as long, and changes nothing if the model does not mirror.
        """
        quantiles = self.rollout(batch)
        if self.effort == "fast" or not self.mirrors:
            return quantiles
        return (quantiles - self.rollout(negated(batch)).flip(-1)) / 2

    def rollout(self, batch: Batch) -> Float[Tensor, "B H V K"]:
        """Forecast ``batch.horizon`` steps autoregressively, with the middle level as history."""
        return roll_out(batch, self, self.centre)


def forecast_mean(
    quantiles: Float[Tensor, "B H V K"], levels: tuple[float, ...], batch: Batch
) -> Float[Tensor, "B H V"]:
    """The mean of predictive distributions that are given by quantiles.

    It is the integral of the quantile function, whose tails beyond the outermost levels are an assumption. Therefore
    the wider a forecast is relative to its history, the more its mean is that of the history instead, shifted so that
    the forecast's median lies between the history's median and mean.

    Args:
        quantiles: ascending quantiles of each step.
        levels: their levels.
        batch: the windows, in the same units.
    """
    median = interpolate_quantiles(quantiles, levels, (0.5,))
    spread = mean_of_quantiles((quantiles - median).abs(), levels)
    past = torch.where(batch.past_observed, batch.past, math.nan).to(quantiles.dtype)
    middle = median_in_time(past)
    mean = past.nanmean(dim=1, keepdim=True)
    width = (past - middle).abs().nanmean(dim=1, keepdim=True)
    share = torch.where(width > 0, spread / width.where(width > 0, 1.0), 0.0).clamp(max=1) ** WIDTH_POWER
    between = torch.minimum(torch.maximum(median[..., 0], torch.minimum(mean, middle)), torch.maximum(mean, middle))
    of_history = (mean + median[..., 0] - between).nan_to_num()
    return torch.lerp(mean_of_quantiles(quantiles, levels), of_history, share)


def roll_out(
    batch: Batch,
    forecast: Callable[[Batch], Float[Tensor, "B S V K"]],
    centre: Callable[[Float[Tensor, "B S V K"]], Float[Tensor, "B S V"]],
) -> Float[Tensor, "B H V K"]:
    """Autoregressive forecasts of a horizon of any length.

    Args:
        batch: windows.
        forecast: forecasts the next steps of windows.
        centre: point forecast of these steps, which becomes history.
    """
    chunks, horizon = [forecast(batch)], batch.horizon
    missing = horizon - chunks[0].shape[1]
    while missing > 0:
        batch = extend(batch, centre(chunks[-1]))
        chunks.append(forecast(batch))
        missing -= chunks[-1].shape[1]
    return torch.cat(chunks, dim=1)[:, :horizon]


def roll_out_paths(
    batch: Batch, forecast: Callable[[Batch], Float[Tensor, "B S V K"]], levels: tuple[float, ...]
) -> Float[Tensor, "B H V K"]:
    """Autoregressive quantile forecasts of a horizon of any length, whose intervals keep growing.

    Several quantiles of a chunk become histories (paths). The quantiles of the next chunk are those of the mixture of
    the forecasts from all paths, and each path continues at its own level of this mixture. (With the median as the only
    history, its uncertainty would be lost and all further intervals too narrow.)

    Args:
        batch: windows.
        forecast: forecasts the next steps of windows, at most ``batch.horizon``.
        levels: quantile levels of these forecasts.
    """
    chunks, horizon = [forecast(batch)], batch.horizon
    missing = horizon - chunks[0].shape[1]
    if missing > 0:
        size = torch.where(batch.past_observed, batch.past, 0.0).abs().amax(1, keepdim=True)
        limit = MOST_GROWTH * torch.where(size > 0, size, 1.0)
        batch = select(batch, torch.arange(len(batch), device=batch.past.device).repeat(len(PATHS)))
    while missing > 0:
        history = interpolate_quantiles(chunks[-1], levels, PATHS).movedim(-1, 0).clamp(-limit, limit)
        batch = extend(batch, history.flatten(0, 1))
        by_path = forecast(batch).unflatten(0, (len(PATHS), -1))
        points = interpolate_quantiles(by_path, levels, POINTS).movedim(0, -2).flatten(-2).sort(dim=-1).values
        count = points.shape[-1]
        chunks.append(interpolate_quantiles(points, [(i + 0.5) / count for i in range(count)], levels))
        missing -= chunks[-1].shape[1]
    return torch.cat(chunks, dim=1)[:, :horizon]


def select(batch: Batch, rows: Int[Tensor, " b"]) -> Batch:
    """Some windows of a batch, in the given order."""
    values: dict[str, Any] = {f.name: getattr(batch, f.name) for f in fields(batch)}
    values |= {name: x[rows] for name, x in values.items() if isinstance(x, Tensor)}
    return replace(batch, **values)


def negated(batch: Batch) -> Batch:
    """The batch with the sign of every value changed."""
    negative: Any = {name: -x for name in VALUE_FIELDS if (x := getattr(batch, name)) is not None}
    return replace(batch, **negative)


def fit_context(batch: Batch, context: int) -> Batch:
    """The batch with exactly ``context`` steps of history: the last ones, or padded on the left as unobserved."""
    missing = context - batch.past.shape[1]
    if missing == 0:
        return batch
    fitted: dict[str, Any] = {}
    for name in HISTORY:
        value = getattr(batch, name)
        if value is not None:
            fitted[name] = value[:, -context:] if missing < 0 else nn.functional.pad(value, (0, 0, missing, 0))
    return replace(batch, **fitted)


def extend(batch: Batch, values: Float[Tensor, "B S V"]) -> Batch:
    """Append forecast ``values`` to the history and move the windows on by as many steps.

    Calendar features and known covariates move along; a covariate known up to the present is unobserved from there on.

    Args:
        batch: windows.
        values: the forecast, S steps, fewer than the horizon of the batch.
    """
    steps, context = values.shape[1], batch.past.shape[1]
    moved: dict[str, Any] = {"horizon": batch.horizon - steps, "future": None, "future_observed": None}

    def append(name: str, new: Tensor) -> None:
        moved[name] = torch.cat([getattr(batch, name), new], dim=1)[:, -context:]

    append("past", values.to(batch.past.dtype))
    append("past_observed", torch.ones_like(values, dtype=torch.bool))
    for name in ("past_covariates", "past_covariates_observed"):
        value = getattr(batch, name)
        if value is not None:
            append(name, value.new_zeros(len(value), steps, value.shape[2]))
    for name, future in KNOWN.items():
        value = getattr(batch, future)
        if value is not None:
            append(name, value[:, :steps])
            moved[future] = value[:, steps:]
    return replace(batch, **moved)
