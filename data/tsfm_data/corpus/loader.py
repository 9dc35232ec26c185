"""Training windows of a corpus and of generators, mixed batch by batch.

Letters as in ``tsfm_data.windows.batch``; L: steps of a window, T + H.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32

from tsfm_data.corpus.augmentation import AugmentConfig, augment, rates
from tsfm_data.corpus.counted import CountedLoader
from tsfm_data.corpus.sampler import Drawer, Drawn
from tsfm_data.corpus.store import Source, Store
from tsfm_data.errors import InputError, check_sizes, unknown_name
from tsfm_data.windows import B, Batch

SHORTEST = 8  # steps of the shortest history that cropping leaves
COARSE = 32  # steps that a series must keep where it is shown coarser


OFF = AugmentConfig()


@runtime_checkable
class Synthetic(Protocol):
    """Whatever draws series, for instance ``tsfm_data.synthetic.SyntheticMixture``."""

    def draw(self, count: int, length: int, rng: np.random.Generator) -> Float32[np.ndarray, "count length"]:
        """So many fresh series of so many steps."""


class MixedLoader(CountedLoader[B]):
    """Batches of series of a store, by weight of their sources, and of fresh synthetic ones.

    Args:
        store: the corpus, or None for synthetic series alone.
        synthetic: the generators, or None for the corpus alone.
        horizon: steps to forecast; twice so many at the end of a series are held out at most.
        batch_size: series in a batch.
        synthetic_share: share of the series that are synthetic, where there are both.
        augment: how often series are changed, and how.
        holdout: share of every series of the corpus, at its end, that is never shown.
        held_out: names of sources that are never shown.
        variates: variates of a series.
        **counting: of the stream, as for ``CountedLoader``: batches of an epoch, seed, rank, world, prefetch.

    Raises:
        InputError: there is neither corpus nor generator, a name is unknown, or a number is out of range.
    """

    def __init__(
        self,
        store: Store | None,
        synthetic: Synthetic | None,
        horizon: int,
        *,
        batch_size: int,
        synthetic_share: float = 0.25,
        augment: AugmentConfig = OFF,
        holdout: float = 0.1,
        held_out: Sequence[str] = (),
        variates: int = 1,
        **counting: int,
    ) -> None:
        super().__init__(**counting)
        check_sizes(horizon=horizon, batch_size=batch_size, variates=variates)
        check_share("synthetic_share", synthetic_share)
        if store is None and synthetic is None:
            raise InputError("expected a corpus or synthetic series to train on, found neither")
        self.batch_size, self.synthetic, self.augment = batch_size, synthetic, augment
        self.synthetic_share = 1.0 if store is None else 0.0 if synthetic is None else synthetic_share
        shown = None if store is None else shown_sources(store, held_out)
        self.drawer = None if shown is None else Drawer(shown, horizon, holdout, variates)

    def draw(self, count: int, rng: np.random.Generator) -> Drawn | None:
        """Series of the corpus, not yet cut; the rest of ``count`` are to be synthetic. None: all are."""
        made = int(count * self.synthetic_share + rng.random())
        if self.drawer is None or made >= count:
            return None
        drawn = self.drawer.series(count - made, rng)
        if self.augment.resample:
            up, down = rates(len(drawn), self.augment.resample, rng)
            drawn = replace(drawn, up=np.where(drawn.end >= COARSE * up, up, 1), down=down)
        return drawn


class CorpusLoader(MixedLoader[Batch]):
    """Batches of random windows: of the sources of a store by weight, and of fresh synthetic series.

    A window's history may be shorter than the context and its future shorter than the horizon; both are filled with
    zeros and marked as not observed. Batches are in the units of the data.

    Args:
        store: the corpus, or None for synthetic series alone.
        synthetic: the generators, or None for the corpus alone.
        context: context steps of every window, T.
        horizon: steps to forecast, H.
        crop: share of the windows whose history is cut short, to a length between 8 and T, even on a logarithmic scale.
        augment: how often windows are changed, and how.
        variates: variates of a window, V. Above 1, windows are of items with at least so many, of which each shows a
            random choice; synthetic ones are independent of each other. Mixup and backward time, which would take
            variates out of step, are then left out of ``augment``.
        **options: as for ``MixedLoader``.

    Raises:
        InputError: as ``MixedLoader``.
    """

    def __init__(
        self,
        store: Store | None,
        synthetic: Synthetic | None = None,
        *,
        context: int,
        horizon: int,
        crop: float = 0.25,
        augment: AugmentConfig = OFF,
        variates: int = 1,
        **options: Any,
    ) -> None:
        kept = augment if variates == 1 else replace(augment, mixup=0.0, flip_time=0.0)
        super().__init__(store, synthetic, horizon, augment=kept, variates=variates, **options)
        check_sizes(context=context)
        check_share("crop", crop)
        self.context, self.horizon, self.crop, self.variates = context, horizon, crop, variates

    def make(self, rng: np.random.Generator) -> Batch:
        """One batch: windows of the corpus first, synthetic ones behind them."""
        values_RL = self.windows(self.batch_size, rng)
        augment(values_RL, self.context, self.augment, rng)
        values_BVL = values_RL.reshape(self.batch_size, self.variates, -1)
        crop_histories(values_BVL, self.context, self.crop, rng)
        return to_batch(values_BVL, self.context)

    def windows(self, count: int, rng: np.random.Generator) -> Float32[np.ndarray, "R L"]:
        """Whole windows, a row for each of their variates, NaN where nothing is observed."""
        drawn, drawer, synthetic = self.draw(count, rng), self.drawer, self.synthetic
        parts, made = [], count - (0 if drawn is None else len(drawn))
        if drawn is not None and drawer is not None:
            placed = drawer.place(drawn, rng)
            placed = placed if self.variates == 1 else drawer.variates(placed, rng)
            parts.append(drawer.read(placed, self.context, self.horizon))
        if made and synthetic is not None:
            parts.append(synthetic.draw(made * self.variates, self.context + self.horizon, rng))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def check_share(name: str, share: float) -> None:
    """Raise an ``InputError`` unless ``share`` lies in [0, 1]."""
    if not 0 <= share <= 1:
        raise InputError(f"{name}: expected a share in [0, 1], found {share}")


def shown_sources(store: Store, held_out: Sequence[str]) -> list[Source]:
    """The sources of a store that are trained on.

    Raises:
        InputError: a name is not that of a source.
    """
    names = [source.name for source in store.sources]
    for name in held_out:
        if name not in names:
            raise unknown_name("source in held_out", name, names)
    return [source for source in store.sources if source.name not in held_out]


def crop_histories(
    values_BVL: Float32[np.ndarray, "B V L"], context: int, share: float, rng: np.random.Generator
) -> None:
    """Forget, in place, the beginning of the histories of a share of the windows."""
    rows = np.flatnonzero(rng.random(len(values_BVL)) < share)
    shortest = min(SHORTEST, context)
    kept = np.exp(rng.uniform(np.log(shortest), np.log(context + 1), len(rows))).astype(np.int64)
    for row, begin in zip(rows.tolist(), (context - kept).tolist(), strict=True):
        values_BVL[row, :, :begin] = np.nan


def to_batch(values_BVL: Float32[np.ndarray, "B V L"], context: int, season: int = 1) -> Batch:
    """Windows with NaN where nothing is observed, as a ``Batch``; the array is used up."""
    values = torch.from_numpy(values_BVL).transpose(1, 2)
    observed = ~values.isnan()
    values.nan_to_num_(nan=0.0)
    return Batch(
        past=values[:, :context],
        past_observed=observed[:, :context],
        horizon=values.shape[1] - context,
        season=season,
        future=values[:, context:],
        future_observed=observed[:, context:],
    )
