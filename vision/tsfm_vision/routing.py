"""Bi-level routing attention: a region of the map attends to the few regions whose mean query and key agree best.

Shapes: B batch, H and W rows and columns of a map, C channels, R regions, N tokens of a region, M keys of a region,
K regions that a region attends to, E channels of queries and keys, S regions' rows, T regions' columns.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from tsfm.attention import attend
from tsfm_data.errors import InputError
from tsfm_vision import cpu

KeyPool = Literal["identity", "ada_avgpool", "ada_maxpool", "avgpool", "maxpool"]
Routes = tuple[Float[Tensor, "B R K"], Int[Tensor, "B R K"]]


def cut(x_BHWC: Float[Tensor, "B H W C"], rows: int, columns: int) -> Float[Tensor, "B R h w C"]:
    """The map as regions of ``rows`` x ``columns`` tokens, in raster order."""
    x = x_BHWC.unflatten(1, (-1, rows)).unflatten(3, (-1, columns))
    return x.transpose(2, 3).flatten(1, 2)


def join(x_BRhwC: Float[Tensor, "B R h w C"], across: int) -> Float[Tensor, "B H W C"]:
    """The map of which these are the regions, ``across`` of them beside each other."""
    return x_BRhwC.unflatten(1, (-1, across)).transpose(2, 3).flatten(3, 4).flatten(1, 2)


def attend_padded(
    q_BNHD: Float[Tensor, "B N H D"], k_BMHD: Float[Tensor, "B M H D"], v_BMHV: Float[Tensor, "B M H V"], scale: float
) -> Float[Tensor, "B N H V"]:
    """``attend`` where values have other channels than queries and keys: the fewer are filled with zeros."""
    keys, values = q_BNHD.shape[-1], v_BMHV.shape[-1]
    if keys == values:
        return attend(q_BNHD, k_BMHD, v_BMHV, scale=scale)
    width = max(keys, values)
    q, k, v = (F.pad(x, (0, width - x.shape[-1])) for x in (q_BNHD, k_BMHD, v_BMHV))
    return attend(q, k, v, scale=scale)[..., :values]


class Router(nn.Module):
    """Which regions a region attends to.

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

    def forward(self, q_BRE: Float[Tensor, "B R E"], k_BRE: Float[Tensor, "B R E"]) -> Routes:
        """The share of each chosen region (they sum to 1), and its number."""
        if not self.differentiable:
            q_BRE, k_BRE = q_BRE.detach(), k_BRE.detach()
        score_BRR = (self.emb(q_BRE) * self.scale) @ self.emb(k_BRE).transpose(1, 2)
        best_BRK, index_BRK = score_BRR.topk(min(self.topk, score_BRR.shape[-1]), dim=-1)
        return best_BRK.softmax(-1), index_BRK


