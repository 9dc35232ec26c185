"""Packing patches of several series into rows, the training input of the scaling-law models (Yao et al., ICLR 2025).

Letters: R rows, N tokens of a row, P steps of a token; S series, L steps of the longest.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

from tsfm_data.corpus.augmentation import augment
from tsfm_data.corpus.loader import MixedLoader, Synthetic
from tsfm_data.corpus.sampler import WindowPositions, held_tail
from tsfm_data.corpus.store import Store
from tsfm_data.errors import InputError, check_sizes

Rows = TypeVar("Rows", bound="PackedRows")

CROP = (0.5, 1.0)  # share of the patches of a series that a crop contains
MASKED = (0.15, 0.5)  # share of the tokens of a crop, at its end, that are to be predicted
SYNTHETIC = np.iinfo(np.int64).max  # greater than the number of any source
SHARING = 8  # neighbouring processes, such as those of one machine, that balance their crops


@dataclass(frozen=True, eq=False)
class PackedRows:
    """Rows of patches.

    Attributes:
        target: values of every patch, 0 where not observed.
        observed: where ``target`` is observed.
        sample_id: series of every token, 1, 2, ... within a row; 0 for padding, which attention ignores.
        time_id: position of every token within its series, counted in patches.
        variate_id: variate of every token within its series.
        is_predicted: tokens to predict; scaler and encoder do not see their values.
    """

    target: Float[Tensor, "R N P"]
    observed: Bool[Tensor, "R N P"]
    sample_id: Int[Tensor, "R N"]
    time_id: Int[Tensor, "R N"]
    variate_id: Int[Tensor, "R N"]
    is_predicted: Bool[Tensor, "R N"]

    def to(self: Rows, device: torch.device | str) -> Rows:
        """A copy on another device."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        return replace(self, **{name: x.to(device) for name, x in tensors.items()})

    def __len__(self) -> int:
        return len(self.sample_id)


@dataclass(frozen=True)
class Crops:
    """Crops of series: first those of the corpus, by source, then those that will be synthetic.

    Attributes:
        positions: where those of the corpus are; None without a corpus.
        shown: tokens of every crop.
        predicted: tokens to predict, at the end of every crop.
    """

    positions: WindowPositions | None
    shown: Int[np.ndarray, " S"]
    predicted: Int[np.ndarray, " S"]


