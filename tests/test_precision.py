"""While a classifier is judged or measured, float32 is float32, on a GPU too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distsens.analysis import InterventionPlan, MeasurementPlan, correlate, intervene, look, measure_images, probe
from distsens.analysis.measurement import make_pairs
from distsens.attacks import GradientAttack, Square, Threat
from distsens.data import to_pixels
from distsens.evaluation import (
    Adaptive,
    Judgement,
    LastIterate,
    Pool,
    Transfer,
    examine,
    inspect,
    masking_checks,
    measure,
)
from distsens.precision import full_float32
from distsens.sensitivity import PairForwards, contributions

BACKENDS: Any = torch.backends
OPERATIONS = (
    BACKENDS.cuda.matmul,
    BACKENDS.cudnn.conv,
    BACKENDS.cudnn.rnn,
    BACKENDS.mkldnn.matmul,
    BACKENDS.mkldnn.conv,
    BACKENDS.mkldnn.rnn,
)
EXACT = (False, False, "highest", *["ieee"] * 6)
THREAT = Threat("linf", 0.1)
ATTACK = GradientAttack(THREAT, steps=2, step_size=0.05)
IMAGES = torch.arange(4 * 64, dtype=torch.uint8).view(4, 1, 8, 8)
PIXELS = to_pixels(IMAGES)
LABELS = torch.zeros(4, dtype=torch.int64)
NUMBERS = torch.arange(4)
CPU = torch.device("cpu")


def settings() -> tuple[Any, ...]:
    """By PyTorch's older names and by its newer ones."""
    older = BACKENDS.cudnn.allow_tf32, BACKENDS.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision()
    return (*older, *newer())


def newer() -> tuple[str, ...]:
    return tuple(operation.fp32_precision for operation in OPERATIONS)


class Watched(nn.Module):
    """A classifier that notes in which precision its forwards run."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 6), nn.Linear(6, 10)
        nn.init.constant_(self.last.bias[:1], 10.0)  # right on all of the images
        self.seen: set[tuple[Any, ...]] = set()

    def forward(self, images: Tensor) -> Tensor:
        self.seen.add(settings())
        logits: Tensor = self.last(self.first(images.flatten(1)).relu())
        return logits


def plan() -> MeasurementPlan:
    return MeasurementPlan({"pgd": ATTACK}, "linf", ("first",), 10)


LOOKS: dict[str, Callable[[Watched], object]] = {
    "examine": lambda model: examine(
        model,
        IMAGES,
        LABELS,
        NUMBERS,
        Judgement(THREAT, {"pgd": LastIterate(ATTACK)}, corruptions=[("fog", 1)]),
        CPU,
    ),
    "inspect": lambda model: inspect(model, PIXELS, LABELS, 10),
    "masking": lambda model: masking_checks(model, PIXELS, LABELS, ATTACK, gradient_free=Square(THREAT, queries=2)),
    "validation and final test": lambda model: measure(
        model,
        IMAGES,
        LABELS,
        {"pgd": ATTACK, "fgsm": ATTACK},
        layers=("first",),
        neurons={"first": 6},
        batch_size=2,
        seed=0,
        device=CPU,
    ),
    "last iterate": lambda model: LastIterate(ATTACK)(model, PIXELS, LABELS),
    "transfer": lambda model: Transfer(model, LastIterate(ATTACK), THREAT)(model, PIXELS, LABELS),
    "adaptive": lambda model: Adaptive(THREAT, Pool(PIXELS, LABELS), steps=2, layers=("first",))(model, PIXELS, LABELS),
    "measure": lambda model: measure_images(model, PIXELS, LABELS, NUMBERS, plan()),
    "pairs": lambda model: make_pairs(model, PIXELS, LABELS, NUMBERS, plan()),
    "intervene": lambda model: intervene(
        model,
        PIXELS,
        1 - PIXELS,
        LABELS,
        InterventionPlan({"first": torch.rand(6)}, {"first": torch.rand(6)}, ("benign",), (0.5,), 2, 0, 2),
    ),
    "look": lambda model: look(model, PIXELS, PIXELS, LABELS, NUMBERS, {"first": {0: {"changed": [1]}}}, 2),
    "correlate": lambda model: correlate(model, model, {"first": "first"}, PIXELS),
    "probe": lambda model: probe(model, PIXELS, ["first"]),
    "forwards of pairs": lambda model: PairForwards(model, ["first"], PIXELS, 1 - PIXELS).patched(
        {"first": torch.tensor([1])}
    ),
    "contributions": lambda model: contributions(model, "first", PIXELS, 1 - PIXELS, LABELS),
}


def older_names() -> None:
    BACKENDS.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("medium")


def newer_names() -> None:
    for operation in (BACKENDS.cuda.matmul, BACKENDS.cudnn.conv):
        operation.fp32_precision = "tf32"
    BACKENDS.mkldnn.matmul.fp32_precision = "bf16"


def one_name_for_all() -> None:
    BACKENDS.fp32_precision = "tf32"


def both() -> None:
    older_names()
    BACKENDS.cudnn.conv.fp32_precision = "ieee"  # from now on the older name of it cannot be asked for


ASKED_FOR = (lambda: None, older_names, newer_names, one_name_for_all, both)


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    yield
    BACKENDS.fp32_precision = "none"
    BACKENDS.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("highest")
    for operation in OPERATIONS:
        operation.fp32_precision = "none"
    for operation in (BACKENDS.cudnn.conv, BACKENDS.cudnn.rnn):
        operation.fp32_precision = "tf32"


@pytest.mark.parametrize("what", LOOKS)
def test_every_look_at_a_classifier_is_in_full_float32(what: str) -> None:
    older_names()
    model, before = Watched().eval(), settings()
    LOOKS[what](model)
    assert model.seen == {EXACT}
    assert settings() == before


@pytest.mark.parametrize("ask", ASKED_FOR)
def test_whatever_was_asked_for_and_by_which_names_it_is_so_again_afterwards(ask: Callable[[], None]) -> None:
    ask()
    before = newer()
    with full_float32():
        with pytest.raises(KeyError), full_float32():
            raise KeyError(settings())
        assert settings() == EXACT
    assert newer() == before


def test_older_names_say_the_same_as_before() -> None:
    for ask in (older_names, lambda: torch.set_float32_matmul_precision("high")):
        ask()
        before = settings()
        with full_float32():
            pass
        assert settings() == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_convolution_on_a_gpu_is_as_exact_as_float32_can_be() -> None:
    torch.manual_seed(0)
    convolution, images = nn.Conv2d(64, 64, 3).cuda(), torch.rand(8, 64, 16, 16, device="cuda")
    with full_float32(), torch.no_grad():
        found = convolution(images).double()
        exact = convolution.double()(images.double())
    assert (found - exact).abs().max() <= 1e-5 * exact.abs().max()
