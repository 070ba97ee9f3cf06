"""Data and models of strangers, with names of classes, layers and files that figures and pages could take wrongly."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import numpy as np
import pytest
import safetensors.torch
import torch
from mlflow.artifacts import download_artifacts
from PIL import Image

from distsens.errors import printable
from distsens.report.style import shorts

pytestmark = pytest.mark.ray

CLASSES = (
    r"$\frac{$",
    "[red]",
    "=cmd|' C calc'!A0",
    "\x1b[31mred",
    "<b>",
    "[",
    "\u202etxt",
    ":skull:",
    "_hidden",
    "\udcff",
)
SHOWN = tuple(map(printable, CLASSES))
LAYERS = (r"$\frac{$", "_[red]")
MODEL = "net $\\frac{$ [red] <b> \x1b[31m.safetensors"
FACTORY = rf"""
from collections import OrderedDict

from torch import nn


def net(shape, classes):
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 6), nn.Linear(6, classes)]
    names = [{LAYERS[0]!r}, "relu", "</script>", {LAYERS[1]!r}, "out"]
    return nn.Sequential(OrderedDict(zip(names, layers, strict=True)))
"""
TRAINING = """
--recipe quickstart --model.name nets_of_names:net --training.epochs 1 --training.batch_size 8 --attack.steps 1
--validation.steps 1 --test.steps 1 --test.restarts 1 --data.test_fraction 0.25 --data.validation_fraction 0.34
""".split()
JUDGED = """
--factory nets_of_names:net --threat.norm linf --threat.eps 0.05 --shard 10 --attacks pgd --pgd.steps 2
""".split()


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images, a module of a network, and its weights."""
    folder = tmp_path_factory.mktemp("strangers")
    draw = np.random.default_rng(0)
    for name in CLASSES:
        (folder / "data" / name).mkdir(parents=True)
        for number in range(4):
            pixels = draw.integers(256, size=(8, 8, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "data" / name / f"[b]{number}\n.png")
    (folder / "nets_of_names.py").write_text(FACTORY)
    module: dict[str, Any] = {}
    exec(FACTORY, module)
    torch.manual_seed(0)
    safetensors.torch.save_file(module["net"]((3, 8, 8), len(CLASSES)).state_dict(), folder / MODEL)
    return folder


@pytest.fixture
def finish(make_job: Callable[..., Any], strangers: Path) -> Callable[..., dict[str, Any]]:
    """Run a job on them to a good end; its summary. It prints nothing that steers a terminal."""

    def run(script: str, *arguments: str) -> dict[str, Any]:
        job = make_job(script)
        (job.folder / "nets_of_names.py").write_text(FACTORY)
        summary: dict[str, Any] = job.finish(
            *arguments, "--data.name", "folder", "--data.root", str(strangers / "data")
        )
        assert all(line.isprintable() for line in job.processes[-1].lines)
        return summary

    return run


def figures(summary: Mapping[str, Any], name: str, folder: Path) -> list[str]:
    """The texts of a figure that MLflow holds."""
    where = {"dst_path": str(folder), "tracking_uri": summary["mlflow_uri"]}
    tree = Xml.parse(download_artifacts(run_id=summary["mlflow_run_id"], artifact_path=name, **where))
    return ["".join(one.itertext()) for one in tree.iter() if one.tag.endswith("}text")]


def test_a_training_ends_and_names_every_layer_as_it_is(finish: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    summary = finish("train.py", *TRAINING)
    assert (summary["status"], summary["message"]) == ("finished", None)
    assert set(summary["sensitivity"]) == {f"network.{layer}" for layer in LAYERS}
    assert set(LAYERS) <= set(figures(summary, "training.svg", tmp_path))


def test_an_evaluation_ends_and_names_every_class_as_it_is(
    finish: Callable[..., dict[str, Any]], strangers: Path, tmp_path: Path
) -> None:
    summary = finish("evaluate.py", "--model", str(strangers / MODEL), *JUDGED)
    assert summary["status"] == "finished"
    assert set(map(printable, summary["classes"])) == set(SHOWN)
    assert set(shorts(CLASSES)) <= set(figures(summary, "evaluation.svg", tmp_path))


def test_an_analysis_ends_and_its_page_runs_nothing(
    finish: Callable[..., dict[str, Any]], strangers: Path, tmp_path: Path
) -> None:
    some = ("--ablation.images", "10", "--ablation.steps", "2", "--gallery.neurons", "1", "--gallery.images", "1")
    model = ("--model", str(strangers / MODEL))
    summary = finish("analyze.py", *model, *JUDGED, *some, "--output", str(tmp_path / "output"))
    assert summary["status"] == "finished"
    (model,) = summary["models"]
    assert set(model["layers"]) == {f"network.{layer}" for layer in LAYERS}
    page = (tmp_path / "output" / "report.html").read_text(encoding="utf-8")
    assert all(one.isprintable() or one in "\n" for one in page)
    assert page.count("</script>") == 1
    assert "<b>" not in page
    assert "&lt;b&gt;" in page
    assert set(LAYERS) <= set(figures(summary, "figures/layers.svg", tmp_path))
    assert set(SHOWN) <= set(figures(summary, "figures/classes.svg", tmp_path))
    assert json.loads((tmp_path / "output" / "analysis.json").read_text())["models"] == summary["models"]
