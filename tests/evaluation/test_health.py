"""What would make a verdict wrong is found on a few images; a classifier that is in order passes in silence."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from distsens.errors import InputError
from distsens.evaluation import inspect
from distsens.models import build
from distsens.randomness import normal

SHAPE, CLASSES, COUNT = (1, 8, 8), 4, 20


def images() -> Tensor:
    return torch.rand(COUNT, *SHAPE, generator=torch.Generator().manual_seed(0))


def labels() -> Tensor:
    return torch.arange(COUNT) % CLASSES


class Planted(nn.Module):
    """A sound classifier with something done to its images before, or to its logits after."""

    def __init__(
        self, before: Callable[[Tensor], Tensor] = lambda x: x, after: Callable[[Tensor], Tensor] = lambda x: x
    ) -> None:
        super().__init__()
        self.network = build("small_cnn", shape=SHAPE, classes=CLASSES, mean=(0.5,), std=(0.25,), seed=0)
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.network(self.before(x)))


def findings(model: nn.Module) -> list[str]:
    found = inspect(model, images(), labels(), CLASSES)
    assert not any("\n" in line for line in found)
    return found


def the_one_finding(model: nn.Module) -> str:
    (line,) = findings(model)
    return line


def refusal(model: nn.Module, classes: int = CLASSES) -> InputError:
    with pytest.raises(InputError) as raised:
        inspect(model, images(), labels(), classes)
    assert "\n" not in str(raised.value)
    assert raised.value.field == "model"
    return raised.value


@pytest.mark.parametrize("name", ["small_cnn", "preact_resnet18", "vgg11_bn", "vit_tiny", "wrn10_1"])
def test_a_sound_classifier_passes_in_silence(name: str) -> None:
    torch.manual_seed(0)
    shape = (3, 32, 32)
    model = build(name, shape=shape, classes=CLASSES, mean=(0.5,), std=(0.25,), seed=1)
    pictures = torch.rand(10, *shape)
    if name != "vit_tiny":  # with running statistics of its own
        model(pictures)
    assert inspect(model, pictures, labels()[:10], CLASSES) == []


def test_dropout_and_batch_norm_in_training_mode_are_judged_in_eval_mode_and_left_as_they_were() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 4))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.get_rng_state()
    assert findings(model) == []
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_logits_that_are_not_finite_are_refused(value: float) -> None:
    def plant(logits: Tensor) -> Tensor:
        logits = logits.clone()
        logits[3:5, 1] = value
        return logits

    assert "those of 2 of 20 images are not" in refusal(Planted(after=plant)).allowed


class Blind(Planted):
    """It has no number for one image."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x[:, 0, :1, 0] == images()[3, 0, 0, 0], torch.nan, super().forward(x))


def test_one_in_twenty_may_have_logits_that_are_not_finite_and_that_is_told() -> None:
    line = the_one_finding(Blind())
    assert line == "the logits of 1 of 20 images are NaN or infinite, which counts as misclassified"


def test_a_wrong_number_of_logits_is_refused() -> None:
    error = refusal(Planted(), classes=10)
    assert (error.value, error.allowed) == ((20, 4), "for 20 images it must return logits (20, 10)")
    assert refusal(Planted(after=lambda logits: logits[:, :, None])).value == "float32 of shape (20, 4, 1)"


def test_probabilities_are_told() -> None:
    line = the_one_finding(Planted(after=lambda logits: logits.softmax(1)))
    assert "probabilities" in line
    assert "DLR and margin losses are undefined" in line


@pytest.mark.parametrize("after", [lambda logits: logits.log_softmax(1), torch.sigmoid, torch.relu])
def test_other_outputs_are_not_taken_for_probabilities(after: Callable[[Tensor], Tensor]) -> None:
    assert not any("probabilities" in line for line in findings(Planted(after=after)))


@pytest.mark.parametrize("noise", [1.0, 1e-3])
def test_a_random_model_is_told_with_the_attack_that_suits_it(noise: float) -> None:
    torch.manual_seed(0)
    line = the_one_finding(Planted(before=lambda x: x + noise * torch.randn_like(x)))
    assert "the model is random" in line
    assert "AutoAttack's rand version" in line


def test_noise_that_belongs_to_the_image_is_not_random() -> None:
    def noisy(x: Tensor) -> Tensor:
        keys = (x.detach().flatten(1).sum(1) * 1e6).long()
        return x + 0.01 * normal(keys, SHAPE)

    assert findings(Planted(before=noisy)) == []


def test_a_batch_dependent_model_is_told() -> None:
    torch.manual_seed(0)
    without_statistics = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten(), nn.Linear(144, 4)
    )
    for model in (without_statistics, Planted(before=lambda x: x - 0.1 * x.mean(0, keepdim=True))):
        assert "depend on the others in its batch" in the_one_finding(model)


def cut(x: Tensor) -> Tensor:
    """Through NumPy, as a preprocessing that is not differentiable often goes."""
    return torch.from_numpy(x.detach().numpy().copy())


@pytest.mark.parametrize("before", [lambda x: (x * 8).round() / 8, lambda x: (x > 0.5).float(), cut])
def test_gradients_that_are_cut_off_are_told_as_masking(before: Callable[[Tensor], Tensor]) -> None:
    line = the_one_finding(Planted(before=before))
    assert "gradients are masked: that of the margin" in line
    assert "zero for 20 and not finite for 0 of 20 images" in line
    assert "Square" in line


def test_gradients_that_are_not_finite_are_told_as_masking() -> None:
    line = the_one_finding(Planted(before=lambda x: (x - x.detach()).abs().sqrt() + x))
    assert "zero for 0 and not finite for 20 of 20 images" in line


def test_logits_so_large_that_the_cross_entropy_saturates_are_told() -> None:
    """Right by a wide margin, where the probability of the label is exactly one and the gradient exactly zero."""

    def confident(logits: Tensor) -> Tensor:
        return logits + 1e4 * nn.functional.one_hot(labels()[: len(logits)], CLASSES)

    line = the_one_finding(BatchProof(after=confident))
    assert "that of the cross-entropy" in line
    assert "margin or DLR" in line


class BatchProof(Planted):
    """Alone it answers as in its batch, though what is planted goes by the place in the batch."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == COUNT:
            return super().forward(x)
        places = [next(i for i, image in enumerate(images()) if torch.equal(image, one)) for one in x]
        whole = super().forward(images())
        return whole[places]


def test_one_image_without_a_gradient_is_not_worth_a_word() -> None:
    def plant(x: Tensor) -> Tensor:
        return torch.cat([x[:1].detach(), x[1:]])

    assert findings(BatchProof(before=plant)) == []
