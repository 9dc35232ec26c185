"""What the families written here share: timm's methods for a classifier, a norm and blocks.

Shapes: B batch, ``out`` classes or features.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import to_2tuple, trunc_normal_
from timm.models import build_model_with_cfg, register_model
from timm.models._features import FeatureGetterNet, feature_take_indices
from timm.models._input import update_model_input_size
from torch import Tensor, nn

from tsfm.attention import Mask, attend
from tsfm_data.errors import InputError
from tsfm_vision.backbones import cpu
from tsfm_vision.backbones.checkpoints import State, resize_grid, source_grid

Indices = int | list[int] | tuple[int, ...] | None
Level = tuple[Tensor, tuple[int, int] | None]


class Levels:
    """timm's methods for features and intermediate outputs, from the ``levels`` of a model.

    Attributes:
        parts: name of the list of its blocks or stages.
        formats: what ``output_fmt`` may be.
        patches: where the patches are among the tokens of a level.
        prefix: where the class token is.
        extractors: what ``feature_cls`` of ``features_only`` may be; timm's other classes give other maps or none.
    """

    parts: ClassVar[str] = "stages"
    formats: ClassVar[tuple[str, ...]] = ("NCHW", "NLC")
    patches: ClassVar[slice] = slice(None)
    prefix: ClassVar[slice] = slice(0)
    extractors: ClassVar[tuple[str, ...]] = ("getter",)

    def levels(self, x: Tensor) -> Iterator[Level]:
        """Outputs of the blocks or stages: tokens and the grid of their patches, or a map and ``None``."""
        raise NotImplementedError

    def normed(self, x: Tensor, index: int) -> Tensor:
        """The output of a block after the last norm; of stages, the last has a norm."""
        is_last = self.parts == "blocks" or index == len(self.stages) - 1  # type: ignore[attr-defined]
        return self.norm(x) if is_last else x  # type: ignore[attr-defined]

    def final(self, x: Tensor, index: int) -> Tensor:
        """Features if this is the last level that is computed."""
        return self.normed(x, index)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay, beyond biases and norms: position tables and class tokens."""
        names = (name for name, _ in self.named_parameters())  # type: ignore[attr-defined]
        return {name for name in names if name.endswith(("_pos", "pos_embed", "cls_token"))}

    def forward_features(self, x: Tensor) -> Tensor:
        """Features of images ``[B, ch, height, width]``: tokens ``[B, N, C]``, or a map ``[B, C, H, W]``."""
        last = x
        for level in self.levels(x):
            last = level[0]
        return self.final(last, len(getattr(self, self.parts)) - 1)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: Indices = None,
        *,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
    ) -> Any:
        """Outputs of blocks or stages, as timm's models give them.

        Args:
            x: images ``[B, ch, height, width]``.
            indices: which, or how many of the last; all by default.
            return_prefix_tokens: pairs of patches and class token; a class token that comes last counts, too.
            norm: after the last norm, see ``normed``.
            stop_early: compute nothing after the last of them.
            output_fmt: "NCHW" for maps, "NLC" for tokens.
            intermediates_only: without the features.
            output_dict: as a dictionary, "image_features" and "image_intermediates".

        Raises:
            InputError: another ``output_fmt``.
        """
        if output_fmt not in self.formats:
            raise InputError(f"expected output_fmt {' or '.join(self.formats)}, found {output_fmt!r}: change it")
        taken, end = take(len(getattr(self, self.parts)), indices)
        last, index, outputs = x, 0, []
        for index, (y, grid) in enumerate(self.levels(x)):
            last = y
            if index in taken:
                tokens = self.normed(y, index) if norm else y
                patches = tokens if grid is None else tokens[:, self.patches]
                if grid is not None and output_fmt == "NCHW":
                    patches = patches.transpose(1, 2).unflatten(2, grid).contiguous()
                outputs.append((patches, tokens[:, self.prefix]) if return_prefix_tokens else patches)
            if stop_early and index == end:
                break
        named: dict[str, Any] = {"image_intermediates": outputs}
        if not intermediates_only:
            named = {"image_features": self.final(last, index), **named}
        return named if output_dict else outputs if intermediates_only else tuple(named.values())

    def get_intermediate_layers(
        self, x: Tensor, n: Indices = 1, reshape: bool = False, return_prefix_tokens: bool = False, norm: bool = False
    ) -> Any:
        """The same by DINO's name and arguments: ``n`` levels, as maps if ``reshape`` or if they are maps."""
        fmt = "NCHW" if reshape or "NLC" not in self.formats else "NLC"
        options = {"return_prefix_tokens": return_prefix_tokens, "norm": norm, "output_fmt": fmt}
        return self.forward_intermediates(x, n, intermediates_only=True, **options)  # type: ignore[arg-type]


