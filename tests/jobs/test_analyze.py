"""The analysis as a user runs it, on small classifiers that somebody else trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import safetensors.torch
from mlflow import MlflowClient

from tests.analysis.digit_pairs import trained

pytestmark = pytest.mark.ray

FACTORY = """
from torch import nn


def net(shape, classes):
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, stride=2), nn.ReLU(inplace=True),
        nn.Flatten(), nn.Linear(108, 20), nn.ReLU(), nn.Linear(20, classes),
    )
"""
ARGUMENTS = """
--factory nets_of_analyze:net --data.name digits --threat.norm linf --threat.eps 0.2 --data.limit 30 --shard 8
--attacks pgd fgsm --pgd.steps 4 --eps 0.1 --batch_size 5 --ablation.images 20 --ablation.ratios 0.2
--ablation.replacements benign --ablation.steps 2 --gallery.neurons 1 --gallery.images 2 --matched_images 20
""".split()


@pytest.fixture(scope="module")
def analyze(make_job: Callable[..., Any]) -> Callable[..., tuple[Path, dict[str, Any]]]:
    """Run the job on a network; the folder of its output, and its summary."""
    job = make_job("analyze.py")
    (job.folder / "nets_of_analyze.py").write_text(FACTORY)
    safetensors.torch.save_file(trained(0).state_dict(), job.folder / "first.safetensors")

    def run(*arguments: str) -> tuple[Path, dict[str, Any]]:
        output = job.folder / f"output-{len(job.processes)}"
        found = job.finish("--model", "first.safetensors", *ARGUMENTS, *arguments, "--output", str(output))
        return output, found

    return run


def test_any_number_of_workers_finds_the_very_same(analyze: Callable[..., tuple[Path, dict[str, Any]]]) -> None:
    one, summary = analyze("--workers.num", "1")
    two, other = analyze("--workers.num", "2")
    for path in sorted((one / "tables").iterdir()):
        pd.testing.assert_frame_equal(
            pd.read_parquet(path), pd.read_parquet(two / "tables" / path.name), check_exact=True
        )
    assert summary["findings"] == other["findings"]
    check_result(one, summary)


def check_result(output: Path, summary: dict[str, Any]) -> None:
    assert (summary["status"], summary["message"], summary["data"]["images"]) == ("finished", None, 30)
    (model,) = summary["models"]
    assert list(model["accuracy"]) == ["clean", "pgd", "fgsm", "pgd eps 0.1", "noise"]
    assert model["accuracy"]["pgd"]["value"] < model["accuracy"]["clean"]["value"]
    assert set(model["layers"]) == set(model["neurons_to_flip"]) == {"network.0", "network.2", "network.5"}
    assert {one["neurons"] for one in model["ablation"].values()} == {2, 3, 4, 9}
    stored = Path(summary["storage"].removeprefix("file://"))
    for folder in (output, stored):
        assert (folder / "report.html").read_bytes().startswith(b"<!DOCTYPE html>")
        assert json.loads((folder / "analysis.json").read_text())["findings"] == summary["findings"]
        assert {path.suffix for path in (folder / "figures").iterdir()} == {".png", ".svg"}
    neurons = pd.read_parquet(output / "tables" / "neurons.parquet")
    assert len(neurons) == 3 * (8 + 12 + 20)
    client = MlflowClient(summary["mlflow_uri"])
    run = client.get_run(summary["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["analysis/accuracy/pgd"] == model["accuracy"]["pgd"]["value"]
    assert run.data.params["threat.eps"] == "0.2"
    assert {"report.html", "analysis.json", "figures", "tables"} <= {
        artifact.path for artifact in client.list_artifacts(run.info.run_id)
    }
