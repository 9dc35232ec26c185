"""Reports: figures, self-contained HTML pages, and the pages of an evaluation suite and of a fine-tuning."""

from typing import TYPE_CHECKING

from tsfm_data.lazy import lazy_exports

if TYPE_CHECKING:
    from tsfm.reports.backtesting import backtest_page, choices_in_words, terminal_board
    from tsfm.reports.detection import detection_page, detection_text, plot_anomalies
    from tsfm.reports.figures import new_figure, plot_forecast, save_figure
    from tsfm.reports.finetuning import build_page, verdict
    from tsfm.reports.html import Code, Image, Section, Table, Value, page, save_page, show_value
    from tsfm.reports.imputation import imputation_page, plot_gaps
    from tsfm.reports.scores import HEADLINE, how_to_read, write_scores
    from tsfm.reports.suite import say, write

__all__ = [
    "HEADLINE",
    "Code",
    "Image",
    "Section",
    "Table",
    "Value",
    "backtest_page",
    "build_page",
    "choices_in_words",
    "detection_page",
    "detection_text",
    "how_to_read",
    "imputation_page",
    "new_figure",
    "page",
    "plot_anomalies",
    "plot_forecast",
    "plot_gaps",
    "save_figure",
    "save_page",
    "say",
    "show_value",
    "terminal_board",
    "verdict",
    "write",
    "write_scores",
]
__getattr__ = lazy_exports(__name__, __file__)
