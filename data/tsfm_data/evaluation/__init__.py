"""Evaluation of forecasts: metrics, protocols, baselines, benchmark suites, published results."""

from typing import TYPE_CHECKING

from tsfm_data.lazy import lazy_exports

if TYPE_CHECKING:
    from tsfm_data.evaluation.anomalies import range_precision_recall, vus_pr
    from tsfm_data.evaluation.baselines import BASELINES, Naive, Predictor, SeasonalNaive, bind, get_baseline
    from tsfm_data.evaluation.elements import Elements
    from tsfm_data.evaluation.evaluator import evaluate, evaluate_series, forecast_elements, window_scale
    from tsfm_data.evaluation.gaps import BATCH_VALUES, check_finite, columns_of, forecast_windows, history_of
    from tsfm_data.evaluation.metrics import LEVELS, Accumulator, get_metric
    from tsfm_data.evaluation.profiles import PROBABILISTIC, Profile, get_profile
    from tsfm_data.evaluation.report import BASELINE, Report
    from tsfm_data.evaluation.suite import available_sets, evaluate_suite, score_sets
    from tsfm_data.evaluation.suite_report import SuiteReport
    from tsfm_data.evaluation.suite_sets import ALL_PROFILES, SHORT, SuiteSet, choose, suite_profile
    from tsfm_data.evaluation.suite_tables import coverage_points, published_rows, set_rows, summary_rows

__all__ = [
    "ALL_PROFILES",
    "BASELINE",
    "BASELINES",
    "BATCH_VALUES",
    "LEVELS",
    "PROBABILISTIC",
    "SHORT",
    "Accumulator",
    "Elements",
    "Naive",
    "Predictor",
    "Profile",
    "Report",
    "SeasonalNaive",
    "SuiteReport",
    "SuiteSet",
    "available_sets",
    "bind",
    "check_finite",
    "choose",
    "columns_of",
    "coverage_points",
    "evaluate",
    "evaluate_series",
    "evaluate_suite",
    "forecast_elements",
    "forecast_windows",
    "get_baseline",
    "get_metric",
    "get_profile",
    "history_of",
    "published_rows",
    "range_precision_recall",
    "score_sets",
    "set_rows",
    "suite_profile",
    "summary_rows",
    "vus_pr",
    "window_scale",
]
__getattr__ = lazy_exports(__name__, __file__)
