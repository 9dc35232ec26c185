"""Rows of patches of several series, as the scaling-law models are trained on (Yao et al., ICLR 2025, appendix).

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
from tsfm_data.corpus.sampler import Drawn, held_tail
from tsfm_data.corpus.store import Store
from tsfm_data.errors import InputError, check_sizes

Rows = TypeVar("Rows", bound="PackedRows")

CROP = (0.5, 1.0)  # share of what there is of a series that is shown
MASKED = (0.15, 0.5)  # share of the shown tokens, at the end, that are to be predicted


@dataclass(frozen=True, eq=False)
class PackedRows:
    """Rows of patches.

    Attributes:
        target: values of every patch, 0 where not observed.
        observed: where ``target`` holds a value.
        sample_id: series of every token, 1, 2, ... within a row; 0 for padding, which nobody sees.
        time_id: place of every token within its series, counted in patches.
        variate_id: variate of every token within its series.
        is_predicted: tokens to predict; their values are neither seen by the scaler nor by an encoder.
    """

    target: Float[Tensor, "R N P"]
    observed: Bool[Tensor, "R N P"]
    sample_id: Int[Tensor, "R N"]
    time_id: Int[Tensor, "R N"]
    variate_id: Int[Tensor, "R N"]
    is_predicted: Bool[Tensor, "R N"]

    def to(self: Rows, device: torch.device | str) -> Rows:
        """The same on another device."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        return replace(self, **{name: x.to(device) for name, x in tensors.items()})

    def __len__(self) -> int:
        return len(self.sample_id)


