"""What Ray Train, MLflow and checkpoints cost, and how training scales to two workers.

The training job runs as anybody runs it, in a process of its own; without Ray the same training runs right here.
"""

from __future__ import annotations

import json
import os
import statistics
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
from distsens.benchmark.finding import Finding, percent_more
from distsens.benchmark.processes import follow_memory
from distsens.benchmark.rounds import Spread
from distsens.evaluation import Measurement, measure
from distsens.experiment import Experiment, Precision, merge
from distsens.scratch import scratch_folder
from distsens.training import TrainingState, Watchers, train

_OVERHEAD_PERCENT, _SCALING = 5.0, 1.7
_EPOCHS = 3
_FEW = 1024
_MIB = 2**20


@dataclass(frozen=True)
class _JobRun:
    """What is taken from one run of the training job; ``worker_bytes`` is the largest memory of any worker."""

    epoch_seconds: float
    images_per_second: float
    worker_bytes: int


def measure_distributed(
    training_job: Path,
    data: Mapping[str, Any],
    rounds: int,
    device: torch.device,
    precision: Precision,
    *,
    epoch_seconds: float,
) -> list[Finding]:
    """The same training without Ray, by the job with one worker, and by the job with two, in turns.

    Each has one thread a worker (or one GPU). An epoch is sized to take about ``epoch_seconds`` without Ray; it is
    timed from its predecessor's end to its own, so with validation, checkpoint and record, and the first, which pays
    for starting, is left out.
    """
    experiment = _sized(data, epoch_seconds, device, precision)
    available = torch.cuda.device_count() if device.type == "cuda" else os.cpu_count() or 1
    alone: list[float] = []
    jobs: dict[int, list[_JobRun]] = {workers: [] for workers in (1, 2) if workers <= available}
    for _ in range(rounds):
        alone.append(_train_here(experiment, device))
        for workers, runs in jobs.items():
            runs.append(_run_job(training_job, experiment, workers, device))

    seconds = {"without_ray": statistics.median(alone)}
    seconds |= {f"workers_{n}": statistics.median(run.epoch_seconds for run in runs) for n, runs in jobs.items()}
    findings = [
        Finding(
            "distributed/overhead",
            f"Ray, MLflow, checkpoints, added to {seconds['without_ray']:.0f} s of epoch",
            "%",
            percent_more(Spread.of([run.epoch_seconds / own for run, own in zip(jobs[1], alone, strict=True)])),
            target=_OVERHEAD_PERCENT,
            at_least=False,
            details={"epoch_seconds": seconds},
        ),
        Finding(
            "distributed/memory",
            "Peak memory of a worker",
            "MiB",
            Spread.of([run.worker_bytes / _MIB for runs in jobs.values() for run in runs]),
        ),
    ]
    if 2 in jobs:
        pairs = list(zip(jobs[1], jobs[2], strict=True))
        findings.append(
            Finding(
                "distributed/scaling",
                "Two workers, times as fast as one",
                "x",
                Spread.of([one.epoch_seconds / two.epoch_seconds for one, two in pairs]),
                target=_SCALING,
                details={
                    "epoch_seconds": seconds,
                    "steps_alone": statistics.median(
                        two.images_per_second / one.images_per_second for one, two in pairs
                    ),
                },
            )
        )
    return findings