class PackedLoader(MixedLoader[PackedRows]):
    """Rows of patches of random crops: from the sources of a store by weight, and from fresh synthetic series.

    A crop contains 50 to 100 % of the whole patches of its series (``tokens`` at most), at a random position; its last
    15 to 50 % are to be predicted. A series shorter than two patches is cut at a random step: the part before the cut
    ends the first patch, the rest begins the second. The crops of a batch are packed by first-fit-decreasing, so the
    number of rows varies.

    Up to ``SHARING`` neighbouring ranks draw the crops of all of them and deal them out by length, so that each has the
    same number of crops and about as many tokens, and none waits for another.

    Args:
        store: the corpus, or None for synthetic series alone.
        synthetic: the generators, or None for the corpus alone.
        patch_size: steps of a token, P.
        tokens: tokens of a row, N.
        horizon: at most twice as many steps are held out at the end of a series.
        **options: as for ``MixedLoader``.

    Raises:
        InputError: as ``MixedLoader``.
    """

    def __init__(
        self,
        store: Store | None,
        synthetic: Synthetic | None = None,
        *,
        patch_size: int,
        tokens: int,
        horizon: int = 64,
        **options: Any,
    ) -> None:
        super().__init__(store, synthetic, horizon, **options)
        check_sizes(patch_size=patch_size)
        if tokens < 2:
            raise InputError(f"tokens: expected at least 2, found {tokens}")
        self.patch_size, self.tokens = patch_size, tokens

    def batch(self, epoch: int, number: int) -> PackedRows:
        """Batch ``number`` of this rank in an epoch."""
        first = self.rank - self.rank % SHARING
        sharing = range(first, min(first + SHARING, self.world))
        if len(sharing) == 1:
            return super().batch(epoch, number)
        generators = [self.generator(epoch, number, rank) for rank in sharing]
        mine = deal([self.draw_crops(rng) for rng in generators], self.rank - first)
        return self.fill(mine, generators[self.rank - first])

    def make_batch(self, rng: np.random.Generator) -> PackedRows:
        """Make one batch."""
        return self.fill(self.draw_crops(rng), rng)

    def draw_crops(self, rng: np.random.Generator) -> Crops:
        """Draw the crops of one batch; no value is read."""
        positions = self.sample_series(self.batch_size, rng)
        patches = np.full(self.batch_size, self.tokens, dtype=np.int64)
        if positions is not None:
            positions = self.drop_tails(positions)
            patches[: len(positions)] = np.clip(
                positions.end * positions.refinement // positions.coarser // self.patch_size, 2, self.tokens
            )
        # At least 2 tokens: one of history, one to predict.
        shown = np.maximum(np.ceil(patches * rng.uniform(*CROP, len(patches))), 2).astype(np.int64)
        predicted = np.rint(shown * rng.uniform(*MASKED, len(shown))).astype(np.int64).clip(1, shown - 1)
        if positions is not None:
            positions = cut_crops(positions, shown[: len(positions)] * self.patch_size, rng)
        return Crops(positions, shown, predicted)

    def fill(self, crops: Crops, rng: np.random.Generator) -> PackedRows:
        """Read or generate the values of crops, augment them and pack them into rows."""
        parts = list(self.read_crops(crops.positions, crops.shown, rng))
        return arrange_rows(parts, crops.shown, crops.predicted, self.tokens, self.patch_size)

    def drop_tails(self, positions: WindowPositions) -> WindowPositions:
        """Shorten series by their held-out tails."""
        sampler = self.window_sampler
        if sampler is None:
            return positions
        return replace(positions, end=positions.end - held_tail(positions.end, sampler.holdout, sampler.horizon))

    def read_crops(
        self, positions: WindowPositions | None, shown: Int[np.ndarray, " S"], rng: np.random.Generator
    ) -> Iterator[tuple[Int[np.ndarray, " s"], Float32[np.ndarray, "s L"]]]:
        """Read crops in groups of similar length: their numbers and values; a row may hold more steps than its crop."""
        real = 0 if positions is None else len(positions)
        octave = np.ceil(np.log2(shown)).astype(np.int64)
        for k in np.unique(octave):
            rows = np.flatnonzero(octave == k)
            steps = min(2 ** int(k), self.tokens) * self.patch_size
            values = np.empty((len(rows), steps), dtype=np.float32)
            from_corpus = int(np.searchsorted(rows, real))
            if positions is not None and self.window_sampler is not None and from_corpus:
                values[:from_corpus] = self.window_sampler.read(positions[rows[:from_corpus]], 0, steps)
            if self.synthetic is not None and from_corpus < len(rows):
                values[from_corpus:] = self.synthetic.sample(len(rows) - from_corpus, steps, rng)
            augment(
                values, steps // 4, self.augment, rng
            )  # the missing block lies in the first quarter, before the tokens to predict
            yield rows, values


def deal(batches: Sequence[Crops], rank: int) -> Crops:
    """The crops of one rank when those of several batches are dealt out by length, back and forth."""
    shown, predicted = (np.concatenate([getattr(b, name) for b in batches]) for name in ("shown", "predicted"))
    source = np.concatenate([crop_sources(batch) for batch in batches])
    turn = np.arange(len(shown)) % (2 * len(batches))
    taken = np.argsort(-shown, kind="stable")[np.minimum(turn, 2 * len(batches) - 1 - turn) == rank]
    taken = taken[np.lexsort((taken, source[taken]))]
    positions = [batch.positions for batch in batches if batch.positions is not None]
    if not positions:
        return Crops(None, shown[taken], predicted[taken])
    joined = {f.name: np.concatenate([getattr(p, f.name) for p in positions]) for f in fields(WindowPositions)}
    place = np.cumsum(source < SYNTHETIC) - 1
    real = taken[source[taken] < SYNTHETIC]
    return Crops(WindowPositions(**joined)[place[real]], shown[taken], predicted[taken])


