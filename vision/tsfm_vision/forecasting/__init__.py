"""Forecasters with an image model: of series that are drawn as images, and of series that come with a picture."""

from tsfm_vision.forecasting.folding import Folded, fold, read
from tsfm_vision.forecasting.model import VisionConfig, VisionForecaster
from tsfm_vision.forecasting.photos import PhotoConfig, PhotoForecaster

__all__ = ["Folded", "PhotoConfig", "PhotoForecaster", "VisionConfig", "VisionForecaster", "fold", "read"]