class KeyPooling(nn.Module):
    """Fewer keys and values for a region.

    Args:
        mode: how they are pooled; "ada" pools to a given number of places.
        side: places that remain along a side, for the "ada" modes.
        ratio: places along a side that become one, for the others.
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

    def forward(self, kv_BRhwC: Float[Tensor, "B R h w C"]) -> Float[Tensor, "B R M C"]:
        if isinstance(self.pool, nn.Identity):
            return kv_BRhwC.flatten(2, 3)
        pooled = self.pool(kv_BRhwC.flatten(0, 1).permute(0, 3, 1, 2))
        return pooled.flatten(2).transpose(1, 2).unflatten(0, kv_BRhwC.shape[:2])


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
        soft_routing: weight keys and values by their region's share of the routing.
        differentiable_routing: let gradients flow through these shares.
        key_pooling: fewer keys and values for a region, ``None`` for all.
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

    def forward(self, x_BHWC: Float[Tensor, "B H W C"]) -> Float[Tensor, "B H W C"]:
        height, width = x_BHWC.shape[1:3]
        if self.ceil_regions:
            qkv = self.qkv(x_BHWC)
            rows, columns = max(1, height // self.windows), max(1, width // self.windows)
        else:
            # Padding before the projection: padded tokens become the bias and take part, as in the published models.
            rows, columns = math.ceil(height / self.windows), math.ceil(width / self.windows)
            qkv = self.qkv(pad(x_BHWC, rows, columns))
        value_map = qkv[..., 2 * self.qk_width :]
        routes = self.router(*means(qkv, rows, columns, self.qk_width).split(self.qk_width, dim=-1))
        padded = pad(qkv, rows, columns)
        if self.is_plain and cpu.applies(qkv):
            out = cpu.Routed.apply(padded, routes[1], self.heads, rows, columns, self.scale)
        else:
            out = join(self.routed(cut(padded, rows, columns), routes), padded.shape[2] // columns)
        out = out[:, : qkv.shape[1], : qkv.shape[2]]
        if self.lepe is not None:
            out = out + self.lepe(value_map.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.proj(out)[:, :height, :width]

    @property
    def is_plain(self) -> bool:
        """Whether keys, values and their weights are as in all published models."""
        pooled = not isinstance(self.key_pooling.pool, nn.Identity)
        return 3 * self.qk_width == self.qkv.out_features and not pooled and not self.soft_routing

    def routed(self, qkv: Float[Tensor, "B R h w X"], routes: Routes) -> Float[Tensor, "B R h w C"]:
        """Each region's attention to the regions that it is routed to."""
        batch, regions, rows, columns, _ = qkv.shape
        share_BRK, index_BRK = routes
        q_BRNE = qkv[..., : self.qk_width].flatten(2, 3)
        kv_BRMC = self.key_pooling(qkv[..., self.qk_width :])
        flat = (index_BRK + torch.arange(batch, device=qkv.device)[:, None, None] * regions).flatten()
        kv = kv_BRMC.flatten(0, 1).index_select(0, flat).unflatten(0, index_BRK.shape)
        if self.soft_routing:
            kv = kv * share_BRK[..., None, None]
        k, v = kv.flatten(0, 1).flatten(1, 2).tensor_split([self.qk_width], dim=-1)
        q, k, v = (x.unflatten(-1, (self.heads, -1)) for x in (q_BRNE.flatten(0, 1), k, v))
        out = attend_padded(q, k, v, self.scale)
        return out.flatten(2).unflatten(1, (rows, columns)).unflatten(0, (batch, regions))


def pad(x_BHWC: Float[Tensor, "B H W C"], rows: int, columns: int) -> Float[Tensor, "B H2 W2 C"]:
    """Zeros on the right and below up to a multiple of the region's size."""
    below, right = -x_BHWC.shape[1] % rows, -x_BHWC.shape[2] % columns
    return F.pad(x_BHWC, (0, 0, 0, right, 0, below)) if below or right else x_BHWC


def means(qkv: Float[Tensor, "B H W X"], rows: int, columns: int, width: int) -> Float[Tensor, "B R Y"]:
    """Mean query and key of each region, counting only tokens that are there."""
    qk = qkv[..., : 2 * width].permute(0, 3, 1, 2)
    pooled = F.avg_pool2d(qk, (rows, columns), ceil_mode=True, count_include_pad=False)
    return pooled.flatten(2).transpose(1, 2)


class GlobalAttention(nn.Module):
    """Plain attention over the whole map, with a depthwise convolution beside it.

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

    def forward(self, x_BHWC: Float[Tensor, "B H W C"]) -> Float[Tensor, "B H W C"]:
        q, k, v = self.qkv(x_BHWC).chunk(3, dim=-1)
        heads = (y.flatten(1, 2).unflatten(-1, (self.heads, -1)) for y in (q, k, v))
        out = attend(*heads).flatten(2).view_as(x_BHWC)
        if self.lepe is not None:
            source = v if self.conv_of_values else x_BHWC
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

    def forward(self, x_BHWC: Float[Tensor, "B H W C"]) -> Float[Tensor, "B H W C"]:
        return self.convs(x_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
