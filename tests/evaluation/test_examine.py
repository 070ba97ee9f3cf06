from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from distsens.attacks import Found, GradientAttack, Threat
from distsens.data import to_pixels
from distsens.errors import InputError
from distsens.evaluation import Examined, Judgement, LastIterate, Ledger, examine
from distsens.evaluation.ledger import broken_column, evaluations_column

THREAT = Threat("linf", 0.1)
CPU = torch.device("cpu")


def pgd(threat: Threat = THREAT, steps: int = 5) -> LastIterate:
    return LastIterate(GradientAttack(threat, steps=steps, step_size=threat.eps / 2))


@dataclass(frozen=True)
class Cheat:
    """An attack that claims more than it may: it leaves the ball, or [0, 1], or gives no number at all."""

    how: str

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, *, keys: Tensor | None = None) -> Found:  # noqa: ARG002
        examples = {
            "far": 1.0 - images,
            "bright": images + 0.09 * (images == images.flatten(1).amax(1)[:, None, None, None]) + 1.0,
            "nan": torch.full_like(images, torch.nan),
            "infinite": torch.full_like(images, torch.inf),
            "one pixel": images.where(torch.arange(images[0].numel()).view(images.shape[1:]) > 0, torch.nan),
        }[self.how]
        return Found(examples, torch.ones(len(images), dtype=torch.int64))


@pytest.fixture(scope="module")
def images() -> tuple[Tensor, Tensor]:
    """Noisy images whose brightest pair of rows is the label."""
    labels = torch.arange(60) % 4
    noise = torch.randint(0, 160, (60, 1, 8, 8), generator=torch.Generator().manual_seed(1))
    for image, label in zip(noise, labels.tolist(), strict=True):
        image[0, 2 * label : 2 * label + 2] += 60
    return noise.to(torch.uint8), labels


@pytest.fixture(scope="module")
def model(images: tuple[Tensor, Tensor]) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 36, 4))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    pixels, labels = to_pixels(images[0]), images[1]
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(pixels), labels).backward()
        optimizer.step()
    return network.eval()


def examined(model: nn.Module, images: tuple[Tensor, Tensor], rows: slice = slice(None), **changes: Any) -> Examined:
    settings = {"attacks": {"weak": pgd(Threat("linf", 0.02)), "strong": pgd()}, "batch_size": 25, **changes}
    numbers = torch.arange(len(images[1]))[rows]
    return examine(model, images[0][rows], images[1][rows], numbers, Judgement(THREAT, **settings), CPU)


