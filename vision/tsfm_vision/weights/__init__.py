"""Model folders that timm reads too, published checkpoints converted to them, and export to ONNX and torch.export."""

from tsfm_vision.weights.conversion import convert, family_of
from tsfm_vision.weights.exporting import export
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
    "export",
    "family_of",
    "load",
    "save",
    "seen_by",
]
