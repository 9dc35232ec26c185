"""Building blocks that every model of the suite shares.

Shapes: B batch, N tokens, K tokens kept, H heads, D channels of a head, C channels of a token.
"""

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

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

    def forward(
        self, x_BNC: Float[Tensor, "B N C"], mask: Mask | None = None, first: int | None = None
    ) -> Float[Tensor, "B K C"]:
        """Every token attends to all; with ``first``, only the first K = ``first`` tokens ask and are returned."""
        if first is None or first == x_BNC.shape[1]:
            q_BNC, k_BNC, v_BNC = self.qkv(x_BNC).chunk(3, dim=-1)
        else:
            width = x_BNC.shape[2]
            query, others = self.qkv.weight.split((width, 2 * width))
            query_bias, other_bias = (None, None) if self.qkv.bias is None else self.qkv.bias.split((width, 2 * width))
            q_BNC = F.linear(x_BNC[:, :first], query, query_bias)
            k_BNC, v_BNC = F.linear(x_BNC, others, other_bias).chunk(2, dim=-1)
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
        """All tokens, or the first K = ``first`` when nobody needs the others after this block."""
        x_BKC = self.norm1(self.dropout(self.attention(x_BNC, mask, first), residual=x_BNC[:, :first]))
        return self.norm2(self.feed_forward(x_BKC, residual=x_BKC))
