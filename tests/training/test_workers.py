"""One worker, two and three: real gloo processes that share every batch unevenly end where one process ends."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from worker_processes import run_workers

from distsens import assembly
from distsens.attacks import GradientAttack, Threat
from distsens.data import Dataset, rank_share
from distsens.experiment import Experiment, merge
from distsens.objectives import trades
from distsens.sensitivity import Stabilizer, Stabilizing, neuron_counts
from distsens.training import (
    Batch,
    TrainingStep,
    broadcast_module,
    rolled_back,
    sharing_statistics,
    sum_over_workers,
    world,
)
from tests.training.runs import EVERYTHING, JUMPY, digits_run, smooth

SIZES = (1, 2, 3)

Results = dict[str, Any]


def steps_on_shares() -> Results:
    """Two steps of TRADES, SNS and then AWP, and a third whose loss is infinite on the last worker alone."""
    rank, workers = world()
    torch.manual_seed(0)
    model = smooth()
    settings = Stabilizing(ratio=0.3, pairs=1 / 3)  # of seven images the pairs 0, 3, 6: unevenly shared
    stabilizer = Stabilizer(settings, neuron_counts(model, ["auto"], torch.zeros(1, 1, 8, 8)))
    step = TrainingStep(
        DistributedDataParallel(model) if workers > 1 else model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        trades(6.0),
        GradientAttack(Threat("linf", 0.1), 2, 0.05),
        stabilizer,
        ("auto",),
        gradient_clip=1.0,
        world_size=workers,
    )
    pixels = torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    numbers = torch.arange(7)
    mine = rank_share(7, rank, workers)
    batch = Batch(pixels[mine], numbers[mine], numbers[mine], global_size=7, start=mine.start)
    norms = []
    for gamma in (0.0, 0.1):
        norms.append(step(batch, sns_weight=0.5, awp_gamma=gamma).gradient_norm)
        stabilizer.refresh()
    after_two = [p.detach().clone() for p in model.parameters()]
    step.objective = replace(
        step.objective, loss=lambda benign, _, labels: {"poisoned": benign.square().sum(1) / (labels != 6)}
    )
    bad = step(batch)
    return {
        "norms": norms,
        "parameters": after_two,
        "omega": stabilizer.selected,
        "finite": bad.finite,
        "untouched": all(torch.equal(p, q) for p, q in zip(model.parameters(), after_two, strict=True)),
    }


def whole_training(dataset: Dataset) -> Results:
    """Random starts, crops, refreshed SNS, weight average, eps warm-up, clipping: all of it for three epochs."""
    paces: list[float] = []
    state = digits_run(dataset=dataset).go(on_step=lambda progress: paces.append(progress.images_per_second))
    return {
        "pace": paces[-1],
        "parameters": list(state.model.state_dict().values()),
        "average": list(state.classifier.state_dict().values()),
        "omega": state.stabilizer.selected,
        "kept": state.selected,
        "history": [
            {name: value for name, value in record.metrics.items() if not name.startswith("throughput/")}
            for record in state.history
        ],
        "throughput": {k: v for k, v in state.history[-1].metrics.items() if k.startswith("throughput/")},
    }


def normed() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))


def training_with_batch_norm(dataset: Dataset) -> Results:
    """Of statistics that each worker takes of its own images."""
    state = digits_run({"training": {"epochs": 1, "sync_batch_norm": False}}, normed, dataset).go()
    return {"model": state.model.state_dict(), "average": state.classifier.state_dict(), "best": state.best.metrics}


def training_with_extra_images(dataset: Dataset) -> Results:
    """The last 100 training images are taken for extra ones, which are 20 of 49 images of a batch."""
    mixed = replace(dataset, extra=100)
    changes = {"data": {"augment": ["trivial_augment"], "extra_ratio": 0.4}, "training": {"epochs": 1}}
    return {"parameters": list(digits_run(changes, dataset=mixed).go().model.parameters())}


def rolled_back_training(dataset: Dataset) -> Results:
    files: dict[int, dict[str, bytes]] = {}
    run = digits_run(JUMPY, dataset=dataset)
    run.train(lambda state, _: files.update({state.epoch: state.to_files()}), stored=files)
    return {
        "epoch": rolled_back(run.state.history),
        "attack_steps": run.step.attack.steps,
        "parameters": list(run.state.model.state_dict().values()),
        "validation": [
            {name: value for name, value in record.metrics.items() if name.startswith(("validation/", "alarm/"))}
            for record in run.state.history
        ],
    }


CALM: dict[str, Any] = {"training": {"epochs": 2, "lr": 0.3, "gradient_clip": None}}


class Scaled(nn.BatchNorm1d):
    """One of those that people derive from torch's."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        return 0.5 * super().forward(input)


