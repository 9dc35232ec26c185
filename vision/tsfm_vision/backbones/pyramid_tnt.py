"""PyramidTNT (Han et al., "PyramidTNT: Improved Transformer-in-Transformer Baselines with Pyramid Architecture", 2022).

Keys are those of the published weights. Patches ("sentences") of 8 pixels a side, each with 4 x 4 words; between stages
both kinds of tokens are merged two by two in each direction.

Shapes: B batch, N sentences of a map, P words of a sentence, C channels of a sentence, c those of a word, H heads, D
channels of a head, M keys.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, cast

import torch
from timm.data.constants import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.layers import to_2tuple, trunc_normal_
from timm.models import generate_default_cfgs
from timm.models._input import update_model_input_size
from torch import Tensor, nn

from tsfm_data.errors import InputError
from tsfm_vision.backbones.base import Backbone, Level, path_rates, published, register
from tsfm_vision.backbones.checkpoints import State, recognise, resize_grid, source_grid
from tsfm_vision.backbones.pyramid_tnt_layers import WORDS, Block, Grid, Merge, MergeWords, Stage, Stem, resize_relative

torch.fx.wrap("resize_grid")  # one node of a traced graph, as grid_of and halved: they branch on sizes

# Pixels of the image along a side of a sentence.
SIDE = 8
# Sentences along a side that become one key, in each stage.
REDUCTIONS = (4, 2, 1, 1)


class PyramidTNT(Backbone):
    """PyramidTNT; image sides must be multiples of 8 pixels, 32 or more.

    Args:
        img_size: image size of the position tables, which are resized for other sizes.
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
        InputError: an image size that does not fit.
    """

    between: ClassVar[dict[str, int]] = {"word_merges": 0, "sentence_merges": 0}

    def __init__(
        self,
        img_size: int | Sequence[int] = 256,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
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
        self.word_merges = nn.ModuleList([MergeWords(*inner_dims[i : i + 2]) for i in range(stages - 1)])
        self.sentence_merges = nn.ModuleList([Merge(*outer_dims[i : i + 2]) for i in range(stages - 1)])
        paths = path_rates(drop_path_rate, list(depths))
        self.stages = nn.ModuleList()
        for i in range(stages):
            # The first block has words, and the second too if the stage is deep.
            inner = [inner_dims[i]] * (2 if depths[i] > 6 else 1) + [0] * depths[i]
            heads = (outer_heads[i], inner_heads[i])
            blocks = [Block(outer_dims[i], c, *heads, REDUCTIONS[i], p) for c, p in zip(inner, paths[i], strict=False)]
            self.stages.append(Stage(blocks, outer_heads[i], grid, REDUCTIONS[i]))
            grid = halved(grid)
        self.norm = nn.LayerNorm(outer_dims[-1])
        self.feature_info = [
            {"num_chs": dim, "reduction": SIDE * 2**i, "module": f"stages.{i}"} for i, dim in enumerate(outer_dims)
        ]
        trunc_normal_(self.outer_pos, std=0.02)
        trunc_normal_(self.inner_pos, std=0.02)
        self.apply(self._init_weights)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that group parameters into layers, for layer-wise learning rate decay."""
        fine = [
            (r"^(?:word|sentence)_merges\.(\d+)", (0,)),
            (r"^stages\.(\d+)\.relative_pos", (0,)),
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^norm", (99999,)),
        ]
        blocks = r"^(?:stages|word_merges|sentence_merges)\.(\d+)" if coarse else fine
        return {"stem": r"^patch_embed|^inner_pos|^outer_pos", "blocks": blocks}

    def set_input_size(self, img_size: int | Sequence[int]) -> None:
        """Change the model's image size: its position tables are resized once and not in every forward pass."""
        size = to_2tuple(img_size)
        grid, kept = grid_of(*size), self.outer_pos.requires_grad
        table = resize_grid(self.outer_pos, self.grid, grid).detach().clone()
        self.outer_pos, self.grid = nn.Parameter(table, kept), grid
        stage: Any
        for stage in self.stages:
            kept = stage.relative_pos.requires_grad
            table = resize_relative(stage.relative_pos, stage.grid, grid, stage.reduction).detach().clone()
            stage.relative_pos, stage.grid = nn.Parameter(table, kept), grid
            grid = halved(grid)
        update_model_input_size(self, size)

    def levels(self, x: Tensor) -> Iterator[Level]:
        """Sentences ``[B, N, C]`` after each stage, and their grids."""
        grid = grid_of(x.shape[2], x.shape[3])
        inner, outer = self.patch_embed(x)
        inner, outer = inner + self.inner_pos, outer + resize_grid(self.outer_pos, self.grid, grid)
        for index, stage in enumerate(self.stages):
            if index > 0:
                inner, outer = self.word_merges[index - 1](inner, grid), self.sentence_merges[index - 1](outer, grid)
                grid = halved(grid)
            inner, outer = stage(inner, outer, grid)
            yield outer, grid

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """From sentences to logits ``[B, out]``, or to the classifier's input."""
        x = self.head_drop(x.mean(1) if self.global_pool else x)
        return x if pre_logits else self.head(x)


