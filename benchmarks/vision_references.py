"""iLLaMA and BiFormer written directly from their papers, with the weights of our models.

``benchmarks/vision.py`` and the tests compare with these functions. They skip, fuse and cache nothing.

Shapes: B batch, N tokens, C channels, H heads, D channels of a head, R regions, K regions that a region attends to.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from tsfm_vision.backbones import BiFormer, BiLevelRoutingAttention, ILlama


def rms_norm(norm: Any, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
    """RMS norm in float32, converted back to the input's type, then weighted."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + norm.eps)).type_as(x) * norm.weight


def turned(x: Float[Tensor, "B H N D"], angles: Tensor) -> Float[Tensor, "B H N D"]:
    """Rotary embedding: pairs of adjacent channels as complex numbers, multiplied by complex angles."""
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * angles).flatten(-2).type_as(x)


def dense_attention(attn: Any, x: Float[Tensor, "B N C"], angles: Tensor, rate: float) -> Float[Tensor, "B N C"]:
    """Softmax attention with its weights multiplied by a dense mask."""
    batch, tokens, width = x.shape
    q, k, v = attn.qkv(x).reshape(batch, tokens, 3, attn.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    q, k = turned(q, angles), turned(k, angles)
    weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
    weights = weights * (rate + (1 - rate) * torch.ones(tokens, tokens, device=x.device).tril())
    return attn.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, width))


def angles_of(model: ILlama, tokens: int) -> Tensor:
    """Each token's angle for each pair of channels, as complex numbers of length 1."""
    frequency = 10000.0 ** (-torch.arange(0, model.head_channels, 2).float() / model.head_channels)
    angle = torch.outer(torch.arange(tokens).float(), frequency)
    return torch.polar(torch.ones_like(angle), angle)


def illama(model: ILlama, x: Float[Tensor, "B ch height width"]) -> Float[Tensor, "B out"]:
    """Logits of an iLLaMA that classifies by its class token."""
    tokens = model.embed(x)
    angles = angles_of(model, tokens.shape[1]).to(tokens.device)
    block: Any
    for block in model.blocks:
        mixed = dense_attention(block.attn, rms_norm(block.norm1, tokens), angles, model.soft_mask_rate)
        tokens = tokens + mixed
        normed = rms_norm(block.norm2, tokens)
        gate, value = block.mlp.fc1(normed), block.mlp.fc3(normed)
        tokens = tokens + block.mlp.fc2(F.silu(gate) * value)
    return model.head(rms_norm(model.norm, tokens)[:, -1])


def heads_of(x: Tensor, heads: int) -> Tensor:
    """``[X, N, H * D]`` as ``[X, H, N, D]``."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def routed_attention(attn: Any, x: Float[Tensor, "B h w C"]) -> Float[Tensor, "B h w C"]:
    """Keys and values of each region's chosen regions gathered from a table expanded for all, then two products."""
    (batch, height, width, channels), side, keys = x.shape, attn.windows, attn.qk_width
    x = F.pad(x, (0, 0, 0, -width % side, 0, -height % side))
    rows, columns = x.shape[1] // side, x.shape[2] // side
    x = x.reshape(batch, side, rows, side, columns, channels).transpose(2, 3).reshape(batch, side**2, -1, channels)
    q, kv = attn.qkv(x).split([keys, keys + channels], -1)
    q_mean, k_mean = q.mean(2), kv[..., :keys].mean(2)
    score = (q_mean.detach() * keys**-0.5) @ k_mean.detach().transpose(1, 2)
    index = score.topk(attn.topk, -1).indices
    every = kv[:, None].expand(-1, side**2, -1, -1, -1)
    chosen = index[..., None, None].expand(-1, -1, -1, *kv.shape[2:])
    gathered = every.gather(2, chosen).flatten(0, 1).flatten(1, 2)
    k, v = (heads_of(y, attn.heads) for y in gathered.split([keys, channels], -1))
    weights = (heads_of(q.flatten(0, 1), attn.heads) * keys**-0.5 @ k.transpose(-2, -1)).softmax(-1)
    mixed = (weights @ v).transpose(1, 2).reshape(batch, side**2, -1, channels)

    def as_map(y: Tensor) -> Tensor:
        y = y.reshape(batch, side, side, rows, columns, channels).transpose(2, 3)
        return y.reshape(batch, side * rows, side * columns, channels)

    near = attn.lepe(as_map(kv[..., keys:]).permute(0, 3, 1, 2).contiguous()).permute(0, 2, 3, 1)
    return attn.proj(as_map(mixed) + near)[:, :height, :width]


def global_attention(attn: Any, x: Float[Tensor, "B h w C"]) -> Float[Tensor, "B h w C"]:
    """Attention over the whole map, plus a depthwise convolution of its input."""
    q, k, v = (heads_of(y, attn.heads) for y in attn.qkv(x).flatten(1, 2).chunk(3, -1))
    weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1)
    mixed = (weights @ v).transpose(1, 2).reshape(x.shape)
    return attn.proj(mixed + attn.lepe(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


def biformer(model: BiFormer, x: Float[Tensor, "B ch height width"]) -> Float[Tensor, "B out"]:
    """Logits of a published BiFormer, T, S or B."""
    stage: Any
    for downsample, stage in zip(model.downsample_layers, model.stages, strict=True):
        x = downsample(x)
        for block in stage.blocks:
            x = (x + block.pos_embed(x)).permute(0, 2, 3, 1)
            routed = isinstance(block.attn, BiLevelRoutingAttention)
            x = x + (routed_attention if routed else global_attention)(block.attn, block.norm1(x))
            x = x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))
            x = x.permute(0, 3, 1, 2)
    return model.head(model.norm(x).mean((2, 3)))
