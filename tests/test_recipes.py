"""Every recipe in jobs/recipes: it is a valid experiment, and its parts take a training step together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from distsens import assembly
from distsens.data import DATASETS, augment, to_pixels
from distsens.experiment import Experiment, load_recipe, merge
from distsens.randomness import sample_keys
from distsens.search import SweepPlan
from distsens.training import Batch, TrainingState

FOLDER = Path(__file__).parents[1] / "jobs" / "recipes"
RECIPES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
SHAPES = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "fashion_mnist": (1, 28, 28), "cifar10": (3, 16, 16)}


SWEEPS = [recipe for recipe in RECIPES if recipe.startswith("tune-")]


def fields_of(recipe: str) -> dict[str, Any]:
    """Those of the experiment, without a sweep's two sections."""
    fields = load_recipe(recipe, [FOLDER])
    return {name: value for name, value in fields.items() if name not in ("search", "sweep")}


def shape_and_classes(recipe: str, data: str) -> tuple[tuple[int, int, int], int]:
    """Of the images to generate; smaller than the recipe's where a network is large, and bf16 may be emulated."""
    if data == "folder":
        return (3, 32, 32), 1000 if recipe.startswith("imagenet") else 5
    return SHAPES[data], 10


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_an_experiment_that_survives_being_written_out(recipe: str) -> None:
    experiment = Experiment.parse(fields_of(recipe))
    assert experiment.data.name in DATASETS
    assert experiment.flat()  # what MLflow shows
    assert Experiment.parse(experiment.model_dump(mode="json")).digest() == experiment.digest()


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_says_what_it_is_and_what_it_aims_at(recipe: str) -> None:
    assert (FOLDER / f"{recipe}.yaml").read_text().startswith("# ")


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_parts_of_a_recipe_take_a_training_step_together(recipe: str) -> None:
    experiment = Experiment.parse(merge(fields_of(recipe), {"attack": {"steps": 1}}))
    shape, classes = shape_and_classes(recipe, experiment.data.name)
    model = assembly.build_model(experiment, shape, classes)
    neurons = assembly.count_neurons(experiment, model, shape)
    layers = tuple(neurons)
    stabilizer = assembly.build_stabilizer(experiment, neurons, torch.device("cpu"))
    state = TrainingState(model, assembly.build_optimizer(experiment, model), None, stabilizer)
    step = assembly.build_step(experiment, state, model, layers)
    keys = sample_keys(torch.arange(2), experiment.seed, recipe)
    pixels = torch.randint(0, 256, (2, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = to_pixels(augment(pixels, experiment.data.augment, keys))
    batch = Batch(images, torch.tensor([0, 1]), keys, global_size=2)
    before = [parameter.detach().clone() for parameter in model.parameters()]

    weights = {
        "eps_factor": 1.0,
        "sns_weight": experiment.stabilize.weight,
        "awp_gamma": experiment.training.awp_gamma or 0.0,
    }
    result = step(batch, **weights)
    if stabilizer is not None:  # only now are there sensitive neurons
        stabilizer.refresh()
        result = step(batch, **weights)

    assert result.finite
    assert ("loss/stabilizing" in result.sums) == (experiment.stabilize.weight > 0)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("recipe", SWEEPS)
def test_a_sweeps_recipe_searches_cheap_trainings_first(recipe: str) -> None:
    plan = SweepPlan.parse(load_recipe(recipe, [FOLDER]))
    values = {field: one.extremes[0] for field, one in plan.space.items()}
    trainings = [plan.experiment(values, rung) for rung in range(1, plan.rungs + 1)]
    costs = [one.training.epochs * (one.data.limit or 10**6) * (one.attack.steps + 1) for one in trainings]
    assert costs == sorted(costs)
    assert costs[0] * 3 <= costs[-1]
    assert plan.champion(values).training.epochs >= trainings[-1].training.epochs
