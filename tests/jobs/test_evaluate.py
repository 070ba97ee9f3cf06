"""The evaluation as a user runs it, on a small classifier that somebody else trained."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from mlflow import MlflowClient

from distsens.assembly import load_data
from distsens.data import representatives
from distsens.experiment import Experiment
from distsens.models.lenet import lenet5
from distsens.storage import open_place

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]
EPS = 0.08
IMAGES = 40
# Decides the ledgers that are compared below: whatever is judged is told so, or goes on with what was.
MEAN, STD = 0.05, 0.9
NETWORK = ("--factory", "lenet5", "--model.mean", str(MEAN), "--model.std", str(STD))
EFFORT = ("--pgd.steps", "8", "--pgd.restarts", "2")


@pytest.fixture
def arguments(weights: Path) -> list[str]:
    return [
        *("--model", str(weights), *NETWORK, "--data.name", "digits"),
        *("--threat.norm", "linf", "--threat.eps", str(EPS), "--data.limit", str(IMAGES), "--shard", "10", *EFFORT),
    ]


@pytest.fixture
def job(make_job: Callable[..., Any]) -> Any:
    return make_job("evaluate.py")


def ledger_of(summary: dict[str, Any]) -> pd.DataFrame:
    return pd.read_parquet(Path(summary["storage"].removeprefix("file://")) / "ledger.parquet")


@pytest.fixture(scope="module")
def judged(make_job: Callable[..., Any], weights: Path) -> tuple[Any, dict[str, Any]]:
    """A whole evaluation by one examiner, with everything that can be asked of it."""
    job = make_job("evaluate.py")
    summary = job.finish(
        *("--model", str(weights), *NETWORK, "--data.name", "digits"),
        *("--threat.norm", "linf", "--threat.eps", str(EPS), "--data.limit", str(IMAGES), "--shard", "10", *EFFORT),
        *("--attacks", "pgd", "apgd-ce", "apgd-t", "--workers.num", "1", "--eps-curve", "0.02", "0.08", "0.2"),
        *("--corruptions", "brightness", "--diagnostics", "--claim", str(job.folder / "claim.json")),
        *("--save-examples", str(job.folder / "pairs")),
    )
    return job, summary


def test_the_summary_counts_the_ledger(judged: tuple[Any, dict[str, Any]]) -> None:
    _, summary = judged
    rows = ledger_of(summary)
    assert (summary["status"], summary["message"], summary["violations"]) == ("finished", None, 0)
    assert summary["judged"] == summary["images"] == len(rows) == IMAGES
    test = load_data(Experiment()).test
    assert rows["image"].tolist() == representatives(test.labels, IMAGES).tolist()
    assert rows["label"].tolist() == test.labels[rows["image"].tolist()].tolist()
    assert summary["robust_accuracy"]["count"] == int(rows["broken_by"].isna().sum())
    assert summary["clean_accuracy"]["count"] == int((rows["label"] == rows["prediction"]).sum())
    assert 0 < summary["robust_accuracy"]["value"] < summary["clean_accuracy"]["value"]
    low, high = (summary["robust_accuracy"][end] for end in ("low", "high"))
    assert low < summary["robust_accuracy"]["value"] < high
    assert list(summary["after_attack"]) == ["pgd", "apgd-ce", "apgd-t"]
    counts = [value["count"] for value in summary["after_attack"].values()]
    assert counts == sorted(counts, reverse=True)
    assert [point["eps"] for point in summary["curve"]] == [0.02, 0.08, 0.2]
    assert len(summary["corruption_errors"]["brightness"]) == 5
    assert summary["diagnostics"]
    assert all(check["sentence"].endswith(".") for check in summary["diagnostics"])


def test_mlflow_holds_the_numbers_the_ledger_and_the_figure(judged: tuple[Any, dict[str, Any]]) -> None:
    _, summary = judged
    client = MlflowClient(summary["mlflow_uri"])
    run = client.get_run(summary["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["evaluation/robust_accuracy"] == pytest.approx(summary["robust_accuracy"]["value"])
    assert run.data.params["threat.eps"] == str(EPS)
    artifacts = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert artifacts >= {"ledger.parquet", "evaluation.json", "evaluation.png", "evaluation.svg"}


# The job on a machine of its own, where the second folder is the first: the examiners' machines have another one there.
ELSEWHERE = """
import ctypes, runpy, subprocess, sys
assert ctypes.CDLL(None).unshare(0x00020000) == 0, "no mount namespace of its own"
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
subprocess.run(["mount", "--bind", *sys.argv[1:3]], check=True)
del sys.argv[:3]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root on Linux makes mount namespaces")
def test_pairs_come_to_the_folder_on_the_users_machine_wherever_they_are_made(job: Any, arguments: list[str]) -> None:
    here, there = job.folder / "here", job.folder / "pairs"
    here.mkdir()
    there.mkdir()
    (job.folder / "elsewhere.py").write_text(ELSEWHERE)
    process = job.start(
        *(*arguments, "--attacks", "pgd", "--workers.num", "2", "--save-examples", str(there)),
        program=("elsewhere.py", str(here), str(there), str(ROOT / "jobs" / "evaluate.py")),
    )
    assert process.end() == 0, process.output
    (run,) = here.iterdir()
    numbers = [np.load(path)["image"].tolist() for path in sorted(run.glob("pairs-*.npz"))]
    assert [len(shard) for shard in numbers] == [10] * (IMAGES // 10)
    assert len({image for shard in numbers for image in shard}) == IMAGES
    assert not list(there.iterdir()), "they are scattered over the examiners' machines"


def test_saved_pairs_are_the_images_and_examples_that_the_ledger_speaks_of(
    judged: tuple[Any, dict[str, Any]], weights: Path
) -> None:
    job, summary = judged
    folder = job.folder / "pairs" / summary["run"]
    shards = [np.load(path) for path in sorted(folder.glob("*.npz"))]
    said = json.loads((folder / "pairs.json").read_text())
    assert (said["model"], said["data"]) == (summary["model"], summary["data"])
    assert (said["threat"], said["attacks"]) == ({"norm": "linf", "eps": EPS}, ["pgd", "apgd-ce", "apgd-t"])
    arrays = [name for name in shards[0].files if shards[0][name].ndim]  # beside the digest of a shard
    pairs = {name: np.concatenate([shard[name] for shard in shards]) for name in arrays}
    rows = ledger_of(summary)
    test = load_data(Experiment()).test
    assert (pairs["images"] == np.asarray(test.images)[pairs["image"]]).all()
    assert pairs["labels"].tolist() == rows["label"].tolist()
    distance = np.abs(pairs["adversarial"] - pairs["images"] / np.float32(255)).max()
    assert distance <= EPS + 1e-6
    network = lenet5(shape=test.shape, classes=10).eval()
    network.load_state_dict(
        {name.removeprefix("module."): value for name, value in safetensors.torch.load_file(weights).items()}
    )
    with torch.no_grad():
        predicted = network((torch.from_numpy(pairs["adversarial"]) - MEAN) / STD).argmax(1).numpy()
    assert ((predicted == pairs["labels"]) == rows["broken_by"].isna()).all()


@pytest.mark.drill
def test_two_examiners_of_which_one_is_killed_find_the_same_and_keep_it_in_a_bucket(
    judged: tuple[Any, dict[str, Any]],
    job: Any,
    arguments: list[str],
    moto: dict[str, str],
    use_s3: Callable[[Mapping[str, str]], str],
    process_of: Callable[[str], int],
) -> None:
    summary, bucket = job.folder / "summary.json", use_s3(moto)
    job.storage_url = f"{bucket}/runs"
    process = job.start(
        *arguments, *("--attacks", "pgd", "apgd-ce", "apgd-t", "--eps-curve", "0.02", "0.08", "0.2"),
        *("--corruptions", "brightness", "--workers.num", "2", "--summary", str(summary)),
        *("--save-examples", f"{bucket}/pairs", "--baseline", str(judged[0].folder / "summary-0.json")),
    )  # fmt: skip
    process.wait_for("judging")
    os.kill(process_of("Examiner"), signal.SIGKILL)
    assert process.end() == 0, process.output
    found = json.loads(summary.read_text())
    assert found["storage"] == f"{bucket}/runs/{found['run']}"
    content = open_place(found["storage"]).get("ledger.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(io.BytesIO(content)), ledger_of(judged[1]))
    assert found["mean_corruption_error"] == 1.0, "relative to itself"
    pairs = open_place(f"{bucket}/pairs/{found['run']}")
    assert pairs.keys() == ["pairs-00000.npz", "pairs-00001.npz", "pairs-00002.npz", "pairs-00003.npz", "pairs.json"]


@pytest.mark.drill
def test_a_killed_driver_is_resumed_after_its_last_shard_and_goes_on_to_further_models(
    judged: tuple[Any, dict[str, Any]], job: Any, arguments: list[str], weights: Path
) -> None:
    attacks = (
        "--attacks",
        "pgd",
        "apgd-ce",
        "apgd-t",
        "--eps-curve",
        "0.02",
        "0.08",
        "0.2",
        "--corruptions",
        "brightness",
        "--diagnostics",
    )
    (further := job.folder / "second.safetensors").write_bytes(weights.read_bytes())
    process = job.start("--model", str(weights), str(further), *arguments[2:], *attacks, "--workers.num", "1")
    process.wait_for("judging")
    deadline = time.monotonic() + 120
    while len(done := list(job.storage.glob("evaluate-*/ledger/*.parquet"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.popen.kill()
    process.end()
    left = job.move()
    done = [job.storage / path.relative_to(left / "runs") for path in done]
    further = job.folder / further.name
    before = {path: path.stat().st_mtime_ns for path in done}
    assert len(before) < IMAGES // 10
    evaluation = done[0].parents[1]
    until_then = json.loads((evaluation / "evaluation.json").read_text())["seconds"]
    summary, second = job.finish("--resume", str(evaluation), "--model", str(further))["models"]
    assert not left.exists(), sorted(left.rglob("*"))
    assert summary["seconds"] > until_then > 0
    assert {path: path.stat().st_mtime_ns for path in before} == before, "a finished shard was judged again"
    pd.testing.assert_frame_equal(ledger_of(summary), ledger_of(judged[1]))
    pd.testing.assert_frame_equal(ledger_of(second), ledger_of(judged[1]))
    whole = {path: path.stat().st_mtime_ns for path in job.storage.glob("evaluate-*/ledger/*.parquet")}
    whole |= {path: path.stat().st_mtime_ns for path in job.storage.glob("evaluate-*/checks.json")}
    both = job.finish("--resume", summary["run"], second["run"])
    assert {path: path.stat().st_mtime_ns for path in whole} == whole, "a finished shard was judged again"
    assert both["over_models"] == {}, "nobody knows of which recipe files of weights are"
    assert summary["diagnostics"]
    assert [model["diagnostics"] for model in both["models"]] == [summary["diagnostics"], second["diagnostics"]]
    first, other = sorted(job.storage.glob(f"{summary['run']}/ledger/*.parquet"))[:2]
    other.write_bytes(first.read_bytes())
    asked = job.run("--resume", summary["run"], "--dry-run")
    assert f"ledger/{other.name} of {summary['run']} would not be counted, its images be judged again" in asked.output
    pd.testing.assert_frame_equal(ledger_of(job.finish("--resume", summary["run"])), ledger_of(judged[1]))
    assert f"ledger/{other.name} is not counted, its images are judged again" in job.processes[-1].output


def test_a_claim_is_verified_and_a_false_one_is_refuted(
    judged: tuple[Any, dict[str, Any]], job: Any, weights: Path
) -> None:
    path = judged[0].folder / "claim.json"
    sample = ("--model", str(weights), *NETWORK, "--data.limit", "30")
    converted = job.folder / "converted.pt"
    state = safetensors.torch.load_file(weights)
    torch.save({name.removeprefix("module."): state[name] for name in sorted(state, reverse=True)}, converted)
    elsewhere = ("--model", str(converted), "--factory", "distsens.models.lenet:lenet5", *sample[4:])
    honest = job.run("--verify", str(path), *elsewhere)
    assert honest.popen.returncode == 0, honest.output
    assert "the claim holds: of 30 images judged anew, 0 are claimed" in honest.output
    assert "notice: the model is built by distsens.models.lenet:lenet5, and was by lenet5 when" in honest.output
    claim = json.loads(path.read_text())
    assert claim["model"]["architecture"]["name"] == "lenet5"
    assert claim["attacks"]["pgd"]["settings"]["attack"]["steps"] == 8
    assert (claim["commit"], claim["model"]["additional_data"]) == (judged[1]["commit"], None)
    claim["standing"], claim["robust_accuracy"] = claim["right"], claim["clean_accuracy"]
    for attack in claim["attacks"].values():
        attack["standing"], attack["left"] = claim["clean_accuracy"], claim["right"]
    forged = job.folder / "forged.json"
    forged.write_text(json.dumps(claim))
    refuted = job.run("--verify", str(forged), *sample, "--summary", str(job.folder / "refuted.json"))
    assert refuted.popen.returncode == 1, refuted.output
    verdict = json.loads((job.folder / "refuted.json").read_text())
    assert (verdict["judged"], verdict["verification"]["holds"]) == (30, False)
    assert verdict["verification"]["overclaimed"] > 0
    assert "the claim does not hold" in refuted.output
    (drawn,) = [
        line for line in refuted.lines if line.startswith("judging the claim's images anew, 30 drawn at random")
    ]
    (ledger,) = [path for path in job.storage.glob("*/ledger.parquet") if path.parent.name in refuted.output]
    assert ", ".join(map(str, pd.read_parquet(ledger)["image"])) in drawn
    eased = job.run("--verify", str(forged), *sample, "--attacks", "pgd", "--threat.eps", "0.0001")
    assert (eased.popen.returncode, len(eased.lines)) == (2, 1), eased.output
    assert eased.lines[0].startswith("error: attacks: got ['pgd']; leave it out")
