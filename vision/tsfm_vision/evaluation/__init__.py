"""Evaluation of trained models: class probabilities, scores, attention maps and figures."""

from tsfm_vision.evaluation.classify import evaluate, probabilities, write_probabilities
from tsfm_vision.evaluation.maps import look, tnt_rollout
from tsfm_vision.evaluation.pictures import draw_calibration, draw_maps, save_figure
from tsfm_vision.evaluation.reading import Key, Transformed, eval_transform, read_pictures, reseed

__all__ = [
    "Key",
    "Transformed",
    "draw_calibration",
    "draw_maps",
    "eval_transform",
    "evaluate",
    "look",
    "probabilities",
    "read_pictures",
    "reseed",
    "save_figure",
    "tnt_rollout",
    "write_probabilities",
]
