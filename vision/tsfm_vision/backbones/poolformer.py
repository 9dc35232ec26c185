"""PoolFormer and the other mixers of MetaFormer (Yu et al., "MetaFormer Is Actually What You Need for Vision", CVPR
2022), on timm's MetaFormer.

timm pools before it normalises in the head; the original, and this one, normalises first. ``norm_first=False`` gives
timm's head; the keys are the same.

Shapes: B batch, C channels, H and W rows and columns of a map, N = H * W tokens, D channels of a head, K heads.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
from timm.layers import GroupNorm1, LayerNorm2d, Mlp, to_2tuple
from timm.models import checkpoint, generate_default_cfgs, register_notrace_module
from timm.models.metaformer import Downsampling, MetaFormer, Pooling
from torch import Tensor, nn

from tsfm_data.errors import InputError
from tsfm_vision.backbones.base import Level, Levels, channels_last, mix, published, register
from tsfm_vision.backbones.checkpoints import State, recognise, resize_map

Mixer = Literal["identity", "pool", "attention", "fc"]
POOL: tuple[Mixer, ...] = ("pool", "pool", "pool", "pool")
RELEASE = "https://github.com/sail-sg/poolformer/releases/download/v1.0/"


torch.fx.wrap("channels_last")  # one node of a traced graph, as it branches on the device


@register_notrace_module
class AttentionMixer(nn.Module):
    """Self-attention between all positions of a map, by ``tsfm.attention.dispatch``.

    Args:
        dim: channels C, a multiple of ``head_dim`` (fewer: one head of all channels).
        head_dim: channels of a head.
    """

    def __init__(self, dim: int, head_dim: int = 32) -> None:
        super().__init__()
        self.heads = max(1, dim // head_dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        height = x_BCHW.shape[2]
        q_BNKD, k_BNKD, v_BNKD = self.qkv(x_BCHW.flatten(2).transpose(1, 2)).unflatten(2, (3, self.heads, -1)).unbind(2)
        mixed_BNC = self.proj(mix(q_BNKD, k_BNKD, v_BNKD).flatten(2))
        return mixed_BNC.transpose(1, 2).unflatten(2, (height, -1))


@register_notrace_module
class SpatialFc(nn.Module):
    """A learned linear layer over the positions of a map, the same for every channel.

    Args:
        size: rows and columns of the only map that it takes.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        self.fc = nn.Linear(size[0] * size[1], size[0] * size[1], bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if (x_BCHW.shape[2], x_BCHW.shape[3]) != self.size:
            raise InputError(
                f"expected an image that gives a map of {self.size[0]} x {self.size[1]} in a stage with the mixer "
                f"'fc', found one of {x_BCHW.shape[2]} x {x_BCHW.shape[3]}: create the model with the "
                "img_size of the images"
            )
        return self.fc(x_BCHW.flatten(2)).view_as(x_BCHW)


@register_notrace_module
class PositionedDownsampling(Downsampling):
    """timm's downsampling, and a learned position map added to its result; resized for other maps."""

    def __init__(self, in_channels: int, out_channels: int, size: tuple[int, int]) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, stride=2, padding=1)
        self.pos_embed = nn.Parameter(torch.zeros(1, out_channels, *size))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.norm(x))
        return x + resize_map(self.pos_embed, (x.shape[2], x.shape[3]))


