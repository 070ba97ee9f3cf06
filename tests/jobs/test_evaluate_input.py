"""What the evaluation refuses: one line, exit code 2, and nothing started or left behind."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn

from distsens.models.lenet import lenet5

GIVEN = "--model net.safetensors --factory lenet5 --data.name digits --threat.norm linf --threat.eps 0.1"
CUTS_OFF = """
from torch import nn
from distsens.models.lenet import lenet5

class CutsOff(nn.Module):
    def __init__(self, network):
        super().__init__()
        self._modules.update(network._modules)
        self.whole = network.forward

    def forward(self, x):
        return self.whole(x.detach())

def net(shape, classes):
    return CutsOff(lenet5(shape=shape, classes=classes))
"""
RAISES = """
import torch
from torch import nn
from distsens.models.lenet import lenet5

class Raises(nn.Module):
    def __init__(self, network, what):
        super().__init__()
        self._modules.update(network._modules)
        self.whole, self.what = network.forward, what

    def forward(self, x):
        if len(x) > 1 and self.what == "KeyError":
            return {}["aux"]
        assert len(x) <= 16 or self.what != "AssertionError", f"{len(x)} images\\nare too many"
        return self.whole(x) * (torch.nan if self.what == "NaN" else 1.0)

def key(shape, classes):
    return Raises(lenet5(shape=shape, classes=classes), "KeyError")

def size(shape, classes):
    return Raises(lenet5(shape=shape, classes=classes), "AssertionError")

def nan(shape, classes):
    return Raises(lenet5(shape=shape, classes=classes), "NaN")
"""
OWN = """
from torch import nn

