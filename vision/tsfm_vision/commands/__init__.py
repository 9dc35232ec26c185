"""``tsfm image``, and the digits of ``tsfm demo``: both are reached by entry points."""

from tsfm_vision.commands.image import evaluate, explain, explained, finetune, name_of, pick, predict

__all__ = ["evaluate", "explain", "explained", "finetune", "name_of", "pick", "predict"]
