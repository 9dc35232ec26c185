"""The vision forecaster: an image model completes the image of a series (the idea of VisionTS, Chen et al. 2025).

Shapes: B windows, V variates, R rows (a variate of a window), T steps of history, H horizon, S pixels of a side,
F columns of the future, K levels.
"""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tsfm.models import (
    Forecaster,
    add_covariates,
    ascending,
    find_periods,
    known_future,
    roll_out_paths,
    scaled_quantile_loss,
)
from tsfm.nn import DEFAULT_LEVELS, asinh, check_levels, masked_mean, mean_pinball_loss
from tsfm_data.errors import InputError, check_model_sizes
from tsfm_data.windows import Batch
from tsfm_vision.forecasting.folding import fold, read
from tsfm_vision.weights import check_arguments, create


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of a vision forecaster.

    Attributes:
        backbone: name of an image model of timm, ours among them.
        sizes: its arguments, such as depths and channels.
        image: pixels of a side, S.
        future: columns of the image that are the future, F; the others are the latest cycles of the history.
        width: channels from which the future is read.
        levels: trained quantile levels; others are interpolated.
    """

    backbone: str = "tsfm_poolformer_s12"
    sizes: dict[str, Any] = field(
        default_factory=lambda: {"depths": (2, 2, 2, 2), "dims": (32, 64, 96, 128)}, hash=False
    )
    image: int = 64
    future: int = 16
    width: int = 64
    levels: tuple[float, ...] = DEFAULT_LEVELS

    def __post_init__(self) -> None:
        check_model_sizes(self, "image", "future", "width")
        check_levels(self.levels)
        check_arguments(self.sizes, "sizes of the backbone")
        if self.future >= self.image:
            raise InputError(
                f"expected fewer than {self.image} columns of the future, found {self.future}: the history needs some"
            )

    @classmethod
    def tiny(cls) -> "VisionConfig":
        """Sizes for tests and first tries."""
        return cls(sizes={"depths": (1, 1, 1, 1), "dims": (8, 16, 16, 16)}, image=32, future=8, width=16)


class VisionForecaster(Forecaster):
    """An image model reads the folded history; quantiles are read from the part of the image that is the future.

    Args:
        context: steps of history.
        horizon: steps of one pass.
        config: sizes.

    Raises:
        InputError: an unknown image model, or sizes that do not fit each other.
    """

    model_type: ClassVar[str] = "vision"
    config_type: ClassVar[type] = VisionConfig
    chunk_size: ClassVar[int | None] = 256
    mirrors: ClassVar[bool] = True
    config: VisionConfig

    def __init__(self, context: int, horizon: int, config: VisionConfig = VisionConfig()) -> None:
        super().__init__(context, horizon, config)
        self.levels = check_levels(config.levels)
        size, width = config.image, config.width
        backbone: Any = create(config.backbone, 0, size, 3, {**config.sizes, "features_only": True}, {})
        self.backbone, self.patch = backbone, backbone.feature_info.reduction()[0]
        if config.future % self.patch or size % self.patch:
            raise InputError(
                f"expected image and future in whole patches of {self.patch} pixels, found {size} and {config.future}: "
                "change them in the config"
            )
        self.position = nn.Parameter(torch.zeros(3, size, size))
        self.levels_in = nn.ModuleList(nn.Conv2d(n, width, 1) for n in backbone.feature_info.channels())
        self.pixels_in = nn.Conv2d(3 * self.patch**2, width, 1)
        self.mix = nn.Conv2d(width, width, 1)
        self.head = nn.Conv2d(width, len(self.levels) * self.patch**2, 1)

    @property
    def joint(self) -> bool:
        """Whether variates see each other: they do not."""
        return False

    @property
    def covariates(self) -> bool:
        """Whether the model uses covariates: their effect is learnt from each history, see ``add_covariates``."""
        return True

    def complete(self, image: Float[Tensor, "R 3 S S"]) -> Float[Tensor, "K R S F"]:
        """Outputs for every pixel of the future."""
        image = image + self.position
        grid, future = self.config.image // self.patch, self.config.future // self.patch
        x = self.pixels_in(F.pixel_unshuffle(image, self.patch))[..., -future:]
        for layer, level in zip(self.levels_in, self.backbone(image), strict=True):
            x = x + F.interpolate(layer(level), (grid, grid), mode="bilinear")[..., -future:]
        x = F.gelu(x)
        return F.pixel_shuffle(self.head(F.gelu(self.mix(x)) + x), self.patch).movedim(1, 0).float()

    def quantiles(self, batch: Batch, horizon: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Quantiles ``[R, H, K]`` of ``horizon`` steps, at most the model's own, of windows that are standardised.

        Returns:
            The quantiles; location and scale of the images ``[R, 1]``; the unit of errors ``[R]`` on that scale.
        """
        x_RT, seen_RT = (x.transpose(1, 2).flatten(0, 1) for x in (batch.past, batch.past_observed))
        season_RP, _ = find_periods(x_RT, seen_RT, 1, batch.seasons)
        folded = fold(x_RT, seen_RT, season_RP[:, 0], self.config.image, self.config.future, self.horizon)
        raw = self.complete(folded.image.to(self.position.dtype))
        unit = folded.unit[:, None, None]
        m = len(raw) // 2
        found = read(folded, ascending(unit * raw[m : m + 1], raw, unit), x_RT, seen_RT, horizon)
        return found, folded.loc, folded.scale, folded.unit

    def unroll(self, batch: Batch) -> Float[Tensor, "B H V K"]:
        """Quantiles of ``batch.horizon`` steps of standardised windows; beyond one pass, from its own quantiles."""

        def forecast(part: Batch) -> Tensor:
            found, *_ = self.quantiles(part, min(part.horizon, self.horizon))
            return found.unflatten(0, (len(part), -1)).transpose(1, 2)

        return roll_out_paths(batch, forecast, self.levels)

    def rollout(self, batch: Batch) -> Float[Tensor, "B H V K"]:
        """As ``unroll``, with the effect of covariates."""
        return add_covariates(batch, self.unroll)

    def forward(self, batch: Batch) -> Float[Tensor, "B S V K"]:
        """Quantiles of the model's own horizon at its levels, in the batch's units."""
        standard, scale = self.standardise(batch)
        found = self.unroll(replace(standard, horizon=self.horizon))
        return (found * scale.scale[..., None] + scale.loc[..., None]).to(batch.past.dtype)

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Twice the mean pinball loss on a logarithmic scale of the image, over the observed steps of one pass."""
        future, observed = known_future(batch, batch.horizon)
        steps = min(batch.horizon, self.horizon)
        standard, window = self.standardise(batch)
        target = (future.double() - window.loc) / torch.where(window.scale > 0, window.scale, 1.0)
        found, loc, scale, unit = self.quantiles(standard, steps)
        target_RH, observed_RH = (x[:, :steps].transpose(1, 2).flatten(0, 1) for x in (target.to(found), observed))
        seen_R1 = batch.past_observed.any(1).flatten()[:, None]
        away, found = ((target_RH - loc) / scale, (found - loc[..., None]) / scale[..., None])
        loss = mean_pinball_loss(asinh(found), asinh(away), self.levels) / unit.sqrt()[:, None]
        return masked_mean(loss, observed_RH & seen_R1)

    def loss_of(self, output: Float[Tensor, "B S V K"], batch: Batch) -> Float[Tensor, ""]:
        """Twice the mean pinball loss on the scale of each window, for validation."""
        return scaled_quantile_loss(output, batch, self.levels)
