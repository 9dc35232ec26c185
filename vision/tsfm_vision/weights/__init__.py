"""Model folders that timm reads too, and published checkpoints converted to them."""

from tsfm_vision.weights.conversion import convert, family_of
from tsfm_vision.weights.folders import TrainedOn, check_arguments, check_size, create, data_config, load, save, seen_by
from tsfm_vision.weights.seen import Seen

__all__ = [
    "Seen",
    "TrainedOn",
    "check_arguments",
    "check_size",
    "convert",
    "create",
    "data_config",
    "family_of",
    "load",
    "save",
    "seen_by",
]
