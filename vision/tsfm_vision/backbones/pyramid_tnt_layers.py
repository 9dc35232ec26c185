"""Layers of PyramidTNT (``tsfm_vision.backbones.pyramid_tnt``): sentences, their words, and how both are merged.

Shapes: B batch, N sentences of a map, P words of a sentence, C channels of a sentence, c those of a word, H heads, D
channels of a head, M keys.
"""

import torch
from timm.layers import DropPath, Mlp
from timm.models import checkpoint, register_notrace_module
from torch import Tensor, nn
from torch.nn import functional as F

from tsfm_vision.backbones.base import mix
from tsfm_vision.backbones.checkpoints import resize_grid

Grid = tuple[int, int]
# Words along a side of a sentence.
WORDS = 4


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

    def forward(self, x_BNC: Tensor, grid: Grid, bias: Tensor | None = None) -> Tensor:
        keys_BMC = x_BNC
        if self.pool is not None:
            pooled = self.pool(x_BNC.transpose(1, 2).unflatten(2, grid))
            keys_BMC = self.norm(self.linear(pooled.flatten(2).transpose(1, 2)))
        q_BNHD = self.q(x_BNC).unflatten(2, (self.heads, -1))
        k_BMHD, v_BMHD = self.kv(keys_BMC).unflatten(2, (2, self.heads, -1)).unbind(2)
        return self.proj(mix(q_BNHD, k_BMHD, v_BMHD, bias=bias).flatten(2))


class Block(nn.Module):
    """Attention and a feed-forward part for sentences; in some blocks, for their words before that.

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
        self.has_inner, self.side = inner > 0, WORDS
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

    def forward(self, inner: Tensor, outer: Tensor, grid: Grid, bias: Tensor) -> tuple[Tensor, Tensor]:
        if self.has_inner:
            words, sentences = inner.shape, (outer.shape[0], outer.shape[1], inner.shape[1] * inner.shape[2])
            # Words are normalised over their whole sentence.
            normal = self.inner_norm1(inner.reshape(sentences)).view(words)
            inner = inner + self.drop_path(self.inner_attn(normal, (self.side, self.side)))
            inner = inner + self.drop_path(self.inner_mlp(self.inner_norm2(inner.reshape(sentences)).view(words)))
            outer = outer + self.proj_norm2(self.proj(self.proj_norm1(inner.reshape(sentences))))
        outer = outer + self.drop_path(self.outer_attn(self.outer_norm1(outer), grid, bias))
        return inner, outer + self.drop_path(self.outer_mlp(self.outer_norm2(outer)))


@register_notrace_module
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
        bias = resize_relative(self.relative_pos, self.grid, grid, self.reduction)
        for block in self.blocks:
            if self.grad_checkpointing and self.training:
                inner, outer = checkpoint(block, inner, outer, grid, bias)
            else:
                inner, outer = block(inner, outer, grid, bias)
        return inner, outer


class Merge(nn.Module):
    """A norm, and a convolution that halves the sentences of a map in each direction."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.side = WORDS
        self.norm = nn.LayerNorm(before)
        self.conv = nn.Sequential(nn.Conv2d(before, after, 3, stride=2, padding=1))

    def forward(self, outer: Tensor, grid: Grid) -> Tensor:
        return self.conv(self.norm(outer).transpose(1, 2).unflatten(2, grid)).flatten(2).transpose(1, 2)


@register_notrace_module
class MergeWords(Merge):
    """The same for the words of four sentences at a time; a map of odd side gets sentences of zeros."""

    def forward(self, inner: Tensor, grid: Grid) -> Tensor:
        x = self.norm(inner).unflatten(0, (-1, grid[0], grid[1])).unflatten(3, (self.side, self.side))
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

        self.side = WORDS
        self.common_conv = nn.Sequential(*conv(in_chans, 2 * inner, 2))
        self.inner_convs = nn.Sequential(*conv(2 * inner, inner, 1))
        self.outer_convs = nn.Sequential(
            *conv(2 * inner, 4 * inner, 2), *conv(4 * inner, 8 * inner, 2), *conv(8 * inner, outer, 1)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.common_conv(x)
        side = self.side
        words = F.unfold(self.inner_convs(x), side, stride=side).transpose(1, 2).flatten(0, 1)
        inner = words.unflatten(1, (-1, side * side)).transpose(1, 2)
        return inner, self.outer_convs(x).flatten(2).transpose(1, 2)


def resize_relative(table: Tensor, old: Grid, new: Grid, reduction: int) -> Tensor:
    """The bias ``[1, H, N, M]`` between sentences and keys of one map, for another map."""
    if old == new:
        return table
    heads, queries, keys = table.shape[1], table.shape[2], table.shape[3]
    rows = resize_grid(table.transpose(1, 2).reshape(1, queries, -1), old, new)
    columns = rows.reshape(-1, keys).t()[None]
    below, above = (old[0] // reduction, old[1] // reduction), (new[0] // reduction, new[1] // reduction)
    return resize_grid(columns, below, above)[0].t().reshape(1, new[0] * new[1], heads, -1).transpose(1, 2)
