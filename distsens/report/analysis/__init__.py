"""The report of an analysis: one page, its figures, its sentences, and the summary for scripts."""

from distsens.report.analysis.build import Report, build_report
from distsens.report.analysis.show import AnalysisView, show_analysis
from distsens.report.analysis.summary import AnalysisSummary

__all__ = ["AnalysisSummary", "AnalysisView", "Report", "build_report", "show_analysis"]
