"""PyramidTNT (Han et al., "PyramidTNT: Improved Transformer-in-Transformer Baselines with Pyramid Architecture", 2022).

Keys are those of the published weights. Patches ("sentences") of 8 pixels a side, each with 4 x 4 words; between stages
both kinds of tokens are merged two by two in each direction.

Shapes: B batch, N sentences of a map, P words of a sentence, C channels of a sentence, c those of a word, H heads, D
channels of a head, M keys.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from timm.data.constants import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.layers import DropPath, Mlp, to_2tuple, trunc_normal_
from timm.models import build_model_with_cfg, checkpoint, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from tsfm.attention import Mask, attend
from tsfm_data.errors import InputError
from tsfm_vision.backbone import Indices, Pyramid, path_rates, take
from tsfm_vision.checkpoints import State, recognise, resize_grid, square

Pool = Literal["", "avg"]
Grid = tuple[int, int]
# Side of a sentence in pixels of the image, and in words.
SIDE, WORDS = 8, 4
# Sentences along a side that become one key, in each stage.
REDUCTIONS = (4, 2, 1, 1)


class Attention(nn.Module):
    """Attention whose keys may come from a pooled map.

    Args:
        width: channels of a token.
        heads: number of heads.
        reduction: tokens along a side of the map that become one key.
    """

    def __init__(self, width: int, heads: int, reduction: int = 1) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.proj = nn.Linear(width, width)
        self.pool = nn.AvgPool2d(reduction) if reduction > 1 else None
        if reduction > 1:
            self.linear = nn.Linear(width, width)
            self.norm = nn.LayerNorm(width)

    def forward(self, x_BNC: Float[Tensor, "B N C"], grid: Grid, mask: Mask | None = None) -> Float[Tensor, "B N C"]:
        keys_BMC = x_BNC
        if self.pool is not None:
            pooled = self.pool(x_BNC.transpose(1, 2).unflatten(2, grid))
            keys_BMC = self.norm(self.linear(pooled.flatten(2).transpose(1, 2)))
        q_BNHD = self.q(x_BNC).unflatten(2, (self.heads, -1))
        k_BMHD, v_BMHD = self.kv(keys_BMC).unflatten(2, (2, self.heads, -1)).unbind(2)
        return self.proj(attend(q_BNHD, k_BMHD, v_BMHD, mask).flatten(2))


class Block(nn.Module):
    """Attention and feed-forward part of sentences, in some blocks after those of their words.

    Args:
        outer: channels of a sentence.
        inner: channels of a word; 0 for a block without words.
        outer_heads: heads among sentences.
        inner_heads: heads among words.
        reduction: sentences along a side of the map that become one key.
        drop_path: rate of dropping a branch.
    """

    def __init__(
        self, outer: int, inner: int, outer_heads: int, inner_heads: int, reduction: int, drop_path: float
    ) -> None:
        super().__init__()
        self.has_inner = inner > 0
        if self.has_inner:
            words = WORDS * WORDS * inner
            self.inner_norm1 = nn.LayerNorm(words)
            self.inner_attn = Attention(inner, inner_heads)
            self.inner_norm2 = nn.LayerNorm(words)
            self.inner_mlp = Mlp(inner, 4 * inner)
            self.proj_norm1 = nn.LayerNorm(words)
            self.proj = nn.Linear(words, outer, bias=False)
            self.proj_norm2 = nn.LayerNorm(outer)
        self.outer_norm1 = nn.LayerNorm(outer)
        self.outer_attn = Attention(outer, outer_heads, reduction)
        self.outer_norm2 = nn.LayerNorm(outer)
        self.outer_mlp = Mlp(outer, 4 * outer)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(
        self, inner: Float[Tensor, "BN P c"], outer: Float[Tensor, "B N C"], grid: Grid, mask: Mask
    ) -> tuple[Float[Tensor, "BN P c"], Float[Tensor, "B N C"]]:
        if self.has_inner:
            words, sentences = inner.shape, (*outer.shape[:2], -1)
            # Words are normalised over their whole sentence.
            normal = self.inner_norm1(inner.reshape(sentences)).view(words)
            inner = inner + self.drop_path(self.inner_attn(normal, (WORDS, WORDS)))
            inner = inner + self.drop_path(self.inner_mlp(self.inner_norm2(inner.reshape(sentences)).view(words)))
            outer = outer + self.proj_norm2(self.proj(self.proj_norm1(inner.reshape(sentences))))
        outer = outer + self.drop_path(self.outer_attn(self.outer_norm1(outer), grid, mask))
        return inner, outer + self.drop_path(self.outer_mlp(self.outer_norm2(outer)))


class Stage(nn.Module):
    """Blocks of one map size, and the learned bias between its sentences and keys."""

    def __init__(self, blocks: list[Block], heads: int, grid: Grid, reduction: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.grid, self.reduction = grid, reduction
        keys = (grid[0] // reduction) * (grid[1] // reduction)
        self.relative_pos = nn.Parameter(torch.randn(1, heads, grid[0] * grid[1], keys))
        self.grad_checkpointing = False

    def forward(self, inner: Tensor, outer: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        mask = Mask(bias=resize_relative(self.relative_pos, self.grid, grid, self.reduction))
        for block in self.blocks:
            if self.grad_checkpointing and self.training:
                inner, outer = checkpoint(block, inner, outer, grid, mask)
            else:
                inner, outer = block(inner, outer, grid, mask)
        return inner, outer


class Merge(nn.Module):
    """A norm, and a convolution that merges tokens two by two in each direction; words with their neighbours'."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(before)
        self.conv = nn.Sequential(nn.Conv2d(before, after, 3, stride=2, padding=1))

    def sentences(self, outer: Float[Tensor, "B N C"], grid: Grid) -> Float[Tensor, "B N2 C2"]:
        """Merge sentences of a map."""
        return self.conv(self.norm(outer).transpose(1, 2).unflatten(2, grid)).flatten(2).transpose(1, 2)

    def words(self, inner: Float[Tensor, "BN P c"], grid: Grid) -> Float[Tensor, "BN2 P c2"]:
        """Merge the words of four sentences; a map of odd side gets sentences of zeros."""
        x = self.norm(inner).unflatten(0, (-1, *grid)).unflatten(3, (WORDS, WORDS))
        x = F.pad(x, (0, 0, 0, 0, 0, 0, 0, grid[1] % 2, 0, grid[0] % 2))
        x = x.unflatten(1, (-1, 2)).unflatten(3, (-1, 2))
        # Axes now: batch, rows, 2, columns, 2, row of words, column of words, channels. The words of a group of four
        # sentences become one map, as they lie in the image.
        x = x.permute(0, 1, 3, 7, 2, 5, 4, 6).flatten(6, 7).flatten(4, 5).flatten(0, 2)
        return self.conv(x).flatten(2).transpose(1, 2)


