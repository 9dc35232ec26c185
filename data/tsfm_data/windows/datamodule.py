"""The Lightning data module of one data set: split, standardised and cut into windows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from jaxtyping import Float64

from tsfm_data.errors import InputError, check_horizon, check_seed, unknown_name
from tsfm_data.io import SeriesSet, catalog
from tsfm_data.windows.loader import WindowLoader, Windows, count_variates, item_lengths, rolling_cuts
from tsfm_data.windows.resumable import even_batch_size, rank_and_world
from tsfm_data.windows.splits import Part, Split, StandardScaler


class ForecastDataModule(pl.LightningDataModule):
    """Windows of one data set for training, validation, test and prediction.

    Every training window is used once per epoch; validation and test score every window; prediction forecasts past the
    end of the data, one window per series. The scaler is fitted on the training rows only.

    After ``setup``, ``series`` is the data set in its own units, ``split`` holds the rows of training, validation and
    test, and ``scaler`` is the standard scaler of the training rows, or the identity if ``standardize`` is off.
    """

    series: SeriesSet
    split: Split
    scaler: StandardScaler

    def __init__(
        self,
        source: str,
        context: int = 96,
        horizon: int = 96,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        marks: str | None = "h",
        split: str | list[int | float] = "auto",
        standardize: bool = True,
        drop_last: bool = True,
        train_variates: int | float | list[str] | None = None,
        variates_per_batch: int | float | None = None,
        seed: int = 2023,
        target: str | list[str] | None = None,
        time_column: str | None = None,
        item_column: str | None = None,
        freq: str | None = None,
        past_covariates: list[str] | None = None,
        known_covariates: list[str] | None = None,
    ) -> None:
        """Store the options; nothing is read before ``setup``.

        Args:
            source: name of a data set of the catalogue, or path of a CSV, Parquet or Arrow file.
            context: context steps of a window.
            horizon: steps to forecast.
            batch_size: training windows in a batch (of each process).
            eval_batch_size: windows in a batch when validating, testing and predicting; null means batch_size.
            marks: calendar features: "h" gives hour, weekday, day of month and day of year, "t" adds the minute; null
                gives none.
            split: "lsf" uses the published borders of the catalogue; three fractions or three numbers of rows set
                train, validation and test; "auto" is "lsf" if the catalogue has it, else 70/10/20 %.
            standardize: scale each variate to mean 0 and standard deviation 1 on the training rows.
            drop_last: leave the last, incomplete batch out of a training epoch, as published; validation and test
                always use every window.
            train_variates: train and validate on some of the variates and test on all: a fraction, a number (both
                chosen at random with ``seed``), or their names.
            variates_per_batch: use a random subset of the training variates in every training batch: a fraction or
                a number.
            seed: seed of the order of windows and of the choice of variates.
            target: the column or columns to forecast; null means all numeric ones.
            time_column: the column of timestamps; null detects it.
            item_column: the column with the ids of series; null detects it.
            freq: pandas frequency of the series; null infers it.
            past_covariates: columns known up to the cut only, for models with covariates.
            known_covariates: columns known over the horizon too.
        """
        super().__init__()
        check_seed(seed)
        self.source, self.context, self.horizon = source, context, horizon
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.marks, self.split_option, self.standardize, self.drop_last = marks, split, standardize, drop_last
        self.train_variates, self.variates_per_batch, self.seed = train_variates, variates_per_batch, seed
        self.columns: dict[str, Any] = {
            "target": target,
            "time_column": time_column,
            "item_column": item_column,
            "freq": freq,
            "past_covariates": past_covariates or (),
            "known_covariates": known_covariates or (),
        }
        self._windows: Windows | None = None

    def setup(self, stage: str | None = None) -> None:
        """Read, split and scale; a second call does nothing.

        Args:
            stage: Lightning's name of the next stage; ignored.

        Raises:
            InputError: the source, a column or the split is wrong, or the series are too short for one window.
        """
        if self._windows is not None:
            return
        check_horizon(self.context, "context")
        check_horizon(self.horizon)
        self.series = self.read()
        self.split = self._make_split()
        self.scaler = self._fit_scaler(self.series.values)
        self._training_variates = self._choose_variates()
        empty = np.zeros(0, dtype=np.int64)
        self._windows = Windows(
            self.series,
            self.context,
            self.horizon,
            empty,
            empty,
            marks=self.marks,
            scaler=self.scaler,
            covariates=True,
            past_scaler=self._fit_scaler(self.series.past),
            known_scaler=self._fit_scaler(self.series.known),
        )

    def read(self) -> SeriesSet:
        """The series of the source."""
        return catalog.open_source(self.source, **self.columns)

    def _fit_scaler(self, columns: Float64[np.ndarray, "rows columns"]) -> StandardScaler:
        """The scaler of the training rows, or the identity."""
        if self.standardize:
            return StandardScaler.fit_split(columns, self.series.offsets, self.split)
        return StandardScaler(np.zeros(columns.shape[1]), np.ones(columns.shape[1]))

    def _make_split(self) -> Split:
        option, lengths = self.split_option, item_lengths(self.series)
        if not isinstance(option, str):
            return self._explicit_split(lengths, option)
        if option not in ("auto", "lsf"):
            raise unknown_name("split", option, ("auto", "lsf"))
        known = self.source in catalog.names() and not Path(self.source).is_file()
        published = catalog.get(self.source).splits.get("lsf") if known else None
        if published is not None:
            return Split.from_spec(lengths, published, origin=f"lsf borders of {self.source}")
        if option == "lsf":
            raise InputError(f"split 'lsf': {self.source!r} has no published borders in the catalogue: use 'auto'")
        return Split.infer(lengths, self.context, self.horizon)

    def _explicit_split(self, lengths: np.ndarray, option: list[int | float]) -> Split:
        """The split of three fractions or three numbers of rows."""
        if len(option) != 3:
            raise InputError(f"split: expected three numbers (train, validation, test), found {len(option)}")
        if sum(option) <= 1 + 1e-9:
            if abs(sum(option) - 1) > 1e-9:
                raise InputError(f"split: expected fractions that sum to 1, found {option} (sum {sum(option):g})")
            return Split.from_fractions(lengths, option[0], option[2], origin="fractions as given")
        train, val, test = (round(n) for n in option)
        return Split.from_rows(lengths, train, val, test, origin="rows as given")

    def _choose_variates(self) -> list[int] | None:
        """Indices of the variates to train on; None for all."""
        choice, names = self.train_variates, self.series.variates
        if choice is None:
            return None
        if isinstance(choice, list):
            for name in choice:
                if name not in names:
                    raise unknown_name("variate", name, names)
            if not choice:
                raise InputError("train_variates: expected at least one name, found an empty list")
            return sorted({names.index(name) for name in choice})
        number = count_variates("train_variates", choice, len(names))
        chosen = np.random.default_rng(self.seed).permutation(len(names))[:number]
        return sorted(int(v) for v in chosen)

    def windows(self, part: Part) -> Windows:
        """The windows of one part, in order: item by item, from the earliest cut.

        Args:
            part: "train", "val" or "test".

        Raises:
            InputError: the part is too short for one window.
        """
        base = self._setup_windows()
        first, last = self.split.cuts(part, self.context, self.horizon)
        items, cuts = rolling_cuts(item_lengths(self.series), self.context, self.horizon, first=first, last=last)
        return base.at(items, cuts, None if part == "test" else self._training_variates)

    def _setup_windows(self) -> Windows:
        self.setup()
        if self._windows is None:
            raise RuntimeError("setup() made no windows")
        return self._windows

    def train_dataloader(self) -> WindowLoader:
        """Shuffled training windows."""
        rank, world = rank_and_world(self.trainer)
        return WindowLoader(
            self.windows("train"),
            self.batch_size,
            shuffle=True,
            drop_last=self.drop_last,
            seed=self.seed,
            variates_per_batch=self.variates_per_batch,
            rank=rank,
            world=world,
        )

    def val_dataloader(self) -> WindowLoader:
        """Every validation window, in order."""
        return self._in_order(self.windows("val"))

    def test_dataloader(self) -> WindowLoader:
        """Every test window, in order."""
        return self._in_order(self.windows("test"))

    def predict_dataloader(self) -> WindowLoader:
        """One window per series, with its cut at the end of the data, so without a known future."""
        base = self._setup_windows()
        lengths = item_lengths(self.series)
        items = np.flatnonzero(lengths > 0)
        return self._in_order(base.at(items, lengths[items]))

    def _in_order(self, windows: Windows) -> WindowLoader:
        rank, world = rank_and_world(self.trainer)
        size = self.eval_batch_size if world == 1 else even_batch_size(len(windows), world, self.eval_batch_size)
        return WindowLoader(windows, size, rank=rank, world=world)

    def describe(self) -> str:
        """One line for the user: the split and the number of windows of each part."""
        counts = ", ".join(f"{len(self.windows(part))} {part}" for part in ("train", "val", "test"))
        return f"{self.split.describe()}; windows: {counts}"
