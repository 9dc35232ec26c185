"""The commands of ``tsfm image``, and the image example of ``tsfm demo``; both are entry points."""

from tsfm_vision.commands.image import draw_explanation, evaluate, explain, export, finetune, name_of, pick, predict

__all__ = ["draw_explanation", "evaluate", "explain", "export", "finetune", "name_of", "pick", "predict"]
