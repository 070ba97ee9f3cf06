"""The report of a sweep: its trials live and at the end, figures, one page, and the summary for scripts."""

from distsens.report.sweep.build import sweep_files, sweep_metrics
from distsens.report.sweep.figures import sweep_plates
from distsens.report.sweep.outcome import Outcome, count
from distsens.report.sweep.page import sweep_page, sweep_sentences
from distsens.report.sweep.state import RungState, TrialState, at_the_end, ranked
from distsens.report.sweep.summary import SweepSummary
from distsens.report.sweep.view import SweepView, show_sweep, trial_line

__all__ = [
    "Outcome",
    "RungState",
    "SweepSummary",
    "SweepView",
    "TrialState",
    "at_the_end",
    "count",
    "ranked",
    "show_sweep",
    "sweep_files",
    "sweep_metrics",
    "sweep_page",
    "sweep_plates",
    "sweep_sentences",
    "trial_line",
]
