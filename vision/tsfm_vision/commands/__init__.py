"""What ``tsfm image`` and the demo run; their options are in ``tsfm.commands``."""

from tsfm_vision.commands.image import evaluate, explain, explained, name_of, pick, predict
from tsfm_vision.training import finetune

__all__ = ["evaluate", "explain", "explained", "finetune", "name_of", "pick", "predict"]
