"""Evaluation of trained models: class probabilities, scores, corruptions, attention maps and figures."""

from tsfm_vision.evaluation.classify import (
    eval_transform,
    evaluate,
    inputs,
    predictions,
    probabilities,
    robustness,
    write_probabilities,
)
from tsfm_vision.evaluation.corruptions import CORRUPTIONS, corrupt
from tsfm_vision.evaluation.maps import look, tnt_rollout
from tsfm_vision.evaluation.pictures import draw_calibration, draw_maps, save_figure

__all__ = [
    "CORRUPTIONS",
    "corrupt",
    "draw_calibration",
    "draw_maps",
    "eval_transform",
    "evaluate",
    "inputs",
    "look",
    "predictions",
    "probabilities",
    "robustness",
    "save_figure",
    "tnt_rollout",
    "write_probabilities",
]
