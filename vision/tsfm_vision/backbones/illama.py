"""iLLaMA (Wang et al., "Adapting LLaMA Decoder to Vision Transformer", 2024): a plain vision transformer with LLaMA's
parts, a class token that comes last, and a mask after the softmax (``tsfm_vision.backbones.soft_mask``).

Written from a description of the published models; the keys are those of the published weights.

Shapes: B batch, N tokens (patches in raster order, then the class token), C channels of a token, H heads, D channels
of a head, W channels inside the feed-forward part.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from timm.layers import DropPath, PatchEmbed, to_2tuple, trunc_normal_
from timm.models import checkpoint, generate_default_cfgs, register_notrace_module
from torch import Tensor, nn

from tsfm.nn import layers, rotary_angles
from tsfm_data.errors import InputError
from tsfm_vision.backbones import cpu
from tsfm_vision.backbones.base import Backbone, Level, Positioned, path_rates, published, register
from tsfm_vision.backbones.checkpoints import State, recognise
from tsfm_vision.backbones.soft_mask import soft_masked

RELEASE = "https://huggingface.co/techmonsterwang/iLLaMA/resolve/main/"
# Hidden channels of the feed-forward part are rounded up to a multiple of this.
MULTIPLE = 256


@torch.fx.wrap
def rotary_table(tokens: int, channels: int, like: Tensor) -> Tensor:
    """Cosine and sine of each token's rotation, for each pair of neighbouring channels, ``[2, N, D / 2]``.

    Positions are counted from 0 in raster order.
    """
    angle_NR = rotary_angles(torch.arange(tokens, device=like.device), channels)
    return torch.stack([angle_NR.cos(), angle_NR.sin()])


class Attention(nn.Module):
    """Rotary self-attention under the soft mask.

    Args:
        width: channels C of a token.
        heads: number of heads.
        qkv_bias: whether the projection to queries, keys and values has a bias.
    """

    def __init__(self, width: int, heads: int, qkv_bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BNC: Tensor, turns_2NR: Tensor, rate: float) -> Tensor:
        qkv_BN3HD = self.qkv(x_BNC).unflatten(2, (3, self.heads, -1))
        return self.proj(soft_masked(qkv_BN3HD, turns_2NR, rate))


class SwiGLU(layers.SwiGLU):
    """The shared layer with the published names: ``fc2(silu(fc1 x) * fc3 x)``."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(width, hidden, ("fc1", "fc3"))

    def apply_gate(self, gate: Tensor, value: Tensor) -> Tensor:
        """On a CPU by one operation that keeps less for backward."""
        return (cpu.gated_silu if cpu.applies(gate, low=True) else cpu.plain_gated_silu)(gate, value)


@register_notrace_module
class RMSNorm(layers.RMSNorm):
    """The shared layer; on a CPU by our operation, which keeps less for backward than PyTorch's."""

    def forward(self, x: Tensor) -> Tensor:
        norm: Callable[..., Tensor] = cpu.rms_norm if cpu.applies(x, low=True) else cpu.plain_rms_norm
        return norm(x, self.weight, self.eps)


@register_notrace_module
class Block(nn.Module):
    """A pre-norm block: attention, then the feed-forward part, each added to its input."""

    def __init__(self, width: int, heads: int, hidden: int, qkv_bias: bool, drop_path: float) -> None:
        super().__init__()
        self.norm1 = RMSNorm(width, eps=1e-6)
        self.attn = Attention(width, heads, qkv_bias)
        self.norm2 = RMSNorm(width, eps=1e-6)
        self.mlp = SwiGLU(width, hidden)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x_BNC: Tensor, turns_2NR: Tensor, rate: float) -> Tensor:
        x_BNC = x_BNC + self.drop_path(self.attn(self.norm1(x_BNC), turns_2NR, rate))
        return x_BNC + self.drop_path(self.mlp(self.norm2(x_BNC)))


