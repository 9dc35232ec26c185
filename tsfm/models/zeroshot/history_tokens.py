"""How a long history becomes tokens: recent steps one by one, distant ones as averages.

Shapes: R rows (a variate of a window), L all steps, N tokens, P steps of a patch.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from tsfm.models.zeroshot.folds import CANDIDATES, PLAIN
from tsfm.nn import DEFAULT_LEVELS, check_levels
from tsfm_data.errors import InputError, check_model_sizes


@dataclass(frozen=True)
class LongHistoryConfig:
    """Sizes of a long-history decoder.

    Attributes:
        d_model: channels of a token.
        hidden: channels of the layer that sees a token and the candidates of a whole patch.
        step_channels: channels of each step of the patch after that layer.
        step_hidden: channels of the layer that turns these and the candidates of the step into quantiles.
        layers: Transformer blocks.
        heads: attention heads; ``d_model / heads`` must be a multiple of 4.
        patch_size: values of a token.
        detail: the latest steps, read one by one; a multiple of the patch size.
        distant: the steps before them, from recent to old: pairs of the steps averaged to one value, and the most
            tokens of such values.
        reach: patches ahead that one pass forecasts.
        periods: how many seasonal periods are looked for; 0 to 3.
        levels: trained quantile levels; others are interpolated.
    """

    d_model: int = 192
    hidden: int = 256
    step_channels: int = 16
    step_hidden: int = 64
    layers: int = 3
    heads: int = 6
    patch_size: int = 32
    detail: int = 512
    distant: tuple[tuple[int, int], ...] = ((4, 12), (16, 12))
    reach: int = 24
    periods: int = 3
    levels: tuple[float, ...] = DEFAULT_LEVELS

    def __post_init__(self) -> None:
        check_model_sizes(
            self,
            "d_model",
            "hidden",
            "step_channels",
            "step_hidden",
            "layers",
            "heads",
            "patch_size",
            "detail",
            "reach",
        )
        if not 0 <= self.periods <= 3:
            raise InputError(f"expected periods from 0 to 3, found {self.periods}: change it")
        if self.detail % self.patch_size:
            raise InputError(f"expected detail in whole patches of {self.patch_size} steps, found {self.detail}")
        check_levels(self.levels)

    @property
    def candidate_count(self) -> int:
        """Candidates for every step, D."""
        return PLAIN + CANDIDATES * self.periods

    @property
    def longest(self) -> int:
        """Steps of history that the tokens hold."""
        return self.detail + self.patch_size * sum(rate * count for rate, count in self.distant)

    @classmethod
    def tiny(cls) -> "LongHistoryConfig":
        """Sizes for tests and first tries."""
        return cls(
            d_model=16,
            hidden=32,
            step_channels=4,
            step_hidden=8,
            layers=1,
            heads=2,
            patch_size=4,
            detail=16,
            distant=((2, 2), (4, 2)),
            reach=4,
        )


class Layout(NamedTuple):
    """Which steps each token of a window holds.

    Attributes:
        rate: how many steps each value of a token averages; tokens are ordered from old to recent.
        end: the step after each token's last.
        groups: the different rates and the number of tokens of each, in the same order.
        steps: all steps, padding at the beginning included.
    """

    rate: Int[Tensor, " N"]
    end: Int[Tensor, " N"]
    groups: tuple[tuple[int, int], ...]
    steps: int


def make_layout(config: LongHistoryConfig, history: int, future: int, device: torch.device) -> Layout:
    """As few tokens as ``history`` steps need, or as many as there are, and those of ``future`` steps, one by one."""
    patch = config.patch_size
    fine = min(config.detail // patch, -(-history // patch))
    left = history - fine * patch
    groups = [(1, fine + -(-future // patch))]
    for rate, most in config.distant:
        count = min(most, -(-max(left, 0) // (rate * patch)))
        left -= count * rate * patch
        groups.insert(0, (rate, count))
    rates = [rate for rate, count in groups for _ in range(count)]
    rate_N = torch.tensor(rates, device=device)
    return Layout(rate_N, (rate_N * patch).cumsum(0), tuple(groups), sum(rates) * patch)


def token_values(
    x_RL: Float[Tensor, "R L"], seen_RL: Bool[Tensor, "R L"], layout: Layout, patch: int
) -> tuple[Float[Tensor, "R N P"], Float[Tensor, "R N P"]]:
    """Values of every token, 0 where nothing is seen, and the share of the steps behind each value that is seen.

    Args:
        x_RL: values, 0 where not seen.
        seen_RL: where there is a value.
        layout: the tokens of L steps.
        patch: P.
    """
    values, shares, start = [], [], 0
    seen = seen_RL.to(x_RL.dtype)
    for rate, count in layout.groups:
        end = start + rate * count * patch
        part, share = (x[:, start:end].unflatten(1, (count, patch, rate)) for x in (x_RL, seen))
        share = share.sum(-1)
        values.append(part.sum(-1) / share.clamp(min=1))
        shares.append(share / rate)
        start = end
    return torch.cat(values, 1), torch.cat(shares, 1)


def fit(x_RL: Any, steps: int) -> Any:
    """The last ``steps`` steps, padded in front with 0 (not seen) if there are fewer."""
    missing = steps - x_RL.shape[1]
    return F.pad(x_RL, (missing, 0)) if missing >= 0 else x_RL[:, -missing:]
