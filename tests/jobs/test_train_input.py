"""Wrong input to the training job: one clear line, exit code 2, nothing started and nothing left behind."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from distsens.distributed.runs import StoredRun
from distsens.experiment import Experiment
from distsens.storage import Checkpoints, open_place

ROOT = Path(__file__).resolve().parents[2]
# Those whose data and resources any machine has; tests/test_recipes.py checks what it can of the others.
RECIPES = sorted(
    path.stem for path in (ROOT / "jobs" / "recipes").glob("*.yaml") if path.stem.startswith(("mnist", "quickstart"))
)


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(run_here: Run) -> Run:
    """Run the job in an empty folder."""
    return partial(run_here, "train")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("", "error: recipe: got None; name one"),
        ("--recipe nope", "error: recipe: got 'nope'; one of cifar10-resnet18-mart"),
        ("--recipe ./nope.yaml", "error: recipe: got './nope.yaml'; there is no such file"),
        ("--recipe quickstart --objectiv.name x", "there is no such field; allowed are name, seed, data"),
        ("--recipe quickstart --threat.epsilon 0.1", "error: threat.epsilon: got 0.1; there is no such field"),
        ("--recipe quickstart --model.name resnet1", "error: model.name: got 'resnet1'; must be one of small_cnn"),
        ("--recipe quickstart --model.name no.such:thing", "module no.such cannot be imported"),
        ("--recipe quickstart --model.mean 0.1 0.2", "error: model.mean: got (0.1, 0.2)"),
        (
            "--recipe quickstart --stabilize.layers nothing*",
            "error: stabilize.layers: got 'nothing*'; it matches no layer",
        ),
        ("--recipe quickstart --stabilize.ratio 0", "error: stabilize.ratio: got 0; "),
        ("--recipe quickstart --stabilize.ratio 1.01", "(allowed: above 0, at most 1)"),
        ("--recipe quickstart --threat.eps 8", "error: threat.eps: got 8.0; pixels lie in [0, 1]"),
        ("--recipe quickstart --threat.norm l2 --threat.eps 9", "error: threat.eps: got 9.0; two images are at most 8"),
        ("--recipe quickstart --workers.num 0", "error: workers.num: got 0; "),
        ("--recipe quickstart --threat.eps 0", "error: threat.eps: got 0.0; at least 1e-06 with objective.name pgd_at"),
        ("--recipe quickstart --attack.step_size 2e9", "error: attack.step_size: got '2e9'; input should be less than"),
        ("--recipe quickstart --attack.step_size 2", "error: attack.step_size: got 2.0; at most 10 times eps (0.15)"),
        ("--recipe quickstart --attack.name mim --attack.momentum 1e30", "error: attack.momentum: got 1e+30; "),
        (
            "--recipe quickstart --training.epochs 1:30",
            "error: training.epochs: got '1:30'; input should be a valid",
        ),
        (f"--recipe quickstart --name {'a' * 161}", "aaaaa'; string should have at most 160 characters"),
        (f"--recipe quickstart --tracking.experiment {'e' * 251}", "string should have at most 250 characters"),
        (f"--recipe quickstart --storage.path /tmp/{'deep/' * 800}", "names below it would be longer than 4,095 bytes"),
        (f"--recipe quickstart --seed {'9' * 5000}", "error: seed: got '9999999999"),
        ("--recipe quickstart --workers.num 60", "error: workers.num: got 60; this machine has room for"),
        ("--recipe quickstart --workers.cpus 4000", "of 4000 CPU each"),
        ("--recipe quickstart --storage.path /proc/runs", "error: storage.path: got 'file:///proc/runs'"),
        ("--recipe quickstart --storage.path gs://bucket/runs", "error: storage.path: got 'gs://bucket/runs'"),
        ("--recipe quickstart --tracking.uri http://127.0.0.1:9", "error: tracking.uri: got 'http://127.0.0.1:9'"),
        (
            "--recipe quickstart --tracking.uri postgresql://me:secret@db/mlflow",
            "error: tracking.uri: got 'postgresql://me:***@db/mlflow'; a password or a token stays out of recipes",
        ),
        (
            "--recipe quickstart --tracking.uri postgresql://db/mlflow?password=secret",
            "error: tracking.uri: got 'postgresql://db/mlflow?password=***'; a password or a token stays out of",
        ),
        (
            "--recipe quickstart --tracking.uri https://token@mlflow.example.org",
            "error: tracking.uri: got 'https://***@mlflow.example.org'; a password or a token stays out of",
        ),
        (
            "--recipe quickstart --storage.path s3://key:secret@bucket/runs",
            "error: storage.path: got 's3://***'; ",
        ),
        ("--recipe mnist-sns --data.root /nowhere", "error: data.root: got '/nowhere'; must hold MNIST"),
        ("--recipe quickstart --data.augment spin", "error: data.augment: got 'spin'; must be one of crop, flip"),
        (
            "--recipe quickstart --data.name cifar10 --data.root /nowhere",
            "must hold cifar-10-batches-py/data_batch_1; --data",
        ),
        (
            "--recipe quickstart --data.name folder --data.root /nowhere",
            "'/nowhere'; must be a folder of class folders",
        ),
        ("--recipe quickstart --data.extra /nowhere.npz", "error: data.extra: got '/nowhere.npz'; must be a readable"),
        ("--recipe quickstart --data.validation_fraction 0.0001", "error: data.validation_fraction: got 0.0001"),
        ("--recipe quickstart --training.batch_size 5000", "error: training.batch_size: got 5000; must be 1 to 1293"),
        (
            "--recipe quickstart --training.batch_size 1",
            "error: training.batch_size: got 1; at least one image a worker",
        ),
        (
            "--recipe quickstart --objective.name trades --attack.random_start none",
            "error: attack.random_start: got 'none'",
        ),
        (
            "--recipe quickstart --training.batch_norm benign",
            "error: training.batch_norm: got 'benign'; pgd_at has no benign half",
        ),
        ("--recipe quickstart --stabilize.pairs 0.3", "error: stabilize.pairs: got 0.3; it must be 1/n"),
        ("--recipe quickstart --test.random_start none", "error: test.restarts: got 2; "),
        ("--recipe quickstart --attack.name bim --attack.restarts 3", "error: attack.restarts: got 3; "),
        (
            "--recipe quickstart --validation.name fgsm --validation.step_size 0.1",
            "error: validation.step_size: got 0.1; fgsm takes one step of length eps",
        ),
        ("--recipe quickstart --test.name mim", "error: test.name: got 'mim'; auto or pgd"),
        (
            "--recipe quickstart --objective.name trades --attack.name cw_pgd",
            "error: attack.name: got 'cw_pgd'; trades needs pgd or fast_fgsm",
        ),
        (
            "--recipe quickstart --threat.norm l1 --threat.eps 65",
            "error: threat.eps: got 65.0; two images are at most 64 apart in l1",
        ),
        ("--recipe quickstart --summary .", "error: summary: got '.'; it is a folder; name a file"),
        (
            "--recipe quickstart --stabilize.weight 1 --stabilize.refresh_steps 999",
            "stabilize.refresh_steps: got 999; ",
        ),
        ("--recipe quickstart --summary /nowhere/s.json", "error: summary: got '/nowhere/s.json'"),
        ("--recipe quickstart --dry-run maybe", "error: dry_run: got 'maybe'; it takes no value"),
        ("--recipe quickstart --factory nets:net", "error: factory: got ('nets:net',); only with --resume"),
        ("--resume nope", "error: resume: got 'nope'; there is no such run"),
        ("quickstart", "error: command line: got 'quickstart'"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(run: Run, tmp_path: Path, arguments: str, says: str) -> None:
    code, output, error = run(*arguments.split())
    assert code == 2
    assert output == ""
    assert error.count("\n") == 1
    assert says in error
    assert list(tmp_path.iterdir()) == []


_NETWORK = """
from torch import nn

