"""Sales of new products with their photos: made series, whose season depends on what a real photo shows."""

import numpy as np
from jaxtyping import Float

from tsfm_data.errors import InputError
from tsfm_data.io import SeriesSet
from tsfm_data.windows import ForecastDataModule, Split
from tsfm_vision.training.data import divide, open_source

PARTS = ("train", "val", "test")
LEVEL, SPREAD, NOISE = 20.0, 3.0, 1.0  # mean and deviation of the products' levels, deviation of a day
WEEKEND = 5.0  # sales per day that weekends add for the last class; as many fewer for the first one
WEEK = np.array([0, 0, 0, 0.5, 1, 1, 0.5])  # from Monday on: the days before Thursday do not show the season


class PlantedSales(ForecastDataModule):
    """One product per image of a labelled set, put on sale on a Monday; its history is the first few days.

    The class of the image decides how much weekends add to the sales, evenly spread over the classes. The level of a
    product is its own. So a history without a weekend cannot tell the season, and the photo can. The images of the
    parts are different ones: each product has one window, and validation and test products are new.
    """

    def __init__(
        self, source: str, context: int = 3, horizon: int = 14, batch_size: int = 64, seed: int = 2023
    ) -> None:
        """Store the options; nothing is read before ``setup``.

        Args:
            source: a labelled image set: the name of one in the folder images of TSFM_DATA, a Parquet file, or a
                folder of class folders.
            context: days of history.
            horizon: days to forecast.
            batch_size: products in a batch.
            seed: of the series, of the held-out images and of the order.
        """
        super().__init__(source, context, horizon, batch_size, marks=None, seed=seed)

    def read(self) -> SeriesSet:
        """The products of all parts, with their photos and classes as static columns.

        Raises:
            InputError: there is no such image set, or it has no classes.
        """
        parts = divide(open_source(self.source, None, 3), 0.1, self.seed)
        if set(parts) != set(PARTS):
            raise InputError(f"{self.source}: expected images of classes to train on, found {', '.join(parts)}")
        labels = np.concatenate([parts[part].labels for part in PARTS])
        classes = parts["train"].classes
        self._part = np.repeat(np.arange(len(PARTS)), [len(parts[part]) for part in PARTS])
        values = self.series_of(labels / max(1, len(classes) - 1) * 2 - 1)
        static = {
            "photo": [item if isinstance(item, bytes) else str(item) for part in PARTS for item in parts[part].items],
            "kind": [classes[label] for label in labels],
        }
        return SeriesSet.from_arrays(self.source, list(values), "D", "2024-01-01", ("sales",), static=static)

    def series_of(self, strength: Float[np.ndarray, " N"]) -> Float[np.ndarray, "N T"]:
        """Sales of products for which weekends have these strengths, from -1 to 1."""
        rng, days = np.random.default_rng(self.seed), self.context + self.horizon
        level, noise = rng.normal(LEVEL, SPREAD, (len(strength), 1)), rng.normal(0, NOISE, (len(strength), days))
        return level + WEEKEND * strength[:, None] * WEEK[np.arange(days) % 7] + noise

    def _make_split(self) -> Split:
        """Whole products in each part."""
        whole = np.array([0, self.context + self.horizon])
        train, val, test = ((self._part == k)[:, None] * whole for k in range(len(PARTS)))
        return Split(train, val, test, origin="by product")
