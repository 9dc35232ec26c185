"""Image sets from folders, Parquet files and arrays; classification metrics."""

from typing import TYPE_CHECKING

from tsfm_data.lazy import lazy_exports

if TYPE_CHECKING:
    from tsfm_data.images.files import CHANNELS, decode, is_image
    from tsfm_data.images.metrics import calibration_error, confusion, reliability, row, score
    from tsfm_data.images.sets import WHOLE, ImageSet, OnBad, hold_out, open_images

__all__ = [
    "CHANNELS",
    "WHOLE",
    "ImageSet",
    "OnBad",
    "calibration_error",
    "confusion",
    "decode",
    "hold_out",
    "is_image",
    "open_images",
    "reliability",
    "row",
    "score",
]
__getattr__ = lazy_exports(__name__, __file__)
