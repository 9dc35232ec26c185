"""Training: the Lightning task, optimisers, callbacks, validation and fine-tuning."""

from typing import TYPE_CHECKING

from tsfm_data.lazy import lazy_exports

if TYPE_CHECKING:
    from tsfm.training.finetuning import ZERO_SHOT, Candidate, Finetuned, Recipe, finetune, summary, without_covariates
    from tsfm.training.holdout import FEW_TIMES, LEAST_GAIN, LEAST_GAIN_AT_ONCE, LEAST_SIGMAS
    from tsfm.training.optim import training_steps
    from tsfm.training.task import ForecastTask, logged_names

__all__ = [
    "FEW_TIMES",
    "LEAST_GAIN",
    "LEAST_GAIN_AT_ONCE",
    "LEAST_SIGMAS",
    "ZERO_SHOT",
    "Candidate",
    "Finetuned",
    "ForecastTask",
    "Recipe",
    "finetune",
    "logged_names",
    "summary",
    "training_steps",
    "without_covariates",
]
__getattr__ = lazy_exports(__name__, __file__)
