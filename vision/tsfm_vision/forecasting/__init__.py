"""A forecaster whose backbone is an image model: the history is the left part of an image, the future the right one."""

from tsfm_vision.forecasting.folding import Folded, fold, read
from tsfm_vision.forecasting.model import VisionConfig, VisionForecaster

__all__ = ["Folded", "VisionConfig", "VisionForecaster", "fold", "read"]
