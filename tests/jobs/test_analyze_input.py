"""What the analysis refuses: one line, exit code 2, and nothing started or left behind."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from distsens.models.lenet import lenet5

GIVEN = "--model net.safetensors --factory lenet5 --data.name digits --threat.norm linf --threat.eps 0.1"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(run_here: Run, tmp_path: Path) -> Run:
    """Run the job in a folder with weights of a LeNet-5, and pairs of images that are not of the digits."""
    torch.manual_seed(0)
    safetensors.torch.save_file(lenet5(shape=(1, 8, 8), classes=10).state_dict(), tmp_path / "net.safetensors")
    (tmp_path / "pairs").mkdir()
    zeros = np.zeros((2, 1, 8, 8), dtype=np.uint8)
    arrays = {"adversarial": zeros.astype(np.float32), "labels": np.arange(2), "image": np.arange(2)}
    np.savez(tmp_path / "pairs" / "pairs-00000.npz", images=zeros, **arrays)
    return partial(run_here, "analyze")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("", "error: model: got None; name one"),
        ("--model", "error: model: got True; it takes an address"),
        ("--model nowhere", "error: model: got 'nowhere'"),
        ("--model net.safetensors net.safetensors --factory lenet5", "error: model: got"),
        (GIVEN.replace("digits", "cifar1"), "error: data.name: got 'cifar1'"),
        (GIVEN.replace("0.1", "8"), "error: threat.eps: got 8"),
        (GIVEN.replace("--threat.norm linf --threat.eps 0.1", ""), "error: threat: got None"),
        (f"{GIVEN} --attacks pdg", "error: attacks: got 'pdg'"),
        (f"{GIVEN} --eps 0", "error: eps: got 0"),
        (f"{GIVEN} --eps 3", "eps: got 3"),
        (f"{GIVEN} --layers nothing", "error: layers: got 'nothing'"),
        (f"{GIVEN} --ablation.layers nothing", "error: ablation.layers: got 'nothing'"),
        (f"{GIVEN} --ablation.ratios 0.1 2", "error: ablation.ratios: got 2"),
        (f"{GIVEN} --ablation.draws 1", "error: ablation.draws: got 1"),
        (f"{GIVEN} --ablation.replacements median", "error: ablation.replacements: got 'median'"),
        (f"{GIVEN} --measure signed", "error: measure: got 'signed'"),
        (f"{GIVEN} --names a b", "error: names: got ['a', 'b']"),
        (f"{GIVEN} --pairs nowhere", "error: pairs: got 'nowhere'"),
        (f"{GIVEN} --pairs pairs", "error: pairs: got 'pairs'; their images are not those"),
        (f"{GIVEN} --data.limit 100000", "error: data.limit: got 100000"),
        (f"{GIVEN} --workers.num 1000", "error: workers.num: got 1000"),
        (f"{GIVEN} --summary no/folder.json", "error: summary: got 'no/folder.json'"),
        (f"{GIVEN} --nonsense 1", "nonsense"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(run: Run, tmp_path: Path, arguments: str, says: str) -> None:
    code, _, error = run(*arguments.split())
    assert code == 2, error
    assert says in error, error
    assert error.count("\n") == 1, error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.safetensors", "pairs"]


def test_a_dry_run_checks_everything_and_leaves_nothing(run: Run, tmp_path: Path) -> None:
    code, output, error = run(*GIVEN.split(), "--dry-run", "--attacks", "pgd", "fgsm", "--eps", "0.05")
    assert (code, error) == (0, "")
    assert "everything that can be checked is in order" in output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.safetensors", "pairs"]


def test_help_names_every_field_and_every_option(run: Run) -> None:
    code, output, _ = run("--help")
    assert code == 0
    for name in ("--model.address", "--threat.eps", "--ablation.draws", "--gallery.neurons", "--pairs", "--summary"):
        assert name in output
