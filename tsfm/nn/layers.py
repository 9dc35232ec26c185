"""Layers that several models share: attention, feed-forward parts, norms, rotary positions.

Shapes: B batch, N tokens, K returned tokens, H heads, D channels of a head, R rotated pairs of channels, C channels of
a token, W channels inside a feed-forward part.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from tsfm.attention import Dropout, Mask, attend
from tsfm_data.errors import InputError

Activation = Literal["gelu", "relu"]


class SelfAttention(nn.Module):
    """Multi-head self-attention with one fused projection to queries, keys and values.

    Args:
        width: channels of a token, C.
        heads: number of heads; must divide ``width``.
        dropout: probability of dropping an attention weight in training.
        bias: whether the four projections have a bias.

    Raises:
        InputError: ``heads`` does not divide ``width``.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0, bias: bool = True) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise InputError(f"expected heads that divide the width, found width {width} and heads {heads}: change one")
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)

    def forward(
        self, x_BNC: Float[Tensor, "B N C"], mask: Mask | None = None, first: int | None = None
    ) -> Float[Tensor, "B K C"]:
        """Every token attends to all; with ``first``, only the first K = ``first`` tokens are queries."""
        if first is None or first == x_BNC.shape[1] or type(self.qkv) is not nn.Linear:  # quantised, or with LoRA
            q_BNC, k_BNC, v_BNC = self.qkv(x_BNC).chunk(3, dim=-1)
            q_BNC = q_BNC[:, :first]
        else:
            width = x_BNC.shape[2]
            query, key_value = self.qkv.weight.split((width, 2 * width))
            query_bias, key_value_bias = (
                (None, None) if self.qkv.bias is None else self.qkv.bias.split((width, 2 * width))
            )
            q_BNC = F.linear(x_BNC[:, :first], query, query_bias)
            k_BNC, v_BNC = F.linear(x_BNC, key_value, key_value_bias).chunk(2, dim=-1)
        q_BKHD, k_BNHD, v_BNHD = (x.unflatten(2, (self.heads, -1)) for x in (q_BNC, k_BNC, v_BNC))
        mixed_BKHD = attend(q_BKHD, k_BNHD, v_BNHD, mask, dropout=self.dropout if self.training else 0.0)
        return self.out(mixed_BKHD.flatten(2))


class FeedForward(nn.Module):
    """Two linear layers with an activation between, each followed by dropout.

    Args:
        width: channels of a token.
        hidden: channels between the two layers.
        activation: ``"gelu"`` (the exact one, with the error function) or ``"relu"``.
        dropout: probability of dropping a value in training.
    """

    def __init__(self, width: int, hidden: int, activation: Activation = "gelu", dropout: float = 0.0) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.activation = nn.GELU() if activation == "gelu" else nn.ReLU()
        self.down = nn.Linear(hidden, width)
        self.dropout = Dropout(dropout)

    def forward(
        self, x_BNC: Float[Tensor, "B N C"], residual: Float[Tensor, "B N C"] | None = None
    ) -> Float[Tensor, "B N C"]:
        """The layers' output, plus the residual if one is given."""
        return self.dropout(self.down(self.dropout(self.activation(self.up(x_BNC)))), residual)


class RMSNorm(nn.RMSNorm):
    """PyTorch's RMSNorm with the weight cast to the type of the tokens: the fused kernel needs equal types."""

    def forward(self, x: Float[Tensor, "*S C"]) -> Float[Tensor, "*S C"]:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


def rotary_angles(position: Tensor, channels: int, base: float = 10_000.0) -> Tensor:
    """The angle ``position * base ** (-2 i / channels)`` of every pair i of channels, along a new last axis."""
    exponent = torch.arange(0, channels, 2, device=position.device) / channels
    return position.unsqueeze(-1) * torch.pow(base, -exponent)


