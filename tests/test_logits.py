"""What is no logits is refused in one line by whatever shows a classifier images, and NaN is nobody's class."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distsens import analysis
from distsens.attacks import (
    APGD,
    FAB,
    CarliniWagner,
    DeepFool,
    GradientAttack,
    Square,
    Threat,
    cw_pgd,
    fgsm,
    logits_of,
    mim,
    pgd,
    step_ll,
)
from distsens.errors import InputError
from distsens.evaluation import Judgement, LastIterate, examine, inspect, masking_checks, measure
from distsens.logits import NO_CLASS, NotFiniteError, checked_logits, predictions, too_many_not_finite
from distsens.models import build
from distsens.objectives import pgd_at, trades
from distsens.sensitivity import PairForwards, Stabilizer, Stabilizing, contributions
from distsens.training import Batch, TrainingStep

COUNT, CLASSES = 6, 4
LINF, L2 = Threat("linf", 0.1), Threat("l2", 0.5)
CPU = torch.device("cpu")


def images() -> Tensor:
    return torch.rand(COUNT, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def labels() -> Tensor:
    return torch.arange(COUNT) % CLASSES


class Output(dict[str, Tensor]):
    """An output of Hugging Face's: a dictionary with attributes."""

    @property
    def logits(self) -> Tensor:
        return self["logits"]


class Network(nn.Module):
    """Its logits, and what becomes of them before they are returned."""

    def __init__(self, after: Callable[[Tensor], Any] = lambda logits: logits) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.hidden, self.head = nn.Linear(36, 8), nn.Linear(8, CLASSES)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 3
        self.after = after

    def forward(self, x: Tensor) -> Any:
        return self.after(self.head(self.hidden(x.flatten(1)).tanh()))


NO_LOGITS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "tuple": (lambda z: (z, z), "tuple of 2"),
    "list": (lambda z: [z], "list of 1"),
    "dict": (lambda z: {"out": z, "aux": z}, "dict of out, aux"),
    "output": (lambda z: Output(logits=z), "Output of logits"),
    "object": (lambda z: SimpleNamespace(logits=z), "SimpleNamespace"),
    "nothing": (lambda _: None, "None"),
    "one class": (lambda z: z[:, :1], f"float32 of shape ({COUNT}, 1)"),
    "no classes": (lambda z: z[:, 0], f"float32 of shape ({COUNT},)"),
    "maps": (lambda z: z[:, :, None, None], f"float32 of shape ({COUNT}, 4, 1, 1)"),
    "integers": (lambda z: z.long(), f"int64 of shape ({COUNT}, 4)"),
    "classes": (lambda z: z.argmax(1), f"int64 of shape ({COUNT},)"),
    "truths": (lambda z: z > 0, f"bool of shape ({COUNT}, 4)"),
    "one mean": (lambda z: z.mean(0, keepdim=True), "float32 of shape (1, 4)"),
}


def step(objective: Any, stabilizer: Stabilizer | None = None) -> Callable[[nn.Module], Any]:
    def run(model: nn.Module) -> Any:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        attack = GradientAttack(LINF, 1, 0.1)
        one = TrainingStep(model, optimizer, objective, attack, stabilizer, ("hidden",) if stabilizer else ())
        batch = Batch(images(), labels(), torch.arange(COUNT), COUNT)
        return one.descend(batch, images(), sns_weight=1.0 if stabilizer else None)

    return run


def judging(attack: Any) -> Callable[[nn.Module], Any]:
    return lambda model: attack(model, images(), labels())


EVERYTHING: dict[str, Callable[[nn.Module], Any]] = {
    "logits_of": lambda model: logits_of(model, images()),
    "pgd": lambda model: pgd(model, images(), labels(), LINF, steps=1, step_size=0.1),
    "pgd with restarts": lambda model: pgd(model, images(), labels(), LINF, steps=1, step_size=0.1, restarts=2),
    "fgsm": lambda model: fgsm(model, images(), labels(), LINF),
    "mim": lambda model: mim(model, images(), labels(), LINF, steps=2),
    "step_ll": lambda model: step_ll(model, images(), labels(), LINF),
    "cw_pgd": lambda model: cw_pgd(model, images(), labels(), LINF, steps=1, step_size=0.1),
    "apgd": judging(APGD(LINF, "ce", 2)),
    "apgd-t": judging(APGD(LINF, "dlr", 2, targets=2)),
    "fab": judging(FAB(LINF, steps=2)),
    "square": judging(Square(LINF, queries=3)),
    "deepfool": judging(DeepFool(L2, steps=2)),
    "carlini_wagner": judging(CarliniWagner(L2, steps=2, binary_search_steps=1)),
    "last iterate": judging(LastIterate(GradientAttack(LINF, 1, 0.1))),
    "examine": lambda model: examine(
        model, (255 * images()).byte(), labels(), torch.arange(COUNT), Judgement(LINF, {}), CPU
    ),
    "inspect": lambda model: inspect(model, images(), labels(), CLASSES),
    "masking": lambda model: masking_checks(model, images(), labels(), GradientAttack(LINF, 1, 0.1)),
    "measure": lambda model: measure(
        model,
        (255 * images()).byte(),
        labels(),
        {"pgd": GradientAttack(LINF, 1, 0.1)},
        layers=("hidden",),
        neurons={"hidden": 8},
        batch_size=COUNT,
        seed=0,
        device=CPU,
    ),
    "analysis.measure": lambda model: analysis.measure(model, images(), images()),
    "analysis.ablate": lambda model: PairForwards(model, ("hidden",), images(), images()),
    "contributions": lambda model: contributions(model, "hidden", images(), images(), labels()),
    "pgd_at": step(pgd_at()),
    "trades": step(trades()),
    "sns": step(pgd_at(), Stabilizer(Stabilizing(pairs=1.0), {"hidden": 8})),
}