class PackedLoader(MixedLoader[PackedRows]):
    """Rows of patches of random crops: of the sources of a store by weight, and of fresh synthetic series.

    Of every series a crop of 50 to 100 % of its whole patches (of ``tokens`` at most) is shown, at a random place; the
    last 15 to 50 % of the crop are to be predicted. A series shorter than two patches fills one before its cut from
    the right and one behind it from the left. The crops of a batch are packed into rows by first-fit-decreasing: the
    number of rows varies.

    Args:
        store: the corpus, or None for synthetic series alone.
        synthetic: the generators, or None for the corpus alone.
        patch_size: steps of a token, P.
        tokens: tokens of a row, N.
        horizon: twice so many steps at the end of a series are held out at most.
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

    def make(self, rng: np.random.Generator) -> PackedRows:
        """One batch."""
        drawn = self.draw(self.batch_size, rng)
        patches = np.full(self.batch_size, self.tokens, dtype=np.int64)
        if drawn is not None:
            drawn = self.shown(drawn)
            patches[: len(drawn)] = np.clip(drawn.end * drawn.down // drawn.up // self.patch_size, 2, self.tokens)
        # At least 2 tokens: one to see, one to predict.
        shown = np.maximum(np.ceil(patches * rng.uniform(*CROP, len(patches))), 2).astype(np.int64)
        predicted = np.rint(shown * rng.uniform(*MASKED, len(shown))).astype(np.int64).clip(1, shown - 1)
        if drawn is not None:
            drawn = begin_crops(drawn, shown[: len(drawn)] * self.patch_size, rng)
        parts = list(self.crops(drawn, shown, rng))
        return lay_rows(parts, shown, predicted, self.tokens, self.patch_size)

    def shown(self, drawn: Drawn) -> Drawn:
        """Series without their held-out tails."""
        drawer = self.drawer
        if drawer is None:
            return drawn
        return replace(drawn, end=drawn.end - held_tail(drawn.end, drawer.holdout, drawer.horizon))

    def crops(
        self, drawn: Drawn | None, shown: Int[np.ndarray, " S"], rng: np.random.Generator
    ) -> Iterator[tuple[Int[np.ndarray, " s"], Float32[np.ndarray, "s L"]]]:
        """Crops of about the same length together: their numbers, and their values; more may follow behind a crop."""
        real = 0 if drawn is None else len(drawn)
        octave = np.ceil(np.log2(shown)).astype(np.int64)
        for k in np.unique(octave):
            rows = np.flatnonzero(octave == k)
            steps = min(2 ** int(k), self.tokens) * self.patch_size
            values = np.empty((len(rows), steps), dtype=np.float32)
            from_corpus = int(np.searchsorted(rows, real))
            if drawn is not None and self.drawer is not None and from_corpus:
                values[:from_corpus] = self.drawer.read(drawn[rows[:from_corpus]], 0, steps)
            if self.synthetic is not None and from_corpus < len(rows):
                values[from_corpus:] = self.synthetic.draw(len(rows) - from_corpus, steps, rng)
            augment(values, steps // 4, self.augment, rng)  # gaps open in what is never to be predicted
            yield rows, values


def begin_crops(drawn: Drawn, steps: Int[np.ndarray, " S"], rng: np.random.Generator) -> Drawn:
    """Cut series where crops of so many steps begin, at a random place.

    A series shorter than its crop, of two patches then, has its middle where the second patch begins: at a random step
    that leaves all of it within the crop.
    """
    length = drawn.end * drawn.down // drawn.up
    patch = steps // 2
    low = np.where(length >= steps, 0, np.maximum(1, length - patch) - patch)
    high = np.where(length >= steps, length - steps, np.minimum(patch, length - 1) - patch)
    begin = low + (rng.random(len(steps)) * (high - low + 1)).astype(np.int64)
    return replace(drawn, cut=-(-begin * drawn.up // drawn.down))


def first_fit_decreasing(
    sizes: Int[np.ndarray, " S"], room: int
) -> tuple[Int[np.ndarray, " S"], Int[np.ndarray, " S"]]:
    """Pack pieces into as few rows of ``room`` as first-fit-decreasing finds (at most 11/9 of the least, and 1).

    Args:
        sizes: of the pieces, from 1 to ``room``.
        room: of a row.

    Returns:
        The row of every piece, and where it begins within it.
    """
    row, begin = np.empty((2, len(sizes)), dtype=np.int64)
    left = np.full(len(sizes), room, dtype=np.int64)
    for piece in np.argsort(-sizes, kind="stable").tolist():
        size = sizes[piece]
        found = int((left >= size).argmax())
        row[piece], begin[piece] = found, room - left[found]
        left[found] -= size
    return row, begin


def lay_rows(
    parts: Sequence[tuple[Int[np.ndarray, " _"], Float32[np.ndarray, "_ _"]]],
    shown: Int[np.ndarray, " S"],
    predicted: Int[np.ndarray, " S"],
    tokens: int,
    patch_size: int,
) -> PackedRows:
    """Lay crops out in rows.

    Args:
        parts: numbers of crops and their values, NaN where nothing is observed; more may follow behind a crop.
        shown: tokens of every crop.
        predicted: those of them to predict, at the end.
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
        place = (row * tokens + begin)[numbers, None] + token
        target[place[real]] = pieces[real]
    sample_id, time_id = np.zeros((2, rows * tokens), dtype=np.int64)
    prediction = np.zeros(rows * tokens, dtype=bool)
    within = np.arange(shown.sum()) - np.repeat(np.cumsum(shown) - shown, shown)
    place = np.repeat(row * tokens + begin, shown) + within
    order = np.lexsort((begin, row))
    number = np.empty(len(row), dtype=np.int64)
    number[order] = np.arange(len(row)) - np.searchsorted(row[order], row[order]) + 1
    sample_id[place], time_id[place] = np.repeat(number, shown), within
    prediction[place] = within >= np.repeat(shown - predicted, shown)
    laid = torch.from_numpy(target).view(rows, tokens, patch_size)
    observed = ~laid.isnan()
    ids = [torch.from_numpy(x).view(rows, tokens) for x in (sample_id, time_id, prediction)]
    return PackedRows(laid.nan_to_num_(nan=0.0), observed, ids[0], ids[1], torch.zeros_like(ids[0]), ids[2])
