"""Bi-level routing attention: a region of the map attends to the few regions whose mean query and key agree best.

Shapes: B batch, H and W rows and columns of a map, C channels, R regions, N tokens of a region, M keys of a region,
K regions that a region attends to, E channels of queries and keys, S regions' rows, T regions' columns.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsfm_data.errors import InputError
from tsfm_vision.backbones import cpu
from tsfm_vision.backbones.base import mix

KeyPool = Literal["identity", "ada_avgpool", "ada_maxpool", "avgpool", "maxpool"]


def cut(x_BHWC: Tensor, rows: int, columns: int) -> Tensor:
    """The map as regions ``[B, R, h, w, C]`` of ``rows`` x ``columns`` tokens, in raster order."""
    x = x_BHWC.unflatten(1, (-1, rows)).unflatten(3, (-1, columns))
    return x.transpose(2, 3).flatten(1, 2)


def join(x_BRhwC: Tensor, across: int) -> Tensor:
    """The map that these regions make up, ``across`` of them side by side: the inverse of ``cut``."""
    return x_BRhwC.unflatten(1, (-1, across)).transpose(2, 3).flatten(3, 4).flatten(1, 2)


def mix_padded(q_BNHD: Tensor, k_BMHD: Tensor, v_BMHV: Tensor, scale: float) -> Tensor:
    """``mix`` for values with another number of channels than queries and keys: zeros fill the difference."""
    keys, values = q_BNHD.shape[-1], v_BMHV.shape[-1]
    if keys == values:
        return mix(q_BNHD, k_BMHD, v_BMHV, scale)
    more, less = max(0, values - keys), max(0, keys - values)
    q, k, v = F.pad(q_BNHD, (0, more)), F.pad(k_BMHD, (0, more)), F.pad(v_BMHV, (0, less))
    return mix(q, k, v, scale)[..., :values]


class Router(nn.Module):
    """Chooses the regions that each region attends to.

    Args:
        width: channels of queries and keys.
        topk: regions that a region attends to.
        learned: compare regions after a learned linear map.
        differentiable: let gradients flow through the weights of the routes.
    """

    def __init__(self, width: int, topk: int, learned: bool = False, differentiable: bool = False) -> None:
        super().__init__()
        self.topk = topk
        self.scale = width**-0.5
        self.differentiable = differentiable
        self.emb = nn.Linear(width, width) if learned else nn.Identity()

    def forward(self, q_BRE: Tensor, k_BRE: Tensor) -> tuple[Tensor, Tensor]:
        """The weight of each chosen region (the weights sum to 1), and its index."""
        if not self.differentiable:
            q_BRE, k_BRE = q_BRE.detach(), k_BRE.detach()
        score_BRR = (self.emb(q_BRE) * self.scale) @ self.emb(k_BRE).transpose(1, 2)
        best_BRK, index_BRK = score_BRR.topk(min(self.topk, score_BRR.shape[-1]), dim=-1)
        return best_BRK.softmax(-1), index_BRK


class KeyPooling(nn.Module):
    """Pools the keys and values of a region.

    Args:
        mode: "ada" pools to a fixed number of keys, the others by a fixed ratio.
        side: keys along a side after pooling, for the "ada" modes.
        ratio: keys along a side that become one, for the other modes.
    """

    def __init__(self, mode: KeyPool, side: int, ratio: int) -> None:
        super().__init__()
        match mode:
            case "ada_avgpool" | "ada_maxpool":
                if side < 1:
                    raise InputError(f"expected kv_per_wins of at least 1 for {mode}, found {side}: change it")
                kind = nn.AdaptiveAvgPool2d if mode == "ada_avgpool" else nn.AdaptiveMaxPool2d
                self.pool: nn.Module = kind(side)
            case "avgpool" | "maxpool" if ratio > 1:
                self.pool = nn.AvgPool2d(ratio) if mode == "avgpool" else nn.MaxPool2d(ratio)
            case _:
                self.pool = nn.Identity()
        self.pools = not isinstance(self.pool, nn.Identity)

    def forward(self, kv_BRhwC: Tensor) -> Tensor:
        if not self.pools:
            return kv_BRhwC.flatten(2, 3)
        pooled = self.pool(kv_BRhwC.flatten(0, 1).permute(0, 3, 1, 2))
        return pooled.flatten(2).transpose(1, 2).unflatten(0, (kv_BRhwC.shape[0], kv_BRhwC.shape[1]))


class BiLevelRoutingAttention(nn.Module):
    """Attention of each region to the regions that its router picks, plus a depthwise convolution of the values.

    The scores' scale comes from all channels of a query, not from those of a head, as in the published weights.

    Args:
        width: channels C of the map.
        heads: attention heads.
        windows: regions along a side of the map.
        topk: regions that a region attends to.
        qk_width: channels E of queries and keys, by default ``width``.
        side_conv: side of the convolution's kernel, 0 for none.
        project: whether a linear layer follows.
        learned_routing: compare regions after a learned linear map.
        soft_routing: weight keys and values by their region's routing weight.
        differentiable_routing: let gradients flow through these weights.
        key_pooling: pooling of a region's keys and values, ``None`` for none.
        ceil_regions: the newer operator: a region has ``floor(side / windows)`` tokens, so that there may be more
            regions; padding comes after the projection and not before it.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        windows: int,
        topk: int,
        qk_width: int | None = None,
        side_conv: int = 5,
        project: bool = True,
        learned_routing: bool = False,
        soft_routing: bool = False,
        differentiable_routing: bool = False,
        key_pooling: KeyPooling | None = None,
        ceil_regions: bool = False,
    ) -> None:
        super().__init__()
        self.heads, self.windows, self.topk = heads, windows, topk
        self.qk_width = qk_width or width
        if self.qk_width % heads or width % heads or topk > windows**2:
            raise InputError(
                f"expected heads that divide {width} and {self.qk_width} channels and topk of at most {windows**2} "
                f"regions, found {heads} heads and topk {topk}: change them"
            )
        self.scale = self.qk_width**-0.5
        self.soft_routing, self.ceil_regions = soft_routing, ceil_regions
        self.qkv = nn.Linear(width, 2 * self.qk_width + width)
        self.proj = nn.Linear(width, width) if project else nn.Identity()
        self.lepe = nn.Conv2d(width, width, side_conv, padding=side_conv // 2, groups=width) if side_conv else None
        self.router = Router(self.qk_width, topk, learned_routing, differentiable_routing)
        self.key_pooling = key_pooling or KeyPooling("identity", -1, 1)
        # Whether keys, values and their weights are as in all published models.
        self.is_plain = self.qk_width == width and not self.key_pooling.pools and not soft_routing

    def forward(self, x_BHWC: Tensor) -> Tensor:
        height, width = x_BHWC.shape[1], x_BHWC.shape[2]
        if self.ceil_regions:
            qkv = self.qkv(x_BHWC)
            rows, columns = max(1, height // self.windows), max(1, width // self.windows)
        else:
            # Padding comes before the projection, so that padded tokens equal the bias, as in the published models.
            rows, columns = -(-height // self.windows), -(-width // self.windows)
            qkv = self.qkv(pad(x_BHWC, rows, columns))
        value_map = qkv[..., 2 * self.qk_width :]
        mean = means(qkv, rows, columns, self.qk_width)
        share_BRK, index_BRK = self.router(mean[..., : self.qk_width], mean[..., self.qk_width :])
        padded = pad(qkv, rows, columns)
        if self.is_plain and cpu.applies(qkv):
            out = cpu.routed(padded, index_BRK, self.heads, rows, columns, self.scale)
        else:
            out = self.routed(cut(padded, rows, columns), share_BRK, index_BRK, padded.shape[2] // columns)
        out = out[:, : qkv.shape[1], : qkv.shape[2]]
        if self.lepe is not None:
            out = out + self.lepe(value_map.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.proj(out)[:, :height, :width]

    def routed(self, qkv: Tensor, share_BRK: Tensor, index_BRK: Tensor, across: int) -> Tensor:
        """Attention of each region to the regions that it is routed to, joined to a map.

        Args:
            qkv: of the regions, ``[B, R, h, w, X]``.
            share_BRK: weights of the chosen regions.
            index_BRK: their indices.
            across: regions side by side.
        """
        batch, regions, rows, columns = qkv.shape[0], qkv.shape[1], qkv.shape[2], qkv.shape[3]
        q_BRNE = qkv[..., : self.qk_width].flatten(2, 3)
        kv_BRMC = self.key_pooling(qkv[..., self.qk_width :])
        flat = (index_BRK + torch.arange(batch, device=qkv.device)[:, None, None] * regions).flatten()
        kv = kv_BRMC.flatten(0, 1).index_select(0, flat).unflatten(0, (batch, regions, -1))
        if self.soft_routing:
            kv = kv * share_BRK[..., None, None]
        kv = kv.flatten(0, 1).flatten(1, 2)
        q = q_BRNE.flatten(0, 1).unflatten(-1, (self.heads, -1))
        k = kv[..., : self.qk_width].unflatten(-1, (self.heads, -1))
        v = kv[..., self.qk_width :].unflatten(-1, (self.heads, -1))
        out = mix_padded(q, k, v, self.scale)
        return join(out.flatten(2).unflatten(1, (rows, columns)).unflatten(0, (batch, regions)), across)


def pad(x_BHWC: Tensor, rows: int, columns: int) -> Tensor:
    """Zeros on the right and below up to a multiple of the region's size."""
    below, right = -x_BHWC.shape[1] % rows, -x_BHWC.shape[2] % columns
    return F.pad(x_BHWC, (0, 0, 0, right, 0, below)) if below + right > 0 else x_BHWC


def means(qkv: Tensor, rows: int, columns: int, width: int) -> Tensor:
    """Mean query and key of each region, ``[B, R, 2 * width]``, without padding."""
    qk = qkv[..., : 2 * width].permute(0, 3, 1, 2)
    pooled = F.avg_pool2d(qk, (rows, columns), ceil_mode=True, count_include_pad=False)
    return pooled.flatten(2).transpose(1, 2)


class GlobalAttention(nn.Module):
    """Plain attention over the whole map, with a depthwise convolution in parallel.

    Args:
        width: channels of the map, a multiple of ``heads``.
        heads: attention heads.
        side_conv: side of the convolution's kernel, 0 for none.
        conv_of_values: the convolution sees the values; otherwise the attention's input.
    """

    def __init__(self, width: int, heads: int = 8, side_conv: int = 0, conv_of_values: bool = False) -> None:
        super().__init__()
        self.heads, self.conv_of_values = heads, conv_of_values
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)
        self.lepe = nn.Conv2d(width, width, side_conv, padding=side_conv // 2, groups=width) if side_conv else None

    def forward(self, x_BHWC: Tensor) -> Tensor:
        qkv = self.qkv(x_BHWC)
        q, k, v = qkv.flatten(1, 2).unflatten(-1, (3, self.heads, -1)).unbind(2)
        out = mix(q, k, v).flatten(2).view_as(x_BHWC)
        if self.lepe is not None:
            source = qkv[..., 2 * x_BHWC.shape[3] :] if self.conv_of_values else x_BHWC
            out = out + self.lepe(source.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.proj(out)


class ConvMixer(nn.Module):
    """The mode without attention: a pointwise, a depthwise and a pointwise convolution."""

    def __init__(self, width: int, side: int = 5) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(width, width, 1),
            nn.Conv2d(width, width, side, padding=side // 2, groups=width),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return self.convs(x_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
