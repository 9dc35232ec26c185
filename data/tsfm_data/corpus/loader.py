"""Training batches of windows, mixed from a corpus and from generators of synthetic series.

Letters as in ``tsfm_data.windows.batch``; L: steps of a window, T + H.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32

from tsfm_data.corpus.augmentation import AugmentConfig, augment, averaging_widths, resampling_rates
from tsfm_data.corpus.counted import CountedLoader
from tsfm_data.corpus.sampler import WindowPositions, WindowSampler
from tsfm_data.corpus.store import Source, Store
from tsfm_data.errors import InputError, check_sizes, unknown_name
from tsfm_data.windows import B, Batch

MIN_CROPPED = 8  # steps of history that cropping leaves at least
MIN_RESAMPLED = 32  # steps that a series must still have after it was made coarser


NO_AUGMENTATION = AugmentConfig()


@runtime_checkable
class Synthetic(Protocol):
    """A generator of series, for instance ``tsfm_data.synthetic.SyntheticMixture``."""

    def sample(self, count: int, length: int, rng: np.random.Generator) -> Float32[np.ndarray, "count length"]:
        """``count`` fresh series of ``length`` steps."""


class MixedLoader(CountedLoader[B]):
    """Batches of series: from the sources of a store by weight, and fresh synthetic ones.

    Args:
        store: the corpus, or None for synthetic series alone.
        synthetic: the generators, or None for the corpus alone.
        horizon: steps to forecast; at most twice as many are held out at the end of a series.
        batch_size: series in a batch.
        synthetic_share: share of the series that are synthetic, if there are both.
        augment: the share of the series that each augmentation changes.
        holdout: share of every series of the corpus, at its end, that is never used.
        held_out: names of sources that are never used.
        variates: variates of a series.
        **counting: options of ``CountedLoader``: batches of an epoch, seed, rank, world, prefetch.

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
        augment: AugmentConfig = NO_AUGMENTATION,
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
        sources = None if store is None else training_sources(store, held_out)
        self.window_sampler = None if sources is None else WindowSampler(sources, horizon, holdout, variates)

    def sample_series(self, count: int, rng: np.random.Generator) -> WindowPositions | None:
        """Sample series of the corpus, not yet cut; the rest of ``count`` will be synthetic. None if all are."""
        synthetic = int(count * self.synthetic_share + rng.random())
        if self.window_sampler is None or synthetic >= count:
            return None
        positions = self.window_sampler.sample_series(count - synthetic, rng)
        if self.augment.resample:
            stride, refinement = resampling_rates(len(positions), self.augment.resample, rng)
            long_enough = positions.end >= MIN_RESAMPLED * stride
            positions = replace(positions, stride=np.where(long_enough, stride, 1), refinement=refinement)
        if self.augment.average:
            width = averaging_widths(positions.end // MIN_RESAMPLED, self.augment.average, rng)
            unchanged = (positions.stride == 1) & (positions.refinement == 1)
            positions = replace(positions, average=np.where(unchanged, width, 1))
        return positions


class CorpusLoader(MixedLoader[Batch]):
    """Batches of random windows: from the sources of a store by weight, and from fresh synthetic series.

    A window's history may be shorter than the context and its future shorter than the horizon; both are padded with
    zeros that are marked as not observed. Batches are in the units of the data.

    Args:
        store: the corpus, or None for synthetic series alone.
        synthetic: the generators, or None for the corpus alone.
        context: context steps of every window, T.
        horizon: steps to forecast, H.
        crop: share of the windows whose history is shortened, to a length between 8 and T, log-uniform; its last eight
            observed steps stay.
        augment: the share of the windows that each augmentation changes.
        variates: variates of a window, V. Above 1, windows come from items with at least V variates, and each shows a
            random choice of them; synthetic variates are independent of each other. ``mixup`` and ``flip_time``, which
            would misalign variates, are then turned off.
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
        augment: AugmentConfig = NO_AUGMENTATION,
        variates: int = 1,
        **options: Any,
    ) -> None:
        aligned = augment if variates == 1 else replace(augment, mixup=0.0, flip_time=0.0)
        super().__init__(store, synthetic, horizon, augment=aligned, variates=variates, **options)
        check_sizes(context=context)
        check_share("crop", crop)
        self.context, self.horizon, self.crop, self.variates = context, horizon, crop, variates

    def make_batch(self, rng: np.random.Generator) -> Batch:
        """Make one batch: windows of the corpus first, then synthetic ones."""
        values_RL = self.sample_windows(self.batch_size, rng)
        augment(values_RL, self.context, self.augment, rng)
        values_BVL = values_RL.reshape(self.batch_size, self.variates, -1)
        crop_histories(values_BVL, self.context, self.crop, rng)
        return to_batch(values_BVL, self.context)

    def sample_windows(self, count: int, rng: np.random.Generator) -> Float32[np.ndarray, "R L"]:
        """Windows before augmentation and cropping, one row per variate, NaN where nothing is observed."""
        positions, sampler, synthetic = self.sample_series(count, rng), self.window_sampler, self.synthetic
        parts, remaining = [], count - (0 if positions is None else len(positions))
        if positions is not None and sampler is not None:
            positions = sampler.cut_at_random(positions, rng)
            positions = positions if self.variates == 1 else sampler.choose_variates(positions, rng)
            parts.append(sampler.read(positions, self.context, self.horizon))
        if remaining and synthetic is not None:
            parts.append(synthetic.sample(remaining * self.variates, self.context + self.horizon, rng))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def check_share(name: str, share: float) -> None:
    """Raise an ``InputError`` unless ``share`` lies in [0, 1]."""
    if not 0 <= share <= 1:
        raise InputError(f"{name}: expected a share in [0, 1], found {share}")


def training_sources(store: Store, held_out: Sequence[str]) -> list[Source]:
    """The sources of a store without those held out.

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
    """Remove the beginning of a share of the histories, except their last eight observed steps, in place."""
    rows = np.flatnonzero(rng.random(len(values_BVL)) < share)
    shortest = min(MIN_CROPPED, context)
    lengths = np.exp(rng.uniform(np.log(shortest), np.log(context + 1), len(rows))).astype(np.int64)
    for row, begin in zip(rows.tolist(), (context - lengths).tolist(), strict=True):
        observed = np.flatnonzero(~np.isnan(values_BVL[row, :, :context]).all(axis=0))
        values_BVL[row, :, : min([begin, *observed[-shortest:]])] = np.nan


def to_batch(values_BVL: Float32[np.ndarray, "B V L"], context: int, season: int = 1) -> Batch:
    """Convert windows with NaN where nothing is observed to a ``Batch``; the array is overwritten."""
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
