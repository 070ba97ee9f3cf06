"""Train a classifier that resists adversarial examples, on this machine or on a Ray cluster.

Give it a recipe, and any field of it as a flag on top; wherever a number is expected, a fraction will do:

python jobs/train.py --recipe mnist-sns --stabilize.weight 0.5 --threat.eps 8/255 --workers.num 4
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

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

RECIPES = Path(__file__).resolve().parent / "recipes"


@dataclass(frozen=True)
class Options:
    """What the job does with the experiment."""

    recipe: str | None = None
    """Name of a recipe in jobs/recipes, or path of a YAML file."""
    resume: str | None = None
    """Continue this run (name, path or s3:// address) from its newest checkpoint."""
    factory: tuple[str, ...] = ()
    """The package.module:factory that a resumed run names, if it is not installed and you trust its code."""
    summary: str | None = None
    """Write the result to this file as JSON."""
    dry_run: bool = False
    """Check data, model, layers, storage and resources, then exit."""
    print_experiment: bool = False
    """Print the whole experiment as YAML, then exit."""


def main(arguments: Sequence[str]) -> int:
    """Run the job; its exit code is 0 for a finished run, 1 for a failed one, 2 for wrong input."""
    if "--help" in arguments or "-h" in arguments:
        show_help(__doc__ or "", Options(), Experiment())
    flags = parse_flags(arguments)
    options = take_options(Options, flags)
    changes = as_lists(flags, Experiment().model_dump(mode="json"))
    if options.resume is None:
        if options.factory:
            raise InputError("factory", options.factory, "only with --resume; --model.name names that of a new run")
        if options.recipe is None:
            raise InputError("recipe", None, "name one, as in --recipe quickstart, or --resume a run")
        experiment = Experiment.parse(merge({"name": name_after(options.recipe), **_recipe(options.recipe)}, changes))
    else:
        experiment = Experiment.parse(merge(_recipe(options.recipe) if options.recipe else {}, changes))
    if options.print_experiment and options.resume is None:
        print(experiment.to_yaml(), end="")
        return 0
    return _train(options, experiment, changes)


def _recipe(name: str) -> dict[str, Any]:
    return load_recipe(name, [RECIPES])


def _train(options: Options, experiment: Experiment, changes: dict[str, Any]) -> int:
    # Ray, torch and MLflow take seconds to import: only once the words of the command are in order.
    from rich.console import Console

    from distsens.console import print_line
    from distsens.distributed.cluster import check_room
    from distsens.distributed.driver import run_training
    from distsens.distributed.preflight import check, storage_url
    from distsens.distributed.runs import check_checkpoints, find_run, with_changes
    from distsens.models import check_named, words_for
    from distsens.report import checking, open_view, show_summary
    from distsens.storage import address
    from distsens.tracking import check_run

    resumed = None
    if options.resume is not None:
        resumed = find_run(options.resume, storage_url(experiment))
        given = merge(_recipe(options.recipe), changes) if options.recipe else changes
        experiment = with_changes(resumed, given)
        check_named(resumed.name, resumed.experiment.model.name, options.factory)
        if options.print_experiment:
            print(experiment.to_yaml(), end="")
            return 0
        check_checkpoints(resumed)
    if options.summary is not None:
        check_output("summary", options.summary)
    console = Console()
    say = partial(print_line, console)
    with checking(console) as tell:
        checked = check(experiment, tell)
    if resumed is not None:
        check_run(checked.tracking_uri, resumed.mlflow_run_id)
    for notice in checked.notices:
        say(f"notice: {notice}")
    if options.dry_run:
        check_room([(experiment.workers, experiment.data.decoding_cpus)], say)
        _show_checked(say, experiment, checked)
        return 0
    with open_view(console, experiment.training.epochs) as view:
        summary, code = run_training(experiment, checked, view, resumed)
    show_summary(console, summary)
    written = write_output("summary", options.summary, summary.to_dict())
    if summary.message is not None:
        print_end(summary.status, summary.message)
        words = ["python", "jobs/train.py", "--resume", address(summary.storage), *words_for(experiment.model.name)]
        print_error(f"resume with: {shlex.join(words)}")
    else:
        print_line(console, f"next: {_how_to_look(summary.mlflow_uri)} shows the run in MLflow")
    return code or written


def _how_to_look(uri: str) -> str:
    if uri == f"sqlite:///{RECIPES.parents[1] / 'runs' / 'mlflow.db'}":
        return "make ui"
    return uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {shlex.quote(uri)}"


def _show_checked(say: Callable[[str], None], experiment: Experiment, checked: Any) -> None:
    data = checked.dataset
    extra = f"; {data.extra} of the training images are extra, {checked.extra.per_batch} a batch" if data.extra else ""
    limited = " (stratified by class)" if experiment.data.limit is not None else ""
    layers = ", ".join(f"{layer} ({count})" for layer, count in checked.neurons.items()) or "none"
    say(
        f"data {data.name}: {len(data.train)} training{limited}, {len(data.validation)} validation "
        f"and {len(data.test)} test images of shape {data.shape}, {len(data.classes)} classes{extra}"
    )
    say(f"model {experiment.model.name}: {checked.parameters:,} parameters")
    say(f"layers {layers}")
    say(f"storage {checked.storage.url}")
    say(f"tracking {checked.tracking_uri}")
    say(f"workers {experiment.workers.num}")
    say("everything that can be checked is in order")


if __name__ == "__main__":
    run_job(main)
