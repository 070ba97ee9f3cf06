"""What people see of a run: figures, tables, the live view and the final summary.

Of an analysis and of a sweep in modules of their own, `analysis` and `sweep`, which import more.
"""

from distsens.report.console_table import print_table
from distsens.report.evaluation import (
    EvaluationSummary,
    EvaluationView,
    evaluation_figure,
    show_evaluation,
    show_models,
    spread_over_models,
    summary_document,
)
from distsens.report.figures import training_figure
from distsens.report.pulse import checking
from distsens.report.style import in_style
from distsens.report.summary import Summary
from distsens.report.tables import sensitivity_parquet
from distsens.report.view import LiveView, PlainView, View, open_view, show_summary

__all__ = [
    "EvaluationSummary",
    "EvaluationView",
    "LiveView",
    "PlainView",
    "Summary",
    "View",
    "checking",
    "evaluation_figure",
    "in_style",
    "open_view",
    "print_table",
    "sensitivity_parquet",
    "show_evaluation",
    "show_models",
    "show_summary",
    "spread_over_models",
    "summary_document",
    "training_figure",
]