@pytest.mark.parametrize("name", EVERYTHING)
def test_whoever_shows_a_classifier_images_refuses_outputs_that_are_no_logits_in_one_line(name: str) -> None:
    EVERYTHING[name](Network())  # with logits it works
    for after, what in NO_LOGITS.values():
        with pytest.raises(InputError) as raised:
            EVERYTHING[name](Network(after))
        assert raised.value.field == "model"
        # Some show images, their twins and noise at once, which are three times as many.
        assert re.sub(r"\((12|18),", f"({COUNT},", str(raised.value.value)) == what
        assert "must return logits" in raised.value.allowed
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", [name for name in EVERYTHING if name not in ("pgd_at", "trades", "sns")])
def test_whoever_judges_a_network_refuses_weights_that_are_no_numbers_in_one_line(name: str) -> None:
    """A training step tells of them by its gradient instead: see ``StepResult``."""
    network = Network()
    network.head.bias.data[1] = torch.nan
    with pytest.raises(NotFiniteError, match=r"^model: got 'weights that are NaN'; .*some of head.bias are not$"):
        EVERYTHING[name](network)


def test_an_output_that_has_logits_is_told_what_to_do() -> None:
    with pytest.raises(InputError, match=r"wrap it in a module that returns the \.logits"):
        checked_logits(Output(logits=torch.zeros(2, 3)), 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_logits_of_any_floating_type_pass(dtype: torch.dtype) -> None:
    logits = torch.zeros(2, 2, dtype=dtype)
    assert checked_logits(logits, 2) is logits


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_has_a_logit_that_is_not_finite_is_of_no_class(value: float) -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0], [5.0, 3.0, 2.0], [0.0, 0.0, 0.0]])
    logits[1, 2] = value
    assert predictions(logits).tolist() == [1, NO_CLASS, 0, 0]


def test_one_in_twenty_may_have_no_finite_logits() -> None:
    assert too_many_not_finite(0, 0) is None
    assert too_many_not_finite(5, 100) is None
    assert too_many_not_finite(6, 100) == "the model's logits are NaN or infinite for 6 of 100 images, more than 5%"


class Blind(nn.Module):
    """A sound classifier that has no number for images with a bright first pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Network()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return torch.where(x[:, 0, :1, 0] > 0.9, torch.nan, logits)


@pytest.mark.parametrize(
    "attack",
    [
        APGD(LINF, "ce", 4),
        APGD(LINF, "dlr", 4),
        Square(LINF, queries=20),
        LastIterate(GradientAttack(LINF, 2, 0.1)),
        FAB(LINF, steps=3),
        DeepFool(Threat("linf", 0.1), steps=3),
    ],
    ids=lambda attack: type(attack).__name__,
)
def test_an_image_that_the_classifier_has_no_number_for_is_wrong_whatever_its_label(attack: Any) -> None:
    x = images()
    x[0, 0, 0, 0] = 1.0
    found = attack(Blind(), x, torch.zeros(COUNT, dtype=torch.int64))
    assert torch.equal(found.adversarial[0], x[0])  # as it is
    assert found.evaluations[0] <= 4
    assert found.adversarial.isfinite().all()


@pytest.mark.parametrize("benign", [True, False])
def test_neurons_are_not_measured_where_there_are_no_finite_logits(benign: bool) -> None:
    """Means would be NaN, and no table could be made of them."""
    x, twins = images().clamp(max=0.9), images().clamp(max=0.9)
    (x if benign else twins)[3, 0, 0, 0] = 1.0
    with pytest.raises(InputError, match=r"'logits that are NaN or infinite'; .* those of image 3 or its twin"):
        analysis.measure(Blind(), x, twins)


def test_a_restart_that_the_classifier_has_no_number_for_succeeds() -> None:
    """Started at random, one attempt in four ends where there are no finite logits: it is the one that is kept."""
    x = images().clamp(0.0, 0.85)
    x[:, 0, 0, 0] = 0.85

    taken_for = predictions(logits_of(Blind(), x))

    def fooled(restarts: int) -> Tensor:
        adversarial = pgd(Blind(), x, taken_for, LINF, steps=1, step_size=1e-6, restarts=restarts)
        return predictions(logits_of(Blind(), adversarial)) != taken_for

    assert fooled(1).sum() < COUNT
    assert fooled(40).all()


def test_a_model_of_the_catalogue_that_returns_classes_is_refused(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "whole_numbers.py").write_text(
        "import torch\nclass Net(torch.nn.Module):\n    def forward(self, x):\n"
        "        return torch.zeros(len(x), 4, dtype=torch.int64)\n\n"
        "def net(*, shape, classes):\n    return Net()\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"model.name: .*not int64 of shape \(1, 4\)"):
        build("whole_numbers:net", shape=(1, 6, 6), classes=4, mean=(0.0,), std=(1.0,), seed=0)