def _sized(data: Mapping[str, Any], epoch_seconds: float, device: torch.device, precision: Precision) -> Experiment:
    """PGD-AT of the small CNN on as many images, and if these run out with as many PGD steps, as fill an epoch."""
    fields: dict[str, Any] = {
        "name": "benchmark",
        "data": {**data, "validation_fraction": 0.02},
        "threat": {"norm": "linf", "eps": 0.1},
        "attack": {"steps": 10, "precision": precision},
        "test": {"steps": 1},
        "training": {"epochs": _EPOCHS, "batch_size": 128, "optimizer": "adamw", "lr": 1e-3},
    }
    every = len(assembly.load_data(Experiment.parse(fields)).train)
    few = min(_FEW, every * 2 // 5)
    more = few * 5 // 2
    guesses = [Experiment.parse(merge(fields, {"data": {"limit": images}})) for images in (few, more)]
    seconds = _train_here(guesses[0], device)
    if seconds >= epoch_seconds:
        return guesses[0]
    # Validation takes its time whatever the number of images, so that only the difference tells theirs; a tenth is left
    # for them even where noise denies it.
    per_image = max((_train_here(guesses[1], device) - seconds) / (more - few), 0.1 * seconds / few)
    wanted = few + (epoch_seconds - seconds) / per_image
    images = min(every, round(wanted))
    steps = round(guesses[0].attack.steps * wanted / images)
    return Experiment.parse(merge(fields, {"data": {"limit": images}, "attack": {"steps": steps}}))


def _train_here(experiment: Experiment, device: torch.device) -> float:
    """Seconds of an epoch after the first, in this process, with the threads of one worker."""
    threads = torch.get_num_threads()
    torch.set_num_threads(experiment.workers.cpus)
    dataset = assembly.load_data(experiment)
    model = assembly.build_model(experiment, dataset.shape, len(dataset.classes))
    neurons = assembly.count_neurons(experiment, model, dataset.shape)
    layers = tuple(neurons)
    model = model.to(device)
    state = TrainingState(model, assembly.build_optimizer(experiment, model))
    images, labels = dataset.train.tensors()
    step = assembly.build_step(experiment, state, model, layers)
    ends: list[float] = []

    def validate() -> Measurement:
        return measure(
            model,
            *dataset.validation.tensors(),
            {"pgd": assembly.build_attack(experiment, experiment.validation)},
            layers=layers,
            neurons=neurons,
            batch_size=experiment.training.batch_size,
            seed=experiment.seed,
            device=device,
        )

    plan = assembly.build_plan(experiment, len(images), dataset.validation.labels)
    watchers = Watchers(
        validate,
        on_step=lambda _: None,
        on_epoch=lambda _state, _best: ends.append(time.perf_counter()),
        recall=lambda _: {},  # only a rollback recalls
    )
    train(state, step, images, labels, plan, watchers)
    torch.set_num_threads(threads)
    return _mean_epoch(ends)


def _run_job(training_job: Path, experiment: Experiment, workers: int, device: torch.device) -> _JobRun:
    """The training job in a process, and a Ray, of its own."""
    with scratch_folder() as folder:
        recipe, summary_file = Path(folder, "benchmark.yaml"), Path(folder, "summary.json")
        places = {"storage": {"path": f"{folder}/runs"}, "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"}}
        sized = {"workers": {"num": workers, "gpus": int(device.type == "cuda")}}
        job_experiment = Experiment.parse(merge(merge(experiment.model_dump(mode="json"), places), sized))
        recipe.write_text(job_experiment.to_yaml(), encoding="utf-8")
        command = [sys.executable, str(training_job), "--recipe", str(recipe), "--summary", str(summary_file)]
        with tempfile.TemporaryFile("w+") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
            worker_bytes = max((sample.bytes for sample in follow_memory(process, "RayTrainWorker")), default=0)
            if process.returncode != 0:
                output.seek(0)
                raise RuntimeError("the training job failed:\n" + "".join(output.readlines()[-20:]))
        summary = json.loads(summary_file.read_text(encoding="utf-8"))
        # The driver writes one of these for each epoch as soon as it hears of its end.
        tables = sorted(Path(folder, "runs", summary["run"], "sensitivity").glob("epoch-*.parquet"))
        ends = [table.stat().st_mtime for table in tables]
    return _JobRun(_mean_epoch(ends), summary["images_per_second"], worker_bytes)


def _mean_epoch(ends: list[float]) -> float:
    """Mean seconds of an epoch after the first, from the ends of epoch 0 (the untrained network), 1, 2 and so on."""
    _, first, *_, last = ends
    return (last - first) / (len(ends) - 2)
