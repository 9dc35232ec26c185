"""Layers of T5 as time-series models use them: no biases, unscaled attention scores (Raffel et al. 2020).

Shapes: R rows, N query tokens, M key tokens, H heads, C channels.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tsfm.attention import Mask, attend
from tsfm.nn.layers import RMSNorm, Rotary

NORM_EPS = 1e-6


class T5Attention(nn.Module):
    """Multi-head attention without biases and with unscaled scores.

    Args:
        width: channels of a token.
        heads: attention heads.
        head_width: channels of a head.
    """

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        inner = heads * head_width
        self.heads = heads
        self.q = nn.Linear(width, inner, bias=False)
        self.k = nn.Linear(width, inner, bias=False)
        self.v = nn.Linear(width, inner, bias=False)
        self.o = nn.Linear(inner, width, bias=False)
        # The scores are not divided by sqrt(head_width): the initial query weights are smaller instead.
        with torch.no_grad():
            self.q.weight.div_(math.sqrt(head_width))

    def forward(
        self,
        x_RNC: Float[Tensor, "R N C"],
        source_RMC: Float[Tensor, "R M C"],
        bias: Float[Tensor, "#R #H #N M"],
        rotary: Rotary | None = None,
    ) -> Float[Tensor, "R N C"]:
        """Attention of the tokens to the source.

        Args:
            x_RNC: tokens, the queries.
            source_RMC: the same tokens or others, the keys and values.
            bias: added to the scores; ``-inf`` masks a key.
            rotary: rotates queries and keys by their position: channel i with channel ``head_width / 2 + i``.
        """
        q, k, v = (
            layer(x).unflatten(2, (self.heads, -1))
            for layer, x in ((self.q, x_RNC), (self.k, source_RMC), (self.v, source_RMC))
        )
        if rotary is not None:  # reordering the channels of both does not change the scores
            q, k = (rotary.rotate(x.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)) for x in (q, k))
        return self.o(attend(q, k, v, Mask(bias=bias), scale=1.0).flatten(2))


class T5FeedForward(nn.Module):
    """Two linear layers with a ReLU in between.

    Args:
        width: channels of a token.
        hidden: channels inside.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.wi = nn.Linear(width, hidden, bias=False)
        self.wo = nn.Linear(hidden, width, bias=False)

    def forward(self, x_RNC: Float[Tensor, "R N C"]) -> Float[Tensor, "R N C"]:
        return self.wo(F.relu(self.wi(x_RNC)))


def t5_block(width: int, names: Sequence[str], parts: Sequence[nn.Module]) -> nn.ModuleDict:
    """A block with the key names of published state dicts: ``layer.K.NAME`` and ``layer.K.layer_norm``."""
    norms = (RMSNorm(width, eps=NORM_EPS) for _ in parts)
    named = zip(names, parts, norms, strict=True)
    return nn.ModuleDict({"layer": nn.ModuleList(nn.ModuleDict({n: p, "layer_norm": norm}) for n, p, norm in named)})
