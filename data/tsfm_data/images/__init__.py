"""Image sets from folders, Parquet files and arrays; series as images; classification metrics."""

from typing import TYPE_CHECKING

from tsfm_data.lazy import lazy_exports

if TYPE_CHECKING:
    from tsfm_data.images.files import CHANNELS, decode, is_image
    from tsfm_data.images.metrics import calibration_error, confusion, log_loss, reliability, row, score, top_k
    from tsfm_data.images.rendering import PICTURES, render
    from tsfm_data.images.sets import WHOLE, ImageSet, OnBad, hold_out, open_images

__all__ = [
    "CHANNELS",
    "PICTURES",
    "WHOLE",
    "ImageSet",
    "OnBad",
    "calibration_error",
    "confusion",
    "decode",
    "hold_out",
    "is_image",
    "log_loss",
    "open_images",
    "reliability",
    "render",
    "row",
    "score",
    "top_k",
]
__getattr__ = lazy_exports(__name__, __file__)