class Positioned(Levels):
    """The image size of a model with one position table, of patches and a class token.

    Attributes:
        table: name of the table.
        embedding: name of the layer that cuts and embeds patches.
    """

    parts = "blocks"
    table: ClassVar[str] = "pos_embed"
    embedding: ClassVar[str] = "patch_embed"

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches in an image."""
        rows, columns = to_2tuple(getattr(self, self.embedding).patch_size)
        return patch_grid(height, width, rows, columns)

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """The position table for a grid of patches."""
        old = getattr(self, self.embedding).grid_size
        return resize_positions(getattr(self, self.table), old, grid, self.patches.start or 0)

    def set_input_size(self, img_size: int | Sequence[int]) -> None:
        """Change the model's image size: its position table is resized once and not in every forward pass."""
        size, embed, old = to_2tuple(img_size), getattr(self, self.embedding), getattr(self, self.table)
        grid = self.grid(*size)
        setattr(self, self.table, nn.Parameter(self.positions(grid).detach().clone(), old.requires_grad))
        embed.img_size, embed.grid_size = size, grid
        self.num_patches = embed.num_patches = grid[0] * grid[1]
        update_model_input_size(self, size)  # type: ignore[arg-type]

    def fit_positions(self, state: State) -> None:
        """Resize the position table of a checkpoint to that of the model.

        Raises:
            InputError: it is of no square grid.
        """
        table, embed = state[self.table], getattr(self, self.embedding)
        if table.shape != getattr(self, self.table).shape:
            old = source_grid(self, table.shape[1] - 1, self.table, to_2tuple(embed.patch_size))  # type: ignore[arg-type]
            state[self.table] = resize_positions(table, old, embed.grid_size, self.patches.start or 0)


