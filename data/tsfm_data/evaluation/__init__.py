"""Metrics, protocols, baselines, and scores of forecasts."""

from typing import TYPE_CHECKING

from tsfm_data.lazy import lazy_exports

if TYPE_CHECKING:
    from tsfm_data.evaluation.baselines import BASELINES, Naive, Predictor, SeasonalNaive, get_baseline
    from tsfm_data.evaluation.evaluator import BATCH_VALUES, evaluate
    from tsfm_data.evaluation.metrics import LEVELS
    from tsfm_data.evaluation.profiles import PROBABILISTIC, Profile
    from tsfm_data.evaluation.report import BASELINE, Report
    from tsfm_data.evaluation.suite import evaluate_suite
    from tsfm_data.evaluation.suite_report import SuiteReport
    from tsfm_data.evaluation.suite_sets import SHORT
    from tsfm_data.evaluation.suite_tables import coverage_points, published_rows, set_rows, summary_rows

__all__ = [
    "BASELINE",
    "BASELINES",
    "BATCH_VALUES",
    "LEVELS",
    "PROBABILISTIC",
    "SHORT",
    "Naive",
    "Predictor",
    "Profile",
    "Report",
    "SeasonalNaive",
    "SuiteReport",
    "coverage_points",
    "evaluate",
    "evaluate_suite",
    "get_baseline",
    "published_rows",
    "set_rows",
    "summary_rows",
]
__getattr__ = lazy_exports(__name__, __file__)
