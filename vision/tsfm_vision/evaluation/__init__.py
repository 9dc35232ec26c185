"""What is done with a trained model: class probabilities and scores, corruptions, maps of where it looks, figures."""

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
from tsfm_vision.evaluation.dense import SHAPES, Segmenter, mean_iou, train_shapes
from tsfm_vision.evaluation.maps import look, region_routes, tnt_rollout
from tsfm_vision.evaluation.pictures import draw_calibration, draw_maps, save_figure

__all__ = [
    "CORRUPTIONS",
    "SHAPES",
    "Segmenter",
    "corrupt",
    "draw_calibration",
    "draw_maps",
    "eval_transform",
    "evaluate",
    "inputs",
    "look",
    "mean_iou",
    "predictions",
    "probabilities",
    "region_routes",
    "robustness",
    "save_figure",
    "tnt_rollout",
    "train_shapes",
    "write_probabilities",
]
