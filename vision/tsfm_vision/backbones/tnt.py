"""TNT (Han et al., "Transformer in Transformer", NeurIPS 2021), on timm's TNT with its attention by ``tsfm.attention``.

Beyond timm's: any image size (the patches' position table is resized), the inner feed-forward part follows
``mlp_ratio`` as in the original, and the original's squeeze-and-excite branch.

Shapes: B batch, N patches, M = N + 1 tokens with the class token first, P pixels (words) of a patch, C channels of a
token, H heads, D channels of a head.
"""

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from timm.data.constants import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.layers import Mlp
from timm.models import checkpoint, generate_default_cfgs, register_notrace_module
from timm.models import tnt as timm_tnt
from torch import Tensor, nn

from tsfm_vision.backbones.base import Level, Positioned, mix, published, register
from tsfm_vision.backbones.checkpoints import State, recognise

RELEASE = "https://github.com/huawei-noah/Efficient-AI-Backbones/releases/download/tnt/"
RENAMED = {
    "outer_pos": "patch_pos",
    "inner_pos": "pixel_pos",
    "patch_embed": "pixel_embed",
    "proj_norm1": "norm1_proj",
    "proj_norm2": "norm2_proj",
    "inner_norm1": "norm_in",
    "inner_attn": "attn_in",
    "inner_norm2": "norm_mlp_in",
    "inner_mlp": "mlp_in",
    "outer_norm1": "norm_out",
    "outer_attn": "attn_out",
    "outer_norm2": "norm_mlp",
    "outer_mlp": "mlp",
    "se_layer.fc": "mlp.gate",
}


@register_notrace_module
class Attention(timm_tnt.Attention):
    """timm's attention of TNT, its softmax replaced by ``tsfm.attention``; dropout works in training too."""

    def forward(self, x_BNC: Tensor) -> Tensor:
        q_BNHD, k_BNHD = self.qk(x_BNC).unflatten(2, (2, self.num_heads, -1)).unbind(2)
        v_BNHD = self.v(x_BNC).unflatten(2, (self.num_heads, -1))
        dropout = self.attn_drop.p if self.training else 0.0
        return self.proj_drop(self.proj(mix(q_BNHD, k_BNHD, v_BNHD, self.scale, dropout).flatten(2)))


class GatedMlp(Mlp):
    """A feed-forward part with a squeeze-and-excite gate, which the mean token computes, added to its output."""

    def __init__(self, dim: int, hidden: int, drop: float = 0.0) -> None:
        super().__init__(dim, hidden, drop=drop)
        self.gate = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, dim // 4), nn.ReLU(), nn.Linear(dim // 4, dim), nn.Tanh()
        )

    def forward(self, x_BNC: Tensor) -> Tensor:
        x_BNC = self.drop2(self.fc2(self.drop1(self.act(self.fc1(x_BNC)))))
        return x_BNC + self.gate(x_BNC.mean(1, keepdim=True)) * x_BNC


