"""The report of a sweep: what was found, its figures, and its trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distsens.report.document import document, escaped, findings, section
from distsens.report.style import Plate
from distsens.report.sweep.outcome import Outcome
from distsens.report.sweep.state import TrialState, short_names, shown

REPORT = "report.html"


def sweep_page(
    title: str,
    about: str,
    trials: Sequence[TrialState],
    outcome: Outcome,
    plates: Sequence[Plate],
    champion: Mapping[str, Any] | None,
    settings: Mapping[str, Any],
) -> str:
    """The whole document."""
    return document(
        f"Sweep {title}",
        about,
        [
            f'<section id="findings"><h2>Findings</h2>{findings(sweep_sentences(trials, outcome, champion))}</section>',
            section("The search", "Accuracies are on validation, where the trials were compared.", plates),
            _table(trials),
            _made(settings),
        ],
    )


def sweep_sentences(
    trials: Sequence[TrialState], outcome: Outcome, champion: Mapping[str, Any] | None
) -> tuple[str, ...]:
    """What the sweep found, with numbers."""
    statuses = [one.status for one in trials]
    failed = "".join(f", {statuses.count(end)} {end}" for end in ("failed", "interrupted") if end in statuses)
    said = [
        f"{len(trials)} trials: {statuses.count('finished')} went to the end, {statuses.count('stopped')} were stopped "
        f"early{failed}."
    ]
    if champion is not None:
        names = short_names(champion["values"])
        values = ", ".join(f"{names[field]} {shown(value)}" for field, value in champion["values"].items())
        test = champion["test"]
        said.append(
            f"The champion has {values}. Trained anew, it has {test['clean_accuracy']:.2%} clean and "
            f"{test['pgd_accuracy']:.2%} robust accuracy on {test['images']:.0f} test images, looked at this once."
        )
    if outcome.front:
        first, last = outcome.front[0].point, outcome.front[-1].point
        if first is not None and last is not None and first != last:
            said.append(
                f"The front has {len(outcome.front)} trials, from {first.clean:.2%} clean and {first.robust:.2%} "
                f"robust to {last.clean:.2%} and {last.robust:.2%}; its hypervolume is {outcome.hypervolume:.4f}."
            )
    if outcome.saving is not None:
        said.append(
            f"Training took {outcome.evaluations:.3g} gradient evaluations; all trials to the end would have taken "
            f"{outcome.to_the_end:.3g}: {outcome.saving}."
        )
    shares = list(outcome.importance.values())
    if len(shares) > 1 and shares[0] > shares[1]:  # of one field alone, or of equal ones, there is no first
        names = short_names(outcome.importance)
        judged = sum(
            (one := trial.rungs.get(outcome.importance_rung)) is not None and one.score is not None
            for trial in trials
            if trial.status != "failed"
        )
        said.append(
            f"{names[next(iter(outcome.importance))]} explains {shares[0]:.0%} of the variance of the scores of the "
            f"{judged} trials that did rung {outcome.importance_rung}, more than any other of {len(shares)} fields."
        )
    return tuple(said)


def _table(trials: Sequence[TrialState]) -> str:
    fields = list(trials[0].values) if trials else []
    names = short_names(fields)
    heads = ["trial", *(names[field] for field in fields), "rung", "clean", "robust", "AutoAttack", "training", "end"]
    rows = "".join(_row(one, fields) for one in sorted(trials, key=lambda one: one.number))
    head = "".join(f"<th>{escaped(name)}</th>" for name in heads)
    return (
        '<section id="trials"><h2>Trials</h2><div class="scroll"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></section>"
    )


def _row(one: TrialState, fields: Sequence[str]) -> str:
    point = one.point
    cells = [
        *(shown(one.values[field]) for field in fields),
        str(one.rung),
        "" if point is None else f"{point.clean:.2%}",
        "" if point is None else f"{point.robust:.2%}",
        "" if one.autoattack is None else f"{one.autoattack:.2%}",
        f"{one.seconds:.0f} s",
        one.status + (f": {one.failure}" if one.failure else ""),
    ]
    return f"<tr><th scope='row'>{one.number}</th>" + "".join(f"<td>{escaped(c)}</td>" for c in cells) + "</tr>"


def _made(settings: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th scope='row'>{escaped(name)}</th><td>{escaped(str(value))}</td></tr>"
        for name, value in settings.items()
    )
    return (
        '<section id="made"><h2>How it was made</h2><details><summary>Every setting</summary>'
        f'<div class="scroll"><table class="settings"><tbody>{rows}</tbody></table></div></details></section>'
    )
