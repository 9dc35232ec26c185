"""The joint scaling law of Hoffmann et al. 2022 (arXiv 2203.15556, equation 2), and what follows from it.

    L(N, D) = E + A / N^alpha + B / D^beta,    training compute C = 6 N D

Every function takes numbers, or arrays of one shape, such as one entry per draw of a bootstrap.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

NAMES = ("E", "A", "B", "alpha", "beta")
FLOPS_PER_TOKEN = 6.0  # of training, per parameter: forward 2, backward 4
FLOPS_PER_INFERENCE_TOKEN = 2.0
Numbers = float | np.ndarray

# Hoffmann et al. 2022, approach 3; Besiroglu et al. 2024 (arXiv 2404.10102), bootstrap estimate on 240 runs.
PUBLISHED = {
    "Hoffmann et al. 2022": (1.69, 406.4, 410.7, 0.34, 0.28),
    "Besiroglu et al. 2024": (1.81686, 482.00572, 2085.4342, 0.34781, 0.36585),
}


@dataclass(frozen=True)
class JointLaw:
    """The constants of the joint law: numbers, or arrays with one entry per draw."""

    E: Numbers
    A: Numbers
    B: Numbers
    alpha: Numbers
    beta: Numbers

    @classmethod
    def from_rows(cls, rows: Float64[np.ndarray, "draws 5"]) -> "JointLaw":
        """The laws whose constants are the rows of an array, in the order of ``NAMES``."""
        return cls(*np.asarray(rows).T)

    def loss(self, params: Numbers, tokens: Numbers) -> Numbers:
        """The expected loss."""
        return self.E + self.A * params**-self.alpha + self.B * tokens**-self.beta

    @property
    def size_exponent(self) -> Numbers:
        """a in N_opt = G (C / 6)^a."""
        return self.beta / (self.alpha + self.beta)

    def optimal_params(self, flops: Numbers) -> Numbers:
        """The size that gives the least loss for a training compute of ``flops``."""
        scale = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        return scale * (flops / FLOPS_PER_TOKEN) ** self.size_exponent

    def tokens_for(self, params: Numbers, loss: Numbers) -> Numbers:
        """Tokens with which a model of a size reaches a loss; infinite if it never does."""
        left = np.asarray(loss - self.E - self.A * params**-self.alpha)
        return np.where(left > 0, (self.B / np.where(left > 0, left, 1.0)) ** (1 / self.beta), np.inf)

    def params_for(self, tokens: Numbers, loss: Numbers) -> Numbers:
        """The size that reaches a loss on a number of tokens; infinite if none does."""
        left = np.asarray(loss - self.E - self.B * tokens**-self.beta)
        return np.where(left > 0, (self.A / np.where(left > 0, left, 1.0)) ** (1 / self.alpha), np.inf)


def training_flops(params: Numbers, tokens: Numbers) -> Numbers:
    """Training compute by the rule 6 N D, which leaves out attention and is wrong for very small models."""
    return FLOPS_PER_TOKEN * params * tokens