class Network(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.body, self.head = nn.Linear(shape[1] * shape[2], 8), nn.Linear(8, classes)

    def forward(self, x):
        logits = self.head(self.body(x.flatten(1)))
        return (logits, x) if self.training else logits

def network(*, shape, classes):
    return Network(shape, classes)
"""


@pytest.mark.parametrize("script", ["train", "tune"])
def test_a_network_that_returns_more_in_training_mode_is_refused_before_anything_starts(
    run_here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "two.py").write_text(_NETWORK)
    recipe = {"train": "quickstart", "tune": "tune-quickstart"}[script]
    code, output, error = run_here(script, "--recipe", recipe, "--model.name", "two:network")
    assert (code, output) == (2, "")
    assert error.startswith("error: model.name: got 'two:network'; it cannot be trained: it gives tuple of 2; it must")
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["two.py"]


def test_wrong_input_ends_the_process_with_exit_code_2(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "train.py"), "--recipe", "quickstart", "--threat.eps", "8"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: threat.eps: got 8.0; pixels lie in [0, 1], so a linf eps must too (8/255, not 8)\n"


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_dry_run_of_a_recipe_checks_everything_and_leaves_nothing(
    run: Run, tmp_path: Path, recipe: str, request: pytest.FixtureRequest
) -> None:
    arguments = ["--recipe", recipe, "--dry-run", "--workers.num", "1"]
    if recipe.startswith("mnist"):
        arguments += ["--data.root", str(request.getfixturevalue("data_root"))]
    code, output, error = run(*arguments)
    assert (code, error) == (0, "")
    assert "everything that can be checked is in order" in output
    assert "network.conv1 (32)" in output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("recipe", ["folder-resnet18-sns", "imagenet-resnet50-sns"])
def test_a_dry_run_of_a_recipe_for_folders_takes_a_tree_of_its_image_size(
    run: Run, tmp_path: Path, recipe: str
) -> None:
    for split, number, name in itertools.product(("train", "val"), range(6), "abc"):
        path = tmp_path / "tree" / split / name / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (90, 70), (40 * number, 0, 0)).save(path)
    arguments = f"--recipe {recipe} --dry-run --data.root tree --data.validation_fraction 0.2 --data.decoding_cpus 0"
    arguments += " --workers.num 1 --workers.cpus 1 --workers.gpus 0 --training.batch_size 8"
    code, output, error = run(*arguments.split())
    assert (code, error) == (0, "")
    side = {"folder-resnet18-sns": 64, "imagenet-resnet50-sns": 224}[recipe]
    assert f"data folder: 14 training, 4 validation and 18 test images of shape (3, {side}, {side}), 3 cl" in output
    assert "everything that can be checked is in order" in output


def test_given_splits_are_used_and_what_is_held_out_beside_them_is_said(run: Run, tmp_path: Path) -> None:
    for split, number, name in itertools.product(("Train", "valid"), range(10), "ab"):
        path = tmp_path / "set" / split / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(path)
    arguments = "--recipe quickstart --dry-run --workers.num 1 --training.batch_size 8 --data.name folder"
    code, output, error = run(*arguments.split(), "--data.root", str(tmp_path / "set"), "--data.limit", "12")
    assert (code, error) == (0, "")
    assert "data folder: 12 training (stratified by class), 20 validation and 4 test images" in output
    assert "notice: there is a validation and no test split: 4 training images are held out as the test split" in output


def test_a_dry_run_names_files_that_cannot_be_read_and_counts_extra_images(run: Run, tmp_path: Path) -> None:
    for number in range(80):
        path = tmp_path / "set" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 9), (3 * number, 0, 0)).save(path)
    for number in range(7):
        (tmp_path / "set" / "a" / f"bad{number}.jpg").write_bytes(b"no image")
    np.savez(tmp_path / "extra.npz", images=np.zeros((9, 8, 8, 3), np.uint8), labels=np.arange(9) % 2)
    arguments = "--recipe quickstart --dry-run --workers.num 1 --training.batch_size 20 --data.name folder"
    arguments += f" --data.root {tmp_path}/set --data.image_size 8 --data.extra {tmp_path}/extra.npz"
    code, output, error = run(*arguments.split())
    assert (code, error) == (0, "")
    assert "notice: 7 files cannot be read and are left out: a/bad0.jpg (not an image), a/bad1.jpg" in output
    assert "a/bad4.jpg (not an image), ...\n" in output
    assert "data folder: 67 training, 6 validation and 16 test images of shape (3, 8, 8), 2 classes" in output
    assert "; 9 of the training images are extra, 10 a batch\n" in output


def test_the_printed_experiment_is_a_recipe_with_every_field(run: Run, tmp_path: Path) -> None:
    code, output, _ = run(*"--recipe quickstart --print-experiment --threat.eps 8/255 --data.augment crop".split())
    assert code == 0
    printed = yaml.safe_load(output)
    assert printed["threat"]["eps"] == pytest.approx(8 / 255)
    assert printed["data"]["augment"] == ["crop"]
    assert printed["name"] == "quickstart"
    assert set(printed) == set(Experiment.model_fields)
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(output)
    assert run("--recipe", str(recipe), "--print-experiment")[1] == output


@pytest.mark.parametrize(("steps", "noticed"), [("9", False), ("10", True)])
def test_an_alarm_that_cannot_sound_deserves_a_word(run: Run, steps: str, noticed: bool) -> None:
    arguments = "--recipe quickstart --dry-run --workers.num 1 --alarm.action stop --attack.steps"
    code, output, _ = run(*arguments.split(), steps)
    assert code == 0
    assert ("notice: alarm.action is stop, but none is raised" in output) == noticed


def test_help_names_every_field_and_every_option(run: Run) -> None:
    code, output, _ = run("--help")
    assert code == 0
    for flag in ("--recipe", "--resume", "--summary", "--dry-run", "--print-experiment"):
        assert flag in output
    for field in Experiment().flat():
        assert f"--{field.replace('_', '-')}" in output


@pytest.fixture
def stored(tmp_path: Path) -> StoredRun:
    """A run in storage with one checkpoint."""
    experiment = Experiment.parse({"name": "old", "training": {"batch_size": 64}})
    stored = StoredRun("old-1", open_place(str(tmp_path / "runs" / "old-1")), experiment, "0" * 32)
    stored.save()
    accuracies = {"validation/clean_accuracy": 0.5, "validation/robust_accuracy": 0.4}
    history = [{"epoch": epoch, "metrics": accuracies, "alarm": None} for epoch in (0, 1)]
    torch.save({"history": json.dumps(history)}, state := BytesIO())
    files = {"model.safetensors": b"m" * 100, "state.pt": state.getvalue()}
    Checkpoints(stored.place).save(1, files, experiment=experiment.digest(), metrics={})
    return stored


def test_a_run_is_not_resumed_as_another_experiment(run: Run, stored: StoredRun) -> None:
    code, _, error = run("--resume", stored.name, "--threat.eps", "0.2", "--training.lr", "0.3")
    assert code == 2
    assert error.startswith("error: resume: got 'old-1'; it is another experiment (threat.eps, training.lr differ)")


def test_a_run_is_not_resumed_from_another_experiments_checkpoint(run: Run, stored: StoredRun) -> None:
    Checkpoints(stored.place).save(2, {"model.safetensors": b"m"}, experiment="f" * 64, metrics={})
    code, _, error = run("--resume", stored.name)
    assert (code, error.count("\n")) == (2, 1)
    assert "its checkpoint of epoch 2 was written by another experiment" in error


def test_a_run_is_not_resumed_when_its_only_checkpoint_is_truncated(run: Run, stored: StoredRun) -> None:
    file = Path(stored.place.url.removeprefix("file://")) / "checkpoints" / "epoch-0001" / "model.safetensors"
    os.truncate(file, 50)
    code, _, error = run("--resume", str(file.parents[2]))
    assert (code, error.count("\n")) == (2, 1)
    assert "none of its checkpoints can be used" in error
    assert "50 bytes, the manifest says 100" in error


def test_a_run_of_another_format_is_refused(run: Run, stored: StoredRun) -> None:
    file = Path(stored.place.url.removeprefix("file://")) / "run.json"
    file.write_text(json.dumps({"format": 99}))
    code, _, error = run("--resume", stored.name)
    assert (code, error.count("\n")) == (2, 1)
    assert "format" in error


def test_a_run_whose_mlflow_run_is_gone_is_refused(run: Run, stored: StoredRun, tmp_path: Path) -> None:
    code, _, error = run("--resume", stored.name)
    assert (code, error.count("\n")) == (2, 1)
    assert f"error: tracking.run_id: got '{stored.mlflow_run_id}'" in error
    assert not (tmp_path / "runs" / "mlflow.db").exists()
