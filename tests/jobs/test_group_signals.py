"""What a job's whole process group is told (by systemd, Slurm, Kubernetes, a closed terminal) ends it in good order."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

JUDGED = (
    "--factory distsens.models.lenet:lenet5 --model.mean 0.1 --model.std 0.4 "
    "--data.name digits --threat.norm linf --threat.eps 0.1"
)
WORK = {
    "evaluate.py": f"{JUDGED} --attacks apgd-ce --pgd.steps 1000 --shard 100 --workers.num 2",
    "analyze.py": f"{JUDGED} --attacks pgd --pgd.steps 3000 --workers.num 2",
    "tune.py": "--recipe tune-quickstart --training.epochs 400 --workers.num 1",
}


@pytest.mark.ray
@pytest.mark.drill
@pytest.mark.parametrize(
    ("script", "number"),
    [("evaluate.py", signal.SIGTERM), ("analyze.py", signal.SIGHUP), ("tune.py", signal.SIGTERM)],
)
def test_a_job_whose_group_is_told_to_end_is_killed_and_says_what_it_has_found(
    make_job: Callable[..., Any],
    weights: Path,
    script: str,
    number: signal.Signals,
    nothing_left: Callable[..., None],
) -> None:
    job = make_job(script, alone=True)
    model = [] if script == "tune.py" else ["--model", str(weights)]
    process = job.start(*model, *WORK[script].split(), "--summary", "summary.json")
    process.wait_for("tracking ")
    time.sleep(3)  # somewhere within the work
    for _ in range(2):  # `timeout` tells the process, and then its group
        os.killpg(process.popen.pid, number)
    began = time.monotonic()
    assert process.end() == 128 + number, process.output
    assert time.monotonic() - began < 30
    assert [line for line in process.lines if "interrupted" in line] == [f"interrupted by {number.name}"]
    assert "Traceback" not in process.output
    assert "GCS" not in process.output
    summary = json.loads((job.folder / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert MlflowClient(summary["mlflow_uri"]).get_run(summary["mlflow_run_id"]).info.status == "KILLED"
    nothing_left()