def small(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
"""
THERE = {"net.safetensors", "cuts_off.py", "raises.py", "claim.json", "no-errors.json", "short.json", "percent.json"}
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(run_here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the job in a folder with weights of a LeNet-5."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # of the factory, which would be left in the folder
    torch.manual_seed(0)
    safetensors.torch.save_file(lenet5(shape=(1, 8, 8), classes=10).state_dict(), tmp_path / "net.safetensors")
    (tmp_path / "cuts_off.py").write_text(CUTS_OFF)
    (tmp_path / "raises.py").write_text(RAISES)
    (tmp_path / "claim.json").write_text(json.dumps({"format": 2}))
    for name, errors in (("no-errors", [0.0] * 5), ("short", [0.1]), ("percent", [10.0] * 5)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"corruption_errors": {"fog": errors}}))
    return partial(run_here, "evaluate")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("", "error: model: got None; name one"),
        ("--model", "error: model: got True; it takes an address"),
        ("--model nowhere", "error: model: got 'nowhere'"),
        ("--model net.safetensors", "error: factory: got None"),
        ("--model net.safetensors --factory lenet5", "error: data.name: got None"),
        (GIVEN.replace("--threat.norm linf --threat.eps 0.1", ""), "error: threat: got None"),
        (GIVEN.replace("lenet5", "small_cnn"), "error: model: got"),
        (GIVEN.replace("digits", "cifar1"), "error: data.name: got 'cifar1'"),
        (GIVEN.replace("0.1", "8"), "error: threat.eps: got 8"),
        (f"{GIVEN} --attacks autoatack", "error: attacks: got 'autoatack'"),
        (f"{GIVEN} --attacks transfer", "error: transfer: got None"),
        (f"{GIVEN} --attacks cw", "threat.norm"),
        (f"{GIVEN} --tracking.experiment {'e' * 251}", "error: tracking.experiment: got 'eeee"),
        (f"{GIVEN} --storage.path /tmp/{'deep/' * 800}", "names below it would be longer than 4,095 bytes"),
        (f"{GIVEN} --corruptions rain", "error: corruptions: got 'rain'"),
        (
            f"{GIVEN} --corruptions fog --baseline no-errors.json",
            "needs 5 error rates in [0, 1], not all of them 0, under",
        ),
        (f"{GIVEN} --corruptions fog --baseline short.json", "under fog; it has [0.1]"),
        (f"{GIVEN} --corruptions fog --baseline percent.json", "under fog; it has [10.0,"),
        (f"{GIVEN} --corruptions snow --baseline short.json", "has no errors, or none are measured, under snow"),
        (f"{GIVEN} --baseline short.json", "has no errors, or none are measured, under all"),
        (f"{GIVEN} --attacks pgd --pgd.step_size 2", "error: pgd.step_size: got 2.0; at most 10 times eps (0.1)"),
        (f"{GIVEN} --eps-curve 0.1 3", "error: eps_curve: got 3"),
        (f"{GIVEN} --data.limit 100000", "error: data.limit: got 100000"),
        (f"{GIVEN} --workers.num 1000", "error: workers.num: got 1000"),
        (f"{GIVEN} --attacks transfer --transfer nowhere", "error: transfer: got 'nowhere'"),
        (
            f"{GIVEN.replace('lenet5', 'cuts_off:net')} --attacks square pgd",
            "error: attacks: got 'pgd'; the model cuts gradients off",
        ),
        (GIVEN.replace("lenet5", "raises:key"), "it cannot be judged on 64 images, or on one (KeyError: 'aux', "),
        (GIVEN.replace("lenet5", "raises:size"), "on 64 images, or on one (64 images are too many)"),
        (GIVEN.replace("lenet5", "raises:nan"), "they must be finite; those of 64 of 64 images are not"),
        (
            f"{GIVEN} --attacks transfer --transfer net.safetensors@small_cnn",
            "transfer: got 'net.safetensors@small_cnn'; ",
        ),
        (
            f"{GIVEN} --attacks transfer --transfer net.safetensors@no:net",
            "transfer: got 'net.safetensors@no:net'; factory",
        ),
        (
            f"{GIVEN} --attacks transfer --transfer claim.json@lenet5",
            "transfer: got 'claim.json@lenet5'; is text, which",
        ),
        (f"{GIVEN} --attacks transfer --transfer runs:/0@x", "error: tracking.uri: got 'sqlite:"),
        (f"{GIVEN} --save-examples claim.json", "error: save_examples: got 'file:///"),
        (f"{GIVEN} --save-examples claim.json/below", "error: save_examples: got 'file:///"),
        (f"{GIVEN} --save-examples https://a/b", "error: save_examples: got 'https://a/b'"),
        (f"{GIVEN} --examples https://a/b", "error: examples: got 'https://a/b'"),
        (f"{GIVEN} --model.mean 0.1 0.2", "error: model.mean: got (0.1, 0.2); must be one number"),
        (f"{GIVEN} --model.std 0", "error: model.std: got 0; input should be greater than 0"),
        (f"{GIVEN} --model.small_images", "error: model.small_images: got True"),
        (f"{GIVEN} --model.means 0.1", "error: model.means: got 0.1; there is no such field"),
        (
            "--model claim.json --factory lenet5",
            "error: model: got 'claim.json'; is text, which begins '{\"format\": 2}'",
        ),
        ("--model net.safetensors@lenet --data.name digits", "error: factory: got 'lenet'"),
        (f"{GIVEN} --summary .", "error: summary: got '.'; it is a folder; name a file"),
        (f"{GIVEN} --claim /proc/claim.json", "error: claim: got '/proc/claim.json'; it cannot be written: "),
        (f"{GIVEN} --claim no/folder.json", "error: claim: got 'no/folder.json'"),
        (f"{GIVEN} --verify claim.json", "error: verify: got 'claim.json'; must hold a claim; it lacks"),
        (f"{GIVEN} --nonsense 1", "nonsense"),
        ("--resume nothing", "error: resume: got 'nothing'"),
        ("--resume x --model net.safetensors", "error: resume: got 'x'; there is no evaluation.json"),
        ("--resume x --model net.safetensors --claim c.json", "error: model: got ['x', 'net.safetensors']; one model"),
        ("--resume x y --verify claim.json", "error: model: got ['x', 'y']; one model"),
        ("--resume", "error: resume: got True; it takes a value, or several"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(run: Run, tmp_path: Path, arguments: str, says: str) -> None:
    code, _, error = run(*arguments.split())
    assert code == 2, error
    assert says in error, error
    assert error.count("\n") == 1, error
    assert {path.name for path in tmp_path.iterdir()} == THERE


def test_a_submitted_job_resumes_by_name_where_submitted_jobs_keep_their_runs(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert f"in {(tmp_path / 'runs' / 'x').as_uri()}" in run("--resume", "x")[2]
    assert f"in {(tmp_path / 'there' / 'x').as_uri()}" in run("--resume", "x", "--storage.path", "there")[2]
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": {"job_submission_id": "raysubmit_1"}}))
    assert f"in {(tmp_path / 'home' / 'distsens' / 'runs' / 'x').as_uri()}" in run("--resume", "x")[2]


def test_a_dry_run_checks_everything_and_leaves_nothing(run: Run, tmp_path: Path) -> None:
    code, output, error = run(
        *GIVEN.split(), "--dry-run", "--attacks", "autoattack", "adaptive", "--corruptions", "all"
    )
    assert (code, error) == (0, "")
    assert "everything that can be checked is in order" in output
    assert {path.name for path in tmp_path.iterdir()} == THERE


def test_examples_may_be_transferred_from_weights_of_the_judged_network(run: Run, tmp_path: Path) -> None:
    code, _, error = run(*GIVEN.split(), "--dry-run", "--attacks", "transfer", "--transfer", "net.safetensors")
    assert (code, error) == (0, "")
    safetensors.torch.save_file({"weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    code, _, error = run(*GIVEN.split(), "--dry-run", "--attacks", "transfer", "--transfer", "other.safetensors")
    assert (code, error.count("\n")) == (2, 1)
    assert error.startswith("error: transfer: got 'other.safetensors'; of another network: 10 weights (conv1.weight,")


@pytest.mark.parametrize(
    "models",
    [
        "--model net.safetensors@lenet5 own.PTH@my_nets:small --transfer net.safetensors@lenet5",
        "--model own.PTH@my_nets:small net.safetensors@lenet5 --transfer own.PTH@my_nets:small",
        "--model own.PTH net.safetensors@lenet5 --factory my_nets:small --transfer net.safetensors@lenet5",
    ],
)
def test_two_architectures_stand_side_by_side_and_transfer_to_each_other(run: Run, tmp_path: Path, models: str) -> None:
    (tmp_path / "my_nets.py").write_text(OWN)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    torch.save({"epoch": 3, "net": {f"module.{name}": one for name, one in linear.state_dict().items()}}, "own.PTH")
    others = "--data.name digits --threat.norm linf --threat.eps 0.1 --attacks transfer --model.mean 0.1307".split()
    code, output, error = run(*models.split(), *others, "--model.std", "0.3081", "--dry-run")
    assert (code, error) == (0, ""), error
    assert "everything that can be checked is in order" in output


def test_help_names_every_field_and_every_option(run: Run) -> None:
    code, output, _ = run("--help")
    assert code == 0
    for name in ("--model.address", "--threat.eps", "--eps-curve", "--verify", "--claim", "--pgd.restarts"):
        assert name in output


def test_without_a_test_split_the_validation_split_is_judged_and_training_images_only_if_they_are_named(
    run: Run, tmp_path: Path
) -> None:
    for split in ("train", "valid"):
        for number in range(100):
            path = tmp_path / "set" / split / str(number % 10) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (2 * number, 0, 0)).save(path)
    state = lenet5(shape=(3, 8, 8), classes=10).state_dict()
    safetensors.torch.save_file(state, tmp_path / "net.safetensors")
    arguments = f"{GIVEN.replace('digits', 'folder')} --dry-run --attacks pgd --data.root set".split()
    code, output, error = run(*arguments)
    assert (code, error) == (0, "")
    assert "warning: there is no test split: the validation images are judged" in output
    shutil.rmtree(tmp_path / "set" / "valid")
    code, _, error = run(*arguments)
    assert (code, error) == (2, "error: data.split: got 'test'; there are no such images; name train to judge those\n")
    assert run(*arguments, "--data.split", "train")[0] == 0


def test_a_limit_that_leaves_classes_out_is_said(run: Run) -> None:
    code, output, error = run(*GIVEN.split(), "--dry-run", "--data.limit", "3", "--attacks", "pgd")
    assert (code, error) == (0, "")
    assert "warning: data.limit takes 3 images, which leave out 7 classes: " in output
