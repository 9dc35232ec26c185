"""BiFormer (Zhu et al., "BiFormer: Vision Transformer with Bi-Level Routing Attention", CVPR 2023).

The layers of attention are in ``backbones.routing``. One model serves the three published implementations: BiFormer
itself, the "STL" form (Swin-T's layout), and the "STL NCHW" form with the newer operator.

Shapes: B batch, C channels, H and W rows and columns of a map, h and w those of the next map.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from timm.layers import DropPath, LayerScale
from timm.models import checkpoint_seq, generate_default_cfgs, register_notrace_module
from torch import Tensor, nn

from tsfm_data.errors import InputError
from tsfm_vision.backbones.base import Backbone, Level, channels_last, path_rates, published, register
from tsfm_vision.backbones.checkpoints import State, recognise
from tsfm_vision.backbones.routing import BiLevelRoutingAttention, ConvMixer, GlobalAttention, KeyPool, KeyPooling

# Heads of the attention over the whole map, whatever its width.
GLOBAL_HEADS = 8


class Mlp(nn.Module):
    """Two linear layers with GELU between, and if asked a depthwise convolution before it."""

    def __init__(self, width: int, hidden: int, conv: bool = False) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden) if conv else None
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        x = self.fc1(x_BHWC)
        if self.dwconv is not None:
            x = self.dwconv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.fc2(self.act(x))


torch.fx.wrap("channels_last")  # one node of a traced graph, as it branches on the device


@register_notrace_module
class Block(nn.Module):
    """A depthwise convolution, attention and a feed-forward part, each added to its input; maps are NCHW outside.

    Args:
        attention: maps ``[B, H, W, C]`` to the same.
        width: channels of the map.
        mlp_ratio: hidden channels of the feed-forward part, as a multiple of ``width``.
        pos_conv: side of the first convolution's kernel, 0 for none.
        layer_scale: initial scale of both branches; 0 or less for no scale.
        pre_norm: normalise before each branch and not after each sum.
        mlp_conv: a depthwise convolution inside the feed-forward part.
        drop_path: rate of dropping a branch.
    """

    def __init__(
        self,
        attention: nn.Module,
        width: int,
        mlp_ratio: int | float,
        pos_conv: int,
        layer_scale: int | float,
        pre_norm: bool,
        mlp_conv: bool,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.pos_embed = nn.Conv2d(width, width, pos_conv, padding=pos_conv // 2, groups=width) if pos_conv else None
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = attention
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, int(mlp_ratio * width), mlp_conv)
        scaled = layer_scale > 0 and pre_norm
        self.ls1 = LayerScale(width, layer_scale) if scaled else nn.Identity()
        self.ls2 = LayerScale(width, layer_scale) if scaled else nn.Identity()
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if self.pos_embed is not None:
            x_BCHW = x_BCHW + self.pos_embed(x_BCHW)
        x = x_BCHW.permute(0, 2, 3, 1)
        if self.pre_norm:
            x = x + self.drop_path(self.ls1(self.attn(self.norm1(x))))
            x = x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))
        else:
            x = self.norm1(x + self.drop_path(self.attn(x)))
            x = self.norm2(x + self.drop_path(self.mlp(x)))
        return x.permute(0, 3, 1, 2)


class Stage(nn.Module):
    """Blocks of one map size."""

    def __init__(self, blocks: list[Block]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.grad_checkpointing = False

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if self.grad_checkpointing and self.training:
            return checkpoint_seq(self.blocks, x_BCHW)
        return self.blocks(x_BCHW)


class BiFormer(Backbone):
    """BiFormer; any image size, maps are padded if regions do not fill them.

    Args:
        in_chans: channels of an image.
        num_classes: outputs of the classifier, 0 for none.
        global_pool: ``"avg"`` or ``""`` (the map).
        img_size: ignored, as every size works; timm's users give it.
        depths: blocks in each stage.
        dims: channels of each stage.
        qk_dims: channels of queries and keys in each stage, by default ``dims``.
        head_dim: channels of a query's head in routed attention.
        mlp_ratios: hidden channels of each stage's feed-forward parts, as multiples of its channels.
        n_win: regions along a side of the map, for all stages or for each.
        topks: regions that a region attends to in each stage; -1: all of the map, -2: the same with a depthwise
            convolution in parallel, 0: convolutions and no attention.
        overlap: 3 x 3 convolutions between stages, as BiFormer has, or patches, as Swin-T (STL) has.
        newer_op: the "NCHW" form's operator: padding after the projection, convolutions of the values.
        side_dwconv: side of the depthwise convolution parallel to attention, 0 for none.
        before_attn_dwconv: side of the depthwise convolution before attention, 0 for none.
        layer_scale_init_value: initial scale of residual branches, 0 or less for no scale.
        kv_downsample_mode: how keys and values of a region are pooled.
        kv_per_wins: keys along a side of a region after adaptive pooling, in each stage.
        kv_downsample_ratios: keys along a side that become one in the other poolings, in each stage.
        param_attention: ``"qkvo"``, or ``"qkv"`` without the linear layer after attention.
        param_routing: compare regions after a learned linear map.
        diff_routing: let gradients flow through the routing weights.
        soft_routing: weight keys and values by their region's routing weight.
        pre_norm: normalise before each branch and not after each sum.
        mlp_dwconv: a depthwise convolution in the feed-forward parts.
        auto_pad: ignored, as maps are always padded; the original's configs give it.
        drop_rate: dropout before the classifier.
        drop_path_rate: of the last block; it grows linearly from 0.

    Raises:
        InputError: sizes that do not fit each other.
    """

    formats = ("NCHW",)
    extractors = ("getter", "hook", "fx")
    between: ClassVar[dict[str, int]] = {"downsample_layers": 1}

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        img_size: int | Sequence[int] = 224,
        depths: Sequence[int] = (2, 2, 8, 2),
        dims: Sequence[int] = (64, 128, 256, 512),
        qk_dims: Sequence[int] | None = None,
        head_dim: int = 32,
        mlp_ratios: Sequence[int | float] = (3, 3, 3, 3),
        n_win: int | Sequence[int] = 7,
        topks: Sequence[int] = (1, 4, 16, -2),
        overlap: bool = True,
        newer_op: bool = False,
        side_dwconv: int = 5,
        before_attn_dwconv: int = 3,
        layer_scale_init_value: int | float = -1,
        kv_downsample_mode: KeyPool = "identity",
        kv_per_wins: Sequence[int] = (-1, -1, -1, -1),
        kv_downsample_ratios: Sequence[int] = (1, 1, 1, 1),
        param_attention: Literal["qkvo", "qkv"] = "qkvo",
        param_routing: bool = False,
        diff_routing: bool = False,
        soft_routing: bool = False,
        pre_norm: bool = True,
        mlp_dwconv: bool = False,
        auto_pad: bool | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans, num_classes, global_pool, dims[-1], drop_rate)
        qk_dims = dims if qk_dims is None else qk_dims
        windows = [n_win] * len(dims) if isinstance(n_win, int) else list(n_win)

        def attention(stage: int) -> nn.Module:
            topk, width = topks[stage], dims[stage]
            if topk == 0:
                return ConvMixer(width)
            if topk < 0:
                if topk < -2:
                    raise InputError(f"expected topks of -2 or more, found {topk}: change topks")
                conv = side_dwconv if topk == -2 or newer_op else 0
                return GlobalAttention(width, GLOBAL_HEADS, conv, newer_op)
            return BiLevelRoutingAttention(
                width,
                qk_dims[stage] // head_dim,
                windows[stage],
                topk,
                qk_dims[stage],
                side_dwconv,
                param_attention == "qkvo",
                param_routing,
                soft_routing,
                diff_routing,
                KeyPooling(kv_downsample_mode, kv_per_wins[stage], kv_downsample_ratios[stage]),
                newer_op,
            )

        pos_conv = before_attn_dwconv if overlap else 0
        paths = path_rates(drop_path_rate, list(depths))
        self.downsample_layers = nn.ModuleList(downsamplers(in_chans, dims, overlap))
        self.stages = nn.ModuleList()
        for i, dim in enumerate(dims):
            block = partial(Block, width=dim, mlp_ratio=mlp_ratios[i], pos_conv=pos_conv, pre_norm=pre_norm)
            block = partial(block, layer_scale=layer_scale_init_value, mlp_conv=mlp_dwconv)
            self.stages.append(Stage([block(attention(i), drop_path=path) for path in paths[i]]))
        self.norm = nn.BatchNorm2d(dims[-1])
        self.feature_info = [
            {"num_chs": dim, "reduction": 4 * 2**i, "module": f"stages.{i}"} for i, dim in enumerate(dims)
        ]
        self.apply(self._init_weights)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that group parameters into layers, for layer-wise learning rate decay."""
        fine = [(r"^downsample_layers\.(\d+)", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None), (r"^norm", (99999,))]
        blocks = r"^(?:stages|downsample_layers)\.(\d+)" if coarse else fine
        return {"stem": r"^downsample_layers\.0", "blocks": blocks}

    def levels(self, x: Tensor) -> Iterator[Level]:
        """The map ``[B, C, h, w]`` of each stage."""
        x = channels_last(x)
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
            yield x, None

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """From the last map to logits ``[B, out]``, or to the classifier's input."""
        x = self.head_drop(x.mean((2, 3)) if self.global_pool else x)
        return x if pre_logits else self.head(x)

    @torch.no_grad()
    def routes(self, x: Float[Tensor, "B ch height width"]) -> dict[str, tuple[Tensor, Tensor]]:
        """Weights and indices ``[B, R, K]`` of the regions that each region attends to, for each routed attention.

        The model stays in its mode: in training, the images update the running statistics of its norms.
        """
        routes: dict[str, tuple[Float[Tensor, "B R K"], Int[Tensor, "B R K"]]] = {}
        hooks = []
        for name, module in self.named_modules():
            if isinstance(module, BiLevelRoutingAttention):

                def keep(_: nn.Module, __: Any, out: tuple[Tensor, Tensor], name: str = name) -> None:
                    routes[name] = out

                hooks.append(module.router.register_forward_hook(keep))
        try:
            self.forward_features(x)
        finally:
            for hook in hooks:
                hook.remove()
        return routes


