"""The benchmark job: what it needs, what it writes, and wrong input."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from distsens.command_line import run_job

JOB = Path(__file__).resolve().parents[2] / "jobs" / "benchmark.py"
PEERS = ("torchattacks", "foolbox", "art")
CLUSTER = ("ray", "mlflow", "boto3", "pyarrow", "pandas", "torchvision")

# A module that is None cannot be imported, as if it were not installed.
_RUN = """
import runpy, sys
sys.modules.update(dict.fromkeys({blocked!r}))
sys.argv = {argv!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""

Benchmark = Callable[..., dict[str, Any]]


@pytest.fixture
def benchmark(tmp_path: Path) -> Benchmark:
    """Run the job in a process of its own without some packages; what it wrote as its summary."""

    def run(*arguments: str, blocked: tuple[str, ...], **options: Any) -> dict[str, Any]:
        summary = tmp_path / "summary.json"
        argv = [str(JOB), "--quick", "--threads", "1", "--summary", str(summary), *arguments]
        code = _RUN.format(blocked=blocked, argv=argv)
        subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, **options)
        report: dict[str, Any] = json.loads(summary.read_text(encoding="utf-8"))
        return report

    return run


def _values(report: dict[str, Any]) -> dict[str, float]:
    return {finding["name"]: finding["value"] for finding in report["findings"]}


