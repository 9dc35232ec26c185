"""What the families written here share: timm's methods for a classifier, a norm and blocks.

Shapes: B batch, ``out`` classes or features.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import trunc_normal_
from timm.models import build_model_with_cfg
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from tsfm.attention import Mask, attend
from tsfm_data.errors import InputError
from tsfm_vision.backbones import cpu

Indices = int | list[int] | tuple[int, ...] | None


class Backbone(nn.Module, ABC):
    """An image model with ``head``, ``norm`` and ``feature_info``.

    A family adds ``forward_features``, ``forward_head``, ``forward_intermediates`` and timm's methods about its
    parameters.

    Args:
        in_chans: channels of an image.
        num_classes: outputs of the classifier, 0 for none.
        global_pool: how features are pooled for the classifier, ``""`` for not at all.
        width: channels of the last features.
        drop_rate: dropout before the classifier.

    Attributes:
        pools: the values that ``global_pool`` may have.

    Raises:
        InputError: another ``global_pool``.
    """

    norm: nn.Module
    feature_info: list[dict[str, Any]]
    pools: tuple[str, ...] = ("avg", "")

    def __init__(self, in_chans: int, num_classes: int, global_pool: str, width: int, drop_rate: float) -> None:
        super().__init__()
        self.in_chans, self.num_classes, self.global_pool = in_chans, num_classes, self._known_pool(global_pool)
        self.num_features = self.head_hidden_size = width
        self.head_drop = nn.Dropout(drop_rate)
        self.head: nn.Module = nn.Linear(width, num_classes) if num_classes > 0 else nn.Identity()

    def _known_pool(self, name: str) -> str:
        if name not in self.pools:
            raise InputError(f"expected global_pool to be one of {', '.join(map(repr, self.pools))}, found {name!r}")
        return name

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one; ``global_pool`` stays as it is with ``None``."""
        self.num_classes = num_classes
        self.global_pool = self.global_pool if global_pool is None else self._known_pool(global_pool)
        like = next(self.parameters())
        self.head = nn.Identity()
        if num_classes > 0:
            self.head = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
        self.head.train(self.training)

    @abstractmethod
    def forward_features(self, x: Float[Tensor, "B ch height width"]) -> Float[Tensor, " B *features"]:
        """Features after the last norm."""

    @abstractmethod
    def forward_head(self, x: Float[Tensor, " B *features"], pre_logits: bool = False) -> Float[Tensor, " B *out"]:
        """From features to logits, or to the classifier's input."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[B, out]`` of images ``[B, ch, height, width]``."""
        return self.forward_head(self.forward_features(x))


class Pyramid(Backbone):
    """A backbone of ``stages`` whose maps become smaller and wider.

    Attributes:
        between: names of the lists of layers between stages, one shorter than ``stages``.
    """

    stages: nn.ModuleList
    between: tuple[str, ...] = ()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Gradient checkpointing: keep the blocks' inputs only and compute the blocks again in backward."""
        for stage in self.stages:
            stage.grad_checkpointing = enable  # type: ignore[assignment]

    def prune_intermediate_layers(
        self, indices: Indices = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the stages after the last chosen one, and the norm and head if they no longer fit."""
        taken, last = take(len(self.stages), indices)
        shorter = last < len(self.stages) - 1
        self.stages = self.stages[: last + 1]
        for name in self.between:
            setattr(self, name, getattr(self, name)[:last])
        self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if prune_norm or shorter:
            self.norm = nn.Identity()
        if prune_head or shorter:
            self.reset_classifier(0, "")
        return taken


def published(**own: Any) -> dict[str, Any]:
    """timm's config of published weights, from what differs from most of them."""
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": None,
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "classifier": "head",
        **own,
    }


def build(
    family: type[nn.Module],
    variant: str,
    pretrained: bool,
    kwargs: dict[str, Any],
    filter_fn: Callable[..., Any],
    levels: int | tuple[int, ...],
    **features: Any,
) -> Any:
    """Build a variant by timm's factory.

    Args:
        family: class of the model.
        variant: its registered name.
        pretrained: whether to load the published weights.
        kwargs: sizes of the model, timm's own options, and ``device`` and ``dtype`` of everything in it.
        filter_fn: renames the weights of a checkpoint.
        levels: ``out_indices`` of ``features_only`` by default.
        features: more of timm's ``feature_cfg``.
    """
    features |= {"out_indices": kwargs.pop("out_indices", levels), "feature_cls": "getter"}
    device, dtype = kwargs.pop("device", None), kwargs.pop("dtype", None)

    def make(**sizes: Any) -> nn.Module:
        with nullcontext() if device is None else torch.device(device):
            made = family(**sizes)
        return made if dtype is None else made.to(dtype)

    return build_model_with_cfg(
        make, variant, pretrained, pretrained_filter_fn=filter_fn, feature_cfg=features, **kwargs
    )


@torch.fx.wrap  # one node of a traced graph, as it branches on sizes
def patch_grid(height: int, width: int, rows: int, columns: int) -> tuple[int, int]:
    """Rows and columns of patches in an image; pixels that fill no patch at the right and lower edge are ignored.

    Args:
        height: rows of the image.
        width: its columns.
        rows: rows of a patch.
        columns: its columns.

    Raises:
        InputError: the image is smaller than a patch.
    """
    if height < rows or width < columns:
        raise InputError(
            f"expected images of at least {rows} x {columns} pixels, found {height} x {width}: enlarge them"
        )
    return height // rows, width // columns


def channels_last(x: Tensor) -> Tensor:
    """The images in the layout in which convolutions, pooling and norms of maps are fastest on a CPU."""
    if x.device.type != "cpu" or cpu.is_transformed():
        return x
    return x.contiguous(memory_format=torch.channels_last)


def mix(
    q_BNHD: Tensor,
    k_BMHD: Tensor,
    v_BMHD: Tensor,
    scale: float | None = None,
    dropout: float = 0.0,
    bias: Tensor | None = None,
) -> Tensor:
    """Attention by ``tsfm.attention.dispatch``.

    Args:
        q_BNHD: queries.
        k_BMHD: keys.
        v_BMHD: values.
        scale: factor on the scores, by default ``1 / sqrt(D)``.
        dropout: share of the attention weights that are set to 0.
        bias: added to the scores, broadcast to ``[B, H, N, M]``.
    """
    mask = None if bias is None else Mask(bias=bias)
    return attend(q_BNHD, k_BMHD, v_BMHD, mask, scale=scale, dropout=dropout)


def take(count: int, indices: Indices) -> tuple[list[int], int]:
    """Indices of the chosen of ``count`` blocks, and the last of them; a number means that many of the last blocks."""
    return feature_take_indices(count, list(indices) if isinstance(indices, tuple) else indices)


def path_rates(rate: float, depths: list[int]) -> list[list[float]]:
    """Drop-path rates of every stage's blocks, growing linearly from 0 to ``rate`` over all of them."""
    flat = [rate * i / max(1, sum(depths) - 1) for i in range(sum(depths))]
    return [flat[sum(depths[:i]) : sum(depths[: i + 1])] for i in range(len(depths))]