def downsamplers(in_chans: int, dims: Sequence[int], overlap: bool) -> list[nn.Module]:
    """The layers before each stage: to a quarter of the image's side before the first, halving before the others."""
    if overlap:
        half = dims[0] // 2
        stem = [
            nn.Conv2d(in_chans, half, 3, 2, 1),
            nn.BatchNorm2d(half),
            nn.GELU(),
            nn.Conv2d(half, dims[0], 3, 2, 1),
            nn.BatchNorm2d(dims[0]),
        ]
        between = [nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b)) for a, b in pairwise(dims)]
    else:
        stem = [nn.Conv2d(in_chans, dims[0], 4, 4), nn.BatchNorm2d(dims[0])]
        between = [nn.Sequential(nn.BatchNorm2d(a), nn.Conv2d(a, b, 2, 2)) for a, b in pairwise(dims)]
    return [nn.Sequential(*stem), *between]


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> State:
    """The weights of any of the three originals, renamed for ``model``; pointwise convolutions become linear layers.

    Raises:
        InputError: the checkpoint is of another family.
    """
    state = recognise(state_dict, "BiFormer")
    own = model.state_dict()
    out: State = {}
    for key, value in state.items():
        key = re.sub(r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2.", key)
        key = re.sub(r"\.attn\.(?:qkv\.qkv|qkv_linear)\.", ".attn.qkv.", key)
        key = re.sub(r"\.attn\.(?:wo|output_linear)\.", ".attn.proj.", key)
        key = re.sub(r"\.attn\.([123])\.", lambda match: f".attn.convs.{int(match[1]) - 1}.", key)
        key = re.sub(r"\.mlp\.0\.", ".mlp.fc1.", re.sub(r"\.mlp\.[23]\.", ".mlp.fc2.", key))
        key = key.replace(".mlp.1.dwconv.", ".mlp.dwconv.")
        key = re.sub(r"\.gamma([12])$", r".ls\1.gamma", key)
        if key in own and value.ndim == 4 and own[key].ndim == 2:
            value = value.flatten(1)
        out[key] = value
    return out


# Published on a file-sharing site alone: give the file to tsfm_vision.backbones.load_weights.
NAMES = ("biformer_tiny", "biformer_small", "biformer_base", "biformer_stl", "biformer_stl_nchw")
CFG = published(crop_pct=0.875, pool_size=(7, 7), first_conv="downsample_layers.0.0", license="mit")
default_cfgs = generate_default_cfgs(dict.fromkeys(NAMES, CFG))
WIDE = (96, 192, 384, 768)
STL = {"depths": (2, 2, 6, 2), "dims": WIDE, "mlp_ratios": (4, 4, 4, 4), "overlap": False}
register(
    BiFormer,
    checkpoint_filter_fn,
    (0, 1, 2, 3),
    {
        "biformer_tiny": {},
        "biformer_small": {"depths": (4, 4, 18, 4)},
        "biformer_base": {"depths": (4, 4, 18, 4), "dims": WIDE},
        "biformer_stl": STL,  # in Swin-T's layout
        "biformer_stl_nchw": {"topks": (1, 4, 16, -1), "newer_op": True, **STL},
    },
)
