"""Synthetic series for pretraining: families of generators, and a mixture of them drawn fresh for every batch."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from jaxtyping import Float, Float32

from tsfm_data.errors import InputError, unknown_name
from tsfm_data.synthetic import (
    arma,
    calendar,
    chaos,
    ets,
    events,
    gp,
    intermittent,
    macro,
    regime,
    spikes,
    trend_season,
)

Generator = Callable[[int, int, np.random.Generator], Float[np.ndarray, "count length"]]
# name -> f(count, length, rng): float32 of finite values, one series a row
GENERATORS: Mapping[str, Generator] = MappingProxyType(
    {
        "trend_season": trend_season.trend_season,
        "gp": gp.gp,
        "calendar": calendar.calendar,
        "macro": macro.macro,
        "arma": arma.arma,
        "ets": ets.ets,
        "regime": regime.regime,
        "events": events.events,
        "intermittent": intermittent.intermittent,
        "spikes": spikes.spikes,
        "chaos": chaos.chaos,
    }
)
# Families that look like most real series often, those that are there for their edges seldom.
WEIGHTS: Mapping[str, float] = MappingProxyType(
    {
        "trend_season": 0.26,
        "gp": 0.16,
        "calendar": 0.14,
        "macro": 0.1,
        "arma": 0.08,
        "ets": 0.08,
        "regime": 0.06,
        "events": 0.05,
        "intermittent": 0.03,
        "spikes": 0.03,
        "chaos": 0.01,
    }
)


__all__ = ["GENERATORS", "WEIGHTS", "Generator", "SyntheticMixture"]


class SyntheticMixture:
    """Draws every series from one of several families.

    Args:
        weights: family -> how often it is drawn, relative to the others; ``WEIGHTS`` by default.

    Raises:
        InputError: an unknown family, a weight that is negative or not finite, or no weight above zero.
    """

    def __init__(self, weights: Mapping[str, int | float] | None = None) -> None:
        chosen = dict(WEIGHTS if weights is None else weights)
        for name, weight in chosen.items():
            if name not in GENERATORS:
                raise unknown_name("family of synthetic series", str(name), GENERATORS)
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
                raise InputError(f"synthetic weights: expected a number of at least 0 for {name}, found {weight!r}")
        total = float(sum(chosen.values()))
        if total <= 0:
            raise InputError(f"synthetic weights: expected one above 0, found {chosen}: name one of {list(GENERATORS)}")
        self.weights = {name: weight / total for name, weight in chosen.items() if weight > 0}

    def draw(self, count: int, length: int, rng: np.random.Generator) -> Float32[np.ndarray, "count length"]:
        """Fresh series, each of a family drawn by weight.

        Args:
            count: series.
            length: steps of each, at least 1.
            rng: source of randomness; the same state gives the same series.
        """
        shares = rng.multinomial(count, list(self.weights.values()))
        rows = rng.permutation(count)
        out = np.empty((count, length), np.float32)
        for name, part in zip(self.weights, np.split(rows, np.cumsum(shares)[:-1]), strict=True):
            if len(part):
                out[part] = GENERATORS[name](len(part), length, rng)
        return out
