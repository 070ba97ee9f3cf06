"""Show which neurons of a model are sensitive, whether they decide, when they became so, and what they see.

Give it a run of ours, and it takes data and threat from the training; several models are set side by side:

python jobs/analyze.py --model runs/mnist-sns-20260102-030405-abcd --data.limit 1000
python jobs/analyze.py --model RUN_A RUN_B RUN_C --names standard pgd_at sns --output analysis
python jobs/analyze.py --model net.pt --factory my_models:net --data.name cifar10 --threat.norm linf --threat.eps 8/255
python jobs/analyze.py --model a.pt@nets:small b.pt@nets:large --model.mean 0.1307 --model.std 0.3081 --data.name mnist
python jobs/analyze.py --model RUN --pairs FOLDER          # pairs of jobs/evaluate.py --save-examples FOLDER
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from distsens.command_line import (
    as_lists,
    check_output,
    parse_flags,
    print_end,
    run_job,
    show_help,
    take_addresses,
    take_options,
    write_output,
)
from distsens.errors import InputError
from distsens.experiment import merge


@dataclass(frozen=True)
class Options:
    """What the job does with the analysis."""

    model: tuple[str, ...] = ()
    """What is analysed: an address as of model.address; several are set side by side. Weights may name a factory each:
    --model a.pt@nets:small b.pt@nets:large."""
    factory: str | None = None
    """The same as --model.factory: of all weights that name none themselves."""
    summary: str | None = None
    """Write the result to this file as JSON."""
    dry_run: bool = False
    """Check models, data, attacks, layers, storage and resources, then exit."""


def main(arguments: Sequence[str]) -> int:
    """Run the job; its exit code is 0, 1 for a failed analysis, 2 for wrong input."""
    from distsens.analysis import Analysis

    if "--help" in arguments or "-h" in arguments:
        show_help(__doc__ or "", Options(), Analysis())
    flags = parse_flags(arguments)
    models = take_addresses(flags)
    options = take_options(Options, flags)
    changes = as_lists(flags, Analysis().model_dump(mode="json"))
    if options.factory is not None:
        changes = merge(changes, {"model": {"factory": options.factory}})
    if options.summary is not None:
        check_output("summary", options.summary)
    if not models:
        raise InputError("model", None, "name one: a run, a checkpoint, runs:/..., models:/... or a file of weights")
    given = merge(changes, {"model": {"address": models[0]}})
    if len(models) > 1:
        if "others" in given:
            raise InputError("others", given["others"], "leave it out: --model has named several")
        given = merge(given, {"others": models[1:]})
    return _analyze(options, given)


def _analyze(options: Options, fields: dict[str, Any]) -> int:
    # Ray, torch and MLflow take seconds to import: only once the words of the command are in order.
    from rich.console import Console

    from distsens.analysis import Analysis
    from distsens.console import print_line
    from distsens.distributed.analysis_driver import run_analysis
    from distsens.distributed.analysis_preflight import check_analysis
    from distsens.distributed.cluster import check_room
    from distsens.report import checking
    from distsens.report.analysis import AnalysisView, show_analysis

    console = Console()
    say = partial(print_line, console)
    with checking(console) as tell:
        checked = check_analysis(Analysis.parse(fields), tell)
    for warning in checked.warnings:
        say(f"warning: {warning}")
    if options.dry_run:
        check_room([(checked.analysis.workers, 0)], say)
        say("everything that can be checked is in order")
        return 0
    with AnalysisView(console) as view:
        summary, code = run_analysis(checked, view)
    show_analysis(console, summary)
    if summary.message is not None:
        print_end(summary.status, summary.message)
    written = write_output("summary", options.summary, summary.to_dict())
    return code or written


if __name__ == "__main__":
    run_job(main)
