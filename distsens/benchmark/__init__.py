"""How fast it is: against other libraries, and what each part costs.

Ray is needed by ``distributed`` and ``evaluation`` alone, which run jobs in processes of their own.
"""

from distsens.benchmark.attack import measure_attack
from distsens.benchmark.autoattack import QUICK_EFFORT, Effort, Judged, measure_autoattack
from distsens.benchmark.distributed import measure_distributed
from distsens.benchmark.environment import describe_environment, fast_precision
from distsens.benchmark.evaluation import measure_evaluation
from distsens.benchmark.finding import Finding, Report
from distsens.benchmark.peers import PEERS_OF, missing_peers
from distsens.benchmark.show import benchmark_figure, benchmark_table
from distsens.benchmark.sns import measure_sns
from distsens.benchmark.step import measure_step
from distsens.benchmark.subject import FULL, QUICK, Scale, Subject

__all__ = [
    "FULL",
    "PEERS_OF",
    "QUICK",
    "QUICK_EFFORT",
    "Effort",
    "Finding",
    "Judged",
    "Report",
    "Scale",
    "Subject",
    "benchmark_figure",
    "benchmark_table",
    "describe_environment",
    "fast_precision",
    "measure_attack",
    "measure_autoattack",
    "measure_distributed",
    "measure_evaluation",
    "measure_sns",
    "measure_step",
    "missing_peers",
]
