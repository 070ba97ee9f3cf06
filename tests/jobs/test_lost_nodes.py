"""What becomes of jobs whose machines are switched off, on a Ray of nodes that come and go."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from running_ray import Nodes, ray_of_nodes

from distsens.storage import Checkpoints, open_place

pytestmark = [pytest.mark.ray, pytest.mark.drill]

ROOT = Path(__file__).resolve().parents[2]
TRAIN = """
--recipe quickstart --data.limit 512 --threat.eps 0.05 --training.batch_size 32 --attack.steps 3 --validation.steps 2
--test.steps 2 --test.restarts 1 --stabilize.weight 0.2 --stabilize.warmup_start 0 --stabilize.refresh_steps 5
--training.epochs 8
""".split()
EVALUATE = """
--factory lenet5 --data.name digits --data.limit 40 --shard 4 --threat.norm linf --threat.eps 0.08
--attacks pgd --pgd.steps 40 --pgd.restarts 10 --workers.num 1
""".split()
# The job, in whose process a lost machine is waited for two seconds only.
IMPATIENT = """
import runpy, sys
from distsens.distributed import patience
patience._SECONDS_OF_QUIET, patience._SECONDS_FOR_A_LOST_MACHINE = 0.5, 2.0
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
LOST = "machines are lost: the cluster has room for 0 workers of 1 CPU each, and one is needed"
SWEEP = """
extends: quickstart
data: {limit: 512}
training: {epochs: 200}
workers: {num: 1}
attack: {steps: 1}
validation: {steps: 1}
search: {stabilize.weight: {choice: [0.1, 0.2]}}
sweep: {trials: 2, searcher: random, scheduler: none}
"""


@pytest.fixture
def nodes(forked: dict[str, str]) -> Iterator[Nodes]:
    with ray_of_nodes(forked) as found:
        yield found


@pytest.fixture
def make(make_job: Callable[..., Any], nodes: Nodes) -> Callable[[str], Any]:
    """Make a job that joins these nodes."""

    def of(script: str) -> Any:
        job = make_job(script)
        job.environment = nodes.environment
        return job

    return of


def test_a_training_that_loses_a_node_goes_on_from_its_newest_checkpoint_on_another(
    make: Callable[[str], Any], make_job: Callable[..., Any], nodes: Nodes
) -> None:
    for _ in range(2):
        nodes.add()
    job = make("train.py")
    process = job.start(*TRAIN, "--workers.num", "2", "--summary", "summary.json")
    process.wait_for("epoch   3")
    nodes.lose()
    nodes.add()
    assert process.end() == 0, process.output
    resumed = [line for line in process.lines if line.startswith("resumed after epoch ")]
    assert len(resumed) == 1, process.output
    assert int(resumed[0].split()[3].rstrip(",:")) >= 3
    result = json.loads((job.folder / "summary.json").read_text())
    undisturbed = make_job().finish(*TRAIN, "--workers.num", "2")
    assert files_of(result) == files_of(undisturbed)
    assert result["test"] == undisturbed["test"]


def files_of(summary: dict[str, Any]) -> bytes:
    """Weights of the last epoch."""
    return Checkpoints(open_place(summary["storage"])).load(summary["epochs"]).files["model.safetensors"]


def test_an_evaluation_that_loses_all_nodes_says_so_gives_up_and_can_be_resumed(
    make: Callable[[str], Any], nodes: Nodes, weights: Path
) -> None:
    nodes.add()
    job = make("evaluate.py")
    (job.folder / "impatient.py").write_text(IMPATIENT)
    words = ("--model", str(weights), *EVALUATE)
    process = job.start(*words, "--summary", "first.json", program=("impatient.py", str(ROOT / "jobs" / "evaluate.py")))
    process.wait_for("judging")
    wait_for_shards(job, 1)
    nodes.lose()
    assert process.end() == 1, process.output
    assert f"{LOST}; waiting 0.0333333 minutes for others" in process.lines
    failed, hint = process.lines[-2:]
    assert failed == f"failed: {LOST}; no others came within 0.0333333 minutes"
    assert "Traceback" not in process.output
    assert json.loads((job.folder / "first.json").read_text())["status"] == "failed"
    done = {path: path.stat().st_mtime_ns for path in shards(job)}
    assert 0 < len(done) < 10
    nodes.add()
    resumed = job.finish(*hint.removeprefix("resume with: python jobs/evaluate.py ").split())
    assert {path: path.stat().st_mtime_ns for path in done} == done, "a finished shard was judged again"
    undisturbed = job.finish(*words)
    pd.testing.assert_frame_equal(ledger(resumed), ledger(undisturbed))


def test_a_sweep_that_loses_all_nodes_says_so_and_gives_up(make: Callable[[str], Any], nodes: Nodes) -> None:
    nodes.add()
    job = make("tune.py")
    (job.folder / "impatient.py").write_text(IMPATIENT)
    (job.folder / "sweep.yaml").write_text(SWEEP)
    process = job.start("--recipe", "sweep.yaml", program=("impatient.py", str(ROOT / "jobs" / "tune.py")))
    process.wait_for("trial ")
    nodes.lose()
    assert process.end() == 1, process.output
    assert f"{LOST}; waiting 0.0333333 minutes for others" in process.lines
    failed, hint = process.lines[-2:]
    assert failed == f"failed: {LOST}; no others came within 0.0333333 minutes"
    assert hint.startswith("resume with: python jobs/tune.py --resume ")
    assert "Traceback" not in process.output


def shards(job: Any) -> list[Path]:
    return list(job.storage.glob("evaluate-*/ledger/*.parquet"))


def wait_for_shards(job: Any, count: int) -> None:
    wait_for(lambda: len(shards(job)) >= count)


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ledger(summary: dict[str, Any]) -> pd.DataFrame:
    return pd.read_parquet(Path(summary["storage"].removeprefix("file://")) / "ledger.parquet")
