"""Judge a trained classifier with the strongest attacks, spread over this machine or a Ray cluster.

Give it a run of ours, and it takes data and threat from the training; anything else says its own:

python jobs/evaluate.py --model runs/mnist-sns-20260102-030405-abcd --data.limit 1000 --claim claim.json
python jobs/evaluate.py --model net.pt --factory my_models:net --data.name cifar10 --threat.norm linf --threat.eps 8/255
python jobs/evaluate.py --model a.pt@nets:small b.pt@nets:large --model.mean 0.1307 --model.std 0.3081 --data.name mnist
python jobs/evaluate.py --verify claim.json --model runs/mnist-sns-20260102-030405-abcd --data.limit 100
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from distsens.command_line import (
    as_lists,
    check_output,
    parse_flags,
    print_end,
    print_error,
    run_job,
    show_help,
    take_addresses,
    take_options,
    write_output,
)
from distsens.errors import InputError, renamed
from distsens.examination import Examination
from distsens.experiment import Experiment, merge

if TYPE_CHECKING:
    from distsens.distributed.evaluations import StoredEvaluation
    from distsens.evaluation import Verification
    from distsens.report import EvaluationSummary


@dataclass(frozen=True)
class Options:
    """What the job does with the examination."""

    model: tuple[str, ...] = ()
    """What is judged: an address as of model.address; several side by side, one recipe's seeds with their mean. Weights
    may name a factory each: --model a.pt@nets:small b.pt@nets:large."""
    factory: tuple[str, ...] = ()
    """The same as --model.factory: of all weights that name none themselves. With --resume, and for a run: the
    package.module:factory that it names, if it is not installed and you trust its code."""
    resume: tuple[str, ...] = ()
    """Continue this evaluation (name, path or s3:// address) after its last finished shard; of several models
    all that have begun, and the others by --model, which are judged as the first is."""
    claim: str | None = None
    """Write a claim that others can check to this file as JSON."""
    verify: str | None = None
    """Judge the images that a claim is about, or --data.limit of them drawn at random, and say whether it holds."""
    save_examples: str | None = None
    """Store benign and adversarial pairs in this folder or s3:// address, in a folder named after the evaluation; the
    same as --examples."""
    summary: str | None = None
    """Write the result to this file as JSON; of several models, all results, and the mean and spread over seeds."""
    dry_run: bool = False
    """Check model, data, attacks, storage and resources, then exit."""


def main(arguments: Sequence[str]) -> int:
    """Run the job; its exit code is 0, 1 for a failed evaluation or a claim that does not hold, 2 for wrong input."""
    if "--help" in arguments or "-h" in arguments:
        show_help(__doc__ or "", Options(), Examination())
    flags = parse_flags(arguments)
    models = take_addresses(flags)
    options = take_options(Options, flags)
    changes = as_lists(flags, Examination().model_dump(mode="json"))
    if len(options.factory) == 1:
        # Said of all weights, unless it only repeats what is resumed, and another one is said of the weights.
        changes = merge({"model": {"factory": options.factory[0]}}, changes)
    elif options.factory and not options.resume:
        raise InputError("factory", options.factory, "one, of all weights that name none, as net.pt@nets:small does")
    if options.save_examples is not None:
        changes = merge(changes, {"examples": options.save_examples})
    for name, path in (("claim", options.claim), ("summary", options.summary)):
        if path is not None:
            check_output(name, path)
    if len(options.resume) + len(models) > 1 and (options.claim or options.verify):
        raise InputError("model", [*options.resume, *models], "one model, for a claim")
    if not options.resume and not models:
        raise InputError("model", None, "name one: a run, a checkpoint, runs:/..., models:/... or a file of weights")
    with renamed({} if options.save_examples is None else {"examples": "save_examples"}):
        return _evaluate(options, models, changes)


def _evaluate(options: Options, models: Sequence[str], changes: dict[str, Any]) -> int:
    # Ray, torch and MLflow take seconds to import: only once the words of the command are in order.
    from rich.console import Console

    from distsens.console import print_line
    from distsens.distributed.cluster import check_room
    from distsens.distributed.evaluations import check_further, find_evaluation
    from distsens.distributed.examination_driver import (
        check_same,
        claim_of,
        command_to_resume,
        differences_from,
        identity_of,
        run_examination,
        verify_with,
    )
    from distsens.distributed.examination_preflight import check_examination
    from distsens.distributed.preflight import storage_url
    from distsens.distributed.verification import check_judges_claim, read_claim
    from distsens.evaluation import Verification
    from distsens.models import check_named
    from distsens.report import EvaluationView, checking, show_evaluation, show_models, summary_document
    from distsens.tracking import check_run

    console = Console()
    say = partial(print_line, console)
    claim = None if options.verify is None else read_claim(options.verify)
    begun: list[StoredEvaluation] = []
    if options.resume:
        places = Examination.parse({key: changes[key] for key in ("storage",) if key in changes})
        storage = storage_url(Experiment(storage=places.storage))
        begun = [find_evaluation(name, storage) for name in options.resume]
        check_further(begun, models)
        if claim is not None:
            check_judges_claim(claim, begun[0].examination, begun[0].name)
    for stored in begun:
        check_named(stored.name, stored.examination.model_dump(mode="json"), options.factory)
    if claim is not None and "transfer" not in changes:
        check_named("the claim", claim["examination"], options.factory)
    fields = _fields(changes, [stored.examination for stored in begun], models, claim)
    resumed = [*begun, *(None for _ in models)]
    examinations = [Examination.parse(one) for one in fields]
    chosen = examinations[0].data.images
    if chosen and options.claim is not None:
        raise InputError(
            "claim", options.claim, "a claim is about all images or data.limit of them, and not about chosen ones"
        )
    checked = []
    for examination in examinations:
        with checking(console) as tell:
            checked.append(check_examination(examination, tell))
        for warning in checked[-1].warnings:
            say(f"warning: {warning}")
    if claim is not None:
        numbers = checked[0].numbers[list(chosen)]
        which = f"{len(chosen)} drawn at random: {', '.join(map(str, numbers))}" if chosen else "all"
        say(f"judging the claim's images anew, {which}")
    identity = identity_of(checked[0]) if claim is not None or options.claim is not None else None
    if claim is not None and identity is not None and (found := differences_from(claim, checked[0], identity)).faults:
        refuted = Verification(0, 0, 0, found.faults, found.notices)
        _show(say, refuted)
        if not options.dry_run:
            write_output("summary", options.summary, summary_document([], 1, refuted))
        return 1
    for one, before in zip(checked, resumed, strict=True):
        if before is not None:
            check_same(before, one)
            check_run(one.tracking_uri, before.mlflow_run_id)
    if options.dry_run:
        check_room([(one.examination.workers, 0) for one in checked], say)
        for one, stored in zip(checked, begun, strict=False):
            for key, reason in stored.shards(one.labels).left_out.items():
                say(f"{key} of {stored.name} would not be counted, its images be judged again: {reason}")
        say("everything that can be checked is in order")
        return 0
    summaries: list[EvaluationSummary] = []
    verification = None
    for one, before in zip(checked, resumed, strict=True):
        with EvaluationView(console) as view:
            summary, ledger, code = run_examination(one, view, before)
        show_evaluation(console, summary)
        summaries.append(summary)
        if summary.message is not None or ledger is None:
            print_end(summary.status, str(summary.message))
            command = command_to_resume([one.storage for one in summaries], resumed, checked)
            written = {"--claim": options.claim, "--verify": options.verify, "--summary": options.summary}
            further = [word for flag, path in written.items() if path is not None for word in (flag, path)]
            print_error(f"resume with: {shlex.join([*command, *further])}")
            write_output("summary", options.summary, summary_document(summaries, len(checked)))
            return code
        if options.claim is not None and identity is not None:
            code = write_output("claim", options.claim, claim_of(one, identity, ledger, summary))
        if claim is not None and identity is not None:
            verification = verify_with(claim, one, identity, ledger)
            _show(say, verification)
            code = code or int(not verification.holds)
    show_models(console, summaries)
    return write_output("summary", options.summary, summary_document(summaries, len(checked), verification)) or code


def _show(say: Callable[..., None], verification: Verification) -> None:
    for notice in verification.notices:
        say(f"notice: {notice}")
    say(verification.sentence, "bold")


def _fields(
    changes: Mapping[str, Any], begun: Sequence[Examination], models: Sequence[str], claim: dict[str, Any] | None
) -> list[dict[str, Any]]:
    """Fields of every examination: those that have begun, with the changes on top, then one like the first a model."""
    from distsens.distributed.verification import fields_to_verify
    from distsens.evaluation import said_of
    from distsens.models import factories_in

    addresses = [*(one.model.address for one in begun), *models]
    said = changes.get("model", {})
    changes = {name: value for name, value in changes.items() if name != "model"}
    fields = []
    for one in begun:
        model = said_of(one.model.address, said, addresses)
        if model.get("factory") in set(factories_in(one.model_dump(mode="json"))):
            del model["factory"]  # it has been named again, and changes nothing
        fields.append(merge(one.model_dump(mode="json"), {**changes, "model": model}))
    base = fields[0] if begun else changes if claim is None else fields_to_verify(claim, changes)
    said = {**base.get("model", {}), **said}
    fields += [{**base, "model": said_of(model, said, addresses)} for model in models]
    return fields


if __name__ == "__main__":
    run_job(main)
