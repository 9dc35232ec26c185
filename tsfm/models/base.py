"""The contract that every forecaster keeps, and the loops that reach beyond a model's own horizon.

Shapes: B batch, T context, H asked horizon, S the model's own horizon, V variates, K trained levels, Q asked levels.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

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
    standardise_windows,
)
from tsfm_data.errors import InputError
from tsfm_data.progress import progress
from tsfm_data.windows import Batch, Forecast

# Levels of the paths on which forecasts go on beyond a model's reach. Fewer paths say less of what may come; from more,
# most of them near the middle, intervals come out too narrow: of a random walk nine lose half in 25 passes.
PATHS = (0.1, 0.3, 0.5, 0.7, 0.9)
POINTS = tuple((i + 0.5) / 20 for i in range(20))  # levels that stand for a whole forecast where forecasts are mixed

# How fast the history's share in the mean falls with the width of a forecast. On 72 training sets the squared error of
# the mean, over that of the median, is 1.002 (decoder) and 0.990 (encoder); without any share 1.023 and 0.998.
WIDTH_POWER = 4

# What a batch holds of the past and knows of the future, by the names of both.
KNOWN = {
    "past_marks": "future_marks",
    "known_past": "known_future",
    "known_past_observed": "known_future_observed",
}
# All that has as many steps as the context.
HISTORY = ("past", "past_observed", "past_covariates", "past_covariates_observed", *KNOWN)


@dataclass(frozen=True)
class TrainingData:
    """What a model was trained on, kept with its weights.

    Attributes:
        source: data-set name or file.
        freq: pandas frequency alias.
        marks: calendar-feature set given with every window, or None.
        variates: names of the training variates.
        mean: of each variate over the training rows, in the data's own units.
        std: population standard deviation of each variate over the training rows.
        past_covariates: covariates known up to the present that came with every window.
        known_covariates: those known over the horizon too.
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
        corpus: name of the corpus; None where all series were generated.
        manifest_sha256: hash of the corpus's ``manifest.json``.
        sources: sources in training.
        held_out: sources of the corpus that never were in training.
        seed: of the stream of batches.
        global_seed: of the first weights and of everything else random; None where none was set.
        steps: optimiser steps.
        batches: batches seen, on every device.
        observations: observed values in them, where they were counted.
        command: the command line, where there was one.
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
        context: steps of history it looks at.
        horizon: steps it forecasts in one pass.
        config: its sizes, a frozen dataclass.
    """

    model_type: ClassVar[str]
    config_type: ClassVar[type]
    dtype: ClassVar[torch.dtype] = torch.float64  # of the batches it is given: units are taken off in full precision
    piece: ClassVar[int | None] = None  # series that ``predict`` works on at a time on a CPU; None: all of the batch
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
        """Whether the model looks at the covariates of a batch; if not, it is given none."""
        return False

    @property
    def joint(self) -> bool:
        """Whether the variates of a window see each other; if not, each is forecast as if it were alone."""
        return True

    @abstractmethod
    def forward(self, batch: Batch) -> Float[Tensor, "B S V K"]:
        """Forecasts of the model's own horizon at its trained levels, in the batch's units."""

    @abstractmethod
    def loss_of(self, output: Float[Tensor, "B S V K"], batch: Batch) -> Float[Tensor, ""]:
        """The training loss of what ``forward`` returned for this batch, over the observed future values."""

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """The training loss of a batch whose future is known and as long as the model's own horizon."""
        return self.loss_of(self(batch), batch)

    def centre(self, output: Float[Tensor, "B S V K"]) -> Float[Tensor, "B S V"]:
        """The point forecast in what ``forward`` returned: the middle level."""
        return output[..., len(self.levels) // 2]

    def standardise(self, batch: Batch) -> tuple[Batch, WindowScale]:
        """Bring each window and variate to mean 0 and standard deviation 1 over its observed history.

        It makes forecasts follow any change of units exactly, and those of a constant be the constant.
        Covariates are brought to a scale of their own in the same way, what is known of their future included.
        """
        past, scale = standardise_windows(batch.past, batch.past_observed)
        dtype = next(self.parameters()).dtype
        return standardise_covariates(replace(batch, past=past)).to(dtype), scale

    def on_training_scale(self, batch: Batch) -> tuple[Batch, WindowScale]:
        """As ``standardise``, for a batch that the data module has brought to its own standard scale already."""
        return self.standardise(batch)

    @torch.inference_mode()
    def predict(self, batch: Batch, levels: Sequence[float]) -> Forecast:
        """Forecast ``batch.horizon`` steps, in the units of ``batch.past``, whatever the model's own horizon is.

        In float32, on every machine alike. Under ``torch.autocast`` matrix products are in bfloat16, which takes a CPU
        that has instructions for it about three quarters of the time.

        Args:
            batch: windows of any context length; longer ones are cut, shorter ones count as unobserved before.
            levels: quantile levels to answer.

        Returns:
            The forecast on the CPU, in float64.

        Raises:
            InputError: levels outside (0, 1), or a batch without windows.
        """
        asked = check_levels(levels)
        if not len(batch) or not batch.past.shape[2]:
            raise InputError("expected at least one series in a batch, found none: give windows to forecast")
        was_training = self.training
        self.eval()
        device = next(self.parameters()).device
        if device.type == "cpu":
            keep_large_blocks()
        standard, scale = self.standardise(fit_context(batch.to(device), self.context))
        trained = torch.cat([self.rollout(part) for part in self.pieces(standard)]).double()
        centre = self.centre(trained)
        if self.conformal is not None and self.conformal.calibrated:
            quantiles = self.conformal.double().quantiles(centre, asked)
        else:
            quantiles = interpolate_quantiles(trained, self.levels, asked)
        self.train(was_training)
        restored = quantiles * scale.scale.unsqueeze(-1) + scale.loc.unsqueeze(-1)
        mean = centre if len(self.levels) == 1 else forecast_mean(trained, self.levels, standard)
        return Forecast(scale.restore(mean).cpu(), restored.cpu(), asked)

    def pieces(self, batch: Batch) -> list[Batch]:
        """The batch in parts of at most ``piece`` series (on a CPU): what stays in its caches is worked on faster."""
        count, columns = len(batch), batch.past.shape[2]
        if self.piece is None or batch.past.device.type != "cpu" or count * columns <= self.piece:
            return [batch]
        return [select(batch, rows) for rows in torch.arange(count).split(max(1, self.piece // columns))]

    def rollout(self, batch: Batch) -> Float[Tensor, "B H V K"]:
        """Forecast chunk by chunk, feeding the middle level back as history, until ``batch.horizon`` is reached."""
        return roll_out(batch, self, self.centre)


def forecast_mean(
    quantiles: Float[Tensor, "B H V K"], levels: tuple[float, ...], batch: Batch
) -> Float[Tensor, "B H V"]:
    """The mean of the distributions that quantiles say.

    Their integral, in which what lies beyond the outermost levels is a rule and no knowledge. So, as far as a forecast
    is as wide as its history, which then says all there is to know, its mean is that of the history, moved until the
    forecast's median lies between the history's median and mean.

    Args:
        quantiles: of each step, ascending.
        levels: of the quantiles.
        batch: the windows forecast, in the same units.
    """
    median = interpolate_quantiles(quantiles, levels, (0.5,))
    spread = mean_of_quantiles((quantiles - median).abs(), levels)
    past = torch.where(batch.past_observed, batch.past, math.nan).to(quantiles.dtype)
    middle = past.nanmedian(dim=1, keepdim=True).values
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
    """Forecasts of a horizon of any length. Memory grows by what is forecast alone.

    Args:
        batch: windows.
        forecast: gives the next steps of windows.
        centre: what of them becomes history.
    """
    chunks, horizon = [forecast(batch)], batch.horizon
    missing = horizon - chunks[0].shape[1]
    with progress(None, "steps", max(missing, 0)) as bar:
        while missing > 0:
            batch = extend(batch, centre(chunks[-1]))
            chunks.append(forecast(batch))
            missing -= chunks[-1].shape[1]
            bar.update(chunks[-1].shape[1])
    return torch.cat(chunks, dim=1)[:, :horizon]


def roll_out_paths(
    batch: Batch, forecast: Callable[[Batch], Float[Tensor, "B S V K"]], levels: tuple[float, ...]
) -> Float[Tensor, "B H V K"]:
    """Quantiles of a horizon of any length that stay as wide as the model is unsure.

    Forecasts become history along paths from low to high; the quantiles of later steps are those of the mixture of
    what is forecast from all of them, and every path goes on at its own level of that. (The middle alone
    would be history without any doubt, and every interval behind it too narrow.)

    Args:
        batch: windows.
        forecast: gives the next steps of windows, at most ``batch.horizon``.
        levels: of what it gives.
    """
    chunks, horizon = [forecast(batch)], batch.horizon
    missing = horizon - chunks[0].shape[1]
    if missing > 0:
        batch = select(batch, torch.arange(len(batch), device=batch.past.device).repeat(len(PATHS)))
    with progress(None, "steps", max(missing, 0)) as bar:
        while missing > 0:
            history = interpolate_quantiles(chunks[-1], levels, PATHS).movedim(-1, 0)
            batch = extend(batch, history.flatten(0, 1))
            found = forecast(batch).unflatten(0, (len(PATHS), -1))
            points = interpolate_quantiles(found, levels, POINTS).movedim(0, -2).flatten(-2).sort(dim=-1).values
            count = points.shape[-1]
            chunks.append(interpolate_quantiles(points, [(i + 0.5) / count for i in range(count)], levels))
            missing -= chunks[-1].shape[1]
            bar.update(chunks[-1].shape[1])
    return torch.cat(chunks, dim=1)[:, :horizon]


def select(batch: Batch, rows: Int[Tensor, " b"]) -> Batch:
    """Some windows of a batch, in the given order."""
    held: dict[str, Any] = {f.name: getattr(batch, f.name) for f in fields(batch)}
    held |= {name: x[rows] for name, x in held.items() if isinstance(x, Tensor)}
    return replace(batch, **held)


def fit_context(batch: Batch, context: int) -> Batch:
    """The batch with exactly ``context`` steps of history: the last ones, or padded in front as unobserved."""
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
    """The batch after its forecast ``values`` have become history: the window moves on by their number of steps.

    What is known of the future (calendar features, covariates) moves with it; a covariate known up to the present is
    from then on not observed.

    Args:
        batch: the windows forecast.
        values: the forecast, S steps, fewer than the horizon of the batch.
    """
    steps, context = values.shape[1], batch.past.shape[1]
    moved: dict[str, Any] = {"horizon": batch.horizon - steps, "future": None, "future_observed": None}

    def on(name: str, new: Tensor) -> None:
        moved[name] = torch.cat([getattr(batch, name), new], dim=1)[:, -context:]

    on("past", values.to(batch.past.dtype))
    on("past_observed", torch.ones_like(values, dtype=torch.bool))
    for name in ("past_covariates", "past_covariates_observed"):
        value = getattr(batch, name)
        if value is not None:
            on(name, value.new_zeros(len(value), steps, value.shape[2]))
    for name, future in KNOWN.items():
        value = getattr(batch, future)
        if value is not None:
            on(name, value[:, :steps])
            moved[future] = value[:, steps:]
    return replace(batch, **moved)