class TNT(Positioned, timm_tnt.TNT):  # type: ignore[misc]
    """Transformer in Transformer.

    Args:
        mlp_ratio: hidden channels of both feed-forward parts, as a multiple of their tokens' channels.
        gated: the original's squeeze-and-excite branch on the outer feed-forward part (no published model has it).
        kwargs: everything else that timm's TNT takes: ``img_size``, ``patch_size``, ``embed_dim``, ``inner_dim``,
            ``depth``, ``num_heads_inner``, ``num_heads_outer``, ``global_pool``, ``drop_path_rate`` ...
    """

    table, embedding = "patch_pos", "pixel_embed"
    patches, prefix = slice(1, None), slice(1)

    def __init__(self, mlp_ratio: int | float = 4.0, gated: bool = False, **kwargs: Any) -> None:
        super().__init__(mlp_ratio=mlp_ratio, **kwargs)
        qkv_bias, drop = kwargs.get("qkv_bias", False), kwargs.get("proj_drop_rate", 0.0)
        dropouts = {"attn_drop": kwargs.get("attn_drop_rate", 0.0), "proj_drop": drop}
        inner, outer = self.pixel_embed.in_dim, self.embed_dim
        block: Any
        for block in self.blocks:
            block.attn_in = Attention(inner, inner, block.attn_in.num_heads, qkv_bias, **dropouts)
            block.attn_out = Attention(outer, outer, block.attn_out.num_heads, qkv_bias, **dropouts)
            if mlp_ratio != 4:
                block.mlp_in = Mlp(inner, int(inner * mlp_ratio), drop=drop)
            if gated:
                block.mlp = GatedMlp(outer, int(outer * mlp_ratio), drop=drop)
        self.blocks.apply(self._init_weights)

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Inner tokens ``[B * N, P, c]`` and outer ones ``[B, M, C]`` of an image, before the first block."""
        batch, channels = x.shape[0], x.shape[1]
        grid = self.grid(x.shape[2], x.shape[3])
        if self.pixel_embed.legacy:
            side = self.pixel_embed.new_patch_size
            words = self.pixel_embed.unfold(self.pixel_embed.proj(x)).transpose(1, 2).flatten(0, 1)
            pixels = words.unflatten(1, (self.pixel_embed.in_dim, side[0], side[1]))
        else:
            size = self.pixel_embed.patch_size
            patches = self.pixel_embed.unfold(x).transpose(1, 2).flatten(0, 1)
            words = patches.unflatten(1, (channels, size[0], size[1]))  # type: ignore[index]
            pixels = self.pixel_embed.proj(words)
        inner = (pixels + self.pixel_pos).flatten(2).transpose(1, 2)
        outer = self.norm2_proj(self.proj(self.norm1_proj(inner.reshape(batch, grid[0] * grid[1], -1))))
        outer = torch.cat((self.cls_token.expand(batch, -1, -1), outer), dim=1)
        return inner, self.pos_drop(outer + self.positions(grid))

    def levels(self, x: Tensor) -> Iterator[Level]:
        """All outer tokens ``[B, M, C]`` after each block, class token first."""
        grid = self.grid(x.shape[2], x.shape[3])
        inner, outer = self.embed(x)
        for block in self.blocks:
            inner, outer = checkpoint(block, inner, outer) if self.grad_checkpointing else block(inner, outer)
            yield outer, grid


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> State:
    """Weights of timm or of the original, renamed for ``model``; the position table of the patches is resized.

    Raises:
        InputError: the checkpoint is of another family, or its position table of no square grid.
    """
    state = recognise(state_dict, "TNT")
    state.pop("outer_tokens", None)  # frozen and never used
    if "patch_pos" not in state:
        pattern = re.compile("|".join(sorted(map(re.escape, RENAMED), key=len, reverse=True)))
        state = {pattern.sub(lambda match: RENAMED[match[0]], key): value for key, value in state.items()}
    own = model.state_dict()
    words = state["pixel_pos"]
    if words.ndim == 3 and own["pixel_pos"].ndim == 4:
        state["pixel_pos"] = words.transpose(1, 2).reshape(own["pixel_pos"].shape)
    if isinstance(model, TNT):
        model.fit_positions(state)
    return state


weights = partial(
    published,
    mean=IMAGENET_INCEPTION_MEAN,
    std=IMAGENET_INCEPTION_STD,
    first_conv="pixel_embed.proj",
    license="apache-2.0",
)
default_cfgs = generate_default_cfgs(
    {
        "tnt_ti_patch16_224": weights(),  # none were published
        "tsfm_tnt_s_patch16_224.in1k": weights(RELEASE + "tnt_s_81.5.pth.tar"),
        "tsfm_tnt_b_patch16_224.in1k": weights(RELEASE + "tnt_b_82.9.pth.tar"),
        "tsfm_tnt_s_legacy_patch16_224.in1k": weights(hf_hub_id="timm/tnt_s_legacy_patch16_224.in1k"),
    }
)
SMALL = {"depth": 12, "embed_dim": 384, "inner_dim": 24, "num_heads_outer": 6}
register(
    TNT,
    checkpoint_filter_fn,
    3,
    {
        "tnt_ti_patch16_224": {
            "depth": 12,
            "embed_dim": 192,
            "inner_dim": 12,
            "num_heads_inner": 2,
            "num_heads_outer": 3,
        },
        "tsfm_tnt_s_patch16_224": SMALL,
        "tsfm_tnt_b_patch16_224": {"depth": 12, "embed_dim": 640, "inner_dim": 40, "num_heads_outer": 10},
        "tsfm_tnt_s_legacy_patch16_224": {"legacy": True, **SMALL},  # timm's older one, which convolves before it cuts
    },
)