class Rotary(NamedTuple):
    """Rotation of every token: cosine and sine of the angle of every pair of channels."""

    cos: Float[Tensor, "#B N 1 R"]
    sin: Float[Tensor, "#B N 1 R"]

    @classmethod
    def at(cls, position_BN: Int[Tensor, "B N"], channels: int, base: float = 10_000.0) -> "Rotary":
        """The rotations of pair i of ``channels / 2`` by ``position * base ** (-2 i / channels)``."""
        angle = rotary_angles(position_BN, channels, base)[:, :, None]
        return cls(angle.cos(), angle.sin())

    def rotate(self, x_BNHD: Float[Tensor, "B N H D"]) -> Float[Tensor, "B N H D"]:
        """Rotate pairs of neighbouring channels: the first 2 R channels of every head; the others are unchanged."""
        if torch.compiler.is_exporting():  # ONNX has no complex numbers: (a, b) cos + (-b, a) sin, turned by a product
            stay = (0, x_BNHD.shape[-1] - 2 * self.cos.shape[-1])
            cos, sin = (F.pad(x.repeat_interleave(2, -1), stay, value=v) for x, v in ((self.cos, 1.0), (self.sin, 0.0)))
            quarter = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=x_BNHD.dtype, device=x_BNHD.device)
            turned = x_BNHD @ torch.block_diag(*[quarter] * (x_BNHD.shape[-1] // 2))
            return (x_BNHD * cos + turned * sin).to(x_BNHD.dtype)
        # One complex product per pair takes a sixth of the time of the six products and copies above.
        stay = (0, x_BNHD.shape[-1] // 2 - self.cos.shape[-1])
        turn = torch.complex(F.pad(self.cos, stay, value=1.0), F.pad(self.sin, stay))
        pairs = x_BNHD.to(torch.promote_types(x_BNHD.dtype, torch.float32)).unflatten(-1, (-1, 2))
        return torch.view_as_real(torch.view_as_complex(pairs) * turn).flatten(-2).to(x_BNHD.dtype)


class SwiGLU(nn.Module):
    """Feed-forward part with a gate: ``fc2(silu(gate(x)) * value(x))``, without biases (Shazeer 2020).

    Args:
        width: channels of a token.
        hidden: channels inside; by default two thirds of ``4 * width``, rounded up to a multiple of 8.
        names: names of the gate and value layers in published weights.
    """

    fc2: nn.Linear

    def __init__(self, width: int, hidden: int | None = None, names: tuple[str, str] = ("fc_gate", "fc1")) -> None:
        super().__init__()
        hidden = (int(8 * width / 3) + 7) // 8 * 8 if hidden is None else hidden
        self.names = names
        for name in sorted((*names, "fc2")):
            sizes = (hidden, width) if name == "fc2" else (width, hidden)
            self.add_module(name, nn.Linear(*sizes, bias=False))

    def forward(self, x_BNC: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        gate, value = (getattr(self, name)(x_BNC) for name in self.names)
        return self.fc2(self.apply_gate(gate, value))

    def apply_gate(self, gate: Float[Tensor, "B N W"], value: Float[Tensor, "B N W"]) -> Float[Tensor, "B N W"]:
        """Values times the SiLU of their gates."""
        return F.silu(gate) * value


class PostNormBlock(nn.Module):
    """Transformer block that normalises after each residual sum, as the first Transformer did.

    Args:
        width: channels of a token.
        heads: attention heads.
        hidden: channels inside the feed-forward part.
        activation: of the feed-forward part.
        dropout: probability of dropping a value, or an attention weight, in training.
    """

    def __init__(
        self, width: int, heads: int, hidden: int, activation: Activation = "gelu", dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads, dropout)
        self.feed_forward = FeedForward(width, hidden, activation, dropout)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = Dropout(dropout)

    def forward(
        self, x_BNC: Float[Tensor, "B N C"], mask: Mask | None = None, first: int | None = None
    ) -> Float[Tensor, "B K C"]:
        """All tokens, or only the first K = ``first``."""
        x_BKC = self.norm1(self.dropout(self.attention(x_BNC, mask, first), residual=x_BNC[:, :first]))
        return self.norm2(self.feed_forward(x_BKC, residual=x_BKC))
