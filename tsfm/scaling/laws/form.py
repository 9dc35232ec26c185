"""The joint scaling law of Hoffmann et al. 2022 (arXiv 2203.15556, equation 2), and what follows from it.

    L(N, D) = E + A / N^alpha + B / D^beta,    training compute C = 6 N D

Every function takes numbers, or arrays of one shape, such as one entry per draw of a bootstrap.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

NAMES = ("E", "A", "B", "alpha", "beta")
TINIEST = 1e-300  # of constants whose logarithm is taken
FLOPS_PER_TOKEN = 6.0  # of training, per parameter: forward 2, backward 4
FLOPS_PER_INFERENCE_TOKEN = 2.0
Numbers = float | np.ndarray

# Hoffmann et al. 2022, approach 3; Besiroglu et al. 2024 (arXiv 2404.10102), bootstrap estimate on 240 runs.
PUBLISHED = {
    "Hoffmann et al. 2022": (1.69, 406.4, 410.7, 0.34, 0.28),
    "Besiroglu et al. 2024": (1.81686, 482.00572, 2085.4342, 0.34781, 0.36585),
}
# Yao et al. 2025 (arXiv 2410.12360), figures of the notebooks of the paper: exponents of pure power laws of the
# negative log-likelihood of time-series models in parameters N, data D and compute C; in distribution, LSF, Monash.
PUBLISHED_EXPONENTS = {
    "encoder": {"N": (0.029, 0.026, 0.023), "D": (0.094, 0.029, 0.023), "C": (0.024, 0.020, 0.020)},
    "decoder": {"N": (0.015, 0.016, 0.017), "D": (0.090, 0.019, 0.030), "C": (0.014, 0.017, 0.013)},
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

    @classmethod
    def of_fits(cls, rows: Float64[np.ndarray, "draws 5"]) -> "JointLaw":
        """The same for constants of fits, in columns [draws, 1]: other constants than E are at least tiny."""
        return cls(*at_least_tiny(rows).T[:, :, None])

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


def at_least_tiny(rows: Float64[np.ndarray, "draws 5"]) -> Float64[np.ndarray, "draws 5"]:
    """Constants of which all but E are above 0."""
    return np.maximum(rows, [-np.inf, TINIEST, TINIEST, TINIEST, TINIEST])


def training_flops(params: Numbers, tokens: Numbers) -> Numbers:
    """Training compute by the rule 6 N D, which leaves out attention and is wrong for very small models."""
    return FLOPS_PER_TOKEN * params * tokens
