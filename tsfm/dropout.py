"""Dropout with a mask that is cheap to draw on a CPU; the same distribution as PyTorch's."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


def dropout(x: Float[Tensor, "*shape"], p: float, training: bool) -> Float[Tensor, "*shape"]:
    """Set a share ``p`` of the elements to 0 and scale the rest by ``1 / (1 - p)``; ``x`` itself outside training."""
    return F.dropout(x, p, training)


class Dropout(nn.Module):
    """A drop-in for ``torch.nn.Dropout``.

    Args:
        p: the share of elements set to 0 in training.
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"expected a dropout share of at least 0 and below 1, found {p}")
        self.p = p

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """``x`` with a share of its elements dropped in training, unchanged otherwise."""
        return dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        """The share, for ``print(model)``."""
        return f"p={self.p}"