@torch.fx.wrap
def grid_of(height: int, width: int, side: int = SIDE, least: int = SIDE * REDUCTIONS[0]) -> Grid:
    """Rows and columns of sentences in an image.

    Args:
        height: rows of the image.
        width: its columns.
        side: pixels along a side of a sentence.
        least: pixels along a side of the image.

    Raises:
        InputError: a side of the image is no multiple of 8 pixels, or below 32.
    """
    if height % side != 0 or width % side != 0 or min(height, width) < least:
        nearest = (max(least, height - height % side), max(least, width - width % side))
        raise InputError(
            f"expected image sides of {least} pixels or more that are multiples of {side}, found {height} x {width}: "
            f"resize to {nearest[0]} x {nearest[1]}"
        )
    return height // side, width // side


@torch.fx.wrap
def halved(grid: Grid) -> Grid:
    """The grid after a merge: half of each side, rounded up."""
    return (grid[0] + 1) // 2, (grid[1] + 1) // 2


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> State:
    """The original's weights for ``model``; position tables are resized.

    Raises:
        InputError: the checkpoint is of another family, or its position table of no square grid.
    """
    state = recognise(state_dict, "PyramidTNT")
    if isinstance(model, PyramidTNT) and state["outer_pos"].shape != model.outer_pos.shape:
        old = source_grid(model, state["outer_pos"].shape[1], "outer_pos", (SIDE, SIDE))
        state["outer_pos"] = resize_grid(state["outer_pos"], old, model.grid)
        for i, stage in enumerate(model.stages):
            key = f"stages.{i}.relative_pos"
            state[key] = resize_relative(state[key], old, cast(Stage, stage).grid, REDUCTIONS[i])
            old = halved(old)
    return state


def sizes(depths: Sequence[int], first: Sequence[int], size: int) -> dict[str, Any]:
    """Of a variant; ``first``: outer and inner channels, then heads, of the first stage; later ones are multiples."""
    names = ("outer_dims", "inner_dims", "outer_heads", "inner_heads")
    scaled = {name: tuple(value * factor for factor in (1, 2, 4, 4)) for name, value in zip(names, first, strict=True)}
    return {"img_size": size, "depths": depths, **scaled}


VARIANTS = {
    "ptnt_ti_patch16_192": sizes((2, 6, 3, 2), (80, 5, 2, 1), 192),
    "ptnt_s_patch16_256": sizes((2, 8, 4, 2), (128, 8, 4, 2), 256),
    "ptnt_m_patch16_256": sizes((2, 8, 6, 2), (192, 12, 4, 2), 256),
    "ptnt_b_patch16_256": sizes((2, 10, 6, 2), (256, 16, 4, 2), 256),
}
# Published on a file-sharing site alone: give the file to tsfm_vision.backbones.load_weights.
weights = partial(published, mean=IMAGENET_INCEPTION_MEAN, std=IMAGENET_INCEPTION_STD, license="apache-2.0")
default_cfgs = generate_default_cfgs(
    {name: weights(size=own["img_size"], first_conv="patch_embed.common_conv.0") for name, own in VARIANTS.items()}
)
register(PyramidTNT, checkpoint_filter_fn, (0, 1, 2, 3), VARIANTS)
