"""How an evaluation scales from one actor to two, and whether its memory depends on the number of images."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distsens import assembly
from distsens.attacks import GradientAttack, Threat
from distsens.benchmark.finding import Finding, percent_more
from distsens.benchmark.processes import MemorySample, follow_memory
from distsens.benchmark.rounds import Spread
from distsens.benchmark.subject import Scale, Subject
from distsens.experiment import Experiment
from distsens.models import state_to_bytes
from distsens.scratch import scratch_folder

_SCALING, _GROWTH_PERCENT = 1.7, 10.0
_SHARDS, _LARGEST_SHARD = 24, 25
_EPS = 0.07
_PROBED_STEPS = 20


@dataclass(frozen=True)
class _Work:
    """The classifier's file, and what it is judged by: PGD of ``steps`` on shards of ``shard`` images."""

    weights: Path
    data: Mapping[str, Any]
    shard: int
    steps: int


@dataclass(frozen=True)
class _Run:
    """Images a second once every actor has its first shard behind it; peaks of memory then, and until the end."""

    images_per_second: float
    early_bytes: int
    bytes: int


def measure_evaluation(
    evaluation_job: Path, data: Mapping[str, Any], rounds: int, *, run_seconds: float
) -> list[Finding]:
    """The evaluation job with one actor and with two, in turns, each actor with one thread on the CPU.

    The run of one actor is sized to take about ``run_seconds`` after its start, which is left out.
    """
    runs: dict[int, list[_Run]] = {1: [], 2: []}
    with scratch_folder() as folder:
        work = _prepared(Path(folder), data, run_seconds)
        for _ in range(rounds):
            for actors, of in runs.items():
                of.append(_run(evaluation_job, work, actors))
    pairs = zip(runs[1], runs[2], strict=True)
    every = [run for of in runs.values() for run in of]
    return [
        Finding(
            "evaluation/scaling",
            "Two actors of an evaluation, times as fast as one",
            "x",
            Spread.of([two.images_per_second / one.images_per_second for one, two in pairs]),
            target=_SCALING,
            details={"images_per_second": {n: [run.images_per_second for run in of] for n, of in runs.items()}},
        ),
        Finding(
            "evaluation/memory",
            "Memory of an actor, added from its first shard to its last",
            "%",
            percent_more(Spread.of([run.bytes / run.early_bytes for run in every])),
            target=_GROWTH_PERCENT,
            at_least=False,
            details={"bytes": [run.bytes for run in every], "shards": _SHARDS},
        ),
    ]


def _prepared(folder: Path, data: Mapping[str, Any], run_seconds: float) -> _Work:
    """A small CNN that withstands some noise, in a file, and as many PGD steps as fill the time."""
    dataset = assembly.load_data(Experiment.parse({"data": dict(data)}))
    scale = Scale("small_cnn", dataset.shape, "small CNN", batch=64, eps=_EPS, epochs=2)
    subject = Subject.train(scale, data, torch.device("cpu"), "fp32")
    weights = folder / "small_cnn.safetensors"
    weights.write_bytes(state_to_bytes(subject.network.state_dict()))
    shard = min(_LARGEST_SHARD, len(dataset.test) // _SHARDS)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    attack = GradientAttack(Threat("linf", _EPS), steps=_PROBED_STEPS, step_size=_EPS / 10)
    began = time.perf_counter()
    attack(subject.network, subject.images[:shard], subject.labels[:shard])
    seconds_a_step = (time.perf_counter() - began) / _PROBED_STEPS
    torch.set_num_threads(threads)
    return _Work(weights, data, shard, max(1, round(run_seconds / _SHARDS / seconds_a_step)))


def _run(evaluation_job: Path, work: _Work, actors: int) -> _Run:
    """The job in a process, and a Ray, of its own."""
    with scratch_folder() as folder:
        settings = {
            "model": work.weights,
            "factory": "small_cnn",
            **{f"data.{name}": work.data[name] for name in ("name", "root") if work.data.get(name) is not None},
            "data.limit": _SHARDS * work.shard,
            "threat.norm": "linf",
            "threat.eps": _EPS,
            "attacks": "pgd",
            "pgd.steps": work.steps,
            "pgd.restarts": 1,
            "shard": work.shard,
            "workers.num": actors,
            "storage.path": f"{folder}/runs",
            "tracking.uri": f"sqlite:///{folder}/mlflow.db",
        }
        flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        with tempfile.TemporaryFile("w+") as output:
            process = subprocess.Popen([sys.executable, str(evaluation_job), *flags], stdout=output, stderr=output)
            samples = follow_memory(process, "Examiner")
            if process.returncode != 0:
                output.seek(0)
                raise RuntimeError("the evaluation failed:\n" + "".join(output.readlines()[-20:]))
        # The driver writes one of these as soon as a shard is done.
        ends = sorted(file.stat().st_mtime for file in Path(folder, "runs").glob("*/ledger/shard-*.parquet"))
    warm, last = ends[actors - 1], ends[-1]
    return _Run((len(ends) - actors) * work.shard / (last - warm), _peak(samples, warm), _peak(samples, last))


def _peak(samples: list[MemorySample], until: float) -> int:
    return max((sample.bytes for sample in samples if sample.time <= until), default=0)
