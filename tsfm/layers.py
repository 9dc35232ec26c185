"""Building blocks that every model of the suite shares.

Shapes: B batch, N tokens, H heads, D channels of a head, C channels of a token.
"""

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from tsfm.attention import Mask, attend
from tsfm.dropout import Dropout
from tsfm_data.errors import InputError

Activation = Literal["gelu", "relu"]


class SelfAttention(nn.Module):
    """Multi-head self-attention through the attention door, with one fused projection to queries, keys and values.

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

    def forward(self, x_BNC: Float[Tensor, "B N C"], mask: Mask | None = None) -> Float[Tensor, "B N C"]:
        B, N, C = x_BNC.shape
        q_BNHD, k_BNHD, v_BNHD = self.qkv(x_BNC).view(B, N, 3, self.heads, C // self.heads).unbind(2)
        mixed_BNHD = attend(q_BNHD, k_BNHD, v_BNHD, mask, dropout=self.dropout if self.training else 0.0)
        return self.out(mixed_BNHD.reshape(B, N, C))


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

    def forward(self, x_BNC: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        return self.dropout(self.down(self.dropout(self.activation(self.up(x_BNC)))))


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

    def forward(self, x_BNC: Float[Tensor, "B N C"], mask: Mask | None = None) -> Float[Tensor, "B N C"]:
        x_BNC = self.norm1(x_BNC + self.dropout(self.attention(x_BNC, mask)))
        return self.norm2(x_BNC + self.feed_forward(x_BNC))
