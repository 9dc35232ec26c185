"""Training: the Lightning task, optimisers, callbacks, validation and fine-tuning."""

from typing import TYPE_CHECKING

from tsfm_data.lazy import lazy_exports

if TYPE_CHECKING:
    from tsfm.training.blocks import shard
    from tsfm.training.callbacks import FiniteLosses, ResumeWithConfig
    from tsfm.training.checkpoints import AtomicCheckpoints, note_processes, share_progress
    from tsfm.training.finetuning import (
        LEARNING_RATES,
        ZERO_SHOT,
        Candidate,
        Finetuned,
        Recipe,
        finetune,
        summary,
        without_covariates,
    )
    from tsfm.training.holdout import FEW_TIMES, LEAST_GAIN, LEAST_GAIN_AT_ONCE, LEAST_SIGMAS, truncate
    from tsfm.training.lora import add_updates, merge
    from tsfm.training.optim import OptimConfig, build_optimizer, training_steps
    from tsfm.training.task import ForecastTask, log_mean, logged_names

__all__ = [
    "FEW_TIMES",
    "LEARNING_RATES",
    "LEAST_GAIN",
    "LEAST_GAIN_AT_ONCE",
    "LEAST_SIGMAS",
    "ZERO_SHOT",
    "AtomicCheckpoints",
    "Candidate",
    "Finetuned",
    "FiniteLosses",
    "ForecastTask",
    "OptimConfig",
    "Recipe",
    "ResumeWithConfig",
    "add_updates",
    "build_optimizer",
    "finetune",
    "log_mean",
    "logged_names",
    "merge",
    "note_processes",
    "shard",
    "share_progress",
    "summary",
    "training_steps",
    "truncate",
    "without_covariates",
]
__getattr__ = lazy_exports(__name__, __file__)