class ILlama(Positioned, Backbone):
    """iLLaMA, for any image of at least one patch; pixels that fill no patch at the right and lower edge are ignored.

    Args:
        img_size: image size of the position table, which is resized for other sizes.
        patch_size: side of a patch in pixels.
        in_chans: channels of an image.
        num_classes: outputs of the classifier, 0 for none.
        global_pool: ``"token"`` (the class token), ``"avg"`` (mean of the patches) or ``""`` (all tokens).
        embed_dim: channels of a token.
        depth: blocks.
        num_heads: attention heads; channels of a head must be even.
        mlp_ratio: before LLaMA's factor 2/3 and rounding up to a multiple of 256.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        drop_rate: dropout before the classifier.
        pos_drop_rate: dropout after the position table.
        drop_path_rate: of the last block; it grows linearly from 0.

    Attributes:
        soft_mask_rate: factor on attention weights of later tokens, 0 to 1 (``soft_mask``); 0 for trained models.

    Raises:
        InputError: ``embed_dim`` and ``num_heads`` do not fit, or an unknown ``global_pool``.
    """

    pools = ("token", "avg", "")
    patches, prefix = slice(None, -1), slice(-1, None)

    def __init__(
        self,
        img_size: int | Sequence[int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        embed_dim: int = 192,
        depth: int = 12,
        num_heads: int = 3,
        mlp_ratio: int | float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans, num_classes, global_pool, embed_dim, drop_rate)
        if embed_dim % (2 * num_heads):
            raise InputError(
                f"expected an even number of channels per head, found embed_dim {embed_dim} and num_heads {num_heads}"
            )
        self.head_channels = embed_dim // num_heads
        self.soft_mask_rate = 0.0
        self.grad_checkpointing = False
        # `grid` checks sizes, with a message that says what to do.
        self.patch_embed = PatchEmbed(to_2tuple(img_size), patch_size, in_chans, embed_dim, strict_img_size=False)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.patch_embed.num_patches + 1, embed_dim))
        self.pos_drop = nn.Dropout(pos_drop_rate)
        hidden = math.ceil(int(2 * int(mlp_ratio * embed_dim) / 3) / MULTIPLE) * MULTIPLE
        paths = path_rates(drop_path_rate, [depth])[0]
        self.blocks = nn.ModuleList([Block(embed_dim, num_heads, hidden, qkv_bias, path) for path in paths])
        self.norm = RMSNorm(embed_dim, eps=1e-6)
        self.feature_info = [
            {"module": f"blocks.{i}", "num_chs": embed_dim, "reduction": patch_size} for i in range(depth)
        ]
        trunc_normal_(self.pos_embed, std=0.02)
        trunc_normal_(self.cls_token, std=0.02)
        self.apply(self._init_weights)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that group parameters into layers, for layer-wise learning rate decay."""
        return {
            "stem": r"^cls_token|^pos_embed|^patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    def embed(self, x: Tensor) -> Tensor:
        """Tokens ``[B, N, C]`` of an image, before the first block."""
        grid = self.grid(x.shape[2], x.shape[3])
        side = self.patch_embed.patch_size[0]
        patches = self.patch_embed(x[..., : grid[0] * side, : grid[1] * side])
        tokens = torch.cat([patches, self.cls_token.expand(x.shape[0], -1, -1)], 1)
        return self.pos_drop(tokens + self.positions(grid))

    def levels(self, x: Tensor) -> Iterator[Level]:
        """All tokens ``[B, N, C]`` after each block, class token last."""
        grid, x = self.grid(x.shape[2], x.shape[3]), self.embed(x)
        turns = rotary_table(x.shape[1], self.head_channels, x)
        for block in self.blocks:
            arguments = (x, turns, self.soft_mask_rate)
            x = checkpoint(block, *arguments) if self.grad_checkpointing and self.training else block(*arguments)
            yield x, grid

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """From tokens to logits ``[B, out]``, or to the classifier's input."""
        if len(self.global_pool) > 0:
            x = x[:, -1] if self.global_pool == "token" else x[:, :-1].mean(1)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> State:
    """The original's weights for ``model``; the position table is resized.

    Raises:
        InputError: the checkpoint is of another family, or its position table of no square grid.
    """
    state = recognise(state_dict, "iLLaMA")
    if isinstance(model, ILlama):
        model.fit_positions(state)
    return state


CROPS = {224: {"crop_pct": 0.875, "crop_mode": "center"}, 384: {"crop_pct": 1.0, "crop_mode": "squash"}}
WEIGHTS = {
    "illama_tiny.in1k": ("illama-tiny-in1k-75.0.pth", 224),
    "illama_small.in1k": ("illama-small-in1k-79.9.pth", 224),
    "illama_base.in21k_ft_in1k": ("illama-base-in21kin1k-224-83.6.pth", 224),
    "illama_base.in1k": ("illama-base-in1k-81.6.pth", 224),
    "illama_base_384.in21k_ft_in1k": ("illama-base-in21kin1k-384-85.0.pth", 384),
    "illama_base_384.in1k": ("illama-base-in1k-384-83.0.pth", 384),
    "illama_large.in21k_ft_in1k": ("illama-large-in21kin1k-224-84.8.pth", 224),
    "illama_large_384.in21k_ft_in1k": ("illama-large-in21kin1k-384-86.0.pth", 384),
}
default_cfgs = generate_default_cfgs(
    {
        name: published(RELEASE + file, size, first_conv="patch_embed.proj", **CROPS[size])
        for name, (file, size) in WEIGHTS.items()
    }
)
BASE = {"embed_dim": 768, "num_heads": 12}
LARGE = {"embed_dim": 1024, "num_heads": 16, "depth": 24}
register(
    ILlama,
    checkpoint_filter_fn,
    3,
    {
        "illama_tiny": {},
        "illama_small": {"embed_dim": 384, "num_heads": 6},
        "illama_base": BASE,
        "illama_base_384": {"img_size": 384, **BASE},
        "illama_large": LARGE,
        "illama_large_384": {"img_size": 384, **LARGE},
    },
)
