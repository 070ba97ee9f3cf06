"""What the analysis refuses: one line, exit code 2, and nothing started or left behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from distsens.assembly import load_data
from distsens.evaluation import find_subject
from distsens.experiment import Experiment
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
        (
            "--model net.safetensors net.safetensors --factory lenet5",
            "each one once",
        ),
        (GIVEN.replace("digits", "cifar1"), "error: data.name: got 'cifar1'"),
        (GIVEN.replace("0.1", "8"), "error: threat.eps: got 8"),
        (GIVEN.replace("--threat.norm linf --threat.eps 0.1", ""), "error: threat: got None"),
        (f"{GIVEN} --attacks pdg", "error: attacks: got 'pdg'"),
        (f"{GIVEN} --eps 0", "error: eps: got 0"),
        (f"{GIVEN} --tracking.experiment {'e' * 251}", "error: tracking.experiment: got 'eeee"),
        (f"{GIVEN} --eps 3", "eps: got 3"),
        (f"{GIVEN} --layers nothing", "error: layers: got 'nothing'"),
        (f"{GIVEN} --ablation.layers nothing", "error: ablation.layers: got 'nothing'"),
        (f"{GIVEN} --ablation.ratios 0.1 2", "error: ablation.ratios: got 2"),
        (f"{GIVEN} --ablation.draws 9", "error: ablation.draws: got 9"),
        (f"{GIVEN} --attacks pgd fgsm pgd", "error: attacks: got ['pgd', 'fgsm', 'pgd']; each one once"),
        (f"{GIVEN} --eps 0.05 0.05", "error: eps: got"),
        (f"{GIVEN} --eps 0.1", "error: eps: got 0.1; it is that of the threat"),
        (f"{GIVEN.replace('linf', 'l2')} --eps 100", "error: eps: got 100.0; above 0 and at most 8"),
        (f"{GIVEN} --data.images 1 2", "error: data.images: got [1, 2]; leave it out; data.limit takes"),
        (f"{GIVEN} --names a/b", "error: names: got 'a/b'"),
        (f"{GIVEN} --pairs pairs --attacks fgsm", "error: attacks: got ['fgsm']; leave it out: saved pairs need none"),
        (f"{GIVEN} --pairs pairs --eps 0.05", "error: eps: got [0.05]; leave it out: saved pairs are at one radius"),
        (
            f"{GIVEN.replace('net.safetensors', 'net.safetensors more.safetensors')} --others third.safetensors",
            "error: others: got",
        ),
        (f"{GIVEN} --ablation.replacements median", "error: ablation.replacements: got 'median'"),
        (f"{GIVEN} --measure signed", "error: measure: got 'signed'"),
        (f"{GIVEN} --names a b", "error: names: got ['a', 'b']"),
        (f"{GIVEN} --pairs https://a/b", "error: pairs: got 'https://a/b'"),
        (f"{GIVEN} --output https://a/b", "error: output: got 'https://a/b'"),
        (f"{GIVEN} --output net.safetensors", "error: output: got 'file:///"),
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


def test_the_threat_of_saved_pairs_may_not_be_said_otherwise(run: Run, tmp_path: Path) -> None:
    about = {"model": {"sha256": "0" * 64}, "threat": {"norm": "linf", "eps": 0.2}}
    (tmp_path / "pairs" / "pairs.json").write_text(json.dumps(about))
    code, _, error = run(*GIVEN.split(), "--pairs", "pairs")
    assert (code, error) == (2, "error: threat.eps: got 0.1; the pairs were made for linf with eps 0.2\n")
    left_out = GIVEN.replace("--threat.norm linf --threat.eps 0.1", "").split()
    code, _, error = run(*left_out, "--pairs", "pairs")
    assert (code, error) == (2, "error: pairs: got 'pairs'; they were made to fool another model\n")


@pytest.fixture
def digit_pairs(run: Run, tmp_path: Path) -> Path:
    """Pairs of two validation images of the digits, and what evaluate.py writes beside them."""
    split = load_data(Experiment()).validation.take(np.array([3, 5]))
    images = split.tensors()[0][slice(None)].numpy()
    folder = tmp_path / "saved"
    folder.mkdir()
    arrays = {"adversarial": (images / 255).astype(np.float32), "labels": np.arange(2), "image": np.array([3, 5])}
    np.savez(folder / "pairs-00000.npz", images=images, **arrays)
    subject = find_subject(str(tmp_path / "net.safetensors"), factory="lenet5")
    data = {"name": "digits", "split": "validation", "images": 6, "digest": "d"}
    about = {"model": {"sha256": subject.sha256}, "threat": {"norm": "linf", "eps": 0.2}, "data": data}
    (folder / "pairs.json").write_text(json.dumps(about))
    return folder


def test_data_and_threat_of_saved_pairs_need_not_be_said_and_may_not_be_said_otherwise(
    run: Run, digit_pairs: Path, tmp_path: Path
) -> None:
    given = ("--model", "net.safetensors", "--factory", "lenet5", "--pairs", "saved", "--dry-run")
    for said in ((), ("--data.name", "digits", "--data.split", "validation")):
        code, output, error = run(*given, *said)
        assert (code, error) == (0, ""), error
        assert "everything that can be checked is in order" in output
    for flag, value, pairs in (("name", "mnist", "digits"), ("split", "train", "validation")):
        code, _, error = run(*given, f"--data.{flag}", value)
        assert (code, error) == (2, f"error: data.{flag}: got '{value}'; the pairs are of {pairs}\n")
    about = json.loads((digit_pairs / "pairs.json").read_text())
    for wrong in ({"split": "tests"}, {"root": 3}, ["digits"]):
        (digit_pairs / "pairs.json").write_text(json.dumps({**about, "data": wrong}))
        assert run(*given)[2] == "error: pairs: got 'saved'; its pairs.json is damaged\n"
    (digit_pairs / "pairs.json").write_text(json.dumps({**about, "data": {"name": "npz", "root": "/no.npz"}}))
    assert "no.npz" in run(*given)[2], "they are looked for where they were"


def test_two_architectures_stand_side_by_side(run: Run, tmp_path: Path) -> None:
    torch.save({"model": lenet5(shape=(1, 8, 8), classes=10).state_dict()}, tmp_path / "other.ckpt")
    models = ("--model", "net.safetensors", "other.ckpt@lenet5", "net.safetensors@lenet5")
    given = ("--data.name", "digits", "--threat.norm", "linf", "--threat.eps", "0.1", "--model.mean", "0.1307")
    code, output, error = run(*models, *given, "--factory", "lenet5", "--model.std", "0.3081", "--dry-run")
    assert (code, error) == (0, ""), error
    assert "everything that can be checked is in order" in output
    code, _, error = run(*models, *given, "--factory", "small_cnn", "--dry-run")
    assert (code, error.count("\n")) == (2, 1)
    assert error.startswith("error: model: got 'net.safetensors'; of another network: other shapes")


def test_two_files_of_weights_are_built_by_the_same_factory_and_named_apart(run: Run, tmp_path: Path) -> None:
    torch.manual_seed(1)
    state = lenet5(shape=(1, 8, 8), classes=10).state_dict()
    safetensors.torch.save_file(state, tmp_path / "other (1).safetensors")
    code, output, error = run("--model", "net.safetensors", "other (1).safetensors", *GIVEN.split()[2:], "--dry-run")
    assert (code, error) == (0, ""), error
    assert "everything that can be checked is in order" in output
