"""What is done with a trained model: forecasts, backtests, anomalies, gaps, embeddings, classes, adapters, export."""

from typing import TYPE_CHECKING

from tsfm_data.lazy import lazy_exports

if TYPE_CHECKING:
    from tsfm.inference.api import Model, load, load_model
    from tsfm.inference.backtesting import backtest, without_short
    from tsfm.inference.choice import CHOICES, Backtest
    from tsfm.inference.classification import Probe, SeriesClassifier, labels_of
    from tsfm.inference.detection import AHEAD, RATE, Detector, check_rate
    from tsfm.inference.embedding import embed, embedding_frame, group_weights
    from tsfm.inference.estimator import TSFMForecaster
    from tsfm.inference.exporting import Dtype, Exportable, compress, differences, export
    from tsfm.inference.imputation import INTERVAL, Imputed, check_interval, impute
    from tsfm.inference.limits import check_lower, limit
    from tsfm.inference.partitions.manifest import Run, run_locally, run_parts
    from tsfm.inference.partitions.places import is_glob
    from tsfm.inference.partitions.ray_data import connect_ray, run_on_ray
    from tsfm.inference.partitions.spark import MapInPandas
    from tsfm.inference.partitions.work import Work
    from tsfm.inference.predictors import (
        WithoutCovariates,
        check_covariates,
        check_observed,
        forecast_frame,
        forecast_table,
        load_predictor,
        model_key,
        set_effort,
    )
    from tsfm.inference.selection import Member, Selection

__all__ = [
    "AHEAD",
    "CHOICES",
    "INTERVAL",
    "RATE",
    "Backtest",
    "Detector",
    "Dtype",
    "Exportable",
    "Imputed",
    "MapInPandas",
    "Member",
    "Model",
    "Probe",
    "Run",
    "Selection",
    "SeriesClassifier",
    "TSFMForecaster",
    "WithoutCovariates",
    "Work",
    "backtest",
    "check_covariates",
    "check_interval",
    "check_lower",
    "check_observed",
    "check_rate",
    "compress",
    "connect_ray",
    "differences",
    "embed",
    "embedding_frame",
    "export",
    "forecast_frame",
    "forecast_table",
    "group_weights",
    "impute",
    "is_glob",
    "labels_of",
    "limit",
    "load",
    "load_model",
    "load_predictor",
    "model_key",
    "run_locally",
    "run_on_ray",
    "run_parts",
    "set_effort",
    "without_short",
]
__getattr__ = lazy_exports(__name__, __file__)
