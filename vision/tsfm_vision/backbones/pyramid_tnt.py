"""PyramidTNT (Han et al., "PyramidTNT: Improved Transformer-in-Transformer Baselines with Pyramid Architecture", 2022).

Keys are those of the published weights. Patches ("sentences") of 8 pixels a side, each with 4 x 4 words; between stages
both kinds of tokens are merged two by two in each direction.

Shapes: B batch, N sentences of a map, P words of a sentence, C channels of a sentence, c those of a word, H heads, D
channels of a head, M keys.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from timm.data.constants import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.layers import to_2tuple, trunc_normal_
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from tsfm_data.errors import InputError
from tsfm_vision.backbones.base import Indices, Pyramid, build, path_rates, published, take
from tsfm_vision.backbones.checkpoints import State, recognise, resize_grid, source_grid
from tsfm_vision.backbones.pyramid_tnt_layers import WORDS, Block, Grid, Merge, MergeWords, Stage, Stem, resize_relative

torch.fx.wrap("resize_grid")  # one node of a traced graph, as grid_of and halved: they branch on sizes

# Pixels of the image along a side of a sentence.
SIDE = 8
# Sentences along a side that become one key, in each stage.
REDUCTIONS = (4, 2, 1, 1)


class PyramidTNT(Pyramid):
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

    between = ("word_merges", "sentence_merges")

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

    def no_weight_decay(self) -> set[str]:
        """Names of matrices and tables without weight decay."""
        return {name for name, _ in self.named_parameters() if name.endswith("_pos")}

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

    def run(self, x: Tensor, last: int) -> list[tuple[Tensor, Grid]]:
        """Sentences ``[B, N, C]`` after each stage up to ``last``, and their grids."""
        grid = grid_of(x.shape[2], x.shape[3])
        inner, outer = self.patch_embed(x)
        inner, outer = inner + self.inner_pos, outer + resize_grid(self.outer_pos, self.grid, grid)
        outputs: list[tuple[Tensor, Grid]] = []
        for stage, words, sentences in zip(self.stages, self.word_merges, self.sentence_merges):  # noqa: B905
            if len(outputs) <= last:
                inner, outer = stage(inner, outer, grid)
                outputs.append((outer, grid))
            if len(outputs) <= last:
                inner, outer = words(inner, grid), sentences(outer, grid)
                grid = halved(grid)
        if len(outputs) <= last:
            inner, outer = self.stages[-1](inner, outer, grid)
            outputs.append((outer, grid))
        return outputs

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map's sentences ``[B, N, C]`` after the last norm."""
        return self.norm(self.run(x, len(self.stages))[-1][0])

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """From sentences to logits ``[B, out]``, or to the classifier's input."""
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
        reached = self.run(x, last if stop_early else len(self.stages))
        outputs = []
        for index in sorted(taken):
            tokens, grid = reached[index]
            tokens = self.norm(tokens) if norm and index == len(self.stages) - 1 else tokens
            outputs.append(tokens.transpose(1, 2).unflatten(2, grid).contiguous() if output_fmt == "NCHW" else tokens)
        if intermediates_only:
            return outputs
        return (self.norm(reached[-1][0]) if len(reached) == len(self.stages) else reached[-1][0]), outputs


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


def _cfg(size: int) -> dict[str, Any]:
    # Published on a file-sharing site alone: give the file to tsfm_vision.backbones.load_weights.
    colours = {"mean": IMAGENET_INCEPTION_MEAN, "std": IMAGENET_INCEPTION_STD}
    names = {"first_conv": "patch_embed.common_conv.0", "license": "apache-2.0"}
    return published(input_size=(3, size, size), **colours, **names)


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
    kwargs = {"img_size": size, "depths": depths, **sizes, **kwargs}
    return build(PyramidTNT, variant, pretrained, kwargs, checkpoint_filter_fn, (0, 1, 2, 3))


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
