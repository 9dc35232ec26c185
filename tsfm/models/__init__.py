"""Time-series models, one per file; no model imports another."""

from typing import TYPE_CHECKING

from tsfm_data.lazy import lazy_exports

if TYPE_CHECKING:
    from tsfm.models.base import FineTuning, Forecaster, Pretraining, TrainingData, roll_out_paths
    from tsfm.models.chronos2 import Chronos2
    from tsfm.models.chronos_bolt import ChronosBolt, ChronosBoltConfig
    from tsfm.models.counts import Counts, count, count_forecaster, counts_table, parameters, sizes_of
    from tsfm.models.itransformer import ITransformer, ITransformerConfig
    from tsfm.models.moirai import Moirai
    from tsfm.models.moirai2 import Moirai2
    from tsfm.models.packing import Packed, known_future, scaled_quantile_loss
    from tsfm.models.registry import MODELS, model_class, model_classes
    from tsfm.models.scaling_law.decoder import Decoder
    from tsfm.models.scaling_law.encoder import Encoder
    from tsfm.models.scaling_law.trunk import PackedForecaster, from_reference_state
    from tsfm.models.zeroshot.covariates import add_covariates
    from tsfm.models.zeroshot.decoder import ZeroShotDecoder
    from tsfm.models.zeroshot.encoder import ZeroShotEncoder
    from tsfm.models.zeroshot.hidden_states import hidden_states, window_steps
    from tsfm.models.zeroshot.history_tokens import LongHistoryConfig
    from tsfm.models.zeroshot.long_history import LongHistoryDecoder
    from tsfm.models.zeroshot.periods import find_periods, fourier_matrices
    from tsfm.models.zeroshot.recipe import ZeroShotConfig, ZeroShotForecaster, ascending
    from tsfm.models.zeroshot.seasonal_features import measure_changes

__all__ = [
    "MODELS",
    "Chronos2",
    "ChronosBolt",
    "ChronosBoltConfig",
    "Counts",
    "Decoder",
    "Encoder",
    "FineTuning",
    "Forecaster",
    "ITransformer",
    "ITransformerConfig",
    "LongHistoryConfig",
    "LongHistoryDecoder",
    "Moirai",
    "Moirai2",
    "Packed",
    "PackedForecaster",
    "Pretraining",
    "TrainingData",
    "ZeroShotConfig",
    "ZeroShotDecoder",
    "ZeroShotEncoder",
    "ZeroShotForecaster",
    "add_covariates",
    "ascending",
    "count",
    "count_forecaster",
    "counts_table",
    "find_periods",
    "fourier_matrices",
    "from_reference_state",
    "hidden_states",
    "known_future",
    "measure_changes",
    "model_class",
    "model_classes",
    "parameters",
    "roll_out_paths",
    "scaled_quantile_loss",
    "sizes_of",
    "window_steps",
]
__getattr__ = lazy_exports(__name__, __file__)
