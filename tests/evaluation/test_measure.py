from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from worker_processes import run_workers

from distsens.attacks import GradientAttack, Threat
from distsens.evaluation import Measurement, measure
from distsens.logits import NotFiniteError
from distsens.randomness import sample_keys
from distsens.sensitivity import ActivationProbe, SensitivityMeter, neuron_counts, split_pairs

SEED = 5
COUNT = 37
ATTACKS = {
    "pgd": GradientAttack(Threat("linf", 0.08), steps=3, step_size=0.05),
    "fgsm": GradientAttack(Threat("linf", 0.08), steps=1, step_size=0.08, random_start="none"),
    "restarted": GradientAttack(Threat("l2", 0.5), steps=2, step_size=0.3, restarts=2),
}


def classifier() -> nn.Module:
    """A network that knows the mean brightness of four stripes, with batch norm and dropout, in training mode."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Tanh(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(6 * 36, 4)
    )
    images, labels = split()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(15):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images / 255), labels).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model.train()


def split(count: int = COUNT) -> tuple[Tensor, Tensor]:
    """Noisy uint8 images whose brightest pair of rows is the label."""
    labels = torch.arange(count) % 4
    noise = torch.randint(0, 160, (count, 1, 8, 8), generator=torch.Generator().manual_seed(1))
    for image, label in zip(noise, labels.tolist(), strict=True):
        image[0, 2 * label : 2 * label + 2] += 60
    return noise.to(torch.uint8), labels


def measured(model: nn.Module, images: Tensor, labels: Tensor, **changes: Any) -> Measurement:
    neurons = neuron_counts(model, ["auto"], torch.zeros(1, 1, 8, 8))
    arguments: dict[str, Any] = {
        "attacks": ATTACKS,
        "layers": tuple(neurons),
        "neurons": neurons,
        "batch_size": 10,
        "seed": SEED,
        "device": torch.device("cpu"),
    }
    return measure(model, images, labels, **{**arguments, **changes})


def verdicts(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[list[bool], dict[str, list[bool]]]:
    """Whether each image is classified right as it is, and still under each attack; one image at a time."""
    network = copy.deepcopy(model).eval()
    clean: list[bool] = []
    robust: dict[str, list[bool]] = {name: [] for name in ATTACKS}
    for i in range(len(images)):
        x, y = images[i : i + 1] / 255, labels[i : i + 1]
        with torch.no_grad():
            clean.append(network(x).argmax().item() == y.item())
        for name, attack in ATTACKS.items():
            twin = attack(network, x, y, keys=sample_keys(torch.tensor([i]), SEED, "evaluate", name))
            with torch.no_grad():
                robust[name].append(clean[-1] and network(twin).argmax().item() == y.item())
    return clean, robust


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return classifier()


@pytest.fixture(scope="module")
def alone(model: nn.Module) -> Measurement:
    return measured(model, *split())


def test_counts_are_those_of_a_loop_over_single_images(model: nn.Module, alone: Measurement) -> None:
    clean, robust = verdicts(model, *split())
    assert alone.images == COUNT
    assert alone.clean_correct == sum(clean)
    assert alone.robust_correct == {name: sum(right) for name, right in robust.items()}
    assert 0 < min(alone.robust_correct.values()) < alone.clean_correct < COUNT  # the attacks and errors are real


def test_accuracies_are_parts_of_all_images(alone: Measurement) -> None:
    assert alone.clean_accuracy == alone.clean_correct / COUNT
    assert alone.robust_accuracies == {name: right / COUNT for name, right in alone.robust_correct.items()}
    assert list(alone.robust_accuracies) == list(ATTACKS)
    assert alone.robust_accuracy == alone.robust_accuracies["pgd"]


@pytest.mark.parametrize("order", [["noise", "fgsm"], ["fgsm", "noise"]])
def test_an_image_that_is_wrong_as_it_is_is_not_robust(model: nn.Module, order: list[str]) -> None:
    """Twins of pure noise, and the labels that the network gives to them: all are right, but few of the images."""
    images, _ = split()
    network = copy.deepcopy(model).eval()
    noise = GradientAttack(Threat("linf", 1.0), steps=1, step_size=0.0)
    with torch.no_grad():
        keys = sample_keys(torch.arange(COUNT), SEED, "evaluate", "noise")
        labels = network(noise(network, images / 255, torch.zeros(COUNT, dtype=torch.int64), keys=keys)).argmax(1)
        right = int((network(images / 255).argmax(1) == labels).sum())
    found = measured(model, images, labels, attacks={name: {**ATTACKS, "noise": noise}[name] for name in order})
    assert 0 < right < COUNT
    assert found.clean_correct == found.robust_correct["noise"] == right


def test_sensitivity_is_that_between_images_and_their_twins_under_the_first_attack(
    model: nn.Module, alone: Measurement
) -> None:
    images, labels = split()
    network = copy.deepcopy(model).eval()
    twins = ATTACKS["pgd"](
        network, images / 255, labels, keys=sample_keys(torch.arange(COUNT), SEED, "evaluate", "pgd")
    )
    meter = SensitivityMeter()
    with ActivationProbe(network, "auto") as probe, torch.no_grad():
        network(torch.cat([images / 255, twins]))
    meter.update(*split_pairs(probe.outputs))
    expected = meter.compute()
    assert list(alone.sensitivity) == list(expected) == ["0"]
    for layer, values in expected.items():
        for name, tensor in vars(values).items():
            torch.testing.assert_close(getattr(alone.sensitivity[layer], name), tensor, rtol=1e-5, atol=1e-7)
        assert values.absolute.min() > 0


@pytest.mark.parametrize("batch_size", [1, 36, 37, 1000])
def test_the_batch_size_changes_nothing(model: nn.Module, alone: Measurement, batch_size: int) -> None:
    found = measured(model, *split(), batch_size=batch_size)
    assert_same(found, alone)


def test_an_images_verdict_depends_on_its_number_and_the_seed_alone(model: nn.Module) -> None:
    """Whatever follows an image in the split, its own verdict stays."""
    clean, robust = verdicts(model, *split())
    for count in (1, 9, 20):
        images, labels = (tensor[:count] for tensor in split())
        found = measured(model, images, labels)
        assert found.clean_correct == sum(clean[:count])
        assert found.robust_correct == {name: sum(right[:count]) for name, right in robust.items()}


def test_random_starts_differ_between_seeds_and_between_attacks_names(model: nn.Module, alone: Measurement) -> None:
    other_seed = measured(model, *split(), seed=SEED + 1)
    renamed = measured(model, *split(), attacks={"another": ATTACKS["pgd"]})
    for other in (other_seed, renamed):
        assert not torch.equal(other.sensitivity["0"].absolute, alone.sensitivity["0"].absolute)


def test_the_model_is_left_as_it_was() -> None:
    model = classifier()
    model[2].eval()  # also a mixture of modes
    model[0].bias.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    numbers = torch.get_rng_state()
    measured(model, *split())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == [name != "0.bias" for name, _ in model.named_parameters()]
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), numbers)


def test_the_caller_is_told_how_many_images_are_done(model: nn.Module) -> None:
    told: list[int] = []
    measured(model, *split(), on_images=told.append)
    assert told == [10, 20, 30, 37]


COUNTS = (COUNT, 1)  # an uneven tail, and a worker without any image


def work(model: nn.Module) -> list[dict[str, Any]]:
    results = []
    for count in COUNTS:
        told: list[int] = []
        found = measured(model, *split(count), on_images=told.append)
        results.append({**vars(found), "sensitivity": {k: vars(v) for k, v in found.sensitivity.items()}, "told": told})
    return results


def test_two_workers_count_every_image_once_and_both_know_the_whole(model: nn.Module) -> None:
    (ranks,) = run_workers(work, model)
    assert [[result.pop("told") for result in results] for results in ranks] == [[[10, 18], []], [[10, 19], [1]]]
    torch.testing.assert_close(ranks[0], ranks[1], rtol=0, atol=0)
    for count, result in zip(COUNTS, ranks[0], strict=True):
        expected = measured(model, *split(count))
        assert result["images"] == count
        assert result["clean_correct"] == expected.clean_correct
        assert result["robust_correct"] == expected.robust_correct
        for name, tensor in result["sensitivity"]["0"].items():
            torch.testing.assert_close(tensor, getattr(expected.sensitivity["0"], name), rtol=1e-5, atol=1e-7)


def test_a_network_without_a_layer_to_measure_is_judged_all_the_same(model: nn.Module) -> None:
    images, labels = split(7)
    found = measured(model, images, labels, layers=(), neurons={})
    assert found.sensitivity == {}
    assert_same(found, replace(measured(model, images, labels), sensitivity={}))


def assert_same(found: Measurement, expected: Measurement) -> None:
    assert (found.images, found.clean_correct, found.robust_correct) == (
        expected.images,
        expected.clean_correct,
        expected.robust_correct,
    )
    for layer, values in expected.sensitivity.items():
        for name, tensor in vars(values).items():
            torch.testing.assert_close(getattr(found.sensitivity[layer], name), tensor, rtol=1e-5, atol=1e-7)


class Blind(nn.Module):
    """A network that has no number for images whose first pixel is bright."""

    def __init__(self, network: nn.Module, from_: float) -> None:
        super().__init__()
        self.network, self.from_ = network, from_

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return torch.where(x[:, 0, :1, 0] >= self.from_, torch.nan, logits)


def test_images_without_finite_logits_are_wrong_and_counted_and_not_in_the_sensitivities(model: nn.Module) -> None:
    images, _ = split()
    images[:, 0, 0, 0] = images[:, 0, 0, 0] // 4
    images[3::7, 0, 0, 0] = 250
    zeros = torch.zeros(COUNT, dtype=torch.int64)  # the class that argmax names where there is NaN
    kept = [row for row in range(COUNT) if row % 7 != 3]
    attacks = {"fgsm": ATTACKS["fgsm"]}  # depends on no image's number
    found = measured(Blind(model, 0.9), images, zeros, attacks=attacks)
    sound = measured(model, images[kept], zeros[kept], attacks=attacks)
    assert found.not_finite == COUNT - len(kept)
    assert sound.not_finite == 0
    assert (found.clean_correct, found.robust_correct) == (sound.clean_correct, sound.robust_correct)
    assert sound.clean_correct > 0
    for layer, values in sound.sensitivity.items():
        name = f"network.{layer}"
        torch.testing.assert_close(found.sensitivity[name].absolute, values.absolute)
        torch.testing.assert_close(found.sensitivity[name].magnitude, values.magnitude)


def test_a_network_without_any_finite_logits_cannot_be_measured(model: nn.Module) -> None:
    with pytest.raises(NotFiniteError, match="they must be finite; those of no image are"):
        measured(Blind(model, -1.0), *split(8))
