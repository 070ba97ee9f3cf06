"""The champion is the best finalist by the sweep's goal, as AutoAttack leaves it."""

from __future__ import annotations

import re
from contextlib import suppress
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from distsens.assembly import load_data
from distsens.distributed import champion
from distsens.distributed.champion import Searched, judge_finalists, winner_of
from distsens.distributed.examination_preflight import CheckedExamination
from distsens.distributed.sweep_record import StoredSweep
from distsens.evaluation import Architecture, Subject
from distsens.examination import Examination
from distsens.report.sweep import RungState, SweepView, TrialState
from distsens.search import Sweep, SweepPlan
from distsens.storage import open_place
from distsens.suite import GROUPS, load_judged
from tests.evaluation.ledgers import ledger_of


def finished(number: int, clean: float, robust: float, score: float, autoattack: float | None) -> TrialState:
    rungs = {1: RungState(3, clean, robust, score)}
    return TrialState(f"t{number}", number, {}, "finished", rungs=rungs, autoattack=autoattack)


def test_autoattack_decides_among_the_finalists_and_no_other_can_win() -> None:
    trials = [finished(0, 0.9, 0.7, 0.7, 0.4), finished(1, 0.9, 0.6, 0.6, 0.5), finished(2, 0.9, 0.5, 0.5, None)]
    winner = winner_of(Sweep(), trials)
    assert winner is not None
    assert winner.number == 1


def test_a_finalist_below_the_clean_floor_loses_to_one_above_it_whatever_autoattack_leaves() -> None:
    trials = [finished(0, 0.95, 0.5, 0.5, 0.2), finished(1, 0.8, 0.7, -0.1, 0.6)]
    winner = winner_of(Sweep(clean_floor=0.9), trials)
    assert winner is not None
    assert winner.number == 0


def test_for_a_front_clean_accuracy_counts_as_much() -> None:
    trials = [finished(0, 0.99, 0.5, 0.495, 0.40), finished(1, 0.8, 0.6, 0.48, 0.45)]
    winner = winner_of(Sweep(goal="front"), trials)
    assert winner is not None
    assert winner.number == 0


def test_without_autoattack_the_score_decides_and_without_a_finished_trial_nobody_wins() -> None:
    trials = [finished(0, 0.9, 0.5, 0.5, None), finished(1, 0.9, 0.6, 0.6, None)]
    winner = winner_of(Sweep(), trials)
    assert winner is not None
    assert winner.number == 1
    stopped = TrialState("t9", 9, {}, "stopped", rungs={1: RungState(3, 0.9, 0.9, 0.9)})
    assert winner_of(Sweep(), [stopped]) is None


PLAN = SweepPlan.parse({"search": {"stabilize.weight": {"uniform": [0, 1]}}, "sweep": {"judged_images": 40}})


class Judging:
    """A sweep with two finalists, whose models' files are their names; what is asked of the examiners, and shown.

    Of each shard the first image stands. The driver is killed after so many shards.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[str, int]] = []
        self.labels: dict[int, int] = {}
        self.left = 100
        self.output = StringIO()
        self._stored = StoredSweep("s", open_place(str(folder)), {}, "id")
        judging = self

        class Examiners:
            def __init__(self, assignment: Any, _: Any) -> None:
                self.name, self.numbers = assignment.name, assignment.numbers

            def close(self) -> None:
                pass

            def examine(self, shards: Any, *_: Any) -> Any:
                for number, rows in shards.items():
                    if judging.left == 0:
                        raise KeyboardInterrupt
                    judging.left -= 1
                    judging.asked.append((self.name, len(rows)))
                    by = [None, *["apgd-ce"] * (len(rows) - 1)]
                    labels = {image: judging.labels[image] for image in self.numbers[rows].tolist()}
                    yield number, ledger_of(labels, by, GROUPS["autoattack"])
                    yield None

        def check(examination: Examination) -> CheckedExamination:
            # The address is the trial's, wherever the sweep was moved to.
            assert examination.model.factory == PLAN.base.model.name, "a file alone is not believed to name it"
            subject = Subject("net", "net", Architecture("lenet5"), examination.model.address[-9:].encode())
            whole = examination.completed(PLAN.base)
            dataset, split = load_judged(whole, PLAN.base)
            place = open_place("runs")
            checked = CheckedExamination(whole, subject, None, dataset, split, place, "", None, None, {}, ())
            judging.labels = checked.labels
            return checked

        monkeypatch.setattr(champion, "Examiners", Examiners)
        monkeypatch.setattr(champion, "check_examination", check)
        monkeypatch.setattr(champion, "share_split", lambda _: (None, None))

    def judge(self) -> list[float | None]:
        """What a session finds of the finalists; None of one that it does not come to the end of."""
        trials = [finished(0, 0.9, 0.7, 0.7, None), finished(1, 0.9, 0.6, 0.6, None)]
        trials = [self._stored.trials().get(one.trial, one) for one in trials]
        checked: Any = SimpleNamespace(dataset=load_data(PLAN.base), storage=open_place("runs"))
        with SweepView(Console(file=self.output), 2, 1) as view:
            sweep = Searched(PLAN, checked, self._stored, SimpleNamespace(run_id="id"), view, 2)  # type: ignore[arg-type]
            with suppress(KeyboardInterrupt):
                judge_finalists(sweep, trials)
        return [one.autoattack for one in trials]


def test_autoattack_of_the_finalists_goes_on_after_the_last_shard_that_was_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = Judging(tmp_path / "undisturbed", monkeypatch)
    whole = undisturbed.judge()
    shards = len(undisturbed.asked)
    assert shards >= 4
    assert whole == [shards / 2 / 40] * 2
    killed = Judging(tmp_path / "killed", monkeypatch)
    sessions: list[list[float | None]] = [[None]]
    while None in sessions[-1] and len(sessions) < 100:
        killed.left = 2
        sessions.append(killed.judge())
    assert sessions[1] == [None, None]
    assert None not in sessions[-1]
    assert sum(images for _, images in killed.asked) == 2 * 40, "an image was judged twice"
    assert re.search(r"trial 0: AutoAttack on 40 validation images, \d+ of which are judged", killed.output.getvalue())
    assert f"trial 1: AutoAttack on 40 validation images leaves {shards // 2}, " in undisturbed.output.getvalue()
