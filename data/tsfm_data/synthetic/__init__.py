"""Synthetic series for pretraining: families of generators, and a mixture that samples from them.

A family is a file in this folder that defines three names: a function with the file's name; ``WEIGHT``, its relative
frequency in the mixture (high if many real series look like it); and ``ABOUT``, a description in a few words.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from types import MappingProxyType, ModuleType

import numpy as np
from jaxtyping import Float, Float32

from tsfm_data.errors import InputError, unknown_name

Generator = Callable[[int, int, np.random.Generator], Float[np.ndarray, "count length"]]


def _families() -> dict[str, ModuleType]:
    """Name -> module of each family, by descending weight; the samples of the mixture depend on this order."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    modules = {name: importlib.import_module(f"{__name__}.{name}") for name in names}
    families = {name: module for name, module in modules.items() if hasattr(module, "WEIGHT")}
    return dict(sorted(families.items(), key=lambda family: (-family[1].WEIGHT, family[0])))


# name -> f(count, length, rng): float32 of finite values, one series per row
GENERATORS: Mapping[str, Generator] = MappingProxyType({name: getattr(m, name) for name, m in _families().items()})
WEIGHTS: Mapping[str, float] = MappingProxyType({name: m.WEIGHT for name, m in _families().items()})
ABOUT: Mapping[str, str] = MappingProxyType({name: m.ABOUT for name, m in _families().items()})

__all__ = ["ABOUT", "GENERATORS", "WEIGHTS", "Generator", "SyntheticMixture"]


class SyntheticMixture:
    """Samples series from several families.

    Args:
        weights: family -> relative frequency; ``WEIGHTS`` by default.

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

    def sample(self, count: int, length: int, rng: np.random.Generator) -> Float32[np.ndarray, "count length"]:
        """Sample series, each from a family chosen by weight.

        Args:
            count: number of series.
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
