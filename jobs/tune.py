"""Search the regularisation strength, the neuron ratio, or any other field of a recipe, with Ray Tune.

The recipe has a section `search`, which gives fields a distribution each, and a section `sweep`, which says who
searches and how long; any field of both, and of the training, can be a flag on top:

python jobs/tune.py --recipe tune-mnist-sns --sweep.trials 32 --search.stabilize.weight.loguniform 0.1 10
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from distsens.command_line import (
    as_lists,
    check_output,
    parse_flags,
    print_end,
    print_error,
    run_job,
    show_help,
    take_options,
    write_output,
)
from distsens.errors import InputError
from distsens.experiment import Experiment, load_recipe, merge, name_after
from distsens.search import Sweep, SweepPlan

RECIPES = Path(__file__).resolve().parent / "recipes"
# What a resumed sweep may change: none of it changes a trial.
_CHANGEABLE = ("sweep.max_failed", "sweep.finalists", "sweep.judged_images", "data.root")


@dataclass(frozen=True)
class Options:
    """What the job does with the sweep."""

    recipe: str | None = None
    """Name of a recipe in jobs/recipes, or path of a YAML file."""
    resume: str | None = None
    """Continue this sweep (name, path or s3:// address); finished trials are not repeated."""
    factory: tuple[str, ...] = ()
    """Each package.module:factory that a resumed sweep names, if it is not installed and you trust its code."""
    summary: str | None = None
    """Write the result to this file as JSON."""
    dry_run: bool = False
    """Check the space, data, model, storage and resources, then exit."""
    print_experiment: bool = False
    """Print the whole sweep as a recipe, then exit."""


@dataclass(frozen=True)
class Searching:
    """The section of a recipe that says how the sweep goes; beside it stands `search`, described above."""

    sweep: Sweep = field(default_factory=Sweep)


def main(arguments: Sequence[str]) -> int:
    """Run the job; its exit code is 0 for a finished sweep, 1 for a failed one, 2 for wrong input."""
    if "--help" in arguments or "-h" in arguments:
        show_help(__doc__ or "", Options(), Searching(), Experiment())
    flags = parse_flags(arguments)
    options = take_options(Options, flags)
    shape = {**Experiment().model_dump(mode="json"), "sweep": Sweep().model_dump(mode="json")}
    changes = as_lists(flags, shape)
    if options.resume is None:
        if options.factory:
            raise InputError("factory", options.factory, "only with --resume; --model.name names that of a new sweep")
        if options.recipe is None:
            raise InputError("recipe", None, "name one, as in --recipe tune-quickstart, or --resume a sweep")
        recipe = merge({"name": name_after(options.recipe), **load_recipe(options.recipe, [RECIPES])}, changes)
        plan = SweepPlan.parse(recipe)
        if options.print_experiment:
            print(_as_recipe(plan), end="")
            return 0
        return _tune(options, recipe, plan, None)
    if options.recipe is not None:
        raise InputError("recipe", options.recipe, "a resumed sweep has its own")
    from distsens.distributed.preflight import storage_url
    from distsens.distributed.sweep_record import find_sweep
    from distsens.models import check_named

    places = Experiment.parse({key: value for key, value in changes.items() if key == "storage"})
    found = find_sweep(options.resume, storage_url(places))
    recipe = merge(found.recipe, changes)
    _check_changes(found.name, found.recipe, recipe)
    check_named(found.name, found.recipe, options.factory)
    return _tune(options, recipe, SweepPlan.parse(recipe), found)


def _as_recipe(plan: SweepPlan) -> str:
    sections = {"search": dict(plan.search), "sweep": plan.sweep.model_dump(mode="json")}
    return plan.base.to_yaml() + yaml.safe_dump(sections, sort_keys=False)


def _check_changes(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Refuse to go on with another sweep."""
    earlier, later = SweepPlan.parse(before), SweepPlan.parse(after)
    changed = [f"sweep.{one}" for one in earlier.sweep.differences(later.sweep)]
    changed += earlier.base.differences(later.base)
    changed += ["search"] if earlier.space != later.space else []
    places = ("storage.", *_CHANGEABLE)
    if other := [one for one in changed if not one.startswith(places)]:
        raise InputError("resume", name, f"it is another sweep ({', '.join(other)} differ)")


def _tune(options: Options, recipe: dict[str, Any], plan: SweepPlan, resumed: Any) -> int:
    # Ray, torch and MLflow take seconds to import: only once the words of the command are in order.
    from rich.console import Console

    from distsens.console import print_line
    from distsens.distributed.cluster import check_room
    from distsens.distributed.sweep_driver import run_sweep
    from distsens.distributed.sweep_preflight import check_sweep
    from distsens.models import words_for
    from distsens.report import checking, open_view
    from distsens.report.sweep import SweepView, show_sweep
    from distsens.storage import address
    from distsens.tracking import check_run

    if options.summary is not None:
        check_output("summary", options.summary)
    console = Console()
    say = partial(print_line, console)
    with checking(console) as tell:
        checked = check_sweep(plan, tell)
    if resumed is not None:
        check_run(checked.base.tracking_uri, resumed.mlflow_run_id)
    for notice in checked.notices:
        say(f"notice: {notice}")
    if options.dry_run:
        trainings = (plan.base, plan.champion(plan.first))
        check_room([(one.workers, one.data.decoding_cpus) for one in trainings], say)
        _show_checked(say, plan, checked)
        return 0
    with SweepView(console, plan.total, plan.rungs) as view:
        summary, outcome, code = run_sweep(recipe, checked, view, lambda epochs: open_view(console, epochs), resumed)
    written = write_output("summary", options.summary, summary.to_dict())
    show_sweep(console, summary, outcome)
    say(f"report: {address(summary.storage)}/report/report.html")
    if summary.message is not None:
        print_end(summary.status, summary.message)
        words = ["python", "jobs/tune.py", "--resume", address(summary.storage), *words_for(recipe)]
        print_error(f"resume with: {shlex.join(words)}")
    return code or written


def _show_checked(say: Callable[[str], None], plan: SweepPlan, checked: Any) -> None:
    lines = [f"search {name}: {one}" for name, one in plan.space.items()]
    lines.append(f"{plan.total} trials by {plan.sweep.searcher}, scheduler {plan.sweep.scheduler}")
    for rung in range(1, plan.rungs + 1):
        changed = plan.sweep.rungs[rung - 1] if rung < plan.rungs else "the recipe itself"
        lines.append(f"rung {rung}: {changed}")
    data = checked.base.dataset
    lines.append(f"data {data.name}: {len(data.train)} training and {len(data.validation)} validation images")
    lines += [f"storage {checked.base.storage.url}", f"tracking {checked.base.tracking_uri}"]
    lines.append("everything that can be checked is in order")
    for line in lines:
        say(line)


if __name__ == "__main__":
    run_job(main)