class PoolFormer(Levels, MetaFormer):  # type: ignore[misc]
    """PoolFormer, or MetaFormer with other token mixers.

    Args:
        mixers: the token mixer of each stage.
        positioned: stages that begin with a learned position map.
        mlp_ratios: hidden channels of a stage's feed-forward part, as a multiple of its channels.
        layer_scale: initial scale of a residual branch; ``None`` or 0 for none (timm does not pass ``None`` on).
        channel_norm: normalise over channels alone (LayerNorm) and not over the whole map (GroupNorm of one group).
        norm_first: the head normalises and then pools, as the original does; ``False``: as timm does.
        stage_norms: a norm for every stage's output, which ``forward_intermediates(norm=True)`` and ``features_only``
            apply: the original's form for dense tasks, without a head.
        img_size: size that position maps and learned matrices are made for; other sizes resize the maps.
        depths: blocks in each stage.
        dims: channels of each stage; two equal ones have no downsampling between.
        pool_size: side of the pooled neighbourhood.
        num_classes: outputs of the classifier; 0 for none.
        kwargs: ``in_chans``, ``global_pool``, ``drop_path_rate``, ``drop_rate``, ``proj_drop_rate`` of timm.
    """

    formats = ("NCHW",)
    extractors = ("getter", "list", "dict", "hook", "fx")

    def __init__(
        self,
        mixers: Sequence[Mixer] = POOL,
        positioned: Sequence[int] = (),
        mlp_ratios: Sequence[int | float] = (4, 4, 4, 4),
        layer_scale: float | None = 1e-5,
        channel_norm: bool = False,
        norm_first: bool = True,
        stage_norms: bool = False,
        img_size: int | Sequence[int] = 224,
        depths: Sequence[int] = (2, 2, 6, 2),
        dims: Sequence[int] = (64, 128, 320, 512),
        pool_size: int = 3,
        num_classes: int = 1000,
        **kwargs: Any,
    ) -> None:
        norm: Any = partial(LayerNorm2d, eps=1e-5) if channel_norm else GroupNorm1
        if "pool" in mixers:
            kwargs["pool_size"] = pool_size
        super().__init__(
            depths=tuple(depths),
            dims=tuple(dims),
            token_mixers=[Pooling if name == "pool" else nn.Identity for name in mixers],
            mlp_act=nn.GELU,
            mlp_bias=True,
            norm_layers=norm,
            layer_scale_init_values=layer_scale or None,
            res_scale_init_values=[None] * len(depths),
            downsample_norm=None,
            output_norm=norm if norm_first else LayerNorm2d,
            use_mlp_head=False,
            num_classes=0 if stage_norms else num_classes,
            **kwargs,
        )
        self.norm_first = norm_first
        for index, size in enumerate(map_sizes(img_size, dims)):
            stage: Any = self.stages[index]
            dim = dims[index]
            if index in positioned:
                stage.downsample = PositionedDownsampling(dims[index - 1], dim, size)
                stage.downsample.conv.apply(self._init_weights)
            for block in stage.blocks:
                if mixers[index] in ("attention", "fc"):
                    block.token_mixer = AttentionMixer(dim) if mixers[index] == "attention" else SpatialFc(size)
                    block.token_mixer.apply(self._init_weights)
                if mlp_ratios[index] != 4:
                    hidden = int(dim * mlp_ratios[index])
                    drop = kwargs.get("proj_drop_rate", 0.0)
                    block.mlp = Mlp(dim, hidden, act_layer=nn.GELU, use_conv=True, drop=drop)
                    block.mlp.apply(self._init_weights)
        self.stage_norms = nn.ModuleList([norm(dim) for dim in dims]) if stage_norms else None
        if stage_norms:
            self.head.norm = nn.Identity()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that group parameters into layers, for layer-wise learning rate decay."""
        fine = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None)]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else fine}

    def levels(self, x: Tensor) -> Iterator[Level]:
        """The map ``[B, C, H, W]`` of each stage."""
        x = self.stem(channels_last(x))
        for stage in self.stages:
            x = checkpoint(stage, x) if self.grad_checkpointing else stage(x)
            yield x, None

    def normed(self, x: Tensor, index: int) -> Tensor:
        """The output of a stage after its norm, if stages have norms."""
        return x if self.stage_norms is None else self.stage_norms[index](x)

    def final(self, x: Tensor, index: int) -> Tensor:
        """The last map; the head has its norm."""
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """From the last map to logits, or to the classifier's input."""
        if self.norm_first:
            x = self.head.norm(x)  # type: ignore[operator]
        x = self.head.global_pool(x)  # type: ignore[operator]
        if not self.norm_first:
            x = self.head.norm(x)  # type: ignore[operator]
        x = self.head.drop(self.head.flatten(x))  # type: ignore[operator]
        return x if pre_logits else self.head.fc(x)  # type: ignore[operator]