def kinkless() -> nn.Module:
    """Batch norm of convolutions and of units, one with an average of its own, and nothing that enlarges rounding."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.BatchNorm2d(6, momentum=None),
        nn.Tanh(),
        nn.Conv2d(6, 8, 3, stride=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(32, 16),
        nn.Sequential(Scaled(16), nn.Tanh()),
        nn.Linear(16, 10),
    )


def training_with_batch_norm_as_it_is(dataset: Dataset, how: str) -> Results:
    """Of pgd_at, whose benign half holds the few pairs that SNS compares: with 49 images, less than one a worker."""
    changes = merge(CALM, {"training": {"batch_norm": how}, "stabilize": {"pairs": 1 / 24}})
    state = digits_run(changes, kinkless, dataset).go()
    return {
        "model": state.model.state_dict(),
        "average": state.classifier.state_dict(),
        "history": [
            {name: value for name, value in record.metrics.items() if not name.startswith("throughput/")}
            for record in state.history
        ],
    }


FREE: dict[str, Any] = {"objective": {"name": "free_at", "replays": 2}, "training": {"epochs": 2, "lr": 0.2}}


def free_training(dataset: Dataset) -> Results:
    """Two replays of every batch, with SNS."""
    state = digits_run(FREE, dataset=dataset).go()
    return {"model": state.model.state_dict(), "losses": [r.metrics.get("loss", 0.0) for r in state.history]}


def normalising_layers() -> Results:
    """One forward and backward of a layer on unevenly shared rows, the first worker's share being empty.

    The forward runs once more in the backward pass, as where memory is to be saved.
    """
    rank, workers = world()
    rows = torch.randn(7, 3, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5)) * 3 + 1e3
    mine = rank_share(7, rank - 1, workers - 1) if rank else slice(0, 7 if workers == 1 else 0)
    share = rows[mine].requires_grad_()
    layer = nn.BatchNorm2d(3).double()
    nn.init.uniform_(layer.weight, 0.5, 1.5, generator=torch.Generator().manual_seed(6))
    weights = torch.randn(rows.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7))[mine]
    with sharing_statistics(layer):
        outputs = checkpoint(layer, share, use_reentrant=False)
        gradients = torch.autograd.grad((outputs.square() * weights).sum(), [share, layer.weight, layer.bias])
    sums = sum_over_workers({f"{i}": g for i, g in enumerate(torch.cat(gradients[1:]))}, torch.device("cpu"))
    return {
        "outputs": outputs.detach(),
        "inputs": gradients[0],
        "parameters": sums,
        "buffers": dict(layer.named_buffers()),
    }


def sums_and_broadcast() -> Results:
    rank, _ = world()
    torch.manual_seed(rank)
    module = normed()
    broadcast_module(module)
    return {
        "sums": sum_over_workers({"b": 2.0**-60 * (rank + 1), "a": torch.tensor(rank + 1)}, torch.device("cpu")),
        "module": module.state_dict(),
    }


def everything(dataset: Dataset) -> Results:
    return {
        "steps": steps_on_shares(),
        "training": whole_training(dataset),
        "batch norm": training_with_batch_norm(dataset),
        "extra": training_with_extra_images(dataset),
        "rollback": rolled_back_training(dataset),
        "normed": {how: training_with_batch_norm_as_it_is(dataset, how) for how in ("joint", "separate")},
        "layers": normalising_layers(),
        "free": free_training(dataset),
        "reduction": sums_and_broadcast(),
    }


@pytest.fixture(scope="module")
def worlds() -> dict[int, list[Results]]:
    """Results of every rank by the number of workers."""
    dataset = assembly.load_data(Experiment.parse(EVERYTHING))
    three, two = run_workers(everything, dataset, sizes=(3, 2))
    return {1: [everything(dataset)], 2: two, 3: three}


@pytest.mark.parametrize("size", [2, 3])
def test_a_step_on_uneven_shares_is_the_step_on_the_whole_batch(worlds: dict[int, list[Results]], size: int) -> None:
    alone, shared = worlds[1][0]["steps"], worlds[size][0]["steps"]
    assert shared["norms"] == pytest.approx(alone["norms"], rel=1e-5)
    torch.testing.assert_close(shared["parameters"], alone["parameters"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(shared["omega"], alone["omega"])


@pytest.mark.parametrize("size", SIZES)
def test_a_loss_that_is_not_finite_on_one_worker_stops_all_of_them(worlds: dict[int, list[Results]], size: int) -> None:
    for rank in worlds[size]:
        assert not rank["steps"]["finite"]
        assert rank["steps"]["untouched"]


@pytest.mark.parametrize("size", [2, 3])
def test_a_training_does_not_depend_on_the_number_of_workers(worlds: dict[int, list[Results]], size: int) -> None:
    alone, shared = worlds[1][0]["training"], worlds[size][0]["training"]
    torch.testing.assert_close(shared["parameters"], alone["parameters"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(shared["average"], alone["average"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(shared["omega"], alone["omega"])
    torch.testing.assert_close(shared["kept"], alone["kept"])
    for mine, theirs in zip(shared["history"], alone["history"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("size", [2, 3])
def test_nor_does_one_with_extra_images(worlds: dict[int, list[Results]], size: int) -> None:
    torch.testing.assert_close(worlds[size][0]["extra"], worlds[1][0]["extra"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [2, 3])
def test_a_rollback_is_the_same_whatever_the_number_of_workers(worlds: dict[int, list[Results]], size: int) -> None:
    alone, shared = worlds[1][0]["rollback"], worlds[size][0]["rollback"]
    assert 1 < alone["epoch"] < 5
    assert (shared["epoch"], shared["attack_steps"]) == (alone["epoch"], 5)
    torch.testing.assert_close(shared["parameters"], alone["parameters"], rtol=1e-4, atol=1e-4)
    for mine, theirs in zip(shared["validation"], alone["validation"], strict=True):
        assert mine == pytest.approx(theirs, abs=0.03)


def test_the_training_did_learn_with_all_its_parts(worlds: dict[int, list[Results]]) -> None:
    result = worlds[1][0]["training"]
    first, last = result["history"][0], result["history"][-1]
    assert last["validation/robust_accuracy"] > first["validation/robust_accuracy"] + 0.2
    assert last["loss/stabilizing"] > 0
    assert any(not torch.equal(a, b) for a, b in zip(result["parameters"], result["average"], strict=True))
    assert set(result["omega"]) == {"0", "2", "5"}


@pytest.mark.parametrize("size", [2, 3])
def test_all_workers_hold_exactly_the_same(worlds: dict[int, list[Results]], size: int) -> None:
    first, *others = [
        {
            **rank,
            "layers": None,
            "training": {name: value for name, value in rank["training"].items() if name != "pace"},
        }
        for rank in worlds[size]
    ]
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=0)


@pytest.mark.parametrize("size", SIZES)
def test_rates_are_those_of_all_workers_together(worlds: dict[int, list[Results]], size: int) -> None:
    images = 8 * 49  # of an epoch, over all workers
    found = worlds[size][0]["training"]["throughput"]
    shares = [8 * len(range(49)[rank_share(49, rank, size)]) for rank in range(size)]
    seconds = [size * share / rank["training"]["pace"] for share, rank in zip(shares, worlds[size], strict=True)]
    assert found["throughput/epoch_seconds"] == pytest.approx(sum(seconds) / size)
    rate = images / found["throughput/epoch_seconds"]
    assert found["throughput/images_per_second"] == pytest.approx(rate)
    assert found["throughput/gradient_evaluations_per_second"] == pytest.approx(2 * rate)
    assert 0 < found["throughput/attack_share"] < 1


@pytest.mark.parametrize("how", ["joint", "separate"])
@pytest.mark.parametrize("size", [2, 3])
def test_with_batch_norm_too_a_training_does_not_depend_on_the_number_of_workers(
    worlds: dict[int, list[Results]], size: int, how: str
) -> None:
    alone, shared = worlds[1][0]["normed"][how], worlds[size][0]["normed"][how]
    for part in ("model", "average"):
        torch.testing.assert_close(shared[part], alone[part], rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(shared["history"], alone["history"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-3)
    assert alone["history"][-1]["loss/stabilizing"] > 0


@pytest.mark.parametrize("size", [2, 3])
def test_a_free_training_does_not_depend_on_the_number_of_workers(worlds: dict[int, list[Results]], size: int) -> None:
    torch.testing.assert_close(worlds[size][0]["free"], worlds[1][0]["free"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [2, 3])
def test_without_shared_statistics_it_does(worlds: dict[int, list[Results]], size: int) -> None:
    alone, shared = (worlds[number][0]["batch norm"]["model"] for number in (1, size))
    assert max(float((alone[name] - shared[name]).abs().max()) for name in alone) > 1e-3


@pytest.mark.parametrize("size", [2, 3])
def test_a_layer_that_shares_statistics_is_the_layer_on_all_workers_rows(
    worlds: dict[int, list[Results]], size: int
) -> None:
    alone, shared = worlds[1][0]["layers"], [rank["layers"] for rank in worlds[size]]
    for part in ("outputs", "inputs"):
        together = torch.cat([rank[part] for rank in shared])
        torch.testing.assert_close(together, alone[part], rtol=1e-9, atol=1e-9)
    for rank in shared:
        assert rank["parameters"] == pytest.approx(alone["parameters"], rel=1e-9)
        torch.testing.assert_close(rank["buffers"], alone["buffers"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_sums_are_exact_and_a_broadcast_is_rank_zeros(worlds: dict[int, list[Results]], size: int) -> None:
    total = sum(range(1, size + 1))
    for rank in worlds[size]:
        assert rank["reduction"]["sums"] == {"b": 2.0**-60 * total, "a": float(total)}
        torch.testing.assert_close(rank["reduction"]["module"], worlds[1][0]["reduction"]["module"], rtol=0, atol=0)


def test_sums_keep_their_names_in_any_number_of_workers() -> None:
    assert world() == (0, 1)
    assert sum_over_workers({"x": 1.5, "y": torch.tensor(2)}, torch.device("cpu")) == {"x": 1.5, "y": 2.0}
