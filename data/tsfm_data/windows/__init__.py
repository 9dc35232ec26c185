"""Windows over series: splits, batches, resumable loaders, the Lightning data module."""

from typing import TYPE_CHECKING

from tsfm_data.lazy import lazy_exports

if TYPE_CHECKING:
    from tsfm_data.windows.batch import Batch, Forecast, binary_size
    from tsfm_data.windows.datamodule import ForecastDataModule
    from tsfm_data.windows.loader import WindowLoader, Windows, item_lengths
    from tsfm_data.windows.resumable import B, ResumableLoader, even_batch_size, rank_and_world
    from tsfm_data.windows.splits import Split, StandardScaler

__all__ = [
    "B",
    "Batch",
    "Forecast",
    "ForecastDataModule",
    "ResumableLoader",
    "Split",
    "StandardScaler",
    "WindowLoader",
    "Windows",
    "binary_size",
    "even_batch_size",
    "item_lengths",
    "rank_and_world",
]
__getattr__ = lazy_exports(__name__, __file__)