def map_sizes(img_size: int | Sequence[int], dims: Sequence[int]) -> list[tuple[int, int]]:
    """Rows and columns of each stage's map: a stem of stride 4, then halved (rounded up) if the channels change."""
    height, width = to_2tuple(img_size)
    size = ((height - 3) // 4 + 1, (width - 3) // 4 + 1)
    sizes = [size]
    for before, after in pairwise(dims):
        size = size if before == after else ((size[0] + 1) // 2, (size[1] + 1) // 2)
        sizes.append(size)
    return sizes


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> State:
    """Weights of timm or of the original, renamed for ``model``; position maps are resized.

    Raises:
        InputError: the checkpoint is of another family.
    """
    state = recognise(state_dict, "PoolFormer")
    if "stem.conv.weight" not in state:
        state = _from_original(state)
    own = model.state_dict()
    for key in [key for key in state if key.endswith("pos_embed")]:
        state[key] = resize_map(state[key], (own[key].shape[2], own[key].shape[3])) if key in own else state[key]
    norms = {key: own[key] for key in own if key.startswith("stage_norms.") and key not in state}
    if norms:  # of a classifier, whose head is of no use here; the norms are new
        state = {key: value for key, value in state.items() if not key.startswith("head.")} | norms
    return state


def _from_original(state: State) -> State:
    """The original keeps stages, downsamplers and position maps in one list: their keys tell them apart."""
    numbers = sorted({int(key.split(".")[1]) for key in state if key.startswith("network.")})
    places, stage = {}, 0
    for number in numbers:
        if f"network.{number}.proj.weight" in state or f"network.{number}.pos_embed" in state:
            places[number] = f"stages.{stage}.downsample"
        else:
            places[number], stage = f"stages.{stage}.blocks", stage + 1
    out: State = {}
    for key, value in state.items():
        key = re.sub(r"^network\.(\d+)", lambda match: places[int(match[1])], key)
        key = re.sub(r"layer_scale_([12])$", r"layer_scale\1.scale", key)
        key = key.replace("downsample.proj", "downsample.conv").replace("patch_embed.proj", "stem.conv")
        key = re.sub(r"^norm([0246])\.", lambda match: f"stage_norms.{int(match[1]) // 2}.", key)
        out[re.sub(r"^norm\.", "head.norm.", re.sub(r"^head\.", "head.fc.", key))] = value
    return out


def weights(file: str, **own: Any) -> dict[str, Any]:
    """Config of a published file."""
    names: dict[str, Any] = {"classifier": "head.fc", "first_conv": "stem.conv", "license": "apache-2.0"}
    return published(RELEASE + file, pool_size=(7, 7), **names, **own)


default_cfgs = generate_default_cfgs(
    {
        "tsfm_poolformer_s12.sail_in1k": weights("poolformer_s12.pth.tar"),
        "tsfm_poolformer_s24.sail_in1k": weights("poolformer_s24.pth.tar"),
        "tsfm_poolformer_s36.sail_in1k": weights("poolformer_s36.pth.tar"),
        "tsfm_poolformer_m36.sail_in1k": weights("poolformer_m36.pth.tar", crop_pct=0.95),
        "tsfm_poolformer_m48.sail_in1k": weights("poolformer_m48.pth.tar", crop_pct=0.95),
        "metaformer_id_s12.sail_in1k": weights("metaformer_id_s12.pth.tar"),
        "metaformer_pppf_s12_224.sail_in1k": weights("metaformer_pppf_s12_224.pth.tar", fixed_input_size=True),
        "metaformer_ppff_s12_224.sail_in1k": weights("metaformer_ppff_s12_224.pth.tar", fixed_input_size=True),
        "metaformer_pppa_s12_224.sail_in1k": weights("metaformer_pppa_s12_224.pth.tar"),
        "metaformer_ppaa_s12_224.sail_in1k": weights("metaformer_ppaa_s12_224.pth.tar"),
    }
)
MEDIUM = (96, 192, 384, 768)
register(
    PoolFormer,
    checkpoint_filter_fn,
    (0, 1, 2, 3),
    {
        "tsfm_poolformer_s12": {},
        "tsfm_poolformer_s24": {"depths": (4, 4, 12, 4)},
        "tsfm_poolformer_s36": {"depths": (6, 6, 18, 6), "layer_scale": 1e-6},
        "tsfm_poolformer_m36": {"depths": (6, 6, 18, 6), "dims": MEDIUM, "layer_scale": 1e-6},
        "tsfm_poolformer_m48": {"depths": (8, 8, 24, 8), "dims": MEDIUM, "layer_scale": 1e-6},
        "metaformer_id_s12": {"mixers": ("identity",) * 4},
        "metaformer_pppf_s12_224": {"mixers": ("pool", "pool", "pool", "fc")},
        "metaformer_ppff_s12_224": {"mixers": ("pool", "pool", "fc", "fc")},
        "metaformer_pppa_s12_224": {
            "mixers": ("pool", "pool", "pool", "attention"),
            "positioned": (3,),
            "channel_norm": True,
        },
        "metaformer_ppaa_s12_224": {
            "mixers": ("pool", "pool", "attention", "attention"),
            "positioned": (2,),
            "channel_norm": True,
        },
    },
)