def test_every_verdict_is_confirmed_by_a_plain_forward(model: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    found = examined(model, images)
    rows, pixels = found.ledger.rows, to_pixels(images[0])
    predicted = model(found.adversarial).argmax(1)
    broken = predicted != images[1]
    assert rows["broken_by"].notna().tolist() == broken.tolist()
    assert set(rows["broken_by"].dropna()) >= {"weak", "strong"}, "the example must tell the attacks apart"
    assert 0 < found.ledger.robust.count < found.ledger.clean.count
    distances = THREAT.distance(pixels, found.adversarial)
    for row in rows[rows["broken_by"].isin(["weak", "strong"])].itertuples():
        assert row.adversarial_prediction == predicted[row.image]
        assert row.distance == pytest.approx(distances[row.image].item())
        assert row.distance <= THREAT.eps + 1e-6


def test_images_broken_by_one_attack_are_spared_the_next(model: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    rows = examined(model, images).ledger.rows
    fallen = rows["broken_by"].isin(["clean", "weak"])
    assert (rows.loc[fallen, evaluations_column("strong")] == 0).all()
    assert rows.loc[fallen, broken_column("strong")].isna().all()
    assert (rows.loc[~fallen, evaluations_column("strong")] > 1).all()


def test_every_attack_sees_every_image_if_asked(model: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    spared, all_of_them = (examined(model, images, every_attack=every).ledger for every in (False, True))
    assert all_of_them.robust == spared.robust
    assert set(all_of_them.under_attack) == {"weak", "strong"}
    assert all_of_them.under_attack["strong"].count <= all_of_them.under_attack["weak"].count


@pytest.mark.parametrize("how", ["far", "bright"])
def test_examples_outside_the_rules_do_not_count(model: nn.Module, images: tuple[Tensor, Tensor], how: str) -> None:
    found = examined(model, images, attacks={"cheat": Cheat(how)})
    assert found.ledger.robust == found.ledger.clean
    assert found.ledger.violations == found.ledger.clean.count
    assert THREAT.distance(to_pixels(images[0]), found.adversarial).max() == 0


class Noisy(nn.Module):
    """A network whose own randomness decides some of its predictions."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits + logits.std() * torch.randn_like(logits)


def test_what_becomes_of_an_image_under_a_random_model_does_not_depend_on_what_was_judged_before(
    model: nn.Module, images: tuple[Tensor, Tensor]
) -> None:
    noisy, part = Noisy(model), slice(8, 16)
    state = torch.get_rng_state()
    first = examined(noisy, images, part)
    assert torch.equal(torch.get_rng_state(), state)
    examined(noisy, images, slice(0, 8))
    torch.manual_seed(5)
    pd.testing.assert_frame_equal(examined(noisy, images, part).ledger.rows, first.ledger.rows)


def test_a_ledger_in_parts_is_the_ledger_in_one(model: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    parts = [examined(model, images, slice(start, start + 20)).ledger for start in (40, 0, 20)]
    pd.testing.assert_frame_equal(Ledger.join(parts).rows, examined(model, images).ledger.rows)


def test_robust_accuracy_falls_with_the_radius(model: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    radii = {eps: (Threat("linf", eps), pgd(Threat("linf", eps))) for eps in (0.1, 0.01, 0.05, 0.4)}
    ledger = examined(model, images, curve=radii, attacks={}).ledger
    counts = [value.count for _, value in sorted(ledger.curve.items())]
    assert len(counts) == 4
    assert counts == sorted(counts, reverse=True)
    assert ledger.clean.count >= counts[0] > counts[-1]


def test_floating_point_images_are_judged_as_they_are_and_refused_above_one(
    model: nn.Module, images: tuple[Tensor, Tensor]
) -> None:
    as_bytes = examined(model, images)
    as_floats = examined(model, (to_pixels(images[0]), images[1]))
    assert as_floats.ledger.rows.equals(as_bytes.ledger.rows)
    assert torch.equal(as_floats.adversarial, as_bytes.adversarial)
    with pytest.raises(InputError, match=r"images: got \(.*\); floating-point pixels must lie in \[0, 1\]"):
        examined(model, (images[0].float(), images[1]))
    with pytest.raises(InputError, match="images: got 'float32'; must be uint8: corruptions"):
        examined(model, (to_pixels(images[0]), images[1]), corruptions=[("fog", 1)])


class Blind(nn.Module):
    """A network that has no number for images whose first pixel is bright."""

    def __init__(self, network: nn.Module, from_: float, value: float = torch.nan) -> None:
        super().__init__()
        self.network, self.from_, self.value = network, from_, value

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return torch.where(x[:, 0, :1, 0] >= self.from_, self.value, logits)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_images_without_finite_logits_are_wrong_and_counted_whatever_their_label(
    model: nn.Module, images: tuple[Tensor, Tensor], value: float
) -> None:
    pixels = to_pixels(images[0])
    blind = Blind(model, 0.55, value)
    lost = pixels[:, 0, 0, 0] >= 0.55
    reached = pixels[:, 0, 0, 0] + THREAT.eps >= 0.55  # by an attack, if it looks there
    zeros = (images[0], torch.zeros_like(images[1]))  # of a class that argmax names where there is NaN
    radii = {0.05: (Threat("linf", 0.05), pgd(Threat("linf", 0.05)))}
    found = examined(blind, zeros, curve=radii, corruptions=(("fog", 1),), every_attack=True).ledger
    rows = found.rows
    assert 0 < lost.sum() < reached.sum() < len(lost)
    assert (rows["prediction"] == -1).tolist() == lost.tolist()
    assert (rows.loc[lost.numpy(), "broken_by"] == "clean").all()
    assert rows["not_finite"][lost.numpy()].all()
    assert found.not_finite == rows["not_finite"].sum() >= lost.sum()
    assert not found.standing[lost.numpy()].any()
    assert not rows.loc[lost.numpy(), "eps/0.05"].any()


@dataclass(frozen=True)
class Brighter:
    """An attack that makes the first pixel as bright as it may."""

    threat: Threat

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, *, keys: Tensor | None = None) -> Found:  # noqa: ARG002
        examples = images.clone()
        examples[:, 0, 0, 0] += self.threat.eps
        return Found(examples.clamp(0.0, 1.0), torch.ones(len(images), dtype=torch.int64))


def test_an_example_without_finite_logits_breaks_its_image(model: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    blind, pixels = Blind(model, 0.7), to_pixels(images[0])
    zeros = (images[0], torch.zeros_like(images[1]))
    found = examined(blind, zeros, attacks={"brighter": Brighter(THREAT)})
    rows = found.ledger.rows
    right = rows["broken_by"].fillna("") != "clean"
    reached = (pixels[:, 0, 0, 0] + THREAT.eps >= 0.7).numpy() & right.to_numpy()
    assert reached.any()
    assert (rows.loc[reached, "broken_by"] == "brighter").all()
    assert (rows.loc[reached, "adversarial_prediction"] == -1).all()
    assert rows.loc[reached, "not_finite"].all()
    assert not rows.loc[~reached, "not_finite"].to_numpy()[right.to_numpy()[~reached]].any()


def test_an_example_that_does_not_count_is_not_counted_as_not_finite(
    model: nn.Module, images: tuple[Tensor, Tensor]
) -> None:
    assert examined(model, images, attacks={"cheat": Cheat("far")}).ledger.not_finite == 0
    assert examined(model, images).ledger.not_finite == 0


class Forgiving(nn.Module):
    """The network, which makes numbers of what is none."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x.nan_to_num(0.5, 0.5, 0.5))
        return logits


@pytest.mark.parametrize("how", ["nan", "infinite", "one pixel"])
@pytest.mark.parametrize("wrap", [nn.Sequential, Forgiving])
def test_no_image_is_robust_whose_example_is_no_number(
    how: str, wrap: Callable[[nn.Module], nn.Module], model: nn.Module, images: tuple[Tensor, Tensor]
) -> None:
    radii = {0.05: (Threat("linf", 0.05), Cheat(how))}
    found = examined(wrap(model), images, attacks={"cheat": Cheat(how), "strong": pgd()}, curve=radii)
    ledger, right = found.ledger, found.ledger.rows["broken_by"] != "clean"
    assert ledger.clean.count == right.sum() > 0
    assert ledger.robust.count == 0
    assert ledger.violations == ledger.not_finite == ledger.clean.count
    assert set(ledger.rows.loc[right, "broken_by"]) == {"cheat"}
    assert (ledger.rows.loc[right, "adversarial_prediction"] == -1).all()
    assert ledger.rows["distance"].isna().all()
    assert not ledger.rows.loc[right, "eps/0.05"].any()
    assert torch.equal(found.adversarial, to_pixels(images[0]))