def crop_sources(crops: Crops) -> Int[np.ndarray, " S"]:
    """The source of every crop, ``SYNTHETIC`` if it has none."""
    source = np.full(len(crops.shown), SYNTHETIC)
    if crops.positions is not None:
        source[: len(crops.positions)] = crops.positions.source
    return source


def cut_crops(positions: WindowPositions, steps: Int[np.ndarray, " S"], rng: np.random.Generator) -> WindowPositions:
    """Cut each series at a random position where a crop of ``steps`` steps begins.

    A series shorter than two patches gets a crop of two patches that contains all of it, on both sides of the border
    between the patches.
    """
    length = positions.end * positions.refinement // positions.coarser
    patch = steps // 2
    low = np.where(length >= steps, 0, np.maximum(1, length - patch) - patch)
    high = np.where(length >= steps, length - steps, np.minimum(patch, length - 1) - patch)
    begin = low + (rng.random(len(steps)) * (high - low + 1)).astype(np.int64)
    return replace(positions, cut=-(-begin * positions.coarser // positions.refinement))


def first_fit_decreasing(
    sizes: Int[np.ndarray, " S"], capacity: int
) -> tuple[Int[np.ndarray, " S"], Int[np.ndarray, " S"]]:
    """Pack pieces into rows by first-fit-decreasing (at most 11/9 of the fewest possible rows, plus 1).

    Args:
        sizes: of the pieces, from 1 to ``capacity``.
        capacity: of a row.

    Returns:
        The row of every piece, and its offset in the row.
    """
    row, begin = np.empty((2, len(sizes)), dtype=np.int64)
    left = np.full(len(sizes), capacity, dtype=np.int64)
    for piece in np.argsort(-sizes, kind="stable").tolist():
        size = sizes[piece]
        first_fit = int((left >= size).argmax())
        row[piece], begin[piece] = first_fit, capacity - left[first_fit]
        left[first_fit] -= size
    return row, begin


def arrange_rows(
    parts: Sequence[tuple[Int[np.ndarray, " _"], Float32[np.ndarray, "_ _"]]],
    shown: Int[np.ndarray, " S"],
    predicted: Int[np.ndarray, " S"],
    tokens: int,
    patch_size: int,
) -> PackedRows:
    """Arrange crops in rows of tokens.

    Args:
        parts: numbers of crops and their values, NaN where nothing is observed; steps after a crop are ignored.
        shown: tokens of every crop.
        predicted: tokens to predict, at the end of every crop.
        tokens: of a row.
        patch_size: steps of a token.
    """
    row, begin = first_fit_decreasing(shown, tokens)
    rows = int(row.max()) + 1
    target = np.full((rows * tokens, patch_size), np.nan, dtype=np.float32)
    for numbers, values in parts:
        pieces = values.reshape(len(numbers), -1, patch_size)
        token = np.arange(pieces.shape[1])
        real = token < shown[numbers, None]
        position = (row * tokens + begin)[numbers, None] + token
        target[position[real]] = pieces[real]
    sample_id, time_id = np.zeros((2, rows * tokens), dtype=np.int64)
    is_predicted = np.zeros(rows * tokens, dtype=bool)
    within = np.arange(shown.sum()) - np.repeat(np.cumsum(shown) - shown, shown)
    position = np.repeat(row * tokens + begin, shown) + within
    order = np.lexsort((begin, row))
    number = np.empty(len(row), dtype=np.int64)
    number[order] = np.arange(len(row)) - np.searchsorted(row[order], row[order]) + 1
    sample_id[position], time_id[position] = np.repeat(number, shown), within
    is_predicted[position] = within >= np.repeat(shown - predicted, shown)
    patches = torch.from_numpy(target).view(rows, tokens, patch_size)
    observed = ~patches.isnan()
    ids = [torch.from_numpy(x).view(rows, tokens) for x in (sample_id, time_id, is_predicted)]
    return PackedRows(patches.nan_to_num_(nan=0.0), observed, ids[0], ids[1], torch.zeros_like(ids[0]), ids[2])