class Stem(nn.Module):
    """Convolutions that make words (half the image's side) and sentences (an eighth)."""

    def __init__(self, in_chans: int, outer: int, inner: int) -> None:
        super().__init__()

        def conv(before: int, after: int, stride: int) -> list[nn.Module]:
            return [nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.ReLU()]

        self.common_conv = nn.Sequential(*conv(in_chans, 2 * inner, 2))
        self.inner_convs = nn.Sequential(*conv(2 * inner, inner, 1))
        self.outer_convs = nn.Sequential(
            *conv(2 * inner, 4 * inner, 2), *conv(4 * inner, 8 * inner, 2), *conv(8 * inner, outer, 1)
        )

    def forward(self, x: Float[Tensor, "B ch height width"]) -> tuple[Float[Tensor, "BN P c"], Float[Tensor, "B N C"]]:
        x = self.common_conv(x)
        words = F.unfold(self.inner_convs(x), WORDS, stride=WORDS).transpose(1, 2).flatten(0, 1)
        inner = words.unflatten(1, (-1, WORDS * WORDS)).transpose(1, 2)
        return inner, self.outer_convs(x).flatten(2).transpose(1, 2)


class PyramidTNT(Pyramid):
    """PyramidTNT; image sides must be multiples of 8 pixels, 32 or more.

    Args:
        img_size: size that the position tables are made for; they are resized for others.
        in_chans: channels of an image.
        num_classes: outputs of the classifier, 0 for none.
        global_pool: ``"avg"`` or ``""`` (all tokens).
        depths: blocks in each stage.
        outer_dims: channels of a sentence in each stage.
        inner_dims: channels of a word in each stage.
        outer_heads: heads among sentences in each stage.
        inner_heads: heads among words in each stage.
        drop_rate: dropout before the classifier.
        drop_path_rate: of the last block; it grows linearly from 0.

    Raises:
        InputError: an image size that it cannot take.
    """

    between = ("word_merges", "sentence_merges")

    def __init__(
        self,
        img_size: int | Sequence[int] = 256,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: Pool = "avg",
        depths: Sequence[int] = (2, 8, 4, 2),
        outer_dims: Sequence[int] = (128, 256, 512, 512),
        inner_dims: Sequence[int] = (8, 16, 32, 32),
        outer_heads: Sequence[int] = (4, 8, 16, 16),
        inner_heads: Sequence[int] = (2, 4, 8, 8),
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans, num_classes, global_pool, outer_dims[-1], drop_rate)
        grid = self.grid = grid_of(*to_2tuple(img_size))
        self.patch_embed = Stem(in_chans, outer_dims[0], inner_dims[0])
        self.outer_pos = nn.Parameter(torch.zeros(1, grid[0] * grid[1], outer_dims[0]))
        self.inner_pos = nn.Parameter(torch.zeros(1, WORDS * WORDS, inner_dims[0]))
        stages = len(depths)
        self.word_merges = nn.ModuleList([Merge(inner_dims[i], inner_dims[i + 1]) for i in range(stages - 1)])
        self.sentence_merges = nn.ModuleList([Merge(outer_dims[i], outer_dims[i + 1]) for i in range(stages - 1)])
        paths = path_rates(drop_path_rate, list(depths))
        self.stages = nn.ModuleList()
        for i in range(stages):
            blocks = []
            for j, path in enumerate(paths[i]):
                inner = inner_dims[i] if j == 0 or (j == 1 and depths[i] > 6) else 0
                blocks.append(Block(outer_dims[i], inner, outer_heads[i], inner_heads[i], REDUCTIONS[i], path))
            self.stages.append(Stage(blocks, outer_heads[i], grid, REDUCTIONS[i]))
            grid = halved(grid)
        self.norm = nn.LayerNorm(outer_dims[-1])
        self.feature_info = [
            {"num_chs": dim, "reduction": SIDE * 2**i, "module": f"stages.{i}"} for i, dim in enumerate(outer_dims)
        ]
        trunc_normal_(self.outer_pos, std=0.02)
        trunc_normal_(self.inner_pos, std=0.02)
        self.apply(self._init_weights)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of parameters of more than one dimension that do not decay."""
        return {name for name, _ in self.named_parameters() if name.endswith("_pos")}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that sort parameters into layers, for layer-wise decay of the learning rate."""
        fine = [
            (r"^(?:word|sentence)_merges\.(\d+)", (0,)),
            (r"^stages\.(\d+)\.relative_pos", (0,)),
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^norm", (99999,)),
        ]
        blocks = r"^(?:stages|word_merges|sentence_merges)\.(\d+)" if coarse else fine
        return {"stem": r"^patch_embed|^inner_pos|^outer_pos", "blocks": blocks}

    def run(self, x: Float[Tensor, "B ch height width"], last: int) -> list[tuple[Tensor, Grid]]:
        """Sentences after each stage up to ``last``, and their grids."""
        grid = grid_of(x.shape[2], x.shape[3])
        inner, outer = self.patch_embed(x)
        inner, outer = inner + self.inner_pos, outer + resize_grid(self.outer_pos, self.grid, grid)
        found = []
        for i, stage in enumerate(self.stages[: last + 1]):
            if i > 0:
                inner = cast(Merge, self.word_merges[i - 1]).words(inner, grid)
                outer = cast(Merge, self.sentence_merges[i - 1]).sentences(outer, grid)
                grid = halved(grid)
            inner, outer = stage(inner, outer, grid)
            found.append((outer, grid))
        return found

    def forward_features(self, x: Float[Tensor, "B ch height width"]) -> Float[Tensor, "B N C"]:
        """The last map's sentences after the last norm."""
        return self.norm(self.run(x, len(self.stages))[-1][0])

    def forward_head(self, x: Float[Tensor, "B N C"], pre_logits: bool = False) -> Float[Tensor, "B *out"]:
        """From sentences to logits, or to what the classifier sees."""
        x = self.head_drop(x.mean(1) if self.global_pool else x)
        return x if pre_logits else self.head(x)

    def forward_intermediates(
        self,
        x: Float[Tensor, "B ch height width"],
        indices: Indices = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Outputs of stages, as timm's models give them; ``norm`` applies the last norm to the last stage."""
        if output_fmt not in ("NCHW", "NLC"):
            raise InputError(f"expected output_fmt NCHW or NLC, found {output_fmt!r}: change it")
        taken, last = take(len(self.stages), indices)
        found = self.run(x, last if stop_early else len(self.stages))
        outputs = []
        for index in sorted(taken):
            tokens, grid = found[index]
            tokens = self.norm(tokens) if norm and index == len(self.stages) - 1 else tokens
            outputs.append(tokens.transpose(1, 2).unflatten(2, grid).contiguous() if output_fmt == "NCHW" else tokens)
        if intermediates_only:
            return outputs
        return (self.norm(found[-1][0]) if len(found) == len(self.stages) else found[-1][0]), outputs


def grid_of(height: int, width: int) -> Grid:
    """Rows and columns of sentences in an image.

    Raises:
        InputError: a side is no multiple of 8 pixels, or below 32.
    """
    if height % SIDE or width % SIDE or min(height, width) < SIDE * REDUCTIONS[0]:
        raise InputError(
            f"expected image sides of 32 pixels or more that are multiples of 8, found {height} x {width}: "
            f"resize to {max(32, height - height % SIDE)} x {max(32, width - width % SIDE)}"
        )
    return height // SIDE, width // SIDE


def halved(grid: Grid) -> Grid:
    """The grid after a merge: half of each side, rounded up."""
    return math.ceil(grid[0] / 2), math.ceil(grid[1] / 2)


def resize_relative(
    table: Float[Tensor, "1 H N M"], old: Grid, new: Grid, reduction: int
) -> Float[Tensor, "1 H N2 M2"]:
    """The bias between sentences and keys of one map, for another map."""
    if old == new:
        return table
    heads, queries, keys = table.shape[1:]
    rows = resize_grid(table.transpose(1, 2).reshape(1, queries, -1), old, new)
    columns = rows.reshape(-1, keys).t()[None]
    below, above = ((side[0] // reduction, side[1] // reduction) for side in (old, new))
    return resize_grid(columns, below, above)[0].t().reshape(1, new[0] * new[1], heads, -1).transpose(1, 2)


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> State:
    """The original's weights for ``model``; position tables are resized.

    Raises:
        InputError: the checkpoint is of another family, or its position table of no square grid.
    """
    state = recognise(state_dict, "PyramidTNT")
    if isinstance(model, PyramidTNT) and state["outer_pos"].shape != model.outer_pos.shape:
        old = square(state["outer_pos"].shape[1], "outer_pos")
        state["outer_pos"] = resize_grid(state["outer_pos"], old, model.grid)
        for i, stage in enumerate(model.stages):
            key = f"stages.{i}.relative_pos"
            state[key] = resize_relative(state[key], old, cast(Stage, stage).grid, REDUCTIONS[i])
            old = halved(old)
    return state


def _cfg(size: int) -> dict[str, Any]:
    return {
        "url": "",  # published on a file-sharing site alone: give the file to tsfm_vision.checkpoints.load_weights
        "num_classes": 1000,
        "input_size": (3, size, size),
        "pool_size": None,
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": IMAGENET_INCEPTION_MEAN,
        "std": IMAGENET_INCEPTION_STD,
        "first_conv": "patch_embed.common_conv.0",
        "classifier": "head",
        "license": "apache-2.0",
    }


default_cfgs = generate_default_cfgs(
    {
        "ptnt_ti_patch16_192": _cfg(192),
        "ptnt_s_patch16_256": _cfg(256),
        "ptnt_m_patch16_256": _cfg(256),
        "ptnt_b_patch16_256": _cfg(256),
    }
)


def _create(
    variant: str,
    pretrained: bool,
    kwargs: dict[str, Any],
    depths: Sequence[int],
    first: Sequence[int],
    size: int,
) -> Any:
    """``first``: outer and inner channels, then outer and inner heads of the first stage; later ones are multiples."""
    names = ("outer_dims", "inner_dims", "outer_heads", "inner_heads")
    sizes = {name: tuple(value * factor for factor in (1, 2, 4, 4)) for name, value in zip(names, first, strict=True)}
    features = {"out_indices": kwargs.pop("out_indices", (0, 1, 2, 3)), "feature_cls": "getter"}
    kwargs = {"img_size": size, "depths": depths, **sizes, **kwargs}
    return build_model_with_cfg(
        PyramidTNT, variant, pretrained, pretrained_filter_fn=checkpoint_filter_fn, feature_cfg=features, **kwargs
    )


@register_model
def ptnt_ti_patch16_192(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """PyramidTNT-Ti: 10.6 M parameters."""
    return _create("ptnt_ti_patch16_192", pretrained, kwargs, (2, 6, 3, 2), (80, 5, 2, 1), 192)


@register_model
def ptnt_s_patch16_256(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """PyramidTNT-S: 32.0 M parameters."""
    return _create("ptnt_s_patch16_256", pretrained, kwargs, (2, 8, 4, 2), (128, 8, 4, 2), 256)


@register_model
def ptnt_m_patch16_256(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """PyramidTNT-M: 84.9 M parameters."""
    return _create("ptnt_m_patch16_256", pretrained, kwargs, (2, 8, 6, 2), (192, 12, 4, 2), 256)


@register_model
def ptnt_b_patch16_256(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """PyramidTNT-B: 157.0 M parameters."""
    return _create("ptnt_b_patch16_256", pretrained, kwargs, (2, 10, 6, 2), (256, 16, 4, 2), 256)
