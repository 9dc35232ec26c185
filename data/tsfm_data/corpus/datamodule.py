"""The Lightning data module of pretraining: random training windows and fixed validation windows."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytorch_lightning as pl
from jaxtyping import Float32, Int

from tsfm_data.corpus.augmentation import AugmentConfig
from tsfm_data.corpus.loader import CorpusLoader, Synthetic, to_batch, training_sources
from tsfm_data.corpus.packing import PackedLoader
from tsfm_data.corpus.sampler import WindowSampler
from tsfm_data.corpus.store import Store
from tsfm_data.errors import InputError, check_seed, check_sizes
from tsfm_data.synthetic import SyntheticMixture
from tsfm_data.windows import Batch, rank_and_world

VALIDATION = 1 << 64  # a key outside the range of training seeds: validation windows are the same for every seed


class PretrainingDataModule(pl.LightningDataModule):
    """Windows of a corpus, of synthetic series, or of both, for pretraining.

    Training windows are sampled without end; ``batches_per_epoch`` sets the length of an epoch. The validation windows
    are fixed: "in" forecasts the held-out tails of the training series (or fresh synthetic series without a corpus),
    "out" forecasts windows of sources that are never trained on. All series of a validation batch have one season.

    Attributes:
        val_names: names of the validation loaders, in order: "in", and "out" if sources are held out.
        store: the corpus after ``setup``, or None.
    """

    def __init__(
        self,
        corpus: str | None = None,
        synthetic: bool | dict[str, float] = True,
        context: int = 512,
        horizon: int = 64,
        batch_size: int = 128,
        batches_per_epoch: int = 1000,
        synthetic_share: float = 0.25,
        crop: float = 0.25,
        augment: AugmentConfig = AugmentConfig(),  # noqa: B008
        holdout: float = 0.1,
        held_out: list[str] | None = None,
        variates: int = 1,
        val_windows: int = 512,
        eval_batch_size: int | None = None,
        packed: bool = False,
        patch_size: int = 32,
        tokens: int = 512,
        prefetch: int = 1,
        seed: int = 0,
    ) -> None:
        """Store the options; nothing is read before ``setup``.

        Args:
            corpus: folder written by ``tsfm data build``; null trains on synthetic series alone.
            synthetic: whether to use synthetic series, or the sampling weight of each family.
            context: context steps of a window.
            horizon: steps to forecast.
            batch_size: windows in a batch (of each process).
            batches_per_epoch: batches in an epoch (of each process).
            synthetic_share: share of the windows that are synthetic, if there is a corpus too.
            crop: share of the windows whose history is shortened, to a length between 8 and the context.
            augment: share of the windows that each augmentation changes; none by default.
            holdout: share of every series, at its end, that is never trained on (two horizons at most).
            held_out: sources of the corpus that are never trained on.
            variates: variates of a training window; above 1, windows come from items with at least that many, and each
                shows a random choice of them. Validation windows have one.
            val_windows: windows of each validation set.
            eval_batch_size: windows in a validation batch; null means batch_size.
            packed: train on packed rows of patches instead of windows, as the scaling-law models do; validation still
                uses windows. ``batch_size`` then counts series, and ``crop`` and ``variates`` are ignored.
            patch_size: steps of a token of a packed row.
            tokens: tokens of a packed row.
            prefetch: batches prepared ahead, each in its own thread.
            seed: of the training windows; validation windows do not depend on it, so runs can be compared.
        """
        super().__init__()
        check_seed(seed)
        self.corpus, self.context, self.horizon, self.seed = corpus, context, horizon, seed
        self.held_out = held_out or []
        self.val_names = ("in", "out") if self.held_out else ("in",)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.val_windows, self.holdout, self.synthetic_option = val_windows, holdout, synthetic
        self.loading: dict[str, Any] = {
            "batches": batches_per_epoch,
            "synthetic_share": synthetic_share,
            "augment": augment,
            "prefetch": prefetch,
        }
        self.crop, self.variates = crop, variates
        self.packed, self.patch_size, self.tokens = packed, patch_size, tokens
        self.store: Store | None = None
        self.synthetic: Synthetic | None = None
        self._validation: list[ValidationWindows] | None = None

    def setup(self, stage: str | None = None) -> None:
        """Open the corpus and sample the validation windows; a second call does nothing.

        Args:
            stage: Lightning's name of the next stage; ignored.

        Raises:
            InputError: the corpus is damaged, there is nothing to train on, or a name or number is wrong.
        """
        if self._validation is not None:
            return
        check_sizes(val_windows=self.val_windows)
        if self.held_out and self.corpus is None:
            raise InputError(f"held_out: expected a corpus with sources {', '.join(self.held_out)}, found no corpus")
        self.store = None if self.corpus is None else Store(self.corpus)
        if self.synthetic_option is not False:
            self.synthetic = SyntheticMixture(None if self.synthetic_option is True else self.synthetic_option)
        self._training_loader()  # raises if an option is wrong
        self._validation = [self._sample_validation(name) for name in self.val_names]

    def _sample_validation(self, name: str) -> "ValidationWindows":
        """The fixed windows of one validation set."""
        number = self.val_names.index(name)
        rng = np.random.Generator(np.random.Philox(key=VALIDATION, counter=[0, 0, 0, number]))
        if self.store is None:
            values = self._window_loader().sample_windows(self.val_windows, rng)[: self.val_windows]
            season = np.ones(len(values), dtype=np.int64)
        else:
            training = training_sources(self.store, self.held_out)
            if name == "in":
                sampler = WindowSampler(training, self.horizon, self.holdout)
                positions = sampler.sample_series(self.val_windows, rng)
                positions = (
                    sampler.cut_at_tails(positions) if self.holdout > 0 else sampler.cut_at_random(positions, rng)
                )
                if not len(positions):
                    raise InputError(
                        f"holdout: expected a share that leaves a tail to validate on, found {self.holdout:g}, less "
                        "than one step of every series: give a larger one, or 0 to validate on the training part"
                    )
            else:
                sampler = WindowSampler([s for s in self.store.sources if s not in training], self.horizon, holdout=0.0)
                positions = sampler.cut_at_random(sampler.sample_series(self.val_windows, rng), rng)
            values, season = sampler.read(positions, self.context, self.horizon), sampler.seasons_of(positions)
        return ValidationWindows(values, season, self.context, self.eval_batch_size, *rank_and_world(self.trainer))

    def _training_loader(self) -> CorpusLoader | PackedLoader:
        if not self.packed:
            return self._window_loader()
        return PackedLoader(
            self.store,
            self.synthetic,
            horizon=self.horizon,
            patch_size=self.patch_size,
            tokens=self.tokens,
            **self._common_options(),
        )

    def _window_loader(self) -> CorpusLoader:
        return CorpusLoader(
            self.store,
            self.synthetic,
            context=self.context,
            horizon=self.horizon,
            crop=self.crop,
            variates=self.variates,
            **self._common_options(),
        )

    def _common_options(self) -> dict[str, Any]:
        """Options of both kinds of training loader."""
        rank, world = rank_and_world(self.trainer)
        return {
            **self.loading,
            "batch_size": self.batch_size,
            "holdout": self.holdout,
            "held_out": self.held_out,
            "seed": self.seed,
            "rank": rank,
            "world": world,
        }

    def train_dataloader(self) -> CorpusLoader | PackedLoader:
        """Endless training batches: ``Batch``, or ``PackedRows`` with ``packed``."""
        self.setup()
        return self._training_loader()

    def val_dataloader(self) -> list["ValidationWindows"]:
        """The validation sets in the order of ``val_names``."""
        self.setup()
        return self._validation or []


class ValidationWindows:
    """Batches of fixed windows, each of one season, in order; each rank takes every ``world``-th window.

    All ranks have as many batches: a rank with fewer divides some of its own. Otherwise, ranks that exchange weights
    while they evaluate would wait for each other forever.

    Args:
        values: windows, NaN where nothing is observed.
        season: steps in a season of each.
        context: steps of history of a window; the rest is the future.
        batch_size: windows in a batch.
        rank: number of this process.
        world: number of processes.

    Raises:
        InputError: a rank has fewer windows than another has batches.
    """

    def __init__(
        self,
        values: Float32[np.ndarray, "B L"],
        season: Int[np.ndarray, " B"],
        context: int,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        check_sizes(eval_batch_size=batch_size)
        self.context, self.values, self.season = context, values, season
        order = np.argsort(season, kind="stable")
        shares = [seasonal_batches(order[r::world], season, batch_size) for r in range(world)]
        self.batches, most = shares[rank], max(map(len, shares))
        if any(sum(map(len, batches)) < most for batches in shares):
            raise InputError(
                f"val_windows: expected enough windows for {most} batches in each of {world} processes, found "
                f"{len(season)}: give more windows or fewer devices"
            )
        while len(self.batches) < most:
            longest = max(range(len(self.batches)), key=lambda i: len(self.batches[i]))
            self.batches[longest : longest + 1] = np.array_split(self.batches[longest], 2)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        for rows in self.batches:
            yield to_batch(self.values[rows, None], self.context, int(self.season[rows[0]]))


def seasonal_batches(
    rows: Int[np.ndarray, " R"], season: Int[np.ndarray, " B"], batch_size: int
) -> list[Int[np.ndarray, " _"]]:
    """Rows in order of their season, cut into batches of one season."""
    groups = np.split(rows, np.flatnonzero(np.diff(season[rows])) + 1)
    return [group[i : i + batch_size] for group in groups for i in range(0, len(group), batch_size)]
