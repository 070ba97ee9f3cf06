"""What a network does to the smallest share of a batch in training mode is heard before anything is started."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from distsens import assembly
from distsens.distributed import rehearsal
from distsens.distributed.preflight import check
from distsens.distributed.rehearsal import rehearse, what_decides
from distsens.errors import InputError
from distsens.experiment import Experiment, merge
from distsens.models import weights_digest
from distsens.sensitivity import neuron_counts

_NETWORKS = """
import torch
from torch import nn

class Network(nn.Module):
    def __init__(self, shape, classes, after=None):
        super().__init__()
        self.body, self.head = nn.Linear(shape[1] * shape[2], 8), nn.Linear(8, classes)
        self.norm, self.after = nn.BatchNorm1d(8), after or (lambda self, x, logits: logits)

    def forward(self, x):
        return self.after(self, x, self.head(self.norm(self.body(x.flatten(1)))))

def network(after):
    return lambda *, shape, classes: Network(shape, classes, after)

def fails(self, x, logits):
    assert not self.training or len(x) % 8 == 0, f"a batch of {len(x)}\\nis no multiple of 8"
    return logits

def misses(self, x, logits):
    return {}["aux"] if self.training else logits

sound = network(None)
pair = network(lambda self, x, logits: (logits, x) if self.training else logits)
named = network(lambda self, x, logits: {"out": logits} if self.training else logits)
one = network(lambda self, x, logits: logits[:, :1] if self.training else logits)
of_eight = network(fails)
lost = network(misses)
deaf = network(lambda self, x, logits: logits.detach() if self.training else logits)
blind = network(lambda self, x, logits: logits * torch.nan if self.training else logits)
asleep = network(lambda self, x, logits: logits if self.training else logits * torch.inf)
numb = network(lambda self, x, logits: logits if self.training else logits.detach())
drawn = network(lambda self, x, logits: nn.functional.dropout(logits, 0.5, self.training))
"""


@pytest.fixture(autouse=True)
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "wards.py").write_text(_NETWORKS)


def experiment(network: str, /, **changes: Any) -> Experiment:
    fields = {"model": {"name": f"wards:{network}"}, "training": {"batch_size": 32}, "workers": {"num": 2}}
    return Experiment.parse(merge(fields, changes))


def refusal(network: str, /, **changes: Any) -> InputError:
    with pytest.raises(InputError) as raised:
        check(experiment(network, **changes))
    assert "\n" not in str(raised.value)
    return raised.value


@pytest.mark.parametrize("objective", ["standard", "pgd_at", "trades", "free_at", "mart", "fast_at"])
@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "pair",
            r"it cannot be trained: it gives tuple of 2; it must return logits .* \(on 16 images in training mode, ",
        ),
        ("named", "it cannot be trained: it gives dict of out; it must return logits"),
        ("one", r"it cannot be trained: it gives float32 of shape \(\d+, 1\); it must return logits"),
        (
            "lost",
            r"it cannot be trained: KeyError: 'aux', .*wards.py:\d+ \(on 16 images in training mode, the smallest",
        ),
        ("deaf", "it cannot be trained: element 0 of tensors does not require grad"),
        ("numb", "it cannot be trained: it gives logits without a gradient"),
        ("asleep", "in eval mode the model's logits are NaN or infinite for 8 of 8 images"),
        ("blind", "its loss or gradient is NaN or infinite on 16 images, before any step"),
    ],
)
def test_what_a_network_does_in_training_mode_alone_is_refused_in_one_line(
    name: str, says: str, objective: str
) -> None:
    error = refusal(name, objective={"name": objective})
    assert error.field == "model.name"
    assert re.search(says, error.allowed)


@pytest.mark.parametrize("objective", ["standard", "pgd_at", "trades", "free_at", "mart", "fast_at"])
@pytest.mark.parametrize("changes", [{}, {"stabilize": {"weight": 1.0}}, {"training": {"precision": "bf16"}}])
def test_a_network_that_is_in_order_passes(objective: str, changes: dict[str, Any]) -> None:
    check(experiment("sound", objective={"name": objective}, **changes))


def test_the_share_that_is_tried_is_the_smallest() -> None:
    check(experiment("of_eight"))
    words = "a batch of 15 is no multiple of 8 (on 15 images in training mode, the smallest share of"
    assert words in refusal("of_eight", training={"batch_size": 31}, stabilize={"weight": 0.0}).allowed
    # Both halves of trades go through at once.
    check(experiment("of_eight", training={"batch_size": 8}, objective={"name": "trades"}))
    assert "a batch of 4 " in refusal("of_eight", training={"batch_size": 8}).allowed


def test_one_image_a_worker_has_no_batch_statistics() -> None:
    def training(size: int, **changes: Any) -> dict[str, Any]:
        return {"training": {"batch_size": size, "sync_batch_norm": False, **changes}}

    error = refusal("sound", **training(3))
    assert (error.field, error.value) == ("training.batch_size", 3)
    assert "more, fewer workers than workers.num 2, or training.sync_batch_norm: of 1 image in a share" in error.allowed
    assert "Expected more than 1 value per channel" in error.allowed
    assert "more: of 1 image" in refusal("sound", workers={"num": 1}, **training(1)).allowed
    check(experiment("sound", **training(4)))
    check(experiment("sound", workers={"num": 1}, **training(3)))
    check(experiment("sound", objective={"name": "trades"}, **training(3)))  # with its twin it has
    check(experiment("sound", **training(3, sync_batch_norm=True)))  # with the other workers' too
    halved = training(3, batch_norm="separate")
    assert refusal("sound", objective={"name": "trades"}, **halved).field == "training.batch_size"


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    wanted = experiment("sound")
    model = assembly.build_model(wanted, (1, 8, 8), 10)
    state = {
        name: torch.full_like(value, torch.nan) if "head" in name else value
        for name, value in model.state_dict().items()
    }
    torch.save(state, tmp_path / "nan.pt")
    digest = weights_digest(tmp_path / "nan.pt")
    error = refusal("sound", model={"weights": str(tmp_path / "nan.pt"), "weights_sha256": digest})
    assert error.field == "model.weights"
    assert "it gives weights that are NaN; they must be numbers; some of network.head.weight are not" in error.allowed


@pytest.mark.parametrize("changes", [{}, {"stabilize": {"weight": 1.0}}, {"objective": {"name": "free_at"}}])
def test_a_rehearsal_leaves_the_model_and_the_generator_as_they_were(changes: dict[str, Any]) -> None:
    wanted = experiment("drawn", training={"ema_decay": 0.9}, **changes)
    dataset = assembly.load_data(wanted)
    model = assembly.build_model(wanted, dataset.shape, len(dataset.classes))
    model.network.norm.eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    buffers = dict(model.named_buffers())
    generator = torch.get_rng_state()
    rehearse(wanted, model, neuron_counts(model, "auto", torch.zeros(1, *dataset.shape)), dataset.train)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(buffer is buffers[name] for name, buffer in model.named_buffers())
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), generator)


def test_of_what_a_step_would_hold_too_much_for_fewer_images_are_tried_and_all_where_these_fail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = []
    step = rehearsal._step
    monkeypatch.setattr(rehearsal, "_step", lambda *args: (tried.append(args[-1][1]), step(*args)))
    check(experiment("sound"))
    assert tried == [16]
    tried.clear()
    monkeypatch.setattr(rehearsal, "_MOST_BYTES", 5000)
    check(experiment("sound"))
    assert 2 <= tried[0] < 16
    assert len(tried) == 1
    tried.clear()
    check(experiment("of_eight"))
    assert tried[1:] == [16]


def test_experiments_are_rehearsed_once_where_nothing_that_decides_is_another() -> None:
    wanted = experiment("sound")
    for changes in ({"training": {"lr": 0.5, "epochs": 3}}, {"name": "x"}, {"seed": 3}, {"threat": {"eps": 0.2}}):
        assert what_decides(experiment("sound", **changes)) == what_decides(wanted)
    for changes in (
        {"training": {"batch_size": 16}},
        {"workers": {"num": 1}},
        {"objective": {"name": "trades"}},
        {"stabilize": {"weight": 1.0}},
        {"training": {"batch_norm": "separate"}},
    ):
        assert what_decides(experiment("sound", **changes)) != what_decides(wanted)
