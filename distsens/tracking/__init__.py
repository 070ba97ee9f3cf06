"""MLflow: one run per experiment, whatever restarts.

Only the driver process uses this room; workers hand it their numbers. Every function is given the store's address, none
looks at the current folder or at MLflow's global state. MLflow itself is imported when a store is first opened.
"""

from distsens.tracking.fetch import LoggedFiles, fetch_model_files
from distsens.tracking.moved import beside, holds_run
from distsens.tracking.run import WEIGHTS_ARTIFACT, TakenOverError, TrackedRun
from distsens.tracking.store import (
    absolute_uri,
    check_run,
    check_tracking,
    is_store_error,
    reason,
)

__all__ = [
    "WEIGHTS_ARTIFACT",
    "LoggedFiles",
    "TakenOverError",
    "TrackedRun",
    "absolute_uri",
    "beside",
    "check_run",
    "check_tracking",
    "fetch_model_files",
    "holds_run",
    "is_store_error",
    "reason",
]
