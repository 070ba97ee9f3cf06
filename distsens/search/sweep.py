"""One sweep: what is searched, by whom, how long, and what wins; typed, frozen and checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from distsens.errors import InputError
from distsens.experiment import Count, Experiment, Images, Number, Section, merge, validate
from distsens.search.space import Grid, Space, nested, parse_space

_MOST_TRIALS = 10**5


class Sweep(Section):
    """How a sweep goes; the ``sweep`` section of a recipe."""

    trials: Count = Field(
        16, ge=1, le=_MOST_TRIALS, description="Draws from the space; each is crossed with every grid."
    )
    searcher: Literal["random", "grid", "tpe"] = Field(
        "random", description="Who draws: at random, the grid alone, or Optuna's TPE (both accuracies for goal front)."
    )
    scheduler: Literal["none", "asha", "pbt"] = Field(
        "none",
        description="none: every trial to the end; asha: the worse ones end at each rung; pbt: the worse ones go on "
        "from the weights of better ones, with their values perturbed.",
    )
    rungs: tuple[dict[str, Any], ...] = Field(
        (),
        description="asha: what each rung but the last changes in the recipe, cheapest first, as in "
        "{training.epochs: 2, data.limit: 4000, attack.steps: 5}; each is a training of its own, with whole schedules.",
    )
    reduction: Count = Field(
        3, ge=2, le=1000, description="asha: one in so many trials goes on from a rung to the next."
    )
    interval: Count = Field(1, ge=1, le=10**5, description="pbt: epochs between perturbations.")
    goal: Literal["robust", "front"] = Field(
        "robust", description="Highest robust accuracy at the clean floor, or the Pareto front of both."
    )
    clean_floor: Number = Field(0.0, ge=0, le=1, description="goal robust: least clean accuracy on validation.")
    finalists: Count = Field(
        2,
        ge=1,
        le=_MOST_TRIALS,
        description="The best so many are judged by AutoAttack on validation; the best of these wins.",
    )
    judged_images: Images = Field(
        200, ge=0, description="Validation images for that; 0 leaves the choice to the score."
    )
    max_failed: Count = Field(
        3, ge=0, le=_MOST_TRIALS, description="The sweep ends when more trials than this have failed."
    )
    concurrent: Count | None = Field(
        None, ge=1, le=_MOST_TRIALS, description="At most so many trials at a time; default all that fit."
    )
    champion: dict[str, Any] = Field(
        {}, description="What the winner's own training changes in the recipe, as in {training.epochs: 20}."
    )
    registered_name: str | None = Field(
        None,
        pattern=r"^[^/:.\s][^/:]*$",  # what MLflow takes
        max_length=250,  # for which its databases have room
        description="Registered MLflow model whose alias champion names the winner; default the recipe's name.",
    )


@dataclass(frozen=True)
class SweepPlan:
    """Everything that decides a sweep.

    fields : of the recipe, without ``search`` and ``sweep``.
    search : as the recipe has it, for the record.
    """

    fields: Mapping[str, Any]
    search: Mapping[str, Any]
    space: Space
    sweep: Sweep

    @staticmethod
    def parse(recipe: Mapping[str, Any]) -> SweepPlan:
        """Validate a recipe with ``search`` and ``sweep``; what cannot work is an :class:`InputError`."""
        fields = dict(recipe)
        search, settings = fields.pop("search", None), fields.pop("sweep", {})
        Experiment.parse(fields)
        if not isinstance(settings, Mapping):
            raise InputError("sweep", settings, "it must hold fields, as in sweep: {trials: 16}")
        try:
            sweep = validate(Sweep, settings)
        except InputError as error:
            raise InputError(f"sweep.{error.field}", error.value, error.allowed) from None
        plan = SweepPlan(fields, search or {}, parse_space(search, fields), sweep)
        plan._check()
        return plan

    @property
    def base(self) -> Experiment:
        """The recipe's experiment, before anything is drawn."""
        return Experiment.parse(self.fields)

    @property
    def first(self) -> dict[str, Any]:
        """Values that a trial may have: the lower end of every range, the first of all choices."""
        return {field: one.extremes[0] for field, one in self.space.items()}

    @property
    def rungs(self) -> int:
        """Trainings of a trial that reaches the end."""
        return len(self.sweep.rungs) + 1

    @property
    def total(self) -> int:
        """Trials in all."""
        grids = math.prod(len(one.values) for one in self.space.values() if isinstance(one, Grid))
        return grids * (1 if self.sweep.searcher == "grid" else self.sweep.trials)

    def experiment(self, values: Mapping[str, Any], rung: int | None = None) -> Experiment:
        """The experiment of a trial with these values, at a rung from 1 on; None for the last, the recipe's own."""
        changes = self.sweep.rungs[rung - 1] if rung is not None and rung < self.rungs else {}
        return Experiment.parse(merge(merge(self.fields, nested(changes)), nested(values)))

    def champion(self, values: Mapping[str, Any]) -> Experiment:
        """The experiment that trains a winner with these values."""
        return Experiment.parse(merge(merge(self.fields, nested(self.sweep.champion)), nested(values)))

    def flat(self) -> dict[str, Any]:
        """What is searched and how, as MLflow's parameters."""
        return {
            **{f"search.{field}": str(one) for field, one in self.space.items()},
            **{f"sweep.{field}": value for field, value in self.sweep.flat().items()},
        }

    def _check(self) -> None:
        sweep = self.sweep
        if self.total > _MOST_TRIALS:
            raise InputError("search", self.total, f"the grids and sweep.trials make at most {_MOST_TRIALS:,} trials")
        grids = [field for field, one in self.space.items() if isinstance(one, Grid)]
        if sweep.searcher == "grid" and len(grids) < len(self.space):
            other = next(field for field in self.space if field not in grids)
            raise InputError(f"search.{other}", str(self.space[other]), "sweep.searcher grid takes grids alone")
        if sweep.searcher == "tpe" and grids:
            raise InputError(f"search.{grids[0]}", str(self.space[grids[0]]), "tpe draws by itself: write choice")
        if sweep.rungs and sweep.scheduler != "asha":
            raise InputError("sweep.scheduler", sweep.scheduler, "only asha has rungs")
        if sweep.scheduler == "asha" and not sweep.rungs:
            raise InputError("sweep.rungs", [], "asha needs at least one below the recipe itself")
        if sweep.scheduler == "pbt":
            self._check_pbt()
        for number, changes in enumerate(sweep.rungs, start=1):
            self._check_changes(f"sweep.rungs.{number}", changes, _THE_SWEEPS_OWN)
        # It is trained alone, so it may have more workers than a trial.
        self._check_changes("sweep.champion", sweep.champion, _THE_SWEEPS_OWN - {"workers"})

    def _check_pbt(self) -> None:
        sweep = self.sweep
        if sweep.searcher != "random":
            raise InputError("sweep.searcher", sweep.searcher, "pbt draws its first values at random: leave it so")
        if sweep.trials < 2:
            raise InputError("sweep.trials", sweep.trials, "pbt needs a population of two or more")
        if sweep.concurrent is not None:
            raise InputError("sweep.concurrent", sweep.concurrent, "pbt makes a whole population, which takes turns")
        if cpus := self.base.data.decoding_cpus:
            raise InputError("data.decoding_cpus", cpus, "0 under pbt, whose trials take every core")
        if sweep.interval >= self.base.training.epochs:
            raise InputError("sweep.interval", sweep.interval, f"below the {self.base.training.epochs} epochs")
        for field, one in self.space.items():
            if isinstance(one, Grid):
                raise InputError(f"search.{field}", str(one), "pbt perturbs what it searches: write choice")
            if field not in _PERTURBED:
                raise InputError("search", field, f"pbt goes on with other weights: it can change {_perturbed()}")

    def _check_changes(self, where: str, changes: Mapping[str, Any], own: Set[str]) -> None:
        changed = nested(changes)
        try:
            experiment = Experiment.parse(merge(self.fields, changed))
        except InputError as error:
            raise InputError(f"{where}.{error.field}", error.value, error.allowed) from None
        for field in self.base.differences(experiment):
            if field in self.space:
                raise InputError(where, field, "it is searched, so it cannot be changed here")
            if field.partition(".")[0] in own:
                raise InputError(where, field, "it is the same for the whole sweep")
        try:
            parse_space(self.search, merge(self.fields, changed))
        except InputError as error:
            raise InputError(error.field, error.value, f"{error.allowed} (in {where})") from None


_THE_SWEEPS_OWN = frozenset(("name", "workers", "checkpoint", "storage", "tracking"))

# What a training may go on with from another's state: nothing that the state's shape or its past depends on.
_PERTURBED = (
    "stabilize.weight",
    "stabilize.ratio",
    "stabilize.decay",
    "stabilize.refresh_steps",
    "objective.beta",
    "objective.alpha",
    "objective.label_smoothing",
    "training.lr",
    "training.gradient_clip",
    "training.awp_gamma",
    "threat.eps",
    "attack.steps",
    "attack.step_size",
)


def _perturbed() -> str:
    return ", ".join(_PERTURBED)
