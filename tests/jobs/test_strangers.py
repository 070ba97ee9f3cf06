"""A run, sweep or evaluation of a stranger that names a factory in the current folder runs nothing of it unasked."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from distsens.distributed.evaluations import StoredEvaluation
from distsens.distributed.sweep_record import StoredSweep
from distsens.examination import Examination
from distsens.experiment import Experiment
from distsens.models import lenet5
from distsens.models.weights import state_to_bytes
from distsens.storage import RunRecord, open_place, published, write_run
from distsens.training import WEIGHTS

pytestmark = pytest.mark.ray

Run = Callable[..., tuple[int, str, str]]
RECIPE = {"name": "theirs", "model": {"name": "evil:net"}, "data": {"name": "digits"}}


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    """What ``evil.py`` in the current folder leaves when it is imported."""
    path = tmp_path / "was imported"
    (tmp_path / "evil.py").write_text(
        f"from pathlib import Path\nfrom distsens.models import lenet5 as net\nPath({str(path)!r}).touch()\n"
    )
    yield path
    sys.modules.pop("evil", None)


@pytest.fixture
def theirs(tmp_path: Path) -> None:
    """A folder of runs as somebody has made it."""
    storage = open_place(str(tmp_path / "runs"))
    experiment = Experiment.parse(RECIPE)
    write_run(storage.child("run"), RunRecord(experiment.model_dump(mode="json"), "1"))
    torch.manual_seed(0)
    weights = state_to_bytes(lenet5(shape=(1, 8, 8), classes=10).state_dict())
    (tmp_path / "net.safetensors").write_bytes(weights)
    files = {WEIGHTS: weights, "experiment.yaml": experiment.to_yaml().encode()}
    published.publish(storage, "model", files, epoch=1, experiment=experiment.digest(), metrics={})
    recipe = {**RECIPE, "search": {"training.lr": {"uniform": [0.1, 0.2]}}}
    StoredSweep("sweep", storage.child("sweep"), recipe, "1").save()
    model = {"address": "net.safetensors", "factory": "evil:net"}
    examination = Examination.parse(
        {"model": model, "data": {"name": "digits"}, "threat": {"norm": "linf", "eps": 0.1}}
    )
    place = storage.child("evaluation")
    StoredEvaluation("evaluation", place, examination, "1", "sha256", None, "digest").save()


@pytest.mark.parametrize(
    ("job", "words"),
    [
        ("evaluate", "--model runs/models/model --dry-run"),
        ("analyze", "--model runs/models/model --dry-run"),
        ("evaluate", "--resume runs/evaluation --dry-run"),
        ("train", "--resume runs/run --dry-run"),
        ("tune", "--resume runs/sweep --dry-run"),
    ],
)
@pytest.mark.usefixtures("theirs")
def test_a_strangers_factory_is_imported_where_it_is_asked_for_alone(
    run_here: Run, marker: Path, job: str, words: str
) -> None:
    code, _, error = run_here(job, *words.split())
    assert code == 2
    assert error.startswith("error: factory: got None; ")
    assert "names evil:net, which is not installed: it is imported from the current folder or PYTHONPATH" in error
    assert error.count("\n") == 1
    assert not marker.exists(), "it was imported"
    run_here(job, *words.split(), "--factory", "evil:net")
    assert marker.exists()