def test_attack_step_and_sns_need_neither_a_cluster_nor_tracking_nor_peers(
    benchmark: Benchmark, tmp_path: Path
) -> None:
    report = benchmark(
        *("--parts", "attack,step,sns", "--rounds", "1", "--precision", "bf16", "--figure", "benchmark.png"),
        blocked=CLUSTER + PEERS,
    )
    assert set(report) == {"environment", "settings", "findings", "skipped"}
    assert report["environment"]["threads"] == 1
    assert report["settings"]["parts"] == ["attack", "step", "sns"]
    assert len(report["skipped"]) == 3
    values = _values(report)
    assert set(values) == {
        "attack/small_cnn/rate",
        "step/small_cnn/trades",
        "step/small_cnn/trades_fp32_training",
        "sns/small_cnn/step",
        "sns/small_cnn/step_fp32_training",
        "sns/small_cnn/probe",
    }
    assert all(math.isfinite(value) for value in values.values())
    assert values["attack/small_cnn/rate"] > 0
    assert (tmp_path / "benchmark.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.drill
@pytest.mark.peers
def test_peers_that_are_installed_are_compared_with(benchmark: Benchmark) -> None:
    peers = [peer for peer in PEERS if importlib.util.find_spec(peer) is not None]
    if not peers:
        pytest.skip("no peer is installed")
    report = benchmark("--parts", "attack", "--rounds", "3", blocked=CLUSTER)
    assert len(report["skipped"]) == 3 - len(peers)
    findings = {finding["name"]: finding for finding in report["findings"]}
    speedup = findings["attack/small_cnn/speedup"]
    names = {"torchattacks": "torchattacks", "foolbox": "foolbox", "art": "ART"}
    assert set(speedup["details"]["by_peer"]) == {names[peer] for peer in peers}
    assert speedup["low"] <= speedup["value"] <= speedup["high"]
    # PGD of two steps on 3 x 16 images: all but borderline images fall, or stand, alike.
    difference = findings["attack/small_cnn/success_difference"]
    assert difference["details"]["images"] == 48
    assert difference["value"] <= 5.0
    assert any(success > 0 for success in difference["details"]["success"].values())


@pytest.mark.drill
@pytest.mark.peers
def test_autoattack_is_compared_with_its_public_implementation(benchmark: Benchmark) -> None:
    pytest.importorskip("pyautoattack")
    report = benchmark("--parts", "autoattack", blocked=(*CLUSTER[:4], "torchvision"))
    speedup, difference = report["findings"]
    assert (speedup["name"], difference["name"]) == ("autoattack/speedup", "autoattack/difference")
    seconds = speedup["details"]["seconds"]
    assert speedup["value"] == pytest.approx(seconds["pyautoattack"] / seconds["distsens"])
    # 16 images, and a few of the steps and queries.
    assert difference["value"] <= 100 * 2 / 16


@pytest.fixture
def own_ray(ray_environment: dict[str, str]) -> dict[str, str]:
    """A job's workers must be its descendants, as their memory is followed: so each has a Ray of its own.

    That starts the workers that the job asks for, and none ahead of time for each core.
    """
    return {**ray_environment, "RAY_prestart_worker_first_driver": "0"}


@pytest.mark.drill
@pytest.mark.ray
def test_the_evaluation_part_runs_the_evaluation_job(benchmark: Benchmark, own_ray: dict[str, str]) -> None:
    report = benchmark("--parts", "evaluation", blocked=PEERS, env=own_ray)
    scaling, memory = report["findings"]
    assert (scaling["name"], memory["name"]) == ("evaluation/scaling", "evaluation/memory")
    rates = scaling["details"]["images_per_second"]
    assert scaling["value"] == pytest.approx(rates["2"][0] / rates["1"][0])
    assert all(100e6 < size < 10e9 for size in memory["details"]["bytes"])


@pytest.mark.drill
@pytest.mark.ray
def test_the_distributed_part_runs_the_training_job(benchmark: Benchmark, own_ray: dict[str, str]) -> None:
    report = benchmark("--parts", "distributed", blocked=PEERS, env=own_ray)
    values = _values(report)
    assert set(values) == {"distributed/overhead", "distributed/memory", "distributed/scaling"}
    assert 100 < values["distributed/memory"] < 10_000
    seconds = report["findings"][0]["details"]["epoch_seconds"]
    assert values["distributed/overhead"] == pytest.approx(100 * (seconds["workers_1"] / seconds["without_ray"] - 1))
    assert values["distributed/scaling"] == pytest.approx(seconds["workers_1"] / seconds["workers_2"])


def _load_job() -> ModuleType:
    specification = importlib.util.spec_from_file_location("benchmark_job", JOB)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["benchmark_job"] = module
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--part attack", "error: part: got 'attack'; there is no such option; allowed are parts, rounds"),
        (
            "--parts attack speed",
            "error: parts: got 'speed'; allowed are attack, step, sns, autoattack, distributed, evaluation",
        ),
        ("--rounds 0", "error: rounds: got 0; it must be a whole number"),
        ("--images 0", "error: images: got 0; it must be a whole number, 1 or more, and at most 1000000000"),
        ("--threads 1.5", "error: threads: got 1.5; it must be a whole number"),
        ("--device tpu", "error: device: got 'tpu'; allowed are cpu, cuda"),
        ("--quick maybe", "error: quick: got 'maybe'; it takes no value"),
        ("--summary /nowhere/s.json", "error: summary: got '/nowhere/s.json'; its folder does not exist"),
        ("--summary .", "error: summary: got '.'; it is a folder; name a file"),
        ("--figure figure.txt", "error: figure: got 'figure.txt'; it must end in .png, .svg or .pdf"),
        ("--data.nam mnist", "error: data.nam: got 'mnist'; there is no such field"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    arguments: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(JOB), *arguments.split()])
    with pytest.raises(SystemExit) as exited:
        run_job(_load_job().main)
    captured = capsys.readouterr()
    assert exited.value.code == 2
    assert captured.out == ""
    assert captured.err.startswith(says)
    assert captured.err.count("\n") == 1


def test_the_help_page_names_every_option(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [str(JOB), "--help"])
    with pytest.raises(SystemExit) as exited:
        run_job(_load_job().main)
    assert exited.value.code == 0
    page = capsys.readouterr().out
    for flag in ("--parts", "--rounds", "--device", "--threads", "--quick", "--summary", "--figure", "--data.name"):
        assert flag in page