class Backbone(Levels, nn.Module, ABC):
    """An image model with ``head``, ``norm`` and ``feature_info``.

    A family adds ``levels``, ``forward_head`` and timm's methods about its parameters.

    Args:
        in_chans: channels of an image.
        num_classes: outputs of the classifier, 0 for none.
        global_pool: how features are pooled for the classifier, ``""`` for not at all.
        width: channels of the last features.
        drop_rate: dropout before the classifier.

    Attributes:
        pools: the values that ``global_pool`` may have.
        between: names of the lists of layers between stages, and how many there are before the first stage.

    Raises:
        InputError: another ``global_pool``.
    """

    between: ClassVar[dict[str, int]] = {}
    norm: nn.Module
    stages: nn.ModuleList
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

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Gradient checkpointing: keep the blocks' inputs only and compute the blocks again in backward."""
        holders: Any = self.stages if self.parts == "stages" else [self]
        for holder in holders:
            holder.grad_checkpointing = enable

    def prune_intermediate_layers(
        self, indices: Indices = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the blocks or stages after the last chosen one; norm and head if asked, or if they no longer fit."""
        blocks = getattr(self, self.parts)
        taken, last = take(len(blocks), indices)
        narrower = self.parts == "stages" and last < len(blocks) - 1
        setattr(self, self.parts, blocks[: last + 1])
        for name, first in self.between.items():
            setattr(self, name, getattr(self, name)[: last + first])
        self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if prune_norm or narrower:
            self.norm = nn.Identity()
        if prune_head or narrower:
            self.reset_classifier(0, "")
        return taken

    @abstractmethod
    def forward_head(self, x: Float[Tensor, " B *features"], pre_logits: bool = False) -> Float[Tensor, " B *out"]:
        """From features to logits, or to the classifier's input."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[B, out]`` of images ``[B, ch, height, width]``."""
        return self.forward_head(self.forward_features(x))


def published(url: str = "", size: int = 224, **own: Any) -> dict[str, Any]:
    """timm's config of published weights for square images of this size, from what differs from most of them."""
    return {
        "url": url,
        "num_classes": 1000,
        "input_size": (3, size, size),
        "pool_size": None,
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "classifier": "head",
        **own,
    }


class Features(FeatureGetterNet):
    """timm's getter of features, with a switch for gradient checkpointing."""

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """That of the model."""
        self.model.set_grad_checkpointing(enable)  # type: ignore[operator, union-attr]


def build(
    family: Any,
    variant: str,
    sizes: dict[str, Any],
    filter_fn: Callable[..., Any],
    levels: int | tuple[int, ...],
    pretrained: bool = False,
    **kwargs: Any,
) -> Any:
    """Build a variant by timm's factory.

    Args:
        family: class of the model.
        variant: its registered name.
        sizes: of this variant.
        filter_fn: renames the weights of a checkpoint.
        levels: ``out_indices`` of ``features_only`` by default.
        pretrained: whether to load the published weights.
        kwargs: other sizes, timm's own options, and ``device`` and ``dtype`` of everything in the model.

    Raises:
        InputError: a ``feature_cls`` that does not give this family's features.
    """
    extractor, known = kwargs.pop("feature_cls", "getter"), family.extractors
    features = {"out_indices": kwargs.pop("out_indices", levels), "flatten_sequential": extractor in ("list", "dict")}
    if kwargs.get("stage_norms"):
        features["norm"], known = True, ("getter",)
    if isinstance(extractor, str) and extractor not in known:
        raise InputError(
            f"expected feature_cls of {variant} to be {' or '.join(known)}, found {extractor!r}: change it"
        )
    features["feature_cls"] = Features if extractor == "getter" else extractor
    device, dtype = kwargs.pop("device", None), kwargs.pop("dtype", None)

    def make(**sizes: Any) -> nn.Module:
        with nullcontext() if device is None else torch.device(device):
            made = family(**sizes)
        return made if dtype is None else made.to(dtype)

    kwargs = {"pretrained_filter_fn": filter_fn, "feature_cfg": features, **sizes, **kwargs}
    return build_model_with_cfg(make, variant, pretrained, **kwargs)


def register(
    family: type[nn.Module],
    filter_fn: Callable[..., Any],
    levels: int | tuple[int, ...],
    variants: dict[str, dict[str, Any]],
) -> None:
    """Register variants of a family with timm, by names and sizes; their weights are in its module's ``default_cfgs``.

    Args:
        family: class of the models.
        filter_fn: see ``build``.
        levels: see ``build``.
        variants: sizes by registered name.
    """
    for name, sizes in variants.items():
        entry: Any = partial(build, family, name, sizes, filter_fn, levels)
        entry.__name__, entry.__module__ = name, family.__module__
        setattr(sys.modules[family.__module__], name, entry)  # timm adds the name to its ``__all__``
        register_model(entry)


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


@torch.fx.wrap
def resize_positions(table: Tensor, old: tuple[int, int], new: tuple[int, int], first: int) -> Tensor:
    """A position table ``[1, N, C]`` for another grid of patches; the row of the class token is kept.

    Args:
        table: of ``old`` patches, and the class token before or after them.
        old: rows and columns of its grid.
        new: those of the other grid.
        first: row of the first patch.
    """
    if old == new:
        return table
    end = first + old[0] * old[1]
    return torch.cat([table[:, :first], resize_grid(table[:, first:end], old, new), table[:, end:]], 1)


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
