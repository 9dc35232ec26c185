"""Pre-norm Transformer: RMSNorm, rotary positions, normalised queries and keys, SwiGLU.

Module names are those of uni2ts and of the scaling-law code, so that their state dicts load unchanged.

Shapes: B batch, N tokens, M of them, H heads, D channels of a head, R rotated pairs of channels, C channels of a token.
"""

from collections.abc import Callable
from dataclasses import replace

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from tsfm.attention import Mask, attend
from tsfm.nn.layers import RMSNorm, Rotary, SwiGLU
from tsfm_data.errors import InputError

NORM_EPS = 1e-5


class ResidualMLP(nn.Module):
    """One hidden layer with a linear residual connection, for embeddings and outputs of patches.

    Args:
        inputs: input channels.
        hidden: channels of the hidden layer.
        outputs: output channels.
        activation: of the hidden layer.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, activation: Callable[[Tensor], Tensor] = F.relu) -> None:
        super().__init__()
        self.hidden_layer = nn.Linear(inputs, hidden)
        self.output_layer = nn.Linear(hidden, outputs)
        self.residual_layer = nn.Linear(inputs, outputs)
        self.activation = activation

    def forward(self, x: Float[Tensor, "*S _"]) -> Float[Tensor, "*S _"]:
        return self.output_layer(self.activation(self.hidden_layer(x))) + self.residual_layer(x)


class VariateBias(nn.Module):
    """Any-variate attention (Moirai): per head, a learnt bias on scores within a variate and one between variates."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(2, heads)

    def forward(self, same_BMN: Bool[Tensor, "B M N"]) -> Float[Tensor, "B H M N"]:
        return self.emb(same_BMN.long()).movedim(-1, 1)


class NormedAttention(nn.Module):
    """Self-attention without biases; queries and keys are normalised per head and rotated by their position.

    Args:
        width: channels of a token.
        heads: number of heads; must divide ``width``.
        any_variate: whether scores within and between variates get a learnt bias.

    Raises:
        InputError: ``heads`` does not divide ``width``.
    """

    def __init__(self, width: int, heads: int, any_variate: bool = False) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise InputError(f"expected heads that divide the width, found width {width} and heads {heads}: change one")
        self.heads = heads
        self.var_attn_bias = VariateBias(heads) if any_variate else None
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.q_norm = RMSNorm(width // heads, eps=NORM_EPS)
        self.k_norm = RMSNorm(width // heads, eps=NORM_EPS)
        self.out_proj = nn.Linear(width, width, bias=False)

    def forward(
        self,
        x_BNC: Float[Tensor, "B N C"],
        mask: Mask | None,
        rotary: Rotary,
        same_BNN: Bool[Tensor, "#B N N"] | None = None,
        query_M: Int[Tensor, " M"] | None = None,
    ) -> Float[Tensor, "B _ C"]:
        """Mix the tokens.

        Args:
            x_BNC: tokens.
            mask: which tokens a token sees.
            rotary: rotation of every token.
            same_BNN: which pairs of tokens are of one variate, for an any-variate model.
            query_M: the tokens that are queries, None for all; the others are keys and values only.
        """
        heads = (self.heads, -1)
        k_BNHD = rotary.rotate(self.k_norm(self.k_proj(x_BNC).unflatten(2, heads)))
        v_BNHD = self.v_proj(x_BNC).unflatten(2, heads)
        if query_M is not None:
            x_BNC, rotary = x_BNC[:, query_M], Rotary(*(x[:, query_M] for x in rotary))
            mask = None if mask is None else mask.asked_by(query_M)
            same_BNN = None if same_BNN is None else same_BNN[:, query_M]
        q_BNHD = rotary.rotate(self.q_norm(self.q_proj(x_BNC).unflatten(2, heads)))
        if self.var_attn_bias is not None and same_BNN is not None:
            mask = Mask() if mask is None else mask
            bias = self.var_attn_bias(same_BNN)
            mask = replace(mask, bias=bias if mask.bias is None else bias + mask.bias)
        return self.out_proj(attend(q_BNHD, k_BNHD, v_BNHD, mask).flatten(2))


class PreNormBlock(nn.Module):
    """Attention and feed-forward part, each with a norm and a residual connection; arguments as for ``Stack``."""

    def __init__(self, width: int, heads: int, any_variate: bool = False, hidden: int | None = None) -> None:
        super().__init__()
        self.self_attn = NormedAttention(width, heads, any_variate)
        self.ffn = SwiGLU(width, hidden)
        self.norm1 = RMSNorm(width, eps=NORM_EPS)
        self.norm2 = RMSNorm(width, eps=NORM_EPS)

    def forward(
        self,
        x_BNC: Float[Tensor, "B N C"],
        mask: Mask | None,
        rotary: Rotary,
        same_BNN: Bool[Tensor, "#B N N"] | None = None,
        query_M: Int[Tensor, " M"] | None = None,
    ) -> Float[Tensor, "B _ C"]:
        mixed = self.self_attn(self.norm1(x_BNC), mask, rotary, same_BNN, query_M)
        x_BNC = (x_BNC if query_M is None else x_BNC[:, query_M]) + mixed
        return x_BNC + self.ffn(self.norm2(x_BNC))


class Stack(nn.Module):
    """Pre-norm blocks and a final norm: an encoder, or with a causal mask a decoder.

    Half of the channels of every head are rotated by the token's position.

    Args:
        width: channels of a token.
        layers: number of blocks.
        heads: attention heads; must divide ``width``.
        any_variate: whether scores within and between variates get a learnt bias.
        hidden: channels inside the feed-forward parts; None takes the default of ``SwiGLU``.
    """

    def __init__(
        self, width: int, layers: int, heads: int, any_variate: bool = False, hidden: int | None = None
    ) -> None:
        super().__init__()
        self.rotated = width // heads // 2 if heads else 0
        self.layers = nn.ModuleList(PreNormBlock(width, heads, any_variate, hidden) for _ in range(layers))
        self.norm = RMSNorm(width, eps=NORM_EPS)
        if self.rotated % 2:
            raise InputError(
                f"expected heads of a multiple of 4 channels, found width {width} over {heads} heads: change one"
            )

    def forward(
        self,
        x_BNC: Float[Tensor, "B N C"],
        mask: Mask | None,
        position_BN: Int[Tensor, "#B N"],
        variate_BN: Int[Tensor, "#B N"] | None = None,
        wanted_M: Int[Tensor, " M"] | None = None,
    ) -> Float[Tensor, "B _ C"]:
        """The tokens after all blocks and the norm.

        Args:
            x_BNC: tokens.
            mask: which tokens a token sees.
            position_BN: position of every token within its series; only differences matter.
            variate_BN: variate of every token, for an any-variate model.
            wanted_M: the tokens to return, None for all; in the last block the others are keys and values only.
        """
        rotary = Rotary.at(position_BN, self.rotated)
        same_BNN = None if variate_BN is None else variate_BN[:, :, None] == variate_BN[:, None, :]
        for layer in self.layers[:-1]:
            x_BNC = layer(x_BNC, mask, rotary, same_BNN)
        x_BNC = self.layers[-1](x_BNC, mask, rotary, same_BNN, wanted_M)
        return self.norm(x_BNC)
