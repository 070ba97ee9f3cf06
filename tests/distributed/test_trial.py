"""What a trial of a sweep is worth, and how one goes on from another's state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from distsens.distributed.sweep_events import GaveUp
from distsens.distributed.sweep_record import StoredSweep
from distsens.distributed.trial import RungResult, TrialKit, _take_over, _Trial, last_training
from distsens.errors import InputError
from distsens.experiment import Experiment
from distsens.search import FAILED, Sweep, SweepPlan
from distsens.storage import Checkpoints, open_place
from distsens.training import EpochRecord, TrainingState, best_epoch, stored_history


def record(epoch: int, clean: float, robust: float) -> EpochRecord:
    accuracies = {"validation/clean_accuracy": clean, "validation/robust_accuracy": robust}
    return EpochRecord(epoch, {**accuracies, "validation/selection": robust})


HISTORY = (record(0, 0.1, 0.1), record(1, 0.9, 0.6), record(2, 0.8, 0.5))


def test_a_trial_is_judged_in_its_best_epoch_and_the_floor_counts_in_the_last_rung() -> None:
    sweep = Sweep(clean_floor=0.95)
    result = RungResult({}, HISTORY, None)
    assert result.ended(sweep, last_rung=False).score == 0.6
    last = result.ended(sweep, last_rung=True)
    assert (last.clean, last.robust, last.score) == (0.9, 0.6, pytest.approx(-0.05))


def test_of_a_population_the_newest_epoch_counts_and_the_floor_everywhere() -> None:
    """The best epoch may be another trial's, whose state this one went on from."""
    ended = RungResult({}, HISTORY, None).ended(Sweep(scheduler="pbt", clean_floor=0.85), last_rung=False)
    assert (ended.clean, ended.robust, ended.score) == (0.8, 0.5, pytest.approx(-0.05))


def test_a_trial_that_failed_is_worth_less_than_any_other() -> None:
    ended = RungResult({}, HISTORY, "the loss became NaN").ended(Sweep(), last_rung=True)
    assert (ended.score, ended.failure) == (FAILED, "the loss became NaN")
    assert RungResult({}, HISTORY[:1], None).ended(Sweep(), last_rung=True).score == FAILED


def test_a_rung_result_survives_its_file(tmp_path: Path) -> None:
    place = open_place(str(tmp_path))
    assert RungResult.load(place) is None
    result = RungResult({"stabilize.layers": ["auto"], "seed": 3}, HISTORY, None)
    result.save(place)
    assert RungResult.load(place) == result


def test_a_trial_goes_on_from_anothers_newest_epoch_and_takes_its_best_along(tmp_path: Path) -> None:
    experiment, place = Experiment(), open_place(str(tmp_path))
    theirs, mine = place.child("theirs"), place.child("mine")
    model = nn.Linear(2, 2)
    state = TrainingState(model, torch.optim.SGD(model.parameters(), lr=0.1))
    for one in HISTORY:
        state.history.append(one)
        with torch.no_grad():
            model.weight.fill_(one.epoch)
        if one.epoch:
            Checkpoints(theirs).save(one.epoch, state.to_files(), experiment="theirs", metrics={})
    _take_over(theirs, 2, mine, experiment)
    newest = Checkpoints(mine).newest().checkpoint
    assert newest is not None
    assert newest.manifest.experiment == experiment.digest()
    best = best_epoch(stored_history(newest.files))
    assert best is not None
    state.load_files(Checkpoints(mine).load(best.epoch).files)
    assert (best.epoch, model.weight[0, 0].item()) == (1, 1.0)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionResetError("reset by peer"), None),
        (MemoryError(), None),
        (RuntimeError("view size is not compatible"), "RuntimeError: view size is not compatible"),
        (InputError("model", "tuple of 2", "it must return logits"), "model: got 'tuple of 2'; it must return logits"),
    ],
    ids=lambda one: type(one).__name__,
)
def test_what_may_pass_is_not_written_down_as_a_trials_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str | None
) -> None:
    told: list[Any] = []

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(_Trial, "_post", lambda *post: told.append(post[-1]))
    monkeypatch.setattr(_Trial, "_run", fail)
    trial = _Trial("t0", {"stabilize.weight": 0.5}, TrialKit(SweepPlan.parse(RECIPE), f"file://{tmp_path}", None, None))
    place = trial.place.child("rung-1")
    if said is None:
        with pytest.raises(type(error)):
            trial.train(1, Experiment, place, 0)
        trial.gave_up(error)
        assert isinstance(told[-1], GaveUp)
        assert RungResult.load(place) is None
    else:
        assert trial.train(1, Experiment, place, 0).failure == said
        found = RungResult.load(place)
        assert found is not None
        assert found.failure == said


def test_a_training_is_found_where_the_sweep_was_moved_to() -> None:
    kit = TrialKit(SweepPlan.parse(RECIPE), "file:///new/trials/sweep", None, None)
    assert kit.now("file:///old/trials/sweep/trials/t1/abc").url == "file:///new/trials/sweep/trials/t1/abc"


RECIPE: dict[str, Any] = {
    "training": {"epochs": 6},
    "search": {"stabilize.weight": {"uniform": [0, 1]}},
    "sweep": {"scheduler": "pbt"},
}


def test_a_population_trains_in_a_folder_for_each_set_of_values_and_others_in_one_for_each_rung(tmp_path: Path) -> None:
    place, values = open_place(str(tmp_path)), {"stabilize.weight": 0.5}
    population = SweepPlan.parse(RECIPE)
    halving = SweepPlan.parse({**RECIPE, "sweep": {"scheduler": "asha", "rungs": [{"training.epochs": 1}]}})
    assert last_training(place, population, values, 1) != last_training(place, population, {"stabilize.weight": 1}, 1)
    assert last_training(place, population, values, 1).url == last_training(place, population, dict(values), 1).url
    assert last_training(place, halving, values, 2).url == place.child("rung-2").url


def test_the_champions_run_is_known_to_a_resumed_sweep(tmp_path: Path) -> None:
    stored = StoredSweep("s", open_place(str(tmp_path)), {}, "id")
    assert stored.champion("t1") is None
    stored.keep_champion("t1", "s-champion-1", None)
    assert stored.champion("t1") == ("s-champion-1", None)
    stored.keep_champion("t1", "s-champion-1", {"registered": "models:/s@champion"})
    assert stored.champion("t1") == ("s-champion-1", {"registered": "models:/s@champion"})
    assert stored.champion("t2") is None, "another winner is trained anew"
