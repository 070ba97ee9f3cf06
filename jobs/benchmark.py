"""Measure speed: example generation and training steps against other libraries, and what SNS and Ray cost.

python jobs/benchmark.py --parts attack step sns autoattack --summary benchmark.json --figure benchmark.png

All parts but `distributed` and `evaluation` run without Ray and MLflow. Other libraries (foolbox, ART, torchattacks,
pyautoattack) are measured where they are installed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from distsens.command_line import as_lists, check_output, parse_flags, run_job, show_help
from distsens.errors import InputError
from distsens.experiment import Data, Experiment, Precision

Part = Literal["attack", "step", "sns", "autoattack", "distributed", "evaluation"]
Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Options:
    """What is measured, and how thoroughly."""

    parts: tuple[Part, ...] = ("attack", "step", "sns")
    """What to measure; distributed runs the training job on Ray, and takes ten minutes a round; evaluation runs the
    evaluation job on Ray; autoattack takes ten minutes a round."""
    rounds: int | None = None
    """Rounds in which all contenders take their turn; default 8, of distributed and evaluation 2, of autoattack 1."""
    precision: Precision | None = None
    """Of our attacks and training forwards; default bf16 where the device computes in it, else fp32."""
    model: str | None = None
    """autoattack: a trained run of ours to attack; default the briefly trained small CNN. It says its data
    itself, of which --data.root may say where it lies."""
    images: int | None = None
    """autoattack: how many test images, stratified; default 256."""
    device: Device = "cpu"
    """Where to measure."""
    threads: int = 2
    """CPU threads; in distributed every worker has one."""
    quick: bool = False
    """Tiny batches and no targets: to see that it works, not how fast it is."""
    summary: str | None = None
    """Write the result to this file as JSON."""
    figure: str | None = None
    """Draw the result into this file (png, svg or pdf)."""
    data: Data = field(default_factory=Data)


def main(arguments: Sequence[str]) -> int:
    """Run the job; its exit code is 0 whether targets are met or not, and 2 for wrong input."""
    if "--help" in arguments or "-h" in arguments:
        show_help(__doc__ or "", Options())
    options = _options(parse_flags(arguments))
    # Torch takes seconds to import: only once the words of the command are in order.
    import torch
    from rich.console import Console

    from distsens.benchmark import Report, benchmark_figure, benchmark_table, describe_environment

    if options.device == "cuda" and not torch.cuda.is_available():
        raise InputError("device", options.device, "PyTorch finds no GPU here; take cpu")
    torch.set_num_threads(options.threads)
    console = Console()
    findings, skipped = _measure(options, console)
    environment = describe_environment(torch.device(options.device))
    if options.quick:
        findings = [replace(finding, target=None) for finding in findings]
    settings = {**asdict(options), "data": options.data.model_dump(mode="json")}
    report = Report(environment, settings, findings, skipped)
    console.print(benchmark_table(report))
    if options.summary is not None:
        Path(options.summary).write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")
    if options.figure is not None:
        benchmark_figure(report).savefig(options.figure, dpi=150)
    return 0


def _measure(options: Options, console: Any) -> tuple[list[Any], list[str]]:
    """Findings, and what was skipped and why."""
    import torch

    from distsens import benchmark
    from distsens.console import print_line

    say = partial(print_line, console)
    device, data = torch.device(options.device), options.data.model_dump(mode="json")
    precision = options.precision or benchmark.fast_precision(device)
    findings, jobs = [], Path(__file__).resolve().parent
    peers = {peer for part in options.parts for peer in benchmark.PEERS_OF.get(part, ())}
    skipped = [f"comparison with {peer}, which is not installed" for peer in benchmark.missing_peers(peers)]
    for line in skipped:
        say(f"skipped: {line}")
    single = {
        "attack": benchmark.measure_attack,
        "step": benchmark.measure_step,
        "sns": benchmark.measure_sns,
    }
    rounds = options.rounds or (2 if options.quick else 8)
    scales = benchmark.QUICK if options.quick else benchmark.FULL
    for scale in scales if set(single).intersection(options.parts) else ():
        say(f"training {scale.title} briefly")
        subject = benchmark.Subject.train(scale, data, device, precision)
        for part in options.parts:
            if part not in single or (part == "step" and scale != scales[-1]):
                continue  # The targets of steps are for the larger network.
            say(f"measuring {part} on {scale.title}, {rounds} rounds")
            findings += single[part](subject, rounds)
    if "autoattack" in options.parts:
        effort = benchmark.QUICK_EFFORT if options.quick else benchmark.Effort()
        effort = replace(effort, images=options.images or effort.images)
        if options.model is not None:
            judged = benchmark.Judged.at(options.model, effort.images, device, options.data.root)
        else:
            judged = benchmark.Judged.of(benchmark.Subject.train(scales[0], data, device, precision), effort.images)
        say(f"measuring autoattack on {judged.title}, {options.rounds or 1} rounds")
        findings += benchmark.measure_autoattack(judged, options.rounds or 1, effort, device)
    seconds = 1.0 if options.quick else 60.0
    rounds = options.rounds or (1 if options.quick else 2)
    if "distributed" in options.parts:
        say(f"measuring the training job, {rounds} rounds")
        findings += benchmark.measure_distributed(
            jobs / "train.py", data, rounds, device, precision, epoch_seconds=seconds
        )
    if "evaluation" in options.parts:
        say(f"measuring the evaluation job, {rounds} rounds")
        findings += benchmark.measure_evaluation(jobs / "evaluate.py", data, rounds, run_seconds=seconds)
    return findings, skipped


def _options(flags: dict[str, Any]) -> Options:
    """The flags as options, each checked."""
    for name in flags:
        if name not in Options.__dataclass_fields__:
            raise InputError(name, flags[name], "there is no such option; allowed are " + ", ".join(_names()))
    if "parts" in flags:
        given = flags["parts"] if isinstance(flags["parts"], list) else str(flags["parts"]).split(",")
        for part in given:
            _check("parts", part, part in get_args(Part), "allowed are " + ", ".join(get_args(Part)))
        flags["parts"] = tuple(dict.fromkeys(given))
    for name, most in (("rounds", 10**4), ("threads", 10**4), ("images", 10**9)):
        if name in flags:
            whole = isinstance(flags[name], int) and not isinstance(flags[name], bool)
            within = whole and 1 <= flags[name] <= most
            _check(name, flags[name], within, f"it must be a whole number, 1 or more, and at most {most}")
    if "device" in flags:
        allowed = get_args(Device)
        _check("device", flags["device"], flags["device"] in allowed, "allowed are " + ", ".join(allowed))
    if "precision" in flags:
        allowed = get_args(Precision)
        _check("precision", flags["precision"], flags["precision"] in allowed, "allowed are " + ", ".join(allowed))
    if "model" in flags:
        _check("model", flags["model"], isinstance(flags["model"], str), "it takes the address of a run")
    if "quick" in flags:
        _check("quick", flags["quick"], isinstance(flags["quick"], bool), "it takes no value")
    for name in ("summary", "figure"):
        if name in flags:
            path = flags[name]
            _check(name, path, isinstance(path, str), "it takes the path of a file")
            check_output(name, path)
    if "figure" in flags:
        suffix = Path(flags["figure"]).suffix
        _check("figure", flags["figure"], suffix in (".png", ".svg", ".pdf"), "it must end in .png, .svg or .pdf")
    fields = as_lists({"data": flags.pop("data", {})}, Experiment().model_dump(mode="json"))
    data = Experiment.parse(fields).data
    return Options(**flags, data=data)


def _check(field: str, value: object, holds: bool, allowed: str) -> None:
    if not holds:
        raise InputError(field, value, allowed)


def _names() -> list[str]:
    return [name.replace("_", "-") for name in Options.__dataclass_fields__]


if __name__ == "__main__":
    run_job(main)
